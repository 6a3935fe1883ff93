"""MELD's public features and official annotations -> the data contract: `python -m data_prep.meld [--from FOLDER]`.

The features come without speaker, dialogue or time. Each is joined to its row of the official table by its place, and
text and label must agree there: a file that lacks one row would otherwise shift thousands of clips to other words.
"""

from __future__ import annotations

import io
import re
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pandas as pd

from cmpta_lib.data.corpus import SPLITS, Corpus, Sample, Task, problem, shown
from cmpta_lib.data.store import load_corpus
from cmpta_lib.paper import MELD_LABELS, TABLE1
from data_prep import catalogue, hub, published
from data_prep.public_pickles import KEYS, read_items, read_samples

NAME = "meld"
TASK = Task("classification", "en", MELD_LABELS)
TABLES = dict(zip(SPLITS, (file.name for file in catalogue.MELD_ANNOTATIONS.files), strict=True))
FEATURES = dict(zip(SPLITS, (file.name for file in catalogue.MELD.files), strict=True))
_OFFICIAL = f"use the official table from {catalogue.MELD_ANNOTATIONS.page}"
_LEFT_OUT = "keep such a clip, with lengths 0, or take the pickles as your own data: --data FOLDER"
_LABEL_CHARACTERS = 10  # in an error
_WHOLE = ("Dialogue_ID", "Utterance_ID", "Season", "Episode")
_COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", *_WHOLE, "StartTime", "EndTime")
_EXTRA = {"utterance": "Utterance_ID", "season": "Season", "episode": "Episode"} | {
    "start_s": "StartTime", "end_s": "EndTime", "sentiment": "Sentiment"
}  # fmt: skip
_TIME = re.compile("([0-9]{1,3}):([0-9]{2}):([0-9]{2})[,.]([0-9]{1,9})")
_SENTIMENTS = ("neutral", "positive", "negative")
# Older copies hold bytes of Windows-1252 read as Latin-1, beside characters that are right: hence one by one.
_MENDED = str.maketrans(
    {code: bytes([code]).decode("cp1252") for code in range(0x80, 0xA0) if code not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)}
    | {"\xa0": " "}
)


def prepare(cache: Path, source: Path | None = None, annotations: Path | None = None) -> Corpus:
    """The corpus below `cache`; fetched and converted when it is not there yet.

    Args:
        source: folder with one's own copy of the feature files, used where they lie.
        annotations: folder with the three official tables; without it those in `source` count, or else they are fetched.
    Raises:
        ValueError: a file does not conform, or features and annotations do not belong together; the message names the
            rows.
        OSError: a file cannot be had, or the disk is full; the message says how to get it by hand.
        FileExistsError: the cache holds a corpus of other files.
    """
    target, raw = Path(cache) / "data" / NAME, Path(cache) / "raw" / NAME
    if target.exists() and source is None and annotations is None:
        return load_corpus(target)
    features = hub.fetch(catalogue.MELD, raw) if source is None else hub.find(catalogue.MELD, source)
    if annotations is not None:
        tables = hub.find(catalogue.MELD_ANNOTATIONS, annotations)
    elif features.generated or (source is not None and hub.holds(catalogue.MELD_ANNOTATIONS, source)):
        tables = hub.find(catalogue.MELD_ANNOTATIONS, features.folder)
    else:
        tables = hub.fetch(catalogue.MELD_ANNOTATIONS, raw / "annotations")

    def read(split: str, repairs: Counter[str]) -> Iterator[Sample]:
        path, table_path = features.paths[FEATURES[split]], tables.paths[TABLES[split]]
        table = read_annotations(table_path, repairs)
        items = read_items(path, repairs)
        _require_agreement(path, items, table_path, table, repairs)
        features.require_size(split, len(items), getattr(TABLE1["MELD"], split), str(path), _LEFT_OUT)
        return _samples(path, split, items, table, repairs)

    size_bytes = sum(path.stat().st_size for path in features.paths.values())
    origins = {split: str(features.paths[FEATURES[split]]) for split in SPLITS}
    return published.converted(target, TASK, [features, tables], read, origins, size_bytes)


