"""The lines that any method should beat, simplest first: no clip looked at, no order, no fusion, no face and voice.

Text only, the frozen LLM as it is, is among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from cmpta_lib.base import Batch, Loss, Method, Predictions, Resources, mean_over_time, real_positions
from cmpta_lib.baselines.supervised import (
    Chance,
    ClipBatch,
    Clips,
    Supervised,
    SupervisedConfig,
    label_array,
    predictions,
    task_losses,
)
from cmpta_lib.config import Few, MethodConfig, Positive, PromptedLMConfig, RunConfig, TextOnlyConfig, Width
from cmpta_lib.data.corpus import MODALITIES, Inputs, Modality, Sample, Split
from cmpta_lib.fast.packing import Streams, send
from cmpta_lib.fast.prompted import PromptedLM, TokenMaker
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.registry import register

register(
    TextOnlyConfig, PromptedLM, row="text only",
    reads="one utterance: words by the frozen LLM as it is, without pseudo tokens (zero-shot)", is_reference=True,
    is_trained=False,
)  # fmt: skip


# Constant -----------------------------------------------------------------------------------------------------------
class ConstantConfig(MethodConfig):
    """The best answer that looks at nothing: the training labels' median, or the majority class."""

    name: Literal["constant"] = "constant"
    recipe: Literal[1] = 1
    statistic: Literal["median", "mean"] = "median"  # of scores; the median has the least absolute error


@dataclass(frozen=True)
class ConstantBatch(Batch):
    labels: np.ndarray  # (B,) float32 scores, or int64 class indices; empty where a clip has no label


class Constant(Method):
    """The training labels' median (or mean), or the majority class; nothing is trained by gradient."""

    def __init__(self, config: RunConfig, inputs: Inputs, resources: Resources) -> None:
        assert isinstance(config.method, ConstantConfig)
        self.statistic, self.task, self.device = config.method.statistic, inputs.task, resources.device
        answer = torch.zeros(max(1, len(inputs.task.labels)), dtype=torch.float64, device=resources.device)
        self.module = nn.Module()
        self.module.register_buffer("answer", answer)

    @property
    def answer(self) -> Tensor:
        """(outputs,): the score, or the logarithm of each class's share."""
        return self.module.get_buffer("answer")

    def fit(self, train: Split) -> None:
        if self.task.kind == "classification":
            counts = np.bincount(train.labels, minlength=len(self.answer)) + 1.0  # + 1: no class is impossible
            learned = np.log(counts / counts.sum())
        else:
            learned = np.array([np.median(train.labels) if self.statistic == "median" else np.mean(train.labels)])
        self.answer.copy_(torch.from_numpy(learned))

    def collate(self, samples: Sequence[Sample]) -> ConstantBatch:
        return ConstantBatch(tuple(sample.id for sample in samples), {}, label_array(samples, self.task))

    def loss(self, batch: ConstantBatch) -> Loss:  # type: ignore[override]  # what our own `collate` made
        """What the answer costs, without a gradient."""
        outputs = self.answer.expand(len(batch.ids), -1)
        return Loss(task_losses(outputs, send([batch.labels], self.device)[0], self.task).sum(), len(batch.ids))

    def predict(self, batch: ConstantBatch) -> Predictions:  # type: ignore[override]
        return predictions(self.answer.expand(len(batch.ids), -1), self.task)


register(
    ConstantConfig, Constant, row="constant", reads="nothing: the median or majority of the training labels", is_reference=True,
    is_trained=False,
)  # fmt: skip


# Linear -------------------------------------------------------------------------------------------------------------
class LinearConfig(SupervisedConfig):
    """Ridge regression or a linear SVM on what is left of a clip without its order."""

    name: Literal["linear"] = "linear"
    recipe: Literal[1] = 1
    # Of the ridge: the best by leave-one-out on the training split; JSON writes it as a list.
    alphas: Annotated[tuple[Positive, ...], Field(min_length=1, strict=False)] = (1.0, 10.0, 100.0, 1000.0, 10000.0)
    svm_c: Positive = 0.01
    class_weight: Literal["none", "balanced"] = "none"


NEVER = -1e9  # the margin of a class that no training clip has


