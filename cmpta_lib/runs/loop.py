"""Answering a split and scoring the answers; and training: plain PyTorch, bit-exact after a kill, only the method on disk.

transformers' Trainer would save and restore the frozen LLM or need private methods overridden, and resumes from a torn
checkpoint without a word; this loop is shorter than those overrides. Every random choice is a pure function of (seed, epoch):
the order of the clips and dropout start anew each epoch, so a run resumed at an epoch's end cannot differ.

Under `torchrun` each process takes every n-th clip of each batch and gradients are summed; process 0 writes.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import distributed

from cmpta_lib import metrics, registry
from cmpta_lib.base import Group, Method, Resources
from cmpta_lib.config import RunConfig, Stage, TrainingConfig
from cmpta_lib.data.corpus import Corpus, Inputs, Split, Task, dialogues_of
from cmpta_lib.runs.checkpoint import CHECKPOINT, Saver, State, leave_stage, load_checkpoint, path_of, take_stage


def units(split: Split, unit: Literal["clip", "dialogue"]) -> Sequence[Sequence[int]]:
    """What batches are drawn from: every clip alone, or the clips of a dialogue together, in the split's order."""
    return [[index] for index in range(len(split))] if unit == "clip" else dialogues_of(split.table["dialogue"])


def evaluate(method: Method, split: Split, batch_size: int) -> tuple[pd.DataFrame, Counter[str]]:
    """Answer every clip of a split: columns id, label, reply, prediction (NaN where a reply is no legal answer).

    Units are batched by length, so that little padding is made; the rows come back in the split's order, and no answer
    depends on its batch. Also returns what was odd, each clip counted once.
    """
    was_training = method.module.training
    method.module.eval()
    frames = split.table["audio_length"].to_numpy() + split.table["vision_length"].to_numpy()
    drawn = units(split, method.unit)
    order = np.argsort([frames[list(unit)].max() for unit in drawn], kind="stable")
    replies: list[str | None] = [None] * len(split)
    values = np.full(len(split), np.nan)
    issues: Counter[str] = Counter()
    for start in range(0, len(order), batch_size):
        rows = [row for place in order[start : start + batch_size] for row in drawn[place]]
        batch = method.collate([split[row] for row in rows])
        answered = method.predict(batch)
        values[rows] = answered.values
        for row, reply in zip(rows, answered.replies, strict=True):
            replies[row] = reply
        issues.update(batch.issues)
        issues.update(answered.issues)
    method.module.train(was_training)
    table = {"id": split.table["id"], "label": split.labels, "reply": replies, "prediction": values}
    return pd.DataFrame(table), issues


def score_of(predictions: pd.DataFrame, task: Task) -> dict[str, float]:
    """Metrics of a prediction table. Unparsable replies: wrong for a class; for a score left out, and counted."""
    truth, answer = predictions["label"].to_numpy(), predictions["prediction"].to_numpy(float)
    parsed = np.isfinite(answer)
    if task.kind == "classification":
        return metrics.classification_metrics(truth, np.where(parsed, answer, metrics.UNPARSABLE).astype(int), task.labels)
    if parsed.sum() < 2:  # nothing to correlate; without any answer a score that never wins a comparison
        mae = float(np.abs(truth[parsed] - answer[parsed]).mean()) if parsed.any() else math.inf
        return {"mae": mae, "unparsable_count": float((~parsed).sum())}
    scores = metrics.regression_metrics(truth[parsed], answer[parsed])
    return scores | {"unparsable_count": float((~parsed).sum())}


def build(config: RunConfig, corpus: Corpus, resources: Resources) -> Method:
    """A fresh method for this run: initial weights by its seed, then fitted to the training split."""
    torch.manual_seed(config.seed)
    method = registry.build(config, Inputs.of(corpus), resources)
    method.fit(corpus.splits["train"])
    return method


