"""Self-MM: one multimodal task and three unimodal ones with generated labels (Yu et al., AAAI 2021).

Shapes: B clips, C outputs: one score, or a logit per class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmpta_lib.config import TrainingConfig
from cmpta_lib.data.corpus import MODALITIES, Modality, Split, Task
from cmpta_lib.llm.encoder import contextual
from cmpta_lib.methods.base import Batch, Group, Loss
from cmpta_lib.methods.label_generation import SPACES, UNIMODAL, LabelTables
from cmpta_lib.methods.settings import SelfMMConfig
from cmpta_lib.methods.subnets import LastState, split_by_decay
from cmpta_lib.methods.supervised import ClipBatch, Clips, Supervised, task_losses
from cmpta_lib.transfer import send

if TYPE_CHECKING:
    from transformers.models.bert import BertModel


class FramesNet(nn.Module):
    """One vector for a clip's frames: last LSTM state, dropout, linear."""

    def __init__(self, features: int, hidden: int, size: int, dropout: float) -> None:
        super().__init__()
        self.last, self.dropout, self.out = LastState(features, hidden), nn.Dropout(dropout), nn.Linear(hidden, size)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        vectors: Tensor = self.out(self.dropout(self.last(frames, lengths)))
        return vectors


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
        self.heads = nn.ModuleDict(
            {space: Head(sizes[space], features[space], outputs, dropout[space]) for space in SPACES}
        )
        self.tables = LabelTables(features, outputs, settings.label_bound)

    def forward(self, clips: Clips) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """F (B, d) and outputs (B, C) of every space."""
        embedded = self.bert.embeddings(input_ids=clips.text_ids)
        return self.told_apart(contextual(self.bert, embedded, clips.text_real)[:, 0], clips)

    def told_apart(self, text: Tensor, clips: Clips) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """As `forward`, with the text's vector (B, dim) at hand."""
        vectors = {
            "text": text,
            "audio": self.frames["audio"](clips.audio, clips.audio_lengths),
            "vision": self.frames["vision"](clips.vision, clips.vision_lengths),
        }
        vectors["fusion"] = torch.cat([vectors[name] for name in UNIMODAL], dim=-1)
        pairs = {space: self.heads[space](vectors[space]) for space in SPACES}
        return {space: pair[0] for space, pair in pairs.items()}, {space: pair[1] for space, pair in pairs.items()}


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
            raise ValueError(
                f"clip {unknown[0]}: Self-MM keeps labels of the {len(self._rows)} training clips it was fitted to, and "
                f"this is none of them; call `fit` with the split that it is to be trained on"
            )
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
        self.net.tables.find_centres()

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
