"""Answers of a published omni model to a clip's words and its recording, as the model is: zero-shot.

Corpora hold features, not media. Whoever has the recordings names their folder in the environment variable CMPTA_MEDIA:
`<folder>/<corpus>/<clip id>.mp4`, or .mkv, .avi, .wav. Decoding is PyAV's, an extra: `pip install av`, imported only when a
recording is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from cmpta_lib import files
from cmpta_lib.base import Batch, Loss, Method, Predictions, Resources
from cmpta_lib.beyond import omni_model
from cmpta_lib.beyond.omni_model import RATE_HZ, TEXT, Clip
from cmpta_lib.config import AtLeastOne, LLMConfig, MethodConfig, Positive, RunConfig, override
from cmpta_lib.data.corpus import Corpus, Inputs, Sample, Task
from cmpta_lib.llm import files as llm_files
from cmpta_lib.method.prompted import Layout, answer_text, legal_answers
from cmpta_lib.registry import register

MEDIA = "CMPTA_MEDIA"  # environment variable: the folder of recordings
SUFFIXES = (".mp4", ".mkv", ".avi", ".wav")  # the first that is there is read
SHORTEST_S = 0.1  # less sound than this is none: the audio encoders' convolutions would leave nothing of it
_SEPARATOR = "$_$"  # of video and clip in ids of SIMS-V2, where recordings have a folder per video
ANSWERED = ("valid", "test")  # the splits that a run answers, whose recordings decide its result


class OmniConfig(MethodConfig):
    """An omni model that hears and sees the recording of a clip itself; nothing is trained (zero-shot)."""

    name: Literal["omni"] = "omni"
    recipe: Literal[1] = 1
    model: LLMConfig = LLMConfig(name=llm_files.OMNI_MODELS[0])  # its dtype is bfloat16 where there is a GPU
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


def missing_recordings(corpus: str) -> str:
    """Why no clip of this corpus can be read here, with what to do; "" where its folder and PyAV are there."""
    named, needed = os.environ.get(MEDIA, ""), f"the recordings of '{corpus}' are needed:"
    if not named:
        return f"{needed} set {MEDIA} to the folder that holds {corpus}/<clip id>.mp4"
    folder = _media(corpus)
    if not (folder.is_absolute() and folder.is_dir()):  # runs are made by processes that may start elsewhere
        return f"{needed} {MEDIA} is {named}, expected the whole path, from the root, of a folder that holds {corpus}"
    return "" if find_spec("av") else "PyAV, which reads recordings, is not installed: pip install av"


def _media(corpus: str) -> Path:
    return Path(os.path.expanduser(os.path.expandvars(os.environ[MEDIA])), corpus)


def find_recordings(corpus: str, ids: Iterable[str]) -> dict[str, Path]:
    """The recording of each clip, by its id.

    Raises:
        FileNotFoundError: what `missing_recordings` says, or a clip has no recording; says what was looked for.
    """
    if reason := missing_recordings(corpus):
        raise FileNotFoundError(reason)
    folder = _media(corpus).resolve()
    found: dict[str, Path | None] = {}
    for name in ids:
        stems = (name, name.replace(_SEPARATOR, "/"))
        places = (Path(os.path.normpath(folder / f"{stem}{suffix}")) for stem in stems for suffix in SUFFIXES)
        # An id such as "../x" leads out of the folder.
        found[name] = next((path for path in places if path.is_relative_to(folder) and path.is_file()), None)
    if absent := [name for name, path in found.items() if path is None]:
        raise FileNotFoundError(
            f"{folder}: no recording of {len(absent)} of {len(found)} clips; the first is {absent[0]!r}, expected "
            f"{absent[0]}{' or '.join(SUFFIXES)}; put it there"
        )
    return {name: path for name, path in found.items() if path}


def recordings_fingerprint(recordings: Mapping[str, Path], record: Path) -> str:
    """First 16 hex digits of a SHA-256 over ids, sizes and contents, in the order of the ids.

    What was hashed is kept in the file `record`, and hashed again only where a recording changed.
    """
    hashes = files.HashCache(record)
    clips = [[name, path.stat().st_size, hashes.sha256(path)] for name, path in sorted(recordings.items())]
    hashes.save()
    return hashlib.sha256("".join(json.dumps(clip) + "\n" for clip in clips).encode()).hexdigest()[:16]


def read_recording(
    path: Path, name: str, text: str, audio: bool = True, vision: bool = True,
    frames_per_second: float = 2.0, max_seconds: float = 30.0,
) -> Clip:  # fmt: skip
    """A clip from its recording; what it has no track of is None, as is sound shorter than `SHORTEST_S`.

    Raises:
        ValueError: the file cannot be decoded; names it and the clip.
    """
    import av

    try:
        wave, long_wave = _audio(path, max_seconds) if audio else (None, False)
        frames, long_video = _frames(path, frames_per_second, max_seconds) if vision else (None, False)
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path}: the recording of clip {name!r} cannot be decoded ({error}); replace the file") from error
    return Clip(name, text, wave, frames, frames_per_second, long_wave or long_video)


def _decoded(path: Path, kind: Literal["audio", "video"]) -> Iterator[Any]:
    """PyAV's frames of the first track of this kind; none where there is none."""
    import av

    with av.open(str(path)) as container:
        if getattr(container.streams, kind):
            yield from container.decode(**{kind: 0})


