"""One run from its config to its records: train, answer validation and test, write down everything."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cmpta_lib import files, registry
from cmpta_lib.base import Method
from cmpta_lib.config import RunConfig
from cmpta_lib.data.corpus import Corpus, Inputs, Split
from cmpta_lib.runs import provenance, store
from cmpta_lib.runs.checkpoint import State, path_of, write_tensors
from cmpta_lib.runs.evaluation import evaluate, score_of
from cmpta_lib.runs.load import find_corpus, resources
from cmpta_lib.runs.loop import train

STEP_S = 1.0  # between two words on how far an epoch is


def execute(
    root: Path, folder: Path, on_progress: Callable[[float], None] = lambda epochs: None, row: str = ""
) -> None:
    """Train, evaluate, record and finalise the run whose config lies in `folder`; call with its lock held.

    Args:
        root: where corpora and LLMs lie, below `cache`.
        on_progress: told how many epochs are finished, after each, and a part of the next, every second at most.
        row: the name of the row that it is made for, written down where there is one.
    Raises:
        RuntimeError: the GPU's memory is full.
    """
    registry.load_plugins()
    config = registry.read_config((folder / store.CONFIG).read_text(encoding="utf-8"))
    started, said = time.perf_counter(), -math.inf
    provenance.watch()
    torch.set_num_threads(config.training.num_threads)
    corpus = find_corpus(root / "cache" / "data", config.data)

    def note(state: State) -> None:
        files.write_text(folder / store.HISTORY, pd.DataFrame(state.history).to_csv(index=False))
        on_progress(state.epoch)

    def note_step(epochs: float) -> None:
        nonlocal said
        if (now := time.monotonic()) - said >= STEP_S:
            said = now
            on_progress(epochs)

    try:
        method, state = train(config, corpus, resources(root), folder, note, root / "cache" / "stages", note_step)
    except torch.OutOfMemoryError as error:
        raise RuntimeError(
            f"the GPU's memory is full ({str(error).splitlines()[0]}). Close what else runs on it or pass fewer --jobs; "
            f"finished epochs are kept"
        ) from error
    if int(os.environ.get("RANK", 0)) == 0:  # the first process evaluates and writes
        _record(folder, config, corpus, method, state, {"row": row} if row else {}, started)


def _record(
    folder: Path, config: RunConfig, corpus: Corpus, method: Method, state: State, more: dict[str, Any], started: float
) -> None:
    """Write what a finished run holds; `more` goes into environment.json."""
    size = config.evaluation.batch_size
    issues = _issues(method, corpus.splits["train"], size)  # those of other splits are counted as they are answered
    tables = {}
    for split in ("valid", "test"):
        tables[split], odd = evaluate(method, corpus.splits[split], size)
        issues.update(odd)
    files.write_parquet(folder / store.PREDICTIONS, pd.concat([t.assign(split=s) for s, t in tables.items()]))
    write_tensors(folder / store.WEIGHTS, method.module.state_dict())
    files.write_text(folder / store.CLIPS, Inputs.of(corpus).to_json())
    history = pd.DataFrame(state.history, columns=None if state.history else ["epoch", "learning_rate", "train_loss"])
    files.write_text(folder / store.HISTORY, history.to_csv(index=False))
    llm = getattr(method, "llm", None)
    record = provenance.environment(data_sources=dict(corpus.sources), repairs=dict(corpus.repairs))
    record |= {"llm_fingerprint": getattr(llm, "fingerprint", None), **more}
    if common := [path_of(Path(), stage).stem for stage in config.stages if stage.outcome is not None]:
        record |= {"shared_stages": common}  # whether this run or another made them: the bytes are the same
    record |= {"train_seconds": round(state.seconds, 2), "seconds": round(time.perf_counter() - started, 2)}
    record |= provenance.peaks_gb()
    files.write_text(folder / store.ENVIRONMENT, json.dumps(record, indent=1))
    result: dict[str, Any] = {split: score_of(table, corpus.task) for split, table in tables.items()}
    result |= {"best_epoch": state.best_epoch, "oddities": dict(issues)}
    trainable = sum(p.numel() for p in method.module.parameters() if p.requires_grad)
    result |= {"trainable_parameters": trainable, "llm_parameters": getattr(llm, "num_parameters", 0)}
    files.write_text(folder / store.METRICS, json.dumps(result, indent=1))
    store.finalise(folder)


def _issues(method: Method, split: Split, size: int) -> Counter[str]:
    """What `collate` had to cut or leave out, each clip counted once; training meets it every epoch."""
    found: Counter[str] = Counter()
    for start in range(0, len(split), size):
        samples = [split[index] for index in range(start, min(start + size, len(split)))]
        found.update(method.collate(samples).issues)
    return found
