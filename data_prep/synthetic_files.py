"""Synthetic files laid out like the public ones, to try a conversion, a run or a table without a download.

The frames are noise and the labels know nothing of them. `cmpta dry-run --files-only` writes and converts them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmpta_lib.data.corpus import SPLITS
from cmpta_lib.paper import MELD_LABELS, PUBLIC_SHAPES, TABLE1
from data_prep import catalogue, hub, safe_pickle

RECIPE = 1  # raise when the files change
_SOURCE = "data_prep.synthetic_files"
MIN_CLIPS = 8  # per split
MELD_SHAPES = {"audio": PUBLIC_SHAPES["MELD"]["audio"], "video": PUBLIC_SHAPES["MELD"]["vision"]}
_CLASS_SHARES = (0.47, 0.12, 0.03, 0.07, 0.17, 0.03, 0.11)  # MELD's, in the order of MELD_LABELS
_SENTIMENTS = dict(zip(MELD_LABELS, "neutral positive negative negative positive negative negative".split(), strict=True))
_HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
_TABLES = dict(zip(SPLITS, (file.name for file in catalogue.MELD_ANNOTATIONS.files), strict=True))
# What old copies of MELD hold in place of typographic characters.
_GARBLED = str.maketrans({"’": "\x92", "…": "\x85", "—": "\x97", "‘": "\x91", "“": "\x93", "”": "\x94", "–": "\x96"})


def write_simsv2(folder: Path, factor: float = 1.0, seed: int = 0) -> Path:
    """`ch-simsv2s.pkl` with all fields of the public file, in their types and shapes; 3.6 GB at factor 1.

    A few audio values are -inf and one clip has a single frame of each, as in real life.

    Args:
        factor: of Table 1's clips in each split, of which there are 8 at least.
    Raises:
        FileExistsError: the folder holds other files of these names.
    """
    path, sizes = Path(folder) / catalogue.SIMSV2.files[0].name, _sizes("SIMS-V2", factor)

    def write() -> None:
        safe_pickle.save({split: simsv2_split(split, sizes[split], seed) for split in SPLITS}, path)

    _once(path.parent, [path.name], f"recipe {RECIPE}, factor {factor}, seed {seed}", sizes, write)
    return path


def write_meld(folder: Path, factor: float = 1.0, annotations: Path | None = None, seed: int = 0) -> dict[str, Path]:
    """`meld_{train,valid,test}.pkl` in their public format, 660 MB at factor 1, and the three tables they belong to.

    Args:
        factor: of Table 1's clips in each split, of which there are 8 at least.
        annotations: folder with the official tables, the first rows of which are taken; without it rows are made up.
    Returns:
        Split -> pickle. Every fifth text there is garbled as in old copies of MELD.
    Raises:
        FileExistsError: the folder holds other files of these names.
    """
    folder, sizes = Path(folder), _sizes("MELD", factor)
    pickles = dict(zip(SPLITS, (file.name for file in catalogue.MELD.files), strict=True))
    contents = {split: _table(split, sizes[split], annotations, seed) for split in SPLITS}
    sizes = {split: len(list(_rows(contents[split]))) for split in SPLITS}

    def write() -> None:
        for split, content in contents.items():
            (folder / _TABLES[split]).write_bytes(content.encode())
            safe_pickle.save(list(meld_items(split, _rows(content), seed)), folder / pickles[split])

    about = f"recipe {RECIPE}, factor {factor}, seed {seed}, {'official' if annotations else 'made-up'} annotations"
    _once(folder, [*pickles.values(), *_TABLES.values()], about, sizes, write)
    return {split: folder / pickles[split] for split in SPLITS}


def _sizes(corpus: str, factor: float) -> dict[str, int]:
    if not 0 < factor <= 1:
        raise ValueError(f"factor must be above 0 and at most 1, but is {factor}")
    return {split: max(MIN_CLIPS, round(factor * getattr(TABLE1[corpus], split))) for split in SPLITS}


def _once(folder: Path, names: Sequence[str], about: str, sizes: dict[str, int], write: Callable[[], None]) -> None:
    """Write files and manifest, unless the same ones are there; never over others."""
    manifest = folder / hub.MANIFEST
    there = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    is_same = there.get("source") == _SOURCE and there.get("revision") == about and there.get("generated")
    if is_same and all((folder / name).is_file() for name in names):
        return
    if existing := [name for name in (*names, hub.MANIFEST) if (folder / name).exists()]:
        raise FileExistsError(
            f"{folder}: expected a folder without {', '.join(existing)}, or with those of this dry run ({about}); "
            "delete them or choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write()
    paths = {name: folder / name for name in names}
    sources = {name: hub.sha256(path) for name, path in paths.items()}
    hub.write_manifest(folder, paths, sources, source=_SOURCE, revision=about, generated=True, sizes=sizes)


# SIMS-V2 -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Drawn:
    """An array that is drawn when its turn to be written comes: all of them at once would take 3.6 GB more."""

    draw: Callable[[], np.ndarray]

    def __reduce__(self) -> str | tuple[Any, ...]:
        return self.draw().__reduce__()


def simsv2_split(split: str, size: int, seed: int = 0) -> dict[str, Any]:
    """All fields of one split of `ch-simsv2s.pkl`. Lengths: 0.3 to 9.25 s, gamma distributed around 3.5 s, at 100 frames
    of voice and 25 of face a second. Frames are drawn when they are pickled.
    """
    key, shapes = (seed, SPLITS.index(split)), PUBLIC_SHAPES["SIMS-V2"]
    rng = np.random.default_rng([*key, 0])
    seconds = np.clip(rng.gamma(3.0, 3.5 / 3, size), 0.3, 9.25)
    lengths = {"audio": np.round(100 * seconds).astype(int), "vision": np.round(25 * seconds).astype(int)}
    for length in lengths.values():
        length[MIN_CLIPS // 2] = 1
    labels = {name: rng.integers(-5, 6, size) / 5 for name in ("M", "T", "A", "V")}
    words = rng.integers(0, 16, (size, 3))
    text_lengths = rng.integers(4, 51, size)
    return {
        "raw_text": [_chinese(3 * index + key[1], label, words[index]) for index, label in enumerate(labels["M"])],
        "audio": _Drawn(lambda: _padded((size, *shapes["audio"]), lengths["audio"], [*key, 1], infinite=3)),
        "vision": _Drawn(lambda: _padded((size, *shapes["vision"]), lengths["vision"], [*key, 2])),
        "id": [f"{split}{index // 12:04d}$_${index % 12:04d}" for index in range(size)],
        "text": _Drawn(lambda: _padded((size, 50, 768), text_lengths, [*key, 3])),
        "text_bert": _Drawn(lambda: _bert_input(text_lengths, [*key, 4])),
        "annotations": [("Negative", "Neutral", "Positive")[int(np.sign(label)) + 1] for label in labels["M"]],
        "classification_labels": np.sign(labels["M"]) + 1,
        "regression_labels": labels["M"],
        **{f"regression_labels_{name}": labels[name] for name in ("T", "A", "V")},
        "audio_lengths": lengths["audio"].tolist(),
        "vision_lengths": lengths["vision"].tolist(),
    }


def _padded(shape: tuple[int, int, int], lengths: np.ndarray, seed: list[int], infinite: int = 0) -> np.ndarray:
    """(N, T, F) float64: noise, zero from each length on; `infinite` values are -inf."""
    rng, frames = np.random.default_rng(seed), np.zeros(shape)
    for clip, length in zip(frames, lengths, strict=True):
        clip[:length] = rng.standard_normal((length, shape[2]))
    for index in range(infinite):
        frames[index * shape[0] // (infinite + 1), 0, index] = -np.inf
    return frames


def _bert_input(lengths: np.ndarray, seed: list[int]) -> np.ndarray:
    rng, content = np.random.default_rng(seed), np.zeros((len(lengths), 3, 50))
    for clip, length in zip(content, lengths, strict=True):
        clip[0, :length], clip[1, :length] = rng.integers(100, 21_128, length), 1
    return content


def _chinese(number: int, label: float, words: np.ndarray) -> str:
    when = "今天 昨天 刚才 后来 最近 以前 明天 早上".split()[words[0] % 8]
    who = "我 你 他 她 咱们 大家 老师 妈妈".split()[words[1] % 8]
    what = "工作 吃饭 唱歌 看书 电影 朋友 家里 天气 学校 生意 孩子 手机 房子 旅行 比赛 医院".split()[words[2]]
    feeling = ("真是太让人难受了", "我觉得都还可以吧", "简直高兴得不得了")[int(np.sign(label)) + 1]
    return f"{when}{who}第{number}次说{what}，{feeling}。"


# MELD ----------------------------------------------------------------------------------------------------------------
def _table(split: str, size: int, annotations: Path | None, seed: int) -> str:
    """The table's text with CRLF line ends, as the official ones have them."""
    header, rows = _HEADER.split(","), list(_made_up(split, size, seed) if annotations is None else ())
    if annotations is not None:
        content = hub.find(catalogue.MELD_ANNOTATIONS, annotations).paths[_TABLES[split]].read_bytes().decode()
        header, *rows = csv.reader(io.StringIO(content, newline=""))
        if len(rows) <= size:
            return content
    out = io.StringIO(newline="")
    csv.writer(out).writerows([header, *rows[:size]])
    return out.getvalue()


