"""Tables 3 and 4 and what stands beside them, from finished runs of every built-in method."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from finished import finish_tables, record_llms, small_studies

from cmpta_lib import paper, registry
from cmpta_lib import paper as literature
from cmpta_lib.figures.answers import confusion_figure
from cmpta_lib.metrics import MAE, METRICS
from cmpta_lib.report import comparison, summaries
from cmpta_lib.report.tables import ResultRow
from cmpta_lib.study import plan
from cmpta_lib.study.study import Study

PRINTED = {"sims": [line.method for line in paper.TABLE3[:-1]], "meld": [line.method for line in paper.TABLE4[:-1]]}


@pytest.mark.parametrize("key", PRINTED)
def test_every_line_that_the_paper_prints_can_be_run_and_stands_first(key: str):
    names = [row.name for row in plan.comparison(key)]
    assert names[: len(PRINTED[key])] == PRINTED[key]
    assert names[-1] == "CMPTA" and names[-2] == "text only"
    assert "MSE-Adapter" in names, "the direct ancestor, which the paper leaves out"


@pytest.mark.parametrize("key", PRINTED)
def test_reference_lines_stand_below_the_methods(key: str):
    is_reference = [registry.ENTRIES[row.method].is_reference for row in plan.comparison(key)[:-1]]
    assert is_reference == sorted(is_reference) and sum(is_reference) == 5


def test_a_row_says_what_it_reads():
    assert all(entry.reads for entry in registry.ENTRIES.values() if entry.is_built_in)


def test_on_clips_of_ones_own_every_method_is_compared():
    names = {row.method for row in plan.comparison("data")}
    assert names == {entry.name for entry in registry.ENTRIES.values() if entry.comparisons}


def test_todays_best_frozen_methods_are_rows_that_are_run_with_everything(study: Study):
    for key in (*PRINTED, "data"):
        assert {"prototype prompt", "MGSI"} <= {row.name for row in plan.added(key)}
        assert not {row.method for row in plan.added(key)} & {row.method for row in plan.compared(key)}
    tables = {key: comparison.methods_table(study, key).set_index("method") for key in PRINTED}
    assert "0.264 (with ChatGLM3" in tables["sims"].loc["prototype prompt", "MAE elsewhere"]
    assert "0.267 (with ChatGLM3" in (own := tables["sims"].loc["MGSI", "MAE elsewhere"]) and "0.286 (with Qwen2.5-7B" in own
    assert "65.97 (with ChatGLM3" in tables["meld"].loc["prototype prompt", "WF1 (%) elsewhere"]
    assert tables["meld"].loc["MGSI", "WF1 (%) elsewhere"] == "—"
    for row in plan.added("sims"):
        for run in study.runs("sims", row):
            shutil.rmtree(run.folder)
    rows = {row.method: row for row in comparison.comparison_rows(study, "sims")}
    notes = [rows[row.name].note for row in plan.added("sims")]
    assert set(notes) == {"beyond the paper: `cmpta reproduce --profile demo --all` runs it"}


def test_other_published_numbers_are_of_rows_that_there_are():
    rows = {row.name for key in PRINTED for row in plan.comparison(key)}
    assert literature.ELSEWHERE.keys() <= rows
    assert all(name in METRICS for found in literature.ELSEWHERE.values() for one in found for name in one.scores)
    assert literature.published("LMF", "f1_weighted") == [] and literature.published("nobody", "mae") == []


def test_the_appendix_has_the_versions_that_say_what_a_part_is_worth():
    meld, sims = ({(row.method, row.name) for row in plan.versions(key)} for key in ("meld", "sims"))
    assert {("mmgcn", "without context"), ("ga2mif", "without context"), ("tfn", "text only")} <= meld
    assert {("lmf", "text only"), ("self_mm", "text only"), ("mag_bert", "text only")} <= sims
    assert {row.name for row in plan.MSE_ABLATIONS} == {
        "without text-guided mixer", "without multi-scale fusion", "text only", "without vision", "without audio",
    }  # fmt: skip


@pytest.mark.parametrize("key", [*PRINTED, "data"])
def test_a_version_stands_beside_its_method_with_the_same_llm(key: str):
    for version in (*plan.versions(key), *plan.MSE_ABLATIONS):
        whole = plan.method_row(key, version.method)
        assert (whole.method, whole.llm, whole.rate, whole.changes) == (version.method, version.llm, 1, {})


def test_everything_trained_is_searched_at_the_same_factors():
    for key in PRINTED:
        for row in plan.trained(key):
            assert list(plan.search(row)) == [0.3, 1.0, 3.0] and plan.search(row)[1.0] == row
    assert not {"constant", "linear", "text_only"} & {row.method for row in plan.trained("sims")}


def test_what_goes_beyond_the_paper_is_run_only_when_asked_for():
    assert "12_baselines" not in [notebook.name for notebook in plan.chosen([])]
    assert [notebook.name for notebook in plan.chosen(["12_baselines"])] == ["12_baselines"]
    counted = plan.planned(plan.chosen(["12_baselines"]), ("sims", "meld"), False, (1, 2))
    tried = [one for one in counted if one.row.rate != 1]
    assert tried and {one.seed for one in tried} == {1}, "the search takes the first seed"


class _Scores:
    """Stands where only a corpus' kind of task is asked for."""


