"""Prototype-as-Prompt (Zhao, Luo, Lu, Tang, CVPR 2026): sentiment prototypes of face and voice before a frozen LLM.

Every class has a learned prototype for each of face and voice. They attend to the text and to one another, then each
modality's attend to its frames, and what they find there is what the LLM reads: 2K pseudo tokens. Losses tie each prototype
to its class, face to voice, and keep the prototypes of a modality apart. No code is public. The attention knows no
positions, as printed: a clip's frames are a set to it, unless something reads them in order first (`frames`).

Shapes: B clips, T frames, F features, L text tokens, K classes, D width, E LLM width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cmpta_lib.base import FeatureScaling, real_positions
from cmpta_lib.beyond.losses import RegularisedLM, central_moment_discrepancy, diversity
from cmpta_lib.config import CmptaConfig, EvenWidth, Few, PromptedLMConfig, Weight
from cmpta_lib.data.corpus import Inputs, Modality
from cmpta_lib.fast.cmpta import BatchedAlignment
from cmpta_lib.fast.packing import Stream, Streams
from cmpta_lib.fast.prompted import TokenMaker
from cmpta_lib.method.adapter import start_at_embedding_norm
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.registry import register


class PrototypesConfig(PromptedLMConfig):
    """The weights of the losses are the printed ones. The width is not printed: with 512 the share of trained weights is as
    printed, 0.09 to 0.26 % of the LLM's."""

    name: Literal["prototypes"] = "prototypes"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {"diversity_diagonal": "as_printed"}
    dim: EvenWidth = 512  # half per direction of a BiLSTM
    frames: Literal["as_given", "bilstm"] = "as_given"  # what prototypes attend to: a set of frames, or CMPTA's alignment
    score_levels: Annotated[int, Field(ge=2, le=1000)] = 5  # prototypes per modality where scores are predicted: from -1 to 1
    semantics: Literal["own", "mean"] = "own"  # what a class's logit is read from: its own prototype, or the mean of all
    moments: Few = 5  # highest order in the alignment of face and voice
    diversity_diagonal: Literal["as_printed", "one"] = "as_printed"  # no weight on the diagonal; or lengths drawn to 1
    semantic_weight: Weight = 0.1
    alignment_weight: Weight = 0.1
    diversity_weight: Weight = 0.05
    token_scale: Literal["embedding_norm", "default"] = "embedding_norm"  # as CMPTA's: as large as the LLM's embeddings


ORDER: tuple[Modality, Modality] = ("vision", "audio")  # in which the LLM reads them


