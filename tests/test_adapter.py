"""The trainable part: the plain one against loops and torch's own layers, the batched one against the plain one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmpta_lib.config import CmptaConfig
from cmpta_lib.fast import cmpta
from cmpta_lib.fast.cmpta import BatchedAdapter
from cmpta_lib.fast.packing import Chained, Stream, Streams
from cmpta_lib.method.adapter import PAIRS, CMPTAdapter, CrossModalAttention, TemporalAlignment

CPU = torch.device("cpu")
AUDIO, VISION, LLM = 5, 7, 16
LENGTHS = {"text": [4, 1, 6], "audio": [9, 3, 5], "vision": [2, 8, 1]}
FUSIONS = ("cross_modal", "pooled")
ALIGNMENTS = ("bilstm", "lstm", "linear")


def build(llm_dim: int = LLM, embedding_norm: float = 1.0, **changes) -> BatchedAdapter:
    """A small adapter in eval mode whose norms and biases are moved off their neutral initial values."""
    torch.manual_seed(3)
    config = CmptaConfig(**({"dim": 8, "num_heads": 2} | changes))
    adapter = BatchedAdapter(config, AUDIO, VISION, llm_dim, embedding_norm)
    with torch.no_grad():
        for name, weight in adapter.named_parameters():
            if "norm" in name or name.endswith("bias"):
                weight.add_(0.3 * torch.randn_like(weight))
    for modality, features in (("audio", AUDIO), ("vision", VISION)):
        adapter.set_feature_statistics(modality, torch.randn(features), torch.rand(features) + 0.5)
    return adapter.eval()


def padded(lengths: list[int], width: int, extra: int = 0, seed: int = 0) -> Tensor:
    """(B, T, width) noise, zero beyond each length; the same real values whatever `extra` is."""
    frames = torch.zeros(len(lengths), max(lengths) + extra, width)
    for row, length in enumerate(lengths):
        frames[row, :length] = torch.randn(length, width, generator=torch.Generator().manual_seed(seed + row))
    return frames


def batch(lengths: dict[str, list[int]] = LENGTHS, extra: int = 0) -> dict[str, Tensor]:
    """What `streams` takes."""
    widths = {"text": LLM, "audio": AUDIO, "vision": VISION}
    given: dict[str, Tensor] = {}
    for seed, (modality, width) in enumerate(widths.items()):
        given[modality] = padded(lengths[modality], width, extra, 100 * seed)
        given[f"{modality}_lengths"] = torch.tensor(lengths[modality])
    return given


def streams(*, return_weights: bool = False, **given: Tensor) -> Streams:
    layouts = {name: Chained.of(given[f"{name}_lengths"].tolist(), given[name].shape[1], CPU) for name in LENGTHS}
    one_each = {name: Stream(given[name], layout) for name, layout in layouts.items()}
    return Streams(**one_each, wants_maps=return_weights)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def attention_loop(q: Tensor, k: Tensor, v: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Eq 7 for one clip, (n_Y, D), (n_X, D), (n_X, D) -> (n_Y, D) and weights (heads, n_Y, n_X)."""
    width = q.shape[1] // heads
    out, weights = torch.zeros_like(q), torch.zeros(heads, len(q), len(k))
    for head, query in itertools.product(range(heads), range(len(q))):
        part = slice(head * width, (head + 1) * width)
        scores = [float(q[query, part] @ k[key, part]) / math.sqrt(width) for key in range(len(k))]
        total = sum(math.exp(score) for score in scores)
        for key, score in enumerate(scores):
            weights[head, query, key] = math.exp(score) / total
            out[query, part] += weights[head, query, key] * v[key, part]
    return out, weights


def plain_of(adapter: BatchedAdapter) -> CMPTAdapter:
    plain = CMPTAdapter(adapter.config, AUDIO, VISION, LLM, 1.0)
    plain.load_state_dict(adapter.state_dict())
    return plain.eval()


