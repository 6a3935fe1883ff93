"""Any field of the config from outside: exactly the runs that have it change, and whatever comes of them says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from finished import clips, finish_tables, record_llms, small_studies

from cmpta_lib.report import comparison, gather, tables
from cmpta_lib.report import rows as reports
from cmpta_lib.study import plan
from cmpta_lib.study.exports import short_name
from cmpta_lib.study.plan import CMPTA, TEXT_ONLY
from cmpta_lib.study.study import Study

ROWS = [*plan.ablation("sims"), *plan.CHOICES]
MAXIMUM = {"method.summary": "max"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_llms(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def study(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Study]:
    return small_studies(root, monkeypatch)


# --- which runs change ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [None, {}, "", "{}"])
def test_no_changes_change_nothing(nothing):
    assert Study(changes=nothing).changes == {} and Study(changes=nothing).figures.name == "demo"


@pytest.mark.parametrize("key", ["sims", "meld"])
def test_a_methods_field_changes_the_runs_of_methods_that_have_it(study, key):
    plain, changed = study(seeds=1), study(seeds=1, changes=MAXIMUM)
    hashes = {row.name: (plain.config(key, row).hash, changed.config(key, row).hash) for row in ROWS}
    equal = {name for name, (before, after) in hashes.items() if before == after}
    assert equal == {"text only", "6: maximum instead of mean"}, "the one has no summary, the other is about it"
    assert {changed.config(key, row).method.summary for row in ROWS if row != TEXT_ONLY} == {"max"}


def test_a_field_of_all_runs_changes_all(study):
    plain, changed = study(seeds=1), study(seeds=1, changes={"training.epochs": 7})
    for row in ROWS:
        assert changed.config("sims", row).training.epochs == 7 != plain.config("sims", row).training.epochs
    assert changed.config("sims").method == plain.config("sims").method, "the rest is the profile's"


@pytest.mark.parametrize("row", [row for row in ROWS if "method.num_pseudo_tokens" in row.changes], ids=lambda row: row.name)
def test_a_row_keeps_what_it_is_about(study, row):
    plain, changed = study(seeds=1), study(seeds=1, changes={"method.num_pseudo_tokens": 8})
    assert changed.config("sims", row) == plain.config("sims", row)
    assert changed.config("sims", row).method.num_pseudo_tokens == row.changes["method.num_pseudo_tokens"]
    assert changed.config("sims", CMPTA).method.num_pseudo_tokens == 8


def test_changes_come_after_what_profile_corpus_method_and_smoke_say(study):
    changes = {"training.epochs": 7, "training.learning_rate": 0.5, "method.dim": 32}
    for options in ({}, {"smoke": True}):
        config = study(seeds=1, changes=changes, **options).config("sims")
        assert (config.training.epochs, config.training.learning_rate, config.method.dim) == (7, 0.5, 32)


def test_the_order_of_changes_is_no_matter(study):
    changes = {"training.epochs": 7, "method.summary": "max"}
    backwards = dict(reversed(changes.items()))
    first, second = study(seeds=1, changes=changes), study(seeds=1, changes=backwards)
    assert first.config("sims") == second.config("sims") and first.figures == second.figures


# --- outputs say so ---------------------------------------------------------------------------------------------------


def test_outputs_say_what_was_changed_and_lie_apart(study):
    plain, changed = study(smoke=True), study(smoke=True, changes=MAXIMUM)
    for one in (plain, changed):
        finish_tables(one)
        table = tables.result_table(comparison.comparison_rows(one, "sims"), reports.scores_of(one, "sims"))
        reports.save_table(one, table, "table3", "Table 3.", ["sims"], one.runs("sims"))
        gather.write_report(one, one.keys)
    said = "profile: demo, method.summary=max."
    assert changed.figures.name == "demo-method.summary=max" and changed.figures.parent == plain.figures.parent
    for name in ("table3.md", "table3.tex", "table3.csv"):
        text, before = ((one.figures / name).read_text(encoding="utf-8").replace("\\", "") for one in (changed, plain))
        assert said in text and "method.summary" not in before
    title = (changed.figures / "report.md").read_text(encoding="utf-8").splitlines()[0]
    assert title == "# CMPTA, paper | this run: profile demo, method.summary=max, SMOKE RUN"
    record = json.loads((changed.figures / "provenance.json").read_text(encoding="utf-8"))["table3"]
    assert record["profile"] == "demo, method.summary=max"
    assert record["runs"] == [changed.runs("sims")[0].folder.name] != [plain.runs("sims")[0].folder.name]
    assert "method.summary=max" in reports.drawing_footer(changed)


def test_outputs_from_clips_of_ones_own_say_it_too(study, tmp_path):
    (tmp_path / "in").mkdir()
    clips(lambda number: ("calm", "happy")[number % 2], (6, 4, 5), tmp_path / "in")
    own = study(smoke=True, data=str(tmp_path / "in"), changes=MAXIMUM)
    assert own.figures.name == "voices-method.summary=max"
    title = gather.write_report(own, own.keys).read_text(encoding="utf-8").splitlines()[0]
    assert title == "# CMPTA, paper | this run: voices, method.summary=max, SMOKE RUN"
    assert "profile: demo, method.summary=max." in reports.provenance(own, ["data"]).line()


def test_a_table_of_a_changed_study_has_its_own_numbers(study):
    plain, changed = study(smoke=True), study(smoke=True, changes=MAXIMUM)
    for one in (plain, changed):
        finish_tables(one)
    before, after = (
        tables.result_table(comparison.comparison_rows(one, "sims"), ["mae"]).full.set_index("method") for one in (plain, changed)
    )
    assert before.loc["CMPTA", "MAE this run"] != after.loc["CMPTA", "MAE this run"]
    text_only = "text only"
    pd.testing.assert_series_equal(before.loc[text_only], after.loc[text_only])


def test_changed_outputs_have_folders_of_their_own():
    names = [
        Study(changes=changes).figures.name
        for changes in (None, {"training.epochs": 3}, {"training.epochs": 4}, {"method.summary": "max"})
    ]
    assert names == ["demo", "demo-training.epochs=3", "demo-training.epochs=4", "demo-method.summary=max"]


def test_long_or_odd_changes_stay_apart_in_a_short_name():
    many = ",".join(f"training.{n}={n}" for n in ("epochs", "batch_size", "learning_rate", "weight_decay"))
    first, second = short_name(many), short_name(many.replace("=weight_decay", "=else"))
    assert first != second and max(map(len, (first, second))) < 60
    assert short_name("a=x/y") != short_name("a=x_y") and "/" not in short_name("a=x/y") and short_name("") == ""


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method.summery": "max"}, r"no method has the config field 'method.summery' \(did you mean 'method.summary'\?\)"),
        ({"summary": "max"}, "no method has the config field 'summary'"),
        ({"method": {"summary": "max"}}, "no method has the config field 'method'"),
        ({"training.epochs": "three"}, "training.epochs='three': Input should be a valid integer"),
        ({"training.epochs": 0}, "training.epochs=0: Input should be greater than or equal to 1"),
        ({"training.epochs": 2.5}, "training.epochs=2.5"),
        ({"training.epochs": True}, "training.epochs=True"),
        ({"training.epochs": None}, "training.epochs=None"),
        ({"training.learning_rate": float("nan")}, "training.learning_rate=nan"),
        ({"method.summary": "median"}, "method.summary='median': Input should be 'mean' or 'max'"),
        ({"training.epochs": 3, "method.summary": "median"}, "method.summary='median': Input should be 'mean' or 'max'"),
        ({"method.num_heads": 7}, "dim=1024 is not a multiple of num_heads=7"),
        ({"seed": 3}, "'seed' is set by the argument `seeds`, not as a change"),
        ({"data.name": "meld"}, "'data.name' is set by the argument `data`"),
        ({"method.llm.name": "tiny"}, "'method.llm.name' is set by the argument `llm`"),
        ({"method.llm.fingerprint": "f"}, "'method.llm.fingerprint' is set by the argument `llm`"),
        ({"method.name": "text_only"}, "'method.name' is set by the row of a table"),
        ({"method.recipe": 2}, "'method.recipe' is set by the method's code"),
        (["training.epochs"], r"expected fields with values, such as \{\"training.epochs\": 3\}"),
        ("training.epochs=3", "expected fields with values"),
        (3, "expected fields with values"),
        ("[3]", "expected fields with values"),
        ("{'training.epochs'", "expected fields with values"),
        ({3: 4}, "expected fields with values"),
    ],
)
def test_an_impossible_change_is_one_line_before_anything_starts(changes: Any, said: str, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path / "runs"))
    with pytest.raises(ValueError, match=said) as caught:
        Study(changes=changes)
    assert "\n" not in str(caught.value) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method.num_pseudo_tokens": 7}, "row 'adapter off' cannot be run as asked: .*an odd num_pseudo_tokens"),
        ({"method.num_heads": 128}, "row 'CMPTA' cannot be run as asked: .*dim=64 is not a multiple of num_heads=128"),
    ],
)
def test_a_change_that_a_row_cannot_have_names_the_row(changes: dict, said: str, study):
    changed = study(seeds=1, changes=changes)
    with pytest.raises(ValueError, match=said) as caught:
        changed.needed("06_table5_ablation_simsv2")
    assert "\n" not in str(caught.value)


# --- as papermill hands them over -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"method.summary": "max", "training.epochs": 7, "training.patience": null}',
        "{'method.summary': 'max', 'training.epochs': 7, 'training.patience': None}",
    ],
)
def test_a_text_means_what_it_says(text: str, study):
    said = {"method.summary": "max", "training.epochs": 7, "training.patience": None}
    assert study(changes=text).changes == study(changes=said).changes == said
    assert study(seeds=1, changes=text).config("sims") == study(seeds=1, changes=said).config("sims")


@pytest.mark.slow  # a kernel
def test_papermill_takes_them_as_a_text(study, tmp_path):
    import papermill

    notebook = Path(__file__).parents[1] / "notebooks" / "05_table4_meld.ipynb"
    changed = study(smoke=True, changes=MAXIMUM)
    finish_tables(changed)
    parameters = {"changes": '{"method.summary": "max"}', "smoke": True}
    papermill.execute_notebook(
        str(notebook), str(tmp_path / "out.ipynb"), parameters, progress_bar=False, kernel_name="python3"
    )
    assert "demo, method.summary=max" in (changed.figures / "table4.md").read_text(encoding="utf-8")
