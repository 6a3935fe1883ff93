"""MSE-Adapter (Yang et al., AAAI 2025), the method that CMPTA builds on, before a frozen LLM.

Voice and face become one vector each, the text weighs them (text-guided mixer), MLPs of several widths read the result
(multi-scale fusion), and K pseudo tokens are made of that one vector m: token k is w_k m + b_k, so that all of them lie in
a plane. The public code pads texts at the start and lets the LLM attend to the padding; here no padding reaches it.

Shapes: B clips, T frames, F features, L text tokens, D mixer width, E LLM width, K pseudo tokens.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from cmpta_lib.base import FeatureScaling, mean_over_time
from cmpta_lib.baselines.supervised import LastState
from cmpta_lib.config import AtLeastOne, Few, PromptedLMConfig, Width
from cmpta_lib.data.corpus import MODALITIES, Inputs, Modality
from cmpta_lib.fast.packing import Streams
from cmpta_lib.fast.prompted import PromptedLM, TokenMaker
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.registry import register


class MseAdapterConfig(PromptedLMConfig):
    name: Literal["mse_adapter"] = "mse_adapter"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {"text_mean": "padded"}
    audio_hidden: Width = 64  # of the LSTM that reads the voice
    vision_hidden: Width = 64
    dim: Width = 256  # of the mixer
    scales: Annotated[tuple[AtLeastOne, ...], Field(min_length=1, strict=False)] = (8, 32, 16)  # divisors of the LLM's width
    num_pseudo_tokens: Few = 4
    text_mean: Literal["real", "padded"] = "real"  # over a text's tokens, or padded to prompt.max_text_tokens first
    token_scale: Literal["default", "embedding_norm"] = "default"  # as published, or as large as the LLM's embeddings
    # Ablations:
    mixer: bool = True  # off: voice and face are added, whatever the text says
    multi_scale: bool = True  # off: one MLP, of the first scale, instead of a weighted sum of several
    modalities: Literal["all", "audio", "vision", "text"] = "all"  # the others count as absent; the mixer reads the text


class Summary(nn.Module):
    """Frames of one modality -> one vector of width D: an LSTM's last state, projected without activation."""

    def __init__(self, features: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.scaling = FeatureScaling(features)  # choice 16; the public code takes features as they are
        self.state = LastState(features, hidden)
        self.linear = nn.Linear(hidden, dim)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """frames (B, T, F), lengths (B,) -> (B, D); an absent modality leaves the projection's bias."""
        return self.linear(self.state(self.scaling(frames, lengths), lengths))


class MultiScaleFusion(nn.Module):
    """MLPs D -> E / scale -> D side by side, their learned weighted sum, and one vector of the LLM's width."""

    def __init__(self, dim: int, llm_dim: int, scales: tuple[int, ...]) -> None:
        super().__init__()
        widths = [max(1, llm_dim // scale) for scale in scales]
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, dim)) for width in widths)
        if len(scales) > 1:
            self.weigh = nn.Linear(len(scales), 1)
        self.to_llm = nn.Linear(dim, llm_dim)

    def forward(self, mixed: Tensor) -> Tensor:
        """(B, D) -> (B, E)."""
        views = torch.stack([mlp(mixed) for mlp in self.mlps], dim=-1)
        return self.to_llm((self.weigh(views) if len(self.mlps) > 1 else views)[..., 0])


class MseTokens(TokenMaker):
    """Face, voice and the text's embeddings -> K pseudo tokens.

    With `modalities="text"` voice and face count as absent in every clip: the tokens are made of the text's mean alone.
    """

    pad: Tensor  # (E,) embedding of the LLM's padding token, for `text_mean="padded"`

    def __init__(self, config: MseAdapterConfig, inputs: Inputs, llm: FrozenLLM) -> None:
        super().__init__()
        self.config, self.num_tokens = config, config.num_pseudo_tokens
        self.audio = Summary(inputs.widths["audio"], config.audio_hidden, config.dim)
        self.vision = Summary(inputs.widths["vision"], config.vision_hidden, config.dim)
        if config.mixer:
            self.mixer = nn.Linear(llm.dim, config.dim)
        self.fusion = MultiScaleFusion(config.dim, llm.dim, config.scales if config.multi_scale else config.scales[:1])
        self.spread = nn.Linear(1, config.num_pseudo_tokens)
        if config.token_scale == "embedding_norm":  # by default b_k alone has entries in [-1, 1]: tens of times too large
            with torch.no_grad():
                for weight in self.spread.parameters():
                    weight.mul_(3**0.5 * llm.embedding_norm / llm.dim**0.5)
        pad = llm.embedding.weight[_padding_id(llm)].detach().float()
        self.register_buffer("pad", pad, persistent=False)  # the LLM's, not ours

    def set_feature_statistics(self, modality: Modality, mean: Tensor, std: Tensor) -> None:
        cast(Summary, getattr(self, modality)).scaling.take(mean, std)

    def forward(self, streams: Streams) -> tuple[Tensor, dict[str, Tensor]]:
        """Summarise, mix, fuse and spread; there are no attention maps."""
        summaries = []
        for modality in MODALITIES:
            frames, lengths = streams[modality].values, streams[modality].lengths
            if self.config.modalities not in ("all", modality):
                frames, lengths = frames[:, :0], torch.zeros_like(lengths)
            summaries.append(getattr(self, modality)(frames, lengths))
        mixed = summaries[0] + summaries[1]
        if self.config.mixer:  # a * k + v * k = (a + v) * k
            mixed = mixed * self.mixer(self._text_mean(streams.text.values.to(self.mixer.weight.dtype), streams.text.lengths))
        return self.spread(self.fusion(mixed)[..., None]).transpose(1, 2), {}

    def _text_mean(self, text: Tensor, lengths: Tensor) -> Tensor:
        """(B, L, E) -> (B, E)."""
        if self.config.text_mean == "real":
            return mean_over_time(text, lengths)
        padded_length = self.config.prompt.max_text_tokens
        missing = (padded_length - lengths).clamp(min=0)[:, None]
        return (text.sum(1) + missing * self.pad) / padded_length


class MseAdapter(PromptedLM):
    """MSE-Adapter's pseudo tokens before a frozen LLM."""

    maker_type = MseTokens


def _padding_id(llm: FrozenLLM) -> int:
    """What the LLM's family pads with: its padding token, else the unknown one (Llama), else the end of text (Qwen)."""
    names = ("pad_token_id", "unk_token_id", "eos_token_id")
    return next((found for name in names if (found := getattr(llm.tokenizer, name, None)) is not None), 0)


register(
    MseAdapterConfig, MseAdapter, row="MSE-Adapter",
    settings={
        "demo": {  # at the published token scale it learns slowly; chosen on validation clips
            "method.audio_hidden": 32, "method.vision_hidden": 32, "method.dim": 64, "method.token_scale": "embedding_norm",
        },
        "demo/meld": {"training.learning_rate": 1e-2},
        "smoke": {"method.audio_hidden": 8, "method.vision_hidden": 8, "method.dim": 16},
        "paper": {"training.epsilon": 1e-4, "training.gradient_clip": None} | {"training.epochs": 30, "training.patience": 10},
        "paper/meld": {
            "method.audio_hidden": 32, "method.vision_hidden": 16, "method.num_pseudo_tokens": 2,
            "training.epochs": 50, "training.patience": 8,
        },
        "paper/sims/llama2-7b": {"training.learning_rate": 5e-5, "training.batch_size": 8, "training.epochs": 40},
    },
    reads="one utterance: words by the frozen LLM, all frames of voice and face",
)  # fmt: skip
