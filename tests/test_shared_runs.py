"""Runs that several processes ask for, from one checkout or two, and what is left of them when one is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from halting_runs import COMES_S, ROOT, needed, process_at, same_bytes, waiting
from test_engines import gone, until

from cmpta_lib.runs import engines
from cmpta_lib.runs.engines import ensure
from cmpta_lib.runs.store import Run

ASK = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs these tests may ignore it
from pathlib import Path
from cmpta_lib.methods import registry
from cmpta_lib.config import from_json
from cmpta_lib.runs import engines
from cmpta_lib.runs.store import Run
registry.load_plugins()
folders = [Path(folder) for folder in sys.argv[3:]]
runs = [Run(from_json((folder / "config.json").read_text()), folder) for folder in folders]
engines.ensure(runs, folders[0].parent, int(sys.argv[2]), engine=sys.argv[1])
"""


def asking(name: str, runs: list[Run], jobs: int, code: Path = ROOT) -> subprocess.Popen:
    """A process of its own that asks for these runs, with the code in the folder `code`."""
    for run in runs:
        engines._prepare(run)
    path = os.pathsep.join([str(code), str(ROOT / "tests")])
    command = [sys.executable, "-c", ASK, name, str(jobs), *(str(run.folder) for run in runs)]
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with (runs[0].folder.parent / "said").open("a") as said:  # no pipe: a job that outlives its asker would hold it
        return subprocess.Popen(command, cwd=code, env=environment, stderr=said)


@pytest.mark.slow  # a real job, which imports torch
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT], ids=lambda ending: ending.name)
def test_calling_again_after_who_asked_was_ended_gives_the_same_bytes(ending, halting, gates):
    needed("submitit-local")
    runs = halting(11, 12)
    waiting(gates, 11)
    asker = asking("submitit-local", runs, 1)
    try:
        job = process_at(gates, 11)
        assert (runs[0].folder / "checkpoint.safetensors").exists() and not runs[1].done
        asker.send_signal(ending)
        asker.wait(60)
        if ending == signal.SIGINT:
            until(lambda: gone(job), 3)
            assert not list(runs[0].folder.parent.glob("logs/*"))
    finally:
        asker.kill()
        asker.wait()
        (gates / "wait-11").unlink()  # a job that outlives a killed asker ends its run, and the next call waits for it
    ensure(runs, runs[0].folder.parent, 1)
    assert same_bytes(runs, halting)


@pytest.mark.slow  # a real Ray
def test_a_raylet_that_dies_is_named_once_and_calling_again_gives_the_same_bytes(halting, gates):
    needed("ray")
    runs = halting(31, 32, 33)
    waiting(gates, 31)
    asker = asking("ray", runs, 1)
    try:
        process_at(gates, 31)
        (raylet,) = (child for child in psutil.Process(asker.pid).children(recursive=True) if child.name() == "raylet")
        raylet.kill()
        (gates / "wait-31").unlink()  # what is under way may end well, or die with its raylet
        assert asker.wait(COMES_S)
    finally:
        asker.kill()
        asker.wait()
    said = (runs[0].folder.parent / "said").read_text()
    assert said.count("the raylet, has died") == 1 and "of 3 runs are left. Finished epochs are kept: call again." in said
    ensure(runs, runs[0].folder.parent, 1)
    assert same_bytes(runs, halting)


@pytest.mark.slow  # workers that import torch
def test_two_checkouts_share_the_runs_of_one_folder(halting, gates, tmp_path):
    runs = halting(21, 22, 23, 24)
    (gates / "together").touch()  # the first that begins waits for the second, so that both take part
    checkouts = [tmp_path / name for name in ("one", "other")]
    for checkout in checkouts:
        shutil.copytree(ROOT / "cmpta_lib", checkout / "cmpta_lib", ignore=shutil.ignore_patterns("__pycache__"))
    askers = [asking("processes", runs, 1, checkout) for checkout in checkouts]
    assert [asker.wait(COMES_S) for asker in askers] == [0, 0], (runs[0].folder.parent / "said").read_text()
    begun = [(gates / f"begun-{run.config.seed}").read_text().split() for run in runs]
    assert [len(places) for places in begun] == [1] * 4, "each run was made once"
    assert {place for places in begun for place in places} == {str(checkout) for checkout in checkouts}
    assert same_bytes(runs, halting)
