"""MGSI (arXiv 2608.16201): frames at three granularities, gated by the text, make the pseudo tokens before a frozen LLM.

A narrow convolution, a dilated one and a transformer read each of face and voice, attention pools each reading to a token,
and the three tokens attend to one another and are averaged. The text opens a gate on the result, a head tells whether the
clip is neutral, and what it says scales a small correction. No code is public, and what is known of it is short:
`MgsiConfig` says what was chosen here.

Shapes: B clips, T frames, F features, L text tokens, D width, E LLM width, K pseudo tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cmpta_lib.base import FeatureScaling, mean_over_time, real_positions
from cmpta_lib.beyond.losses import RegularisedLM
from cmpta_lib.config import Few, PromptedLMConfig, Weight, Width
from cmpta_lib.data.corpus import MODALITIES, Inputs, Modality
from cmpta_lib.fast.packing import Streams
from cmpta_lib.fast.prompted import TokenMaker
from cmpta_lib.method.adapter import start_at_embedding_norm
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.registry import register


class MgsiConfig(PromptedLMConfig):
    """Printed are the kernel, the dilation, three tokens and their mean, four pseudo tokens, the gate's and the calibration's
    formulas, and the two weights of 0.05; widths, heads and the order of the parts are chosen here."""

    name: Literal["mgsi"] = "mgsi"
    recipe: Literal[1] = 1
    dim: Width = 256
    attention_heads: Few = 4  # in the transformer and over the three tokens; `num_heads` is CMPTA's, choice 3
    kernel: Annotated[int, Field(ge=1, le=1000)] = 3
    dilation: Few = 2
    branches: Literal["parallel", "stacked"] = "parallel"  # each reads the frames, or what the one before made of them
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1  # in the transformer
    num_pseudo_tokens: Few = 4
    calibration: Weight = 0.05  # times "not neutral", times the correction
    neutral_weight: Weight = 0.05
    neutral_range: Weight = 0.1  # scores as far from 0 are neutral
    neutral_label: str = "neutral"  # the class that is; where no class is called so, its loss is off
    token_scale: Literal["embedding_norm", "default"] = "embedding_norm"  # as CMPTA's: as large as the LLM's embeddings

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.dim % self.attention_heads:
            raise ValueError(f"dim={self.dim} is not a multiple of attention_heads={self.attention_heads}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel}: an even one has no middle frame, use an odd one")
        return self


class Branch(nn.Module):
    """Frames at one granularity, (B, T, D) -> (B, T, D): a convolution over time, dilated or not, then GELU; or one pre-norm
    transformer layer. Neither reads padding."""

    def __init__(self, config: MgsiConfig, dilation: int | None) -> None:
        super().__init__()
        dim, self.is_convolution = config.dim, dilation is not None
        if dilation is not None:
            padding = dilation * (config.kernel // 2)
            self.convolution = nn.Conv1d(dim, dim, config.kernel, padding=padding, dilation=dilation)
        else:
            sizes = dim, config.attention_heads, 2 * dim, config.dropout
            self.layer = nn.TransformerEncoderLayer(*sizes, "gelu", batch_first=True, norm_first=True)

    def forward(self, frames: Tensor, real: Tensor) -> Tensor:
        if self.is_convolution:  # zeros before and behind a clip, whatever a longer batch mate leaves there
            return F.gelu(self.convolution((frames * real[..., None]).mT).mT)
        # A clip without frames keeps all keys, as its softmax would be NaN; pooling drops what it makes of them.
        read: Tensor = self.layer(frames, src_key_padding_mask=~real & real.any(1, keepdim=True))
        return read


class Granularities(nn.Module):
    """Frames of one modality -> one vector of width D."""

    def __init__(self, config: MgsiConfig, features: int) -> None:
        super().__init__()
        self.is_stacked, dim = config.branches == "stacked", config.dim
        self.scaling = FeatureScaling(features)  # choice 16
        self.project = nn.Linear(features, dim)
        self.branches = nn.ModuleList(Branch(config, dilation) for dilation in (1, config.dilation, None))
        self.score = nn.ModuleList(nn.Linear(dim, 1, bias=False) for _ in self.branches)
        self.mix = nn.MultiheadAttention(dim, config.attention_heads, batch_first=True)

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> (B, D), zeros where absent, and the pooling's weights (B, 3, T), a row for each granularity."""
        real, present = real_positions(lengths, frames.shape[1]), (lengths > 0)[:, None]
        hidden = self.project(self.scaling(frames, lengths))
        if frames.shape[1] == 0:
            return hidden.new_zeros(len(hidden), hidden.shape[2]), hidden.new_zeros(len(hidden), len(self.branches), 0)
        tokens, weights = [], []
        for branch, score in zip(self.branches, self.score, strict=True):
            read = branch(hidden, real)
            scores = score(read)[..., 0].masked_fill(~real & present, -torch.inf)
            weights.append(scores.softmax(-1) * present)
            tokens.append((weights[-1][:, None] @ read)[:, 0])
            hidden = read if self.is_stacked else hidden
        stacked = torch.stack(tokens, dim=1)
        mixed, _ = self.mix(stacked, stacked, stacked, need_weights=False)
        return mixed.mean(1) * present, torch.stack(weights, dim=1)


