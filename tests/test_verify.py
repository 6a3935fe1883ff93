"""Findings count what a corpus holds and name what is odd in it, without changing or refusing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cmpta_lib.data.corpus import SPLITS, Corpus, Sample, Task
from cmpta_lib.data.store import write_corpus
from cmpta_lib.paper import MELD_LABELS
from data_prep import catalogue, verify
from data_prep.verify import findings, report

CHINESE = Task("regression", "zh")
ENGLISH = Task("classification", "en", MELD_LABELS)


def sample(number: int, **changes: Any) -> Sample:
    rng = np.random.default_rng(number)
    fields: dict[str, Any] = {
        "id": f"video{number}$_$0001",
        "text": f"这是一句很长的话第{number}句",
        "audio": rng.normal(size=(3, 4)).astype(np.float32),
        "vision": rng.normal(size=(2, 5)).astype(np.float32),
        "label": 0.0,
    }
    return Sample(**(fields | changes))


def clip(number: int, **changes: Any) -> Sample:
    known = {"utterance": 0, "season": 1, "episode": 2, "start_s": float(number), "end_s": number + 1.0, "sentiment": "x"}
    fields = {"id": f"dia{number}_utt0", "dialogue": f"d{number}", "text": f"This is what number {number} says"}
    return sample(number, **({"label": 0} | fields | {"extra": known} | changes))


def corpus_of(folder: Path, train: list, valid: list, test: list, task: Task = CHINESE, **options: Any) -> Corpus:
    options = {"name": "own", "generated": False} | options
    splits = {"train": train, "valid": valid, "test": test}
    return write_corpus(folder / "corpus", task=task, splits=splits, **options)


def test_a_clean_corpus_has_counts_only(tmp_path: Path):
    corpus = corpus_of(tmp_path, [sample(0), sample(1, label=-0.2)], [sample(2, label=1.0)], [sample(3)])
    found = findings(corpus)
    assert list(found.columns) == ["check", "split", "count", "examples"]
    assert (found["examples"] == "").all()
    counted = found[found["count"] > 0].set_index(["check", "split"])["count"].to_dict()
    clips = {("clips", "train"): 2, ("clips", "valid"): 1, ("clips", "test"): 1}
    labels = {("label < 0", "train"): 1, ("label = 0", "train"): 1, ("label > 0", "valid"): 1, ("label = 0", "test"): 1}
    assert counted == clips | labels
    assert not found[["check", "split"]].duplicated().any()


PARTS = [sample(0)], [sample(1)], [sample(2)]
ABSENT, ONE = np.zeros((0, 4), np.float32), np.ones((1, 5), np.float32)
TWIN = {name: getattr(sample(0), name) for name in ("audio", "vision")}
HALF = {"audio": sample(0).audio, "vision": np.zeros((0, 5), np.float32)}
AGAIN = {"extra": clip(0).extra, "text": clip(0).text}
FOREIGN = {"ch-simsv2s.pkl": "0" * 64, "meld_train.pkl": "1" * 64}
PUBLISHED = {"ch-simsv2s.pkl": catalogue.SIMSV2.files[0].sha256}
DIALOGUES = [[clip(n, id="dia0_utt0", dialogue=f"{split}_dia0")] for n, split in enumerate(("train", "valid", "test"))]


@pytest.mark.parametrize(
    ("parts", "options", "expected"),
    [  # expected: (check, split) -> count, or count and examples; None where there must be no such finding
        *((PARTS, {"name": name}, {("clips in Table 1", split): size for split, size in zip(SPLITS, sizes, strict=True)})
          for name, sizes in (("simsv2", (2722, 647, 1034)), ("meld", (9989, 1109, 2610)))),
        (PARTS, {"name": "meld", "generated": True}, {("clips in Table 1", "train"): None}),
        (([clip(0, label=4), clip(1, label=4)], [clip(2)], [clip(3, label=6)]), {"task": ENGLISH},
         {("label joy", "train"): 2, ("label anger", "train"): 0, ("label anger", "test"): 1}),
        (([sample(0, audio=ABSENT), sample(1, vision=ONE)], [sample(2)], [sample(3, vision=ONE)]), {},
         {("audio absent", "train"): (1, "video0$_$0001"), ("vision absent", "train"): 0, ("audio of 1 frame", "train"): 0,
          ("vision of 1 frame", "train"): 1, ("vision of 1 frame", "test"): 1}),
        (([sample(0), sample(1)], [sample(2)], [sample(3, id="video1$_$0001")]), {},
         {("same id", "train+test"): (1, "video1$_$0001 = video1$_$0001"), ("same id", "train+valid"): 0}),
        (([sample(0)], [sample(1)], [sample(2, id="video0$_$0002"), sample(3, id="video0$_$0003")]), {},
         {("same video", "train+test"): (2, "video0$_$0001 = video0$_$0002"), ("same id", "train+test"): 0}),
        # Ids of dialogues start anew in every split, and name no videos.
        (DIALOGUES, {"task": ENGLISH}, {("same id", "train+test"): 0, ("same video", "train+test"): None}),
        *((([make(0, text=first)], [make(1)], [make(2, text=second)]), {"task": task},
           {("same words", "train+test"): expected, ("same words", "valid+test"): None})
          for make, task, first, second, expected in (
              (clip, ENGLISH, "But um, I don't think so.", "but um I don’t think so", 1),
              (clip, ENGLISH, "What are you doing?", "What are you doing?", 0),  # four words
              (sample, CHINESE, "今天天气真的很好。", "今天天气真的很好", 1),
              (sample, CHINESE, "今天天气很好啊。", "今天天气很好啊。", 0),  # seven characters
          )),
        # Surplus clips are counted; one modality alone does not count.
        (([sample(n, **(TWIN if n < 3 else HALF)) for n in range(5)], [sample(5)], [sample(6, **TWIN)]), {},
         {("same features", "train"): (2, "video0$_$0001 = video1$_$0001 = video2$_$0001"),
          ("same features", "train+test"): 1}),
        (([clip(0), clip(1, **AGAIN)], [clip(2, text=clip(0).text, extra={**clip(0).extra, "start_s": 0.5})], [clip(3, **AGAIN)]),
         {"task": ENGLISH}, {("same official clip", "train"): 1, ("same official clip", "train+valid"): 0,
                             ("same official clip", "train+test"): (1, "dia0_utt0 = dia3_utt0")}),
        (PARTS, {"repairs": {"audio_inf": 3}, "sources": FOREIGN},
         {("oddity: audio_inf", "all"): 3, ("files other than the published", "all"): (1, "ch-simsv2s.pkl")}),
        (PARTS, {"sources": PUBLISHED}, {("files other than the published", "all"): 0}),
    ],
)  # fmt: skip
def test_what_is_odd_is_counted_and_named(tmp_path: Path, parts: tuple, options: dict, expected: dict):
    found = findings(corpus_of(tmp_path, *parts, **options)).set_index(["check", "split"])
    for where, told in expected.items():
        assert (where in found.index) == (told is not None)
        if told is not None:
            count, examples = found.loc[where, ["count", "examples"]]
            assert (count, examples) == told if isinstance(told, tuple) else count == told


def test_a_report_fits_a_screen(tmp_path: Path):
    train = [sample(n, vision=np.ones((1, 5), np.float32)) for n in range(9)]
    corpus = corpus_of(tmp_path, train, [sample(9)], [sample(10, id="video1$_$0001")], repairs={"audio_inf": 3})
    shown = report(corpus)
    assert corpus.fingerprint[:12] in shown and "GENERATED" not in shown
    lines = shown.splitlines()
    assert len(lines) < 45 and max(map(len, lines)) < 130
    header = next(line for line in lines if "train+test" in line)
    assert header.split() == ["train", "valid", "test", "train+valid", "train+test", "valid+test", "all"]
    assert "vision of 1 frame, train: video0$_$0001, video1$_$0001, video2$_$0001 and 6 more" in shown
    assert "same id, train+test: video1$_$0001 = video1$_$0001" in shown
    assert "NaN" not in shown and "<NA>" not in shown


def test_a_page_shows_every_finding_once_and_names_what_was_looked_for_in_vain(corpora):
    """Two corpora of 82 findings and more fit on it uncut; the whole list is for the exported table."""
    found = verify.overview(corpora.values())
    page = verify.summary(found)
    assert len(page) < pd.get_option("display.max_rows") < len(found)
    for name, corpus in found.groupby("corpus"):
        mine = page[page["corpus"] == name]
        clean = mine["check"].iloc[-1]
        assert clean.startswith("looked for and found none: ") and "same id" in clean
        for check, rows in corpus.groupby(corpus["check"].str.replace("ruled by one frame", "whose variance lies in one frame")):
            if rows["count"].sum() == 0:
                assert check in clean and check not in set(mine["check"])
                continue
            ((shown, examples),) = mine.loc[mine["check"] == check, ["count", "first examples"]].to_numpy()
            counted = zip(rows["split"], rows["count"], strict=True)
            assert all(f"{split} {count}" in shown for split, count in counted if count)
            assert all(text in examples for text in rows["examples"] if text)
