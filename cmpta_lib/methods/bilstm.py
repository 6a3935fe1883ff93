"""A plain recurrent classifier: what sequences of face, voice and words give without any fusion to speak of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmpta_lib.data.corpus import MODALITIES
from cmpta_lib.methods.subnets import real_positions, reorder, reversed_order
from cmpta_lib.methods.supervised import Clips, Supervised


class AttentivePool(nn.Module):
    """BiLSTM over the real positions, then their mean, weighted by a learned attention."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.ahead = nn.LSTM(features, hidden, batch_first=True)
        self.back = nn.LSTM(features, hidden, batch_first=True)
        self.weigh = nn.Linear(2 * hidden, 1)

    def forward(self, sequence: Tensor, lengths: Tensor) -> Tensor:
        """sequence (B, T, F), lengths (B,), 0 = absent -> (B, 2 * hidden), zeros where absent."""
        size = sequence.shape[1]
        if size == 0:
            return sequence.new_zeros(len(sequence), 2 * self.ahead.hidden_size)
        order = reversed_order(lengths, size)
        states = torch.cat([self.ahead(sequence)[0], reorder(self.back(reorder(sequence, order))[0], order)], dim=-1)
        real = real_positions(lengths, size)[..., None]
        weights = self.weigh(states).masked_fill(~real, -1e9).softmax(1) * real
        return (weights * states).sum(1)


class BiLSTM(Supervised):
    """Attentive summaries of words, voice and face, side by side into one linear layer."""

    def network(self) -> nn.Module:
        settings = self.settings
        widths: dict[str, int] = {"text": self.encoder.dim}
        widths |= {modality: self.inputs.widths[modality] for modality in MODALITIES}
        pools = {name: AttentivePool(width, settings.hidden) for name, width in widths.items()}
        head = nn.Linear(2 * settings.hidden * len(pools), self.outputs)
        parts: dict[str, nn.Module] = {**pools, "dropout": nn.Dropout(settings.dropout), "head": head}
        return nn.ModuleDict(parts)

    def forward(self, clips: Clips) -> Tensor:
        read = {
            "text": (self.frozen_text(clips), clips.text_lengths),
            "audio": (clips.audio, clips.audio_lengths),
            "vision": (clips.vision, clips.vision_lengths),
        }
        pooled = torch.cat([self.net[name](*given) for name, given in read.items()], dim=-1)
        scores: Tensor = self.net["head"](self.net["dropout"](pooled))
        return scores
