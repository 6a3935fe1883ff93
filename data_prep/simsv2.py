"""SIMS-V2's public feature file -> the data contract: `python -m data_prep.simsv2 [--from FOLDER]`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np

from cmpta_lib.data.corpus import MODALITIES, SPLITS, Corpus, Sample, Task, is_number, problem, shown
from cmpta_lib.data.store import load_corpus
from cmpta_lib.paper import TABLE1
from data_prep import catalogue, hub, published, safe_pickle, verify
from data_prep.public_pickles import ignored

NAME = "simsv2"
TASK = Task("regression", "zh")
FILE = catalogue.SIMSV2.files[0].name
_Column = Sequence[Any] | np.ndarray
_FIELDS = ("raw_text", "id", "audio", "vision", "audio_lengths", "vision_lengths", "regression_labels")
# Known to be there and of no use here: BERT's output and input, single-modality labels, and what MMSA deprecated.
_UNUSED = {"text", "text_bert", "annotations", "classification_labels"} | {f"regression_labels_{m}" for m in "TAV"}


def prepare(cache: Path, source: Path | None = None) -> Corpus:
    """The corpus below `cache`; fetched (3.6 GB) and converted when it is not there yet.

    Args:
        source: folder with one's own copy of the file, used where it lies.
    Raises:
        ValueError: the file does not conform; the message names file, split, sample and field.
        OSError: it cannot be had, or the disk is full; the message says how to get it by hand.
        FileExistsError: the cache holds a corpus of other files.
    """
    target, raw = Path(cache) / "data" / NAME, Path(cache) / "raw" / NAME
    if target.exists() and source is None:
        return load_corpus(target)
    found = hub.fetch(catalogue.SIMSV2, raw) if source is None else hub.find(catalogue.SIMSV2, source)
    path, content = found.paths[FILE], dict[str, Any]()

    def read(split: str, repairs: Counter[str]) -> Iterator[Sample]:
        if not content:
            content.update(_content(path, repairs))
        columns = _columns(path, split, content[split], repairs)
        found.require_size(split, len(columns["id"]), getattr(TABLE1["SIMS-V2"], split), origins[split])
        return _samples(path, split, columns, repairs)

    origins = {split: f"{path}, split {split}" for split in SPLITS}
    # Audio and vision are two thirds of the file, and float32 halves them; leaving the padding out saves more.
    return published.converted(target, TASK, [found], read, origins, path.stat().st_size // 2)


def _content(path: Path, repairs: Counter[str]) -> dict[str, Any]:
    content = safe_pickle.load(path)  # arrays are views of the mapped file: nothing is read yet
    if not isinstance(content, dict) or not set(SPLITS) <= set(content):
        came = f"one with {short([*content])}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise problem(str(path), None, f"a dict with {', '.join(SPLITS)}", came, hub.CORRECT)
    repairs.update(ignored("split", (split for split in content if split not in SPLITS)))
    return content


def _columns(path: Path, split: str, fields: object, repairs: Counter[str]) -> dict[str, _Column]:
    """The fields of one split, each of N entries; features stay views, the others become lists."""
    where = f"{path}, split {split}"
    if not isinstance(fields, dict) or set(_FIELDS) - set(fields):
        missing = sorted(set(_FIELDS) - set(fields)) if isinstance(fields, dict) else []
        came = f"without {missing}" if missing else f"a {type(fields).__name__}"
        raise problem(where, None, f"a dict with {', '.join(_FIELDS)}", came, hub.CORRECT)
    repairs.update(ignored("field", (field for field in fields if field not in _FIELDS and field not in _UNUSED)))
    columns: dict[str, _Column] = {}
    for field in _FIELDS:
        value = fields[field]
        if field in MODALITIES:
            if not isinstance(value, np.ndarray) or value.ndim != 3 or value.dtype.kind not in "fiu":
                raise problem(where, field, "an (N, T, F) array of numbers", shown(value), hub.CORRECT)
            columns[field] = value
        elif isinstance(value, np.ndarray) and value.ndim == 1:
            columns[field] = value.tolist()
        elif isinstance(value, list | tuple):
            columns[field] = [entry.item() if isinstance(entry, np.generic) else entry for entry in value]
        else:
            raise problem(where, field, "a list or an array of one dimension", shown(value), hub.CORRECT)
    counts = {field: len(column) for field, column in columns.items()}
    if len(set(counts.values())) > 1:
        raise problem(where, None, "a dict with equally many entries in each field", f"one with {counts}", hub.CORRECT)
    return columns


def _samples(path: Path, split: str, columns: Mapping[str, _Column], repairs: Counter[str]) -> Iterator[Sample]:
    """One sample after the other, cut to its true lengths."""
    seen: set[str] = set()
    for index, name in enumerate(columns["id"]):
        where = f"{path}, split {split}, sample {index} (id {shown(name)})"
        if not isinstance(name, str) or not name:
            raise problem(where, "id", "a string that is not empty", shown(name), hub.CORRECT)
        if name in seen:
            raise problem(where, "id", "unique in its split", "used before", hub.CORRECT)
        seen.add(name)
        text, label = columns["raw_text"][index], columns["regression_labels"][index]
        if not isinstance(text, str):
            raise problem(where, "raw_text", "a string", shown(text), hub.CORRECT)
        if not is_number(label) or not -1 <= label <= 1:  # NaN is not, either
            raise problem(where, "regression_labels", "a finite number in [-1, 1]", shown(label), hub.CORRECT)
        clip: dict[str, Any] = {}  # arrays
        for modality in MODALITIES:
            frames, field = columns[modality][index], f"{modality}_lengths"
            length, most = columns[field][index], len(frames)
            # The range comes before `int`: NaN is in none, and what is in it is neither infinite nor too large.
            if not is_number(length) or not 0 <= length <= most or length != int(length):  # some copies keep floats
                expected = f"a whole number from 0 to the array's {most} frames"
                raise problem(where, field, expected, shown(length), hub.CORRECT)
            length = int(length)
            clip[modality] = frames[:length]
            if not length:
                repairs[f"{modality}_absent"] += 1
            elif not clip[modality].any():
                repairs[f"{modality}_{verify.ALL_ZERO}"] += 1
            if nonzero := int(np.any(frames[length:] != 0, axis=1).sum()):
                repairs[f"{modality}_nonzero_frames_after_length"] += nonzero
        yield Sample(id=name, text=text, label=float(label), **clip)


def main(argv: Sequence[str] | None = None, prog: str = "python -m data_prep.simsv2") -> int:
    """Entry point, also of another command, `prog`; returns the exit code."""
    return published.convert(argv, prog, __doc__, prepare, {"--from": f"where your copy of {FILE} lies"})


if __name__ == "__main__":
    sys.exit(main())
