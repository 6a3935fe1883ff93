"""Engines for many machines: whoever is killed, calling again or an engine itself ends with the bytes of an undisturbed run.

The runs are real and tiny. A method of this file's own makes a run wait within an epoch where a test says so, and leaves
the id of its process: what is killed is killed at that moment, however slow the machine.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_engines import gone, until

from cmpta_lib.config import DataConfig, MethodConfig, RunConfig, TrainingConfig
from cmpta_lib.embedded import synthetic
from cmpta_lib.methods import registry
from cmpta_lib.runs import engines, worker
from cmpta_lib.runs.engines import ensure
from cmpta_lib.runs.store import FAILURE, HISTORY, METRICS, PREDICTIONS, WEIGHTS, Run
from cmpta_lib.study.profiles import SMOKE_SIZES

ROOT = Path(__file__).parents[1]
RESULTS = (HISTORY, WEIGHTS, PREDICTIONS, METRICS)  # what must be the same, byte for byte
EXTRAS = {"ray": "ray", "submitit-local": "submitit", "slurm": "submitit"}
METHOD = """
import os, time
from pathlib import Path
from typing import Literal
import small_method
from cmpta_lib.methods.registry import register

class HaltingConfig(small_method.SmallConfig):
    name: Literal["halting"] = "halting"
    gates: str

class HaltingMethod(small_method.SmallMethod):
    def __init__(self, config, inputs, tools):
        super().__init__(config, inputs, tools)
        self.gates, self.seed = Path(config.method.model_dump()["gates"]), config.seed

    def fit(self, train):
        super().fit(train)
        import cmpta_lib
        with open(self.gates / f"begun-{self.seed}", "a") as file:
            print(Path(cmpta_lib.__file__).parents[1], file=file)
        while (self.gates / "together").exists() and len(list(self.gates.glob("begun-*"))) < 2:
            time.sleep(0.02)

    def after_step(self, batch, epoch):
        super().after_step(batch, epoch)
        if epoch != 2:
            return
        if (self.gates / f"die-{self.seed}").exists():
            os.kill(os.getpid(), 9)
        if (self.gates / f"raise-{self.seed}").exists():
            raise ValueError("as it was told")
        while (self.gates / f"wait-{self.seed}").exists():
            (self.gates / f"at-{self.seed}").write_text(str(os.getpid()))
            time.sleep(0.02)

register(HaltingConfig, HaltingMethod, row="halting")
"""


def needed(name: str) -> None:
    if importlib.util.find_spec(EXTRAS[name]) is None:
        pytest.skip(f"{EXTRAS[name]} is not installed: pip install -c constraints.txt -e .[{name.split('-')[0]}]")


@pytest.fixture(scope="module")
def gates(tmp_path_factory) -> Path:
    """A folder whose files say what runs are to do, by seed."""
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="module")
def asked(tmp_path_factory, gates) -> Iterator[Callable[..., list[Run]]]:
    """Runs of the halting method with these seeds, in a runs folder of their own."""
    plugin = tmp_path_factory.mktemp("method") / "halting_method.py"
    plugin.write_text(METHOD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(registry.PLUGINS, str(plugin))
        patch.syspath_prepend(ROOT / "tests")
        registry.load_plugins()
        config = registry.ENTRIES["halting"].config

        def make(*seeds: int) -> list[Run]:
            root = tmp_path_factory.mktemp("runs")
            corpus = synthetic.embedded_corpus("embedded-sims", root / "cache" / "data", SMOKE_SIZES)
            data = DataConfig(name=corpus.name, fingerprint=corpus.fingerprint)
            training = TrainingConfig(epochs=3, batch_size=16, num_threads=1)
            configs = [RunConfig(data=data, method=config(gates=str(gates)), training=training, seed=s) for s in seeds]
            return [Run(one, root / f"{corpus.name}-{one.hash}") for one in configs]

        yield make
    del registry.ENTRIES["halting"], sys.modules["halting_method"]
    MethodConfig.known.pop("halting", None)


@pytest.fixture(autouse=True)
def afresh(gates) -> None:
    for path in gates.iterdir():
        path.unlink()


def waiting(gates: Path, *seeds: int) -> None:
    for seed in seeds:
        (gates / f"wait-{seed}").touch()


def process_at(gates: Path, seed: int, asker: subprocess.Popen | None = None) -> int:
    """The process that waits within this run, once it does."""
    place = gates / f"at-{seed}"
    until(lambda: (place.exists() and place.read_text()) or (asker and asker.poll() is not None), 60)
    assert place.exists(), f"the asker ended with {asker and asker.returncode}"
    return int(place.read_text())


def strike(gates: Path, seed: int, number: int) -> None:
    """Send the process that waits within this run a signal; the next one will not wait."""
    process = process_at(gates, seed)
    (gates / f"wait-{seed}").unlink()
    os.kill(process, number)


def undisturbed(runs: list[Run], asked: Callable[..., list[Run]]) -> list[Run]:
    """The same runs, made here, one after another."""
    others = asked(*(run.config.seed for run in runs))
    for run in others:
        engines._prepare(run)
        assert worker.attempt(run.folder.parent, run.folder) == "done"
    return others


def same_bytes(runs: list[Run], asked: Callable[..., list[Run]]) -> bool:
    assert not any(run.problem for run in runs)
    return all(
        (run.folder / name).read_bytes() == (other.folder / name).read_bytes()
        for run, other in zip(runs, undisturbed(runs, asked), strict=True)
        for name in RESULTS
    )


# --- workers that die -------------------------------------------------------------------------------------------------

KILLED, TOLD_TO_GO, DYING, RAISING, WELL = 1, 2, 3, 4, 5


@pytest.mark.slow  # real jobs, each of which imports torch
@pytest.mark.parametrize("name", ["ray", "submitit-local"])
def test_a_worker_that_dies_costs_no_epoch_and_no_other_run(name, asked, gates):
    needed(name)
    signals = [KILLED, TOLD_TO_GO] if name == "submitit-local" else [KILLED]  # submitit's way to preempt
    runs = asked(*signals, DYING, RAISING, WELL)
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
    reasons = {failure.run.config.seed: failure.reason for failure in failures}
    assert reasons.keys() == {DYING, RAISING} and reasons[RAISING] == "ValueError: as it was told"
    assert reasons[DYING].endswith(", 2 times") and json.loads((runs[-3].folder / FAILURE).read_text())["kind"] == "WorkerDied"
    notes = {seed: event["text"] for seed, event in events if event["event"] == "note"}
    assert notes.keys() == {KILLED, DYING} and "goes on from its last finished epoch, attempt 2 of 2" in notes[KILLED]
    begun = [line for seed in signals for line in (gates / f"begun-{seed}").read_text().splitlines()]
    assert len(begun) == 2 * len(signals), "tried twice"
    of_the_killed = [event["epoch"] for seed, event in events if seed == KILLED and event["event"] == "epoch"]
    assert 1 in of_the_killed and of_the_killed.count(1) == 1, "the first epoch was trained once"
    assert [event["event"] for seed, event in events if seed == WELL][::100] == ["start"]
    assert {seed for seed, event in events if event["event"] == "done"} == {*signals, WELL}
    assert signal.getsignal(signal.SIGTERM) is before
    assert same_bytes([run for run in runs if run.done], asked)
    assert not list(folder.glob("logs/*"))


# --- who asked dies ---------------------------------------------------------------------------------------------------

ASK = """
import sys
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
def test_calling_again_after_who_asked_was_ended_gives_the_same_bytes(ending, asked, gates):
    needed("submitit-local")
    runs = asked(11, 12)
    waiting(gates, 11)
    asker = asking("submitit-local", runs, 1)
    try:
        job = process_at(gates, 11, asker)
        assert (runs[0].folder / "checkpoint.safetensors").exists() and not runs[1].done
        asker.send_signal(ending)
        asker.wait(10)
        if ending == signal.SIGINT:
            until(lambda: gone(job), 3)
    finally:
        asker.kill()
        asker.wait()
        (gates / "wait-11").unlink()  # a job that outlives a killed asker ends its run, and the next call waits for it
    ensure(runs, runs[0].folder.parent, 1)
    assert same_bytes(runs, asked)


