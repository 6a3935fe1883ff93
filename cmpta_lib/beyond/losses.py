"""Losses beside the answer's own: without labels in a pre-training, and of token makers while they are trained.

The pre-training of the second document (section 3.2, step 4) is masked language modelling and contrastive alignment. It
names both and prints L = L_MLM + L_CL; what is masked, who is paired with whom and how it is scored are BERT's and CLIP's.
A token maker's auxiliary losses give one number per clip, so that several processes average exactly what one would.

Shapes: B clips, L text tokens, V vocabulary, D features or width, K prototypes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmpta_lib.base import Loss
from cmpta_lib.config import RunConfig, Stage
from cmpta_lib.data.corpus import Sample
from cmpta_lib.fast.packing import send
from cmpta_lib.fast.prompted import PromptBatch, PromptedLM

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
        ids, maskable: (B, L) int64, and bool: real tokens but for [CLS] and [SEP].
    Returns:
        (B, L) ids to read, and (B, L) targets: the true id where it is to be predicted, `IGNORED` elsewhere.
    """
    chosen = (torch.rand(ids.shape, device=ids.device) < share) & maskable
    fate = torch.rand(ids.shape, device=ids.device)
    other = torch.randint(vocabulary, ids.shape, device=ids.device)
    read = torch.where(chosen & (fate < 0.8), mask_id, ids)
    read = torch.where(chosen & (fate >= 0.9), other, read)
    return read, torch.where(chosen, ids, IGNORED)


class MaskedLanguageHead(nn.Module):
    """Hidden states -> a logit per token of the vocabulary, by BERT's transform and the table that also embeds the tokens."""

    def __init__(self, dim: int, table_width: int, vocabulary: int) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(dim, table_width), nn.GELU(), nn.LayerNorm(table_width))
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, states: Tensor, table: Tensor) -> Tensor:
        """(B, L, dim), (V, width) -> (B, L, V)."""
        return F.linear(self.transform(states), table, self.bias)


def masked_language_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, L, V), (B, L) -> () mean cross-entropy of the tokens to predict; 0 where there are none."""
    total = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


def info_nce(one: Tensor, other: Tensor, scale: Tensor | float, both: Tensor) -> Tensor:
    """Symmetric InfoNCE, as in CLIP: each clip's vector finds its own partner among those of the batch, both ways.

    Args:
        one, other: (B, D), row i of both from clip i; `scale` is 1 / temperature.
        both: (B,) bool, clips that have both vectors; the others are neither asked nor offered.
    Returns:
        () mean over clips and both directions; 0 where no clip has both.
    """
    similarities = scale * one @ other.T
    similarities = similarities.masked_fill(~(both[:, None] & both), torch.finfo(similarities.dtype).min)
    partners = torch.arange(len(one), device=one.device)
    losses = sum(F.cross_entropy(table, partners, reduction="none") for table in (similarities, similarities.T))
    return (losses * both).sum() / (2 * both.sum().clamp(min=1))


class ContrastiveHead(nn.Module):
    """Clip vectors of each modality -> unit vectors of one space, which find their partners at a learned temperature."""

    def __init__(self, modalities: tuple[str, ...], dim: int, out: int, temperature: float) -> None:
        super().__init__()
        self.projections = nn.ModuleDict({name: nn.Linear(dim, out, bias=False) for name in modalities})
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Modality -> (B, dim), and (B,) bool -> () mean of `info_nce` over the pairs that some clip has."""
        scale = self.log_scale.clamp(0, LARGEST_SCALE).exp()
        units = {name: F.normalize(self.projections[name](vector), dim=-1) for name, vector in vectors.items()}
        pairs = [(one, other, present[one] & present[other]) for one, other in combinations(units, 2)]
        losses = torch.stack([info_nce(units[one], units[other], scale, both) for one, other, both in pairs])
        return losses.sum() / torch.stack([both.any() for *_, both in pairs]).sum().clamp(min=1)


