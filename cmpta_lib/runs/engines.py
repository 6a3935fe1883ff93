"""Where runs are made: `ensure` gives an engine what is not finished yet."""

from __future__ import annotations

import inspect
import os
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cmpta_lib import files
from cmpta_lib.config import to_json
from cmpta_lib.runs import store
from cmpta_lib.runs.dispatch import Engine, Failure, Report
from cmpta_lib.runs.progress import Progress
from cmpta_lib.runs.store import Run

# Named, not imported: an extra that is not installed is missed by nobody who does not ask.
ENGINES = {
    "processes": "cmpta_lib.runs.processes:Processes",
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
    if left := store.unfinished_results(run.folder):
        print(
            f"{run.folder} holds {', '.join(left)} without {store.DONE}, the mark of a finished run: it is made again",
            flush=True,
        )
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