def _audio(path: Path, max_seconds: float) -> tuple[np.ndarray | None, bool]:
    """(N,) float32 at 16 kHz, and whether the recording went on.

    Channels are averaged, as the families' own loading does; FFmpeg's mono is louder and clips.
    """
    import av

    most, wave = round(max_seconds * RATE_HZ), np.zeros(0, np.float32)
    resampler = av.AudioResampler(format="fltp", rate=RATE_HZ)
    for frame in chain(_decoded(path, "audio"), [None]):  # None: what the resampler holds back
        wave = np.concatenate([wave, *(made.to_ndarray().mean(0) for made in resampler.resample(frame))])
        if wave.size > most:
            break
    if wave.size < SHORTEST_S * RATE_HZ:
        return None, False
    return np.clip(wave[:most], -1, 1).astype(np.float32), wave.size > most


def _frames(path: Path, frames_per_second: float, max_seconds: float) -> tuple[np.ndarray | None, bool]:
    """(T, H, W, 3) uint8 frames, evenly in time, and whether the recording went on.

    The frame at each multiple of the step is taken, so that a clip gives the same frames wherever it is cut.
    """
    start, taken, goes_on = None, list[np.ndarray](), False
    for frame in _decoded(path, "video"):
        start = (frame.time or 0.0) if start is None else start
        seconds = (frame.time or 0.0) - start
        if goes_on := seconds >= max_seconds:
            break
        # As often as its time calls for it: a recording with fewer frames shows each more than once.
        missing = int((seconds + 1e-6) * frames_per_second) + 1 - len(taken)
        taken += [frame.to_ndarray(format="rgb24")] * missing if missing > 0 else []
    return (np.stack(taken) if taken else None), goes_on


