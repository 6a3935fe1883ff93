"""Findings count what a corpus holds and name what is odd in it, without changing or refusing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cmpta_lib.data.corpus import Corpus, Sample, Task
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


def count(corpus: Corpus, check: str, split: str, column: str = "count") -> Any:
    found = findings(corpus)
    return found[(found["check"] == check) & (found["split"] == split)][column].item()


def examples(corpus: Corpus, check: str, split: str) -> str:
    return count(corpus, check, split, "examples")


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


@pytest.mark.parametrize(("name", "sizes"), [("simsv2", (2722, 647, 1034)), ("meld", (9989, 1109, 2610))])
def test_counts_stand_beside_table_1s(tmp_path: Path, name: str, sizes: tuple[int, ...]):
    parts = [sample(0)], [sample(1)], [sample(2)]
    corpus = corpus_of(tmp_path, *parts, name=name)
    assert tuple(count(corpus, "clips in Table 1", split) for split in corpus.splits) == sizes
    generated = corpus_of(tmp_path / "drawn", *parts, name=name, generated=True)
    assert "clips in Table 1" not in set(findings(generated)["check"])


def test_classes_are_counted(tmp_path: Path):
    corpus = corpus_of(tmp_path, [clip(0, label=4), clip(1, label=4)], [clip(2)], [clip(3, label=6)], ENGLISH)
    assert [count(corpus, f"label {label}", "train") for label in MELD_LABELS] == [0, 0, 0, 0, 2, 0, 0]
    assert count(corpus, "label anger", "test") == 1


def test_absent_and_single_frame_modalities_are_named(tmp_path: Path):
    absent, one = np.zeros((0, 4), np.float32), np.ones((1, 5), np.float32)
    corpus = corpus_of(tmp_path, [sample(0, audio=absent), sample(1, vision=one)], [sample(2)], [sample(3, vision=one)])
    assert (count(corpus, "audio absent", "train"), examples(corpus, "audio absent", "train")) == (1, "video0$_$0001")
    assert count(corpus, "vision absent", "train") == count(corpus, "audio of 1 frame", "train") == 0
    assert count(corpus, "vision of 1 frame", "train") == count(corpus, "vision of 1 frame", "test") == 1


def test_an_id_or_a_video_in_two_splits_is_named(tmp_path: Path):
    corpus = corpus_of(tmp_path, [sample(0), sample(1)], [sample(2)], [sample(3, id="video1$_$0001")])
    assert count(corpus, "same id", "train+test") == 1 and count(corpus, "same id", "train+valid") == 0
    assert examples(corpus, "same id", "train+test") == "video1$_$0001 = video1$_$0001"
    later = [sample(2, id="video0$_$0002"), sample(3, id="video0$_$0003")]
    corpus = corpus_of(tmp_path / "video", [sample(0)], [sample(1)], later)
    assert count(corpus, "same video", "train+test") == 2 and count(corpus, "same id", "train+test") == 0
    assert examples(corpus, "same video", "train+test") == "video0$_$0001 = video0$_$0002"
    # Ids of dialogues start anew in every split, and name no videos.
    parts = [[clip(n, id="dia0_utt0", dialogue=f"{split}_dia0")] for n, split in enumerate(("train", "valid", "test"))]
    corpus = corpus_of(tmp_path / "dialogues", *parts, ENGLISH)
    assert count(corpus, "same id", "train+test") == 0 and "same video" not in set(findings(corpus)["check"])


@pytest.mark.parametrize(
    ("task", "first", "second", "expected"),
    [
        (ENGLISH, "But um, I don't think so.", "but um I don’t think so", 1),
        (ENGLISH, "What are you doing?", "What are you doing?", 0),  # four words
        (CHINESE, "今天天气真的很好。", "今天天气真的很好", 1),
        (CHINESE, "今天天气很好啊。", "今天天气很好啊。", 0),  # seven characters
    ],
)
def test_the_same_words_in_train_and_another_split_are_named(tmp_path: Path, task: Task, first, second, expected):
    make = clip if task is ENGLISH else sample
    corpus = corpus_of(tmp_path, [make(0, text=first)], [make(1)], [make(2, text=second)], task)
    assert count(corpus, "same words", "train+test") == expected
    assert "valid+test" not in set(findings(corpus).query("check == 'same words'")["split"])


def test_identical_features_are_named_within_and_across(tmp_path: Path):
    twin = {name: getattr(sample(0), name) for name in ("audio", "vision")}
    half = {"audio": sample(0).audio, "vision": np.zeros((0, 5), np.float32)}
    train = [sample(0), sample(1, **twin), sample(2, **twin), sample(3, **half), sample(4, **half)]
    corpus = corpus_of(tmp_path, train, [sample(5)], [sample(6, **twin)])
    assert count(corpus, "same features", "train") == 2  # surplus clips; one modality alone does not count
    assert count(corpus, "same features", "train+test") == 1
    assert examples(corpus, "same features", "train") == "video0$_$0001 = video1$_$0001 = video2$_$0001"


def test_the_same_official_clip_is_named(tmp_path: Path):
    again = {"extra": clip(0).extra, "text": clip(0).text}
    later = {"extra": {**clip(0).extra, "start_s": 0.5}, "text": clip(0).text}
    corpus = corpus_of(tmp_path, [clip(0), clip(1, **again)], [clip(2, **later)], [clip(3, **again)], ENGLISH)
    assert count(corpus, "same official clip", "train") == 1
    assert [count(corpus, "same official clip", f"train+{split}") for split in ("valid", "test")] == [0, 1]
    assert examples(corpus, "same official clip", "train+test") == "dia0_utt0 = dia3_utt0"


def test_data_issues_and_foreign_files_are_listed(tmp_path: Path):
    parts = [sample(0)], [sample(1)], [sample(2)]
    sources = {"ch-simsv2s.pkl": "0" * 64, "meld_train.pkl": "1" * 64}
    corpus = corpus_of(tmp_path, *parts, repairs={"audio_inf": 3}, sources=sources)
    assert count(corpus, "oddity: audio_inf", "all") == 3
    assert examples(corpus, "files other than the published", "all") == "ch-simsv2s.pkl"
    published = {"ch-simsv2s.pkl": catalogue.SIMSV2.files[0].sha256}
    assert count(corpus_of(tmp_path / "b", *parts, sources=published), "files other than the published", "all") == 0


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
        for check, rows in corpus.groupby("check"):
            if rows["count"].sum() == 0:
                assert check in clean and check not in set(mine["check"])
                continue
            ((shown, examples),) = mine.loc[mine["check"] == check, ["count", "first examples"]].to_numpy()
            counted = zip(rows["split"], rows["count"], strict=True)
            assert all(f"{split} {count}" in shown for split, count in counted if count)
            assert all(text in examples for text in rows["examples"] if text)
