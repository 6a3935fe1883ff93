"""Corpora in memory with the texts and lengths of `data_prep.rehearsal`: what a step costs depends on nothing else.

Frames are noise and nothing is written. The lengths' distributions are documented at `data_prep.rehearsal.simsv2_split`
and `meld_items`; texts are its made-up ones, or for MELD the official ones where their folder is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cmpta_lib.benchmark.options import CORPORA, Options
from cmpta_lib.data.corpus import COLUMNS, SPLITS, Corpus, Modality, Split, Task
from cmpta_lib.paper import MELD_LABELS, TABLE1
from data_prep import rehearsal

TASKS = {"sims": Task("regression", "zh"), "meld": Task("classification", "en", MELD_LABELS)}
WIDTHS: Mapping[str, Mapping[Modality, int]] = {
    "sims": {"audio": 25, "vision": 177},
    "meld": {"audio": 64, "vision": 64},
}
# Frames to which they are published, zero-padded.
LONGEST: Mapping[str, Mapping[Modality, int]] = {
    "sims": {"audio": 925, "vision": 232},
    "meld": {"audio": 157, "vision": 32},
}
TEXT_LIMIT = {"sims": 50, "meld": 65}  # tokens to which MSE-Adapter pads and cuts texts


def split_sizes(key: str) -> dict[str, int]:
    """Clips of the published splits (Table 1)."""
    return {name: getattr(TABLE1[CORPORA[key]], name) for name in SPLITS}


def corpus(options: Options) -> Corpus:
    """Training clips for every timed step, a validation split of the published size, and no test split to speak of."""
    sizes = split_sizes(options.corpus)
    wanted = {
        "train": options.clips or min(sizes["train"], options.batches * options.batch_size),
        "valid": min(sizes["valid"], 4 * options.answers * options.answered),
        "test": 1,
    }
    splits = {name: _split(name, max(size, rehearsal.MIN_CLIPS), options) for name, size in wanted.items()}
    return Corpus(f"{options.corpus}-lengths", TASKS[options.corpus], splits, True, {}, {}, "benchmark")


def _split(name: str, size: int, options: Options) -> Split:
    rows = list(_sims(name, size, options) if options.corpus == "sims" else _meld(name, size, options))
    table = pd.DataFrame(rows, columns=[*COLUMNS])
    for modality, frames in (("audio", options.audio_frames), ("vision", options.vision_frames)):
        if frames is not None:
            table[f"{modality}_length"] = frames
    if options.text_tokens is not None:  # the prompt's limit cuts them to this many; hardly a token has eight characters
        size = 8 * options.text_tokens
        table["text"] = [(text * (1 + size // len(text)))[:size] for text in table["text"]]
    rng = np.random.default_rng([options.seed, SPLITS.index(name), 20])
    frames_of = {
        modality: rng.standard_normal((int(table[f"{modality}_length"].sum()), width), np.float32)
        for modality, width in WIDTHS[options.corpus].items()
    }
    return Split(name, TASKS[options.corpus], table, frames_of["audio"], frames_of["vision"])


def _sims(split: str, size: int, options: Options) -> Iterator[Sequence[object]]:
    drawn = rehearsal.simsv2_split(split, size, options.seed)
    columns = ("id", "raw_text", "regression_labels", "audio_lengths", "vision_lengths")
    for name, text, label, audio, vision in zip(*(drawn[column] for column in columns), strict=True):
        yield name, text, float(label), None, None, audio, vision


def _meld(split: str, size: int, options: Options) -> Iterator[Sequence[object]]:
    annotations = Path(options.annotations) if options.annotations else None
    rows = list(rehearsal.meld_rows(split, size, annotations, options.seed))
    items = rehearsal.meld_items(split, iter(rows), options.seed)
    for number, (row, item) in enumerate(zip(rows, items, strict=True)):
        features: Mapping[str, int] = item["features"]
        label = MELD_LABELS.index(item["label"])
        yield f"{split}{number}", row["Utterance"], label, None, None, features["audio_len"], features["video_len"]
