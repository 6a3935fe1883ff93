"""Self-MM: one multimodal task and three unimodal ones with generated labels (Yu et al., AAAI 2021).

Shapes: N clips of the training split, B of them in a batch, C targets per clip, d features. A score is the case C = 1. For
classes, of which the paper has none, target c is +1 for class c and -1 for the rest, and label generation (section 3.3)
holds target by target: the centre of a class's clips takes the place of the positive centre, that of the rest the negative one's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cmpta_lib.base import Batch, Group, Loss
from cmpta_lib.baselines.supervised import (
    AS_IN_MMSA,
    Chance,
    ClipBatch,
    Clips,
    LastState,
    Supervised,
    SupervisedConfig,
    split_by_decay,
    task_losses,
)
from cmpta_lib.config import Positive, TrainingConfig, Width
from cmpta_lib.data.corpus import MODALITIES, Modality, Split, Task
from cmpta_lib.fast.packing import send
from cmpta_lib.llm.loading import contextual
from cmpta_lib.registry import register

if TYPE_CHECKING:
    from transformers.models.bert import BertModel


Decay = Annotated[float, Field(ge=0, le=1000)]


class SelfMMConfig(SupervisedConfig):
    """Yu et al. 2021; sizes, dropout, rates and decays as MMSA has them for SIMS-V2.

    `training.learning_rate` and `training.weight_decay` are those of the four heads; the rates here multiply the former.
    MMSA sums the gradients of four batches of 16 before a step: one batch of 64 here, its labels renewed once a step.
    """

    name: Literal["self_mm"] = "self_mm"
    recipe: Literal[1] = 1
    quirks: ClassVar[dict[str, object]] = {"label_bound": 3.0}
    label_bound: Positive = 1.0  # H: generated labels stay in [-H, H]; 1 = the range of the scores themselves
    audio_hidden: Width = 16  # of the LSTM
    vision_hidden: Width = 64
    audio_size: Width = 16  # of a clip's vector
    vision_size: Width = 32
    fusion_features: Width = 128
    text_features: Width = 64
    audio_features: Width = 32
    vision_features: Width = 32
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


UNIMODAL = ("text", "audio", "vision")
SPACES = ("fusion", *UNIMODAL)
_EPSILON = 1e-8


class LabelTables(nn.Module):
    """Targets and features of every training clip in four spaces; all of it buffers, so that a killed run goes on exactly.

    `widths`: d of each space. `bound`: H, generated labels stay in [-H, H].
    """

    targets: Tensor  # (4, N, C): multimodal labels, then the generated ones in the order of `UNIMODAL`

    def __init__(self, widths: Mapping[str, int], outputs: int, bound: float) -> None:
        super().__init__()
        self.bound = bound
        self.register_buffer("targets", torch.zeros(len(SPACES), 0, outputs))
        for space in SPACES:
            self.register_buffer(f"features_{space}", torch.zeros(0, widths[space]))
            self.register_buffer(f"centres_{space}", torch.zeros(2, outputs, widths[space]))  # positive, negative

    def start(self, targets: Tensor) -> None:
        """Size the tables for (N, C) multimodal labels; every modality starts with these."""
        self.targets = targets.to(self.targets).expand(len(SPACES), -1, -1).clone()
        for space in SPACES:
            held = self.get_buffer(f"features_{space}")
            setattr(self, f"features_{space}", held.new_zeros(len(targets), held.shape[1]))

    def update(self, rows: Tensor, features: Mapping[str, Tensor], epoch: int) -> None:
        """Move the generated labels of clips `rows` (B,) towards what their features (B, d) say; `epoch` counts from 1."""
        positions = {space: self._position(space, features[space]) for space in SPACES}
        label, fused = self.targets[0, rows], positions["fusion"]
        for number, space in enumerate(UNIMODAL, 1):
            alone = positions[space]
            # Where the fused features lie between both centres the ratio has no bound; 0 * inf would be no number.
            scaled = torch.nan_to_num(alone / (fused + _EPSILON) * label)
            wanted = (0.5 * scaled + 0.5 * (label + alone - fused)).clamp(-self.bound, self.bound)
            self.targets[number, rows] = ((epoch - 1) * self.targets[number, rows] + 2 * wanted) / (epoch + 1)

    def _position(self, space: str, features: Tensor) -> Tensor:
        """(B, d) -> (B, C) alpha: how much nearer to the positive centre than to the negative one, relative to the former."""
        centres = self.get_buffer(f"centres_{space}")
        to_positive, to_negative = (torch.linalg.vector_norm(features[:, None] - centre, dim=-1) for centre in centres)
        return (to_negative - to_positive) / (to_positive + _EPSILON)

    def write(self, rows: Tensor, features: Mapping[str, Tensor]) -> None:
        """Keep features (B, d) of clips `rows`, and find the centres of all clips above zero and of all below, in each space
        by its own labels; where there are none, a centre stays as it was."""
        for number, space in enumerate(SPACES):
            held, centres = self.get_buffer(f"features_{space}"), self.get_buffer(f"centres_{space}")
            held[rows] = features[space]
            for place, chosen in enumerate((self.targets[number].T > 0, self.targets[number].T < 0)):
                count = chosen.sum(1, keepdim=True)
                mean = chosen.to(held) @ held / count.clamp(min=1)
                centres[place] = torch.where(count > 0, mean, centres[place])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Tables of any number of clips: a finished run is opened without its training split."""
        for name in ("targets", *(f"features_{space}" for space in SPACES)):
            held, stored = self.get_buffer(name), state_dict.get(prefix + name)
            if stored is not None and stored.ndim == held.ndim:
                setattr(self, name, held.new_zeros(*held.shape[:-2], stored.shape[-2], held.shape[-1]))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class FramesNet(nn.Module):
    """One vector for a clip's frames: last LSTM state, dropout, linear."""

    def __init__(self, features: int, hidden: int, size: int, dropout: float) -> None:
        super().__init__()
        self.last, self.dropout, self.out = LastState(features, hidden), nn.Dropout(dropout), nn.Linear(hidden, size)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        return self.out(self.dropout(self.last(frames, lengths)))


