"""The frozen LLM for many clips at once: where the family is known here, in one row of real positions, without padding.

`packed_logits` is equal to `FrozenLLM.logits` clip by clip. transformers does the modelling; what is ours is one attention
function, which lets the row pass every linear layer as it is and lays clips out as rows inside attention only. Windows, caps,
sinks, convolutions or states of other families would be lost or run on into the next clip: those read padded rows.

`PrunedDecoder` reads known families without the work that no asked logit needs. Four things are known of every
input beforehand. All clips begin with the same tokens, so their keys and values are computed once for all. Before the first
layer's attention a token knows nothing of its neighbours, so each distinct token passes its projections once, however often
it stands in the batch (the prompt in every clip), and only pseudo tokens take a gradient back through them. Of the last
layer only the asked positions are read: there alone queries, output projection and MLP are computed, where the others give
keys and values. And of the head's columns an answer trie reads those of its own tokens. transformers' own parts do all
computing; what is ours is their order, which its decoders share under the same names.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cmpta_lib.fast import packing
from cmpta_lib.fast.packing import Ragged
from cmpta_lib.method.answers import AnswerTrie
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.method.prompted import PLACEHOLDER

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKED = "cmpta_packed"
# Of these `test_pruned` shows that they are as said above: pre-norm layers, rotary positions, nothing between head and norm.
FAMILIES = ("qwen2", "llama", "glm")


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
    q, k, v = (part[0].transpose(0, 1).flatten(1) for part in (query, key, value))
    out = attend(layout, q, k, v, query.shape[-1], scaling, mask)
    return out.unflatten(-1, (query.shape[1], -1))[None], None


def packs(model: PreTrainedModel) -> bool:
    """Whether clips may lie end to end for this LLM: of a family known here, with layers that all see everything before."""
    config = model.config
    return config.model_type in FAMILIES and {*(getattr(config, "layer_types", None) or ())} <= {"full_attention"}


def packed_logits(
    llm: FrozenLLM, embeds: Tensor, layout: Ragged, asked: Tensor,
    position_ids: Tensor | None = None, mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Next-token logits at some positions of clips that lie end to end, by the whole LLM over all of them.

    Args:
        embeds: (N, E) input embeddings of all clips, one after another.
        asked: (M,) int64 indices into N; only these pass the LM head.
        position_ids: (1, N); None = counted from each clip's start.
        mask: (B, 1, S, S) bool, True = may attend; None = causal, as all that does not `packs` must be.
    Returns:
        (M, vocabulary) float32.
    """
    embeds = embeds.to(llm.embedding.weight.dtype)
    if not packs(llm.model):
        return _padded_logits(llm, embeds, layout, asked)
    if llm.model.config._attn_implementation != PACKED:
        from transformers.modeling_utils import AttentionInterface

        AttentionInterface.register(PACKED, _packed_attention)
        llm.model.set_attn_implementation(PACKED)
    # use_cache=False: with a cache transformers no longer looks at restarting positions, and an index tensor,
    # never an int, for logits_to_keep: the int form is a strided view that slows the head a hundredfold on CPU.
    out = llm.model(
        inputs_embeds=embeds[None],
        position_ids=layout.slots.remainder(layout.size)[None] if position_ids is None else position_ids,
        use_cache=False,
        logits_to_keep=asked,
        layout=layout,
        mask=mask,
    )
    return out.logits[0].float()


