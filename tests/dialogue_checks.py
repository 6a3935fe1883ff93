"""What the tests of MMGCN and GA2MIF share: golden fills, layouts, small methods and clips of whole dialogues."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cmpta_lib.baselines.dialogue import Layout


def fill(tensors: Sequence[Tensor], scale: float, first: int = 1) -> None:
    """Tensor number i, counted from `first`: element k is scale * sin(0.7 k + i), computed in float64."""
    for number, tensor in enumerate(tensors, first):
        values = scale * np.sin(0.7 * np.arange(tensor.numel()) + number)
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(values).view(tensor.shape))


def given(shape: tuple[int, ...], seed: int) -> Tensor:
    """Element k is cos(0.3 k + seed)."""
    return torch.from_numpy(np.cos(0.3 * np.arange(np.prod(shape)) + seed)).float().view(shape)


def layout_of(sizes: Sequence[int], speakers: Sequence[int] | None = None) -> Layout:
    return Layout.of(sizes, torch.tensor([0] * sum(sizes) if speakers is None else speakers))
