"""The house's plan, checked: which part may import which, how many floors there are, and how long anything may be.

Imports inside functions count; imports for type checkers alone do not, they run nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_LAYERS, MOST_LINES, MOST_FUNCTION_LINES, MOST_METHOD_LINES = 12, 480, 60, 900
LONGER = {"data_prep.safe_pickle"}
# From the ground up: each may import those to its left, and itself.
FLOORS = (
    "leaves", "data", "methods", "embedded", "data_prep", "runs", "study", "figures", "report",
    "benchmark", "cli",
)  # fmt: skip
LEAVES = {"paper", "metrics", "config", "files"}
METHODS = {"base", "registry", "method", "fast", "llm", "baselines", "beyond"}


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package in ("cmpta_lib", "data_prep"):
        for path in (ROOT / package).rglob("*.py"):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def floor(module: str) -> str:
    parts = module.split(".")
    if parts[0] == "data_prep":
        return "data_prep"
    if len(parts) == 1:
        return "cli"  # the package itself, which hands out names of every floor and imports none of them
    return "leaves" if parts[1] in LEAVES else "methods" if parts[1] in METHODS else parts[1]


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules of ours that this code imports, wherever it does."""
    for node in ast.iter_child_nodes(tree):
        if is_for_type_checkers(node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in modules() or node.module in modules():
                    yield whole if whole in modules() else node.module
        yield from imports(node)


@cache
def graph() -> dict[str, frozenset[str]]:
    return {
        name: frozenset(imports(ast.parse(path.read_text(encoding="utf-8")))) - {name} for name, path in modules().items()
    }


@cache
def layer(module: str) -> int:
    return 1 + max((layer(imported) for imported in graph()[module]), default=0)


def circle_from(module: str, way: tuple[str, ...] = ()) -> tuple[str, ...]:
    if module in way:
        return (*way[way.index(module) :], module)
    return next((found for imported in sorted(graph()[module]) if (found := circle_from(imported, (*way, module)))), ())


def test_every_import_of_ours_is_seen():
    assert {"cmpta_lib.runs.worker", "cmpta_lib.runs.engines", "data_prep.meld"} <= graph().keys()
    assert "cmpta_lib.runs.execution" in graph()["cmpta_lib.runs.worker"], "an import inside a function"
    assert "cmpta_lib.data.store" in graph()["data_prep.public_pickles"]


@pytest.mark.parametrize("module", modules())
def test_no_import_leads_back(module: str):
    assert not (found := circle_from(module)), " -> ".join(found)


@pytest.mark.parametrize("module", modules())
def test_no_import_leads_up(module: str):
    for imported in graph()[module]:
        assert FLOORS.index(floor(imported)) <= FLOORS.index(floor(module)), f"{module} imports {imported}"


def test_data_prep_stands_on_the_data_contract_alone():
    below = {imported for module in modules() if floor(module) == "data_prep" for imported in graph()[module]}
    assert {floor(module) for module in below} <= {"data_prep", "data", "leaves"}


def test_neither_pickles_nor_hubs_are_needed_for_runs_and_only_studies_of_own_files_open_some():
    reached, todo = set(), [module for module in modules() if floor(module) == "runs"]
    while todo:
        new = graph()[todo.pop()] - reached
        reached |= new
        todo += new
    assert not [module for module in reached if floor(module) == "data_prep"]
    above = {name for name in modules() if floor(name) in ("study", "report", "figures")}
    assert {name for name in above if any(floor(one) == "data_prep" for one in graph()[name])} == {"cmpta_lib.study.study"}


def test_there_are_ten_layers_at_most():
    highest = max(modules(), key=layer)
    assert layer(highest) <= MOST_LAYERS, f"{highest} stands on layer {layer(highest)}"


@pytest.mark.parametrize("module", modules())
def test_modules_and_functions_stay_readable(module: str):
    text = modules()[module].read_text(encoding="utf-8")
    assert module in LONGER or len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno:
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MOST_FUNCTION_LINES, f"{node.name} has {lines} lines"


def test_the_method_fits_on_few_pages():
    files = (ROOT / "cmpta_lib" / "method").glob("*.py")
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= MOST_METHOD_LINES


def test_no_module_is_named_like_one_of_the_standard_library():
    import sys

    assert not {module.split(".")[-1] for module in modules()} & sys.stdlib_module_names
