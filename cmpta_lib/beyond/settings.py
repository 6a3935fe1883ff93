"""Settings of the methods that prompt a frozen LLM as CMPTA does, with other pseudo tokens; imports no torch.

As in `settings`, each quirk of a method's public code is a field, and `settings.reference` sets them all.

Settings of answering by a published omni model, as it is; imports no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cmpta_lib.config import AtLeastOne, LLMConfig, MethodConfig, Positive, PromptedLMConfig, RunConfig, Stage
from cmpta_lib.paper import HYPERPARAMETERS

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


class MllmMacConfig(PromptedLMConfig):
    """MLLM-MAC (arXiv 2508.02429): a multimodal LLM with generated knowledge and supervised fine-tuning.

    Of that work only the abstract is at hand. Datasets, prompts, ranks and rates are choices of ours, after generated
    knowledge prompting (arXiv 2110.08387) and MMLA's fine-tuning, and the offline multimodal LLM is one of our making.
    """

    name: Literal["mllm_mac"] = "mllm_mac"
    recipe: Literal[1] = 1
    # Its eyes and ears: CMPTA's adapter, which learns without labels to make the frozen LLM say what is seen and heard.
    dim: Annotated[int, Field(ge=2, multiple_of=2)] = HYPERPARAMETERS.feature_dim
    num_heads: AtLeastOne = 8
    num_pseudo_tokens: AtLeastOne = 6
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    # 0: the frozen LLM itself learns to say it, moved by pseudo tokens alone. Else LoRA of this rank learns with them, acts
    # while it describes and never while it answers: the embedded tiny LLM cannot be brought to describe without.
    speech_rank: Annotated[int, Field(ge=0)] = 0
    perception_epochs: AtLeastOne = 10
    perception_rate: Positive = HYPERPARAMETERS.learning_rate
    perception_batch_size: AtLeastOne = HYPERPARAMETERS.batch_size
    # What the statements say, and how; see `knowledge.Describer`.
    facts: Annotated[tuple[Literal["energy", "movement", "course"], ...], Field(min_length=1, strict=False)] = (
        "energy", "movement", "course",
    )  # fmt: skip
    courses: AtLeastOne = 2  # main variations whose course is told
    steady_share: Annotated[float, Field(ge=0, le=1)] = 1 / 3  # of training clips whose course counts as steady
    wording: Literal["words", "signs"] = "words"
    # What it is given when it answers, and when it is fine-tuned; perception always has all.
    modalities: Literal["T", "TA", "TV", "TAV"] = "TAV"
    # The statement before the clip's words: none; by rule from frames; said by the model itself; or what the corpus'
    # generator knows. `shuffled`: another clip's instead, the control that a statement's content matters.
    knowledge: Literal["none", "features", "generated", "cue"] = "generated"
    shuffled: bool = False
    integration: Literal["concat", "max_conf"] = "concat"  # all statements at once; or each alone, and the surest answer
    statements: AtLeastOne = 5  # M, that the model says: the first greedily, others from its nucleus
    max_new_tokens: AtLeastOne = 64
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.5
    donors: Annotated[int, Field(ge=2)] = 256  # training clips whose statements `shuffled` draws from
    # Supervised fine-tuning by LoRA; without it the model answers zero-shot.
    sft: bool = True
    lora_rank: AtLeastOne = 16
    lora_alpha: AtLeastOne = 32

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.dim % self.num_heads:
            raise ValueError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}")
        if self.modalities == "T" and self.knowledge != "none":
            raise ValueError("modalities='T' neither sees nor hears: there is nothing to say, use knowledge='none'")
        if self.knowledge == "none" and (self.shuffled or self.integration != "concat"):
            raise ValueError("knowledge='none' leaves nothing to shuffle or to weigh: shuffled=False, integration='concat'")
        return self

    def stages(self, run: RunConfig) -> tuple[Stage, ...]:
        """Perception where there is anything to perceive, then fine-tuning where there is any."""
        own = {"epochs": self.perception_epochs, "batch_size": self.perception_batch_size}
        first = run.training.model_copy(update={**own, "learning_rate": self.perception_rate, "patience": None})
        seeing = Stage("perception", first, is_labelled=False, outcome=self._perception(run, first.model_dump(mode="json")))
        tuning = Stage("training", run.training)
        return (*([] if self.modalities == "T" else [seeing]), *([tuning] if self.sft else []))

    def _perception(self, run: RunConfig, training: dict[str, Any]) -> dict[str, Any]:
        """All that decides what is perceived: runs that differ only in what they are told or taught share it."""
        settings = self.model_dump(mode="json")
        apart = ("modalities", "knowledge", "shuffled", "integration", "statements", "max_new_tokens", "top_p", "decoding")
        for name in (*apart, "sft", "lora_rank", "lora_alpha"):
            del settings[name]
        return {"data": run.data.model_dump(mode="json"), "seed": run.seed, "training": training, "method": settings}


# By hub id: what transformers has classes for that read words, sound and moving pictures without torchvision.
OMNI_MODELS = ("Qwen/Qwen2.5-Omni-3B", "Qwen/Qwen2.5-Omni-7B", "Qwen/Qwen3-Omni-30B-A3B-Instruct")


class OmniConfig(MethodConfig):
    """An omni model that hears and sees the recording of a clip itself; nothing is trained (zero-shot)."""

    name: Literal["omni"] = "omni"
    recipe: Literal[1] = 1
    model: LLMConfig = LLMConfig(name=OMNI_MODELS[0])  # its dtype is bfloat16 where there is a GPU
    media: str = ""  # fingerprint of the recordings of validation and test clips, filled in; "" = none is read
    modalities: Literal["all", "text", "text_audio", "text_vision"] = "all"  # what is shown of a clip
    prompt: Literal["benchmark", "paper"] = "benchmark"  # MMLA's sentence with labels as words; or Table 2's, with numbers
    subject: str = ""  # what the benchmark's sentence asks for; "" = emotion for classes, sentiment for scores
    decoding: Literal["score", "free"] = "score"  # the likeliest legal answer; or what it writes, greedily, if legal
    max_new_tokens: AtLeastOne = 24  # of a free reply
    answer_decimals: Annotated[int, Field(ge=1, le=4)] = 1
    system: str = "You are a helpful assistant."  # of the chat; Qwen2.5-Omni's template writes it too. "" = none
    max_seconds: Positive = 30.0  # of a recording; longer ones are cut and counted
    frames_per_second: Positive = 2.0  # the families' own
    frame_tokens: AtLeastOne = 128  # positions in the LLM for a pair of frames; the families allow 128 to 768

    @property
    def needs_media(self) -> bool:
        return self.modalities != "text"
