"""The few names that `import cmpta_lib` gives: the same in code and in the stub, and free until one is used."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import cmpta_lib

STUB = Path(cmpta_lib.__file__).with_suffix(".pyi")
HEAVY = {"torch", "pandas", "numpy", "pydantic"}


def test_code_and_stub_name_the_same_things_from_the_same_places():
    stubbed = {}
    for node in ast.parse(STUB.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name, "without `as` a type checker takes a stub's import for private"
                stubbed[alias.name] = node.module
    assert stubbed == cmpta_lib._HOMES and set(cmpta_lib.__all__) == set(stubbed)


@pytest.mark.parametrize("name", cmpta_lib.__all__)
def test_each_name_is_there(name: str):
    assert getattr(cmpta_lib, name).__name__ == name and name in dir(cmpta_lib)


def test_another_name_lists_those_that_there_are():
    with pytest.raises(AttributeError, match="no attribute 'lead'; it has Sample, Study, load, plain, read_folder, "):
        _ = cmpta_lib.lead


def test_importing_costs_nothing():
    code = "import json, sys, cmpta_lib; print(json.dumps([cmpta_lib.__version__, sorted(sys.modules)]))"
    version, loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert version == cmpta_lib.__version__ and not HEAVY & set(loaded)


def test_a_command_imports_nothing_heavy_before_it_is_known():
    """`cmpta --version`, a wrong option or a missing need answers at once."""
    code = "import sys; from cmpta_lib.cli.__main__ import main\ntry: main(['--version'])\nexcept SystemExit: print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown[0].startswith("cmpta ") and not {"torch", "pandas", "matplotlib", "transformers"} & set(shown[1].split())
