"""A user's own folder: what is wrong in it is blamed on the right file and sample, and what is odd is said aloud."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data import item, save

from data_prep import hub, meld, published, safe_pickle, simsv2, verify
from data_prep.public_pickles import read_folder
from data_prep.verify import findings


def convert(folder: Path) -> Any:
    return read_folder(folder, folder.parent / "cache")


def counts(corpus: Any, check: str) -> dict[str, int]:
    found = findings(corpus)
    return found[found["check"] == check].set_index("split")["count"].to_dict()


# --- blame ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_an_empty_split_blames_its_own_file(tmp_path: Path, split: str):
    folder = save(tmp_path / "in")
    (folder / f"tiny_{split}.pkl").write_bytes(b"\x80\x04].")  # []
    with pytest.raises(ValueError, match=f"^{folder}/tiny_{split}.pkl.*(is empty; fill it|holds no samples; every split)"):
        convert(folder)


MIXED = "sample {}: 'label' must be a number, as for 2 of the 3 samples in train, but is 'joy'; correct it"


@pytest.mark.parametrize(
    ("train", "others", "message"),
    [
        (("joy", "joy"), "joy", " must be of two classes or more, but is of 'joy' alone; add"),
        (("joy", 0.2, 0.3), 0.1, ", " + MIXED.format(0)),
        ((0.1, 0.2, "joy"), 0.1, ", " + MIXED.format(2)),
        ((0.1, "joy", "anger"), "joy", ", sample 0: 'label' must be one of train's labels"),
    ],
)
def test_labels_that_do_not_go_together_blame_the_odd_one(tmp_path: Path, train: tuple, others: object, message: str):
    folder = save(tmp_path / "in", [item(label) for label in train], [item(others)], [item(others)])
    with pytest.raises(ValueError, match=f"^{folder}/tiny_train.pkl{message}"):
        convert(folder)


@pytest.mark.parametrize(
    ("label", "remedy"),
    [
        ("", "write the class's name"),
        (" \n", "write the class's name"),
        *((label, "write 'joy'") for label in ("joy ", "\tjoy", "jo\u200by", "joy\n", "joy\x00", "joy\ud800")),
        ("mixed\xa0 feelings", "write 'mixed feelings'"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_that_look_like_others_are_refused(tmp_path: Path, label: str, remedy: str, split: str):
    folder = save(tmp_path / "in", **{split: [item("joy"), item("anger"), item(label)]})
    with pytest.raises(ValueError, match="'label' must be a class name of visible characters") as caught:
        convert(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder}/tiny_{split}.pkl, sample 2: ") and message.endswith(f"; {remedy}")
    assert message.isprintable()


def test_a_label_as_long_as_a_book_is_refused_as_such(tmp_path: Path):
    folder = save(tmp_path / "in", [item("joy"), item("a" * 100_000)])
    message = "sample 1: 'label' must be a class name of at most 100 characters, but is one of 100000, 'aaa"
    with pytest.raises(ValueError, match=message):
        convert(folder)
    words = ["joy", "mixed feelings", "愤怒", "je-ne-sais-quoi", "9", "a" * 100]
    assert convert(save(tmp_path / "other", [item(word) for word in words])).task.labels == tuple(sorted(words))


@pytest.mark.parametrize("name", [".", "..", ".hidden", "a\nb", "a\x7f", "\udcff", "n" * 240, "名" * 80])
def test_a_name_that_cannot_name_results_is_refused(tmp_path: Path, name: str):
    folder = save(tmp_path / "in", name=name)
    with pytest.raises(ValueError, match=f"^{folder}: the dataset's name, .* must be one .*; rename or remove") as caught:
        convert(folder)
    assert len(str(caught.value)) < 400 and str(caught.value).isprintable()
    assert not (tmp_path / "cache").exists()
    assert convert(save(tmp_path / "longest", name="n" * 120)).name == "n" * 120


def forbid(patch: pytest.MonkeyPatch, owner: Any, name: str, wanted: Path) -> None:
    """As the system would answer somebody who may not; root may all."""
    real: Callable = getattr(owner, name)

    def call(path: Path, *rest: Any, **named: Any) -> Any:
        if Path(path) == wanted:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **named)

    patch.setattr(owner, name, call)


@pytest.mark.parametrize(
    ("owner", "call", "wanted"),
    [(hub, "hash_of", "tiny_valid.pkl"), (safe_pickle, "load", "tiny_test.pkl"), (Path, "iterdir", "")],
)
def test_a_file_that_may_not_be_read_is_named_with_what_to_do(tmp_path: Path, monkeypatch, owner, call: str, wanted: str):
    folder = save(tmp_path / "in")
    forbid(monkeypatch, owner, call, folder / wanted)
    with pytest.raises(PermissionError, match=f"cannot read {folder / wanted}: no permission; grant it, or read a copy"):
        convert(folder)


def test_a_cache_that_may_not_be_written_is_named_with_what_to_do(tmp_path: Path, monkeypatch):
    folder = save(tmp_path / "in")
    forbid(monkeypatch, Path, "mkdir", tmp_path / "cache")
    with pytest.raises(PermissionError, match=f"cannot write {tmp_path}/cache/tiny-.*: no permission: .* CMPTA_RUNS"):
        convert(folder)


# --- oddities ---------------------------------------------------------------------------------------------------------


def clips(count: int, seed: int, **changes: Any) -> list[dict]:
    """Clips that differ."""
    rng = np.random.default_rng(seed)
    frames = [rng.normal(size=(6, 3)).astype(np.float32) for _ in range(count)]
    labels = ("joy", "anger")
    return [item(labels[n % 2], f"clip {seed} {n}", audio=audio, audio_len=6, **changes) for n, audio in enumerate(frames)]


def test_values_that_would_flatten_a_feature_become_zero_and_are_counted(tmp_path: Path):
    train = clips(30, 0)
    train[4]["features"]["audio"][2, 1] = 1e30
    corpus = convert(save(tmp_path / "in", train, clips(2, 1), clips(2, 2)))
    assert corpus.repairs == {"audio_huge": 1} and counts(corpus, "oddity: audio_huge") == {"all": 1}
    assert corpus.splits["train"].feature_statistics("audio")[1].max() < 2


def test_a_feature_that_one_frame_rules_is_listed(tmp_path: Path):
    train = clips(30, 0)
    train[4]["features"]["audio"][2, 1] = 1e12
    corpus = convert(save(tmp_path / "in", train, clips(2, 1), clips(2, 2)))
    assert counts(corpus, "audio features ruled by one frame") == {"train": 1}
    (shown,) = findings(corpus).query("check == 'audio features ruled by one frame'")["examples"]
    assert shown == "feature 1 by a value about 1e+12"
    clean = convert(save(tmp_path / "clean", clips(30, 0), clips(2, 1), clips(2, 2)))
    for modality in ("audio", "vision"):
        assert counts(clean, f"{modality} features ruled by one frame") == {"train": 0}


def test_clips_with_neither_face_nor_voice_are_listed(tmp_path: Path):
    corpus = convert(save(tmp_path / "in", [item(), item("anger", audio_len=0, video_len=0), item(audio_len=0)]))
    assert counts(corpus, "neither face nor voice") == {"train": 1, "valid": 0, "test": 0}


def test_one_file_under_two_names_is_said_aloud_in_every_call(tmp_path: Path, capsys):
    folder = save(tmp_path / "in", train := clips(8, 0), clips(2, 1), train)
    for _ in range(2):
        corpus = convert(folder)
        said = capsys.readouterr().err.splitlines()
        assert said[0].startswith(f"{folder}: WARNING: tiny_train.pkl = tiny_test.pkl: one file under two names")
        assert said[1].startswith(f"{folder}: WARNING: 8 of 8 test clips are in train too (train_00000 = test_00000, ")
    assert counts(corpus, "files with equal contents") == {"all": 1}
    assert counts(corpus, "same clip") == {"train+valid": 0, "train+test": 8, "valid+test": 0}
    assert verify.report(corpus).startswith("WARNING: ")
    table = verify.overview([corpus])
    assert table["check"][:2].str.startswith("WARNING: ").all() and set(table["corpus"]) == {"tiny"}
    page = verify.summary(table)
    assert page["check"][:2].tolist() == table["check"][:2].tolist() and page["count"][:2].tolist() == ["1", "1"]
    assert page.set_index("check").loc["same clip", "count"] == "train+test 8"


@pytest.mark.parametrize("present", ["audio", "video"])
def test_the_same_clip_in_two_files_is_said_aloud(tmp_path: Path, capsys, present: str):
    absent = {"audio": "video", "video": "audio"}[present]
    twice, other = (item("joy", "Hey!", **{f"{absent}_len": 0}) for _ in range(2))
    other["features"][present] = other["features"][present] + 1  # the same words in another voice
    other["features"][f"{present}_len"] = twice["features"][f"{present}_len"]
    corpus = convert(save(tmp_path / "in", [item("anger", "No!"), twice], [twice], [other]))
    assert counts(corpus, "same clip") == {"train+valid": 1, "train+test": 0, "valid+test": 0}
    assert "1 of 1 valid clips are in train too (train_00001 = valid_00000): valid scores" in capsys.readouterr().err


def test_clean_clips_are_converted_without_a_word(tmp_path: Path, capsys):
    corpus = convert(save(tmp_path / "in", clips(8, 0), clips(2, 1), clips(2, 2)))
    assert capsys.readouterr() == ("", "") and verify.warnings(corpus) == []


def test_conversions_lie_where_every_study_looks(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path / "runs"))
    corpus = read_folder(save(tmp_path / "in"))
    assert {path.name[:5] for path in (tmp_path / "runs" / "cache" / "data").iterdir()} == {"tiny-"}
    assert corpus.name == "tiny"


def test_published_corpora_are_fetched_by_name_and_others_left_alone(tmp_path: Path, monkeypatch):
    asked: list[tuple[str, Path]] = []
    for module in (simsv2, meld):
        monkeypatch.setattr(module, "prepare", lambda cache, name=module.NAME: asked.append((name, cache)))
    published.fetch(["embedded-sims", "meld", "simsv2"], tmp_path)
    assert asked == [("meld", tmp_path), ("simsv2", tmp_path)]
