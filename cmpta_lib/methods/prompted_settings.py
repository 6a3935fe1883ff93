"""Settings of the methods that prompt a frozen LLM as CMPTA does, with other pseudo tokens; imports no torch.

As in `settings`, each quirk of a method's public code is a field, and `settings.reference` sets them all.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from cmpta_lib.config import AtLeastOne, PromptedLMConfig


class MseAdapterConfig(PromptedLMConfig):
    """MSE-Adapter (Yang et al., AAAI 2025): a text-guided mixer and a multi-scale fusion make the pseudo tokens."""

    name: Literal["mse_adapter"] = "mse_adapter"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {"text_mean": "padded"}
    audio_hidden: AtLeastOne = 64  # of the LSTM that reads the voice
    vision_hidden: AtLeastOne = 64
    dim: AtLeastOne = 256  # of the mixer
    scales: Annotated[tuple[AtLeastOne, ...], Field(min_length=1, strict=False)] = (8, 32, 16)  # divisors of the LLM's width
    num_pseudo_tokens: AtLeastOne = 4
    text_mean: Literal["real", "padded"] = "real"  # over a text's tokens, or padded to prompt.max_text_tokens first
    token_scale: Literal["default", "embedding_norm"] = "default"  # as published, or as large as the LLM's embeddings
    # Ablations:
    mixer: bool = True  # off: voice and face are added, whatever the text says
    multi_scale: bool = True  # off: one MLP, of the first scale, instead of a weighted sum of several
    modalities: Literal["all", "audio", "vision", "text"] = "all"  # the others count as absent; the mixer reads the text


class SoftPromptConfig(PromptedLMConfig):
    """Free vectors in place of pseudo tokens, the same for every clip: what tuning a prompt gives without face and voice."""

    name: Literal["soft_prompt"] = "soft_prompt"
    recipe: Literal[1] = 1
    num_pseudo_tokens: AtLeastOne = 6