class Head(nn.Module):
    """Three layers; what the first gives is the task's feature vector F, by which labels are generated."""

    def __init__(self, size: int, hidden: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout, self.enter = nn.Dropout(dropout), nn.Linear(size, hidden)
        self.inner, self.out = nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(B, size) -> F (B, hidden), (B, C)."""
        features = self.enter(self.dropout(vectors)).relu()
        return features, self.out(self.inner(features).relu())


class SelfMMNet(nn.Module):
    """`bert` is fine-tuned; `tables` hold the generated labels."""

    def __init__(self, bert: BertModel, widths: Mapping[Modality, int], settings: SelfMMConfig, outputs: int) -> None:
        super().__init__()
        self.bert = bert
        hidden = {"audio": settings.audio_hidden, "vision": settings.vision_hidden}
        sizes = {"text": int(bert.config.hidden_size), "audio": settings.audio_size, "vision": settings.vision_size}
        features = {space: int(getattr(settings, f"{space}_features")) for space in SPACES}
        dropout = {space: float(getattr(settings, f"{space}_dropout")) for space in SPACES}
        self.frames = nn.ModuleDict(
            {name: FramesNet(widths[name], hidden[name], sizes[name], settings.lstm_dropout) for name in MODALITIES}
        )
        sizes["fusion"] = sum(sizes.values())
        self.heads = nn.ModuleDict({space: Head(sizes[space], features[space], outputs, dropout[space]) for space in SPACES})
        self.tables = LabelTables(features, outputs, settings.label_bound)

    def forward(self, clips: Clips) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """F (B, d) and outputs (B, C) of every space."""
        embedded = self.bert.embeddings(input_ids=clips.text_ids)
        return self.of_text(contextual(self.bert, embedded, clips.text_real)[:, 0], clips)

    def of_text(self, text: Tensor, clips: Clips) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """As `forward`, with the text's vector (B, dim) at hand."""
        vectors = {"text": text} | {name: self.frames[name](*clips[name]) for name in MODALITIES}
        vectors["fusion"] = torch.cat([vectors[name] for name in UNIMODAL], dim=-1)
        found, outputs = zip(*(self.heads[space](vectors[space]) for space in SPACES), strict=True)
        return dict(zip(SPACES, found, strict=True)), dict(zip(SPACES, outputs, strict=True))


class SelfMM(Supervised):
    """Order of a step: loss by the labels so far, its gradient, new labels (from epoch 2), features, centres."""

    keeps_clip_state = True

    def network(self) -> nn.Module:
        self._rows: dict[str, int] = {}  # clip id -> its row in the tables
        self._seen: tuple[Tensor, dict[str, Tensor]] | None = None
        bert = self.encoder.model.requires_grad_(True)
        return SelfMMNet(bert, self.inputs.widths, cast(SelfMMConfig, self.settings), self.outputs)

    def fit(self, train: Split) -> None:
        super().fit(train)
        self._rows = {clip: row for row, clip in enumerate(train.table["id"])}
        self.net.tables.start(multimodal_targets(torch.from_numpy(train.labels), self.task))

    def forward(self, clips: Clips) -> Tensor:
        outputs: dict[str, Tensor] = self.net(clips)[1]
        return outputs["fusion"]

    def loss(self, batch: ClipBatch) -> Loss:  # type: ignore[override]
        """The multimodal task's loss, and each modality's absolute errors weighted by how far its label has moved.

        Raises:
            ValueError: a clip has no label, or none in the tables.
        """
        labels, rows = self.labels(batch), self._rows_of(batch)
        features, outputs = self.net(self.clips(batch))
        self._seen = rows, {space: found.detach() for space, found in features.items()}
        parts = {"fusion": task_losses(outputs["fusion"], labels, self.task).sum()}
        targets = self.net.tables.targets[:, rows]
        for number, space in enumerate(UNIMODAL, 1):
            parts[space] = moved_losses(outputs[space], targets[number], targets[0]).sum()
        return Loss(torch.stack([*parts.values()]).sum(), len(batch.ids), parts)

    def _rows_of(self, batch: ClipBatch) -> Tensor:
        if unknown := [clip for clip in batch.ids if clip not in self._rows]:
            said = f"clip {unknown[0]}: Self-MM keeps labels of the {len(self._rows)} training clips it was fitted to"
            raise ValueError(f"{said}, and this is none of them; call `fit` with the split that it is to be trained on")
        return send([np.array([self._rows[clip] for clip in batch.ids], np.int64)], self.device)[0]

    @torch.no_grad()
    def after_step(self, batch: Batch, epoch: int) -> None:
        """New labels, features and centres, by what `loss` saw of the batch before the optimiser's step."""
        if self._seen is None:
            return
        (rows, features), self._seen = self._seen, None
        if epoch > 0:
            self.net.tables.update(rows, features, epoch + 1)
        self.net.tables.write(rows, features)

    def groups(self, config: TrainingConfig) -> Sequence[Group]:
        """BERT with and without decay, audio, vision, and the rest, which follows the run's own settings."""
        settings, net = self.settings, self.net
        decayed, bare = split_by_decay(net.bert)
        audio, vision = (list(net.frames[name].parameters()) for name in MODALITIES)
        return [
            Group(decayed, settings.bert_rate, settings.bert_weight_decay),
            Group(bare, settings.bert_rate, 0.0),
            Group(audio, settings.audio_rate, settings.audio_weight_decay),
            Group(vision, settings.vision_rate, settings.vision_weight_decay),
            Group(list(net.heads.parameters())),
        ]


def multimodal_targets(labels: Tensor, task: Task) -> Tensor:
    """(N,) scores or class indices -> (N, C) float32: the scores, or +1 for the class and -1 for the others."""
    if task.kind == "regression":
        return labels.float()[:, None]
    return 2.0 * F.one_hot(labels, len(task.labels)).float() - 1.0


def moved_losses(outputs: Tensor, targets: Tensor, multimodal: Tensor) -> Tensor:
    """Three times (B, C) -> (B,): absolute errors, weighted by tanh of the target's distance to the multimodal label."""
    return ((targets - multimodal).abs().tanh() * (outputs - targets).abs()).mean(1)


register(
    SelfMMConfig, SelfMM, row="Self-MM", comparisons=("sims",),
    settings={
        # Generated labels first act in the third epoch.
        "demo": {"training.epochs": 3, "training.learning_rate": 5e-3, "method.bert_rate": 0.3},
        "demo/data": {
            "training.epochs": 30, "training.learning_rate": 3e-3, "method.bert_rate": 0.03,
            "method.audio_hidden": 128, "method.audio_size": 64,
        },
        # 4 batches of 16, whose gradients the public code sums.
        "paper": AS_IN_MMSA | {"training.batch_size": 64, "training.learning_rate": 1e-3, "training.weight_decay": 1e-3},
        "smoke": {f"method.{space}_features": 8 for space in ("fusion", "text", "audio", "vision")},
    },
    reads="one utterance: words by a BERT that is trained too, all frames of voice and face",
)  # fmt: skip
