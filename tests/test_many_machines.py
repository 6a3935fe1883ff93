"""Engines for many machines: a worker that dies costs no finished epoch and no other run, and what is missing is named."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from halting_runs import EXTRAS, needed, same_bytes, strike, waiting

from cmpta_lib.runs import engines
from cmpta_lib.runs.engines import ensure
from cmpta_lib.runs.store import FAILURE

# --- workers that die -------------------------------------------------------------------------------------------------

KILLED, TOLD_TO_GO, DYING, RAISING, WELL = 1, 2, 3, 4, 5


@pytest.mark.slow  # real jobs, each of which imports torch
@pytest.mark.parametrize("name", ["ray", "submitit-local"])
def test_a_worker_that_dies_costs_no_epoch_and_no_other_run(name, halting, gates):
    needed(name)
    signals = [KILLED, TOLD_TO_GO] if name == "submitit-local" else [KILLED]  # submitit's way to preempt
    runs = halting(*signals, DYING, RAISING, WELL)
    waiting(gates, *signals)
    (gates / f"die-{DYING}").touch()
    (gates / f"raise-{RAISING}").touch()

    def intervene() -> None:
        for seed in signals:
            strike(gates, seed, signal.SIGKILL if seed == KILLED else signal.SIGUSR2)

    hand = threading.Thread(target=intervene, daemon=True)
    hand.start()
    events: list[tuple[int, dict]] = []
    before = signal.getsignal(signal.SIGTERM)
    folder = runs[0].folder.parent
    for run in runs:
        engines._prepare(run)
    engine = engines.engine_of(name, 2, {"retries": 1})
    failures = engine.run(runs, folder, lambda run, event: events.append((run.config.seed, event)))
    hand.join(1)
    assert not hand.is_alive() and not list(gates.glob("wait-*")), "every strike was made"
    reasons = {failure.run.config.seed: failure.reason for failure in failures}
    assert reasons.keys() == {DYING, RAISING} and reasons[RAISING] == "ValueError: as it was told"
    assert reasons[DYING].endswith(", 2 times without another finished epoch")
    assert json.loads((runs[-3].folder / FAILURE).read_text())["kind"] == "WorkerDied"
    notes = {seed: event["text"] for seed, event in events if event["event"] == "note"}
    assert notes.keys() == {KILLED, DYING} and "goes on from its last finished epoch, attempt 2 of 2" in notes[KILLED]
    begun = [line for seed in signals for line in (gates / f"begun-{seed}").read_text().splitlines()]
    assert len(begun) == 2 * len(signals), "tried twice"
    of_the_killed = [event["epoch"] for seed, event in events if seed == KILLED and event["event"] == "epoch"]
    assert 1 in of_the_killed and of_the_killed.count(1) == 1, "the first epoch was trained once"
    assert [event["event"] for seed, event in events if seed == WELL][::100] == ["start"]
    assert {seed for seed, event in events if event["event"] == "done"} == {*signals, WELL}
    assert signal.getsignal(signal.SIGTERM) is before
    assert same_bytes([run for run in runs if run.done], halting)
    assert len(list(folder.glob("logs/*"))) == 1, "what the jobs said stays where something failed"


# --- what is asked for cannot be had ----------------------------------------------------------------------------------


def test_an_unknown_engine_or_setting_names_the_known_ones():
    with pytest.raises(ValueError, match="no engine 'dask'; there are: processes, ray, slurm, submitit-local"):
        ensure([], Path("runs"), engine="dask")
    with pytest.raises(ValueError, match="engine 'processes' has no setting 'gpus'; it has none"):
        engines.engine_of("processes", 1, {"gpus": 1})


@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_an_extra_that_is_not_installed_is_named_with_the_command(name, monkeypatch):
    monkeypatch.setitem(sys.modules, EXTRAS[name], None)
    with pytest.raises(RuntimeError, match=rf"needs the package '{EXTRAS[name]}'.* `pip install .* -e '.\[{name}\]'`"):
        engines.engine_of(name)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"adress": "auto"}, "engine 'ray' has no setting 'adress'; it has: address, gpus, retries"),
        ({"gpus": 1.5}, "gpus=1.5: expected a fraction below 1, or a whole number"),
    ],
)
def test_rays_settings_are_checked_at_once(settings, said):
    needed("ray")
    with pytest.raises(ValueError, match=said):
        engines.engine_of("ray", None, settings)


def test_a_ray_cluster_that_does_not_answer_is_named(halting):
    needed("ray")
    run = halting(31)[0]
    with pytest.raises(ConnectionError, match="the Ray cluster at 127.0.0.1:1 cannot be reached"):
        ensure([run], run.folder.parent, engine=engines.engine_of("ray", 1, {"address": "127.0.0.1:1"}))


def test_a_slurm_jobs_time_limit_must_be_said():
    needed("slurm")
    with pytest.raises(ValueError, match="--engine slurm: say how long a job may take, in minutes: --engine-set timeout_min=720"):
        engines.engine_of("slurm")


def test_slurm_is_refused_where_there_is_none(monkeypatch, tmp_path):
    needed("slurm")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="--engine slurm: .*srun.* `--engine submitit-local` makes the same jobs"):
        engines.engine_of("slurm", None, {"timeout_min": 60})


@pytest.mark.parametrize("settings", [{"partition_of_slurm": "gpu"}, {"timeout_min": "long"}])
def test_submitits_own_complaint_about_a_parameter_is_passed_on(settings):
    needed("submitit-local")
    (word,) = settings
    with pytest.raises(ValueError, match=f"--engine submitit-local: .*{word}"):
        engines.engine_of("submitit-local", 1, settings)


def test_jobs_are_checked_by_every_engine():
    for name in EXTRAS:
        with pytest.raises(ValueError, match="--jobs 0: expected how many runs at a time"):
            engines.engine_of(name, 0)


# --- Slurm ------------------------------------------------------------------------------------------------------------

SBATCH = """
id=$(( $(cat {folder}/last 2>/dev/null || echo 100) + 1 )); echo $id >{folder}/last
cp "$1" {folder}/$id.sh
SLURM_JOB_ID=$id SLURM_PROCID=0 SLURM_LOCALID=0 nohup sh "$1" >/dev/null 2>&1 &
echo "Submitted batch job $id"
"""
SRUN = 'while [ "$1" != {python} ]; do shift; done; exec "$@"'


@pytest.mark.slow  # a job that imports torch
def test_a_slurm_job_asks_for_what_its_run_needs_and_seals_it(halting, tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands start the job script at once; script, job and result are the real ones."""
    needed("slurm")
    for name, body in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", "echo 'JobID|State'; echo '101|RUNNING'")):
        (tmp_path / name).write_text("#!/bin/sh\n" + body.format(folder=tmp_path, python=sys.executable))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (run,) = halting(41)
    settings = {"slurm_partition": "gpu", "timeout_min": 720, "gpus_per_node": 1, "mem_gb": 24}
    ensure([run], run.folder.parent, engine=engines.engine_of("slurm", None, settings))
    lines = (tmp_path / "101.sh").read_text().splitlines()
    wanted = ("partition=gpu", "time=720", "gpus-per-node=1", "mem=24GB", "cpus-per-task=1", f"job-name={run.folder.name}")
    assert [word for word in wanted if f"#SBATCH --{word}" not in lines] == []
    assert same_bytes([run], halting)
    assert not list(run.folder.parent.glob("logs/*")), "nothing failed"