# --- attention (eqs 6-8) ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projections", ["per_modality", "per_pair"])
@torch.no_grad()
def test_attention_equals_eq_7_in_a_loop(projections):
    torch.manual_seed(0)
    attention = CrossModalAttention(CmptaConfig(dim=8, num_heads=4, projections=projections))
    sequences = {m: torch.randn(n, 8) for m, n in {"text": 4, "audio": 9, "vision": 2}.items()}
    for name, (y, x) in PAIRS.items():
        shared = projections == "per_modality"
        q = attention.query[y if shared else name](sequences[y])
        k, v = (part[x if shared else name](sequences[x]) for part in (attention.key, attention.value))
        for found, expected in zip(attention(name, sequences[y], sequences[x]), attention_loop(q, k, v, 4), strict=True):
            close(found, expected)


SWITCHES = [
    {},
    {"alignment": "lstm", "num_heads": 1},
    {"alignment": "linear", "projections": "per_pair"},
    {"summary": "max", "num_pseudo_tokens": 8},
    {"num_pseudo_tokens": 5},
    {"num_pseudo_tokens": 8, "token_count_rule": "repeat"},
    {"fusion": "pooled"},
    {"fusion": "pooled", "alignment": "linear", "num_pseudo_tokens": 8},
    {"projections": "per_pair", "num_pseudo_tokens": 7, "token_scale": "default"},
]
ODD = {"text": [4, 1, 6, 3, 0], "audio": [9, 3, 0, 1, 0], "vision": [2, 8, 1, 0, 0]}


WAYS = {"padded": {"WORTH_A_LOOP": math.inf}, "clip by clip": {"WORTH_A_LOOP": -1}, "in pieces": {"LONG": -1, "PIECE": 8}}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_a_batch_equals_the_plain_adapter_clip_by_clip(changes, way, monkeypatch):
    """Tokens, attention maps and gradients, in all ways to average before V; the last is that of clips of minutes."""
    for name, limit in WAYS[way].items():
        monkeypatch.setattr(cmpta, name, limit)
    adapter, given = build(**changes), batch(ODD, extra=2)
    plain, maps = plain_of(adapter), adapter(streams(**given, return_weights=True))[1]
    tokens, _ = adapter(streams(**given))
    close(adapter(streams(**given, return_weights=True))[0], tokens, atol=1e-6)
    (tokens**3).sum().backward()
    for row in range(5):
        clip = {m: given[m][row, : ODD[m][row]] for m in ODD}
        expected, weights = plain(**clip)
        (expected**3).sum().backward()
        close(tokens[row], expected)
        assert weights.keys() == maps.keys()
        for name, one in weights.items():
            close(maps[name][row, :, : one.shape[1], : one.shape[2]], one)
            assert not maps[name][row, :, :, one.shape[2] :].any(), "nothing looks at padding"
    for name, weight in plain.named_parameters():
        found = dict(adapter.named_parameters())[name].grad
        assert weight.grad is not None and found.abs().max() > 1e-7, name
        close(found / found.norm(), weight.grad / found.norm(), atol=1e-4)


def test_weights_sum_to_one_on_real_frames():
    """What the claims table says of padding."""
    adapter, given = build(), batch(ODD, extra=2)
    maps = adapter(streams(**given, return_weights=True))[1]
    for pair, (y, x) in PAIRS.items():
        for row in range(5):
            if ODD[y][row] and ODD[x][row]:
                real = maps[pair][row, :, : ODD[y][row], : ODD[x][row]]
                close(real.sum(-1), torch.ones(real.shape[:2]))


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("summary", ["mean", "max"])
def test_what_is_forgotten_is_made_again_bit_for_bit(alignment, summary, monkeypatch):
    """Memory is all that it costs or saves: the same tokens, gradients and random numbers, dropout included."""
    found, kept = [], []
    for most in (cmpta.MOST_KEPT, -1):
        monkeypatch.setattr(cmpta, "MOST_KEPT", most)
        adapter = build(alignment=alignment, summary=summary, dropout=0.3).train()
        torch.manual_seed(4)
        kept.append([])
        with torch.autograd.graph.saved_tensors_hooks(lambda one, own=kept[-1]: own.append(one.numel()) or one, lambda one: one):
            tokens, _ = adapter(streams(**batch()))
        tokens.square().sum().backward()
        found.append([tokens, *(weight.grad for weight in adapter.parameters()), torch.rand(3)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert sum(kept[1]) < sum(kept[0])


@pytest.mark.parametrize("lengths", [(4000, 1500), (1500, 4000)], ids=str)
def test_a_long_clip_is_read_without_its_scores_in_memory(lengths, monkeypatch):
    """12 million scores a pair are never there at once, not for the way back either, and the tokens stay the same."""
    adapter, given = build(), batch({"text": [3], "audio": [lengths[0]], "vision": [lengths[1]]})
    expected, kept = adapter(streams(**given))[0], []
    monkeypatch.setattr(cmpta, "LONG", 1 << 20)
    monkeypatch.setattr(cmpta, "PIECE", 1 << 16)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.numel()) or one, lambda one: one):
        tokens, _ = adapter(streams(**given))
    close(tokens, expected, atol=1e-4)
    assert max(kept) < 4_000_000


