"""MAG-BERT: face and voice shift each word's embedding before BERT reads it (Rahman et al., ACL 2020).

Shapes: B clips, L text positions, T frames, F features, dim the width of BERT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from cmpta_lib.base import Group
from cmpta_lib.baselines.supervised import AS_IN_MMSA, Chance, Clips, Supervised, SupervisedConfig, split_by_decay
from cmpta_lib.config import Positive, TrainingConfig
from cmpta_lib.data.corpus import MODALITIES, Modality, Split
from cmpta_lib.llm.loading import contextual
from cmpta_lib.registry import register

if TYPE_CHECKING:
    from transformers.models.bert import BertModel


class MagBertConfig(SupervisedConfig):
    """Rahman et al. 2020; no hyper-parameters for SIMS-V2 are public, so these are the ones that MMSA has for SIMS."""

    name: Literal["mag_bert"] = "mag_bert"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {"alignment": "padded"}
    # Frames to text positions: "real" spreads a clip's frames over its own tokens; "padded" gives each of
    # max_text_tokens positions an equal part of the longest training clip, which a short clip fills to a part only.
    alignment: Literal["real", "padded"] = "real"
    gate_rate: Positive = 1.0  # learning rate of the gate and the last layer, times that of BERT
    beta: Positive = 1.0  # a shift is at most this times as long as the word's vector
    mag_dropout: Chance = 0.1
    dropout: Chance = 0.1  # before the last layer


class MagGate(nn.Module):
    """The multimodal adaptation gate: a shift by what is seen and heard, no longer than `beta` times the word's vector."""

    def __init__(self, text: int, audio: int, vision: int, beta: float, dropout: float) -> None:
        super().__init__()
        self.beta = beta
        self.gate_vision, self.gate_audio = nn.Linear(vision + text, text), nn.Linear(audio + text, text)
        self.shift_vision, self.shift_audio = nn.Linear(vision, text), nn.Linear(audio, text)
        self.norm, self.dropout = nn.LayerNorm(text), nn.Dropout(dropout)

    def forward(self, text: Tensor, audio: Tensor, vision: Tensor) -> Tensor:
        """(B, L, dim), (B, L, F_a), (B, L, F_v) -> (B, L, dim)."""
        by_vision = self.gate_vision(torch.cat([vision, text], dim=-1)).relu() * self.shift_vision(vision)
        by_audio = self.gate_audio(torch.cat([audio, text], dim=-1)).relu() * self.shift_audio(audio)
        shift = by_vision + by_audio
        length = torch.linalg.vector_norm(shift, dim=-1, keepdim=True)
        length = torch.where(length == 0, 1.0, length)
        longest = self.beta * torch.linalg.vector_norm(text, dim=-1, keepdim=True)
        scale = (longest / (length + 1e-6)).clamp(max=1.0)
        return self.dropout(self.norm(text + scale * shift))


class MagBertNet(nn.Module):
    """`bert` is fine-tuned. `longest`: frames of the longest training clip, by modality in the order of `MODALITIES`."""

    longest: Tensor  # (2,) int64, a buffer

    def __init__(self, bert: BertModel, gate: MagGate, dropout: float, outputs: int) -> None:
        super().__init__()
        self.bert, self.gate, self.dropout = bert, gate, nn.Dropout(dropout)
        self.head = nn.Linear(int(bert.config.hidden_size), outputs)
        self.register_buffer("longest", torch.ones(len(MODALITIES), dtype=torch.int64))
        for layer in [part for part in (*gate.modules(), self.head) if isinstance(part, nn.Linear)]:  # as BERT's own
            nn.init.normal_(layer.weight, std=bert.config.initializer_range)
            nn.init.zeros_(layer.bias)

    def forward(self, clips: Clips, audio: Tensor, vision: Tensor) -> Tensor:
        """Clips, and their frames laid to the text's positions (B, L, F) -> (B, C)."""
        # Not `inputs_embeds`: BERT would add positions a second time.
        embedded = self.gate(self.bert.embeddings(input_ids=clips.text_ids), audio, vision)
        pooled = self.bert.pooler(contextual(self.bert, embedded, clips.text_real))
        return self.head(self.dropout(pooled))


