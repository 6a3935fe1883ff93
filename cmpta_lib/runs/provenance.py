"""What a run writes down about itself, and writing it so that a crash leaves the old file or the new one."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pandas", "scikit-learn")


UNKNOWN = "unknown"  # the commit where there is no checkout
_CODE = ("*.py", "pyproject.toml", "constraints.txt")


@lru_cache
def commit() -> str:
    """Commit of this checkout, with "+dirty" where code differs from it; whatever else lies or changes there does not count."""
    if not (_ROOT / ".git").exists():  # a package that is installed inside somebody's repository is none of its commits
        return UNKNOWN
    try:
        head = _git("rev-parse", "--short=10", "HEAD").strip()
        return head + ("+dirty" if _code_differs() else "")
    except (subprocess.CalledProcessError, FileNotFoundError):
        return UNKNOWN


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", _ROOT, *arguments], capture_output=True, text=True, check=True).stdout


def _code_differs() -> bool:
    """Whether any code is new, gone or changed; a notebook that was only run, or is nobody's yet, is not."""
    changed = ("diff", "--name-only", "--no-renames", "-z", "HEAD", "--")
    if _git(*changed, *_CODE, ":!figures") or _git("ls-files", "--others", "--exclude-standard", "--", *_CODE, ":!figures"):
        return True
    known = set(_git("ls-tree", "-r", "--name-only", "-z", "HEAD").split("\0"))
    notebooks = [name for name in _git(*changed, "*.ipynb", ":!figures").split("\0") if name and name in known]
    return any(_code_cells(_git("show", f"HEAD:./{name}")) != _code_cells_at(_ROOT / name) for name in notebooks)


def _code_cells_at(path: Path) -> list[str] | None:
    return _code_cells(path.read_text(encoding="utf-8")) if path.exists() else None


def _code_cells(notebook: str) -> list[str] | None:
    """The sources of its code cells; None where it cannot be read."""
    try:
        return ["".join(cell["source"]) for cell in json.loads(notebook)["cells"] if cell["cell_type"] == "code"]
    except (ValueError, LookupError, TypeError):
        return None


@lru_cache
def hardware() -> str:
    """GPU's or CPU's name and number of cores."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def environment(**more: Any) -> dict[str, Any]:
    """Commit, versions and machine of this process, and whatever the run adds."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "hardware": hardware(),
        "platform": platform.platform(),
        **more,
    }
