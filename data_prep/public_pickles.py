"""Folders of `<name>_{train,valid,test}.pkl` in the format in which MELD's features are public -> the data contract."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from numbers import Integral, Real
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np

from cmpta_lib.data.corpus import SPLITS, Corpus, Sample, Task, is_number, problem, shown
from cmpta_lib.data.store import FORMAT, load_corpus, write_corpus
from cmpta_lib.files import reading, runs_folder
from data_prep import recordings, safe_pickle, tasks, verify
from data_prep.hub import sha256
from data_prep.recordings import MADE, SPLIT_OF, some

READING = 2  # raise when the same files are understood otherwise: earlier conversions are then not found
MOST_NAME_BYTES = 120  # file systems take 255, and caches and runs add up to 60
MOST_ID_CHARACTERS = 200
KEYS = ("id", "speaker", "dialogue")  # optional

_PUBLIC_FILE = re.compile(rf"(.+)_({'|'.join(SPLIT_OF)})\.pkl", re.DOTALL | re.IGNORECASE)
_MODALITIES = (("audio", "audio"), ("video", "vision"))  # as the files call them, and as we do
_PUBLIC_FIELDS = {"label", "features"}
_PUBLIC_FEATURES = {"text", "audio", "audio_len", "video", "video_len"}
_LIKE_ONE = re.compile(r"train|val|dev|test", re.IGNORECASE)
_PACKED = (".gz", ".zip", ".xz", ".bz2", ".tar", ".tgz", ".7z", ".zst")


def read_folder(folder: str | Path, cache: Path | None = None) -> Corpus:
    """Open `<name>_{train,valid,test}.pkl` or what `cmpta data clips` made; converted on first use, below `cache`.

    Which task was found is printed at the conversion; clips that stand in train and in another split in every call.

    Each file is in MELD's public format, a list of dicts `{"label": str | float, "features": {"text", "audio": (T, F),
    "audio_len", "video": (T, F), "video_len"}}`, with "id", "speaker" and "dialogue" where known. Only the first `len` rows
    are real frames; a modality of length 0, None or without a key is absent. Text labels make classes, numbers scores; where
    that is left open, or scores lie beyond [-1, 1], "classes:FOLDER", "scores=1..5:FOLDER" or `tasks.ABOUT` in the folder
    must say. The conversion is named by that and the files' SHA-256, which every call computes (0.5 s for MELD).

    Args:
        cache: where conversions lie; without it `cache/data` of the runs' folder, as in every study.
    Raises:
        FileNotFoundError: the folder or a split's file is missing.
        ValueError: there are files of several datasets, one does not conform, or the task is left open; the message names
            file, sample, field.
        PermissionError: a file may not be read; named.
        Damaged: an earlier conversion is no longer what was written; names it and says what to do.
    """
    about, place = tasks.said(folder)
    name, paths = public_files(place)
    made = recordings.opened(paths[MADE]) if MADE in paths else {}
    recordings.need_current(made, paths.get(MADE, place))
    sources = made["sources"] if made else {path.name: sha256(path) for path in paths.values()}
    if about != tasks.Said():  # in the call or in the file: what is said decides what the labels mean
        sources[tasks.ABOUT] = hashlib.sha256(json.dumps(astuple(about)).encode()).hexdigest()
    key = hashlib.sha256(json.dumps([FORMAT, READING, *sources.values()]).encode()).hexdigest()[:16]
    target = (runs_folder() / "cache" / "data" if cache is None else Path(cache)) / f"{name}-{key}"
    is_new = not target.exists()
    if not is_new:
        corpus = load_corpus(target, name=name, sources=sources)
    elif made:
        corpus = recordings.convert(made, paths[MADE], about, sources, target)
    else:
        corpus = _convert(name, place, about, paths, sources, target)
    warned = [*made.get("warnings", ()), *verify.warnings(corpus, deep=is_new)]
    for line in (verify.introduction(corpus) if is_new else []) + warned:
        print(f"{place}: {line}", file=sys.stderr)
    return corpus


def _convert(
    name: str, folder: Path, about: tasks.Said, paths: Mapping[str, Path], sources: Mapping[str, str], target: Path
) -> Corpus:
    repairs: Counter[str] = Counter()
    items = {split: read_items(path, repairs) for split, path in paths.items()}
    if not items["train"]:
        raise problem(str(paths["train"]), None, "a list of one sample or more", "empty", "fill it, or split anew")
    every = [item for split in SPLITS for item in items[split]]
    labels = {split: [(_where(paths[split], n, one), one["label"]) for n, one in enumerate(items[split])] for split in SPLITS}
    task = tasks.find_task(folder, about, labels, [item["features"]["text"] for item in every])
    widths = _widths(every)
    return write_corpus(
        target,
        name=name,
        task=task,
        splits={split: read_samples(paths[split], split, items[split], task, repairs, widths) for split in SPLITS},
        generated=False,
        sources=sources,
        repairs=repairs,
        origins={split: str(path) for split, path in paths.items()},
    )


# Finding the files ----------------------------------------------------------------------------------------------------
def public_files(folder: Path) -> tuple[str, dict[str, Path]]:
    """Name and each split's file of the dataset in a folder, none of them opened; raises as `read_folder`.

    Of what was made of recordings, the one file is `MADE`.
    """
    if not folder.is_dir():
        remedy = "it is a file: name its folder" if folder.exists() else "there is no such folder: correct its name"
        remedy += "; only classes:, scores: or scores=LOW..HIGH: may stand before it" * (":" in str(folder))
        raise FileNotFoundError(f"{folder}: expected <name>_train.pkl and its like in a folder; {remedy}")
    with reading(folder):  # a Mac leaves "._" files beside others on foreign disks
        found = {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("._")}
    matches = [match for file in found if (match := _PUBLIC_FILE.fullmatch(file))]
    names = sorted({match[1] for match in matches})
    for name in names:
        if name.startswith(".") or not name.isprintable() or len(os.fsencode(name)) > MOST_NAME_BYTES:  # others are named by it
            expected = f"one of visible characters, at most {MOST_NAME_BYTES} bytes of them, that begins with no dot"
            where = f"{folder}: the dataset's name, as before _train.pkl,"
            raise problem(where, None, expected, f"{shown(name)} of {len(os.fsencode(name))}", "rename or remove its files")
    if made := recordings.made_in(folder):
        if names:
            raise ValueError(f"{folder} holds public pickles and what was made of recordings; give each a folder of its own")
        return recordings.opened(made)["name"], {MADE: made}
    if len(names) > 1:
        raise ValueError(f"{folder}: expected one dataset, found {some(names)}; give each a folder of its own")
    files: dict[str, list[str]] = {split: [] for split in SPLITS}
    for match in matches:
        files[SPLIT_OF[match[2].lower()]].append(match[0])
    if twice := next((same for same in files.values() if len(same) > 1), None):
        raise ValueError(f"{folder}: expected one file a split, found {some(twice)}; remove or rename all but one")
    if missing := [f"{names[0] if names else '<name>'}_{split}.pkl" for split in SPLITS if not files[split]]:
        remedy = _remedy(folder, [*found])
        raise FileNotFoundError(f"{folder}: expected {some(missing)}, unpacked, found {some([*found]) or 'nothing'}; {remedy}")
    return names[0], {split: found[same[0]] for split, same in files.items()}


def _remedy(folder: Path, found: Sequence[str]) -> str:
    """What to do where a split's file is missing, by what lies there in its place."""
    if below := sorted({path.parent.name for path in folder.glob("*/*_*.pkl") if _PUBLIC_FILE.fullmatch(path.name)}):
        return f"name the folder below it: {some(below)}"
    if packed := [name for name in found if name.lower().endswith(_PACKED)]:
        return f"unpack {some(packed)}"
    if recordings.found_in(folder)[0]:
        return f"recordings need features first: cmpta data clips {folder}"
    if odd := [name for name in found if _LIKE_ONE.search(name) and not _PUBLIC_FILE.fullmatch(name)]:
        return f"rename {some(odd)} to end in _train.pkl, _valid.pkl or _test.pkl"
    return "fetch what is missing, or split your clips in three, nobody's in two files"


# Reading them ---------------------------------------------------------------------------------------------------------
def _where(path: Path, index: int, item: Mapping[str, Any]) -> str:
    return f"{path}, sample {index}" + (f" (id {shown(item['id'])})" if "id" in item else "")


def read_items(path: Path, repairs: Counter[str], labelled: bool = True) -> list[dict]:
    """One file's list of dicts, checked as far as keys, text and, if `labelled`, the kind of label go; counts unknown keys.

    Raises:
        ValueError: the file does not conform; the message names file, sample and field.
    """
    with reading(path):
        items = safe_pickle.load(path)
    if not isinstance(items, list | tuple):
        raise problem(str(path), None, "a list of dicts, one per sample", shown(items), "save it in MELD's public format")
    for index, item in enumerate(items):
        where = _where(path, index, item if isinstance(item, dict) else {})
        _need_keys(where, None, item, _PUBLIC_FIELDS if labelled else {"features"})
        features = item["features"]
        _need_keys(where, "features", features, {"text"})
        if not isinstance(features["text"], str):
            raise problem(where, "text", "a string", shown(features["text"]), "write '' if nothing is said")
        if labelled and (not isinstance(item["label"], str | Real) or isinstance(item["label"], bool)):
            remedy = "write a class name or a score, or leave the clip out"
            raise problem(where, "label", "text or a number", shown(item["label"]), remedy)
        odd = features.keys() - _PUBLIC_FEATURES
        if odd and not {"audio", "video"} <= features.keys():  # a modality under another name would be lost
            remedy = "rename what was meant, and write None for what is absent"
            raise problem(where, "features", "a dict with 'audio' and 'video'", f"one with {short([*features])}", remedy)
        repairs.update(ignored("field", [*(item.keys() - _PUBLIC_FIELDS - set(KEYS)), *odd]))
    return list(items)


def clips_of(path: Path, widths: Mapping[Any, int]) -> Iterator[tuple[str, Sample | ValueError, Counter[str]]]:
    """Clips of one file that are to be answered: name, the clip or what is wrong with it, its repairs.

    Labels are not looked at. `widths`: F of each modality, for clips that lack it. Raises ValueError as `read_items`.
    """
    known = {source: widths[modality] for source, modality in _MODALITIES}
    for index, item in enumerate(read_items(path, Counter(), labelled=False)):
        name, repairs = f"{path.stem}_{index:05d}", Counter[str]()
        try:
            clip = _sample(_where(path, index, item), name, item, None, repairs, known)
            yield clip.id, clip, repairs
        except ValueError as error:
            yield name, error, repairs


def ignored(what: str, names: Iterable[object]) -> Iterator[str]:
    """Kinds of data issues for what is not read. The names are the file's own, so they are cut and escaped like values."""
    return (f"ignored_{what}_{shown(name).strip(chr(39))}" for name in names)


def _need_keys(where: str, field: str | None, value: object, keys: set[str]) -> None:
    if not isinstance(value, dict) or keys - value.keys():
        came = f"one with {short([*value])}" if isinstance(value, dict) else shown(value)
        remedy = "write '' if nothing is said" if "text" in keys and isinstance(value, dict) else "add what is missing"
        raise problem(where, field, f"a dict with {sorted(keys)}", came, remedy)


def read_samples(
    path: Path, split: str, items: list[dict], task: Task, repairs: Counter[str], widths: Mapping[str, int] | None = None
) -> Iterator[Sample]:
    """The samples of `read_items`, cut to their true lengths; one without an id is named by its place.

    Labels must be those of `task`. Rows after a stated length that are not zero are counted in `repairs`, and so are clips
    whose frames are all zero.

    Args:
        widths: F of each modality, for clips that lack it; without it as in these items.
    """
    widths = widths or _widths(items)
    for index, item in enumerate(items):
        yield _sample(_where(path, index, item), f"{split}_{index:05d}", item, task, repairs, widths)


def _sample(
    where: str, name: str, item: Mapping[str, Any], task: Task | None, repairs: Counter[str], widths: Mapping[str, int]
) -> Sample:
    named = {"id": name} | _names(where, item)
    clip: dict[str, Any] = {}  # arrays
    for source, modality in _MODALITIES:
        frames, length = _frames(where, source, item["features"])
        clip[modality] = frames[:length] if length else np.zeros((0, widths[source]), np.float32)
        if cut := int((frames[length:] != 0).any(axis=1).sum()):  # padding, by the file's own length, yet not zero
            repairs[f"{modality}_nonzero_frames_after_length"] += cut
        if length and not clip[modality].any():
            repairs[f"{modality}_{verify.ALL_ZERO}"] += 1
    label = tasks.label_of(task, item["label"]) if task else None
    return Sample(text=item["features"]["text"], label=label, **named, **clip)


def _names(where: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """Id, speaker and dialogue, those that there are."""
    found = {key: item[key] for key in KEYS if item.get(key) is not None}
    for key, value in found.items():
        is_name = isinstance(value, str) or (isinstance(value, Integral) and not isinstance(value, bool))
        if not is_name or (key, value) == ("id", "") or len(str(value)) > MOST_ID_CHARACTERS:
            expected = f"a string that is not empty, or a whole number, of at most {MOST_ID_CHARACTERS} characters"
            raise problem(where, key, expected, shown(value), "correct it, or leave it out")
    return {key: str(value) for key, value in found.items() if key == "id" or value != ""}


def _widths(items: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """F of each modality: of the first clip that has frames, or else of an array that none are taken of; 1 without any."""
    found: dict[str, int] = {}
    for features in (item["features"] for item in items):
        for source, _ in _MODALITIES:
            frames, length = features.get(source), features.get(f"{source}_len")
            if isinstance(frames, np.ndarray) and frames.ndim == 2 and frames.shape[1]:
                found.setdefault(source if is_number(length) and length > 0 else f"spare {source}", frames.shape[1])
    return {source: found.get(source, found.get(f"spare {source}", 1)) for source, _ in _MODALITIES}


def _frames(where: str, source: str, features: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """All rows of a clip's modality (T, F), and how many of them are real; (0, 1) and 0 where it is not there."""
    frames, field, length = features.get(source), f"{source}_len", features.get(f"{source}_len")
    if frames.shape[:1] == (0,) if isinstance(frames, np.ndarray) else frames is None or frames == []:
        if length is not None and not (is_number(length) and length == 0):
            raise problem(where, field, f"0, as {source!r} has no frames", shown(length), "write 0, or add the frames")
        return np.zeros((0, 1)), 0
    if not isinstance(frames, np.ndarray) or frames.ndim != 2 or frames.dtype.kind not in "fiu" or not frames.shape[1]:
        raise problem(where, source, "a (T, F) array of numbers", shown(frames), _shape_remedy(source, frames))
    if not is_number(length) or not 0 <= length <= len(frames) or length != int(length):
        expected = f"a whole number from 0 to the array's {len(frames)} rows"
        raise problem(where, field, expected, shown(length), "count the real frames: all, without padding")
    return frames, int(length)


def _shape_remedy(source: str, frames: object) -> str:
    if not isinstance(frames, np.ndarray) or frames.dtype.kind not in "fiu":
        return f"write np.array({source}, 'float32'), all frames as long; an absent modality is None"
    if frames.ndim == 1:
        return f"a vector of one frame is {source}[None], of one feature {source}[:, None]"
    return f"write {source}[0]" if frames.ndim == 3 and len(frames) == 1 else "make each frame one row of F >= 1 numbers"
