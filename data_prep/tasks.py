"""Which task the clips of a folder make: what their owner says, in the call or in `corpus.json`, and else what labels show."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal, cast, get_args

from cmpta_lib.data.corpus import HUGE, SPLITS, Language, Task, is_number, problem, shown
from cmpta_lib.files import reading
from cmpta_lib.paper import MELD_LABELS

ABOUT = "corpus.json"  # beside the pickles; each of its keys may be left out
MOST_LABEL_CHARACTERS = 100  # all classes stand in every prompt
MOST_CLASSES = 100
MOST_PROMPT_CHARACTERS = 2000

_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_IN_CALL = re.compile(r"(classes|scores)(?:=([^:/]*))?:(.+)", re.DOTALL)
_HOW = 'in the call, as in --data classes:FOLDER or scores{}:FOLDER, or in corpus.json in it: {{"task": "classes"}} or "scores"{}'
_SHOWN_LABELS = 5


@dataclass(frozen=True)
class Said:
    """What an owner says of the clips; None and "" where nothing is said."""

    task: Literal["classes", "scores"] | None = None
    range: tuple[float, float] | None = None  # of scores: low and high end
    language: Language | None = None
    prompt: str = ""


def split_choice(data: str | Path) -> tuple[str, str]:
    """What a call says before a folder, "classes:", "scores:", "scores=1..5:" or "", and the folder as it was given."""
    match = _IN_CALL.fullmatch(str(data))
    return (str(data)[: match.start(3)], match[3]) if match else ("", str(data))


def said(data: str | Path) -> tuple[Said, Path]:
    """What is said of a folder of one's own clips, and the folder; what the call says counts before `corpus.json`.

    Raises:
        ValueError: something was said that cannot be; the message names where, and what can be said.
        PermissionError: `corpus.json` may not be read.
    """
    choice, folder = split_choice(data)
    about = _read_about(Path(folder) / ABOUT)
    if choice:
        task, _, ends = choice.removesuffix(":").partition("=")
        where = f"--data {shown(choice)}"
        if ends or "=" in choice:
            pair = [_read_number(end) for end in ends.split("..")]
            about = replace(about, range=_range(where, pair))
        elif task == "classes":
            about = replace(about, range=None)
        about = replace(about, task=cast(Any, task))
    if about.range and about.task == "classes":
        raise problem(folder, "range", "said of scores only", "said of classes", "leave it out")
    return about, Path(folder)


def _read_about(path: Path) -> Said:
    if not path.exists():
        return Said()
    with reading(path):
        content = path.read_bytes()
    try:
        given = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise problem(str(path), None, "JSON in UTF-8", f"not ({str(error)[:60]})", _example()) from None
    if not isinstance(given, dict):
        raise problem(str(path), None, "a JSON object", shown(given), _example())
    known = [*Said.__dataclass_fields__]
    for name in given.keys() - known:
        nearest = get_close_matches(name, known, 1)
        remedy = f"write {nearest[0]!r}" if nearest else "leave it out"
        raise problem(str(path), None, f"an object with some of {', '.join(known)}", f"one with {shown(name)}", remedy)
    task, language, prompt = (given.get(name) for name in ("task", "language", "prompt"))
    if task not in (None, "classes", "scores"):
        raise problem(str(path), "task", '"classes" or "scores"', shown(task), "write one of the two")
    if language not in (None, *get_args(Language)):
        remedy = 'for another language write "en", and the question in that language as "prompt"'
        raise problem(str(path), "language", '"en" or "zh"', shown(language), remedy)
    if prompt is not None and not (
        isinstance(prompt, str) and prompt.strip() and prompt.isprintable() and len(prompt) <= MOST_PROMPT_CHARACTERS
    ):
        expected = f"a question in one line of at most {MOST_PROMPT_CHARACTERS} characters"
        raise problem(str(path), "prompt", expected, shown(prompt), "write the question that the LLM is asked")
    ends = given.get("range")
    return Said(task, None if ends is None else _range(str(path), ends), language, prompt or "")


def _example() -> str:
    return 'such as {"task": "scores", "range": [1, 5]}'


def _range(where: str, ends: object) -> tuple[float, float]:
    if isinstance(ends, list) and len(ends) == 2 and all(is_number(end) and abs(end) <= HUGE for end in ends):
        low, high = map(float, ends)
        if low < high:
            return low, high
    came = ", ".join(map(shown, ends)) if isinstance(ends, list) and len(ends) < 4 else shown(ends)
    remedy = 'such as scores=1..5:FOLDER, or "range": [1, 5]'
    raise problem(where, "range", "the lowest and the highest score that there can be", came or "empty", remedy)


def _read_number(text: str) -> float | None:
    """A finite number that stands in a text, or None."""
    try:
        return found if abs(found := float(text)) <= HUGE else None
    except ValueError:
        return None


def _is_whole(label: float) -> bool:
    return bool(abs(label) <= HUGE) and int(label) == label


# What labels show -----------------------------------------------------------------------------------------------------
def find_task(folder: Path, about: Said, labels: Mapping[str, Sequence[tuple[str, Any]]], texts: Sequence[str]) -> Task:
    """The task of a folder's clips.

    Args:
        labels: split -> what messages call each clip, and its label, text or a number.
        texts: of all clips; where more than half hold a Chinese character, the language is Chinese unless another is said.
    Raises:
        ValueError: nothing is said and labels leave it open; one is none of the task's; there are too few classes or too
            many. The message names file and clip.
    """
    language: Language = about.language or ("zh" if sum(bool(_CJK.search(one)) for one in texts) * 2 > len(texts) else "en")
    kind = about.task or ("scores" if about.range else _shown_kind(folder, labels))
    if kind == "classes":
        return Task("classification", language, _classes(labels, about.task == "classes"), prompt=about.prompt)
    low, high = ends = about.range or (-1.0, 1.0)
    texts_of_train = sum(isinstance(label, str) for _, label in labels["train"])
    for where, label in (one for split in SPLITS for one in labels[split]):
        score = label if is_number(label) else _read_number(label)
        if score is None or not abs(score) <= HUGE:
            count = f"{len(labels['train']) - texts_of_train} of the {len(labels['train'])} samples in train"
            remedy = "correct it, or leave the clip out"
            raise problem(where, "label", "a number" + ("" if about.task else f", as for {count}"), shown(label), remedy)
        if not low <= score <= high:
            whose = "the range that was said" if about.range else "as no other range is said"
            own = 'say your scores\' range: --data scores=LOW..HIGH:FOLDER, or "range": [LOW, HIGH] in corpus.json'
            remedy = "correct the one or the other" if about.range else own
            raise problem(where, "label", f"a number in [{low:g}, {high:g}], {whose}", shown(label), remedy)
    return Task("regression", language, score_range=ends, prompt=about.prompt)


def label_of(task: Task, label: Any) -> float | int:
    """A label of `find_task`'s as a sample has it: the class's index, or the score in [-1, 1]."""
    if task.kind == "classification":
        return task.labels.index(_class_name(label))
    return min(1.0, max(-1.0, task.from_range(float(label)))) if task.is_scaled else float(label)


def _shown_kind(folder: Path, labels: Mapping[str, Sequence[tuple[str, Any]]]) -> Literal["classes", "scores"]:
    """What labels are where nobody says it: texts are classes, numbers scores; whole numbers may be either."""
    train = [label for _, label in labels["train"]]
    names = [label for label in train if isinstance(label, str)]
    if is_text := 2 * len(names) >= len(train):  # the odd one is to blame, wherever it stands
        values = [value for name in names if (value := _read_number(name)) is not None]
        is_open = len(values) == len(names) and not all(map(_is_whole, values))
    else:
        values = [label for split in SPLITS for _, label in labels[split] if is_number(label)]
        is_open = all(map(_is_whole, values))
    if is_open:
        found = sorted(set(values))
        some = ", ".join(f"{value:g}" for value in found[:_SHOWN_LABELS]) + (", …" if len(found) > _SHOWN_LABELS else "")
        what = "numbers written as text" if is_text else "whole numbers"
        is_wide = min(found) < -1 or max(found) > 1
        ends = (f"={found[0]:g}..{found[-1]:g}", f' with "range": [{found[0]:g}, {found[-1]:g}]') if is_wide else ("", "")
        how = _HOW.format(*ends)
        raise ValueError(f"{folder}: labels are {what} ({some}), so they may be classes or scores; say which {how}")
    return "classes" if is_text else "scores"


def _class_name(label: Any) -> str:
    return str(int(label)) if is_number(label) and _is_whole(label) else label


def _classes(labels: Mapping[str, Sequence[tuple[str, Any]]], may_be_numbers: bool) -> tuple[str, ...]:
    """Train's classes: MELD's seven in the paper's order, numbers by size, others by name."""
    train = [where for where, _ in labels["train"]]
    usual = [label for _, label in labels["train"] if isinstance(label, str) or (may_be_numbers and _is_whole(label))]
    known = set(map(_class_name, usual))
    for where, label in (one for split in SPLITS for one in labels[split]):
        if isinstance(label, str):
            _need_usable_label(where, label)
        is_known = (isinstance(label, str) or may_be_numbers) and _class_name(label) in known
        if not is_known:
            alike = get_close_matches(str(label), known, 1) if isinstance(label, str) else []
            remedy = f"write {shown(alike[0])}, or add" if alike else "correct it or add"
            expected = f"one of train's labels {short(sorted(known))}"
            raise problem(where, "label", expected, shown(label), f"{remedy} such samples to train")
    if not 1 < len(known) <= MOST_CLASSES:
        came = f"of {shown(*known)} alone" if len(known) == 1 else f"of {len(known)}"
        remedy = "add samples of another, or write scores" if len(known) == 1 else "join some; scores are written as numbers"
        raise problem(train[0].partition(", sample")[0], None, f"of two classes or more, {MOST_CLASSES} at most", came, remedy)
    values = {name: _read_number(name) for name in known}
    if all(value is not None for value in values.values()):
        return tuple(sorted(known, key=lambda name: (values[name], name)))
    return MELD_LABELS if known == set(MELD_LABELS) else tuple(sorted(known))


def _need_usable_label(where: str, label: str) -> None:
    """Classes that look alike must be alike, and the LLM is asked about them by name."""
    if len(label) > MOST_LABEL_CHARACTERS:
        expected, came = f"a class name of at most {MOST_LABEL_CHARACTERS} characters", f"one of {len(label)}"
        raise problem(where, "label", expected, f"{came}, {shown(label)}", "write a short name")
    seen = "".join(letter if letter.isprintable() else " " if letter.isspace() else "" for letter in label)
    tidy = " ".join(seen.split())
    if label != tidy or not tidy:
        expected = "a class name of visible characters, with single spaces between words only"
        raise problem(where, "label", expected, shown(label), f"write {tidy!r}" if tidy else "write the class's name")
