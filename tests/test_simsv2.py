"""SIMS-V2's public file becomes a corpus, true frames only; what does not conform is named down to sample and field."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import hub, simsv2
from data_prep.simsv2 import prepare

SIZES = {"train": 4, "valid": 2, "test": 3}


def split(name: str, size: int) -> dict[str, Any]:
    """The public layout, smaller; clip i has 4i + 2 frames of audio and i + 1 of vision."""
    rng = np.random.default_rng(size)
    audio, vision = rng.normal(size=(size, 30, 5)), rng.normal(size=(size, 9, 7))
    lengths = {"audio": [4 * i + 2 for i in range(size)], "vision": [i + 1 for i in range(size)]}
    for frames, given in ((audio, lengths["audio"]), (vision, lengths["vision"])):
        for clip, length in zip(frames, given, strict=True):
            clip[length:] = 0
    unused = {"text": np.ones((size, 50, 768)), "text_bert": np.ones((size, 3, 50)), "annotations": ["Neutral"] * size}
    unused |= {"classification_labels": np.ones(size)} | {f"regression_labels_{m}": np.zeros(size) for m in "TAV"}
    return unused | {
        "raw_text": [f"第{i}句" for i in range(size)],
        "id": [f"{name}$_${i:04d}" for i in range(size)],
        "audio": audio,
        "vision": vision,
        "audio_lengths": lengths["audio"],
        "vision_lengths": lengths["vision"],
        "regression_labels": np.linspace(-1, 1, size),
    }


@pytest.fixture
def content() -> dict[str, dict[str, Any]]:
    return {name: split(name, size) for name, size in SIZES.items()}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write synthetic files, so that these few clips pass as a complete file."""

    def save(content: object, sizes: dict[str, int] | None = SIZES) -> Path:
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        (folder / simsv2.FILE).write_bytes(pickle.dumps(content, 4))
        manifest = {"source": "test", "revision": "", "generated": True, "sizes": sizes, "files": {}}
        if sizes:
            (folder / hub.MANIFEST).write_text(json.dumps(manifest))
        return folder

    return save


def refuse(folder: Path, cache: Path) -> str:
    with pytest.raises(ValueError) as caught:
        prepare(cache, folder)
    assert str(folder / simsv2.FILE) in str(caught.value)
    assert not (cache / "data" / "simsv2").exists()
    return str(caught.value)


# What conforms ---------------------------------------------------------------------------------------------------
def test_true_frames_come_through(content, save, tmp_path: Path):
    folder = save(content)
    corpus = prepare(tmp_path / "cache", folder)
    assert (corpus.name, corpus.task.kind, corpus.task.language) == ("simsv2", "regression", "zh")
    assert corpus.generated and corpus.repairs == {}
    assert corpus.sources == {simsv2.FILE: hub.sha256(folder / simsv2.FILE)}
    for name, size in SIZES.items():
        given = content[name]
        assert [len(corpus.splits[name])] == [size]
        for i, sample in enumerate(corpus.splits[name]):
            assert (sample.id, sample.text) == (given["id"][i], given["raw_text"][i])
            assert sample.label == given["regression_labels"][i]
            assert sample.speaker is None and sample.dialogue is None
            np.testing.assert_array_equal(sample.audio, given["audio"][i, : 4 * i + 2].astype(np.float32))
            np.testing.assert_array_equal(sample.vision, given["vision"][i, : i + 1].astype(np.float32))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {**s, "audio_lengths": np.array(s["audio_lengths"], float)},
        lambda s: {**s, "vision_lengths": np.array(s["vision_lengths"], np.int32)},
        lambda s: {**s, "vision_lengths": [np.int64(length) for length in s["vision_lengths"]]},
        lambda s: {**s, "raw_text": np.array(s["raw_text"]), "id": np.array(s["id"], dtype=object)},
        lambda s: {**s, "raw_text": np.array(s["raw_text"], dtype=object), "id": tuple(s["id"])},
        lambda s: {**s, "regression_labels": s["regression_labels"].tolist()},
        lambda s: {key: value for key, value in s.items() if key in simsv2._FIELDS},
    ],
)
def test_every_usual_form_of_a_field_gives_the_same_corpus(content, save, tmp_path: Path, change):
    expected = prepare(tmp_path / "cache", save(content)).fingerprint
    changed = {name: change(fields) for name, fields in content.items()}
    assert prepare(tmp_path / "other cache", save(changed)).fingerprint == expected


