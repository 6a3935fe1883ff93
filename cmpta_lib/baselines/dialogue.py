"""What methods share that read whole dialogues as graphs of utterances: layout, utterance vectors, text in context.

Shapes: N utterances of D dialogues, the longest of L; a dialogue's utterances follow each other. Graphs are dense blocks
(D, L, L) with masks: dialogues have some 10 and at most 33 utterances in MELD, and a library for sparse graphs would be a
compiled dependency per torch version that buys nothing at that size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from cmpta_lib.base import Group, mean_over_time, real_positions
from cmpta_lib.baselines.supervised import Clips, LastState, Supervised, SupervisedConfig
from cmpta_lib.config import AtLeastOne, Positive, TrainingConfig, Width
from cmpta_lib.data.corpus import MODALITIES
from cmpta_lib.fast.packing import Ragged, send

SMALL_DIALOGUES = {"method.audio_width": 32, "method.vision_width": 32, "training.batch_size": 8, "training.epochs": 8}
TINY_DIALOGUES = {"method.audio_width": 8, "method.vision_width": 8, "method.dim": 8}


class DialogueConfig(SupervisedConfig):
    """What methods share that read whole dialogues; `training.batch_size` counts dialogues for them.

    The public code of both chooses its epoch on the test split. No setting here does.
    """

    context: bool = True  # False: each utterance is a dialogue of its own
    features: Literal["lstm", "mean"] = "lstm"  # a clip's vector: last state of an LSTM over its frames, or their mean
    audio_width: Width = 300  # of the LSTM's state, as wide as the papers' vectors
    vision_width: Width = 342
    frames_rate: Positive = 1.0  # times the learning rate, for those LSTMs
    speakers: AtLeastOne = 9  # rows of the speaker table: first, second, ... voice; later voices share the last
    bilstm: Literal["packed", "padded"] = "packed"  # padded: the backward direction starts in padding


@dataclass(frozen=True, kw_only=True)
class Layout(Ragged):
    """Where each of N utterances stands among D * L padded places and in a packed sequence, and who speaks it."""

    real: Tensor  # (D, L) bool
    packing: Tensor  # (N,) int64: the utterances in the order of a packed sequence
    unpacking: Tensor  # (N,) int64: its inverse
    batch_sizes: Tensor  # (L,) int64 on the host: how many dialogues have a first, second, ... utterance
    speakers: Tensor  # (N,) int64, numbered as they first speak

    @classmethod
    def of_dialogues(cls, sizes: Sequence[int], speakers: Tensor) -> Layout:
        """From the sizes of the dialogues in order; the host's indices travel as one block."""
        lengths = np.array(sizes, np.int64)
        starts, longest = lengths.cumsum() - lengths, int(lengths.max())
        order, turns = np.argsort(-lengths, kind="stable"), np.arange(longest)
        spoken = turns[:, None] < lengths[order]  # (L, D), longest dialogue first
        packing = (starts[order] + turns[:, None])[spoken]
        sent = send([cls.slots_of(lengths, longest), packing, np.argsort(packing), lengths], speakers.device)
        real = real_positions(sent[3], longest)
        rest = {"packing": sent[1], "unpacking": sent[2], "batch_sizes": torch.from_numpy(spoken.sum(1))}
        return cls(lengths=tuple(sizes), size=longest, slots=sent[0], real=real, speakers=speakers, **rest)

    def voices(self, table: nn.Embedding) -> Tensor:
        """(N, F) a row of the table for each utterance's speaker; those whom the table has no row for share the last."""
        return table(self.speakers.clamp(max=table.num_embeddings - 1))


class Conversation(nn.Module):
    """Utterance vectors in the light of their dialogue: a linear layer, then a two-layer BiLSTM over the utterances."""

    def __init__(self, width: int, hidden: int, dropout: float, bilstm: str) -> None:
        super().__init__()
        self.inward = nn.Linear(width, 2 * hidden)
        self.lstm = nn.LSTM(2 * hidden, hidden, num_layers=2, bidirectional=True, batch_first=True, dropout=dropout)
        self.packed = bilstm == "packed"

    def forward(self, vectors: Tensor, layout: Layout) -> Tensor:
        """(N, width) -> (N, 2 * hidden)."""
        if self.packed:
            given = PackedSequence(self.inward(vectors).index_select(0, layout.packing), layout.batch_sizes)
            return self.lstm(given)[0].data.index_select(0, layout.unpacking)
        # As in MMGCN's public code: the backward direction starts in the padding, so batch mates matter.
        return layout.packed(self.lstm(self.inward(layout.padded(vectors)))[0])


class DialogueMethod(Supervised):
    """A network over the three vectors of each utterance of whole dialogues.

    The papers' vectors (600 / 300 / 342 wide) come from networks that were trained on labels beforehand, and the files are
    not public for these features. In their place stand ours: the mean over the frozen text encoder's states, and the last
    state of an LSTM over the clip's frames, trained with the rest. `context=False` makes each utterance a dialogue.
    """

    unit = "dialogue"

    # The method's own part, made of widths, outputs and settings: (N, width) of text, audio, vision, and a `Layout` -> (N, C).
    graph: ClassVar[type[nn.Module]]

    def network(self) -> nn.Module:
        settings, given = self.settings, {str(name): width for name, width in self.inputs.widths.items()}
        made = {"audio": settings.audio_width, "vision": settings.vision_width} if settings.features == "lstm" else {}
        parts: dict[str, nn.Module] = {name: LastState(given[name], width) for name, width in made.items()}
        widths = {"text": self.encoder.dim, **given, **made}
        return nn.ModuleDict({**parts, "graph": type(self).graph(widths, self.outputs, settings)})

    def vectors(self, clips: Clips) -> tuple[Tensor, Tensor, Tensor]:
        """(N, width) of text, audio and vision; zeros where audio or vision is absent."""
        text, is_mean = mean_over_time(self.frozen_text(clips), clips.text_lengths), self.settings.features == "mean"
        audio, vision = ((mean_over_time if is_mean else self.net[name])(*clips[name]) for name in MODALITIES)
        return text, audio, vision

    def forward(self, clips: Clips) -> Tensor:
        sizes, speakers = clips.dialogues, clips.speakers
        if not self.settings.context:
            sizes, speakers = [1] * len(speakers), torch.zeros_like(speakers)
        layout = Layout.of_dialogues(sizes, speakers)
        return self.net["graph"](*self.vectors(clips), layout)

    def groups(self, config: TrainingConfig) -> Sequence[Group]:
        """The LSTMs over frames have a rate of their own: they stand in for vectors that were trained beforehand."""
        graph = list(self.net["graph"].parameters())
        frames = [p for name in MODALITIES if name in self.net for p in self.net[name].parameters()]
        return [Group(graph), Group(frames, rate=self.settings.frames_rate)]
