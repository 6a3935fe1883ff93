"""Settings of the methods that CMPTA is compared with; imports no torch.

Each quirk of a method's public code is a field here. Its default is what the method's paper describes, done right (the
preset "fixed" of the tables); `reference(config)` sets every quirk as the public code behaves, for parity tests.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import Field

from cmpta_lib.config import AtLeastOne, EncoderConfig, MethodConfig, Positive, PromptedLMConfig

Decay = Annotated[float, Field(ge=0)]
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
    """Yu et al. 2021; sizes, dropout, rates and decays as MMSA has them for SIMS-V2.

    `training.learning_rate` and `training.weight_decay` are those of the four heads; the rates here multiply the former.
    MMSA sums the gradients of four batches of 16 before a step: one batch of 64 here, its labels renewed once a step.
    """

    name: Literal["self_mm"] = "self_mm"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {"label_bound": 3.0}
    label_bound: Positive = 1.0  # H: generated labels stay in [-H, H]; 1 = the range of the scores themselves
    audio_hidden: AtLeastOne = 16  # of the LSTM
    vision_hidden: AtLeastOne = 64
    audio_size: AtLeastOne = 16  # of a clip's vector
    vision_size: AtLeastOne = 32
    fusion_features: AtLeastOne = 128
    text_features: AtLeastOne = 64
    audio_features: AtLeastOne = 32
    vision_features: AtLeastOne = 32
    lstm_dropout: Chance = 0.0
    fusion_dropout: Chance = 0.0
    text_dropout: Chance = 0.0
    audio_dropout: Chance = 0.1
    vision_dropout: Chance = 0.0
    bert_rate: Positive = 0.05
    audio_rate: Positive = 1.0
    vision_rate: Positive = 1.0
    bert_weight_decay: Decay = 0.01  # none on biases and layer norms
    audio_weight_decay: Decay = 0.0
    vision_weight_decay: Decay = 0.0


class MagBertConfig(SupervisedConfig):
    """Rahman et al. 2020; no hyper-parameters for SIMS-V2 are public, so these are the ones that MMSA has for SIMS."""

    name: Literal["mag_bert"] = "mag_bert"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {"alignment": "padded"}
    # Frames to text positions: "real" spreads a clip's frames over its own tokens; "padded" gives each of
    # max_text_tokens positions an equal part of the longest training clip, which a short clip fills to a part only.
    alignment: Literal["real", "padded"] = "real"
    gate_rate: Positive = 1.0  # learning rate of the gate and the last layer, times that of BERT
    beta: Positive = 1.0  # a shift is at most this times as long as the word's vector
    mag_dropout: Chance = 0.1
    dropout: Chance = 0.1  # before the last layer


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
