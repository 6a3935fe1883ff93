"""The training loop: its schedule, what a kill leaves behind, its patience, and its answers in order."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import random_llm

from cmpta_lib import metrics
from cmpta_lib.base import Method, Resources
from cmpta_lib.config import (
    CmptaConfig,
    DataConfig,
    EvaluationConfig,
    RunConfig,
    Stage,
    TextOnlyConfig,
    TrainingConfig,
    override,
    to_json,
)
from cmpta_lib.data.corpus import Split
from cmpta_lib.method.llm import FrozenLLM, weights_fingerprint
from cmpta_lib.runs import checkpoint
from cmpta_lib.runs import loop as training
from cmpta_lib.runs.checkpoint import State
from cmpta_lib.runs.loop import learning_rate

ROOT = Path(__file__).parents[1]
CONFIG = RunConfig(
    data=DataConfig(name="test", fingerprint=""),
    method=CmptaConfig(dim=16, num_heads=2),  # dropout on: resuming must restore its draws too
    training=TrainingConfig(epochs=4, batch_size=8, learning_rate=0.01),
    evaluation=EvaluationConfig(batch_size=4),
)


@pytest.fixture
def corpus(corpora):
    return corpora["embedded-sims"]


def tools_of(llm: FrozenLLM) -> Resources:
    return Resources(llm.device, lambda config: llm)


def weights(method: Method) -> dict[str, bytes]:
    return {name: weight.numpy().tobytes() for name, weight in method.module.state_dict().items()}


def changed(**changes: Any) -> RunConfig:
    return override(CONFIG, {name.replace("__", "."): value for name, value in changes.items()})


# --- learning rate ----------------------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_then_follows_a_cosine_to_zero():
    config = TrainingConfig(learning_rate=2.0, warmup_fraction=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10:] == pytest.approx([1 + math.cos(math.pi * (step - 10) / 90) for step in range(10, 100)])
    assert all(later < earlier for earlier, later in zip(rates[10:], rates[11:], strict=False))
    assert all(learning_rate(step, 100, config) == 0 for step in (100, 101, 150, 199, 1000))  # it never rises again


@pytest.mark.parametrize(("steps", "fraction"), [(1, 0.1), (2, 0.0), (3, 1.0), (7, 0.5)])
def test_short_runs_have_a_learning_rate_too(steps, fraction):
    rates = [learning_rate(s, steps, TrainingConfig(learning_rate=1.0, warmup_fraction=fraction)) for s in range(steps)]
    assert all(0 < rate <= 1 for rate in rates) and max(rates) == 1


def test_the_history_shows_the_schedule(tools, corpus, tmp_path):
    _, state = training.train(CONFIG, corpus, tools, tmp_path)
    last_steps = [3 * epoch - 1 for epoch in (1, 2, 3, 4)]  # 20 clips in batches of 8: three steps an epoch
    expected = [learning_rate(step, 12, CONFIG.training) for step in last_steps]
    assert [row["learning_rate"] for row in state.history] == pytest.approx(expected)


# --- what is trained, and which weights come back ---------------------------------------------------------------------


def test_training_lowers_the_loss_and_leaves_the_llm_alone(corpus, tmp_path):
    llm = random_llm()
    _, state = training.train(changed(training__epochs=6), corpus, tools_of(llm), tmp_path)
    losses = [row["train_loss"] for row in state.history]
    assert losses[-1] < 0.8 * losses[0]
    assert weights_fingerprint(llm.model) == llm.fingerprint and not llm.model.training


def test_the_best_validation_epoch_comes_back(tools, corpus, tmp_path, monkeypatch):
    scores, kept = iter([0.5, 0.3, 0.4, 0.3]), []
    monkeypatch.setattr(training, "score_of", lambda predictions, task: {"mae": next(scores)})
    monkeypatch.setattr(training, "evaluate", lambda model, *_: (kept.append(weights(model)), {}))
    model, state = training.train(CONFIG, corpus, tools, tmp_path)
    assert (state.best_epoch, state.best_score) == (2, 0.3)  # the first of equals
    assert weights(model) == kept[1] != kept[3]
    assert not model.module.training


def test_a_higher_f1_is_better(tools, corpora, tmp_path, monkeypatch):
    scores = iter([0.5, 0.3, 0.6, 0.3])
    monkeypatch.setattr(training, "score_of", lambda predictions, task: {"f1_weighted": next(scores)})
    _, state = training.train(CONFIG, corpora["embedded-meld"], tools, tmp_path)
    assert (state.best_epoch, state.best_score) == (3, 0.6)


def test_validation_runs_as_often_as_asked_and_at_the_end(tools, corpus, tmp_path):
    _, state = training.train(changed(training__validate_every=3), corpus, tools, tmp_path)
    assert ["valid_mae" in row for row in state.history] == [False, False, True, True]


def test_every_clip_is_seen_once_an_epoch_in_a_new_order(tools, corpus, tmp_path, monkeypatch):
    seen, step = [], training.step
    monkeypatch.setattr(training, "step", lambda *given: seen.append(given[3]) or step(*given))
    training.train(changed(training__epochs=2), corpus, tools, tmp_path)
    first, second = (sum(seen[i : i + 3], []) for i in (0, 3))
    assert sorted(first) == sorted(second) == [[clip] for clip in range(20)] and first != second
    assert [len(units) for units in seen] == [8, 8, 4] * 2


def test_a_method_without_gradient_weights_returns_at_once(tools, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "step", None)
    config = RunConfig(data=CONFIG.data, method=TextOnlyConfig(), evaluation=CONFIG.evaluation)
    method, state = training.train(config, corpus, tools, tmp_path / "run")
    assert state == State() and not (tmp_path / "run").exists() and not method.module.training
    table, _ = training.evaluate(method, corpus.splits["test"], 4)
    assert len(table) == 5


def optimizer_of(method: Method) -> torch.optim.Optimizer:
    return torch.optim.AdamW(method.module.parameters(), lr=0.0)


def test_the_train_loss_is_the_mean_over_answer_tokens(tools, corpus):
    config = changed(method__dropout=0.0)
    method = training.build(config, corpus, tools)
    losses, _ = method.answer_losses(method.collate([corpus.splits["train"][i] for i in range(3)]))
    values = training.step(method, optimizer_of(method), corpus.splits["train"], [[0], [1], [2]], config.training)
    assert values == {"train_loss": pytest.approx(losses.mean().item(), abs=1e-6)}


# --- bit for bit ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(llm, corpora, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    model, state = training.train(CONFIG, corpora["embedded-sims"], tools_of(llm), folder)
    return {"weights": weights(model), "history": state.history, "checkpoint": folder / checkpoint.CHECKPOINT}


def held(path: Path) -> dict[str, Any]:
    return checkpoint.read(path, CONFIG.hash)


def same_checkpoint(a: Path, b: Path) -> bool:
    """Equal weights, best weights and optimiser moments."""
    first, second = held(a), held(b)
    groups = [(found["module"], found["best"], *found["moments"].values()) for found in (first, second)]
    return all(
        one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        for one, other in zip(*groups, strict=True)
    )


def test_two_fresh_runs_are_identical_whatever_the_callers_random_state_and_another_seed_is_not(
    tools, corpus, tmp_path, undisturbed
):
    torch.manual_seed(99)
    torch.rand(7)
    model, state = training.train(CONFIG, corpus, tools, tmp_path)
    assert weights(model) == undisturbed["weights"] and state.history == undisturbed["history"]
    other, _ = training.train(changed(seed=2222), corpus, tools, tmp_path / "other")
    assert weights(other) != undisturbed["weights"]


class Killed(Exception):
    pass


def test_a_run_stopped_after_an_epoch_goes_on_to_the_same_bytes(tools, corpus, tmp_path, undisturbed):
    def stop(state: State) -> None:
        if state.epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        training.train(CONFIG, corpus, tools, tmp_path, on_epoch=stop)
    torch.rand(3)
    epochs: list[int] = []
    model, state = training.train(CONFIG, corpus, tools, tmp_path, on_epoch=lambda s: epochs.append(s.epoch))
    assert epochs == [3, 4]
    assert weights(model) == undisturbed["weights"] and state.history == undisturbed["history"]
    assert same_checkpoint(tmp_path / checkpoint.CHECKPOINT, undisturbed["checkpoint"])


def test_a_run_stopped_in_every_epoch_and_within_them_goes_on_to_the_same_bytes(
    tools, corpus, tmp_path, undisturbed, monkeypatch
):
    step, calls = training.step, []

    def now_and_then(*arguments: Any) -> float:
        calls.append(1)
        if len(calls) in (2, 6, 9):  # in the middle of epochs
            raise Killed
        return step(*arguments)

    monkeypatch.setattr(training, "step", now_and_then)
    for _ in range(3):
        with pytest.raises(Killed):
            training.train(CONFIG, corpus, tools, tmp_path)
    model, _ = training.train(CONFIG, corpus, tools, tmp_path)
    assert weights(model) == undisturbed["weights"]


def test_checkpoints_written_aside_change_no_byte(tools, corpus, tmp_path, undisturbed, monkeypatch):
    """As on a GPU: a thread writes while the next epoch goes on."""
    monkeypatch.setattr(training, "_is_on_gpu", lambda method: True)
    told: list[int] = []
    done = training.train(CONFIG, corpus, tools, tmp_path, on_epoch=lambda state: told.append(state.epoch))
    assert weights(done[0]) == undisturbed["weights"] and told == [1, 2, 3, 4]
    assert same_checkpoint(tmp_path / checkpoint.CHECKPOINT, undisturbed["checkpoint"])


def test_a_finished_run_is_only_read(tools, corpus, tmp_path, undisturbed, monkeypatch):
    (tmp_path / checkpoint.CHECKPOINT).write_bytes(undisturbed["checkpoint"].read_bytes())
    monkeypatch.setattr(training, "step", None)
    model, state = training.train(CONFIG, corpus, tools, tmp_path)
    assert weights(model) == undisturbed["weights"] and state.epoch == 4


def test_the_checkpoint_holds_the_method_s_module_and_not_the_llm(undisturbed):
    found = held(undisturbed["checkpoint"])
    assert found["module"].keys() == found["best"].keys() == undisturbed["weights"].keys()
    assert not [name for name in found["module"] if "embed_tokens" in name or "lm_head" in name]


RUN = """
import os, signal, sys
from pathlib import Path
import torch
from torch import distributed
from cmpta_lib.config import LLMConfig, from_json
from cmpta_lib.data.store import load_corpus
from cmpta_lib.llm import loading
from cmpta_lib.base import Resources
from cmpta_lib.runs import checkpoint
from cmpta_lib.runs import loop as training

