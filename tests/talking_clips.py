"""Labelled recordings to try everything on: real moving faces with synthesised speech, as mp4 files and labels.csv.

    python tests/talking_clips.py OUT --faces FOLDER --clips 60 --seed 0

FOLDER holds recordings of faces, named as CREMA-D names them (1001_DFA_ANG_XX.flv) or labelled in a labels.csv of their own.
Each clip shows the pictures of one of them, another part at another speed, cropped, mirrored, lighter or darker, and says a
sentence in the voice of one of ten speakers by espeak-ng. Its label is that of the face; the voice leans a little towards it,
the words know nothing of it, and the lips do not follow the words.

Without --faces there is one still portrait (from matplotlib), moved about under two labels, which mean nothing, with a hum
where there is no espeak-ng: enough to see that everything runs. The same arguments give the same clips on one machine.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import io
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

LABELS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happiness", "NEU": "neutral", "SAD": "sadness"}
SENTENCES = (
    "The bus to the station leaves at nine.", "I left the keys on the kitchen table.", "We are going to paint the door green.",
    "My brother called from the office today.", "There is a letter for you in the hall.", "They moved the meeting to Friday.",
    "The shop on the corner sells old books.", "She put the kettle on and sat down.", "You can see the river from the roof.",
    "He has been working on it since Monday.", "It is warmer inside than I thought.", "The train was full all the way home.",
    "Nobody has opened that window for years.", "I will bring the chairs in before it rains.", "Our neighbours have a new dog.",
    "The film starts in about ten minutes.", "Leave your coat over there, please.", "We bought the last two tickets.",
)  # fmt: skip
# Ten people: espeak-ng's voice, pitch (0 to 99) and words a minute.
SPEAKERS = (
    ("en-us+m1", 35, 165), ("en-us+f1", 55, 175), ("en+m3", 40, 155), ("en+f2", 60, 180), ("en-us+m7", 30, 185),
    ("en-us+f4", 65, 160), ("en-gb-scotland+m2", 45, 170), ("en+f5", 50, 190), ("en-us+m4", 38, 150), ("en+f3", 58, 168),
)  # fmt: skip
LEANING = {"anger": (6, 18), "fear": (10, 22), "happiness": (8, 8), "disgust": (-4, -8), "sadness": (-8, -20)}
SUFFIXES = (".flv", ".mp4", ".mkv", ".mov", ".avi", ".webm")
RATE_HZ, FPS, SIZE = 22_050, 25, (320, 240)  # espeak-ng's own rate; width and height
Speak = Callable[[str, str, int, int], np.ndarray]  # words, voice, pitch, words a minute -> (N,) int16


class Face(NamedTuple):
    """Pictures of one person, (H, W, 3) uint8 each, `fps` a second, and what they show; one picture stays still."""

    pictures: Sequence[np.ndarray]
    fps: float
    label: str


def make(out: Path, faces: Path | None = None, clips: int = 60, seed: int = 0) -> Path:
    """Write `clips` clips and labels.csv (file, label, text, speaker) into `out`; returns it.

    Raises:
        FileNotFoundError, ValueError: `faces` holds no recording, or one whose label is unknown.
        ImportError: there are faces, and no espeak-ng to speak; says how to get it.
    """
    shown = [*recorded(faces)] if faces else still()
    speak = espeak() or (None if faces else hum)
    if speak is None:
        raise ImportError("talking clips need espeak-ng: apt install espeak-ng, or pip install espeakng-loader")
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(clips):
        rng = np.random.default_rng([seed, number])
        person = number % len(SPEAKERS)  # and every one of them shows every face, if there are clips enough
        face = shown[(number + number // len(SPEAKERS)) % len(shown)]
        (voice, *usual), text = SPEAKERS[person], str(rng.choice(SENTENCES))
        pitch, pace = (
            int(base + leaning + rng.normal(0, spread))
            for base, leaning, spread in zip(usual, LEANING.get(face.label, (0, 0)), (5, 10), strict=True)
        )
        sound = speak(text, voice, int(np.clip(pitch, 0, 99)), pace)
        name = f"clip_{number:03d}.mp4"
        write(out / name, moving(face, len(sound) / RATE_HZ, rng), sound)
        lines.append((name, face.label, text, f"speaker_{person + 1:02d}"))
    with (out / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("file", "label", "text", "speaker"), *lines])
    return out


# --- faces ---------------------------------------------------------------------------------------------------------------


def recorded(folder: Path) -> Iterator[Face]:
    """The recordings of a folder, by name."""
    import av

    known = dict[str, str]()
    if (table := folder / "labels.csv").is_file():
        with table.open(newline="", encoding="utf-8") as file:
            known = {line["file"]: line["label"] for line in csv.DictReader(file)}
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"{folder} holds no recording of a face: expected {', '.join(SUFFIXES)}")
    for path in paths:
        code = [LABELS[part] for part in path.stem.split("_") if part in LABELS]
        if not (label := known.get(path.name) or next(iter(code), "")):
            raise ValueError(f"{path}: nobody says what it shows; name it as CREMA-D does, or add it to {table}")
        with av.open(str(path)) as container:
            rate = float(container.streams.video[0].average_rate or FPS)
            yield Face([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], rate, label)


def still() -> list[Face]:
    """One portrait under two labels: a few clips are enough for all splits to have both."""
    from matplotlib.cbook import get_sample_data

    with get_sample_data("grace_hopper.jpg") as file:
        portrait = np.asarray(Image.open(file).convert("RGB"))[:480]
    return [Face([portrait], FPS, label) for label in ("happiness", "sadness")]


def moving(face: Face, seconds: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The clip's pictures, (240, 320, 3) uint8: there and back through the recording, from one place in the room."""
    count, is_still = len(face.pictures), len(face.pictures) == 1
    begin, speed = rng.uniform(0, count), rng.uniform(0.8, 1.2) * face.fps / FPS
    zoom, mirror, light = rng.uniform(1.0, 1.3), rng.random() < 0.5, rng.uniform(0.7, 1.2)
    shift, tilt, phase = rng.uniform(-0.04, 0.04, 2), rng.normal(0, 0.04), rng.uniform(0, 2 * np.pi, 4)
    for tick in range(max(1, round(seconds * FPS))):
        place = int(begin + speed * tick) % max(1, 2 * count - 2)
        picture = face.pictures[min(place, 2 * count - 2 - place)]
        sway = np.sin(2 * np.pi * np.array([0.5, 0.7, 0.4, 0.3]) * tick / FPS + phase) * is_still
        seen = _seen(picture, zoom + 0.1 * sway[0], tilt + 0.1 * sway[1], shift + 0.04 * sway[2:], mirror)
        yield np.clip(np.asarray(seen) * light, 0, 255).astype(np.uint8)


