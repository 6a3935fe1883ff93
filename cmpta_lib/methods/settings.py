"""Settings of the methods that CMPTA is compared with; imports no torch.

Each quirk of a method's public code is a field here. Its default is what the method's paper describes, done right (the
preset "fixed" of the tables); `reference(config)` sets every quirk as the public code behaves, for parity tests.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import Field

from cmpta_lib.config import AtLeastOne, EncoderConfig, MethodConfig, PromptedLMConfig

Chance = Annotated[float, Field(ge=0, lt=1)]  # of a dropout
Preset = TypeVar("Preset", bound=MethodConfig)


def reference(config: Preset) -> Preset:
    """The same settings with every quirk as the method's public code has it."""
    quirks: dict[str, object] = getattr(config, "quirks", {})
    return type(config).model_validate(config.model_dump() | quirks)


class SupervisedConfig(MethodConfig):
    """What all methods share that learn from labels directly, with a text encoder in place of an LLM."""

    quirks: ClassVar[dict[str, object]] = {}  # field -> value in the method's public code
    encoder: EncoderConfig = EncoderConfig()
    max_text_tokens: Annotated[int, Field(ge=3)] = 50  # with [CLS] and [SEP]; longer utterances are cut and counted
    modalities: Literal["all", "text", "audio_vision"] = "all"  # what is read; the rest counts as absent


# SIMS-V2: LMF, Self-MM, MAG-BERT; MELD: TFN ------------------------------------------------------------------------
class LmfConfig(SupervisedConfig):
    name: Literal["lmf"] = "lmf"
    recipe: Literal[1] = 1


class TfnConfig(SupervisedConfig):
    name: Literal["tfn"] = "tfn"
    recipe: Literal[1] = 1


class SelfMMConfig(SupervisedConfig):
    name: Literal["self_mm"] = "self_mm"
    recipe: Literal[1] = 1


class MagBertConfig(SupervisedConfig):
    name: Literal["mag_bert"] = "mag_bert"
    recipe: Literal[1] = 1


# MELD: MMGCN, GA2MIF ----------------------------------------------------------------------------------------------
class MmgcnConfig(SupervisedConfig):
    name: Literal["mmgcn"] = "mmgcn"
    recipe: Literal[1] = 1


class Ga2mifConfig(SupervisedConfig):
    name: Literal["ga2mif"] = "ga2mif"
    recipe: Literal[1] = 1


# A frozen LLM with other pseudo tokens ----------------------------------------------------------------------------
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


# Reference rows that keep everyone honest -------------------------------------------------------------------------
class ConstantConfig(MethodConfig):
    name: Literal["constant"] = "constant"
    recipe: Literal[1] = 1


class LinearConfig(SupervisedConfig):
    name: Literal["linear"] = "linear"
    recipe: Literal[1] = 1


class BilstmConfig(SupervisedConfig):
    """A plain BiLSTM with attention pooling per modality, and a linear layer on all three."""

    name: Literal["bilstm"] = "bilstm"
    recipe: Literal[1] = 1
    hidden: AtLeastOne = 64  # per direction
    dropout: Chance = 0.3
