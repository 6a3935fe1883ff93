"""Statements about a clip's face and voice, in words: by rule from its frames, or as its generator wrote them.

Everything here is learned from frames, never from labels. `Describer` turns frames into a few facts and these into a short
statement; it is what MLLM-MAC's perception learns to say, and the knowledge that it is prompted with. `StatementCache`
keeps what a model said of clips, by their content, so that each clip is described once by each model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import nn

from cmpta_lib import files
from cmpta_lib.data.corpus import MODALITIES, Language, Modality, Sample, Split

ABSENT = -1  # in place of a fact where the clip has no such modality
END = "\n"  # closes what is said
CUE_BYTES = 96  # for the words that a generator has for face and voice


class StatementCache(dict[str, list[str]]):
    """Statements by the hex digest of a clip's content, in memory and, where a folder is given, in a file there.

    The file is named by `identity`, a digest of all that decides what is said. It has a line per clip, with a checksum of
    both: processes append without waiting for each other, and a line that a kill cut, that changed, or that another model
    said is not believed.

    Attributes:
        refused: how many lines of the file are not believed.
    """

    def __init__(self, identity: str, folder: Path | None) -> None:
        super().__init__()
        self.identity, self.path, self.refused = identity, None if folder is None else folder / f"{identity}.txt", 0
        if self.path is not None and self.path.is_file():
            with files.reading(self.path.parent):
                lines = self.path.read_bytes().decode(errors="replace").split("\n")
            for digest, _, text in (line.partition(" ") for line in lines if line):
                if digest == self._digest(text):
                    self.setdefault(*json.loads(text))  # the first to be written stays
                else:
                    self.refused += 1

    def add(self, found: Mapping[str, list[str]]) -> None:
        """Raises OSError where the folder cannot be written; the message says what to do."""
        self.update(found)
        if self.path is not None:
            texts = [json.dumps(item) for item in found.items()]
            with files.writing(self.path.parent):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab") as file:  # a line end first: the last line may have been cut
                    file.write("".join(f"\n{self._digest(text)} {text}" for text in texts).encode() + b"\n")

    def _digest(self, text: str) -> str:
        return hashlib.sha256(f"{self.identity} {text}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Wording:
    """The words of statements. `prompt` asks for one; `gap` stands between a statement and what follows it."""

    prompt: str
    start: str
    names: Mapping[Modality, str]
    absent: str
    comma: str
    between: str
    stop: str
    gap: str
    # Fact -> low, medium, high; of "course": steady, peak first, trough first. These are the signs; "+-" is peak, trough.
    energy: tuple[str, str, str] = ("1", "2", "3")
    movement: tuple[str, str, str] = ("4", "5", "6")
    course: tuple[str, str, str] = ("0", "+-", "-+")


# "signs" says the same in the few signs that the embedded tiny LLM has read in its pre-training, laid out as the stage
# directions there: it spells each other Chinese sign in three tokens, and cannot be brought to say what it has never met.
WORDINGS: Mapping[tuple[Language, str], Wording] = {
    ("zh", "words"): Wording(
        "请描述说话人的声音和表情：", "", {"audio": "声音", "vision": "表情"}, "缺失", "、", "；", "。", "",
        energy=("强度低", "强度中等", "强度高"),
        movement=("变化慢", "变化适中", "变化快"),
        course=("起伏平稳", "先升后降", "先降后升"),
    ),
    ("en", "words"): Wording(
        "Please describe the speaker's voice and face:", "", {"audio": "voice ", "vision": "face "},
        "absent", ", ", "; ", ".", " ",
        energy=("weak", "medium", "strong"),
        movement=("slow", "moderate", "quick"),
        course=("steady", "rises then falls", "falls then rises"),
    ),
    ("zh", "signs"): Wording("话，样：", "（", {"audio": "话", "vision": "样"}, ".", "", "，", "）", ""),
    ("en", "signs"): Wording("(in voice, Look:", "(", {"audio": "in voice", "vision": " Look"}, ".", "", ",", ")", " "),
}  # fmt: skip


class Describer(nn.Module):
    """Frames -> facts -> a statement; what it must know is learned from the training split's frames, in buffers.

    A modality's facts: energy, the root mean square of its z-scored frames; movement, their mean absolute change from
    frame to frame; each a third of the training clips; and the course of its main variations, the projections on the
    training frames' first principal components: steady, peak first or trough first. `language` and `wording` are a key of
    `WORDINGS`; the further settings are those of `MllmMacConfig`.
    """

    def __init__(
        self, widths: Mapping[Modality, int], language: Language, wording: str, facts: Collection[str], courses: int,
        steady_share: float, donors: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.wording, self.told, self.courses, self.steady_share = WORDINGS[language, wording], facts, courses, steady_share
        self.directed = "（{}）" if language == "zh" else "({}) "  # as a script writes directions
        self.kinds = ["energy", "movement", *["course"] * courses]
        for modality in MODALITIES:
            width, double = widths[modality], torch.float64
            self.register_buffer(f"{modality}_mean", torch.zeros(width))
            self.register_buffer(f"{modality}_std", torch.ones(width))
            self.register_buffer(f"{modality}_directions", torch.zeros(courses, width, dtype=double))
            self.register_buffer(f"{modality}_cuts", torch.zeros(2, 2, dtype=double))  # of energy and of movement
            self.register_buffer(f"{modality}_steady", torch.zeros(courses, dtype=double))
        self.register_buffer("donor_keys", torch.zeros(donors, dtype=torch.int64))
        self.register_buffer("donor_facts", torch.zeros(donors, len(MODALITIES), len(self.kinds), dtype=torch.int64))
        self.register_buffer("donor_cues", torch.zeros(donors, len(MODALITIES), CUE_BYTES, dtype=torch.uint8))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """It stays on the host, where frames are, wherever the module that holds it is moved."""
        return self

    def _get(self, name: str) -> np.ndarray:
        """A buffer as an array, which shares its memory."""
        array: np.ndarray = getattr(self, name).numpy()
        return array

    def fit(self, train: Split) -> None:
        """Learn scales, directions, levels and donors from the training split's frames; no label is read."""
        for modality in MODALITIES:
            self._get(f"{modality}_mean")[:], self._get(f"{modality}_std")[:] = train.feature_statistics(modality)
            clips = [getattr(sample, modality) for sample in train]
            directions = _principal(self._scaled(modality, frames) for frames in clips)[: self.courses]
            self._get(f"{modality}_directions")[: len(directions)] = directions  # F may be fewer
            if measured := [self._measured(modality, frames)[0] for frames in clips if len(frames)]:
                table = np.array(measured)
                self._get(f"{modality}_cuts")[:] = np.quantile(table[:, :2], [1 / 3, 2 / 3], axis=0).T
                self._get(f"{modality}_steady")[:] = np.quantile(table[:, 2:], self.steady_share, axis=0)
        keys, facts, cues = (self._get(f"donor_{name}") for name in ("keys", "facts", "cues"))
        for donor in range(len(keys)):
            sample = train[donor * len(train) // len(keys)]
            keys[donor], facts[donor] = content_key(sample), self.facts(sample)
            for number, words in enumerate(_cue_words(sample)):
                cues[donor, number] = [*words.encode()[:CUE_BYTES].ljust(CUE_BYTES, b"\0")]

    def _scaled(self, modality: Modality, frames: np.ndarray) -> np.ndarray:
        """(T, F) -> (T, F) float64."""
        return (frames.astype(np.float64) - self._get(f"{modality}_mean")) / self._get(f"{modality}_std")

    def _measured(self, modality: Modality, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energy, movement and each course's range, of T > 0 frames; and whether each course's peak comes first."""
        scaled = self._scaled(modality, frames)
        courses = scaled @ self._get(f"{modality}_directions").T
        movement = np.abs(np.diff(scaled, axis=0)).mean() if len(frames) > 1 else 0.0
        values = [np.sqrt((scaled**2).mean()), movement, *np.ptp(courses, axis=0)]
        return np.array(values), courses.argmax(0) < courses.argmin(0)

    def facts(self, sample: Sample) -> np.ndarray:
        """(modalities, facts) int64, each 0, 1 or 2, or `ABSENT`."""
        rows = np.full((len(MODALITIES), len(self.kinds)), ABSENT, np.int64)
        for row, modality in zip(rows, MODALITIES, strict=True):
            if len(frames := getattr(sample, modality)):
                values, is_peak_first = self._measured(modality, frames)
                row[:2] = [np.searchsorted(*one) for one in zip(self._get(f"{modality}_cuts"), values[:2], strict=True)]
                row[2:] = np.where(values[2:] <= self._get(f"{modality}_steady"), 0, np.where(is_peak_first, 1, 2))
        return rows

    def statement(self, facts: np.ndarray, modalities: Sequence[Modality] = MODALITIES) -> str:
        """Facts of one clip -> one short statement about these modalities, "" about none."""
        words, parts = self.wording, []
        for modality, row in zip(MODALITIES, facts, strict=True):
            told = zip(self.kinds, row.tolist(), strict=True)
            said = [getattr(words, kind)[level] for kind, level in told if kind in self.told and level != ABSENT]
            if modality in modalities:
                parts.append(words.names[modality] + (words.comma.join(said) or words.absent))
        return words.start + words.between.join(parts) + words.stop if parts else ""

    def of_frames(self, sample: Sample, modalities: Sequence[Modality] = MODALITIES) -> str:
        """The statement about a clip's frames."""
        return self.statement(self.facts(sample), modalities)

    def cue(self, sample: Sample, modalities: Sequence[Modality]) -> str:
        """What the clip's generator knows of face and voice, as a script's directions: "(smiling) (brightly)".

        Raises:
            ValueError: nobody knows it.
        """
        if not (words := _cue_words(sample)):
            raise ValueError(
                f"clip '{sample.id}' has no known cues: knowledge='cue' needs a corpus whose generator left 'face' and "
                f"'voice' in the tables, such as the embedded ones; use 'features' or 'generated'"
            )
        return self._directions(words, modalities)

    def _directions(self, words: Sequence[str], modalities: Sequence[Modality]) -> str:
        told = [word for modality, word in zip(MODALITIES, words, strict=True) if word and modality in modalities]
        return "".join(self.directed.format(word) for word in reversed(told)).strip()  # the face first

    def of_another(self, sample: Sample, kind: Literal["features", "cue"], modalities: Sequence[Modality]) -> str:
        """The statement of another clip, a training clip that the content of this one chooses: true of no one here."""
        own, keys = content_key(sample), self._get("donor_keys")
        start = own % len(keys)
        donor = next((place for place in np.roll(np.arange(len(keys)), -start) if keys[place] != own), start)
        if kind == "cue":
            words = [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in self._get("donor_cues")[donor]]
            return self._directions(words, modalities)
        return self.statement(self._get("donor_facts")[donor], modalities)


def content_digest(sample: Sample) -> str:
    """Hex SHA-256 of what is said, heard and seen, without its name, speaker and label."""
    digest = hashlib.sha256(sample.text.encode())
    for modality in MODALITIES:
        frames = np.ascontiguousarray(getattr(sample, modality), np.float32)
        digest.update(repr(frames.shape).encode())
        digest.update(frames.data)
    return digest.hexdigest()


def content_key(sample: Sample) -> int:
    """The content as a number >= 0 that an int64 holds."""
    return int.from_bytes(bytes.fromhex(content_digest(sample)[:16]), "little") >> 1


def _cue_words(sample: Sample) -> list[str]:
    """What a generator calls voice and face, "" where nothing is shown; nothing where nobody knows."""
    words = [word for word in map(sample.extra.get, ("voice", "face")) if isinstance(word, str)]
    return words if len(words) == len(MODALITIES) else []


def _principal(clips: Iterable[np.ndarray]) -> np.ndarray:
    """z-scored clips (T, F) -> (F, F) principal directions, the first one first; the largest entry of each is positive."""
    directions: np.ndarray = np.linalg.eigh(sum(scaled.T @ scaled for scaled in clips))[1].T[::-1]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(1)[:, None], axis=1)
    return directions * np.where(largest < 0, -1.0, 1.0)
