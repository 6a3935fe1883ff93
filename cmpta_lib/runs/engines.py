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
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cmpta_lib import files
from cmpta_lib.config import EncoderConfig, LLMConfig, one_of, to_json
from cmpta_lib.llm.files import fetched
from cmpta_lib.runs import provenance, store
from cmpta_lib.runs.dispatch import LOG, Engine, Failure, Job
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


class RunsFailed(RuntimeError):
    """Some runs failed; the others are finished."""

    def __init__(self, failures: Sequence[Failure], total: int) -> None:
        self.failures = list(failures)
        shown = self.reasons[:SHOWN_FAILURES]
        if len(self.reasons) > SHOWN_FAILURES:
            shown.append(f"and {len(self.reasons) - SHOWN_FAILURES} more")
        recorded = [path for failure in self.failures if (path := failure.run.folder / store.FAILURE).exists()]
        details = f" Details: {recorded[0]}." if recorded else ""
        again = " Call again to try them again." if any(not failure.run.done for failure in self.failures) else ""
        super().__init__(
            f"{len(self.failures)} of {total} runs failed, {total - len(self.failures)} are finished: "
            f"{'; '.join(shown)}.{details}{again}"
        )

    @property
    def reasons(self) -> list[str]:
        """What is wrong, each reason once, behind the first run that it stopped."""
        runs: dict[str, list[str]] = {}
        for failure in self.failures:
            runs.setdefault(failure.reason, []).append(failure.run.folder.name)
        return [f"{names[0]}{f' and {len(names) - 1} more' * (len(names) > 1)}: {reason}" for reason, names in runs.items()]


def ensure(runs: Sequence[Run], root: Path, jobs: int | None = None, engine: Engine | str | None = None) -> None:
    """Finish every run, and show how far it is. Finished runs are checked, and kept even where damaged.

    Args:
        jobs: runs at a time (default: one a GPU, else one a core).
        engine: where they are made, or the name of one of `ENGINES`; default: `Processes(jobs)`.
    Raises:
        ValueError: `jobs` is not a whole number from 1, or there is no such engine.
        OSError: the runs folder cannot be written; says where and what to do.
        RunsFailed: at the end, what failed and why; the other runs are finished.
        RuntimeError: no further run can be started; says why.
    """
    engine = engine if isinstance(engine, Engine) else engine_of(DEFAULT if engine is None else engine, jobs)
    wanted = list({run.folder: run for run in runs}.values())
    failures = [Failure(run, problem) for run in wanted if (problem := run.problem)]
    pending = [run for run in wanted if not run.done]
    for run in wanted:
        if run.done:
            store.sweep(run.folder)
    if os.environ.get(KEEP_FAILED):
        failures += [Failure(run, reason) for run in pending if (reason := store.failure(run.folder))]
        pending = [run for run in pending if not store.failure(run.folder)]
    failures += _without_model(pending, root / "cache" / "llm")
    refused = {failure.run.folder for failure in failures}
    pending = [run for run in pending if run.folder not in refused]
    for run in pending:
        prepare(run)
    if pending:
        with Progress(pending) as report:
            failures += engine.run(pending, root, report)
    failed = {failure.run.folder for failure in failures}
    failures += [Failure(run, f"it ended without {store.DONE}") for run in pending if run.folder not in failed and not run.done]
    if failures:
        raise RunsFailed(failures, len(wanted))


def _without_model(pending: Sequence[Run], cache: Path) -> list[Failure]:
    """The runs whose LLM or text encoder is not the one of its files, or not to be read: each model is opened once for all."""
    needed: dict[LLMConfig | EncoderConfig, list[Run]] = {}
    for run in pending:
        for config in fetched(run.config.method):
            needed.setdefault(config, []).append(run)
    failures = []
    for config, runs in needed.items():
        from cmpta_lib.llm.loading import open_once  # with torch, which nothing else here needs

        try:
            open_once(config, cache)
        except (ValueError, OSError) as error:
            for run in runs:
                prepare(run)
                store.record_failure(run.folder, {"kind": type(error).__name__, "message": str(error)})
            failures += [Failure(run, store.failure(run.folder)) for run in runs]
        except (MemoryError, RuntimeError):  # this process has too little memory: a run's may have enough, and says if not
            continue
    return failures


