"""A method as somebody else would write one: a file of its own that registers it when it is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from cmpta_lib import registry
from cmpta_lib.base import Batch, Loss, Method, Predictions, Resources
from cmpta_lib.config import MethodConfig, RunConfig
from cmpta_lib.data.corpus import Inputs, Sample, Split


class TrainingMeanConfig(MethodConfig):
    """The training split's mean label, plus a constant that seeds move, so that they have a spread."""

    name: Literal["training_mean"] = "training_mean"
    recipe: Literal[1] = 1
    noise: float = 0.01


class TrainingMean(Method):
    def __init__(self, config: RunConfig, inputs: Inputs, tools: Resources) -> None:
        self.noise = config.method.model_dump()["noise"]
        self.module = nn.Module()
        self.module.register_buffer("mean", torch.zeros(()))

    def fit(self, train: Split) -> None:
        self.module.mean.fill_(float(train.labels.mean()) + self.noise * float(torch.randn(())))

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return Batch(tuple(sample.id for sample in samples), {})

    def loss(self, batch: Batch) -> Loss:
        raise AssertionError("nothing is trained")

    def predict(self, batch: Batch) -> Predictions:
        values = np.full(len(batch.ids), float(self.module.mean))
        return Predictions(values, [f"{value:.3f}" for value in values])


registry.register(TrainingMeanConfig, TrainingMean, row="training mean", comparisons=("sims",))
