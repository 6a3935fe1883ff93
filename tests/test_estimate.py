"""How long runs take, added up from a step and an answer: by hand here, measured where a study has its corpora."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from finished import finish, record_llms, small_studies

from cmpta_lib import registry
from cmpta_lib.cli.__main__ import main
from cmpta_lib.config import DataConfig, RunConfig, override
from cmpta_lib.runs.progress import columns
from cmpta_lib.study import estimate, plan
from cmpta_lib.study.estimate import PUBLISHED, Costs, Kind, Speed, by_notebook, ends, projected, seconds
from cmpta_lib.study.plan import CMPTA, MMT, MSE_LLAMA, TEXT_ONLY, WITHOUT_PRETRAINING, Planned
from cmpta_lib.study.profiles import planned_config
from cmpta_lib.study.study import Study

SIZES = {"train": 100, "valid": 10, "test": 20, "dialogues": 7}
SPEED = Speed(answer=0.5, steps={"training": 2.0}, start=3.0)
STUDY = Study("paper", seeds=2)
SIMS, MELD = Planned("sims", CMPTA, 1111), Planned("meld", CMPTA, 1111)


def config(method: str = "cmpta", **changes: object) -> RunConfig:
    base = RunConfig(data=DataConfig(name="c", fingerprint=""), method=registry.ENTRIES[method].defaults())
    return override(base, {"training.epochs": 4, "training.batch_size": 16} | changes)


@pytest.mark.parametrize(
    ("method", "speed", "by_hand"),
    [
        ("cmpta", SPEED, 3 + 4 * (math.ceil(100 / 16) * 2 + 10 * 0.5) + (10 + 20) * 0.5),
        ("cmpta", Speed(0.5, {"training": 2.0}, 3.0, unit="dialogue"), 3 + 4 * (1 * 2 + 10 * 0.5) + 30 * 0.5),
        ("text_only", Speed(0.5), 30 * 0.5),  # what trains nothing only answers
    ],
)
def test_a_run_is_its_steps_its_validation_and_its_last_answers(method, speed, by_hand):
    assert seconds(config(method), SIZES, speed, set()) == by_hand


def test_a_shared_stage_counts_with_the_first_run_that_needs_it():
    run = config("multimodal_transformer")
    names = [stage.name for stage in run.stages]
    assert len(names) == 2 and run.stages[0].outcome is not None
    speed, made = Speed(0.5, dict.fromkeys(names, 2.0)), set()
    first, second = (seconds(run, SIZES, speed, made) for _ in range(2))
    assert len(made) == 1
    assert first - second == run.stages[0].training.epochs * math.ceil(100 / run.stages[0].training.batch_size) * 2


def test_costs_know_what_is_finished_and_what_nobody_measured():
    runs = [Planned("sims", CMPTA, 1), Planned("sims", CMPTA, 2), Planned("meld", CMPTA, 2), Planned("sims", MSE_LLAMA, 2)]
    both = dict.fromkeys(("sims", "meld"), SIZES)
    costs = Costs({Kind("sims", "cmpta"): SPEED}, both, {one: config() for one in runs[1:]})
    assert costs(runs) == [0, seconds(config(), SIZES, SPEED, set()), None, None]
    assert costs(runs) == costs(runs), "what one call counts as made is no other's"


# --- the paper's profile, projected -----------------------------------------------------------------------------------


def speeds(step_ms: float, answer_ms: float, *keys: str) -> dict[Kind, Speed]:
    return {Kind(key, "cmpta"): Speed(answer_ms / 1000, {"training": step_ms / 1000}) for key in keys}


def test_the_papers_profile_is_projected_without_its_corpora():
    """150 epochs of batches of 16, the printed clips of Table 1: no corpus and no LLM is here, and none is asked for."""
    assert PUBLISHED["sims"] == {"train": 2722, "valid": 647, "test": 1034, "dialogues": 2722}
    sims = 150 * (171 * 0.1 + 647 * 0.004) + (647 + 1034) * 0.004
    meld = 150 * (625 * 0.1 + 1109 * 0.004) + (1109 + 2610) * 0.004
    words = (647 + 1034) * 0.004  # text only answers once
    found = projected(STUDY, speeds(100, 4, "sims", "meld"))([SIMS, MELD, Planned("sims", TEXT_ONLY, 1111)])
    assert found == pytest.approx([sims, meld, words])


def test_at_the_ancestors_pace_the_papers_runs_take_280_hours():
    """MSE-Adapter's log: 37.9 s for an epoch on SIMS-V2 and 7.65 s for its validation; 125.2 s and 6.03 s on MELD."""
    study = Study("paper")
    costs = projected(study, speeds(37_900 / 171, 7650 / 647, "sims") | speeds(125_200 / 625, 6030 / 1109, "meld"))
    own = [one for one in study.planned() if one.row.method in ("cmpta", "text_only")]
    assert len(own) == 91 and len(study.planned()) == 176 and costs(study.planned()).count(None) == 65
    assert sum(costs(own)) / 3600 == pytest.approx(279.2, abs=0.1)
    pace = {"sims": (37_900 / 171, 7650 / 647), "meld": (125_200 / 625, 6030 / 1109)}
    lines = {line.split()[0]: line.split() for line in estimate.projection(study, pace).splitlines()[1:16] if line}
    assert lines["08_attention_figs3_4"][6:8] == ["7.4", "h"], "what it needs alone"
    unknown = {name for name, cells in lines.items() if name[:2].isdigit() and cells[3] != "-"}
    assert unknown == {"04_table3_simsv2", "05_table4_meld", "10_claims"}


