"""Which task the clips of a folder make: what their owner says, in the call or in `corpus.json`, and else what labels show."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal, get_args

from cmpta_lib.data.corpus import HUGE, SPLITS, Language, Task, is_number, problem, shown
from cmpta_lib.files import expanded, reading
from cmpta_lib.paper import ENGLISH_SCORE_PROMPT, MELD_LABELS

ABOUT = "corpus.json"  # beside the pickles; each of its keys may be left out
MOST_LABEL_CHARACTERS, MOST_CLASSES = 100, 100  # all classes stand in every prompt
MOST_PROMPT_CHARACTERS = 2000
_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_IN_CALL = re.compile(r"((?:classes|scores)(?:=[^:/]*)?:)?(.*)", re.DOTALL)
_SHOWN_LABELS = 5


@dataclass(frozen=True)
class Said:
    """What an owner says of the clips; None and "" where nothing is said."""

    task: Literal["classes", "scores"] | None = None
    range: tuple[float, float] | None = None  # the lowest and the highest score that there can be
    language: Language | None = None
    prompt: str = ""


def _is_range(value: object) -> bool:
    is_pair = isinstance(value, list) and len(value) == 2 and all(is_number(end) and abs(end) <= HUGE for end in value)
    return is_pair and value[0] < value[1]  # type: ignore[index]


# Key of `Said` -> what it must be, and whether a value is.
_KEYS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "task": ('"classes" or "scores"', lambda value: value in ("classes", "scores")),
    "range": ("the lowest and the highest score, as in scores=1..5:FOLDER or [1, 5] in the file", _is_range),
    "language": ('"en" or "zh" (of another language, write the question as "prompt")', lambda value: value in get_args(Language)),
    "prompt": (
        f"a question in one line of at most {MOST_PROMPT_CHARACTERS} characters",
        lambda value: isinstance(value, str) and value.isprintable() and 0 < len(value.strip()) <= MOST_PROMPT_CHARACTERS,
    ),
}


def split_choice(data: str | Path) -> tuple[str, str]:
    """What a call says before a folder, "classes:", "scores:", "scores=1..5:" or "", and the folder as it was given."""
    choice, folder = _IN_CALL.fullmatch(str(data)).groups("")  # type: ignore[union-attr]
    return choice, folder


def absolute(data: str) -> str:
    """The same choice and folder as seen from anywhere, `~` replaced."""
    choice, folder = split_choice(data)
    return f"{choice}{Path(expanded(folder)).resolve()}"


def said(data: str | Path) -> tuple[Said, Path]:
    """What is said of a folder of one's own clips, and the folder; what the call says counts before `corpus.json`.

    Raises:
        ValueError: something was said that cannot be; the message names where, and what can be said.
        OSError: `corpus.json` may not be read.
    """
    choice, name = split_choice(data)
    folder = Path(expanded(name))
    given, (task, equals, ends) = _content(folder / ABOUT), choice.removesuffix(":").partition("=")
    call: dict[str, Any] = {"task": task} if task else {}
    if equals:
        call["range"] = [read_number(end) for end in ends.split("..")]
    for key, value in (given := given | call).items():
        where = f"--data {choice}{name}" if key in call else str(folder / ABOUT)
        expected, fits = _KEYS.get(key, (f"one of {', '.join(_KEYS)}", None))
        if fits is None or not fits(value):
            nearest = get_close_matches(key, _KEYS, 1) if fits is None else []
            remedy = f"write {nearest[0]!r}" if nearest else "correct it or leave it out"
            raise problem(where, key[:MOST_LABEL_CHARACTERS], expected, shown(value) if fits else "another key", remedy)
    if given.get("task") == "classes" and "range" in given:
        raise problem(str(folder), "range", "of scores", "said of classes", "leave the range out, or say scores")
    if "range" in given:
        given["range"] = tuple(map(float, given["range"]))
    return Said(**given), folder


def _content(path: Path) -> dict[str, Any]:
    """What `corpus.json` holds; nothing where it is not there."""
    if not path.exists():
        return {}
    if not path.is_file():  # reading a pipe would wait for ever
        raise problem(str(path), None, "a file", "none", "remove or rename it")
    with reading(path):
        content = path.read_bytes()
    try:
        pairs = json.loads(content, object_pairs_hook=lambda found: found)
    except (ValueError, RecursionError) as error:
        raise problem(str(path), None, "JSON in UTF-8", f"not ({str(error)[:60]})", "correct it") from None
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs) or len(dict(pairs)) < len(pairs):
        raise problem(str(path), None, "a JSON object, each key once", "something else", 'such as {"task": "classes"}')
    return dict(pairs)


def read_number(text: str) -> float | None:
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
    expected, remedy = f"a number in [{low:g}, {high:g}], the range that was said", "correct the label or the range"
    if not about.range:
        expected = "a number in [-1, 1], as no other range is said"
        remedy = 'say it: --data scores=LOW..HIGH:FOLDER, or "range": [LOW, HIGH] in corpus.json'
    slack = 1e-6 * (high - low) if about.range else 0  # a float32 of 0.3 is a little more
    for where, label in (one for split in SPLITS for one in labels[split]):
        score = label if is_number(label) else read_number(label)
        if score is None or not abs(score) <= HUGE:
            raise problem(where, "label", "a finite number, as most in train", shown(label), "correct it, or leave the clip out")
        if not low - slack <= score <= high + slack:
            raise problem(where, "label", expected, shown(label), remedy)
    return Task("regression", language, score_range=ends, prompt=about.prompt or ENGLISH_SCORE_PROMPT * (language == "en"))


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
        values = [value for name in names if (value := read_number(name)) is not None]
        is_open = len(values) == len(names) and not all(map(_is_whole, values))
    else:
        values = [label for split in SPLITS for _, label in labels[split] if is_number(label)]
        is_open = all(map(_is_whole, values))
    if is_open:
        found = [f"{value:.12g}" for value in sorted(set(values))]
        some = ", ".join(found[:_SHOWN_LABELS]) + ", …" * (len(found) > _SHOWN_LABELS)
        is_wide = min(values) < -1 or max(values) > 1
        ends = (f"={found[0]}..{found[-1]}", f', "range": [{found[0]}, {found[-1]}]') if is_wide else ("", "")
        what = "numbers written as text" if is_text else "whole numbers"
        raise ValueError(
            f"{folder}: labels are {what} ({some}), which may be classes or scores; say it in the call, "
            f'--data classes:FOLDER or scores{ends[0]}:FOLDER, or in {ABOUT} in it: {{"task": "classes"}} or '
            f'{{"task": "scores"{ends[1]}}}'
        )
    return "classes" if is_text else "scores"


def _class_name(label: Any) -> str:
    return str(int(label)) if is_number(label) and _is_whole(label) else label


def _classes(labels: Mapping[str, Sequence[tuple[str, Any]]], may_be_numbers: bool) -> tuple[str, ...]:
    """Train's classes: MELD's seven in the paper's order, numbers by size, others by name."""
    train = labels["train"]
    known = {_class_name(one) for _, one in train if isinstance(one, str) or (may_be_numbers and _is_whole(one))}
    for where, label in (one for split in SPLITS for one in labels[split]):
        if isinstance(label, str):
            _need_usable_label(where, label)
        if not (isinstance(label, str) or may_be_numbers) or _class_name(label) not in known:
            alike = get_close_matches(str(label), known, 1) if isinstance(label, str) else []
            remedy = f"{f'write {shown(alike[0])},' if alike else 'correct it'} or add such samples to train"
            expected = f"one of train's labels {short(sorted(known))}" if known else "text or a whole number, as classes are"
            raise problem(where, "label", expected, shown(label), remedy if known else "say scores: in place of classes:")
    if not 1 < len(known) <= MOST_CLASSES:
        came = f"of {shown(*known)} alone" if len(known) == 1 else f"of {len(known)}"
        remedy = "add samples of another, or write scores" if len(known) == 1 else "join some; scores are written as numbers"
        raise problem(train[0][0].partition(", sample")[0], None, f"of two classes or more, {MOST_CLASSES} at most", came, remedy)
    if all(read_number(name) is not None for name in known):
        return tuple(sorted(known, key=lambda name: (float(name), name)))
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
