"""Auxiliary losses for token makers, and a prompted LLM that is trained with them beside its answer.

Each loss gives one number per clip, so that several processes average exactly what one would.

Shapes: B clips, K prototypes, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cmpta_lib.base import Loss
from cmpta_lib.data.corpus import Sample
from cmpta_lib.fast.packing import send
from cmpta_lib.fast.prompted import PromptBatch, PromptedLM

Weight = Annotated[float, Field(ge=0)]  # of a loss

def central_moment_discrepancy(first: Tensor, second: Tensor, orders: int, interval: float) -> Tensor:
    """How unlike two samples are in mean and central moments (Zellinger et al., ICLR 2017).

    CMD = |E(X) - E(Y)| / |b - a| + sum over k = 2 .. orders of |C_k(X) - C_k(Y)| / |b - a|^k, with Euclidean norms and
    C_k(X) = E((X - E(X))^k) by coordinate.

    Args:
        first, second: (..., K, D), K observations each.
        interval: |b - a| of the interval in which every coordinate lies.
    Returns:
        (...)
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
    length of prototype i, which is so drawn to 1: with cosines G_ii - 1 would be 0 as well.

    Args:
        prototypes: (..., K, D), in the order of their classes.
    Returns:
        (...)
    """
    count = prototypes.shape[-2]
    places = torch.arange(count, device=prototypes.device, dtype=prototypes.dtype)
    apart = (places[:, None] - places).abs() / count
    directions = F.normalize(prototypes, dim=-1)
    alike = (directions @ directions.mT).clamp(min=0) * apart
    if diagonal == "one":
        alike = alike + torch.diag_embed((prototypes**2).sum(-1) - 1)
    return torch.linalg.vector_norm(alike, dim=(-2, -1)) / (count * (count - 1))


@dataclass(frozen=True)
class TargetBatch(PromptBatch):
    """With what the auxiliary losses are to find, and during a step the pseudo tokens, so that they are made once."""

    targets: np.ndarray  # (B,) int64; 0 where a clip has no label, on which no step can be taken
    tokens: Tensor | None = None  # (B, K, E)


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

    def pseudo_tokens(self, batch: PromptBatch, return_weights: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        if isinstance(batch, TargetBatch) and batch.tokens is not None and not return_weights:
            return batch.tokens, {}
        return super().pseudo_tokens(batch, return_weights)

    def loss(self, batch: TargetBatch) -> Loss:  # type: ignore[override]  # what our own `collate` made
        """The answer's cross-entropy and the weighted auxiliary losses, summed over answer tokens; parts unweighted."""
        tokens, states = self.pseudo_tokens(batch)
        answers, _ = self.answer_losses(replace(batch, tokens=tokens))
        lengths = np.array([len(answer) for answer in batch.answer_ids], np.int64)
        targets, counts = send([batch.targets, lengths], self.llm.device)
        parts, total = {"answer": answers.sum()}, answers.sum()
        for name, (weight, losses) in self.regularisers(states, targets).items():
            parts[name] = (losses * counts).sum()
            total = total + weight * parts[name]
        return Loss(total, len(answers), parts)
