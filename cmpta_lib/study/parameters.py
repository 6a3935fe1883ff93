"""What a caller hands to a notebook or a study, read in one way whether it comes from a command line, papermill or Python."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache, reduce
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from cmpta_lib import registry
from cmpta_lib.config import LISTED, PAPER_SEEDS, AtLeastOne, DataConfig, RunConfig, Seed, fitting, one_of, paths, shown

# What is set otherwise -> by what: it also finds or makes what is named.
_ELSEWHERE = dict.fromkeys(("data.name", "data.fingerprint"), "the argument `data`")
_ELSEWHERE |= dict.fromkeys(("method.llm.name", "method.llm.fingerprint"), "the argument `llm`")
_ELSEWHERE |= dict.fromkeys(("method.encoder.name", "method.encoder.fingerprint"), "the profile")
_ELSEWHERE |= {"seed": "the argument `seeds`", "method.name": "the row of a table", "method.recipe": "the method's code"}
_ELSEWHERE |= dict.fromkeys(("method.model.fingerprint", "method.media"), "the files")
_SEEDS = Annotated[int, Field(ge=1, le=len(PAPER_SEEDS))] | Annotated[Sequence[Seed], Field(min_length=1)]
_KINDS: Mapping[type, Any] = {bool: bool, str: str, int: AtLeastOne}  # of a notebook's own parameters, by their defaults'


def check_parameters(cells: Sequence[str]) -> None:
    """Refuse parameters that papermill injected and this notebook does not have or cannot read; it would run with its defaults.

    Args:
        cells: IPython's `In`, the code cells that have run so far.
    Raises:
        ValueError: one is unknown, or its value not of its default's kind.
    """
    place = max((number for number, cell in enumerate(cells) if cell.startswith("# Parameters\n")), default=0)
    assigned = re.compile(r"^(\w+) *=(?!=) *(.*)$", re.MULTILINE).findall
    known, given = dict(assigned("\n".join(cells[:place]))), dict(assigned(cells[place]) if place else ())
    for name, text in given.items():
        default = read_value(known[one_of("parameter", name, known)].partition("  #")[0])
        kind = _KINDS.get(type(default), Any)
        fitting(kind, read_value(text), name, strict=kind is not bool)


def flag(name: str, value: Any) -> bool:
    """A choice between two: True, False, or text that says so, such as papermill's "false"; else ValueError."""
    return fitting(bool, value, name)


def checked_seeds(seeds: int | Sequence[int] | str) -> tuple[int, ...]:
    """The seeds that a caller asks for: how many of the five, or the seeds themselves, also as text: "1111, 2222".

    Raises:
        ValueError: they are none.
    """
    read = read_value(seeds) if isinstance(seeds, str) else seeds
    read = read.tolist() if hasattr(read, "tolist") else read  # numpy's
    with suppress(ValueError):
        read = fitting(_SEEDS, read, strict=True)
        found = PAPER_SEEDS[:read] if isinstance(read, int) else tuple(read)
        if len(set(found)) == len(found):  # a repeated one would pass for more runs than there are
            return found
    wanted = f"how many of the {len(PAPER_SEEDS)} seeds {PAPER_SEEDS}, or a list of different whole numbers in [0, 2**32)"
    raise ValueError(f"seeds={shown(seeds)}: expected {wanted}")


