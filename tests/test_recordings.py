"""From a folder of recordings to a corpus: what stands in labels.csv, the split, features that survive anything, reading."""

import csv
import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

import cmpta_lib
from cmpta_lib import files
from cmpta_lib.data.corpus import Inputs, Task
from data_prep import clips, features, recordings
from data_prep.asked import clips_in
from data_prep.features import FeatureSet, Recipe, Unusable
from data_prep.public_pickles import read_folder

READY = ["--audio", "mine=10", "--vision", "none"]
NAMES = [f"{name}.mp4" for name in "abcdef"]
PEOPLE = "file,label,speaker\n" + "".join(f"{name},{'xy'[n % 2]},p{n // 2}\n" for n, name in enumerate(NAMES))
SEEN = recordings.each


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recordings, "each", lambda work, calls, jobs: itertools.starmap(work, calls))


def folder_of(place: Path, table: str | bytes | None = PEOPLE, names=NAMES) -> Path:
    """Empty recordings, which nobody opens, with ready frames beside each."""
    place.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        np.save(path.with_suffix(".mine.npy"), np.full((3 + number, 4), number, np.float32))
    if table is not None:
        (place / "labels.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    return place


def made(folder: Path, *options: str) -> dict:
    assert clips.main([str(folder), *READY, "--jobs", "1", *options]) == 0
    out = folder / "features"
    return files.read_checksummed(out / "clips.json", "")


def changed(old: str, new: str) -> str:
    assert old in PEOPLE
    return PEOPLE.replace(old, new)


ROW = "a.mp4,x,p0\n"
REFUSED = {  # table -> what its one line says
    "no label": (changed("a.mp4,x,", "a.mp4,,"), r"row 1 \('a.mp4'\): 'label' is empty: fill it"),
    "blank label": (changed("a.mp4,x,", "a.mp4,  ,"), "'label' is empty"),
    "many without": (PEOPLE.replace(",x,", ",,"), r"row 1 \('a.mp4'\) and 2 more: 'label' is empty"),
    "no file": (changed("a.mp4", ""), r"row 1 \(''\): 'file' is empty"),
    "twice": (PEOPLE + ROW, r"row 7 \('a.mp4'\): a row before has it too: keep one"),
    "twice, once without ending": (PEOPLE + "a,x,p0\n", r"row 7 \('a.mp4'\): a row before"),
    "decimal comma": (changed("a.mp4,x,", 'a.mp4,"0,5",'), "'label' has a decimal comma: write a point"),
    "near label": (changed("label", "lable"), "one column 'label', .* is one with 'file', 'lable', 'speaker'; write"),
    "near file": (changed("file", "filename"), "one column 'file', .* but is one with 'filename'"),
    "near speaker": (changed("speaker", "speaker_id"), "one column 'speaker', .*'speaker_id'; write its first line so"),
    "no header": (PEOPLE.partition("\n")[2], "one column 'file', .* but is one with 'a.mp4', 'x', 'p0'; write"),
    "two labels": (changed("speaker", "label"), "one column 'label', .* but is one with 'file', 'label', 'label'"),
    "one word": ("hello", "one column 'file', .* but is one with 'hello'"),
    "no rows": ("file,label\n", "no clip is in train or in valid or in test; add some"),
    "blank rows only": ("file,label\n,\n\n , \n", "no clip is in train or in valid or in test; add some"),
    "nothing": ("", "expected a table in UTF-8, found No columns"),
    "blank lines": ("\n\n", "expected a table in UTF-8"),
    "UTF-16": (PEOPLE.encode("utf-16"), "expected a table in UTF-8, found .*decode byte.*CSV UTF-8"),
    "UTF-16 without a mark": (PEOPLE.encode("utf-16-le"), "must be a table with one column 'file'"),
    "Latin-1": (changed(",x,", ",fröhlich,").encode("latin-1"), "expected a table in UTF-8"),
    "GBK": (changed(",x,", ",高兴,").encode("gbk"), "expected a table in UTF-8"),
    "an open quote": (changed(ROW, 'a.mp4,"x,p0\n'), "expected a table in UTF-8, found .*EOF inside string.*in quotes"),
    "a comma too many": (changed(ROW, "a.mp4,x,p0,oh,well\n"), "found .*Expected 3 fields in line 2, saw 5.*in quotes"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "expected a table in UTF-8"),
    "one class": (PEOPLE.replace(",y,", ",x,"), "two classes or more"),
    "three clips": ("file,label\na,x\nb,y\n", "who speaks is not said in 2 of 2 rows"),
    "two people": (PEOPLE.replace("p2", "p1"), "fewer than three people.*: 2, so test would not be on new people.*--same-people"),
    "unknown people": (changed("p2", ""), "who speaks is not said in 2 of 6 rows .*--same-people"),
    "one dialogue": (
        "file,label,speaker,dialogue\n" + "".join(f"{name},{'xy'[n % 2]},p{n},d\n" for n, name in enumerate(NAMES)),
        "groups of people who share dialogues: 1",
    ),
    "one person written in three ways": (
        PEOPLE.replace("p0", "Anna").replace("p1", "anna").replace("p2", " ANNA"),
        "fewer than three people.*: 1, so",
    ),
    "a number and no number": (
        "file,label,speaker\n" + "".join(f"{name},{['NaN', *'12345'][n]},p{n}\n" for n, name in enumerate(NAMES)),
        "most labels are numbers, and 'NaN' none; correct them",
    ),
    "a quote that is missing": (
        'file,label,speaker,text\na,x,p0,"hi\nb,y,p0,ho\nc,x,p1,"\nd,y,p1,\ne,x,p2,\nf,y,p2,\n',
        r"row 1 \('a.mp4'\): 'text' goes on over several lines as if a quote were missing",
    ),
    "no recording at all": (PEOPLE.replace(".mp4", ".gone"), "no clip is in .*; 6 clips cannot be used .there is no .*'a.gone'"),
}
SPLITS = ["train", "train", "Val", "dev", "test", "TEST"]


def with_split(splits, speakers=True) -> str:
    rows = [line.split(",") for line in PEOPLE.splitlines()]
    body = [f"{one[0]},{one[1]},{one[2] if speakers else ''},{split}" for one, split in zip(rows[1:], splits, strict=True)]
    return "\n".join(["file,label,speaker,split", *body])


REFUSED |= {
    "another split": (with_split(["trian", *SPLITS[1:]]), r"row 1 \('a.mp4'\): 'split' must be train, valid or test: correct it"),
    "some splits": (with_split(["", *SPLITS[1:]]), r"row 1 \('a.mp4'\): 'split' is empty, but not in every row"),
    "no valid": (with_split(["train", "train", "train", "train", "test", "test"]), "no clip is in valid; add some"),
    "a class of test": (with_split(["test", "train", "valid", "train", "test", "test"], False), "must be one of train's labels"),
    "people in two splits": (
        with_split(["train", "test", "valid", "valid", "test", "train"]),
        r"people of train are in valid or test too \('p0', 'p2'\), so",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_table_cannot_be_is_said_in_one_line_before_anything_is_made(case: str, tmp_path: Path):
    table, said = REFUSED[case]
    folder = folder_of(tmp_path / "my clips", table)
    with pytest.raises((ValueError, OSError), match=f"(?s){said}") as caught:
        made(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 and "labels.csv" in str(caught.value)
    assert not (folder / "features" / "clips.json").exists()


TOLD = {  # table -> what is told of it, with the clips that are made all the same
    "as it should be": (PEOPLE, "", NAMES),
    "a byte order mark": (b"\xef\xbb\xbf" + PEOPLE.encode(), "", NAMES),
    "Windows": (PEOPLE.replace("\n", "\r\n"), "", NAMES),
    "an old Mac": (PEOPLE.replace("\n", "\r"), "", NAMES),
    "semicolons": (PEOPLE.replace(",", ";"), "", NAMES),
    "tabs": (PEOPLE.replace(",", "\t"), "", NAMES),
    "spaces and capitals": (changed("file,label,speaker", " File , LABEL,Speaker "), "", NAMES),
    "spaces after commas": (PEOPLE.replace(",", ", "), "", NAMES),
    "no endings": (PEOPLE.replace(".mp4", ""), "", NAMES),
    "dots before": (PEOPLE.replace("a.mp4", "./a.mp4"), "", NAMES),
    "backslashes": (PEOPLE.replace("a.mp4", ".\\a.mp4"), "", NAMES),
    "blank lines and columns": ("\n" + PEOPLE.replace("\n", ",,\n") + ",,,,\n\n", "", NAMES),
    "a name above": (PEOPLE + "../a.mp4,x,p1\n", "1 rows of labels.csv have no recording: '../a.mp4'", NAMES),
    "an absolute name": (PEOPLE + "/etc/passwd,x,p1\n", "1 rows of labels.csv have no recording: '/etc/passwd'", NAMES),
    "on a drive": (PEOPLE + "C:\\a.mp4,x,p1\n", "1 rows of labels.csv have no recording: 'C:/a.mp4'", NAMES),
    "NUL": (PEOPLE + "c\0.mp4,x,p1\n", r"1 rows of labels.csv have no recording: 'c\\x00.mp4'", NAMES),
    "other columns": (changed("speaker", "speaker,sex,title"), "columns that are not read: 'sex', 'title'", NAMES),
    "a column like another": (changed("speaker", "speaker,speaker_id"), "columns that are not read: 'speaker_id'", NAMES),
    "a row without a recording": (PEOPLE + "g,x,p1\n", "1 rows of labels.csv have no recording: 'g'", NAMES),
    "a recording without a row": (changed(ROW, ""), "1 recordings have no row in labels.csv: 'a.mp4'", NAMES[1:]),
    "a split": (with_split(SPLITS), "", NAMES),
    "a split, people unknown": (with_split(SPLITS, False), "who speaks is not said in 6 of 6 rows", NAMES),
    "people of valid in test": (
        with_split(SPLITS).replace("p2", "p1"), r"people of valid who are in test too, or dialogues in two splits: 'p1'", NAMES,
    ),
    "whole numbers": (PEOPLE.replace(",x,", ",1,").replace(",y,", ",2,"), "before training: .*may be classes or scores", NAMES),
    "wide scores": (PEOPLE.replace(",x,", ",1.5,").replace(",y,", ",4,"), "before training: .*--data scores=LOW..HIGH", NAMES),
}  # fmt: skip


@pytest.mark.parametrize("case", TOLD)
def test_tables_as_programs_write_them_are_read_and_what_is_odd_is_told(case: str, tmp_path: Path, capsys):
    table, said, names = TOLD[case]
    content = made(folder_of(tmp_path / "clips", table))
    told = capsys.readouterr()
    assert [clip["file"] for clip in content["clips"]] == names
    assert {clip["split"] for clip in content["clips"]} == {"train", "valid", "test"}
    about = [line for line in told.err.splitlines() if line and ": audio: mine" not in line and "clips, " not in line]
    assert (len(about) == bool(said)) and pd.Series(about or [""]).str.contains(said).all(), about
    assert ("next: cmpta reproduce --data" in told.out) != said.startswith("before training")


def test_folders_of_others_are_not_written_to(tmp_path: Path):
    folder, other = folder_of(tmp_path / "clips"), folder_of(tmp_path / "other")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "labels.csv").write_text(PEOPLE + "gone,x,p0\n")
    for options in (["--to", str(mine)], ["--to", str(mine), "--labels", str(mine / "labels.csv")]):
        with pytest.raises(ValueError, match="mine holds what was not made of .* by this command; name another folder by --to"):
            made(folder, *options)
    assert "gone" in (mine / "labels.csv").read_text()
    made(other)
    with pytest.raises(ValueError, match="features holds what was not made of"):
        made(folder, "--to", str(other / "features"))
    made(other, "--labels", str(other / "features" / "labels.csv"))


def test_labels_and_recordings_that_changed_since_are_named(tmp_path: Path):
    folder = folder_of(tmp_path / "clips")
    made(folder)
    assert len(read_folder(folder, tmp_path / "cache").splits["train"]) == 2
    np.save(folder / "a.mine.npy", np.full((3, 4), 9, np.float32))  # of the same size as before
    (folder / "labels.csv").write_text(PEOPLE.replace("x,p0", "y,p0"))
    with pytest.raises(ValueError, match=r"'labels.csv', 'a.mine.npy' changed since .*; call `cmpta data clips` again"):
        read_folder(folder, tmp_path / "cache")
    assert made(folder)["clips"][0]["label"] == "y" and read_folder(folder, tmp_path / "cache")
    (folder / "labels.csv").write_text(PEOPLE.replace(".mp4", ".gone"))
    with pytest.raises(ValueError, match="no clip is in"):  # what an earlier call made is not trained on by a slip
        made(folder)
    with pytest.raises(ValueError, match="changed since"):
        read_folder(folder, tmp_path / "cache")


def test_clips_of_nothing_are_told(tmp_path: Path, capsys):
    folder = folder_of(tmp_path / "clips")
    np.save(folder / "a.mine.npy", np.zeros((0, 4)))
    np.save(folder / "b.mine.npy", np.full((2, 4), 1e300))
    content, told = made(folder), capsys.readouterr()
    assert "1 clips have neither words nor sound nor face: 'a.mp4'" in told.out and "Warning" not in told.err
    assert content["clips"][0]["notes"] == {"no_audio_frames": 1}


def test_names_may_be_anything_and_lie_anywhere(tmp_path: Path):
    names = ["=1+1.ogg", "a b.mp4", "a.b.c.mp3", "it's \"q\".mov", "one\ntwo.mkv", "café.flac", "x/same.mp4", "y/same.MP4"]
    names.append("深/高兴 😀.wav")
    rows = io.StringIO()
    text = '说\n"a", b'
    lines = [(name, "xy"[number % 2], text, f"p{number % 4}") for number, name in enumerate(names)]
    csv.writer(rows).writerows([("file", "label", "text", "speaker"), *lines])
    folder = folder_of(tmp_path / "录音 1", rows.getvalue(), names)
    content = made(folder)
    assert [clip["file"] for clip in content["clips"]] == sorted(names) and content["name"] == "录音 1"
    assert {clip["text"] for clip in content["clips"]} == {text}
    assert {name.encode().isascii() for name in os.listdir(folder / "features" / "clips")} == {True}
    again = made(folder, "--labels", str(folder / "features" / "labels.csv"))  # a full table, to be used again
    assert [(clip["file"], clip["split"]) for clip in again["clips"]] == [(c["file"], c["split"]) for c in content["clips"]]


def test_what_is_no_recording_is_not_read(tmp_path: Path, capsys):
    folder = folder_of(tmp_path / "clips")
    other = folder_of(tmp_path / "other", None, ["far.mp4"])
    (folder / "._a.mp4").touch()
    (folder / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (folder / "linked").symlink_to(other)
    (folder / "folder.mp4").mkdir()
    (folder / "features").mkdir()
    (folder / "features" / "notes.txt").touch()
    assert [clip["file"] for clip in made(folder)["clips"]] == NAMES
    told = capsys.readouterr().err
    assert "or a link to a folder or to nothing: '._a.mp4', 'folder.mp4', 'gone.mp4' and 1 more" in told
    (folder / "features" / "b.mp4").touch()
    for out in (folder / "features", folder, tmp_path):
        with pytest.raises(ValueError, match="holds recordings, and features need a folder of their own; name another by --to"):
            made(folder, "--to", str(out))


def test_without_a_table_its_first_lines_are_said(tmp_path: Path):
    folder = folder_of(tmp_path / "clips", None)
    with pytest.raises(FileNotFoundError, match=r"its first line is file,label,text,.* the next like a.mp4,LABEL,,,,"):
        made(folder)
    with pytest.raises(FileNotFoundError, match="none.csv"):
        made(folder, "--labels", str(tmp_path / "none.csv"))
    with pytest.raises(FileNotFoundError, match="expected a folder of recordings, and there is none"):
        made(tmp_path / "nowhere")
    for odd in (["--jobs", "0"], ["--longest", "nan"], ["--openface-csv", "x", "--vision", "none"], ["--labels"]):
        with pytest.raises(SystemExit, match="2"):
            made(folder, *odd)


BROKEN = {  # what lies in place of a clip's frames -> why it is left out
    "gone": (None, "as numpy.save writes it, but is 'No such file or directory'"),
    "text": (b"hello", "as numpy.save writes it, but is 'This file"),
    "empty": (b"", "as numpy.save writes it, but is 'No data left in file'"),
    "objects": (np.array([{}]), "as numpy.save writes it, but is 'Object array"),
    "flat": (np.zeros(4), "must be audio frames, a .T, F. array of numbers, .* is an array of shape .4,. and type float64"),
    "words": (np.array([["a"]]), "must be audio frames, a .T, F. array of numbers"),
    "no columns": (np.zeros((4, 0)), "must be audio frames, a .T, F. array of numbers"),
    "wide": (np.zeros((4, 5)), "wide.mp4 has 5 audio features a frame, and most clips 4; make them alike"),
}


def test_clips_that_cannot_be_used_are_named_and_the_rest_goes_on(tmp_path: Path, capsys):
    names = [*NAMES, *(f"{kind}.mp4" for kind in BROKEN)]
    table = PEOPLE + "".join(f"{kind}.mp4,x,p{n % 3}\n" for n, kind in enumerate(BROKEN))
    folder = folder_of(tmp_path / "clips", table, names)
    for kind, (content, _) in BROKEN.items():
        path = folder / f"{kind}.mine.npy"
        path.unlink() if content is None else path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    content, told = made(folder), capsys.readouterr()
    assert [clip["file"] for clip in content["clips"]] == NAMES and len(content["left_out"]) == len(BROKEN)
    for kind, (_, said) in BROKEN.items():
        assert pd.Series([content["left_out"][f"{kind}.mp4"]]).str.contains(said).all(), kind
    assert "8 left out" in told.out and told.err.count("left out: ") == 8
    for path in folder.glob("[c-f].mine.npy"):
        path.unlink()
    with pytest.raises(ValueError, match="no clip is in .* or in .*; 12 clips cannot be used"):
        made(folder)


# --- the split -----------------------------------------------------------------------------------------------------------


def rows_of(people: int, each: int, labels: int, dialogues: bool = False) -> pd.DataFrame:
    pairs = itertools.product(range(people), range(each))
    every = [(f"{p}/{n}.wav", f"l{(p + n) % labels}", "", "", f"p{p}", f"d{p // 2}" * dialogues) for p, n in pairs]
    return pd.DataFrame(every, columns=recordings.COLUMNS).sort_values("file", ignore_index=True)


@pytest.mark.parametrize(("people", "each", "labels"), [(3, 2, 2), (3, 40, 5), (4, 3, 3), (7, 10, 4), (24, 60, 8), (200, 3, 6)])
@pytest.mark.parametrize("dialogues", [False, True])
def test_a_split_keeps_people_and_dialogues_apart_and_every_class_in_train(people, each, labels, dialogues):
    dialogues = dialogues and people > 5
    rows = rows_of(people, each, labels, dialogues)
    rows["split"], told = recordings.split(rows, False, "x")
    for key in ("speaker", "dialogue")[: 1 + dialogues]:
        assert rows.groupby(key)["split"].nunique().eq(1).all()
    shares = rows["split"].value_counts(normalize=True)
    assert set(shares.index) == {"train", "valid", "test"} and not told
    assert set(rows["label"]) == set(rows["label"][rows["split"] == "train"])
    if people >= 7 and not (people == 7 and dialogues):  # four groups there
        assert 0.6 < shares["train"] < 0.8 and 0.1 < shares["valid"] < 0.2 and 0.1 < shares["test"] < 0.2


def test_a_class_of_one_person_stays_in_train_and_one_big_person_too():
    rows = rows_of(8, 10, 2)
    rows.loc[rows["file"].str.startswith("5/"), "label"] = "rare"
    assert set(recordings.split(rows, False, "x")[0][rows["label"] == "rare"]) == {"train"}
    rows.loc[rows.index < 50, "speaker"] = "big"
    assert set(recordings.split(rows, False, "x")[0][rows["speaker"] == "big"]) == {"train"}


def test_few_scores_are_spread_over_the_splits():
    """Ten people with a score each: not the lowest to train and the highest to test."""
    rows = rows_of(10, 1, 1).assign(label=[f"{n / 10 + 0.05}" for n in range(10)])
    splits, told = recordings.split(rows, False, "x")
    assert not told and {*splits} == {"train", "valid", "test"}
    assert rows["label"].astype(float)[splits == "train"].max() > 0.8 and (splits == "train").sum() >= 4


def test_the_same_people_may_be_in_all_splits_where_that_is_said():
    rows = rows_of(1, 60, 3)
    rows["split"], told = recordings.split(rows, True, "x")
    assert "WARNING: there are fewer than three people" in told[0] and "scores say nothing about new people" in told[0]
    assert (pd.crosstab(rows["label"], rows["split"]).min() >= [2, 12, 2]).all()
    rows["label"] = [f"{n / 60}" for n in range(60)]  # scores: quarters of them are alike in all splits
    rows["split"], _ = recordings.split(rows.assign(split=""), True, "x")
    assert rows["label"].astype(float).groupby(rows["split"]).mean().between(0.4, 0.6).all()
    with pytest.raises(ValueError, match="x: 2 clips, at most 1 of a label or dialogue, are too few for three splits"):
        recordings.split(rows_of(1, 2, 2), True, "x")


def test_the_order_of_rows_changes_nothing(tmp_path: Path):
    head, *lines = PEOPLE.splitlines()
    first = made(folder_of(tmp_path / "a" / "clips"))
    second = made(folder_of(tmp_path / "b" / "clips", "\n".join([head, *reversed(lines)])))
    assert second | {"labels": first["labels"]} == first  # but for the table's own hash


# --- features that survive anything -----------------------------------------------------------------------------------------


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "features").rglob("[!.]*")) if path.is_file()}


def test_only_what_changed_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = folder_of(tmp_path / "clips")
    asked: list[str] = []
    real = recordings.attempt
    monkeypatch.setattr(recordings, "attempt", lambda path, recipe: asked.append(path.name) or real(path, recipe))
    made(folder)
    first, places = bytes_of(folder), sorted((folder / "features" / "clips").glob("*.safetensors"))
    assert asked == NAMES and len(places) == 6
    asked.clear()
    made(folder)
    assert asked == [] and bytes_of(folder) == first
    places[0].write_bytes(places[0].read_bytes()[:-1] + b"x")  # another number
    places[1].write_bytes(places[1].read_bytes()[:100])
    places[2].unlink()
    (folder / "features" / "clips" / ".x.partial").touch()
    made(folder)
    assert asked == NAMES[:3] and bytes_of(folder) == first
    asked.clear()
    np.save(folder / "a.mine.npy", np.ones((2, 4), np.float32))
    (folder / "b.mp4").write_bytes(b"cut anew")
    made(folder)
    assert asked == NAMES[:2]
    asked.clear()
    for path in folder.glob("*.mine.npy"):
        shutil.copy(path, path.with_name(path.name.replace("mine", "other")))
    made(folder, "--audio", "other=20")
    assert asked == NAMES


def pictures(place: Path, seconds: float, shift: int) -> None:
    """A real portrait that moves, and a hum."""
    av = pytest.importorskip("av", reason="needs the extra `features`")
    cbook, image = pytest.importorskip("matplotlib.cbook"), pytest.importorskip("matplotlib.image")
    portrait = image.imread(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))[::2, ::2]  # (300, 256, 3)
    with av.open(str(place), "w") as out:
        video, audio = out.add_stream("mpeg4", rate=10), out.add_stream("pcm_s16le", rate=16000)
        video.width, video.height, video.pix_fmt = 240, 288, "yuv420p"
        audio.layout = "mono"
        for number in range(int(seconds * 10)):
            top = (number + shift) % 12
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(portrait[top : top + 288, 8:248]))
            out.mux(video.encode(frame))
        wave = (8000 * np.sin(np.arange(int(16000 * seconds)) * (0.05 + shift / 100))).astype(np.int16)[None]
        sound = av.AudioFrame.from_ndarray(wave, "s16", "mono")
        sound.sample_rate = 16000
        out.mux(audio.encode(sound))
        for stream in (video, audio):
            out.mux(stream.encode())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("av", "opensmile", "mediapipe"):
        pytest.importorskip(name, reason="needs the extra `features`")
    folder = tmp_path_factory.mktemp("real") / "faces"
    folder.mkdir()
    for number in range(6):
        pictures(folder / f"{'abcdef'[number]}.mkv", 0.5, number)
    (folder / "labels.csv").write_text(PEOPLE.replace(".mp4", ".mkv"))
    return folder


