"""Losses without labels: equal to torch's and transformers', and to numbers worked out apart from this code."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cmpta_lib.beyond.pretraining import (
    IGNORED,
    ContrastiveHead,
    MaskedLanguageHead,
    contrastive_loss,
    info_nce,
    mask_tokens,
    masked_language_loss,
)

MASK, VOCABULARY = 4, 1000


def wave(seed: int, shape: tuple[int, ...] = (3, 4)) -> Tensor:
    return torch.cos(0.3 * torch.arange(math.prod(shape), dtype=torch.float64) + seed).view(shape)


# --- contrastive alignment ----------------------------------------------------------------------------------------------


def test_golden_values_of_the_contrastive_loss():
    """cos(0.3 k + seed), shape (3, 4), seeds 1 and 2, temperature 0.07; worked out in numpy, float64."""
    one, other = F.normalize(wave(1), dim=-1), F.normalize(wave(2), dim=-1)
    partners, table = torch.arange(3), one @ other.T / 0.07
    assert float(F.cross_entropy(table, partners)) == pytest.approx(5.650684, abs=1e-5)
    assert float(F.cross_entropy(table.T, partners)) == pytest.approx(5.487665, abs=1e-5)
    assert float(info_nce(one, other, 1 / 0.07)) == pytest.approx(5.569175, abs=1e-5)
    assert float(info_nce(wave(1), wave(2), 1 / 0.07)) == pytest.approx(12.505980, abs=1e-5)


def test_it_is_clips_loss_in_transformers():
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    one, other = F.normalize(wave(3, (6, 5)), dim=-1), F.normalize(wave(8, (6, 5)) ** 3, dim=-1)
    torch.testing.assert_close(info_nce(one, other, 9.0), image_text_contrastive_loss(9.0 * other @ one.T))


def test_a_clip_that_lacks_a_modality_is_neither_asked_nor_offered():
    one, other = wave(1, (5, 4)), wave(2, (5, 4))
    both = torch.tensor([True, False, True, True, False])
    torch.testing.assert_close(info_nce(one, other, 3.0, both), info_nce(one[both], other[both], 3.0))
    moved = one + torch.where(both, 0.0, 50.0)[:, None]
    torch.testing.assert_close(info_nce(moved, other, 3.0, both), info_nce(one, other, 3.0, both), rtol=0, atol=0)
    nobody = torch.zeros(5, dtype=torch.bool)
    assert float(info_nce(one, other, 3.0, nobody)) == 0 and float(info_nce(one[:1], other[:1], 3.0)) == 0


def test_the_mean_is_over_the_pairs_that_there_are():
    vectors = {name: wave(seed, (4, 3)) for seed, name in enumerate("tav")}
    everyone = dict.fromkeys("tav", torch.ones(4, dtype=torch.bool))
    pairs = [info_nce(vectors[one], vectors[other], 2.0) for one, other in ("ta", "tv", "av")]
    torch.testing.assert_close(contrastive_loss(vectors, everyone, 2.0), sum(pairs) / 3)
    no_voice = everyone | {"a": torch.zeros(4, dtype=torch.bool)}
    torch.testing.assert_close(contrastive_loss(vectors, no_voice, 2.0), pairs[1])
    assert float(contrastive_loss(vectors, dict.fromkeys("tav", torch.zeros(4, dtype=torch.bool)), 2.0)) == 0


def test_the_temperature_is_learned_within_its_bounds_and_vectors_have_one_length():
    torch.manual_seed(0)
    head = ContrastiveHead(("text", "audio"), dim=6, out=5, temperature=0.07)
    vectors = {"text": torch.randn(4, 6), "audio": torch.randn(4, 6)}
    everyone = dict.fromkeys(vectors, torch.ones(4, dtype=torch.bool))
    assert head.scale().item() == pytest.approx(1 / 0.07)
    loss = head(vectors, everyone)
    units = [F.normalize(head.projections[name](vector), dim=-1) for name, vector in vectors.items()]
    torch.testing.assert_close(loss, info_nce(*units, 1 / 0.07))
    torch.testing.assert_close(head({name: 7 * vector for name, vector in vectors.items()}, everyone), loss)
    loss.backward()
    assert head.log_scale.grad is not None and float(head.log_scale.grad) != 0
    for value, bound in ((9.0, 100.0), (-3.0, 1.0)):
        with torch.no_grad():
            head.log_scale.fill_(value)
        assert head.scale().item() == pytest.approx(bound)


# --- masked language modelling ------------------------------------------------------------------------------------------


def test_it_is_berts_loss_in_transformers():
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertForMaskedLM(BertConfig(vocab_size=30, **sizes)).eval()
    ids = torch.randint(30, (3, 7))
    targets = torch.where(torch.rand(3, 7) < 0.5, ids, IGNORED)
    with torch.no_grad():
        out = model(input_ids=ids, labels=targets)
    torch.testing.assert_close(masked_language_loss(out.logits, targets), out.loss)
    assert float(masked_language_loss(out.logits, torch.full_like(ids, IGNORED))) == 0


def test_the_head_is_berts_with_the_tokens_own_table():
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLMPredictionHead

    torch.manual_seed(0)
    theirs = BertLMPredictionHead(BertConfig(vocab_size=11, hidden_size=6, hidden_act="gelu", layer_norm_eps=1e-5))
    ours = MaskedLanguageHead(6, 6, 11)
    ours.transform[0].load_state_dict(theirs.transform.dense.state_dict())
    ours.transform[2].load_state_dict(theirs.transform.LayerNorm.state_dict())
    with torch.no_grad():
        ours.bias.copy_(theirs.decoder.bias)
    states = torch.randn(2, 3, 6)
    torch.testing.assert_close(ours(states, theirs.decoder.weight), theirs(states))


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


def test_the_same_seed_masks_the_same_tokens():
    ids, everything = torch.arange(60).view(6, 10), torch.ones(6, 10, dtype=torch.bool)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(mask_tokens(ids, everything, MASK, VOCABULARY, 0.5)[0])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
