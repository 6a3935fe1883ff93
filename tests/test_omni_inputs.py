"""What an omni model is shown of a clip and asked: recordings found and decoded, what is missing, the words of questions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from omni_models import write_recording

from cmpta_lib import files
from cmpta_lib.beyond import omni
from cmpta_lib.beyond.omni import MEDIA, OmniConfig, question
from cmpta_lib.data.corpus import Task

MELD = Task("classification", "en", ("neutral", "joy", "anger"))
SIMS = Task("regression", "zh")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CMPTA_MEDIA, with a folder for the corpus "talks"."""
    monkeypatch.setenv(MEDIA, str(tmp_path / "media"))
    monkeypatch.setattr(omni, "find_spec", lambda name: name)  # finding a file does not need PyAV itself
    (tmp_path / "media" / "talks").mkdir(parents=True)
    return tmp_path / "media" / "talks"


@pytest.fixture
def av():
    return pytest.importorskip("av", reason="PyAV, the extra 'omni', is not installed")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_recordings_are_found_by_id_also_below_folders_and_with_sims_separator_and_nowhere_else(folder):
    touch(folder, "a.mp4", "a.wav", "dia0/utt1.mkv", "video_1/0002.avi", "x$_$1.wav", "../secret.wav")
    found = omni.find_recordings("talks", ["a", "dia0/utt1", "video_1$_$0002", "x$_$1"])
    names = [path.relative_to(folder).as_posix() for path in found.values()]
    assert names == ["a.mp4", "dia0/utt1.mkv", "video_1/0002.avi", "x$_$1.wav"]
    with pytest.raises(FileNotFoundError, match="no recording of 1 of 1 clips"):
        omni.find_recordings("talks", ["../secret"])


def test_what_is_missing_is_said_once_with_what_to_do(folder, monkeypatch):
    touch(folder, "a.mp4")
    with pytest.raises(FileNotFoundError, match=r"no recording of 2 of 3 clips; the first is 'b', expected b.mp4 or .mkv"):
        omni.find_recordings("talks", ["a", "b", "c"])
    monkeypatch.setenv(MEDIA, "media")
    assert "CMPTA_MEDIA is media, expected the whole path" in omni.missing_recordings("talks")
    monkeypatch.setenv("HOME", str(folder.parents[1]))
    monkeypatch.setenv(MEDIA, "~/media")
    assert omni.find_recordings("talks", ["a"]) == {"a": folder / "a.mp4"}
    assert "of a folder that holds films" in omni.missing_recordings("films") and omni.missing_recordings("talks") == ""
    monkeypatch.setattr(omni, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="PyAV, which reads recordings, is not installed: pip install av"):
        omni.find_recordings("talks", ["a"])
    monkeypatch.delenv(MEDIA)
    with pytest.raises(FileNotFoundError, match="set CMPTA_MEDIA to the folder that holds talks/<clip id>.mp4"):
        omni.find_recordings("talks", ["a"])


def test_a_fingerprint_tells_contents_and_ids_apart_and_reads_unchanged_files_once(folder, tmp_path, monkeypatch):
    touch(folder, "a.mp4", "b.mp4")
    both = {"a": folder / "a.mp4", "b": folder / "b.mp4"}
    record, read = tmp_path / "cache" / "talks.json", []
    monkeypatch.setattr(files, "sha256", lambda path, of=files.sha256: read.append(path.name) or of(path))
    first = omni.recordings_fingerprint(both, record)
    assert first == omni.recordings_fingerprint(dict(reversed(both.items())), record) and read == ["a.mp4", "b.mp4"]
    assert omni.recordings_fingerprint({"b": both["a"], "a": both["b"]}, record) != first, "the clips swapped recordings"
    (folder / "b.mp4").write_bytes(b"B.mp4")
    assert omni.recordings_fingerprint(both, record) != first
    (folder / "b.mp4").write_bytes(b"b.mp4")
    record.write_text("{")
    assert omni.recordings_fingerprint(both, record) == first, "a damaged record is made anew"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_sound_and_picture_come_back_at_the_right_rate_length_and_colour(av, tmp_path, suffix):
    path = write_recording(tmp_path / f"clip{suffix}", seconds=2.0, hz=440.0)
    clip = omni.read_recording(path, "clip", "words", frames_per_second=2.0)
    assert (clip.id, clip.text, clip.was_cut) == ("clip", "words", False)
    assert clip.audio.dtype == np.float32 and abs(clip.audio.size - 32_000) < 1_100  # AAC pads to whole blocks
    middle = clip.audio[8_000:24_000]
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() == 440, "one bin is one Hz"
    assert abs(np.abs(middle).max() - 0.5) < 0.03
    assert clip.frames.dtype == np.uint8 and clip.frames.shape == (4, 48, 64, 3) and clip.frames_per_second == 2.0
    for number, frame in enumerate(clip.frames):  # every fifth of ten frames a second
        assert np.abs(frame.reshape(-1, 3).mean(0) - (50 * number, 60, 200)).max() < 6


