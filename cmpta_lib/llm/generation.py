"""LoRA (Hu et al., ICLR 2022) beside a frozen LLM: small trained matrices in a copy that shares the LLM's own weights.

PEFT does the work. What is ours is that the copy costs no memory but the matrices, and that nobody else who holds the
frozen LLM ever meets them.

Letting a frozen LLM go on from what it read: greedily, or drawn from the likeliest tokens, one line at most.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cmpta_lib.method.llm import FrozenLLM

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel

ADAPTER = "default"  # PEFT names adapters, as it can hold several


class LoraWeights(nn.Module):
    """The matrices A and B of every adapted layer, and none of the LLM's weights: what is trained and saved."""

    def __init__(self, layers: dict[str, LoraLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {name.replace(".", "-"): nn.ModuleDict({"A": found.lora_A[ADAPTER], "B": found.lora_B[ADAPTER]})
             for name, found in layers.items()}
        )  # fmt: skip


def sharing(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose parameters and buffers are the model's own tensors, and whose structure and settings are not."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


def adapted(llm: FrozenLLM, rank: int, alpha: int) -> tuple[FrozenLLM, LoraWeights]:
    """The LLM with LoRA in every linear layer of its decoder, not in its head; B starts at zero, so nothing changes yet.

    The first matrices come from torch's global generator. The weights are float32 whatever the LLM's type.

    Args:
        rank: r, rows of A.
        alpha: an adapted layer gives W x + alpha / rank * B A x.
    """
    from peft import LoraConfig, inject_adapter_in_model

    tuned = copy.copy(llm)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", bias="none")
    tuned.model = inject_adapter_in_model(config, sharing(llm.model), ADAPTER)
    tuned.embedding = tuned.model.get_input_embeddings()
    for layer in (layers := lora_layers(tuned.model)).values():
        for matrix in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]):
            matrix.float()
    return tuned, LoraWeights(layers)


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The adapted layers by their names in the LLM."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def merged(llm: FrozenLLM) -> PreTrainedModel:
    """An adapted LLM as a stand-alone transformers model: W + alpha / rank * B A in place of W; shares nothing."""
    model = copy.deepcopy(llm.model)
    for name, layer in lora_layers(model).items():
        layer.merge(safe_merge=True)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    model.set_attn_implementation("sdpa")
    return model


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
