"""How long runs take, added up from epochs and answers: by hand here, measured where a study has its corpora."""

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
from cmpta_lib.study.estimate import Speed, by_notebook
from cmpta_lib.study.plan import MMT, MSE_LLAMA, TEXT_ONLY, WITHOUT_PRETRAINING, Planned
from cmpta_lib.study.study import Study, planned_config

NAMES = [notebook.name for notebook in plan.NOTEBOOKS if not notebook.is_beyond]


def config(method: str = "cmpta", **changes: object) -> RunConfig:
    base = RunConfig(data=DataConfig(name="c", fingerprint=""), method=registry.ENTRIES[method].defaults())
    return override(base, {"training.epochs": 4} | changes)


def test_a_run_is_what_comes_once_and_its_epochs_and_a_shared_stage_counts_once():
    assert Speed(3.0, {"training": 2.0}).seconds(config(), set()) == 3 + 4 * 2
    assert Speed(3.0).seconds(config("text_only"), set()) == 3, "what trains nothing only answers"
    run, made = config("multimodal_transformer"), set()
    shared, own = run.stages
    assert shared.outcome is not None and own.outcome is None
    speed = Speed(3.0, {shared.name: 5.0, own.name: 2.0})
    assert [speed.seconds(run, made) for _ in range(2)] == [3 + shared.training.epochs * 5 + 8, 3 + 8] and len(made) == 1


# --- the paper's profile, projected -----------------------------------------------------------------------------------


def hours(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}


def test_at_the_ancestors_pace_the_papers_runs_take_280_hours(monkeypatch):
    """MSE-Adapter's log: 37.9 s for an epoch on SIMS-V2 and 7.65 s for its validation; 125.2 s and 6.03 s on MELD.

    150 epochs of batches of 16 on Table 1's clips: no corpus and no LLM is here, and none is asked for.
    """
    monkeypatch.setattr(estimate, "_LIKE_CMPTA", ("cmpta", "text_only"))
    study, pace = Study("paper"), {"sims": (37_900 / 171, 7650 / 647), "meld": (125_200 / 625, 6030 / 1109)}
    shown = hours(estimate.projection(study, pace))
    sims = 150 * (37.9 + 7.65) + 7.65 / 647 * (647 + 1034)
    meld = 150 * (125.2 + 6.03) + 6.03 / 1109 * (1109 + 2610)
    assert shown["08_attention_figs3_4"][:2] == ["2", "0"]
    assert shown["03_training"] == ["21", "21", f"{(16 * sims + 5 * meld) / 3600:.1f}", "h"], "five seeds and eleven choices"
    assert shown["all"][:2] == [str(len(study.planned())), "279.2"]
    assert {name for name, cells in shown.items() if "untimed" in cells} == {"04_table3_simsv2", "05_table4_meld"}


def test_methods_around_the_same_llm_count_as_cmpta_and_another_llm_is_another_speed(monkeypatch):
    told = {}
    monkeypatch.setattr(estimate, "by_notebook", lambda notebooks, configs, speeds: told.update(speeds))
    estimate.projection(Study("paper", seeds=1), {"sims": (100.0, 4.0)})
    assert {kind[:2] for kind in told} == {("sims", name) for name in ("cmpta", "mse_adapter", "soft_prompt", "text_only")}
    assert {kind[2] for kind in told} == {""} and told["sims", "text_only", ""] == Speed((647 + 1034) * 0.004, {})
    assert told["sims", "cmpta", ""].epochs["training"] == pytest.approx(171 * 0.1 + 647 * 0.004)


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


def test_each_kind_is_measured_once_with_all_its_stages_and_llm_after_llm(study, monkeypatch):
    asked: list[RunConfig] = []
    monkeypatch.setattr(estimate, "speed", lambda config, *_: asked.append(config) or Speed(1.0))
    study = study()
    planned = [*study.planned(["04_table3_simsv2", "06_table5_ablation_simsv2"])]
    planned += [Planned("sims", row, 1111) for row in (WITHOUT_PRETRAINING, MMT, WITHOUT_PRETRAINING)]
    found = estimate.measured(study, {one: study.config(one.key, one.row, one.seed) for one in planned})
    assert len(asked) == len(found) == len({one.kind for one in planned}) and ("sims", "cmpta", "") in found
    assert [len(one.stages) for one in asked if one.method.name == "multimodal_transformer"] == [2]
    assert [kind[2] for kind in found][-1] == MSE_LLAMA.llm and {kind[2] for kind in [*found][:-1]} == {""}