def test_every_run_of_the_paper_is_measured_or_unknown():
    runs = STUDY.planned()
    found = dict(zip(runs, projected(STUDY, speeds(100, 4, "sims"))(runs), strict=True))
    known = {(one.key, one.row.method) for one, took in found.items() if took is not None}
    assert known == {("sims", name) for name in ("cmpta", "mse_adapter", "soft_prompt", "text_only")}
    assert found[Planned("sims", MSE_LLAMA, 1111)] is None, "another LLM is another speed"


def test_what_was_measured_itself_counts_as_itself():
    measured = speeds(100, 4, "sims") | {Kind("sims", "soft_prompt"): Speed(0.004, {"training": 0.05})}
    measured |= {Kind("sims", "mse_adapter", "llama2-7b"): Speed(0.009, {"training": 0.3})}
    soft = Planned("sims", plan.method_row("sims", "soft_prompt"), 1111)
    cmpta, own, llama = projected(STUDY, measured)([SIMS, soft, Planned("sims", MSE_LLAMA, 1111)])
    assert own < cmpta < llama


def test_a_projection_has_the_epochs_of_the_real_config(study):
    """Or it would project other trainings than those that are made."""
    study = study(changes={"training.batch_size": 7})
    for one in {one.row: one for one in study.planned([notebook.name for notebook in plan.NOTEBOOKS])}.values():
        if not study.missing(one.row, one.key):
            data = DataConfig(name=study.settings.corpora[one.key], fingerprint="")
            real, told = study.config(one.key, one.row), planned_config("demo", one.key, one.row, data, one.seed, study.changes)
            assert told.training == real.training and told.evaluation == real.evaluation, one.row.name
            assert [stage.training for stage in told.stages] == [stage.training for stage in real.stages], one.row.name


# --- measured ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def timed(monkeypatch) -> list[tuple[RunConfig, bool]]:
    """Nothing is timed: what would be, and whether its backbone would be in memory."""
    asked: list[tuple[RunConfig, bool]] = []
    monkeypatch.setattr(estimate, "_speed", lambda config, *_, is_loaded: asked.append((config, is_loaded)) or SPEED)
    return asked


def test_each_kind_is_measured_once(timed, study):
    study = study()
    runs = study.planned(["06_table5_ablation_simsv2"])
    costs = estimate.measured(study, runs)
    names = [(one.method.name, one.data.name) for one, _ in timed]
    assert names == [("cmpta", "embedded-sims"), ("text_only", "embedded-sims")]
    assert None not in costs(runs) and Kind("sims", "cmpta") in costs.speeds
    assert costs.sizes["sims"] == {"train": 6, "valid": 4, "test": 9, "dialogues": 6}
    assert len(estimate.measured(study, [Planned("sims", row, 1111) for row in (MMT, WITHOUT_PRETRAINING)]).speeds) == 2


def test_each_backbone_is_loaded_before_what_reads_with_it_is_timed(timed, study):
    """Else the first method's runs would each count the seconds of reading the LLM's files."""
    study = study()
    estimate.measured(study, study.planned(["04_table3_simsv2"]))
    seen = [estimate._backbone(config) for config, _ in timed]
    assert set(seen) == {"tiny", "tiny-llama", "tiny-bert", ""}
    for place, (backbone, (_, is_loaded)) in enumerate(zip(seen, timed, strict=True)):
        assert is_loaded == (backbone in seen[:place]) == (place > 0 and seen[place - 1] == backbone), "one after another"


