"""A method that one file defines, which nothing of ours names, stands in Table 3 through the public registry."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import pytest
from finished import record_llms

from cmpta_lib import registry
from cmpta_lib.config import DataConfig, MethodConfig, RunConfig, from_json, to_json
from cmpta_lib.embedded import synthetic
from cmpta_lib.report.comparison import comparison_rows
from cmpta_lib.report.rows import result_row
from cmpta_lib.report.tables import result_table
from cmpta_lib.runs.load import load
from cmpta_lib.study import plan
from cmpta_lib.study.study import Study

FILE = Path(__file__).resolve().with_name("training_mean.py")
DATA = DataConfig(name="a", fingerprint="b")


@pytest.fixture(autouse=True)
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The method, known to this file's tests alone: tables of other tests must not have its row."""
    known = dict(registry.ENTRIES)
    monkeypatch.setattr(MethodConfig, "known", dict(MethodConfig.known))
    monkeypatch.setenv(registry.PLUGINS, str(FILE))
    monkeypatch.delitem(sys.modules, FILE.stem, raising=False)
    registry.load_plugins()
    yield sys.modules[FILE.stem]
    registry.ENTRIES.clear()
    registry.ENTRIES.update(known)


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
def test_its_row_has_mean_deviation_interval_and_seeds(study: Study):
    row = next(row for row in plan.comparison("sims") if row.method == "training_mean")
    runs = study.ensure(study.runs("sims", row))
    shown = result_table([result_row(study, "sims", row)], ["mae", "corr"]).full.iloc[0]
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


@pytest.fixture
def named_models(tmp_path: Path) -> None:
    record_llms(tmp_path)


def test_the_whole_table_holds_it_between_the_papers_rows_and_the_reference_lines(study: Study, named_models: None):
    names = [row.method for row in comparison_rows(study, "sims")]
    assert names[0] == "LMF [24]" and names[-2:] == ["text only", "CMPTA"]
    assert names.index("MSE-LLaMA2-7B [27]") < names.index("training mean") < names.index("constant")
    assert "training mean" not in [row.method for row in comparison_rows(study, "meld")]


def test_a_method_that_the_paper_prints_stands_in_the_papers_line(study: Study, named_models: None, plugin: ModuleType):
    """Where this repository had no Self-MM and no LMF, and somebody else the one of them."""

    class TheirSelfMM(MethodConfig):
        name: Literal["their_self_mm"] = "their_self_mm"
        recipe: Literal[1] = 1

    del registry.ENTRIES["self_mm"], registry.ENTRIES["lmf"]
    registry.register(TheirSelfMM, plugin.TrainingMean, row="Self-MM", comparisons=("sims",))
    first = plan.comparison("sims")[0]
    assert (first.name, first.method) == ("Self-MM", "their_self_mm")
    rows = comparison_rows(study, "sims")
    assert [row.method for row in rows[:3]] == ["LMF [24]", "Self-MM [25]", "MAG-BERT [26]"] and rows[1].paper["mae"] == 0.335
    assert "not part of this repository" in rows[0].note and "is not finished" in rows[1].note
    assert [row.method for row in rows].count("Self-MM [25]") == 1 and "Self-MM" not in [row.method for row in rows]


def test_its_settings_are_part_of_a_runs_identity(plugin: ModuleType):
    config = RunConfig(data=DATA, method=plugin.TrainingMeanConfig(noise=0.5))
    assert from_json(to_json(config)) == config
    assert config.hash != RunConfig(data=DATA, method=plugin.TrainingMeanConfig()).hash


def test_a_raised_recipe_makes_its_runs_stale_and_no_others(plugin: ModuleType):
    text = to_json(RunConfig(data=DATA, method=plugin.TrainingMeanConfig()))
    with pytest.raises(ValueError, match="method.recipe"):
        from_json(text.replace('"recipe": 1', '"recipe": 2'))


def test_a_name_or_row_is_taken_once(plugin: ModuleType):
    class Other(MethodConfig):
        name: Literal["other"] = "other"
        recipe: Literal[1] = 1

    for row, name in (("CMPTA", "cmpta"), ("Self-MM", "self_mm"), ("training mean", "training_mean")):
        with pytest.raises(ValueError, match=f"row '{row}': taken by '{name}'"):
            registry.register(Other, plugin.TrainingMean, row=row)
    assert "other" not in registry.ENTRIES


def test_other_processes_are_told_where_it_is_defined(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch):
    assert registry.plugins() == str(FILE)
    monkeypatch.delenv(registry.PLUGINS)  # as where somebody imports the file
    assert registry.plugins() == str(FILE)
    monkeypatch.setattr(plugin.TrainingMeanConfig, "__module__", "__main__")
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