torch.set_num_threads(1)
folder, corpus, kill_in_epoch = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
config = from_json((folder / "config.json").read_text())
device = torch.device(os.environ.get("CMPTA_TEST_DEVICE", "cpu"), int(os.environ.get("LOCAL_RANK", 0)))
if device.type == "cuda":
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
llm = loading.load(LLMConfig(name=str(folder.parent / "llm")), folder, device)
if "WORLD_SIZE" in os.environ:
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
training._is_on_gpu = lambda method: True  # checkpoints are written aside, as on one
step, done = training.step, []

def counted(*arguments):
    done.append(1)
    if len(done) == 3 * (kill_in_epoch - 1) + 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)

training.step = counted
tools = Resources(llm.device, lambda config: llm)
method, state = training.train(config, load_corpus(corpus), tools, folder)
if training._rank() == 0:
    checkpoint.write_tensors(folder / "weights.safetensors", method.module.state_dict())
if distributed.is_initialized():
    distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def stored(llm, corpora, tmp_path_factory) -> Callable[[RunConfig], tuple[Path, Path, RunConfig]]:
    """Put LLM, corpus and config where another process finds them: run folder, corpus folder, config."""
    from cmpta_lib.embedded import synthetic

    folder = tmp_path_factory.mktemp("stored")
    plain = copy.deepcopy(llm.model)
    plain.set_attn_implementation("sdpa")
    plain.save_pretrained(folder / "llm")
    llm.tokenizer.save_pretrained(folder / "llm")
    sizes = {name: len(split) for name, split in corpora["embedded-sims"].splits.items()}
    synthetic.embedded_corpus("embedded-sims", folder, sizes)
    (corpus_folder,) = (path.parent for path in folder.glob("*/meta.json"))
    runs = iter(range(100))

    def store(config: RunConfig) -> tuple[Path, Path, RunConfig]:
        run = folder / f"run{next(runs)}"
        run.mkdir()
        config = override(config, {"method.llm.name": "random", "method.llm.fingerprint": llm.fingerprint})
        (run / "config.json").write_text(to_json(config))
        (run / "script.py").write_text(RUN)
        return run, corpus_folder, config

    return store


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


