"""Folders of `<name>_{train,valid,test}.pkl` in the format in which MELD's features are public -> the data contract."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral, Real
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np

from cmpta_lib.data.corpus import SPLITS, Corpus, Language, Sample, Task, is_whole, problem, shown
from cmpta_lib.data.store import FORMAT, load_corpus, write_corpus
from cmpta_lib.files import expanded, reading, runs_folder
from cmpta_lib.paper import MELD_LABELS
from data_prep import safe_pickle, verify
from data_prep.hub import sha256

MOST_NAME_BYTES = 120  # file systems take 255, and caches and runs add up to 60
MOST_LABEL_CHARACTERS = 100  # all classes stand in every prompt

_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_PUBLIC_FILE = re.compile(rf"(.+)_({'|'.join(SPLITS)})\.pkl", re.DOTALL)
_PUBLIC_FIELDS = {"label", "features"}
KEYS = ("id", "speaker", "dialogue")  # optional
_PUBLIC_FEATURES = {"text", "audio", "audio_len", "video", "video_len"}


def read_folder(folder: str | Path, cache: Path | None = None) -> Corpus:
    """Open `<name>_{train,valid,test}.pkl`, MELD's public format; converted on first use, below `cache`.

    Clips that stand in train and in another split are named in a printed line in every call.

    Each file is a list of dicts `{"label": str | float, "features": {"text", "audio": (T, F), "audio_len",
    "video": (T, F), "video_len"}}`, with "id", "speaker" and "dialogue" where known. Only the first `len` rows are real
    frames; 0 means that the modality is absent. Text labels make it a classification, numbers in [-1, 1] a regression.
    The conversion is named by the files' SHA-256, which every call computes (0.5 s for MELD).

    Args:
        cache: where conversions lie; without it `cache/data` of the runs' folder, as in every study.
    Raises:
        FileNotFoundError: a split's file is missing.
        ValueError: there are files of several datasets, or one does not conform; the message names file, sample, field.
        PermissionError: a file may not be read; named.
        Damaged: an earlier conversion is no longer what was written; names it and says what to do.
    """
    name, paths = _public_files(Path(expanded(folder)))
    sources = {path.name: sha256(path) for path in paths.values()}
    key = hashlib.sha256(json.dumps([FORMAT, *sources.values()]).encode()).hexdigest()[:16]
    target = (runs_folder() / "cache" / "data" if cache is None else Path(cache)) / f"{name}-{key}"
    corpus = load_corpus(target) if target.exists() else _convert(name, paths, sources, target)
    for line in verify.warnings(corpus):
        print(f"{folder}: {line}", file=sys.stderr)
    return corpus


def _convert(name: str, paths: Mapping[str, Path], sources: Mapping[str, str], target: Path) -> Corpus:
    repairs: Counter[str] = Counter()
    items = {split: read_items(path, repairs) for split, path in paths.items()}
    task = _public_task(paths, items)
    return write_corpus(
        target,
        name=name,
        task=task,
        splits={split: read_samples(paths[split], split, items[split], task, repairs) for split in SPLITS},
        generated=False,
        sources=sources,
        repairs=repairs,
        origins={split: str(path) for split, path in paths.items()},
    )


def _public_files(folder: Path) -> tuple[str, dict[str, Path]]:
    with reading(folder):
        found = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()} if folder.is_dir() else {}
    names = sorted({match[1] for file in found if (match := _PUBLIC_FILE.fullmatch(file))})
    for name in names:
        _need_usable_name(folder, name)
    if len(names) > 1:
        raise ValueError(f"{folder}: expected one dataset, found {', '.join(names)}; give each a folder of its own")
    files = {split: f"{names[0] if names else '<name>'}_{split}.pkl" for split in SPLITS}
    if missing := [file for file in files.values() if file not in found]:
        expected, listed = " and ".join(missing), ", ".join(found) or "nothing"
        raise FileNotFoundError(f"{folder}: expected {expected}, unpacked, found {listed}; fetch or unpack what is missing")
    return names[0], {split: found[file] for split, file in files.items()}


def _need_usable_name(folder: Path, name: str) -> None:
    """Caches, runs and figures are named by it; a dot before it would hide them or put them elsewhere."""
    if name.startswith(".") or not name.isprintable() or len(os.fsencode(name)) > MOST_NAME_BYTES:
        expected = f"one of visible characters, at most {MOST_NAME_BYTES} bytes of them, that begins with no dot"
        where, came = f"{folder}: the dataset's name, as before _train.pkl,", f"{shown(name)} of {len(os.fsencode(name))}"
        raise problem(where, None, expected, came, "rename or remove its files")


def read_items(path: Path, repairs: Counter[str]) -> list[dict]:
    """One file's list of dicts, checked as far as keys, text and the kind of label go; unknown keys are counted.

    Raises:
        ValueError: the file does not conform; the message names file, sample and field.
    """
    with reading(path):
        items = safe_pickle.load(path)
    if not isinstance(items, list):
        expected = "a list of dicts, one per sample"
        raise problem(str(path), None, expected, shown(items), "save it in MELD's public format")
    for index, item in enumerate(items):
        where = f"{path}, sample {index}"
        _need_keys(where, None, item, _PUBLIC_FIELDS)
        features = item["features"]
        _need_keys(where, "features", features, _PUBLIC_FEATURES)
        if not isinstance(features["text"], str):
            raise problem(where, "text", "a string", shown(features["text"]), "write '' if nothing is said")
        if not isinstance(item["label"], str | Real) or isinstance(item["label"], bool):
            raise problem(where, "label", "text or a number", shown(item["label"]), "write a class name or a score")
        unknown = [*(item.keys() - _PUBLIC_FIELDS - set(KEYS)), *(features.keys() - _PUBLIC_FEATURES)]
        repairs.update(ignored("field", unknown))
    return items


def ignored(what: str, names: Iterable[object]) -> Iterator[str]:
    """Kinds of data issues for what is not read. The names are the file's own, so they are cut and escaped like values."""
    return (f"ignored_{what}_{shown(name).strip(chr(39))}" for name in names)