COMMAND = [sys.executable, "-m", "cmpta_lib.cli", "data", "clips", "--vision", "none"]


def test_a_killed_call_is_gone_on_with_and_any_number_of_jobs_gives_the_same_bytes(real: Path, tmp_path: Path):
    for name in ("once", "killed"):
        shutil.copytree(real, tmp_path / name / "faces")
    once, killed = (tmp_path / name / "faces" for name in ("once", "killed"))
    assert clips.main([str(once), "--vision", "none"]) == 0  # in this process
    with subprocess.Popen([*COMMAND, str(killed), "--jobs", "2"], start_new_session=True, stderr=subprocess.DEVNULL) as process:
        while not list(killed.glob("features/clips/*.safetensors")):
            time.sleep(0.02)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    gone, alive = psutil.wait_procs(family, timeout=20)
    assert not [one for one in alive if one.status() != "zombie"]  # workers end with who started them
    assert not (killed / "features" / "clips.json").exists()
    before = {path: path.stat().st_mtime_ns for path in killed.glob("features/clips/[!.]*")}
    done = subprocess.run([*COMMAND, str(killed), "--jobs", "1"], check=True, capture_output=True, text=True)
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())
    assert bytes_of(killed) == bytes_of(once) and len(bytes_of(once)) == 14
    assert "6 clips (2 train" in done.stdout and "clips a minute" in done.stderr


