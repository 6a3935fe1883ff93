"""LMF: the weights of a tensor fusion as a sum of a few products, one factor per modality (Liu et al., ACL 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from cmpta_lib.base import Group
from cmpta_lib.baselines.subnets import SubnetsConfig, SubnetsMethod
from cmpta_lib.baselines.supervised import AS_IN_MMSA
from cmpta_lib.config import AtLeastOne, Positive, TrainingConfig
from cmpta_lib.registry import register


class LmfConfig(SubnetsConfig):
    """Low-rank Multimodal Fusion."""

    name: Literal["lmf"] = "lmf"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {**SubnetsConfig.quirks, "fusion_weights": "frozen"}
    rank: AtLeastOne = 4
    fusion_weights: Literal["trained", "frozen"] = "trained"  # MMSA leaves w and b out of its optimiser
    factor_rate: Positive = 0.25  # times the learning rate: 5e-4 of 2e-3


class LowRankFusion(nn.Module):
    """h = sum_r w_r (F_a,r [1; a]) * (F_v,r [1; v]) * (F_t,r [1; t]) + b, the paper's section 3.3."""

    def __init__(self, settings: LmfConfig, outputs: int) -> None:
        super().__init__()
        widths = (settings.audio_hidden, settings.vision_hidden, settings.text_out)
        self.factors = nn.ParameterList(
            nn.init.xavier_normal_(torch.empty(settings.rank, width + 1, outputs)) for width in widths
        )
        trained = settings.fusion_weights == "trained"
        self.weights = nn.Parameter(nn.init.xavier_normal_(torch.empty(1, settings.rank)), requires_grad=trained)
        self.bias = nn.Parameter(torch.zeros(1, outputs), requires_grad=trained)

    def forward(self, audio: Tensor, vision: Tensor, text: Tensor) -> Tensor:
        """[1; h] of each modality, (B, H + 1) -> (B, outputs)."""
        a, v, t = (torch.matmul(vector, factor) for vector, factor in zip((audio, vision, text), self.factors, strict=True))
        return torch.einsum("r,rbo->bo", self.weights[0], a * v * t) + self.bias


class LMF(SubnetsMethod):
    """The score, or for classes (which the paper has too) a logit each, is what the fusion says, not squashed."""

    def network(self) -> nn.Module:
        subnets = self.subnets()
        return nn.ModuleDict({"fusion": LowRankFusion(self.settings, self.outputs), "subnets": subnets})

    def groups(self, config: TrainingConfig) -> Sequence[Group]:
        """The factors apart: they learn at `factor_rate` times the others' pace."""
        factors = list(self.net["fusion"].factors)
        others = [p for p in self.module.parameters() if p.requires_grad and all(p is not factor for factor in factors)]
        return [Group(factors, rate=self.settings.factor_rate), Group(others)]


register(
    LmfConfig,
    LMF,
    row="LMF",
    comparisons=("sims",),
    settings={
        "demo": {  # its LSTM needs longer than two epochs to find words, and mean frames are mostly noise there
            "training.epochs": 6, "method.factor_rate": 1.0, "method.audio_hidden": 8, "method.vision_hidden": 8,
            "method.audio_dropout": 0.5, "method.vision_dropout": 0.5,
        },
        "demo/data": {
            "training.epochs": 30, "method.audio_hidden": 32, "method.vision_hidden": 64,
            "method.audio_dropout": 0.3, "method.vision_dropout": 0.3,
        },
        "paper": AS_IN_MMSA
        | {"training.batch_size": 32, "training.learning_rate": 2e-3, "training.weight_decay": 1e-4},
        "smoke": {"method.audio_hidden": 4, "method.vision_hidden": 4, "method.text_hidden": 8, "method.text_out": 4},
    },
    reads="one utterance: words by a frozen BERT, the mean frame of voice and of face",
)