def _samples(path: Path, split: str, items: list[dict], table: pd.DataFrame, repairs: Counter[str]) -> Iterator[Sample]:
    samples = read_samples(path, split, items, TASK, repairs)
    for item, sample, row in zip(items, samples, table.to_dict("records"), strict=True):
        repairs.update(f"ignored_field_{key}" for key in KEYS if item.get(key) is not None)  # the table knows better
        for modality in ("audio", "vision"):
            if not len(getattr(sample, modality)):
                repairs[f"{modality}_absent"] += 1
        extra = {name: row[column] for name, column in _EXTRA.items()}
        dialogue = f"{split}_dia{row['Dialogue_ID']}"
        yield replace(sample, id=row["name"], text=row["Utterance"], speaker=row["Speaker"], dialogue=dialogue, extra=extra)


# The official tables -------------------------------------------------------------------------------------------------
def mend(text: str) -> str:
    """Put right what older copies of MELD garbled: \\x92 is a quotation mark there, \\xa0 a space."""
    return text.translate(_MENDED)


def read_annotations(path: Path, repairs: Counter[str]) -> pd.DataFrame:
    """One official table: texts mended, numbers whole, times in seconds, `line` in the file, `name` such as dia12_utt3.

    Raises:
        ValueError: a column is missing or a field does not conform; the message names file, line and column.
    """
    table = _read_columns(path)
    for column in ("Utterance", "Speaker"):
        mended = table[column].map(mend)
        repairs[f"annotation_{column.lower()}_mended"] += int((mended != table[column]).sum())
        table[column] = mended
    for column in _WHOLE:
        _require(path, table, column, table[column].str.fullmatch("[0-9]{1,9}"), "a whole number of 9 digits at most")
        table[column] = table[column].astype("int64")
    for column in ("StartTime", "EndTime"):
        _require(path, table, column, table[column].str.fullmatch(_TIME), "a time such as 00:16:16,059")
        table[column] = table[column].map(_seconds).astype("float64")
    for column, known in (("Emotion", MELD_LABELS), ("Sentiment", _SENTIMENTS)):
        _require(path, table, column, table[column].isin(known), f"one of {', '.join(known)}")
    _require(path, table, "Speaker", table["Speaker"].str.strip() != "", "a name")
    table["name"] = [f"dia{d}_utt{u}" for d, u in zip(table["Dialogue_ID"], table["Utterance_ID"], strict=True)]
    is_new = ~table["name"].duplicated()
    _require(path, table, None, is_new, "of another Dialogue_ID and Utterance_ID than all before")
    return table


def _read_columns(path: Path) -> pd.DataFrame:
    """The named columns as text, and `line`."""
    try:
        # Everything as text: pandas would read the utterances "None" and "nan" as missing. The header as a row like any
        # other, because pandas would rename what is there twice, and shift all columns by one that it does not name.
        text = io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")
        content = pd.read_csv(text, header=None, dtype=str, keep_default_na=False).fillna("")
    except pd.errors.EmptyDataError:
        raise _unlike(path, "a table, but the file is empty") from None
    except UnicodeDecodeError as error:
        raise _unlike(path, f"a table in UTF-8, which it is not ({error})") from error
    except pd.errors.ParserError as error:
        raise _unlike(path, f"a complete table of comma-separated values ({str(error).strip()})") from error
    header, table = content.iloc[0].tolist(), content.iloc[1:]
    for what, found in (("missing", 0), ("there twice", 2)):
        if odd := [column for column in _COLUMNS if min(header.count(column), 2) == found]:
            raise _unlike(path, f"the columns {', '.join(_COLUMNS)}; {', '.join(odd)} {what}")
    if table.empty:
        raise _unlike(path, "a table with rows, but only the header is there")
    breaks = sum(table[column].str.count("\n") for column in table)  # a quoted field may span lines
    lines = np.arange(2, len(table) + 2) + breaks.cumsum().shift(fill_value=0)
    columns = {column: table[header.index(column)] for column in _COLUMNS}
    return pd.DataFrame(columns | {"line": lines}).reset_index(drop=True)


