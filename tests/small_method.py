"""The smallest method with weights of its own: a linear reading of mean frames, over whole dialogues.

It uses all of the seam that the built-in methods leave alone: dialogues as units, named parts of the loss, buffers that
`fit` and `after_step` fill. Only the fixture `small` imports it: settings are known from their definition on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from cmpta_lib.base import Batch, Loss, Method, Predictions, Resources
from cmpta_lib.baselines.supervised import task_losses
from cmpta_lib.config import MethodConfig, RunConfig
from cmpta_lib.data.corpus import Inputs, Sample, Split
from cmpta_lib.fast.packing import send


class SmallConfig(MethodConfig):
    name: Literal["small"] = "small"
    recipe: Literal[1] = 1
    dropout: float = 0.1


@dataclass(frozen=True)
class SmallBatch(Batch):
    features: np.ndarray  # (B, F) float32: mean frames, and those of the dialogue so far
    labels: np.ndarray


class SmallModule(nn.Module):
    def __init__(self, width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(width, outputs), nn.Dropout(dropout)
        self.register_buffer("offset", torch.zeros(width))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(self.dropout((features - self.offset).tanh()))


class SmallMethod(Method):
    unit = "dialogue"

    def __init__(self, config: RunConfig, inputs: Inputs, tools: Resources) -> None:
        self.task, self.device = inputs.task, tools.device
        width = 2 * sum(inputs.widths.values())
        self.module = SmallModule(width, max(1, len(self.task.labels)), config.method.dropout).to(self.device)

    def fit(self, train: Split) -> None:
        self.module.offset.copy_(torch.from_numpy(self.collate([*train]).features.mean(0)))

    def collate(self, samples: Sequence[Sample]) -> SmallBatch:
        rows, spoken = [], {}
        for sample in samples:
            frames = [np.concatenate([f, np.zeros((1, f.shape[1]), np.float32)]) for f in (sample.audio, sample.vision)]
            mean = np.concatenate([f.mean(0) for f in frames])
            before = spoken.setdefault(sample.dialogue or sample.id, [np.zeros_like(mean)])
            rows.append(np.concatenate([mean, np.mean(before, 0)]))
            before.append(mean)
        issues = {"silent": sum(len(sample.audio) == 0 for sample in samples)}
        labels = np.array([np.nan if sample.label is None else sample.label for sample in samples])
        return SmallBatch(tuple(s.id for s in samples), issues, np.stack(rows).astype(np.float32), labels)

    def _outputs(self, batch: SmallBatch) -> torch.Tensor:
        return self.module(send([batch.features], self.device)[0])

    def loss(self, batch: SmallBatch) -> Loss:
        outputs = self._outputs(batch)
        kind = np.int64 if self.task.kind == "classification" else np.float32
        errors = task_losses(outputs, send([batch.labels.astype(kind)], self.device)[0], self.task)
        size = 0.01 * outputs.square().mean(1).sum()
        return Loss(errors.sum() + size, len(errors), {"error": errors.sum(), "size": size})

    @torch.no_grad()
    def predict(self, batch: SmallBatch) -> Predictions:
        outputs = self._outputs(batch).cpu().double().numpy()
        values = outputs.argmax(1) if self.task.kind == "classification" else outputs[:, 0].clip(-1, 1)
        return Predictions(values.astype(np.float64), [f"{value:g}" for value in values])

    def after_step(self, batch: Batch, epoch: int) -> None:
        self.module.steps += 1
