"""The package as others have it: without its repository, free until a name is used, and saying its version."""

from __future__ import annotations

import ast
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import cmpta_lib
from cmpta_lib import files
from cmpta_lib.cli.__main__ import main
from cmpta_lib.runs import provenance

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder of packages such as site-packages, with ours in it."""
    folder = tmp_path_factory.mktemp("site-packages")
    for name in ("cmpta_lib", "data_prep"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def called(installed: Path, here: Path, *command: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name not in ("CMPTA_RUNS", "CMPTA_FIGURES")}
    environment["PYTHONPATH"] = str(installed)
    return subprocess.run([sys.executable, *command], cwd=here, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("command", ["reproduce", "dry-run", "publish"])
def test_what_needs_the_notebooks_says_so_before_anything_starts(command, installed, tmp_path):
    done = called(installed, tmp_path, "-m", "cmpta_lib.cli", command)
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"cmpta {command}: cmpta {command} needs the repository's notebooks, and {installed} has none")
    assert "clone the repository" in done.stderr and "pip install -e ." in done.stderr
    assert not list(tmp_path.iterdir()) and {path.name for path in installed.iterdir()} == {"cmpta_lib", "data_prep"}


def test_runs_and_figures_are_the_current_folders(installed, tmp_path):
    done = called(installed, tmp_path, "-m", "cmpta_lib.cli", "runs")
    assert done.stdout == f"no runs in {tmp_path / 'runs'} yet\n", done.stderr
    code = "from cmpta_lib import files; print(files.figures_folder(), files.is_checkout())"
    assert called(installed, tmp_path, "-c", code).stdout.split() == [str(tmp_path / "figures"), "False"]
    done = called(installed, tmp_path, "-m", "cmpta_lib.cli", "--version")
    assert done.stdout.startswith(f"cmpta {cmpta_lib.__version__}, Python ") and done.returncode == 0, "it has no commit"


def test_a_checkout_keeps_its_own_from_wherever_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CMPTA_RUNS", raising=False)
    files.need_checkout("this")
    assert (files.runs_folder(), files.figures_folder()) == (ROOT / "runs", ROOT / "figures")


def test_the_version_says_what_runs(capsys, monkeypatch):
    monkeypatch.setattr(provenance, "commit", lambda: "c0ffee1234")
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == (
        f"cmpta {cmpta_lib.__version__} (commit c0ffee1234), Python {platform.python_version()}, "
        f"torch {version('torch')}, transformers {version('transformers')}\n"
    )


@pytest.mark.parametrize(("user", "said"), [("0", "jupyterlab --allow-root "), ("1000", "jupyterlab  ")])
def test_make_lab_opens_the_first_notebook_as_any_user(user, said, tmp_path):
    (tmp_path / "id").write_text(f"#!/bin/sh\necho {user}\n")
    (tmp_path / "id").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    shown = subprocess.run(["make", "-n", "lab"], cwd=ROOT, env=environment, capture_output=True, text=True).stdout
    (line,) = (line for line in shown.replace("\\\n", "").splitlines() if "-m jupyterlab" in line)
    assert said in line and ("--allow-root" in line) == (user == "0")
    (opened,) = re.findall(r"--LabApp.default_url=/lab/tree/(\S+)", line)  # the root is the repository's
    assert (ROOT / opened).name == "01_data.ipynb" and (ROOT / opened).is_file()


def test_code_and_stub_name_the_same_things_from_the_same_places():
    stub, stubbed = Path(cmpta_lib.__file__).with_suffix(".pyi").read_text(encoding="utf-8"), {}
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name, "without `as` a type checker takes a stub's import for private"
                stubbed[alias.name] = node.module
    assert stubbed == cmpta_lib._HOMES and set(cmpta_lib.__all__) == set(stubbed)
    assert all(getattr(cmpta_lib, name).__name__ == name and name in dir(cmpta_lib) for name in stubbed)
    with pytest.raises(AttributeError, match="no attribute 'lead'; it has Sample, Study, load, plain, read_folder, "):
        _ = cmpta_lib.lead


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import cmpta_lib", {"torch", "pandas", "numpy", "pydantic"}),
        # `cmpta --version`, a wrong option or a missing need answers at once.
        (
            "from cmpta_lib.cli.__main__ import main\ntry: main(['--version'])\nexcept SystemExit: pass",
            {"torch", "pandas", "matplotlib", "transformers"},
        ),
        ("from cmpta_lib.report import comparison, rows, tables, export; from cmpta_lib.study.study import Study; "
         "Study(smoke=True).planned_runs([])", {"transformers"}),
    ],
    ids=["the package", "a command", "tables"],
)
def test_importing_costs_little(code: str, heavy: set[str], root: Path):
    command, runs = f"import sys\n{code}\nprint(*sys.modules)", {"CMPTA_RUNS": str(root)}
    shown = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, env=os.environ | runs)
    assert shown.returncode == 0, shown.stderr
    assert not heavy & set(shown.stdout.splitlines()[-1].split())
