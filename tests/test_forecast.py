"""The plan of a study: seconds by notebook, when each claim can be judged, and that it needs what the ledger judges by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from cmpta_lib.study.forecast import Asked, Forecast, Moment, moments, screen
from finished import finish, record_llms, small_studies

from cmpta_lib import paper
from cmpta_lib.cli.__main__ import main
from cmpta_lib.report import claims
from cmpta_lib.report import judge as ledger
from cmpta_lib.report.tables import NOT_RUN
from cmpta_lib.runs import load as trained
from cmpta_lib.runs.progress import columns
from cmpta_lib.study import claimed, estimate, plan
from cmpta_lib.study.estimate import Speed
from cmpta_lib.study.plan import CMPTA, MSE_LLAMA, TEXT_ONLY, Planned, Row
from cmpta_lib.study.study import Study

BOTH, SEEDS = ("sims", "meld"), (1, 2)
AT = {key: key for key in BOTH}
PAPER = [notebook for notebook in plan.NOTEBOOKS if not notebook.is_beyond]


def ten_seconds(runs: Sequence[Planned]) -> list[float | None]:
    return [10.0] * len(runs)


def asked(notebooks: Sequence[plan.Notebook] = PAPER, **more: object) -> Asked:
    return Asked(notebooks, BOTH, AT, SEEDS, **more)


# --- the clock --------------------------------------------------------------------------------------------------------


def test_runs_are_handed_out_in_order_to_whoever_is_free():
    found = list(moments([5.0, 1.0, 1.0, 10.0, 0.0, None], 2))
    assert found == [Moment(1, 5), Moment(2, 1), Moment(3, 2), Moment(4, 12), Moment(4, 0), Moment(5, 5)]


def test_one_at_a_time_takes_all_together():
    assert [one.seconds for one in moments([3.0, 4.0, 5.0], 1)] == [3, 7, 12]


# --- notebooks --------------------------------------------------------------------------------------------------------


def test_a_shared_run_counts_where_it_is_first_needed():
    lines = {line.name: line for line in Forecast(asked(), ten_seconds).notebooks()}
    comparison, ablation = lines["04_table3_simsv2"], lines["06_table5_ablation_simsv2"]
    assert (comparison.needs, comparison.new) == (22, 20), "CMPTA's two seeds came with notebook 03"
    assert comparison.seconds == 200 and comparison.alone == 220
    assert (ablation.needs, ablation.new, ablation.seconds, ablation.alone) == (16, 12, 120, 160)
    assert lines["10_claims"].seconds == 0 and lines["10_claims"].alone > 500
    assert lines["01_data"].needs == 0 and lines["01_data"].every is None
    total = len(asked().runs())
    assert sum(line.seconds for line in lines.values()) == 10 * total and sum(line.new for line in lines.values()) == total


def test_a_notebook_is_whole_when_its_last_run_is():
    forecast = Forecast(asked(), ten_seconds)
    by_name = {line.name: line for line in forecast.notebooks()}
    runs = forecast.runs
    last = max(runs.index(one) for one in plan.planned([plan.chosen(["04_table3_simsv2"])[0]], BOTH, False, SEEDS))
    line = by_name["04_table3_simsv2"]
    assert line.every == Moment(last + 1, 10.0 * (last + 1)) and line.first.seconds < line.every.seconds
    assert by_name["08_attention_figs3_4"].first == by_name["08_attention_figs3_4"].every == Moment(2, 20)


def test_finished_runs_cost_nothing_and_are_there_now():
    done = asked([plan.chosen(["08_attention_figs3_4"])[0]])
    (line,) = Forecast(done, lambda runs: [0.0] * len(runs)).notebooks()
    assert (line.seconds, line.alone, line.every) == (0, 0, Moment(0, 0))


def test_a_run_that_waits_for_something_is_not_counted():
    without = asked(absent=lambda one: one.row == MSE_LLAMA)
    assert len(asked().runs()) - len(without.runs()) == 2
    waiting = {line.claim.id: line for line in Forecast(without, ten_seconds).claims()}["best-sims"]
    assert waiting.first is None and waiting.waits == MSE_LLAMA.name


# --- claims -----------------------------------------------------------------------------------------------------------


def test_claims_come_in_the_order_in_which_they_can_be_judged():
    lines = Forecast(asked(cues=True), ten_seconds).claims()
    assert {line.claim.id for line in lines} == {claim.id for claim in paper.CLAIMS}
    timed = [line for line in lines if line.first]
    assert [line.first.seconds for line in timed] == sorted(line.first.seconds for line in timed)
    assert {line.claim.id for line in timed[:3]} == {"mae-sims", "corr-sims", "attention-sims"}
    assert all(line.every.seconds >= line.first.seconds for line in timed)
    at_once = [line.claim.id for line in lines if not line.needed and not line.never]
    assert [line.claim.id for line in lines][: len(at_once)] == at_once and "lightweight" in at_once
    assert {line.claim.id for line in lines if line.never} == set(claimed.NO_ROW)


def test_no_run_decides_where_real_clips_were_to_be_looked_at():
    assert {line.claim.id for line in Forecast(asked(), ten_seconds).claims() if line.never} == {
        *claimed.NO_ROW, "attention-sims", "attention-meld",
    }  # fmt: skip


def test_what_claims_need_is_made_before_the_rest_of_a_seed():
    runs = [one for one in asked().runs() if one.seed == 1]
    wanted = [one for claim in paper.CLAIMS for one in claimed.needed(claim, AT) if one.row not in plan.REGISTER]
    places = [runs.index(Planned(one.key, one.row, 1)) for one in wanted]
    assert max(places) + 1 == len({repr((one.key, one.row)) for one in wanted})


def test_the_ledger_reads_the_runs_that_the_plan_says_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Or `cmpta check` would promise a verdict for a moment at which there is none."""
    study = small_studies(record_llms(tmp_path), monkeypatch)(seeds=1)
    for one in (one for claim in paper.CLAIMS for one in claimed.needed(claim, AT)):
        finish(study, one.key, [run for run in study.runs(one.key, one.row) if not run.done])
    monkeypatch.setattr(trained, "load", lambda folder: None)  # hand-written runs hold no model
    monkeypatch.setattr(ledger.clips, "shares_on_cues", lambda *_: {"vision": np.array([[0.5, 0.4], [0.6, 0.3]])})
    read: list[tuple[str, Row]] = []
    runs = Study.runs
    monkeypatch.setattr(Study, "runs", lambda self, key, row=CMPTA: read.append((key, row)) or runs(self, key, row))
    judged = {one.claim.id: one for one in claims.claims()}
    for claim in paper.CLAIMS:
        read.clear()
        found = judged[claim.id].find(ledger.Evidence(study), AT)
        needed = {repr((one.key, one.row)) for one in claimed.needed(claim, AT)}
        assert set(map(repr, read)) == needed, claim.id
        assert found.verdict != NOT_RUN and (needed or claim.id in claimed.NO_ROW or "one seed" not in found.verdict), claim.id