def test_a_call_that_is_interrupted_ends_its_workers_and_says_one_line(real: Path, tmp_path: Path):
    folder = shutil.copytree(real, tmp_path / "faces")
    with subprocess.Popen([*COMMAND, str(folder), "--jobs", "2"], stderr=subprocess.PIPE, text=True) as process:
        while len(family := psutil.Process(process.pid).children(recursive=True)) < 2:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and not [one for one in family if one.is_running() and one.status() != "zombie"]
    assert said.endswith("interrupted; what is finished is kept, call again to go on\n") and "Traceback" not in said


def test_a_process_that_dies_costs_its_own_clip():
    found = list(SEEN(eval, [("2 + 2",), ("__import__('os').abort()",), ("8",)], 1))
    assert [found[0], found[2]] == [4, 8] and isinstance(found[1], Unusable)
    assert "abort(): reading it ended its process (a library crashed, or memory ran out)" in str(found[1])


def test_faces_and_voices_are_read_and_files_that_are_no_recordings_are_named(real: Path, tmp_path: Path, capsys):
    folder, table = shutil.copytree(real, tmp_path / "faces"), PEOPLE.replace(".mp4", ".mkv")
    whole = (folder / "a.mkv").read_bytes()
    odd = {"empty": b"", "text": b"hello", "cut": whole[:300], "noise": bytes(range(256)) * 40, "zeros": bytes(5000)}
    for number, (name, content) in enumerate(odd.items()):
        (folder / f"{name}.mp4").write_bytes(content)
        table += f"{name},x,p{number % 3}\n"
    (folder / "labels.csv").write_text(table)
    assert clips.main([str(folder)]) == 0
    content = files.read_checksummed(folder / "features" / "clips.json", "")
    assert set(content["left_out"]) == {f"{name}.mp4" for name in odd}
    assert all(f"{name}:" in f"{Path(name).name}:" and "mp4" in said for name, said in content["left_out"].items())
    said = capsys.readouterr().out
    assert "6 clips (2 train, 2 valid, 2 test) of 3 people; 5 left out" in said and "frames with a face: 100.0% of" in said
    (folder / "b.wav").touch()
    (folder / "labels.csv").write_text(table.replace(".mkv", ""))
    with pytest.raises(ValueError, match=r"row 2 \('b.mkv'\): several recordings have that name: write its ending too"):
        clips.main([str(folder), "--vision", "none"])