def test_data_issues_are_mended_and_counted(content, save, tmp_path: Path):
    train = content["train"]
    train["audio"][0, 0, :3] = -np.inf, np.nan, np.inf
    train["audio"][1, 20:22] = 1.0  # clip 1 has 6 frames
    train["audio_lengths"][2] = 0
    content["test"]["vision_lengths"][0] = 0
    content["test"]["pose"] = np.ones(3)
    content["train_mix"] = {"mask": [1]}
    corpus = prepare(tmp_path / "cache", save(content))
    assert corpus.repairs == {
        "audio_absent": 1,
        "audio_inf": 2,
        "audio_nan": 1,
        "audio_nonzero_frames_after_length": 2 + 10,  # clip 2 had 10 frames before it was declared absent
        "ignored_field_pose": 1,
        "ignored_split_train_mix": 1,
        "vision_absent": 1,
        "vision_nonzero_frames_after_length": 1,
    }
    assert corpus.splits["train"][0].audio[0, :3].tolist() == [0, 0, 0]
    assert corpus.splits["train"][2].audio.shape == (0, 5)


def test_a_corpus_that_is_there_is_opened_and_nothing_put_in_its_place(content, save, tmp_path: Path, monkeypatch):
    folder = save(content)
    fingerprint = prepare(tmp_path / "cache", folder).fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(simsv2.safe_pickle, "load", lambda path: pytest.fail("read again"))
        assert prepare(tmp_path / "cache", folder).fingerprint == fingerprint
        (folder / simsv2.FILE).unlink()
        assert prepare(tmp_path / "cache").fingerprint == fingerprint
    content["train"]["raw_text"][0] = "别的"
    with pytest.raises(FileExistsError, match="simsv2 holds another corpus; delete it"):
        prepare(tmp_path / "cache", save(content))


def test_without_a_source_the_file_is_fetched(content, save, tmp_path: Path, monkeypatch):
    wanted = {tmp_path / "cache" / "raw" / "simsv2": save(content)}
    monkeypatch.setattr(hub, "fetch", lambda published, folder: hub.find(published, wanted[folder]))
    assert len(prepare(tmp_path / "cache").splits["train"]) == 4


