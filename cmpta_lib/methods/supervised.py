"""Methods that learn from labels directly: clips in, one score or a logit per class out.

A subclass says what its network is (`network`) and how clips go through it (`forward`); layout, scaling of features, loss
and answers are here. Clips are zero-padded at the end, and no answer depends on padding or on batch mates.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmpta_lib.config import RunConfig
from cmpta_lib.data.corpus import MODALITIES, Inputs, Modality, Sample, Split, Task
from cmpta_lib.llm.encoder import TextEncoder
from cmpta_lib.methods.base import Batch, Loss, Method, Predictions, Tools
from cmpta_lib.methods.padding import pad_frames, pad_ids
from cmpta_lib.methods.settings import SupervisedConfig
from cmpta_lib.methods.subnets import FeatureScaling, real_positions
from cmpta_lib.transfer import send


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