# --- reading ---------------------------------------------------------------------------------------------------------------


def test_what_was_made_is_a_corpus_that_can_be_trained_on(tmp_path: Path, capsys):
    folder, cache = folder_of(tmp_path / "my clips"), tmp_path / "cache"
    np.save(folder / "a.mine.npy", np.full((4, 4), np.nan))
    with pytest.raises(FileNotFoundError, match=f"recordings need features first: cmpta data clips {folder}"):
        read_folder(folder, cache)
    content = made(folder)
    capsys.readouterr()
    corpus = read_folder(folder, cache)
    assert "2 classes: x, y; 2 train, 2 valid, 2 test clips: audio in 6" in capsys.readouterr().err
    assert (corpus.name, corpus.task.labels) == ("my clips", ("x", "y")) and corpus.repairs == {"audio_nan": 16}
    assert corpus.features == {"audio": {"set": "mine-1", "hop_ms": 10.0}} == content["recipe"]
    every = {sample.id: sample for split in corpus.splits.values() for sample in split}
    assert sorted(every) == NAMES and every["c.mp4"].speaker == "p1" and every["c.mp4"].audio.tolist() == [[2] * 4] * 5
    assert corpus.sources.keys() == {"clips.json", *(clip["features"] for clip in content["clips"])}
    again = read_folder(folder / "features", cache)
    assert again.fingerprint == corpus.fingerprint and len(list(cache.glob("my clips-*/"))) == 1
    study = cmpta_lib.Study(data=folder)  # what `cmpta reproduce --data` and `cmpta_lib.train` work on
    assert (study.name, study.corpus("data").fingerprint) == ("my clips", corpus.fingerprint)
    path = folder / "features" / "clips" / content["clips"][0]["features"]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(files.Damaged, match=f"{path.name} is not the file that was written .*cmpta data clips"):
        read_folder(folder, cache)
    path.unlink()
    with pytest.raises(files.Damaged, match="is missing; call `cmpta data clips` on the recordings again"):
        read_folder(folder, cache)
    made(folder)
    content["recipe"]["audio"]["set"] = "mine-0"
    files.write_text(folder / "features" / "clips.json", files.checksummed(content))
    with pytest.raises(ValueError, match="clips.json is of audio mine-0 every 10 ms, and this version makes audio mine-1"):
        read_folder(folder, cache)


