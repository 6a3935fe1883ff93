"""Clips that a trained run is asked about, wherever they lie: recordings, features that were made of some, public pickles."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from cmpta_lib.data.corpus import MODALITIES, Inputs, Sample
from data_prep import public_pickles


@dataclass(frozen=True, eq=False)
class Asked:
    """A clip, or what is wrong with it."""

    file: str
    id: str
    clip: Sample | Exception
    repairs: Counter[str] = field(default_factory=Counter)
    notes: Mapping[str, int] = field(default_factory=dict)  # what is odd about a recording, by kind
    recognised: bool = False  # whether its words are as a model heard them


def clips_in(place: Path, inputs: Inputs, run: str, text: str = "", transcribe: str = "", jobs: int = 1) -> Iterator[Asked]:
    """The clips that lie there, as the run has learned to read them, one in memory at a time.

    Args:
        place: a recording or a folder of some, what `cmpta data clips` made, a pickle in MELD's public format, or a folder
            of such.
        inputs: what the run knows of its clips.
        run: what messages call it.
        text: what is said in the one recording.
        transcribe: Whisper model that hears recordings without given words; "" = the run's own, if it has one.
    Raises:
        ValueError: the run cannot read such clips: its features are others, or unknown.
        FileNotFoundError: nothing is there, or no Whisper model is.
    """
    if not place.exists():
        raise FileNotFoundError(f"{place} is not there: expected a recording, a folder of some, or public pickles")
    is_pickle = place.suffix.lower() == ".pkl" or (place.is_dir() and bool(public_pickles.public_names(place)))
    if is_pickle:
        if inputs.features:
            _say(f"{place} does not say what its frames are: read as the run's, {_named(inputs.features)}")
        for path, name, clip, repairs in public_pickles.clips_of(place, inputs.widths):
            yield Asked(str(path), name, clip, repairs)
        return
    if not inputs.features:
        raise ValueError(
            f"{place}: {run} was trained on ready frames, and nothing says how to make such of a recording; ask it about"
            " pickles in MELD's public format with the same features, or train on recordings: `cmpta data clips FOLDER`"
        )
    yield from ()


def _named(features: Mapping[str, object]) -> str:
    """Feature sets as `Recipe.stored` keeps them, for a message."""
    kept = {modality: features[modality] for modality in MODALITIES if modality in features}
    return " and ".join(f"{one['set']} every {one['hop_ms']:g} ms" for one in kept.values()) or "none"  # type: ignore[index]


@cache
def _say(line: str) -> None:
    """What a user must know, once a process."""
    print(line, file=sys.stderr)
