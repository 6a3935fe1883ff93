"""Runs of a table are damaged, failed or were never made: their lines say so, and everything else stands."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from finished import clips, finish, finish_tables, record_llms, small_studies

from cmpta_lib import paper
from cmpta_lib.config import to_json
from cmpta_lib.report import claims, comparison, gather, summaries
from cmpta_lib.report import judge as ledger
from cmpta_lib.report import rows as reports
from cmpta_lib.report.tables import NOT_RUN, NOTHING, result_table
from cmpta_lib.runs import store
from cmpta_lib.runs.engines import KEEP_FAILED, RunsFailed
from cmpta_lib.runs.store import Run
from cmpta_lib.study import plan
from cmpta_lib.study.plan import CMPTA, TEXT_ONLY, Row
from cmpta_lib.study.study import Study

TOKENS = plan.ABLATIONS[paper.TOKEN_COUNT, "7"]


def damage(run: Run) -> None:
    path = run.folder / store.PREDICTIONS
    table = pd.read_parquet(path)
    table.assign(prediction=table["label"]).to_parquet(path, index=False)


def unmake(run: Run) -> None:
    for path in run.folder.iterdir():
        path.unlink()


def fail(run: Run, message: str = "the GPU's memory\nis full") -> None:
    unmake(run)
    (run.folder / store.CONFIG).write_text(to_json(run.config))
    store.record_failure(run.folder, {"kind": "RuntimeError", "message": message, "traceback": "", "log": ""})


# What happened to a run -> how, and what its line says of file and remedy.
FATES: dict[str, tuple[Callable[[Run], None], str]] = {
    "damaged": (damage, "{0}/predictions.parquet is not the file that was written .*; remove the folder {0} and call again"),
    "failed": (fail, "failed, RuntimeError: the GPU's memory is full; see {0}/failure.json, and call again once it is mended"),
    "missing": (unmake, "{0} is not finished; call again, or make it with Study.ensure"),
}
every_fate = pytest.mark.parametrize("fate", FATES)
of_a_row = pytest.mark.parametrize(
    ("fate", "row"), [*((fate, CMPTA) for fate in FATES), ("missing", TEXT_ONLY)], ids=lambda part: getattr(part, "name", part)
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with two seeds of every run, finished."""
    with pytest.MonkeyPatch.context() as patch:
        made = small_studies(record_llms(tmp_path_factory.mktemp("whole")), patch)(seeds=2)
        finish_tables(made)
        finish(made, "sims", made.choice_runs()[1:])
        return made.root


