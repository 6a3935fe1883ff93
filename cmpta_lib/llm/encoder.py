"""The text encoder of methods without an LLM: a BERT by its folder, with its tokenizer."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from cmpta_lib.config import EncoderConfig

if TYPE_CHECKING:
    from torch import Tensor
    from transformers.models.bert import BertModel


class TextEncoder:
    """A BERT as it was published, frozen until its user says otherwise.

    Attributes:
        model: in eval mode, without gradients.
        dim: width of its hidden states.
    """

    def __init__(self, model: BertModel, tokenizer: Any, config: EncoderConfig) -> None:
        self.model, self.tokenizer, self.config = model.eval().requires_grad_(False), tokenizer, config
        self.dim = int(model.config.hidden_size)

    def copy(self) -> TextEncoder:
        """One that may be trained without touching this one."""
        return TextEncoder(copy.deepcopy(self.model), self.tokenizer, self.config)

    def token_ids(self, text: str) -> list[int]:
        """[CLS], the text's tokens, [SEP]: at least two."""
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids

    def cut(self, ids: list[int], limit: int) -> list[int]:
        """At most `limit` ids; a longer text loses its end, not its [SEP]."""
        return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]

    def states(self, ids: Tensor, real: Tensor) -> Tensor:
        """ids (B, L) int64, real (B, L) bool -> last hidden states (B, L, dim); those of padding mean nothing."""
        states: Tensor = self.model(input_ids=ids, attention_mask=real.long()).last_hidden_state
        return states


def contextual(model: BertModel, embedded: Tensor, real: Tensor) -> Tensor:
    """What a BERT makes of embeddings that somebody may have changed; no padding is attended to.

    The mask is made here: `BertModel` would look at it, and a GPU would wait for that.

    Args:
        embedded: (B, L, dim) out of `model.embeddings`.
        real: (B, L) bool.
    Returns:
        (B, L, dim) last hidden states; those of padding mean nothing.
    """
    lowest = torch.finfo(embedded.dtype).min
    mask = torch.zeros_like(real, dtype=embedded.dtype).masked_fill(~real, lowest)
    states: Tensor = model.encoder(embedded, attention_mask=mask[:, None, None]).last_hidden_state
    return states