def _rows(table: str) -> Iterator[dict[str, str]]:
    return csv.DictReader(io.StringIO(table, newline=""))


def _made_up(split: str, size: int, seed: int) -> Iterator[list[str]]:
    rng = np.random.default_rng([seed, SPLITS.index(split), 10])
    starts = "Oh my God,|Well…|You know what?|No no no,|Okay, so|Look,|Honestly —|Hey!".split("|")
    ends = "I can’t believe it|that’s what she said|we’re “just friends”|it isn’t fair|you’re late again".split("|")
    dialogue, utterance, left, time_ms = -1, 0, 0, 0
    for index in range(size):
        if not left:
            dialogue, utterance, left, time_ms = dialogue + 1, 0, int(rng.integers(1, 13)), 60_000
        label = MELD_LABELS[rng.choice(len(MELD_LABELS), p=_CLASS_SHARES)]
        text = f"{rng.choice(starts)} {rng.choice(ends)} {'!' * int(rng.integers(0, 3))}".strip()
        start, time_ms = time_ms, time_ms + int(rng.integers(300, 6000))
        speaker = str(rng.choice(["Monica", "Ross", "Rachel", "Joey", "Phoebe", "Chandler", "The Waiter"]))
        place = [str(dialogue), str(utterance), str(1 + dialogue % 9), str(1 + dialogue % 24)]
        # "None" is a word that people say, and that pandas would take for a missing value.
        known = [str(index + 1), "None" if index == 3 else text, speaker, label, _SENTIMENTS[label]]
        yield [*known, *place, _time(start), _time(time_ms)]
        utterance, left = utterance + 1, left - 1