# --- dialogues, parts of a loss, buffers -------------------------------------------------------------------------------


def small_run(small, **changes: Any) -> RunConfig:
    start = RunConfig(data=CONFIG.data, method=small(), training=CONFIG.training, evaluation=CONFIG.evaluation)
    return override(start, {name.replace("__", "."): value for name, value in changes.items()})


def dialogues_of(split: Split) -> list[list[str]]:
    """The ids of every dialogue's clips in the split's order."""
    found: dict[str, list[str]] = {}
    for sample in split:
        found.setdefault(sample.dialogue or sample.id, []).append(sample.id)
    return list(found.values())


def test_units_are_clips_or_whole_dialogues(corpora):
    sims, meld = (corpora[name].splits["train"] for name in ("embedded-sims", "embedded-meld"))
    assert training.units(sims, "clip") == training.units(sims, "dialogue") == [[clip] for clip in range(20)]
    units = training.units(meld, "dialogue")
    assert [[meld[i].id for i in unit] for unit in units] == dialogues_of(meld)
    assert 1 < len(units) < len(meld) and training.units(meld, "clip") == [[clip] for clip in range(20)]


def test_a_dialogue_whose_clips_do_not_follow_each_other_is_one_unit(corpora):
    split = corpora["embedded-meld"].splits["train"]
    table = split.table.assign(dialogue=["a", "b", None, "a", None, "b"] * 3 + ["a", "c"])
    mixed = Split("train", split.task, table, np.zeros((10**6, 1)), np.zeros((10**6, 1)))
    units = training.units(mixed, "dialogue")
    assert units[:3] == [[0, 3, 6, 9, 12, 15, 18], [1, 5, 7, 11, 13, 17], [2]] and [4] in units and [19] in units
    assert sorted(sum(map(list, units), [])) == list(range(20))