def _unlike(path: Path, expected: str) -> ValueError:
    return ValueError(f"{path}: expected {expected}; {_OFFICIAL}")


def _require(path: Path, table: pd.DataFrame, column: str | None, good: pd.Series, expected: str) -> None:
    """Name the first row that is not good, by its `column`, or where none is to blame by its name."""
    if not good.all():
        row = table[~good].iloc[0]
        came = shown(row[column]) if column else row["name"]
        raise problem(f"{path}, line {row['line']}", column, expected, came, _OFFICIAL)


def _seconds(text: str) -> float:
    """00:16:16,059 -> 976.059; a few times have two digits after the comma, which are hundredths."""
    hours, minutes, seconds, fraction = re.split("[:,.]", text)
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction) / 10 ** len(fraction)


# Joining -------------------------------------------------------------------------------------------------------------
def _require_agreement(path: Path, items: list[dict], table_path: Path, table: pd.DataFrame, repairs: Counter[str]) -> None:
    """Raise ValueError, naming the rows, unless text and label of each item are those of the row in the same place."""
    texts = [mend(item["features"]["text"]) for item in items]
    ours = [(_tidy(text), item["label"]) for text, item in zip(texts, items, strict=True)]
    rows = list(zip(table["Utterance"].map(_tidy), table["Emotion"], strict=True))
    if ours == rows:
        for text, item, row in zip(texts, items, table["Utterance"], strict=True):
            repairs["text_mended"] += text != item["features"]["text"]
            repairs["text_spaces_differ"] += text != row
        return

    def item_at(place: int) -> str:
        return f"item {place} {_quoted(*ours[place])}"

    def row_at(place: int) -> str:
        row = table.iloc[place]
        return f"{table_path.name} line {row['line']} ({row['name']}) {_quoted(row['Utterance'], row['Emotion'])}"

    places, remedy = _differences(ours, rows), "fetch both of one release, or mend the named rows"
    start, stop, first, last = places[0]
    if start == stop:
        found, remedy = f"lacks {_span(row_at, first, last)}, expected before item {start}", _LEFT_OUT
    elif first == last:
        where = f"before {row_at(first)}" if first < len(rows) else f"after the last line of {table_path.name}"
        found = f"has {_span(item_at, start, stop)}, and there is no such row {where}"
    else:
        found = f"has {_span(item_at, start, stop)}, expected {_span(row_at, first, last)}"
    more = f", and so in {len(places) - 1} more places" if len(places) > 1 else ""
    raise ValueError(f"{path} ({len(ours)} items, {len(rows)} rows): {found}{more}; {remedy}")


def _differences(items: Sequence[Hashable], rows: Sequence[Hashable]) -> list[tuple[int, int, int, int]]:
    """Where two lists differ: items[start:stop] stand in place of rows[first:last]."""
    steps = SequenceMatcher(None, items, rows, autojunk=False).get_opcodes()
    found = [places for tag, *places in steps if tag != "equal"]
    changed = [[n, n + 1, n, n + 1] for n, (ours, theirs) in enumerate(zip(items, rows, strict=False)) if ours != theirs]
    is_in_order = len(items) == len(rows) and len(changed) <= sum(b - a + d - c for a, b, c, d in found)
    return [(a, b, c, d) for a, b, c, d in (changed if is_in_order else found)]


def _tidy(text: str) -> str:
    return " ".join(text.split())


def _quoted(text: str, label: object) -> str:
    return f"{shown(text)} [{str(label)[:_LABEL_CHARACTERS]}]"


def _span(name: Callable[[int], str], start: int, stop: int) -> str:
    return name(start) + (f" and {stop - start - 1} more from there" if stop - start > 1 else "")


def main(argv: Sequence[str] | None = None, prog: str = "python -m data_prep.meld") -> int:
    """Entry point, also of another command, `prog`; returns the exit code."""
    listed, tables = ", ".join(FEATURES.values()), ", ".join(TABLES.values())
    folders = {"--from": f"where your copies of {listed} lie", "--annotations": f"where {tables} lie, if elsewhere"}
    return published.convert(argv, prog, __doc__, prepare, folders)


if __name__ == "__main__":
    sys.exit(main())
