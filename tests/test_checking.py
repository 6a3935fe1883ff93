"""Clips that a trained run is asked about are checked as at conversion; labels may be missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmpta_lib.data.checking import checked
from cmpta_lib.data.corpus import Sample, Task
from cmpta_lib.data.store import write_corpus

SCORES, CLASSES = Task("regression", "zh"), Task("classification", "en", ("sad", "happy"))
WIDTHS = {"audio": 5, "vision": 4}


def clip(**changes: Any) -> Sample:
    return replace(Sample("a", "words", np.ones((3, 5)), np.ones((2, 4))), **changes)


def check(*samples: Any, task: Task = SCORES, **options: Any) -> tuple[list[Sample], dict[str, int]]:
    return checked(samples, task=task, widths=WIDTHS, where="your clips", **options)


def test_clips_need_no_label_and_may_be_without_face_or_voice():
    (first, second, third), repairs = check(clip(), clip(audio=None, text=""), clip(audio=None, vision=np.zeros((0, 4))))
    assert repairs == {} and first.label is None and first.audio.dtype == np.float32
    assert second.audio.shape == third.audio.shape == (0, 5) and third.vision.shape == (0, 4)
    assert check() == ([], {})


def test_what_is_not_finite_or_far_too_large_becomes_zero_and_is_counted():
    audio, vision = np.ones((3, 5)), np.ones((2, 4), np.float32)
    audio[0] = [np.nan, np.inf, -np.inf, 1e300, -1e30]
    vision[1, 1:] = np.nan, 1e17, -1e19
    (given, other), repairs = check(clip(audio=audio, vision=vision), clip())
    assert repairs == {"audio_nan": 1, "audio_inf": 3, "audio_huge": 1, "vision_nan": 1, "vision_huge": 1}
    np.testing.assert_array_equal(given.audio, [[0] * 5, [1] * 5, [1] * 5])
    np.testing.assert_array_equal(given.vision, np.array([[1, 1, 1, 1], [1, 0, 1e17, 0]], np.float32))
    assert np.isnan(audio[0, 0]) and np.isnan(vision[1, 1]), "the caller's arrays are left alone"


def test_a_conversion_stores_just_what_the_check_gives(tmp_path: Path):
    frames = np.array([[1, np.nan, 2, 1e300, 1e20]])
    samples = [clip(id=str(n), audio=frames * (n + 1), label=np.float64(0.1 * n)) for n in range(3)]
    ours, repairs = check(*samples, labelled=True)
    splits = {split: [sample] for split, sample in zip(("train", "valid", "test"), samples, strict=True)}
    corpus = write_corpus(tmp_path / "corpus", name="x", task=SCORES, splits=splits, generated=True)
    assert corpus.repairs == repairs
    for sample, split in zip(ours, corpus.splits.values(), strict=True):
        (theirs,) = split
        assert theirs.label == sample.label and type(sample.label) is float
        np.testing.assert_array_equal(theirs.audio, sample.audio)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio": np.ones((3, 6))}, "'audio' must be 5 features wide, as in training, but is 6 wide; extract all clips alike"),
        ({"vision": np.zeros((0, 5))}, "'vision' must be 4 features wide, as in training, but is 5 wide"),
        ({"vision": [[1, 2, 3, 4]]}, r"'vision' must be a \(T, F\) array of numbers, F >= 1, but is a list of length 1"),
        ({"vision": np.ones(4)}, r"'vision' must be a \(T, F\) array"),
        ({"vision": np.ones((2, 4), bool)}, r"'vision' must be a \(T, F\) array of numbers"),
        ({"text": None}, "'text' must be a string of valid Unicode, but is None; write '' if nothing is said"),
        ({"text": "\ud800"}, "'text' must be a string of valid Unicode"),
        ({"label": 7}, r"'label' must be in \[-1, 1\], but is 7"),
        ({"label": "happy"}, "'label' must be a number, but is 'happy'"),
    ],
)
def test_what_does_not_conform_names_sample_and_field(changes: dict, message: str):
    with pytest.raises(ValueError, match=rf"^your clips, sample 1 \(id 'b'\): {message}"):
        check(clip(), clip(id="b", **changes))


def test_classes_and_missing_labels_are_checked_where_they_count():
    assert check(clip(label=np.int64(1)), task=CLASSES)[0][0].label == 1
    with pytest.raises(ValueError, match="'label' must be a class index below 2, but is 2"):
        check(clip(label=2), task=CLASSES)
    with pytest.raises(ValueError, match="'label' must be a class index, but is None"):
        check(clip(), task=CLASSES, labelled=True)


def test_other_things_than_samples_are_named():
    with pytest.raises(ValueError, match="^your clips, sample 0 must be a Sample, but is a dict of length 1; make one"):
        check({"text": "words"})
