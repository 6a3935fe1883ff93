"""Training: optimiser and schedule, stages, what a kill leaves behind, patience, and answers in order."""

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
from torch import nn

from cmpta_lib import metrics
from cmpta_lib.base import Group, Method, Resources
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
from cmpta_lib.figures import curves
from cmpta_lib.llm.loading import weights_fingerprint
from cmpta_lib.method.llm import FrozenLLM
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
    for steps, fraction in ((1, 0.1), (2, 0.0), (3, 1.0), (7, 0.5)):
        short = TrainingConfig(learning_rate=1.0, warmup_fraction=fraction)
        rates = [learning_rate(step, steps, short) for step in range(steps)]
        assert all(0 < rate <= 1 for rate in rates) and max(rates) == 1
    constant = TrainingConfig(learning_rate=0.1, schedule="constant", warmup_fraction=0.1)
    assert [learning_rate(step, 100, constant) for step in (0, 10, 99, 500)] == pytest.approx([0.01, 0.1, 0.1, 0.1])


# --- what is trained, and which weights come back ---------------------------------------------------------------------


def test_training_lowers_the_loss_and_leaves_the_llm_alone(corpus, tmp_path):
    llm = random_llm()
    _, state = training.train(changed(training__epochs=6), corpus, tools_of(llm), tmp_path)
    losses = [row["train_loss"] for row in state.history]
    assert losses[-1] < 0.8 * losses[0]
    expected = [learning_rate(3 * epoch - 1, 18, CONFIG.training) for epoch in range(1, 7)]  # 20 clips: 3 steps an epoch
    assert [row["learning_rate"] for row in state.history] == pytest.approx(expected)
    steps = pd.DataFrame(state.steps, columns=["epoch", "loss", "learning_rate"])
    assert list(steps["epoch"]) == sorted([*range(1, 7)] * 3)
    assert list(steps["learning_rate"]) == [learning_rate(step, 18, CONFIG.training) for step in range(18)]
    shares = steps["loss"] * ([0.4, 0.4, 0.2] * 6)
    assert losses == pytest.approx(list(shares.groupby(steps["epoch"]).sum())), "an epoch's loss is the mean over its clips"
    assert weights_fingerprint(llm.model) == llm.fingerprint and not llm.model.training


@pytest.mark.parametrize(
    ("world", "metric", "scores", "best_epoch"),
    [("sims", "mae", [0.5, 0.3, 0.4, 0.3], 2), ("meld", "f1_weighted", [0.5, 0.3, 0.6, 0.3], 3)],  # the first of equals
)
def test_the_best_validation_epoch_comes_back(world, metric, scores, best_epoch, tools, corpora, tmp_path, monkeypatch):
    """The lowest error, the highest F1."""
    shown, kept = iter(scores), []
    monkeypatch.setattr(training, "score_of", lambda predictions, task: {metric: next(shown)})
    monkeypatch.setattr(training, "evaluate", lambda model, *_: (kept.append(weights(model)), {}))
    model, state = training.train(CONFIG, corpora[f"embedded-{world}"], tools, tmp_path)
    assert (state.best_epoch, state.best_score) == (best_epoch, scores[best_epoch - 1])
    assert weights(model) == kept[best_epoch - 1] != kept[3]
    assert not model.module.training


def test_every_clip_is_seen_once_an_epoch_in_a_new_order_and_validation_comes_as_often_as_asked(
    tools, corpus, tmp_path, monkeypatch
):
    seen, step = [], training.step
    monkeypatch.setattr(training, "step", lambda *given: seen.append(given[3]) or step(*given))
    _, state = training.train(changed(training__validate_every=3), corpus, tools, tmp_path)
    first, second = (sum(seen[i : i + 3], []) for i in (0, 3))
    assert sorted(first) == sorted(second) == [[clip] for clip in range(20)] and first != second
    assert [len(units) for units in seen] == [8, 8, 4] * 4
    assert ["valid_mae" in row for row in state.history] == [False, False, True, True], "every third, and the last"


def test_a_method_without_gradient_weights_returns_at_once(tools, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "step", None)
    config = RunConfig(data=CONFIG.data, method=TextOnlyConfig(), evaluation=CONFIG.evaluation)
    method, state = training.train(config, corpus, tools, tmp_path / "run")
    assert state == State() and not (tmp_path / "run").exists() and not method.module.training
    table, _ = training.evaluate(method, corpus.splits["test"], 4)
    assert len(table) == 5


def optimizer_of(method: Method) -> torch.optim.Optimizer:
    return torch.optim.AdamW(method.module.parameters(), lr=0.0)