def _padded_logits(llm: FrozenLLM, embeds: Tensor, layout: Ragged, asked: Tensor) -> Tensor:
    """By the family's own forward: clips in rows, padded at the end, which no real position sees."""
    rows, places = layout.padded(embeds), layout.slots.index_select(0, asked)
    real = layout.padded(torch.ones_like(layout.slots)[:, None])[..., 0]

    def pick(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # the head reads what is asked alone
        return given[0].flatten(0, 1).index_select(0, places)[None], *given[1:]

    with llm.model.get_output_embeddings().register_forward_pre_hook(pick):
        return llm.model(inputs_embeds=rows, attention_mask=real, use_cache=False).logits[0].float()


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
    left_out: int  # P
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
        return cls(layout, known, where, places, positions, wanted, left_out, allowed), sent

    def embeds(self, llm: FrozenLLM, tokens: Tensor) -> Tensor:
        """(N, E): embeddings, and the pseudo tokens (B, K, E) in their places."""
        read = llm.embedding(self.distinct).index_select(0, self.source)
        if tokens.numel():
            read = read.to(tokens.dtype).index_copy(0, self.placeholders, tokens.flatten(0, 1))
        return read


def _branch(tree: AnswerTrie, lengths: np.ndarray, left_out: int, position_ids: np.ndarray) -> np.ndarray:
    """Give the trie's nodes at each row's end their positions, in place, and return the mask (B, 1, S, S)."""
    branches = len(tree.inner)
    depth = np.array([len(node) for node in tree.inner], np.int64)
    starts = left_out + lengths - branches  # of the branches, in each row of attention
    position_ids[(np.cumsum(lengths) - branches)[:, None] + np.arange(branches)] = starts[:, None] - 1 + depth
    mask = np.tile(np.tri(left_out + int(lengths.max()), dtype=bool), (len(lengths), 1, 1))
    visible = tree.visible()
    for clip, start in enumerate(starts):
        mask[clip, start : start + branches, start : start + branches] = visible
    return mask[:, None]


KeysAndValues = list[tuple[Tensor, Tensor]]  # of each layer, (P, heads * width)
_PREFIXES: WeakKeyDictionary[nn.Module, dict[Any, KeysAndValues]] = WeakKeyDictionary()


class PrunedDecoder:
    """Reads batches with the weights of a frozen causal LM, of which it changes nothing."""

    def __init__(self, llm: FrozenLLM) -> None:
        self.model, self.decoder, self.checkpointing = llm.model, llm.model.model, llm.checkpointing
        self.rotate = sys.modules[type(self.decoder.layers[0].self_attn).__module__].apply_rotary_pos_emb

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether clips of this LLM may be packed, and nothing has been put into its layers, such as LoRA."""
        return packs(model) and type(model.model.layers[0].self_attn.q_proj) is nn.Linear

    @torch.no_grad()
    def prefix(self, ids: Sequence[int]) -> KeysAndValues:
        """Every layer's keys, rotated, and values of the tokens that all inputs begin with; computed once."""
        weight = self.model.get_input_embeddings().weight
        known = _PREFIXES.setdefault(self.model, {})
        key = (tuple(ids), weight.dtype, weight.device)
        if key not in known:
            given, _ = PackedInput.of([ids], np.zeros(0, np.int64), [], weight.device)
            found: KeysAndValues = []
            self._read(given, weight.new_zeros(0, weight.shape[1]), None, found)
            known[key] = found
        return known[key]

    def logits(self, start: Sequence[int], given: PackedInput, tokens: Tensor, columns: Tensor | None = None) -> Tensor:
        """Next-token logits at the asked positions, (M, vocabulary) float32.

        Args:
            start: the token ids that all clips begin with, left out of `given`.
            tokens: (B, K, E) pseudo tokens, clip after clip as their placeholders.
            columns: (C,) int64 token ids; only these logits, (M, C).
        """
        found = self._read(given, tokens.flatten(0, 1), self.prefix(start))
        head: nn.Linear = self.model.lm_head
        if columns is None:
            return head(found).float()
        return F.linear(found, head.weight[columns], None if head.bias is None else head.bias[columns]).float()

    def _read(
        self, given: PackedInput, tokens: Tensor, prefix: KeysAndValues | None, keep: KeysAndValues | None = None
    ) -> Tensor:
        """(M, E): the last states at the asked positions; with `keep` each layer's keys and values are put there."""
        known = self.model.get_input_embeddings()(given.distinct)
        tokens = tokens.to(known.dtype)
        everywhere = torch.arange(given.layout.size, device=known.device)[None]
        cos, sin = (a.index_select(1, given.position_ids[0]) for a in self.decoder.rotary_emb(known, everywhere))
        hidden = known.index_select(0, given.source)
        if len(tokens):
            hidden = hidden.index_copy(0, given.placeholders, tokens)
        last = len(self.decoder.layers) - 1
        for number, layer in enumerate(self.decoder.layers):
            parts = (known, tokens) if number == 0 else None
            call = (layer, hidden, given, (cos, sin), parts, prefix[number] if prefix else None, number == last, keep)
            if self.checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(self._layer, *call, use_reentrant=False)
            else:
                hidden = self._layer(*call)
        return self.decoder.norm(hidden)

    def _layer(
        self, layer: Any, hidden: Tensor, given: PackedInput, angles: tuple[Tensor, Tensor],
        parts: tuple[Tensor, Tensor] | None, prefix: tuple[Tensor, Tensor] | None, is_last: bool, keep: KeysAndValues | None,
    ) -> Tensor:  # fmt: skip
        """One layer, (N, E) -> (N, E), or (M, E) for the last; `parts`: of the first, distinct tokens and pseudo tokens."""
        attention = layer.self_attn
        asked = given.asked if is_last else None
        if parts:
            known, tokens = (layer.input_layernorm(part) for part in parts)
            projections = attention.q_proj, attention.k_proj, attention.v_proj
            query, key, value = (self._spread(projection, known, tokens, given) for projection in projections)
            query = query if asked is None else query.index_select(0, asked)
        else:
            normed = layer.input_layernorm(hidden)
            key, value = attention.k_proj(normed), attention.v_proj(normed)
            query = attention.q_proj(normed if asked is None else normed.index_select(0, asked))
        query, key = self._rotated(attention, query, angles, asked), self._rotated(attention, key, angles)
        if keep is not None:
            keep.append((key, value))
        slots = None if asked is None else given.layout.slots.index_select(0, asked)
        sizes = attention.head_dim, attention.scaling
        attended = attend(given.layout, query, key, value, *sizes, given.mask, slots, prefix)
        residual = hidden if asked is None else hidden.index_select(0, asked)
        hidden = residual + attention.o_proj(attended)
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))

    @staticmethod
    def _spread(projection: nn.Linear, known: Tensor, tokens: Tensor, given: PackedInput) -> Tensor:
        """(N, width): the projection of each distinct token wherever it stands, and of the pseudo tokens in their places."""
        everywhere = projection(known).index_select(0, given.source)
        return everywhere.index_copy(0, given.placeholders, projection(tokens)) if len(tokens) else everywhere

    def _rotated(
        self, attention: Any, packed: Tensor, angles: tuple[Tensor, Tensor], asked: Tensor | None = None
    ) -> Tensor:
        """(n, heads * width) turned by each position's angles."""
        heads = packed.unflatten(-1, (-1, attention.head_dim))[None]
        cos, sin = angles if asked is None else (angle.index_select(1, asked) for angle in angles)
        return self.rotate(heads, heads[:, :, :0], cos, sin, unsqueeze_dim=2)[0][0].flatten(1)


def read(
    llm: FrozenLLM, start: Sequence[int], given: PackedInput, tokens: Tensor, columns: Tensor | None = None
) -> Tensor:
    """As `PrunedDecoder.logits`, by that where it fits and `given` leaves the start out."""
    if given.left_out:
        return PrunedDecoder(llm).logits(start, given, tokens, columns)
    logits = packed_logits(llm, given.embeds(llm, tokens), given.layout, given.asked, given.position_ids, given.mask)
    return logits if columns is None else logits[:, columns]