def test_labels_of_recordings_are_said_as_those_of_pickles(tmp_path: Path, capsys):
    folder, cache = folder_of(tmp_path / "clips", PEOPLE.replace(",x,", ",1,").replace(",y,", ",2,")), tmp_path / "cache"
    made(folder)
    with pytest.raises(ValueError, match="may be classes or scores; say it in the call, --data classes:FOLDER"):
        read_folder(folder, cache)
    assert read_folder(f"classes:{folder}", cache).task.labels == ("1", "2")
    assert read_folder(f"scores=1..5:{folder}", cache).task.score_range == (1, 5)
    (folder / "corpus.json").write_text('{"task": "classes", "language": "zh"}')
    assert read_folder(folder, cache).task.language == "zh"
    (folder / "x_train.pkl").touch()
    with pytest.raises(ValueError, match="holds public pickles and what was made of recordings"):
        read_folder(folder, cache)


def test_a_warning_stays_with_what_was_made(tmp_path: Path, capsys):
    folder = folder_of(tmp_path / "clips", PEOPLE.replace("p1", "p0").replace("p2", "p0"))
    made(folder, "--same-people")
    for _ in range(2):
        capsys.readouterr()
        read_folder(folder, tmp_path / "cache")
        assert "WARNING: there are fewer than three people" in capsys.readouterr().err


