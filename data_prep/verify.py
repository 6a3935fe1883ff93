"""What a converted corpus holds, beside Table 1, and what in it is odd: absent modalities, duplicates, leaks, repairs.

Findings are listed, never errors, and nothing is removed: the paper's numbers were made with these clips. What would make
test scores mean something else than they seem to is also said aloud, by `warnings`.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from cmpta_lib.data.corpus import MODALITIES, SPLITS, Corpus, Sample
from cmpta_lib.paper import TABLE1
from data_prep.catalogue import KNOWN_SHA256

PAPER_NAMES = {"simsv2": "SIMS-V2", "meld": "MELD"}  # of the corpora that this package converts
ALL = "all"
PAIRS = tuple(combinations(SPLITS, 2))
_CLIP = ["season", "episode", "start_s", "end_s", "text"]  # one official cut of an episode
ALL_ZERO = "all_zero"  # a repair's kind after the modality: clips that have frames, and nothing in them
_LENGTHS = [f"{modality}_length" for modality in MODALITIES]
_SHOWN = 3
_RULED = 0.5  # of a feature's variance in one frame: z-scoring then leaves next to nothing of all other frames
_NAMED = 12  # classes
_TELLING = 8  # frames of a clip that only the same recording has
_FEW_FRAMES = 100  # with fewer, one frame may well hold so much
_COLUMNS = ["check", "split", "count", "examples"]
_SAID = {"ruled by one frame": "whose variance lies in one frame", "^oddity": "data issue"}  # of a check's name, on a page
_Row = tuple[str, str, int, str]


def findings(corpus: Corpus) -> pd.DataFrame:
    """Columns check, split ("train", "train+test", "all"), count, examples; a few seconds for the full corpora.

    Within a split the count of a duplicate is that of surplus clips; across splits it is that of the later split's clips
    that the earlier one has too.
    """
    checks = (_sizes, _labels, _lengths, _ruled_by_one_frame, _duplicates, _equal_files, _oddities)
    return pd.DataFrame((row for check in checks for row in check(corpus)), columns=_COLUMNS)


def overview(corpora: Iterable[Corpus]) -> pd.DataFrame:
    """The findings of several corpora below each other, with their names; a row for each of `warnings` comes first."""
    rows: list[tuple[Any, ...]] = []
    for corpus in corpora:
        rows += [(corpus.name, text, ALL, 1, "") for text in warnings(corpus)]
        rows += [(corpus.name, *row) for row in findings(corpus).itertuples(index=False)]
    return pd.DataFrame(rows, columns=["corpus", *_COLUMNS])


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """`overview` for a page: a line per check with its counts by split and first examples; checks that met nothing share one.

    Columns: corpus, check, count ("train 88, valid 5, test 17"), "first examples".
    """
    lines, found = [], found.assign(check=found["check"].replace(_SAID, regex=True))
    for name, corpus in found.groupby("corpus", sort=False):
        met = corpus[corpus["count"] > 0]
        for check, rows in met.groupby("check", sort=False):
            where = ", ".join(rows["split"] + " " + rows["count"].astype(str))
            counted = str(rows["count"].iloc[0]) if set(rows["split"]) == {ALL} else where
            lines.append([name, check, counted, "; ".join(filter(None, rows["examples"]))])
        if clean := [check for check in corpus["check"].unique() if check not in set(met["check"])]:
            lines.append([name, f"looked for and found none: {', '.join(clean)}", "0", ""])
    return pd.DataFrame(lines, columns=["corpus", "check", "count", "first examples"])


def warnings(corpus: Corpus, deep: bool = True) -> list[str]:
    """A line for whatever lets test scores mean something else than they seem to; `deep` takes seconds, see `_clips`."""
    said = []
    for _, _, count, examples in _equal_files(corpus):
        if count:
            said.append(f"WARNING: {examples}: one file under two names, so scores say nothing about new clips")
    for _, pair, count, examples in _across("same clip", corpus, _clips(corpus, deep)):
        first, later = pair.split("+")
        if count and first == "train":
            size = len(corpus.splits[later])
            said.append(f"WARNING: {count} of {size} {later} clips are in train too ({examples}): {later} scores are too good")
    for modality in MODALITIES:
        if count := corpus.repairs.get(f"{modality}_{ALL_ZERO}", 0):
            every = ((one.id, getattr(one, modality)) for split in corpus.splits.values() for one in split)
            first = next(name for name, frames in every if len(frames) and not frames.any())
            said.append(f"WARNING: {count} clips, first {first}, have {modality} of zeros only: absent is a length of 0")
    for alike in _grouped(corpus.task.labels, map(_plain, corpus.task.labels)).values():
        if len(alike) > 1:
            said.append(f"WARNING: the classes {' and '.join(map(repr, alike))} look alike; if they are one, write them alike")
    return said


def _plain(label: str) -> str:
    """A class name without case, forms of letters, what joins words, and ways to write a number."""
    with suppress(ValueError):
        return str(float(label))
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", "", unicodedata.normalize("NFKC", label).casefold())


def introduction(corpus: Corpus) -> list[str]:
    """What to say of a corpus of somebody's own when it was converted: its task as it was understood, and what is odd."""
    task, table = corpus.task, pd.concat([split.table for split in corpus.splits.values()])
    found, is_said = f"{len(task.labels)} classes: {_some(task.labels, _NAMED)}", table["text"].str.strip() != ""
    if task.kind == "regression":
        (least, most), (low, high) = task.to_range(table["label"].agg(["min", "max"]).to_numpy()), task.score_range
        found = f"regression, scores from {least:.4g} to {most:.4g} in the range [{low:g}, {high:g}]"
    sizes = ", ".join(f"{len(split)} {name}" for name, split in corpus.splits.items())
    there = ", ".join(f"{modality} in {(table[f'{modality}_length'] > 0).sum()}" for modality in MODALITIES)
    language = "Chinese" if task.language == "zh" else "English"
    words = f"words in {is_said.sum()}, read as {language}" if is_said.any() else "no words in any"
    said = [f"{found}; {sizes} clips: {there}, {words}"]
    if corpus.repairs:
        said.append("data issues: " + ", ".join(f"{kind} {count}" for kind, count in corpus.repairs.items()))
    if empty := table["id"][(table[_LENGTHS] == 0).all(axis=1) & ~is_said].tolist():
        said.append(f"WARNING: {len(empty)} clips have neither words nor face nor voice ({_some(empty)})")
    speakers = {name: set(split.table["speaker"].dropna()) for name, split in corpus.splits.items()}
    for name in SPLITS[1:]:
        if both := sorted(speakers["train"] & speakers[name]):
            said.append(f"{len(both)} of {len(speakers[name])} {name} speakers are in train too ({_some(both)})")
    return said


