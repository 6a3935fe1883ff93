"""Clips that a run is asked about, wherever they lie: recordings, what `cmpta data clips` made of some, a public pickle."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from cmpta_lib.data.corpus import Inputs, Sample
from data_prep.features import LONGEST_S, Recipe, Unusable, listening, named, said


@dataclass(frozen=True)
class Answer:
    """What a run says of one clip.

    `value`: a score in the range of the corpus's owner ([-1, 1] unless that said another) or a class index, None where a
    free reply is no legal answer. `text`: the class's name, or the score as the method writes it, in that range.
    `probabilities`: of every legal answer by its text; empty where the method gives a number only. `repairs`: what was
    not read as it was given, by kind: values of frames that are not finite and count as 0; `texts_cut`: 1 where the words
    are longer than the method reads. `problem`: why a clip of a file has no answer; its value is then None, its text "".
    """

    id: str
    value: float | int | None = None
    text: str = ""
    probabilities: Mapping[str, float] = field(default_factory=dict)
    repairs: Mapping[str, int] = field(default_factory=dict)
    file: str = ""  # that it came from, if any
    words: str = ""  # that were read
    recognised: bool = False  # whether a model heard them
    missing: tuple[str, ...] = ()  # of "sound", "face" and "words"
    notes: Mapping[str, int] = field(default_factory=dict)  # what was odd about a recording, by kind
    problem: str = ""


def clips_in(
    place: Path, inputs: Inputs, run: str, text: str = "", transcribe: str = "", longest: float = LONGEST_S, jobs: int = 1
) -> Iterator[tuple[Answer, Sample | ValueError]]:
    """The clips that lie there, read as the run's own were, one after the other; arguments as `TrainedRun.predict`.

    Args:
        inputs: what the run knows of its clips.
        run: what messages call it.
    Yields:
        A clip, or what is wrong with it, after what its answer will say of the file.
    Raises:
        ValueError: the features are not the run's, or nobody knows which those are; says what works instead.
        OSError, ImportError: nothing is there, or what makes the features is not on this machine.
    """
    from data_prep import public_pickles, recordings  # pandas: a loaded run that is given samples answers without

    if not place.exists():
        raise FileNotFoundError(f"{place} is not there: expected a recording, a folder of some, or a public pickle")
    is_made, is_pickle = (place / recordings.MADE).is_file(), place.suffix.lower() == ".pkl"
    if (text and (is_pickle or place.is_dir())) or (transcribe and (is_pickle or is_made)):
        todo = "write a folder's words into labels.csv, column text; ready clips have theirs"
        raise ValueError(f"{place}: --text is about one recording, --transcribe about recordings; {todo}")
    if is_pickle:
        if inputs.features:
            _say(f"{place} does not say which features it holds; they must be those of {run}: {named(inputs.features)}")
        for name, clip, repairs in public_pickles.clips_of(place, inputs.widths):
            yield Answer(name, file=str(place), notes=repairs), clip
    elif not inputs.features:
        raise ValueError(
            f"{place}: nobody knows how to make the frames that {run} was trained on, as they came ready-made; ask it about "
            "a pickle in MELD's public format that holds such frames, or train a run on recordings (`cmpta data clips`)"
        )
    elif is_made:
        content = recordings.opened(place / recordings.MADE)
        if (holds := named(content["recipe"])) != (reads := named(inputs.features)):
            todo = "ask it about the recordings themselves, or make their features anew with its sets"
            raise ValueError(f"{place} holds {holds}, and {run} reads {reads}: {todo}")
        for one in content["clips"]:
            known = {"file": str(place / "clips" / one["features"]), "notes": one["notes"], "recognised": one["heard"]}
            yield Answer(one["file"], **known), recordings.sample_of(one, place / recordings.MADE)
    else:
        own = Recipe.from_stored(inputs.features, run)
        recipe = replace(listening(own, "" if text else transcribe or own.recogniser, run), longest_s=longest)
        rows, told = recordings.unlabelled(place)
        for line in (*said(recipe), *(f"{place}: {line}" for line in told)):
            _say(line)
        calls = [(row["path"], replace(recipe, recogniser="" if row["text"] else recipe.recogniser)) for row in rows]
        every = recordings.each(recordings.attempt, calls, jobs if place.is_dir() and jobs > 1 else 0)
        for row, made in zip(rows, every, strict=True):
            about = Answer(row["file"], file=str(row["path"]))
            if isinstance(made, Unusable):
                yield about, made
            else:
                words, who = text or row["text"] or made.words or "", (row["speaker"] or None, row["dialogue"] or None)
                clip = Sample(row["file"], words, made.audio, made.vision, None, *who)
                yield replace(about, notes=made.notes, recognised=made.words is not None), clip


@cache
def _say(line: str) -> None:
    """What a user must know, once a process."""
    print(line, file=sys.stderr)
