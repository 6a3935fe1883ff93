"""Notebook 14's rows and tables, from finished runs whose scores are known."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from finished import clips, finish, record_llms, small_studies

from cmpta_lib import metrics
from cmpta_lib.report import mllm
from cmpta_lib.report.rows import save_table
from cmpta_lib.report.tables import Table
from cmpta_lib.runs.store import Run
from cmpta_lib.study import plan
from cmpta_lib.study.plan import GIVEN, NOTHING_TOLD, OMNI, SAID, TEXT_ONLY, TOLD, TUNED, WHOLE, ZERO_SHOT, Row
from cmpta_lib.study.study import Study

OFFLINE = [row for row in mllm.EVERY_ROW if row not in OMNI]
TABLES = ("zero_shot", "two_by_two", "margins", "modalities", "knowledge", "costs")
# Of each row by its place: sims' mean absolute error, and how many of meld's nine test clips are answered rightly.
ERROR = {row.name: (1 + place) / 100 for place, row in enumerate(OFFLINE)}
RIGHT = {row.name: 9 - place % 8 for place, row in enumerate(OFFLINE)}


def known(row: Row, key: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Answers whose score is `row`'s."""

    def change(table: pd.DataFrame) -> pd.DataFrame:
        label = table["label"].to_numpy(float)
        if key == "sims":
            return table.assign(prediction=label + np.where(label > 0, -1, 1) * ERROR[row.name])
        return table.assign(prediction=np.where(np.arange(len(label)) < RIGHT[row.name], label, (label + 1) % 7))

    return change


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Iterator[Study]:
    """Finished runs of all rows but the omni models; nothing may change them."""
    with pytest.MonkeyPatch.context() as patch:
        made = small_studies(record_llms(tmp_path_factory.mktemp("runs")), patch)(seeds=2)
        for key in made.keys:
            for place, row in enumerate(OFFLINE):
                finish(made, key, made.runs(key, row), known(row, key), seconds=place + 0.5, peak_memory_gb=1.25)
        yield made


@pytest.fixture(scope="module")
def tables(study: Study) -> dict[str, Table]:
    return {name: getattr(mllm, f"{name}_table")(study) for name in TABLES}