def test_cmpta_is_compared_with_each_other_row(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(comparison, "tabled", lambda study, key: (MAE,))
    truth = np.linspace(-1, 1, 40)
    good, bad = truth[None] + 0.1, np.zeros((1, 40))
    rows = [
        ResultRow("", "bad", truth=truth, predictions=bad),
        ResultRow("", "missing"),
        ResultRow("", "CMPTA", truth=truth, predictions=good),
    ]
    table = comparison.paired_table(_Scores(), "sims", rows)
    assert list(table["comparison"]) == ["CMPTA minus bad", "CMPTA minus missing"]
    assert float(table["difference"][0]) < 0 and table["difference"][1] == "not run"
    assert set(table["metric"]) == {"MAE"}, "as tables name it, not as files do"


LONGEST = 18  # characters of a row's name: a table of several columns fits a page


@pytest.mark.parametrize("key", [*PRINTED, "data"])
def test_a_row_has_a_short_name_and_what_it_is_said_beside_it(key: str):
    assert all(len(row.name) <= LONGEST for row in plan.comparison(key))
    reads = {entry.row: entry.reads for entry in registry.ENTRIES.values()}
    assert "median or majority" in reads["constant"] and "ridge or SVM" in reads["linear"] and "tuned" in reads["soft prompt"]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    made = small_studies(record_llms(tmp_path), monkeypatch)(seeds=2)
    finish_tables(made)
    return made


def test_nothing_that_depends_on_the_machine_is_exported(study: Study):
    """Seconds and hardware differ from machine to machine; `cmpta runs` shows them."""
    frames = [comparison.methods_table(study, "sims"), summaries.training_table(study, study.keys)]
    for frame in frames:
        assert not [name for name in frame.columns if re.search("second|hardware|s per", name)]
        assert "a machine" not in frame.to_string()


def test_metrics_are_named_as_tables_name_them(study: Study):
    tables = [summaries.training_table(study, study.keys), summaries.best_possible(study, study.keys)]
    tables.append(comparison.of_every_corpus(study, comparison.versions_table, plan.versions))
    assert all(set(table["metric"]) <= {"MAE", "Corr", "WF1 (%)"} for table in tables)
    assert not tables[0]["valid"].str.contains("%").any(), "the unit stands in the metric's name"
    search = comparison.of_every_corpus(study, comparison.search_table)
    assert list(search.columns[:4]) == ["corpus", "method", "metric", "learning rate"]
    assert list(search.columns[4:]) == ["× 0.3", "× 1", "× 3"] and set(search["× 3"]) == {"not run"}


def test_a_method_that_was_not_run_says_so_in_one_cell(study: Study):
    for run in study.runs("meld", plan.TEXT_ONLY):
        shutil.rmtree(run.folder)
    line = comparison.field_table(study, "meld").set_index("method").loc["text only"]
    assert (line == "not run").sum() == 1 and set(line) == {"not run", "—"}


def test_a_confusion_map_says_what_does_not_fit():
    with pytest.raises(ValueError, match="no method of this comparison was run"):
        confusion_figure({}, ["a", "b"])
    with pytest.raises(ValueError, match="'m': expected a map of 3 x 3"):
        confusion_figure({"m": np.eye(2)}, ["a", "b", "c"])


def test_every_method_has_a_confusion_map_of_its_own():
    shares = {f"method {number}": np.eye(3) for number in range(5)}
    figure = confusion_figure(shares, ["anger", "joy", "neutral"], title="t", footer="f")
    shown = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert shown == list(shares)
