"""Weights and inputs by rule, with which reference modules gave the golden values: eval mode, float32, CPU, torch 2.13."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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


def published_size(method: str) -> Any:
    """The network of a method that fine-tunes a BERT, beside bert-base-chinese on SIMS-V2's features, without memory."""
    from test_every_method import config_of
    from transformers import BertConfig, BertModel

    from cmpta_lib import registry
    from cmpta_lib.base import Resources
    from cmpta_lib.config import EncoderConfig
    from cmpta_lib.data.corpus import Inputs, Task
    from cmpta_lib.llm.loading import TextEncoder

    config = config_of(method, {})
    config = config.model_copy(update={"method": type(config.method)()})
    with torch.device("meta") as meta:
        encoder = TextEncoder(BertModel(BertConfig(vocab_size=21128)), None, EncoderConfig())
        inputs = Inputs(Task("regression", "zh"), {"audio": 25, "vision": 177})
        return registry.build(config, inputs, Resources(meta, lambda config: None, lambda config: encoder)).net


def count(part: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in part.parameters())
