"""A corpus on disk: a folder of four files, written whole or not at all.

`audio.f32` and `vision.f32` hold the real frames of all clips end to end (little-endian float32, no padding, train then
valid then test), `table.parquet` one row per clip, `meta.json` the rest, with a checksum of its own and the hashes of the
other three, so that no changed file passes for the corpus of that fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from functools import lru_cache
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np

from cmpta_lib import files
from cmpta_lib.data.corpus import (
    COLUMNS,
    MODALITIES,
    SPLITS,
    Corpus,
    Modality,
    Sample,
    Split,
    Task,
    check_sample,
    problem,
    shown,
)

FORMAT = 2  # raise when the stored form or the conversion changes: older caches are then refused or not found
META = "meta.json"
CONTENT = ("audio.f32", "vision.f32", "table.parquet")  # beside meta.json, which holds their hashes
SMALL_BYTES = 256_000_000  # hashed in 0.3 s or less; SIMS-V2 has ten times as much


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
    features: Mapping[str, Any] | None = None,
) -> Corpus:
    """Store a corpus, one sample in memory at a time, and open it.

    The folder appears complete or not at all. If it exists with the same content (another process was faster), that one
    is opened. NaN, infinite and other unusable values (`corpus.HUGE`) become 0 and are counted in `Corpus.repairs`.

    Args:
        splits: train, valid and test, each consumed once, in this order.
        repairs: counts to add, read after the last sample, so that the iterables may still be counting.
        origins: split -> what error messages call it, such as its file.
        features: which sets the frames are of, as `Corpus.features`; part of the fingerprint.
    Raises:
        ValueError: a sample is not as `Sample` says, an id occurs twice in a split, or a width F changes; the message
            names the split or file, the sample and the field.
        FileExistsError: the folder holds something else.
        OSError: it cannot be written; the message names it and says what to do.
    """
    if set(splits) != set(SPLITS):
        raise ValueError(f"corpus {name}: expected the splits {SPLITS}, but {tuple(splits)} came")
    folder, origins = Path(folder), {split: f"corpus {name}, split {split}" for split in SPLITS} | dict(origins or {})
    with files.building(folder) as draft:
        meta = _write_content(draft, task, splits, origins, features or {})
        meta["repairs"] = dict(sorted((meta["repairs"] + Counter(repairs or {})).items()))
        meta |= {"format": FORMAT, "name": name, "generated": generated, "sources": dict(sources or {})}
        files.write_text(draft / META, files.checksummed(meta))
    corpus = load_corpus(folder)
    if corpus.fingerprint != meta["fingerprint"]:
        raise FileExistsError(f"{folder} holds another corpus; delete it or choose another folder")
    return corpus


def _write_content(
    folder: Path, task: Task, splits: Mapping[str, Iterable[Sample]], origins: Mapping[str, str], features: Mapping[str, Any]
) -> dict[str, Any]:
    """Write all but meta.json; returns what that says of it."""
    import pandas as pd  # here and in load_corpus: who opens no corpus, as a loaded run, starts without

    digest = _begun(task, features)
    rows: list[dict[str, Any]] = []
    widths: dict[Modality, int] = {}
    repairs: Counter[str] = Counter()
    with ExitStack() as stack:
        outputs = {modality: stack.enter_context((folder / f"{modality}.f32").open("wb")) for modality in MODALITIES}
        for split in SPLITS:
            ids: set[str] = set()
            for index, given in enumerate(splits[split]):
                where = f"{origins[split]}, sample {index}"
                sample = check_sample(given, where, task, widths, repairs, labelled=True, like="in the samples before")
                where = f"{where} (id {shown(sample.id)})"
                row = {"split": split} | _row(where, sample, rows[0] if rows else {})
                if sample.id in ids:
                    raise problem(where, "id", "unique in its split", "used before", "rename or remove one of the two")
                if rows and row.keys() != rows[0].keys():
                    raise problem(where, "extra", "alike in all samples", short([*sample.extra]), "fill every column")
                ids.add(sample.id)
                rows.append(row)
                frames = {modality: getattr(sample, modality) for modality in outputs}
                _add(digest, row, frames.values())
                for modality, output in outputs.items():
                    widths.setdefault(modality, frames[modality].shape[1])
                    output.write(frames[modality].tobytes())
            if not ids:
                raise ValueError(f"{origins[split]}: holds no samples; every split needs one or more")
    pd.DataFrame(rows).to_parquet(folder / "table.parquet", index=False)
    found = {"dims": widths, "repairs": repairs, "fingerprint": digest.hexdigest()}
    found |= {"features": dict(features)} if features else {}
    return {"task": task.stored(), "files": files.hashes(folder, CONTENT), **found}


def _begun(task: Task, features: Mapping[str, Any]) -> Any:
    """A fingerprint before its first clip: what the numbers of clips mean."""
    return hashlib.sha256((json.dumps(task.stored()) + (json.dumps(features, sort_keys=True) if features else "")).encode())


def _add(digest: Any, row: Mapping[str, Any], frames: Iterable[np.ndarray]) -> None:
    """Add a clip's line of the table and its frames to a fingerprint."""
    digest.update(json.dumps(row, sort_keys=True).encode())
    for content in frames:
        digest.update(content.tobytes())