class MagBert(Supervised):
    """BERT with the gate after its embeddings."""

    def network(self) -> nn.Module:
        settings, widths = self.settings, self.inputs.widths
        bert = self.encoder.model.requires_grad_(True)
        gate = MagGate(self.encoder.dim, widths["audio"], widths["vision"], settings.beta, settings.mag_dropout)
        return MagBertNet(bert, gate, settings.dropout, self.outputs)

    def fit(self, train: Split) -> None:
        super().fit(train)
        longest = [int(train.table[f"{modality}_length"].max()) for modality in MODALITIES]
        self.net.longest.copy_(torch.tensor(longest).clamp(min=1))

    def forward(self, clips: Clips) -> Tensor:
        return self.net(clips, *(self.aligned(clips, modality) for modality in MODALITIES))

    def aligned(self, clips: Clips, modality: Modality) -> Tensor:
        """(B, T, F) frames -> (B, L, F): at each text position the mean of its block of frames."""
        frames, lengths = clips[modality]
        places, times = clips.text_ids.shape[1], frames.shape[1]
        if self.settings.alignment == "padded":
            longest = self.net.longest[MODALITIES.index(modality)]
            return padded_blocks(places, times, longest, self.settings.max_text_tokens).to(frames) @ frames
        return real_blocks(places, times, clips.text_lengths, lengths).to(frames) @ frames

    def groups(self, config: TrainingConfig) -> Sequence[Group]:
        """BERT, then the gate and the last layer; each with weight decay, and biases and layer norms without."""
        ours = nn.ModuleDict({"gate": self.net.gate, "head": self.net.head})
        parts = ((self.net.bert, 1.0), (ours, self.settings.gate_rate))
        return [
            Group(weights, rate, decay)
            for part, rate in parts
            for weights, decay in zip(split_by_decay(part), (None, 0.0), strict=True)
        ]


def real_blocks(places: int, times: int, text_lengths: Tensor, lengths: Tensor) -> Tensor:
    """(B, L, T) weights that spread each clip's frames over its text positions in contiguous blocks of (nearly) one size.

    Where there are fewer frames than positions, neighbouring positions read the same frame.
    """
    place = torch.arange(places, device=lengths.device)[None]
    texts, frames = text_lengths[:, None], lengths[:, None]
    start = torch.div(place * frames, texts, rounding_mode="floor")
    stop = torch.maximum(torch.div((place + 1) * frames, texts, rounding_mode="floor"), start + 1)
    time = torch.arange(times, device=lengths.device)
    chosen = (time >= start[..., None]) & (time < stop[..., None])
    chosen &= (time < frames[..., None]) & (place < texts)[..., None]
    return chosen / (stop - start)[..., None]


def padded_blocks(places: int, times: int, longest: Tensor, slots: int) -> Tensor:
    """(L, T) weights of the public code: every clip zero-padded to `longest` () frames, whose last one is repeated until
    `slots` divides their number; each slot is the mean of as many. What lies beyond `longest` is not read."""
    size = torch.div(longest + slots - 1, slots, rounding_mode="floor")
    place = torch.arange(places, device=longest.device)[:, None]
    time = torch.arange(times, device=longest.device)[None]
    start, stop = place * size, (place + 1) * size
    inside = (time >= start) & (time < stop) & (time < longest)
    repeats = (stop - torch.maximum(start, longest)).clamp(min=0) * (time == longest - 1)
    return (inside + repeats) / size


register(
    MagBertConfig, MagBert, row="MAG-BERT", comparisons=("sims",),
    settings={
        "demo": {"training.learning_rate": 1e-3, "training.gradient_clip": None, "method.gate_rate": 3.0},
        "demo/data": {"training.learning_rate": 1e-3},
        "paper": AS_IN_MMSA | {"training.batch_size": 32, "training.learning_rate": 5e-5, "training.weight_decay": 0.0},
    },
    reads="one utterance: words by a BERT that is trained too, frames pooled to the words",
)  # fmt: skip
