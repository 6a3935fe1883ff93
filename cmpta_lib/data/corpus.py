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
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

Kind = Literal["regression", "classification"]
Modality = Literal["audio", "vision"]
SPLITS = ("train", "valid", "test")
MODALITIES: tuple[Modality, ...] = get_args(Modality)
COLUMNS = ("id", "text", "label", "speaker", "dialogue", "audio_length", "vision_length")

FORMAT = 1  # raise when the stored form or the conversion changes: older caches are then refused or not found
_LOCK = "lock"  # within a work folder
_CHUNK_FRAMES = 16_384  # 23 MB in float64 at SIMS-V2's 177 vision features


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
    extra: Mapping[str, float | int | str] = field(default_factory=dict)  # what a generator or an annotation file knows


class Split(Sequence[Sample]):
    """One split, read sample by sample from mapped features.

    Args:
        table: one row per clip in reading order, the columns `COLUMNS`, then those of `Sample.extra`.
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
        return Sample(**known, **clip, extra=row)

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
    generated: bool  # drawn by `cmpta_lib.embedded.synthetic`: says nothing about the paper
    repairs: dict[str, int]  # kind of oddity -> how often it was mended (values or frames)
    sources: dict[str, str]  # file name -> SHA-256
    fingerprint: str  # SHA-256 of task, rows and features: equal content, equal fingerprint, whatever path or name

    @property
    def has_known_truth(self) -> bool:
        """Whether the generator left its Bayes-optimal answers and true cue windows in the tables."""
        return "bayes_all" in self.splits["test"].table


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
    remove_leftovers(folder)
    with _work_folder(folder) as work:
        origins = {split: f"corpus {name}, split {split}" for split in SPLITS} | dict(origins or {})
        meta = _write_content(work, task, splits, origins)
        meta["repairs"] = dict(sorted((Counter(meta["repairs"]) + Counter(repairs or {})).items()))
        meta |= {"format": FORMAT, "name": name, "generated": generated, "sources": dict(sources or {})}
        (work / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1), encoding="utf-8")
        try:
            work.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            if load_corpus(folder).fingerprint != meta["fingerprint"]:
                raise FileExistsError(f"{folder} holds another corpus; delete it or choose another folder") from None
    return load_corpus(folder)


@contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, within one that is locked for as long as this process writes, and then removed.

    The lock lies around the content, so that the content can be renamed while it is held.
    """
    from filelock import FileLock, Timeout

    while True:
        outer = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        outer.mkdir()
        lock = FileLock(outer / _LOCK)
        try:
            lock.acquire(timeout=0)
        except (Timeout, FileNotFoundError):  # before it was locked, another writer took the folder for a leftover
            continue
        if (outer / _LOCK).exists():
            break
        lock.release()
    try:
        (outer / "corpus").mkdir()
        yield outer / "corpus"
    finally:
        lock.release()
        shutil.rmtree(outer, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of a corpus at `folder`; those that still write hold a lock and are spared."""
    from filelock import FileLock, Timeout

    pattern = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{32}}")
    for sibling in list(folder.parent.iterdir()) if folder.parent.is_dir() else ():
        if not pattern.fullmatch(sibling.name):
            continue
        try:
            with FileLock(sibling / _LOCK).acquire(timeout=0):
                shutil.rmtree(sibling, ignore_errors=True)
        except (Timeout, OSError):  # it is in use, just gone, or somebody else's
            pass


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
                where = f"{origins[split]}, sample {index} (id {shown(sample.id)})"
                frames = {m: _clean(where, m, getattr(sample, m), repairs) for m in MODALITIES}
                row = {"split": split} | _row(where, sample, task, frames)
                if sample.id in ids:
                    raise problem(where, "id", "unique in its split", "used before", "rename or remove one of the two")
                if rows and row.keys() != rows[0].keys():
                    raise problem(where, "extra", "alike in all samples", short([*sample.extra]), "fill every column")
                ids.add(sample.id)
                rows.append(row)
                digest.update(json.dumps(row, sort_keys=True).encode())
                for modality, content in frames.items():
                    if content.shape[1] != dims.setdefault(modality, content.shape[1]):
                        expected = f"{dims[modality]} features wide, as in the samples before"
                        raise problem(where, modality, expected, f"{content.shape[1]} wide", "extract all clips alike")
                    digest.update(content.tobytes())
                    files[modality].write(content.tobytes())
            if not ids:
                raise ValueError(f"{origins[split]}: holds no samples; every split needs one or more")
    pd.DataFrame(rows).to_parquet(folder / "table.parquet", index=False)
    return {"task": asdict(task), "dims": dims, "repairs": repairs, "fingerprint": digest.hexdigest()}


def problem(where: str, field: str | None, expected: str, came: str, remedy: str) -> ValueError:
    """An error that names file, sample and, unless it is about the whole of them, the field, and says what to do."""
    subject = where if field is None else f"{where}: {field!r}"
    return ValueError(f"{subject} must be {expected}, but is {came}; {remedy}")


def shown(value: object) -> str:
    """A value that a file gave, for a message.

    Of containers and arrays the kind and size only: a small file can hold some that take hours and GB to print.
    """
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    if isinstance(value, list | tuple | dict | set | frozenset):
        return f"a {type(value).__name__} of length {len(value)}"
    return short(value[:100]) if isinstance(value, str | bytes | bytearray) else short(value)


def _row(where: str, sample: Sample, task: Task, frames: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The sample's line of the table, checked; plain Python values only."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    for name in ("id", "text", "speaker", "dialogue"):
        row[name] = value = getattr(sample, name)
        if value is None and name in ("speaker", "dialogue"):
            continue
        if not isinstance(value, str) or value.encode("utf-8", "replace").decode() != value:
            raise problem(where, name, "a string of valid Unicode", shown(value), "correct it")
    label, is_score = sample.label, task.kind == "regression"
    if isinstance(label, bool) or not isinstance(label, Real if is_score else Integral):
        raise problem(where, "label", "a number" if is_score else "a class index", shown(label), "correct it")
    if not (-1 <= label <= 1 if is_score else 0 <= label < len(task.labels)):
        expected = "in [-1, 1]" if is_score else f"a class index below {len(task.labels)}"
        raise problem(where, "label", expected, shown(label), "rescale scores; write classes as text")
    row["label"] = float(label) if is_score else int(label)
    row |= {f"{modality}_length": len(content) for modality, content in frames.items()}
    for name, value in sample.extra.items():
        value = value.item() if isinstance(value, np.generic) else value
        if name in (*COLUMNS, "split") or type(value) not in (str, int, float):
            raise problem(where, f"extra[{name}]", "a number or string under a free name", shown(value), "change it")
        row[name] = value
    return row


def _clean(where: str, modality: str, frames: np.ndarray, repairs: Counter[str]) -> np.ndarray:
    """(T, F) numbers -> (T, F) finite little-endian float32; counts what had to be set to 0."""
    if not isinstance(frames, np.ndarray) or frames.ndim != 2 or frames.shape[1] == 0 or frames.dtype.kind not in "fiu":
        expected = "a (T, F) array of numbers, F >= 1"
        raise problem(where, modality, expected, shown(frames), "an absent modality is (0, F)")
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
        ValueError: it was written in another format, or its files are damaged or do not fit each other; the message
            names the file.
    """
    folder = Path(folder)
    if not (folder / "meta.json").is_file():
        raise FileNotFoundError(f"{folder} is not a corpus: meta.json is missing; write it with write_corpus")
    with _naming(folder / "meta.json"):
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        found = meta["format"]
    if found != FORMAT:
        raise ValueError(f"{folder}: expected format {FORMAT}, found {found}; delete it and convert again")
    with _naming(folder / "meta.json"):
        task = Task(meta["task"]["kind"], meta["task"]["language"], tuple(meta["task"]["labels"]))
        kept = {key: meta[key] for key in ("name", "generated", "repairs", "sources", "fingerprint")}
        dims = {modality: operator.index(meta["dims"][modality]) for modality in MODALITIES}
    with _naming(folder / "table.parquet"):
        table = pd.read_parquet(folder / "table.parquet")
        if missing := {"split", *COLUMNS} - set(table):
            raise ValueError(f"no columns {', '.join(sorted(missing))}")
        for name in ("speaker", "dialogue"):
            table[name] = table[name].astype(object).where(table[name].notna(), None)
        parts = {split: table[table["split"] == split].drop(columns="split") for split in SPLITS}
        lengths = {m: {split: int(rows[f"{m}_length"].sum()) for split, rows in parts.items()} for m in MODALITIES}
    frames = {m: _map_frames(folder, m, sum(lengths[m].values()), dims[m]) for m in MODALITIES}
    splits: dict[str, Split] = {}
    start = dict.fromkeys(MODALITIES, 0)
    for split, rows in parts.items():
        stop = {modality: start[modality] + lengths[modality][split] for modality in MODALITIES}
        splits[split] = Split(split, task, rows, *(frames[m][start[m] : stop[m]] for m in MODALITIES))
        start = stop
    return Corpus(task=task, splits=splits, **kept)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say of which stored file an error comes, and what to do about it."""
    try:
        yield
    except PermissionError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} cannot be read ({reason}); delete {path.parent} and convert again") from error


def _map_frames(folder: Path, modality: str, count: int, dim: int) -> np.ndarray:
    path = folder / f"{modality}.f32"
    size = f"{path.stat().st_size} bytes" if path.is_file() else "no such file"
    if size != f"{4 * count * dim} bytes":
        raise ValueError(f"{path}: expected {4 * count * dim} bytes, found {size}; delete {folder} and convert again")
    if count == 0:  # an empty file cannot be mapped
        return np.empty((0, dim), np.float32)
    return np.memmap(path, dtype="<f4", mode="r", shape=(count, dim))