@dataclass(frozen=True)
class OmniBatch(Batch):
    """Recordings are read when they are shown, one at a time."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]  # answers as `answer_text` has them, for `loss`; "" where there is none


@dataclass(frozen=True)
class Question:
    """What is asked of a clip: the prompt, and how the model writes each legal answer, in the order of those."""

    prompt: str
    written: tuple[str, ...]

    def parse(self, reply: str) -> int | None:
        """The place of the legal answer that a reply is; or None. Capitals, quotes, a last full stop, an "emotion: " before
        the label and brackets around it make no difference."""
        bare = reply.casefold().split("\n")[0].strip(" .'\"*")
        for place, answer in enumerate(self.written):
            subject, colon, label = answer.casefold().rpartition(": ")
            if bare.removeprefix(subject + colon) in (label, f"[{label}]"):
                return place
        return None


def question(settings: OmniConfig, task: Task, has_audio: bool, has_vision: bool) -> Question:
    """The words around a clip, which name no sound and no picture that is not there.

    "benchmark" is the sentence of MMLA's public code; it speaks of a video, of text, video and audio in every case.
    """
    answers = legal_answers(task, settings.answer_decimals)
    if settings.prompt == "paper":
        layout = Layout.of(task)
        return Question(f"{layout.open}{TEXT}{layout.close}{layout.prompt}", tuple(answers))
    is_class = task.kind == "classification"
    subject = settings.subject or ("emotion" if is_class else "sentiment")
    labels = list(task.labels if is_class else answers)
    scale = "" if is_class else f", from {labels[0]} (most negative) to {labels[-1]} (most positive)"
    shown, given = {
        (True, True): ("a video", "text, video, and audio content"), (False, True): ("a video", "text and video content"),
        (True, False): ("a recording", "text and audio content"), (False, False): ("an utterance", "text"),
    }[has_audio, has_vision]  # fmt: skip
    return Question(
        f"You are presented with {shown} in which the speaker says: {TEXT}. Based on the {given}, what is the {subject} of "
        f"this speaker{scale}?\nThe candidate labels for {subject} are: [{', '.join(labels)}]. Respond in the format: "
        f"'{subject}: [label]'. Only one label should be provided.",
        tuple(f"{subject}: {label}" for label in labels),
    )


class Omni(Method):
    """Nothing is trained: the module is empty, and a finished run holds which model answered what."""

    def __init__(self, config: RunConfig, inputs: Inputs, resources: Resources) -> None:
        assert isinstance(config.method, OmniConfig)
        self.settings, self.task, self.corpus = config.method, inputs.task, config.data.name
        settings, self.module = self.settings, nn.Module()
        self.llm = omni_model.load(settings.model, resources.device, settings.system, settings.frame_tokens)
        self.answers = legal_answers(self.task, settings.answer_decimals)
        self.has_audio, self.has_vision = (settings.modalities in ("all", f"text_{one}") for one in ("audio", "vision"))

    def collate(self, samples: Sequence[Sample]) -> OmniBatch:
        ids, texts, labels = zip(*((s.id, s.text, s.label) for s in samples), strict=True)
        form = self.settings.answer_decimals
        return OmniBatch(ids, {}, texts, tuple("" if one is None else answer_text(self.task, one, form) for one in labels))

    def shown(self, batch: OmniBatch) -> list[tuple[Clip, Question]]:
        """What the model is shown and asked; raises as `find_recordings` and `read_recording`."""
        settings, clips = self.settings, [Clip(*named) for named in zip(batch.ids, batch.texts, strict=True)]
        if settings.needs_media:
            found, limits = find_recordings(self.corpus, batch.ids), (settings.frames_per_second, settings.max_seconds)
            read = (self.has_audio, self.has_vision, *limits)
            clips = [read_recording(found[clip.id], clip.id, clip.text, *read) for clip in clips]
        return [(c, question(settings, self.task, c.audio is not None, c.frames is not None)) for c in clips]

    def scores(self, shown: Sequence[tuple[Clip, Question]]) -> np.ndarray:
        """(B, answers) log-probabilities of every legal answer, normalised among them."""
        found = [self.llm.score(clip, asked.prompt, asked.written) for clip, asked in shown]
        return np.array(found, np.float64).reshape(len(shown), len(self.answers))

    def loss(self, batch: OmniBatch) -> Loss:  # type: ignore[override]  # what our own `collate` made
        """What the answers cost, without a gradient."""
        if "" in batch.labels:
            raise ValueError("a clip has no label: only labelled clips have a loss")
        places = [[*self.answers].index(label) for label in batch.labels]
        scores = self.scores(self.shown(batch))
        return Loss(torch.tensor(-scores[np.arange(len(places)), places].sum()), len(places))

    def predict(self, batch: OmniBatch) -> Predictions:  # type: ignore[override]
        """The likeliest legal answer; or with free decoding what the model writes, None where that is no legal answer."""
        shown, order, chances = self.shown(batch), [*self.answers], None
        issues = Counter({"recordings_cut": sum(clip.was_cut for clip, _ in shown)})
        issues["without_sound"] = sum(clip.audio is None for clip, _ in shown) if self.has_audio else 0
        issues["without_picture"] = sum(clip.frames is None for clip, _ in shown) if self.has_vision else 0
        if self.settings.decoding == "score":
            scores = self.scores(shown)
            places, chances = scores.argmax(1).tolist(), np.exp(scores)
        else:
            said = [self.llm.generate(clip, asked.prompt, self.settings.max_new_tokens) for clip, asked in shown]
            places = [asked.parse(reply) for (_, asked), reply in zip(shown, said, strict=True)]
            issues["unparsable_replies"] = places.count(None)
        replies = [None if place is None else order[place] for place in places]
        values = np.array([np.nan if reply is None else self.answers[reply] for reply in replies], np.float64)
        return Predictions(values, replies, tuple(order), chances, +issues)  # +: those that there are


def complete(config: RunConfig, corpus: Corpus, cache: Path, changes: Mapping[str, Any]) -> RunConfig:
    """The config with the fingerprints of its model and of the recordings of the clips that are answered.

    Computed in bfloat16 where there is a GPU and in float32 elsewhere, unless `changes` say otherwise.

    Raises:
        FileNotFoundError: model or recordings are not on this machine; says how to get them.
        OSError, ValueError: as `omni_model.check`.
    """
    assert isinstance(config.method, OmniConfig)
    settings, dtype = config.method, config.method.model.dtype
    if settings.needs_media and corpus.generated:
        raise FileNotFoundError(
            f"corpus '{corpus.name}' is generated: it holds features, and an omni model reads recordings; use real clips"
        )
    omni_model.check(llm_files.locate(settings.model.name))
    if "method.model.dtype" not in changes:
        dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    model = llm_files.resolve(settings.model.name, dtype, cache / "llm").model_dump()
    found: dict[str, Any] = {f"method.model.{field}": value for field, value in model.items()}
    if settings.needs_media:
        recordings = find_recordings(corpus.name, [name for split in ANSWERED for name in corpus.splits[split].table["id"]])
        found["method.media"] = recordings_fingerprint(recordings, cache / "media" / f"{corpus.fingerprint[:16]}.json")
    return override(config, found)


register(
    OmniConfig, Omni, row="omni model", complete=complete, waits=missing_recordings,
    comparisons=(),  # a model of another size that reads recordings, not features: no line of the paper's tables
    reads="one utterance: words, sound and pictures of the recording by a published omni model as it is (zero-shot)",
    is_trained=False,
    is_beyond=True,
)  # fmt: skip