def test_clips_are_asked_about_as_they_are_trained_on(tmp_path: Path, capsys):
    folder = folder_of(tmp_path / "clips", "file,text,speaker\na.mp4,hello,p\nb.mp4,,\nmisspelt.mp4,word,\n")
    (folder / "c.mine.npy").unlink()
    task, recipe = Task("classification", "en", ("x", "y")), Recipe(FeatureSet("mine", 10.0), None)
    inputs = Inputs(task, {"audio": 4, "vision": 1}, recipe.stored())
    found = {about.id: clip for about, clip in clips_in(folder, inputs, "run")}
    assert list(found) == NAMES and isinstance(found["c.mp4"], Unusable)
    sample = found["a.mp4"]
    assert (sample.id, sample.text, sample.speaker, sample.label) == ("a.mp4", "hello", "p", None)
    assert sample.audio.shape == (3, 4) and found["b.mp4"].text == ""
    told = capsys.readouterr().err
    assert "1 rows of labels.csv have no recording: 'misspelt.mp4'" in told and "4 recordings have no row" in told
    assert [about.id for about, _ in clips_in(folder / "b.mp4", inputs, "run")] == ["b.mp4"]
    with pytest.raises(ValueError, match=r"expected recordings \(.mp4, .m4v, .mkv, ...\), found none"):
        shutil.rmtree(folder)
        list(clips_in(tmp_path, inputs, "run"))