def test_maps_too_large_for_a_machine_are_refused_with_their_size_before_anything_is_made():
    five_minutes = {"text": [12], "audio": [30_000], "vision": [7_500]}
    adapter, given = build(alignment="linear"), batch(five_minutes)
    clip = {name: given[name][0] for name in five_minutes}
    for ask in (lambda: adapter(streams(**given, return_weights=True)), lambda: plain_of(adapter)(**clip)):
        with pytest.raises(ValueError, match=r"37512 tokens and frames would need 3\.6 GB, .*cut the clip"):
            ask()


# --- temporal alignment (eqs 3-5) -------------------------------------------------------------------------------------


@torch.no_grad()
def test_alignment_equals_a_bidirectional_lstm():
    torch.manual_seed(1)
    layer = TemporalAlignment(VISION, CmptaConfig(dim=8, num_heads=2)).eval()
    both = nn.LSTM(VISION, 4, batch_first=True, bidirectional=True)
    for name, weight in layer.forward_lstm.named_parameters():
        getattr(both, name).copy_(weight)
        getattr(both, f"{name}_reverse").copy_(getattr(layer.backward_lstm, name))
    frames = torch.randn(9, VISION)
    close(layer(frames), F.layer_norm(both(frames)[0] @ layer.linear.weight.T + layer.linear.bias, (8,)))


@pytest.mark.parametrize(("kind", "sees_the_future"), [("bilstm", True), ("lstm", False), ("linear", False)])
@torch.no_grad()
def test_only_the_bidirectional_alignment_sees_the_future_and_the_linear_one_no_other_frame(kind, sees_the_future):
    torch.manual_seed(1)
    layer, frames = TemporalAlignment(VISION, CmptaConfig(dim=8, num_heads=2, alignment=kind)).eval(), torch.randn(9, VISION)
    later = frames.clone()
    later[4] += 1
    before, after = layer(frames), layer(later)
    assert torch.equal(before[:4], after[:4]) != sees_the_future
    assert not torch.allclose(before[4], after[4])
    assert torch.allclose(before[5:], after[5:]) == (kind == "linear")


@torch.no_grad()
def test_alignment_uses_the_feature_statistics():
    torch.manual_seed(1)
    layer = TemporalAlignment(VISION, CmptaConfig(dim=8, num_heads=2)).eval()
    frames, mean, std = torch.randn(5, VISION), torch.randn(VISION), torch.rand(VISION) + 1
    expected = layer(frames)
    layer.feature_mean.copy_(mean)
    layer.feature_std.copy_(std)
    close(layer(frames * std + mean), expected)


def test_dropout_acts_in_training_only():
    adapter = build(dropout=0.5)
    assert torch.equal(adapter(streams(**batch()))[0], adapter(streams(**batch()))[0])
    assert not torch.equal(adapter.train()(streams(**batch()))[0], adapter(streams(**batch()))[0])


