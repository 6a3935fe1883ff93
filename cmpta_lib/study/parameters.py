"""What a caller hands to a notebook or a study, checked before anything starts."""

from __future__ import annotations

import ast
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from cmpta_lib import registry
from cmpta_lib.config import PAPER_SEEDS, DataConfig, RunConfig, override, paths

# What names a run's data, backbone and seed has an argument of its own, which also finds or makes them.
_ELSEWHERE = {
    "seed": "the argument `seeds`",
    "data.name": "the argument `data`",
    "data.fingerprint": "the argument `data`",
    "method.name": "the row of a table",
    "method.recipe": "the method's code",
    "method.llm.name": "the argument `llm`",
    "method.llm.fingerprint": "the argument `llm`",
}
_COUNT = TypeAdapter(Annotated[int, Field(strict=True, ge=1, le=len(PAPER_SEEDS))])
_SEED = Annotated[int, Field(strict=True, ge=0, lt=2**32)]  # every generator takes 32 bits, some no more
_SEEDS = TypeAdapter(Annotated[Sequence[_SEED], Field(min_length=1)])


def check_parameters(cells: Sequence[str]) -> None:
    """Refuse parameters that papermill injected and this notebook does not have; papermill itself runs on with defaults.

    Args:
        cells: IPython's `In`, the code cells that have run so far.
    Raises:
        ValueError: names the unknown parameters, the nearest known one of each, and all known ones.
    """
    place = max((number for number, cell in enumerate(cells) if cell.startswith("# Parameters\n")), default=0)
    assigned = re.compile(r"^(\w+) *=(?!=)", re.MULTILINE).findall
    known, given = list(dict.fromkeys(assigned("\n".join(cells[:place])))), assigned(cells[place])
    if place and (unknown := [name for name in given if name not in known]):  # none: opened in Jupyter, or run without any
        said = ", ".join(f"'{name}'{_nearest(name, known)}" for name in unknown)
        raise ValueError(f"no parameter {said}; this notebook has: {', '.join(known)}")


def checked_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """The seeds that a caller asks for: how many of the five, or the seeds themselves; raises ValueError for others."""
    try:
        found = PAPER_SEEDS[: _COUNT.validate_python(seeds)] if isinstance(seeds, int) else _SEEDS.validate_python(seeds)
    except ValidationError:
        wanted = f"how many of the {len(PAPER_SEEDS)} seeds {PAPER_SEEDS}, or a list of whole numbers in [0, 2**32)"
        raise ValueError(f"seeds={seeds!r}: expected {wanted}") from None
    if len(set(found)) < len(found):
        raise ValueError(f"seeds={seeds!r}: a seed is repeated, which would pass for more runs than there are")
    return tuple(found)


def checked_changes(changes: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """Config fields to change in every run, checked for names and types before a corpus is opened.

    Args:
        changes: dotted field -> value; or a mapping's text, which is how `papermill -p changes '{...}'` hands it over.
    Raises:
        ValueError: no mapping, an unknown field, a value of the wrong type, or a field that another argument sets.
    """
    changes = (read_value(changes) if isinstance(changes, str) else changes) or {}
    if not isinstance(changes, Mapping) or not all(isinstance(name, str) for name in changes):
        raise ValueError(f'changes={changes!r}: expected fields with values, such as {{"training.epochs": 3}}')
    for name in changes:
        if name in _ELSEWHERE:
            raise ValueError(f"changes: '{name}' is set by {_ELSEWHERE[name]}, not as a change")
    _fits_some_method(changes)
    return dict(changes)


def _fits_some_method(changes: Mapping[str, Any]) -> None:
    """Raises ValueError unless each field is some registered method's, with values that fit one of those."""
    data, every, fitting, problems = DataConfig(name="any", fingerprint="any"), set[str](), set[str](), dict[str, str]()
    for entry in registry.ENTRIES.values():
        config = RunConfig(data=data, method=entry.defaults())
        every |= (known := set(paths(config)))
        own = {name: value for name, value in changes.items() if name in known}
        try:
            override(config, own)
            fitting |= own.keys()
        except ValueError as error:
            problems = dict.fromkeys(own, str(error)) | problems
    for name in changes:
        if name not in every:
            hint = _nearest(name, sorted(every))
            raise ValueError(f"changes: no method has the config field '{name}'{hint}; known: {', '.join(sorted(every))}")
        if name not in fitting:
            raise ValueError(f"changes: {problems[name]}")


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def read_value(text: str) -> Any:
    """A value as JSON or a Python literal where it is one, else the text itself."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (SyntaxError, ValueError):
            continue
    return text


def may_be_none(field: str) -> bool:
    """Whether a config field can be left empty."""
    try:
        _fits_some_method({field: None})
    except ValueError:
        return False
    return True
