"""Weights and inputs by rule, with which reference modules gave the golden values: eval mode, float32, CPU, torch 2.13."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def fill(tensors: Iterable[Tensor], scale: float, first: int = 1) -> None:
    """Tensor number i, counted from `first`: element k is scale * sin(0.7 k + i), computed in float64."""
    for number, tensor in enumerate(tensors, first):
        values = scale * np.sin(0.7 * np.arange(tensor.numel()) + number)
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(values).view(tensor.shape))


def given(seed: int, *shape: int) -> Tensor:
    """Element k is cos(0.3 k + seed)."""
    return torch.from_numpy(np.cos(0.3 * np.arange(np.prod(shape)) + seed)).float().view(shape)
