"""Parts that several of the compared methods are built from; each exists once.

Shapes: B clips, T frames, F features, L text tokens, H hidden.

Methods that learn from labels directly: clips in, one score or a logit per class out.

A subclass says what its network is (`network`) and how clips go through it (`forward`); layout, scaling of features, loss
and answers are here. Clips are zero-padded at the end, and no answer depends on padding or on batch mates.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, distributed, nn

from cmpta_lib.base import Batch, Loss, Method, Predictions, Tools
from cmpta_lib.config import AtLeastOne, EncoderConfig, MethodConfig, RunConfig
from cmpta_lib.data.corpus import MODALITIES, Inputs, Modality, Sample, Split, Task
from cmpta_lib.fast.packing import pad_frames, pad_ids, send
from cmpta_lib.llm.encoder import TextEncoder

Chance = Annotated[float, Field(ge=0, lt=1)]  # of a dropout
Preset = TypeVar("Preset", bound=MethodConfig)
# Of the paper's profile: training as the public codes have it.
NO_WARM_UP = {"training.schedule": "constant", "training.warmup_fraction": 0.0, "training.gradient_clip": None}
AS_IN_MMSA = NO_WARM_UP | {"training.optimizer": "adam", "training.patience": 8}


class SupervisedConfig(MethodConfig):
    """What all methods share that learn from labels directly, with a text encoder in place of an LLM."""

    quirks: ClassVar[dict[str, object]] = {}  # field -> value in the method's public code
    encoder: EncoderConfig = EncoderConfig()
    max_text_tokens: Annotated[int, Field(ge=3)] = 50  # with [CLS] and [SEP]; longer utterances are cut and counted
    modalities: Literal["all", "text", "audio_vision"] = "all"  # what is read; the rest counts as absent


class SubnetsConfig(SupervisedConfig):
    """What LMF and TFN share: one vector per modality, with the sizes that the public code of MMSA has for SIMS-V2.

    Dropout on the text vector is missing: MMSA switches it off for an LSTM of one layer.
    """

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


def reference(config: Preset) -> Preset:
    """The same settings with every quirk as the method's public code has it."""
    quirks: dict[str, object] = getattr(config, "quirks", {})
    return type(config).model_validate(config.model_dump() | quirks)


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


@dataclass(frozen=True)
class ClipBatch(Batch):
    """B clips as host arrays; a modality's length of 0 = absent."""

    labels: np.ndarray  # (B,) float32 scores, or int64 class indices; empty where a clip has no label
    text_ids: np.ndarray  # (B, L) int64, [CLS] ... [SEP], zero-padded at the end
    text_lengths: np.ndarray  # (B,) int64
    frames: dict[Modality, np.ndarray]  # (B, T, F) float32, zero-padded at the end
    lengths: dict[Modality, np.ndarray]  # (B,) int64
    dialogues: list[int]  # how many clips each dialogue has, in order; 1 each for clips without a dialogue
    speakers: np.ndarray  # (B,) int64, numbered in order of first appearance within the dialogue


@dataclass(frozen=True)
class Clips:
    """A `ClipBatch` on the device, its frames scaled."""

    text_ids: Tensor  # (B, L) int64
    text_lengths: Tensor  # (B,) int64
    audio: Tensor  # (B, T, F)
    audio_lengths: Tensor
    vision: Tensor
    vision_lengths: Tensor
    speakers: Tensor  # (B,) int64
    dialogues: list[int]
    ids: tuple[str, ...] = ()

    @property
    def text_real(self) -> Tensor:
        """(B, L) bool."""
        return real_positions(self.text_lengths, self.text_ids.shape[1])


