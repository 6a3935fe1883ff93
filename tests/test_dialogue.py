"""MMGCN and GA2MIF: values of the reference modules, and what a dialogue's turns may and may not depend on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import groupby, zip_longest

import numpy as np
import pytest
import torch
from conftest import outputs
from golden import fill, given
from test_every_method import built, dialogues, flat

from cmpta_lib.baselines import ga2mif, mmgcn
from cmpta_lib.baselines.dialogue import Layout
from cmpta_lib.baselines.ga2mif import KINDS, AcrossModalities, Ga2mifConfig, OneModality, window
from cmpta_lib.baselines.mmgcn import MmgcnConfig, adjacency, class_losses
from cmpta_lib.baselines.supervised import reference
from cmpta_lib.data.corpus import Inputs
from cmpta_lib.runs import loop
from cmpta_lib.runs.store import Run
from cmpta_lib.study.trained import TrainedRun


@pytest.fixture(params=["mmgcn", "ga2mif"])
def build(request, corpora, tools):
    """A small method with random weights, in eval mode; `**changes` of its settings."""

    return partial(built, request.param, corpora["embedded-meld"], tools)


# --- layout -----------------------------------------------------------------------------------------------------------


def test_the_layout_by_hand():
    layout = Layout.of_dialogues([2, 3, 1], torch.tensor([0, 1, 0, 1, 12, 0]))
    rows = torch.arange(1.0, 7)[:, None]
    padded = layout.padded(rows)
    assert padded[..., 0].tolist() == [[1, 2, 0], [3, 4, 5], [6, 0, 0]]
    assert layout.real.tolist() == (padded[..., 0] > 0).tolist()
    assert torch.equal(layout.packed(padded), rows)
    assert torch.equal(layout.voices(table := torch.nn.Embedding(3, 2)), table.weight[[0, 1, 0, 1, 2, 0]])


# --- what may and may not depend on what ------------------------------------------------------------------------------


def test_other_turns_and_who_speaks_them_matter_only_with_context(build, corpora):
    members = dialogues(corpora["embedded-meld"], [5])[0]
    elsewhere = [*members[:1], *(replace(clip, text="I hate the party.", vision=-clip.vision) for clip in members[1:])]
    renamed = [*members[:4], replace(members[4], speaker="D")]
    others = [replace(clip, speaker={"A": "Zoe", "B": "Yan", "C": None}[clip.speaker]) for clip in members]  # as many
    for context in (True, False):
        method = build(context=context)
        plain = outputs(method, members)
        assert torch.allclose(outputs(method, elsewhere)[0], plain[0], atol=1e-4 if context else 1e-5) is not context
        assert torch.allclose(outputs(method, renamed), plain, atol=1e-5) is not context
        torch.testing.assert_close(outputs(method, others), plain)
    alone = torch.cat([outputs(method, [clip]) for clip in members])
    torch.testing.assert_close(alone, plain, rtol=0, atol=1e-5)


def test_all_weights_are_in_one_group_and_frame_networks_have_their_own_rate(build):
    method = build(frames_rate=7.0)
    groups = method.groups(None)
    assert [group.rate for group in groups] == [1.0, 7.0]
    assert {*groups[0].parameters} == {*method.net["graph"].parameters()}


# --- evaluation and loaded runs ---------------------------------------------------------------------------------------


def test_a_loaded_run_answers_dialogues_in_any_order_as_it_was_evaluated(build, corpora, tmp_path):
    method, corpus = build(), corpora["embedded-meld"]
    table, _ = loop.evaluate(method, corpus.splits["train"], 2)
    kept = [list(members) for _, members in groupby(corpus.splits["train"], key=lambda clip: clip.dialogue)]
    assert len(kept) > 1
    first, second, *others = kept
    mixed = [clip for pair in zip_longest(second, first) for clip in pair if clip is not None]  # turn by turn
    asked = [replace(clip, label=None) for clip in flat([*others[::-1], mixed])]
    answers = TrainedRun(Run(method.config, tmp_path), Inputs.of(corpus), method).predict(asked)
    assert [answer.id for answer in answers] == [clip.id for clip in asked]
    expected = dict(zip(table["id"], table["prediction"], strict=True))
    assert all(answer.value == expected[answer.id] for answer in answers)


def test_dialogues_of_one_length_keep_their_order_in_a_packed_sequence():
    """An unstable sort would move the last bits of what is trained."""
    layout = Layout.of_dialogues([1] * 40, torch.zeros(40, dtype=torch.int64))
    assert layout.packing.tolist() == layout.unpacking.tolist() == [*range(40)] and layout.batch_sizes.tolist() == [40]


def layout_of(*sizes: int) -> Layout:
    return Layout.of_dialogues(sizes, torch.arange(sum(sizes)) % 2)


# --- MMGCN ------------------------------------------------------------------------------------------------------------
MMGCN = MmgcnConfig(dim=4, graph_dim=3, layers=2, audio_width=4, vision_width=4)


def small_network(config: MmgcnConfig = MMGCN) -> mmgcn.Network:
    """With the fills of the golden values."""
    net = mmgcn.Network({"text": 4, "audio": 4, "vision": 4}, 7, config).eval()
    fill([*net.graph.layers, net.graph.inward.weight, net.graph.inward.bias], scale=0.8)
    fill([net.voices.weight], scale=0.8, first=16)
    return net


NODES = [given(seed, 3, 4) for seed in (1, 2, 3)]  # audio, vision, text


@pytest.mark.parametrize("config", [MMGCN, reference(MMGCN)], ids=["fixed", "reference"])
def test_the_adjacency_is_the_references(config):
    layout = layout_of(2, 1)
    laid = torch.stack([layout.padded(node) for node in NODES], dim=1)
    near = adjacency(laid, layout.real, config.epsilon)
    # rows and columns of the reference: a0 a1 a2 v0 v1 v2 l0 l1 l2, where utterances 0 and 1 are a dialogue and 2 is one
    first = [0.436805, 0.176916, 0.177377, 0, 0.140588, 0]
    np.testing.assert_allclose(near[0, 0], first, atol=1e-5)
    np.testing.assert_allclose(near[1, 0], [0.620481, 0, 0.252913, 0, 0.082814, 0], atol=1e-5)  # arccos is steep at 1
    np.testing.assert_allclose(near, near.mT, atol=1e-6)


def test_nodes_are_joined_within_a_modality_or_an_utterance():
    layout = layout_of(3, 2)
    laid = torch.stack([layout.padded(given(seed, 5, 4)) for seed in (1, 2, 3)], dim=1)
    near = adjacency(laid, layout.real, 1e-8).view(2, 3, 3, 3, 3)  # dialogue, modality, utterance, modality, utterance
    for one, other in np.ndindex(3, 3):
        block = near[0, one, :, other]
        assert ((block != 0) == (torch.ones(3, 3) if one == other else torch.eye(3)).bool()).all()
    assert (near[1, :, 2] == 0).all() and (near[1, ..., 2] == 0).all()


@pytest.mark.parametrize("config", [MMGCN, reference(MMGCN)], ids=["fixed", "reference"])
def test_the_graphs_features_are_the_references(config):
    net = small_network(config)
    audio, vision, text = NODES
    layout = layout_of(2, 1)
    fused = net.fused([audio, vision, text + layout.voices(net.voices)], layout)
    expected = [
        *(0.540302, 0.267499, -0.029200, -0.323290, 0.667032, 0.364541, 0.248617),
        *(-0.416147, -0.666276, -0.856889, -0.970958, 1.159336, 0.620838, 0.346898),
        *(-1.220315, -1.657193, -1.690886, -1.270983, 1.383546, 0.678764, 0.270034),
    ]
    np.testing.assert_allclose(fused[0].detach(), expected, atol=1e-5)


def test_the_losses_by_their_formulas_and_the_public_codes_by_its_number():
    logits, labels = 2 * given(1, 3, 7), torch.tensor([0, 3, 6])
    assert class_losses(logits, labels, "paper_code", 2.5).mean() == pytest.approx(6.771852, abs=1e-5)
    p = logits.softmax(-1)[range(3), labels]
    torch.testing.assert_close(class_losses(logits, labels, "cross_entropy", 2.5), -p.log())
    torch.testing.assert_close(class_losses(logits, labels, "focal", 2.5), -((1 - p) ** 2.5) * p.log())


def test_vectors_of_zeros_have_an_angle_and_a_gradient():
    layout, laid = layout_of(2), torch.zeros(1, 3, 2, 4, requires_grad=True)
    for start in (laid, laid + torch.tensor([[[[0.0]], [[1.0]], [[-1.0]]]])):
        near = adjacency(start, layout.real, 1e-8)
        (gradient,) = torch.autograd.grad((near * torch.arange(36.0).view(1, 6, 6)).sum(), laid)
        assert torch.isfinite(near).all() and torch.isfinite(gradient).all()
    assert torch.isnan(adjacency(laid, layout.real, 0.0)).any()  # the reference


# --- GA2MIF -----------------------------------------------------------------------------------------------------------
GA2MIF = Ga2mifConfig(dim=4, heads=2, graph_heads=2, graph_layers=2, cross_layers=1, audio_width=4, vision_width=4)


def test_graph_attention_within_a_modality_is_the_references():
    part = OneModality(GA2MIF)
    norm, layer = part.norms[0], part.layers[0]
    own = [layer.weigh, layer.bias, layer.source.weight, layer.source.bias, layer.target.weight, layer.target.bias]
    fill([norm.weight, norm.bias, *own], scale=0.8)
    out = part(given(1, 1, 3, 4), window(layout_of(3), 1, 1))
    expected = [
        [1.665142, 0.464558, -0.272754, -0.701895],
        [1.701123, -0.159154, -0.010062, -0.693691],
        [1.573895, -0.434727, 0.175928, -0.687299],
    ]
    np.testing.assert_allclose(out[0].detach(), expected, atol=1e-5)


def cross_attention(mpcat: str) -> dict[str, AcrossModalities]:
    """All three modalities with the fills of the golden values: 16 tensors each, six of which "code" has no use for."""
    parts, tensors = {kind: AcrossModalities(kind, GA2MIF).eval() for kind in KINDS}, []
    for part in parts.values():
        for asked in part.asked:
            tensors += [asked.in_proj_weight, asked.in_proj_bias, asked.out_proj.weight, asked.out_proj.bias]
        tensors += [weight for own in (part.norm, part.norm_out, part.wide, part.narrow) for weight in own.parameters()]
    fill(tensors, scale=0.8)
    for kind, part in parts.items() if mpcat == "code" else ():
        part.queries, part.asked = part.queries[1:], part.asked[1:]
        assert part.queries == AcrossModalities(kind, GA2MIF.model_copy(update={"mpcat": "code"})).queries
    return parts


def test_attention_across_modalities_is_the_references():
    nodes = {kind: given(seed, 1, 3, 4) for seed, kind in enumerate(KINDS, 1)}
    mask = torch.zeros(1, 3, dtype=torch.bool)
    coded = cross_attention("code")
    expected = {
        "audio": [-0.615967, 0.495539, 0.739660, 1.416743],
        "vision": [0.365094, -0.167496, -0.829184, 0.188480],
        "text": [0.499872, 0.654945, 0.656563, 1.921290],
    }
    for kind, row in expected.items():
        np.testing.assert_allclose(coded[kind](nodes, mask)[0, 0].detach(), row, atol=1e-5)
    term = {"code": [0.896359, -0.073092, 1.052149, -1.841956], "sum": [0.639202, -1.606712, 1.468235, -3.203080]}
    for mpcat, row in term.items():
        found = cross_attention(mpcat)["audio"].term(nodes, mask)
        np.testing.assert_allclose(found[0, 0].detach(), row, atol=1e-5)


PUBLISHED = {  # as coded, three of GA2MIF's six attentions per layer never move, 1,929,600 weights: "sum" uses them
    2_040_407: (mmgcn, MmgcnConfig()),
    7_334_607: (ga2mif, Ga2mifConfig(mpcat="code")),
    9_264_207: (ga2mif, Ga2mifConfig()),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_both_have_the_published_sizes(size):
    module, config = PUBLISHED[size]
    with torch.device("meta"):
        net = module.Network({"text": 600, "audio": 300, "vision": 342}, 7, config)
    assert sum(p.numel() for p in net.parameters()) == size


def test_the_window_is_the_past_and_the_future_of_who_hears():
    edges = window(layout_of(5, 2), past=1, future=2)
    assert edges[0, 2].tolist() == [False, True, True, True, True] and edges[0, 3].tolist() == [False, False, True, True, True]
    assert edges[1].tolist()[:3] == [[True, True, False, False, False]] * 2 + [[False] * 5]


def test_padding_is_attended_to_as_coded_only():
    torch.manual_seed(0)
    widths = {"text": 4, "audio": 4, "vision": 4}
    vectors = [torch.randn(5, 4) for _ in KINDS]
    moved = {}
    for name, config in {"fixed": GA2MIF, "reference": reference(GA2MIF)}.items():
        net = ga2mif.Network(widths, 7, config).eval()
        together = net(*vectors, layout_of(4, 1))[4:]
        moved[name] = (together - net(*[v[4:] for v in vectors], layout_of(1))).abs().max().item()
    assert moved["fixed"] < 1e-6 < 1e-3 < moved["reference"]
