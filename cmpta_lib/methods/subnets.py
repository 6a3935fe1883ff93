"""Parts that several of the compared methods are built from; each exists once.

Shapes: B clips, T frames, F features, L text tokens, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def real_positions(lengths: Tensor, size: int) -> Tensor:
    """(B,) int64 lengths -> (B, size) bool, True where a position is real."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def mean_over_time(frames: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, F), zero-padded at the end -> (B, F) means over the real frames; zeros where there are none."""
    real = real_positions(lengths, frames.shape[1])[..., None]
    return (frames * real).sum(1) / lengths.clamp(min=1)[:, None]


def reversed_order(lengths: Tensor, size: int) -> Tensor:
    """(B, size) int64: each row's real positions backwards, then its padding; its own inverse on the real part."""
    return (lengths[:, None] - 1 - torch.arange(size, device=lengths.device)).remainder(size)


def reorder(frames: Tensor, order: Tensor) -> Tensor:
    return frames.gather(1, order[..., None].expand(-1, -1, frames.shape[2]))


class FeatureScaling(nn.Module):
    """Frames of one modality, z-scored with the training split's statistics (register 16); padding stays zero."""

    mean: Tensor  # (F,) buffers
    std: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        real = real_positions(lengths, frames.shape[1])[..., None]
        return ((frames - self.mean) / self.std) * real


class LastState(nn.Module):
    """The last hidden state of a one-layer LSTM over each clip's real frames, as of a packed LSTM: no padding is read."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, batch_first=True)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """frames (B, T, F), lengths (B,), 0 = absent -> (B, H), zeros where absent."""
        if frames.shape[1] == 0:
            return frames.new_zeros(len(frames), self.lstm.hidden_size)
        states, _ = self.lstm(frames)
        last = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[2])
        return states.gather(1, last)[:, 0] * (lengths > 0)[:, None]


def split_by_decay(part: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights as a BERT's are fine-tuned: those with weight decay; biases and layer norms, which have none."""
    bare = [("bias" in name or "norm" in name.lower(), weight) for name, weight in part.named_parameters()]
    return [weight for is_bare, weight in bare if not is_bare], [weight for is_bare, weight in bare if is_bare]
