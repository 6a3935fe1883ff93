"""TFN and LMF, which multiply what face, voice and words say, with layers and sizes as in MMSA's public code for SIMS-V2.

TFN has all products, alone, in pairs and together (Zadeh et al., EMNLP 2017); LMF writes the weights of that tensor as a
sum of a few products, one factor per modality (Liu et al., ACL 2018). No public code has a TFN for MELD: it gets the
network for SIMS-V2, with a logit per class and cross-entropy.

Voice and face are read as mean frames: their order in time is lost. Shapes: B clips, T frames, F features, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from cmpta_lib.base import Batch, Group, mean_over_time
from cmpta_lib.baselines.supervised import AS_IN_MMSA, Chance, Clips, LastState, Supervised, SupervisedConfig
from cmpta_lib.config import AtLeastOne, Positive, TrainingConfig, Width
from cmpta_lib.data.corpus import MODALITIES
from cmpta_lib.registry import register


class SubnetsConfig(SupervisedConfig):
    """Dropout on the text vector is missing: MMSA switches it off for an LSTM of one layer."""

    quirks: ClassVar[dict[str, object]] = {"time_mean": "padded", "text_end": "padded"}
    audio_hidden: Width = 32
    vision_hidden: Width = 64
    text_hidden: Width = 64  # of the LSTM
    text_out: Width = 32
    audio_dropout: Chance = 0.3
    vision_dropout: Chance = 0.3
    time_mean: Literal["real", "padded"] = "real"  # MMSA divides by its padded length: short clips shrink towards zero
    text_end: Literal["real", "padded"] = "real"  # MMSA takes the LSTM's state after `max_text_tokens`, padding read
    padded_audio: AtLeastOne = 925  # frames to which MMSA pads; longer clips are divided by their own length
    padded_vision: AtLeastOne = 232


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of (B, F) that also trains on a batch of one clip: by the statistics so far."""

    running_mean: Tensor
    running_var: Tensor

    def forward(self, vectors: Tensor) -> Tensor:
        if len(vectors) > 1:
            return super().forward(vectors)
        return F.batch_norm(vectors, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class MeanSubnet(nn.Sequential):
    """One vector of a clip's mean frame (MMSA's SubNet): BatchNorm, dropout, three layers with ReLU; (B, F) -> (B, H)."""

    def __init__(self, features: int, hidden: int, dropout: float) -> None:
        layers: list[nn.Module] = [BatchNorm(features), nn.Dropout(dropout)]
        for width in (features, hidden, hidden):
            layers += [nn.Linear(width, hidden), nn.ReLU()]
        super().__init__(*layers)


class Subnets(nn.Module):
    """One vector per modality, as LMF and TFN read a clip: mean frames of voice and face, an LSTM over the words."""

    def __init__(self, settings: SubnetsConfig, text: int, audio: int, vision: int) -> None:
        super().__init__()
        self.settings = settings
        self.audio = MeanSubnet(audio, settings.audio_hidden, settings.audio_dropout)
        self.vision = MeanSubnet(vision, settings.vision_hidden, settings.vision_dropout)
        self.text = LastState(text, settings.text_hidden)
        self.text_out = nn.Linear(settings.text_hidden, settings.text_out)

    def forward(self, states: Tensor, clips: Clips) -> list[Tensor]:
        """Text states (B, L, dim), zero beyond their end, and the clips -> [1; h] of audio, vision, text, (B, H + 1)."""
        settings, lengths = self.settings, clips.text_lengths
        if settings.text_end == "padded":
            missing = settings.max_text_tokens - states.shape[1]
            states, lengths = F.pad(states, (0, 0, 0, missing)), torch.full_like(lengths, settings.max_text_tokens)
        sizes = (settings.padded_audio, settings.padded_vision) if settings.time_mean == "padded" else (1, 1)
        audio, vision = (mean_over_time(*clips[name], size) for name, size in zip(MODALITIES, sizes, strict=True))
        vectors = self.audio(audio), self.vision(vision), self.text_out(self.text(states, lengths))
        return [F.pad(vector, (1, 0), value=1.0) for vector in vectors]


class SubnetsMethod(Supervised):
    """A fusion, a part of the network, of what the subnets make of a clip."""

    def subnets(self) -> Subnets:
        return Subnets(self.settings, self.encoder.dim, *(self.inputs.widths[name] for name in MODALITIES))

    def forward(self, clips: Clips) -> Tensor:
        return self.net["fusion"](*self.net["subnets"](self.frozen_text(clips), clips))

    def after_step(self, batch: Batch, epoch: int) -> None:
        """Average what `BatchNorm` has gathered over all processes: each sees its clips only, and all must answer alike."""
        if not distributed.is_initialized():
            return
        for norm in (part for part in self.module.modules() if isinstance(part, BatchNorm)):
            for buffer in (norm.running_mean, norm.running_var):
                distributed.all_reduce(buffer)
                buffer /= distributed.get_world_size()


class LmfConfig(SubnetsConfig):
    """Low-rank Multimodal Fusion."""

    name: Literal["lmf"] = "lmf"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {**SubnetsConfig.quirks, "fusion_weights": "frozen"}
    rank: Width = 4
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
    LmfConfig, LMF, row="LMF", comparisons=("sims",),
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
)  # fmt: skip


