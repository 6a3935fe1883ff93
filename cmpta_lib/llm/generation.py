"""LoRA (Hu et al., ICLR 2022) beside a frozen LLM, and what an LLM generates, greedily or drawn from the likeliest tokens.

PEFT does LoRA's work. What is ours is that the adapted copy costs no memory but the small trained matrices, and that
nobody else who holds the frozen LLM ever meets them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from cmpta_lib.fast.llm import packed_logits, packs
from cmpta_lib.fast.packing import Ragged
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
    weights = LoraWeights(lora_layers(tuned.model))
    return tuned, weights.float()


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The adapted layers by their names in the LLM."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@torch.no_grad()
def generate(
    llm: FrozenLLM, read: Sequence[Tensor], max_new_tokens: int, top_p: float = 1.0, draws: Tensor | None = None
) -> list[str]:
    """What follows each text, up to the first line end, stripped of spaces.

    Args:
        read: per text (n, E) input embeddings.
        draws: (B, max_new_tokens) numbers in [0, 1); None = greedily. Number t chooses text b's token t among the likeliest
            ones that together have the chance `top_p`: what is drawn for a text hangs on its numbers only.
    Raises:
        ValueError: a text with so many new tokens does not fit the LLM.
    """
    llm.need_room(max(map(len, read)) + max_new_tokens)
    model = sharing(llm.model).eval() if packs(llm.model) else None  # a checkpointing LLM would not keep what it computed
    if model:
        model.set_attn_implementation("sdpa")
    embeds = pad_sequence(list(read), batch_first=True, padding_side="left").to(llm.embedding.weight.dtype)
    mask = pad_sequence([text.new_ones(len(text), dtype=torch.int64) for text in read], True, 0, "left")
    given: dict[str, Any] = {"inputs_embeds": embeds, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    end = llm.tokenizer.eos_token_id
    ends = cache(lambda token: token == end or "\n" in llm.tokenizer.decode([token]))
    said: list[list[int]] = [[] for _ in read]
    for step in range(max_new_tokens):
        if model:
            made = model(**given, attention_mask=mask, use_cache=True, logits_to_keep=1)
            scores = made.logits[:, -1].float()
        else:  # whatever else a family would keep
            rows = [torch.cat([text, llm.embed(ids)]) for text, ids in zip(read, said, strict=True)]
            layout = Ragged.rows([len(row) for row in rows], llm.device)
            scores = packed_logits(llm, torch.cat(rows), layout, torch.tensor(layout.lengths, device=llm.device).cumsum(0) - 1)
        tokens = scores.argmax(-1) if draws is None else nucleus(scores, top_p, draws[:, step].to(scores.device))
        for text, token in zip(said, tokens.tolist(), strict=True):
            if not text or not ends(text[-1]):
                text.append(token)
        if all(ends(text[-1]) for text in said):
            break
        given = {"input_ids": tokens[:, None], "position_ids": given["position_ids"][:, -1:] + 1}
        given["past_key_values"], mask = model and made.past_key_values, F.pad(mask, (0, 1), value=1)
    lines = [llm.tokenizer.decode([token for token in text if token != end]) for text in said]
    return [str(line).partition("\n")[0].strip() for line in lines]


def nucleus(scores: Tensor, top_p: float, numbers: Tensor) -> Tensor:
    """(B, V) logits and (B,) numbers in [0, 1) -> (B,) the token that each number falls on (Holtzman et al., ICLR 2020)."""
    chances, order = scores.softmax(-1).sort(descending=True, stable=True)
    chances = chances.masked_fill(chances.cumsum(-1) - chances >= top_p, 0.0)
    chances[:, 0] += 1e-12  # the likeliest one stays whatever top_p is
    shares = chances.cumsum(-1) / chances.sum(-1, keepdim=True)
    place = (shares <= numbers[:, None].to(shares.dtype)).sum(-1, keepdim=True)
    return order.gather(1, place.clamp(max=order.shape[1] - 1))[:, 0]
