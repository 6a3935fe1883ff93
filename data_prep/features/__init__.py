"""Recordings -> frames: which feature sets there are, and what becomes of one recording by them.

`cmpta data clips` and a run's `predict` both call `extract`, so a clip has the same features in training and afterwards.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from cmpta_lib.config import one_of
from cmpta_lib.data.corpus import MODALITIES, Modality, problem, shown
from data_prep.features.media import Unusable as Unusable

LONGEST_S = 300.0  # a clip is one utterance; of five minutes an attention map already has a million cells
WHISPER = "whisper-base"  # what makes the set "whisper"
_READY = re.compile(r"([A-Za-z][\w-]{0,39})=(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class FeatureSet:
    """Columns of one modality that are made in one way; whatever changes a number raises the version."""

    name: str
    hop_ms: float  # from one frame to the next
    width: int | None = None  # F; None = as the ready frames have it
    about: str = ""  # what a user must know, licence included; said before its first use
    version: int = 1

    def __str__(self) -> str:
        return f"{self.name}-{self.version}"

    @property
    def beside(self) -> str:
        """How the file beside a recording ends that holds these frames; "" where they are made of the recording."""
        return _BESIDE.get(self.name, f".{self.name}.npy")


_BESIDE = {"egemaps": "", "whisper": "", "mediapipe": "", "openface": ".csv"}
_EGEMAPS = "25 eGeMAPSv02 descriptors by openSMILE, for research but not commercially (audEERING; or --audio whisper)"
_MEDIAPIPE = "6 of pose, 136 landmarks, 7 of expression by MediaPipe (Apache-2.0) and fer (MIT): not the 177 that SIMS-V2 has"
SETS: Mapping[Modality, Mapping[str, FeatureSet]] = {
    "audio": {
        "egemaps": FeatureSet("egemaps", 10.0, 25, _EGEMAPS),
        "whisper": FeatureSet("whisper", 20.0, 512, "encoder states of Whisper base (MIT)"),
    },
    "vision": {
        "mediapipe": FeatureSet("mediapipe", 40.0, 149, _MEDIAPIPE),
        "openface": FeatureSet("openface", 40.0, 177, "the 177 columns of OpenFace that SIMS-V2 has, read by name"),
    },
}


def find_set(modality: Modality, text: str) -> FeatureSet | None:
    """The set that a call names: one of `SETS`, NAME=HOP_MS for ready frames in `<clip>.NAME.npy`, or "none".

    Raises:
        ValueError: it is none of these.
    """
    if match := _READY.fullmatch(text):
        if any(match[1] in known for known in SETS.values()) or not 0.1 <= float(match[2]) <= 60_000:
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

    @property
    def sets(self) -> dict[Modality, FeatureSet]:
        """Those that are chosen."""
        both: dict[Modality, FeatureSet | None] = {"audio": self.audio, "vision": self.vision}
        return {modality: one for modality, one in both.items() if one}

    def stored(self) -> dict[str, Any]:
        """What a corpus and a run keep of it, for JSON."""
        found: dict[str, Any] = {modality: {"set": str(one), "hop_ms": one.hop_ms} for modality, one in self.sets.items()}
        return found | ({"text": {"set": self.recogniser}} if self.recogniser else {})

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any], of: str) -> Self:
        """The inverse of `stored`.

        Raises:
            ValueError: this version of the code makes another version of a set; `of` is what messages call the owner.
        """
        sets: dict[str, Any] = dict.fromkeys(MODALITIES)
        for modality in (one for one in MODALITIES if one in stored):
            name = stored[modality]["set"].rpartition("-")[0]
            sets[modality] = SETS[modality].get(name) or FeatureSet(name, stored[modality]["hop_ms"])
        found = cls(**sets, recogniser=stored.get("text", {}).get("set", ""))
        if (makes := found.stored()) != stored:
            todo = "use the version that made it, or extract and train anew"
            raise ValueError(f"{of} is of {named(stored)}, and this version makes {named(makes)}; {todo}")
        return found


def named(stored: Mapping[str, Any]) -> str:
    """Feature sets as `Recipe.stored` keeps them, for a message."""
    kept = [(modality, stored[modality]) for modality in MODALITIES if modality in stored]
    return " and ".join(f"{modality} {one['set']} every {one['hop_ms']:g} ms" for modality, one in kept) or "words alone"


@dataclass(frozen=True, eq=False)
class Extracted:
    """What became of one recording. A modality that is not there has no rows, and its set's width (1 where unknown)."""

    audio: np.ndarray  # (T_a, F_a) float32
    vision: np.ndarray  # (T_v, F_v) float32
    words: str | None  # as recognised; None where nobody listened
    seconds: float  # 0 where no recording was read
    notes: Mapping[str, int]  # what was missing or odd, by kind: how many frames, or 1


