"""Recordings -> frames: which feature sets there are, and what becomes of one recording by them.

`cmpta data clips` and a run's `predict` both call `extract`, so a clip has the same features in training and afterwards.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from cmpta_lib.config import one_of
from cmpta_lib.data.corpus import MODALITIES, Modality, problem, shown
from data_prep.features.media import Unusable as Unusable

LONGEST_S = 300.0  # a clip is one utterance; of five minutes an attention map already has a million cells
_READY = re.compile(r"([A-Za-z][\w-]{0,39})=(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class FeatureSet:
    """Columns of one modality that are made in one way; whatever changes a number raises the version."""

    name: str
    hop_ms: float  # from one frame to the next
    width: int | None = None  # F; None = as the ready frames have it
    version: int = 1
    about: str = ""  # what a user must know, licence included; said before its first use

    def __str__(self) -> str:
        return f"{self.name}-{self.version}"


SETS: Mapping[Modality, Mapping[str, FeatureSet]] = {
    "audio": {
        "egemaps": FeatureSet(
            "egemaps", 10.0, 25,
            about="25 eGeMAPSv02 descriptors by openSMILE, which may be used for research but not commercially"
            " (audEERING's licence; `--audio whisper` is free of that)",
        ),
        "whisper": FeatureSet("whisper", 20.0, 512, about="encoder states of Whisper base (MIT)"),
    },
    "vision": {
        "mediapipe": FeatureSet(
            "mediapipe", 40.0, 149,
            about="6 of pose, 136 of landmarks and 7 of expression by MediaPipe (Apache-2.0) and fer (MIT): other columns than"
            " the 177 of OpenFace that SIMS-V2 has",
        ),
        "openface": FeatureSet("openface", 40.0, 177, about="the 177 columns of OpenFace that SIMS-V2 has, read by name"),
    },
}  # fmt: skip


def find_set(modality: Modality, text: str) -> FeatureSet | None:
    """The set that a call names: one of `SETS`, NAME=HOP_MS for ready frames in `<clip>.NAME.npy`, or "none".

    Raises:
        ValueError: it is none of these.
    """
    if match := _READY.fullmatch(text):
        if match[1] in SETS[modality] or not 0.1 <= float(match[2]) <= 60_000:
            raise ValueError(f"--{modality} {shown(text)}: expected a name of your own and a hop of 0.1 to 60000 ms")
        return FeatureSet(match[1], float(match[2]), about=f"ready frames from <clip>.{match[1]}.npy")
    known = SETS[modality]
    name = one_of(f"{modality} features", text, [*known, "none"], f"expected {', '.join(known)}, NAME=HOP_MS or none")
    return known.get(name)


@dataclass(frozen=True)
class Recipe:
    """How recordings become clips: which features are made, and where words come from.

    `recogniser` is the name of the model that hears the words; "" = they are given or there are none. The fields that are
    not compared say where things lie on this machine; they are not part of what a corpus or a run keeps (`stored`).
    """

    audio: FeatureSet | None = SETS["audio"]["egemaps"]
    vision: FeatureSet | None = SETS["vision"]["mediapipe"]
    recogniser: str = ""
    longest_s: float = LONGEST_S
    whisper: Path | None = field(default=None, compare=False)  # folder of the Whisper model
    openface: Path | None = field(default=None, compare=False)  # where OpenFace's CSVs lie; None = beside the recordings

    def stored(self) -> dict[str, Any]:
        """What a corpus and a run keep of it, for JSON."""
        sets = {one: getattr(self, one) for one in MODALITIES}
        found: dict[str, Any] = {one: {"set": str(s), "hop_ms": s.hop_ms} for one, s in sets.items() if s}
        return found | ({"text": {"set": self.recogniser}} if self.recogniser else {})

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any], of: str) -> Self:
        """The inverse of `stored`.

        Raises:
            ValueError: this version of the code makes another version of a set; `of` is what messages call the owner.
        """
        sets: dict[str, Any] = dict.fromkeys(MODALITIES)
        for modality in MODALITIES:
            if not (kept := stored.get(modality)):
                continue
            name, _, version = str(kept["set"]).rpartition("-")
            found = SETS[modality].get(name) or FeatureSet(name, float(kept["hop_ms"]))
            if (str(found.version), found.hop_ms) != (version, kept["hop_ms"]):
                raise ValueError(
                    f"{of} is of {modality} features {kept['set']} every {kept['hop_ms']} ms, and this version makes"
                    f" {found} every {found.hop_ms} ms; use the version that made it, or extract and train anew"
                )
            sets[modality] = found
        return cls(**sets, recogniser=stored.get("text", {}).get("set", ""))


@dataclass(frozen=True, eq=False)
class Extracted:
    """What became of one recording. A modality that is not there has no rows, and its set's width (1 where unknown)."""

    audio: np.ndarray  # (T_a, F_a) float32
    vision: np.ndarray  # (T_v, F_v) float32
    words: str | None  # as recognised; None where nobody listened
    seconds: float  # 0 where no recording was read
    notes: Mapping[str, int]  # what was missing or odd, by kind: how many frames, or 1
    rate_hz: int = 0  # of the sound track; 0 where none was read