def test_loss_and_gradient_are_means_over_answer_tokens(tools, corpus):
    config = changed(method__dropout=0.0)
    method = training.build(config, corpus, tools)
    losses, _ = method.answer_losses(method.collate([corpus.splits["train"][i] for i in range(3)]))
    weights = [*method.module.parameters()]
    wanted = torch.autograd.grad(losses.mean(), weights)
    unclipped = config.training.model_copy(update={"gradient_clip": None})
    values = training.step(method, optimizer_of(method), corpus.splits["train"], [[0], [1], [2]], unclipped)
    assert values == {"train_loss": pytest.approx(losses.mean().item(), abs=1e-6)}
    for weight, gradient in zip(weights, wanted, strict=True):  # Adam would hide a factor in its step
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-6)


# --- bit for bit ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(llm, corpora, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    model, state = training.train(CONFIG, corpora["embedded-sims"], tools_of(llm), folder)
    return {"weights": weights(model), "told": (state.history, state.steps), "checkpoint": folder / checkpoint.CHECKPOINT}


def held(path: Path) -> dict[str, Any]:
    return checkpoint.read(path, CONFIG.hash)


def same_checkpoint(a: Path, b: Path) -> bool:
    """Equal weights, best weights and optimiser moments."""
    first, second = held(a), held(b)
    groups = [(found["module"], found["best"], *found["moments"].values()) for found in (first, second)]
    assert not [name for name in first["module"] if "embed_tokens" in name or "lm_head" in name], "the LLM is not in it"
    return all(
        one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        for one, other in zip(*groups, strict=True)
    )


def test_two_fresh_runs_are_identical_whatever_the_callers_random_state(tools, corpus, tmp_path, undisturbed):
    """Another seed is another run."""
    torch.manual_seed(99)
    torch.rand(7)
    told: list[int] = []
    model, state = training.train(CONFIG, corpus, tools, tmp_path, on_epoch=lambda state: told.append(state.epoch))
    assert weights(model) == undisturbed["weights"] and told == [1, 2, 3, 4]
    assert (state.history, state.steps) == undisturbed["told"]
    assert same_checkpoint(tmp_path / checkpoint.CHECKPOINT, undisturbed["checkpoint"])
    other, _ = training.train(changed(seed=2222), corpus, tools, tmp_path / "other")
    assert weights(other) != undisturbed["weights"]


class Killed(Exception):
    pass


def test_a_run_stopped_within_epochs_and_after_one_ends_with_the_same_bytes(
    tools, corpus, tmp_path, undisturbed, monkeypatch
):
    step, calls = training.step, []

    def now_and_then(*arguments: Any) -> float:
        calls.append(1)
        if len(calls) in (2, 6):  # in the middle of epochs
            raise Killed
        return step(*arguments)

    def stop(state: State) -> None:
        if state.epoch == 2:
            raise Killed

    monkeypatch.setattr(training, "step", now_and_then)
    for on_epoch in (None, None, stop):
        with pytest.raises(Killed):
            training.train(CONFIG, corpus, tools, tmp_path, on_epoch or (lambda state: None))
        torch.rand(3)
    epochs: list[int] = []
    training.train(CONFIG, corpus, tools, tmp_path, on_epoch=lambda s: epochs.append(s.epoch))
    assert epochs == [3, 4]
    monkeypatch.setattr(training, "step", None)  # a finished run is only read
    model, state = training.train(CONFIG, corpus, tools, tmp_path)
    assert weights(model) == undisturbed["weights"] and (state.history, state.steps) == undisturbed["told"]
    assert same_checkpoint(tmp_path / checkpoint.CHECKPOINT, undisturbed["checkpoint"])


