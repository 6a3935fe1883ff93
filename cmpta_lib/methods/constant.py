"""The answer that looks at no clip: every other row of a table must be better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cmpta_lib.config import RunConfig
from cmpta_lib.data.corpus import Inputs, Sample, Split
from cmpta_lib.methods.base import Batch, Loss, Method, Predictions, Tools
from cmpta_lib.methods.settings import ConstantConfig
from cmpta_lib.methods.supervised import predictions, task_losses
from cmpta_lib.transfer import send


@dataclass(frozen=True)
class ConstantBatch(Batch):
    labels: np.ndarray  # (B,) float32 scores, or int64 class indices; empty where a clip has no label


class Constant(Method):
    """The training labels' median (or mean), or the majority class; nothing is trained by gradient."""

    def __init__(self, config: RunConfig, inputs: Inputs, tools: Tools) -> None:
        assert isinstance(config.method, ConstantConfig)
        self.statistic, self.task, self.device = config.method.statistic, inputs.task, tools.device
        answer = torch.zeros(max(1, len(inputs.task.labels)), dtype=torch.float64, device=tools.device)
        self.module = nn.Module()
        self.module.register_buffer("answer", answer)

    @property
    def answer(self) -> Tensor:
        """(outputs,): the score, or the logarithm of each class's share."""
        return self.module.get_buffer("answer")

    def fit(self, train: Split) -> None:
        if self.task.kind == "classification":
            counts = np.bincount(train.labels, minlength=len(self.answer)) + 1.0  # + 1: no class is impossible
            learned = np.log(counts / counts.sum())
        else:
            learned = np.array([np.median(train.labels) if self.statistic == "median" else np.mean(train.labels)])
        self.answer.copy_(torch.from_numpy(learned))

    def collate(self, samples: Sequence[Sample]) -> ConstantBatch:
        labels = [sample.label for sample in samples]
        dtype = np.int64 if self.task.kind == "classification" else np.float32
        ids = tuple(sample.id for sample in samples)
        return ConstantBatch(ids, {}, np.array([] if None in labels else labels, dtype))

    def loss(self, batch: ConstantBatch) -> Loss:  # type: ignore[override]  # what our own `collate` made
        """What the answer costs, without a gradient."""
        outputs = self.answer.expand(len(batch.ids), -1)
        return Loss(task_losses(outputs, send([batch.labels], self.device)[0], self.task).sum(), len(batch.ids))

    def predict(self, batch: ConstantBatch) -> Predictions:  # type: ignore[override]
        return predictions(self.answer.expand(len(batch.ids), -1), self.task)
