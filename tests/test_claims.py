"""The claims table: every printed line is claimed, every rule gives each of its verdicts, and nothing is overclaimed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from finished import clips as clips_of_ones_own
from finished import finish, record_llms, small_studies

from cmpta_lib import paper
from cmpta_lib.embedded import synthetic
from cmpta_lib.figures import clips
from cmpta_lib.metrics import METRICS
from cmpta_lib.report import claims, judge
from cmpta_lib.report.claims import HERE, VERDICT
from cmpta_lib.report.judge import INSIDE_CLIPS, INSIDE_SEEDS, NOT_SUPPORTED, NOT_TESTABLE, ONE_SEED, SUPPORTED
from cmpta_lib.report.tables import NOT_RUN
from cmpta_lib.study import plan, trained
from cmpta_lib.study.plan import CMPTA, TEXT_ONLY
from cmpta_lib.study.study import Study

SIX = [plan.ABLATIONS[paper.TOKEN_COUNT, number] for number in ("5", "7", "8")]


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Study]:
    """Studies with 400 test clips and no runs."""
    found = small_studies(record_llms(tmp_path), monkeypatch)
    monkeypatch.setattr(synthetic, "SPLIT_SIZES", {"train": 6, "valid": 4, "test": 400})
    return found


def off_by(error: float, seed: int = 0) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Scores that miss the label by about this much."""

    def change(table: pd.DataFrame) -> pd.DataFrame:
        noise = np.random.default_rng([seed, len(table)]).normal(0, error, len(table))
        return table.assign(prediction=np.clip(table["label"] + noise, -1, 1))

    return change


def right(share: float, seed: int = 0) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Classes of which this share is right."""

    def change(table: pd.DataFrame) -> pd.DataFrame:
        wrong = np.random.default_rng([seed, len(table)]).random(len(table)) >= share
        return table.assign(prediction=((table["label"] + wrong) % 7).astype(float))

    return change


def finished(study: Study, key: str, row: plan.Row, *changes: Callable) -> None:
    for run, change in zip(study.runs(key, row), changes, strict=True):
        finish(study, key, [run], change)


def better(study: Study, key: str = "sims", metric: str = "mae") -> judge.Finding:
    return judge.Evidence(study).better(key, metric, CMPTA, TEXT_ONLY)


# --- the table covers the paper --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "names"), [("sims", ("TABLE3", "TABLE5")), ("meld", ("TABLE4", "TABLE6"))])
def test_every_printed_line_of_tables_3_to_6_is_claimed(wanted: str, names: tuple[str, str]):
    """Each score of another line is set against the full method's once, and that one is a claim of its own."""
    full = getattr(paper, names[0])[-1].scores
    said = [one.claim.says for one in claims.claims() if one.claim.corpora == (wanted,)]
    for name in names:
        scores = [(METRICS[metric], value) for line in getattr(paper, name) for metric, value in line.scores.items()]
        others = [(metric, value) for metric, value in scores if value != full[metric.name]]
        pair = "(CMPTA {} against {})" if name == names[0] else "{}, then {})"
        for metric, value in others:
            shown = pair.format(metric.shown(full[metric.name]), metric.shown(value))
            assert sum(metric.label.split()[0] in text and shown in text for text in said) == others.count((metric, value))
    numbers = {one.claim.says for one in claims.claims() if one.rule == judge.NUMBER and one.claim.corpora == (wanted,)}
    assert all(any(METRICS[metric].shown(value) in text for text in numbers) for metric, value in full.items())
    assert len(numbers) == len(full)


def test_claims_have_ids_of_their_own_and_stand_in_the_papers_order():
    every = claims.claims()
    ids = [one.claim.id for one in every]
    assert len(ids) == len(set(ids)) and {claim.id for claim in paper.CLAIMS} <= set(ids)
    sections = [one.claim.section.split(",")[0] for one in every]
    assert sections == sorted(sections, key=claims._ORDER.index) and sections[0] == "abstract" and sections[-1] == "5"
    assert all(one.rule and one.claim.says.endswith(".") for one in every)


def test_the_papers_own_words_are_the_papers():
    text = Path(__file__).parents[2] / "shared" / "paper" / "cmpta.txt"
    if not text.exists():
        pytest.skip("the paper's text is not here")
    whole = "".join(text.read_text(encoding="utf-8").split())
    for one in claims.claims():
        assert "".join(one.claim.original.split()) in whole, one.claim.id


