"""What happens on Ctrl-C, SIGTERM and a closed terminal: one line, and nothing of ours goes on running."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MESSAGE = "interrupted; what is finished is kept, call again to go on"
GRACE_S = 1.0  # what an orderly end may take; then the process leaves from wherever it is
SCRATCH = f"cmpta-{os.getpid()}-"  # how names of this process' temporary folders begin, which go with it


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block a signal ends this process and all its descendants, with exit code 128 + its number.

    The main thread comes out of the block with a KeyboardInterrupt, so that open files are cleaned up. Signals that the
    caller of this process ignores (`nohup`, background jobs of a script) stay ignored.
    """
    is_main = threading.current_thread() is threading.main_thread()  # no other may handle signals
    heard = [number for number in SIGNALS if is_main and signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, _interrupt) for number in heard}
    try:
        yield
    except KeyboardInterrupt as interrupt:
        _leave(interrupt.args[0] if interrupt.args else signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> NoReturn:
    for other in SIGNALS:  # a second Ctrl-C must not disturb the clean-up
        signal.signal(other, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: _leave(number))
    signal.setitimer(signal.ITIMER_REAL, GRACE_S)
    with suppress(OSError):  # the terminal is closed
        os.write(2, b"\n" * os.isatty(2) + f"{MESSAGE}\n".encode())  # there the line of what is at work may stand before it
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # threads that miss their kernels would each say so
    _end_descendants()
    raise KeyboardInterrupt(number)


def _end_descendants() -> None:
    for _ in range(3):  # what a descendant started while it was being ended is met the next time
        family = psutil.Process().children(recursive=True)
        for process in family:
            with suppress(psutil.Error):
                process.kill()  # runs outlive it by design, kernels hold nothing
        psutil.wait_procs(family, timeout=0.5)


def _leave(number: int) -> NoReturn:
    """End every descendant, remove the temporary folders, and end without waiting for any thread."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    _end_descendants()
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(128 + number)
