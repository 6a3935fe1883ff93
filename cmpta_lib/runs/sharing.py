"""How many runs at a time: one a GPU or a core unless the caller says more, and how many fit into a GPU's memory."""

from __future__ import annotations

import os
import subprocess

from cmpta_lib.runs import provenance

# Of each process beside what torch allocates there: the driver's context, libraries, kernels. Assumed, on the safe side; no
# GPU was at hand.
CONTEXT_GB = 0.6
MARGIN = 0.1  # of the GPU's memory, left free: an allocator holds pieces that fit nothing


def usual() -> int:
    """Runs at a time where nobody says how many: one a GPU, else one a core."""
    return provenance.gpu_count() or os.cpu_count() or 1


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
    """What to say where so many runs at a time share GPUs: that they do, or that they do not fit. "" where none shares.

    Args:
        run_gb: the most that one of these runs is known to allocate; 0 where nobody knows.
    """
    if not gpus or jobs <= gpus:
        return ""
    each, most = -(-jobs // gpus), fit(memory_gb, run_gb)
    said = f"{jobs} runs at a time share {gpus} GPU{'s' if gpus > 1 else ''}, up to {each} on one"
    if not run_gb:
        return f"{said}; `cmpta check` says how many fit"
    takes = f"each allocates up to {run_gb:.1f} GB of {memory_gb:.0f} GB"
    if each <= most:
        return f"{said}: {takes}, and {most} fit"
    return (
        f"{said}, and {takes}: {most} fit with a margin, so expect runs that fail for memory; "
        f"pass --jobs {max(1, most) * gpus}"
    )
