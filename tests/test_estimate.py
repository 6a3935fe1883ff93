"""How long runs take, added up from a step and an answer: by hand here, measured where a study has its corpora."""

from __future__ import annotations

import math

import pytest
from finished import record_llms, small_studies

from cmpta_lib import registry
from cmpta_lib.config import DataConfig, MethodConfig, RunConfig, override
from cmpta_lib.study import estimate, plan
from cmpta_lib.study.estimate import PUBLISHED, Kind, Sizes, Speed, projected, seconds
from cmpta_lib.study.plan import CMPTA, MMT, MSE_LLAMA, TEXT_ONLY, WITHOUT_PRETRAINING, Planned
from cmpta_lib.study.study import Study

SIZES = Sizes(train=100, valid=10, test=20, dialogues=7)
SPEED = Speed(answer=0.5, steps={"training": 2.0}, start=3.0)
STUDY = Study("paper")
SIMS, MELD = Planned("sims", CMPTA, 1111), Planned("meld", CMPTA, 1111)


def config(method: str = "cmpta", **changes: object) -> RunConfig:
    base = RunConfig(data=DataConfig(name="c", fingerprint=""), method=registry.ENTRIES[method].defaults())
    return override(base, {"training.epochs": 4, "training.batch_size": 16} | changes)


def test_a_run_is_its_steps_its_validation_and_its_last_answers():
    by_hand = 3 + 4 * (math.ceil(100 / 16) * 2 + 10 * 0.5) + (10 + 20) * 0.5
    assert seconds(config(), SIZES, SPEED, set()) == by_hand


def test_a_method_of_dialogues_has_as_many_units_as_there_are_dialogues():
    of_dialogues = Speed(0.5, {"training": 2.0}, 3.0, unit="dialogue")
    assert seconds(config(), SIZES, of_dialogues, set()) == 3 + 4 * (1 * 2 + 10 * 0.5) + 30 * 0.5


def test_what_trains_nothing_only_answers():
    assert seconds(config("text_only"), SIZES, Speed(0.5), set()) == 30 * 0.5


def test_a_shared_stage_counts_with_the_first_run_that_needs_it():
    run = config("multimodal_transformer")
    names = [stage.name for stage in run.stages]
    assert len(names) == 2 and run.stages[0].outcome is not None
    speed, made = Speed(0.5, dict.fromkeys(names, 2.0)), set()
    first, second = (seconds(run, SIZES, speed, made) for _ in range(2))
    assert len(made) == 1
    assert first - second == run.stages[0].training.epochs * math.ceil(100 / run.stages[0].training.batch_size) * 2


def test_costs_know_what_is_finished_and_what_nobody_measured():
    costs = estimate.Costs({Kind("sims", "cmpta"): SPEED}, lambda one: config(), lambda key: SIZES, lambda one: one.seed == 1)
    runs = [Planned("sims", CMPTA, 1), Planned("sims", CMPTA, 2), Planned("meld", CMPTA, 2), Planned("sims", MSE_LLAMA, 2)]
    assert costs(runs) == [0, seconds(config(), SIZES, SPEED, set()), None, None]
    assert costs(runs) == costs(runs), "what one call counts as made is no other's"


# --- the paper's profile, projected -----------------------------------------------------------------------------------


def test_the_papers_profile_is_projected_without_its_corpora():
    """150 epochs of batches of 16, the printed clips: no corpus and no LLM is here, and none is asked for."""
    speed = Speed.of(step_ms=100, answer_ms=4)
    costs = projected(STUDY, {Kind("sims", "cmpta"): speed, Kind("meld", "cmpta"): speed})
    sims = 150 * (171 * 0.1 + 647 * 0.004) + (647 + 1034) * 0.004
    meld = 150 * (625 * 0.1 + 1109 * 0.004) + (1109 + 2610) * 0.004
    assert costs([SIMS, MELD]) == pytest.approx([sims, meld])


def test_at_the_ancestors_pace_the_papers_runs_take_280_hours():
    """MSE-Adapter's log: 37.9 s for an epoch on SIMS-V2 and 7.65 s for its validation; 125.2 s and 6.03 s on MELD."""
    sims, meld = Speed.of(37_900 / 171, 7650 / 647), Speed.of(125_200 / 625, 6030 / 1109)
    forecast = estimate.projection(STUDY, {Kind("sims", "cmpta"): sims, Kind("meld", "cmpta"): meld})
    own = [one for one in forecast.runs if one.row.method in ("cmpta", "text_only")]
    assert len(own) == 91 and len(forecast.runs) == 176 and len(forecast.unknown) == 65
    assert sum(forecast.costs(own)) / 3600 == pytest.approx(279.2, abs=0.1)
    lines = {line.name: line for line in forecast.notebooks()}
    assert lines["08_attention_figs3_4"].alone / 3600 == pytest.approx(7.4, abs=0.05)
    assert {line.name for line in lines.values() if line.unknown} == {"04_table3_simsv2", "05_table4_meld", "10_claims"}


def test_every_run_of_the_paper_is_measured_or_unknown():
    speed = Speed.of(100, 4)
    runs = STUDY.planned()
    assert len(runs) == 176
    found = projected(STUDY, {Kind("sims", "cmpta"): speed})(runs)
    known = {(one.key, one.row.method) for one, took in zip(runs, found, strict=True) if took is not None}
    assert known == {("sims", name) for name in ("cmpta", "mse_adapter", "soft_prompt", "text_only")}
    assert found[runs.index(Planned("sims", MSE_LLAMA, 1111))] is None, "another LLM is another speed"
    nothing_else = projected(STUDY, {Kind("sims", "cmpta"): speed}, alike={})(runs)
    assert {one.row.method for one, took in zip(runs, nothing_else, strict=True) if took is not None} == {"cmpta"}


