"""LMF: the weights of a tensor fusion as a sum of a few products, one factor per modality (Liu et al., ACL 2018).

Subnets and sizes as in the public code of MMSA. Voice and face are read as mean frames: their order in time is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cmpta_lib.base import Batch, Group
from cmpta_lib.baselines.settings import LmfConfig
from cmpta_lib.baselines.supervised import Clips, Subnets, Supervised, share_running_statistics
from cmpta_lib.config import TrainingConfig
from cmpta_lib.data.corpus import MODALITIES


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


class LMF(Supervised):
    """The score, or for classes (which the paper has too) a logit each, is what the fusion says, not squashed."""

    def network(self) -> nn.Module:
        widths = {modality: self.inputs.widths[modality] for modality in MODALITIES}
        subnets = Subnets(self.settings, text=self.encoder.dim, **widths)
        return nn.ModuleDict({"fusion": LowRankFusion(self.settings, self.outputs), "subnets": subnets})

    def forward(self, clips: Clips) -> Tensor:
        scores: Tensor = self.net["fusion"](*self.net["subnets"](self.frozen_text(clips), clips))
        return scores

    def groups(self, config: TrainingConfig) -> Sequence[Group]:
        """The factors apart: they learn at `factor_rate` times the others' pace."""
        factors = list(self.net["fusion"].factors)
        others = [p for p in self.module.parameters() if p.requires_grad and all(p is not factor for factor in factors)]
        return [Group(factors, rate=self.settings.factor_rate), Group(others)]

    def after_step(self, batch: Batch, epoch: int) -> None:
        share_running_statistics(self.module)
