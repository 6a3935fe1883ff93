"""One attempt at a run: claimed, made, and what went wrong written down. Whoever is killed, the next call goes on.

A run's folder `runs/<corpus>-<config hash>/` is claimed by a file lock, so any number of notebooks may ask for the same
run at the same time; a killed worker's lock falls with it, and the next call goes on from the last epoch's checkpoint.
A run that raises leaves `failure.json`; one that ends well is finalised. Several processes make runs together as
`torchrun -m cmpta_lib.runs.worker ROOT FOLDER...`.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import select
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from cmpta_lib import files, registry
from cmpta_lib.runs import provenance, store

if TYPE_CHECKING:  # torch and numpy come in with the first attempt, whose environment says how many threads they have
    from cmpta_lib.base import Method
    from cmpta_lib.config import RunConfig
    from cmpta_lib.data.corpus import Corpus
    from cmpta_lib.runs.checkpoint import State

Report = Callable[[dict[str, Any]], None]
ENDS = ("done", "failed", "busy")  # events, one of which ends an attempt
# What launchers of many processes say to theirs, and images and pods to everybody: an attempt is made by one process.
_LAUNCHERS = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT",
    "TORCHELASTIC_", "ACCELERATE_", "OMPI_COMM_", "PMI_", "PMIX_", "MV2_COMM_",
)  # fmt: skip


def attempt(root: Path, folder: Path, report: Report = lambda event: None, row: str = "") -> str:
    """Claim one run and finish it; reports and returns how that ended: one of `ENDS`, "busy" where another process holds it.

    Args:
        root: where corpora and LLMs lie, below `cache`.
        report: told what happens, as `Engine.run` describes it.
        row: the name of the row that it is made for.
    """
    outcome = {"event": "done"}
    try:
        with files.writing(folder / store.LOCK):
            claim = FileLock(folder / store.LOCK).acquire(timeout=0)
        with claim:
            if not (folder / store.DONE).exists() and (failure := _make(root, folder, report, row)):
                outcome = {"event": "failed", **failure}
            else:
                store.sweep(folder)
    except Timeout:
        outcome = {"event": "busy"}
    except OSError as error:
        outcome = {"event": "failed", **_failure(error)}
    report(outcome)
    return outcome["event"]


def _make(root: Path, folder: Path, report: Report = lambda event: None, row: str = "") -> dict[str, str] | None:
    """Make a claimed run; what it raised, which is also left in failure.json, or None."""
    try:
        if _is_first():  # what an earlier attempt left beside its checkpoint must not be finalised
            for name in (store.FAILURE, *store.RESULTS):
                with files.writing(folder / name):
                    (folder / name).unlink(missing_ok=True)
        provenance.take_device()
        execute(root, folder, report, row)
    except Exception as error:  # whatever it is, the other runs go on; it is recorded and reported, not swallowed
        failure = _failure(error)
        traceback.print_exc()
        with suppress(OSError):  # on a full disk the report has to do
            if not (folder / store.FAILURE).exists():  # of processes that make it together the first knows the cause
                store.record_failure(folder, failure)
        return failure
    return None


def _is_first() -> bool:
    """Whether this is the process that writes, of those that torchrun has started to make a run together."""
    return not provenance.by_torchrun() or os.environ.get("RANK", "0") == "0"


def _failure(error: Exception) -> dict[str, str]:
    """What failure.json holds: no times, so that the same failure gives the same file."""
    lines, log = "".join(traceback.format_exception(error)), ""
    with suppress(OSError):  # standard error is a terminal or a pipe, which cannot be read
        log = os.pread(2, 2000, max(0, os.fstat(2).st_size - 2000)).decode("utf-8", "replace")
    return {"kind": type(error).__name__, "message": str(error), "traceback": lines, "log": log}


def execute(root: Path, folder: Path, report: Report = lambda event: None, row: str = "") -> None:
    """Train, evaluate, record and finalise the run whose config lies in `folder`; call with its lock held.

    Args:
        root, report, row: as `attempt`.
    Raises:
        RuntimeError: the GPU's memory is full.
    """
    import pandas as pd
    import torch

    from cmpta_lib.runs import load, loop

    registry.load_plugins()
    config = registry.read_config((folder / store.CONFIG).read_text(encoding="utf-8"))
    started = time.perf_counter()
    provenance.watch()
    torch.set_num_threads(config.training.num_threads)
    corpus = load.find_corpus(root / "cache" / "data", config.data)

    def note(state: State) -> None:
        files.write_text(folder / store.HISTORY, pd.DataFrame(state.history).to_csv(index=False))
        report({"event": "epoch", "epoch": state.epoch})

    try:
        method, state = loop.train(config, corpus, load.resources(root), folder, note, root / "cache" / "stages")
    except torch.OutOfMemoryError as error:
        raise RuntimeError(
            f"the GPU's memory is full ({str(error).splitlines()[0]}). Close what else runs on it or pass fewer --jobs; "
            f"finished epochs are kept"
        ) from error
    if _is_first():
        _record(folder, config, corpus, method, state, row, started)


def _record(folder: Path, config: RunConfig, corpus: Corpus, method: Method, state: State, row: str, started: float) -> None:
    """Write what a finished run holds."""
    import pandas as pd

    from cmpta_lib.data.corpus import Inputs
    from cmpta_lib.runs.checkpoint import path_of, write_tensors
    from cmpta_lib.runs.loop import evaluate, score_of

    size, train, issues = config.evaluation.batch_size, corpus.splits["train"], Counter[str]()
    for start in range(0, len(train), size):  # once here: training meets what `collate` cuts or leaves out every epoch
        issues.update(method.collate([train[i] for i in range(start, min(start + size, len(train)))]).issues)
    tables = {}
    for split in ("valid", "test"):
        tables[split], odd = evaluate(method, corpus.splits[split], size)
        issues.update(odd)
    files.write_parquet(folder / store.PREDICTIONS, pd.concat([t.assign(split=s) for s, t in tables.items()]))
    write_tensors(folder / store.WEIGHTS, method.module.state_dict())
    files.write_text(folder / store.CLIPS, Inputs.of(corpus).to_json())
    history = pd.DataFrame(state.history, columns=None if state.history else ["epoch", "learning_rate", "train_loss"])
    files.write_text(folder / store.HISTORY, history.to_csv(index=False))
    if state.steps:
        steps = [[number, *step] for number, step in enumerate(state.steps, 1)]
        files.write_text(folder / store.STEPS, pd.DataFrame(steps, columns=store.STEP_COLUMNS).to_csv(index=False))
    llm = getattr(method, "llm", None)
    record = provenance.environment(data_sources=dict(corpus.sources), repairs=dict(corpus.repairs))
    record |= {"llm_fingerprint": getattr(llm, "fingerprint", None), **({"row": row} if row else {})}
    if common := [path_of(Path(), stage).stem for stage in config.stages if stage.outcome is not None]:
        record |= {"shared_stages": common}  # whether this run or another made them: the bytes are the same
    record |= {"train_seconds": round(state.seconds, 2), "seconds": round(time.perf_counter() - started, 2)}
    files.write_text(folder / store.ENVIRONMENT, json.dumps(record | provenance.peaks_gb(), indent=1))
    result: dict[str, Any] = {split: score_of(table, corpus.task) for split, table in tables.items()}
    result |= {"best_epoch": state.best_epoch, "oddities": dict(issues)}
    result["trainable_parameters"] = sum(p.numel() for p in method.module.parameters() if p.requires_grad)
    result["llm_parameters"] = getattr(llm, "num_parameters", 0)
    files.write_text(folder / store.METRICS, json.dumps(result, indent=1))
    store.finalise(folder)


# --- elsewhere: in a process or on a machine of its own --------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run, as it travels to the process that makes it.

    Args:
        events: file that says how far it is, one JSON event a line.
        row: the name of the row that it is made for.
        environment: variables to set there first.
    """

    root: Path
    folder: Path
    events: Path
    row: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def __call__(self) -> str:
        """Make it, there; returns as `attempt`.

        Raises:
            FileNotFoundError: this machine does not see the runs folder.
        """
        for name in [one for one in os.environ if one.startswith(_LAUNCHERS)]:
            del os.environ[name]
        os.environ.update(self.environment)
        sys.path += [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry not in sys.path]
        if not (self.folder / store.CONFIG).exists() or not self.events.parent.is_dir():
            raise FileNotFoundError(
                f"{platform.node()} does not see {self.folder} and {self.events.parent}: the runs folder (CMPTA_RUNS) must lie "
                f"on a file system that every machine mounts under the same path"
            )
        self._say({"event": "start"})
        notes = logging.Handler(logging.WARNING)  # this library's warnings are notes for the user
        notes.emit = lambda record: self._say({"event": "note", "text": record.getMessage()})  # type: ignore[method-assign]
        logging.getLogger("cmpta_lib").addHandler(notes)
        try:
            return attempt(self.root, self.folder, self._say, self.row)
        finally:
            logging.getLogger("cmpta_lib").removeHandler(notes)

    def _say(self, event: dict[str, Any]) -> None:
        with self.events.open("a", encoding="utf-8") as file:  # closed each time: a network file system then shows it
            file.write(f"{json.dumps(event)}\n")

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue before this job is ended: the same, which goes on from its last epoch."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def serve() -> None:
    """A worker of `engines.Processes`: makes the attempts that come by stdin, until whoever started it is gone."""
    files.end_with_parent()  # where that is not known, it finishes its run before it ends
    attempts = os.fdopen(os.dup(0), encoding="utf-8")
    with open(os.devnull) as nothing:  # no library may take a line
        os.dup2(nothing.fileno(), 0)
    asker = select.poll()
    asker.register(attempts, 0)  # tells of its end alone
    for line in attempts:
        if asker.poll(0):  # it was gone before the kernel could be asked to tell, or there is no such kernel
            return
        given = json.loads(line)
        Attempt(**given | {place: Path(given[place]) for place in ("root", "folder", "events")})()


def work_together(root: Path, folders: Sequence[Path]) -> None:
    """One of torchrun's processes: finish these runs one after another, each over all of them.

    The first process holds the lock and decides whether there is anything to do. A process that fails ends, and torchrun
    with it all of them: the others may wait in vain for its gradients.
    """
    import torch
    from torch import distributed

    if not provenance.by_torchrun():  # others would be waited for in vain
        sys.exit("start it by torchrun: torchrun --nproc-per-node N -m cmpta_lib.runs.worker ROOT FOLDER...")
    provenance.take_device()
    distributed.init_process_group(timeout=timedelta(days=30))  # so long may a run take, and the one that holds its lock
    for folder in folders:
        with FileLock(folder / store.LOCK) if _is_first() else nullcontext():
            is_done = torch.tensor((folder / store.DONE).exists())
            distributed.broadcast(is_done, 0)
            if not is_done and _make(root, folder):
                sys.exit(1)
            if _is_first():
                store.sweep(folder)
    distributed.destroy_process_group()


if __name__ == "__main__":
    work_together(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
