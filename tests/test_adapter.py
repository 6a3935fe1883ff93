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
from cmpta_lib.fast.cmpta import BatchedAdapter, BatchedAlignment
from cmpta_lib.fast.packing import Ragged, Stream, Streams
from cmpta_lib.method.adapter import PAIRS, CMPTAdapter, CrossModalAttention, TemporalAlignment

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
    one_each = {name: Stream(given[name], given[f"{name}_lengths"]) for name in LENGTHS}
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


def aligned(layer: BatchedAlignment, frames: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, D), zero beyond each length."""
    layout = Ragged.of(lengths, frames.shape[1])
    return layout.padded(layer(frames, layout))


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


@pytest.mark.parametrize("loop", [False, True], ids=["padded", "clip by clip"])
@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_a_batch_equals_the_plain_adapter_clip_by_clip(changes, loop, monkeypatch):
    """Tokens, attention maps and gradients, in both ways to average before V."""
    monkeypatch.setattr(cmpta, "WORTH_A_LOOP", -1 if loop else math.inf)
    adapter, given = build(**changes), batch(ODD, extra=2)
    plain, maps = plain_of(adapter), adapter(streams(**given, return_weights=True))[1]
    tokens, _ = adapter(streams(**given))
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


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("summary", ["mean", "max"])
def test_what_is_forgotten_is_made_again_bit_for_bit(alignment, summary, monkeypatch):
    """Memory is all that it costs or saves: the same tokens, gradients and random numbers, dropout included."""
    found, kept = [], []
    for most in (cmpta.MOST_KEPT, -1):
        monkeypatch.setattr(cmpta, "MOST_KEPT", most)
        adapter = build(alignment=alignment, summary=summary, dropout=0.3).train()
        torch.manual_seed(4)
        kept.append(0)

        def keep(tensor: Tensor) -> Tensor:
            kept[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            tokens, _ = adapter(streams(**batch()))
        tokens.square().sum().backward()
        found.append([tokens, *(weight.grad for weight in adapter.parameters()), torch.rand(3)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert kept[1] < kept[0]


@torch.no_grad()
def test_asking_for_weights_does_not_change_the_tokens():
    adapter, given = build(), batch(LENGTHS | {"audio": [9, 0, 5]}, extra=1)
    close(adapter(streams(**given, return_weights=True))[0], adapter(streams(**given))[0], atol=1e-6)


@pytest.mark.parametrize("junk", [1e6, math.nan])
@torch.no_grad()
def test_what_stands_in_the_padding_of_the_frames_is_never_read(junk):
    given = batch(extra=2)
    soiled = {name: value.clone() for name, value in given.items()}
    for modality in ("audio", "vision"):
        for row, length in enumerate(given[f"{modality}_lengths"]):
            soiled[modality][row, length:] = junk
    close(build()(streams(**soiled))[0], build()(streams(**given))[0])


ABSENT = {
    "vision of one": {"vision": [2, 0, 1]},
    "audio of one": {"audio": [0, 3, 5]},
    "both of one": {"audio": [0, 3, 5], "vision": [0, 8, 1]},
    "vision of all": {"vision": [0, 0, 0]},
    "both of all": {"audio": [0, 0, 0], "vision": [0, 0, 0]},
    "text of one": {"text": [4, 0, 6]},
    "everything": {"text": [0, 0, 0], "audio": [0, 0, 0], "vision": [0, 0, 0]},
}


@pytest.mark.parametrize("absent", ABSENT.values(), ids=ABSENT)
@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("summary", ["mean", "max"])
def test_an_absent_modality_gives_finite_tokens_and_gradients(absent, alignment, fusion, summary):
    adapter = build(alignment=alignment, fusion=fusion, summary=summary).train()
    given = batch(LENGTHS | absent)
    given["text"].requires_grad_()
    for return_weights in (False, True):
        tokens, _ = adapter(streams(**given, return_weights=return_weights))
        assert tokens.shape == (3, 6, LLM) and tokens.isfinite().all()
        tokens.square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in (*adapter.parameters(), given["text"]))


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
def test_only_the_bidirectional_alignment_sees_the_future(kind, sees_the_future):
    torch.manual_seed(1)
    layer = BatchedAlignment(VISION, CmptaConfig(dim=8, num_heads=2, alignment=kind)).eval()
    frames, lengths = padded([9, 6], VISION), torch.tensor([9, 6])
    later = frames.clone()
    later[:, 4] += 1
    before, after = aligned(layer, frames, lengths), aligned(layer, later, lengths)
    assert torch.equal(before[:, :4], after[:, :4]) != sees_the_future
    assert not torch.allclose(before[:, 4], after[:, 4])
    assert torch.allclose(before[:, 5:], after[:, 5:]) == (kind == "linear")


@pytest.mark.parametrize("kind", ALIGNMENTS)
@torch.no_grad()
def test_linear_alignment_alone_makes_a_clip_a_bag_of_frames(kind):
    adapter, given = build(alignment=kind), batch(LENGTHS | {"vision": [8, 8, 8]})
    shuffled = given | {"vision": given["vision"][:, torch.randperm(8, generator=torch.Generator().manual_seed(0))]}
    t1, t1_shuffled = adapter(streams(**given))[0][:, 0], adapter(streams(**shuffled))[0][:, 0]
    assert torch.allclose(t1, t1_shuffled, atol=1e-5) == (kind == "linear")


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
        used = fusion == "cross_modal" or modality != "text"
        assert torch.equal(other, tokens) != used
    if fusion == "pooled":  # three vision tokens, then three audio tokens
        other, _ = adapter(streams(**(given | {"audio": given["audio"] * 2 + 1})))
        assert torch.equal(other[:, :3], tokens[:, :3]) and not torch.isclose(other[:, 3:], tokens[:, 3:]).all(-1).any()


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


@pytest.mark.parametrize("rule", ["mix", "repeat"])
def test_six_tokens_need_no_mixing_parameter(rule):
    assert not any("mix" in name for name, _ in build(num_pseudo_tokens=6, token_count_rule=rule).named_parameters())
    seven = dict(build(num_pseudo_tokens=7, token_count_rule=rule).named_parameters())
    assert ("token_mix" in seven) == (rule == "mix")


@pytest.mark.parametrize("changes", [{}, {"fusion": "pooled"}, {"num_pseudo_tokens": 8, "token_count_rule": "repeat"}])
@torch.no_grad()
def test_tokens_start_at_the_size_of_the_llms_embeddings(changes):
    torch.manual_seed(0)
    adapter = BatchedAdapter(CmptaConfig(dim=128, **changes), AUDIO, VISION, LLM * 16, embedding_norm=0.73).eval()
    given = batch() | {"text": padded(LENGTHS["text"], LLM * 16)}
    norms = adapter(streams(**given))[0].norm(dim=-1)
    # Each squared norm is a chi-square over E = 256 outputs, so one token strays by about 1 / sqrt(2 * 256) = 4 %.
    assert norms.mean().item() == pytest.approx(0.73, rel=0.06)
    assert norms.min() > 0.73 * 0.8 and norms.max() < 0.73 * 1.2


@torch.no_grad()
def test_mixed_tokens_start_at_that_size_too():
    torch.manual_seed(0)
    adapter = BatchedAdapter(CmptaConfig(dim=128, num_pseudo_tokens=8), AUDIO, VISION, LLM * 16, embedding_norm=0.73)
    norms = adapter.eval()(streams(**(batch() | {"text": padded(LENGTHS["text"], LLM * 16)})))[0].norm(dim=-1)
    assert norms[:, :6].mean().item() == pytest.approx(0.73, rel=0.06)
    assert (norms > 0.73 * 0.4).all() and (norms < 0.73 * 2.5).all()  # six random weights of variance 1/6


@torch.no_grad()
def test_without_embedding_norm_the_tokens_start_elsewhere():
    torch.manual_seed(0)
    adapter = BatchedAdapter(CmptaConfig(dim=128, token_scale="default"), AUDIO, VISION, LLM, embedding_norm=100.0)
    assert adapter.eval()(streams(**batch()))[0].norm(dim=-1).mean() < 50


def lstm_parameters(inputs: int, hidden: int) -> int:
    return 4 * (inputs * hidden + hidden * hidden + 2 * hidden)  # four gates: input, recurrent, two biases (as torch)


def linear_parameters(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


PAPER_SIZE = {"D": 1024, "E": 2048, "audio": 25, "vision": 177}


def expected_parameters(alignment: str = "bilstm", projections: int = 9, mixed: int = 0) -> int:
    dim, llm_dim = PAPER_SIZE["D"], PAPER_SIZE["E"]
    total = 0
    for features in (PAPER_SIZE["audio"], PAPER_SIZE["vision"]):
        if alignment == "bilstm":
            total += 2 * lstm_parameters(features, dim // 2) + linear_parameters(dim, dim)
        elif alignment == "lstm":
            total += lstm_parameters(features, dim) + linear_parameters(dim, dim)
        else:
            total += linear_parameters(features, dim)
        total += 2 * dim  # its LayerNorm
    if projections:
        total += linear_parameters(llm_dim, dim)  # text
        total += projections * linear_parameters(dim, dim) - projections // 3 * dim  # keys have no bias
    total += 2 * dim + linear_parameters(dim, llm_dim)  # summary LayerNorm, to the LLM
    return total + 6 * mixed


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, expected_parameters()),
        ({"alignment": "lstm"}, expected_parameters("lstm")),
        ({"alignment": "linear"}, expected_parameters("linear")),
        ({"projections": "per_pair"}, expected_parameters(projections=18)),
        ({"num_pseudo_tokens": 8}, expected_parameters(mixed=8)),
        ({"num_pseudo_tokens": 8, "token_count_rule": "repeat"}, expected_parameters()),
        ({"fusion": "pooled"}, expected_parameters(projections=0)),
    ],
    ids=str,
)
def test_parameter_count_at_the_papers_size(changes, expected):
    with torch.device("meta"):
        adapter = CMPTAdapter(
            CmptaConfig(**changes), PAPER_SIZE["audio"], PAPER_SIZE["vision"], PAPER_SIZE["E"], embedding_norm=1.0
        )
    assert sum(p.numel() for p in adapter.parameters()) == expected


def test_headline_parameter_count():
    # Golden, D = 1024, E = 2048, F = 25 and 177: what Table 2 prints and the README states; keys have no bias.
    assert expected_parameters() == 20_784_128


def test_per_pair_projections_are_used_by_their_pair_only():
    adapter, given = build(projections="per_pair"), batch()
    with torch.no_grad():
        tokens, _ = adapter(streams(**given))
        for number, name in enumerate(PAIRS):
            for projection in (adapter.attention.query, adapter.attention.key, adapter.attention.value):
                saved = projection[name].weight.clone()
                projection[name].weight.mul_(-2)
                changed = (adapter(streams(**given))[0] != tokens).any(-1).any(0)
                assert changed.tolist() == [i == number for i in range(6)]
                projection[name].weight.copy_(saved)

