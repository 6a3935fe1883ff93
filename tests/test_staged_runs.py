"""Whole runs of the systems that train in stages: killed in each stage, loaded from a copy, and beside other methods."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cmpta_lib.config import to_json
from cmpta_lib.method.llm import weights_fingerprint
from cmpta_lib.runs import execution, store, worker
from cmpta_lib.runs import load as trained
from cmpta_lib.runs.checkpoint import State
from cmpta_lib.runs.load import load
from cmpta_lib.runs.store import Run
from cmpta_lib.study import plan
from cmpta_lib.study import plan as mllm_rows
from cmpta_lib.study import plan as systems
from cmpta_lib.study.plan import Row
from cmpta_lib.study.study import Study

pytestmark = pytest.mark.slow
FEW = {"training.epochs": 2}
ROWS = {
    "transformer": Row("transformer", systems.MMT.method, {"method.pretraining_epochs": 2, **FEW}),
    "told and tuned": Row("told and tuned", mllm_rows.WHOLE.method, {"method.perception_epochs": 2, **FEW}),
}
RESULTS = (store.PREDICTIONS, store.WEIGHTS, store.HISTORY, store.METRICS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, smoke_models: Path) -> Iterator[Study]:
    """A smoke study with its LLM and BERT, without a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMPTA_RUNS", str(tmp_path_factory.mktemp("runs")))
        study = Study(smoke=True)
        shutil.copytree(smoke_models, study.cache / "llm", dirs_exist_ok=True)
        study.corpus("sims")
        yield study


def fresh(study: Study, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study with the same corpora and models and nothing else: no run, no shared stage, no statement."""
    monkeypatch.setenv("CMPTA_RUNS", str(folder))
    again = Study(smoke=True)
    for part in ("data", "llm"):
        shutil.copytree(study.cache / part, again.cache / part)
    return again


def prepared(study: Study, row: Row) -> Run:
    run = study.runs("sims", row)[0]
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / store.CONFIG).write_text(to_json(run.config))
    return run


def finished(study: Study, row: Row) -> Run:
    run = prepared(study, row)
    assert worker.attempt(study.root, run.folder) == "done"
    return run


class Killed(BaseException):
    """As a kill: nothing tidies up after it."""


@pytest.mark.parametrize("name", ROWS)
def test_killed_in_each_stage_it_ends_with_the_same_bytes(made, tmp_path, monkeypatch, name):
    whole = finished(fresh(made, tmp_path / "whole", monkeypatch), ROWS[name])
    study = fresh(made, tmp_path / "killed", monkeypatch)
    run, seen = prepared(study, ROWS[name]), []
    epochs, train = whole.config.epochs, execution.train
    assert epochs == 4

    def dies(*arguments):
        *others, note, common, on_step = arguments

        def noted(state: State) -> None:
            note(state)
            seen.append((state.epoch, state.stage))
            raise Killed

        return train(*others, noted, common, on_step)

    monkeypatch.setattr(execution, "train", dies)
    for _ in range(epochs):
        with pytest.raises(Killed):
            execution.execute(study.root, run.folder)
    monkeypatch.setattr(execution, "train", train)
    assert worker.attempt(study.root, run.folder) == "done"
    assert seen == [(1, 0), (2, 1), (3, 1), (4, 1)], "every epoch was made once, in its stage"
    for part in RESULTS:
        assert (run.folder / part).read_bytes() == (whole.folder / part).read_bytes(), part


def test_a_fine_tuned_run_answers_from_a_copy_as_it_did_and_leaves_the_llm_alone(made, tmp_path):
    llm = trained.resources(made.root).llm(made.llm)
    before = weights_fingerprint(llm.model)
    run = finished(made, ROWS["told and tuned"])
    assert weights_fingerprint(llm.model) == before
    stored = load_file(run.folder / store.WEIGHTS)
    assert {name.split(".")[0] for name in stored} >= {"maker", "lora", "describer"}
    assert not [name for name in stored if "base_layer" in name or "embed_tokens" in name], "no weight of the LLM's own"

    copy = tmp_path / "elsewhere" / run.folder.name
    shutil.copytree(run.folder, copy)
    shutil.copytree(made.cache / "llm", tmp_path / "elsewhere" / "cache" / "llm")
    test = made.corpus("sims").splits["test"]
    answers = load(copy).predict([test[index] for index in range(len(test))])
    table = run.predictions()
    assert [answer.value for answer in answers] == pytest.approx(list(table["prediction"]), abs=1e-6)

    cmpta = finished(made, Row("CMPTA", changes={"training.epochs": 1, "method.dim": 16}))
    alone = {name: torch.clone(tensor) for name, tensor in load_file(cmpta.folder / store.WEIGHTS).items()}
    shutil.rmtree(cmpta.folder)
    trained._kept.clear()  # an LLM that was never lent to LoRA
    again = finished(made, Row("CMPTA", changes={"training.epochs": 1, "method.dim": 16}))
    assert all(torch.equal(alone[name], tensor) for name, tensor in load_file(again.folder / store.WEIGHTS).items())


def test_label_shares_take_one_pre_training(made):
    rows = [Row(f"{share}", systems.MMT.method, {"method.label_share": share}) for share in (0.25, 0.5)]
    runs = [finished(made, row) for row in rows]
    (name,) = {name for run in runs for name in run.environment["shared_stages"]}
    assert (made.cache / "stages" / f"{name}.pt").is_file()
    first, second = (run.history.query("stage == 'pretraining'").drop(columns="epoch") for run in runs)
    assert np.array_equal(first.to_numpy(str), second.to_numpy(str))


def test_every_row_beyond_the_paper_has_a_name_of_its_own():
    for key in ("sims", "meld"):
        rows = [(row.method, row.name) for notebook in plan.NOTEBOOKS if notebook.is_beyond for row in notebook.rows(key)]
        assert len(set(rows)) == len({(row.method, str(row.changes), row.llm) for notebook in plan.NOTEBOOKS
                                      if notebook.is_beyond for row in notebook.rows(key)})  # fmt: skip