def _row(where: str, sample: Sample, before: Mapping[str, Any]) -> dict[str, Any]:
    """A checked sample's line of the table; plain Python values only, of the types of the first line `before`."""
    lengths = {f"{modality}_length": len(getattr(sample, modality)) for modality in MODALITIES}
    row: dict[str, Any] = {name: lengths[name] if name in lengths else getattr(sample, name) for name in COLUMNS}
    for name, value in sample.extra.items():
        value = value.item() if isinstance(value, np.generic) else value
        if name in (*COLUMNS, "split") or type(value) not in (str, int, float):
            raise problem(where, f"extra[{name}]", "a number or string under a free name", shown(value), "change it")
        if (kind := type(before.get(name, value))) is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:  # stored as the first's, it would be another value than its fingerprint says
            raise problem(where, f"extra[{name}]", f"as in the first sample, of type {kind.__name__}", shown(value), "change it")
        row[name] = value
    return row


def load_corpus(
    folder: Path, *, deep: bool = False, name: str = "", sources: Mapping[str, str] | None = None
) -> Corpus:
    """Open a corpus that `write_corpus` stored, and check that its files are the ones that were written.

    Its fingerprint is that of what it holds, whatever meta.json says. Files of `SMALL_BYTES` together are hashed in every
    call (0.1 s). Larger ones are hashed once, and again when a size or a time of change is another than it was then; a bit
    that the disk itself lost shows only in a `deep` call.

    Args:
        deep: read the files whatever their sizes and times.
        name, sources: what the corpus must be called and made of, if anything.
    Raises:
        FileNotFoundError: there is no such folder.
        Damaged: a file is missing, damaged, edited, of another corpus or of another version of this format; names it and
            says what to do.
        PermissionError: a file may not be read; names it.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"{folder} is not there: no corpus was written to it; write it with write_corpus")
    remedy = f"remove the folder {folder} and call again"
    with files.reading(folder):
        meta = files.read_checksummed(folder / META, remedy)
        if (stored := meta.get("format")) != FORMAT:
            raise files.Damaged(f"{folder / META}: expected format {FORMAT}, found {shown(stored)}; {remedy}")
        known = _check_content(folder, meta, remedy, deep)
    try:
        corpus = _opened(folder, meta)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise files.Damaged(f"{folder / META} does not describe the files beside it ({type(error).__name__}); {remedy}") from None
    if deep or known.is_new:
        if _fingerprint(corpus) != corpus.fingerprint:
            raise files.Damaged(f"{folder / META} is the record of other clips: their fingerprint is not its own; {remedy}")
        with suppress(OSError):  # without it, this is found out in every call
            known.save()
    if name not in ("", corpus.name) or sources not in (None, corpus.sources):
        raise files.Damaged(f"{folder} holds the corpus '{corpus.name}' of other files than '{name}'; {remedy}")
    return corpus


def _opened(folder: Path, meta: Mapping[str, Any]) -> Corpus:
    """The corpus that meta.json describes."""
    import pandas as pd

    task = Task.from_stored(meta["task"])
    kept = {key: meta[key] for key in ("name", "generated", "repairs", "sources", "fingerprint")}
    kept["features"] = dict(meta.get("features") or {})
    table = pd.read_parquet(folder / "table.parquet")
    for column in ("speaker", "dialogue"):
        table[column] = table[column].astype(object).where(table[column].notna(), None)
    parts = [table[table["split"] == split].drop(columns="split") for split in SPLITS]
    frames: dict[str, list[np.ndarray]] = {}  # modality -> those of each split
    for modality in MODALITIES:
        stops = np.cumsum([rows[f"{modality}_length"].sum() for rows in parts])
        # An empty file cannot be mapped.
        mapped = np.memmap(folder / f"{modality}.f32", "<f4", "r") if stops[-1] else np.empty(0, np.float32)
        frames[modality] = np.split(mapped.reshape(-1, meta["dims"][modality]), stops[:-1])
    every = zip(SPLITS, parts, *frames.values(), strict=True)
    return Corpus(task=task, splits={split: Split(split, task, *contents) for split, *contents in every}, **kept)


def _fingerprint(corpus: Corpus) -> str:
    """That of a corpus' clips as they are stored now."""
    digest = _begun(corpus.task, corpus.features)
    for name, split in corpus.splits.items():
        starts = dict.fromkeys(MODALITIES, 0)
        for row in split.table.to_dict("records"):
            stops = {modality: start + row[f"{modality}_length"] for modality, start in starts.items()}
            _add(digest, {"split": name} | row, (split._frames[one][starts[one] : stops[one]] for one in MODALITIES))
            starts = stops
    return str(digest.hexdigest())


def kept_corpus(folder: Path) -> Corpus:
    """As `load_corpus`, and the same object while none of its files is touched: a worker makes many runs on a corpus."""
    try:
        stamps = tuple(tuple(files.stamp(folder / name)) for name in (META, *CONTENT))
    except OSError:  # `load_corpus` says what is wrong
        return load_corpus(folder)
    return _kept(folder, stamps)


@lru_cache(maxsize=2)  # the paper has two corpora, and its runs take turns on them
def _kept(folder: Path, stamps: tuple[tuple[int, ...], ...]) -> Corpus:
    return load_corpus(folder)


def _check_content(folder: Path, meta: Mapping[str, Any], remedy: str, deep: bool) -> files.HashCache:
    """Compare the files with their hashes; returns what is known: something is new unless record and clips were compared."""
    cache = files.HashCache(folder.with_name(f"{folder.name}.checked"))  # beside it: the folder holds what was written
    is_small = sum(path.stat().st_size for name in CONTENT if (path := folder / name).exists()) <= SMALL_BYTES
    recorded = dict(meta.get("files") or {})
    files.check(folder, {name: recorded.get(name, "") for name in CONTENT}, remedy, None if deep or is_small else cache)
    cache.sha256(folder / META)
    return cache
