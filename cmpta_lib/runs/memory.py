"""The most memory that this process and its GPU have held since somebody began to watch."""

from __future__ import annotations

import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

_RESIDENT_UNIT = 1 if sys.platform == "darwin" else 1024  # of `ru_maxrss`, in bytes
RESIDENT, ALLOCATED = "peak_memory_gb", "peak_gpu_memory_gb"  # names in a run's environment.json
_FORGET_PEAK = "5"  # proc(5), clear_refs: the peak of resident memory becomes what is held now


def watch() -> None:
    """Forget what was held before; the resident memory's peak only where Linux lets it, else it is the process's ever."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_FORGET_PEAK)
    if _gpu_is_used():
        import torch

        torch.cuda.reset_peak_memory_stats()


def peaks_gb() -> dict[str, float]:
    """Highest memory use since `watch` in GB (1e9 bytes): `RESIDENT`, and where a GPU is used `ALLOCATED` there.

    Two runs differ in it as they differ in their seconds: what a worker has loaded before counts, and a run that went on
    after a restart tells of its last part alone.
    """
    found = {RESIDENT: _resident_bytes() / 1e9}
    if _gpu_is_used():
        import torch

        found[ALLOCATED] = torch.cuda.max_memory_allocated() / 1e9
    return {name: round(amount, 3) for name, amount in found.items()}


def _resident_bytes() -> int:
    """`ru_maxrss` only where Linux does not say: it counts what the parent held when it started this process."""
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RESIDENT_UNIT


def _gpu_is_used() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())