@pytest.fixture
def own(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A copy of them, to change."""
    shutil.copytree(study.root, tmp_path / "runs")
    return small_studies(tmp_path / "runs", monkeypatch)(seeds=2)


def run_of(study: Study, key: str, row: Row) -> Run:
    return study.runs(key, row)[0]


def unmake(study: Study, key: str, row: Row) -> None:
    for run in study.runs(key, row):
        shutil.rmtree(run.folder)


def score(study: Study, key: str, row: Row) -> str:
    """What a table must show for `row`, from the metrics of its records."""
    table = run_of(study, key, row).predictions()
    if key == "sims":
        return f"{metrics.regression_metrics(table['label'], table['prediction'])['mae']:.3f} ± 0.000"
    labels = study.corpus(key).task.labels
    found = metrics.classification_metrics(table["label"], table["prediction"].astype(int), labels)
    return f"{100 * found['f1_weighted']:.2f} ± 0.00"


def of_sims(table: Table, *words: str) -> pd.DataFrame:
    return table.full[table.full["corpus"] == "embedded-sims"].set_index(list(words))


def test_rows_are_few_and_no_two_are_one_run(study: Study):
    tuned = [row for row in OFFLINE if row.method == "mllm_mac" and "method.sft" not in row.changes]
    assert len(tuned) == 7 and len(OFFLINE) - len(tuned) == 10 + 1, "text only is Table 3's"
    for key in study.keys:
        assert len({run_of(study, key, row).config.hash for row in OFFLINE}) == len(OFFLINE)
    assert not set(WHOLE.changes) and WHOLE in plan.every_row("sims", "mllm_mac")
    counted = plan.planned(plan.chosen(["14_mllm_mac"]), ("sims", "meld"), False, (1, 2))
    assert all(sum(one.row == row for one in counted) == 2 for row in OMNI), "one run a corpus: no seed matters to them"
    assert {one.row.name for one in counted} == {row.name for row in mllm.EVERY_ROW}


def test_a_row_is_what_its_name_says(study: Study):
    def fields(row: Row) -> tuple[object, ...]:
        method = run_of(study, "sims", row).config.method.model_dump()
        return tuple(method[name] for name in ("modalities", "knowledge", "shuffled", "integration", "sft", "decoding"))

    for training, rows in GIVEN.items():
        for given, row in rows.items():
            assert fields(row) == (given, "none", False, "concat", training == TUNED, "trie")
    kinds = {
        NOTHING_TOLD: ("none", False, "concat"),
        plan.FROM_FRAMES: ("features", False, "concat"),
        SAID: ("generated", False, "concat"),
        plan.SUREST: ("generated", False, "max_conf"),
        plan.OF_ANOTHER: ("generated", True, "concat"),
        plan.CUE: ("cue", False, "concat"),
        plan.CUE_OF_ANOTHER: ("cue", True, "concat"),
    }
    for training, rows in TOLD.items():
        for told, row in rows.items():
            assert fields(row) == ("TAV", *kinds[told], training == TUNED, "trie")
    assert TOLD[TUNED][SAID] is WHOLE and fields(plan.FREE) == ("TAV", "none", False, "concat", False, "free")


def test_words_alone_zero_shot_are_the_frozen_llm_itself(tools, corpora):
    """So that row of the table needs no run of its own."""
    from cmpta_lib import registry
    from cmpta_lib.config import DataConfig, RunConfig
    from cmpta_lib.data.corpus import Inputs

    for corpus in corpora.values():
        answers = []
        for method in ({"name": "text_only"}, {"name": "mllm_mac", "modalities": "T", "knowledge": "none", "sft": False}):
            config = RunConfig(data=DataConfig(name="a", fingerprint="b"), method=method)
            made = registry.build(config, Inputs.of(corpus), tools)
            made.module.eval()
            answers.append(made.predict(made.collate([*corpus.splits["test"]])))
        assert answers[0].replies == answers[1].replies
        np.testing.assert_array_equal(answers[0].probabilities, answers[1].probabilities)


def test_every_model_has_its_scores_under_its_corpus(study: Study, tables):
    table = tables["zero_shot"]
    heads = ["embedded-sims MAE", "embedded-sims 95 % CI", "embedded-meld WF1 (%)", "embedded-meld 95 % CI"]
    assert list(table.short.columns) == ["model", *heads]
    for place, row in enumerate((TEXT_ONLY, TOLD[ZERO_SHOT][NOTHING_TOLD])):
        assert table.short.iloc[place, [1, 3]].tolist() == [score(study, key, row) for key in ("sims", "meld")]
    assert table.short.iloc[0, 1] != table.short.iloc[1, 1]
    omni = table.short.iloc[2:]
    assert list(omni["model"]) == [row.name for row in OMNI] and set(omni["embedded-sims MAE"]) == {"not run"}
    assert len(table.notes) == 3 and all("recordings" in note and OMNI[0].name in note for note in table.notes)
    assert "cmpta weights Qwen/Qwen2.5-Omni-3B" in table.notes[-1] and "CMPTA_MEDIA" in table.notes[-1], "how to run them"


def test_the_four_scores_stand_where_they_belong(study: Study, tables):
    full = tables["two_by_two"].full.set_index(["corpus", "knowledge", "training"])["score"]
    for key in study.keys:
        for told in (NOTHING_TOLD, SAID):
            for training in (ZERO_SHOT, TUNED):
                assert full[f"embedded-{key}", told, training] == score(study, key, TOLD[training][told])


def test_margins_are_the_first_minus_the_second_with_their_interval(tables):
    table = tables["margins"]
    lines = of_sims(table, "margin")
    assert len(lines) == 5 and list(table.short.columns) == ["corpus", "margin", "difference", "p"]
    for name, (more, less) in mllm.MARGINS.items():
        wanted, line = f"{ERROR[more.name] - ERROR[less.name]:+.3f}", lines.loc[name]
        assert line["difference"] == wanted and line["difference, 95 % CI"] == f"[{wanted}, {wanted}]", "all clips differ alike"
        assert 0 < float(line["difference, p"]) < 0.01
    wanted = ERROR["TAV, fine-tuned"] - ERROR["TAV, zero-shot"]
    assert float(lines.loc["fine-tuning alone", "difference"]) == pytest.approx(wanted, abs=1e-9)
    meld = table.full[table.full["corpus"] == "embedded-meld"].set_index("margin")["difference"]
    worse = RIGHT["statement: said by the model, zero-shot"] < RIGHT["TAV, zero-shot"]
    assert (float(meld["knowledge alone"]) < 0) == worse, "percentage points of WF1, so above 0 is better"
    assert table.short["difference"].str.contains(" [", regex=False).all(), "with its interval"


def test_each_set_of_modalities_is_compared_with_words_alone(study: Study, tables):
    assert list(tables["modalities"].full["given"]) == ["T", "TA", "TV", "TAV"] * 4
    sims = of_sims(tables["modalities"], "training", "given")
    assert sims.loc[(ZERO_SHOT, "T"), "score"] == score(study, "sims", TEXT_ONLY)
    assert sims.loc[(ZERO_SHOT, "T"), "minus T"] == sims.loc[(TUNED, "T"), "minus T"] == "—"
    for training, base in ((ZERO_SHOT, TEXT_ONLY), (TUNED, GIVEN[TUNED]["T"])):
        for given in ("TA", "TV", "TAV"):
            row = GIVEN[training][given]
            assert sims.loc[(training, given), "score"] == score(study, "sims", row)
            assert sims.loc[(training, given), "minus T"] == f"{ERROR[row.name] - ERROR[base.name]:+.3f}"


def test_each_statement_is_compared_with_none_and_with_that_of_another_clip(tables):
    table = tables["knowledge"]
    sims = of_sims(table, "training", "statement")
    control = {plan.FROM_FRAMES: plan.OF_ANOTHER, SAID: plan.OF_ANOTHER, plan.CUE: plan.CUE_OF_ANOTHER}
    for (training, told), line in sims.iterrows():
        error = ERROR[TOLD[training][told].name]
        none, other = (TOLD[training].get(name) for name in (NOTHING_TOLD, control.get(told)))
        assert line["minus none"] == ("—" if told == NOTHING_TOLD else f"{error - ERROR[none.name]:+.3f}")
        assert line["minus another clip's"] == (f"{error - ERROR[other.name]:+.3f}" if other else "—")
    assert {told for training, told in sims.index if training == TUNED} == {NOTHING_TOLD, SAID, plan.OF_ANOTHER, plan.CUE}
    assert (sims["minus another clip's"] != "—").sum() == 4
    assert table.details is not None and "95 % CI" in table.details.full and "95 % CI" not in table.short, "else too wide a table"


def test_a_caption_says_what_the_numbers_are(study: Study):
    said = mllm.caption(study, "What.", has_differences=True)
    assert said.startswith("What. Test split, mean ± sample sd over 2 seeds; 95 % CI") and "below 0 is better in MAE" in said
    assert "seed 1111" in mllm.caption(Study(seeds=1), "What.") and "Differences" not in mllm.caption(study, "What.")


def test_a_missing_run_costs_its_cells_and_says_what_to_do(own: Study):
    unmake(own, "sims", TOLD[ZERO_SHOT][plan.OF_ANOTHER])
    unmake(own, "sims", TOLD[TUNED][NOTHING_TOLD])
    table = mllm.knowledge_table(own)
    sims = of_sims(table, "training", "statement").loc[ZERO_SHOT]
    assert sims.loc[plan.OF_ANOTHER, "score"] == sims.loc[plan.OF_ANOTHER, "minus none"] == "not run"
    assert sims.loc[SAID, "minus another clip's"] == "not run" and sims.loc[SAID, "score"] != "not run"
    assert sims.loc[plan.CUE, "minus another clip's"] != "not run", "its control is another row"
    first, second = table.notes
    assert "of another clip" in first and "fine-tuned, none: " in second
    assert all("call again" in note and "embedded-meld" not in note for note in table.notes)
    margins = mllm.margins_table(own)
    missing = margins.full[margins.full["difference"] == "not run"]
    assert set(missing["margin"]) == {"fine-tuning alone", "both, against fine-tuning alone"}
    assert set(missing["corpus"]) == {"embedded-sims"}
    (note,) = margins.notes
    assert note.startswith("embedded-sims, fine-tuning alone: ") and "call again" in note


def test_where_nothing_was_run_every_table_says_so(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(study.cache, tmp_path / "runs" / "cache")
    nobody = small_studies(tmp_path / "runs", monkeypatch)(seeds=1)
    for table in (mllm.zero_shot_table, mllm.two_by_two_table, mllm.modalities_table, mllm.knowledge_table):
        assert set(table(nobody).full["score"]) == {"not run"} and table(nobody).notes
    assert set(mllm.margins_table(nobody).full["difference"]) == {"not run"}
    assert set(mllm.costs_table(nobody).full["trained"]) == {"not run"}


def test_costs_are_those_of_the_settings_and_of_the_replies(own: Study):
    two = lambda table: table.assign(prediction=table["prediction"].where(np.arange(len(table)) > 1))  # noqa: E731
    finish(own, "sims", own.runs("sims", plan.FREE), two)
    table = mllm.costs_table(own)
    costs = table.full
    assert 2 * 7 == len(table.short) == len(costs) - len(table.details.full) and WHOLE.name in set(table.short["row"])
    sims = costs[costs["corpus"] == "embedded-sims"].set_index("row")
    assert sims.loc[[plan.FREE.name, "text only"], "unparsable replies"].tolist() == ["4 of 18", "0 of 18"]
    whole, said = run_of(own, "sims", WHOLE).config.method, TOLD[ZERO_SHOT][plan.SUREST].name
    assert sims.loc["MLLM-MAC", "trained"] == "LoRA" and sims.loc["TAV, zero-shot", "trained"] == "perception"
    assert sims.loc["MLLM-MAC", "parameters"] == "1,234" and sims.loc["text only", "parameters"] == "—"
    assert sims.loc["MLLM-MAC", "statements"] == str(whole.statements)
    assert sims.loc["MLLM-MAC", "tokens said"] == str(whole.statements * whole.max_new_tokens)
    assert sims.loc[said, "readings"] == str(1 + whole.statements) and sims.loc["MLLM-MAC", "readings"] == "1"
    assert (sims.loc[TOLD[ZERO_SHOT][plan.OF_ANOTHER].name, ["statements", "tokens said"]] == ["1", "0"]).all()
    assert not [row.name for row in OMNI if row.name in sims.index], "what they wait for stands below the first table"


def test_seconds_and_memory_are_not_exported(tables):
    for table in tables.values():
        frame = table.full
        assert not [column for column in frame if re.search("second|memory| s$", column)]
        assert "a machine" not in frame.to_string()


def test_exports_are_complete(study: Study, tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CMPTA_FIGURES", str(tmp_path))
    names = [f"mllm_{name}" for name in TABLES]
    assert list(plan.chosen(["14_mllm_mac"])[0].tables) == names
    for name, table in tables.items():
        save_table(study, table, f"mllm_{name}", "Caption.", study.keys)
    assert all((study.figures / f"{name}.{kind}").exists() for name in names for kind in ("csv", "md", "tex"))
    frame = pd.read_csv(study.figures / "mllm_margins.csv")
    assert {"corpus", "metric", "margin", "difference", "difference, 95 % CI", "difference, p"} <= set(frame.columns)


def test_rows_that_tell_the_cue_wait_for_generated_clips(study: Study, tmp_path: Path):
    told = [row for row in OFFLINE if row.changes.get("method.knowledge") == "cue"]
    assert len(told) == 3 and not any(study.missing(row, key) for row in told for key in study.keys)
    mine = Study(data=str(clips(lambda number: ("angry", "calm")[number % 2], (6, 4, 5), tmp_path)), seeds=1)
    assert all("generator" in mine.missing(row, "data") for row in told) and not mine.missing(WHOLE, "data")
    assert not {row.name for row in told} & {name for name, _ in mine.planned_runs(["14_mllm_mac"])}
    assert "generator" in " ".join(mllm.knowledge_table(mine).notes)