def learning_rate(step: int, steps: int, config: TrainingConfig) -> float:
    """Linear warm-up, then cosine to zero at `steps`, and zero beyond: it never rises again (choice 14)."""
    warmup = max(1, round(config.warmup_fraction * steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    config: RunConfig, corpus: Corpus, resources: Resources, folder: Path,
    on_epoch: Callable[[State], None] = lambda state: None, shared_stages: Path | None = None,
) -> tuple[Method, State]:  # fmt: skip
    """Train, or go on training, and return the method with the weights of its best validation epoch.

    The folder receives a checkpoint after every epoch, atomically; a later call continues from it. A method without
    weights that need a gradient, such as text only, returns at once. Of the test split nothing is read.

    Args:
        on_epoch: told how far the run is once that is on the disk; in a thread.
        shared_stages: folder for the results of stages that several runs share (`Stage.outcome`); None = share none.
    Raises:
        FloatingPointError: the loss is not finite; says at which step and which clips.
        ValueError: several processes train a method that must be trained in one.
    """
    torch.set_num_threads(config.training.num_threads)
    method = build(config, corpus, resources)
    module = method.module
    if method.keeps_clip_state and (world := _world()) > 1:
        said = f"method '{config.method.name}' keeps what it learns of each training clip: expected one process, and torchrun"
        raise ValueError(f"{said} started {world}; start it without torchrun")
    stages = [stage for stage in config.stages if _begin(method, stage)]
    if not stages:
        module.eval()
        return method, State()
    state, optimizer, best = _resumed(folder / CHECKPOINT, config.hash, method, stages)
    with Saver(folder / CHECKPOINT, config.hash, on_epoch) as saver:
        while not _is_over(state, stage := stages[state.stage]):
            shared = path_of(shared_stages, stage) if shared_stages and stage.outcome is not None and _world() == 1 else None
            if shared and state.epoch == state.stage_start and take_stage(shared, module, optimizer, state):
                best = _copied(method)
            else:
                best = _epoch(method, optimizer, corpus, config, state, stage, best)
            if _is_over(state, stage):
                module.load_state_dict(best)
                if shared:
                    leave_stage(shared, module, optimizer, state)
                if state.stage + 1 < len(stages):
                    state.stage, state.stage_start, state.best_score = state.stage + 1, state.epoch, None
                    optimizer = _optimizer(method, stages[state.stage])
            if _rank() == 0:
                saver.save(module, optimizer, state, best)
    module.load_state_dict(best)
    module.eval()
    return method, state


def _resumed(
    path: Path, run: str, method: Method, stages: Sequence[Stage]
) -> tuple[State, torch.optim.Optimizer, dict[str, torch.Tensor]]:
    """Where the checkpoint was, or at the start: how far, the optimiser, and the best weights so far."""
    found = load_checkpoint(path, run, method.module)
    state: State = found.get("state", State())
    optimizer = _optimizer(method, stages[state.stage])
    if not found:
        return state, optimizer, _copied(method)
    method.module.load_state_dict(found["module"])
    # A step counter stays on the CPU: a GPU would have to wait for it.
    optimizer.load_state_dict(optimizer.state_dict() | {"state": found["moments"]})
    return state, optimizer, found["best"]


def _begin(method: Method, stage: Stage) -> list[Group]:
    """Put the method into a stage; what is trained in it, in groups, none where nothing is."""
    method.enter(stage)
    return [group for group in method.groups(stage.training) if group.parameters]


def _optimizer(method: Method, stage: Stage) -> torch.optim.Optimizer:
    return optimizer_of(_begin(method, stage), stage.training)


def _copied(method: Method) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in method.module.state_dict().items()}


