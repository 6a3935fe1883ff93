"""GA2MIF: values of the reference modules, sizes, windows and masks.

Golden values: reference modules in eval mode, torch 2.13, filled by s * sin(0.7 k + i), fed cos(0.3 k + j).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dialogue_checks import fill, given, layout_of

from cmpta_lib.baselines.ga2mif import (
    KINDS,
    AcrossModalities,
    Ga2mifConfig,
    GraphAttention,
    Network,
    OneModality,
    window,
)
from cmpta_lib.baselines.supervised import reference

SMALL = Ga2mifConfig(dim=4, heads=2, graph_heads=2, graph_layers=2, cross_layers=1, audio_width=4, vision_width=4)
PUBLISHED = {"text": 600, "audio": 300, "vision": 342}


def test_graph_attention_within_a_modality_is_the_references():
    part = OneModality(SMALL)
    norm, layer = part.norms[0], part.layers[0]
    own = [layer.weigh, layer.bias, layer.source.weight, layer.source.bias, layer.target.weight, layer.target.bias]
    fill([norm.weight, norm.bias, *own], scale=0.8)
    out = part(given((1, 3, 4), 1), window(layout_of([3]), 1, 1))
    expected = [
        [1.665142, 0.464558, -0.272754, -0.701895],
        [1.701123, -0.159154, -0.010062, -0.693691],
        [1.573895, -0.434727, 0.175928, -0.687299],
    ]
    np.testing.assert_allclose(out[0].detach(), expected, atol=1e-5)


def cross_attention(mpcat: str) -> dict[str, AcrossModalities]:
    """All three modalities with the fills of the golden values: 16 tensors each, six of which "code" has no use for."""
    parts, full = {}, {kind: AcrossModalities(kind, SMALL).eval() for kind in KINDS}
    tensors = []
    for part in full.values():
        for asked in part.asked:
            tensors += [asked.in_proj_weight, asked.in_proj_bias, asked.out_proj.weight, asked.out_proj.bias]
        tensors += [part.norm.weight, part.norm.bias, part.norm_out.weight, part.norm_out.bias]
        tensors += [part.wide.weight, part.wide.bias, part.narrow.weight, part.narrow.bias]
    fill(tensors, scale=0.8)
    if mpcat == "sum":
        return full
    for kind, part in full.items():
        parts[kind] = AcrossModalities(kind, SMALL.model_copy(update={"mpcat": "code"})).eval()
        kept = {name.replace("asked.1", "asked.0"): v for name, v in part.state_dict().items() if "asked.0" not in name}
        parts[kind].load_state_dict(kept)
    return parts


def test_attention_across_modalities_is_the_references():
    nodes = {kind: given((1, 3, 4), seed) for seed, kind in enumerate(KINDS, 1)}
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


@pytest.mark.parametrize(("mpcat", "size"), [("code", 7_334_607), ("sum", 9_264_207)])
def test_the_published_size(mpcat, size):
    """As coded, three of six attentions per layer never move, 1,929,600 weights: "sum" uses them."""
    with torch.device("meta"):
        net = Network(PUBLISHED, 7, Ga2mifConfig(mpcat=mpcat))
    assert sum(p.numel() for p in net.parameters()) == size


def test_graph_layers_share_their_weights_or_do_not():
    shared, own = (OneModality(SMALL.model_copy(update={"share_graph_layers": share})) for share in (True, False))
    assert 2 * len(list(shared.parameters())) == len(list(own.parameters()))


def test_graph_attention_by_its_formula():
    torch.manual_seed(0)
    layer, nodes, edges = GraphAttention(4, 2), torch.randn(1, 3, 4), window(layout_of([3]), 1, 0)
    expected = torch.zeros(3, 4)
    for i in range(3):
        heard = [j for j in range(3) if j in (i - 1, i)]
        for head in range(2):
            own = slice(4 * head, 4 * head + 4)
            source, target = layer.source(nodes[0])[:, own], layer.target(nodes[0])[:, own]
            scores = torch.stack([layer.weigh[head] @ torch.nn.functional.leaky_relu(source[j] + target[i], 0.2) for j in heard])
            expected[i] += (scores.softmax(0)[:, None] * source[heard]).sum(0) / 2
    torch.testing.assert_close(layer(nodes, edges)[0], expected + layer.bias)


def test_the_window_is_the_past_and_the_future_of_who_hears():
    edges = window(layout_of([5, 2]), past=1, future=2)
    assert edges[0, 2].tolist() == [False, True, True, True, True] and edges[0, 3].tolist() == [False, False, True, True, True]
    assert edges[1].tolist()[:3] == [[True, True, False, False, False]] * 2 + [[False] * 5]


def test_padding_is_attended_to_as_coded_only():
    torch.manual_seed(0)
    widths = {"text": 4, "audio": 4, "vision": 4}
    vectors = [torch.randn(5, 4) for _ in KINDS]
    moved = {}
    for name, config in {"fixed": SMALL, "reference": reference(SMALL)}.items():
        net = Network(widths, 7, config).eval()
        together = net(*vectors, layout_of([4, 1]))[4:]
        moved[name] = (together - net(*[v[4:] for v in vectors], layout_of([1]))).abs().max().item()
    assert moved["fixed"] < 1e-6 < 1e-3 < moved["reference"]