@pytest.mark.slow  # workers that import torch
def test_two_checkouts_share_the_runs_of_one_folder(asked, gates, tmp_path):
    runs = asked(21, 22, 23, 24)
    (gates / "together").touch()  # the first that begins waits for the second, so that both take part
    checkouts = [tmp_path / name for name in ("one", "other")]
    for checkout in checkouts:
        shutil.copytree(ROOT / "cmpta_lib", checkout / "cmpta_lib", ignore=shutil.ignore_patterns("__pycache__"))
    askers = [asking("processes", runs, 1, checkout) for checkout in checkouts]
    assert [asker.wait(100) for asker in askers] == [0, 0], (runs[0].folder.parent / "said").read_text()
    begun = [(gates / f"begun-{run.config.seed}").read_text().split() for run in runs]
    assert [len(places) for places in begun] == [1] * 4, "each run was made once"
    assert {place for places in begun for place in places} == {str(checkout) for checkout in checkouts}
    assert same_bytes(runs, asked)


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


def test_a_ray_cluster_that_does_not_answer_is_named(asked):
    needed("ray")
    run = asked(31)[0]
    with pytest.raises(ConnectionError, match="the Ray cluster at 127.0.0.1:1 cannot be reached"):
        ensure([run], run.folder.parent, engine=engines.engine_of("ray", 1, {"address": "127.0.0.1:1"}))


def test_slurm_is_refused_where_there_is_none(monkeypatch, tmp_path):
    needed("slurm")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="--engine slurm: .*srun.* `--engine submitit-local` makes the same jobs"):
        engines.engine_of("slurm")


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
def test_a_slurm_job_asks_for_what_its_run_needs_and_seals_it(asked, tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands start the job script at once; script, job and result are the real ones."""
    needed("slurm")
    for name, body in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", "echo 'JobID|State'; echo '101|RUNNING'")):
        (tmp_path / name).write_text("#!/bin/sh\n" + body.format(folder=tmp_path, python=sys.executable))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (run,) = asked(41)
    settings = {"slurm_partition": "gpu", "timeout_min": 720, "gpus_per_node": 1, "mem_gb": 24}
    ensure([run], run.folder.parent, engine=engines.engine_of("slurm", None, settings))
    lines = (tmp_path / "101.sh").read_text().splitlines()
    wanted = ("partition=gpu", "time=720", "gpus-per-node=1", "mem=24GB", "cpus-per-task=1", f"job-name={run.folder.name}")
    assert [word for word in wanted if f"#SBATCH --{word}" not in lines] == []
    assert same_bytes([run], asked)
