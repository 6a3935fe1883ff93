"""Settings of answering by a published omni model, as it is; imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cmpta_lib.config import AtLeastOne, LLMConfig, MethodConfig, Positive

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
