"""Where runs are made: `ensure` gives an engine what is not finished yet; the usual one needs nothing but this machine."""

from __future__ import annotations

import inspect
import json
import os
import pkgutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmpta_lib import files
from cmpta_lib.config import to_json
from cmpta_lib.runs import provenance, store
from cmpta_lib.runs.dispatch import LOG, Engine, Failure, Job, Report, environment
from cmpta_lib.runs.progress import Progress
from cmpta_lib.runs.store import Run
from cmpta_lib.runs.worker import Attempt

# Named, not imported: an extra that is not installed is missed by nobody who does not ask.
ENGINES = {
    "processes": "cmpta_lib.runs.engines:Processes",
    "ray": "cmpta_lib.runs.clusters:Ray",
    "slurm": "cmpta_lib.runs.clusters:Slurm",
    "submitit-local": "cmpta_lib.runs.clusters:SubmititLocal",
}
DEFAULT = "processes"
SHOWN_FAILURES = 10
KEEP_FAILED = "CMPTA_KEEP_FAILED"  # environment variable: runs that failed are not tried again, only reported
Watch = Callable[[Sequence[Run]], AbstractContextManager[Report]]


class RunsFailed(RuntimeError):
    """Some runs failed; the others are finished."""

    def __init__(self, failures: Sequence[Failure], total: int) -> None:
        self.failures = list(failures)
        shown = [f"{failure.run.folder.name}: {failure.reason}" for failure in self.failures[:SHOWN_FAILURES]]
        if len(self.failures) > SHOWN_FAILURES:
            shown.append(f"and {len(self.failures) - SHOWN_FAILURES} more")
        recorded = [failure.run.folder for failure in self.failures if (failure.run.folder / store.FAILURE).exists()]
        details = f" Details: {recorded[0] / store.FAILURE}" if recorded else ""
        details += f" and {len(recorded) - 1} more of that name." if len(recorded) > 1 else "." if recorded else ""
        again = " Call again to try them again." if any(not failure.run.done for failure in self.failures) else ""
        super().__init__(
            f"{len(self.failures)} of {total} runs failed, {total - len(self.failures)} are finished: "
            f"{'; '.join(shown)}.{details}{again}"
        )


def ensure(
    runs: Sequence[Run],
    root: Path,
    jobs: int | None = None,
    engine: Engine | str | None = None,
    watch: Watch = Progress,
) -> None:
    """Finish every run, and show how far it is. Finished runs are checked, and kept even where damaged.

    Args:
        jobs: runs at a time (default: one a GPU, else one a core).
        engine: where they are made, or the name of one of `ENGINES`; default: `Processes(jobs)`.
        watch: shows what is reported of the unfinished ones.
    Raises:
        ValueError: `jobs` is not a whole number from 1, or there is no such engine.
        OSError: the runs folder cannot be written; says where and what to do.
        RunsFailed: at the end, what failed and why; the other runs are finished.
        RuntimeError: no further run can be started; says why.
    """
    engine = engine_of(engine or DEFAULT, jobs) if engine is None or isinstance(engine, str) else engine
    wanted = list({run.folder: run for run in runs}.values())
    failures = [Failure(run, problem) for run in wanted if (problem := run.problem)]
    pending = [run for run in wanted if not run.done]
    if os.environ.get(KEEP_FAILED):
        failures += [Failure(run, reason) for run in pending if (reason := store.failure(run.folder))]
        pending = [run for run in pending if not store.failure(run.folder)]
    for run in wanted:
        if run.done:
            store.sweep(run.folder)
    for run in pending:
        prepare(run)
    if pending:
        with watch(pending) as report:
            made = list(engine.run(pending, root, report))
        failed = {failure.run.folder for failure in made}
        lost = [run for run in pending if run.folder not in failed and not run.done]
        failures += made + [Failure(run, f"it ended without {store.DONE}") for run in lost]
    if failures:
        raise RunsFailed(failures, len(wanted))


def prepare(run: Run) -> None:
    """The run's folder as workers expect it: with its config."""
    with files.writing(run.folder):
        run.folder.mkdir(parents=True, exist_ok=True)
    if left := ", ".join(name for name in store.RESULTS if (run.folder / name).exists()):  # nobody vouches for them
        print(f"{run.folder} holds {left} without {store.DONE}, the mark of a finished run: it is made again", flush=True)
    path, text = run.folder / store.CONFIG, to_json(run.config)
    if not path.exists() or path.read_bytes() != text.encode():
        files.write_text(path, text)


