"""Sequences of unequal length without their padding: end to end, and in few long rows for what must read in order.

Beside that: a gather whose backward pass is a copy, and the way from host arrays to a device in one copy per dtype, so that
a GPU never waits for the host in between.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _TakeOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.rows = len(values)
        return values.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.rows, *gradient.shape[1:]).index_copy_(0, places, gradient), None


def take_once(values: Tensor, places: Tensor) -> Tensor:
    """(R, ...) values and (N,) int64 places, no two alike -> (N, ...): `values[places]`, whose backward pass copies."""
    return _TakeOnce.apply(values, places)


def send(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Arrays of one dtype, any shapes -> tensors of these shapes on the device.

    They travel as one block from pinned memory, asynchronously; on a CPU they become views of that block.
    """
    if not len({array.dtype for array in arrays}) == 1:
        raise ValueError(f"expected arrays of one dtype, got {sorted({str(array.dtype) for array in arrays})}")
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    parts = flat.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def pad(rows: Sequence[Any], dtype: type[np.generic]) -> tuple[np.ndarray, np.ndarray]:
    """B sequences (n,) or (n, F) -> (B, longest) or (B, longest, F), zero-padded at the end, and their lengths (B,)."""
    lengths = np.array([len(row) for row in rows], np.int64)
    padded = np.zeros((len(rows), lengths.max(), *np.shape(rows[0])[1:]), dtype)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return padded, lengths


# Input, forget and output gate at this value are 0 exactly in float32, whatever else an LSTM's weights add to it.
_SHUT = -1e4


@dataclass(frozen=True)
class Ragged:
    """Where the N real positions of B sequences lie: end to end, and in rows of S places.

    The first places of every row may be others' (a beginning that all share).
    """

    lengths: tuple[int, ...]  # (B,) on the host
    size: int  # S
    slots: Tensor  # (N,) int64: the place of each position in B * S

    @staticmethod
    def slots_of(lengths: np.ndarray, size: int, before: int = 0) -> np.ndarray:
        """`slots` on the host, where each row begins with `before` places of others."""
        columns = np.arange(size)
        return np.flatnonzero((columns >= before) & (columns < before + lengths[:, None]))

    @classmethod
    def rows(cls, lengths: Sequence[int], device: torch.device) -> Ragged:
        """In rows as long as the longest sequence."""
        return Ragged(tuple(lengths), max(lengths), *send([cls.slots_of(np.array(lengths), max(lengths))], device))

    def packed(self, padded: Tensor) -> Tensor:
        """(B, S, F) -> (N, F): the real positions end to end."""
        return take_once(padded.flatten(0, 1), self.slots)

    def padded(self, packed: Tensor, slots: Tensor | None = None, before: Tensor | None = None) -> Tensor:
        """(N, D) -> (B, S, D), zeros elsewhere; or only some positions, at their slots, behind what every row begins with."""
        shape = len(self.lengths), self.size
        rows = packed.new_zeros(shape[0] * shape[1], packed.shape[1])
        if before is not None:
            rows.unflatten(0, shape)[:, : len(before)] = before
        return rows.index_copy_(0, self.slots if slots is None else slots, packed).unflatten(0, shape)


