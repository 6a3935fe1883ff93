"""Clips that a run is asked about, wherever they lie: recordings, what `cmpta data clips` made of some, public pickles."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from cmpta_lib.data.corpus import MODALITIES, Inputs, Sample
from data_prep.features import LONGEST_S, SETS, Recipe, listening, said

WHISPER = "whisper-base"  # what makes the set "whisper"


@dataclass(frozen=True, eq=False)
class Asked:
    """A clip of a file, or what is wrong with it."""

    file: str
    id: str
    clip: Sample | ValueError
    notes: Mapping[str, int] = field(default_factory=dict)  # what is odd about it, by kind
    recognised: bool = False  # whether a model heard its words


def clips_in(
    place: Path, inputs: Inputs, run: str, text: str = "", transcribe: str = "", longest: float = LONGEST_S, jobs: int = 1
) -> Iterator[Asked]:
    """The clips that lie there, read as the run's own were, one after the other; arguments as `TrainedRun.predict`.

    Args:
        inputs: what the run knows of its clips.
        run: what messages call it.
    Raises:
        ValueError: the features are not the run's, or nobody knows which those are; says what works instead.
        OSError, ImportError: nothing is there, or what makes the features is not on this machine.
    """
    from data_prep import public_pickles, recordings  # pandas: a loaded run that is given samples answers without

    if not place.exists():
        raise FileNotFoundError(f"{place} is not there: expected a recording, a folder of some, or public pickles")
    is_made = (place / recordings.MADE).is_file()
    is_pickle = place.suffix.lower() == ".pkl" or (place.is_dir() and public_pickles.public_paths(place))
    if (is_made or is_pickle) and (text or transcribe):
        raise ValueError(f"{place}: --text and --transcribe are about recordings; these clips have their words")
    if text and place.is_dir():
        raise ValueError(f"{place}: --text is about one recording; write a folder's words into labels.csv, column text")
    if is_pickle:
        if inputs.features:
            _say(f"{place} does not say which features it holds; they must be those of {run}: {_sets(inputs.features)}")
        for path, name, clip, repairs in public_pickles.clips_of(place, inputs.widths):
            yield Asked(str(path), name, clip, repairs)
    elif not inputs.features:
        raise ValueError(
            f"{place}: nobody knows how to make the frames that {run} was trained on, as they came ready-made; ask it about "
            "pickles in MELD's public format that hold such frames, or train a run on recordings (`cmpta data clips`)"
        )
    elif is_made:
        yield from _made(place, inputs, run)
    else:
        recipe = replace(_recipe(inputs, run, text, transcribe), longest_s=longest)
        for line in said(recipe):
            _say(line)
        for name, made in recordings.clips_of(place, recipe, jobs if place.is_dir() and jobs > 1 else 0):
            file = str(place / name if place.is_dir() else place)
            if isinstance(made, ValueError):
                yield Asked(file, name, made)
                continue
            clip, found = made
            yield Asked(file, name, replace(clip, text=text or clip.text), found.notes, found.words is not None)


def _recipe(inputs: Inputs, run: str, text: str, transcribe: str) -> Recipe:
    """The run's own, with the Whisper models that it needs here."""
    from data_prep.features import speech

    recipe = Recipe.from_stored(inputs.features, run)
    own, heard = recipe.recogniser or WHISPER, "" if text else transcribe or recipe.recogniser
    if not heard and recipe.audio != SETS["audio"]["whisper"]:
        return replace(recipe, recogniser="")
    folder = speech.find(heard or own)
    if recipe.audio == SETS["audio"]["whisper"] and folder.name != own:
        raise ValueError(f"{run} has its sound from {own}, so that must hear the words too, and not {folder.name}")
    return listening(recipe, folder) if heard else replace(recipe, recogniser="", whisper=folder)


def _made(out: Path, inputs: Inputs, run: str) -> Iterator[Asked]:
    """What `cmpta data clips` left in a folder."""
    from safetensors.numpy import load_file

    from data_prep import recordings

    content = recordings.opened(out / recordings.MADE)
    if _sets(content["recipe"]) != _sets(inputs.features):
        raise ValueError(
            f"{out} holds {_sets(content['recipe'])}, and {run} reads {_sets(inputs.features)}: ask it about the recordings "
            "themselves, or make their features anew with its sets"
        )
    for one in content["clips"]:
        known: dict[str, Any] = {key: one[key] or None for key in ("speaker", "dialogue")}
        known |= load_file(out / "clips" / one["features"])
        clip = Sample(one["file"], one["text"], **known)
        yield Asked(str(out / "clips" / one["features"]), one["file"], clip, one["notes"], one["heard"])


def _sets(features: Mapping[str, Any]) -> str:
    """Feature sets as `Recipe.stored` keeps them, for a message."""
    kept = [(one, features[one]) for one in MODALITIES if one in features]
    return " and ".join(f"{name} {one['set']} every {one['hop_ms']:g} ms" for name, one in kept) or "words alone"


@cache
def _say(line: str) -> None:
    """What a user must know, once a process."""
    print(line, file=sys.stderr)