def test_a_few_real_steps_of_each_stage_and_a_batch_of_answers_are_timed(staged, corpora, tmp_path):
    run = RunConfig(data=DataConfig(name="c", fingerprint=""), method=registry.ENTRIES["staged"].config())
    run = override(run, {"training.batch_size": 4, "evaluation.batch_size": 8})
    found = estimate._speed(run, corpora["embedded-sims"], tmp_path, is_loaded=True)
    assert found.steps.keys() == {"reading", "training"} and min(found.answer, found.start, *found.steps.values()) > 0
    seen = staged.seen
    stages = [stage for stage, _ in seen]
    assert stages.count("reading") == 16 and stages.count("training") == 16 + 8, "four steps each, the first to warm up"
    assert all(label is None for stage, label in seen if stage == "reading")
    assert found.unit == "dialogue" and found.gpu_gb == 0


# --- by notebook ------------------------------------------------------------------------------------------------------


def test_runs_are_assigned_in_order_to_whoever_is_free():
    assert ends([5.0, 1.0, 1.0, 10.0, 0.0, None], 2) == [5, 1, 2, 12, 0, 0]
    assert ends([3.0, 4.0, 5.0], 1) == [3, 7, 12]


class Tens(Costs):
    """Ten seconds for each run, but for what `unknown` names."""

    unknown: frozenset[str] = frozenset()

    def __call__(self, runs):
        return [None if one.row.method in self.unknown else 10.0 for one in runs]


def lines(costs: Costs | None, jobs: int = 1, skipped: plan.Row | None = None) -> dict[str, list[str]]:
    names = [notebook.name for notebook in plan.NOTEBOOKS if not notebook.is_beyond]
    runs = {name: [one for one in STUDY.planned([name]) if one.row != skipped] for name in names}
    shown = by_notebook(STUDY, runs, costs, jobs).splitlines()
    assert max(map(columns, shown)) <= 90
    return {line.split("  ")[0]: [cell.strip() for cell in line.split("  ")[1:] if cell.strip()] for line in shown if line} | {
        "said": [" ".join(" ".join(shown).split())]
    }


def test_a_shared_run_counts_where_it_is_first_needed():
    shown = lines(Tens({}, {}, {}))
    assert shown["notebook"] == ["runs", "new", "time", "alone", "first seed", "all seeds"]
    assert shown["04_table3_simsv2"][:4] == ["22", "20", "3 min", "4 min"], "CMPTA's two seeds came with notebook 03"
    assert shown["06_table5_ablation_simsv2"][:4] == ["16", "12", "2 min", "3 min"]
    assert shown["10_claims"][2] == "0 s" and shown["01_data"] == ["0", "0", "0 s", "0 s", "-", "-"]
    assert shown["08_attention_figs3_4"][-2:] == ["20 s", "20 s"], "CMPTA is made first on both corpora"
    assert "with one run at a time" in shown["said"][0]
    assert "with 2 runs at a time" in lines(Tens({}, {}, {}), 2)["said"][0]
    assert lines(Tens({}, {}, {}), skipped=MSE_LLAMA)["04_table3_simsv2"][0] == "20", "what waits for something is left out"


def test_without_times_runs_are_counted():
    shown = lines(None)
    assert shown["notebook"] == ["runs", "new"] and shown["04_table3_simsv2"] == ["22", "20"]


def test_what_nobody_timed_is_said_and_makes_hours_a_lower_bound():
    costs = Tens({}, {}, {})
    object.__setattr__(costs, "unknown", frozenset({"lmf"}))
    shown = lines(costs)
    assert shown["notebook"][2] == "not timed" and shown["04_table3_simsv2"][2] == "2"
    assert shown["08_attention_figs3_4"][-1] == "\N{GREATER-THAN OR EQUAL TO} 20 s"
    assert f"2 of {len(STUDY.planned())} runs were not timed" in shown["said"][0]


def test_check_times_each_kind_and_prints_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(estimate, "_speed", lambda *_, **__: Speed(0.01, {"training": 1.0}, 1.0, gpu_gb=8.0))
    monkeypatch.setattr("cmpta_lib.runs.provenance.gpu_count", lambda: 1)
    monkeypatch.setattr("cmpta_lib.runs.provenance.first_gpu", lambda: ("a GPU", 25.8))
    study = small_studies(record_llms(tmp_path / "runs"), monkeypatch)(seeds=1)
    finish(study, "sims", study.runs("sims", TEXT_ONLY))
    assert main(["check", "--only", "table5", "--seeds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "8 runs, 1 of them finished" in shown and "06_table5_ablation_simsv2     8    8  " in shown
    each = 1 + 2 * (1 * 1.0 + 4 * 0.01) + 13 * 0.01  # start, epochs of one step and four answers, the answers at the end
    assert f"about {7 * each:.0f} s for the rest, one run at a time" in shown
    assert "2 runs fit into a GPU of 26 GB at once" in shown and "meld" not in shown
