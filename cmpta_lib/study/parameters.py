"""What a caller hands to a notebook or a study, read in one way whether it comes from a command line, papermill or Python."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from cmpta_lib import registry
from cmpta_lib.config import PAPER_SEEDS, DataConfig, RunConfig, Settings, nearest, override, paths, shown

# What is set otherwise -> by what: it also finds or makes what is named.
_ELSEWHERE = dict.fromkeys(("data.name", "data.fingerprint"), "the argument `data`")
_ELSEWHERE |= dict.fromkeys(("method.llm.name", "method.llm.fingerprint"), "the argument `llm`")
_ELSEWHERE |= dict.fromkeys(("method.encoder.name", "method.encoder.fingerprint"), "the profile")
_ELSEWHERE |= {"seed": "the argument `seeds`", "method.name": "the row of a table", "method.recipe": "the method's code"}
_ELSEWHERE |= dict.fromkeys(("method.model.fingerprint", "method.media"), "the files")
_COUNT = TypeAdapter(Annotated[int, Field(strict=True, ge=1, le=len(PAPER_SEEDS))])
_SEED = Annotated[int, Field(strict=True, ge=0, lt=2**32)]  # every generator takes 32 bits, some no more
_SEEDS = TypeAdapter(Annotated[Sequence[_SEED], Field(min_length=1)])
_FLAGS = {True: True, False: False, "true": True, "false": False}


def check_parameters(cells: Sequence[str]) -> None:
    """Refuse parameters that papermill injected and this notebook does not have or cannot read, before anything runs.

    Papermill itself runs on with the defaults.

    Args:
        cells: IPython's `In`, the code cells that have run so far.
    Raises:
        ValueError: names the unknown parameters, the nearest known one of each, and all known ones; or one whose value is
            not of its default's kind. What a study reads, it checks itself.
    """
    place = max((number for number, cell in enumerate(cells) if cell.startswith("# Parameters\n")), default=0)
    assigned = re.compile(r"^(\w+) *=(?!=) *(.*)$", re.MULTILINE).findall
    known, given = dict(assigned("\n".join(cells[:place]))), dict(assigned(cells[place]) if place else ())
    if unknown := [name for name in given if name not in known]:
        said = ", ".join(f"'{name}'{nearest(name, known)}" for name in unknown)
        raise ValueError(f"no parameter {said}; this notebook has: {', '.join(known)}")
    for name, text in given.items():
        default, value = read_value(known[name].partition("  #")[0]), read_value(text)
        if isinstance(default, bool):
            flag(name, value)
        elif isinstance(default, str) and not isinstance(value, str):
            raise ValueError(f"{name}={shown(value)}: expected text, which papermill's -r hands over as it is")
        elif isinstance(default, int) and not (type(value) is int and 1 <= value <= 10**6):
            raise ValueError(f"{name}={shown(value)}: expected a whole number from 1 to 1000000")


def flag(name: str, value: Any) -> bool:
    """A choice between two: True, False, or their names as text, which is what papermill makes of `false`; else ValueError."""
    try:
        return _FLAGS[value.strip().lower() if isinstance(value, str) else value]
    except (KeyError, TypeError):
        raise ValueError(f"{name}={shown(value)}: expected true or false") from None


def checked_seeds(seeds: int | Sequence[int] | str) -> tuple[int, ...]:
    """The seeds that a caller asks for: how many of the five, or the seeds themselves, also as text: "1111, 2222".

    Raises:
        ValueError: they are none.
    """
    read = read_value(seeds) if isinstance(seeds, str) else seeds
    read = read.tolist() if hasattr(read, "tolist") else read  # numpy's
    try:
        found = PAPER_SEEDS[: _COUNT.validate_python(read)] if isinstance(read, int) else _SEEDS.validate_python(read)
    except ValidationError:
        wanted = f"how many of the {len(PAPER_SEEDS)} seeds {PAPER_SEEDS}, or a list of whole numbers in [0, 2**32)"
        raise ValueError(f"seeds={shown(seeds)}: expected {wanted}") from None
    if len(set(found)) < len(found):
        raise ValueError(f"seeds={shown(seeds)}: a seed is repeated, which would pass for more runs than there are")
    return tuple(found)


def checked_changes(changes: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """Config fields to change in every run, checked for names and types before a corpus is opened.

    Args:
        changes: dotted field -> value, "none" for nothing; or a mapping's text, as `papermill -p changes '{...}'` gives it.
    Raises:
        ValueError: no mapping, an unknown field, a value of the wrong type, or a field that another argument sets.
    """
    read = (read_value(changes) if isinstance(changes, str) else changes) or {}
    if not isinstance(read, Mapping) or not all(isinstance(name, str) for name in read):
        raise ValueError(f'changes={shown(changes)}: expected fields with values, such as {{"training.epochs": 3}}')
    for name in read:
        if name in _ELSEWHERE:
            raise ValueError(f"changes: '{name}' is set by {_ELSEWHERE[name]}, not as a change")
    found = {name: _none(name) if isinstance(value, str) and value.lower() == "none" else value for name, value in read.items()}
    _fits_some_method(found)
    return found


def _none(field: str) -> str | None:
    """What "none" means: nothing in training.patience, a word in data.feature_scaling."""
    try:
        _fits_some_method({field: None})
    except ValueError:
        return "none"
    return None


def check_effect(changes: Mapping[str, Any], methods: Collection[str]) -> None:
    """Raises ValueError unless each field is a setting of one of these methods; else it would change nothing, in silence."""
    for name in changes:
        having = [method for method, config in _defaults().items() if name in paths(config)]
        if not set(having) & set(methods):
            raise ValueError(f"changes: '{name}' would change nothing: it is a setting of {', '.join(having[:5])}, not asked for")


def _defaults() -> dict[str, RunConfig]:
    """Method -> a config of it where nothing says otherwise."""
    data = DataConfig(name="any", fingerprint="any")
    return {name: RunConfig(data=data, method=entry.defaults()) for name, entry in registry.ENTRIES.items()}


def _fits_some_method(changes: Mapping[str, Any]) -> None:
    """Raises ValueError unless each field is some registered method's, with values that fit one of those."""
    every, fitting, problems = set[str](), set[str](), dict[str, str]()
    for config in _defaults().values():
        every |= (known := set(paths(config)))
        own = {name: value for name, value in changes.items() if name in known}
        try:
            override(config, own)
            fitting |= own.keys()
        except ValueError as error:
            problems = dict.fromkeys(own, str(error)) | problems
    for name in changes:
        if name not in every:
            hint = nearest(name, sorted(every))
            raise ValueError(f"changes: no method has the config field {shown(name)}{hint}; `cmpta fields` lists all")
        if name not in fitting:
            raise ValueError(f"changes: {problems[name]}")


