"""The training loop: plain PyTorch, bit-exact after a kill, the method's own module alone on disk.

transformers' Trainer would save and restore the frozen LLM or need private methods overridden, and resumes from a torn
checkpoint without a word; this loop is shorter than those overrides. Every random choice is a pure function of (seed, epoch):
the order of the clips and dropout start anew each epoch, so a run resumed at an epoch's end cannot differ.

Under `torchrun` each process takes every n-th clip of each batch and gradients are summed; process 0 writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import distributed

from cmpta_lib import metrics
from cmpta_lib.config import RunConfig, TrainingConfig
from cmpta_lib.data.corpus import Corpus, Inputs, Split
from cmpta_lib.methods import registry
from cmpta_lib.methods.base import Group, Loss, Method, Tools
from cmpta_lib.training.checkpoint import CHECKPOINT, State, restore, save
from cmpta_lib.training.evaluation import evaluate, score_of, units


def build(config: RunConfig, corpus: Corpus, tools: Tools) -> Method:
    """A fresh method for this run: initial weights by its seed, then fitted to the training split."""
    torch.manual_seed(config.seed)
    method = registry.build(config, Inputs.of(corpus), tools)
    method.fit(corpus.splits["train"])
    return method


def learning_rate(step: int, steps: int, config: TrainingConfig) -> float:
    """Linear warm-up, then cosine to zero at `steps`, and zero beyond: it never rises again (register 14)."""
    warmup = max(1, round(config.warmup_fraction * steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    config: RunConfig,
    corpus: Corpus,
    tools: Tools,
    folder: Path,
    on_epoch: Callable[[State], None] = lambda state: None,
) -> tuple[Method, State]:
    """Train, or go on training, and return the method with the weights of its best validation epoch.

    The folder receives a checkpoint after every epoch, atomically; a later call continues from it. A method without
    weights that need a gradient, such as text only, returns at once. Of the test split nothing is read.

    Raises:
        FloatingPointError: the loss is not finite; says at which step and which clips.
        ValueError: several processes train a method that must be trained in one.
    """
    torch.set_num_threads(config.training.num_threads)
    method = build(config, corpus, tools)
    if method.keeps_clip_state and (world := _world()) > 1:
        raise ValueError(
            f"method '{config.method.name}' keeps what it learned of each training clip in one process: expected one "
            f"process, and torchrun started {world}; start it without torchrun"
        )
    groups = [group for group in method.groups(config.training) if group.parameters]
    state = State()
    if not groups:
        method.module.eval()
        return method, state
    optimizer = optimizer_of(groups, config.training)
    best = restore(folder / CHECKPOINT, config.hash, method.module, optimizer, state)
    while state.epoch < config.training.epochs and not _out_of_patience(state, config.training):
        started = time.perf_counter()
        row = _epoch(method, optimizer, corpus.splits["train"], config, state.epoch)
        state.epoch += 1
        if state.epoch % config.training.validate_every == 0 or state.epoch == config.training.epochs:
            metric = metrics.headline(corpus.task.kind)
            predictions, _ = evaluate(method, corpus.splits["valid"], config.evaluation.batch_size)
            row[f"valid_{metric.name}"] = score = score_of(predictions, corpus.task)[metric.name]
            if state.best_score is None or metric.is_better(score, state.best_score):
                state.best_score, state.best_epoch = score, state.epoch
                best = {name: weight.detach().clone() for name, weight in method.module.state_dict().items()}
        state.history.append(row)
        state.seconds += time.perf_counter() - started
        if _rank() == 0:
            save(folder / CHECKPOINT, config.hash, method.module, optimizer, state, best)
            on_epoch(state)
    method.module.load_state_dict(best)
    method.module.eval()
    return method, state


def optimizer_of(groups: Sequence[Group], config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimiser that the settings name, at learning rate 0: each step sets it, times the group's `rate`."""
    given = [
        {
            "params": list(group.parameters),
            "weight_decay": config.weight_decay if group.weight_decay is None else group.weight_decay,
            "rate": group.rate,
        }
        for group in groups
    ]
    if config.optimizer == "adam":
        return torch.optim.Adam(given, lr=0.0, eps=config.epsilon)
    return torch.optim.AdamW(given, lr=0.0, eps=config.epsilon, amsgrad=config.optimizer == "adamw_amsgrad")


def _epoch(
    method: Method, optimizer: torch.optim.Optimizer, split: Split, config: RunConfig, finished: int
) -> dict[str, float]:
    """One epoch after `finished` ones; returns its line of the history."""
    training, drawn = config.training, units(split, method.unit)
    steps_per_epoch = math.ceil(len(drawn) / training.batch_size)
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(config.seed * 100_003 + finished))
    torch.manual_seed(config.seed * 100_003 + finished + 7919 * _rank())  # dropout
    method.module.train()
    sums: dict[str, float] = {"train_loss": 0.0}
    for number, batch in enumerate(order.split(training.batch_size)):
        rate = learning_rate(finished * steps_per_epoch + number, steps_per_epoch * training.epochs, training)
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * rate
        values = step(method, optimizer, split, [drawn[i] for i in batch.tolist()], training, finished)
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value * len(batch)
    means = {name: total / len(drawn) for name, total in sums.items()}
    return {"epoch": finished + 1, "learning_rate": rate, **means}


def step(
    method: Method,
    optimizer: torch.optim.Optimizer,
    split: Split,
    drawn: Sequence[Sequence[int]],
    config: TrainingConfig,
    epoch: int = 0,
) -> dict[str, float]:
    """One optimiser step on these units (of clips, by their places); returns the mean loss and its named parts.

    The loss is read once, after everything is under way, so a GPU waits for the host no more often.
    """
    world = _world()
    mine = drawn[_rank() :: world] or drawn[:1]  # a process without a unit still takes part, with weight 0
    weight = 1.0 if len(drawn) > _rank() else 0.0
    batch = method.collate([split[i] for unit in mine for i in unit])
    loss = method.loss(batch)
    totals, count = _summed(loss, weight, world)
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
    values = dict(zip(["train_loss", *(f"train_{name}" for name in loss.parts)], totals.tolist(), strict=True))
    if not math.isfinite(values["train_loss"]):
        ids = ", ".join(split[i].id for unit in drawn for i in unit)
        raise FloatingPointError(
            f"loss is {values['train_loss']} on clips {ids}: look for extreme features there, or lower "
            f"training.learning_rate"
        )
    return values


def _summed(loss: Loss, weight: float, world: int) -> tuple[torch.Tensor, float]:
    """Means of the loss and its parts over all processes, still on the device, and the number of its terms."""
    totals = torch.stack([loss.total.detach(), *(part.detach() for part in loss.parts.values())]) * weight
    count = loss.count * weight
    if world > 1:
        counted = torch.tensor(count, device=totals.device)
        distributed.all_reduce(totals)
        distributed.all_reduce(counted)
        count = float(counted)
    return totals / count, count


def _world() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def _out_of_patience(state: State, config: TrainingConfig) -> bool:
    """Patience counts from the end of the warm-up: before it good runs still look dead (register 14)."""
    if config.patience is None:
        return False
    return state.epoch - max(state.best_epoch, round(config.warmup_fraction * config.epochs)) >= config.patience
