"""What every engine shares: how attempts at runs are assigned, followed, and tried again.

The runs folder is all that the processes have in common, on this machine or on others. An attempt takes its run from
there, claims it by the run's lock, goes on from its checkpoint, and says how far it is in a file, which the dispatcher
reads. So whoever dies, the others know what they need, and any number of calls on one runs folder share the work.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cmpta_lib import files, registry
from cmpta_lib.config import AtLeastOne, fitting
from cmpta_lib.runs import provenance, store
from cmpta_lib.runs.store import Run
from cmpta_lib.runs.worker import ENDS, Attempt

RETRIES = 3  # attempts that finish no further epoch, after one whose worker or machine died
MOST_FALSE_STARTS = 3  # workers in a row that end before they begin: then something is wrong with all of them
AGAIN_S = 1.0  # after which a run that another process holds, or whose worker died, is tried again
POLL_S = 0.1
LOG = "workers.log"  # in a call's folder: what its workers print
_TRAVELLING = ("HF_HOME", "HF_HUB_CACHE")  # where weights lie; no token, which a cluster's pages would show
_GPUS = "CUDA_VISIBLE_DEVICES"
_OLD_S = 7 * 24 * 3600.0  # what failed and interrupted calls left is kept so long: jobs may wait in a queue still
Report = Callable[[Run, dict[str, Any]], None]


@dataclass(frozen=True)
class Failure:
    """A run that could not be finished, and why, on one line."""

    run: Run
    reason: str


@dataclass(eq=False)
class Job:
    """An attempt under way: what the engine holds of it, and what it has said so far."""

    run: Run
    events: Path
    slot: int  # its place among those at work, from 0; the next one takes it over
    handle: Any = None
    read: int = 0  # bytes of the events
    outcome: dict[str, Any] = field(default_factory=dict)  # its last event


class Engine:
    """Somewhere that makes runs: a subclass says how an attempt is started, how its process ended, how it is cancelled.

    Attributes:
        jobs: attempts at a time; None = all at once, where a cluster has a queue of its own.
        retries: attempts that finish no further epoch, after one whose worker or machine died.
        is_local: on this machine, whose GPUs the dispatcher gives to attempts in turn.
    """

    retries, is_local = 0, False

    def __init__(self, jobs: int | None = None) -> None:
        asked = fitting(AtLeastOne | None, jobs, "jobs", strict=True)
        self.jobs = provenance.usual() if asked is None and self.is_local else asked

    @contextmanager
    def opened(self, runs: Sequence[Run], folder: Path) -> Iterator[None]:
        """Within the block attempts can be made; `folder` is the call's own, which all machines see."""
        yield

    def submit(self, attempt: Attempt, job: Job) -> Any:
        """Start it, or put it into a queue; returns a handle."""
        raise NotImplementedError

    def ended(self, job: Job) -> str:
        """How its process ended, in words; "" while it waits or runs."""
        raise NotImplementedError

    def cancel(self, job: Job) -> None:
        """End this one, whatever it does, where that is in our hands."""

    def run(self, runs: Sequence[Run], root: Path, report: Report) -> Sequence[Failure]:
        """Finish these runs, whose folders hold their configs; what fails is returned, the others go on.

        Args:
            report: called with a run and an event: {"event": "start"}, {"event": "epoch", "epoch": finished ones},
                {"event": "done"}, {"event": "failed", "kind": ..., "message": ...}, {"event": "busy"} (another process
                holds it: it waits again), or {"event": "note", "text": a line for the user}.
        Raises:
            RuntimeError: no further attempt can be made, and runs are left.
        """
        folder = _folder_of_this_call(root)
        try:
            with self.opened(runs, folder):
                failures = _Dispatcher(self, root, folder, report).work(runs)
        except Exception as error:
            if type(error) is not Exception and type(error).__module__.partition(".")[0] not in ("ray", "submitit"):
                raise
            said = f"{type(error).__name__}: {one_line(str(error))[:150]}".rstrip(". ")
            raise RuntimeError(f"the engine fails ({said}). Finished epochs are kept: call again.") from error
        if not failures:  # else what workers and jobs printed stays
            shutil.rmtree(folder, ignore_errors=True)
        return failures


