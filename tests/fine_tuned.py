"""What the tests of Self-MM and MAG-BERT share: both fine-tune a BERT and answer clip by clip."""

from __future__ import annotations

from typing import Any

from test_gpu_waits import META
from torch import nn

from cmpta_lib import registry
from cmpta_lib.base import Resources
from cmpta_lib.config import DataConfig, EncoderConfig, EvaluationConfig, RunConfig, TrainingConfig, override
from cmpta_lib.data.corpus import Corpus, Inputs, Task
from cmpta_lib.llm.loading import TextEncoder
from cmpta_lib.runs import loop

WORLDS = ("embedded-sims", "embedded-meld")


def run_config(method: str, **changes: Any) -> RunConfig:
    start = RunConfig(
        data=DataConfig(name="test", fingerprint=""),
        method=registry.ENTRIES[method].config(),
        training=TrainingConfig(epochs=4, batch_size=8, learning_rate=0.01),
        evaluation=EvaluationConfig(batch_size=4),
    )
    return override(start, {name.replace("__", "."): value for name, value in changes.items()})


def fitted(config: RunConfig, corpus: Corpus, tools: Resources) -> Any:
    """A fresh method in eval mode."""
    method = loop.build(config, corpus, tools)
    method.module.eval()
    return method


def published_size(method: str) -> Any:
    """The method beside bert-base-chinese on SIMS-V2's features, without memory."""
    from transformers import BertConfig, BertModel

    with META:
        encoder = TextEncoder(BertModel(BertConfig(vocab_size=21128)), None, EncoderConfig())
        inputs = Inputs(Task("regression", "zh"), {"audio": 25, "vision": 177})
        return registry.build(run_config(method), inputs, Resources(META, lambda config: None, lambda config: encoder))


def count(part: nn.Module) -> int:
    return sum(weight.numel() for weight in part.parameters())
