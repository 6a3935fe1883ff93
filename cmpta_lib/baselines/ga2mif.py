"""GA2MIF: graph attention within each modality of a dialogue, then attention across modalities (Li et al., TAFFC 2023).

Utterance vectors are not the paper's; see `dialogue.DialogueMethod`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from cmpta_lib.baselines.dialogue import (
    SMALL_DIALOGUES,
    TINY_DIALOGUES,
    Conversation,
    DialogueConfig,
    DialogueMethod,
    Layout,
)
from cmpta_lib.baselines.supervised import NO_WARM_UP, Chance
from cmpta_lib.config import Few, Weight
from cmpta_lib.registry import register


class Ga2mifConfig(DialogueConfig):
    """GA2MIF (Li et al., TAFFC 2023)."""

    name: Literal["ga2mif"] = "ga2mif"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {"mpcat": "code", "padding_mask": "float", "windows": "swapped"}
    dim: Annotated[int, Field(ge=2, le=2**16)] = 200
    speaker_weight: Weight = 1.6
    graph_layers: Few = 3
    graph_heads: Few = 4
    share_graph_layers: bool = True  # one set of weights for all of a modality's graph layers, as the public code runs
    past: Annotated[int, Field(ge=0, le=10**6)] = 16  # utterances that one hears before and after itself
    future: Annotated[int, Field(ge=0, le=10**6)] = 16
    windows: Literal["as_named", "swapped"] = "as_named"  # swapped: past and future, no matter where they are equal
    cross_layers: Few = 4
    heads: Few = 8
    mpcat: Literal["sum", "code"] = "sum"  # both attentions to a modality, or only the second
    padding_mask: Literal["boolean", "float"] = "boolean"  # float: padding is attended to
    dropout: Chance = 0.1

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} is not a multiple of heads={self.heads}")
        return self


KINDS = ("audio", "vision", "text")
# Who asks whom: each modality is key and value, the other two are queries. In the public code the sum of both is
# overwritten by the second, so the first ones' weights never move.
QUERIES = {"audio": ("vision", "text"), "vision": ("audio", "text"), "text": ("audio", "vision")}


class GraphAttention(nn.Module):
    """GATv2 (Brody et al. 2022) on dense blocks, the heads' mean: s_ij = a^T LeakyReLU(W_l x_j + W_r x_i)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.source, self.target = nn.Linear(width, heads * width), nn.Linear(width, heads * width)
        self.weigh = nn.Parameter(torch.empty(heads, width))
        self.bias = nn.Parameter(torch.zeros(width))
        for weight in (self.source.weight, self.target.weight, self.weigh):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.source.bias)
        nn.init.zeros_(self.target.bias)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """nodes (D, L, F), edges (D, L, L) bool, True where the column's node is heard by the row's -> (D, L, F)."""
        sources, targets = self.source(nodes).chunk(self.heads, -1), self.target(nodes).chunk(self.heads, -1)
        out = torch.zeros_like(nodes)
        for source, target, weigh in zip(sources, targets, self.weigh, strict=True):  # one head: (D, L, L, F) is large
            scores = F.leaky_relu(source[:, None] + target[:, :, None], 0.2) @ weigh
            # A finite number, as rows of padding have no edge at all.
            out = out + scores.masked_fill(~edges, -1e9).softmax(-1) @ source
        return out / self.heads + self.bias


def window(layout: Layout, past: int, future: int) -> Tensor:
    """(D, L, L) bool: each utterance (row) hears those from `past` before it to `future` after it, and itself."""
    place = torch.arange(layout.size, device=layout.real.device)
    later = place - place[:, None]  # (rows, columns): how much later the column is spoken
    near = (later >= -past) & (later <= future)
    return near & layout.real[:, None, :] & layout.real[:, :, None]


class OneModality(nn.Module):
    """MDGAT (section 3.4): x <- LayerNorm(x + GATv2(x)), several times."""

    def __init__(self, settings: Ga2mifConfig) -> None:
        super().__init__()
        made = 1 if settings.share_graph_layers else settings.graph_layers
        self.norms = nn.ModuleList(nn.LayerNorm(settings.dim) for _ in range(made))
        self.layers = nn.ModuleList(GraphAttention(settings.dim, settings.graph_heads) for _ in range(made))
        self.steps = settings.graph_layers

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        for step in range(self.steps):
            place = step % len(self.layers)
            nodes = self.norms[place](nodes + self.layers[place](nodes, edges))
        return nodes