@dataclass(frozen=True)
class Chained(Ragged):
    """And where they lie chained: R rows as long as the longest sequence, which hold little else than real positions.

    A chain holds several sequences with breaks between and behind them.
    """

    chains: Tensor  # (R, W) int64: what stands where, as a place in B * S, and B * S for a break
    links: Tensor  # (N,) int64: the place of each position in R * W
    counts: Tensor  # (B,) int64, `lengths` on the device

    @staticmethod
    def arrays(lengths: np.ndarray, size: int) -> list[np.ndarray]:
        """All four index arrays on the host, so that they can travel to the device with others.

        Which sequences share a row is found by first fit, the longest first; every two of a row have a break between them.
        """
        slots, width = Ragged.slots_of(lengths, size), int(lengths.max(initial=0))
        taken: list[int] = []  # of each row
        places = []
        for which in sorted(np.flatnonzero(lengths).tolist(), key=lambda which: -int(lengths[which])):
            n = int(lengths[which])
            row = next((row for row, used in enumerate(taken) if used + n <= width), len(taken))
            if row == len(taken):
                taken.append(0)
            places.append((which, n, row, taken[row]))
            taken[row] += n + 1
        starts = np.cumsum(lengths) - lengths  # of each sequence, among the real positions
        chains, links = np.full((len(taken), width), len(lengths) * size, np.int64), np.empty(len(slots), np.int64)
        for which, n, row, column in places:
            chains[row, column : column + n] = which * size + np.arange(n)
            links[starts[which] : starts[which] + n] = row * width + column + np.arange(n)
        return [slots, chains, links, lengths]

    @classmethod
    def of(cls, lengths: Sequence[int], size: int, device: torch.device) -> Chained:
        return cls(tuple(lengths), size, *send(cls.arrays(np.array(lengths, np.int64), size), device))

    @cached_property
    def real(self) -> Tensor:
        """(B, S) bool."""
        return torch.arange(self.size, device=self.counts.device) < self.counts[:, None]


@dataclass(frozen=True)
class Stream:
    """One modality of B clips, zero-padded at the end; a length of 0 = absent."""

    values: Tensor  # (B, T, F) float32 frames, or of the text (B, L, E) rows of the LLM's embedding table (eqs 1-2)
    layout: Chained

    @property
    def lengths(self) -> Tensor:
        """(B,) int64 real positions of each, on the device."""
        return self.layout.counts


@dataclass(frozen=True)
class Streams:
    """What B clips say, sound and look like: all that a token maker reads."""

    text: Stream
    audio: Stream
    vision: Stream
    wants_maps: bool = False  # whether attention maps are wanted beside the pseudo tokens

    def __getitem__(self, modality: str) -> Stream:
        return getattr(self, modality)


def read_in_order(lstms: Sequence[nn.LSTM], frames: Tensor, layout: Chained) -> Tensor:
    """(B, S, F) -> (N, H) states of a one-layer LSTM over every sequence, or (N, 2 H) with another for the way back.

    Equal to a packed (bidirectional) `nn.LSTM`: each sequence is read from a zero state, in both directions. At a break of a
    chain an extra input shuts input, forget and output gates, so that state and output become zero exactly, forwards as
    backwards, and no gradient passes. One call of the fused kernel then reads all sequences in as many steps as the longest
    has, with nearly no padding beside it.

    Args:
        lstms: of F inputs and H outputs each; the second one reads from the end.
        frames: what the padding holds is not read.
    """
    features, hidden = frames.shape[2], lstms[0].hidden_size
    if not layout.chains.numel():
        return frames.new_zeros(0, hidden * len(lstms))
    pause = F.pad(frames.new_zeros(1, features), (0, 1), value=1.0)
    marked = torch.cat([F.pad(frames.flatten(0, 1), (0, 1)), pause])
    rows = marked.index_select(0, layout.chains.flatten()).unflatten(0, layout.chains.shape)
    shut = frames.new_full((4, hidden), _SHUT)
    shut[2] = 0.0  # torch's order: input, forget, cell, output
    weights: list[Tensor] = []
    for lstm in lstms:
        (of_input, *others), *_ = lstm.all_weights
        weights += [torch.cat([of_input, shut.view(-1, 1)], dim=1), *others]
    start = frames.new_zeros(len(lstms), len(rows), hidden)
    with warnings.catch_warnings():
        # cuDNN gathers the weights into one block in each call, a few megabytes, as the extra input is not theirs.
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        # With biases, one layer, no dropout, in training or not, in both directions or one, batch first.
        states, _, _ = torch.lstm(rows, (start, start), weights, True, 1, 0.0, lstms[0].training, len(lstms) == 2, True)
    return take_once(states.flatten(0, 1), layout.links)
