"""TFN: all products of what face, voice and words say, alone, in pairs and together (Zadeh et al., EMNLP 2017).

No public code has a TFN for MELD: it gets the network for SIMS-V2, with a logit per class and cross-entropy.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from cmpta_lib.baselines.subnets import SubnetsConfig, SubnetsMethod
from cmpta_lib.baselines.supervised import AS_IN_MMSA, Chance, Clips
from cmpta_lib.config import AtLeastOne
from cmpta_lib.registry import register


class TfnConfig(SubnetsConfig):
    """Tensor Fusion Network."""

    name: Literal["tfn"] = "tfn"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {**SubnetsConfig.quirks, "score_range": "six"}
    vision_hidden: AtLeastOne = 128
    text_hidden: AtLeastOne = 128
    text_out: AtLeastOne = 128
    post_hidden: AtLeastOne = 32
    post_dropout: Chance = 0.5
    # A score is 2 sigmoid - 1, as SIMS' labels; MOSI's 6 sigmoid - 3; or what the last layer says.
    score_range: Literal["labels", "six", "none"] = "labels"


class TensorFusion(nn.Module):
    """The outer product [1; a] x [1; v] x [1; t] (the paper's eq 2), then three linear layers."""

    def __init__(self, settings: TfnConfig, outputs: int) -> None:
        super().__init__()
        product = (settings.audio_hidden + 1) * (settings.vision_hidden + 1) * (settings.text_out + 1)
        self.layers = nn.Sequential(
            nn.Dropout(settings.post_dropout),
            nn.Linear(product, settings.post_hidden),
            nn.ReLU(),
            nn.Linear(settings.post_hidden, settings.post_hidden),
            nn.ReLU(),
            nn.Linear(settings.post_hidden, outputs),
        )

    def product(self, audio: Tensor, vision: Tensor, text: Tensor) -> Tensor:
        """[1; h] of each modality, (B, H + 1) -> (B, their product), the text's index fastest."""
        return torch.einsum("ba,bv,bt->bavt", audio, vision, text).flatten(1)

    def forward(self, audio: Tensor, vision: Tensor, text: Tensor) -> Tensor:
        """[1; h] of each modality, (B, H + 1) -> (B, outputs)."""
        outputs: Tensor = self.layers(self.product(audio, vision, text))
        return outputs


class TFN(SubnetsMethod):
    """Scores are squashed into the range that `score_range` names, logits are not."""

    def network(self) -> nn.Module:
        return nn.ModuleDict({"subnets": self.subnets(), "fusion": TensorFusion(self.settings, self.outputs)})

    def forward(self, clips: Clips) -> Tensor:
        outputs = super().forward(clips)
        if self.task.kind == "classification" or self.settings.score_range == "none":
            return outputs
        limit = 3.0 if self.settings.score_range == "six" else 1.0
        return 2 * limit * outputs.sigmoid() - limit


register(
    TfnConfig,
    TFN,
    row="TFN",
    comparisons=("meld",),
    settings={
        "demo": {
            "method.audio_hidden": 16, "method.vision_hidden": 16, "method.text_hidden": 64, "method.text_out": 32,
        },
        "paper": AS_IN_MMSA
        | {"training.batch_size": 128, "training.learning_rate": 2e-3, "training.weight_decay": 0.0},
        "smoke": {
            "method.audio_hidden": 4, "method.vision_hidden": 4, "method.text_hidden": 8, "method.text_out": 4,
            "method.post_hidden": 8,
        },
    },
    reads="one utterance: words by a frozen BERT, the mean frame of voice and of face",
)
