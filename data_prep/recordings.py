"""A folder of recordings and its labels.csv -> clips in three splits; what `cmpta data clips` made of them -> a corpus."""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from difflib import get_close_matches
from itertools import permutations, starmap
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pandas as pd

from cmpta_lib import files
from cmpta_lib.data.corpus import SPLITS, Corpus, Sample, Task, problem, shown
from cmpta_lib.data.store import write_corpus
from data_prep import features, tasks
from data_prep.features import Extracted, Recipe, Unusable

FORMAT = 1  # of clips.json
MADE, TABLE, OUT = "clips.json", "labels.csv", "features"  # OUT: the folder of what was made, in that of the recordings
COLUMNS = ["file", "label", "text", "split", "speaker", "dialogue"]
SPLIT_OF = {"train": "train", **dict.fromkeys(("valid", "val", "dev", "validation"), "valid"), "test": "test"}
_KNOWN = ".mp4 .m4v .mkv .mov .webm .avi .flv .wmv .mpg .mpeg .mts .3gp .ogv .wav .mp3 .m4a .aac .flac .ogg .opus .aif".split()
_NEAR = 0.78  # a header to a column's name: "lable", "labels", "speaker_id", "dialog"
_FOLDS, _SHARE = 7, 0.15  # one fold of seven is about 15 % of all clips


def some(names: Iterable[object], most: int = 3) -> str:
    """The first of them, and how many more there are."""
    names = list(names)
    return ", ".join(map(shown, names[:most])) + f" and {len(names) - most} more" * (len(names) > most)


def found_in(folder: Path, out: Path | None = None) -> tuple[dict[str, Path], list[str]]:
    """The recordings below a folder (but not in `out`) by their path from there; what of it is not read, in a line or none."""
    found, odd = {}, []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        name = inside.as_posix().encode("utf-8", "backslashreplace").decode()  # a name may be of any bytes
        name = normalize("NFC", name)  # as tables have it: Macs part letters from their accents
        is_recording = path.suffix.lower() in _KNOWN and out not in path.parents
        if is_recording and path.is_file() and name not in found and not any(part.startswith(".") for part in inside.parts):
            found[name] = path
        elif is_recording or (path.is_dir() and (path.is_symlink() or not os.access(path, os.R_OK | os.X_OK))):
            odd.append(name)
    why = "hidden, no file, a folder without permission, or a link to a folder or to nothing"
    return found, [f"not read, as {why}: {some(odd)}"] * bool(odd)


