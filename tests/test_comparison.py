"""Tables 3 and 4 and what stands beside them, from finished runs of every built-in method."""

from __future__ import annotations

import numpy as np
import pytest

from cmpta_lib import literature, paper
from cmpta_lib.figures.confusion import confusion_figure
from cmpta_lib.methods import registry
from cmpta_lib.metrics import METRICS
from cmpta_lib.report import comparison
from cmpta_lib.report.tables import ResultRow
from cmpta_lib.study import plan

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
    monkeypatch.setattr(comparison, "scores_of", lambda study, key: ["mae"])
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
