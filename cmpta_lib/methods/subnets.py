"""Parts that several of the compared methods are built from; each exists once.

Shapes: B clips, T frames, F features, L text tokens, H hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

if TYPE_CHECKING:
    from cmpta_lib.methods.settings import SubnetsConfig
    from cmpta_lib.methods.supervised import Clips


def real_positions(lengths: Tensor, size: int) -> Tensor:
    """(B,) int64 lengths -> (B, size) bool, True where a position is real."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def mean_over_time(frames: Tensor, lengths: Tensor, at_least: int = 1) -> Tensor:
    """(B, T, F), zero-padded at the end -> (B, F) means over the real frames; zeros where there are none.

    A clip shorter than `at_least` is taken for one of that many frames, the missing ones zero.
    """
    real = real_positions(lengths, frames.shape[1])[..., None]
    return (frames * real).sum(1) / lengths.clamp(min=at_least)[:, None]


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

    def take(self, mean: Tensor, std: Tensor) -> None:
        """Keep the training split's statistics, (F,) each."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        real = real_positions(lengths, frames.shape[1])[..., None]
        return ((frames - self.mean) / self.std) * real


def start_at_embedding_norm(to_llm: nn.Linear, embedding_norm: float, llm_dim: int) -> None:
    """Let a projection of LayerNorm's outputs, of norm sqrt(D), give vectors as large as the LLM's embeddings (register 8)."""
    nn.init.normal_(to_llm.weight, std=embedding_norm / (llm_dim * to_llm.in_features) ** 0.5)
    nn.init.zeros_(to_llm.bias)


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


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of (B, F) that also trains on a batch of one clip: by the statistics so far."""

    running_mean: Tensor
    running_var: Tensor

    def forward(self, vectors: Tensor) -> Tensor:
        if len(vectors) > 1:
            return super().forward(vectors)
        return F.batch_norm(vectors, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def share_running_statistics(module: nn.Module) -> None:
    """Average what `BatchNorm` has gathered over all processes: each sees its clips only, and all must answer alike."""
    if not distributed.is_initialized():
        return
    for norm in module.modules():
        if isinstance(norm, BatchNorm):
            for buffer in (norm.running_mean, norm.running_var):
                distributed.all_reduce(buffer)
                buffer /= distributed.get_world_size()


class MeanSubnet(nn.Sequential):
    """One vector of a clip's mean frame (MMSA's SubNet): BatchNorm, dropout, three layers with ReLU; (B, F) -> (B, H)."""

    def __init__(self, features: int, hidden: int, dropout: float) -> None:
        layers: list[nn.Module] = [BatchNorm(features), nn.Dropout(dropout)]
        for width in (features, hidden, hidden):
            layers += [nn.Linear(width, hidden), nn.ReLU()]
        super().__init__(*layers)


class Subnets(nn.Module):
    """One vector per modality, as LMF and TFN read a clip: mean frames of voice and face, an LSTM over the words."""

    def __init__(self, settings: SubnetsConfig, text: int, audio: int, vision: int) -> None:
        super().__init__()
        self.settings = settings
        self.audio = MeanSubnet(audio, settings.audio_hidden, settings.audio_dropout)
        self.vision = MeanSubnet(vision, settings.vision_hidden, settings.vision_dropout)
        self.text = LastState(text, settings.text_hidden)
        self.text_out = nn.Linear(settings.text_hidden, settings.text_out)

    def forward(self, states: Tensor, clips: Clips) -> tuple[Tensor, Tensor, Tensor]:
        """Text states (B, L, dim), zero beyond their end, and the clips -> [1; h] of audio, vision, text, (B, H + 1)."""
        settings, lengths = self.settings, clips.text_lengths
        if settings.text_end == "padded":
            missing = settings.max_text_tokens - states.shape[1]
            states, lengths = F.pad(states, (0, 0, 0, missing)), torch.full_like(lengths, settings.max_text_tokens)
        padded = settings.time_mean == "padded"
        vectors = (
            self.audio(mean_over_time(clips.audio, clips.audio_lengths, settings.padded_audio if padded else 1)),
            self.vision(mean_over_time(clips.vision, clips.vision_lengths, settings.padded_vision if padded else 1)),
            self.text_out(self.text(states, lengths)),
        )
        a, v, t = (F.pad(vector, (1, 0), value=1.0) for vector in vectors)
        return a, v, t
def split_by_decay(part: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights as a BERT's are fine-tuned: those with weight decay; biases and layer norms, which have none."""
    bare = [("bias" in name or "norm" in name.lower(), weight) for name, weight in part.named_parameters()]
    return [weight for is_bare, weight in bare if not is_bare], [weight for is_bare, weight in bare if is_bare]