def engine_of(name: str, jobs: int | None = None, settings: Mapping[str, Any] | None = None) -> Engine:
    """The engine of this name.

    Args:
        jobs: runs at a time; None = what the engine holds for best.
        settings: its other arguments, as its class says.
    Raises:
        ValueError: there is no such engine, or it does not take these settings.
        RuntimeError: what it stands on is not installed, or not to be found here; says what to do.
    """
    if name not in ENGINES:
        raise ValueError(f"no engine '{name}'; there are: {', '.join(ENGINES)}")
    known = inspect.signature(pkgutil.resolve_name(ENGINES[name])).parameters
    if not any(one.kind is one.VAR_KEYWORD for one in known.values()):
        own = [one for one in known if one != "jobs"]
        if unknown := [setting for setting in settings or {} if setting not in own]:
            has = f"it has: {', '.join(own)}" if own else "it has none"
            raise ValueError(f"engine '{name}' has no setting '{unknown[0]}'; {has}")
    engine: Engine = pkgutil.resolve_name(ENGINES[name])(jobs, **(settings or {}))
    return engine


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[str]
    slot: int
    is_busy: bool = False


class Processes(Engine):
    """Worker processes on this machine, each of which keeps torch and the LLM from run to run.

    A worker holds a pipe from this process and ends when that closes, so none outlives it however it ends. Workers are in
    a session of their own: a terminal's Ctrl-C reaches this process alone, which then ends them. One that dies fails the
    run that it held, and another takes its place.

    Args:
        jobs: how many; None = one a GPU, each its own, or else one a core.
    """

    def __init__(self, jobs: int | None = None) -> None:
        super().__init__(jobs)
        self.jobs = jobs or provenance.usual()

    @contextmanager
    def opened(self, runs: Sequence[Run], folder: Path) -> Iterator[None]:
        self.workers: list[_Worker] = []
        self.lost, self.gpus = "", provenance.gpu_count()
        self.environment, self.log = os.environ | environment(runs) | {"PYTHONUNBUFFERED": "1"}, folder / LOG
        try:
            yield
        finally:
            self._end(list(self.workers))

    def submit(self, attempt: Attempt, run: Run) -> _Worker:
        worker = next((worker for worker in self.workers if not worker.is_busy), None) or self._start()
        worker.is_busy = True
        with suppress(OSError):  # it has just died, which is about to be found out
            print(json.dumps([*map(str, (attempt.root, attempt.folder, attempt.events)), attempt.row]), file=worker.process.stdin)
        return worker

    def _start(self) -> _Worker:
        slot = min(set(range(len(self.workers) + 1)) - {worker.slot for worker in self.workers})
        own_gpu = {"LOCAL_RANK": str(slot % self.gpus)} if self.gpus else {}
        with self.log.open("a+b") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cmpta_lib.runs.worker"],
                cwd=files.ROOT,
                env=self.environment | own_gpu,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                text=True,
                encoding="utf-8",
                bufsize=1,
            )
        self.workers.append(worker := _Worker(process, slot))
        return worker

    def ended(self, job: Job) -> str:
        worker: _Worker = job.handle
        if job.outcome:
            worker.is_busy = False
            if self.gpus and job.outcome["event"] == "failed":  # which may leave the GPU unusable for this process
                self._end([worker])
            return "its worker is free again"
        if worker.process.poll() is None:
            return ""
        (code,) = self._end([worker])
        if code < 0:
            return f"its worker was killed by signal {-code} ({'perhaps for memory' if code == -9 else signal.strsignal(-code)})"
        return f"its worker ended with exit code {code}"

    def _end(self, workers: Sequence[_Worker]) -> list[int]:
        """End these workers, which hold nothing that a checkpoint does not; returns their exit codes."""
        for worker in workers:
            worker.process.kill()
            self.workers.remove(worker)
            assert worker.process.stdin
            with suppress(OSError):  # what was still to be handed to it
                worker.process.stdin.close()
        return [worker.process.wait() for worker in workers]