def test_a_conversion_holds_one_clip_in_memory(save, tmp_path: Path):
    content = {name: split(name, 8) for name in SIZES}
    for fields in content.values():
        fields["audio"] = np.ones((8, 10_000, 25))  # 16 MB a split
        fields["audio_lengths"] = [10_000] * 8
    folder = save(content, dict.fromkeys(SIZES, 8))
    del content
    tracemalloc.start()
    prepare(tmp_path / "cache", folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


# What does not ---------------------------------------------------------------------------------------------------
def test_a_split_of_another_size_than_table_1_or_the_manifest_says_is_refused(content, save, tmp_path: Path):
    message = refuse(save(content, None), tmp_path / "cache")
    assert "split train must be of 2722 samples, the split's size in Table 1 of the paper, but is of 4; correct" in message
    message = refuse(save(content, {**SIZES, "valid": 5}), tmp_path / "cache")
    assert f"split valid must be of 5 samples, the split's size in {tmp_path / 'in' / 'manifest.json'}" in message


def test_a_file_that_is_no_dict_of_splits_is_refused(content, save, tmp_path: Path):
    assert "a dict with train, valid, test, but is a list" in refuse(save([content]), tmp_path / "cache")
    del content["valid"]
    assert "but is one with ['train', 'test']" in refuse(save(content), tmp_path / "cache")
    assert "a dict with raw_text" in refuse(save({**content, "valid": [1]}), tmp_path / "cache")


@pytest.mark.parametrize("field", simsv2._FIELDS)
def test_a_field_that_is_missing_or_of_other_length_is_named(content, save, tmp_path: Path, field: str):
    column = content["test"].pop(field)
    message = refuse(save(content), tmp_path / "cache")
    assert "split test" in message and f"without ['{field}']" in message
    content["test"][field] = column[:-1]
    message = refuse(save(content), tmp_path / "cache")
    assert "split test" in message and "equally many entries" in message and f"'{field}': 2" in message


OBJECTS = np.empty((), dtype=object)
OBJECTS[()] = [["long"] * 1000] * 1000


@pytest.mark.parametrize(
    ("field", "value", "came"),
    [
        ("audio", np.ones((4, 30)), "an array of shape (4, 30) and type float64"),
        ("vision", np.full((4, 3, 2), "a"), "an array of shape (4, 3, 2) and type <U1"),
        ("vision", [np.ones((3, 2))] * 4, "a list"),
        ("regression_labels", np.zeros((4, 1)), "an array of shape (4, 1) and type float64"),
        ("audio_lengths", 5, "5;"),
        ("raw_text", {"a": 1}, "a dict"),
    ],
)
def test_a_field_of_other_form_is_named(content, save, tmp_path: Path, field: str, value: object, came: str):
    content["train"][field] = value
    message = refuse(save(content), tmp_path / "cache")
    assert "split train" in message and f"'{field}' must be" in message and f"but is {came}" in message


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        *(("audio_lengths", value, "a whole number from 0 to the array's 30 frames")
          for value in (31, -1, 2.5, True, 10**400, -(10**400), 1e300)),
        *(("vision_lengths", value, "to the array's 9 frames") for value in (10, float("nan"), float("inf"), "3", None)),
        *(("regression_labels", value, "a finite number in [-1, 1]")
          for value in (1.2, float("nan"), "0", None, True, 10**400)),
        *(("raw_text", value, "a string") for value in (None, 3, b"bytes")),
        *(("id", value, "a string that is not empty") for value in (7, "", None)),
        ("id", "train$_$0000", "unique in its split, but is used before"),
        ("raw_text", "\ud800", "a string of valid Unicode"),
        *((field, OBJECTS, "an array of shape () and type object")
          for field in ("id", "raw_text", "regression_labels", "audio_lengths")),
    ],
)  # fmt: skip
def test_a_sample_that_does_not_conform_is_named(content, save, tmp_path: Path, field: str, value: object, expected: str):
    train = content["train"]
    train[field] = [*train[field]]
    train[field][2] = value
    message = refuse(save(content), tmp_path / "cache")
    shown = repr(value if field == "id" else "train$_$0002") if (field, value is OBJECTS) != ("id", True) else "an array"
    assert f"split train, sample 2 (id {shown}" in message and expected in message and len(message) < 500
    assert f"'{'text' if str(value) == chr(0xD800) else field}'" in message


def test_a_killed_conversion_does_not_fill_the_disk(content, save, tmp_path: Path, monkeypatch):
    left = tmp_path / "cache" / "data" / ".simsv2.building" / "half"
    left.parent.mkdir(parents=True)
    left.touch()
    asked = []
    monkeypatch.setattr(hub, "need_space", lambda *_: asked.append(left.exists()))
    prepare(tmp_path / "cache", save(content))
    assert asked == [False]


# The command -----------------------------------------------------------------------------------------------------
def test_the_command_shows_findings_and_the_corpus_and_escapes_what_it_ignored(content, save, tmp_path: Path, capsys):
    content["test"] |= {"x" * 10_000: 1, "\ud800": 2, 7: 3}
    assert simsv2.main(["--from", str(save(content)), "--cache", str(tmp_path / "cache")]) == 0
    shown = capsys.readouterr().out
    assert "Corpus simsv2" in shown and "GENERATED" in shown and "label < 0" in shown
    assert "oddity: ignored_field_\\ud800" in shown and "ignored_field_7" in shown and "ignored_field_xxxx" in shown
    lines = shown.splitlines()
    assert lines[-1] == str(tmp_path / "cache" / "data" / "simsv2") and len(lines) < 48 and max(map(len, lines)) < 200


def test_the_command_says_what_is_wrong(content, save, tmp_path: Path, capsys):
    assert simsv2.main(["--from", str(tmp_path), "--cache", str(tmp_path / "cache")]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("python -m data_prep.simsv2: ") and simsv2.FILE in shown.err
    assert "huggingface.co/datasets/AZYoung/SIMSV2_processed" in shown.err
    (cache := tmp_path / "a file").write_text("")
    assert simsv2.main(["--from", str(save(content)), "--cache", str(cache)], "cmpta data simsv2") == 1
    said = capsys.readouterr().err
    assert said.startswith("cmpta data simsv2: ") and f"{cache}/data/simsv2: a file stands where a folder must be" in said
