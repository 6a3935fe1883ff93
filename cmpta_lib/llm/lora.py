"""LoRA (Hu et al., ICLR 2022) beside a frozen LLM: small trained matrices in a copy that shares the LLM's own weights.

PEFT does the work. What is ours is that the copy costs no memory but the matrices, and that nobody else who holds the
frozen LLM ever meets them.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import TYPE_CHECKING

from torch import nn

from cmpta_lib.llm.frozen import FrozenLLM

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