RUN = """
import os, sys
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
folder, corpus = Path(sys.argv[1]), Path(sys.argv[2])
config = from_json((folder / "config.json").read_text())
device = torch.device(os.environ.get("CMPTA_TEST_DEVICE", "cpu"), int(os.environ.get("LOCAL_RANK", 0)))
if device.type == "cuda":
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
llm = loading.load(LLMConfig(name=str(folder.parent / "llm")), folder, device)
if "WORLD_SIZE" in os.environ:
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
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
    assert len(first) == 6 and "stage" not in first


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
    with pytest.raises(FloatingPointError, match=r"loss is nan on clips train_\d{5}, train_\d{5}: look"):
        diverging = {"training__learning_rate": 10.0, "training__weight_decay": 1000.0, "training__batch_size": 2}
        training.train(changed(**diverging), corpus, tools, tmp_path)
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


@pytest.mark.parametrize("unit", ["clip", "dialogue"])
def test_answers_come_in_the_splits_order_whatever_the_batch(unit, tools, corpora, small):
    split = corpora["embedded-meld"].splits["train"]
    method = training.build(CONFIG if unit == "clip" else small_run(small), corpora["embedded-meld"], tools)
    assert method.unit == unit
    method.module.train()
    (table, issues), *others = (training.evaluate(method, split, size) for size in (1, 3, 64))
    assert method.module.training  # as it was
    for other, counted in others:
        pd.testing.assert_frame_equal(other, table)
        assert counted == issues
    assert list(table.columns) == ["id", "label", "reply", "prediction"]
    assert [*zip(table["id"], table["label"], strict=True)] == [(sample.id, sample.label) for sample in split]
    if unit == "dialogue":
        assert issues == {"silent": sum(len(sample.audio) == 0 for sample in split)}
        return
    method.module.eval()
    for row, sample in zip(table.itertuples(), split, strict=True):
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


@pytest.mark.parametrize(
    ("world", "labels", "answers", "expected"),
    [
        ("sims", [0.2, -0.4], [None, None], {"mae": math.inf}),
        ("sims", [0.2, -0.4, 0.0], [None, -0.2, None], {"mae": pytest.approx(0.2)}),
        ("meld", [0, 0, 4, 6], [0, None, 4, None], {"accuracy": 0.5, "f1_neutral": pytest.approx(2 / 3)}),
    ],
)
def test_what_is_no_answer_is_wrong_for_a_class_and_left_out_of_an_error(world, labels, answers, expected, corpora):
    table = pd.DataFrame({"label": labels, "prediction": np.array(answers, float)})
    scores = training.score_of(table, corpora[f"embedded-{world}"].task)
    assert scores["unparsable_count"] == 2 and scores | expected == scores


def parameters(count: int = 2) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(3)) for _ in range(count)]


@pytest.mark.parametrize(("name", "kind"), [("adamw", "AdamW"), ("adam", "Adam"), ("adamw_amsgrad", "AdamW")])
def test_the_named_optimiser_is_taken_with_its_groups_and_steps_as_the_plain_one(name, kind):
    """Against torch's training over single tensors, to float32 rounding."""
    config = TrainingConfig(optimizer=name, weight_decay=0.1, epsilon=1e-4)
    first, second = parameters()
    made = training.optimizer_of([Group([first], 0.25), Group([second], weight_decay=0.0)], config)
    assert [(group["rate"], group["weight_decay"]) for group in made.param_groups] == [(0.25, 0.1), (1.0, 0.0)]
    assert (type(made).__name__, made.defaults["eps"]) == (kind, 1e-4)
    assert made.defaults["amsgrad"] is (name == "adamw_amsgrad")
    fused, plain = (training.optimizer_of([Group(parameters())], config) for _ in range(2))
    for group in plain.param_groups:
        group |= {"fused": False, "foreach": False}
    assert all(group["fused"] for group in fused.param_groups)
    for number in range(20):
        for optimizer in (fused, plain):
            generator = torch.Generator().manual_seed(number)
            for group in optimizer.param_groups:
                group["lr"] = 0.01
                for parameter in group["params"]:
                    parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
    for ours, theirs in zip(fused.param_groups[0]["params"], plain.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert not torch.equal(ours, parameters()[0])


def test_every_step_sets_the_rate_of_each_group(small, corpora, tools, monkeypatch, tmp_path):
    from small_method import SmallMethod

    seen, step = [], training.step

    def watched(method, optimizer, *rest):
        seen.append([group["lr"] for group in optimizer.param_groups])
        return step(method, optimizer, *rest)

    def in_two_groups(self, config):
        weight, bias = self.module.parameters()
        return [Group([weight]), Group([bias], 0.1)]

    monkeypatch.setattr(training, "step", watched)
    monkeypatch.setattr(SmallMethod, "groups", in_two_groups)
    training.train(small_run(small, training__epochs=1), corpora["embedded-sims"], tools, tmp_path)
    assert seen and all(slow == pytest.approx(0.1 * fast) for fast, slow in seen) and seen[0][0] > 0


def test_gradients_are_clipped_only_where_the_settings_say_so(corpora, tools):
    from test_held_out import config_of

    split = corpora["embedded-sims"].splits["train"]
    norms = {}
    for clip in (1e-3, None):
        config = config_of("bilstm")
        method = training.build(config, corpora["embedded-sims"], tools)
        optimizer = training.optimizer_of(method.groups(config.training), config.training)
        settings = config.training.model_copy(update={"gradient_clip": clip})
        training.step(method, optimizer, split, [[0], [1], [2]], settings)
        norms[clip] = torch.nn.utils.get_total_norm([p.grad for p in method.module.parameters() if p.grad is not None]).item()
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-2) and norms[None] > 1e-2


