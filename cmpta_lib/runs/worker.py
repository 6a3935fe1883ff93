"""Making runs: each is one folder, trained once, whoever asks for it and however often it is killed.

A run's folder `runs/<corpus>-<config hash>/` is claimed by a file lock, so any number of notebooks may ask for the same
run at the same time; a killed worker's lock falls with it, and the next call goes on from the last epoch's checkpoint.
A run that raises leaves `failure.json`; one that ends well is sealed.

    python -m cmpta_lib.runs.worker ROOT                 a worker of `processes.Processes`: runs by stdin, events by stdout
    python -m cmpta_lib.runs.worker ROOT FOLDER...       these runs, one after another
    torchrun -m cmpta_lib.runs.worker ROOT FOLDER...     these runs, each over all processes
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import platform
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cmpta_lib import files
from cmpta_lib.runs import provenance as machine
from cmpta_lib.runs import store

Report = Callable[[dict[str, Any]], None]
PATIENCE = timedelta(seconds=10)  # after a failure: in one that all processes meet, the others report it too
FOREVER = timedelta(days=30)  # a run may take days, and so may the one that holds its lock


def execute(root: Path, folder: Path, report: Report = lambda event: None) -> None:
    """Train, evaluate, record and seal the run whose config lies in `folder`; call with its lock held."""
    from cmpta_lib.runs import execution  # torch, which a worker needs only once it has something to do

    execution.execute(root, folder, lambda epoch: report({"event": "epoch", "epoch": epoch}))
    if not int(os.environ.get("RANK", 0)):  # the first of torchrun's processes has written everything
        store.seal(folder)


def attempt(root: Path, folder: Path, report: Report = lambda event: None, patience: float = 0) -> str:
    """Claim one run and finish it; reports and returns how that ended: "done", "failed", or "busy".

    Args:
        patience: seconds to wait for the lock where another process holds it; -1 = as long as it takes.
    """
    lock = FileLock(folder / store.LOCK)
    try:
        with files.writing(folder / store.LOCK):
            lock.acquire(timeout=patience)
    except Timeout:
        report({"event": "busy"})
        return "busy"
    except OSError as error:
        report({"event": "failed", **_failure(error)})
        return "failed"
    try:
        failure = None if (folder / store.DONE).exists() else _guarded(root, folder, report, prepare=True)
        if not failure:
            store.sweep(folder)
    finally:
        lock.release()
    outcome = {"event": "failed", **failure} if failure else {"event": "done"}
    report(outcome)
    return outcome["event"]


def attempt_elsewhere(root: Path, folder: Path, events: Path) -> str:
    """As `attempt`, for an engine on another machine: what is reported goes to the end of the file `events`, a line each.

    Raises:
        FileNotFoundError: this machine does not see the runs folder.
    """
    if not (folder / store.CONFIG).exists() or not events.parent.is_dir():
        raise FileNotFoundError(
            f"{platform.node()} does not see {folder} and {events.parent}: the runs folder (CMPTA_RUNS) must lie on a file "
            f"system that every machine mounts under the same path"
        )

    def report(event: dict[str, Any]) -> None:
        with events.open("a", encoding="utf-8") as file:  # closed each time: a network file system then shows it to others
            file.write(f"{json.dumps(event)}\n")

    report({"event": "start"})
    with _noted(report):
        return attempt(root, folder, report)


@contextmanager
def _noted(report: Report) -> Iterator[None]:
    """Within the block warnings of this library are reported as notes for the user."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            report({"event": "note", "text": record.getMessage()})

    notes = Notes(logging.WARNING)
    logging.getLogger("cmpta_lib").addHandler(notes)
    try:
        yield
    finally:
        logging.getLogger("cmpta_lib").removeHandler(notes)


def _guarded(root: Path, folder: Path, report: Report, prepare: bool) -> dict[str, str] | None:
    """Make a claimed run; what it raised, which is also left in failure.json, or None."""
    try:
        if prepare:
            _clear(folder)
        machine.take_device()
        execute(root, folder, report)
    except Exception as error:  # whatever it is, the other runs go on; it is recorded and reported, not swallowed
        failure = _failure(error)
        traceback.print_exc()
        if prepare:
            _record(folder, failure)
        return failure
    return None


