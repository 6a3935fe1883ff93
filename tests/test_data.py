"""The data contract: what is stored comes back, data issues are counted, and what does not conform is named."""

from __future__ import annotations

import os
import signal
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from cmpta_lib.data import corpus as data
from cmpta_lib.data import corpus as errors
from cmpta_lib.data.corpus import Corpus, Sample, Task, check_sample
from cmpta_lib.data.store import load_corpus, write_corpus

REGRESSION = Task("regression", "zh")


def sample(number: int = 0, **changes: Any) -> Sample:
    rng = np.random.default_rng(number)
    fields: dict[str, Any] = {
        "id": f"clip_{number}",
        "text": f"第{number}句",
        "audio": rng.normal(size=(3 + number, 5)).astype(np.float32),
        "vision": rng.normal(size=(2 * number, 4)).astype(np.float32),  # clip 0 has no vision
        "label": round(number / 10, 1),
    }
    return Sample(**(fields | changes))


def splits(train: int = 4, **changes: Any) -> dict[str, list[Sample]]:
    """Regression splits of `train`, 1 and 2 samples; `changes` go to the first of train."""
    first = [sample(0, **changes)]
    return {"train": first + [sample(n) for n in range(1, train)], "valid": [sample(5)], "test": [sample(6), sample(7)]}


def write(folder: Path, task: Task = REGRESSION, content: dict | None = None, **options: Any) -> Corpus:
    options = {"name": "tiny", "generated": True} | options
    return write_corpus(folder, task=task, splits=content or splits(), **options)


def left_in(folder: Path) -> list[str]:
    """What lies there beside locks and what was checked."""
    return sorted(path.name for path in folder.glob("*") if path.suffix not in (".lock", ".checked"))