def prepare(run: Run) -> None:
    """The run's folder as workers expect it: with its config."""
    with files.writing(run.folder):
        run.folder.mkdir(parents=True, exist_ok=True)
    if left := ", ".join(name for name in store.RESULTS if (run.folder / name).exists()):  # nobody vouches for them
        print(f"{run.folder} holds {left} without {store.DONE}, the mark of a finished run: it is made again", flush=True)
    files.write_text(run.folder / store.CONFIG, to_json(run.config))


def engine_of(name: str, jobs: int | None = None, settings: Mapping[str, Any] | None = None) -> Engine:
    """The engine of this name.

    Args:
        jobs: runs at a time; None = what the engine holds for best.
        settings: its other arguments, as its class says.
    Raises:
        ValueError: there is no such engine, or it does not take these settings.
        RuntimeError: what it stands on is not installed, or not to be found here; says what to do.
    """
    made: Callable[..., Engine] = pkgutil.resolve_name(ENGINES[one_of("engine", name, ENGINES)])
    known = [one for one in inspect.signature(made).parameters if one != "jobs"]
    for setting in () if "parameters" in known else settings or {}:  # which are whatever the library behind it takes
        one_of(f"setting of engine {name}", setting, known, "" if known else "it has none")
    return made(jobs, **(settings or {}))


class Processes(Engine):
    """Worker processes on this machine, one a slot, each of which keeps torch and the LLM from run to run.

    On Linux none outlives this process; elsewhere one may finish its run first. In a session of their own they hear no
    Ctrl-C of a terminal: this process ends them. One that dies fails the run that it held, and another takes its place.

    Args:
        jobs: how many; None = one a GPU, each its own, or else one a core.
    """

    is_local = True

    @contextmanager
    def opened(self, runs: Sequence[Run], folder: Path) -> Iterator[None]:
        self.workers: dict[int, subprocess.Popen[bytes]] = {}
        self.log = folder / LOG
        try:
            yield
        finally:
            for slot in list(self.workers):
                self._end(slot)

    def submit(self, attempt: Attempt, job: Job) -> subprocess.Popen[bytes]:
        if job.slot not in self.workers:
            with self.log.open("a+b") as log:  # a worker reads in it what to record of a failure
                self.workers[job.slot] = subprocess.Popen(
                    [sys.executable, "-c", "from cmpta_lib.runs import worker; worker.serve()"], cwd=files.ROOT,
                    env=os.environ | attempt.environment | {"PYTHONUNBUFFERED": "1"}, stdin=subprocess.PIPE, stdout=log,
                    stderr=log, start_new_session=True,
                )  # fmt: skip
        worker = self.workers[job.slot]
        assert worker.stdin
        with suppress(OSError):  # it has just died, which is about to be found out
            worker.stdin.write(f"{json.dumps(asdict(attempt), default=str)}\n".encode())
            worker.stdin.flush()
        return worker

    def ended(self, job: Job) -> str:
        if job.outcome:
            if job.outcome["event"] == "failed" and provenance.gpu_count():  # it may have left the GPU unusable
                self._end(job.slot)
            return "its worker is free again"
        if (code := job.handle.poll()) is None:
            return ""
        self._end(job.slot)
        how = f"ended with exit code {code}"
        if code < 0:
            why = "perhaps for memory" if code == -signal.SIGKILL else signal.strsignal(-code)
            how = f"was killed by signal {-code} ({why})"
        return f"its worker {how}; the log is {self.log}"

    def _end(self, slot: int) -> None:
        """End a worker, which holds nothing that a checkpoint does not."""
        worker = self.workers.pop(slot)
        worker.kill()
        with suppress(OSError):  # what was still to be handed to it
            worker.communicate()