def _clear(folder: Path) -> None:
    """Remove what an earlier attempt left beside its checkpoint, so that nothing of it can be sealed."""
    for name in (store.FAILURE, *store.RESULTS):
        with files.writing(folder / name):
            (folder / name).unlink(missing_ok=True)


def _failure(error: Exception) -> dict[str, str]:
    """What failure.json holds: no times, so that the same failure gives the same file."""
    lines = "".join(traceback.format_exception(error))
    return {"kind": type(error).__name__, "message": str(error), "traceback": lines, "log": _log_end()}


def _record(folder: Path, failure: dict[str, str]) -> None:
    with suppress(OSError):  # on a full disk the report has to do
        store.record_failure(folder, failure)


def _log_end(size: int = 2000) -> str:
    """The last lines of this process's log, where standard error goes into a file."""
    try:
        return os.pread(2, size, max(0, os.fstat(2).st_size - size)).decode("utf-8", "replace")
    except OSError:  # a terminal, or a pipe
        return ""


def serve(root: Path) -> None:
    """A worker of `processes.Processes`: one run folder a line on stdin, one JSON event a line on stdout.

    It says "ready" when it can take a run. When stdin closes, whoever started it is gone or has no more runs: it ends at
    once, in the middle of whatever it does.
    """
    commands, events = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # what anything prints here belongs into the log, not among the events
    tasks: queue.SimpleQueue[Path] = queue.SimpleQueue()

    def listen() -> None:
        for line in commands:
            tasks.put(Path(json.loads(line)))
        os._exit(0)

    def report(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=events, flush=True)

    _end_with_parent()
    threading.Thread(target=listen, daemon=True).start()
    with _noted(report):
        while True:
            report({"event": "ready"})
            if attempt(root, tasks.get(), report) == "failed" and _used_gpu():
                os._exit(0)  # a failure may leave the GPU unusable for this process; the engine starts another one


def _end_with_parent() -> None:
    """On Linux the kernel ends this process with its parent, even while a library holds the interpreter's lock."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _used_gpu() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized()


def work(root: Path, folders: Sequence[Path]) -> bool:
    """Finish these runs one after another, first what is free, then what another process holds; False if one failed."""
    outcomes = {folder: attempt(root, folder) for folder in folders}
    for folder, outcome in outcomes.items():
        if outcome == "busy":
            outcomes[folder] = attempt(root, folder, patience=-1)
    return set(outcomes.values()) <= {"done"}


def work_together(root: Path, folders: Sequence[Path]) -> bool:
    """One of torchrun's processes: finish these runs one after another, each over all of them; False if one failed.

    The first process holds the lock and decides whether there is anything to do.
    """
    from torch import distributed

    machine.take_device()
    shared, rank, count = next(distributed.rendezvous("env://"))
    distributed.init_process_group(store=shared, rank=rank, world_size=count)
    good = True
    for number, folder in enumerate(folders):
        with FileLock(folder / store.LOCK) if rank == 0 else nullcontext():
            good &= _one_of_many(root, folder, distributed.PrefixStore(f"run{number}", shared), rank, count)
    distributed.destroy_process_group()
    return good


def _one_of_many(root: Path, folder: Path, shared: Any, rank: int, count: int) -> bool:
    """This process's part in one run, and whether it went well for all.

    A failure that all processes meet ends the run. Where only some meet it, the others wait in vain for their gradients:
    then a process that failed ends, and torchrun with it all of them.
    """
    from torch.distributed import DistStoreError

    if rank == 0:
        shared.set("to do", str(not (folder / store.DONE).exists()))
    shared.wait(["to do"], FOREVER)
    if shared.get("to do") != b"True":
        return True
    failure = _guarded(root, folder, lambda event: None, prepare=rank == 0)
    shared.set(f"rank {rank}", "failed" if failure else "done")
    ranks = [f"rank {other}" for other in range(count)]
    try:
        shared.wait(ranks, PATIENCE if failure else FOREVER)
    except DistStoreError:
        if failure and rank:  # the first process waits, and cannot say it
            _record(folder, failure)
        raise
    if rank == 0 and not failure:
        store.sweep(folder)
    return all(shared.get(other) == b"done" for other in ranks)


if __name__ == "__main__":
    _root, *_folders = map(Path, sys.argv[1:])
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        sys.exit(not work_together(_root, _folders))
    if _folders:
        sys.exit(not work(_root, _folders))
    serve(_root)
