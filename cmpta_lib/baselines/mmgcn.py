"""MMGCN: a deep graph convolution over the utterances of a dialogue in three modalities (Hu et al., ACL 2021).

Utterance vectors are not the paper's; see `dialogue.DialogueMethod`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cmpta_lib.base import Loss
from cmpta_lib.baselines.dialogue import (
    SMALL_DIALOGUES,
    TINY_DIALOGUES,
    Conversation,
    DialogueConfig,
    DialogueMethod,
    Layout,
)
from cmpta_lib.baselines.supervised import NO_WARM_UP, Chance, ClipBatch, task_losses
from cmpta_lib.config import EvenWidth, Few, Positive, Weight, Width
from cmpta_lib.registry import register


class MmgcnConfig(DialogueConfig):
    """MMGCN (Hu et al., ACL 2021)."""

    name: Literal["mmgcn"] = "mmgcn"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {"loss": "paper_code", "bilstm": "padded", "epsilon": 0.0}
    dim: EvenWidth = 200  # of a node
    graph_dim: Width = 100  # of a graph layer's state
    layers: Few = 64  # of the graph convolution
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.1  # share of the first state in each layer
    decay: Positive = 0.5  # lambda: layer l's weights count log(lambda / l + 1)
    dropout: Chance = 0.4
    epsilon: Weight = 1e-8  # without it a vector of zeros has no angle, and the loss is NaN
    loss: Literal["cross_entropy", "focal", "paper_code"] = "cross_entropy"  # paper_code: see `mmgcn.class_losses`
    focal_gamma: Annotated[float, Field(ge=1, le=1000)] = 2.5


NEARLY_ONE = 0.99999  # times each cosine, as the slope of arccos has no bound at 1


def adjacency(nodes: Tensor, real: Tensor, epsilon: float) -> Tensor:
    """Angular similarities between the nodes of each dialogue, normalised by degree (section 3.3).

    Nodes of one modality are all joined, nodes of two modalities where they belong to one utterance:
    A_ij = 1 - arccos(cos(x_i, x_j)) / pi, then D^-1/2 A D^-1/2.

    Args:
        nodes: (D, 3, L, F) audio, vision, text; padding is never read.
        real: (D, L) bool.
        epsilon: added to squared lengths, so that a vector of zeros has an angle of 90 degrees to all.
    Returns:
        (D, 3 * L, 3 * L), zero rows and columns for padding.
    """
    size = real.shape[1]
    node, kind = nodes.flatten(1, 2), torch.arange(3, device=nodes.device).repeat_interleave(size)
    place = torch.arange(size, device=nodes.device).repeat(3)
    there = real.repeat(1, 3)
    joined = (kind[:, None] == kind) | (place[:, None] == place)
    edges = joined & there[:, :, None] & there[:, None, :]
    squared = ((node * node).sum(-1) + epsilon).masked_fill(~there, 1.0)
    direction = node * squared.rsqrt()[..., None]
    similarity = (1 - torch.acos(NEARLY_ONE * (direction @ direction.mT)) / math.pi).masked_fill(~edges, 0.0)
    scale = similarity.sum(-1).masked_fill(~there, 1.0).rsqrt()
    return scale[:, :, None] * similarity * scale[:, None, :]


class DeepGraph(nn.Module):
    """GCNII (section 3.4): each layer sees the first one's output again, and is nearer to the identity the deeper it lies."""

    def __init__(self, width: int, hidden: int, settings: MmgcnConfig) -> None:
        super().__init__()
        self.inward = nn.Linear(width, hidden)
        self.layers = nn.ParameterList(nn.Parameter(torch.empty(2 * hidden, hidden)) for _ in range(settings.layers))
        self.dropout = nn.Dropout(settings.dropout)
        self.alpha, self.decay = settings.alpha, settings.decay
        for weight in self.layers:
            nn.init.uniform_(weight, -(hidden**-0.5), hidden**-0.5)

    def forward(self, nodes: Tensor, near: Tensor) -> Tensor:
        """nodes (D, M, width), near (D, M, M) -> (D, M, width + hidden): the nodes, then what the graph made of them."""
        nodes = self.dropout(nodes)
        first = state = self.inward(nodes).relu()
        for number, weight in enumerate(self.layers, start=1):
            theta = math.log(self.decay / number + 1)
            spread = near @ self.dropout(state)
            kept = (1 - self.alpha) * spread + self.alpha * first
            state = (theta * (torch.cat([spread, first], dim=-1) @ weight) + (1 - theta) * kept).relu()
        return torch.cat([nodes, self.dropout(state)], dim=-1)