def staged_config(**changes: object) -> RunConfig:
    import staged_method

    base = RunConfig(
        data=DataConfig(name="a", fingerprint="b"),
        method=staged_method.StagedConfig(),
        training=TrainingConfig(epochs=3, batch_size=4, learning_rate=0.05),
    )
    return override(base, {name.replace("__", "."): value for name, value in changes.items()})


def test_each_stage_has_its_epochs_its_weights_its_schedule_and_labels_where_it_says_so(staged, corpus, tools, tmp_path):
    config = staged_config()
    assert config.epochs == 5 and [stage.name for stage in config.stages] == ["reading", "training"]
    before = weights(training.build(config, corpus, tools))
    method, state = training.train(config, corpus, tools, tmp_path)
    assert [(row["epoch"], row["stage"]) for row in state.history] == [
        (1, "reading"), (2, "reading"), (3, "training"), (4, "training"), (5, "training"),
    ]  # fmt: skip
    assert ["valid_mae" in row for row in state.history] == [False, False, True, True, True]
    assert state.best_epoch >= 3
    labels = {name: [label for stage, label in staged.seen if stage == name] for name in ("reading", "training")}
    assert labels["reading"] and set(labels["reading"]) == {None}
    assert labels["training"] and None not in labels["training"]
    after = weights(method)
    changed = {name.split(".")[0] for name in before if before[name] != after[name]}
    assert {"reader", "head"} <= changed and "linear" not in changed
    rates = [row["learning_rate"] for row in state.history]
    assert rates[1] < 0.01 * 0.2 and rates[2] > rates[1], "cosine to zero, then a warm-up anew"
    alone, state = training.train(staged_config(method__answers=False), corpus, tools, tmp_path / "alone")
    assert state.best_epoch == 2 and state.best_score is None, "an unlabelled stage keeps its last weights"
    assert weights(alone)["reader.weight"] == after["reader.weight"]


def test_runs_that_agree_share_a_stage(staged, corpus, tools, tmp_path):
    common = tmp_path / "stages"
    first, _ = training.train(staged_config(), corpus, tools, tmp_path / "first", shared_stages=common)
    assert len(list(common.iterdir())) == 1
    for change in ({"method__width": 5}, {"training__epochs": 2}, {"method__share": 0.5}):
        alone, expected = training.train(staged_config(**change), corpus, tools, tmp_path / f"alone{change}")
        epochs: list[int] = []
        with_it, state = training.train(
            staged_config(**change), corpus, tools, tmp_path / f"with{change}", lambda s, to=epochs: to.append(s.epoch), common
        )
        assert epochs[0] == 2, "both epochs of the first stage at once"
        assert weights(with_it) == weights(alone)
        assert (state.history, state.steps) == (expected.history, expected.steps) and state.steps[0][0] == 1
    assert len(list(common.iterdir())) == 1
    for change in ({"seed": 5}, {"method__first_epochs": 1}, {"data__fingerprint": "c"}):
        training.train(staged_config(**change), corpus, tools, tmp_path / f"other{change}", shared_stages=common)
    assert len(list(common.iterdir())) == 4


def test_a_shared_stage_that_another_process_writes_meanwhile_stays(tmp_path, monkeypatch):
    path = tmp_path / "reading.pt"

    def read(*_: object) -> None:
        path.write_bytes(b"what the other one wrote")
        raise FileNotFoundError(path)

    monkeypatch.setattr(checkpoint, "read", read)
    module = torch.nn.Linear(1, 1)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: pytest.fail("it removes what it has not found"))
    assert checkpoint.take_stage(path, module, torch.optim.SGD(module.parameters()), State()) is False


def one_bit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def without_steps(path: Path) -> None:
    """As versions left it that kept no loss of single steps."""
    content = checkpoint.read(path, path.stem)
    checkpoint.write(path, checkpoint.pack(path.stem, {name: content[name] for name in ("taught", "history")}))


@pytest.mark.parametrize("damage", [one_bit, without_steps])
def test_a_damaged_shared_stage_is_named_and_made_anew(damage, staged, corpus, tools, tmp_path, caplog):
    common = tmp_path / "stages"
    first, whole = training.train(staged_config(), corpus, tools, tmp_path / "first", shared_stages=common)
    (path,) = common.iterdir()
    sound = path.read_bytes()
    damage(path)
    again, state = training.train(staged_config(), corpus, tools, tmp_path / "again", shared_stages=common)
    assert weights(again) == weights(first) and len(path.read_bytes()) == len(sound) and state.steps == whole.steps
    assert path.name in caplog.text and "making this stage anew" in caplog.text
    caplog.clear()
    training.train(staged_config(), corpus, tools, tmp_path / "third", shared_stages=common)
    assert not caplog.text, "what is there now is sound"


