"""The one form that every dataset takes: samples of text, audio frames and vision frames, three splits, true lengths.

A corpus is a folder of four files: `audio.f32` and `vision.f32` hold the real frames of all clips end to end
(little-endian float32, no padding, train then valid then test), `table.parquet` one row per clip, `meta.json` the rest.
Features are memory-mapped: opening a corpus reads its table only, and a sample costs its own frames.
"""

from __future__ import annotations

import hashlib
import json
import operator
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from cmpta_lib.paper import MELD_LABELS
from data_prep import safe_pickle

Kind = Literal["regression", "classification"]
Modality = Literal["audio", "vision"]
SPLITS = ("train", "valid", "test")
MODALITIES: tuple[Modality, ...] = get_args(Modality)
COLUMNS = ("id", "text", "label", "speaker", "dialogue", "audio_length", "vision_length")

_FORMAT = 1  # raise when the stored form or the conversion changes: older caches are then refused or not found
_CHUNK_FRAMES = 16_384  # 23 MB in float64 at SIMS-V2's 177 vision features
_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_PUBLIC_FILE = re.compile(rf"(.+)_({'|'.join(SPLITS)})\.pkl")
_PUBLIC_FIELDS = {"label", "features"}
_PUBLIC_KEYS = ("id", "speaker", "dialogue")  # optional
_PUBLIC_FEATURES = {"text", "audio", "audio_len", "video", "video_len"}


@dataclass(frozen=True)
class Task:
    """What is predicted: a score in [-1, 1], or one of `labels` (position = the digit that the LLM answers)."""

    kind: Kind
    language: Literal["zh", "en"]
    labels: tuple[str, ...] = ()  # empty for regression

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.language not in ("zh", "en"):
            raise ValueError(f"expected {get_args(Kind)} in 'zh' or 'en', not {self.kind!r} in {self.language!r}")
        if self.kind == "regression" and self.labels:
            raise ValueError(f"a regression task has no class names, but {self.labels} came")
        if self.kind == "classification" and not 2 <= len(set(self.labels)) == len(self.labels):
            raise ValueError(f"a classification task needs two or more different class names, but {self.labels} came")


@dataclass(frozen=True, eq=False)
class Sample:
    """One clip. A modality of length 0 is absent; its width F is kept."""

    id: str
    text: str
    audio: np.ndarray  # (T_a, F_a) float32
    vision: np.ndarray  # (T_v, F_v) float32
    label: float | int  # a score in [-1, 1], or the class index
    speaker: str | None = None
    dialogue: str | None = None
    truth: Mapping[str, float | int | str] = field(default_factory=dict)  # what the generator knows; real data: empty


