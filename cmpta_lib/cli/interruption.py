"""What happens on Ctrl-C, SIGTERM and a closed terminal: one line, and nothing of ours goes on running."""

from __future__ import annotations

import os
import re
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
from types import FrameType
from typing import NoReturn

import psutil
from filelock import FileLock, Timeout

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MESSAGE = "interrupted; finished epochs are kept, call again to go on"
GRACE_S = 1.0  # what an orderly end may take; then the process leaves from wherever it is
_PREFIX, _FRESH_S = "cmpta-", 60.0
_leaving = threading.Lock()
_family: set[psutil.Process] = set()  # descendants when the signal came: children of a dead process are no longer found
_folders: set[Path] = set()


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end; raised in the main thread so that open files are closed and cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__(MESSAGE)
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block a signal ends this process and all its descendants, with exit code 128 + its number.

    The main thread gets `GRACE_S` seconds to come out of the block. A second thread, which the interpreter wakes even
    while the main one is busy in compiled code, keeps that time. Signals that the caller of this process ignores
    (`nohup`, background jobs of a script) stay ignored.
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
    except Interrupted as interrupted:
        leave(interrupted.number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken_before)
        mouth.close()


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    for other in SIGNALS:  # a second Ctrl-C must not disturb the clean-up
        signal.signal(other, signal.SIG_IGN)
    _remember_family()
    raise Interrupted(number)


def _keep_time(ear: socket.socket, numbers: frozenset[int]) -> None:
    with ear:
        while byte := ear.recv(1):
            if byte[0] in numbers:
                _remember_family()
                time.sleep(GRACE_S)
                leave(byte[0])


def leave(number: int) -> NoReturn:
    """Say it, end every descendant, remove what lies in the temp folder, and end without waiting for any thread."""
    _leaving.acquire()  # never released: whoever comes second waits for the end
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    with suppress(OSError, ValueError):
        print(MESSAGE, file=sys.stderr, flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # threads that miss their kernels would each say so
    for _ in range(3):  # what a descendant started while it was being ended is met the next time
        _remember_family()
        if not _family:
            break
        for process in _family:
            with suppress(psutil.Error):
                process.kill()  # runs outlive it by design, kernels hold nothing
        psutil.wait_procs(list(_family), timeout=0.5)
        _family.clear()
    for folder in list(_folders):
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(128 + number)


def _remember_family() -> None:
    with suppress(psutil.Error):
        _family.update(psutil.Process().children(recursive=True))


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder in the temp folder for sockets: it goes on every exit, and those of killed processes go here.

    Its owner holds a lock in it, so whether somebody still needs it can be asked from any container or user.
    """
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    _folders.add(folder)
    try:
        with FileLock(folder / "lock"):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _folders.discard(folder)


def _sweep() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError, Timeout):  # somebody else's, in use, or gone meanwhile
            ours = re.fullmatch(rf"{_PREFIX}[a-z0-9_]{{8}}", folder.name) and folder.is_dir()
            if ours and time.time() - folder.stat().st_mtime > _FRESH_S:  # younger: its lock may be about to come
                with FileLock(folder / "lock", timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
