"""What a caller hands to a notebook or a study, checked before anything starts."""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

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


def check_parameters(cells: Sequence[str]) -> None:
    """Refuse parameters that papermill injected and this notebook does not have; papermill itself runs on with defaults.

    Args:
        cells: IPython's `In`, the code cells that have run so far.
    Raises:
        ValueError: names the unknown parameters, the nearest known one of each, and all known ones.
    """
    places = [number for number, cell in enumerate(cells) if cell.startswith("# Parameters\n")]
    if not places:
        return  # opened in Jupyter, or run without any parameter
    given = _assigned(cells[places[-1]])
    known = next((names for cell in reversed(cells[: places[-1]]) if (names := _assigned(cell))), ())
    if unknown := [name for name in given if name not in known]:
        said = []
        for name in unknown:
            near = difflib.get_close_matches(name, known, n=1)
            said.append(f"'{name}'" + (f" (did you mean '{near[0]}'?)" if near else ""))
        raise ValueError(f"no parameter {', '.join(said)}; this notebook has: {', '.join(known)}")


def _assigned(cell: str) -> tuple[str, ...]:
    """The names that a cell assigns, if it does nothing else."""
    try:
        statements = ast.parse(cell).body
    except SyntaxError:  # a cell with IPython's own syntax
        return ()
    targets = [s.targets[0] for s in statements if isinstance(s, ast.Assign) and len(s.targets) == 1]
    names = tuple(target.id for target in targets if isinstance(target, ast.Name))
    return names if len(names) == len(statements) else ()


def checked_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """The seeds that a caller asks for: how many of the five, or the seeds themselves; raises ValueError for others."""
    wanted = f"expected how many of the {len(PAPER_SEEDS)} seeds {PAPER_SEEDS}, or a list of whole numbers in [0, 2**32)"
    if isinstance(seeds, int) and 1 <= seeds <= len(PAPER_SEEDS) and not isinstance(seeds, bool):
        return PAPER_SEEDS[:seeds]
    listed = seeds if isinstance(seeds, Sequence) and not isinstance(seeds, str) else ()
    # Every generator takes 32 bits, some no more; a bool is an int to Python and to nobody else.
    if not listed or not all(type(seed) is int and 0 <= seed < 2**32 for seed in listed):
        raise ValueError(f"seeds={seeds!r}: {wanted}")
    if len(set(listed)) < len(listed):
        raise ValueError(f"seeds={seeds!r}: a seed is repeated, which would pass for more runs than there are")
    return tuple(listed)


def checked_changes(changes: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """Config fields to change in every run, checked for names and types before a corpus is opened.

    Args:
        changes: dotted field -> value; or a mapping's text, which is how `papermill -p changes '{...}'` hands it over.
    Raises:
        ValueError: no mapping, an unknown field, a value of the wrong type, or a field that another argument sets.
    """
    if isinstance(changes, str):
        changes = read_value(changes)
    if not changes:
        return {}
    if not isinstance(changes, Mapping) or not all(isinstance(name, str) for name in changes):
        raise ValueError(f'changes={changes!r}: expected fields with values, such as {{"training.epochs": 3}}')
    for name in changes:
        if name in _ELSEWHERE:
            raise ValueError(f"changes: '{name}' is set by {_ELSEWHERE[name]}, not as a change")
    _fits_some_method(changes)
    return dict(changes)


def _fits_some_method(changes: Mapping[str, Any]) -> None:
    """Raises ValueError unless each field is some registered method's, with values that fit one of those."""
    configs = _any_runs()
    fields = [set(paths(config)) for config in configs]
    if unknown := [name for name in changes if not any(name in known for known in fields)]:
        every = sorted(set().union(*fields))
        near = difflib.get_close_matches(unknown[0], every, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise ValueError(f"changes: no method has the config field '{unknown[0]}'{hint}; known: {', '.join(every)}")
    problems: dict[str, str] = {}
    fitting: set[str] = set()
    for config, known in zip(configs, fields, strict=True):
        own = {name: value for name, value in changes.items() if name in known}
        try:
            override(config, own)
        except ValueError as error:
            problems = dict.fromkeys(own, str(error)) | problems
        else:
            fitting |= own.keys()
    if unfit := [name for name in changes if name not in fitting]:
        raise ValueError(f"changes: {problems[unfit[0]]}")


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


def _any_runs() -> list[RunConfig]:
    """A config of each registered method."""
    data = DataConfig(name="any", fingerprint="any")
    return [RunConfig(data=data, method=entry.defaults()) for entry in registry.ENTRIES.values()]
