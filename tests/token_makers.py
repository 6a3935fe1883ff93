"""What the tests of all pseudo tokens before a frozen LLM share: odd clips, and who is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from test_model import clips

from cmpta_lib.data.corpus import Corpus
from cmpta_lib.fast.prompted import PromptedLM
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.runs import loop


def check_odd_clips(fresh: Callable[[], PromptedLM], corpus: Corpus) -> None:
    """Absent, flat and very short clips, alone and together, leave finite weights and answers after a step."""
    sample = corpus.splits["train"][0]
    nothing = replace(sample, audio=sample.audio[:0], vision=sample.vision[:0], text="")
    flat = replace(sample, audio=np.zeros_like(sample.audio), vision=np.ones_like(sample.vision))
    short = replace(sample, audio=sample.audio[:1], vision=sample.vision[:2])
    for batch in ([nothing], [flat], [nothing, nothing], [sample, nothing, flat, short, *clips(corpus)]):
        method = fresh()
        optimizer = torch.optim.AdamW(method.module.parameters(), lr=0.01)
        loop.step(method, optimizer, batch, [[place] for place in range(len(batch))], method.config.training)
        assert all(torch.isfinite(p).all() for p in method.module.parameters())
        found = method.predict(method.collate(batch))
        assert np.isfinite(found.values).all() and found.probabilities is not None and np.isfinite(found.probabilities).all()


def check_gradients(method: PromptedLM, corpus: Corpus, llm: FrozenLLM) -> None:
    """Every weight of the token maker has a gradient, and none of the LLM's."""
    method.loss(method.collate(clips(corpus))).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.module.parameters())
    assert not any(p.requires_grad for p in llm.model.parameters())
