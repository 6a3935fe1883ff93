"""Methods that learn from labels directly: clips in, one score or a logit per class out.

A subclass of `Supervised` says what its network is (`network`) and how clips go through it (`forward`); layout, scaling of
features, loss and answers are here. Clips are zero-padded at the end, and no answer depends on padding or on batch mates.

Each quirk of a method's public code is a field of its settings. The field's default is what the method's paper describes,
done right (the preset "fixed" of the tables); `reference(config)` sets every quirk as the public code behaves, for the
tests against its reference values.

Shapes: B clips, T frames, F features, L text tokens, H hidden.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cmpta_lib.base import Batch, FeatureScaling, Loss, Method, Predictions, Resources, real_positions
from cmpta_lib.config import EncoderConfig, MethodConfig, RunConfig
from cmpta_lib.data.corpus import MODALITIES, Inputs, Modality, Sample, Split, Task, dialogues_of
from cmpta_lib.fast.packing import pad, send
from cmpta_lib.llm.loading import TextEncoder

Chance = Annotated[float, Field(ge=0, lt=1)]  # of a dropout
Preset = TypeVar("Preset", bound=MethodConfig)
# Profile "paper": training as the public codes have it.
NO_WARM_UP = {"training.schedule": "constant", "training.warmup_fraction": 0.0, "training.gradient_clip": None}
AS_IN_MMSA = NO_WARM_UP | {"training.optimizer": "adam", "training.patience": 8}


def reference(config: Preset) -> Preset:
    """The same settings of a method with every quirk as its public code has it."""
    return type(config).model_validate(config.model_dump() | getattr(config, "quirks", {}))


class SupervisedConfig(MethodConfig):
    """What all these methods share, with a text encoder in place of an LLM."""

    quirks: ClassVar[dict[str, object]] = {}  # field -> value in the method's public code
    encoder: EncoderConfig = EncoderConfig()
    max_text_tokens: Annotated[int, Field(ge=3, le=10**4)] = 50  # with [CLS] and [SEP]; longer utterances are cut and counted
    modalities: Literal["all", "text", "audio_vision"] = "all"  # what is read; the rest counts as absent


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
    frames: dict[Modality, Tensor]  # (B, T, F)
    lengths: dict[Modality, Tensor]  # (B,) int64
    speakers: Tensor  # (B,) int64
    dialogues: list[int]

    def __getitem__(self, modality: Modality) -> tuple[Tensor, Tensor]:
        """Frames and lengths of "audio" or "vision"."""
        return self.frames[modality], self.lengths[modality]

    @property
    def text_real(self) -> Tensor:
        """(B, L) bool."""
        return real_positions(self.text_lengths, self.text_ids.shape[1])


class Supervised(Method):
    """A network of one's own; `module` holds it as `network`, beside the scaling of its features."""

    def __init__(self, config: RunConfig, inputs: Inputs, resources: Resources) -> None:
        assert isinstance(config.method, SupervisedConfig)
        self.config, self.settings, self.inputs, self.task = config, cast(Any, config.method), inputs, inputs.task
        self.device = resources.device
        self.encoder: TextEncoder = resources.encoder(config.method.encoder)
        self.outputs = max(1, len(inputs.task.labels))  # one score, or a logit per class
        self.net: Any = self.network()  # a module; its parts are the subclass's own
        widths: dict[str, int] = {modality: inputs.widths[modality] for modality in MODALITIES}
        if not any(weight.requires_grad for weight in self.encoder.model.parameters()):
            widths["text"] = self.encoder.dim  # states of a frozen encoder are features like others
        self.scaling = nn.ModuleDict({name: FeatureScaling(width) for name, width in widths.items()})
        self.module = nn.ModuleDict({"scaling": self.scaling, "network": self.net}).to(resources.device)

    @abstractmethod
    def network(self) -> nn.Module:
        """The trained part, freshly initialised; a text encoder that is to be trained too belongs into it."""

    @abstractmethod
    def forward(self, clips: Clips) -> Tensor:
        """(B, outputs): scores, or logits."""

    def fit(self, train: Split) -> None:
        """Take the z-scoring statistics from the training split's real frames and words (choice 16)."""
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
            rows, _ = self._token_ids([train[index].text for index in range(start, min(start + size, len(train)))])
            ids, lengths = pad(rows, np.int64)
            given, sizes = send([ids, lengths], self.device)
            real = real_positions(sizes, given.shape[1])
            states = (self.encoder.states(given, real) * real[..., None]).double().flatten(0, 1)
            total, squares, count = total + states.sum(0), squares + (states**2).sum(0), count + int(lengths.sum())
        mean = total / count  # the states of a normalised layer: small enough for E[x^2] - E[x]^2 in float64
        std = (squares / count - mean**2).clamp(min=0).sqrt()
        std[std <= 1e-6 * (1 + mean.abs())] = 1.0
        return mean.float().cpu().numpy(), std.float().cpu().numpy()

    def _token_ids(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """Each text's ids, and how many texts had to be cut."""
        known = [self.encoder.token_ids(text if self.reads("text") else "") for text in texts]
        limit = self.settings.max_text_tokens
        return [self.encoder.cut(ids, limit) for ids in known], sum(len(ids) > limit for ids in known)

    def reads(self, what: str) -> bool:
        """Whether "text", "audio" or "vision" is looked at."""
        chosen = self.settings.modalities
        return chosen == "all" or (what == "text") == (chosen == "text")

    def collate(self, samples: Sequence[Sample]) -> ClipBatch:
        """Lay out clips.

        Raises:
            ValueError: there is no clip, or the method reads dialogues and the clips of one do not follow each other.
        """
        if not samples:
            raise ValueError("an empty batch: expected at least one sample")
        rows, cut = self._token_ids([sample.text for sample in samples])
        text_ids, text_lengths = pad(rows, np.int64)
        frames, lengths = {}, {}
        for modality in MODALITIES:
            most = None if self.reads(modality) else 0
            frames[modality], lengths[modality] = pad([getattr(sample, modality)[:most] for sample in samples], np.float32)
        dialogues = dialogues_of(sample.dialogue for sample in samples)
        if self.unit == "dialogue" and [*chain(*dialogues)] != [*range(len(samples))]:
            raise ValueError("expected the clips of each dialogue one after another")
        speakers = np.zeros(len(samples), np.int64)
        for places in dialogues:
            numbers: dict[str | None, int] = {}
            speakers[places] = [numbers.setdefault(samples[place].speaker, len(numbers)) for place in places]
        return ClipBatch(
            ids=tuple(sample.id for sample in samples), issues={"texts_cut": cut}, labels=label_array(samples, self.task),
            text_ids=text_ids, text_lengths=text_lengths, frames=frames, lengths=lengths,
            dialogues=[len(places) for places in dialogues], speakers=speakers,
        )  # fmt: skip

    def clips(self, batch: ClipBatch) -> Clips:
        """Send a batch to the device and scale its frames."""
        frames = send([batch.frames[name] for name in MODALITIES], self.device)
        whole = [batch.text_ids, batch.text_lengths, batch.speakers, *(batch.lengths[name] for name in MODALITIES)]
        text_ids, text_lengths, speakers, *lengths = send(whole, self.device)
        scaled = {name: self.scaling[name](*one) for name, *one in zip(MODALITIES, frames, lengths, strict=True)}
        return Clips(text_ids, text_lengths, scaled, dict(zip(MODALITIES, lengths, strict=True)), speakers, batch.dialogues)

    def frozen_text(self, clips: Clips) -> Tensor:
        """(B, L, dim) last hidden states of the text encoder as it was published, scaled, and zero beyond each text's end."""
        with torch.no_grad():
            return self.scaling["text"](self.encoder.states(clips.text_ids, clips.text_real), clips.text_lengths)

    def labels(self, batch: ClipBatch) -> Tensor:
        """(B,) on the device.

        Raises:
            ValueError: a clip has no label.
        """
        if len(batch.labels) != len(batch.ids):
            raise ValueError(f"clips {', '.join(batch.ids[:3])}: one has no label, and only labelled clips can be trained on")
        return send([batch.labels], self.device)[0]

    def loss(self, batch: ClipBatch) -> Loss:  # type: ignore[override]  # what our own `collate` made
        """Absolute error of a score, or cross-entropy of a class, summed over clips."""
        outputs = self.forward(self.clips(batch))
        return Loss(task_losses(outputs, self.labels(batch), self.task).sum(), len(batch.ids))

    @torch.no_grad()
    def predict(self, batch: ClipBatch) -> Predictions:  # type: ignore[override]
        """Scores clipped to [-1, 1], or the likeliest class with the probability of each."""
        return predictions(self.forward(self.clips(batch)), self.task)


def label_array(samples: Sequence[Sample], task: Task) -> np.ndarray:
    """(B,) float32 scores, or int64 class indices; empty where a clip has no label."""
    labels = [sample.label for sample in samples]
    return np.array([] if None in labels else labels, np.int64 if task.kind == "classification" else np.float32)


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


def split_by_decay(part: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights as a BERT's are fine-tuned: those with weight decay; biases and layer norms, which have none."""
    bare = [("bias" in name or "norm" in name.lower(), weight) for name, weight in part.named_parameters()]
    return [weight for is_bare, weight in bare if not is_bare], [weight for is_bare, weight in bare if is_bare]


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