@pytest.mark.parametrize("error", [AttributeError, NameError, TypeError, KeyError, IndexError, AssertionError])
def test_an_error_of_the_program_is_no_bad_recording(error, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def extract(path: Path, recipe: Recipe) -> None:
        raise error("oh")

    monkeypatch.setattr(features, "extract", extract)
    with pytest.raises(error, match="oh"):
        made(folder_of(tmp_path / "clips"))


@pytest.mark.parametrize("error", [OSError, ValueError, RuntimeError, MemoryError, ZeroDivisionError, "av", "cv2"])
def test_what_libraries_say_of_odd_content_is(error, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if isinstance(error, str):  # a library's own, which is none of the usual kinds
        library = pytest.importorskip(error, reason="needs the extra `features`")
        error = library.error.DecoderNotFoundError(1, "no decoder") if error == "av" else library.error("odd")

    def extract(path: Path, recipe: Recipe) -> None:
        raise error

    monkeypatch.setattr(features, "extract", extract)
    assert "a.mp4 cannot be read" in str(recordings.attempt(tmp_path / "a.mp4", Recipe()))


def test_a_folder_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    folder = folder_of(tmp_path / "clips")
    (folder / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked")
    made(folder)
    assert "a folder without permission, or a link to a folder or to nothing: 'locked'" in capsys.readouterr().err


def test_sound_by_whisper_and_words_are_of_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from data_prep.features import speech

    folder = folder_of(tmp_path / "clips")
    monkeypatch.setattr(speech, "find", lambda name: tmp_path / name)
    with pytest.raises(ValueError, match="--audio whisper has its sound from whisper-base, so that must hear the words too"):
        clips.main([str(folder), "--audio", "whisper", "--vision", "none", "--transcribe", "other"])
