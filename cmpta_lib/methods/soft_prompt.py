"""Text only with a tuned soft prompt: K free vectors before the text, the same for every clip.

It tells apart what pseudo tokens bring by what they hold from what they bring by being trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmpta_lib.data.corpus import Inputs, Modality
from cmpta_lib.methods.prompted_lm import PromptedLM, TokenMaker
from cmpta_lib.methods.prompted_settings import SoftPromptConfig


class SoftTokens(TokenMaker):
    """(K, E) trained vectors, which start in random directions at the mean norm of the LLM's embeddings."""

    def __init__(self, num_tokens: int, llm_dim: int, embedding_norm: float) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.tokens = nn.Parameter(torch.randn(num_tokens, llm_dim) * embedding_norm / llm_dim**0.5)

    def set_feature_statistics(self, modality: Modality, mean: Tensor, std: Tensor) -> None:
        """Nothing to scale: neither face nor voice is read."""

    def forward(
        self,
        text: Tensor,
        text_lengths: Tensor,
        audio: Tensor,
        audio_lengths: Tensor,
        vision: Tensor,
        vision_lengths: Tensor,
        return_weights: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.tokens.expand(len(text), -1, -1), {}


class SoftPrompt(PromptedLM):
    """The frozen LLM with the text and a tuned prompt."""

    def token_maker(self, inputs: Inputs) -> SoftTokens:
        settings = self.settings
        assert isinstance(settings, SoftPromptConfig)
        return SoftTokens(settings.num_pseudo_tokens, self.llm.dim, self.llm.embedding_norm)