# --- as text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 100])
def test_the_screen_fits_a_terminal(width: int):
    shown = screen(Forecast(asked(jobs=2, cues=True), ten_seconds), width)
    assert max(map(columns, shown.splitlines())) <= width
    head = shown.splitlines()[0].split()
    assert head == ["notebook", "runs", "new", "time", "alone", "first", "seed", "all", "seeds"]
    assert "with 2 runs at a time" in " ".join(shown.split()) and "generated clips" in " ".join(shown.split())


def test_without_times_runs_are_counted():
    shown = screen(Forecast(asked(), lambda runs: [None] * len(runs)), 80)
    assert "time" not in shown.splitlines()[0] and " 2 runs " in shown and "1 run " in shown


def test_what_nobody_timed_is_said_and_makes_hours_a_lower_bound():
    def some(runs: Sequence[Planned]) -> list[float | None]:
        return [3600.0 if one.row.method == "cmpta" else None for one in runs]

    shown = screen(Forecast(asked(), some), 80)
    assert "not timed" in shown.splitlines()[0] and "\N{GREATER-THAN OR EQUAL TO} 2.0 h" in shown
    unknown = sum(one.row.method != "cmpta" for one in asked().runs())
    assert f"{unknown} of {len(asked().runs())} runs were not timed" in " ".join(shown.split())


def test_check_times_each_kind_and_prints_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(estimate, "_speed", lambda *_, **__: Speed(0.01, {"training": 1.0}, 1.0, gpu_gb=8.0))
    monkeypatch.setattr("cmpta_lib.runs.provenance.gpu_count", lambda: 1)
    monkeypatch.setattr("cmpta_lib.runs.sharing.first_gpu", lambda: ("a GPU", 25.8))
    study = small_studies(record_llms(tmp_path / "runs"), monkeypatch)(seeds=1)
    finish(study, "sims", study.runs("sims", TEXT_ONLY))
    assert main(["check", "--only", "table5", "--seeds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "8 runs, 1 of them finished" in shown and "06_table5_ablation_simsv2     8    8  " in shown
    each = 1 + 2 * (1 * 1.0 + 4 * 0.01) + 13 * 0.01  # start, epochs of one step and four answers, the answers at the end
    assert f"about {7 * each:.0f} s for the rest, one run at a time" in shown
    assert "2 runs fit into a GPU of 26 GB at once" in shown and "six-best-sims" in shown and "meld" not in shown


@pytest.mark.parametrize("rows", [(Row("CMPTA"), Row("7 tokens", changes={"method.num_pseudo_tokens": 7}))])
def test_the_first_seed_comes_before_the_second(rows: Sequence[Row]):
    runs = [one for one in asked().runs() if one.key == "sims" and one.row in rows]
    assert [(one.row.name, one.seed) for one in runs] == [("CMPTA", 1), ("7 tokens", 1), ("CMPTA", 2), ("7 tokens", 2)]
