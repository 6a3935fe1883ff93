"""Answers of a published omni model to a clip's words and its recording, as the model is: zero-shot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from cmpta_lib.base import Batch, Loss, Method, Predictions, Tools
from cmpta_lib.beyond import media
from cmpta_lib.beyond import omni_model as omni
from cmpta_lib.beyond.media import Clip, Reading
from cmpta_lib.config import AtLeastOne, LLMConfig, MethodConfig, Positive, RunConfig
from cmpta_lib.data.corpus import Inputs, Sample, Task
from cmpta_lib.files import runs_folder
from cmpta_lib.llm.files import OMNI_MODELS
from cmpta_lib.method.prompted import Layout, answer_text, legal_answers
from cmpta_lib.registry import register


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


TEXT = omni.TEXT


@dataclass(frozen=True)
class OmniBatch(Batch):
    """Recordings are read when they are shown, one at a time. `labels`: answers as `answer_text` has them, for `loss`."""

    texts: tuple[str, ...]
    labels: tuple[str | None, ...]


@dataclass(frozen=True)
class Question:
    """What is asked of a clip: the prompt, and how the model writes each legal answer, in the order of those."""

    prompt: str
    written: tuple[str, ...]

    def parse(self, reply: str) -> int | None:
        """The place of the legal answer that a reply is, capitals, quotes, brackets and a last full stop aside; or None."""
        bare = reply.casefold().split("\n")[0].strip(" .'\"*")
        found = [place for place, answer in enumerate(self.written) if bare in _forms(answer)]
        return found[0] if len(found) == 1 else None


def _forms(answer: str) -> set[str]:
    """An answer with and without its "emotion: ", and with brackets around the label."""
    subject, _, label = answer.casefold().rpartition(": ")
    bare = {label, f"[{label}]"}
    return bare | {f"{subject}: {one}" for one in bare} if subject else bare


def question(settings: OmniConfig, task: Task, has_audio: bool, has_vision: bool) -> Question:
    """The words around a clip, which name no sound and no picture that is not there.

    "benchmark" is the sentence of MMLA's public code; it speaks of a video, of text, video and audio in every case.
    """
    answers = legal_answers(task, settings.answer_decimals)
    if settings.prompt == "paper":
        layout = Layout.of(task)
        return Question(f"{layout.open}{TEXT}{layout.close}{layout.prompt}", tuple(answers))
    subject = settings.subject or ("emotion" if task.kind == "classification" else "sentiment")
    labels = list(task.labels if task.kind == "classification" else answers)
    scale = "" if task.kind == "classification" else f", from {labels[0]} (most negative) to {labels[-1]} (most positive)"
    shown = "a video" if has_vision else "a recording" if has_audio else "an utterance"
    given = {
        (True, True): "text, video, and audio content", (False, True): "text and video content",
        (True, False): "text and audio content", (False, False): "text",
    }[has_audio, has_vision]  # fmt: skip
    return Question(
        f"You are presented with {shown} in which the speaker says: {TEXT}. Based on the {given}, what is the {subject} of "
        f"this speaker{scale}?\nThe candidate labels for {subject} are: [{', '.join(labels)}]. Respond in the format: "
        f"'{subject}: [label]'. Only one label should be provided.",
        tuple(f"{subject}: {label}" for label in labels),
    )


class Omni(Method):
    """Nothing is trained: the module is empty, and a finished run holds which model answered what."""

    def __init__(self, config: RunConfig, inputs: Inputs, tools: Tools) -> None:
        assert isinstance(config.method, OmniConfig)
        self.settings, self.task, self.corpus = config.method, inputs.task, config.data.name
        caches = [folder / "cache" / "llm" for folder in (runs_folder(), runs_folder() / "smoke")]
        self.llm = omni.load(self.settings.model, caches, tools.device, self.settings.system, self.settings.frame_tokens)
        self.module = nn.Module()
        self.answers = legal_answers(self.task, self.settings.answer_decimals)
        self.reading = Reading(
            "audio" in self.settings.modalities or self.settings.modalities == "all",
            "vision" in self.settings.modalities or self.settings.modalities == "all",
            self.settings.frames_per_second,
            self.settings.max_seconds,
        )

    def collate(self, samples: Sequence[Sample]) -> OmniBatch:
        labels = [s.label if s.label is None else answer_text(self.task, s.label, self.settings.answer_decimals) for s in samples]
        return OmniBatch(tuple(s.id for s in samples), {}, tuple(s.text for s in samples), tuple(labels))

    def clips(self, batch: OmniBatch) -> list[Clip]:
        """What the model is shown; raises as `media.find` and `media.read`."""
        if not self.settings.needs_media:
            return [Clip(name, text) for name, text in zip(batch.ids, batch.texts, strict=True)]
        found = media.find(self.corpus, batch.ids)
        return [media.read(found[name], name, text, self.reading) for name, text in zip(batch.ids, batch.texts, strict=True)]

    def ask(self, clip: Clip) -> Question:
        return question(self.settings, self.task, clip.audio is not None, clip.frames is not None)

    def scores(self, clips: Sequence[Clip]) -> np.ndarray:
        """(B, answers) log-probabilities of every legal answer, normalised among them."""
        asked = [self.ask(clip) for clip in clips]
        found = [self.llm.score([clip], one.prompt, one.written)[0] for clip, one in zip(clips, asked, strict=True)]
        return np.array(found, np.float64).reshape(len(clips), len(self.answers))

    def loss(self, batch: OmniBatch) -> Loss:  # type: ignore[override]  # what our own `collate` made
        """What the answers cost, without a gradient."""
        order = [*self.answers]
        places = [order.index(label) for label in batch.labels if label is not None]
        if len(places) < len(batch.ids):
            raise ValueError("a clip has no label: only labelled clips have a loss")
        scores = self.scores(self.clips(batch))
        return Loss(torch.tensor(-scores[np.arange(len(places)), places].sum()), len(places))

    def predict(self, batch: OmniBatch) -> Predictions:  # type: ignore[override]
        """The likeliest legal answer; or with free decoding what the model writes, None where that is no legal answer."""
        clips, order = self.clips(batch), [*self.answers]
        oddities = Counter({"recordings_cut": sum(clip.was_cut for clip in clips)})
        if self.settings.needs_media:
            oddities["without_sound"] = sum(clip.audio is None for clip in clips) if self.reading.audio else 0
            oddities["without_picture"] = sum(clip.frames is None for clip in clips) if self.reading.vision else 0
        chances, places = None, []
        if self.settings.decoding == "score":
            scores = self.scores(clips)
            places, chances = scores.argmax(1).tolist(), np.exp(scores)
        else:
            for clip in clips:
                asked = self.ask(clip)
                places.append(asked.parse(self.llm.generate([clip], asked.prompt, self.settings.max_new_tokens)[0]))
            oddities["unparsable_replies"] = places.count(None)
        replies = [None if place is None else order[place] for place in places]
        values = np.array([np.nan if reply is None else self.answers[reply] for reply in replies], np.float64)
        found = {name: count for name, count in oddities.items() if count}
        return Predictions(values, replies, tuple(order), chances, found)


register(
    OmniConfig,
    Omni,
    row="omni model",
    comparisons=(),  # a model of another size that reads recordings, not features: no line of the paper's tables
    reads="one utterance: words, sound and pictures of the recording by a published omni model as it is (zero-shot)",
    is_trained=False,
    is_beyond=True,
)