def extract(path: Path, recipe: Recipe) -> Extracted:
    """One recording's features, the same whoever asks.

    Raises:
        Unusable: it is not there, damaged, empty, longer than `recipe.longest_s`, or a file beside it does not fit.
        ImportError: a package of the extra `features` or `transcribe` is not installed; says how to.
    """
    from data_prep.features import face, media, openface, sound, speech  # each imports its library when it is used

    notes: Counter[str] = Counter()
    found: dict[str, np.ndarray] = {}
    for modality in MODALITIES:
        one: FeatureSet | None = getattr(recipe, modality)
        if one is None:
            found[modality] = np.zeros((0, 1), np.float32)
        elif one.name == "openface":
            found[modality] = openface.read(_beside(path, recipe.openface), notes)
        elif one.name not in SETS[modality]:
            found[modality] = _ready(path.with_suffix(f".{one.name}.npy"), modality)
    seconds, words, rate = 0.0, None, 0
    if len(found) < len(MODALITIES) or recipe.recogniser:
        with ExitStack() as stack:
            recording = stack.enter_context(media.Recording(path, recipe.longest_s, notes))
            seconds = recording.seconds
            if "audio" not in found or recipe.recogniser:
                signal, rate = recording.sound()  # (N,) float32 in [-1, 1], Hz; N = 0 without a sound track
            if "audio" not in found:
                hears = recipe.audio is not None and recipe.audio.name == "whisper"
                found["audio"] = sound.whisper(signal, rate, recipe.whisper) if hears else sound.egemaps(signal, rate)
            if recipe.recogniser:
                words = speech.recognise(signal, rate, recipe.whisper)
            if "vision" not in found:
                found["vision"] = face.follow(recording.pictures(SETS["vision"]["mediapipe"].hop_ms), notes)
    return Extracted(found["audio"], found["vision"], words, seconds, dict(sorted(notes.items())), int(rate))


def files_of(path: Path, recipe: Recipe) -> Iterator[Path]:
    """The recording, and every file beside it that `extract` reads."""
    yield path
    for one in (recipe.audio, recipe.vision):
        if one and one.name == "openface":
            yield _beside(path, recipe.openface)
        elif one and one.name not in (*SETS["audio"], *SETS["vision"]):
            yield path.with_suffix(f".{one.name}.npy")


def _beside(path: Path, folder: Path | None) -> Path:
    return (folder or path.parent) / f"{path.stem}.csv"


def _ready(path: Path, modality: Modality) -> np.ndarray:
    """Frames that somebody else made: a (T, F) array of numbers."""
    if not path.is_file():
        raise Unusable(f"{path} is not there: expected ready {modality} frames (T, F); make it, or choose other features")
    try:
        frames = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Unusable(f"{path}: expected an array as numpy.save writes it ({str(error)[:80]}); make it anew") from None
    if not isinstance(frames, np.ndarray) or frames.ndim != 2 or frames.dtype.kind not in "fiu" or not frames.shape[1]:
        raise Unusable(str(problem(str(path), None, "a (T, F) array of numbers, F >= 1", shown(frames), "save it so")))
    return np.ascontiguousarray(frames, np.float32)


def said(recipe: Recipe) -> Iterator[str]:
    """What a user must know of the chosen features, a line each."""
    for modality in MODALITIES:
        if one := getattr(recipe, modality):
            yield f"{modality}: {one}, a frame every {one.hop_ms:g} ms: {one.about}"
    if recipe.recogniser:
        yield f"words: as {recipe.recogniser} hears them (faster-whisper, MIT)"


def listening(recipe: Recipe, whisper: Path) -> Recipe:
    """The recipe with words as the Whisper model in this folder hears them."""
    return replace(recipe, recogniser=whisper.name, whisper=whisper)