# --- ablation switches and sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_which_modalities_each_fusion_reads(fusion):
    adapter, given = build(fusion=fusion), batch()
    tokens, weights = adapter(streams(**given, return_weights=True))
    assert tokens.shape[1] == adapter.num_tokens == 6
    assert bool(weights) == (fusion == "cross_modal")
    for modality in LENGTHS:
        other, _ = adapter(streams(**(given | {modality: given[modality] * 2 + 1})))
        moved = (other != tokens).any(-1).any(0).tolist()
        pooled = {"text": [False] * 6, "vision": [True] * 3 + [False] * 3, "audio": [False] * 3 + [True] * 3}
        assert moved == [modality in PAIRS[pair] for pair in PAIRS] if fusion == "cross_modal" else moved == pooled[modality]


@pytest.mark.parametrize("rule", ["mix", "repeat"])
@pytest.mark.parametrize("count", [1, 5, 6, 7, 8, 13])
@torch.no_grad()
def test_number_of_pseudo_tokens(rule, count):
    adapter, six = build(num_pseudo_tokens=count, token_count_rule=rule), build()
    adapter.load_state_dict(six.state_dict(), strict=False)
    tokens, pairs = adapter(streams(**batch()))[0], six(streams(**batch()))[0]
    assert tokens.shape == (3, count, LLM) and adapter.num_tokens == count
    close(tokens[:, :6], pairs[:, :count])  # both rules start from the pairs' own tokens
    if rule == "repeat" and count > 6:
        close(tokens[:, 6:12], pairs[:, : count - 6][:, :6])


@pytest.mark.parametrize("changes", [{}, {"fusion": "pooled"}, {"num_pseudo_tokens": 8}, {"token_scale": "default"}], ids=str)
@torch.no_grad()
def test_tokens_start_at_the_size_of_the_llms_embeddings(changes):
    torch.manual_seed(0)
    adapter = BatchedAdapter(CmptaConfig(dim=128, **changes), AUDIO, VISION, LLM * 16, embedding_norm=7.3).eval()
    norms = adapter(streams(**(batch() | {"text": padded(LENGTHS["text"], LLM * 16)})))[0].norm(dim=-1) / 7.3
    if "token_scale" in changes:
        assert norms.mean() > 1.2
        return
    # Each squared norm is a chi-square over E = 256 outputs, so one token strays by about 1 / sqrt(2 * 256) = 4 %.
    assert norms[:, :6].mean().item() == pytest.approx(1, rel=0.06)
    assert norms[:, :6].min() > 0.8 and norms[:, :6].max() < 1.2
    assert (norms > 0.4).all() and (norms < 2.5).all()  # mixed ones: six random weights of variance 1/6


SIZES = {  # golden, D = 1024, E = 2048, F = 25 and 177: the first is what Table 2 prints; keys have no bias
    "as published": ({}, 20_784_128),
    "lstm": ({"alignment": "lstm"}, 24_978_432),
    "linear": ({"alignment": "linear"}, 13_855_744),
    "per pair": ({"projections": "per_pair"}, 30_227_456),
    "mixed": ({"num_pseudo_tokens": 8}, 20_784_128 + 6 * 8),
    "repeated": ({"num_pseudo_tokens": 8, "token_count_rule": "repeat"}, 20_784_128),
    "pooled": ({"fusion": "pooled"}, 9_242_624),
}


@pytest.mark.parametrize(("changes", "expected"), SIZES.values(), ids=SIZES)
def test_parameter_count_at_the_papers_size(changes, expected):
    with torch.device("meta"):
        adapter = CMPTAdapter(CmptaConfig(**changes), 25, 177, 2048, embedding_norm=1.0)
    assert sum(p.numel() for p in adapter.parameters()) == expected


def test_the_six_tokens_are_the_ordered_pairs_of_unlike_modalities():
    """Eq 8: each named after the modality that asks, and none twice."""
    assert set(PAIRS.values()) == set(itertools.permutations(("text", "vision", "audio"), 2))
    assert [(name[0], y[0]) for name, (y, _) in PAIRS.items()] == [(letter, letter) for letter in "ttvvaa"]
