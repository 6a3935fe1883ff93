"""Prototype-as-Prompt: the printed losses' numbers, and clips that must not disturb each other."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_model import clips
from token_makers import check_gradients, check_odd_clips
from torch import Tensor

from cmpta_lib import registry
from cmpta_lib.baselines.supervised import reference
from cmpta_lib.beyond.prototypes import Attention, Prototypes, PrototypesConfig, PrototypeTokens
from cmpta_lib.beyond.regularisers import central_moment_discrepancy, diversity
from cmpta_lib.config import DataConfig, RunConfig, TrainingConfig, from_json, override, to_json
from cmpta_lib.data.corpus import Inputs, Sample, Task
from cmpta_lib.runs import loop

WORLDS = ("embedded-sims", "embedded-meld")
CONFIG = RunConfig(
    data=DataConfig(name="test", fingerprint=""), method=PrototypesConfig(dim=12), training=TrainingConfig(batch_size=8)
)
SWITCHES = [
    {},
    {"method.semantics": "mean", "method.score_levels": 2, "method.token_scale": "default"},
    {"method.frames": "bilstm", "method.diversity_diagonal": "one", "method.moments": 1},
    {"method.diversity_weight": 0.0, "method.prompt.pseudo_token_position": "after_text"},
]


def built(tools, corpus, changes=None, task: Task | None = None) -> Prototypes:
    torch.manual_seed(0)
    inputs = Inputs.of(corpus)
    method = registry.build(override(CONFIG, changes or {}), replace(inputs, task=task or inputs.task), tools)
    method.fit(corpus.splits["train"])
    method.module.eval()
    assert isinstance(method, Prototypes)
    return method


def tokens_of(method: Prototypes, samples: list[Sample]) -> Tensor:
    with torch.no_grad():
        return method.pseudo_tokens(method.collate(samples))[0]


def unit_rows(seed: int) -> Tensor:
    """(3, 4) cos(0.3 k + seed), each row of length 1."""
    return F.normalize(torch.cos(0.3 * torch.arange(12, dtype=torch.float64) + seed).view(3, 4), dim=-1)


# --- losses -------------------------------------------------------------------------------------------------------------


def test_golden_values_of_the_printed_losses():
    """Worked out in float64 from the printed formulas, K = 3, orders up to 5, |b - a| = 2; not from public code."""
    assert diversity(unit_rows(1)).item() == pytest.approx(0.070097, abs=1e-5)
    assert central_moment_discrepancy(unit_rows(1), unit_rows(2), 5, 2.0).item() == pytest.approx(0.470875, abs=1e-5)


def test_central_moments_are_scipys():
    from scipy.stats import moment

    first, second = (np.random.default_rng(seed).uniform(-1, 1, (2, 6, 5)) for seed in (0, 1))
    expected = np.linalg.norm(first.mean(1) - second.mean(1), axis=-1) / 2
    for order in (2, 3, 4):
        gap = moment(first, order, axis=1) - moment(second, order, axis=1)
        expected += np.linalg.norm(gap, axis=-1) / 2**order
    found = central_moment_discrepancy(torch.from_numpy(first), torch.from_numpy(second), 4, 2.0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def slow_diversity(prototypes: np.ndarray, with_diagonal: bool) -> float:
    count, total = len(prototypes), 0.0
    for i, first in enumerate(prototypes):
        for j, second in enumerate(prototypes):
            if i != j:
                cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
                total += (abs(i - j) / count * max(cosine, 0)) ** 2
            elif with_diagonal:
                total += (first @ first - 1) ** 2
    return math.sqrt(total) / (count * (count - 1))


@pytest.mark.parametrize("diagonal", ["as_printed", "one"])
def test_diversity_is_a_weighted_sum_over_pairs(diagonal):
    prototypes = np.random.default_rng(0).standard_normal((4, 5, 6)) + 0.5
    found = diversity(torch.from_numpy(prototypes), diagonal)
    expected = [slow_diversity(one, diagonal == "one") for one in prototypes]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_lengths_matter_only_where_the_diagonal_counts():
    rows = unit_rows(1)
    assert diversity(3 * rows).item() == pytest.approx(diversity(rows).item())
    assert diversity(rows, "one").item() == pytest.approx(diversity(rows).item())  # of length 1 already
    assert diversity(3 * rows, "one") > diversity(rows, "one") + 1


def test_the_losses_have_a_gradient_at_zero_and_between_equals():
    for loss in (diversity, lambda rows: central_moment_discrepancy(rows, rows.detach().clone(), 5, 2.0)):
        for start in (torch.zeros(3, 4), torch.ones(3, 4)):
            rows = start.clone().requires_grad_()
            loss(rows).backward()
            assert torch.isfinite(rows.grad).all()


def test_reference_sets_the_printed_diagonal():
    assert reference(PrototypesConfig(diversity_diagonal="one")).diversity_diagonal == "as_printed"


@pytest.mark.parametrize("world", WORLDS)
def test_a_steps_loss_is_the_answers_and_the_weighted_rest(world, tools, corpora):
    weights = {"method.semantic_weight": 0.3, "method.alignment_weight": 0.5, "method.diversity_weight": 0.7}
    corpus = corpora[world]
    method, plain = built(tools, corpus, weights), built(tools, corpus, dict.fromkeys(weights, 0.0))
    batch = method.collate(clips(corpus))
    with torch.no_grad():
        loss, bare = method.loss(batch), plain.loss(batch)
        answers, owner = method.answer_losses(batch)
        states = method.pseudo_tokens(batch)[1]
    assert list(loss.parts) == ["answer", "semantic", "alignment", "diversity"] and loss.count == len(answers)
    torch.testing.assert_close(loss.parts["answer"], answers.sum())
    torch.testing.assert_close(bare.total, answers.sum())
    torch.testing.assert_close(
        loss.total,
        sum(w * loss.parts[n] for n, w in {"answer": 1, "semantic": 0.3, "alignment": 0.5, "diversity": 0.7}.items()),
    )
    counted = torch.from_numpy(np.bincount(owner)).float()
    classes, expected = torch.from_numpy(batch.targets), torch.zeros(len(counted))
    for modality in ("vision", "audio"):
        chances = states[f"logits_{modality}"].softmax(-1)[torch.arange(len(counted)), classes]
        expected -= chances.log() * torch.from_numpy(batch.lengths[modality] > 0)
    torch.testing.assert_close(loss.parts["semantic"], (expected * counted).sum())


def test_an_absent_modality_has_no_part_in_the_losses(tools, corpora):
    corpus = corpora["embedded-sims"]
    method, sample = built(tools, corpus), corpus.splits["train"][0]
    faceless = replace(sample, vision=sample.vision[:0])
    whole, part, none = (
        method.loss(method.collate([one])).parts for one in (sample, faceless, replace(faceless, audio=sample.audio[:0]))
    )
    assert part["alignment"] == 0 < whole["alignment"]
    assert 0 < part["semantic"] < whole["semantic"] and 0 < part["diversity"] < whole["diversity"]
    assert none["semantic"] == none["alignment"] == none["diversity"] == 0


def test_a_steps_parts_stand_in_the_history(tools, corpora):
    corpus = corpora["embedded-meld"]
    method = built(tools, corpus)
    optimizer = torch.optim.AdamW(method.module.parameters(), lr=0.01)
    values = loop.step(method, optimizer, clips(corpus), [[place] for place in range(6)], CONFIG.training)
    assert {"train_loss", "train_answer", "train_semantic", "train_alignment", "train_diversity"} == set(values)


# --- prototypes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(2, 8))
def test_every_class_has_a_pseudo_token_of_each_of_face_and_voice(count, tools, corpora):
    corpus = corpora["embedded-meld"]
    method = built(tools, corpus, task=Task("classification", "en", tuple(f"mood {n}" for n in range(count))))
    samples = [replace(sample, label=place % count) for place, sample in enumerate(clips(corpus))]
    assert tokens_of(method, samples).shape == (6, 2 * count, method.llm.dim)
    loss = method.loss(method.collate(samples))
    loss.total.backward()
    assert math.isfinite(loss.total.item()) and all(torch.isfinite(p.grad).all() for p in method.module.parameters())


def test_scores_are_sorted_into_evenly_spaced_levels(tools, corpora):
    method = built(tools, corpora["embedded-sims"])
    scores = np.array([-1, -0.8, -0.6, -0.2, 0.0, 0.2, 0.4, 0.8, 1.0, 1.4])
    assert method.targets(scores).tolist() == [0, 0, 1, 2, 2, 2, 3, 4, 4, 4]
    assert method.module.num_tokens == 10
    three = built(tools, corpora["embedded-sims"], {"method.score_levels": 3})
    assert three.targets(scores).tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2] and three.module.num_tokens == 6


def test_attention_is_torchs_without_bias():
    torch.manual_seed(0)
    attention = Attention(8)
    queries, read, real = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.arange(5) < torch.tensor([[5], [2]])
    expected = F.scaled_dot_product_attention(
        attention.query(queries), attention.key(read), attention.value(read), attn_mask=real[:, None]
    )
    found, weights = attention(queries, read, real)
    torch.testing.assert_close(found, expected)
    assert (weights[1, :, 2:] == 0).all()
    nothing, none = attention(queries, read, torch.zeros_like(real))
    assert (nothing == 0).all() and (none == 0).all()


def test_a_classes_logit_comes_from_its_own_prototype_or_from_all(tools, corpora):
    for semantics, own in (("own", True), ("mean", False)):
        reader = built(tools, corpora["embedded-meld"], {"method.semantics": semantics}).module.resampling["audio"]
        found = torch.randn(1, 7, 12)
        changed = found.clone()
        changed[:, 3] += 1
        moved = (reader.logits(found) != reader.logits(changed))[0]
        assert moved.tolist() == ([n == 3 for n in range(7)] if own else [True] * 7)


def test_the_maps_say_where_each_prototype_looks(tools, corpora):
    corpus = corpora["embedded-meld"]
    method, batch = built(tools, corpus), built(tools, corpus).collate(clips(corpus))
    maps = method.attention(batch)
    words = max(len(ids) for ids in batch.text_ids)
    assert {name: tuple(weights.shape[1:3]) for name, weights in maps.items()} == {
        "conditioning": (1, 14), "vision": (1, 7), "audio": (1, 7),
    }  # fmt: skip
    assert maps["conditioning"].shape[3] == 14 + words
    for modality in ("vision", "audio"):
        present = torch.from_numpy(batch.lengths[modality] > 0).float()
        torch.testing.assert_close(maps[modality].sum(-1), present[:, None, None].expand(-1, 1, 7))


def test_the_share_of_trained_weights_is_about_the_printed_one():
    """Printed: 0.09 to 0.26 % over ChatGLM3-6B, LLaMA2-7B and "Qwen-1.5B"; the width itself is not."""
    for llm_dim, weights in ((2048, 1_836_828_672), (4096, 6_243_584_000), (4096, 6_738_415_616)):
        with torch.device("meta"):
            maker = PrototypeTokens(PrototypesConfig(), 7, 25, 177, llm_dim, 1.0)
        assert 0.0009 < sum(p.numel() for p in maker.parameters()) / weights < 0.0026


def test_its_settings_survive_their_file_and_bad_ones_are_refused():
    assert from_json(to_json(CONFIG)) == CONFIG
    with pytest.raises(ValueError, match="method.score_levels"):
        override(CONFIG, {"method.score_levels": 1})


# --- clips --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
@pytest.mark.parametrize("world", WORLDS)
def test_a_clip_gives_the_same_alone_and_in_any_batch(world, changes, tools, corpora):
    corpus = corpora[world]
    method, samples = built(tools, corpus, changes), clips(corpora[world])
    together = tokens_of(method, samples)
    torch.testing.assert_close(tokens_of(method, samples[::-1]).flip(0), together, rtol=0, atol=1e-5)
    alone = torch.cat([tokens_of(method, [sample]) for sample in samples])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    whole = method.predict(method.collate(samples))
    assert [method.predict(method.collate([sample])).replies[0] for sample in samples] == list(whole.replies)


@pytest.mark.parametrize("frames", ["as_given", "bilstm"])
def test_padding_is_never_read(frames, tools, corpora):
    corpus = corpora["embedded-sims"]
    method = built(tools, corpus, {"method.frames": frames})
    batch = method.collate(clips(corpus))
    noisy = {name: frames.copy() for name, frames in batch.frames.items()}
    for name, frames in noisy.items():
        for row, length in zip(frames, batch.lengths[name], strict=True):
            row[length:] = 1e3
    with torch.no_grad():
        clean, other = (method.pseudo_tokens(one)[0] for one in (batch, replace(batch, frames=noisy)))
    assert torch.equal(clean, other)


@pytest.mark.parametrize(("frames", "is_ordered"), [("as_given", False), ("bilstm", True)])
def test_words_face_and_voice_are_read_and_the_order_of_frames_where_asked(frames, is_ordered, tools, corpora):
    """As printed: attention over frames that know no positions."""
    corpus = corpora["embedded-sims"]
    method, sample = built(tools, corpus, {"method.frames": frames}), corpus.splits["train"][0]
    whole = tokens_of(method, [sample])
    for changed in ({"audio": sample.audio * 2 + 1}, {"vision": sample.vision * 2 + 1}, {"text": "something else"}):
        assert (tokens_of(method, [replace(sample, **changed)]) - whole).abs().max() > 1e-5
    for backwards in ({"audio": sample.audio[::-1].copy()}, {"vision": sample.vision[::-1].copy()}):
        moved = (tokens_of(method, [replace(sample, **backwards)]) - whole).abs().max()
        assert moved > 1e-4 if is_ordered else moved < 1e-5


def test_tokens_start_as_large_as_embeddings(tools, corpora, llm):
    samples = [clips(corpora["embedded-sims"])[0]]
    sizes = tokens_of(built(tools, corpora["embedded-sims"], {"method.dim": 256}), samples).norm(dim=-1)
    assert 0.5 < float(sizes.mean()) / llm.embedding_norm < 2


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
@pytest.mark.parametrize("world", WORLDS)
def test_odd_clips_train_without_a_nan(world, changes, tools, corpora):
    check_odd_clips(lambda: built(tools, corpora[world], changes), corpora[world])


def test_only_the_prototypes_get_gradients_and_every_part_of_them(tools, corpora, llm):
    corpus = corpora["embedded-sims"]
    check_gradients(built(tools, corpus), corpus, llm)
