"""One recording's sound and pictures, by FFmpeg (PyAV): whatever the container, the codec and the damage.

Every pass reads the file from its start, as seeking is not exact in every container; only the sound is held in memory.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from importlib import import_module
from itertools import chain, pairwise
from pathlib import Path
from statistics import median
from typing import Any, Self

import numpy as np

LATE_S = 0.1  # what sound may be off its time stamps, which some containers round, before silence fills the gap
LOWEST_HZ = 1000  # openSMILE crashes with some tens of samples a second
LARGEST = 1920  # pixels of a picture's longer side; faces need no more
LOUDEST = 32767 / 32768  # of 16 bits, with which openSMILE works
GUESSES = 0x100  # FFmpeg's AVFMT_GENERIC_INDEX: formats without an index, whose length is guessed from the bit rate
# Formats by which FFmpeg shows pictures, pages of text and lists of other files as recordings.
STILL = re.compile("image2|mjpeg|tty|.*_pipe|concat|hls|dash|imf|sdp|rtsp")


class Unusable(ValueError):
    """A recording, or a file beside it, that cannot be used; the message names it, says why and what to do."""


def needed(module: str, extra: str = "features") -> Any:
    """An optional library, which an extra installs; raises ImportError, which says how to, where it is not there."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"recordings need {module.partition('.')[0]} ({error}): pip install 'cmpta[{extra}]'") from error


@dataclass(frozen=True)
class Track:
    """Sound or pictures of a recording; times are in seconds by its own clock."""

    index: int  # of the stream
    start: Fraction
    end: Fraction
    frame_s: Fraction  # how long a picture usually stays; 0 for sound
    aspect: Fraction  # a pixel's width over its height


