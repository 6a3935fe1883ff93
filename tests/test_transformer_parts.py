"""The multimodal transformer's parts and losses: equal to torch's and transformers', slow loops, and numbers worked out apart."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cmpta_lib.beyond.losses import (
    IGNORED,
    ContrastiveHead,
    MaskedLanguageHead,
    info_nce,
    mask_tokens,
    masked_language_loss,
)
from cmpta_lib.beyond.multimodal_transformer import (
    Embedding,
    MultimodalTransformerConfig,
    SixPairs,
    resampled,
    sinusoids,
)

MASK, VOCABULARY = 4, 1000
SMALL = MultimodalTransformerConfig(dim=16, layers=1, heads=2, feedforward=2, dropout=0.0, max_positions=30)


def wave(seed: int, shape: tuple[int, ...] = (3, 4)) -> Tensor:
    return torch.cos(0.3 * torch.arange(math.prod(shape), dtype=torch.float64) + seed).view(shape)


# --- contrastive alignment ----------------------------------------------------------------------------------------------


EVERYONE = torch.ones(6, dtype=torch.bool)


def test_golden_values_of_the_contrastive_loss():
    """cos(0.3 k + seed), shape (3, 4), seeds 1 and 2, temperature 0.07; worked out in numpy, float64."""
    one, other = F.normalize(wave(1), dim=-1), F.normalize(wave(2), dim=-1)
    assert float(info_nce(one, other, 1 / 0.07, EVERYONE[:3])) == pytest.approx((5.650684 + 5.487665) / 2, abs=1e-5)
    assert float(info_nce(wave(1), wave(2), 1 / 0.07, EVERYONE[:3])) == pytest.approx(12.505980, abs=1e-5)


def test_it_is_clips_loss_in_transformers():
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    one, other = F.normalize(wave(3, (6, 5)), dim=-1), F.normalize(wave(8, (6, 5)) ** 3, dim=-1)
    torch.testing.assert_close(info_nce(one, other, 9.0, EVERYONE), image_text_contrastive_loss(9.0 * other @ one.T))


def test_a_clip_that_lacks_a_modality_is_neither_asked_nor_offered():
    one, other = wave(1, (5, 4)), wave(2, (5, 4))
    both = torch.tensor([True, False, True, True, False])
    torch.testing.assert_close(info_nce(one, other, 3.0, both), info_nce(one[both], other[both], 3.0, EVERYONE[:3]))
    moved = one + torch.where(both, 0.0, 50.0)[:, None]
    torch.testing.assert_close(info_nce(moved, other, 3.0, both), info_nce(one, other, 3.0, both), rtol=0, atol=0)
    assert float(info_nce(one, other, 3.0, ~EVERYONE[:5])) == 0 and float(info_nce(one[:1], other[:1], 3.0, EVERYONE[:1])) == 0


def test_the_head_is_the_mean_over_the_pairs_that_there_are_at_a_temperature_within_its_bounds():
    torch.manual_seed(0)
    head = ContrastiveHead(("t", "a", "v"), dim=6, out=5, temperature=0.07)
    vectors, everyone = {name: torch.randn(4, 6) for name in "tav"}, dict.fromkeys("tav", EVERYONE[:4])
    units = {name: F.normalize(head.projections[name](vector), dim=-1) for name, vector in vectors.items()}

    def mean(scale: float, *pairs: str) -> Tensor:
        return sum(info_nce(units[one], units[other], scale, EVERYONE[:4]) for one, other in pairs) / len(pairs)

    loss = head(vectors, everyone)
    torch.testing.assert_close(loss, mean(1 / 0.07, "ta", "tv", "av"))
    torch.testing.assert_close(head({name: 7 * vector for name, vector in vectors.items()}, everyone), loss)
    torch.testing.assert_close(head(vectors, everyone | {"a": ~EVERYONE[:4]}), mean(1 / 0.07, "tv"))
    assert head(vectors, dict.fromkeys("tav", ~EVERYONE[:4])).item() == 0
    loss.backward()
    assert head.log_scale.grad is not None and float(head.log_scale.grad) != 0
    for value, bound in ((9.0, 100.0), (-3.0, 1.0)):
        with torch.no_grad():
            head.log_scale.fill_(value)
        torch.testing.assert_close(head(vectors, everyone), mean(bound, "ta", "tv", "av"))


# --- masked language modelling ------------------------------------------------------------------------------------------


def test_head_and_loss_are_berts_in_transformers():
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertForMaskedLM(BertConfig(vocab_size=30, hidden_act="gelu", layer_norm_eps=1e-5, **sizes)).eval()
    theirs, ours, ids = model.cls.predictions, MaskedLanguageHead(8, 8, 30), torch.randint(30, (3, 7))
    ours.transform[0].load_state_dict(theirs.transform.dense.state_dict())
    ours.transform[2].load_state_dict(theirs.transform.LayerNorm.state_dict())
    targets = torch.where(torch.rand(3, 7) < 0.5, ids, IGNORED)
    with torch.no_grad():
        ours.bias.copy_(torch.randn(30))
        theirs.decoder.bias.copy_(ours.bias)
        out = model(input_ids=ids, labels=targets)
        logits = ours(model.bert(ids).last_hidden_state, theirs.decoder.weight)
    torch.testing.assert_close(logits, out.logits)
    torch.testing.assert_close(masked_language_loss(logits, targets), out.loss)
    assert float(masked_language_loss(logits, torch.full_like(ids, IGNORED))) == 0


def test_fifteen_per_cent_are_chosen_and_eighty_ten_ten_of_them_changed():
    torch.manual_seed(0)
    ids = torch.randint(5, VOCABULARY, (400, 500))
    maskable = torch.rand(ids.shape) < 0.9
    read, targets = mask_tokens(ids, maskable, MASK, VOCABULARY, 0.15)
    chosen = targets != IGNORED
    assert not (chosen & ~maskable).any() and torch.equal(targets[chosen], ids[chosen])
    assert torch.equal(read[~chosen], ids[~chosen])
    assert float(chosen.sum() / maskable.sum()) == pytest.approx(0.15, abs=0.003)
    kept, masked = read[chosen] == ids[chosen], read[chosen] == MASK
    shares = [float(part.float().mean()) for part in (masked, kept, ~kept & ~masked)]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    others = read[chosen][~kept & ~masked]
    assert others.min() < 20 and others.max() > VOCABULARY - 20


# --- tokens and six-way attention ---------------------------------------------------------------------------------------


def test_an_embedding_is_a_projection_a_position_and_a_kind():
    """Positions are those of "Attention is all you need", or learned; beyond a learned table all share its last."""
    table = sinusoids(50, 16, torch.device("cpu"))
    for place, number in ((0, 0), (7, 3), (49, 7)):
        angle = place / 10000 ** (2 * number / 16)
        assert table[place, 2 * number : 2 * number + 2].tolist() == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-5)
    torch.manual_seed(0)
    for positions in ("sinusoidal", "learned"):
        embedding = Embedding(3, SMALL.model_copy(update={"positions": positions}))
        features = torch.randn(2, 5, 3)
        tokens, lengths = embedding(features, torch.tensor([5, 2]))
        places = embedding.positions[:5] if positions == "learned" else table[:5]
        projected = features @ embedding.project.weight.T + embedding.project.bias
        torch.testing.assert_close(tokens, projected + places + embedding.kind)
        assert lengths.tolist() == [5, 2]
    far = embedding(torch.zeros(1, 40, 3), torch.tensor([40]))[0][0]
    torch.testing.assert_close(far[29:], far[29:30].expand(11, -1))


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (3, 1), (4, 2), (8, 3), (1, 2), (2, 5)])
def test_windows_are_what_a_slow_loop_cuts(window: int, stride: int):
    torch.manual_seed(0)
    embedding, frames = Embedding(3, SMALL, window, stride), torch.randn(1, 11, 3)
    tokens, lengths = embedding(frames, torch.tensor([11]))
    assert tokens.shape[1] == lengths.item() == math.ceil(11 / stride)
    places = sinusoids(tokens.shape[1], 16, torch.device("cpu")) + embedding.kind
    for number in range(tokens.shape[1]):
        first = number * stride - (window - 1) // 2
        seen = [frames[0, place] if 0 <= place < 11 else torch.zeros(3) for place in range(first, first + window)]
        expected = embedding.project(torch.cat(seen)) + places[number]
        torch.testing.assert_close(tokens[0, number], expected, rtol=1e-5, atol=1e-5)


def test_golden_values_of_the_cross_attention():
    """cos(0.3 k + seed), shape (3, 4): queries of seed 1, keys and values of seed 2, no projections; numpy, float64."""
    fusion = SixPairs(SMALL.model_copy(update={"dim": 4}))
    with torch.no_grad():
        for projection in (part for parts in fusion.projections.values() for part in parts.values()):
            projection.weight.copy_(torch.eye(4))
            projection.bias.zero_()
    streams = {name: (wave(seed, (1, 3, 4)).float(), torch.tensor([3])) for name, seed in (("text", 1), ("audio", 2))}
    found = fusion.term(streams, "text", "audio")[0, 0].tolist()
    assert found == pytest.approx([-0.551036, -0.531153, -0.463824, -0.355063], abs=1e-5)


@pytest.mark.parametrize("projections", ["per_modality", "per_pair"])
@pytest.mark.parametrize("pooling", ["mean", "first_token", "resample"])
def test_the_fusion_is_what_a_slow_loop_adds_up(pooling: str, projections: str):
    settings = SMALL.model_copy(update={"pooling": pooling, "projections": projections, "resampled_positions": 3})
    torch.manual_seed(0)
    fusion = SixPairs(settings)
    streams = {}
    for name, sizes in {"text": [4, 2, 3, 5], "audio": [3, 0, 6, 0], "vision": [2, 5, 0, 0]}.items():
        states, lengths = torch.randn(4, max(sizes), 16), torch.tensor(sizes)
        streams[name] = (states * (torch.arange(max(sizes)) < lengths[:, None])[..., None], lengths)
    fused = fusion(streams)
    for clip in range(4):
        real = {name: states[clip, : int(lengths[clip])] for name, (states, lengths) in streams.items() if lengths[clip]}
        expected = torch.zeros(16)
        for x, y in permutations(real, 2) if len(real) > 1 else [(name, name) for name in real]:
            asking, asked = (x, y) if projections == "per_modality" else (f"{x}_{y}", f"{x}_{y}")
            query, key = fusion.projections[asking]["query"](real[x]), fusion.projections[asked]["key"](real[y])
            term = (query @ key.T / math.sqrt(16)).softmax(-1) @ fusion.projections[asked]["value"](real[y])
            if pooling == "resample":
                last = len(term) - 1
                places = [0, last / 2, last]
                term = torch.stack([torch.lerp(term[math.floor(p)], term[math.ceil(p)], p % 1) for p in places])
            expected = expected + (term[0] if pooling == "first_token" else term.mean(0))
        torch.testing.assert_close(fused[clip], expected, rtol=1e-4, atol=1e-5)
    states = torch.arange(5.0)[None, :, None].expand(2, -1, 1)
    assert resampled(states, torch.tensor([5, 2]), 1)[..., 0].tolist() == [[2.0], [0.5]], "ends where the clip ends"
