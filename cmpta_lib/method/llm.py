"""The frozen LLM: loading it, and packing batches into it without wasted positions.

transformers does the modelling. What is ours is one attention function, which lets a batch of clips of different lengths
pass every linear layer as one row of real positions; only inside attention are they laid out as rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cmpta_lib.fast.packing import send
from cmpta_lib.fast.pruned import PrunedDecoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKED = "cmpta_packed"


@dataclass(frozen=True)
class Packing:
    """Where B clips of different lengths lie in one row of N positions.

    `gather` (B, S) maps row and column to packed position (padding repeats position 0); `slots` (N,) is the way back into
    B * S. `mask` is None for plain causal attention, else (B, 1, S, S) bool, True = may attend (answer tries).
    """

    lengths: Tensor  # (B,) int64
    position_ids: Tensor  # (1, N) int64
    gather: Tensor
    slots: Tensor
    mask: Tensor | None = None

    @staticmethod
    def layout(lengths: Sequence[int]) -> list[np.ndarray]:
        """The first four fields as host arrays, so that they can travel to the device with others, in one copy."""
        sizes = np.array(lengths, np.int64)
        column = np.arange(sizes.max())
        real = column < sizes[:, None]
        gather = np.zeros(real.shape, np.int64)
        gather[real] = np.arange(sizes.sum())
        position_ids = np.broadcast_to(column, real.shape)[real][None]
        return [sizes, position_ids, gather, np.flatnonzero(real)]

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Packing:
        return cls(*send(cls.layout(lengths), device))


def _packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Packing | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each packed clip: (1, heads, N, d) -> (1, N, heads, d).

    Padding stands at the end of a row, so under a causal mask no real position sees it and no mask is needed.
    """
    if packing is None:
        raise ValueError(f"attention '{PACKED}' needs packing=...; call the model through FrozenLLM.logits")

    def rows(packed: Tensor) -> Tensor:  # (1, h, N, d) -> (B, h, S, d)
        return packed[0][:, packing.gather].transpose(0, 1)

    causal = packing.mask is None
    grouped = key.shape[1] != query.shape[1]
    out = F.scaled_dot_product_attention(
        rows(query), rows(key), rows(value), attn_mask=packing.mask, is_causal=causal, scale=scaling, enable_gqa=grouped
    )
    return out.transpose(1, 2).flatten(0, 1)[packing.slots][None], None


class FrozenLLM:
    """A causal LM that never changes: eval mode, no gradient on its weights, its bytes the same before and after.

    Attributes:
        dim: E, width of its embeddings.
        embedding_norm: mean norm of its text embeddings.
        fingerprint: of its files, see `llm_files.fingerprint`.
        first_ids: what every input starts with: the bos token or what the family has in its place.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, fingerprint: str, name: str, gradient_checkpointing: bool = False
    ) -> None:
        from transformers.modeling_layers import GradientCheckpointingLayer
        from transformers.modeling_utils import AttentionInterface

        AttentionInterface.register(PACKED, _packed_attention)
        self.model = model.eval().requires_grad_(False)
        self.model.set_attn_implementation(PACKED)
        if gradient_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
            # A layer checkpoints in training mode only; its parts stay in eval mode.
            for module in self.model.modules():
                module.training = isinstance(module, GradientCheckpointingLayer)
        self.tokenizer, self.fingerprint, self.name, self.checkpointing = tokenizer, fingerprint, name, gradient_checkpointing
        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.first_ids: list[int] = list(getattr(tokenizer, "first_ids", bos))
        self._known_ids: dict[str, tuple[int, ...]] = {}
        self.embedding = self.model.get_input_embeddings()
        self.dim = self.embedding.weight.shape[1]
        rows = self.embedding.weight[: len(tokenizer)]
        norms = [part.float().norm(dim=1) for part in rows.split(4096)]  # no float32 copy of the whole vocabulary
        self.embedding_norm = float(torch.cat(norms).mean())
        self.num_parameters = sum(p.numel() for p in self.model.parameters())

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def pruned(self) -> PrunedDecoder | None:
        """The same LLM without work that no asked logit needs; None where its family or what is in its layers forbids it."""
        return PrunedDecoder(self.model, self.checkpointing) if PrunedDecoder.fits(self.model) else None

    def token_ids(self, text: str) -> list[int]:
        """Plain text -> ids; a special token's name inside the text stays text. Texts come back every epoch: kept."""
        if text not in self._known_ids:
            ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            self._known_ids[text] = tuple(ids)
        return list(self._known_ids[text])

    def need_room(self, length: int) -> None:
        """Refuse inputs longer than the LLM was made for: beyond that its answers mean nothing.

        Raises:
            ValueError: more positions than the model's configuration allows.
        """
        limit = getattr(self.model.config, "max_position_embeddings", None) or length
        if length > limit:
            raise ValueError(
                f"an input of {length} tokens does not fit the LLM '{self.name}', which takes {limit}; "
                f"lower prompt.max_text_tokens"
            )

    def logits(self, embeds: Tensor, packing: Packing, positions: Tensor) -> Tensor:
        """Next-token logits at some packed positions, by the whole LLM over all of them (`pruned` leaves out what it can).

        Args:
            embeds: (N, E) input embeddings of all clips, one after another.
            positions: (M,) int64 indices into N; only these pass the LM head.
        Returns:
            (M, vocabulary) float32.
        """
        # use_cache=False: with a cache transformers no longer looks at restarting positions, and an index tensor,
        # never an int, for logits_to_keep: the int form is a strided view that slows the head a hundredfold on CPU.
        out = self.model(
            inputs_embeds=embeds.to(self.embedding.weight.dtype)[None],
            position_ids=packing.position_ids,
            use_cache=False,
            logits_to_keep=positions,
            packing=packing,
        )
        return out.logits[0].float()


def weights_fingerprint(model: torch.nn.Module) -> str:
    """First 16 hex digits of the SHA-256 over every weight's name and bytes."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
