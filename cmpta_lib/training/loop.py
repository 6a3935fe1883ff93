"""The training loop: plain PyTorch, bit-exact after a kill, adapter alone on disk.

transformers' Trainer would save and restore the frozen LLM or need private methods overridden, and resumes from a torn
checkpoint without a word; this loop is shorter than those overrides. Every random choice is a pure function of (seed, epoch):
the order of the clips and dropout start anew each epoch, so a run resumed at an epoch's end cannot differ.

Under `torchrun` each process takes every n-th clip of each batch and gradients are summed; process 0 writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed

from cmpta_lib import metrics
from cmpta_lib.config import RunConfig, TrainingConfig
from cmpta_lib.data.corpus import Corpus, Split
from cmpta_lib.llm.frozen import FrozenLLM
from cmpta_lib.methods.prompted_lm import CMPTA
from cmpta_lib.training.checkpoint import CHECKPOINT, State, restore, save
from cmpta_lib.training.evaluation import evaluate, score_of


def build(config: RunConfig, corpus: Corpus, llm: FrozenLLM) -> CMPTA:
    """A fresh model for this run: initial weights by its seed, feature statistics from the training split."""
    torch.manual_seed(config.seed)
    train = corpus.splits["train"]
    model = CMPTA(config, corpus.task, llm, train.audio_dim, train.vision_dim)
    model.fit_features(train)
    return model


def learning_rate(step: int, steps: int, config: TrainingConfig) -> float:
    """Linear warm-up, then cosine to zero at `steps`, and zero beyond: it never rises again (register 14)."""
    warmup = max(1, round(config.warmup_fraction * steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    config: RunConfig,
    corpus: Corpus,
    llm: FrozenLLM,
    folder: Path,
    on_epoch: Callable[[State], None] = lambda state: None,
) -> tuple[CMPTA, State]:
    """Train, or go on training, and return the model with the weights of its best validation epoch.

    The folder receives a checkpoint after every epoch, atomically; a later call continues from it. Text only
    (`adapter.fusion="none"`) has nothing to train and returns at once.

    Raises:
        FloatingPointError: the loss is not finite; says at which step and which clips.
    """
    torch.set_num_threads(config.training.num_threads)
    model = build(config, corpus, llm)
    parameters = [p for p in model.parameters() if p.requires_grad]
    state = State(history=[], counts={})
    if not parameters:
        return model.eval(), state
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=config.training.weight_decay)
    best = restore(folder / CHECKPOINT, config.hash, model.adapter, optimizer, state)
    model.counts.update(state.counts or {})
    split, batch_size = corpus.splits["train"], config.training.batch_size
    steps_per_epoch = math.ceil(len(split) / batch_size)
    steps = steps_per_epoch * config.training.epochs
    metric, lower_is_better = metrics.headline(corpus.task.kind)
    while state.epoch < config.training.epochs and not _out_of_patience(state, config.training):
        started = time.perf_counter()
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(config.seed * 100_003 + state.epoch))
        torch.manual_seed(config.seed * 100_003 + state.epoch + 7919 * _rank())  # dropout
        model.train()
        total = 0.0
        for number, batch in enumerate(order.split(batch_size)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(state.epoch * steps_per_epoch + number, steps, config.training)
            total += step(model, optimizer, split, batch.tolist(), config.training) * len(batch)
        state.epoch += 1
        row = {"epoch": state.epoch, "learning_rate": optimizer.param_groups[0]["lr"], "train_loss": total / len(split)}
        if state.epoch % config.training.validate_every == 0 or state.epoch == config.training.epochs:
            score = score_of(evaluate(model, corpus.splits["valid"]), corpus)[metric]
            row[f"valid_{metric}"] = score
            if state.best_score is None or (score < state.best_score if lower_is_better else score > state.best_score):
                state.best_score, state.best_epoch = score, state.epoch
                best = {name: weight.detach().clone() for name, weight in model.adapter.state_dict().items()}
        state.history.append(row)
        state.counts = dict(model.counts)
        state.seconds += time.perf_counter() - started
        if _rank() == 0:
            save(folder / CHECKPOINT, config.hash, model.adapter, optimizer, state, best)
            on_epoch(state)
    model.adapter.load_state_dict(best)
    return model.eval(), state


def step(
    model: CMPTA, optimizer: torch.optim.Optimizer, split: Split, indices: list[int], config: TrainingConfig
) -> float:
    """One optimiser step on these clips; returns the mean loss per answer token."""
    world = distributed.get_world_size() if distributed.is_initialized() else 1
    mine = indices[_rank() :: world] or indices[:1]  # a process without a clip still takes part, with weight 0
    weight = 1.0 if len(indices) > _rank() else 0.0
    losses, _ = model(model.collate([split[i] for i in mine]))
    totals = torch.stack([losses.detach().sum() * weight, torch.tensor(len(losses) * weight, device=losses.device)])
    if world > 1:
        distributed.all_reduce(totals)
    loss = losses.sum() * weight / totals[1]
    value = float(totals[0] / totals[1])
    if not math.isfinite(value):
        ids = ", ".join(split[i].id for i in indices)
        raise FloatingPointError(
            f"loss is {value} on clips {ids}: look for extreme features there, or lower training.learning_rate"
        )
    optimizer.zero_grad()
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if world > 1:
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            distributed.all_reduce(p.grad)
    torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
    optimizer.step()
    return value


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def _out_of_patience(state: State, config: TrainingConfig) -> bool:
    """Patience counts from the end of the warm-up: before it good runs still look dead (register 14)."""
    if config.patience is None:
        return False
    return state.epoch - max(state.best_epoch, round(config.warmup_fraction * config.epochs)) >= config.patience