class MgsiTokens(TokenMaker):
    """Face, voice and the text's embeddings -> K pseudo tokens."""

    def __init__(self, config: MgsiConfig, inputs: Inputs, llm: FrozenLLM) -> None:
        super().__init__()
        self.calibration, self.num_tokens, dim = config.calibration, config.num_pseudo_tokens, config.dim
        self.reading = nn.ModuleDict({modality: Granularities(config, inputs.widths[modality]) for modality in MODALITIES})
        # The embeddings' entries are far below 1: at their own size they would leave every gate half open.
        self.text_scale = llm.dim**0.5 / llm.embedding_norm
        self.gate = nn.ModuleDict({modality: nn.Linear(llm.dim, dim) for modality in MODALITIES})
        self.non_neutral = nn.Linear(dim, 1)
        self.correction = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.norm = nn.LayerNorm(dim)
        self.to_llm = nn.Linear(dim, self.num_tokens * llm.dim)
        if config.token_scale == "embedding_norm":
            start_at_embedding_norm(self.to_llm, llm.embedding_norm, llm.dim)

    def set_feature_statistics(self, modality: Modality, mean: Tensor, std: Tensor) -> None:
        cast(Granularities, self.reading[modality]).scaling.take(mean, std)

    def forward(self, streams: Streams) -> tuple[Tensor, dict[str, Tensor]]:
        """Read, gate, calibrate and project; the granularities stand in the place of heads in the weights.

        Without weights: "non_neutral", the logit (B,) of the clip's not being neutral.
        """
        text = streams.text
        words = mean_over_time(text.values.to(self.norm.weight.dtype), text.lengths) * self.text_scale
        maps: dict[str, Tensor] = {}
        read = []
        for modality in MODALITIES:
            vector, weights = self.reading[modality](streams[modality].values, streams[modality].lengths)
            read.append(vector * (1 + self.gate[modality](words).sigmoid()))
            maps[modality] = weights[:, :, None]
        hidden = read[0] + read[1]
        logit = self.non_neutral(hidden)
        hidden = self.norm(hidden + self.calibration * logit.sigmoid() * self.correction(hidden))
        tokens = self.to_llm(hidden).unflatten(1, (self.num_tokens, -1))
        return tokens, maps if streams.wants_maps else {"non_neutral": logit[:, 0]}


class Mgsi(RegularisedLM):
    """MGSI's pseudo tokens before a frozen LLM; its head is trained where the labels tell what is neutral."""

    settings: MgsiConfig
    maker_type = MgsiTokens

    @property
    def neutral_classes(self) -> list[int]:
        """The indices of the classes that are called neutral."""
        wanted = self.settings.neutral_label.lower()
        return [place for place, name in enumerate(self.task.labels) if name.strip().lower() == wanted]

    def targets(self, labels: np.ndarray) -> np.ndarray:
        """1 where a clip is not neutral."""
        if self.task.kind == "regression":
            return np.abs(labels) > self.settings.neutral_range
        return ~np.isin(labels, self.neutral_classes)

    def regularisers(self, states: Mapping[str, Tensor], targets: Tensor) -> dict[str, tuple[float, Tensor]]:
        if self.task.kind == "classification" and not self.neutral_classes:
            return {}
        logits = states["non_neutral"]
        losses = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
        return {"non_neutral": (self.settings.neutral_weight, losses)}


register(
    MgsiConfig, Mgsi, row="MGSI",
    settings={
        "demo": {"method.dim": 64},
        "smoke": {"method.dim": 16},
        "paper": {"training.learning_rate": 5e-5, "training.batch_size": 8, "training.epochs": 30},
    },
    reads="one utterance: words by the frozen LLM, all frames of voice and face",
    is_beyond=True,
)  # fmt: skip