def _time(time_ms: int) -> str:
    seconds, rest = divmod(time_ms, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d},{rest:03d}"


def meld_rows(split: str, size: int, annotations: Path | None = None, seed: int = 0) -> Iterator[dict[str, str]]:
    """The first `size` rows of the official table of a split, or made-up ones where no folder of them is given."""
    return _rows(_table(split, size, annotations, seed))


def meld_items(split: str, rows: Iterator[dict[str, str]], seed: int = 0) -> Iterator[dict[str, Any]]:
    """What `meld_{split}.pkl` holds of these rows. Lengths: 0.1 to 40 s, gamma distributed around 3.2 s, cut at 157 frames
    of voice (31.25 a second) and 32 of face (6 a second).
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), 11])
    for index, row in enumerate(rows):
        seconds = float(np.clip(rng.gamma(2.0, 1.6), 0.1, 40))
        frames = {name: np.zeros(shape, np.float32) for name, shape in MELD_SHAPES.items()}
        lengths = {}
        for name, rate_hz in (("audio", 16_000 / 512), ("video", 6)):
            lengths[f"{name}_len"] = length = min(len(frames[name]), 1 + int(seconds * rate_hz))
            frames[name][:length] = rng.standard_normal((length, frames[name].shape[1]), np.float32)
        text = row["Utterance"].translate(_GARBLED) if index % 5 == 0 else row["Utterance"]
        text = text.replace(" ", "\xa0", 1) if index % 50 == 0 else text
        yield {"label": row["Emotion"], "features": {"text": text, **frames, **lengths}}