def test_shares_lie_within_each_other_and_keep_the_number_of_steps():
    units = [[place] for place in range(40)]
    tenth, half, other = (training.share_of(units, share, seed) for share, seed in ((0.1, 1), (0.5, 1), (0.1, 2)))
    assert len(tenth) == len(half) == 40
    small, large = ({place for (place,) in drawn} for drawn in (tenth, half))
    assert len(small) == 4 and len(large) == 20 and small < large and small != {place for (place,) in other}
    assert training.share_of(units, 1.0, 1) is units
    assert all(tenth.count([place]) == 10 for place in small)


# --- what is shown of it ----------------------------------------------------------------------------------------------


def history(valid: list[float], losses: list[float], metric: str = "mae") -> pd.DataFrame:
    epochs = np.arange(1, len(valid) + 1)
    return pd.DataFrame({"epoch": epochs, "learning_rate": 0.1, "train_loss": losses, f"valid_{metric}": valid})


FALLS, RISES, NAN = [0.5, 0.4, 0.3], [0.3, 0.4, 0.5], math.nan
UP = ([0.2, 0.3, 0.31], FALLS)


@pytest.mark.parametrize(
    ("metric", "runs", "luck", "said"),
    [
        (
            "mae", [UP, ([0.2, 0.3, 0.33], FALLS)], 0.05,
            "From the best epoch to the last, validation MAE gets worse by 0.120 (0.200 → 0.320, mean over 2 seeds; an "
            "epoch's mean training loss 0.500 → 0.300). A score of so many clips has a standard error of 0.050, and the "
            "sample sd over seeds is 0.014: overfitting.",
        ),
        ("mae", [UP, ([0.2, 0.3, 0.33], FALLS)], NAN, "error of —, and the sample sd over seeds is 0.014: too small to tell"),
        ("mae", [UP, ([0.2, 0.3, 0.33], FALLS)], 0.061, "0.014: too small to tell from luck."),
        ("mae", [UP, ([0.2, 0.3, 0.45], FALLS)], 0.05, "sd over seeds is 0.099: too small to tell from luck."),
        ("mae", [([0.2, 0.3, 0.31], RISES)], 0.05, "seeds is unknown: no overfitting, as that loss does not fall."),
        ("f1_weighted", [([0.5, NAN, 0.4], FALLS)], 0.04, "WF1 gets worse by 10.00 % (50.00 % → 40.00 %, mean over 1 seed; an"),
        ("f1_weighted", [([0.5, NAN, 0.4], FALLS)], 0.04, "error of 4.00 %, and the spread over seeds is unknown: overfitting."),
        ("mae", [([0.3, 0.2, 0.2], FALLS)] * 2, 0.01, "No epoch's validation MAE is better than the last one's (2 seeds): no "),
        ("mae", [([NAN] * 3, FALLS)], 0.01, ""),
    ],
)  # fmt: skip
def test_overfitting_is_said_only_beyond_the_luck_of_clips_and_seeds(metric, runs, luck, said):
    found = curves.after_the_best({str(seed): history(*run, metric) for seed, run in enumerate(runs)}, metric, luck)
    assert said in found and bool(said) == bool(found)


def test_curves_are_drawn_by_step_where_every_run_has_them():
    runs = {seed: history([0.3, 0.2], [0.5, 0.4]) for seed in ("1111", "2222")}
    steps = {
        seed: pd.DataFrame({"step": range(1, 41), "loss": rng.random(40), "learning_rate": [0.1] * 40})
        for seed, rng in ((seed, np.random.default_rng(int(seed))) for seed in runs)
    }
    loss, _, rate = curves.training_curves(runs, "mae", steps=steps).axes
    assert (loss.get_xlabel(), rate.get_xlabel()) == ("step", "step")
    single, mean = sorted((line.get_ydata() for line in loss.lines[:2]), key=np.std)[::-1]
    assert list(single) == list(steps["1111"]["loss"]) and mean[-1] == pytest.approx(single[-2:].mean())
    assert list(rate.lines[0].get_xdata()) == list(range(1, 41))
    for missing in (None, {"1111": steps["1111"]}, steps | {"2222": steps["2222"][:0]}):
        loss, _, rate = curves.training_curves(runs, "mae", steps=missing).axes
        assert (loss.get_xlabel(), rate.get_xlabel()) == ("epoch", "epoch") and len(loss.lines) == 2