def report(corpus: Corpus) -> str:
    """The findings on one screen: warnings first, counts by split, then examples of what is odd."""
    found = findings(corpus)
    table = found.pivot(index="check", columns="split", values="count").reindex(found["check"].unique())
    order = [*SPLITS, *("+".join(pair) for pair in PAIRS), ALL]
    table = table[[split for split in order if split in table]].astype("Int64").astype(object)
    shown = table.where(table.notna(), "").rename_axis(index=None, columns=None)
    lines = [f"Corpus {corpus.name}, fingerprint {corpus.fingerprint[:12]}", "", shown.to_string()]
    if corpus.generated:
        lines[0] += ", GENERATED for a dry run: says nothing about the paper"
    odd = found[(found["examples"] != "") & (found["count"] > 0)]
    lines += ["", *(f"{row.check}, {row.split}: {row.examples}" for row in odd.itertuples())] if len(odd) else []
    return "\n".join([*warnings(corpus), *lines])


def _sizes(corpus: Corpus) -> Iterator[_Row]:
    yield from (("clips", name, len(split), "") for name, split in corpus.splits.items())
    paper = TABLE1.get(PAPER_NAMES.get(corpus.name, ""))
    if paper and not corpus.generated:
        yield from (("clips in Table 1", split, getattr(paper, split), "") for split in SPLITS)


def _labels(corpus: Corpus) -> Iterator[_Row]:
    middle = f"{corpus.task.to_range(0.0):g}"
    for name, split in corpus.splits.items():
        labels = split.labels
        groups = {f"label {label}": labels == index for index, label in enumerate(corpus.task.labels)}
        sides = {f"label < {middle}": labels < 0, f"label = {middle}": labels == 0, f"label > {middle}": labels > 0}
        for group, chosen in (groups or sides).items():
            yield group, name, int(chosen.sum()), ""


def _lengths(corpus: Corpus) -> Iterator[_Row]:
    checks = {f"{name} {what}": ([name], frames) for name in MODALITIES for what, frames in (("absent", 0), ("of 1 frame", 1))}
    for check, (modalities, frames) in (checks | {"neither face nor voice": ([*MODALITIES], 0)}).items():
        for name, split in corpus.splits.items():
            ids = split.table["id"][(split.table[[f"{m}_length" for m in modalities]] == frames).all(axis=1)]
            yield check, name, len(ids), _some(ids)


def _ruled_by_one_frame(corpus: Corpus) -> Iterator[_Row]:
    """Features of train whose variance lies in one frame, such as a value of 1e12 among ones."""
    split = corpus.splits["train"]
    for modality in MODALITIES:
        mean, std = split.feature_statistics(modality)
        largest = np.zeros(len(mean))
        for sample in split:
            frames = getattr(sample, modality)
            largest = np.maximum(largest, np.abs(frames - mean).max(axis=0, initial=0))
        count = int(split.table[f"{modality}_length"].sum())
        ruled: list[int] = np.flatnonzero((largest / std) ** 2 > _RULED * count).tolist() if count >= _FEW_FRAMES else []
        examples = [f"feature {n} by a value about {mean[n] + largest[n]:.3g}" for n in ruled]
        yield f"{modality} features ruled by one frame", "train", len(ruled), _some(examples)


