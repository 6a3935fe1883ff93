"""MAG-BERT: the published numbers, a gate that does nothing where there is nothing, and frames laid to words."""

from __future__ import annotations

import pytest
import torch
from conftest import outputs
from golden import count, fill, given, published_size
from test_every_method import built

from cmpta_lib.baselines.mag_bert import MagGate, padded_blocks, real_blocks
from cmpta_lib.data.corpus import MODALITIES

# --- the public code's numbers: reference modules in eval mode, float32 CPU, torch 2.13 -------------------------------


def gate() -> MagGate:
    made = MagGate(6, 4, 5, beta=1.0, dropout=0.1).eval()
    fill([*made.parameters()], 0.8)
    return made


def test_the_gate_gives_the_golden_values():
    found = gate()(given(1, 1, 2, 6), given(3, 1, 2, 4), given(2, 1, 2, 5))[0]
    first = [-0.129055, -1.129086, -0.062691, -0.377304, 0.587764, 0.689853]
    second = [-0.389253, -0.776172, -0.827155, -1.474433, 0.044332, 0.748229]
    torch.testing.assert_close(found, torch.tensor([first, second]), rtol=0, atol=1e-5)


def test_without_face_and_voice_the_gate_only_normalises():
    silent = gate()
    for layer in (silent.gate_vision, silent.gate_audio, silent.shift_vision, silent.shift_audio, silent.norm):
        torch.nn.init.zeros_(layer.bias)
    torch.nn.init.ones_(silent.norm.weight)
    text = given(1, 1, 2, 6).requires_grad_()
    found = silent(text, torch.zeros(1, 2, 4), torch.zeros(1, 2, 5))
    golden = [1.488685, 0.905202, 0.270612, -0.358400, -0.925645, -1.380453]
    assert found[0, 0].tolist() == pytest.approx(golden, abs=1e-5)
    torch.testing.assert_close(found, torch.nn.functional.layer_norm(text, (6,)))
    found.square().sum().backward()
    assert text.grad is not None and text.grad.isfinite().all()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in silent.parameters())


def test_a_shift_is_at_most_beta_times_as_long_as_the_words_vector():
    wide = MagGate(6, 4, 5, beta=0.5, dropout=0.0)
    fill([*wide.parameters()], 0.8)
    wide.norm = torch.nn.Identity()  # type: ignore[assignment]
    text = given(1, 1, 2, 6)
    shift = wide(text, 1e3 * given(3, 1, 2, 4), 1e3 * given(2, 1, 2, 5)) - text
    torch.testing.assert_close(shift.norm(dim=-1), 0.5 * text.norm(dim=-1))
    small = wide(text, torch.zeros(1, 2, 4), torch.zeros(1, 2, 5)) - text  # by the biases alone
    assert (small.norm(dim=-1) <= 0.5 * text.norm(dim=-1) + 1e-6).all()


def test_it_has_the_published_number_of_parameters():
    net = published_size("mag_bert")
    assert count(net.bert) == 102_267_648 and count(net) == 103_762_945


def test_with_a_gate_of_zeros_it_is_a_bert_with_a_linear_layer(corpora, tools, encoder):
    corpus = corpora["embedded-sims"]
    method = built("mag_bert", corpus, tools)
    for layer in (method.net.gate.shift_audio, method.net.gate.shift_vision):
        torch.nn.init.zeros_(layer.weight)
    samples = [*corpus.splits["train"]][:6]
    clips = method.clips(method.collate(samples))
    with torch.no_grad():
        pooled = encoder.model(input_ids=clips.text_ids, attention_mask=clips.text_real.long()).pooler_output
        expected = method.net.head(pooled)
    # The gate normalises once more what BERT has just normalised, with weights of one and biases of zero.
    torch.testing.assert_close(outputs(method, samples), expected, rtol=0, atol=1e-4)


# --- frames to text positions -----------------------------------------------------------------------------------------


def test_padded_blocks_are_contiguous_and_repeat_the_last_frame():
    longest = torch.tensor(7)
    assert (padded_blocks(3, 7, longest, 3) @ torch.arange(7.0)).tolist() == [1, 4, 6]
    assert (padded_blocks(3, 4, longest, 3) @ torch.tensor([1.0, 2, 3, 4])).tolist() == pytest.approx([2, 4 / 3, 0])
    assert torch.equal(padded_blocks(2, 9, longest, 3)[:, :7], padded_blocks(2, 7, longest, 3))
    assert not padded_blocks(3, 9, longest, 3)[:, 7:].any()  # longer than any training clip: cut
    few = padded_blocks(5, 2, torch.tensor(2), 5) @ torch.tensor([1.0, 9.0])
    assert few.tolist() == [1, 9, 9, 9, 9]


@pytest.mark.parametrize(("longest", "size"), [(925, 19), (232, 5)])
def test_padded_blocks_have_the_published_sizes_on_sims_v2(longest, size):
    blocks = padded_blocks(50, longest, torch.tensor(longest), 50)
    torch.testing.assert_close(blocks.sum(1), torch.ones(50))
    assert (blocks[0] > 0).sum() == size and blocks[0, 0] == pytest.approx(1 / size)


def test_real_blocks_spread_a_clips_own_frames_over_its_own_words():
    frames = torch.arange(7.0)
    blocks = real_blocks(4, 7, torch.tensor([3, 2, 4, 4]), torch.tensor([7, 2, 2, 0]))
    assert (blocks @ frames).tolist() == [[0.5, 2.5, 5, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize(("words", "length"), [(1, 5), (2, 7), (5, 5), (9, 40), (50, 925), (50, 3)])
def test_every_real_frame_is_read_and_each_word_reads_a_mean(words, length):
    blocks = real_blocks(words + 2, length + 3, torch.tensor([words]), torch.tensor([length]))[0]
    torch.testing.assert_close(blocks.sum(1), (torch.arange(words + 2) < words).float())
    assert (blocks.sum(0) > 0).tolist() == [place < length for place in range(length + 3)]


def test_the_longest_training_clip_is_remembered(corpora, tools):
    corpus = corpora["embedded-sims"]
    method = built("mag_bert", corpus, tools)
    assert method.net.longest.tolist() == [max(len(getattr(s, name)) for s in corpus.splits["train"]) for name in MODALITIES]


# --- training ---------------------------------------------------------------------------------------------------------


def test_parts_are_trained_as_the_public_code_groups_them(corpora, tools):
    method = built("mag_bert", corpora["embedded-sims"], tools, gate_rate=3.0)
    groups = method.groups(method.config.training)
    assert [(group.rate, group.weight_decay) for group in groups] == [(1, None), (1, 0), (3, None), (3, 0)]
    names = {id(weight): name for name, weight in method.net.named_parameters()}
    listed = [[names[id(weight)] for weight in group.parameters] for group in groups]
    assert sorted(sum(listed, [])) == sorted(names.values())
    assert all("norm" not in name.lower() and "bias" not in name for name in listed[0] + listed[2])
    assert all(name.startswith("bert.") for name in listed[0] + listed[1])