@pytest.fixture
def study(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A copy of them."""
    return small_studies(shutil.copytree(whole, tmp_path / "runs"), monkeypatch)(seeds=2)


def test_clips_without_words_cost_cmpta_its_rows_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """CMPTA is refused with a reason: tables, claims and report are made without it and say why."""
    voices = clips(lambda number: ("calm", "loud")[number % 2], (6, 4, 6), tmp_path, has_face=False, said="")
    study, said = small_studies(record_llms(tmp_path), monkeypatch)(data=voices, seeds=2), "no clip of 'voices' has words"
    finish(study, "data", study.runs("data", TEXT_ONLY))
    runs, why = reports.first_runs(study, "data", TEXT_ONLY, CMPTA)
    assert not runs and why.startswith(said) and reports.result_row(study, "data", TEXT_ONLY).ran
    assert not study.choice_runs() and not summaries.histories(study, "data")
    training, register = summaries.training_table(study, ["data"]), summaries.register_table(study)
    assert len(training) == 1 and len(register) == 1 + len(plan.CHOICES)
    assert all(table["note"].str.startswith(said).all() for table in (training, register))
    assert summaries.table2(study)["this run"].str.startswith(f"{NOT_RUN}: {said}").all()
    assert len(summaries.table2_parameters(study).columns) == 3, "the paper's sizes alone"
    judged = claims.judge_all(study)
    assert set(judged[claims.HERE]) == {NOT_RUN, "supported", ledger.NOT_TESTABLE}
    figures = " ".join(judged["figures of this run"])
    assert said in figures and "train ...; `cmpta" not in figures, "no call runs what is refused"
    text = gather.write_report(study, ["data"]).read_text(encoding="utf-8").replace("\\", "")
    assert f"fig1_architecture.png, fig2_adapter.png: not made: {said}" in text


def strike(study: Study, fate: str, row: Row, *seeds: int) -> str:
    """Let it happen to these seeds' runs of a row (default: the second's); returns what is said of the first, as a pattern."""
    runs = [run for run in study.runs("sims", row) if run.config.seed in (seeds or (2222,))]
    for run in runs:
        FATES[fate][0](run)
    said = FATES[fate][1].format(f"runs/{runs[0].folder.name}")
    return f"seed {runs[0].config.seed}: {said}(; or restore the file)?$"


def shown(table: pd.DataFrame) -> dict[str, str]:
    return dict(zip(table["method"], table["MAE this run"], strict=True))


@of_a_row
def test_the_comparison_has_all_its_lines(fate: str, row: Row, study: Study):
    before = shown(result_table(comparison.comparison_rows(study, "sims"), ["mae"]).full)
    said = "^" + strike(study, fate, row, *study.seeds)
    rows = comparison.comparison_rows(study, "sims")
    table = result_table(rows, ["mae", "corr"]).full
    (struck,) = (line for line in rows if line.method == row.name)
    assert struck.predictions is None
    assert shown(table) == before | {struck.method: NOT_RUN}
    assert pd.Series([struck.note]).str.match(said).all(), struck.note
    assert struck.note in list(table["note"])
    paired = comparison.paired_table(study, "sims", rows)
    assert list(paired["metric"]) == ["MAE", "Corr"] * (len(rows) - 1)
    its_own = paired["comparison"].str.contains(struck.method, regex=False)  # CMPTA's are all
    assert (paired["difference"] == NOT_RUN).tolist() == its_own.tolist() and its_own.any()
    assert reports.provenance(study, ["sims"], study.runs("sims", row)).runs == ()


@of_a_row
def test_a_row_shows_the_seeds_that_it_has_and_says_how_many(fate: str, row: Row, study: Study):
    """An interrupted study, or one in which a seed failed: its tables grow, and no reader takes one seed for two."""
    before = reports.result_row(study, "sims", row)
    said = strike(study, fate, row)
    (struck,) = (line for line in comparison.comparison_rows(study, "sims") if line.method == row.name)
    np.testing.assert_array_equal(struck.predictions, before.predictions[:1])
    reason = "" if fate == "missing" else f"; {said.removesuffix('$')}"
    assert re.fullmatch(f"1 of 2 seeds so far{reason}", struck.note), struck.note
    table = result_table([struck, before], ["mae"])
    here, whole = table.full["MAE this run"]
    assert here.endswith("(n=1 of 2)") and "\N{PLUS-MINUS SIGN}" not in here and whole.endswith("(n=2)")
    assert any(note.startswith(f"{row.name}: 1 of 2 seeds so far") for note in table.notes)
    found = ledger.Evidence(study).better("sims", "mae", CMPTA, TEXT_ONLY)
    assert found.verdict.startswith(ledger.ONE_SEED) and f"; {row.name}: 1 of 2 seeds" in found.figures
    number = ledger.Evidence(study).number("sims", "mae", 0.3)
    assert number.figures.endswith("; 1 of 2 seeds") == (row == CMPTA)


def test_rows_that_wait_for_the_same_seeds_say_so_once_and_a_long_reason_stays_one_cell(study: Study):
    rows = (CMPTA, TEXT_ONLY, TOKENS)
    for row in rows:
        strike(study, "missing", row)
    notes = result_table([reports.result_row(study, "sims", row) for row in rows], ["mae"]).notes
    assert notes[-1] == "CMPTA, text only, 7 tokens: 1 of 2 seeds so far."
    for run in study.runs("sims"):
        fail(run, "word " * 1000)
    assert len(reports.result_row(study, "sims", CMPTA).note) < 450


def test_the_first_seed_alone_decides_what_is_judged_by_it(study: Study):
    unmake(study.runs("meld")[1])
    assert ledger.Evidence(study).sarcasm("meld").verdict != NOT_RUN
    unmake(study.runs("meld")[0])
    found = ledger.Evidence(study).sarcasm("meld")
    assert found.verdict == NOT_RUN and "seed 1111" in found.figures and "cmpta reproduce" in found.figures


def test_the_ablation_and_its_figure_stand(study: Study):
    """Without the lines of a run that is lost: the full method's are four."""
    from cmpta_lib.figures.curves import scores_figure

    whole = reports.scores_frame(reports.ablation_rows(study, "sims"), "mae")
    strike(study, "damaged", TOKENS, *study.seeds)
    frame = reports.scores_frame(reports.ablation_rows(study, "sims"), "mae")
    pd.testing.assert_frame_equal(frame, whole[whole["method"] != "7"].reset_index(drop=True))
    strike(study, "missing", CMPTA, *study.seeds)
    rows = reports.ablation_rows(study, "sims")
    lost = {(paper.ALIGNMENT, "on"), (paper.LSTM_TYPE, "bidirectional"), (paper.ADAPTER, "on"), (paper.TOKEN_COUNT, "6")}
    assert {(line.group, line.method) for line in rows if not line.ran} == lost | {(paper.TOKEN_COUNT, "7")}
    assert scores_figure({"mae": reports.scores_frame(rows, "mae")}).axes


