"""What the paper prints; Tables 3 and 4 and what stands beside them, from finished runs of every built-in method."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from finished import finish, finish_tables, record_llms, small_studies

from cmpta_lib import paper, registry
from cmpta_lib.data.corpus import Task
from cmpta_lib.metrics import METRICS
from cmpta_lib.report import comparison, summaries
from cmpta_lib.report.comparison import of_every_corpus
from cmpta_lib.report.rows import result_row
from cmpta_lib.report.uncertainty import summarise
from cmpta_lib.study import plan
from cmpta_lib.study.study import Study

PRINTED = {"sims": [line.method for line in paper.TABLE3[:-1]], "meld": [line.method for line in paper.TABLE4[:-1]]}


@pytest.mark.parametrize("key", PRINTED)
def test_the_papers_lines_stand_first_and_reference_lines_below_the_methods(key: str):
    rows = plan.comparison(key)
    names = [row.name for row in rows]
    assert names[: len(PRINTED[key])] == PRINTED[key], "every line that the paper prints can be run"
    assert names[-2:] == ["text only", "CMPTA"]
    assert "MSE-Adapter" in names, "the direct ancestor, which the paper leaves out"
    is_reference = [registry.ENTRIES[row.method].is_reference for row in rows[:-1]]
    assert is_reference == sorted(is_reference) and sum(is_reference) == 5
    every = {entry.name for entry in registry.ENTRIES.values() if entry.comparisons}
    assert {row.method for row in plan.comparison("data")} == every, "a user's own clips: every method"


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
    assert paper.ELSEWHERE.keys() <= rows
    assert all(name in METRICS for found in paper.ELSEWHERE.values() for one in found for name in one.scores)
    assert paper.published("LMF", "f1_weighted") == [] and paper.published("nobody", "mae") == []


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


LONGEST = 18  # characters of a row's name: a table of several columns fits a page


@pytest.mark.parametrize("key", [*PRINTED, "data"])
def test_a_row_has_a_short_name_and_what_it_is_said_beside_it(key: str):
    assert all(len(row.name) <= LONGEST for row in plan.comparison(key))
    assert all(entry.reads for entry in registry.ENTRIES.values() if entry.is_built_in)
    reads = {entry.row: entry.reads for entry in registry.ENTRIES.values()}
    assert "median or majority" in reads["constant"] and "ridge or SVM" in reads["linear"] and "tuned" in reads["soft prompt"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """Finished runs behind every table; a test that removes some leaves those that others read."""
    with pytest.MonkeyPatch.context() as patch:
        made = small_studies(record_llms(tmp_path_factory.mktemp("runs")), patch)(seeds=2)
        finish_tables(made)
        yield made


def test_metrics_are_named_as_tables_name_them_and_nothing_depends_on_the_machine(study: Study):
    """Seconds and hardware differ from machine to machine; `cmpta runs` shows them."""
    rows = comparison.comparison_rows(study, "sims")[-2:]
    tables = [summaries.training_table(study, study.keys), summaries.best_possible(study, study.keys)]
    tables += [of_every_corpus(study, comparison.versions_table, plan.versions), comparison.paired_table(study, "sims", rows)]
    assert all(set(table["metric"]) <= {"MAE", "Corr", "WF1 (%)"} for table in tables)
    assert not tables[0]["valid"].str.contains("%").any(), "the unit stands in the metric's name"
    by_hand = [np.abs(row.predictions - row.truth).mean() for row in rows]
    assert tables[3]["comparison"][0] == "CMPTA minus text only"
    assert float(tables[3]["difference"][0]) == pytest.approx(by_hand[1] - by_hand[0], abs=6e-4)
    for frame in (comparison.methods_table(study, "sims"), tables[0]):
        assert not [name for name in frame.columns if re.search("second|hardware|s per", name)]
        assert "a machine" not in frame.to_string()
    search = of_every_corpus(study, comparison.search_table)
    assert list(search.columns[:4]) == ["corpus", "method", "metric", "learning rate"]
    assert list(search.columns[4:]) == ["× 0.3", "× 1", "× 3"] and set(search["× 3"]) == {"not run"}


def test_a_method_that_was_not_run_says_so_in_one_cell(study: Study):
    for run in study.runs("meld", plan.TEXT_ONLY):
        shutil.rmtree(run.folder)
    line = comparison.field_table(study, "meld").set_index("method").loc["text only"]
    assert (line == "not run").sum() == 1 and set(line) == {"not run", "—"}


# --- the multimodal transformer ---------------------------------------------------------------------------------------


def test_its_rows_hold_what_the_tables_compare():
    pretrained = {row.changes.get("method.pretraining", "both") for row in plan.PRETRAINING}
    assert pretrained == {"none", "mlm", "contrastive", "both"}
    fusions = {row.changes.get("method.fusion", "six_pair") for row in plan.FUSIONS}
    assert fusions == {"six_pair", "concatenation", "self_attention"}
    for share, (with_it, without) in plan.LABEL_SHARES.items():
        assert with_it.changes.get("method.label_share", 1.0) == without.changes.get("method.label_share", 1.0) == share
        assert dict(without.changes) == {**with_it.changes, "method.pretraining": "none"}
    assert list(plan.LABEL_SHARES) == [0.1, 0.25, 0.5, 1.0]
    for key in PRINTED:
        assert plan.MMT in plan.added(key) and plan.MMT not in plan.compared(key)
        assert all(row in plan.every_row(key, plan.MMT.method) for row in plan.MMT_ROWS)
    assert len({row.name for row in plan.MMT_ROWS}) == len(plan.MMT_ROWS) == 13


def test_tables_say_what_differs_by_how_much_and_how_surely(study: Study):
    missing = plan.FUSIONS[1]
    for key in study.keys:
        for row in plan.MMT_ROWS:
            if row != missing:
                finish(study, key, study.runs(key, row))
    losses = of_every_corpus(study, lambda study, key: comparison.versions(study, key, plan.PRETRAINING, plan.MMT))
    assert list(losses["metric"][losses["version"] == plan.MMT.name]) == ["MAE", "Corr", METRICS["f1_weighted"].label]
    heading = f"minus {plan.MMT.name}"
    others = losses[losses["version"] != plan.MMT.name]
    assert len(others) == 9 and others[heading].str.fullmatch(r"[+-]\S+ \[[+-]\S+, [+-]\S+\]").all()
    assert others["p"].astype(float).between(0, 1).all() and (losses["score"].str.contains("±")).all()
    first, base = (result_row(study, "sims", row) for row in (plan.PRETRAINING[0], plan.MMT))
    by_hand = np.abs(first.predictions - first.truth).mean() - np.abs(base.predictions - base.truth).mean()
    assert float(losses[heading][0].split()[0]) == pytest.approx(by_hand, abs=6e-4)
    fusions = comparison.versions(study, "sims", plan.FUSIONS, plan.MMT)
    lost = fusions[fusions["version"] == missing.name]
    assert set(lost["score"]) == {"not run"} and lost["note"].str.contains("not finished").all()
    shares = comparison.labels(study, "meld")
    assert list(shares["labels"]) == ["10%", "25%", "50%", "100%"]
    assert {"pre-trained", "not pre-trained", "pre-trained minus not", "p"} <= set(shares.columns)


# --- what the paper prints --------------------------------------------------------------------------------------------


def test_class_prompt_gives_table_2s_sentence_and_renders_any_label_set_in_both_languages():
    assert paper.class_prompt(paper.MELD_LABELS, "en") == paper.MELD_PROMPT
    english = paper.class_prompt(["calm", "angry"], "en")
    chinese = paper.class_prompt(["平静", "愤怒"], "zh")
    assert "target set <calm:0, angry:1>. Assistant: The emotion is" in english
    assert "<平静:0, 愤怒:1>" in chinese
    assert chinese.endswith(paper.SIMS_PROMPT[-len("响应：情感为") :])


@pytest.mark.parametrize(
    ("labels", "language", "message"),
    [(("calm",), "en", "two or more"), (("calm", "calm"), "en", "different"), (("calm", "angry"), "fr", "in 'zh' or 'en'")],
)
def test_no_task_asks_what_a_class_prompt_cannot_say(labels, language, message):
    with pytest.raises(ValueError, match=message):
        Task("classification", language, labels)


def test_sims_prompt_is_the_printed_one_with_an_ascii_minus():
    assert "[-1.0, +1.0]之间。响应：情感为" in paper.SIMS_PROMPT  # full-width colon, no space after it
    changed = [pair for pair in zip(paper.SIMS_PROMPT, paper.SIMS_PROMPT_AS_PRINTED, strict=True) if len(set(pair)) > 1]
    assert changed == [("-", "\u2212")]


@pytest.mark.parametrize("corpus", paper.TABLE1.values(), ids=paper.TABLE1)
def test_table_1_adds_up(corpus):
    assert corpus.train + corpus.valid + corpus.test == corpus.total


@pytest.mark.parametrize(
    ("table", "headline", "metric"),
    [(paper.TABLE5, paper.TABLE3[-1], "mae"), (paper.TABLE6, paper.TABLE4[-1], "f1_weighted")],
    ids=["table5", "table6"],
)
def test_every_ablation_group_holds_the_headline_score_once(table, headline, metric):
    groups = {row.group for row in table}
    full_model = {(row.group, row.method) for row in table if row.scores[metric] == headline.scores[metric]}
    assert full_model == {
        (paper.ALIGNMENT, "on"),
        (paper.LSTM_TYPE, "bidirectional"),
        (paper.ADAPTER, "on"),
        (paper.TOKEN_COUNT, "6"),
    }
    assert len(groups) == 4


def test_errata_agree_with_the_tables():
    assert max(paper.TABLE3, key=lambda row: row.scores["corr"]).method == "MAG-BERT"
    assert min(paper.TABLE3, key=lambda row: row.scores["mae"]).method == "CMPTA (Ours)"
    by_count = [row.scores["f1_weighted"] for row in paper.TABLE6 if row.group == paper.TOKEN_COUNT]
    assert f"{max(by_count) - min(by_count):.2f}" in " ".join(paper.ERRATA)


def test_the_papers_headlines_lie_within_its_ancestors_seed_noise():
    logs = {place: summarise(values) for place, values in paper.ANCESTOR_LOGS.items()}
    (mean, sd), (f1_mean, f1_sd) = logs["SIMS-V2", "mae"], logs["MELD", "f1_weighted"]
    assert f"{mean:.3f} ± {sd:.3f}" in paper.CONTEXT
    assert f"{100 * f1_mean:.2f} ± {100 * f1_sd:.2f}" in paper.CONTEXT
    assert abs(paper.TABLE3[-1].scores["mae"] - mean) < sd
    assert abs(paper.TABLE4[-1].scores["f1_weighted"] - 100 * f1_mean) < 100 * f1_sd