class Split(Sequence[Sample]):
    """One split, read sample by sample from mapped features.

    Args:
        table: one row per clip in reading order, the columns `COLUMNS`, then those of `Sample.truth`.
        audio, vision: (all frames of the split, F) float32, clip after clip.
    """

    def __init__(self, name: str, task: Task, table: pd.DataFrame, audio: np.ndarray, vision: np.ndarray) -> None:
        self.name, self.task, self.table = name, task, table.reset_index(drop=True)
        self._frames = {"audio": audio, "vision": vision}
        self._stops = {modality: table[f"{modality}_length"].to_numpy().cumsum() for modality in MODALITIES}
        self._rows = self.table.to_dict("records")  # a row of a data frame costs 50 times a dict's

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # whole numbers only, no slices
        index = range(len(self))[operator.index(index)]
        row = dict(self._rows[index])
        clip = {modality: self._clip(modality, index, row.pop(f"{modality}_length")) for modality in MODALITIES}
        known = {name: row.pop(name) for name in ("id", "text", "label", "speaker", "dialogue")}
        return Sample(**known, **clip, truth=row)

    def _clip(self, modality: Modality, index: int, length: int) -> np.ndarray:
        stop = self._stops[modality][index]
        return np.array(self._frames[modality][stop - length : stop])  # a copy: the map is read-only, and stays so

    @property
    def audio_dim(self) -> int:
        return self._frames["audio"].shape[1]

    @property
    def vision_dim(self) -> int:
        return self._frames["vision"].shape[1]

    @property
    def labels(self) -> np.ndarray:
        """(N,) float64 scores, or (N,) int64 class indices."""
        return self.table["label"].to_numpy(copy=True)

    def feature_statistics(self, modality: Modality) -> tuple[np.ndarray, np.ndarray]:
        """Mean and population standard deviation of every feature over the real frames of this split.

        Accumulated in float64, a chunk of frames at a time. A feature that does not vary gets the deviation 1, so that
        one can always divide by it; without any frames all deviations are 1 and all means 0.

        Returns:
            (F,) float32 means and (F,) float32 deviations > 0.
        """
        frames = self._frames[modality]
        chunks = [slice(start, start + _CHUNK_FRAMES) for start in range(0, len(frames), _CHUNK_FRAMES)]
        total = np.zeros(frames.shape[1])
        for chunk in chunks:
            total += frames[chunk].sum(axis=0, dtype=np.float64)
        mean = total / max(len(frames), 1)
        squares = np.zeros_like(mean)
        for chunk in chunks:  # a second pass, because E[x^2] - E[x]^2 loses everything at eGeMAPS' scales
            squares += ((frames[chunk] - mean) ** 2).sum(axis=0)
        std = np.sqrt(squares / max(len(frames), 1))
        # Below 1e-6 of the mean there is only float32 rounding; below `tiny` the quotient would overflow.
        std[std <= np.maximum(1e-6 * np.abs(mean), np.finfo(np.float32).tiny)] = 1.0
        return mean.astype(np.float32), std.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Three splits with where they come from."""

    name: str
    task: Task
    splits: dict[str, Split]  # "train", "valid", "test"
    generated: bool  # drawn by `cmpta_lib.synthetic`: says nothing about the paper
    repairs: dict[str, int]  # kind of oddity -> how often it was mended (values or frames)
    sources: dict[str, str]  # file name -> SHA-256
    fingerprint: str  # SHA-256 of task, rows and features: equal content, equal fingerprint, whatever path or name


def write_corpus(
    folder: Path,
    *,
    name: str,
    task: Task,
    splits: Mapping[str, Iterable[Sample]],
    generated: bool,
    sources: Mapping[str, str] | None = None,
    repairs: Mapping[str, int] | None = None,
    origins: Mapping[str, str] | None = None,
) -> Corpus:
    """Store a corpus, one sample in memory at a time, and open it.

    The folder appears complete or not at all. If it exists with the same content (another process was faster), that one
    is opened. NaN and infinite values become 0 and are counted in `Corpus.repairs`.

    Args:
        splits: train, valid and test, each consumed once, in this order.
        repairs: counts to add, read after the last sample, so that the iterables may still be counting.
        origins: split -> what error messages call it, such as its file.
    Raises:
        ValueError: a sample is not as `Sample` says, an id occurs twice in a split, or a width F changes; the message
            names the split or file, the sample and the field.
        FileExistsError: the folder holds something else.
    """
    if set(splits) != set(SPLITS):
        raise ValueError(f"corpus {name}: expected the splits {SPLITS}, but {tuple(splits)} came")
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    work.mkdir()
    try:
        origins = {split: f"corpus {name}, split {split}" for split in SPLITS} | dict(origins or {})
        meta = _write_content(work, task, splits, origins)
        meta["repairs"] = dict(sorted((Counter(meta["repairs"]) + Counter(repairs or {})).items()))
        meta |= {"format": _FORMAT, "name": name, "generated": generated, "sources": dict(sources or {})}
        (work / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1), encoding="utf-8")
        try:
            work.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            if load_corpus(folder).fingerprint != meta["fingerprint"]:
                raise FileExistsError(f"{folder} holds another corpus; delete it or choose another folder") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return load_corpus(folder)


def _write_content(
    folder: Path, task: Task, splits: Mapping[str, Iterable[Sample]], origins: Mapping[str, str]
) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps(asdict(task)).encode())
    rows: list[dict[str, Any]] = []
    dims: dict[str, int] = {}
    repairs: Counter[str] = Counter()
    with ExitStack() as stack:
        files = {modality: stack.enter_context((folder / f"{modality}.f32").open("wb")) for modality in MODALITIES}
        for split in SPLITS:
            ids: set[str] = set()
            for index, sample in enumerate(splits[split]):
                where = f"{origins[split]}, sample {index} (id {short(sample.id)})"
                frames = {m: _clean(where, m, getattr(sample, m), repairs) for m in MODALITIES}
                row = {"split": split} | _row(where, sample, task, frames)
                if sample.id in ids:
                    raise _problem(where, "id", "unique in its split", "used before", "rename or remove one of the two")
                if rows and row.keys() != rows[0].keys():
                    raise _problem(where, "truth", "alike in all samples", short([*sample.truth]), "fill every column")
                ids.add(sample.id)
                rows.append(row)
                digest.update(json.dumps(row, sort_keys=True).encode())
                for modality, content in frames.items():
                    if content.shape[1] != dims.setdefault(modality, content.shape[1]):
                        expected = f"{dims[modality]} features wide, as in the samples before"
                        raise _problem(where, modality, expected, f"{content.shape[1]} wide", "extract all clips alike")
                    digest.update(content.tobytes())
                    files[modality].write(content.tobytes())
            if not ids:
                raise ValueError(f"{origins[split]}: holds no samples; every split needs one or more")
    pd.DataFrame(rows).to_parquet(folder / "table.parquet", index=False)
    return {"task": asdict(task), "dims": dims, "repairs": repairs, "fingerprint": digest.hexdigest()}


def _problem(where: str, field: str, expected: str, came: str, remedy: str) -> ValueError:
    return ValueError(f"{where}: {field!r} must be {expected}, but is {came}; {remedy}")


def _row(where: str, sample: Sample, task: Task, frames: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The sample's line of the table, checked; plain Python values only."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    for name in ("id", "text", "speaker", "dialogue"):
        row[name] = value = getattr(sample, name)
        if value is None and name in ("speaker", "dialogue"):
            continue
        if not isinstance(value, str) or value.encode("utf-8", "replace").decode() != value:
            raise _problem(where, name, "a string of valid Unicode", short(value), "correct it")
    label, is_score = sample.label, task.kind == "regression"
    if isinstance(label, bool) or not isinstance(label, Real if is_score else Integral):
        raise _problem(where, "label", "a number" if is_score else "a class index", short(label), "correct it")
    if not (-1 <= label <= 1 if is_score else 0 <= label < len(task.labels)):
        expected = "in [-1, 1]" if is_score else f"a class index below {len(task.labels)}"
        raise _problem(where, "label", expected, short(label), "rescale scores; write classes as text")
    row["label"] = float(label) if is_score else int(label)
    row |= {f"{modality}_length": len(content) for modality, content in frames.items()}
    for name, value in sample.truth.items():
        value = value.item() if isinstance(value, np.generic) else value
        if name in (*COLUMNS, "split") or type(value) not in (str, int, float):
            raise _problem(where, f"truth[{name}]", "a number or string under a free name", short(value), "change it")
        row[name] = value
    return row


def _clean(where: str, modality: str, frames: np.ndarray, repairs: Counter[str]) -> np.ndarray:
    """(T, F) numbers -> (T, F) finite little-endian float32; counts what had to be set to 0."""
    if not isinstance(frames, np.ndarray) or frames.ndim != 2 or frames.shape[1] == 0 or frames.dtype.kind not in "fiu":
        came = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise _problem(where, modality, "a (T, F) array of numbers, F >= 1", came, "an absent modality is (0, F)")
    with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes inf, and is then counted as one
        frames = np.array(frames, dtype="<f4")
    for kind, found in (("nan", np.isnan(frames)), ("inf", np.isinf(frames))):
        if count := int(found.sum()):
            repairs[f"{modality}_{kind}"] += count
            frames[found] = 0
    return frames


def load_corpus(folder: Path) -> Corpus:
    """Open a corpus that `write_corpus` stored.

    Raises:
        FileNotFoundError: the folder is not a corpus.
        ValueError: it was written in another format, or its feature files do not fit its table.
    """
    folder = Path(folder)
    if not (folder / "meta.json").is_file():
        raise FileNotFoundError(f"{folder} is not a corpus: meta.json is missing; write it with write_corpus")
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    if meta["format"] != _FORMAT:
        raise ValueError(f"{folder}: expected format {_FORMAT}, found {meta['format']}; delete it and convert again")
    task = Task(meta["task"]["kind"], meta["task"]["language"], tuple(meta["task"]["labels"]))
    table = pd.read_parquet(folder / "table.parquet")
    for name in ("speaker", "dialogue"):
        table[name] = table[name].astype(object).where(table[name].notna(), None)
    frames = {modality: _map_frames(folder, modality, table, meta["dims"][modality]) for modality in MODALITIES}
    splits: dict[str, Split] = {}
    start = dict.fromkeys(MODALITIES, 0)
    for split in SPLITS:
        rows = table[table["split"] == split].drop(columns="split")
        stop = {modality: start[modality] + int(rows[f"{modality}_length"].sum()) for modality in MODALITIES}
        parts = [frames[modality][start[modality] : stop[modality]] for modality in MODALITIES]
        splits[split] = Split(split, task, rows, *parts)
        start = stop
    kept = {key: meta[key] for key in ("name", "generated", "repairs", "sources", "fingerprint")}
    return Corpus(task=task, splits=splits, **kept)


def _map_frames(folder: Path, modality: str, table: pd.DataFrame, dim: int) -> np.ndarray:
    path, count = folder / f"{modality}.f32", int(table[f"{modality}_length"].sum())
    if (size := path.stat().st_size) != 4 * count * dim:
        raise ValueError(f"{path}: expected {4 * count * dim} bytes, found {size}; delete {folder} and convert again")
    if count == 0:  # an empty file cannot be mapped
        return np.empty((0, dim), np.float32)
    return np.memmap(path, dtype="<f4", mode="r", shape=(count, dim))


def read_public_pickles(folder: Path, cache: Path) -> Corpus:
    """Open `<name>_{train,valid,test}.pkl`, MELD's public format; converted on first use, below `cache`.

    Each file is a list of dicts `{"label": str | float, "features": {"text", "audio": (T, F), "audio_len",
    "video": (T, F), "video_len"}}`, with "id", "speaker" and "dialogue" where known. Only the first `len` rows are real
    frames; 0 means that the modality is absent. Text labels make it a classification, numbers in [-1, 1] a regression.
    The conversion is named by the files' SHA-256, which every call computes (0.5 s for MELD).

    Raises:
        FileNotFoundError: a split's file is missing.
        ValueError: there are files of several datasets, or one does not conform; the message names file, sample, field.
    """
    name, paths = _public_files(Path(folder))
    sources = {}
    for path in paths.values():
        with path.open("rb") as file:
            sources[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    key = hashlib.sha256(json.dumps([_FORMAT, *sources.values()]).encode()).hexdigest()[:16]
    target = Path(cache) / f"{name}-{key}"
    if target.exists():
        return load_corpus(target)
    repairs: Counter[str] = Counter()
    items = {split: _public_items(path, repairs) for split, path in paths.items()}
    task = _public_task(paths, items)
    return write_corpus(
        target,
        name=name,
        task=task,
        splits={split: _public_samples(paths[split], split, items[split], task, repairs) for split in SPLITS},
        generated=False,
        sources=sources,
        repairs=repairs,
        origins={split: str(path) for split, path in paths.items()},
    )


def _public_files(folder: Path) -> tuple[str, dict[str, Path]]:
    found = {path.name: path for path in sorted(folder.iterdir())} if folder.is_dir() else {}
    names = sorted({match[1] for file in found if (match := _PUBLIC_FILE.fullmatch(file))})
    if len(names) > 1:
        raise ValueError(f"{folder}: expected one dataset, found {', '.join(names)}; give each a folder of its own")
    files = {split: f"{names[0] if names else '<name>'}_{split}.pkl" for split in SPLITS}
    if missing := [file for file in files.values() if file not in found]:
        listed = ", ".join(found) or "nothing"
        raise FileNotFoundError(f"{folder}: expected {' and '.join(missing)}, found {listed}; fetch what is missing")
    return names[0], {split: found[file] for split, file in files.items()}


def _public_items(path: Path, repairs: Counter[str]) -> list[dict]:
    """The file's samples, checked as far as keys, text and the kind of label go."""
    items = safe_pickle.load(path)
    if not isinstance(items, list):
        expected, came = "a list of dicts, one per sample", f"a {type(items).__name__}"
        raise _problem(str(path), "content", expected, came, "save it in MELD's public format")
    for index, item in enumerate(items):
        where = f"{path}, sample {index}"
        _need_keys(where, "item", item, _PUBLIC_FIELDS)
        features = item["features"]
        _need_keys(where, "features", features, _PUBLIC_FEATURES)
        if not isinstance(features["text"], str):
            raise _problem(where, "text", "a string", short(features["text"]), "write '' if nothing is said")
        if not isinstance(item["label"], str | Real) or isinstance(item["label"], bool):
            raise _problem(where, "label", "text or a number", short(item["label"]), "write a class name or a score")
        unknown = [*(item.keys() - _PUBLIC_FIELDS - set(_PUBLIC_KEYS)), *(features.keys() - _PUBLIC_FEATURES)]
        repairs.update(f"ignored_field_{field}" for field in unknown)
    return items