@dataclass
class Recording:
    """A file that FFmpeg can read; a context manager.

    Raises:
        Unusable: it is not there, no recording, of 0 s or too long, or nothing in it can be decoded.
    """

    path: Path
    longest_s: float  # a longer one is refused before anything is decoded
    notes: Counter[str]  # what is missing or damaged, as long as something is left to use
    seconds: float = 0.0  # from the first sound or picture to the end of the last
    tracks: dict[str, Track] = field(default_factory=dict)
    zero: Fraction = Fraction(0)  # when the first of them starts

    def __enter__(self) -> Self:
        if not self.path.is_file() or not self.path.stat().st_size:
            what = "a folder" if self.path.is_dir() else "empty (0 bytes)" if self.path.is_file() else "not there"
            raise Unusable(f"{self.path} is {what}: expected a recording, such as mp4, mkv, wav or mp3; give another file")
        with self._opened() as container:
            self.tracks = self._measured(container)
            if tracks := self.tracks.values():
                self.zero = min(track.start for track in tracks)
                self.seconds = float(max(track.end for track in tracks) - self.zero)
            if not container.format.flags & GUESSES and (container.duration or 0) / 1e6 > self.seconds + 0.5:
                self.notes["cut_short"] = 1  # it says so itself
        if not self.seconds:
            raise Unusable(f"{self.path} has neither sound nor pictures (0 s); is it whole? Copy or convert it anew")
        self._need_short(self.seconds)
        return self

    def __exit__(self, *error: object) -> None:
        """Every pass closes what it opened."""

    def sound(self) -> tuple[np.ndarray, int]:
        """The sound from the recording's start, all channels averaged; silence where its time stamps leave a gap.

        Returns:
            (N,) float32 in [-1, 1) and its rate in Hz, the recording's own; N = 0 where there is none.
        Raises:
            Unusable: nothing of it can be decoded, and there are no pictures; or it is too long after all.
        """
        samples, rate, converters = array("f"), 0, {}
        for begins, frame in self._decoded("audio"):
            kind, rate = (frame.sample_rate, frame.format.name, frame.layout.name), rate or frame.sample_rate
            if kind not in converters:  # it may change on the way
                converters[kind] = needed("av").AudioResampler("fltp", rate=rate)
            late = 0 if begins is None else round(begins * rate) - len(samples)
            self._need_short((len(samples) + max(late, 0)) / rate - 1)  # a codec may add some samples
            if late > LATE_S * rate:
                self.notes["gaps_in_sound"] += 1
                samples.frombytes(bytes(4 * late))
            for piece in converters[kind].resample(frame):
                mono = piece.to_ndarray().mean(axis=0, dtype=np.float32)
                if beyond := int(np.count_nonzero(~(np.abs(mono) <= 1))):
                    self.notes["samples_beyond_1"] += beyond
                samples.frombytes(np.clip(np.nan_to_num(mono), -1, LOUDEST).tobytes())
        if samples:
            return np.frombuffer(samples, np.float32), rate
        self._is_lost("audio", "no_sound_track")
        return np.zeros(0, np.float32), 16_000

    def pictures(self, hop_ms: float) -> Iterator[np.ndarray]:
        """Upright pictures, one at 0, hop_ms, 2 hop_ms, … as long as the picture track lasts.

        Each is the last that had begun by then, by time stamps (before the first one, the first).

        Yields:
            (H, W, 3) uint8 RGB, the longer side at most 1920; the same array again while a picture stays.
        Raises:
            Unusable: nothing of them can be decoded, and there is no sound.
        """
        hop, tick, shown = Fraction(str(hop_ms)) / 1000, 0, None
        for begins, frame in self._in_order():
            if shown is not None and tick * hop < begins:
                picture = self._rgb(shown)
                while tick * hop < begins:
                    yield picture
                    tick += 1
            shown = frame
        if not tick:
            self._is_lost("video", "no_picture_track")

    def _in_order(self) -> Iterator[tuple[Fraction, Any]]:
        """Every picture with when it begins, never before the one ahead of it; at last the track's end, without one."""
        if track := self.tracks.get("video"):
            since, end = -track.frame_s, track.end - self.zero
            for stamp, frame in self._decoded("video"):
                since = since + track.frame_s if stamp is None else max(since, stamp)
                yield min(since, end), frame
            yield end, None

    def _decoded(self, kind: str) -> Iterator[tuple[Fraction | None, Any]]:
        """What can be decoded of a track, and when each piece begins; what cannot is counted."""
        if not (track := self.tracks.get(kind)):
            return
        with self._opened() as container:
            stream = container.streams[track.index]
            stream.codec_context.thread_count = 1  # --jobs use the cores, and damage is concealed in the same way
            for packet in chain(self._packets(container, stream), [None]):  # None: what the codec still holds
                try:
                    frames = stream.codec_context.decode(packet)
                except needed("av").FFmpegError:
                    frames = None
                if frames is None or packet and packet.is_corrupt:
                    self.notes["damaged"] += 1
                for frame in frames or ():
                    stamp = frame.dts if frame.pts is None else frame.pts
                    yield None if stamp is None else stamp * stream.time_base - self.zero, frame

    def _opened(self) -> Any:
        av, options = needed("av"), {"protocol_whitelist": "file"}  # a playlist in disguise reads nothing from a network
        try:
            container = av.open(str(self.path.absolute()), metadata_errors="replace", options=options)
        except (av.FFmpegError, OSError) as error:
            why = error.strerror or type(error).__name__
            raise Unusable(f"{self.path} cannot be read as a recording ({why}); is it whole? Copy or convert it anew") from None
        if STILL.fullmatch(container.format.name):
            raise Unusable(f"{self.path} is a single picture, a text or a list of files, not a recording; give another file")
        return container

    def _packets(self, container: Any, *streams: Any) -> Iterator[Any]:
        try:
            yield from (packet for packet in container.demux(*streams) if packet.size)
        except (needed("av").FFmpegError, IndexError):  # not to be read on from here; or, PyAV's, a packet of no track
            self.notes["damaged"] += 1

    def _measured(self, container: Any) -> dict[str, Track]:
        """From when to when the first track of each kind lasts, by its packets: a damaged file's header may be wrong."""
        covers = needed("av.stream").Disposition.attached_pic  # of albums
        spans: dict[Any, list[tuple[int | None, int]]] = {}
        for note, streams in (("sound", container.streams.audio), ("picture", container.streams.video)):
            able = [one for one in streams if one.codec_context and not one.disposition & covers]
            spans |= {one: [] for one in able[:1]}
            self.notes |= {f"several_{note}_tracks": 1 for _ in able[1:2]}
        for packet in self._packets(container, *spans) if spans else ():
            spans[packet.stream].append((packet.dts if packet.pts is None else packet.pts, packet.duration or 0))
        return {stream.type: self._track(stream, found) for stream, found in spans.items() if found}

    def _track(self, stream: Any, spans: list[tuple[int | None, int]]) -> Track:
        is_video, base = stream.type == "video", stream.time_base
        if not is_video and 0 < stream.sample_rate < LOWEST_HZ:
            told = f"{stream.sample_rate} samples of sound a second, expected {LOWEST_HZ} or more"
            raise Unusable(f"{self.path} has {told}; convert it anew")
        frame_s = 1 / Fraction(stream.guessed_rate or 25) if is_video else Fraction(0)
        known = [(begin * base, span * base or frame_s) for begin, span in spans if begin is not None]
        known = known or [(place * frame_s, frame_s) for place in range(len(spans))]
        if any(after < before - 1 for (before, _), (after, _) in pairwise(known)):  # pictures are never so far out of order
            raise Unusable(f"{self.path}: its clock runs back, as of recordings joined end to end; convert it anew by FFmpeg")
        begins = sorted(begin for begin, _ in known)
        steps = [float(after - before) for before, after in pairwise(begins)] if is_video else []
        usual = median(steps or [0.0])
        if sum(abs(step - usual) > usual / 2 for step in steps) > len(steps) / 10:
            self.notes["variable_frame_rate"] = 1
        start = begins[0] if stream.start_time is None else stream.start_time * base  # without what a codec needs ahead
        aspect = is_video and stream.sample_aspect_ratio or Fraction(1)
        return Track(stream.index, start, max(begin + span for begin, span in known), frame_s, aspect)

    def _need_short(self, seconds: float) -> None:
        if seconds > self.longest_s:
            long = f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds:.1f} s"
            raise Unusable(f"{self.path} is {long} long, at most {self.longest_s:g} s are read; cut it, or pass --longest")

    def _is_lost(self, kind: str, note: str) -> None:
        self.tracks.pop(kind, None)
        if not self.tracks:
            raise Unusable(f"{self.path} is damaged: nothing in it can be decoded; copy or record it anew")
        self.notes[note] = 1

    def _rgb(self, frame: Any) -> np.ndarray:
        width, height = frame.width * self.tracks["video"].aspect, frame.height
        scale = min(1, Fraction(LARGEST) / max(width, height))
        picture = frame.to_ndarray(format="rgb24", width=round(width * scale) or 1, height=round(height * scale) or 1)
        if matrix := frame.side_data.get("DISPLAYMATRIX"):
            # Shown at x' = a x + c y, y' = b x + d y: quarter turns and mirrors; what is between counts as the nearest.
            a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(int)
            self.notes |= {"turned": 1} if (min(a, d) <= 0) else {}
            if abs(b) + abs(c) > abs(a) + abs(d):
                picture, a, d = picture.swapaxes(0, 1), c, b
            picture = np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
        return picture


def resampled(signal: np.ndarray, rate_hz: int, to_hz: int) -> np.ndarray:
    """(N,) float32 at another rate, by FFmpeg's resampler."""
    if rate_hz == to_hz or not len(signal):
        return signal
    av = needed("av")
    resampler, frame = av.AudioResampler("fltp", "mono", to_hz), av.AudioFrame.from_ndarray(signal[None], "fltp", "mono")
    frame.sample_rate = rate_hz
    return np.concatenate([piece.to_ndarray()[0] for one in (frame, None) for piece in resampler.resample(one)])
