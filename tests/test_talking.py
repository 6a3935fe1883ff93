"""The clips that notebook 15 and the checks of recordings are made of: the same for a seed, and read as any recording."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import talking_clips

av = pytest.importorskip("av", reason="recordings need PyAV: pip install 'cmpta[features]'")
FACES = Path(__file__).parents[2] / "shared" / "data" / "cremad"  # a developer's copy; nothing depends on it


@pytest.fixture
def silent(monkeypatch):
    """No espeak-ng here, whatever this machine has."""
    monkeypatch.setattr(talking_clips, "espeak", lambda: None)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*")}


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_seed_gives_the_same_clips_and_another_others(silent, tmp_path: Path):
    one, again, other = (
        files(talking_clips.make(tmp_path / name, clips=2, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == again and set(one) == {"clip_000.mp4", "clip_001.mp4", "labels.csv"}
    assert len({one["clip_000.mp4"], one["clip_001.mp4"], other["clip_000.mp4"]}) == 3


def test_a_clip_is_a_recording_with_moving_pictures_and_sound(silent, tmp_path: Path):
    (line,) = lines(talking_clips.make(tmp_path, clips=1))
    with av.open(str(tmp_path / line["file"])) as container:
        seconds, rate = container.duration / 1e6, container.streams.video[0].average_rate
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(tmp_path / line["file"])) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert rate == 25 and pictures[0].shape == (240, 320, 3) and 1 < seconds < 6
    assert len(pictures) == pytest.approx(25 * seconds, abs=2) and len(sound) == pytest.approx(
        22_050 * seconds, abs=2_500
    )
    assert np.abs(pictures[0].astype(float) - pictures[-1]).mean() > 1 and np.abs(sound).max() > 0.05
    assert line["label"] in talking_clips.LABELS.values() and line["text"] in talking_clips.SENTENCES


def test_every_speaker_shows_every_face_and_words_know_nothing_of_it(monkeypatch, silent, tmp_path: Path):
    """Else a split by people would leave a class out, or the words would tell it."""
    monkeypatch.setattr(talking_clips, "write", lambda *_: None)
    monkeypatch.setattr(talking_clips, "hum", lambda *_: np.zeros(9, np.int16))
    six = [talking_clips.Face([np.zeros((9, 9, 3), np.uint8)], 25, label) for label in talking_clips.LABELS.values()]
    monkeypatch.setattr(talking_clips, "still", lambda: six)
    told = lines(talking_clips.make(tmp_path, clips=600))
    pairs = Counter((line["speaker"], line["label"]) for line in told)
    assert len(pairs) == 10 * 6 and set(pairs.values()) == {10}
    said = Counter((line["text"], line["label"]) for line in told)
    expected = 600 / len(talking_clips.SENTENCES) / 6
    assert sum((said[text, label] - expected) ** 2 / expected for text in talking_clips.SENTENCES
               for label in talking_clips.LABELS.values()) < 130  # chi square, 85 degrees of freedom: 0.1 %  # fmt: skip


def test_what_is_missing_is_said_in_a_line(silent, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="holds no recording of a face: expected .flv, .mp4"):
        talking_clips.make(tmp_path / "out", faces=tmp_path)
    clip = talking_clips.make(tmp_path / "made", clips=1) / "clip_000.mp4"
    (tmp_path / "mine").mkdir()
    shutil.copyfile(clip, tmp_path / "mine" / "me.mp4")
    with pytest.raises(
        ValueError, match="me.mp4: nobody says what it shows; name it as CREMA-D does, or add it to .*labels.csv"
    ):
        talking_clips.make(tmp_path / "out", faces=tmp_path / "mine")
    (tmp_path / "mine" / "labels.csv").write_text("file,label\nme.mp4,calm\n")
    assert [face.label for face in talking_clips.recorded(tmp_path / "mine")] == ["calm"]
    with pytest.raises(ImportError, match="need espeak-ng: apt install espeak-ng, or pip install espeakng-loader"):
        talking_clips.make(tmp_path / "out", faces=tmp_path / "mine")


@pytest.mark.skipif(not FACES.is_dir(), reason="real recordings of faces are not beside the checkout")
@pytest.mark.skipif(not talking_clips.espeak(), reason="no espeak-ng here")
def test_of_recorded_faces_the_label_is_the_face_s(tmp_path: Path):
    made = [talking_clips.make(tmp_path / name, FACES, clips=2) for name in ("a", "b")]
    assert files(made[0]) == files(made[1])
    assert [line["label"] for line in lines(made[0])] == ["anger", "disgust"]
