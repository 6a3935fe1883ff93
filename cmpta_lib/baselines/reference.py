"""The answer that looks at no clip: every other row of a table must be better.

What linear models of scikit-learn make of a clip without its order: mean and spread of its frames, mean of its words.

A plain recurrent classifier: what sequences of face, voice and words give without any fusion to speak of.

Text only with a tuned soft prompt: K free vectors before the text, the same for every clip.

It tells apart what pseudo tokens bring by what they hold from what they bring by being trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from cmpta_lib.base import Batch, Loss, Method, Predictions, Tools, mean_over_time, real_positions
from cmpta_lib.baselines.supervised import (
    Chance,
    ClipBatch,
    Clips,
    Supervised,
    SupervisedConfig,
    predictions,
    task_losses,
)
from cmpta_lib.config import AtLeastOne, MethodConfig, Positive, PromptedLMConfig, RunConfig, TextOnlyConfig
from cmpta_lib.data.corpus import MODALITIES, Inputs, Modality, Sample, Split
from cmpta_lib.fast.packing import send
from cmpta_lib.method.prompted import PromptedLM, TokenMaker
from cmpta_lib.registry import register


class ConstantConfig(MethodConfig):
    """The best answer that looks at nothing: the training labels' median, or the majority class."""

    name: Literal["constant"] = "constant"
    recipe: Literal[1] = 1
    statistic: Literal["median", "mean"] = "median"  # of scores; the median has the least absolute error


class LinearConfig(SupervisedConfig):
    """Ridge regression or a linear SVM on what is left of a clip without its order."""

    name: Literal["linear"] = "linear"
    recipe: Literal[1] = 1
    alphas: Annotated[tuple[Positive, ...], Field(min_length=1, strict=False)] = (1.0, 10.0, 100.0, 1000.0, 10000.0)  # of
    # the ridge: the best by leave-one-out on the training split; JSON writes it as a list
    svm_c: Positive = 0.01
    class_weight: Literal["none", "balanced"] = "none"


class BilstmConfig(SupervisedConfig):
    """A plain BiLSTM with attention pooling per modality, and a linear layer on all three."""

    name: Literal["bilstm"] = "bilstm"
    recipe: Literal[1] = 1
    hidden: AtLeastOne = 64  # per direction
    dropout: Chance = 0.3


class SoftPromptConfig(PromptedLMConfig):
    """Free vectors in place of pseudo tokens, the same for every clip: what tuning a prompt gives without face and voice."""

    name: Literal["soft_prompt"] = "soft_prompt"
    recipe: Literal[1] = 1
    num_pseudo_tokens: AtLeastOne = 6


@dataclass(frozen=True)
class ConstantBatch(Batch):
    labels: np.ndarray  # (B,) float32 scores, or int64 class indices; empty where a clip has no label


class Constant(Method):
    """The training labels' median (or mean), or the majority class; nothing is trained by gradient."""

    def __init__(self, config: RunConfig, inputs: Inputs, tools: Tools) -> None:
        assert isinstance(config.method, ConstantConfig)
        self.statistic, self.task, self.device = config.method.statistic, inputs.task, tools.device
        answer = torch.zeros(max(1, len(inputs.task.labels)), dtype=torch.float64, device=tools.device)
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
        labels = [sample.label for sample in samples]
        dtype = np.int64 if self.task.kind == "classification" else np.float32
        ids = tuple(sample.id for sample in samples)
        return ConstantBatch(ids, {}, np.array([] if None in labels else labels, dtype))

    def loss(self, batch: ConstantBatch) -> Loss:  # type: ignore[override]  # what our own `collate` made
        """What the answer costs, without a gradient."""
        outputs = self.answer.expand(len(batch.ids), -1)
        return Loss(task_losses(outputs, send([batch.labels], self.device)[0], self.task).sum(), len(batch.ids))

    def predict(self, batch: ConstantBatch) -> Predictions:  # type: ignore[override]
        return predictions(self.answer.expand(len(batch.ids), -1), self.task)


NEVER = -1e9  # the margin of a class that no training clip has


