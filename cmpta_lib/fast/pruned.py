"""A frozen decoder without the work that no asked logit needs; equal to `FrozenLLM.logits`, which leaves nothing out.

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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cmpta_lib.fast.packing import take_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of these `test_pruned` shows that they are as said above: pre-norm layers, rotary positions, nothing between head and norm.
FAMILIES = ("qwen2", "llama", "glm")
KeysAndValues = list[tuple[Tensor, Tensor]]  # of each layer, (P, heads * width)
_PREFIXES: WeakKeyDictionary[nn.Module, dict[Any, KeysAndValues]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Reading:
    """B clips as the pruned decoder reads them: N positions, those behind the prefix of P tokens, clip after clip.

    They lie in rows of S = P + longest clip for attention alone. `mask` is as in `frozen.Packing`, prefix included.
    """

    distinct: Tensor  # (U,) int64: every token id that occurs, once
    source: Tensor  # (N,) int64: which of them stands where; any where a pseudo token does
    holes: Tensor  # (B * K,) int64: positions of the pseudo tokens
    position_ids: Tensor  # (1, N) int64, the prefix counted
    slots: Tensor  # (N,) int64: the place of each position in B * S
    asked: Tensor  # (M,) int64: positions whose logits are wanted
    shape: tuple[int, int]  # B and S
    mask: Tensor | None = None

    @staticmethod
    def layout(ids: np.ndarray, lengths: Sequence[int], prefix: int) -> dict[str, np.ndarray]:
        """Index arrays by field, on the host, so that they can travel to the device together.

        Args:
            ids: (N,) token ids without the prefix, any where a pseudo token stands.
            lengths: of the clips, without the prefix; their sum is N.
            prefix: P.
        """
        sizes = np.array(lengths, np.int64)
        column = np.arange(sizes.max())
        real = column < sizes[:, None]
        places = np.arange(len(sizes))[:, None] * (prefix + len(column)) + prefix + column
        distinct, source = np.unique(ids, return_inverse=True)
        positions = prefix + np.broadcast_to(column, real.shape)[real][None]
        return {"distinct": distinct, "source": source.ravel(), "position_ids": positions, "slots": places[real]}


class PrunedDecoder:
    """Reads batches with the weights of a frozen causal LM, of which it changes nothing.

    Args:
        checkpointing: compute each layer again in the backward pass, where memory is short.
    """

    def __init__(self, model: PreTrainedModel, checkpointing: bool = False) -> None:
        self.model, self.decoder, self.checkpointing = model, model.model, checkpointing
        self.rotate = sys.modules[type(model.model.layers[0].self_attn).__module__].apply_rotary_pos_emb

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
            nothing = np.zeros(0, np.int64)
            layout = Reading.layout(np.array(ids, np.int64), [len(ids)], 0) | {"holes": nothing, "asked": nothing}
            parts = {name: torch.from_numpy(part).to(weight.device) for name, part in layout.items()}
            found: KeysAndValues = []
            self._read(Reading(**parts, shape=(1, len(ids))), weight.new_zeros(0, weight.shape[1]), None, found)
            known[key] = found
        return known[key]

    def logits(
        self, prefix: KeysAndValues, reading: Reading, tokens: Tensor, columns: Tensor | None = None
    ) -> Tensor:
        """Next-token logits at the asked positions, (M, vocabulary) float32.

        Args:
            prefix: of `self.prefix`.
            tokens: (B, K, E) pseudo tokens, clip after clip as their holes.
            columns: (C,) int64 token ids; only these logits, (M, C).
        """
        found = self._read(reading, tokens.flatten(0, 1), prefix)
        head: nn.Linear = self.model.lm_head
        if columns is None:
            return head(found).float()
        return F.linear(found, head.weight[columns], None if head.bias is None else head.bias[columns]).float()

    def _read(
        self, reading: Reading, tokens: Tensor, prefix: KeysAndValues | None, keep: KeysAndValues | None = None
    ) -> Tensor:
        """(M, E): the last states at the asked positions; with `keep` each layer's keys and values are put there."""
        known = self.model.get_input_embeddings()(reading.distinct)
        tokens = tokens.to(known.dtype)
        everywhere = torch.arange(reading.shape[1], device=known.device)[None]
        cos, sin = (a.index_select(1, reading.position_ids[0]) for a in self.decoder.rotary_emb(known, everywhere))
        hidden = known.index_select(0, reading.source)
        if len(tokens):
            hidden = hidden.index_copy(0, reading.holes, tokens)
        last = len(self.decoder.layers) - 1
        for number, layer in enumerate(self.decoder.layers):
            parts = (known, tokens) if number == 0 else None
            given = (layer, hidden, reading, (cos, sin), parts, prefix[number] if prefix else None, number == last, keep)
            if self.checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(self._layer, *given, use_reentrant=False)
            else:
                hidden = self._layer(*given)
        found: Tensor = self.decoder.norm(hidden)
        return found

    def _layer(
        self,
        layer: Any,
        hidden: Tensor,
        reading: Reading,
        angles: tuple[Tensor, Tensor],
        parts: tuple[Tensor, Tensor] | None,
        prefix: tuple[Tensor, Tensor] | None,
        is_last: bool,
        keep: KeysAndValues | None,
    ) -> Tensor:
        """One layer, (N, E) -> (N, E), or (M, E) for the last; `parts`: of the first, distinct tokens and pseudo tokens."""
        attention = layer.self_attn
        asked = reading.asked if is_last else None
        if parts:
            known, tokens = (layer.input_layernorm(part) for part in parts)
            query, key, value = (
                self._spread(projection, known, tokens, reading)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            query = query if asked is None else query.index_select(0, asked)
        else:
            normed = layer.input_layernorm(hidden)
            key, value = attention.k_proj(normed), attention.v_proj(normed)
            query = attention.q_proj(normed if asked is None else normed.index_select(0, asked))
        query, key = self._rotated(attention, query, angles, asked), self._rotated(attention, key, angles)
        if keep is not None:
            keep.append((key, value))
        attended = self._attend(attention, query, key, value, reading, prefix, asked)
        residual = hidden if asked is None else hidden.index_select(0, asked)
        hidden = residual + attention.o_proj(attended)
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))

    @staticmethod
    def _spread(projection: nn.Linear, known: Tensor, tokens: Tensor, reading: Reading) -> Tensor:
        """(N, width): the projection of each distinct token wherever it stands, and of the pseudo tokens in their holes."""
        everywhere = projection(known).index_select(0, reading.source)
        return everywhere.index_copy(0, reading.holes, projection(tokens)) if len(tokens) else everywhere

    def _rotated(
        self, attention: Any, packed: Tensor, angles: tuple[Tensor, Tensor], asked: Tensor | None = None
    ) -> Tensor:
        """(n, heads * width) turned by each position's angles."""
        heads = packed.unflatten(-1, (-1, attention.head_dim))[None]
        cos, sin = angles if asked is None else (angle.index_select(1, asked) for angle in angles)
        turned: Tensor = self.rotate(heads, heads[:, :, :0], cos, sin, unsqueeze_dim=2)[0]
        return turned[0].flatten(1)

    @staticmethod
    def _attend(
        attention: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        reading: Reading,
        prefix: tuple[Tensor, Tensor] | None,
        asked: Tensor | None,
    ) -> Tensor:
        """(n, heads * width): attention within each clip and to the prefix; other places of a row ask for nothing."""
        slots = reading.slots if asked is None else reading.slots.index_select(0, asked)

        def rows(packed: Tensor, where: Tensor, before: Tensor | None = None) -> Tensor:  # (n, h * d) -> (B, h, S, d)
            laid = packed.new_zeros(*reading.shape, packed.shape[1])
            if before is not None:
                laid[:, : len(before)] = before
            laid.flatten(0, 1).index_copy_(0, where, packed)
            return laid.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

        keys, values = (
            rows(packed, reading.slots, prefix[place] if prefix else None) for place, packed in enumerate((key, value))
        )
        out = F.scaled_dot_product_attention(
            rows(query, slots),
            keys,
            values,
            attn_mask=reading.mask,
            is_causal=reading.mask is None,
            scale=attention.scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return take_once(out.transpose(1, 2).flatten(2).flatten(0, 1), slots)