def extract(path: Path, recipe: Recipe) -> Extracted:
    """One recording's features, the same whoever asks.

    Raises:
        Unusable: it is not there, damaged, empty, longer than `recipe.longest_s`, or a file beside it does not fit.
        ImportError: a package of the extra `features` or `transcribe` is not installed; says how to.
    """
    from data_prep.features import face, media, openface, sound, speech  # each imports its library when it is used

    notes: Counter[str] = Counter()
    found: dict[Modality, np.ndarray] = {modality: np.zeros((0, 1), np.float32) for modality in MODALITIES}
    for modality, place in beside(path, recipe).items():
        found[modality] = openface.read(place, notes) if place.suffix == ".csv" else _ready(place, modality)
    made = {one.name for one in recipe.sets.values() if not one.beside}
    seconds, words = 0.0, None
    if made or recipe.recogniser:
        with media.Recording(path, recipe.longest_s, notes) as recording:
            seconds = recording.seconds
            if recipe.recogniser or made & {"egemaps", "whisper"}:
                signal, rate = recording.sound()  # (N,) float32 in [-1, 1], Hz; N = 0 without a sound track
            if "egemaps" in made:
                found["audio"] = sound.egemaps(signal, rate)
            if "whisper" in made:
                found["audio"] = sound.whisper(signal, rate, recipe.whisper)
            if recipe.recogniser:
                words = speech.recognise(signal, rate, recipe.whisper)
            if "mediapipe" in made:
                found["vision"] = face.follow(recording.pictures(SETS["vision"]["mediapipe"].hop_ms), notes)
    for modality, missing in (("audio", "no_sound_track"), ("vision", "no_picture_track")):
        if modality in recipe.sets and not len(found[modality]) and not {missing, "no_face"} & notes.keys():
            notes[f"no_{modality}_frames"] = 1  # sound too short for one, or ready frames without a row
    return Extracted(found["audio"], found["vision"], words, seconds, dict(sorted(notes.items())))


def beside(path: Path, recipe: Recipe) -> dict[Modality, Path]:
    """The files that hold a recording's frames ready made; those of OpenFace may lie elsewhere."""
    places = {"openface": recipe.openface or path.parent}
    sets = [(modality, one) for modality, one in recipe.sets.items() if one.beside]
    return {modality: places.get(one.name, path.parent) / f"{path.stem}{one.beside}" for modality, one in sets}


def _ready(path: Path, modality: Modality) -> np.ndarray:
    """Frames that somebody else made: a (T, F) array of numbers."""
    try:
        frames: Any = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        frames = getattr(error, "strerror", None) or str(error)
    if not isinstance(frames, np.ndarray) or frames.ndim != 2 or frames.dtype.kind not in "fiu" or not frames.shape[1]:
        expected = f"{modality} frames, a (T, F) array of numbers, F >= 1, as numpy.save writes it"
        raise Unusable(str(problem(str(path), None, expected, shown(frames), "make it so, or choose other features")))
    with np.errstate(over="ignore"):  # beyond float32 it becomes infinite, and is counted when it is mended
        return np.ascontiguousarray(frames, np.float32)


def said(recipe: Recipe) -> Iterator[str]:
    """What a user must know of the chosen features, a line each."""
    yield from (f"{modality}: {one}, a frame every {one.hop_ms:g} ms: {one.about}" for modality, one in recipe.sets.items())
    if recipe.recogniser:
        yield f"words: as {recipe.recogniser} hears them (faster-whisper, MIT)"


def listening(recipe: Recipe, model: str, of: str = "it") -> Recipe:
    """The recipe with the Whisper models that it needs: that of the set "whisper", and this one, if any, for the words.

    Raises:
        ValueError: these are two models; `of` is what messages call the owner.
        FileNotFoundError: the model is not there; says what to do.
    """
    from data_prep.features import speech

    if not model and recipe.audio != SETS["audio"]["whisper"]:
        return replace(recipe, recogniser="")
    folder = speech.find(model or WHISPER)
    if recipe.audio == SETS["audio"]["whisper"] and folder.name != WHISPER:
        raise ValueError(f"{of} has its sound from {WHISPER}, so that must hear the words too, and not {folder.name}")
    return replace(recipe, recogniser=folder.name if model else "", whisper=folder)