class Attention(nn.Module):
    """softmax(Q W_Q (X W_K)^T / sqrt(D)) X W_V with one head and neither residual nor bias, as printed."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))

    def forward(self, queries: Tensor, read: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """queries (B, Q, D), read (B, N, D), real (B, N) bool -> (B, Q, D) and weights (B, Q, N), zeros without a real one."""
        scores = self.query(queries) @ self.key(read).mT / queries.shape[-1] ** 0.5
        present = real.any(-1)[:, None, None]
        weights = scores.masked_fill(~real[:, None] & present, -torch.inf).softmax(-1) * present
        return weights @ self.value(read), weights


class Resampling(nn.Module):
    """Prototypes of one modality read its frames; its classifier says which class they found."""

    def __init__(self, config: PrototypesConfig, features: int, classes: int) -> None:
        super().__init__()
        self.semantics = config.semantics
        self.scaling = FeatureScaling(features)  # choice 16
        self.read: nn.Module = nn.Linear(features, config.dim)
        if config.frames == "bilstm":
            self.read = BatchedAlignment(features, CmptaConfig(dim=config.dim, num_heads=1, dropout=0.0))
        self.attention = Attention(config.dim)
        self.classify = nn.Linear(config.dim, classes)

    def forward(self, prototypes: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
        """(B, K, D) -> (B, K, D), zeros where the modality is absent, and weights (B, K, T)."""
        real, scaled = real_positions(stream.lengths, stream.values.shape[1]), self.scaling(stream.values, stream.lengths)
        in_order = isinstance(self.read, BatchedAlignment)
        read = stream.layout.padded(self.read(scaled, stream.layout)) if in_order else self.read(scaled)
        return self.attention(prototypes, read, real)

    def logits(self, found: Tensor) -> Tensor:
        """(B, K, D) -> (B, K): of class k from prototype k alone, or from the mean of all."""
        scores: Tensor = self.classify(found)
        return scores.diagonal(dim1=1, dim2=2) if self.semantics == "own" else scores.mean(1)


class PrototypeTokens(TokenMaker):
    """Face, voice and the text's embeddings -> K pseudo tokens of each of face and voice, one for each class."""

    def __init__(self, config: PrototypesConfig, inputs: Inputs, llm: FrozenLLM) -> None:
        super().__init__()
        self.classes, dim = len(inputs.task.labels) or config.score_levels, config.dim
        self.num_tokens = len(ORDER) * self.classes
        self.prototypes = nn.Parameter(torch.randn(self.num_tokens, dim))
        self.text = nn.Linear(llm.dim, dim)
        # The embeddings' entries are far below 1: at their own size the prototypes would hear nothing of the text.
        self.text_scale = llm.dim**0.5 / llm.embedding_norm
        self.conditioning = Attention(dim)
        parts: dict[str, nn.Module] = {name: Resampling(config, inputs.widths[name], self.classes) for name in ORDER}
        self.resampling = nn.ModuleDict(parts)
        self.to_llm = nn.Linear(dim, llm.dim)
        self.norm = nn.LayerNorm(dim) if config.token_scale == "embedding_norm" else nn.Identity()
        if config.token_scale == "embedding_norm":
            start_at_embedding_norm(self.to_llm, llm.embedding_norm, llm.dim)

    def set_feature_statistics(self, modality: Modality, mean: Tensor, std: Tensor) -> None:
        cast(Resampling, self.resampling[modality]).scaling.take(mean, std)

    def forward(self, streams: Streams) -> tuple[Tensor, dict[str, Tensor]]:
        """Condition on the text, resample, project; without weights also what the losses read.

        That is for each modality its prototypes (B, K, D), "logits_..." (B, K) and "present_..." (B,).
        """
        text = streams.text
        free = self.prototypes.expand(len(text.values), -1, -1)
        words = self.text(text.values.to(free.dtype) * self.text_scale)
        real = F.pad(real_positions(text.lengths, text.values.shape[1]), (self.num_tokens, 0), value=True)
        # The text's own outputs are read by nobody: only prototypes ask.
        conditioned, weights = self.conditioning(free, torch.cat([free, words], dim=1), real)
        maps: dict[str, Tensor] = {"conditioning": weights[:, None]}
        states: dict[str, Tensor] = {}
        for modality, asking in zip(ORDER, conditioned.split(self.classes, dim=1), strict=True):
            reader = cast(Resampling, self.resampling[modality])
            stream = streams[modality]
            found, weights = reader(asking, stream)
            maps[modality], states[modality] = weights[:, None], found
            states[f"logits_{modality}"] = reader.logits(found)
            states[f"present_{modality}"] = (stream.lengths > 0).to(found.dtype)
        tokens = self.to_llm(self.norm(torch.cat([states[modality] for modality in ORDER], dim=1)))
        return tokens, maps if streams.wants_maps else states


class Prototypes(RegularisedLM):
    """Sentiment prototypes before a frozen LLM, with the losses that give them their meaning."""

    settings: PrototypesConfig
    maker_type = PrototypeTokens

    def targets(self, labels: np.ndarray) -> np.ndarray:
        """A class's index; of a score the nearest of evenly spaced levels from -1 to 1."""
        if self.task.kind == "classification":
            return labels
        return np.rint((labels.clip(-1, 1) + 1) / 2 * (self.settings.score_levels - 1))

    def regularisers(self, states: Mapping[str, Tensor], targets: Tensor) -> dict[str, tuple[float, Tensor]]:
        """L_sem, L_align between directions (D coordinates in [-1, 1]) and L_div; an absent modality has no part in them."""
        settings, present = self.settings, [states[f"present_{modality}"] for modality in ORDER]
        semantic, apart = torch.zeros_like(present[0]), torch.zeros_like(present[0])
        for modality, here in zip(ORDER, present, strict=True):
            semantic = semantic + here * F.cross_entropy(states[f"logits_{modality}"], targets, reduction="none")
            apart = apart + here * diversity(states[modality], settings.diversity_diagonal)
        directions = [F.normalize(states[modality], dim=-1) for modality in ORDER]
        alignment = central_moment_discrepancy(directions[0], directions[1], settings.moments, interval=2.0)
        return {
            "semantic": (settings.semantic_weight, semantic),
            "alignment": (settings.alignment_weight, alignment * present[0] * present[1]),
            "diversity": (settings.diversity_weight, apart),
        }


register(
    PrototypesConfig, Prototypes, row="prototype prompt",
    settings={
        # The embedded clips' frames are given one by one, without what published features know of their neighbours: as a
        # set they tell little. Chosen on validation clips, as its width and learning rate.
        "demo": {"method.dim": 64, "method.frames": "bilstm"},
        "smoke": {"method.dim": 16},
        "paper": {"training.patience": 10},  # of its optimiser and learning rate nothing is known
    },
    reads="one utterance: words by the frozen LLM, all frames of voice and face",
    is_beyond=True,
)  # fmt: skip
