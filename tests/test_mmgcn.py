"""MMGCN: values of the reference modules, batches of dialogues equal single ones, and what must never be NaN.

Golden values: reference modules in eval mode, torch 2.13, filled by s * sin(0.7 k + i), fed cos(0.3 k + j).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dialogue_checks import fill, given, layout_of

from cmpta_lib.baselines.mmgcn import DeepGraph, MmgcnConfig, Network, adjacency, class_losses
from cmpta_lib.baselines.supervised import reference

SMALL = MmgcnConfig(dim=4, graph_dim=3, layers=2, audio_width=4, vision_width=4)
PUBLISHED = {"text": 600, "audio": 300, "vision": 342}


def small_network(config: MmgcnConfig = SMALL) -> Network:
    """With the fills of the golden values."""
    net = Network({"text": 4, "audio": 4, "vision": 4}, 7, config).eval()
    fill([*net.graph.layers, net.graph.inward.weight, net.graph.inward.bias], scale=0.8)
    fill([net.voices.weight], scale=0.8, first=16)
    return net


def nodes() -> list[torch.Tensor]:
    return [given((3, 4), seed) for seed in (1, 2, 3)]  # audio, vision, text


@pytest.mark.parametrize("config", [SMALL, reference(SMALL)], ids=["fixed", "reference"])
def test_the_adjacency_is_the_references(config):
    layout = layout_of([2, 1])
    laid = torch.stack([layout.pad(node) for node in nodes()], dim=1)
    near = adjacency(laid, layout.real, config.epsilon)
    # rows and columns of the reference: a0 a1 a2 v0 v1 v2 l0 l1 l2, where utterances 0 and 1 are a dialogue and 2 is one
    first = [0.436805, 0.176916, 0.177377, 0, 0.140588, 0]
    np.testing.assert_allclose(near[0, 0], first, atol=1e-5)
    np.testing.assert_allclose(near[1, 0], [0.620481, 0, 0.252913, 0, 0.082814, 0], atol=1e-5)  # arccos is steep at 1
    np.testing.assert_allclose(near, near.mT, atol=1e-6)


def test_nodes_are_joined_within_a_modality_or_an_utterance():
    layout = layout_of([3, 2])
    laid = torch.stack([layout.pad(given((5, 4), seed)) for seed in (1, 2, 3)], dim=1)
    near = adjacency(laid, layout.real, 1e-8).view(2, 3, 3, 3, 3)  # dialogue, modality, utterance, modality, utterance
    for one, other in np.ndindex(3, 3):
        block = near[0, one, :, other]
        assert ((block != 0) == (torch.ones(3, 3) if one == other else torch.eye(3)).bool()).all()
    assert (near[1, :, 2] == 0).all() and (near[1, ..., 2] == 0).all()


@pytest.mark.parametrize("config", [SMALL, reference(SMALL)], ids=["fixed", "reference"])
def test_the_graphs_features_are_the_references(config):
    net = small_network(config)
    audio, vision, text = nodes()
    layout = layout_of([2, 1], speakers=[0, 1, 0])
    fused = net.fused([audio, vision, text + layout.voices(net.voices)], layout)
    expected = [
        *(0.540302, 0.267499, -0.029200, -0.323290, 0.667032, 0.364541, 0.248617),
        *(-0.416147, -0.666276, -0.856889, -0.970958, 1.159336, 0.620838, 0.346898),
        *(-1.220315, -1.657193, -1.690886, -1.270983, 1.383546, 0.678764, 0.270034),
    ]
    np.testing.assert_allclose(fused[0].detach(), expected, atol=1e-5)


def test_the_public_codes_loss_is_not_focal_loss():
    logits, labels = 2 * given((3, 7), 1), torch.tensor([0, 3, 6])
    assert class_losses(logits, labels, "paper_code", 2.5).mean() == pytest.approx(6.771852, abs=1e-5)
    sure = torch.tensor([[10.0, 0, 0, 0, 0, 0, 0]])
    zero = torch.tensor([0])
    costs = {k: [float(class_losses(x, zero, k, 2.5).mean()) for x in (sure, 0 * sure)] for k in ("focal", "paper_code")}
    assert costs["focal"][0] < 1e-6 < costs["focal"][1] and costs["paper_code"][0] > costs["paper_code"][1]


def test_the_losses_by_their_formulas():
    logits, labels = given((3, 7), 1), torch.tensor([0, 3, 6])
    p = logits.softmax(-1)[range(3), labels]
    torch.testing.assert_close(class_losses(logits, labels, "cross_entropy", 2.5), -p.log())
    torch.testing.assert_close(class_losses(logits, labels, "focal", 2.5), -((1 - p) ** 2.5) * p.log())


def test_the_published_size():
    with torch.device("meta"):
        net = Network(PUBLISHED, 7, MmgcnConfig())
    assert sum(p.numel() for p in net.parameters()) == 2_040_407


def test_vectors_of_zeros_have_an_angle_and_a_gradient():
    layout, laid = layout_of([2]), torch.zeros(1, 3, 2, 4, requires_grad=True)
    for start in (laid, laid + torch.tensor([[[[0.0]], [[1.0]], [[-1.0]]]])):
        near = adjacency(start, layout.real, 1e-8)
        (gradient,) = torch.autograd.grad((near * torch.arange(36.0).view(1, 6, 6)).sum(), laid)
        assert torch.isfinite(near).all() and torch.isfinite(gradient).all()
    assert torch.isnan(adjacency(laid, layout.real, 0.0)).any()  # the reference


def test_each_layer_is_nearer_to_the_identity():
    """Layer l mixes theta = log(lambda / l + 1) of its weights in; without a graph the state is a plain recursion."""
    config = SMALL.model_copy(update={"layers": 3})
    graph = DeepGraph(4, 3, config).eval()
    fill([*graph.layers, graph.inward.weight, graph.inward.bias], scale=0.8)
    rows = given((1, 2, 4), 1)
    first = state = graph.inward(rows).relu()
    for number, weight in enumerate(graph.layers, 1):
        theta = np.log(0.5 / number + 1)
        own = torch.cat([state, first], -1) @ weight
        state = (theta * own + (1 - theta) * (0.9 * state + 0.1 * first)).relu()
    torch.testing.assert_close(graph(rows, torch.eye(2)[None]), torch.cat([rows, state], -1))
