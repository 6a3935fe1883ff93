"""What a run writes down of where it was made: the commit, versions, the machine, the most memory that it held.

And what this machine can run on: its GPUs, asked without importing torch, and how many runs at a time.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pandas", "scikit-learn")
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
RESIDENT, ALLOCATED = "peak_memory_gb", "peak_gpu_memory_gb"  # names in a run's environment.json
_FORGET_PEAK = "5"  # proc(5), clear_refs: the peak of resident memory becomes what is held now
UNKNOWN = "unknown"  # the commit where there is no checkout
# Of each process beside what torch allocates there: the driver's context, libraries, kernels. Assumed, on the safe side; no
# GPU was at hand.
CONTEXT_GB = 0.6
MARGIN = 0.1  # of the GPU's memory, left free: an allocator holds pieces that fit nothing
_CODE = ("*.py", "pyproject.toml", "constraints.txt")


def gpu_count() -> int:
    """GPUs that the NVIDIA driver itself lets this process use (CUDA_VISIBLE_DEVICES counts); 0 without a driver."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):  # not 0: a driver without a usable GPU
        return 0
    return count.value


def usual() -> int:
    """Runs at a time where nobody says how many: one a GPU, else one a core."""
    return gpu_count() or os.cpu_count() or 1


def first_gpu() -> tuple[str, float] | None:
    """Name and memory in GB (1e9 bytes) of the first GPU, by nvidia-smi; None where there is none, or no driver."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        name, megabytes = answer.splitlines()[0].rsplit(",", 1)
        return name, float(megabytes) * 1.048576e6 / 1e9
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None


def fit(memory_gb: float, run_gb: float) -> int:
    """How many runs that allocate `run_gb` at most fit into a GPU's memory, each with a process of its own."""
    return int((1 - MARGIN) * memory_gb / (run_gb + CONTEXT_GB) + 1e-9)


def warning(jobs: int, gpus: int, memory_gb: float, run_gb: float) -> str:
    """What to say where so many runs at a time share GPUs: that they do, and how many fit. "" where none shares.

    Args:
        run_gb: the most that one of these runs is known to allocate; 0 where nobody knows.
    """
    if not gpus or jobs <= gpus:
        return ""
    each, most = -(-jobs // gpus), fit(memory_gb, run_gb)
    said = f"{jobs} runs at a time share {gpus} GPU{'s' if gpus > 1 else ''}, up to {each} on one"
    if not run_gb:
        return f"{said}; `cmpta check` says how many fit"
    too_many = f", so expect runs that fail for memory; pass --jobs {max(1, most) * gpus}" if each > most else ""
    return f"{said}: each allocates up to {run_gb:.1f} GB of {memory_gb:.0f} GB, and {most} fit{too_many}"


def by_torchrun() -> bool:
    """Whether torchrun started this process; else RANK and the like in its environment are somebody else's."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def take_device() -> None:
    """Use the GPU that the environment variable LOCAL_RANK numbers, where one is given and there are GPUs.

    torchrun gives it, and nobody else is believed. Call before anything is loaded: "cuda" means this GPU from then on.
    """
    if by_torchrun() and (rank := os.environ.get("LOCAL_RANK")):
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(int(rank) % torch.cuda.device_count())


def _gpu() -> Any:
    """torch.cuda where it is in use; nobody is made to import torch."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def watch() -> None:
    """Forget what was held before; the resident memory's peak only where Linux lets it, else it is the process's ever."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_FORGET_PEAK)
    if gpu := _gpu():
        gpu.reset_peak_memory_stats()


def peaks_gb() -> dict[str, float]:
    """Highest memory use since `watch` in GB (1e9 bytes): `RESIDENT`, and where a GPU is used `ALLOCATED` there.

    Two runs differ in it as they differ in their seconds: what a worker has loaded before counts, and a run that went on
    after a restart tells of its last part alone.
    """
    # Where Linux does not say: this counts what the parent held when it started this process.
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with suppress(OSError):
        if told := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            resident = int(told[1]) * 1024
    found = {RESIDENT: round(resident / 1e9, 3)}
    if gpu := _gpu():
        found[ALLOCATED] = round(gpu.max_memory_allocated() / 1e9, 3)
    return found


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
    if _git("status", "--porcelain", "--untracked-files=all", "--", *_CODE, ":!figures"):
        return True
    # But for new ones (filter A): whoever starts a notebook has changed no number.
    changed = _git("diff", "--name-only", "--no-renames", "--diff-filter=a", "-z", "HEAD", "--", "*.ipynb", ":!figures")
    return any(
        not (path := _ROOT / name).exists()
        or _code_cells(path.read_text(encoding="utf-8")) != _code_cells(_git("show", f"HEAD:./{name}"))
        for name in changed.split("\0")[:-1]
    )


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
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:(.*)", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    return f"{named[1].strip() if named else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def other_versions(packages: Iterable[str]) -> str:
    """Which of these, such as "torch 2.12.0", constraints.txt pins otherwise for the published numbers; "" where none."""
    path = _ROOT / "constraints.txt"  # of a checkout; nobody else has the published numbers beside them
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    pinned = dict(line.split("==") for line in lines if line[:1].isalpha())
    found = [(name, now) for name, now in (one.split(" ") for one in packages) if name in pinned]
    return ", ".join(f"{name} {now} for {pinned[name]}" for name, now in found if now.split("+")[0] != pinned[name])


def environment(**more: Any) -> dict[str, Any]:
    """Commit, versions and machine of this process, and whatever the run adds."""
    return {
        "commit": commit(), "python": platform.python_version(), "packages": {name: version(name) for name in _PACKAGES},
        "hardware": hardware(), "platform": platform.platform(), **more,
    }  # fmt: skip
