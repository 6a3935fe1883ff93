"""The floor of a training step: the bare frozen LLM, forward and back to its inputs, on the same real tokens.

By the plain path: every real position through every layer, the head at answer positions only, nothing pruned, shared or
cached. A step of a method that reads the LLM's answer and learns in front of it has at least this to do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cmpta_lib.fast.llm import packed_logits
from cmpta_lib.fast.packing import Ragged
from cmpta_lib.fast.prompted import PromptBatch, PromptedLM
from cmpta_lib.method.llm import FrozenLLM


@dataclass(frozen=True)
class Given:
    """What the LLM is given in one step."""

    leaf: Tensor  # (N, E)
    layout: Ragged
    positions: Tensor  # (M,)
    targets: Tensor  # (M,)

    @property
    def tokens(self) -> int:
        """N, the real positions."""
        return len(self.leaf)

    @property
    def longest(self) -> int:
        return max(self.layout.lengths)


def given(method: PromptedLM, batch: PromptBatch) -> Given:
    """What this method would give the LLM, without the way there."""
    with torch.no_grad():
        embeds, layout, positions, targets = method.training_inputs(batch)
    return Given(embeds.detach().clone().requires_grad_(True), layout, positions, targets)


def step(llm: FrozenLLM, inputs: Given) -> Tensor:
    """Loss and the gradient of the inputs; returns the loss, ()."""
    inputs.leaf.grad = None
    loss = F.cross_entropy(packed_logits(llm, inputs.leaf, inputs.layout, inputs.positions), inputs.targets)
    loss.backward()
    return loss.detach()


def operations(llm: FrozenLLM, inputs: Given) -> float:
    """Floating-point operations of `step` in products with the LLM's weights: forward once, and once for the inputs' gradient.

    Attention within clips is left out; at these lengths it is some per cent.
    """
    layers = [weight for name, weight in llm.model.named_parameters() if weight.dim() == 2 and "layers." in name]
    per_position = sum(weight.numel() for weight in layers)
    head = llm.model.get_output_embeddings().weight.numel()
    return 2 * 2.0 * (inputs.tokens * per_position + len(inputs.positions) * head)