class LinearModel(nn.Module):
    """Coefficients as buffers: learned by `fit`, kept and loaded like weights."""

    mean: Tensor  # (F,) of the pooled features over training clips
    std: Tensor  # (F,)
    weight: Tensor  # (outputs, F)
    bias: Tensor  # (outputs,)

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        for name, start in (("mean", torch.zeros), ("std", torch.ones)):
            self.register_buffer(name, start(features, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros(outputs, features, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(outputs, dtype=torch.float64))

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, F) -> (B, outputs)."""
        return ((pooled - self.mean) / self.std) @ self.weight.T + self.bias


class Linear(Supervised):
    """Ridge regression for a score, one linear SVM per class against the rest; nothing is trained by gradient."""

    def network(self) -> nn.Module:
        features = 2 * sum(self.inputs.widths[modality] for modality in MODALITIES) + self.encoder.dim
        return LinearModel(features, self.outputs)

    def forward(self, clips: Clips) -> Tensor:
        scores: Tensor = self.net(self.pooled(clips))
        return scores

    def pooled(self, clips: Clips) -> Tensor:
        """(B, F) float64: mean and deviation of voice, those of the face, mean of the words; zeros where absent."""
        parts = []
        for frames, lengths in ((clips.audio, clips.audio_lengths), (clips.vision, clips.vision_lengths)):
            frames = frames.double()
            mean = mean_over_time(frames, lengths)
            real = real_positions(lengths, frames.shape[1])[..., None]
            parts += [mean, mean_over_time(((frames - mean[:, None]) * real).square(), lengths).sqrt()]
        return torch.cat([*parts, mean_over_time(self.frozen_text(clips).double(), clips.text_lengths)], dim=1)

    @torch.no_grad()
    def fit(self, train: Split) -> None:
        super().fit(train)
        pooled = np.concatenate([self.pooled(self.clips(batch)).cpu().numpy() for batch in self._batches(train)])
        mean, std = pooled.mean(0), pooled.std(0)
        std[std <= 1e-8 * np.maximum(1.0, np.abs(pooled).max(0))] = 1.0  # a feature that does not vary: rounding alone
        given = (pooled - mean) / std
        learned = self._ridge(given, train.labels) if self.task.kind == "regression" else self._svm(given, train.labels)
        model = cast(LinearModel, self.net)
        for buffer, values in zip((model.mean, model.std, model.weight, model.bias), (mean, std, *learned), strict=True):
            buffer.copy_(torch.from_numpy(values))

    def _batches(self, train: Split) -> Iterator[ClipBatch]:
        size = self.config.evaluation.batch_size
        for start in range(0, len(train), size):
            yield self.collate([train[index] for index in range(start, min(start + size, len(train)))])

    def _ridge(self, given: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights (1, F) and bias (1,)."""
        from sklearn.linear_model import Ridge, RidgeCV

        found = RidgeCV(self.settings.alphas) if len(labels) > 1 else Ridge()
        found.fit(given, labels)
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


class SoftTokens(TokenMaker):
    """(K, E) trained vectors, which start in random directions at the mean norm of the LLM's embeddings."""

    def __init__(self, num_tokens: int, llm_dim: int, embedding_norm: float) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.tokens = nn.Parameter(torch.randn(num_tokens, llm_dim) * embedding_norm / llm_dim**0.5)

    def set_feature_statistics(self, modality: Modality, mean: Tensor, std: Tensor) -> None:
        """Nothing to scale: neither face nor voice is read."""

    def forward(
        self,
        text: Tensor,
        text_lengths: Tensor,
        audio: Tensor,
        audio_lengths: Tensor,
        vision: Tensor,
        vision_lengths: Tensor,
        return_weights: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.tokens.expand(len(text), -1, -1), {}


class SoftPrompt(PromptedLM):
    """The frozen LLM with the text and a tuned prompt."""

    def token_maker(self, inputs: Inputs) -> SoftTokens:
        settings = self.settings
        assert isinstance(settings, SoftPromptConfig)
        return SoftTokens(settings.num_pseudo_tokens, self.llm.dim, self.llm.embedding_norm)


register(
    TextOnlyConfig,
    PromptedLM,
    row="text only",
    reads="one utterance: words by the frozen LLM as it is, without pseudo tokens (zero-shot)",
    is_reference=True,
    is_trained=False,
)
register(
    ConstantConfig,
    Constant,
    row="constant",
    reads="nothing: the median or majority of the training labels",
    is_reference=True,
    is_trained=False,
)
register(
    LinearConfig,
    Linear,
    row="linear",
    settings={"demo/data": {"method.svm_c": 1.0}},
    reads="one utterance: ridge or SVM on the mean state of a frozen BERT, mean and deviation of voice and face",
    is_reference=True,
    is_trained=False,
)
register(
    BilstmConfig,
    BiLSTM,
    row="BiLSTM",
    reads="one utterance: words by a frozen BERT, all frames of voice and face",
    is_reference=True,
    settings={"demo": {"method.hidden": 32}, "smoke": {"method.hidden": 8}},
)
register(
    SoftPromptConfig,
    SoftPrompt,
    row="soft prompt",
    reads="one utterance: words by the frozen LLM, behind tuned vectors that are the same for every clip",
    is_reference=True,
)
