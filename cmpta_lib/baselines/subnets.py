"""What LMF and TFN share: one vector per modality, with layers and sizes as in the public code of MMSA for SIMS-V2.

Voice and face are read as mean frames: their order in time is lost. Shapes: B clips, T frames, F features, H hidden.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from cmpta_lib.base import Batch, mean_over_time
from cmpta_lib.baselines.supervised import Chance, Clips, LastState, Supervised, SupervisedConfig
from cmpta_lib.config import AtLeastOne
from cmpta_lib.data.corpus import MODALITIES


class SubnetsConfig(SupervisedConfig):
    """Dropout on the text vector is missing: MMSA switches it off for an LSTM of one layer."""

    quirks: ClassVar[dict[str, object]] = {"time_mean": "padded", "text_end": "padded"}
    audio_hidden: AtLeastOne = 32
    vision_hidden: AtLeastOne = 64
    text_hidden: AtLeastOne = 64  # of the LSTM
    text_out: AtLeastOne = 32
    audio_dropout: Chance = 0.3
    vision_dropout: Chance = 0.3
    time_mean: Literal["real", "padded"] = "real"  # MMSA divides by its padded length: short clips shrink towards zero
    text_end: Literal["real", "padded"] = "real"  # MMSA takes the LSTM's state after `max_text_tokens`, padding read
    padded_audio: AtLeastOne = 925  # frames to which MMSA pads; longer clips are divided by their own length
    padded_vision: AtLeastOne = 232


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

    def forward(self, states: Tensor, clips: Clips) -> list[Tensor]:
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
        return [F.pad(vector, (1, 0), value=1.0) for vector in vectors]


class SubnetsMethod(Supervised):
    """A fusion, a part of the network, of what the subnets make of a clip."""

    def subnets(self) -> Subnets:
        widths = {modality: self.inputs.widths[modality] for modality in MODALITIES}
        return Subnets(self.settings, text=self.encoder.dim, **widths)

    def forward(self, clips: Clips) -> Tensor:
        outputs: Tensor = self.net["fusion"](*self.net["subnets"](self.frozen_text(clips), clips))
        return outputs

    def after_step(self, batch: Batch, epoch: int) -> None:
        share_running_statistics(self.module)
