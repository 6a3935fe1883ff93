"""A clip as a camera took it: its waveform and its frames, read from the file that bears the clip's id.

Corpora hold features, not media. Whoever has the recordings names their folder in the environment variable CMPTA_MEDIA:
`<folder>/<corpus>/<clip id>.mp4`, or .mkv, .avi, .wav. Decoding is PyAV's, an extra: `pip install av`.
Imports no torch, and PyAV only when a file is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cmpta_lib import files

MEDIA = "CMPTA_MEDIA"  # environment variable: the folder of recordings
SUFFIXES = (".mp4", ".mkv", ".avi", ".wav")  # the first that is there is read
RATE_HZ = 16_000
SHORTEST_S = 0.1  # less sound than this is none: the audio encoders' convolutions would leave nothing of it
_SEPARATOR = "$_$"  # of video and clip in ids of SIMS-V2, where recordings have a folder per video


@dataclass(frozen=True, eq=False)
class Clip:
    """What an omni model is shown of a clip. It has no place for a label.

    `audio`: (N,) float32 in [-1, 1] at 16 kHz, or None. `frames`: (T, H, W, 3) uint8, red green blue, or None.
    """

    id: str
    text: str
    audio: np.ndarray | None = None
    frames: np.ndarray | None = None
    frames_per_second: float = 2.0
    was_cut: bool = False  # the recording went on


def missing(corpus: str) -> str:
    """Why no clip of this corpus can be read here, with what to do; "" where its folder and PyAV are there."""
    named, needed = os.environ.get(MEDIA, ""), f"the recordings of '{corpus}' are needed:"
    if not named:
        return f"{needed} set {MEDIA} to the folder that holds {corpus}/<clip id>.mp4"
    folder = Path(named) / corpus
    if not (folder.is_absolute() and folder.is_dir()):  # runs are made by processes that may start elsewhere
        return f"{needed} {MEDIA} is {named}, expected a whole path, from the root, and there is no such folder {folder}"
    return "" if find_spec("av") else "PyAV, which reads recordings, is not installed: pip install av"


def find(corpus: str, ids: Iterable[str]) -> dict[str, Path]:
    """The recording of each clip, by its id.

    Raises:
        FileNotFoundError: what `missing` says, or a clip has no recording; says what was looked for.
    """
    if reason := missing(corpus):
        raise FileNotFoundError(reason)
    folder = (Path(os.environ[MEDIA]) / corpus).resolve()
    found: dict[str, Path | None] = {}
    for name in ids:
        stems = (name, name.replace(_SEPARATOR, "/"))
        places = (Path(os.path.normpath(folder / f"{stem}{suffix}")) for stem in stems for suffix in SUFFIXES)
        # An id such as "../x" leads out of the folder.
        found[name] = next((path for path in places if path.is_relative_to(folder) and path.is_file()), None)
    if absent := [name for name, path in found.items() if path is None]:
        raise FileNotFoundError(
            f"{folder}: no recording of {len(absent)} of {len(found)} clips; the first is {absent[0]!r}, expected "
            f"{absent[0]}{' or '.join(SUFFIXES)}; put it there"
        )
    return {name: path for name, path in found.items() if path}


def fingerprint(recordings: Mapping[str, Path], record: Path) -> str:
    """First 16 hex digits of a SHA-256 over ids, sizes and contents, in the order of the ids.

    What was hashed is kept in the file `record`, and hashed again only where a recording changed.
    """
    hashes = files.HashCache(record)
    clips = [[name, path.stat().st_size, hashes.sha256(path)] for name, path in sorted(recordings.items())]
    hashes.save()
    return hashlib.sha256("".join(json.dumps(clip) + "\n" for clip in clips).encode()).hexdigest()[:16]


def read(
    path: Path, name: str, text: str, audio: bool = True, vision: bool = True,
    frames_per_second: float = 2.0, max_seconds: float = 30.0,
) -> Clip:  # fmt: skip
    """A clip from its recording; what it has no track of is None, as is sound shorter than `SHORTEST_S`.

    Raises:
        ValueError: the file cannot be decoded, or has neither sound nor picture; names it and the clip.
    """
    import av

    try:
        with av.open(str(path)) as container:
            tracks = len(container.streams.audio) + len(container.streams.video)
        wave, long_wave = _audio(path, max_seconds) if audio else (None, False)
        frames, long_video = _frames(path, frames_per_second, max_seconds) if vision else (None, False)
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path}: the recording of clip {name!r} cannot be decoded ({error}); replace the file") from error
    if not tracks:
        raise ValueError(f"{path}: the recording of clip {name!r} has neither sound nor picture; replace the file")
    return Clip(name, text, wave, frames, frames_per_second, long_wave or long_video)


def _decoded(path: Path, kind: Literal["audio", "video"]) -> Iterator[Any]:
    """PyAV's frames of the first track of this kind; none where there is none."""
    import av

    with av.open(str(path)) as container:
        if getattr(container.streams, kind):
            yield from container.decode(**{kind: 0})


def _audio(path: Path, max_seconds: float) -> tuple[np.ndarray | None, bool]:
    """(N,) float32 at 16 kHz, and whether the recording went on.

    Channels are averaged, as the families' own loading does; FFmpeg's mono is louder and clips.
    """
    import av

    most, wave = round(max_seconds * RATE_HZ), np.zeros(0, np.float32)
    resampler = av.AudioResampler(format="fltp", rate=RATE_HZ)
    for frame in chain(_decoded(path, "audio"), [None]):  # None: what the resampler holds back
        wave = np.concatenate([wave, *(made.to_ndarray().mean(0) for made in resampler.resample(frame))])
        if wave.size > most:
            break
    if wave.size < SHORTEST_S * RATE_HZ:
        return None, False
    return np.clip(wave[:most], -1, 1).astype(np.float32), wave.size > most


def _frames(path: Path, frames_per_second: float, max_seconds: float) -> tuple[np.ndarray | None, bool]:
    """(T, H, W, 3) uint8 frames, evenly in time, and whether the recording went on.

    The frame at each multiple of the step is taken, so that a clip gives the same frames wherever it is cut.
    """
    start, taken, goes_on = None, list[np.ndarray](), False
    for frame in _decoded(path, "video"):
        start = (frame.time or 0.0) if start is None else start
        seconds = (frame.time or 0.0) - start
        if goes_on := seconds >= max_seconds:
            break
        # As often as its time calls for it: a recording with fewer frames shows each more than once.
        missing = int((seconds + 1e-6) * frames_per_second) + 1 - len(taken)
        taken += [frame.to_ndarray(format="rgb24")] * missing if missing > 0 else []
    return (np.stack(taken) if taken else None), goes_on
