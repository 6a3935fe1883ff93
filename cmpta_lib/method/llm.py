"""The frozen LLM, plain: loaded once, never changed, it reads embeddings and gives the logits of the next token."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FrozenLLM:
    """A causal LM that never changes: eval mode, no gradient on its weights, its bytes the same before and after.

    Attributes:
        dim: E, width of its embeddings.
        fingerprint: of its files, see `cmpta_lib.llm.files.fingerprint`.
        first_ids: what every input starts with: the bos token or what the family has in its place.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, fingerprint: str, name: str, gradient_checkpointing: bool = False
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        if gradient_checkpointing and model.supports_gradient_checkpointing:
            from transformers.modeling_layers import GradientCheckpointingLayer

            self.model.activation_checkpointing_enable({"use_reentrant": False})
            # A layer checkpoints in training mode only; its parts stay in eval mode, and its own dropout is none.
            for module in self.model.modules():
                module.training = isinstance(module, GradientCheckpointingLayer)
                if module.training:
                    vars(module).update({name: 0.0 for name in vars(module) if "dropout" in name})
        self.tokenizer, self.fingerprint, self.name, self.checkpointing = tokenizer, fingerprint, name, gradient_checkpointing
        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.first_ids: list[int] = list(getattr(tokenizer, "first_ids", bos))
        self._known_ids: dict[str, tuple[int, ...]] = {}
        self.embedding = self.model.get_input_embeddings()
        self.dim = self.embedding.weight.shape[1]
        self.num_parameters = sum(p.numel() for p in self.model.parameters())

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @cached_property
    def embedding_norm(self) -> float:
        """Mean norm of the text embeddings that it gives, which some families scale."""
        known = torch.arange(min(len(self.embedding.weight), len(self.tokenizer)), device=self.device)
        # In parts, for no float32 copy of the whole vocabulary.
        norms = [self.embedding(part).float().norm(dim=1) for part in known.split(4096)]
        return float(torch.cat(norms).detach().mean())

    def token_ids(self, text: str) -> list[int]:
        """Plain text -> ids (eq 1); a special token's name inside the text stays text. Kept, as texts come back every epoch."""
        if text not in self._known_ids:
            ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            self._known_ids[text] = tuple(ids)
        return list(self._known_ids[text])

    def embed(self, ids: list[int]) -> Tensor:
        """(n, E): the ids' rows of the embedding table (eq 2)."""
        return self.embedding(torch.tensor(ids, dtype=torch.int64, device=self.device))

    @cached_property
    def room(self) -> int | None:
        """The highest number of positions that one input may have; None = no limit is known."""
        config = self.model.config.get_text_config()
        rope = getattr(config, "rope_parameters", None) or {}
        # Beyond these, "longrope" turns all inputs of a batch otherwise, and what a sparse attention picks hangs on ties.
        turns = rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None
        names = ("max_position_embeddings", "max_seq_len", "max_target_positions", "index_topk")
        known = [turns, *(getattr(config, name, None) for name in names)]
        return min((length for length in known if length and length > 0), default=None)

    def need_room(self, length: int) -> None:
        """Raise ValueError where an input is longer than `room`: beyond it the LLM's answers mean nothing."""
        if self.room is not None and length > self.room:
            said = f"an input of {length} tokens does not fit the LLM '{self.name}', which takes {self.room}"
            raise ValueError(f"{said}; lower prompt.max_text_tokens")

    def logits(self, embeds: Tensor) -> Tensor:
        """(n, E) -> (n, vocabulary) float32, the next token's at each position; `cmpta_lib.fast.llm` reads many clips at once."""
        self.need_room(len(embeds))
        given = embeds[None].to(self.embedding.weight.dtype, copy=True)  # some families write into what they are given
        return self.model(inputs_embeds=given, use_cache=False).logits[0].float()