def test_a_batch_of_dialogues_holds_each_whole_and_in_order(small, corpora, tools, tmp_path, monkeypatch):
    from small_method import SmallMethod

    corpus, batches, collate = corpora["embedded-meld"], [], SmallMethod.collate
    monkeypatch.setattr(SmallMethod, "collate", lambda self, s: batches.append([x.id for x in s]) or collate(self, s))
    monkeypatch.setattr(training, "evaluate", lambda method, *_: (None, {}))
    monkeypatch.setattr(training, "score_of", lambda predictions, task: {"f1_weighted": 0.5})
    training.train(small_run(small, training__epochs=3, training__batch_size=2), corpus, tools, tmp_path)
    dialogues = dialogues_of(corpus.splits["train"])
    steps = math.ceil(len(dialogues) / 2)
    orders = []
    for epoch in range(3):
        drawn = []
        for ids in batches[1 + epoch * steps : 1 + (epoch + 1) * steps]:  # the first call is `fit`'s
            whole = [dialogue for dialogue in dialogues if dialogue[0] in ids]
            assert sorted(ids) == sorted(sum(whole, [])) and len(whole) <= 2
            assert all([i for i in ids if i in dialogue] == dialogue for dialogue in whole)
            drawn += sorted(whole, key=lambda dialogue: ids.index(dialogue[0]))
        assert sorted(drawn) == sorted(dialogues)
        orders.append(drawn)
    assert len(batches) == 1 + 3 * steps and orders[0] != orders[1]


