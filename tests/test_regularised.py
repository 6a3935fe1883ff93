"""Prototype-as-Prompt and MGSI before an LLM: what a step costs and reads, in variants that keep clips apart."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_every_method import SWITCHES, config_of
from test_gpu_waits import CPU, META, READOUT, SENDS, on, step_watched
from test_model import clips
from torch import Tensor

from cmpta_lib import registry
from cmpta_lib.baselines.supervised import reference
from cmpta_lib.beyond import losses as regularisers
from cmpta_lib.beyond.losses import RegularisedLM
from cmpta_lib.beyond.mgsi import MgsiConfig
from cmpta_lib.beyond.prototypes import PrototypesConfig
from cmpta_lib.config import DataConfig, RunConfig, TrainingConfig, override
from cmpta_lib.data.corpus import Inputs, Sample, Task
from cmpta_lib.fast import packing
from cmpta_lib.runs import loop

SIMS, MELD = "embedded-sims", "embedded-meld"
METHODS = {"prototypes": PrototypesConfig(dim=12), "mgsi": MgsiConfig(dim=12)}
VARIANTS = {
    f"{name}, {number}": override(config_of(name, changes), {"method.dim": 12}).method
    for name in METHODS
    for number, changes in enumerate([{}, *SWITCHES[name]])
}
variants = pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
both_worlds = pytest.mark.parametrize("world", [SIMS, MELD])


def config(settings, **changes) -> RunConfig:
    start = RunConfig(data=DataConfig(name="test", fingerprint=""), method=settings, training=TrainingConfig(batch_size=8))
    return override(start, {f"method.{name}": value for name, value in changes.items()})


def built(settings, corpus, tools, task: Task | None = None, **changes) -> RegularisedLM:
    torch.manual_seed(0)
    settings, inputs = METHODS.get(settings, settings), Inputs.of(corpus)
    method = registry.build(config(settings, **changes), replace(inputs, task=task or inputs.task), tools)
    method.fit(corpus.splits["train"])
    method.module.eval()
    assert isinstance(method, RegularisedLM)
    return method


def tokens_of(method: RegularisedLM, samples: list[Sample]) -> Tensor:
    with torch.no_grad():
        return method.pseudo_tokens(method.collate(samples))[0]


@both_worlds
def test_a_steps_loss_is_the_answers_and_the_weighted_rest(world, tools, corpora):
    weights = {"semantic_weight": 0.3, "alignment_weight": 0.5, "diversity_weight": 0.7}
    method = built("prototypes", corpora[world], tools, **weights)
    batch = method.collate(clips(corpora[world]))
    with torch.no_grad():
        loss, (answers, owner), (_, states) = method.loss(batch), method.answer_losses(batch), method.pseudo_tokens(batch)
    assert list(loss.parts) == ["answer", "semantic", "alignment", "diversity"] and loss.count == len(answers)
    torch.testing.assert_close(loss.parts["answer"], answers.sum())
    shares = {"answer": 1, "semantic": 0.3, "alignment": 0.5, "diversity": 0.7}
    torch.testing.assert_close(loss.total, sum(weight * loss.parts[name] for name, weight in shares.items()))
    counted = torch.from_numpy(np.bincount(owner)).float()
    classes, expected = torch.from_numpy(batch.targets), torch.zeros(len(counted))
    for modality in ("vision", "audio"):
        chances = states[f"logits_{modality}"].softmax(-1)[torch.arange(len(counted)), classes]
        expected -= chances.log() * torch.from_numpy(batch.lengths[modality] > 0)
    torch.testing.assert_close(loss.parts["semantic"], (expected * counted).sum())


def test_an_absent_modality_has_no_part_in_the_losses(tools, corpora):
    method, sample = built("prototypes", corpora[SIMS], tools), corpora[SIMS].splits["train"][0]
    faceless = replace(sample, vision=sample.vision[:0])
    clips_of = (sample, faceless, replace(faceless, audio=sample.audio[:0]))
    whole, part, none = (method.loss(method.collate([one])).parts for one in clips_of)
    assert part["alignment"] == 0 < whole["alignment"]
    assert 0 < part["semantic"] < whole["semantic"] and 0 < part["diversity"] < whole["diversity"]
    assert none["semantic"] == none["alignment"] == none["diversity"] == 0


# --- prototypes ---------------------------------------------------------------------------------------------------------


def test_scores_are_sorted_into_levels_and_a_classes_logit_comes_from_its_own_prototype_or_from_all(tools, corpora):
    scores = np.array([-1, -0.8, -0.6, -0.2, 0.0, 0.2, 0.4, 0.8, 1.0, 1.4])
    for count, levels in ((5, [0, 0, 1, 2, 2, 2, 3, 4, 4, 4]), (3, [0, 0, 0, 1, 1, 1, 1, 2, 2, 2])):
        method = built("prototypes", corpora[SIMS], tools, score_levels=count)
        assert method.targets(scores).tolist() == levels and method.module.num_tokens == 2 * count
    for semantics, own in (("own", True), ("mean", False)):
        reader = built("prototypes", corpora[MELD], tools, semantics=semantics).module.resampling["audio"]
        found = torch.randn(1, 7, 12)
        changed = found + (torch.arange(7) == 3)[:, None]
        moved = (reader.logits(found) != reader.logits(changed))[0]
        assert moved.tolist() == ([n == 3 for n in range(7)] if own else [True] * 7)


# --- MGSI ---------------------------------------------------------------------------------------------------------------


def test_the_gate_and_the_calibration_are_the_printed_formulas(tools, corpora):
    method, read = built("mgsi", corpora[SIMS], tools, calibration=0.5), {}
    batch, maker = method.collate([corpora[SIMS].splits["train"][0]]), method.module
    for name, part in maker.reading.items():
        part.register_forward_hook(lambda part, given, out, name=name: read.update({name: out[0]}))
    with torch.no_grad():
        tokens, states = method.pseudo_tokens(batch)
        words = method.llm.embedding(torch.tensor(batch.text_ids)).float().mean(1) * method.llm.dim**0.5
        words = words / method.llm.embedding_norm
        hidden = sum(read[m] * (1 + torch.sigmoid(maker.gate[m](words))) for m in ("audio", "vision"))
        rho = torch.sigmoid(maker.non_neutral(hidden))
        expected = maker.to_llm(maker.norm(hidden + 0.5 * rho * maker.correction(hidden))).view(1, 4, -1)
    torch.testing.assert_close(tokens, expected)
    torch.testing.assert_close(states["non_neutral"].sigmoid(), rho[:, 0])


@both_worlds
def test_a_steps_loss_is_the_answers_and_that_of_not_neutral(world, tools, corpora):
    method, samples = built("mgsi", corpora[world], tools, neutral_weight=0.4), clips(corpora[world])
    samples[0] = replace(samples[0], label=0)  # in [-0.1, 0.1], and MELD's first class: neutral
    samples[1] = replace(samples[1], label=1)
    batch = method.collate(samples)
    with torch.no_grad():
        loss, (answers, owner), (_, states) = method.loss(batch), method.answer_losses(batch), method.pseudo_tokens(batch)
    assert list(loss.parts) == ["answer", "non_neutral"] and loss.count == len(answers)
    truth = [abs(sample.label) > 0.1 if world == SIMS else sample.label != 0 for sample in samples]
    assert batch.targets.tolist() == truth and truth[:2] == [False, True]
    chances = states["non_neutral"].double().sigmoid().numpy()
    each = -np.log(np.where(truth, chances, 1 - chances))
    assert float(loss.parts["non_neutral"]) == pytest.approx((each * np.bincount(owner)).sum(), rel=1e-4)
    torch.testing.assert_close(loss.total, answers.sum() + 0.4 * loss.parts["non_neutral"])
    if world == SIMS:
        wider = built("mgsi", corpora[SIMS], tools, neutral_range=0.25)
        assert wider.targets(np.array([-1.0, -0.3, -0.1, 0.0, 0.1, 0.2])).tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize("labels", [(" Neutral", "glad"), ("calm", "happy")], ids=str)
def test_the_head_is_trained_where_a_class_is_called_neutral(labels, tools, corpora):
    task = Task("classification", "en", labels)
    method = built("mgsi", corpora[MELD], tools, task)
    samples = [replace(sample, label=place % 2) for place, sample in enumerate(clips(corpora[MELD]))]
    loss = method.loss(method.collate(samples))
    assert list(loss.parts) == (["answer", "non_neutral"] if "neutral" in labels[0].lower() else ["answer"])
    loss.total.backward()
    assert math.isfinite(loss.total.item()) and all(torch.isfinite(p.grad).all() for p in method.module.parameters())
    assert built("mgsi", corpora[MELD], tools, task, neutral_label=labels[1]).neutral_classes == [1]


# --- both, in all variants ----------------------------------------------------------------------------------------------


@variants
def test_the_losses_of_two_halves_are_those_of_the_whole_and_the_order_of_frames_is_read_but_by_a_set(settings, tools, corpora):
    """So several processes sum what one would, and a batch mate changes no clip's loss. A set are frames to prototypes as
    printed, whose attention knows no positions."""
    method, samples = built(settings, corpora[SIMS], tools), clips(corpora[SIMS])
    with torch.no_grad():
        whole, *halves = (method.loss(method.collate(some)) for some in (samples, samples[:2], samples[2:]))
    torch.testing.assert_close(sum(half.total for half in halves), whole.total)
    assert sum(half.count for half in halves) == whole.count
    for name, part in whole.parts.items():
        torch.testing.assert_close(sum(half.parts[name] for half in halves), part, rtol=1e-4, atol=1e-5)
    sample = corpora[SIMS].splits["train"][0]
    whole, is_set = tokens_of(method, [sample]), getattr(settings, "frames", "") == "as_given"
    for backwards in ({"audio": sample.audio[::-1].copy()}, {"vision": sample.vision[::-1].copy()}):
        moved = (tokens_of(method, [replace(sample, **backwards)]) - whole).abs().max()
        assert moved < 1e-5 if is_set else moved > 1e-4


@pytest.mark.parametrize(
    ("name", "looking", "parts"),
    [("prototypes", (1, 7), {"semantic", "alignment", "diversity"}), ("mgsi", (3, 1), {"non_neutral"})],
)
def test_tokens_are_made_once_a_step_and_maps_are_shares_of_the_frames(name, looking, parts, tools, corpora):
    method, calls = built(name, corpora[MELD], tools), []
    batch = method.collate(clips(corpora[MELD]))
    maps = dict(method.attention(batch))
    if name == "prototypes":
        assert maps.pop("conditioning").shape == (6, 1, 14, 14 + max(len(ids) for ids in batch.text_ids))
    assert set(maps) == {"audio", "vision"}
    for modality, weights in maps.items():
        assert weights.shape == (6, *looking, batch.frames[modality].shape[1])
        present = torch.from_numpy(batch.lengths[modality] > 0).float()
        torch.testing.assert_close(weights.sum(-1), present[:, None, None].expand(-1, *looking))
    method.module.register_forward_hook(lambda *given: calls.append(1))
    optimizer = torch.optim.AdamW(method.module.parameters(), lr=0.01)
    values = loop.step(method, optimizer, clips(corpora[MELD]), [[place] for place in range(6)], method.config.training)
    assert len(calls) == 1, "the losses read the tokens that the LLM reads"
    assert set(values) == {f"train_{part}" for part in {"loss", "answer", *parts}}, "every part stands in the history"


@pytest.mark.parametrize("settings", [PrototypesConfig(dim=256), MgsiConfig(dim=12, num_pseudo_tokens=50)], ids=METHODS)
def test_tokens_start_as_large_as_embeddings(settings, tools, corpora, llm):
    sizes = tokens_of(built(settings, corpora[SIMS], tools), clips(corpora[SIMS])[:1]).norm(dim=-1)
    assert 0.5 < float(sizes.mean()) / llm.embedding_norm < 2


@pytest.mark.parametrize("device", [CPU, META], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_a_step_waits_for_nothing_and_sends_one_block_more(name, device, llm, corpora, monkeypatch):
    monkeypatch.setattr(regularisers, "send", lambda *given: packing.send(*given))  # the one that is watched
    seen = step_watched(monkeypatch, config(METHODS[name]), on(device, llm, monkeypatch), corpora[SIMS])
    assert seen.counts == {"tolist": READOUT} and seen.sends <= SENDS + 1  # what the losses are to find


def test_profiles_train_them_as_printed_and_bad_settings_are_refused():
    mgsi, prototypes = (
        override(config(registry.ENTRIES[name].defaults()), registry.ENTRIES[name].settings["paper"])
        for name in ("mgsi", "prototypes")
    )
    assert (mgsi.training.learning_rate, mgsi.training.batch_size, mgsi.training.epochs) == (5e-5, 8, 30)
    assert (mgsi.method.num_pseudo_tokens, mgsi.method.neutral_weight, mgsi.method.calibration) == (4, 0.05, 0.05)
    weights = ("semantic_weight", "alignment_weight", "diversity_weight")
    assert [getattr(prototypes.method, weight) for weight in weights] == [0.1, 0.1, 0.05]
    assert prototypes.training.patience == 10
    assert prototypes.method.frames == "as_given", "the paper's profile has no reader that is not printed"
    assert reference(PrototypesConfig(diversity_diagonal="one")).diversity_diagonal == "as_printed"
    bad = [("prototypes", "score_levels", 1), ("mgsi", "dim", 10), ("mgsi", "kernel", 4), ("mgsi", "dilation", 0)]
    for name, field, value in bad:
        with pytest.raises(ValueError, match=field):
            config(METHODS[name], **{field: value})
