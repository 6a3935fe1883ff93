"""Where runs are made: an engine takes unfinished runs somewhere, and `ensure` gives it what is not finished yet."""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from cmpta_lib import files
from cmpta_lib.config import to_json
from cmpta_lib.runs import store
from cmpta_lib.runs.store import Run

DEFAULT = "cmpta_lib.runs.processes:Processes"  # named, not imported: it stands on this module
RETRY_S = 0.5  # after which a run that another process holds is asked for again
SHOWN_FAILURES = 10
KEEP_FAILED = "CMPTA_KEEP_FAILED"  # environment variable: runs that failed are not tried again, only reported
Report = Callable[[Run, dict[str, Any]], None]
Watch = Callable[[Sequence[Run]], AbstractContextManager[Report]]


@dataclass(frozen=True)
class Failure:
    """A run that could not be finished, and why, on one line."""

    run: Run
    reason: str


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


class Engine(Protocol):
    def run(self, runs: Sequence[Run], root: Path, report: Report) -> Sequence[Failure]:
        """Finish these runs, whose folders hold their configs, somewhere; what fails is returned, the others go on.

        Args:
            report: called with a run and an event: {"event": "start"}, {"event": "epoch", "epoch": finished ones and the
                part of the next}, {"event": "done"}, {"event": "failed", "kind": ..., "message": ...}, {"event": "busy"}
                (another process holds it: it waits again), or {"event": "note", "text": a line for the user}.
        """


def ensure(
    runs: Sequence[Run],
    root: Path,
    jobs: int | None = None,
    engine: Engine | None = None,
    watch: Watch | None = None,
) -> None:
    """Finish every run, and show how far it is. Finished runs are checked, and kept even where damaged.

    Args:
        jobs: runs at a time (default: one a GPU, else one a core).
        engine: where they are made; default: `Processes(jobs)`.
        watch: shows what is reported of the unfinished ones, such as `progress.Progress`; default: notes alone.
    Raises:
        ValueError: `jobs` is not a whole number from 1.
        OSError: the runs folder cannot be written; says where and what to do.
        RunsFailed: at the end, what failed and why; the other runs are finished.
    """
    engine = engine or pkgutil.resolve_name(DEFAULT)(jobs)
    wanted = list({run.folder: run for run in runs}.values())
    failures = [Failure(run, problem) for run in wanted if (problem := run.problem)]
    pending = [run for run in wanted if not run.done]
    if os.environ.get(KEEP_FAILED):
        failures += [Failure(run, reason) for run in pending if (reason := store.failure(run.folder))]
        pending = [run for run in pending if not store.failure(run.folder)]
    for run in wanted:
        if run.done:
            store.sweep(run.folder)
    if pending:
        for run in pending:
            _prepare(run)
        failures += _run(engine, pending, root, watch or _notes)
    if failures:
        raise RunsFailed(failures, len(wanted))


def _prepare(run: Run) -> None:
    with files.writing(run.folder):
        run.folder.mkdir(parents=True, exist_ok=True)
    if left := store.unsealed_results(run.folder):
        print(
            f"{run.folder} holds {', '.join(left)} without {store.DONE}, the mark of a finished run: it is made again",
            flush=True,
        )
    path, text = run.folder / store.CONFIG, to_json(run.config)
    if not path.exists() or path.read_bytes() != text.encode():
        files.write_text(path, text)


@contextmanager
def _notes(runs: Sequence[Run]) -> Iterator[Report]:
    def report(run: Run, event: dict[str, Any]) -> None:
        if event["event"] == "note":
            print(event["text"], file=sys.stderr, flush=True)

    yield report


def _run(engine: Engine, pending: Sequence[Run], root: Path, watch: Watch) -> list[Failure]:
    with watch(pending) as report:
        failures = list(engine.run(pending, root, report))
    failed = {failure.run.folder for failure in failures}
    lost = [run for run in pending if run.folder not in failed and not run.done]
    return failures + [Failure(run, f"it ended without {store.DONE}") for run in lost]


def record_death(run: Run, how: str, log: str) -> None:
    """Say in a run's folder that its worker died, unless another process is trying it already or the disk is full."""
    with suppress(Timeout, OSError), FileLock(run.folder / store.LOCK, timeout=0):
        if not run.done:
            store.record_failure(run.folder, {"kind": "WorkerDied", "message": how, "traceback": "", "log": log})


def one_line(text: str) -> str:
    return " ".join(text.split())
