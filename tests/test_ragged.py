"""Chains of sequences hold every real position once, and an LSTM reads each as if it were alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cmpta_lib.fast.packing import Chained, read_in_order, take_once

CPU = torch.device("cpu")
few = settings(max_examples=60, deadline=None)
lengths_of_clips = st.lists(st.integers(0, 12), min_size=1, max_size=7)


@few
@given(lengths_of_clips, st.integers(0, 3))
def test_every_position_stands_in_one_chain_and_breaks_stand_between(lengths, extra):
    size = max(lengths) + extra
    slots, chains, links, _ = Chained.arrays(np.array(lengths), size)
    assert slots.tolist() == [row * size + t for row, n in enumerate(lengths) for t in range(n)]
    assert chains.flatten()[links].tolist() == slots.tolist()
    free = len(lengths) * size
    assert (chains == free).sum() == chains.size - len(slots), "all else is a break"
    for row in chains:
        for before, after in zip(row, row[1:], strict=False):
            assert free in (before, after) or after == before + 1, "two clips never touch"
    assert chains.shape[1] == max(lengths) and len(chains) <= sum(n > 0 for n in lengths)


@few
@given(lengths_of_clips, st.integers(0, 3))
def test_packed_and_padded_lead_back_and_forth(lengths, extra):
    layout = Chained.of(lengths, max(lengths) + extra, CPU)
    assert layout.real.sum(1).tolist() == list(layout.lengths) == lengths
    packed = torch.randn(sum(lengths), 3)
    padded = layout.padded(packed)
    assert torch.equal(layout.packed(padded), packed) and not padded[~layout.real].any()


LENGTHS = [[3, 9, 1, 6, 0, 2], [5], [0, 0], [4, 4, 4], [9, 4, 4], [1, 1]]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_it_reads_as_a_packed_lstm_does_and_learns_as_it(lengths, directions, training):
    torch.manual_seed(0)
    lstms = [nn.LSTM(5, 4, batch_first=True).train(training) for _ in range(directions)]
    packed = nn.LSTM(5, 4, batch_first=True, bidirectional=directions == 2)
    for lstm, suffix in zip(lstms, ("", "_reverse"), strict=False):
        for name, weight in lstm.named_parameters():
            getattr(packed, name + suffix).data.copy_(weight)
    frames = torch.randn(len(lengths), max(lengths) + 1, 5)
    frames[~(torch.arange(frames.shape[1]) < torch.tensor(lengths)[:, None])] = torch.nan
    layout = Chained.of(lengths, frames.shape[1], CPU)
    found = read_in_order(lstms, frames, layout)
    assert found.shape == (sum(lengths), 4 * directions)
    if not sum(lengths):
        return
    rows = [frame[:n] for frame, n in zip(frames, lengths, strict=True) if n]
    expected = packed(nn.utils.rnn.pack_sequence(rows, enforce_sorted=False))[0]
    one_by_one, sizes = nn.utils.rnn.pad_packed_sequence(expected, batch_first=True)
    expected = torch.cat([clip[:n] for clip, n in zip(one_by_one, sizes, strict=True)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    weigh = torch.randn_like(expected)
    mine = torch.autograd.grad((found * weigh).sum(), [p for lstm in lstms for p in lstm.parameters()])
    theirs = torch.autograd.grad((expected * weigh).sum(), list(packed.parameters()))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


@few
@given(st.permutations(range(6)), st.integers(0, 6))
def test_taking_once_is_indexing_and_so_is_its_gradient(order, count):
    values, places = torch.randn(6, 2, requires_grad=True), torch.tensor(order[:count], dtype=torch.int64)
    weigh = torch.randn(count, 2)
    found = [
        torch.autograd.grad((take(values, places) * weigh).sum(), values)[0] for take in (take_once, lambda v, p: v[p])
    ]
    assert torch.equal(take_once(values, places), values[places]) and torch.equal(*found)