def test_a_recording_with_few_frames_shows_each_as_long_as_it_stood_and_a_long_one_is_cut(av, tmp_path):
    path = write_recording(tmp_path / "clip.avi", seconds=3.0)
    clip = omni.read_recording(path, "clip", "words", max_seconds=1.5)
    assert clip.was_cut and clip.audio.size == 24_000 and len(clip.frames) == 3
    assert not omni.read_recording(path, "clip", "words", max_seconds=4.0).was_cut
    clip = omni.read_recording(path, "clip", "words", audio=False, frames_per_second=20.0)
    assert clip.audio is None and len(clip.frames) == 59  # ten frames a second, the last at 2.9 s


def test_only_what_is_asked_for_and_there_is_read(av, tmp_path):
    both = write_recording(tmp_path / "both.mkv")
    wav = write_recording(tmp_path / "sound.wav")
    silent = write_recording(tmp_path / "silent.mkv", sound=False)
    short = write_recording(tmp_path / "short.wav", seconds=0.05)
    assert omni.read_recording(both, "a", "", vision=False).frames is None
    assert omni.read_recording(both, "a", "", audio=False).audio is None
    assert omni.read_recording(wav, "a", "").frames is None and omni.read_recording(wav, "a", "").audio.size == 32_000
    assert omni.read_recording(silent, "a", "").audio is None and omni.read_recording(silent, "a", "").frames is not None
    assert omni.read_recording(short, "a", "").audio is None, "too short for an audio encoder"


def test_a_file_that_cannot_be_decoded_is_named_with_its_clip(av, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"this is no film" * 100)
    with pytest.raises(ValueError, match=r"bad.mp4: the recording of clip 'a' cannot be decoded \(.*\); replace the file"):
        omni.read_recording(tmp_path / "bad.mp4", "a", "words")


def test_the_question_names_what_is_shown_and_nothing_else():
    settings = OmniConfig()
    said = {(a, v): question(settings, MELD, a, v).prompt for a in (False, True) for v in (False, True)}
    assert said[True, True] == (
        "You are presented with a video in which the speaker says: {text}. Based on the text, video, and audio content, what "
        "is the emotion of this speaker?\nThe candidate labels for emotion are: [neutral, joy, anger]. Respond in the format: "
        "'emotion: [label]'. Only one label should be provided."
    )
    assert "video" not in said[False, False] + said[True, False] and "audio" not in said[False, False] + said[False, True]
    scores = question(settings, SIMS, False, False)
    assert "the sentiment of this speaker, from -1.0 (most negative) to +1.0 (most positive)?" in scores.prompt
    assert scores.written[0] == "sentiment: -1.0" and len(scores.written) == 21
    assert question(OmniConfig(subject="mood"), MELD, True, True).written[1] == "mood: joy"
    paper = question(OmniConfig(prompt="paper"), MELD, True, True)
    assert paper.prompt.startswith("<Multimodal>{text}</Multimodal>Please recognize") and paper.written == ("0", "1", "2")


@pytest.mark.parametrize(
    ("reply", "place"),
    [("emotion: joy", 1), ("Joy.", 1), ("emotion: [anger]", 2), ("[neutral]", 0), ("**joy**\nas she laughs", 1)]
    + [(other, None) for other in ("happy", "", "joy or anger", "mood: joy", "no joy")],
)
def test_a_free_reply_is_a_legal_answer_or_none(reply, place):
    assert question(OmniConfig(), MELD, True, True).parse(reply) == place