class AcrossModalities(nn.Module):
    """MPCAT (section 3.5): one modality hears the others ask, then a feed-forward net; both with residual and norm."""

    def __init__(self, kind: str, settings: Ga2mifConfig) -> None:
        super().__init__()
        dim = settings.dim
        self.kind, self.queries = kind, QUERIES[kind] if settings.mpcat == "sum" else QUERIES[kind][1:]
        self.asked = nn.ModuleList(nn.MultiheadAttention(dim, settings.heads, batch_first=True) for _ in self.queries)
        self.norm, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.wide, self.narrow = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.dropout = nn.Dropout(settings.dropout)

    def term(self, nodes: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        """(D, L, dim) attention to this modality, summed over who asks."""
        own, pairs = nodes[self.kind], zip(self.queries, self.asked, strict=True)
        heard = [ask(nodes[query], own, own, key_padding_mask=mask, need_weights=False)[0] for query, ask in pairs]
        return torch.stack(heard).sum(0)

    def forward(self, nodes: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        """nodes (D, L, dim) by modality; mask (D, L) bool, True at padding, or numbers to add to scores -> (D, L, dim)."""
        heard = self.norm(nodes[self.kind] + self.dropout(self.term(nodes, mask)))
        made = self.dropout(self.narrow(self.dropout(self.wide(heard).relu())))
        return self.norm_out(heard + made)


class Network(nn.Module):
    """From the three vectors of each utterance to scores or logits."""

    def __init__(self, widths: Mapping[str, int], outputs: int, settings: Ga2mifConfig) -> None:
        super().__init__()
        dim, self.settings = settings.dim, settings
        self.audio, self.vision = nn.Linear(widths["audio"], dim), nn.Linear(widths["vision"], dim)
        self.conversation = Conversation(widths["text"], dim, settings.dropout, settings.bilstm)
        self.text = nn.Linear(2 * dim, dim)
        self.voices = nn.Embedding(settings.speakers, dim)
        self.within = nn.ModuleDict({kind: OneModality(settings) for kind in KINDS})
        self.across = nn.ModuleList(
            nn.ModuleDict({kind: AcrossModalities(kind, settings) for kind in KINDS}) for _ in range(settings.cross_layers)
        )
        self.head = nn.Sequential(nn.Linear(3 * dim, dim), nn.Linear(dim, outputs))

    def forward(self, text: Tensor, audio: Tensor, vision: Tensor, layout: Layout) -> Tensor:
        """(N, width) each -> (N, outputs)."""
        settings = self.settings
        given = {"audio": self.audio(audio).tanh(), "vision": self.vision(vision).tanh()}
        given["text"] = self.text(self.conversation(text, layout))
        voices = settings.speaker_weight * layout.voices(self.voices)
        spans = (settings.past, settings.future)
        edges = window(layout, *(reversed(spans) if settings.windows == "swapped" else spans))
        nodes = {kind: self.within[kind](layout.padded(given[kind] + voices), edges) for kind in KINDS}
        nodes = {kind: layout.padded(layout.packed(node)) for kind, node in nodes.items()}  # zeros at padding again
        # The public code adds 1 to the scores of real utterances and leaves padding in: batch mates matter.
        mask = layout.real.to(text.dtype) if settings.padding_mask == "float" else ~layout.real
        for layer in self.across:
            nodes = {kind: part(nodes, mask) for kind, part in cast(nn.ModuleDict, layer).items()}
        return self.head(layout.packed(torch.cat([nodes[kind] for kind in KINDS], dim=-1)))


class GA2MIF(DialogueMethod):
    """The method: `Network` on utterance vectors."""

    graph = Network


register(
    Ga2mifConfig, GA2MIF, row="GA2MIF", comparisons=("meld",),
    settings={
        # A speaker table of unit variance times 1.6 drowns utterance vectors that have yet to be learned.
        "demo": SMALL_DIALOGUES
        | {"method.speaker_weight": 0.1, "method.dim": 32, "method.heads": 4, "method.graph_layers": 1}
        | {"method.cross_layers": 1, "method.dropout": 0.3},
        "demo/data": {"training.epochs": 30, "training.learning_rate": 1e-3},
        # The published rate is for finished utterance vectors; the LSTMs that make them here learn 100 times as fast.
        "paper": NO_WARM_UP
        | {"training.optimizer": "adamw_amsgrad", "training.learning_rate": 1e-5, "training.weight_decay": 1e-5}
        | {"training.batch_size": 8, "training.epochs": 100, "method.frames_rate": 100.0},
        "smoke": TINY_DIALOGUES | {"method.heads": 2, "method.graph_heads": 2, "method.cross_layers": 1},
    },
    reads="the whole dialogue and who speaks: words by a frozen BERT, all frames of voice and face",
)  # fmt: skip