class Network(nn.Module):
    """From the three vectors of each utterance to scores or logits."""

    def __init__(self, widths: Mapping[str, int], outputs: int, settings: MmgcnConfig) -> None:
        super().__init__()
        dim = settings.dim
        self.audio, self.vision = nn.Linear(widths["audio"], dim), nn.Linear(widths["vision"], dim)
        self.text = Conversation(widths["text"], dim // 2, settings.dropout, settings.bilstm)
        self.voices = nn.Embedding(settings.speakers, dim)
        self.graph = DeepGraph(dim, settings.graph_dim, settings)
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Linear(3 * (dim + settings.graph_dim), outputs)
        self.epsilon = settings.epsilon

    def forward(self, text: Tensor, audio: Tensor, vision: Tensor, layout: Layout) -> Tensor:
        """(N, width) each -> (N, outputs)."""
        words = self.text(text, layout) + layout.voices(self.voices)
        return self.head(self.dropout(self.fused([self.audio(audio), self.vision(vision), words], layout).relu()))

    def fused(self, nodes: list[Tensor], layout: Layout) -> Tensor:
        """Audio, vision and text nodes (N, dim) each -> (N, 3 * (dim + graph_dim))."""
        laid = torch.stack([layout.padded(node) for node in nodes], dim=1)  # (D, 3, L, dim)
        made = self.graph(laid.flatten(1, 2), adjacency(laid, layout.real, self.epsilon))
        return torch.cat([layout.packed(part) for part in made.chunk(3, dim=1)], dim=-1)


def class_losses(logits: Tensor, labels: Tensor, kind: str, gamma: float) -> Tensor:
    """(N, C), (N,) -> what is averaged: (N,), or (N, C) for what the public code computes under the name of focal loss.

    "focal" is (1 - p)^gamma * -log p of the true class. The public code charges every class -log p, the true one times
    (1 - log p)^gamma: a confident right answer costs more than none.
    """
    logs = logits.log_softmax(-1)
    if kind == "paper_code":
        true = F.one_hot(labels, logits.shape[1]).to(logs.dtype)
        return (1 - true * logs) ** gamma * -logs
    own = logs.gather(1, labels[:, None])[:, 0]
    return -own if kind == "cross_entropy" else (-torch.expm1(own)) ** gamma * -own


class MMGCN(DialogueMethod):
    """The method: `Network` on utterance vectors."""

    graph = Network

    def loss(self, batch: ClipBatch) -> Loss:  # type: ignore[override]
        """The chosen loss of a class; absolute error of a score, which the paper does not have."""
        outputs, labels = self.forward(self.clips(batch)), self.labels(batch)
        if self.task.kind == "regression":
            losses = task_losses(outputs, labels, self.task)
        else:
            losses = class_losses(outputs, labels, self.settings.loss, self.settings.focal_gamma)
        return Loss(losses.sum(), losses.numel())


register(
    MmgcnConfig, MMGCN, row="MMGCN", comparisons=("meld",),
    settings={
        "demo": SMALL_DIALOGUES | {"method.dim": 64, "method.graph_dim": 64, "method.layers": 4, "method.dropout": 0.1},
        "demo/data": {"training.epochs": 30, "training.learning_rate": 3e-3},
        "paper": NO_WARM_UP
        | {"training.optimizer": "adam", "training.learning_rate": 1e-3, "training.weight_decay": 0.0}
        | {"training.batch_size": 16, "training.epochs": 60},
        "smoke": TINY_DIALOGUES | {"method.graph_dim": 8, "method.layers": 2},
    },
    reads="the whole dialogue and who speaks: words by a frozen BERT, all frames of voice and face",
)  # fmt: skip
