"""What a method is to the rest of the code: training, runs and tables know `Method` and nothing of what is inside.

A further method is one file with a settings class (`config.MethodConfig`), a subclass of `Method` and, at its end, a call of
`registry.register`. CMPTA and text only are subclasses of `fast.prompted.PromptedLM`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from cmpta_lib.config import EncoderConfig, LLMConfig, RunConfig, Stage, TrainingConfig
from cmpta_lib.data.corpus import Inputs, Sample, Split


def _no_encoder(config: EncoderConfig) -> Any:
    raise LookupError(f"text encoder '{config.name}' was asked for where there is none")


@dataclass(frozen=True)
class Resources:
    """What a method may ask for when it is built: where to compute, and pre-trained models by their settings.

    `encoder` gives each caller a copy of its own, which may be trained further.
    """

    device: torch.device
    llm: Callable[[LLMConfig], Any]  # gives a `method.llm.FrozenLLM`
    encoder: Callable[[EncoderConfig], Any] = _no_encoder  # gives an `llm.loading.TextEncoder`
    knowledge: Path | None = None  # folder for what models said of clips; None = kept in memory


@dataclass(frozen=True)
class Group:
    """Parameters that are trained alike: `rate` times the learning rate, and a weight decay of their own or the run's."""

    parameters: Sequence[nn.Parameter]
    rate: float = 1.0
    weight_decay: float | None = None


@dataclass(frozen=True)
class Batch:
    """B clips as a method's `collate` lays them out; methods add their own fields."""

    ids: tuple[str, ...]
    issues: Mapping[str, int]  # what had to be cut or left out, by kind; counted, stored with the result


@dataclass(frozen=True)
class Loss:
    """The sum of a batch's loss terms and their number, so that several processes can average exactly."""

    total: Tensor  # () with gradient
    count: int
    parts: Mapping[str, Tensor] = field(default_factory=dict)  # named () sums, for the history


@dataclass(frozen=True)
class Predictions:
    """Answers to B clips.

    `values` (B,) float64: score or class index, NaN where a reply is no legal answer. `replies`: what was said, None
    where it is no legal answer. `probabilities` (B, len(answers)) of every legal answer, rows sum to 1; None where a
    method gives a number only.
    """

    values: np.ndarray
    replies: Sequence[str | None]
    answers: Sequence[str] = ()
    probabilities: np.ndarray | None = None
    issues: Mapping[str, int] = field(default_factory=dict)


class Method(ABC):
    """One way to tell sentiment or emotion from words, face and voice.

    Built as `Method(config, inputs, resources)`; every random initial weight comes from torch's global generator, which the
    training loop seeds. What a run keeps is `module.state_dict()`: weights and, as buffers, whatever else was learned.
    """

    module: nn.Module  # what is trained and saved, nothing else
    unit: Literal["clip", "dialogue"] = "clip"  # what batches are drawn from: dialogues stay together, in order
    keeps_clip_state: bool = False  # it learns something of every training clip, which one process must see all of

    @abstractmethod
    def __init__(self, config: RunConfig, inputs: Inputs, resources: Resources) -> None: ...

    def fit(self, train: Split) -> None:  # noqa: B027  # most methods need nothing else
        """Learn from the training split, before the first step, what no gradient teaches; keep it in buffers."""

    def enter(self, stage: Stage) -> None:  # noqa: B027  # most methods have one stage
        """A stage of the training begins, or goes on after a restart: `loss` and `groups` are the stage's from now on."""

    def check(self, sample: Sample) -> None:  # noqa: B027  # most methods read whatever is there
        """Raise ValueError, naming the clip, where the answer to it would be the same whatever it holds."""

    @abstractmethod
    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples -> a batch; pure, labels may be None when only `predict` follows."""

    @abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """The training loss of a labelled batch."""

    @abstractmethod
    def predict(self, batch: Batch) -> Predictions:
        """Answers to a batch, without gradient and in eval mode; no answer may depend on its batch mates."""

    def groups(self, config: TrainingConfig) -> Sequence[Group]:
        """What is trained, in groups where a method trains some parts otherwise than the rest."""
        return [Group([p for p in self.module.parameters() if p.requires_grad])]

    def after_step(self, batch: Batch, epoch: int) -> None:  # noqa: B027
        """Called after each optimiser step with the finished epochs so far; state lives in the module's buffers."""

    def attention(self, batch: Batch) -> Mapping[str, Tensor]:
        """Attention maps by name, (B, heads, queries, keys), zero-padded at the end.

        Raises:
            NotImplementedError: the method has none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no attention maps to show")


# Parts that several methods share. Shapes: B clips, T frames, F features.
def real_positions(lengths: Tensor, size: int) -> Tensor:
    """(B,) int64 lengths -> (B, size) bool, True where a position is real."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def mean_over_time(frames: Tensor, lengths: Tensor, at_least: int = 1) -> Tensor:
    """(B, T, F), zero-padded at the end -> (B, F) means over the real frames; zeros where there are none.

    A clip shorter than `at_least` is taken for one of that many frames, the missing ones zero.
    """
    real = real_positions(lengths, frames.shape[1])[..., None]
    return (frames * real).sum(1) / lengths.clamp(min=at_least)[:, None]


class FeatureScaling(nn.Module):
    """Frames of one modality, z-scored with the training split's statistics (choice 16); padding stays zero."""

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
        return (frames - self.mean) / self.std * real_positions(lengths, frames.shape[1])[..., None]
