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
from cmpta_lib.llm.encoder import TextEncoder
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


# --- golden values ----------------------------------------------------------------------------------------------------


def given(seed: int, *shape: int) -> Tensor:
    """cos(0.3 k + seed) at place k, row by row."""
    return torch.from_numpy(np.cos(0.3 * np.arange(np.prod(shape)) + seed).reshape(shape).astype(np.float32))


def fill(parameters: Sequence[nn.Parameter], scale: float) -> None:
    """scale * sin(0.7 k + i) at place k of tensor number i, counted from 1."""
    for i, weight in enumerate(parameters, 1):
        values = scale * np.sin(0.7 * np.arange(weight.numel()) + i)
        weight.data = torch.from_numpy(values.reshape(weight.shape).astype(np.float32))


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


# --- what holds for each method ---------------------------------------------------------------------------------------


def outputs(method: Supervised, samples: Sequence[Sample]) -> Tensor:
    with torch.no_grad():
        return method.forward(method.clips(method.collate(samples)))


def check_answers_depend_on_no_batch_mate(method: Supervised, samples: Sequence[Sample]) -> None:
    together = outputs(method, samples)
    assert together.std(0).min() > 1e-4  # clips can be told apart
    torch.testing.assert_close(together, torch.cat([outputs(method, [one]) for one in samples]), rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs(method, samples[::-1]), together.flip(0), rtol=0, atol=1e-5)


def check_padding_is_never_read(method: Supervised, samples: Sequence[Sample]) -> None:
    batch = method.collate(samples)
    text = np.pad(batch.text_ids, [(0, 0), (0, 4)])
    text[np.arange(text.shape[1]) >= batch.text_lengths[:, None]] = 7
    frames = {}
    for name, held in batch.frames.items():
        longer = np.pad(held, [(0, 0), (0, 3), (0, 0)])
        longer[np.arange(longer.shape[1]) >= batch.lengths[name][:, None]] = 1e3
        frames[name] = longer
    with torch.no_grad():
        plain = method.forward(method.clips(batch))
        filled = method.forward(method.clips(replace(batch, text_ids=text, frames=frames)))
    torch.testing.assert_close(filled, plain, rtol=0, atol=1e-5)


def odd(kind: str, samples: Sequence[Sample]) -> list[Sample]:
    """The same clips, oddly filled."""

    def change(sample: Sample) -> Sample:
        changes: dict[str, Any] = {}
        for name in ("audio", "vision"):
            frames = getattr(sample, name)
            if kind in (f"no {name}", "neither"):
                changes[name] = frames[:0]
            elif kind == "zeros":
                changes[name] = np.zeros_like(frames)
            elif kind == "constant":
                changes[name] = np.full_like(frames, 3.0)
        return replace(sample, **changes, **({"text": ""} if kind == "no text" else {}))

    chosen = [change(sample) for sample in samples]
    if kind == "one clip":
        return chosen[:1]
    return [one for one in chosen if one.label == chosen[0].label] if kind == "one class" else chosen


ODD = ("no audio", "no vision", "neither", "zeros", "constant", "no text", "one clip", "one class")


def check_odd_clips_give_numbers(kind: str, config: RunConfig, corpus: Corpus, tools: Resources) -> None:
    """Three epochs on nothing but such clips: loss, gradients, weights, buffers and answers are finite."""
    method = fitted(config, corpus, tools)
    samples = odd(kind, [*corpus.splits["train"]])
    optimizer = loop.optimizer_of(method.groups(config.training), config.training)
    method.module.train()
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    for epoch in range(3):
        loop.step(method, optimizer, samples, [[i] for i in range(len(samples))], config.training, epoch)  # type: ignore[arg-type]
        assert all(p.grad.isfinite().all() for p in method.module.parameters() if p.grad is not None)
    assert all(held.isfinite().all() for held in method.module.state_dict().values())
    method.module.eval()
    assert np.isfinite(method.predict(method.collate([replace(s, label=None) for s in samples])).values).all()



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
