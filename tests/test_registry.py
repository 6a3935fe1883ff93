"""A method that exists in this file alone stands in Table 3, through the public registry."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from cmpta_lib.config import DataConfig, MethodConfig, RunConfig, from_json, to_json
from cmpta_lib.data.corpus import Inputs, Sample, Split
from cmpta_lib.embedded import synthetic
from cmpta_lib.methods import registry
from cmpta_lib.methods.base import Batch, Loss, Method, Predictions, Tools
from cmpta_lib.report.rows import comparison_rows, result_row
from cmpta_lib.report.tables import result_table
from cmpta_lib.runs.trained import load
from cmpta_lib.study import plan
from cmpta_lib.study.study import Study

DATA = DataConfig(name="a", fingerprint="b")


class TrainingMeanConfig(MethodConfig):
    """The training split's mean label, plus a constant that seeds move, so that they have a spread."""

    name: Literal["training_mean"] = "training_mean"
    recipe: Literal[1] = 1
    noise: float = 0.01


class TrainingMean(Method):
    def __init__(self, config: RunConfig, inputs: Inputs, tools: Tools) -> None:
        self.noise = config.method.model_dump()["noise"]
        self.module = nn.Module()
        self.module.register_buffer("mean", torch.zeros(()))

    def fit(self, train: Split) -> None:
        self.module.mean.fill_(float(train.labels.mean()) + self.noise * float(torch.randn(())))

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return Batch(tuple(sample.id for sample in samples), {})

    def loss(self, batch: Batch) -> Loss:
        raise AssertionError("nothing is trained")

    def predict(self, batch: Batch) -> Predictions:
        values = np.full(len(batch.ids), float(self.module.mean))
        return Predictions(values, [f"{value:.3f}" for value in values])


registry.register(TrainingMeanConfig, TrainingMean, row="training mean", comparisons=("sims",))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path))
    monkeypatch.setattr(synthetic, "SPLIT_SIZES", {"train": 30, "valid": 9, "test": 20})
    return Study(seeds=3)


def test_its_row_stands_in_table_3_and_not_in_table_4():
    assert "training mean" in [row.name for row in plan.comparison("sims")]
    assert "training mean" not in [row.name for row in plan.comparison("meld")]
    assert [row.name for row in plan.comparison("sims")][-2:] == ["text only", "CMPTA"]


@pytest.mark.slow  # real workers, which import torch and this file
def test_its_row_has_mean_deviation_interval_and_seeds(study: Study, monkeypatch: pytest.MonkeyPatch):
    row = next(row for row in plan.comparison("sims") if row.method == "training_mean")
    runs = study.ensure(study.runs("sims", row))
    shown = result_table([result_row(study, "sims", row)], ["mae", "corr"]).iloc[0]
    truth, mean = study.corpus("sims").splits["test"].labels, study.corpus("sims").splits["train"].labels.mean()
    scores = [run.metrics["test"]["mae"] for run in runs]
    assert shown["method"] == "training mean" and "(n=3)" in shown["MAE this run"] and "±" in shown["MAE this run"]
    assert float(shown["MAE this run"].split()[0]) == pytest.approx(np.mean(scores), abs=6e-4)
    assert np.mean(scores) == pytest.approx(np.abs(truth - mean).mean(), abs=0.03)
    assert shown["MAE seeds"] == ", ".join(f"{score:.3f}" for score in scores) and len(set(scores)) == 3
    assert shown["MAE 95 % CI"].startswith("[0.")
    assert {run.config.method.name for run in runs} == {"training_mean"}
    loaded = load(runs[0].folder)
    answers = loaded.predict([study.corpus("sims").splits["test"][0]])
    assert answers[0].value == pytest.approx(runs[0].predictions()["prediction"][0]) and not answers[0].probabilities
    with pytest.raises(NotImplementedError, match="no attention maps"):
        loaded.attention(study.corpus("sims").splits["test"][0])


def test_the_whole_table_holds_it_between_the_papers_rows_and_ours(study: Study, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Study, "llm", plan_llm())
    names = [row.method for row in comparison_rows(study, "sims")]
    assert names[-3:] == ["training mean", "text only (no pseudo tokens)", "CMPTA"] and names[0] == "LMF [24]"


def plan_llm() -> Any:
    from cmpta_lib.config import LLMConfig

    return LLMConfig(name="tiny", fingerprint="f")


def test_its_settings_are_part_of_a_runs_identity():
    config = RunConfig(data=DATA, method=TrainingMeanConfig(noise=0.5))
    assert from_json(to_json(config)) == config
    assert config.hash != RunConfig(data=DATA, method=TrainingMeanConfig()).hash


def test_a_raised_recipe_makes_its_runs_stale_and_no_others():
    text = to_json(RunConfig(data=DATA, method=TrainingMeanConfig()))
    with pytest.raises(ValueError, match="method.recipe"):
        from_json(text.replace('"recipe": 1', '"recipe": 2'))


def test_a_name_or_row_is_taken_once():
    class Other(MethodConfig):
        name: Literal["other"] = "other"
        recipe: Literal[1] = 1

    with pytest.raises(ValueError, match="row 'CMPTA': taken by 'cmpta'"):
        registry.register(Other, TrainingMean, row="CMPTA")
    assert "other" not in registry.ENTRIES


def test_other_processes_are_told_where_it_is_defined(monkeypatch: pytest.MonkeyPatch):
    assert str(Path(__file__).resolve()) in registry.plugins()
    monkeypatch.setattr(TrainingMeanConfig, "__module__", "__main__")
    with pytest.raises(ValueError, match="'training_mean' is defined in a notebook or script"):
        registry.plugins()


def test_plugins_are_imported_once_and_missing_ones_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_plugin.py").write_text("import sys\nsys.my_plugin = getattr(sys, 'my_plugin', 0) + 1\n")
    monkeypatch.setenv(registry.PLUGINS, str(tmp_path / "my_plugin.py"))
    registry.load_plugins()
    registry.load_plugins()
    assert sys.my_plugin == 1  # type: ignore[attr-defined]
    for place, message in ((str(tmp_path / "no.py"), "there is no such file"), ("no_such_module", "cannot be imported")):
        monkeypatch.setenv(registry.PLUGINS, place)
        with pytest.raises(ValueError, match=message):
            registry.load_plugins()
