"""What engines on other machines share: one attempt at a run in a process elsewhere, and the bookkeeping of many.

The runs folder is all that the machines have in common. An attempt takes its run from there, claims it by the run's lock,
goes on from its checkpoint, and says how far it is in a file of the same folder, which the engine's process reads. Nothing
else travels, so whoever dies, the others know what they need.
"""

from __future__ import annotations

import itertools
import json
import os
import pkgutil
import platform
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from cmpta_lib import files, registry
from cmpta_lib.runs import store
from cmpta_lib.runs.engines import Failure, Report, one_line, record_death
from cmpta_lib.runs.store import Run

WORKER = "cmpta_lib.runs.worker:attempt_elsewhere"  # named, not imported: it runs elsewhere
RETRIES = 3  # attempts that finish no further epoch, after one whose worker or machine died
HELD_S = 2.0  # after which a run that another process holds is asked for again
POLL_S = 0.1
KEPT = "kept"  # in a folder of jobs: some failed, and what they said is still to be read
_TRAVELLING = ("HF_HOME", "HF_HUB_CACHE")  # where weights lie; no token, which a cluster's pages would show
_OLD_S = 7 * 24 * 3600.0  # what jobs of a dead process left is kept so long: some may wait in a cluster's queue still
_calls = itertools.count()


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run, as it travels to the process that makes it.

    Args:
        events: file that says how far it is, one JSON event a line.
        environment: variables to set there first; None = to remove.
    """

    root: Path
    folder: Path
    events: Path
    environment: Mapping[str, str | None] = field(default_factory=dict)

    def __call__(self) -> str:
        """Make it, there; "done", "failed" or "busy", as `worker.attempt`."""
        for name, value in self.environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        outcome: str = pkgutil.resolve_name(WORKER)(self.root, self.folder, self.events)
        return outcome

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue when it is told that this job is about to end: the same again.

        The run's own checkpoint is on disk after every epoch.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Backend(Protocol):
    """Something that makes single attempts."""

    patience_s: float  # after a job's end, until what it wrote last can be read here
    lost: str = ""  # why no further attempt can be made; what is under way may still end well

    def submit(self, attempt: Attempt, run: Run) -> Any:
        """Start it, or put it into a queue; returns a handle."""

    def ended(self, job: Any) -> str:
        """How its process ended, in words; "" while it waits or runs."""

    def cancel(self, jobs: Sequence[Any]) -> None:
        """End these, whatever they do; returns when they are gone or when that is out of our hands."""


@dataclass(eq=False)
class _Job:
    """An attempt under way."""

    run: Run
    handle: Any
    events: Path
    read: int = 0  # bytes of the events
    outcome: dict[str, Any] = field(default_factory=dict)  # its last event
    ended: float | None = None  # since when its process is known to be gone

    def news(self) -> Iterator[dict[str, Any]]:
        """Events written since the last call, whole ones only."""
        try:
            with self.events.open("rb") as file:
                file.seek(self.read)
                text = file.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self.read += len(whole)
        for line in whole.splitlines():
            with suppress(ValueError):  # what a killed process did not finish
                yield json.loads(line)


class Dispatch:
    """The runs of one call: which wait, which are under way, whose worker died how often.

    Args:
        jobs: attempts at a time; None = all at once, where a cluster has a queue of its own.
    """

    def __init__(self, backend: Backend, root: Path, folder: Path, report: Report, jobs: int | None, retries: int) -> None:
        self.backend, self.root, self.folder, self.report, self.retries = backend, root, folder, report, retries
        self.most = jobs
        self.waiting: deque[tuple[float, Run]] = deque()  # with the time not to ask before
        self.jobs: list[_Job] = []
        self.failures: list[Failure] = []
        self.reached: dict[Path, int] = {}  # finished epochs at a run's last death
        self.deaths: Counter[Path] = Counter()  # since then
        self.count = itertools.count()

    def work(self, runs: Sequence[Run]) -> list[Failure]:
        """Until every run is finished or failed; what was started is ended, however this ends.

        Raises:
            ConnectionError: no further attempt can be made, and runs are left.
        """
        self.waiting.extend((0.0, run) for run in runs)
        try:
            while self.waiting or self.jobs:
                if not self.backend.lost:
                    self.hand_out()
                elif not self.jobs:
                    left = f"{len(self.waiting)} of {len(runs)} runs are left"
                    raise ConnectionError(f"{self.backend.lost}; {left}. Finished epochs are kept: call again.")
                for job in list(self.jobs):
                    self.look(job)
                time.sleep(POLL_S)
        finally:
            self.backend.cancel([job.handle for job in self.jobs])
        if self.failures:
            (self.folder / KEPT).touch()
        return self.failures

    def hand_out(self) -> None:
        for _ in range(len(self.waiting)):
            if self.most is not None and len(self.jobs) >= self.most:
                return
            not_before, run = self.waiting.popleft()
            if run.done:  # another process has finished it meanwhile
                self.report(run, {"event": "done"})
            elif not_before > time.monotonic():
                self.waiting.append((not_before, run))
            elif _is_held(run):  # a job that would only find that out may have cost minutes in a queue
                self.report(run, {"event": "busy"})
                self.waiting.append((time.monotonic() + HELD_S, run))
            else:
                events = self.folder / f"{run.folder.name}.{next(self.count)}.jsonl"
                handle = self.backend.submit(Attempt(self.root, run.folder, events), run)
                self.jobs.append(_Job(run, handle, events))

    def look(self, job: _Job) -> None:
        """Pass on what an attempt said, and settle it once its process is gone."""
        how = self.backend.ended(job.handle)  # first: what it wrote before its end is then there to be read
        for event in job.news():
            if event["event"] in ("done", "failed", "busy"):
                job.outcome = event
            else:
                self.report(job.run, event)
        if not how:
            return
        job.ended = job.ended or time.monotonic()
        if job.outcome or job.run.done or time.monotonic() - job.ended >= self.backend.patience_s:
            self.jobs.remove(job)
            self.settle(job, how)

    def settle(self, job: _Job, how: str) -> None:
        run, outcome = job.run, job.outcome or ({"event": "done"} if job.run.done else {})
        if not outcome:
            self.bury(run, how)
            return
        self.report(run, outcome)
        if outcome["event"] == "busy":
            self.waiting.append((time.monotonic() + HELD_S, run))
        elif outcome["event"] == "failed":
            self.failures.append(Failure(run, one_line(f"{outcome['kind']}: {outcome['message']}")))

    def bury(self, run: Run, how: str) -> None:
        """A worker or its machine died: the run is tried again, wherever there is room, as long as that leads somewhere."""
        if self.backend.lost:  # not the run's doing
            self.report(run, {"event": "busy"})
            self.waiting.append((0.0, run))
            return
        finished = store.finished_epochs(run.folder)
        if finished > self.reached.get(run.folder, -1):
            self.reached[run.folder], self.deaths[run.folder] = finished, 0
        self.deaths[run.folder] += 1
        tried = self.deaths[run.folder]
        if tried <= self.retries:
            text = f"{run.folder.name}: {how}; it goes on from its last finished epoch, attempt {tried + 1} of {self.retries + 1}"
            self.report(run, {"event": "note", "text": text})
            self.report(run, {"event": "busy"})
            self.waiting.append((0.0, run))
            return
        how = f"{how}, {tried} times without another finished epoch" if tried > 1 else how
        self.failures.append(Failure(run, how))
        self.report(run, {"event": "failed", "kind": "WorkerDied", "message": how})
        record_death(run, how, "")


def _is_held(run: Run) -> bool:
    """Whether another process works on this run now."""
    try:
        with FileLock(run.folder / store.LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # the attempt will say what is wrong with it
        return False


def environment(runs: Sequence[Run]) -> dict[str, str]:
    """What processes elsewhere are started with, so that they import what can be imported here."""
    path = os.pathsep.join(dict.fromkeys(os.path.abspath(entry) for entry in sys.path))
    threads = max(run.config.training.num_threads for run in runs)
    told = {name: value for name, value in os.environ.items() if name.startswith("CMPTA_") or name in _TRAVELLING}
    return told | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), registry.PLUGINS: registry.plugins()}


@contextmanager
def job_folder(root: Path) -> Iterator[Path]:
    """A folder that all machines see, for what jobs say; whoever finds in it what explains a failure makes it stay."""
    host = platform.node() or "localhost"
    for left in (root / "logs").glob(f"{host}.*.jobs"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _OLD_S:
                shutil.rmtree(left, ignore_errors=True)
    folder = root / "logs" / f"{host}.{os.getpid()}-{next(_calls)}.jobs"
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        if not (folder / KEPT).exists():
            shutil.rmtree(folder, ignore_errors=True)