def assert_same(ours: Sample, theirs: Sample) -> None:
    for name in ("id", "text", "label", "speaker", "dialogue", "extra"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("audio", "vision"):
        assert getattr(ours, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


# Storing and opening ---------------------------------------------------------------------------------------------
def test_what_is_written_is_read(tmp_path: Path):
    truth = {"face_start": 3, "bayes": 0.25, "face": ""}
    content = splits(speaker="Anna", dialogue="d1")
    content = {name: [replace(one, extra=truth) for one in samples] for name, samples in content.items()}
    corpus = write(tmp_path / "corpus", content=content, sources={"a.pkl": "0f"}, repairs={"odd": 2})
    for opened in (corpus, load_corpus(tmp_path / "corpus")):
        assert (opened.name, opened.task, opened.generated) == ("tiny", REGRESSION, True)
        assert (opened.sources, opened.repairs) == ({"a.pkl": "0f"}, {"odd": 2})
        for name, samples in content.items():
            split = opened.splits[name]
            assert (split.name, split.task, len(split)) == (name, REGRESSION, len(samples))
            assert (split.audio_dim, split.vision_dim) == (5, 4)
            assert list(split.table.columns) == [*data.COLUMNS, *truth] and type(split[0].extra["face_start"]) is int
            for ours, theirs in zip(split, samples, strict=True):
                assert_same(ours, theirs)


def test_a_split_is_a_sequence(tmp_path: Path):
    split = write(tmp_path / "corpus").splits["train"]
    assert [one.id for one in split] == ["clip_0", "clip_1", "clip_2", "clip_3"]
    assert_same(split[-1], sample(3))
    assert_same(split[np.int64(2)], sample(2))
    assert list(split.table.index) == [0, 1, 2, 3]
    assert list(split.table.audio_length) == [3, 4, 5, 6]
    np.testing.assert_array_equal(split.labels, [0, 0.1, 0.2, 0.3])
    split[1].audio[:] = split.labels[:] = 7  # what is handed out is the caller's own
    assert_same(split[1], sample(1))
    assert split.labels.max() < 1
    with pytest.raises(IndexError):
        split[4]
    with pytest.raises(TypeError):
        split[1:3]


def test_a_modality_may_be_absent_everywhere(tmp_path: Path):
    content = {name: [sample(n, vision=np.zeros((0, 4)))] for n, name in enumerate(splits())}
    split = write(tmp_path / "corpus", content=content).splits["test"]
    assert split[0].vision.shape == (0, 4)
    assert [part.tolist() for part in split.feature_statistics("vision")] == [[0] * 4, [1] * 4]


def big(count: int) -> Iterator[Sample]:
    for number in range(count):
        frames = np.full((1000, 250), number, np.float32)  # 1 MB
        yield sample(number, audio=frames, vision=frames[:1], label=0.0)


def test_features_are_streamed_in_and_mapped_out(tmp_path: Path):
    tracemalloc.start()
    corpus = write(tmp_path / "corpus", content={"train": big(40), "valid": big(1), "test": big(1)})
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    split = load_corpus(tmp_path / "corpus").splits["train"]
    assert split[30].audio.max() == 30
    opened = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    mean, std = split.feature_statistics("audio")
    summed = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert corpus.splits["train"].table.audio_length.sum() * 250 * 4 == 40_000_000
    assert written < 12_000_000 and opened < 6_000_000 and summed < 90_000_000  # a chunk is 33 MB in float64
    assert mean[0] == 19.5 and std[0] == pytest.approx(np.arange(40).std())


def test_nothing_is_left_when_a_sample_fails(tmp_path: Path):
    def failing() -> Iterator[Sample]:
        yield sample(0)
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write(tmp_path / "corpus", content=splits() | {"test": failing()})
    assert left_in(tmp_path) == []


def test_writing_the_same_again_opens_it_and_another_is_refused(tmp_path: Path):
    first = write(tmp_path / "corpus")
    assert write(tmp_path / "corpus").fingerprint == first.fingerprint
    with pytest.raises(FileExistsError, match="holds another corpus; delete it"):
        write(tmp_path / "corpus", content=splits(text="another"))
    assert left_in(tmp_path) == ["corpus"]
    assert_same(load_corpus(tmp_path / "corpus").splits["train"][0], sample(0))


def test_the_fingerprint_is_of_the_content_alone(tmp_path: Path):
    same = [write(tmp_path / "a"), write(tmp_path / "b", name="renamed", sources={"x": "1"})]
    changed_frame = sample(0).audio.copy()
    changed_frame[2, 4] += 1e-3
    others = [
        write(tmp_path / "c", content=splits(text="x")),
        write(tmp_path / "d", content=splits(label=0.5)),
        write(tmp_path / "e", content=splits(audio=changed_frame)),
        write(tmp_path / "f", content=splits(speaker="Anna")),
        write(tmp_path / "g", content=splits(train=3)),
        write(tmp_path / "h", task=Task("regression", "en")),
    ]
    assert same[0].fingerprint == same[1].fingerprint
    assert len({corpus.fingerprint for corpus in [*same, *others]}) == 7


def test_a_corpus_that_is_not_there_is_no_damage(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere is not there: .* write it with write_corpus"):
        load_corpus(tmp_path / "nowhere")


def test_values_in_messages_are_short_however_they_nest(tmp_path: Path):
    nested: Any = "\U0010ffff" * 1000
    for _ in range(6):
        nested = [nested] * 1000
    objects = np.array([None], dtype=object)
    objects[0] = nested
    assert errors.shown(objects) == "an array of shape (1,) and type object"
    assert errors.shown(nested) == "a list of length 1000" and errors.shown({1: nested}) == "a dict of length 1"
    for value in ("x" * 10**6, b"x" * 10**6, np.str_("x" * 10**6), 10**600, None, 1.5):
        assert len(errors.shown(value)) < 100
    assert (errors.shown("a"), errors.shown(3), errors.shown(None)) == ("'a'", "3", "None")
    for field in ("id", "text", "speaker", "label", "audio"):
        with pytest.raises(ValueError, match=r"an array of shape \(1,\) and type object") as caught:
            write(tmp_path / "corpus", content=splits(**{field: objects}))
        assert len(str(caught.value)) < 400


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path):
    def killed() -> Iterator[Sample]:
        yield sample(5)
        os.kill(os.getpid(), signal.SIGKILL)

    options = {"content": splits() | {"valid": killed()}}
    process = get_context("fork").Process(target=write, args=(tmp_path / "corpus",), kwargs=options)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and left_in(tmp_path) == [".corpus.building"]
    bystanders = {".corpus.notes", "corpus.x", ".corpus2.building"}
    for name in bystanders:
        (tmp_path / name).mkdir()
    assert_same(write(tmp_path / "corpus").splits["train"][0], sample(0))
    assert set(left_in(tmp_path)) == {"corpus"} | bystanders
    assert left_in(tmp_path / "corpus") == ["audio.f32", "meta.json", "table.parquet", "vision.f32"]


def test_a_writer_that_still_writes_is_waited_for(tmp_path: Path):
    folder, others = tmp_path / "corpus", []

    def slow() -> Iterator[Sample]:
        yield sample(5)
        other = Thread(target=lambda: others.append(write(folder)))
        other.start()
        others.append(other)

    corpus = write(folder, content=splits() | {"valid": slow()})
    others[0].join()
    assert left_in(tmp_path) == ["corpus"] and others[1].fingerprint == corpus.fingerprint


# Statistics ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_statistics_are_over_the_real_frames_of_the_split(tmp_path: Path, monkeypatch, chunk: int):
    monkeypatch.setattr(data, "_CHUNK_FRAMES", chunk)
    split = write(tmp_path / "corpus").splits["train"]
    for modality in ("audio", "vision"):
        frames = np.concatenate([getattr(sample(n), modality) for n in range(4)]).astype(np.float64)
        mean, std = split.feature_statistics(modality)
        assert mean.dtype == std.dtype == np.float32
        np.testing.assert_allclose(mean, frames.mean(0), rtol=1e-6)
        np.testing.assert_allclose(std, frames.std(0), rtol=1e-6)
        mean += 1  # the caller's own
    monkeypatch.setattr(split, "_frames", None)  # nothing is read again
    np.testing.assert_allclose(split.feature_statistics("vision")[0], frames.mean(0), rtol=1e-6)


def test_statistics_survive_large_offsets_and_constant_features(tmp_path: Path):
    rng = np.random.default_rng(0)
    varied = 1e6 + rng.normal(size=5000)  # E[x^2] - E[x]^2 in float32 would give noise
    columns = [varied, np.full(5000, 0.1), np.full(5000, -1e4 / 3), np.zeros(5000), 1e-30 * rng.normal(size=5000)]
    frames = np.stack(columns, axis=1).astype(np.float32)
    split = write(tmp_path / "corpus", content=splits(train=1, audio=frames)).splits["train"]
    mean, std = split.feature_statistics("audio")
    np.testing.assert_allclose(std, [varied.std(), 1, 1, 1, frames[:, 4].std(dtype=np.float64)], rtol=1e-2)
    assert np.isfinite((frames - mean) / std).all()


# Data issues and errors ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": 3}, r"sample 0 \(id 3\): 'id' must be a string"),
        ({"label": None}, r"'label' must be a number in \[-1, 1\], but is None; rescale"),
        ({"audio": None}, "but is None; an absent"),
        ({"id": "clip_1"}, r"sample 1 \(id 'clip_1'\): 'id' must be unique in its split, but is used before"),
        ({"audio": np.zeros((2, 6))}, r"sample 1 .*'audio' must be 6 features wide, as in the samples before, but is 5 wide"),
        ({"extra": {"face": 1}}, r"sample 1 .*'extra' must be alike in all samples, but is \[\]"),
        ({"extra": {"label": 1}}, r"'extra\[label\]' must be a number or string under a free name"),
        ({"extra": {"window": (1, 2)}}, r"'extra\[window\]' must be a number or string"),
    ],
)
def test_samples_that_do_not_conform_are_named(tmp_path: Path, changes: dict, message: str):
    with pytest.raises(ValueError, match=f"^corpus tiny, split train, .*{message}"):
        write(tmp_path / "corpus", content=splits(**changes))


