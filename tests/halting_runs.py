"""Real runs that are killed at a moment that a test chooses, however slow the machine, and what they must end with."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_engines import until

from cmpta_lib import registry
from cmpta_lib.config import DataConfig, MethodConfig, RunConfig, TrainingConfig
from cmpta_lib.embedded import synthetic
from cmpta_lib.runs import engines, worker
from cmpta_lib.runs.store import HISTORY, METRICS, PREDICTIONS, WEIGHTS, Run
from cmpta_lib.study.profiles import SMOKE_SIZES

ROOT = Path(__file__).parents[1]
RESULTS = (HISTORY, WEIGHTS, PREDICTIONS, METRICS)  # what must be the same, byte for byte
COMES_S = 240.0  # until a run is where it waits: on a cold, busy machine Ray and torch alone take a minute to start
EXTRAS = {"ray": "ray", "submitit-local": "submitit", "slurm": "submitit"}


def needed(name: str) -> None:
    if importlib.util.find_spec(EXTRAS[name]) is None:
        extra = "ray" if name == "ray" else "slurm"
        pytest.skip(f"{EXTRAS[name]} is not installed: pip install -c constraints.txt -e .[{extra}]")


@contextmanager
def makers(tmp_path_factory: pytest.TempPathFactory, gates: Path) -> Iterator[Callable[..., list[Run]]]:
    """Runs of the halting method with these seeds, in a runs folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(registry.PLUGINS, str(ROOT / "tests" / "halting_method.py"))
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


def waiting(gates: Path, *seeds: int) -> None:
    for seed in seeds:
        (gates / f"wait-{seed}").touch()


def process_at(gates: Path, seed: int) -> int:
    """The process that waits within this run, once it does."""
    place = gates / f"at-{seed}"
    until(place.exists, COMES_S)
    return int(place.read_text())


def strike(gates: Path, seed: int, number: int) -> None:
    """Send the process that waits within this run a signal; the next one will not wait."""
    process = process_at(gates, seed)
    (gates / f"wait-{seed}").unlink()
    os.kill(process, number)


def undisturbed(runs: list[Run], halting: Callable[..., list[Run]]) -> list[Run]:
    """The same runs, made here, one after another."""
    others = halting(*(run.config.seed for run in runs))
    for run in others:
        engines._prepare(run)
        assert worker.attempt(run.folder.parent, run.folder) == "done"
    return others


def same_bytes(runs: list[Run], halting: Callable[..., list[Run]]) -> bool:
    assert not any(run.problem for run in runs)
    return all(
        (run.folder / name).read_bytes() == (other.folder / name).read_bytes()
        for run, other in zip(runs, undisturbed(runs, halting), strict=True)
        for name in RESULTS
    )