def test_a_printed_order_against_cmpta_is_claimed_as_printed():
    says = {one.claim.id: one.claim.says for one in claims.claims()}
    assert says["sims-mag-bert-corr"] == "MAG-BERT is better than CMPTA in Corr (CMPTA 0.686 against 0.691)."
    assert says["sims-mag-bert-mae"] == "CMPTA is better than MAG-BERT in MAE (CMPTA 0.308 against 0.334)."
    assert says["meld-5-tokens"] == "5 tokens, too few, are worse than 6 (WF1 59.49, then 54.20)."


def test_the_notebook_asks_for_no_run_that_others_do_not_need(studies):
    study = studies(seeds=2)
    (own,) = plan.chosen(["10_claims"])
    others = [notebook.name for notebook in plan.NOTEBOOKS if not notebook.is_beyond and notebook != own]
    assert {one.folder for one in study.needed(own.name)} <= {run.folder for _, run in study.planned_runs(others)}


# --- BETTER -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("full", "other", "expected"),
    [
        ((0.1, 0.11), (0.5, 0.52), SUPPORTED),
        ((0.5, 0.52), (0.1, 0.11), NOT_SUPPORTED),
        ((0.1, 0.6), (0.4, 0.41), INSIDE_SEEDS),
        ((0.1,), (0.3,), ONE_SEED + SUPPORTED),
        ((0.301,), (0.3,), ONE_SEED + INSIDE_CLIPS),
        ((0.8,), (0.3,), ONE_SEED + NOT_SUPPORTED),
    ],
)
def test_a_difference_must_clear_the_clips_and_the_seeds(studies, full, other, expected):
    study = studies(seeds=len(full))
    finished(study, "sims", CMPTA, *(off_by(error, seed) for seed, error in enumerate(full, start=1)))
    finished(study, "sims", TEXT_ONLY, *(off_by(error, seed) for seed, error in enumerate(other, start=6)))
    found = better(study)
    assert found.verdict == expected and found.figures.startswith("CMPTA minus text only: MAE ")
    known = "seeds' sd " if len(full) > 1 else "seeds' spread unknown"
    assert known in found.figures and ("seeds' sd 0.0" in found.figures or len(full) == 1 or expected == INSIDE_SEEDS)


def test_seeds_alike_leave_the_noise_to_the_clips(studies):
    study = studies(seeds=2)
    finished(study, "sims", CMPTA, off_by(0.3), off_by(0.3))
    finished(study, "sims", TEXT_ONLY, off_by(0.3, 9), off_by(0.3, 9))
    assert better(study).verdict == INSIDE_CLIPS


def test_more_f1_is_better_and_more_error_is_not(studies):
    study = studies(seeds=2)
    for row, (one, other) in ((CMPTA, (0.9, 0.89)), (TEXT_ONLY, (0.5, 0.51))):
        finished(study, "meld", row, right(one, 1), right(other, 2))
    assert better(study, "meld", "f1_weighted").verdict == SUPPORTED


@pytest.mark.parametrize("row", [CMPTA, judge.NO_DROPOUT], ids=lambda row: row.name)
def test_a_missing_row_is_not_run_and_names_the_notebook_that_runs_it(studies, row):
    study = studies(seeds=[3333, 4444], changes={"training.epochs": 3})
    finish(study, "sims", study.runs("sims", TEXT_ONLY) + (study.runs("sims") if row != CMPTA else []))
    found = judge.Evidence(study).dropout("sims") if row != CMPTA else better(study)
    assert found.verdict == NOT_RUN and found.figures.startswith(f"{row.name} on embedded-sims: seed 3333: ")
    named = re.search("`cmpta reproduce --only (.*?)`, with this study's options", found.figures)[1]
    runs = study.runs("sims", row)[: 1 if row != CMPTA else None]
    assert {run.folder for run in runs} <= {run.folder for _, run in study.planned_runs([named])}


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ((SUPPORTED, SUPPORTED), SUPPORTED),
        ((SUPPORTED, INSIDE_CLIPS), INSIDE_CLIPS),
        ((INSIDE_CLIPS, INSIDE_SEEDS), INSIDE_SEEDS),
        ((SUPPORTED, NOT_RUN, INSIDE_SEEDS), NOT_RUN),
        ((NOT_RUN, NOT_SUPPORTED), NOT_SUPPORTED),
        ((ONE_SEED + SUPPORTED, ONE_SEED + NOT_SUPPORTED), ONE_SEED + NOT_SUPPORTED),
        ((ONE_SEED + SUPPORTED, NOT_RUN), NOT_RUN),
    ],
)
def test_a_claim_about_several_rows_needs_all_of_them(verdicts, expected):
    found = judge.together([judge.Finding(verdict, verdict) for verdict in verdicts])
    assert found.verdict == expected
    assert found.decides.removeprefix(ONE_SEED).startswith(expected.removeprefix(ONE_SEED)) and "(one of" in found.decides