def test_splits_must_be_three_and_filled(tmp_path: Path):
    with pytest.raises(ValueError, match=r"expected the splits \('train', 'valid', 'test'\), but \('train',\) came"):
        write(tmp_path / "corpus", content={"train": [sample()]})
    with pytest.raises(ValueError, match="split valid: holds no samples"):
        write(tmp_path / "corpus", content=splits() | {"valid": []})


@pytest.mark.parametrize(
    "arguments",
    [("ranking", "en"), ("regression", "de"), ("regression", "en", ("a",)), ("classification", "en", ("a", "a"))],
)
def test_tasks_are_checked(arguments: tuple):
    with pytest.raises(ValueError, match="expected|class name"):
        Task(*arguments)


# Clips that a trained run is asked about: checked as at conversion; labels may be missing -----------------------------
EMOTIONS = Task("classification", "en", ("sad", "happy"))


def clip(**changes: Any) -> Sample:
    return replace(Sample("a", "words", np.ones((3, 5)), np.ones((2, 4))), **changes)


def check(one: Any, task: Task = REGRESSION, labelled: bool = False) -> tuple[Sample, dict[str, int]]:
    repairs: Counter[str] = Counter()
    widths = {"audio": 5, "vision": 4}
    return check_sample(one, "your clips", task, widths, repairs, labelled=labelled, like="in training"), repairs


