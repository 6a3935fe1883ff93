"""Training without labels: masked language modelling and contrastive alignment (section 3.2, pre-training, step 4).

The document names both and prints L = L_MLM + L_CL; what is masked, who is paired with whom and how it is scored are
those of BERT and CLIP. Nothing here waits for the device. Shapes: B clips, L text tokens, V vocabulary, D features.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmpta_lib.config import RunConfig, Stage

IGNORED = -100  # target of a token that is not predicted, as in transformers
LARGEST_SCALE = math.log(100)  # of similarities, as in CLIP; the least is ln 1: a temperature between 1/100 and 1


def unlabelled_stage(name: str, run: RunConfig, epochs: int, rate: float, batch: int, apart: Collection[str]) -> Stage:
    """A stage that reads no label, so that nothing is validated; runs share it that differ in method fields `apart` only."""
    own = {"epochs": epochs, "learning_rate": rate, "batch_size": batch, "patience": None}
    training = run.training.model_copy(update=own)
    outcome: dict[str, Any] = {"data": run.data.model_dump(mode="json"), "training": training.model_dump(mode="json")}
    outcome |= {"method": run.method.model_dump(mode="json", exclude=set(apart)), "seed": run.seed}
    return Stage(name, training, is_labelled=False, outcome=outcome)


def mask_tokens(ids: Tensor, maskable: Tensor, mask_id: int, vocabulary: int, share: float) -> tuple[Tensor, Tensor]:
    """Choose tokens to predict; of them 80 % become [MASK], 10 % any token, 10 % stay (BERT, section 3.1).

    Args:
        ids: (B, L) int64.
        maskable: (B, L) bool, real tokens but for [CLS] and [SEP].
    Returns:
        (B, L) ids to read, and (B, L) targets: the true id where it is to be predicted, `IGNORED` elsewhere.
    """
    chosen = (torch.rand(ids.shape, device=ids.device) < share) & maskable
    fate = torch.rand(ids.shape, device=ids.device)
    other = torch.randint(vocabulary, ids.shape, device=ids.device)
    read = torch.where(chosen & (fate < 0.8), mask_id, ids)
    read = torch.where(chosen & (fate >= 0.9), other, read)
    return read, torch.where(chosen, ids, IGNORED)


def masked_language_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, L, V), (B, L) -> () mean cross-entropy of the tokens to predict; 0 where there are none."""
    total = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


def info_nce(one: Tensor, other: Tensor, scale: Tensor | float, both: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE, as in CLIP: each clip's vector finds its own partner among those of the batch, both ways.

    Args:
        one, other: (B, D), row i of both from clip i.
        scale: 1 / temperature.
        both: (B,) bool, clips that have both vectors; the others are neither asked nor offered. None = all.
    Returns:
        () mean over clips and both directions; 0 where no clip has both.
    """
    similarities = scale * one @ other.T
    if both is None:
        both = torch.ones(len(one), dtype=torch.bool, device=one.device)
    similarities = similarities.masked_fill(~(both[:, None] & both), torch.finfo(similarities.dtype).min)
    partners = torch.arange(len(one), device=one.device)
    losses = sum(F.cross_entropy(table, partners, reduction="none") for table in (similarities, similarities.T))
    return (losses * both).sum() / (2 * both.sum().clamp(min=1))


def contrastive_loss(vectors: Mapping[str, Tensor], present: Mapping[str, Tensor], scale: Tensor | float) -> Tensor:
    """Modality -> vectors (B, D), and presence (B,) bool -> () mean of `info_nce` over the pairs that some clip has."""
    pairs = [(one, other, present[one] & present[other]) for one, other in combinations(vectors, 2)]
    losses = torch.stack([info_nce(vectors[one], vectors[other], scale, both) for one, other, both in pairs])
    return losses.sum() / torch.stack([both.any() for *_, both in pairs]).sum().clamp(min=1)


class MaskedLanguageHead(nn.Module):
    """Hidden states -> a logit per token of the vocabulary, by BERT's transform and the table that also embeds the tokens."""

    def __init__(self, dim: int, table_width: int, vocabulary: int) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(dim, table_width), nn.GELU(), nn.LayerNorm(table_width))
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, states: Tensor, table: Tensor) -> Tensor:
        """(B, L, dim), (V, width) -> (B, L, V)."""
        return F.linear(self.transform(states), table, self.bias)


class ContrastiveHead(nn.Module):
    """Clip vectors of each modality -> unit vectors of one space, and a learned temperature."""

    def __init__(self, modalities: tuple[str, ...], dim: int, out: int, temperature: float) -> None:
        super().__init__()
        self.projections = nn.ModuleDict({name: nn.Linear(dim, out, bias=False) for name in modalities})
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def scale(self) -> Tensor:
        """() 1 / temperature, within 1 and 100."""
        return self.log_scale.clamp(0, LARGEST_SCALE).exp()

    def forward(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Modality -> (B, dim), and (B,) bool -> () `contrastive_loss`."""
        units = {name: F.normalize(self.projections[name](vector), dim=-1) for name, vector in vectors.items()}
        return contrastive_loss(units, present, self.scale())
