"""The memory that a run says it took."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cmpta_lib.runs import provenance as memory

HOLD = """
import json, sys
from cmpta_lib.runs import memory
before = bytearray(b"x") * 300_000_000
del before
memory.watch()
small = memory.peaks_gb()
held = bytearray(b"x") * 200_000_000
del held
print(json.dumps([small, memory.peaks_gb(), "torch" in sys.modules]))
"""


def test_a_peak_is_what_was_held_since_one_began_to_watch():
    """What is freed again counts, what was freed before does not."""
    done = subprocess.run([sys.executable, "-c", HOLD], capture_output=True, text=True, check=True)
    small, large, has_torch = json.loads(done.stdout)
    assert list(small) == list(large) == [memory.RESIDENT] and not has_torch, "no GPU is asked for where none is used"
    assert large[memory.RESIDENT] - small[memory.RESIDENT] > 0.19
    if sys.platform == "linux":
        assert small[memory.RESIDENT] < 0.2


def test_on_a_gpu_its_own_peak_stands_beside():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU here, so no memory of it to count")
    torch.cuda.init()
    memory.watch()
    torch.zeros(100_000_000, device="cuda")
    assert memory.peaks_gb()[memory.ALLOCATED] >= 0.4