class Linear(Supervised):
    """Ridge regression for a score, one linear SVM per class against the rest; nothing is trained by gradient."""

    def network(self) -> nn.Module:
        """Coefficients as buffers: learned by `fit`, kept and loaded like weights."""
        features = 2 * sum(self.inputs.widths[modality] for modality in MODALITIES) + self.encoder.dim
        start = {"mean": torch.zeros(features), "std": torch.ones(features)}  # of the pooled features over clips
        start |= {"weight": torch.zeros(self.outputs, features), "bias": torch.zeros(self.outputs)}
        net = nn.Module()
        for name, values in start.items():
            net.register_buffer(name, values.double())
        return net

    def forward(self, clips: Clips) -> Tensor:
        mean, std, weight, bias = self.net.buffers()
        return ((self.pooled(clips) - mean) / std) @ weight.T + bias

    def pooled(self, clips: Clips) -> Tensor:
        """(B, F) float64: mean and deviation of voice, those of the face, mean of the words; zeros where absent."""
        parts = []
        for frames, lengths in (clips[name] for name in MODALITIES):
            frames = frames.double()
            mean = mean_over_time(frames, lengths)
            real = real_positions(lengths, frames.shape[1])[..., None]
            parts += [mean, mean_over_time(((frames - mean[:, None]) * real).square(), lengths).sqrt()]
        return torch.cat([*parts, mean_over_time(self.frozen_text(clips).double(), clips.text_lengths)], dim=1)

    @torch.no_grad()
    def fit(self, train: Split) -> None:
        super().fit(train)
        size, parts = self.config.evaluation.batch_size, []
        for start in range(0, len(train), size):
            batch = self.collate([train[index] for index in range(start, min(start + size, len(train)))])
            parts.append(self.pooled(self.clips(batch)).cpu().numpy())
        pooled = np.concatenate(parts)
        mean, std = pooled.mean(0), pooled.std(0)
        std[std <= 1e-8 * np.maximum(1.0, np.abs(pooled).max(0))] = 1.0  # a feature that does not vary: rounding alone
        learned = (self._ridge if self.task.kind == "regression" else self._svm)((pooled - mean) / std, train.labels)
        for buffer, values in zip(self.net.buffers(), (mean, std, *learned), strict=True):
            buffer.copy_(torch.from_numpy(values))

    def _ridge(self, given: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights (1, F) and bias (1,)."""
        from sklearn.linear_model import Ridge, RidgeCV

        found = (RidgeCV(self.settings.alphas) if len(labels) > 1 else Ridge()).fit(given, labels)
        return found.coef_[None], np.array([found.intercept_])

    def _svm(self, given: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights (C, F) and biases (C,); a class that is missing from the training split is never answered."""
        from sklearn.svm import LinearSVC

        weight, bias = np.zeros((self.outputs, given.shape[1])), np.full(self.outputs, NEVER)
        present = np.unique(labels)
        if len(present) == 1:
            bias[present] = 0.0
            return weight, bias
        balance = None if self.settings.class_weight == "none" else "balanced"
        found = LinearSVC(C=self.settings.svm_c, class_weight=balance, dual=False, max_iter=10_000)
        found.fit(given, labels)  # primal: no chance in it, so seeds agree
        both = len(present) == 2  # then there is one margin, the second class's
        weight[present] = np.concatenate([-found.coef_, found.coef_]) if both else found.coef_
        bias[present] = np.concatenate([-found.intercept_, found.intercept_]) if both else found.intercept_
        return weight, bias

    def predict(self, batch: ClipBatch) -> Predictions:  # type: ignore[override]
        """As `Supervised`; margins are no probabilities, so there are none."""
        return replace(super().predict(batch), answers=(), probabilities=None)


register(
    LinearConfig, Linear, row="linear", settings={"demo/data": {"method.svm_c": 1.0}},
    reads="one utterance: ridge or SVM on the mean state of a frozen BERT, mean and deviation of voice and face",
    is_reference=True, is_trained=False,
)  # fmt: skip


# BiLSTM -------------------------------------------------------------------------------------------------------------
class BilstmConfig(SupervisedConfig):
    """A plain BiLSTM with attention pooling per modality, and a linear layer on all three: no fusion to speak of."""

    name: Literal["bilstm"] = "bilstm"
    recipe: Literal[1] = 1
    hidden: Width = 64  # per direction
    dropout: Chance = 0.3


def reversed_order(lengths: Tensor, size: int) -> Tensor:
    """(B, size) int64: each row's real positions backwards, then its padding; its own inverse on the real part."""
    return (lengths[:, None] - 1 - torch.arange(size, device=lengths.device)).remainder(size)


def reorder(frames: Tensor, order: Tensor) -> Tensor:
    return frames.gather(1, order[..., None].expand(-1, -1, frames.shape[2]))


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
        hidden = self.settings.hidden
        widths = {"text": self.encoder.dim} | {modality: self.inputs.widths[modality] for modality in MODALITIES}
        parts: dict[str, nn.Module] = {name: AttentivePool(width, hidden) for name, width in widths.items()}
        parts |= {"dropout": nn.Dropout(self.settings.dropout), "head": nn.Linear(6 * hidden, self.outputs)}
        return nn.ModuleDict(parts)

    def forward(self, clips: Clips) -> Tensor:
        text = self.net["text"](self.frozen_text(clips), clips.text_lengths)
        pooled = torch.cat([text, *(self.net[name](*clips[name]) for name in MODALITIES)], dim=-1)
        return self.net["head"](self.net["dropout"](pooled))


register(
    BilstmConfig, BiLSTM, row="BiLSTM", settings={"demo": {"method.hidden": 32}, "smoke": {"method.hidden": 8}},
    reads="one utterance: words by a frozen BERT, all frames of voice and face", is_reference=True,
)  # fmt: skip


# Soft prompt --------------------------------------------------------------------------------------------------------
class SoftPromptConfig(PromptedLMConfig):
    """Free vectors in place of pseudo tokens, the same for every clip: what tuning a prompt gives without face and voice."""

    name: Literal["soft_prompt"] = "soft_prompt"
    recipe: Literal[1] = 1
    num_pseudo_tokens: Few = 6


class SoftTokens(TokenMaker):
    """(K, E) trained vectors, which start in random directions at the mean norm of the LLM's embeddings."""

    def __init__(self, settings: SoftPromptConfig, _: Inputs, llm: FrozenLLM) -> None:
        super().__init__()
        self.num_tokens = settings.num_pseudo_tokens
        self.tokens = nn.Parameter(torch.randn(self.num_tokens, llm.dim) * llm.embedding_norm / llm.dim**0.5)

    def set_feature_statistics(self, modality: Modality, mean: Tensor, std: Tensor) -> None:
        """Nothing to scale: neither face nor voice is read."""

    def forward(self, streams: Streams) -> tuple[Tensor, dict[str, Tensor]]:
        return self.tokens.expand(len(streams.text.lengths), -1, -1), {}


class SoftPrompt(PromptedLM):
    """The frozen LLM with the text and a tuned prompt."""

    maker_type = SoftTokens


register(
    SoftPromptConfig, SoftPrompt, row="soft prompt",
    reads="one utterance: words by the frozen LLM, behind tuned vectors that are the same for every clip", is_reference=True,
)  # fmt: skip