def _need_keys(where: str, field: str, value: object, keys: set[str]) -> None:
    if not isinstance(value, dict) or keys - value.keys():
        came = f"one with {short([*value])}" if isinstance(value, dict) else f"a {type(value).__name__}"
        raise _problem(where, field, f"a dict with {sorted(keys)}", came, "add what is missing")


def _public_task(paths: Mapping[str, Path], items: Mapping[str, list[dict]]) -> Task:
    texts = [item["features"]["text"] for split in SPLITS for item in items[split]]
    language = "zh" if sum(bool(_CJK.search(text)) for text in texts) * 2 > len(texts) else "en"
    classes = {item["label"] for item in items["train"] if isinstance(item["label"], str)}
    for split in SPLITS:
        for index, label in enumerate(item["label"] for item in items[split]):
            if isinstance(label, str) != bool(classes) or (classes and label not in classes):
                expected = f"one of train's labels {sorted(classes)}" if classes else "a number, as in train"
                where = f"{paths[split]}, sample {index}"
                raise _problem(where, "label", expected, short(label), "correct it or add such samples to train")
    if not classes:
        return Task("regression", language)
    return Task("classification", language, MELD_LABELS if classes == set(MELD_LABELS) else tuple(sorted(classes)))


def _public_samples(path: Path, split: str, items: list[dict], task: Task, repairs: Counter[str]) -> Iterator[Sample]:
    """Cut every clip to its true lengths; a clip without an id is named by its place."""
    for index, item in enumerate(items):
        where = f"{path}, sample {index}" + (f" (id {short(item['id'])})" if "id" in item else "")
        keys = {"id": f"{split}_{index:05d}"} | {key: item[key] for key in _PUBLIC_KEYS if item.get(key) is not None}
        clip: dict[str, np.ndarray] = {}
        for source, modality in (("audio", "audio"), ("video", "vision")):
            frames, length = item["features"][source], item["features"][f"{source}_len"]
            if not isinstance(frames, np.ndarray) or frames.ndim != 2:
                came = f"an array of shape {frames.shape}" if isinstance(frames, np.ndarray) else short(frames)
                raise _problem(where, source, "a (T, F) array", came, "keep one zero row if the modality is absent")
            if isinstance(length, bool) or not isinstance(length, Integral) or not 0 <= length <= len(frames):
                expected = f"a whole number from 0 to the array's {len(frames)} rows"
                raise _problem(where, f"{source}_len", expected, short(length), "count the real frames again")
            clip[modality] = frames[:length]
            if cut := int((frames[length:] != 0).any(axis=1).sum()):  # padding, by the file's own length, yet not zero
                repairs[f"{modality}_nonzero_frames_after_length"] += cut
        yield Sample(
            **{key: str(value) if isinstance(value, Integral) else value for key, value in keys.items()},
            **clip,
            text=item["features"]["text"],
            label=task.labels.index(item["label"]) if task.labels else item["label"],
        )
