"""What a run writes down about itself, and writing it so that a crash leaves the old file or the new one."""

from __future__ import annotations

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


@lru_cache
def commit() -> str:
    """Commit of this checkout, with "+dirty" where code differs from it; figures, being results, do not count."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", _ROOT, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--", ".", ":!figures", ":!README.md")
        return git("rev-parse", "--short=10", "HEAD") + ("+dirty" if dirty else "")
    except (subprocess.CalledProcessError, FileNotFoundError):
        return "unknown"


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
