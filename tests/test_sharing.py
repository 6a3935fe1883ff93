"""How many runs a GPU's memory takes, and what is said of runs that share one."""

from __future__ import annotations

import os
import subprocess

import pytest

from cmpta_lib.runs import provenance as machine
from cmpta_lib.runs import sharing
from cmpta_lib.runs.sharing import CONTEXT_GB, MARGIN, fit, warning


@pytest.mark.parametrize(
    ("memory", "run", "runs"),
    [
        (25.8, 8.0, 2),  # 0.9 · 25.8 = 23.2 GB for 8.6 GB each
        (25.8, 20.0, 1),
        (25.8, 24.0, 0),
        (150.0, 8.0, 15),
        ((3.4 + CONTEXT_GB) / (1 - MARGIN) * 4, 3.4, 4),  # to the last byte
    ],
)
def test_runs_fit_with_their_contexts_and_a_margin(memory: float, run: float, runs: int):
    assert fit(memory, run) == runs


@pytest.mark.parametrize("run", [0.5, 3.0, 8.0, 20.0])
def test_what_fits_leaves_the_margin_and_one_more_would_not(run: float):
    runs = fit(80.0, run)
    assert runs * (run + CONTEXT_GB) <= (1 - MARGIN) * 80.0 < (runs + 1) * (run + CONTEXT_GB)


def test_one_run_a_gpu_and_any_number_without_gpus_share_nothing():
    assert warning(2, 2, 24.0, 20.0) == warning(8, 0, 0.0, 0.0) == ""


def test_sharing_is_said_and_whether_it_fits():
    assert warning(2, 1, 25.8, 8.0) == (
        "2 runs at a time share 1 GPU, up to 2 on one: each allocates up to 8.0 GB of 26 GB, and 2 fit"
    )
    too_many = warning(5, 2, 25.8, 8.0)
    assert too_many.startswith("5 runs at a time share 2 GPUs, up to 3 on one, and each") and too_many.endswith("pass --jobs 4")
    assert warning(2, 1, 25.8, 30.0).endswith("pass --jobs 1")
    assert warning(2, 1, 25.8, 0.0).endswith("`cmpta check` says how many fit")


def test_by_default_one_a_gpu_or_one_a_core(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "gpu_count", lambda: 3)
    assert sharing.usual() == 3
    monkeypatch.setattr(machine, "gpu_count", lambda: 0)
    assert sharing.usual() == os.cpu_count()


@pytest.mark.parametrize(
    ("answer", "found"),
    [("NVIDIA H200, 143771\nNVIDIA H200, 143771\n", ("NVIDIA H200", 150.75)), ("No devices were found\n", None), ("", None)],
)
def test_the_first_gpus_memory(answer: str, found: object, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=answer))
    gpu = sharing.first_gpu()
    assert gpu == found if gpu is None else gpu == (found[0], pytest.approx(found[1], abs=0.01))
