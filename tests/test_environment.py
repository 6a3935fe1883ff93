"""The install files agree: pyproject.toml leads, constraints.txt pins, environment.yml repeats the pins."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"pytorch": "torch"}  # conda's name -> the Python registry's, where they differ
CONDA_BRINGS = {"python", "pip", "setuptools"}  # the interpreter and what installs this package: no pins in common
PIP_ONLY = {"uv"}  # installs the others where conda does not
NAMED_BY_THE_PROJECT = {"torch", "transformers", "matplotlib", "seaborn", "pandas", "papermill"}
# Installed with torch by its CUDA build alone; pinned here they would be missing or wrong on every other machine.
CUDA_ONLY = re.compile(r"nvidia-|cuda-|cupy|triton|pytorch-cuda|pytorch-gpu")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def direct(project: dict) -> dict[str, Requirement]:
    """The core, and what JupyterLab and the tests need."""
    lines = [*project["dependencies"], *(line for extra in ("lab", "dev") for line in project["optional-dependencies"][extra])]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


@pytest.fixture(scope="module")
def constraint_lines() -> list[str]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]


@pytest.fixture(scope="module")
def pins(constraint_lines: list[str]) -> dict[str, str]:
    return dict(line.split("==") for line in constraint_lines)


@pytest.fixture(scope="module")
def conda() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def conda_specs(conda: dict) -> dict[str, str]:
    """Name on the Python registry -> the rest of the line."""
    specs = {}
    for line in conda["dependencies"]:
        assert isinstance(line, str), f"a pip section: {line}; move it to conda or teach this test to compare it"
        name, version = re.fullmatch(r"([a-z0-9._-]+)(.*)", line).groups()
        specs[canonicalize_name(CONDA_NAMES.get(name, name))] = version
    assert len(specs) == len(conda["dependencies"]), "a package is listed twice"
    return specs


def test_constraints_are_plain_sorted_pins_without_cuda(constraint_lines: list[str], pins: dict[str, str]):
    assert not [line for line in constraint_lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)]
    assert [line.split("==")[0] for line in constraint_lines] == sorted(pins)
    assert not [name for name in pins if CUDA_ONLY.match(name)]


def test_every_dependency_and_extra_has_a_lower_bound_and_is_pinned_inside_its_range(project: dict, pins: dict[str, str]):
    for extra, lines in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        for requirement in map(Requirement, lines):
            pin = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(pin), f"{extra}: constraints.txt has {pin}, pyproject {requirement}"
            assert {part.operator for part in requirement.specifier} & {">=", "=="}, f"{extra}, no lower bound: {requirement}"
    assert {Requirement(line).name for line in project["dependencies"]} >= NAMED_BY_THE_PROJECT


def test_environment_lists_the_direct_dependencies_with_their_pins_and_nothing_else(direct, conda_specs, pins):
    shared = set(conda_specs) - CONDA_BRINGS
    assert shared == set(direct) - PIP_ONLY
    assert {name: conda_specs[name] for name in shared} == {name: f"=={pins[name]}" for name in shared}
    assert direct["torch"].specifier.contains("2.9.0") and not direct["torch"].specifier.contains("3.0"), "for a library's users"
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    assert build == [f"setuptools{conda_specs['setuptools']}"]


def test_pythons_agree(project: dict, conda_specs: dict[str, str]):
    wanted = Requirement(f"python{project['requires-python']}").specifier
    minor = conda_specs["python"].removeprefix("=")
    assert wanted.contains(Version(f"{minor}.0"))
    assert wanted.contains(Version(".".join(map(str, sys.version_info[:3]))))
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"--python-version {minor} " in constraints, "environment.yml and the pins are for different Pythons"


def test_environment_has_no_address(conda: dict):
    assert conda["channels"] == ["conda-forge", "nodefaults"]  # by name


def test_licence_is_the_one_that_pyproject_names(project: dict):
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert project["license"] == "MIT"
    assert text.startswith("MIT License\n\nCopyright (c) 2026 The CMPTA reproduction authors\n")
    assert all((ROOT / name).is_file() for name in project["license-files"])


TARGETS = {"help", "setup", "recordings", "test", "test-gpu", "test-browser", "lint", "reproduce", "lab", "clean"}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_bare_make_lists_its_targets_and_the_makefile_stays_small():
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # set when these tests run under make themselves
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    shown = subprocess.run(["make", "-C", ROOT], env=environment, capture_output=True, text=True, check=True).stdout
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"^([a-z-]+) ", shown, re.MULTILINE)) == TARGETS
    assert set(re.findall(r"^([a-z-]+):.* ## ", text, re.MULTILINE)) == TARGETS and len(text.splitlines()) <= 57


def test_ci_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, f"{script} is not executable"
    tests, browser = script.read_text(encoding="utf-8").splitlines()[-2:]
    assert tests == "make test" and browser.startswith("if command -v chromium ") and "; then make test-browser;" in browser