def test_clips_need_no_label_and_may_be_without_face_or_voice():
    first, repairs = check(clip(audio=None, text=""))
    assert repairs == {} and first.label is None and first.audio.shape == (0, 5) and first.vision.dtype == np.float32
    assert check(clip(audio=None, vision=np.zeros((0, 4))))[0].vision.shape == (0, 4)


def test_what_is_not_finite_or_far_too_large_becomes_zero_and_is_counted(tmp_path: Path):
    audio, vision = np.ones((3, 5)), np.ones((2, 4), np.float32)
    audio[0] = [np.nan, np.inf, -np.inf, 1e300, -1e30]
    vision[1, 1:] = np.nan, 1e17, -1e19
    given = clip(audio=audio, vision=vision, label=np.float64(0.1))
    ours, repairs = check(given)
    assert repairs == {"audio_nan": 1, "audio_inf": 3, "audio_huge": 1, "vision_nan": 1, "vision_huge": 1}
    np.testing.assert_array_equal(ours.audio, [[0] * 5, [1] * 5, [1] * 5])
    np.testing.assert_array_equal(ours.vision, np.array([[1, 1, 1, 1], [1, 0, 1e17, 0]], np.float32))
    assert np.isnan(audio[0, 0]) and np.isnan(vision[1, 1]), "the caller's arrays are left alone"
    assert type(ours.label) is float
    corpus = write(tmp_path / "corpus", content=splits() | {"valid": [given]})  # a conversion stores just that
    assert corpus.repairs == repairs
    assert_same(corpus.splits["valid"][0], ours)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio": np.ones((3, 6))}, "'audio' must be 5 features wide, as in training, but is 6 wide; extract all clips alike"),
        ({"vision": np.zeros((0, 5))}, "'vision' must be 4 features wide, as in training, but is 5 wide"),
        ({"vision": [[1, 2, 3, 4]]}, r"'vision' must be a \(T, F\) array of numbers, F >= 1, but is a list of length 1"),
        *(({"vision": frames}, r"'vision' must be a \(T, F\) array of numbers")
          for frames in (np.ones(4), np.ones((2, 0)), np.ones((2, 4), bool), np.array([["a"]]))),
        ({"text": None}, "'text' must be a string of valid Unicode, but is None; correct it, or write '' if nothing is said"),
        ({"text": "\ud800"}, "'text' must be a string of valid Unicode"),
        ({"speaker": float("nan")}, "'speaker' must be a string of valid Unicode, but is nan"),
        ({"audio": np.zeros(5)}, r"'audio' must be a \(T, F\) array .* but is an array of shape \(5,\) and type float64"),
        *(({"label": label}, rf"'label' must be a number in \[-1, 1\], but is {label!r}; rescale scores")
          for label in (float("nan"), True, 7, "happy")),
    ],
)  # fmt: skip
def test_what_does_not_conform_names_sample_and_field(changes: dict, message: str):
    with pytest.raises(ValueError, match=rf"^your clips \(id 'b'\): {message}"):
        check(clip(id="b", **changes))


def test_classes_and_missing_labels_are_checked_where_they_count():
    assert check(clip(label=np.int64(1)), task=EMOTIONS)[0].label == 1
    for label in (2, -1, 0.0):
        with pytest.raises(ValueError, match=f"'label' must be a class index below 2, but is {label}"):
            check(clip(label=label), task=EMOTIONS)
    with pytest.raises(ValueError, match="'label' must be a class index below 2, but is None"):
        check(clip(), task=EMOTIONS, labelled=True)


def test_other_things_than_samples_are_named():
    with pytest.raises(ValueError, match="^your clips must be a Sample, but is a dict of length 1; make one"):
        check({"text": "words"})