def checked_changes(changes: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """Config fields to change in every run, checked one by one before a corpus is opened.

    Args:
        changes: dotted field -> value, "none" for nothing; or a mapping's text, as `papermill -p changes '{...}'` gives it.
    Raises:
        ValueError: no mapping, an unknown field, a value that fits no method's, or a field that another argument sets.
    """
    read = (read_value(changes) if isinstance(changes, str) else changes) or {}
    if not isinstance(read, Mapping) or not all(isinstance(name, str) for name in read):
        raise ValueError(f'changes={shown(changes)}: expected fields with values, such as {{"training.epochs": 3}}')
    owners, found = _owners(), {}
    for name, value in read.items():
        if name in _ELSEWHERE:
            raise ValueError(f"changes: '{name}' is set by {_ELSEWHERE[name]}, not as a change")
        one_of("config field", name, owners, LISTED)
        nothing = isinstance(value, str) and value.lower() == "none"  # a word in data.feature_scaling
        found[name] = _fitting_some(name, ["none", None] if nothing else [value], owners[name].values())
    return found


def _fitting_some(path: str, values: Sequence[Any], owners: Collection[Any]) -> Any:
    """The first of these values that the field may have in some method's settings; else ValueError."""
    name, problems = path.rpartition(".")[2], []
    for value, owner in itertools.product(values, owners):
        field = type(owner).model_fields[name]
        try:
            fitting(Annotated[field.annotation, field, AfterValidator(owner._one_way_to_write)], value, path, strict=True)
            return value
        except ValueError as error:
            problems.append(str(error))
    raise ValueError(f"changes: {problems[0]}")


def check_effect(changes: Mapping[str, Any], methods: Collection[str]) -> None:
    """Raises ValueError unless each field is a setting of one of these methods; else it would change nothing, in silence."""
    owners = _owners()
    for name in changes:
        if not owners[name].keys() & set(methods):
            having = ", ".join([*owners[name]][:5])
            raise ValueError(f"changes: '{name}' would change nothing: it is a setting of {having}, not asked for")


def _owners() -> dict[str, dict[str, BaseModel]]:
    """Field -> method -> the settings that hold it, as they are where nothing says otherwise."""
    data, found = DataConfig(name="any", fingerprint="any"), dict[str, dict[str, BaseModel]]()
    for method, entry in registry.ENTRIES.items():
        config = RunConfig(data=data, method=entry.defaults())
        for path in paths(config):
            found.setdefault(path, {})[method] = reduce(getattr, path.split(".")[:-1], config)
    return found


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
        with warnings.catch_warnings(action="ignore"):  # of what is no Python, as most text is
            tree = ast.parse(text.strip(), mode="eval")
        value = ast.literal_eval(tree)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return text
    for mapping in (node for node in ast.walk(tree) if isinstance(node, ast.Dict)):
        _each_once([(ast.unparse(key), None) for key in mapping.keys if key])
    return value


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError(f"a name is given twice in {shown([name for name, _ in pairs])}, and only one value can hold")
    return found


def fields() -> list[dict[str, Any]]:
    """What can be set as a change: field, what it expects in words, default, methods; what most methods have comes first."""
    found: dict[str, dict[str, Any]] = {}
    for path, owners in _owners().items():
        for method, owner in owners.items() if path not in _ELSEWHERE else ():
            last = path.rpartition(".")[2]
            expects = _words(owner.model_json_schema()["properties"][last])
            one = {"field": path, "expects": expects, "default": getattr(owner, last), "says": _said(type(owner), last)}
            one["methods"] = []
            found.setdefault(str(one), one)["methods"].append(method)
    return sorted(found.values(), key=lambda one: (-len(one["methods"]), one["methods"]))


def _said(owner: type, name: str) -> str:
    """The comment behind a field in its class; "" where there is none."""
    sources = (_source(one) for one in owner.__mro__ if issubclass(one, BaseModel))
    found = (re.search(rf"^ +{name}: .*?  # (.+)$", source, re.MULTILINE) for source in sources)
    return next((one[1] for one in found if one), "")


_source = cache(inspect.getsource)


def _words(schema: Mapping[str, Any]) -> str:
    """What a JSON schema says of a value, for a reader."""
    if "anyOf" in schema:
        return " or ".join(map(_words, schema["anyOf"]))
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    bounds["multipleOf"] = "a multiple of"
    kind = f"list of {_words(schema['items'])}" if "items" in schema else schema["type"].replace("null", "none")
    return " ".join([kind, *(f"{word} {schema[name]:.7g}" for name, word in bounds.items() if name in schema)])
