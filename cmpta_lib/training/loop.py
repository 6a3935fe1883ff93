"""The training loop: plain PyTorch, bit-exact after a kill, adapter alone on disk.

transformers' Trainer would save and restore the frozen LLM or need private methods overridden, and resumes from a torn
checkpoint without a word; this loop is shorter than those overrides. Every random choice is a pure function of (seed, epoch):
the order of the clips and dropout start anew each epoch, so a run resumed at an epoch's end cannot differ.

Under `torchrun` each process takes every n-th clip of each batch and gradients are summed; process 0 writes.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed

from cmpta_lib import metrics
from cmpta_lib.config import RunConfig, TrainingConfig
from cmpta_lib.data.corpus import Corpus, Split
from cmpta_lib.llm.frozen import FrozenLLM
from cmpta_lib.methods.prompted_lm import CMPTA

CHECKPOINT = "checkpoint.safetensors"


@dataclass
class State:
    """What a checkpoint holds beside weights and optimiser."""

    epoch: int = 0  # finished epochs
    best_epoch: int = 0
    best_score: float | None = None
    seconds: float = 0.0
    history: list[dict[str, float]] | None = None
    counts: dict[str, int] | None = None


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
    best = _restore(folder / CHECKPOINT, model, optimizer, state)
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
            _save(folder / CHECKPOINT, model, optimizer, state, best)
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


def evaluate(
    model: CMPTA, split: Split, progress: Callable[[Iterable], Iterable] = lambda items: items
) -> pd.DataFrame:
    """Answer every clip of a split: columns id, label, reply, prediction (NaN where a free reply is unparsable).

    Clips are batched by length, so that little padding is made; the rows come back in the split's order, and no answer
    depends on its batch.
    """
    was_training = model.training
    model.eval()
    size = model.config.evaluation.batch_size
    lengths = split.table["audio_length"].to_numpy() + split.table["vision_length"].to_numpy()
    order = np.argsort(lengths, kind="stable")
    replies: list[str | None] = [None] * len(split)
    for start in progress(range(0, len(order), size)):
        rows = order[start : start + size]
        for row, reply in zip(rows, model.answer(model.collate([split[int(i)] for i in rows])), strict=True):
            replies[row] = reply
    model.train(was_training)
    values = [model.answers[r] if r is not None else np.nan for r in replies]
    return pd.DataFrame({"id": split.table["id"], "label": split.labels, "reply": replies, "prediction": values})


def score_of(predictions: pd.DataFrame, corpus: Corpus) -> dict[str, float]:
    """Metrics of a prediction table. Unparsable replies: wrong for a class; for a score left out, and counted."""
    truth, answer = predictions["label"].to_numpy(), predictions["prediction"].to_numpy(float)
    parsed = np.isfinite(answer)
    if corpus.task.kind == "classification":
        return metrics.classification_metrics(
            truth, np.where(parsed, answer, metrics.UNPARSABLE).astype(int), corpus.task.labels
        )
    if parsed.sum() < 2:  # nothing to correlate; without any answer a score that never wins a comparison
        mae = float(np.abs(truth[parsed] - answer[parsed]).mean()) if parsed.any() else math.inf
        return {"mae": mae, "unparsable_count": float((~parsed).sum())}
    scores = metrics.regression_metrics(truth[parsed], answer[parsed])
    return scores | {"unparsable_count": float((~parsed).sum())}


def _save(path: Path, model: CMPTA, optimizer: torch.optim.Optimizer, state: State, best: dict[str, Tensor]) -> None:
    """Everything to go on from, in one file, whole or not at all."""
    tensors = {f"adapter.{k}": v for k, v in model.adapter.state_dict().items()} | {
        f"best.{k}": v for k, v in best.items()
    }
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
    write_tensors(path, tensors, {"state": json.dumps(vars(state))})


def _restore(path: Path, model: CMPTA, optimizer: torch.optim.Optimizer, state: State) -> dict[str, Tensor]:
    """Load a checkpoint into model, optimiser and state where there is one; returns the best weights so far."""
    if not path.exists():
        return {name: weight.detach().clone() for name, weight in model.adapter.state_dict().items()}
    groups: dict[str, dict[str, Tensor]] = {"adapter": {}, "best": {}, "optimizer": {}}
    with safe_open(path, "pt", device=str(model.llm.device)) as file:
        for key in file.keys():
            kind, name = key.split(".", 1)
            groups[kind][name] = file.get_tensor(key)
        vars(state).update(json.loads(file.metadata()["state"]))
    model.adapter.load_state_dict(groups["adapter"])
    moments: dict[int, dict[str, Any]] = {}
    for key, tensor in groups["optimizer"].items():
        index, name = key.split(".")
        moments.setdefault(int(index), {})[name] = (
            tensor.cpu() if name == "step" else tensor
        )  # a GPU step counter syncs
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    model.counts.update(state.counts or {})
    return groups["best"]


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write safetensors so that a crash leaves the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, partial, metadata)
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