def test_dialogues_are_answered_in_the_splits_order_whatever_the_batch(small, corpora, tools):
    corpus = corpora["embedded-meld"]
    method = training.build(small_run(small), corpus, tools)
    tables = [training.evaluate(method, corpus.splits["train"], size)[0] for size in (1, 3, 64)]
    for table in tables:
        assert list(table["id"]) == [sample.id for sample in corpus.splits["train"]]
        pd.testing.assert_frame_equal(table, tables[0])
    issues = [training.evaluate(method, corpus.splits["train"], size)[1] for size in (1, 64)]
    assert issues[0] == issues[1] == {"silent": sum(len(s.audio) == 0 for s in corpus.splits["train"])}


@pytest.mark.parametrize("world", ["embedded-sims", "embedded-meld"])
def test_named_parts_of_the_loss_reach_the_history(small, world, corpora, tools, tmp_path):
    corpus = corpora[world]
    whole = small_run(small, training__epochs=2, training__batch_size=64, method__dropout=0.0)
    method = training.build(whole, corpus, tools)
    expected = method.loss(method.collate([*corpus.splits["train"]]))
    _, state = training.train(whole, corpus, tools, tmp_path)
    first = state.history[0]
    assert first["train_loss"] == pytest.approx(expected.total.item() / 20, rel=1e-5)
    assert first["train_error"] == pytest.approx(expected.parts["error"].item() / 20, rel=1e-5)
    assert first["train_size"] == pytest.approx(expected.parts["size"].item() / 20, rel=1e-5)
    for row in state.history:
        assert row["train_error"] + row["train_size"] == pytest.approx(row["train_loss"], rel=1e-5)
    assert list(first)[:5] == ["epoch", "learning_rate", "train_loss", "train_error", "train_size"]


def test_what_a_method_keeps_in_buffers_survives_a_kill_and_belongs_to_the_best_epoch(small, corpora, tools, tmp_path):
    config, corpus = small_run(small, training__batch_size=2), corpora["embedded-meld"]
    steps = math.ceil(len(dialogues_of(corpus.splits["train"])) / 2)
    through, state = training.train(config, corpus, tools, tmp_path / "through")
    assert through.module.steps == state.best_epoch * steps and state.epoch == 4

    def stop(state: State) -> None:
        if state.epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        training.train(config, corpus, tools, tmp_path / "stopped", on_epoch=stop)
    resumed, again = training.train(config, corpus, tools, tmp_path / "stopped")
    assert weights(resumed) == weights(through) and again.history == state.history


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_its_clips(tools, corpus, tmp_path):
    with pytest.raises(FloatingPointError, match=r"loss is nan on clips (train_\d{5}, ){7}train_\d{5}: look"):
        training.train(changed(training__learning_rate=1e30), corpus, tools, tmp_path)
    assert not (tmp_path / checkpoint.CHECKPOINT).exists()  # the first epoch was not finished


# --- patience ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patience", "epoch", "best_epoch", "stops"),
    [
        (None, 100, 0, False),
        (3, 12, 2, False),  # 100 epochs warm up for 10, so patience runs out at 13 at the earliest
        (3, 13, 2, True),
        (3, 13, 11, False),
        (3, 14, 11, True),
    ],
)
def test_patience_counts_from_the_end_of_the_warm_up(patience, epoch, best_epoch, stops):
    config = TrainingConfig(epochs=100, warmup_fraction=0.1, patience=patience)
    assert training._is_over(State(epoch=epoch, best_epoch=best_epoch), Stage("training", config)) == (stops or epoch >= 100)