class Supervised(Method):
    """A network of one's own; `module` holds it as `network`, beside the scaling of its features."""

    def __init__(self, config: RunConfig, inputs: Inputs, tools: Tools) -> None:
        assert isinstance(config.method, SupervisedConfig)
        self.config, self.settings, self.inputs, self.task = config, cast(Any, config.method), inputs, inputs.task
        self.device = tools.device
        self.encoder: TextEncoder = tools.encoder(config.method.encoder)
        self.outputs = max(1, len(inputs.task.labels))  # one score, or a logit per class
        self.net: Any = self.network()  # a module; its parts are the subclass's own
        widths: dict[str, int] = {modality: inputs.widths[modality] for modality in MODALITIES}
        if not any(weight.requires_grad for weight in self.encoder.model.parameters()):
            widths["text"] = self.encoder.dim  # states of a frozen encoder are features like others
        self.scaling = nn.ModuleDict({name: FeatureScaling(width) for name, width in widths.items()})
        self.module = nn.ModuleDict({"scaling": self.scaling, "network": self.net}).to(tools.device)

    @abstractmethod
    def network(self) -> nn.Module:
        """The trained part, freshly initialised; a text encoder that is to be trained too belongs into it."""

    @abstractmethod
    def forward(self, clips: Clips) -> Tensor:
        """(B, outputs): scores, or logits."""

    def fit(self, train: Split) -> None:
        """Take the z-scoring statistics from the training split's real frames and words (register 16)."""
        if self.config.data.feature_scaling == "none":
            return
        for name, module in self.scaling.items():
            statistics = self._text_statistics(train) if name == "text" else train.feature_statistics(cast(Modality, name))
            cast(FeatureScaling, module).take(*map(torch.from_numpy, statistics))

    @torch.no_grad()
    def _text_statistics(self, train: Split) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation (dim,) of the frozen encoder's states over all tokens; 1 where one does not vary."""
        size, count = self.config.evaluation.batch_size, 0
        total, squares = (torch.zeros(self.encoder.dim, dtype=torch.float64, device=self.device) for _ in range(2))
        for start in range(0, len(train), size):
            texts = [train[index].text if self.reads("text") else "" for index in range(start, min(start + size, len(train)))]
            known = [self.encoder.token_ids(text) for text in texts]
            ids, lengths = pad_ids([self.encoder.cut(row, self.settings.max_text_tokens) for row in known])
            given, sizes = send([ids, lengths], self.device)
            real = real_positions(sizes, given.shape[1])
            states = (self.encoder.states(given, real) * real[..., None]).double().flatten(0, 1)
            total, squares, count = total + states.sum(0), squares + (states**2).sum(0), count + int(lengths.sum())
        mean = total / count  # the states of a normalised layer: small enough for E[x^2] - E[x]^2 in float64
        std = (squares / count - mean**2).clamp(min=0).sqrt()
        std[std <= 1e-6 * (1 + mean.abs())] = 1.0
        return mean.float().cpu().numpy(), std.float().cpu().numpy()

    def collate(self, samples: Sequence[Sample]) -> ClipBatch:
        """Lay out clips; neighbours of one dialogue stay one."""
        if not samples:
            raise ValueError("an empty batch: expected at least one sample")
        known = [self.encoder.token_ids(sample.text if self.reads("text") else "") for sample in samples]
        limit = self.settings.max_text_tokens
        text_ids, text_lengths = pad_ids([self.encoder.cut(ids, limit) for ids in known])
        frames, lengths = {}, {}
        for modality in MODALITIES:
            arrays = [getattr(sample, modality) for sample in samples]
            frames[modality], lengths[modality] = pad_frames(
                arrays if self.reads(modality) else [array[:0] for array in arrays]
            )
        labels = [sample.label for sample in samples]
        dtype = np.int64 if self.task.kind == "classification" else np.float32
        dialogues, speakers = dialogues_of(samples)
        return ClipBatch(
            ids=tuple(sample.id for sample in samples),
            oddities={"texts_cut": sum(len(ids) > limit for ids in known)},
            labels=np.array([] if None in labels else labels, dtype),
            text_ids=text_ids,
            text_lengths=text_lengths,
            frames=frames,
            lengths=lengths,
            dialogues=dialogues,
            speakers=speakers,
        )

    def reads(self, what: str) -> bool:
        """Whether "text", "audio" or "vision" is looked at."""
        chosen = self.settings.modalities
        return chosen == "all" or (what == "text") == (chosen == "text")

    def clips(self, batch: ClipBatch) -> Clips:
        """Send a batch to the device and scale its frames."""
        audio, vision = send([batch.frames["audio"], batch.frames["vision"]], self.device)
        whole = [batch.text_ids, batch.text_lengths, batch.lengths["audio"], batch.lengths["vision"], batch.speakers]
        text_ids, text_lengths, audio_lengths, vision_lengths, speakers = send(whole, self.device)
        return Clips(
            text_ids=text_ids,
            text_lengths=text_lengths,
            audio=self.scaling["audio"](audio, audio_lengths),
            audio_lengths=audio_lengths,
            vision=self.scaling["vision"](vision, vision_lengths),
            vision_lengths=vision_lengths,
            speakers=speakers,
            dialogues=batch.dialogues,
            ids=batch.ids,
        )

    def frozen_text(self, clips: Clips) -> Tensor:
        """(B, L, dim) last hidden states of the text encoder as it was published, scaled, and zero beyond each text's end."""
        with torch.no_grad():
            states: Tensor = self.scaling["text"](self.encoder.states(clips.text_ids, clips.text_real), clips.text_lengths)
        return states

    def labels(self, batch: ClipBatch) -> Tensor:
        """(B,) on the device.

        Raises:
            ValueError: a clip has no label.
        """
        if len(batch.labels) != len(batch.ids):
            raise ValueError(
                f"clips {', '.join(batch.ids[:3])}: one has no label, and only labelled clips can be trained on"
            )
        return send([batch.labels], self.device)[0]

    def loss(self, batch: ClipBatch) -> Loss:  # type: ignore[override]  # what our own `collate` made
        """Absolute error of a score, or cross-entropy of a class, summed over clips."""
        outputs = self.forward(self.clips(batch))
        return Loss(task_losses(outputs, self.labels(batch), self.task).sum(), len(batch.ids))

    @torch.no_grad()
    def predict(self, batch: ClipBatch) -> Predictions:  # type: ignore[override]
        """Scores clipped to [-1, 1], or the likeliest class with the probability of each."""
        return predictions(self.forward(self.clips(batch)), self.task)


