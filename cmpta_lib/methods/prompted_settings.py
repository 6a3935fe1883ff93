"""Settings of the methods that prompt a frozen LLM as CMPTA does, with other pseudo tokens; imports no torch.

As in `settings`, each quirk of a method's public code is a field, and `settings.reference` sets them all.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cmpta_lib.config import AtLeastOne, PromptedLMConfig

Weight = Annotated[float, Field(ge=0)]  # of a loss


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

class PrototypesConfig(PromptedLMConfig):
    """Prototype-as-Prompt (Zhao et al., CVPR 2026): a prototype per class and modality reads the frames; no code is public.

    The weights of the losses are the printed ones. The width is not printed: with 512 the share of trained weights is as
    printed, 0.09 to 0.26 % of the LLM's.
    """

    name: Literal["prototypes"] = "prototypes"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {"diversity_diagonal": "as_printed"}
    dim: Annotated[int, Field(ge=2, multiple_of=2)] = 512  # half per direction of a BiLSTM
    frames: Literal["as_given", "bilstm"] = "as_given"  # what prototypes attend to: a set of frames, or CMPTA's alignment
    score_levels: Annotated[int, Field(ge=2)] = 5  # prototypes per modality where scores are predicted: levels from -1 to 1
    semantics: Literal["own", "mean"] = "own"  # what a class's logit is read from: its own prototype, or the mean of all
    moments: Annotated[int, Field(ge=1)] = 5  # highest order in the alignment of face and voice
    diversity_diagonal: Literal["as_printed", "one"] = "as_printed"  # no weight on the diagonal; or lengths drawn to 1
    semantic_weight: Weight = 0.1
    alignment_weight: Weight = 0.1
    diversity_weight: Weight = 0.05
    token_scale: Literal["embedding_norm", "default"] = "embedding_norm"  # as CMPTA's: as large as the LLM's embeddings


class MgsiConfig(PromptedLMConfig):
    """MGSI (arXiv 2608.16201): three granularities, a gate of the text, a calibration by "not neutral"; no code is public.

    Printed are the kernel, the dilation, three tokens and their mean, four pseudo tokens, the gate's and the calibration's
    formulas, and the two weights of 0.05; widths, heads and the order of the parts are chosen here.
    """

    name: Literal["mgsi"] = "mgsi"
    recipe: Literal[1] = 1
    dim: AtLeastOne = 256
    attention_heads: AtLeastOne = 4  # in the transformer and over the three tokens; `num_heads` is CMPTA's, register 3
    kernel: Annotated[int, Field(ge=1)] = 3
    dilation: AtLeastOne = 2
    branches: Literal["parallel", "stacked"] = "parallel"  # each reads the frames, or what the one before made of them
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1  # in the transformer
    num_pseudo_tokens: AtLeastOne = 4
    calibration: Annotated[float, Field(ge=0)] = 0.05  # times "not neutral", times the correction
    neutral_weight: Weight = 0.05
    neutral_range: Annotated[float, Field(ge=0)] = 0.1  # scores as far from 0 are neutral
    neutral_label: str = "neutral"  # the class that is; where no class is called so, its loss is off
    token_scale: Literal["embedding_norm", "default"] = "embedding_norm"  # as CMPTA's: as large as the LLM's embeddings

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.dim % self.attention_heads:
            raise ValueError(f"dim={self.dim} is not a multiple of attention_heads={self.attention_heads}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel}: an even one has no middle frame, use an odd one")
        return self
