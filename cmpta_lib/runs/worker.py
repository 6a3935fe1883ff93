"""Runs: each is one folder, trained once, whoever asks for it and however often it is killed.

The folder `runs/<corpus>-<config hash>/` holds config.json, history.csv, predictions.parquet, adapter.safetensors,
environment.json and, written last, metrics.json: the mark of a finished run. Worker processes claim runs by a file lock,
so any number of notebooks may ask for the same run at the same time; a killed worker's lock falls with it, and the next
call goes on from the last epoch's checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

from cmpta_lib import files
from cmpta_lib.config import from_json
from cmpta_lib.runs import provenance as records
from cmpta_lib.runs.store import DONE
from cmpta_lib.runs.trained import find_corpus, load_llm

PARENT = "CMPTA_PARENT"  # environment variable of workers: the process that waits for them


def work(root: Path, folders: Sequence[Path]) -> None:
    """A worker: claim and finish runs until none is left; runs that another worker holds are waited for."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # one run over several processes: the first of them holds the lock
        from torch import distributed

        distributed.init_process_group()
        for folder in folders:
            with FileLock(folder / "lock") if distributed.get_rank() == 0 else nullcontext():
                execute(root, folder)
            distributed.barrier()
        distributed.destroy_process_group()
        return
    for patience in (0, -1):  # first what is free, then wait for the rest
        for folder in folders:
            try:
                with FileLock(folder / "lock", timeout=patience):
                    if not (folder / DONE).exists():
                        execute(root, folder)
                    _sweep(folder)
            except Timeout:
                continue


def execute(root: Path, folder: Path) -> None:
    """Train, evaluate and record the run whose config lies in `folder`; call with its lock held."""
    import pandas as pd
    import torch

    from cmpta_lib.training import checkpoint, evaluation
    from cmpta_lib.training import loop as training

    config = from_json((folder / "config.json").read_text())
    started = time.perf_counter()
    torch.set_num_threads(config.training.num_threads)
    corpus = find_corpus(root / "cache" / "data", config.data)
    asked_by = os.environ.get(PARENT)

    def on_epoch(state: checkpoint.State) -> None:
        files.write_text(folder / "history.csv", pd.DataFrame(state.history).to_csv(index=False))
        if asked_by and os.getppid() != int(asked_by):  # it was killed: leave the machine, the checkpoint is written
            raise SystemExit("the process that asked for this run is gone")

    try:
        llm = load_llm(root / "cache" / "llm", config.llm)
        model, state = training.train(config, corpus, llm, folder, on_epoch)
    except torch.OutOfMemoryError as error:
        raise RuntimeError(
            f"the GPU's memory is full ({str(error).splitlines()[0]}). Close what else runs on it or pass fewer --jobs; "
            f"finished epochs are kept"
        ) from error
    if int(os.environ.get("RANK", 0)):
        return  # the first process evaluates and writes
    model.counts.clear()  # from here each clip is met once; training and its validations meet them every epoch
    tables = {split: evaluation.evaluate(model, corpus.splits[split]) for split in ("valid", "test")}
    limit, texts = config.prompt.max_text_tokens, corpus.splits["train"].table["text"]
    model.counts["texts_cut"] += sum(len(llm.token_ids(text)) > limit for text in texts)
    files.write_parquet(folder / "predictions.parquet", pd.concat([t.assign(split=s) for s, t in tables.items()]))
    checkpoint.write_tensors(folder / "adapter.safetensors", model.adapter.state_dict())
    history = pd.DataFrame(state.history, columns=None if state.history else ["epoch", "learning_rate", "train_loss"])
    files.write_text(folder / "history.csv", history.to_csv(index=False))
    record = records.environment(
        llm_fingerprint=llm.fingerprint, data_sources=dict(corpus.sources), repairs=dict(corpus.repairs)
    )
    record |= {"train_seconds": round(state.seconds, 2), "seconds": round(time.perf_counter() - started, 2)}
    files.write_text(folder / "environment.json", json.dumps(record, indent=1))
    result = {split: evaluation.score_of(table, corpus) for split, table in tables.items()}
    result |= {"best_epoch": state.best_epoch, "oddities": dict(model.counts)}
    result |= {"trainable_parameters": sum(p.numel() for p in model.parameters()), "llm_parameters": llm.num_parameters}
    files.write_text(folder / DONE, json.dumps(result, indent=1))


def _sweep(folder: Path) -> None:
    """Remove what killed workers left in a finished run's folder."""
    for leftover in {*folder.glob("*.partial"), *folder.glob("checkpoint.*")}:
        leftover.unlink(missing_ok=True)


if __name__ == "__main__":  # a worker; `torchrun -m cmpta_lib.runs.worker <runs> <folder>` trains one run on several processes
    work(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
