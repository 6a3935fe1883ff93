"""The most memory that one contender takes: in a process of its own, as a peak holds what others left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable

import torch

from cmpta_lib.benchmark.options import Options
from cmpta_lib.runs import provenance as memory

STEPS = 2  # the first makes what the optimiser keeps


def measured(works: Iterable[Callable[[], object]]) -> dict[str, float]:
    """GB in all at the highest, and above what was held before, while all of `works` are done."""
    memory.watch()
    name = memory.ALLOCATED if torch.cuda.is_available() else memory.RESIDENT
    before = memory.peaks_gb()[name]
    for work in works:
        work()
    most = memory.peaks_gb()[name]
    return {"peak": most, "growth": round(most - before, 3)}


def apart(options: Options, contender: str) -> dict[str, float]:
    """`measured` of two training steps of "ours", "floor" or "ancestor" in a new process.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    command = [sys.executable, "-m", "cmpta_lib.benchmark.alone", options.to_json(), contender]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of '{contender}' failed: {done.stderr.strip()[-500:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
