"""One recording's sound and pictures, by FFmpeg (PyAV): whatever the container, the codec and the damage.

Every pass opens the file anew and reads it in one go, as seeking is not exact in every container; nothing but the sound of
one recording is held in memory.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

import numpy as np

from data_prep.features import Unusable

LATE_S = Fraction(1, 10)  # what sound may be off its time stamps, which some containers round, before silence fills the gap
LARGEST = 1920  # pixels of a picture's longer side; more is scaled down, faces need no more
LOUDEST = 32767 / 32768  # what is louder would be the most negative 16-bit number in openSMILE
KINDS = {"audio": "sound", "video": "picture"}  # FFmpeg's words, ours
STILL = ("image2", "tty", "_pipe")  # FFmpeg would show single pictures and pages of text as recordings


def needed(module: str, extra: str) -> Any:
    """An optional library.

    Raises:
        ImportError: it is not installed; says how to.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise ImportError(f"recordings need {package} ({error}): pip install 'cmpta[{extra}]'", name=package) from error


@dataclass(frozen=True)
class Track:
    """Sound or pictures of a recording; times in seconds by its own clock."""

    index: int  # of the stream
    start: Fraction
    end: Fraction
    frame_s: Fraction  # how long a picture usually stays; 0 for sound


class Recording:
    """A file that FFmpeg can read; a context manager.

    What is missing or damaged is counted in `notes`, as long as something is left to use.

    Args:
        longest_s: a longer one is refused before anything is decoded.
        notes: where counts go.
    Attributes:
        seconds: from the first sound or picture to the end of the last.
    Raises:
        Unusable: it is not there, no recording, of 0 s or too long, or nothing in it can be decoded.
    """

    def __init__(self, path: Path, longest_s: float, notes: Counter[str]) -> None:
        self.path, self.seconds = path, 0.0
        self._longest_s, self._notes = longest_s, notes
        self._tracks: dict[str, Track] = {}
        self._zero = Fraction(0)

    def __enter__(self) -> Self:
        if not self.path.is_file() or not self.path.stat().st_size:
            what = "a folder" if self.path.is_dir() else "empty (0 bytes)" if self.path.is_file() else "not there"
            raise Unusable(f"{self.path} is {what}: expected a recording, such as mp4, mkv, wav or mp3; give another file")
        for kind, what in KINDS.items():
            with self._opened() as container:
                if track := self._measured(container, kind, what):
                    self._tracks[kind] = track
        if not self._tracks:
            raise Unusable(f"{self.path} has neither sound nor pictures that can be read; record or convert it anew")
        self._zero = min(track.start for track in self._tracks.values())
        self.seconds = float(max(track.end for track in self._tracks.values()) - self._zero)
        self._need_short(self.seconds)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass  # every pass closes what it opened

    def sound(self) -> tuple[np.ndarray, int]:
        """The sound from the recording's start, all channels averaged; gaps of more than 0.1 s are silence.

        Returns:
            (N,) float32 in [-1, 1] and its rate in Hz, the recording's own; N = 0 where there is none.
        Raises:
            Unusable: nothing of it can be decoded, and there are no pictures; or it is too long after all.
        """
        if (track := self._tracks.get("audio")) is None:
            self._notes["no_sound_track"] = 1
            return np.zeros(0, np.float32), 16_000
        av, samples, rate = needed("av", "features"), array("f"), 0
        others: dict[int, Any] = {}
        for frame in self._decoded("audio", track):
            rate = rate or frame.sample_rate
            if frame.sample_rate == rate:
                pieces = [_mono(frame)]
            else:  # changes on the way
                other = others.setdefault(frame.sample_rate, av.AudioResampler("fltp", "mono", rate))
                pieces = [piece.to_ndarray()[0] for piece in other.resample(frame)]
            late = 0 if frame.pts is None else int((frame.pts * frame.time_base - self._zero) * rate) - len(samples)
            self._need_short((len(samples) + max(late, 0)) / rate - 1.0)  # a codec may add some samples
            if late > LATE_S * rate:
                self._notes["gaps_in_sound"] += 1
                samples.frombytes(bytes(4 * late))
            for piece in pieces:
                samples.frombytes(np.ascontiguousarray(piece, np.float32).tobytes())
        if not samples:
            self._is_lost("audio")
            return self.sound()
        signal = np.frombuffer(samples, np.float32)
        if beyond := int(np.count_nonzero(~(np.abs(signal) <= 1.0))):
            self._notes["samples_beyond_1"] = beyond
            np.nan_to_num(signal, copy=False, nan=0.0)
        return np.clip(signal, -1.0, LOUDEST, out=signal), rate

    def pictures(self, hop_ms: float) -> Iterator[np.ndarray]:
        """Upright pictures, one at 0, hop_ms, 2 hop_ms, … as long as the picture track lasts.

        Each is the last one that had begun by then (before the first one, the first): the frame rate does not matter.

        Yields:
            (H, W, 3) uint8 RGB, the longer side at most 1920; the same array again while a picture stays.
        Raises:
            Unusable: nothing of them can be decoded, and there is no sound.
        """
        if (track := self._tracks.get("video")) is None:
            self._notes["no_picture_track"] = 1
            return
        hop, end = Fraction(str(hop_ms)) / 1000, track.end - self._zero
        tick, since, shown = 0, Fraction(0), None
        for frame in self._decoded("video", track):
            stamp = frame.pts if frame.pts is not None else frame.dts
            until = since + track.frame_s if stamp is None else max(since, stamp * frame.time_base - self._zero)
            if shown is not None and tick * hop < min(until, end):
                picture = self._rgb(shown)
                while tick * hop < min(until, end):
                    yield picture
                    tick += 1
            since, shown = until, frame
        if shown is None:
            self._is_lost("video")
            self._notes["no_picture_track"] = 1
        elif tick * hop < end:
            picture = self._rgb(shown)
            while tick * hop < end:
                yield picture
                tick += 1

    def _opened(self) -> Any:
        av = needed("av", "features")
        try:  # a playlist in disguise reads no network
            container = av.open(str(self.path.absolute()), metadata_errors="replace", options={"protocol_whitelist": "file"})
        except (av.FFmpegError, OSError) as error:
            why = error.strerror or type(error).__name__
            raise Unusable(f"{self.path} cannot be read as a recording ({why}); is it whole? Convert or copy it anew") from None
        if container.format.name.startswith(STILL[:2]) or container.format.name.endswith(STILL[2]):
            raise Unusable(f"{self.path} is a single picture or a text, not a recording; give another file")
        if container.duration:
            self._need_short(container.duration / av.time_base)
        return container

    def _need_short(self, seconds: float) -> None:
        if seconds > self._longest_s:
            long, most = f"{seconds:.0f} s ({seconds / 3600:.1f} h)" if seconds > 5400 else f"{seconds:.1f} s", self._longest_s
            raise Unusable(f"{self.path} is {long} long, and {most:g} s are allowed; cut it into clips, or pass --longest")

    def _measured(self, container: Any, kind: str, what: str) -> Track | None:
        """From when to when a track lasts, by its packets: what a damaged file's header says of it may be wrong."""
        from av.stream import Disposition

        covers = Disposition.attached_pic  # of an album
        tracks = [one for one in getattr(container.streams, kind) if one.codec_context and not one.disposition & covers]
        if not tracks:
            return None
        if len(tracks) > 1:
            self._notes[f"several_{what}_tracks"] = 1  # the first is used
        one, base = tracks[0], tracks[0].time_base
        frame_s = 1 / Fraction(one.guessed_rate or one.average_rate or 25) if kind == "video" else Fraction(0)
        stamps, end = [], None
        for packet in self._packets(container, one):
            stamp = packet.pts if packet.pts is not None else packet.dts
            stamps.append(stamp * base if stamp is not None else (stamps[-1] if stamps else Fraction(0)) + frame_s)
            end = max(end or stamps[-1], stamps[-1] + ((packet.duration or 0) * base or frame_s))
            self._need_short(float(end - stamps[0]))
        if end is None:
            return None
        start = min(stamps) if one.start_time is None else one.start_time * base  # the latter leaves out a codec's priming
        steps = [float(after - before) for before, after in pairwise(sorted(stamps))] if kind == "video" else []
        if steps and (max(steps) > 1.5 * median(steps) or min(steps) < 0.5 * median(steps)):
            self._notes["variable_frame_rate"] = 1
        return Track(one.index, start, end, frame_s)

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, needed("av", "features").FFmpegError):  # the latter: what comes after it is lost
                return
            if packet.size:
                yield packet

    def _decoded(self, kind: str, track: Track) -> Iterator[Any]:
        av = needed("av", "features")
        with self._opened() as container:
            stream = container.streams[track.index]
            stream.codec_context.thread_count = 1  # --jobs use the cores, and damage is concealed in the same way
            for packet in self._packets(container, stream):
                yield from self._frames(packet)
            try:
                yield from stream.codec_context.decode(None)
            except av.FFmpegError:
                self._notes["damaged"] += 1

    def _frames(self, packet: Any) -> list[Any]:
        try:
            frames = packet.decode()
        except needed("av", "features").FFmpegError:
            frames = None
        if frames is None or packet.is_corrupt:
            self._notes["damaged"] += 1
        return frames or []

    def _is_lost(self, kind: str) -> None:
        del self._tracks[kind]
        if not self._tracks:
            raise Unusable(f"{self.path} is damaged: nothing in it can be decoded; copy or record it anew")

    def _rgb(self, frame: Any) -> np.ndarray:
        scale = min(1.0, LARGEST / max(frame.width, frame.height))
        size = {"width": max(1, round(frame.width * scale)), "height": max(1, round(frame.height * scale))}
        picture = frame.to_ndarray(format="rgb24", **(size if scale < 1 else {}))
        if quarters := round(frame.rotation / 90) % 4:  # counter-clockwise, as np.rot90 turns
            self._notes["turned"] = 1
            picture = np.ascontiguousarray(np.rot90(picture, quarters))
        return picture


def _mono(frame: Any) -> np.ndarray:
    """(N,) float32: a decoded piece of sound, its channels averaged; whole numbers become exactly what they stand for."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype.kind == "u":
        values = (values.astype(np.float32) - 128) / 128
    elif values.dtype.kind == "i":
        values = values.astype(np.float64) / 2 ** (8 * values.itemsize - 1)
    return values.mean(axis=0, dtype=np.float64)


def resampled(signal: np.ndarray, rate_hz: int, to_hz: int) -> np.ndarray:
    """(N,) float32 at another rate, by FFmpeg's resampler."""
    if rate_hz == to_hz or not len(signal):
        return signal
    av = needed("av", "features")
    resampler, pieces = av.AudioResampler("fltp", "mono", to_hz), []
    for start in range(0, len(signal), 10 * rate_hz):
        frame = av.AudioFrame.from_ndarray(signal[None, start : start + 10 * rate_hz], "fltp", "mono")
        frame.sample_rate = rate_hz
        pieces += resampler.resample(frame)
    return np.concatenate([piece.to_ndarray()[0] for piece in [*pieces, *resampler.resample(None)]])