def test_what_was_measured_itself_counts_as_itself():
    speeds = {Kind("sims", "cmpta"): Speed.of(100, 4), Kind("sims", "soft_prompt"): Speed.of(50, 4)}
    soft = Planned("sims", plan.method_row("sims", "soft_prompt"), 1111)
    cmpta, own = projected(STUDY, speeds)([SIMS, soft])
    assert own < cmpta
    llama = projected(STUDY, speeds | {Kind("sims", "mse_adapter", "llama2-7b"): Speed.of(300, 9)})
    assert llama([Planned("sims", MSE_LLAMA, 1111)])[0] > cmpta


def test_text_only_answers_once():
    (took,) = projected(STUDY, {Kind("sims", "cmpta"): Speed.of(100, 4)})([Planned("sims", TEXT_ONLY, 1111)])
    assert took == pytest.approx((647 + 1034) * 0.004)


def test_a_projection_has_the_epochs_of_the_real_config(tmp_path, monkeypatch):
    """Or it would project other trainings than those that are made."""
    study = small_studies(record_llms(tmp_path), monkeypatch)(changes={"training.batch_size": 7})
    rows = {(one.key, repr(one.row)): one for one in study.planned([notebook.name for notebook in plan.NOTEBOOKS])}
    for one in rows.values():
        if not study.lacks(one.row, one.key):
            real, told = study.config(one.key, one.row), estimate.outlined(study, one.key, one.row, one.seed)
            assert told.training == real.training and told.evaluation == real.evaluation, one.row.name
            assert [stage.training for stage in told.stages] == [stage.training for stage in real.stages], one.row.name


def test_the_published_sizes_are_table_1s():
    assert PUBLISHED["sims"] == Sizes(2722, 647, 1034, 2722) and PUBLISHED["meld"].train == 9989


# --- measured ---------------------------------------------------------------------------------------------------------


def test_each_kind_is_measured_once(tmp_path, monkeypatch):
    timed = []
    monkeypatch.setattr(estimate, "_speed", lambda config, *_, **__: timed.append(config) or SPEED)
    study = small_studies(record_llms(tmp_path), monkeypatch)()
    runs = study.planned(["06_table5_ablation_simsv2"])
    costs = estimate.measured(study, runs)
    assert [(one.method.name, one.data.name) for one in timed] == [("cmpta", "embedded-sims"), ("text_only", "embedded-sims")]
    assert None not in costs(runs) and Kind("sims", "cmpta") in costs.speeds
    assert costs.sizes("sims") == Sizes(6, 4, 9, 6)


def test_with_and_without_pretraining_are_two_kinds(tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "_speed", lambda *_, **__: SPEED)
    study = small_studies(record_llms(tmp_path), monkeypatch)()
    runs = [Planned("sims", row, 1111) for row in (MMT, WITHOUT_PRETRAINING)]
    assert len(estimate.measured(study, runs).speeds) == 2


def test_each_backbone_is_loaded_before_what_reads_with_it_is_timed(tmp_path, monkeypatch):
    """Else the first method's runs would each count the seconds of reading the LLM's files."""
    timed = []
    monkeypatch.setattr(estimate, "_speed", lambda config, *_, is_loaded: timed.append((config, is_loaded)) or SPEED)
    study = small_studies(record_llms(tmp_path), monkeypatch)()
    estimate.measured(study, study.planned(["04_table3_simsv2"]))
    seen = [estimate._backbone(config) for config, _ in timed]
    assert set(seen) == {"tiny", "tiny-llama", "tiny-bert", ""}
    for place, (backbone, (_, is_loaded)) in enumerate(zip(seen, timed, strict=True)):
        assert is_loaded == (backbone in seen[:place]) == (place > 0 and seen[place - 1] == backbone), "one after another"


@pytest.fixture
def staged():
    import staged_method

    MethodConfig.known["staged"] = staged_method.StagedConfig
    registry.register(staged_method.StagedConfig, staged_method.StagedMethod, row="staged")
    staged_method.StagedMethod.seen = []
    yield staged_method
    for name in ("small", "staged"):
        MethodConfig.known.pop(name, None)
    del registry.ENTRIES["staged"]


def test_a_few_real_steps_of_each_stage_and_a_batch_of_answers_are_timed(staged, corpora, tmp_path):
    corpus = corpora["embedded-sims"]
    run = RunConfig(data=DataConfig(name="c", fingerprint=""), method=staged.StagedConfig())
    run = override(run, {"training.batch_size": 4, "evaluation.batch_size": 8})
    found = estimate._speed(run, corpus, tmp_path, is_loaded=True)
    assert found.steps.keys() == {"reading", "training"} and min(found.answer, found.start, *found.steps.values()) > 0
    seen = staged.StagedMethod.seen
    stages = [stage for stage, _ in seen]
    assert stages.count("reading") == 16 and stages.count("training") == 16 + 8, "four steps each, the first to warm up"
    assert all(label is None for stage, label in seen if stage == "reading")
    assert found.unit == "dialogue" and found.gpu_gb == 0