def central_moment_discrepancy(first: Tensor, second: Tensor, orders: int, interval: float) -> Tensor:
    """How unlike two samples are in mean and central moments (Zellinger et al., ICLR 2017).

    CMD = |E(X) - E(Y)| / |b - a| + sum over k = 2 .. orders of |C_k(X) - C_k(Y)| / |b - a|^k, with Euclidean norms and
    C_k(X) = E((X - E(X))^k) by coordinate: (..., K, D), K observations each -> (...). `interval`: |b - a|, in which every
    coordinate lies.
    """
    means = first.mean(-2, keepdim=True), second.mean(-2, keepdim=True)
    centred = first - means[0], second - means[1]
    found = torch.linalg.vector_norm((means[0] - means[1])[..., 0, :], dim=-1) / interval
    for order in range(2, orders + 1):
        gap = (centred[0] ** order).mean(-2) - (centred[1] ** order).mean(-2)
        found = found + torch.linalg.vector_norm(gap, dim=-1) / interval**order
    return found


def diversity(prototypes: Tensor, diagonal: Literal["as_printed", "one"] = "as_printed") -> Tensor:
    """How alike the prototypes of one modality are, the more so the farther apart their classes stand.

    |W * (max(G, 0) - I)| / (K (K - 1)) in the Frobenius norm, with G_ij the cosine of prototypes i and j and
    W_ij = |i - j| / K. As printed, W is 0 where I is 1, so that I never acts. With "one" W_ii is 1 and G_ii the squared
    length of prototype i, which is so drawn to 1: with cosines G_ii - 1 would be 0 as well. (..., K, D), in the order of
    their classes -> (...).
    """
    count = prototypes.shape[-2]
    places = torch.arange(count, device=prototypes.device, dtype=prototypes.dtype)
    apart = (places[:, None] - places).abs() / count
    directions = F.normalize(prototypes, dim=-1)
    alike = (directions @ directions.mT).clamp(min=0) * apart
    if diagonal == "one":
        alike = alike + torch.diag_embed((prototypes**2).sum(-1) - 1)
    return torch.linalg.vector_norm(alike, dim=(-2, -1)) / (count * (count - 1))


@dataclass(frozen=True, kw_only=True)
class TargetBatch(PromptBatch):
    """With what the auxiliary losses are to find."""

    targets: np.ndarray  # (B,) int64; 0 where a clip has no label, on which no step can be taken


class RegularisedLM(PromptedLM):
    """A frozen LLM whose token maker has auxiliary losses; a clip's loss is its answer's plus their weighted sum.

    Eq 9 is a mean over answer tokens, in which a clip counts as often as its answer has tokens: its auxiliary losses count
    as often. Where all answers are equally long that is their mean over clips. Where no attention maps are asked for, the
    token maker gives in their place what the losses read, by name.
    """

    @abstractmethod
    def targets(self, labels: np.ndarray) -> np.ndarray:
        """Scores or class indices (B,) -> what the auxiliary losses are to find (B,) int64."""

    @abstractmethod
    def regularisers(self, states: Mapping[str, Tensor], targets: Tensor) -> dict[str, tuple[float, Tensor]]:
        """What the token maker gave and the targets (B,) -> by name a weight and the losses (B,)."""

    def collate(self, samples: Sequence[Sample]) -> TargetBatch:
        labels = np.array([0 if sample.label is None else sample.label for sample in samples])
        return TargetBatch(**vars(super().collate(samples)), targets=self.targets(labels).astype(np.int64))

    def loss(self, batch: TargetBatch) -> Loss:  # type: ignore[override]  # what our own `collate` made
        """The answer's cross-entropy and the weighted auxiliary losses, summed over answer tokens; parts unweighted."""
        tokens, states = self.pseudo_tokens(batch)
        answers, _ = self.answer_losses(replace(batch, tokens=tokens))  # they are made once
        lengths = np.array([len(answer) for answer in batch.answer_ids], np.int64)
        targets, counts = send([batch.targets, lengths], self.llm.device)
        parts, total = {"answer": answers.sum()}, answers.sum()
        for name, (weight, losses) in self.regularisers(states, targets).items():
            parts[name] = (losses * counts).sum()
            total = total + weight * parts[name]
        return Loss(total, len(answers), parts)