def test_a_few_real_steps_of_each_stage_and_a_batch_of_answers_are_timed(staged, corpora, tmp_path):
    run = RunConfig(data=DataConfig(name="c", fingerprint=""), method=registry.ENTRIES["staged"].config())
    run = override(run, {"training.batch_size": 4, "evaluation.batch_size": 8})
    found = estimate.speed(run, corpora["embedded-sims"], tmp_path)
    assert found.epochs.keys() == {"reading", "training"} and min(found.once, *found.epochs.values()) > 0 == found.gpu_gb
    stages = [stage for stage, _ in staged.seen]
    assert stages.count("reading") == 5 * 4, "two steps to warm up and three"
    assert stages.count("training") == 5 * 4 + 3 * 8, "and answers as often"
    assert all(label is None for stage, label in staged.seen if stage == "reading")


def test_an_epoch_has_as_many_steps_as_its_batches_and_answers_the_validation_split(small, corpora, tmp_path, monkeypatch):
    class Clock:
        mean = 1.0

        def __init__(self, *_: object, **__: object) -> None: ...

        def timeit(self, number: int) -> Clock:
            return self

    monkeypatch.setattr(estimate, "Timer", Clock)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: 0.0)
    run = RunConfig(data=DataConfig(name="c", fingerprint=""), method=small())
    run = override(run, {"training.batch_size": 6, "evaluation.batch_size": 4})
    found = estimate.speed(run, corpora["embedded-sims"], tmp_path)
    assert found == Speed((7 + 5) / 4, {"training": math.ceil(20 / 6) + 7 / 4})


# --- by notebook ------------------------------------------------------------------------------------------------------


def test_a_shared_run_counts_where_it_is_first_needed_and_finished_ones_not():
    study = Study("paper", seeds=2)
    notebooks = {name: study.planned([name]) for name in NAMES}
    unfinished = {one: config() for one in study.planned() if one.row != TEXT_ONLY}
    text = by_notebook(notebooks, unfinished, {one.kind: Speed(10.0) for one in unfinished}, 2)
    shown, count = hours(text), len(study.planned())
    assert max(map(columns, text.splitlines())) <= 90 and shown["notebook"] == ["runs", "new", "time"]
    assert shown["04_table3_simsv2"] == ["22", "20", "3", "min"], "CMPTA's two seeds came with notebook 03"
    assert shown["01_data"] == ["0", "0", "0", "s"] and shown["10_claims"][1:] == ["0", "0", "s"]
    assert shown["06_table5_ablation_simsv2"] == ["16", "12", "2", "min"], "text only came with Table 3 and is finished"
    assert shown["all"][:3] == [str(count), f"{len(unfinished) * 10 / 2 / 60:.0f}", "min"] and "at 2 at a time" in text
    counted = hours(by_notebook(notebooks, {}, {}))
    assert counted["notebook"] == ["runs", "new"] and counted["04_table3_simsv2"] == ["22", "20"]


def test_check_times_each_kind_and_prints_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(estimate, "speed", lambda *_: Speed(2.0, {"training": 100.0}, gpu_gb=8.0))
    monkeypatch.setattr("cmpta_lib.runs.provenance.gpu_count", lambda: 1)
    monkeypatch.setattr("cmpta_lib.runs.provenance.first_gpu", lambda: ("a GPU", 25.8))
    study = small_studies(record_llms(tmp_path / "runs"), monkeypatch)(seeds=1)
    finish(study, "sims", study.runs("sims", TEXT_ONLY))
    assert main(["check", "--only", "table5", "--seeds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "8 runs, 1 of them finished" in shown and "meld" not in shown
    table = hours(shown)
    assert table["embedded-sims"] == ["cmpta", "-", "100.0", "2.0", "8.0"]
    assert table["06_table5_ablation_simsv2"] == ["8", "8", f"{7 * (2 + 2 * 100) / 60:.0f}", "min"]
    assert "runs at a time that fit into a GPU of 26 GB: 2" in shown