def _need_keys(where: str, field: str | None, value: object, keys: set[str]) -> None:
    if not isinstance(value, dict) or keys - value.keys():
        came = f"one with {short([*value])}" if isinstance(value, dict) else shown(value)
        raise problem(where, field, f"a dict with {sorted(keys)}", came, "add what is missing")


def _public_task(paths: Mapping[str, Path], items: Mapping[str, list[dict]]) -> Task:
    train, texts = items["train"], [item["features"]["text"] for split in SPLITS for item in items[split]]
    language: Language = "zh" if sum(bool(_CJK.search(text)) for text in texts) * 2 > len(texts) else "en"
    if not train:
        raise problem(str(paths["train"]), None, "a list of one sample or more", "empty", "fill it, or split anew")
    names = [item["label"] for item in train if isinstance(item["label"], str)]
    classes = set(names) if 2 * len(names) >= len(train) else set()  # the odd one is to blame, wherever it stands
    for split in SPLITS:
        for index, label in enumerate(item["label"] for item in items[split]):
            where = f"{paths[split]}, sample {index}"
            if isinstance(label, str) and not classes:
                expected = f"a number, as for {len(train) - len(names)} of the {len(train)} samples in train"
                raise problem(where, "label", expected, shown(label), "correct it")
            if isinstance(label, str):
                _need_usable_label(where, label)
            if classes and label not in classes:
                expected = f"one of train's labels {short(sorted(classes))}"
                raise problem(where, "label", expected, shown(label), "correct it or add such samples to train")
    if not classes:
        return Task("regression", language)
    if len(classes) == 1:
        came = f"of {shown(*classes)} alone"
        raise problem(str(paths["train"]), None, "of two classes or more", came, "add samples of another, or write scores")
    return Task("classification", language, MELD_LABELS if classes == set(MELD_LABELS) else tuple(sorted(classes)))


def _need_usable_label(where: str, label: str) -> None:
    """Classes that look alike must be alike, and the LLM is asked about them by name."""
    if len(label) > MOST_LABEL_CHARACTERS:
        expected, came = f"a class name of at most {MOST_LABEL_CHARACTERS} characters", f"one of {len(label)}"
        raise problem(where, "label", expected, f"{came}, {shown(label)}", "write a short name")
    seen = "".join(letter if letter.isprintable() else " " if letter.isspace() else "" for letter in label)
    tidy = " ".join(seen.split())
    if label != tidy or not tidy:
        expected = "a class name of visible characters, with single spaces between words only"
        raise problem(where, "label", expected, shown(label), f"write {tidy!r}" if tidy else "write the class's name")


def read_samples(path: Path, split: str, items: list[dict], task: Task, repairs: Counter[str]) -> Iterator[Sample]:
    """The samples of `read_items`, cut to their true lengths; one without an id is named by its place.

    Labels must be those of `task`. Rows after a stated length that are not zero are counted in `repairs`.
    """
    for index, item in enumerate(items):
        where = f"{path}, sample {index}" + (f" (id {shown(item['id'])})" if "id" in item else "")
        keys = {"id": f"{split}_{index:05d}"} | {key: item[key] for key in KEYS if item.get(key) is not None}
        for key, value in keys.items():
            if isinstance(value, bool) or (key == "id" and isinstance(value, str) and not value):
                raise problem(where, key, "a string that is not empty, or a whole number", shown(value), "correct it")
        clip: dict[str, Any] = {}  # arrays
        for source, modality in (("audio", "audio"), ("video", "vision")):
            frames, length = item["features"][source], item["features"][f"{source}_len"]
            if not isinstance(frames, np.ndarray) or frames.ndim != 2:
                raise problem(where, source, "a (T, F) array", shown(frames), "keep one zero row if the modality is absent")
            if not is_whole(length) or not 0 <= length <= len(frames):
                expected = f"a whole number from 0 to the array's {len(frames)} rows"
                raise problem(where, f"{source}_len", expected, shown(length), "count the real frames again")
            clip[modality] = frames[:length]
            if cut := int((frames[length:] != 0).any(axis=1).sum()):  # padding, by the file's own length, yet not zero
                repairs[f"{modality}_nonzero_frames_after_length"] += cut
        named: dict[str, Any] = {k: str(v) if isinstance(v, Integral) else v for k, v in keys.items()}
        label = task.labels.index(item["label"]) if task.labels else item["label"]
        yield Sample(**named, text=item["features"]["text"], **clip, label=label)