class _Dispatcher:
    """The runs of one call: which wait, which are under way, whose worker died how often."""

    def __init__(self, engine: Engine, root: Path, folder: Path, report: Report) -> None:
        self.engine, self.root, self.folder, self.report = engine, root, folder, report
        self.waiting: deque[tuple[float, Run]] = deque()  # with the time not to ask before
        self.jobs: list[Job] = []
        self.failures: list[Failure] = []
        self.deaths: Counter[tuple[Path, int]] = Counter()  # of a run after so many finished epochs
        self.count, self.false_starts, self.lost = itertools.count(), 0, ""
        visible = os.environ.get(_GPUS) or ",".join(map(str, range(provenance.gpu_count())))
        self.gpus = visible.split(",")[: provenance.gpu_count()] if engine.is_local else []

    def work(self, runs: Sequence[Run]) -> list[Failure]:
        """Until every run is finished or failed; what was started is ended, however this ends."""
        self.environment = environment(runs)
        self.waiting.extend((0.0, run) for run in runs)
        try:
            while self.waiting or self.jobs:
                if not self.lost:
                    self.assign()
                elif not self.jobs:  # what was under way has ended well or not
                    left = f"{len(self.waiting)} of {len(runs)} runs are left"
                    raise RuntimeError(f"{self.lost}; {left}. Finished epochs are kept: call again.")
                for job in list(self.jobs):
                    self.look(job)
                time.sleep(POLL_S)
        finally:
            for job in self.jobs:
                with suppress(Exception):  # whatever it is, the next one is still to be ended
                    self.engine.cancel(job)
        return self.failures

    def assign(self) -> None:
        for _ in range(len(self.waiting)):
            if self.engine.jobs is not None and len(self.jobs) >= self.engine.jobs:
                return
            not_before, run = self.waiting.popleft()
            if run.done:  # another process has finished it meanwhile
                self.report(run, {"event": "done"})
            elif not_before > time.monotonic():
                self.waiting.append((not_before, run))
            elif _is_held(run):  # a job that would only find that out may have cost minutes in a queue
                self.finish(run, {"event": "busy"})
            else:
                slot = min(set(range(len(self.jobs) + 1)) - {job.slot for job in self.jobs})
                job = Job(run, self.folder / f"{run.folder.name}.{next(self.count)}.jsonl", slot)
                gpu = {_GPUS: self.gpus[slot % len(self.gpus)]} if self.gpus else {}
                attempt = Attempt(self.root, run.folder, job.events, run.row, self.environment | gpu)
                job.handle = self.engine.submit(attempt, job)
                self.jobs.append(job)

    def look(self, job: Job) -> None:
        """Pass on what an attempt said, and finish with it once its process has."""
        self.hear(job)
        if how := self.engine.ended(job):
            self.hear(job)  # what it wrote just before its end
            self.jobs.remove(job)
            self.finish(job.run, job.outcome or ({"event": "done"} if job.run.done else self.died(job, how)))

    def finish(self, run: Run, outcome: dict[str, Any]) -> None:
        """With an attempt: the run is done, has failed, or waits again."""
        self.report(run, outcome)
        if outcome["event"] == "busy":
            self.waiting.append((time.monotonic() + AGAIN_S, run))
        elif outcome["event"] == "failed":
            self.failures.append(Failure(run, one_line(f"{outcome['kind']}: {outcome['message']}")))

    def hear(self, job: Job) -> None:
        """Pass on the events that were written since the last time, whole ones only."""
        with suppress(FileNotFoundError), job.events.open("rb") as file:
            file.seek(job.read)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                job.read += len(line)
                try:
                    event = json.loads(line)
                except ValueError:  # what a killed process did not finish
                    continue
                self.false_starts = 0
                if event["event"] in ENDS:
                    job.outcome = event
                else:
                    self.report(job.run, event)

    def died(self, job: Job, how: str) -> dict[str, Any]:
        """A worker or its machine died: its run waits again, wherever there is room, as long as that leads somewhere."""
        run, printed = job.run, self.folder / LOG
        log = printed.read_bytes()[-2000:].decode("utf-8", "replace") if printed.exists() else ""
        if not job.read:  # it has not begun, which is not the run's doing
            self.false_starts += 1
            if self.false_starts >= MOST_FALSE_STARTS:
                last = "".join(f" and ends with: {line}" for line in log.strip().splitlines()[-1:])
                self.lost = f"no worker starts: {how}{last}"
            return {"event": "busy"}
        self.deaths[place := (run.folder, store.finished_epochs(run.folder))] += 1
        if (deaths := self.deaths[place]) <= self.engine.retries:
            text = f"{run.folder.name}: {how}; it goes on from its last finished epoch"
            self.report(run, {"event": "note", "text": f"{text}, attempt {deaths + 1} of {self.engine.retries + 1}"})
            return {"event": "busy"}
        times = f", {deaths} times without another finished epoch" if deaths > 1 else ""
        failure = {"kind": "WorkerDied", "message": how + times}
        with suppress(Timeout, OSError), FileLock(run.folder / store.LOCK, timeout=0):  # else another process tries it already
            store.record_failure(run.folder, failure | {"traceback": "", "log": log})
        return {"event": "failed", **failure}


def environment(runs: Sequence[Run]) -> dict[str, str]:
    """What an attempt elsewhere must find set, so that it imports and sees what can be imported and seen here."""
    path = os.pathsep.join(dict.fromkeys(os.path.abspath(entry) for entry in sys.path))
    threads = max(run.config.training.num_threads for run in runs)
    told = {name: value for name, value in os.environ.items() if name.startswith("CMPTA_") or name in _TRAVELLING}
    return told | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), registry.PLUGINS: registry.plugins()}


def one_line(text: str) -> str:
    return " ".join(text.split())


def _is_held(run: Run) -> bool:
    """Whether another process works on this run now."""
    try:
        with FileLock(run.folder / store.LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # the attempt will say what is wrong with it
        return False


def _folder_of_this_call(root: Path) -> Path:
    """A new folder that all machines see, for what jobs say; what earlier calls of this machine left long ago goes."""
    logs, host = root / "logs", f"{platform.node() or 'localhost'}."
    with files.writing(logs):
        logs.mkdir(parents=True, exist_ok=True)
        for left in logs.glob(f"{host}*.jobs"):
            with suppress(FileNotFoundError):  # another call removes it
                if time.time() - left.stat().st_mtime > _OLD_S:
                    shutil.rmtree(left, ignore_errors=True)
        return Path(tempfile.mkdtemp(".jobs", host, logs))
