"""Finished runs written by hand: a run is a folder of files with a checksum manifest, so tables need no training."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cmpta_lib import files, metrics
from cmpta_lib.config import to_json
from cmpta_lib.data.corpus import Inputs
from cmpta_lib.embedded import synthetic
from cmpta_lib.method.prompted import legal_answers
from cmpta_lib.runs import store
from cmpta_lib.runs.store import Run
from cmpta_lib.study import plan
from cmpta_lib.study.profiles import SMOKE_DOCUMENTS
from cmpta_lib.study.study import Study

TINY = {"tiny": "0123456789abcdef", "tiny-llama": "11a3a00000000000", "tiny-bert": "be27000000000000"}
ENVIRONMENT = {"commit": "c0ffee", "hardware": "a machine", "train_seconds": 1.0, "packages": {"torch": "2.13.0"}}


def record_llms(root: Path) -> Path:
    """The records of the tiny models, smoke and full: a study asks for their fingerprints only."""
    for cache, documents in ((root / "cache", None), (root / "smoke" / "cache", SMOKE_DOCUMENTS)):
        for name, fingerprint in TINY.items():
            folder = synthetic.tiny_folder(cache / "llm", documents, name)
            folder.mkdir(parents=True)
            files.write_text(folder / "cmpta.json", files.checksummed({"fingerprint": fingerprint, "files": {}}))
    return root


def small_studies(root: Path, patch: pytest.MonkeyPatch) -> type[Study]:
    """Studies whose runs lie in `root` and whose corpora are small, smoke or not."""
    patch.setenv("CMPTA_RUNS", str(root))
    patch.setattr(synthetic, "SPLIT_SIZES", {"train": 6, "valid": 4, "test": 9})
    return Study


def clips(
    label: Callable[[int], str | float], sizes: Sequence[int], folder: Path, *, has_face: bool = True, has_voice: bool = True,
    said: str = "Take {}.",
) -> Path:  # fmt: skip
    """A user's own clips in MELD's public format: 10 audio features, 4 of the face, `label` by number."""
    rng = np.random.default_rng(0)
    for split, size in zip(("train", "valid", "test"), sizes, strict=True):
        items = []
        for number in range(size):
            audio = rng.standard_normal((int(rng.integers(5, 12)), 10)).astype(np.float32) + number % 3
            video = rng.standard_normal((3, 4)).astype(np.float32) if has_face else np.zeros((1, 4), np.float32)
            features = {"text": said.format(number), "audio": audio, "audio_len": len(audio) * has_voice, "video": video}
            items.append({"label": label(number), "features": features | {"video_len": 3 if has_face else 0}})
        (folder / f"voices_{split}.pkl").write_bytes(pickle.dumps(items))
    return folder


def finish(study: Study, key: str, runs: Sequence[Run], change: Any = None, **environment: Any) -> None:
    """Write the folder of a finished run, its answers drawn by its config's hash; `change` has a table's last word."""
    corpus = study.corpus(key)
    values = list(legal_answers(corpus.task).values())
    for run in runs:
        rng = np.random.default_rng(int(run.config.hash, 16))
        tables, scores = [], {}
        for name in ("valid", "test"):
            split = corpus.splits[name]
            table = pd.DataFrame({"id": split.table["id"], "label": split.labels, "reply": "?", "split": name})
            table = table.assign(prediction=rng.choice(np.array(values, float), len(split)))
            tables.append(change(table) if change else table)
            scores[name] = {metric.name: 0.5 for metric in metrics.TABLED[corpus.task.kind]}
        run.folder.mkdir(parents=True, exist_ok=True)
        pd.concat(tables).to_parquet(run.folder / store.PREDICTIONS, index=False)
        columns = ["epoch", "learning_rate", "train_loss", f"valid_{metrics.headline(corpus.task.kind).name}"]
        texts = {
            store.CONFIG: to_json(run.config),
            store.CLIPS: Inputs.of(corpus).to_json(),
            store.HISTORY: pd.DataFrame([[1, 0.1, 2.0, 0.5]], columns=columns).to_csv(index=False),
            store.ENVIRONMENT: json.dumps(ENVIRONMENT | environment),
            store.METRICS: json.dumps(scores | {"best_epoch": 1, "oddities": {}, "trainable_parameters": 1234}),
            store.WEIGHTS: "",
        }
        for name, text in texts.items():
            (run.folder / name).write_text(text, encoding="utf-8")
        store.finalise(run.folder)


def finish_tables(study: Study) -> None:
    """Every run behind Tables 3-6."""
    for key in study.keys:
        for row in (*plan.comparison(key), *plan.ABLATIONS.values()):
            finish(study, key, study.runs(key, row))