def read_value(text: str) -> Any:
    """A value as JSON or a Python literal where it is one, else the text itself.

    Raises:
        ValueError: a name stands twice in a mapping.
    """
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except (json.JSONDecodeError, RecursionError):  # brackets by the thousand are no value
        pass
    try:
        tree = ast.parse(text.strip(), mode="eval")
        value = ast.literal_eval(tree)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return text
    for node in ast.walk(tree):
        _each_once([(ast.unparse(key), None) for key in node.keys if key] if isinstance(node, ast.Dict) else ())
    return value


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError(f"a name is given twice in {shown([name for name, _ in pairs])}, and only one value can hold")
    return found


def fields() -> list[dict[str, Any]]:
    """What can be set as a change: field, what it expects in words, default, methods; what most methods have comes first."""
    found: dict[str, dict[str, Any]] = {}
    for method, config in _defaults().items():
        for path in (path for path in paths(config) if path not in _ELSEWHERE):
            *parents, last = path.split(".")
            owner: Settings = reduce(getattr, parents, config)
            expects = _words(owner.model_json_schema()["properties"][last])
            one = {"field": path, "expects": expects, "default": getattr(owner, last)}
            found.setdefault(str(one), one | {"methods": []})["methods"].append(method)
    return sorted(found.values(), key=lambda one: (-len(one["methods"]), one["methods"]))


def _words(schema: Mapping[str, Any]) -> str:
    """What a JSON schema says of a value, for a reader."""
    if "anyOf" in schema:
        return " or ".join(map(_words, schema["anyOf"]))
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below", "multipleOf": "by"}
    kind = f"list of {_words(schema['items'])}" if "items" in schema else schema["type"].replace("null", "none")
    return " ".join([kind, *(f"{word} {schema[name]:.7g}" for name, word in bounds.items() if name in schema)])
