"""The house's plan, checked: which part may import which, and how long anything may be.

Every import counts: those inside functions, and those for type checkers alone.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up: each may import those before it, and its neighbours in its own line.
LAYERS = (
    {"paper", "metrics", "config", "files"}, {"data"}, {"base"}, {"method"}, {"llm", "fast"},
    {"registry", "baselines", "beyond"}, {"embedded"}, {"data_prep"}, {"runs"}, {"study"}, {"figures"}, {"report"},
    {"benchmark"}, {"cli"},
)  # fmt: skip
LEAVES = LAYERS[0]
ONLY = {"method": {"base", "config", "paper", "data"}, "data_prep": {"data", "llm", *LEAVES}}  # and themselves
# Limits that should fall: they stand where the code stands. Wanted: 16,000 lines of cmpta_lib, and 17,000 of tests.
MOST_LINES = {"cmpta_lib": 20_790, "cmpta_lib/method": 900, "data_prep": 3_950, "tests": 23_400}
MOST_FILES, MOST_FILE_LINES, MOST_FUNCTION_LINES = 95, 350, 60
LONGER = {"data_prep.safe_pickle"}


@cache
def modules() -> dict[str, Path]:
    paths = [path for package in ("cmpta_lib", "data_prep") for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def part(module: str) -> str:
    """The part of the house that a module belongs to; the package itself hands out names of all parts and imports none."""
    first, *others = module.split(".")
    return first if first == "data_prep" else others[0] if others else "cli"


def place(module: str) -> int:
    return next(number for number, parts in enumerate(LAYERS) if part(module) in parts)


def imports(path: Path) -> Iterator[str]:
    """Modules of ours that this file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom) and node.module in modules():
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules() else node.module


@cache
def graph() -> dict[str, frozenset[str]]:
    return {name: frozenset(imports(path)) - {name} for name, path in modules().items()}


def arrows() -> list[tuple[str, str]]:
    return [(module, imported) for module, below in graph().items() for imported in below]


def circle_from(module: str, way: tuple[str, ...] = ()) -> tuple[str, ...]:
    if module in way:
        return (*way[way.index(module) :], module)
    return next((found for imported in sorted(graph()[module]) if (found := circle_from(imported, (*way, module)))), ())


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_every_import_of_ours_is_seen(tmp_path: Path):
    source = tmp_path / "m.py"
    source.write_text(
        "from typing import TYPE_CHECKING\nfrom cmpta_lib import files\nfrom cmpta_lib.paper import TABLE1\n"
        "if TYPE_CHECKING:\n    from cmpta_lib.study.study import Study\ndef f():\n    import cmpta_lib.config\n"
    )
    assert set(imports(source)) == {f"cmpta_lib.{name}" for name in ("files", "paper", "study.study", "config")}
    assert "cmpta_lib.data.store" in graph()["data_prep.public_pickles"]


def test_no_import_leads_back():
    assert not [" -> ".join(found) for module in modules() if (found := circle_from(module)) and found[0] == module]


def test_no_import_leads_up():
    assert not [f"{module} imports {up}" for module, up in arrows() if place(up) > place(module)]


@pytest.mark.parametrize("name", ONLY)
def test_these_stand_on_few_others(name: str):
    allowed = ONLY[name] | {name}
    assert not [f"{module} imports {one}" for module, one in arrows() if part(module) == name and part(one) not in allowed]


def test_what_is_beyond_the_paper_is_found_by_name_alone():
    """By the registry's discovery: whoever removes the folder has removed the systems and broken nothing."""
    assert not [f"{module} imports {one}" for module, one in arrows() if part(one) == "beyond" != part(module)]


def test_neither_pickles_nor_hubs_are_needed_for_runs_and_only_studies_of_own_files_open_some():
    above = {module for module, one in arrows() if part(one) == "data_prep" and part(module) in ("study", "report", "figures")}
    assert above == {"cmpta_lib.study.study", "cmpta_lib.study.trained"}
    reached, todo = set(), [module for module in modules() if part(module) == "runs"]
    while todo:
        new = graph()[todo.pop()] - reached
        reached |= new
        todo += new
    assert not [module for module in reached if part(module) == "data_prep"]


@pytest.mark.parametrize("folder", MOST_LINES)
def test_the_house_stays_thin(folder: str):
    assert sum(lines(path) for path in (ROOT / folder).rglob("*.py")) <= MOST_LINES[folder]


def test_there_are_few_files():
    """Counting those that hold more than a docstring."""
    ours = [path for path in (ROOT / "cmpta_lib").rglob("*.py") if len(ast.parse(path.read_text(encoding="utf-8")).body) > 1]
    assert len(ours) <= MOST_FILES


def test_files_and_functions_stay_readable():
    assert not {m: lines(path) for m, path in modules().items() if m not in LONGER and lines(path) > MOST_FILE_LINES}
    trees = {module: ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for module, path in modules().items()}
    functions = [(module, node) for module, tree in trees.items() for node in tree if isinstance(node, ast.FunctionDef)]
    lengths = {f"{module}.{node.name}": (node.end_lineno or 0) - node.lineno + 1 for module, node in functions}
    assert not {name: length for name, length in lengths.items() if length > MOST_FUNCTION_LINES}


def test_no_module_is_named_like_one_of_the_standard_library():
    assert not {module.split(".")[-1] for module in modules()} & sys.stdlib_module_names
