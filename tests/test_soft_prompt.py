"""The tuned soft prompt: trained vectors that are the same for every clip, whatever its face and voice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_model import clips

from cmpta_lib import registry
from cmpta_lib.baselines.reference import SoftPrompt, SoftPromptConfig
from cmpta_lib.config import DataConfig, RunConfig, TrainingConfig
from cmpta_lib.data.corpus import Inputs
from cmpta_lib.runs import loop

WORLDS = ("embedded-sims", "embedded-meld")
CONFIG = RunConfig(
    data=DataConfig(name="test", fingerprint=""),
    method=SoftPromptConfig(num_pseudo_tokens=50),
    training=TrainingConfig(batch_size=8, epochs=2, learning_rate=0.01),
)


def built(tools, corpus) -> SoftPrompt:
    torch.manual_seed(0)
    method = registry.build(CONFIG, Inputs.of(corpus), tools)
    method.fit(corpus.splits["train"])
    assert isinstance(method, SoftPrompt)
    return method


def test_six_vectors_are_all_that_is_trained_and_start_as_large_as_embeddings(tools, corpora, llm):
    assert SoftPromptConfig().num_pseudo_tokens == 6
    (tokens,) = built(tools, corpora["embedded-sims"]).module.parameters()
    assert tokens.shape == (50, llm.dim)
    assert tokens.norm(dim=1).mean().item() == pytest.approx(llm.embedding_norm, rel=0.1)


@pytest.mark.parametrize("world", WORLDS)
def test_face_and_voice_change_nothing(world, tools, corpora):
    corpus = corpora[world]
    method, samples = built(tools, corpus), clips(corpora[world])
    bare = [replace(sample, audio=sample.audio[:0], vision=sample.vision[:0]) for sample in samples]
    first, second = (method.predict(method.collate(some)) for some in (samples, bare))
    assert list(first.replies) == list(second.replies) and np.array_equal(first.probabilities, second.probabilities)
    alone = [method.predict(method.collate([sample])).replies[0] for sample in samples]
    assert alone == list(first.replies)


@pytest.mark.parametrize("world", WORLDS)
def test_it_learns(world, tools, corpora, tmp_path):
    method, state = loop.train(CONFIG, corpora[world], tools, tmp_path)
    losses = [row["train_loss"] for row in state.history]
    assert losses[1] < losses[0]
    found = method.predict(method.collate([replace(corpora[world].splits["valid"][0], text="", label=None)]))
    assert np.isfinite(found.values).all()
