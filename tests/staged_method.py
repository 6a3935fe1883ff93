"""A test-only method that trains in two stages: first to tell voice from face without labels, then to answer.

Only a fixture of `conftest` imports it: settings are known from their definition on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import small_method
import torch
from torch import nn

from cmpta_lib.base import Group, Loss, Resources
from cmpta_lib.config import RunConfig, Stage, TrainingConfig
from cmpta_lib.data.corpus import Inputs, Sample


class StagedConfig(small_method.SmallConfig):
    name: Literal["staged"] = "staged"
    first_epochs: int = 2
    share: float = 1.0
    answers: bool = True  # False: the second stage is left out
    width: int = 3  # decides nothing of the first stage

    def stages(self, run: RunConfig) -> tuple[Stage, ...]:
        first = run.training.model_copy(update={"epochs": self.first_epochs, "learning_rate": 0.02})
        outcome = {"data": run.data.model_dump(), "seed": run.seed}
        both = (
            Stage("reading", first, is_labelled=False, outcome=outcome),
            Stage("training", run.training, share=self.share),
        )
        return both if self.answers else both[:1]


class StagedMethod(small_method.SmallMethod):
    seen: list[tuple[str, object]] = []  # (stage, label) of every clip that came to `collate`

    def __init__(self, config: RunConfig, inputs: Inputs, tools: Resources) -> None:
        super().__init__(config, inputs, tools)
        features = self.module.linear.in_features
        self.module.reader = nn.Linear(features, features)
        self.module.head = nn.Sequential(nn.Linear(features, config.method.width), nn.Linear(config.method.width, 1))
        self.stage = ""

    def enter(self, stage: Stage) -> None:
        self.stage = stage.name

    def groups(self, config: TrainingConfig) -> Sequence[Group]:
        part = self.module.reader if self.stage == "reading" else self.module.head
        return [Group([*part.parameters()])]

    def collate(self, samples: Sequence[Sample]) -> small_method.SmallBatch:
        if getattr(self, "stage", ""):
            self.seen += [(self.stage, sample.label) for sample in samples]
        return super().collate(samples)

    def _outputs(self, batch: small_method.SmallBatch) -> torch.Tensor:
        features = torch.from_numpy(np.tanh(batch.features)).to(self.device)
        return self.module.head(self.module.dropout(self.module.reader(features)))

    def loss(self, batch: small_method.SmallBatch) -> Loss:
        if self.stage != "reading":
            return super().loss(batch)
        features = torch.from_numpy(np.tanh(batch.features)).to(self.device)
        missing = (self.module.reader(self.module.dropout(features)) - features).square().mean(1)
        return Loss(missing.sum(), len(missing))