def test_a_run_out_of_patience_stops_and_stays_stopped(tools, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "score_of", lambda predictions, task: {"mae": 0.5})
    config = changed(training__epochs=20, training__patience=2, training__batch_size=20)
    _, state = training.train(config, corpus, tools, tmp_path)
    assert (state.epoch, state.best_epoch) == (4, 1)  # two epochs of warm-up, two of patience
    _, again = training.train(config, corpus, tools, tmp_path)
    assert again.epoch == 4


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_answers_come_in_the_splits_order_whatever_the_batch(tools, corpora):
    corpus = corpora["embedded-meld"]
    method = training.build(CONFIG, corpus, tools)
    tables = []
    for size in (1, 3, 64):
        method.module.train()
        tables.append(training.evaluate(method, corpus.splits["train"], size)[0])
        assert method.module.training  # as it was
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])
    assert list(tables[0].columns) == ["id", "label", "reply", "prediction"]
    assert list(tables[0]["id"]) == [sample.id for sample in corpus.splits["train"]]
    assert list(tables[0]["label"]) == [sample.label for sample in corpus.splits["train"]]
    method.module.eval()
    for row, sample in zip(tables[0].itertuples(), corpus.splits["train"], strict=True):
        assert [row.reply] == method.predict(method.collate([sample])).replies
        assert row.prediction == method.answers[row.reply]


def test_an_unparsable_reply_has_no_prediction(tools, corpus, monkeypatch):
    method = training.build(changed(method__decoding="free"), corpus, tools)
    monkeypatch.setattr(method, "_free_replies", lambda batch, tokens: ["+0.4", "?", "-0.2", "", "+0.0"])
    table, issues = training.evaluate(method, corpus.splits["test"], 5)
    assert table["prediction"].isna().sum() == 2 == table["reply"].isna().sum() == issues["unparsable_replies"]
    scores = training.score_of(table, corpus.task)
    kept = table[table["prediction"].notna()]
    assert scores == metrics.regression_metrics(kept["label"], kept["prediction"]) | {"unparsable_count": 2.0}


@pytest.mark.parametrize("size", [1, 3, 64])
def test_oddities_are_counted_once_for_each_clip_whatever_the_batch(tools, corpus, size):
    method = training.build(changed(method__prompt__max_text_tokens=3), corpus, tools)
    _, issues = training.evaluate(method, corpus.splits["train"], size)
    long = [len(method.llm.token_ids(sample.text)) > 3 for sample in corpus.splits["train"]]
    assert issues == {"texts_cut": sum(long)} and any(long)


def predictions(labels: list, answers: list) -> pd.DataFrame:
    return pd.DataFrame({"label": labels, "prediction": np.array(answers, float)})


def test_unparsable_classes_are_wrong_and_never_neutral(corpora):
    corpus = corpora["embedded-meld"]
    scores = training.score_of(predictions([0, 0, 4, 6], [0, np.nan, 4, np.nan]), corpus.task)
    assert scores["accuracy"] == 0.5 and scores["unparsable_count"] == 2
    assert scores == metrics.classification_metrics([0, 0, 4, 6], [0, -1, 4, -1], corpus.task.labels)


def test_without_one_parsable_score_the_error_is_infinite(corpus):
    scores = training.score_of(predictions([0.2, -0.4], [np.nan, np.nan]), corpus.task)
    assert scores["mae"] == math.inf and scores["unparsable_count"] == 2


def test_one_parsable_score_is_scored(corpus):
    scores = training.score_of(predictions([0.2, -0.4, 0.0], [np.nan, -0.2, np.nan]), corpus.task)
    assert scores["mae"] == pytest.approx(0.2) and scores["unparsable_count"] == 2

