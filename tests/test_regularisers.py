"""Token makers with auxiliary losses: what a step costs, and losses that several processes sum as one would."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_gpu_waits import CPU, META, READOUT, SENDS, on, step_watched
from test_model import clips

from cmpta_lib import registry
from cmpta_lib.beyond import regularisers
from cmpta_lib.beyond.mgsi import MgsiConfig
from cmpta_lib.beyond.prototypes import PrototypesConfig
from cmpta_lib.config import DataConfig, RunConfig, TrainingConfig, override
from cmpta_lib.data.corpus import Inputs
from cmpta_lib.method import prompted as prompted_lm

WORLDS = ("embedded-sims", "embedded-meld")
METHODS = {
    "prototypes": PrototypesConfig(dim=12),
    "prototypes, in order": PrototypesConfig(dim=12, frames="bilstm", diversity_diagonal="one", semantics="mean"),
    "mgsi": MgsiConfig(dim=12),
    "mgsi, stacked": MgsiConfig(dim=12, branches="stacked", token_scale="default"),
}


def config(settings) -> RunConfig:
    return RunConfig(data=DataConfig(name="test", fingerprint=""), method=settings, training=TrainingConfig(batch_size=8))


def built(settings, corpus, tools) -> regularisers.RegularisedLM:
    torch.manual_seed(0)
    method = registry.build(config(settings), Inputs.of(corpus), tools)
    method.fit(corpus.splits["train"])
    method.module.eval()
    assert isinstance(method, regularisers.RegularisedLM)
    return method


@pytest.mark.parametrize("device", [CPU, META], ids=str)
@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("world", WORLDS)
def test_a_step_waits_for_nothing_and_sends_one_block_more(settings, world, device, llm, corpora, monkeypatch):
    corpus, llm = corpora[world], on(device, llm, monkeypatch)
    monkeypatch.setattr(regularisers, "send", lambda *given: prompted_lm.send(*given))  # the one that is watched
    seen = step_watched(monkeypatch, config(settings), llm, corpus)
    assert seen.counts == {"tolist": READOUT} and seen.sends <= SENDS + 1  # what the losses are to find


@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("world", WORLDS)
def test_the_losses_of_two_halves_are_those_of_the_whole(settings, world, tools, corpora):
    """So several processes sum what one would; and a batch mate changes no clip's loss."""
    method, samples = built(settings, corpora[world], tools), clips(corpora[world])
    with torch.no_grad():
        whole, *halves = (method.loss(method.collate(some)) for some in (samples, samples[:2], samples[2:]))
    torch.testing.assert_close(sum(half.total for half in halves), whole.total)
    assert sum(half.count for half in halves) == whole.count
    for name, part in whole.parts.items():
        torch.testing.assert_close(sum(half.parts[name] for half in halves), part, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)
def test_pseudo_tokens_are_made_once_a_step(settings, tools, corpora, monkeypatch):
    method, calls = built(settings, corpora["embedded-sims"], tools), []
    handle = method.module.register_forward_hook(lambda *given: calls.append(1))
    batch = method.collate(clips(corpora["embedded-sims"]))
    method.loss(batch)
    handle.remove()
    assert len(calls) == 1 and batch.tokens is None, "the batch itself keeps nothing"


def test_a_clip_without_a_label_is_answered_and_not_trained_on(tools, corpora):
    sample = corpora["embedded-sims"].splits["train"][0]
    for settings in METHODS.values():
        method = built(settings, corpora["embedded-sims"], tools)
        batch = method.collate([replace(sample, label=None)])
        assert method.predict(batch).replies[0] in method.answers
        with pytest.raises(ValueError, match=f"clips {sample.id} have no label"):
            method.loss(batch)


def test_profiles_train_them_as_printed_where_anything_is():
    found = {}
    for name in ("prototypes", "mgsi"):
        entry = registry.ENTRIES[name]
        start = RunConfig(data=DataConfig(name="test", fingerprint=""), method=entry.defaults())
        found[name] = {place: override(start, changes) for place, changes in entry.settings.items()}
        assert {"demo", "smoke", "paper"} <= found[name].keys() and entry.is_beyond
    mgsi, prototypes = found["mgsi"]["paper"], found["prototypes"]["paper"]
    assert (mgsi.training.learning_rate, mgsi.training.batch_size, mgsi.training.epochs) == (5e-5, 8, 30)
    assert (mgsi.method.num_pseudo_tokens, mgsi.method.neutral_weight, mgsi.method.calibration) == (4, 0.05, 0.05)
    assert (prototypes.training.batch_size, prototypes.training.patience) == (16, 10)
    weights = ("semantic_weight", "alignment_weight", "diversity_weight")
    assert [getattr(prototypes.method, weight) for weight in weights] == [0.1, 0.1, 0.05]
    assert prototypes.method.frames == "as_given", "the paper's profile has no reader that is not printed"