# --- the other rules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("printed", "expected"), [(0.0, SUPPORTED), (0.05, SUPPORTED), (0.3, NOT_SUPPORTED)])
def test_a_printed_number_agrees_within_clips_and_seeds(studies, printed, expected):
    study = studies(seeds=2)
    finished(study, "sims", CMPTA, off_by(0.2, 1), off_by(0.3, 2))
    mean = np.mean([np.abs(t["prediction"] - t["label"]).mean() for t in (run.predictions() for run in study.runs("sims"))])
    assert judge.Evidence(study).number("sims", "mae", mean + printed).verdict == expected


@pytest.mark.parametrize(("error", "expected"), [(0.2, SUPPORTED), (0.21, INSIDE_CLIPS), (0.6, NOT_SUPPORTED)])
def test_token_counts_differ_little_only_where_the_interval_says_so(studies, error, expected):
    study = studies(seeds=2)
    finished(study, "sims", CMPTA, off_by(0.2), off_by(0.2))
    for row in SIX:
        finished(study, "sims", row, off_by(error), off_by(error))
    found = judge.Evidence(study).little("sims", dict(zip("578", SIX, strict=True)))
    assert found.verdict == expected and found.figures.count("limit ±") == 3


def joyful(first: int, count: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Right answers, but joy on `count` clips of disgust or anger from the `first` such on."""

    def change(table: pd.DataFrame) -> pd.DataFrame:
        said = table["label"].astype(float)
        said.iloc[np.flatnonzero(table["label"].isin([5, 6]))[first : first + count]] = paper.MELD_LABELS.index("joy")
        return table.assign(prediction=said)

    return change


@pytest.mark.parametrize(
    ("mended", "spoilt", "expected"), [(12, 1, SUPPORTED), (1, 12, NOT_SUPPORTED), (4, 2, INSIDE_CLIPS), (0, 0, INSIDE_CLIPS)]
)
def test_sarcasm_is_judged_by_clips_mended_and_spoilt(studies, mended, spoilt, expected):
    study = studies(seeds=1)
    finished(study, "meld", CMPTA, joyful(0, spoilt))
    finished(study, "meld", TEXT_ONLY, joyful(spoilt, mended))
    found = judge.Evidence(study).sarcasm("meld")
    assert found.verdict == ONE_SEED + expected
    assert found.figures.startswith(f"{mended} clips mended, {spoilt} the reverse")


@pytest.mark.parametrize(("gain", "expected"), [(0.3, SUPPORTED), (-0.05, NOT_SUPPORTED), (0.0, INSIDE_CLIPS)])
def test_attention_must_lie_on_the_cues_of_both(studies, monkeypatch, gain, expected):
    study = studies(seeds=1)
    finished(study, "sims", CMPTA, off_by(0.1))
    noise = np.random.default_rng(0).normal(0, 0.02, 50)
    noise -= noise.mean()
    uniform = np.full(50, 0.2)
    shares = {"vision": np.stack([0.5 + noise, uniform], 1), "audio": np.stack([0.2 + gain + noise, uniform], 1)}
    monkeypatch.setattr(trained, "load", lambda folder: folder)
    monkeypatch.setattr(clips, "shares_on_cues", lambda *about: shares)
    found = judge.Evidence(study).cues("sims")
    assert found.verdict == ONE_SEED + expected
    assert "vision: 50.0 % of attention on the cue, uniform 20.0 %, 50 clips" in found.figures


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge.Evidence, "cues", lambda self, key: judge.Finding(SUPPORTED, "cues"))


def test_generated_data_say_nothing_about_the_paper(studies, without_models):
    study = studies(seeds=2)
    finished(study, "sims", CMPTA, off_by(0.1, 1), off_by(0.11, 2))
    finished(study, "sims", TEXT_ONLY, off_by(0.5, 3), off_by(0.52, 4))
    table = claims.judge_all(study).set_index("claim")
    about = table[table["tried on"] != "the method itself"]
    assert set(about[VERDICT]) == {NOT_TESTABLE} and len(about) > 40
    assert about["tried on"].str.contains("embedded-[a-z]+ .generated.").all()
    assert table.loc["attention-sims", HERE] == SUPPORTED
    assert table.loc["mae-sims", HERE] == "—", "0.308 is no number of a generated corpus"
    assert table.loc["tokens-help-sims", HERE] == NOT_RUN
    assert "soft prompt" in table.loc["tokens-help-sims", "figures of this run"]
    assert table.loc["modalities", HERE] == NOT_RUN and judge.BETTER in table.loc["modalities", "rule"]
    assert "embedded-sims is generated and says nothing about the paper; embedded-meld is generated" in claims.caption(study)
    read = claims.as_table(table.reset_index())
    assert all(read.short["rule"].isin(claims.RULES)) and "sims-lmf-mae" in [*read.full["claim"]] and len(read.full.columns) == 8
    assert not any(read.short["the paper says"].str.contains("[一-龥]")) and any(read.details.short["in its own words"] != "—")
    assert claims.summary(table).short["claims"].str.match("[🟩🟥🟨🟧⬜⬛] [a-z ]+$").all()
    assert table.loc[["llm-untouched", "padding", "compact", "lightweight"], VERDICT].tolist() == [SUPPORTED] * 4
    assert "1.13 %" in table.loc["lightweight", "figures of this run"]


def test_on_the_papers_own_data_the_verdict_is_the_rules(studies, without_models, monkeypatch):
    """All five kinds of verdict, in the column that is about the paper."""
    monkeypatch.setattr(claims, "obstacle", lambda study, key: "")
    study = studies(seeds=2)
    finished(study, "sims", CMPTA, off_by(0.1, 1), off_by(0.11, 2))
    lmf, mag = (next(row for row in plan.comparison("sims") if row.name == name) for name in ("LMF", "MAG-BERT"))
    finished(study, "sims", lmf, off_by(0.5, 3), off_by(0.52, 4))
    finished(study, "sims", mag, off_by(0.05, 5), off_by(0.3, 6))
    finished(study, "sims", SIX[0], off_by(0.02, 5), off_by(0.02, 6))
    table = claims.judge_all(study).set_index("claim")
    assert table.loc["sims-lmf-mae", VERDICT] == table.loc["sims-lmf-mae", HERE] == SUPPORTED
    assert table.loc["sims-mag-bert-mae", VERDICT] == INSIDE_SEEDS
    assert table.loc["sims-5-tokens", VERDICT] == table.loc["mae-sims", VERDICT] == NOT_SUPPORTED
    assert table.loc["sims-7-tokens", VERDICT] == table.loc["best-sims", VERDICT] == NOT_RUN
    assert table.loc["speakers", VERDICT] == NOT_TESTABLE and "no row isolates" in table.loc["speakers", "rule"]
    shown = claims.as_table(table.reset_index()).short
    assert shown["verdict here"].iloc[[*table.index].index("sims-mag-bert-mae")] == f"🟨 {INSIDE_SEEDS}"
    counts = claims.counted(table).set_index("claims")[VERDICT]
    assert counts.sum() == len(table) and (counts[[SUPPORTED, NOT_SUPPORTED, INSIDE_SEEDS, NOT_TESTABLE, NOT_RUN]] > 0).all()


@pytest.mark.parametrize("labels", [("calm", "happy"), (-0.5, 0.5)])
def test_ones_own_clips_try_the_claims_about_one_corpus(studies, tmp_path, labels):
    folder = tmp_path / "own"
    folder.mkdir()
    clips_of_ones_own(lambda number: labels[number % 2], (6, 4, 5), folder)
    study = studies(data=str(folder), seeds=1)
    finish(study, "data", study.runs("data") + study.runs("data", TEXT_ONLY))
    table = claims.judge_all(study).set_index("claim")
    wanted, other = ("meld", "sims") if isinstance(labels[0], str) else ("sims", "meld")
    assert f"tokens-help-{wanted}" in table.index and f"{wanted}-alignment-off" in table.index
    gone = {"best-of-all", "generalises", "key-parts", "mae-sims", "wf1-meld", "table1-sims", f"tokens-help-{other}"}
    assert not gone & set(table.index) and not any(name.startswith(f"{other}-") for name in table.index)
    assert set(table.loc[table["tried on"] == "voices", VERDICT]) == {NOT_TESTABLE}
    assert "voices is no corpus of the paper" in claims.caption(study)
    assert table.loc[f"attention-{wanted}", HERE] == NOT_TESTABLE, "nobody knows real cues"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({}, ""), ({"changes": {"training.epochs": 1}}, "not the paper's settings"), ({"llm": "tiny"}, "a tiny LLM stands in")],
)
def test_what_stands_in_the_way_of_a_verdict_on_the_paper(studies, monkeypatch, changes, reason):
    study = studies("paper", **changes)
    monkeypatch.setattr(study, "corpus", lambda key: type("Real", (), {"generated": False, "name": "simsv2"}))
    assert claims.obstacle(study, "sims").startswith(reason) and bool(claims.obstacle(study, "sims")) == bool(reason)
