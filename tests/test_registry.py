"""A method that one file defines, which nothing of ours names: the one that cmpta_lib/README.md shows gets its rows."""

from __future__ import annotations

import os
import re
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
from cmpta_lib.runs import loop
from cmpta_lib.study import plan
from cmpta_lib.study.study import Study
from cmpta_lib.study.trained import load

README = Path(__file__).resolve().parents[1] / "cmpta_lib" / "README.md"
DATA = DataConfig(name="a", fingerprint="b")


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """The README's example."""
    (code,) = re.findall(r"## A method of your own\n.*?```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert code.count("\n") <= 60
    path = tmp_path_factory.mktemp("own") / "mean_frames.py"
    path.write_text(code)
    return path


@pytest.fixture(autouse=True)
def plugin(file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The method, known to this file's tests alone: tables of other tests must not have its row."""
    known = dict(registry.ENTRIES)
    monkeypatch.setattr(MethodConfig, "known", dict(MethodConfig.known))
    monkeypatch.setenv(registry.PLUGINS, str(file))
    monkeypatch.delitem(sys.modules, file.stem, raising=False)
    registry.load_plugins()
    yield sys.modules[file.stem]
    registry.ENTRIES.clear()
    registry.ENTRIES.update(known)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path))
    monkeypatch.setattr(synthetic, "SPLIT_SIZES", {"train": 30, "valid": 9, "test": 20})
    return Study(seeds=3)


@pytest.mark.slow  # real workers, which import torch and this file
def test_its_row_has_mean_deviation_interval_and_seeds(study: Study):
    row = next(row for row in plan.comparison("sims") if row.method == "mean_frames")
    runs = study.ensure(study.runs("sims", row))
    shown = result_table([result_row(study, "sims", row)], ["mae"]).full.iloc[0]
    scores = [run.metrics["test"]["mae"] for run in runs]
    assert shown["method"] == "mean frames" and "(n=3)" in shown["MAE this run"] and "±" in shown["MAE this run"]
    assert float(shown["MAE this run"].split()[0]) == pytest.approx(np.mean(scores), abs=6e-4)
    assert shown["MAE seeds"] == ", ".join(f"{value:.3f}" for value in scores) and len(set(scores)) == 3
    assert shown["MAE 95 % CI"].startswith("[0.") and {run.config.method.name for run in runs} == {"mean_frames"}
    answers, kept = load(runs[0].folder).predict([study.corpus("sims").splits["test"][0]]), runs[0].predictions()
    assert answers[0].value == pytest.approx(kept["prediction"][0], abs=1e-5)


def test_it_tells_classes_too(corpora, tools):
    corpus = corpora["embedded-meld"]
    method = loop.build(RunConfig(data=DATA, method=registry.ENTRIES["mean_frames"].defaults()), corpus, tools)
    batch = method.collate([*corpus.splits["train"]])
    method.loss(batch).total.backward()
    assert all(weight.grad.abs().sum() > 0 for weight in method.module.parameters())
    assert set(method.predict(batch).values) <= set(range(7))


def test_the_whole_table_holds_it_between_the_papers_rows_and_the_reference_lines(study: Study, tmp_path: Path):
    record_llms(tmp_path)
    names = [row.method for row in comparison_rows(study, "sims")]
    assert names[0] == "LMF [24]" and names[-2:] == ["text only", "CMPTA"]
    assert names.index("MSE-LLaMA2-7B [27]") < names.index("mean frames") < names.index("constant")


def test_a_method_that_the_paper_prints_stands_in_the_papers_line(study: Study, tmp_path: Path, plugin: ModuleType):
    """Where this repository had no Self-MM and no LMF, and somebody else the one of them."""
    record_llms(tmp_path)

    class TheirSelfMM(MethodConfig):
        name: Literal["their_self_mm"] = "their_self_mm"
        recipe: Literal[1] = 1

    del registry.ENTRIES["self_mm"], registry.ENTRIES["lmf"]
    registry.register(TheirSelfMM, plugin.MeanFrames, row="Self-MM", comparisons=("sims",))
    assert "Self-MM" not in [row.name for row in plan.comparison("meld")]
    first = plan.comparison("sims")[0]
    assert (first.name, first.method) == ("Self-MM", "their_self_mm")
    rows = comparison_rows(study, "sims")
    assert [row.method for row in rows[:3]] == ["LMF [24]", "Self-MM [25]", "MAG-BERT [26]"] and rows[1].paper["mae"] == 0.335
    assert "not part of this repository" in rows[0].note and "is not finished" in rows[1].note
    assert [row.method for row in rows].count("Self-MM [25]") == 1 and "Self-MM" not in [row.method for row in rows]


def test_its_settings_are_part_of_a_runs_identity_and_a_raised_recipe_makes_its_runs_stale(plugin: ModuleType):
    config = RunConfig(data=DATA, method=plugin.MeanFramesConfig(hidden=8))
    assert from_json(to_json(config)) == config
    assert config.hash != RunConfig(data=DATA, method=plugin.MeanFramesConfig()).hash
    with pytest.raises(ValueError, match="method.recipe"):
        from_json(to_json(config).replace('"recipe": 1', '"recipe": 2'))


def test_a_name_or_row_is_taken_once(plugin: ModuleType):
    class Other(MethodConfig):
        name: Literal["other"] = "other"
        recipe: Literal[1] = 1

    for row, name in (("CMPTA", "cmpta"), ("Self-MM", "self_mm"), ("mean frames", "mean_frames")):
        with pytest.raises(ValueError, match=f"row '{row}': taken by '{name}'"):
            registry.register(Other, plugin.MeanFrames, row=row)
    assert "other" not in registry.ENTRIES


def test_every_built_in_method_has_its_place_among_the_rows():
    assert [entry.name for entry in registry.ENTRIES.values() if entry.is_built_in] == registry.ORDER
    assert list(registry.ENTRIES)[-1] == "mean_frames"
    with pytest.raises(AttributeError, match="no attribute 'entries'"):
        registry.entries  # noqa: B018
    with pytest.raises(ValueError, match="no method 'nobody'; there are: text_only, omni, "):
        registry.method_class("nobody")


def test_other_processes_are_told_where_it_is_defined(file: Path, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch):
    assert registry.plugins() == str(file)
    monkeypatch.delenv(registry.PLUGINS)  # as where somebody imports the file
    assert registry.plugins() == str(file)
    monkeypatch.setenv(registry.PLUGINS, os.pathsep.join(["json", file.stem]))  # modules by their names, each once
    assert registry.plugins() == os.pathsep.join(["json", file.stem])
    monkeypatch.setattr(plugin.MeanFramesConfig, "__module__", "__main__")
    with pytest.raises(ValueError, match="'mean_frames' is defined in a notebook or script"):
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
