"""What happens on Ctrl-C, SIGTERM and a closed terminal: one line, and nothing of ours goes on running."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MESSAGE = "interrupted; finished epochs are kept, call again to go on"
GRACE_S = 1.0  # what an orderly end may take; then the process leaves from wherever it is
_leaving = threading.Lock()
_family: set[psutil.Process] = set()  # descendants when the signal came: children of a dead process are no longer found
_folders: set[str] = set()


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block a signal ends this process and all its descendants, with exit code 128 + its number.

    The main thread gets `GRACE_S` seconds to come out of the block with a KeyboardInterrupt, so that open files are
    cleaned up. A second thread, which the interpreter wakes even while the main one is busy in compiled code, keeps that
    time. Signals that the caller of this process ignores (`nohup`, background jobs of a script) stay ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)}
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    woken_before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_keep_time, args=(ear, frozenset(before)), name="interruption", daemon=True).start()
    for number in before:
        signal.signal(number, _interrupt)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        _leave(interrupt.args[0] if interrupt.args else signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken_before)
        mouth.close()


def _interrupt(number: int, frame: object) -> NoReturn:
    for other in SIGNALS:  # a second Ctrl-C must not disturb the clean-up
        signal.signal(other, signal.SIG_IGN)
    _remember_family()
    raise KeyboardInterrupt(number)


def _keep_time(ear: socket.socket, numbers: frozenset[int]) -> None:
    with ear:
        while byte := ear.recv(1):
            if byte[0] in numbers:
                _remember_family()
                time.sleep(GRACE_S)
                _leave(byte[0])


def _remember_family() -> None:
    with suppress(psutil.Error):
        _family.update(psutil.Process().children(recursive=True))


def _leave(number: int) -> NoReturn:
    """Say it, end every descendant, remove the folders for sockets, and end without waiting for any thread."""
    _leaving.acquire()  # never released: whoever comes second waits for the end
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        print(MESSAGE, file=sys.stderr, flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # threads that miss their kernels would each say so
    for _ in range(3):  # what a descendant started while it was being ended is met the next time
        _remember_family()
        for process in _family:
            with suppress(psutil.Error):
                process.kill()  # runs outlive it by design, kernels hold nothing
        psutil.wait_procs(list(_family), timeout=0.5)
        _family.clear()
    for folder in list(_folders):
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(128 + number)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder in the temp folder, for sockets; it goes when the block or this process ends, unless that is killed."""
    with tempfile.TemporaryDirectory(prefix="cmpta-", ignore_cleanup_errors=True) as folder:
        _folders.add(folder)
        yield Path(folder)
    _folders.discard(folder)