def _duplicates(corpus: Corpus) -> Iterator[_Row]:
    tables = {name: split.table for name, split in corpus.splits.items()}
    # Where clips belong to dialogues, their ids start anew in every split.
    ids = {name: _keys(table, ["dialogue", "id"]) for name, table in tables.items()}
    yield from _across("same id", corpus, ids)
    videos = {name: [clip.partition("$_$")[0] for clip in table["id"]] for name, table in tables.items()}
    if all("$_$" in clip for table in tables.values() for clip in table["id"]):
        yield from _across("same video", corpus, videos)
    texts = {name: [_words(text, corpus.task.language) for text in table["text"]] for name, table in tables.items()}
    yield from (row for row in _across("same words", corpus, texts) if row[1].startswith("train"))
    if all(set(_CLIP) <= set(table) for table in tables.values()):
        clips = {name: _keys(table, _CLIP) for name, table in tables.items()}
        yield from _within("same official clip", corpus, clips)
        yield from _across("same official clip", corpus, clips)
    yield from _across("same clip", corpus, _clips(corpus))
    features = {
        name: [_feature_hash(clip) if len(clip.audio) and len(clip.vision) else None for clip in split]
        for name, split in corpus.splits.items()
    }
    yield from _within("same features", corpus, features)
    yield from _across("same features", corpus, features)


def _keys(table: pd.DataFrame, columns: Sequence[str]) -> list[tuple[Hashable, ...]]:
    return list(zip(*(table[column] for column in columns), strict=True))


def _words(text: str, language: str) -> str | None:
    """What is said, without case and punctuation; None if two people may say it by chance.

    That is below 5 words of English or 8 characters of Chinese.
    """
    words = " ".join(re.sub(r"[^\w\s]", "", text.casefold()).split())
    return words if (len(words.split()) >= 5 if language == "en" else len(words) >= 8) else None


def _feature_hash(sample: Sample) -> bytes:
    return hashlib.blake2b(sample.audio.tobytes() + sample.vision.tobytes(), digest_size=16).digest()


def _clips(corpus: Corpus, deep: bool = True) -> dict[str, list[Hashable]]:
    """Frames of each clip with any, and words and label where it has so few that other clips may have the same by chance.

    They are read only where the same lengths occur twice, and unless `deep` the same words and label too.
    """
    columns = [*_LENGTHS, *([] if deep else ["text", "label"])]
    told = {name: _keys(split.table, columns) for name, split in corpus.splits.items()}
    times = Counter(key for keys in told.values() for key in keys)
    return {
        name: [_clip(split[index]) if times[key] > 1 and any(key[:2]) else None for index, key in enumerate(told[name])]
        for name, split in corpus.splits.items()
    }


def _clip(sample: Sample) -> Hashable:
    is_telling = len(sample.audio) + len(sample.vision) >= _TELLING and (sample.audio.any() or sample.vision.any())
    return _feature_hash(sample), None if is_telling else (sample.text, sample.label)


def _within(check: str, corpus: Corpus, keys: Mapping[str, Sequence[Hashable]]) -> Iterator[_Row]:
    for name, split in corpus.splits.items():
        repeated = [ids for ids in _grouped(split.table["id"], keys[name]).values() if len(ids) > 1]
        yield check, name, sum(len(ids) - 1 for ids in repeated), _some([" = ".join(ids) for ids in repeated])


def _across(check: str, corpus: Corpus, keys: Mapping[str, Sequence[Hashable]]) -> Iterator[_Row]:
    for first, second in PAIRS:
        earlier, later = (_grouped(corpus.splits[name].table["id"], keys[name]) for name in (first, second))
        shared = [key for key in later if key in earlier]
        groups = [f"{earlier[key][0]} = {later[key][0]}" for key in shared]
        yield check, f"{first}+{second}", sum(len(later[key]) for key in shared), _some(groups)


def _grouped(names: Iterable[str], keys: Iterable[Hashable]) -> dict[Hashable, list[str]]:
    """Key -> those of that key, in order; None is no key."""
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for name, key in zip(names, keys, strict=True):
        if key is not None:
            groups[key].append(name)
    return groups


def _equal_files(corpus: Corpus) -> Iterator[_Row]:
    equal = [" = ".join(same) for same in _grouped(corpus.sources, corpus.sources.values()).values() if len(same) > 1]
    yield "files with equal contents", ALL, len(equal), _some(equal)


def _oddities(corpus: Corpus) -> Iterator[_Row]:
    yield from ((f"oddity: {kind}", ALL, count, "") for kind, count in corpus.repairs.items())
    if not corpus.generated:
        other = [name for name, digest in corpus.sources.items() if KNOWN_SHA256.get(name, digest) != digest]
        yield "files other than the published", ALL, len(other), _some(other)


def _some(examples: Sequence[str], most: int = _SHOWN) -> str:
    more = len(examples) - most
    return ", ".join(list(examples)[:most]) + (f" and {more} more" if more > 0 else "")
