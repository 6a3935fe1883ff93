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
    name: Literal["mse_adapter"] = "mse_adapter"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {}


class SoftPromptConfig(PromptedLMConfig):
    name: Literal["soft_prompt"] = "soft_prompt"
    recipe: Literal[1] = 1


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