def _seen(picture: np.ndarray, zoom: float, tilt: float, shift: np.ndarray, mirror: bool) -> Image.Image:
    """The middle of a picture, nearer by `zoom`, turned by `tilt` radians, moved by a share of its size."""
    height, width = picture.shape[:2]
    scale = min(width / SIZE[0], height / SIZE[1]) / zoom
    turn = scale * np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]) * [-1 if mirror else 1, 1]
    middle = np.array([width, height]) * (0.5 + shift) - turn @ (np.array(SIZE) / 2)
    to_picture = (*turn[0], middle[0], *turn[1], middle[1])
    return Image.fromarray(picture).transform(SIZE, Image.Transform.AFFINE, to_picture, Image.Resampling.BILINEAR)


# --- voices --------------------------------------------------------------------------------------------------------------


def espeak() -> Speak | None:
    """espeak-ng, the command or else the library that the package espeakng-loader carries; None where neither is here."""
    if command := shutil.which("espeak-ng"):

        def say(text: str, voice: str, pitch: int, pace: int) -> np.ndarray:
            asked = [command, "-v", voice, "-p", str(pitch), "-s", str(pace), "--stdout", text]
            with wave.open(io.BytesIO(subprocess.run(asked, capture_output=True, check=True).stdout)) as file:
                return np.frombuffer(file.readframes(1 << 30), np.int16)

        return say
    try:
        return _by_library(import_module("espeakng_loader"))
    except ImportError:
        return None


def _by_library(loader: Any) -> Speak:
    library, heard = ctypes.CDLL(loader.get_library_path()), list[bytes]()

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def hear(samples: int | None, count: int, events: int) -> int:
        heard.append(ctypes.string_at(samples, 2 * count) if samples else b"")
        return 0

    library.espeak_Initialize(2, 0, str(loader.get_data_path()).encode(), 0)  # 2: finish speaking, then return
    library.espeak_SetSynthCallback(hear)

    def say(text: str, voice: str, pitch: int, pace: int) -> np.ndarray:
        heard.clear()
        if library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice}")
        for parameter, value in ((1, pace), (3, pitch)):
            library.espeak_SetParameter(parameter, value, 0)
        spoken = text.encode() + b"\0"
        library.espeak_Synth(spoken, len(spoken), 0, 1, 0, 1, None, None)  # from character 0 on; it is UTF-8
        return np.frombuffer(b"".join(heard), np.int16)

    say.hear = hear  # type: ignore[attr-defined]  # the library calls it as long as it speaks
    return say


def hum(text: str, voice: str, pitch: int, pace: int) -> np.ndarray:
    """A sound as high and as long as the sentence would be, four syllables a second, and no speech."""
    time = np.arange(round(RATE_HZ * 60 * len(text.split()) / pace)) / RATE_HZ
    tone = 2 * np.pi * (80 + 2 * pitch) * time + np.sin(2 * np.pi * 3 * time)
    loud = 0.55 - 0.45 * np.cos(2 * np.pi * 4 * time)
    return (6000 * loud * sum(np.sin(k * tone) / k for k in range(1, 9))).astype(np.int16)


# --- files ---------------------------------------------------------------------------------------------------------------


def write(path: Path, pictures: Iterator[np.ndarray], sound: np.ndarray) -> None:
    """An mp4 of pictures at 25 a second and (N,) int16 sound at 22,050 Hz."""
    import av

    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    # Without zerolatency x264 looks ahead, and then no two runs give the same bytes.
    options = {"crf": "20", "preset": "veryfast", "tune": "zerolatency"} if codec == "libx264" else {"b": "1M"}
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream(codec, rate=FPS, options=options)
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        audio = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        for picture in pictures:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound)[None], format="s16", layout="mono")
        heard.sample_rate = RATE_HZ
        container.mux(audio.encode(heard))
        for stream in (video, audio):
            container.mux(stream.encode(None))


def main() -> int:
    """The command line; what is missing or wrong is one line."""
    parser = argparse.ArgumentParser(description="Make labelled talking clips.")
    parser.add_argument("out", type=Path, help="folder to write them to")
    parser.add_argument("--faces", type=Path, help="folder of recorded faces; without it one still portrait")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        made = make(given.out, given.faces, given.clips, given.seed)
    except (OSError, ValueError, ImportError) as error:
        print(f"talking_clips: {error}", file=sys.stderr)
        return 1
    print(f"{given.clips} clips and labels.csv in {made}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