class TfnConfig(SubnetsConfig):
    """Tensor Fusion Network."""

    name: Literal["tfn"] = "tfn"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {**SubnetsConfig.quirks, "score_range": "six"}
    vision_hidden: Width = 128
    text_hidden: Width = 128
    text_out: Width = 128
    post_hidden: Width = 32
    post_dropout: Chance = 0.5
    # A score is 2 sigmoid - 1, as SIMS' labels; MOSI's 6 sigmoid - 3; or what the last layer says.
    score_range: Literal["labels", "six", "none"] = "labels"


class TensorFusion(nn.Module):
    """The outer product [1; a] x [1; v] x [1; t] (the paper's eq 2), then three linear layers."""

    def __init__(self, settings: TfnConfig, outputs: int) -> None:
        super().__init__()
        product = (settings.audio_hidden + 1) * (settings.vision_hidden + 1) * (settings.text_out + 1)
        self.layers = nn.Sequential(
            nn.Dropout(settings.post_dropout),
            nn.Linear(product, settings.post_hidden),
            nn.ReLU(),
            nn.Linear(settings.post_hidden, settings.post_hidden),
            nn.ReLU(),
            nn.Linear(settings.post_hidden, outputs),
        )

    def product(self, audio: Tensor, vision: Tensor, text: Tensor) -> Tensor:
        """[1; h] of each modality, (B, H + 1) -> (B, their product), the text's index fastest."""
        return torch.einsum("ba,bv,bt->bavt", audio, vision, text).flatten(1)

    def forward(self, audio: Tensor, vision: Tensor, text: Tensor) -> Tensor:
        """[1; h] of each modality, (B, H + 1) -> (B, outputs)."""
        return self.layers(self.product(audio, vision, text))


class TFN(SubnetsMethod):
    """Scores are squashed into the range that `score_range` names, logits are not."""

    def network(self) -> nn.Module:
        return nn.ModuleDict({"subnets": self.subnets(), "fusion": TensorFusion(self.settings, self.outputs)})

    def forward(self, clips: Clips) -> Tensor:
        outputs = super().forward(clips)
        if self.task.kind == "classification" or self.settings.score_range == "none":
            return outputs
        limit = 3.0 if self.settings.score_range == "six" else 1.0
        return 2 * limit * outputs.sigmoid() - limit


register(
    TfnConfig, TFN, row="TFN", comparisons=("meld",),
    settings={
        "demo": {
            "method.audio_hidden": 16, "method.vision_hidden": 16, "method.text_hidden": 64, "method.text_out": 32,
        },
        "paper": AS_IN_MMSA
        | {"training.batch_size": 128, "training.learning_rate": 2e-3, "training.weight_decay": 0.0},
        "smoke": {
            "method.audio_hidden": 4, "method.vision_hidden": 4, "method.text_hidden": 8, "method.text_out": 4,
            "method.post_hidden": 8,
        },
    },
    reads="one utterance: words by a frozen BERT, the mean frame of voice and of face",
)  # fmt: skip
