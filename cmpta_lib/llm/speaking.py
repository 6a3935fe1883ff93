"""Letting a frozen LLM go on from what it read: greedily, or drawn from the likeliest tokens, one line at most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cmpta_lib.llm.frozen import FrozenLLM
from cmpta_lib.llm.lora import sharing


class Speaker:
    """A frozen LLM as transformers' `generate` runs it: a copy that shares its weights and packs nothing."""

    def __init__(self, llm: FrozenLLM) -> None:
        from transformers import GenerationConfig

        self.llm, self.model = llm, sharing(llm.model).eval()  # a checkpointing LLM would not keep what it computed
        self.model.set_attn_implementation("sdpa")
        self.model.generation_config = GenerationConfig()  # a published one asks for sampling and penalties
        self._is_end: dict[int, bool] = {}

    @torch.no_grad()
    def go_on(
        self, read: Sequence[Tensor], max_new_tokens: int, top_p: float = 1.0, draws: Tensor | None = None
    ) -> list[str]:
        """What follows each text, up to the first line end, stripped of spaces.

        Args:
            read: per text (n, E) input embeddings.
            max_new_tokens: no more are said.
            draws: (B, max_new_tokens) numbers in [0, 1); None = greedily. Number t chooses text b's token t among the
                likeliest ones that together have the chance `top_p`: what is drawn for a text hangs on its numbers only.
        """
        from transformers import LogitsProcessorList, StoppingCriteriaList

        longest, device = max(len(text) for text in read), self.llm.device
        embeds = torch.zeros(len(read), longest, self.llm.dim, dtype=self.llm.embedding.weight.dtype, device=device)
        mask = torch.zeros(len(read), longest, dtype=torch.int64, device=device)
        for row, real, text in zip(embeds, mask, read, strict=True):
            row[longest - len(text) :], real[longest - len(text) :] = text, 1
        self.llm.need_room(longest + max_new_tokens)
        drawn = LogitsProcessorList() if draws is None else LogitsProcessorList([_Nucleus(top_p, draws.to(device))])
        said = self.model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=0,
            logits_processor=drawn,
            stopping_criteria=StoppingCriteriaList([self._have_ended]),
        )
        return [self._line(tokens) for tokens in said.tolist()]

    def _have_ended(self, said: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.tensor([self._ends(token) for token in said[:, -1].tolist()], device=said.device)

    def _ends(self, token: int) -> bool:
        if token not in self._is_end:
            is_last = token == self.llm.tokenizer.eos_token_id
            self._is_end[token] = is_last or "\n" in self.llm.tokenizer.decode([token])
        return self._is_end[token]

    def _line(self, tokens: list[int]) -> str:
        end = next((place for place, token in enumerate(tokens) if self._ends(token)), len(tokens))
        kept = tokens[: end + (end < len(tokens) and tokens[end] != self.llm.tokenizer.eos_token_id)]
        return str(self.llm.tokenizer.decode(kept)).partition("\n")[0].strip()


class _Nucleus:
    """Leaves one token of each row: the one on which the row's next number falls (nucleus sampling, Holtzman et al.)."""

    def __init__(self, top_p: float, draws: Tensor) -> None:
        self.top_p, self.draws, self.step = top_p, draws, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chances, order = scores.float().softmax(-1).sort(descending=True, stable=True)
        before = chances.cumsum(-1) - chances
        chances = chances.masked_fill(before >= self.top_p, 0.0)
        chances[:, 0] += 1e-12  # the likeliest one stays whatever top_p is
        shares = chances.cumsum(-1) / chances.sum(-1, keepdim=True)
        place = (shares <= self.draws[:, self.step, None].to(shares.dtype)).sum(-1, keepdim=True)
        self.step += 1
        chosen = order.gather(1, place.clamp(max=order.shape[1] - 1))
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)