def listed(folder: Path, table: Path, out: Path | None, needed: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """The rows of a table: `COLUMNS` and path (None without a recording), by file in order; and what must be told, in lines.

    Raises ValueError where it is no table in UTF-8 with the `needed` columns, filled, or rows of it cannot be; names them.
    """
    found, told = found_in(folder, out)
    rows, unread = _read(table, needed)
    told += [f"{table}: columns that are not read: {some(unread)}"] * bool(unread)
    whole: dict[str, list[str]] = {}  # by their names without endings
    for name in found:
        whole.setdefault(name.removesuffix(Path(name).suffix), []).append(name)
    names = [normalize("NFC", name.replace("\\", "/")).removeprefix("./") for name in rows["file"]]
    names = [name.removeprefix(f"{folder.as_posix()}/") for name in names]
    matches = [[name] if name in found else whole.get(name, []) for name in names]
    rows["file"] = [match[0] if match else name for match, name in zip(matches, names, strict=True)]
    rows["path"], splits = [found.get(name) for name in rows["file"]], rows["split"].str.casefold()
    # Where a quote is missing, the rows that follow become part of a text.
    begun = [[re.split("[,;\t]", line)[0].strip() for line in text.splitlines()[1:]] for text in rows["text"]]
    is_row = [not {*found, *whole}.isdisjoint(ones) for ones in begun]
    is_asked = "label" in needed  # or else labels and splits are of no use
    faults = {f"{column!r} is empty: fill it, or remove the row": rows[column] == "" for column in needed} | {
        "several recordings have that name: write its ending too": np.array([len(match) > 1 for match in matches]),
        "a row before has it too: keep one": rows["file"].duplicated(),
        "'text' goes on over several lines as if a quote were missing: close it, or write one line": is_row,
        "'label' has a decimal comma: write a point": rows["label"].str.fullmatch(r"[-+]?\d+,\d+") & is_asked,
        "'split' must be train, valid or test: correct it": ~splits.isin([*SPLIT_OF, ""]) & is_asked,
        "'split' is empty, but not in every row: fill it in all or in none": (splits == "") & (splits != "").any() & is_asked,
    }
    for fault, is_one in faults.items():
        if len(which := np.flatnonzero(is_one)):
            more = f" and {len(which) - 1} more" * (len(which) > 1)
            raise ValueError(f"{table}, row {which[0] + 1} ({shown(rows['file'][which[0]])}){more}: {fault}")
    rows["split"] = splits.map(SPLIT_OF).fillna("")
    unlisted, lost = sorted(found.keys() - set(rows["file"])), sorted(rows["file"][rows["path"].isna()])
    told += [f"WARNING: {len(lost)} rows of {table.name} have no recording: {some(lost)}"] * bool(lost)
    told += [f"{len(unlisted)} recordings have no row in {table.name}: {some(unlisted)}"] * bool(unlisted)
    return rows.sort_values("file", ignore_index=True), told


def unlabelled(place: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """A recording or those of a folder, and what its labels.csv says of them, if there is one; as `listed`, by row."""
    found, told = found_in(place, place / OUT) if place.is_dir() else ({place.name: place}, [])
    if not found:
        raise ValueError(f"{place}: expected recordings ({', '.join(_KNOWN[:3])}, ...), found none")
    rows = pd.DataFrame({"file": [*found], "path": [*found.values()]}).reindex(columns=[*COLUMNS, "path"], fill_value="")
    if (place / TABLE).is_file():
        known, told = listed(place, place / TABLE, place / OUT, COLUMNS[:1])
        rows = pd.concat([known.dropna(subset="path"), rows]).drop_duplicates("file").sort_values("file")
    return rows.to_dict("records"), told


def _read(table: Path, needed: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """The cells of a table as text, one column for each of `COLUMNS`, and its other headers; raises as `listed`."""
    with files.reading(table):
        content = table.read_bytes()
    try:
        text = content.decode("utf-8-sig")
        sign = max(",;\t", key=next((line for line in text.splitlines() if line.strip()), "").count)
        cells = pd.read_csv(io.StringIO(text), sep=sign, header=None, dtype=str, keep_default_na=False, skipinitialspace=True)
    except ValueError as error:  # pandas' and the decoder's are such
        todo = 'save it anew as "CSV UTF-8", a cell that holds commas, quotes or new lines in quotes'
        raise ValueError(f"{table}: expected a table in UTF-8, found {' '.join(str(error).split())[:90]}; {todo}") from None
    cells = cells.fillna("").apply(lambda column: column.str.strip())
    cells = cells[(cells != "").any(axis=1)]
    names = [name.casefold() for name in cells.iloc[0]]
    for column in COLUMNS:
        near = get_close_matches(column, set(names) - set(COLUMNS), 1, _NEAR)
        if names.count(column) > 1 or (column not in names and (near or column in needed)):
            expected = f"one column {column!r}, by that very name"
            raise problem(str(table), None, f"a table with {expected}", f"one with {some(names, 8)}", "write its first line so")
    rows = cells[1:].set_axis(names, axis=1).reset_index(drop=True)[[name for name in COLUMNS if name in names]]
    return rows.reindex(columns=COLUMNS, fill_value=""), [name for name in names if name and name not in COLUMNS]


def task_of(rows: pd.DataFrame, about: tasks.Said, where: Path) -> tuple[Task, list[str | float]]:
    """The task of rows with file, label, text and split, and their labels: numbers where most are; raises as `find_task`."""
    values = [tasks.read_number(label) for label in rows["label"]]
    is_text = 2 * values.count(None) >= len(values)
    labels = [text if is_text or value is None else value for text, value in zip(rows["label"], values, strict=True)]
    told = list(zip(rows["split"], (f"{where}, {shown(file)}" for file in rows["file"]), labels, strict=True))
    every = {split: [(clip, label) for its, clip, label in told if its == split] for split in SPLITS}
    return tasks.find_task(where.parent, about, every, [*rows["text"]]), labels


def split(rows: pd.DataFrame, same_people: bool, where: object) -> tuple[np.ndarray, list[str]]:
    """The split of each row of `listed`, and what must be told of it: the given one, or one by people, about 70/15/15.

    A person and a dialogue are in one split only; where that cannot be and `same_people` allows it, clips (dialogues whole)
    are dealt by label. The rows alone decide. Raises ValueError where neither can be.
    """
    rows = rows.assign(speaker=[" ".join(normalize("NFKC", name).casefold().split()) for name in rows["speaker"]])  # Anna, ANNA
    unknown, is_given = int((rows["speaker"] == "").sum()), bool((rows["split"] != "").all())
    groups = _groups(rows, ["speaker", "dialogue"])
    doubt = f"who speaks is not said in {unknown} of {len(rows)} rows (column speaker)" * (unknown > 0)
    told = [f"WARNING: {doubt}: people of train may be in test too"] * (is_given and unknown > 0)
    if is_given:
        heard = {name: {*rows["speaker"][rows["split"] == name]} - {""} for name in SPLITS}
        both = sorted(heard["train"] & (heard["valid"] | heard["test"]))
        doubt = f"people of train are in valid or test too ({some(both)})" * bool(both)
        in_two = sorted(heard["valid"] & heard["test"]) + [
            one for one, splits in rows.groupby("dialogue")["split"].nunique().items() if one and splits > 1
        ]
        told += [f"WARNING: people of valid who are in test too, or dialogues in two splits: {some(in_two)}"] * bool(in_two)
    elif not doubt and len(set(groups)) < len(SPLITS):
        doubt = f"there are fewer than three people, or groups of people who share dialogues: {len(set(groups))}"
    if doubt and not same_people:
        todo = "correct the column split" if is_given else "fill the column speaker, or add people"
        raise ValueError(f"{where}: {doubt}, so test would not be on new people; {todo}, or accept that by --same-people")
    if doubt:
        told, groups = [f"WARNING: {doubt}: scores say nothing about new people"], _groups(rows, ["dialogue"])
    return (rows["split"].to_numpy() if is_given else _dealt(rows["label"], groups, where)), told


def _groups(rows: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """A number for each row; rows that share a cell that is not empty, themselves or through others, have the same."""
    group, before = np.arange(len(rows)), np.array([])
    while not np.array_equal(group, before):
        before = group
        for column in columns:
            key = rows[column].where(rows[column] != "", [f"\0{row}" for row in range(len(rows))])
            group = pd.Series(group).groupby(key.to_numpy()).transform("min").to_numpy()
    return group


def _dealt(labels: pd.Series, groups: np.ndarray, where: object) -> np.ndarray:
    """A split for each clip, groups whole: every label in train where that can be, then as near to the shares as can be."""
    from sklearn.model_selection import StratifiedGroupKFold

    strata, scores = pd.factorize(labels, sort=True)[0], pd.to_numeric(labels, errors="coerce")
    if 2 * scores.notna().sum() > len(scores) and (odd := labels[scores.isna()]).any():
        raise ValueError(f"{where}: most labels are numbers, and {some(odd)} none; correct them, or remove their rows")
    if scores.notna().all() and (scores.nunique() > 10 or (scores % 1).any()):  # else they may be classes
        strata = pd.qcut(scores, 4, labels=False, duplicates="drop").to_numpy()
    number = min(_FOLDS, len(set(groups)), int(np.bincount(strata).max(initial=0)))
    if number < len(SPLITS):
        raise ValueError(f"{where}: {len(labels)} clips, at most {number} of a label or dialogue, are too few for three splits")
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of rare labels, which `cost` looks after
        folds = [fold for _, fold in StratifiedGroupKFold(number).split(strata, strata, groups)]
    counts = np.array([np.bincount(strata[fold], minlength=strata.max() + 1) for fold in folds])  # (folds, labels)

    def cost(chosen: Iterable[int]) -> tuple[int, float]:
        parts = counts[list(chosen)]
        off = np.abs(parts.sum(1) / len(strata) - _SHARE).sum() + np.abs(parts / counts.sum(0) - _SHARE).mean()
        return int((parts.sum(0) == counts.sum(0)).sum()), round(float(off), 9)

    splits = np.full(len(strata), SPLITS[0], object)
    for name, fold in zip(SPLITS[1:], min(permutations(range(number), 2), key=cost), strict=True):
        splits[folds[fold]] = name
    return splits


def attempt(path: Path, recipe: Recipe) -> Extracted | Unusable:
    """As `extract`, but what cannot be used is returned, whatever a library says of it; other errors are ours, and raised."""
    try:
        return features.extract(path, recipe)
    except Unusable as error:
        return error
    except Exception as error:
        is_a_library_s = type(error).__module__.partition(".")[0] in ("av", "cv2")
        if not is_a_library_s and not isinstance(error, OSError | ValueError | RuntimeError | MemoryError | ArithmeticError):
            raise
        said = " ".join(str(error).split())[:120]
        return Unusable(f"{path} cannot be read ({type(error).__name__}: {said}); convert it")


def each(work: Callable[..., Any], calls: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[Any]:
    """`work(*call)` of each call, in order, in so many processes of one thread (0: in this one).

    Where a process dies, the result is `Unusable`; the first item of a call names it.
    """
    own, pools = threading.local(), list[ProcessPoolExecutor]()  # a thread waits for a process of its own

    def one(call: tuple[Any, ...]) -> Any:
        if getattr(own, "pool", None) is None:  # at first, and when it died
            own.pool = ProcessPoolExecutor(1, get_context("spawn"), files.end_with_parent, (os.getpid(),))
            pools.append(own.pool)
        try:
            return own.pool.submit(work, *call).result()
        except BrokenProcessPool:
            own.pool = None
            return Unusable(f"{call[0]}: reading it ended its process (a library crashed, or memory ran out); convert it")

    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1") if jobs else {}  # of those to come
    threads = ThreadPoolExecutor(max(jobs, 1))
    try:
        yield from threads.map(one, calls) if jobs else starmap(work, calls)
    finally:
        for pool in pools:  # before its thread, with which Linux would kill its process
            pool.shutdown(cancel_futures=True)
        threads.shutdown(cancel_futures=True)


def made_in(folder: Path) -> Path | None:
    """clips.json of what `cmpta data clips` made, in this folder of features or recordings; None where there is none."""
    places = folder / MADE, folder / OUT / MADE
    return next((one for one in places if one.with_name("clips").is_dir() and one.is_file()), None)


def opened(made: Path) -> dict[str, Any]:
    """What clips.json says, and the hashes of all files as "sources"; raises Damaged where one is not what was written."""
    remedy = "call `cmpta data clips` on the recordings again"
    content = files.read_checksummed(made, remedy)
    if content.get("format") != FORMAT:
        raise files.Damaged(f"{made}: expected format {FORMAT}, found {shown(content.get('format'))}; {remedy}")
    sources = {clip["features"]: clip["sha256"] for clip in content["clips"]}
    files.check(made.with_name("clips"), sources, remedy)
    return content | {"sources": {MADE: files.sha256(made)} | sources}


def need_current(content: Mapping[str, Any], made: Path) -> None:
    """Raise ValueError where labels.csv or what lies in a recording's place is another than when features were made."""
    if not content or made.parent.name != OUT:
        return
    folder, hashes = made.parents[1], files.HashCache(made.with_name(".sources"))  # each is read once
    known = {folder / TABLE: content["labels"]} if content["labels_here"] else {}
    for clip in content["clips"]:
        known |= {(folder / clip["file"]).with_name(name): digest for name, digest in clip["source"].items()}
    is_other = {one: one.is_file() and hashes.sha256(one) != digest for one, digest in known.items()}
    if changed := [one.relative_to(folder).as_posix() for one in known if is_other[one]]:
        raise ValueError(f"{folder}: {some(changed)} changed since features were made; call `cmpta data clips` again")
    with suppress(OSError):
        hashes.save()


def sample_of(clip: Mapping[str, Any], made: Path, label: float | int | None = None) -> Sample:
    """A clip of `opened`, with its frames."""
    from safetensors.numpy import load_file

    frames, who = load_file(made.with_name("clips") / clip["features"]), (clip["speaker"] or None, clip["dialogue"] or None)
    return Sample(clip["file"], clip["text"], frames["audio"], frames["vision"], label, *who)


def convert(content: Mapping[str, Any], made: Path, about: tasks.Said, sources: Mapping[str, str], target: Path) -> Corpus:
    """Store what `opened` gave as a corpus in `target`; raises ValueError where features or labels cannot be trained on."""
    Recipe.from_stored(content["recipe"], str(made))  # else a new clip would have other features than these
    task, labels = task_of(pd.DataFrame(content["clips"]), about, made)
    calls: dict[str, list[Any]] = {name: [] for name in SPLITS}
    for clip, label in zip(content["clips"], labels, strict=True):
        calls[clip["split"]].append((clip, made, tasks.label_of(task, label)))
    splits = {name: starmap(sample_of, some) for name, some in calls.items()}
    repairs: Counter[str] = sum((Counter(clip["notes"]) for clip in content["clips"]), Counter())
    known = {"name": content["name"], "task": task, "generated": False, "sources": sources, "features": content["recipe"]}
    return write_corpus(target, splits=splits, repairs=repairs, **known)