def task_losses(outputs: Tensor, labels: Tensor, task: Task) -> Tensor:
    """(B, outputs), (B,) -> (B,) absolute errors, or cross-entropies."""
    if task.kind == "classification":
        return F.cross_entropy(outputs, labels, reduction="none")
    return (outputs[:, 0] - labels).abs()


def predictions(outputs: Tensor, task: Task) -> Predictions:
    """(B, outputs) -> answers."""
    numbers = outputs.double().cpu()
    if task.kind == "regression":
        values = numbers[:, 0].clamp(-1, 1).numpy()
        return Predictions(values, [f"{value:+.3f}" for value in values])
    names = tuple(str(index) for index in range(len(task.labels)))
    chances = numbers.softmax(-1).numpy()
    best = chances.argmax(1)
    return Predictions(best.astype(np.float64), [names[index] for index in best], names, chances)


def dialogues_of(samples: Sequence[Sample]) -> tuple[list[int], np.ndarray]:
    """Sizes of the dialogues that neighbours form, and each clip's speaker, numbered as they first speak (B,)."""
    sizes, speakers = [], []
    keyed = (
        (sample.dialogue if isinstance(sample.dialogue, str) else ("clip", place), sample)
        for place, sample in enumerate(samples)
    )
    for _, members in groupby(keyed, key=lambda pair: pair[0]):
        numbers: dict[str | None, int] = {}
        spoken = [numbers.setdefault(sample.speaker, len(numbers)) for _, sample in members]
        sizes.append(len(spoken))
        speakers += spoken
    return sizes, np.array(speakers, np.int64)