@every_fate
def test_the_training_table_and_curves_stand(fate: str, study: Study):
    said = strike(study, fate, CMPTA)
    table = summaries.training_table(study, study.keys)
    assert list(table["seed"]) == [1111, 2222, 1111, 2222] and (table["test"] == NOTHING).sum() == 1
    assert table["note"].str.match(f"^{said}").tolist() == [False, True, False, False]
    assert list(summaries.histories(study, "sims")) == ["1111"] and len(summaries.histories(study, "meld")) == 2


@pytest.mark.parametrize(("fate", "place"), [("missing", 2), ("damaged", 2), ("failed", 0)])
def test_the_register_stands(fate: str, place: int, study: Study):
    """All its other lines; without the default nothing is compared with it."""
    before = summaries.register_table(study)
    FATES[fate][0](study.runs("sims", plan.CHOICES[place - 1] if place else CMPTA)[0])
    after = summaries.register_table(study)
    assert after["note"].str.startswith("seed 1111: ").tolist() == [line == place for line in range(len(after))]
    if place:
        pd.testing.assert_frame_equal(after.drop(2).drop(columns="note"), before.drop(2), check_dtype=False)
    else:
        assert list(after["MAE"][1:]) == list(before["MAE"][1:]) and set(after["MAE minus default"]) == {NOTHING}


# --- a notebook's way through -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", ["damaged", "failed"])
def test_making_goes_on_and_the_end_does_not(fate: str, study: Study, monkeypatch: pytest.MonkeyPatch, capsys):
    study.make(study.needed("04_table3_simsv2"))
    study.conclude()
    assert capsys.readouterr().err == "", "nothing is missing where nothing is"
    monkeypatch.setenv(KEEP_FAILED, "1")  # as `cmpta reproduce` says, whose runs have been tried
    strike(study, fate, CMPTA)
    runs = study.needed("04_table3_simsv2")
    assert study.make(runs) is runs and study.make(study.runs("sims")) == study.runs("sims")
    name = study.runs("sims")[1].folder.name
    said = f"1 of {len(runs)} runs failed, {len(runs) - 1} are finished: {name}: "
    assert capsys.readouterr().err.count(said) == 1
    with pytest.raises(RunsFailed, match=f"^{said}") as caught:
        study.conclude()
    assert len(caught.value.failures) == 1, "asked for twice, failed once"
