"""What the tests of Self-MM and MAG-BERT share: both fine-tune a BERT and answer clip by clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_gpu_waits import CPU, META, Above, Below, send_anywhere
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from cmpta_lib import registry
from cmpta_lib.base import Resources
from cmpta_lib.baselines import self_mm, supervised
from cmpta_lib.baselines.supervised import Supervised
from cmpta_lib.config import DataConfig, EvaluationConfig, RunConfig, TrainingConfig, override
from cmpta_lib.data.corpus import Corpus, Inputs, Sample
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


def weights(method: Any) -> dict[str, bytes]:
    return {name: weight.numpy().tobytes() for name, weight in method.module.state_dict().items()}


def published_size(method: str) -> Any:
    """The method beside bert-base-chinese on SIMS-V2's features, without memory."""
    from transformers import BertConfig, BertModel

    from cmpta_lib.config import EncoderConfig
    from cmpta_lib.data.corpus import Task

    with META:
        encoder = TextEncoder(BertModel(BertConfig(vocab_size=21128)), None, EncoderConfig())
        inputs = Inputs(Task("regression", "zh"), {"audio": 25, "vision": 177})
        return registry.build(run_config(method), inputs, Resources(META, lambda config: None, lambda config: encoder))


def count(part: nn.Module) -> int:
    return sum(weight.numel() for weight in part.parameters())


def outputs(method: Supervised, samples: Sequence[Sample]) -> Tensor:
    with torch.no_grad():
        return method.forward(method.clips(method.collate(samples)))


def check_a_gpu_would_not_wait(config: RunConfig, corpus: Corpus, encoder: TextEncoder) -> None:
    """A training step reads its loss once, and copies nothing but what it sends on purpose."""
    plain = supervised.send

    def sent(arrays: Sequence[np.ndarray], where: torch.device) -> list[Tensor]:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            return (send_anywhere if where == META else plain)(arrays, where)

    for device in (CPU, META):
        copied = encoder.copy()
        copied.model.to(device)
        method: Any = loop.build(config, corpus, Resources(device, lambda config: None, lambda config, one=copied: one))  # type: ignore[misc]
        method.module.train()
        samples: Any = [replace(s, audio=s.audio[:5], vision=s.vision[:4]) for s in [*corpus.splits["train"]][:6]]
        given = (method, loop.optimizer_of(method.groups(config.training), config.training), samples)
        units = [[clip] for clip in range(len(samples))]
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(supervised, "send", sent)
            patched.setattr(self_mm, "send", sent)
            with Above():
                loop.step(*given, units, config.training, 1)
            above, below = Above(), Below([state["step"] for state in given[1].state.values()])
            with above, below:
                loop.step(*given, units, config.training, 1)
        assert dict(above.counts + below.counts) == {"tolist": 1}
