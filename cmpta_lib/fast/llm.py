"""The frozen LLM for many clips at once: all of them in one row of real positions, without padding.

Equal to `FrozenLLM.logits` clip by clip. transformers does the modelling; what is ours is one attention function, which
lets the row pass every linear layer as it is and lays clips out as rows inside attention only. Families that `pruned`
knows are read there, with less work still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmpta_lib.fast import packing
from cmpta_lib.fast.packing import Ragged
from cmpta_lib.method.answers import AnswerTrie
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.method.prompted import PLACEHOLDER

PACKED = "cmpta_packed"


def attend(
    layout: Ragged, query: Tensor, key: Tensor, value: Tensor, head_dim: int, scale: float | None, mask: Tensor | None,
    slots: Tensor | None = None, prefix: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Attention within each clip of a row: (n, heads * d) queries, (N, heads * d) keys and values -> (n, heads * d).

    Padding stands at the end of a clip's row, so under a causal mask no real position sees it and no mask is needed.

    Args:
        mask: (B, 1, S, S), True = may attend, takes the place of the causal one.
        slots: (n,) where the queries stand; None = all positions ask.
        prefix: (P, heads * d) keys and values that every row begins with.
    """
    slots = layout.slots if slots is None else slots

    def rows(laid: Tensor) -> Tensor:  # (B, S, heads * d) -> (B, heads, S, d)
        return laid.unflatten(-1, (-1, head_dim)).transpose(1, 2)

    before = prefix or (None, None)
    keys, values = (rows(layout.padded(part, before=start)) for part, start in zip((key, value), before, strict=True))
    asked, grouped = rows(layout.padded(query, slots)), key.shape[1] != query.shape[1]
    out = F.scaled_dot_product_attention(
        asked, keys, values, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )
    return packing.take_once(out.transpose(1, 2).flatten(2).flatten(0, 1), slots)


def _packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, layout: Ragged | None = None, mask: Tensor | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """`attend` as transformers calls it: (1, heads, N, d) -> (1, N, heads, d)."""
    if layout is None:
        raise ValueError(f"attention '{PACKED}' needs layout=...; call the model through fast.llm.packed_logits")
    packed = (part[0].transpose(0, 1).flatten(1) for part in (query, key, value))
    out = attend(layout, *packed, query.shape[-1], scaling, mask)
    return out.unflatten(-1, (query.shape[1], -1))[None], None


def packed_logits(
    llm: FrozenLLM, embeds: Tensor, layout: Ragged, asked: Tensor,
    position_ids: Tensor | None = None, mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Next-token logits at some positions of a row, by the whole LLM over all of them.

    Args:
        embeds: (N, E) input embeddings of all clips, one after another.
        asked: (M,) int64 indices into N; only these pass the LM head.
        position_ids: (1, N); None = counted from each clip's start.
        mask: (B, 1, S, S) bool, True = may attend; None = causal.
    Returns:
        (M, vocabulary) float32.
    """
    if llm.model.config._attn_implementation != PACKED:
        from transformers.modeling_utils import AttentionInterface

        AttentionInterface.register(PACKED, _packed_attention)
        llm.model.set_attn_implementation(PACKED)
    # use_cache=False: with a cache transformers no longer looks at restarting positions, and an index tensor,
    # never an int, for logits_to_keep: the int form is a strided view that slows the head a hundredfold on CPU.
    out = llm.model(
        inputs_embeds=embeds.to(llm.embedding.weight.dtype)[None],
        position_ids=layout.slots.remainder(layout.size)[None] if position_ids is None else position_ids,
        use_cache=False,
        logits_to_keep=asked,
        layout=layout,
        mask=mask,
    )
    found: Tensor = out.logits[0].float()
    return found


@dataclass(frozen=True)
class PackedInput:
    """What the LLM reads of B clips, on the device: N positions, clip after clip, behind P tokens that all begin with.

    In attention alone they lie in rows of S = P + longest clip.
    """

    layout: Ragged
    distinct: Tensor  # (U,) int64: every token id that occurs, once
    source: Tensor  # (N,) int64: which of them stands where; any where a pseudo token does
    placeholders: Tensor  # (B * K,) int64: positions of the pseudo tokens
    position_ids: Tensor  # (1, N) int64, the P tokens counted
    asked: Tensor  # (M,) int64: positions whose logits are wanted
    mask: Tensor | None = None  # (B, 1, S, S) bool, True = may attend; None = causal

    @classmethod
    def of(
        cls, rows: Sequence[Sequence[int]], asked: np.ndarray, further: Sequence[np.ndarray], device: torch.device,
        left_out: int = 0, tree: AnswerTrie | None = None,
    ) -> tuple[PackedInput, list[Tensor]]:  # fmt: skip
        """From every clip's token ids, without the P = `left_out` first; further int64 arrays travel along.

        `tree`: each row ends in the trie's inner nodes, whose positions go by depth and which see their own ancestors only.
        """
        lengths, ids = np.array([len(row) for row in rows], np.int64), np.array(list(chain(*rows)), np.int64)
        size = left_out + int(lengths.max())
        slots = Ragged.slots_of(lengths, size, left_out)
        position_ids, mask = slots % size, None
        if tree is not None and tree.inner:
            mask = _branch(tree, lengths, left_out, position_ids)
        distinct, source = np.unique(np.maximum(ids, 0), return_inverse=True)
        arrays = [slots, distinct, source.ravel(), np.flatnonzero(ids == PLACEHOLDER), position_ids[None], asked]
        first, known, where, places, positions, wanted, *sent = packing.send([*arrays, *further], device)
        layout = Ragged(tuple(lengths.tolist()), size, first)
        allowed = None if mask is None else packing.send([mask], device)[0]
        return cls(layout, known, where, places, positions, wanted, allowed), sent

    def embeds(self, llm: FrozenLLM, tokens: Tensor) -> Tensor:
        """(N, E): embeddings, and the pseudo tokens (B, K, E) in their places."""
        read: Tensor = llm.embedding(self.distinct).index_select(0, self.source)
        if tokens.numel():
            read = read.to(tokens.dtype).index_copy(0, self.placeholders, tokens.flatten(0, 1))
        return read


def _branch(tree: AnswerTrie, lengths: np.ndarray, left_out: int, position_ids: np.ndarray) -> np.ndarray:
    """Give the trie's nodes at each row's end their positions, in place, and return the mask (B, 1, S, S)."""
    branches = len(tree.inner)
    depth = np.array([tree.depth[node] for node in tree.inner], np.int64)
    starts = left_out + lengths - branches  # of the branches, in each row of attention
    position_ids[(np.cumsum(lengths) - branches)[:, None] + np.arange(branches)] = starts[:, None] - 1 + depth
    mask = np.tile(np.tri(left_out + int(lengths.max()), dtype=bool), (len(lengths), 1, 1))
    visible = tree.visible()
    for clip, start in enumerate(starts):
        mask[clip, start : start + branches, start : start + branches] = visible
    return mask[:, None]
