"""The parts of Prototype-as-Prompt and MGSI: the printed losses' numbers, and each part against a slow loop."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cmpta_lib.beyond.losses import central_moment_discrepancy, diversity
from cmpta_lib.beyond.mgsi import Granularities, MgsiConfig
from cmpta_lib.beyond.prototypes import Attention, PrototypesConfig, PrototypeTokens
from cmpta_lib.data.corpus import Inputs, Task
from cmpta_lib.paper import MELD_LABELS


def unit_rows(seed: int) -> Tensor:
    """(3, 4) cos(0.3 k + seed), each row of length 1."""
    return F.normalize(torch.cos(0.3 * torch.arange(12, dtype=torch.float64) + seed).view(3, 4), dim=-1)


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
    """Lengths, which are not 1 here, matter only where the diagonal counts."""
    prototypes = np.random.default_rng(0).standard_normal((4, 5, 6)) + 0.5
    expected = [slow_diversity(one, diagonal == "one") for one in prototypes]
    np.testing.assert_allclose(diversity(torch.from_numpy(prototypes), diagonal).numpy(), expected, rtol=1e-12)


def test_the_losses_have_a_gradient_at_zero_and_between_equals():
    for loss in (diversity, lambda rows: central_moment_discrepancy(rows, rows.detach().clone(), 5, 2.0)):
        for start in (torch.zeros(3, 4), torch.ones(3, 4)):
            rows = start.clone().requires_grad_()
            loss(rows).backward()
            assert torch.isfinite(rows.grad).all()


def test_attention_is_torchs_without_bias():
    torch.manual_seed(0)
    attention = Attention(8)
    queries, read, real = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.arange(5) < torch.tensor([[5], [2]])
    given = attention.query(queries), attention.key(read), attention.value(read)
    found, weights = attention(queries, read, real)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(*given, attn_mask=real[:, None]))
    assert (weights[1, :, 2:] == 0).all()
    nothing, none = attention(queries, read, torch.zeros_like(real))
    assert (nothing == 0).all() and (none == 0).all()


def test_the_share_of_trained_weights_is_about_the_printed_one():
    """Printed: 0.09 to 0.26 % over ChatGLM3-6B, LLaMA2-7B and "Qwen-1.5B"; the width itself is not."""
    for llm_dim, weights in ((2048, 1_836_828_672), (4096, 6_243_584_000), (4096, 6_738_415_616)):
        with torch.device("meta"):
            inputs = Inputs(Task("classification", "en", MELD_LABELS), {"audio": 25, "vision": 177})
            maker = PrototypeTokens(PrototypesConfig(), inputs, SimpleNamespace(dim=llm_dim, embedding_norm=1.0))
        assert 0.0009 < sum(p.numel() for p in maker.parameters()) / weights < 0.0026


@pytest.mark.parametrize(("branches", "kernel"), [("parallel", 3), ("stacked", 5)])
def test_granularities_are_pooled_attended_and_averaged(branches, kernel):
    """A readable reference, clip by clip and without padding: a convolution, a dilated one, a transformer."""
    torch.manual_seed(0)
    part = Granularities(MgsiConfig(dim=8, attention_heads=2, branches=branches, kernel=kernel), 5).eval()
    frames, lengths = torch.randn(3, 7, 5), torch.tensor([7, 0, 4])
    found, weights = part(frames, lengths)
    *convolutions, transformer = part.branches
    assert isinstance(transformer.layer, torch.nn.TransformerEncoderLayer) and (found[1] == 0).all() and (weights[1] == 0).all()
    for clip, length in ((0, 7), (2, 4)):
        start = hidden = part.project(frames[clip : clip + 1, :length])
        tokens = []
        for dilation, branch, score in zip((1, 2, None), [*convolutions, transformer], part.score, strict=True):
            given = hidden if branches == "stacked" else start
            if dilation:
                bank = branch.convolution.weight, branch.convolution.bias
                hidden = F.gelu(F.conv1d(given.mT, *bank, padding="same", dilation=dilation).mT)
            else:
                hidden = branch.layer(given)
            shares = score(hidden).softmax(1)
            torch.testing.assert_close(weights[clip, len(tokens), :length], shares[0, :, 0])
            tokens.append((shares * hidden).sum(1))
        stacked = torch.stack(tokens, dim=1)
        torch.testing.assert_close(found[clip], part.mix(stacked, stacked, stacked)[0][0].mean(0), rtol=0, atol=1e-5)
