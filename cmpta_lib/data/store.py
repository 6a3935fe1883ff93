"""A corpus on disk: a folder of four files, written whole or not at all.

`audio.f32` and `vision.f32` hold the real frames of all clips end to end (little-endian float32, no padding, train then
valid then test), `table.parquet` one row per clip, `meta.json` the rest.
"""

from __future__ import annotations

import hashlib
import json
import operator
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from numbers import Integral, Real
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
import pandas as pd

from cmpta_lib.data.corpus import COLUMNS, MODALITIES, SPLITS, Corpus, Sample, Split, Task
from cmpta_lib.data.errors import problem, shown

FORMAT = 1  # raise when the stored form or the conversion changes: older caches are then refused or not found
_LOCK = "lock"  # within a work folder


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
