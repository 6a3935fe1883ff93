"""LMF and TFN: their equations against golden values, their sizes and switches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import outputs
from golden import fill, given
from test_every_method import built
from test_reference_rows import CLASSES, SCORES, clip, corpus_of
from torch import Tensor, nn

from cmpta_lib.base import mean_over_time
from cmpta_lib.baselines.supervised import Clips, reference
from cmpta_lib.baselines.tensor_fusion import (
    BatchNorm,
    LmfConfig,
    LowRankFusion,
    Subnets,
    SubnetsConfig,
    TensorFusion,
    TfnConfig,
)

SMALL = {"audio_hidden": 3, "vision_hidden": 5, "text_hidden": 4, "text_out": 2}
# The golden clips have one mean frame and three tokens: no padding, whatever padding would be counted.
GOLDEN = {**SMALL, "max_text_tokens": 3, "padded_audio": 1, "padded_vision": 1}


def golden_clips() -> tuple[Tensor, Clips]:
    """Text states (2, 3, 6), and two clips with one frame of voice and face."""
    one, three = torch.tensor([1, 1]), torch.tensor([3, 3])
    frames, ids = {"audio": given(2, 2, 1, 4), "vision": given(3, 2, 1, 5)}, torch.zeros(2, 3, dtype=torch.int64)
    return given(1, 2, 3, 6), Clips(ids, three, frames, dict.fromkeys(frames, one), speakers=one, dialogues=[1, 1])


def golden(settings: SubnetsConfig) -> tuple[Subnets, list[Tensor]]:
    """And its weights in the order of the reference: both mean subnets, the text's LSTM, its last layer."""
    subnets = Subnets(settings, text=6, audio=4, vision=5).eval()
    parts = (subnets.audio, subnets.vision, subnets.text, subnets.text_out)
    return subnets, [weight for part in parts for weight in part.parameters()]


def test_lmf_gives_the_golden_values():
    """Reference modules in eval mode, torch 2.13."""
    settings = reference(LmfConfig(rank=2, **GOLDEN))
    (subnets, weights), fusion = golden(settings), LowRankFusion(settings, 1)
    fill([*fusion.factors, fusion.weights, fusion.bias, *weights], 0.8)
    audio, vision, text = subnets(*golden_clips())
    assert_close(fusion(audio, vision, text)[:, 0], [-0.320307, -0.764634])
    assert_close(text[:, 1:], [[0.085580, 1.112516], [0.307779, 0.745813]])
    assert_close(audio[0], [1, 0.920397, 0.887696, 0.023751])


def golden_tfn(outputs: int) -> tuple[Subnets, TensorFusion]:
    settings = reference(TfnConfig(post_hidden=3, **GOLDEN))
    (subnets, weights), fusion = golden(settings), TensorFusion(settings, outputs).eval()
    fill([*weights, *fusion.parameters()], 0.5, first=3)
    return subnets, fusion


def test_tfn_gives_the_golden_values():
    """Reference modules in eval mode, torch 2.13."""
    subnets, fusion = golden_tfn(1)
    vectors = subnets(*golden_clips())
    assert_close(6 * fusion(*vectors)[:, 0].sigmoid() - 3, [-0.846845, -0.838659])
    product = fusion.product(*vectors)
    assert_close(product.sum(1), [0.663859, 0.688423])
    assert_close(product[0, :3], [1, -0.549746, -0.153002])
    subnets, fusion = golden_tfn(7)
    first = [-0.580320, -0.368564, 0.119138, 0.228050, 0.452988, 0.562190, 0.085450]
    second = [-0.574394, -0.365789, 0.110411, 0.234087, 0.455619, 0.553496, 0.091597]
    assert_close(fusion(*subnets(*golden_clips())), [first, second])


def assert_close(found: Tensor, expected: list[Any]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=0)


def numel(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)


def test_published_sizes_give_the_published_numbers_of_weights():
    with torch.device("meta"):
        sims, meld = {"text": 768, "audio": 25, "vision": 177}, {"text": 768, "audio": 64, "vision": 64}
        assert numel(Subnets(LmfConfig(), **sims), LowRankFusion(LmfConfig(), 1)) == 239_173
        frozen = reference(LmfConfig())
        assert numel(Subnets(frozen, **sims), LowRankFusion(frozen, 1)) == 239_173 - 5
        assert numel(Subnets(TfnConfig(), **sims), TensorFusion(TfnConfig(), 1)) == 18_109_461
        assert numel(Subnets(TfnConfig(), **meld), TensorFusion(TfnConfig(), 7)) == 18_096_295


# Switches ----------------------------------------------------------------------------------------------------------
def test_a_mean_over_padding_shrinks_short_clips():
    frames = torch.tensor([[[2.0], [4.0]], [[6.0], [0.0]], [[0.0], [0.0]]])
    lengths = torch.tensor([2, 1, 0])
    assert mean_over_time(frames, lengths)[:, 0].tolist() == [3, 6, 0]
    assert mean_over_time(frames, lengths, at_least=4)[:, 0].tolist() == [1.5, 1.5, 0]


@pytest.mark.parametrize("name", ["lmf", "tfn"])
def test_each_switch_changes_what_it_says(name, tools):
    samples = [clip(0), clip(1, text="就那么回事")]
    usual = outputs(built(name, corpus_of(samples, SCORES), tools), samples)
    for switch in ("time_mean", "text_end"):
        other = built(name, corpus_of(samples, SCORES), tools, **{switch: "padded"})
        assert not torch.allclose(outputs(other, samples), usual)


def test_lmfs_factors_learn_at_their_own_rate(tools):
    method = built("lmf", corpus_of([clip(0)], SCORES), tools)
    factors, others = method.groups(method.config.training)
    names = {id(p): name for name, p in method.module.named_parameters()}
    assert [names[id(p)] for p in factors.parameters] == [f"network.fusion.factors.{place}" for place in range(3)]
    assert factors.rate * 2e-3 == pytest.approx(5e-4) and others.rate == 1
    assert {"network.fusion.weights", "network.fusion.bias"} < {names[id(p)] for p in others.parameters}


@pytest.mark.parametrize(("score_range", "limit"), [("labels", 1.0), ("six", 3.0), ("none", None)])
def test_tfns_score_has_the_range_that_is_asked_for(score_range, limit, tools):
    method = built("tfn", corpus_of([clip(0)], SCORES), tools, score_range=score_range)
    with torch.no_grad():
        method.net["fusion"].layers[-1].bias.fill_(50.0)
    said = outputs(method, [clip(0)])[0, 0].item()
    assert said == pytest.approx(limit) if limit else said > 40
    classes = built("tfn", corpus_of([clip(0)], CLASSES), tools, score_range=score_range)
    assert classes.predict(method.collate([clip(0)])).probabilities.shape == (1, 3)


def test_batch_normalisation_of_one_clip_uses_what_it_has_gathered():
    norm = BatchNorm(3)
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    one = torch.tensor([[3.0, 1.0, -1.0]])
    torch.testing.assert_close(norm(one), torch.tensor([[1.0, 0.0, -1.0]]), atol=1e-5, rtol=0)
    assert norm.running_mean.tolist() == [1.0] * 3 and norm.num_batches_tracked == 0
    two = torch.randn(4, 3)
    torch.testing.assert_close(norm(two), nn.BatchNorm1d(3)(two))
