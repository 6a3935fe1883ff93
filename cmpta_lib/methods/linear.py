"""What linear models of scikit-learn make of a clip without its order: mean and spread of its frames, mean of its words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from cmpta_lib.data.corpus import MODALITIES, Split
from cmpta_lib.methods.base import Predictions
from cmpta_lib.methods.subnets import mean_over_time, real_positions
from cmpta_lib.methods.supervised import ClipBatch, Clips, Supervised

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
