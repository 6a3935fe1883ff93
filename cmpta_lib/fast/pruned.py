"""A frozen decoder without the work that no asked logit needs; equal to `llm.packed_logits`, which leaves nothing out.

Four things are known of every input beforehand. All clips begin with the same tokens, so their keys and values are computed
once for all. Before the first layer's attention a token knows nothing of its neighbours, so each distinct token passes its
projections once, however often it stands in the batch (the prompt in every clip), and only pseudo tokens take a gradient
back through them. Of the last layer only the asked positions are read: there alone queries, output projection and MLP are
computed, where the others give keys and values. And of the head's columns an answer trie reads those of its own tokens.

transformers' own parts do all computing; what is ours is their order, which its decoders share under the same names.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cmpta_lib.fast.llm import PackedInput, attend
from cmpta_lib.method.llm import FrozenLLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of these `test_pruned` shows that they are as said above: pre-norm layers, rotary positions, nothing between head and norm.
FAMILIES = ("qwen2", "llama", "glm")
KeysAndValues = list[tuple[Tensor, Tensor]]  # of each layer, (P, heads * width)
_PREFIXES: WeakKeyDictionary[nn.Module, dict[Any, KeysAndValues]] = WeakKeyDictionary()


class PrunedDecoder:
    """Reads batches with the weights of a frozen causal LM, of which it changes nothing."""

    def __init__(self, llm: FrozenLLM) -> None:
        self.model, self.decoder, self.checkpointing = llm.model, llm.model.model, llm.checkpointing
        self.rotate = sys.modules[type(self.decoder.layers[0].self_attn).__module__].apply_rotary_pos_emb

    @staticmethod
    def of(llm: FrozenLLM) -> PrunedDecoder | None:
        """None where the LLM's family or what is in its layers forbids leaving anything out."""
        return PrunedDecoder(llm) if PrunedDecoder.fits(llm.model) else None

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether this LLM is of a family known here, and nothing has been put into its layers, such as LoRA."""
        if getattr(model.config, "model_type", "") not in FAMILIES or getattr(model.model, "has_sliding_layers", False):
            return False
        return type(model.model.layers[0].self_attn.q_proj) is nn.Linear

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
        found: Tensor = self.decoder.norm(hidden)
        return found

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
        layout = given.layout
        slots = None if asked is None else layout.slots.index_select(0, asked)
        sizes = attention.head_dim, attention.scaling
        attended = attend(layout, query, key, value, *sizes, given.mask, slots, prefix)
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
        turned: Tensor = self.rotate(heads, heads[:, :, :0], cos, sin, unsqueeze_dim=2)[0]
        return turned[0].flatten(1)
