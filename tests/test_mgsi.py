"""MGSI: frames at three granularities, in order, and clips that must not disturb each other."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_model import clips
from token_makers import check_gradients, check_odd_clips
from torch import Tensor, nn

from cmpta_lib import registry
from cmpta_lib.beyond.mgsi import Convolution, Granularities, Mgsi, MgsiConfig
from cmpta_lib.config import DataConfig, RunConfig, TrainingConfig, from_json, override, to_json
from cmpta_lib.data.corpus import Inputs, Sample, Task
from cmpta_lib.runs import loop

WORLDS = ("embedded-sims", "embedded-meld")
CONFIG = RunConfig(
    data=DataConfig(name="test", fingerprint=""), method=MgsiConfig(dim=12), training=TrainingConfig(batch_size=8)
)
SWITCHES = [
    {},
    {"method.branches": "stacked", "method.kernel": 5, "method.dilation": 3, "method.token_scale": "default"},
    {"method.num_pseudo_tokens": 1, "method.calibration": 0.0, "method.prompt.pseudo_token_position": "after_text"},
]


def built(tools, corpus, changes=None, task: Task | None = None) -> Mgsi:
    torch.manual_seed(0)
    inputs = Inputs.of(corpus)
    method = registry.build(override(CONFIG, changes or {}), replace(inputs, task=task or inputs.task), tools)
    method.fit(corpus.splits["train"])
    method.module.eval()
    assert isinstance(method, Mgsi)
    return method


def tokens_of(method: Mgsi, samples: list[Sample]) -> Tensor:
    with torch.no_grad():
        return method.pseudo_tokens(method.collate(samples))[0]


# --- its parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (3, 2), (5, 3)])
def test_a_convolution_is_a_sum_over_neighbours_that_are_there(kernel, dilation):
    torch.manual_seed(0)
    part, frames, lengths = Convolution(4, kernel, dilation), torch.randn(2, 9, 4), [9, 5]
    real = torch.arange(9) < torch.tensor(lengths)[:, None]
    found, weight = part(frames, real), part.convolution.weight
    for clip, length in enumerate(lengths):
        for place in range(length):
            expected = part.convolution.bias.clone()
            for tap in range(kernel):
                seen = place + dilation * (tap - kernel // 2)
                if 0 <= seen < length:
                    expected = expected + weight[:, :, tap] @ frames[clip, seen]
            torch.testing.assert_close(found[clip, place], F.gelu(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("branches", ["parallel", "stacked"])
def test_granularities_are_pooled_attended_and_averaged(branches):
    """A readable reference, clip by clip and without padding."""
    torch.manual_seed(0)
    part = Granularities(MgsiConfig(dim=8, attention_heads=2, branches=branches), 5).eval()
    frames, lengths = torch.randn(3, 7, 5), torch.tensor([7, 0, 4])
    found, weights = part(frames, lengths)
    for clip, length in enumerate(lengths.tolist()):
        if not length:
            assert (found[clip] == 0).all() and (weights[clip] == 0).all()
            continue
        start = hidden = part.project(frames[clip : clip + 1, :length])
        tokens = []
        for branch, score in zip(part.branches, part.score, strict=True):
            hidden = branch(hidden if branches == "stacked" else start, torch.ones(1, length, dtype=torch.bool))
            shares = score(hidden).softmax(1)
            torch.testing.assert_close(weights[clip, len(tokens), :length], shares[0, :, 0])
            tokens.append((shares * hidden).sum(1))
        stacked = torch.stack(tokens, dim=1)
        torch.testing.assert_close(found[clip], part.mix(stacked, stacked, stacked)[0][0].mean(0), rtol=0, atol=1e-5)


def test_the_gate_and_the_calibration_are_the_printed_formulas(tools, corpora):
    corpus = corpora["embedded-sims"]
    method, batch = built(tools, corpus, {"method.calibration": 0.5}), built(tools, corpus).collate([corpus.splits["train"][0]])
    maker, read = method.module, {}
    handles = [
        maker.reading[m].register_forward_hook(lambda part, given, out, m=m: read.update({m: out[0]})) for m in maker.reading
    ]
    with torch.no_grad():
        tokens, states = method.pseudo_tokens(batch)
        words = method.llm.embedding(torch.tensor(batch.text_ids)).float().mean(1) * method.llm.dim**0.5
        words = words / method.llm.embedding_norm
        hidden = sum(read[m] * (1 + torch.sigmoid(maker.gate[m](words))) for m in ("audio", "vision"))
        rho = torch.sigmoid(maker.non_neutral(hidden))
        expected = maker.to_llm(maker.norm(hidden + 0.5 * rho * maker.correction(hidden))).view(1, 4, -1)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(tokens, expected)
    torch.testing.assert_close(states["non_neutral"].sigmoid(), rho[:, 0])


# --- its loss -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
def test_a_steps_loss_is_the_answers_and_that_of_not_neutral(world, tools, corpora):
    corpus = corpora[world]
    method, samples = built(tools, corpus, {"method.neutral_weight": 0.4}), clips(corpus)
    samples[0] = replace(samples[0], label=0)  # in [-0.1, 0.1], and MELD's first class: neutral
    samples[1] = replace(samples[1], label=1)
    batch = method.collate(samples)
    with torch.no_grad():
        loss, states = method.loss(batch), method.pseudo_tokens(batch)[1]
        answers, owner = method.answer_losses(batch)
    assert list(loss.parts) == ["answer", "non_neutral"] and loss.count == len(answers)
    truth = [abs(sample.label) > 0.1 if world == WORLDS[0] else sample.label != 0 for sample in samples]
    assert batch.targets.tolist() == truth and truth[:2] == [False, True]
    chances = states["non_neutral"].double().sigmoid().numpy()
    each = -np.log(np.where(truth, chances, 1 - chances))
    assert float(loss.parts["non_neutral"]) == pytest.approx((each * np.bincount(owner)).sum(), rel=1e-4)
    torch.testing.assert_close(loss.total, answers.sum() + 0.4 * loss.parts["non_neutral"])


def test_how_far_from_zero_neutral_reaches_is_a_setting(tools, corpora):
    scores = np.array([-1.0, -0.3, -0.1, 0.0, 0.1, 0.2])
    assert built(tools, corpora["embedded-sims"]).targets(scores).tolist() == [True, True, False, False, False, True]
    wider = built(tools, corpora["embedded-sims"], {"method.neutral_range": 0.25})
    assert wider.targets(scores).tolist() == [True, True, False, False, False, False]


def test_a_steps_parts_stand_in_the_history(tools, corpora):
    corpus = corpora["embedded-meld"]
    method = built(tools, corpus)
    optimizer = torch.optim.AdamW(method.module.parameters(), lr=0.01)
    values = loop.step(method, optimizer, clips(corpus), [[place] for place in range(6)], CONFIG.training)
    assert {"train_loss", "train_answer", "train_non_neutral"} == set(values)


@pytest.mark.parametrize("labels", [(" Neutral", "glad"), ("calm", "happy"), ("a", "b", "c", "d", "e", "f", "g")], ids=str)
def test_the_head_is_trained_where_a_class_is_called_neutral(labels, tools, corpora):
    corpus = corpora["embedded-meld"]
    method = built(tools, corpus, task=Task("classification", "en", labels))
    samples = [replace(sample, label=place % len(labels)) for place, sample in enumerate(clips(corpus))]
    loss = method.loss(method.collate(samples))
    assert list(loss.parts) == (["answer", "non_neutral"] if "neutral" in labels[0].lower() else ["answer"])
    loss.total.backward()
    assert math.isfinite(loss.total.item()) and all(torch.isfinite(p.grad).all() for p in method.module.parameters())
    renamed = built(tools, corpus, {"method.neutral_label": labels[-1]}, task=Task("classification", "en", labels))
    assert renamed.neutral_class == len(labels) - 1


# --- clips --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
@pytest.mark.parametrize("world", WORLDS)
def test_a_clip_gives_the_same_alone_and_in_any_batch(world, changes, tools, corpora):
    corpus = corpora[world]
    method, samples = built(tools, corpus, changes), clips(corpora[world])
    together = tokens_of(method, samples)
    assert together.shape == (6, method.module.num_tokens, method.llm.dim)
    torch.testing.assert_close(tokens_of(method, samples[::-1]).flip(0), together, rtol=0, atol=1e-5)
    alone = torch.cat([tokens_of(method, [sample]) for sample in samples])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    whole = method.predict(method.collate(samples))
    assert [method.predict(method.collate([sample])).replies[0] for sample in samples] == list(whole.replies)


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_padding_never_leaks_through_a_convolution(changes, tools, corpora):
    """Eight more frames of rubbish behind every clip, in training (dropout off) and in answering."""
    corpus = corpora["embedded-sims"]
    method = built(tools, corpus, {**changes, "method.dropout": 0.0})
    batch, noisy = method.collate(clips(corpus)), {}
    for name, frames in batch.frames.items():
        noisy[name] = np.concatenate([frames, np.zeros_like(frames[:, :8])], axis=1)
        for row, length in zip(noisy[name], batch.lengths[name], strict=True):
            row[length:] = 1e3
    for training in (False, True):
        method.module.train(training)
        with torch.no_grad():
            clean, other = (method.pseudo_tokens(one)[0] for one in (batch, replace(batch, frames=noisy)))
        torch.testing.assert_close(clean, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", SWITCHES[:2], ids=str)
def test_words_face_voice_and_the_order_of_frames_are_read(changes, tools, corpora):
    corpus = corpora["embedded-sims"]
    method, sample = built(tools, corpus, changes), corpus.splits["train"][0]
    whole = tokens_of(method, [sample])
    for changed in (
        {"audio": sample.audio * 2 + 1},
        {"vision": sample.vision * 2 + 1},
        {"audio": sample.audio[::-1].copy()},
        {"vision": sample.vision[::-1].copy()},
        {"text": "something else"},
    ):
        assert (tokens_of(method, [replace(sample, **changed)]) - whole).abs().max() > 1e-4


def test_the_maps_say_where_each_granularity_looks(tools, corpora):
    corpus = corpora["embedded-meld"]
    method = built(tools, corpus)
    batch = method.collate(clips(corpus))
    maps = method.attention(batch)
    assert set(maps) == {"audio", "vision"}
    for modality, weights in maps.items():
        assert weights.shape == (6, 3, 1, batch.frames[modality].shape[1])
        present = torch.from_numpy(batch.lengths[modality] > 0).float()
        torch.testing.assert_close(weights.sum(-1), present[:, None, None].expand(-1, 3, 1))


def test_tokens_start_as_large_as_embeddings(tools, corpora, llm):
    samples = [clips(corpora["embedded-sims"])[0]]
    sizes = tokens_of(built(tools, corpora["embedded-sims"], {"method.num_pseudo_tokens": 50}), samples).norm(dim=-1)
    assert 0.5 < float(sizes.mean()) / llm.embedding_norm < 2


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
@pytest.mark.parametrize("world", WORLDS)
def test_odd_clips_train_without_a_nan(world, changes, tools, corpora):
    check_odd_clips(lambda: built(tools, corpora[world], changes), corpora[world])


def test_only_the_token_maker_gets_gradients_and_every_part_of_it(tools, corpora, llm):
    corpus = corpora["embedded-sims"]
    check_gradients(built(tools, corpus), corpus, llm)


def test_it_has_a_convolution_a_dilated_one_and_a_transformer(tools, corpora):
    branches = built(tools, corpora["embedded-sims"]).module.reading["audio"].branches
    convolutions = [part for part in branches.modules() if isinstance(part, nn.Conv1d)]
    assert [(part.kernel_size, part.dilation) for part in convolutions] == [((3,), (1,)), ((3,), (2,))]
    assert sum(isinstance(part, nn.TransformerEncoderLayer) for part in branches.modules()) == 1


def test_its_settings_survive_their_file_and_bad_ones_are_refused():
    assert from_json(to_json(CONFIG)) == CONFIG
    for changes, message in (({"method.dim": 10}, "dim=10"), ({"method.kernel": 4}, "kernel=4"), ({"method.dilation": 0}, "dil")):
        with pytest.raises(ValueError, match=message):
            override(CONFIG, changes)
