"""House rules that a machine can check, over every file that is in git or about to be."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYOUT = {
    *(".ci", ".gitignore", "CITATION.cff", "LICENSE", "Makefile", "README.md", "constraints.txt", "environment.yml"),
    *(".gitattributes", "cmpta_lib", "data_prep", "figures", "notebooks", "pyproject.toml", "tests"),
}
UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
HEAVY = {"torch", "transformers", "pandas", "matplotlib", "seaborn", "sklearn", "scipy", "tokenizers", "pyarrow"}
BINARY = {".pdf", ".png", ".ttf", ".parquet", ".safetensors"}
# Import name -> distribution, where they differ. IPython comes with ipykernel.
DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml", "IPython": "ipykernel"}
# Brought by a declared package that cannot do without them and whose objects they are.
DISTRIBUTIONS |= {"tokenizers": "transformers", "nbformat": "papermill", "traitlets": "ipykernel"}
NOT_IN_REPOSITORY = {
    "a home or scratch folder": r"""(?<![\w.])/(?:home|root|Users|tmp|work|mnt|scratch)/[\w.-]|\b[A-Z]:\\Users""",
    "a package registry": r"""pythonhosted|pypi\.(?:org|python)|download\.pytorch|anaconda\.(?:org|com)|index-url""",
}


@cache
def tracked() -> tuple[str, ...]:
    """Paths in git and new ones that .gitignore admits, relative to the root."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the repository is unknown")
    command = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return tuple(sorted({name for name in listed.split("\0") if name and (ROOT / name).is_file()}))


def sources(*, tests: bool) -> Iterator[tuple[str, ast.AST]]:
    """Each Python file and each notebook (its code cells as one), parsed."""
    for name in tracked():
        path = ROOT / name
        if name.startswith("tests/") and not tests:
            continue
        if path.suffix == ".py":
            yield name, ast.parse(path.read_text(encoding="utf-8"), name)
        elif path.suffix == ".ipynb":
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            lines = "".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code")
            yield name, ast.parse(re.sub(r"^[%!].*$", "", lines, flags=re.MULTILINE), name)


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module


def test_top_level_holds_nothing_else_and_nothing_ignored():
    assert {name.split("/")[0] for name in tracked()} == LAYOUT
    command = ["git", "-C", ROOT, "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert tracked() and not subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("name", "ignored"), [("out.ipynb", True), ("notebooks/01_data.ipynb", False), ("runs/x", True)])
def test_what_notebooks_leave_is_ignored_and_they_are_not(name: str, ignored: bool):
    assert tracked()
    done = subprocess.run(["git", "-C", ROOT, "check-ignore", "--no-index", "-q", name])
    assert (done.returncode == 0) == ignored


def test_nothing_is_unpickled_and_no_remote_code_trusted():
    """`safe_pickle` borrows opcode tables from `pickle`, two others an error type that torch raises."""
    for name, tree in sources(tests=False):
        if name not in {"data_prep/safe_pickle.py", "cmpta_lib/llm/weights.py", "cmpta_lib/llm/loading.py"}:
            for line, module in imported_modules(tree):
                assert module.split(".")[0] not in UNPICKLERS, f"{name}:{line}: {module} can run what a file says"
        for node in ast.walk(tree):
            remote = {getattr(node, "arg", None), getattr(node, "value", None) if isinstance(node, ast.Constant) else None}
            assert "trust_remote_code" not in remote, f"{name}: trust_remote_code runs code that nobody here has read"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                called = f"{node.value.id}.{node.attr}"
                unpickler = re.fullmatch(r"_?pickle\.(loads?|_?Unpickler)|(pd|pandas)\.read_pickle", called)
                assert not unpickler, f"{name}:{node.lineno}: {called} can run what a file says"
            if isinstance(node, ast.ImportFrom) and node.module == "pickle":
                borrowed = {alias.name.lstrip("_") for alias in node.names}
                assert not borrowed & {"load", "loads", "Unpickler", "*"}, f"{name}:{node.lineno}"
            if isinstance(node, ast.keyword) and node.arg in {"weights_only", "allow_pickle"}:
                safe = isinstance(node.value, ast.Constant) and node.value.value is (node.arg == "weights_only")
                assert safe, f"{name}:{node.value.lineno}: {node.arg} may only be {node.arg == 'weights_only'}"


def test_no_bare_except():
    for name, tree in sources(tests=True):
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{name}:{node.lineno}"


def test_every_import_is_a_declared_dependency():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = set(re.findall(r'^  "([a-z0-9_-]+)[<>=]', pyproject, re.MULTILINE))
    ours = {"cmpta_lib", "data_prep", *(path.stem for path in (ROOT / "tests").glob("*.py"))}
    for name, tree in sources(tests=True):
        for line, module in imported_modules(tree):
            top = module.split(".")[0]
            if top not in ours and top not in sys.stdlib_module_names:
                assert DISTRIBUTIONS.get(top, top) in declared, f"{name}:{line}: {top} is not in pyproject.toml"


@pytest.mark.parametrize(("what", "pattern"), NOT_IN_REPOSITORY.items(), ids=list(NOT_IN_REPOSITORY))
def test_text_names_nothing_of_one_machine(what: str, pattern: str):
    here = Path(__file__).relative_to(ROOT).as_posix()  # the patterns themselves
    for name in tracked():
        if name != here and Path(name).suffix not in BINARY:
            text = (ROOT / name).read_text(encoding="utf-8")
            found = re.search(pattern, text)
            assert not found, f"{name}:{text[: found.start()].count(chr(10)) + 1} names {what}: {found[0]!r}"


def test_importing_is_free():
    code = "import sys, cmpta_lib.config, cmpta_lib.data.corpus, data_prep; print(*{name.split('.')[0] for name in sys.modules})"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not set(shown.split()) & HEAVY