def optimizer_of(groups: Sequence[Group], config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimiser that the settings name, at learning rate 0: each step sets it, times the group's `rate`.

    All of a step is one fused kernel, where the device has it: on a CPU a quarter of the time of torch's default, which
    passes each weight's tensors a dozen times.
    """
    given: list[dict[str, Any]] = []
    for group in groups:
        decay = config.weight_decay if group.weight_decay is None else group.weight_decay
        given.append({"params": list(group.parameters), "weight_decay": decay, "rate": group.rate})
    fused = all(weight.device.type in ("cpu", "cuda") for group in groups for weight in group.parameters)
    if config.optimizer == "adam":
        return torch.optim.Adam(given, lr=0.0, eps=config.epsilon, fused=fused)
    return torch.optim.AdamW(given, lr=0.0, eps=config.epsilon, amsgrad=config.optimizer == "adamw_amsgrad", fused=fused)


def _epoch(
    method: Method, optimizer: torch.optim.Optimizer, corpus: Corpus, config: RunConfig, state: State, stage: Stage,
    best: dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:  # fmt: skip
    """One epoch of a stage and, where it is labelled, its validation; moves `state` on and returns the best weights."""
    started, training, finished = time.perf_counter(), stage.training, state.epoch - state.stage_start
    split = corpus.splits["train"]
    drawn = share_of(units(split, method.unit), stage.share, config.seed)
    steps = math.ceil(len(drawn) / training.batch_size)
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(config.seed * 100_003 + state.epoch))
    torch.manual_seed(config.seed * 100_003 + state.epoch + 7919 * _rank())  # dropout
    method.module.train()
    sums: dict[str, float] = {"train_loss": 0.0}
    for number, batch in enumerate(order.split(training.batch_size)):
        rate = learning_rate(finished * steps + number, steps * training.epochs, training)
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * rate
        chosen = [drawn[i] for i in batch.tolist()]
        values = step(method, optimizer, split, chosen, training, finished, stage.is_labelled)
        state.steps.append([state.epoch + 1, values["train_loss"], rate])
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value * len(batch)
    state.epoch += 1
    row: dict[str, Any] = {"epoch": state.epoch, "learning_rate": rate}
    row |= {name: total / len(drawn) for name, total in sums.items()}
    if len(config.stages) > 1:
        row["stage"] = stage.name
    if not stage.is_labelled:
        state.best_epoch, best = state.epoch, _copied(method)
    elif (finished + 1) % training.validate_every == 0 or finished + 1 == training.epochs:
        metric = metrics.headline(corpus.task.kind)
        predictions, _ = evaluate(method, corpus.splits["valid"], config.evaluation.batch_size)
        row[f"valid_{metric.name}"] = score = score_of(predictions, corpus.task)[metric.name]
        if state.best_score is None or metric.is_better(score, state.best_score):
            state.best_score, state.best_epoch, best = score, state.epoch, _copied(method)
    state.history.append(row)
    state.seconds += time.perf_counter() - started
    return best


def share_of(drawn: Sequence[Sequence[int]], share: float, seed: int) -> Sequence[Sequence[int]]:
    """As many units as came, repeated, from a share of them, which the seed chooses; a smaller share lies in a larger."""
    if share == 1:
        return drawn
    kept = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(seed)).tolist()
    kept = kept[: max(1, round(share * len(drawn)))]
    return [drawn[kept[place % len(kept)]] for place in range(len(drawn))]


def step(
    method: Method, optimizer: torch.optim.Optimizer, split: Split, drawn: Sequence[Sequence[int]], config: TrainingConfig,
    epoch: int = 0, labelled: bool = True,
) -> dict[str, float]:  # fmt: skip
    """One optimiser step on these units (of clips, by their places); returns the mean loss and its named parts.

    Where the step is not `labelled` the method is given clips without labels.

    The loss is read once, after everything is under way, so a GPU waits for the host no more often.
    """
    world = _world()
    mine = drawn[_rank() :: world] or drawn[:1]  # a process without a unit still takes part, with weight 0
    weight = 1.0 if len(drawn) > _rank() else 0.0
    samples = [split[i] for unit in mine for i in unit]
    batch = method.collate(samples if labelled else [replace(sample, label=None) for sample in samples])
    loss = method.loss(batch)
    # Means of the loss and its parts over all processes, still on the device, and the number of their terms.
    totals = torch.stack([loss.total.detach(), *(part.detach() for part in loss.parts.values())]) * weight
    count = loss.count * weight
    if world > 1:
        counted = torch.tensor(count, device=totals.device)
        distributed.all_reduce(totals)
        distributed.all_reduce(counted)
        count = float(counted)
    optimizer.zero_grad()
    (loss.total * weight / count).backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if world > 1:
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            distributed.all_reduce(p.grad)
    if config.gradient_clip is not None:
        torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
    optimizer.step()
    method.after_step(batch, epoch)
    names = ["train_loss", *(f"train_{name}" for name in loss.parts)]
    values = dict(zip(names, (totals / count).tolist(), strict=True))
    if not math.isfinite(values["train_loss"]):
        ids = ", ".join(split[i].id for unit in drawn for i in unit)
        said = f"loss is {values['train_loss']} on clips {ids}"
        raise FloatingPointError(f"{said}: look for extreme features there, or lower training.learning_rate")
    return values


def _world() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def _is_over(state: State, stage: Stage) -> bool:
    """All epochs are done, or patience is at its end, which counts from the end of the warm-up: before it good runs still
    look dead (choice 14).
    """
    config = stage.training
    warm = state.stage_start + round(config.warmup_fraction * config.epochs)
    is_out_of_patience = config.patience is not None and state.epoch - max(state.best_epoch, warm) >= config.patience
    return state.epoch >= state.stage_start + config.epochs or (stage.is_labelled and is_out_of_patience)
