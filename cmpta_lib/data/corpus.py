"""The one form that every dataset takes: samples of text, audio frames and vision frames, three splits, true lengths.

Features are memory-mapped (`data.store`): opening a corpus reads its table only, and a sample costs its own frames. One
check says what a sample must be, for conversions and for clips that a trained run is asked about.
"""

from __future__ import annotations

import json
import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Integral, Real
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, Self, TypeGuard, TypeVar, get_args

import numpy as np

from cmpta_lib.paper import Kind, Language, Modality

if TYPE_CHECKING:
    import pandas as pd  # not at run time: a loaded run answers without, a seventh of its start

SPLITS = ("train", "valid", "test")
MODALITIES: tuple[Modality, ...] = get_args(Modality)
COLUMNS = ("id", "text", "label", "speaker", "dialogue", "audio_length", "vision_length")

# The square of a larger value leaves float32, so no variance or norm of it exists; one such frame would make z-scoring
# flatten that feature in all clips. It is as broken as an infinite one, and published files hold those.
HUGE = 1e18
Numbers = TypeVar("Numbers", float, np.ndarray)

_CHUNK_FRAMES = 16_384  # 23 MB in float64 at SIMS-V2's 177 vision features


@dataclass(frozen=True)
class Task:
    """What is predicted: a score, or one of `labels` (position = the digit that the LLM answers).

    Inside, every score lies in [-1, 1]: in files, in training, in what an LLM answers. `score_range` says what its two ends
    are in the units of the corpus's owner, who is shown those: `to_range` and `from_range` go there and back.
    """

    kind: Kind
    language: Language  # of the question that is asked, unless there is a `prompt`, and of the BERT that some methods read with
    labels: tuple[str, ...] = ()  # empty for regression
    score_range: tuple[float, float] = (-1.0, 1.0)  # of a regression, in its owner's units
    prompt: str = ""  # the owner's own question; "" = the one of kind and language

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.language not in get_args(Language):
            raise ValueError(f"expected {get_args(Kind)} in 'zh' or 'en', not {self.kind!r} in {self.language!r}")
        fits = 2 <= len(set(self.labels)) == len(self.labels) if self.kind == "classification" else not self.labels
        if not fits:
            raise ValueError(f"two or more different class names make a classification, none a regression; {self.labels} came")
        low, high = self.score_range
        if not -HUGE <= low < high <= HUGE or (self.kind == "classification" and self.score_range != (-1, 1)):
            raise ValueError(f"a regression has scores from a low to a higher end, a classification none; {low}, {high} came")

    @property
    def is_scaled(self) -> bool:
        """Whether its owner's scores are other numbers than those inside."""
        return self.score_range != (-1, 1)

    @property
    def unit(self) -> float:
        """What a distance of 1 inside is in the owner's units."""
        return (self.score_range[1] - self.score_range[0]) / 2

    def to_range(self, scores: Numbers) -> Numbers:
        """Scores in [-1, 1], a number or an array of any shape, in the owner's units; unchanged where those are the same."""
        low, high = self.score_range
        return (low + high) / 2 + scores * ((high - low) / 2) if self.is_scaled else scores

    def from_range(self, scores: Numbers) -> Numbers:
        """The inverse of `to_range`."""
        low, high = self.score_range
        return (scores - low) / (high - low) * 2 - 1 if self.is_scaled else scores

    def stored(self) -> dict[str, Any]:
        """Its fields for JSON; what is as usual is left out, as it was before there was another choice."""
        fields, usual = asdict(self), {"score_range": (-1, 1), "prompt": ""}
        return {name: value for name, value in fields.items() if name not in usual or value != usual[name]}

    @classmethod
    def from_stored(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `stored`, of what JSON gave back; raises TypeError or ValueError where it is not that."""
        known: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        return cls(**known)


@dataclass(frozen=True, eq=False)
class Sample:
    """One clip. A modality of length 0 is absent; its width F is kept."""

    id: str
    text: str
    audio: np.ndarray  # (T_a, F_a) float32; a clip for `predict` may have None, which is read as (0, F_a)
    vision: np.ndarray  # (T_v, F_v) float32
    label: float | int | None = None  # a score in [-1, 1], or the class index; None where it is to be predicted
    speaker: str | None = None
    dialogue: str | None = None
    extra: Mapping[str, float | int | str] = field(default_factory=dict)  # what a generator or an annotation file knows


class Split(Sequence[Sample]):
    """One split, read sample by sample from mapped features.

    Args:
        table: one row per clip in reading order, the columns `COLUMNS`, then those of `Sample.extra`.
        audio, vision: (all frames of the split, F) float32, clip after clip.
    """

    def __init__(self, name: str, task: Task, table: pd.DataFrame, audio: np.ndarray, vision: np.ndarray) -> None:
        self.name, self.task, self.table = name, task, table.reset_index(drop=True)
        # Plain arrays over the same maps: a slice of a np.memmap costs 1.4 us, of these 0.2.
        self._frames = {"audio": np.asarray(audio), "vision": np.asarray(vision)}
        self._stops = {modality: table[f"{modality}_length"].cumsum().tolist() for modality in MODALITIES}
        self._statistics: dict[Modality, tuple[np.ndarray, np.ndarray]] = {}
        self._rows = self.table.to_dict("records")  # a row of a data frame costs 50 times a dict's

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # whole numbers only, no slices
        index = range(len(self))[operator.index(index)]
        row = dict(self._rows[index])
        known: dict[str, Any] = {name: row.pop(name) for name in ("id", "text", "label", "speaker", "dialogue")}
        for modality in MODALITIES:  # copies: the maps are read-only, and stay so
            stop = self._stops[modality][index]
            known[modality] = np.array(self._frames[modality][stop - row.pop(f"{modality}_length") : stop])
        return Sample(**known, extra=row)  # what is left

    @property
    def audio_dim(self) -> int:
        return self._frames["audio"].shape[1]

    @property
    def vision_dim(self) -> int:
        return self._frames["vision"].shape[1]

    @property
    def labels(self) -> np.ndarray:
        """(N,) float64 scores, or (N,) int64 class indices."""
        return self.table["label"].to_numpy(copy=True)

    def feature_statistics(self, modality: Modality) -> tuple[np.ndarray, np.ndarray]:
        """Mean and population standard deviation of every feature over the real frames of this split.

        Accumulated in float64, a chunk of frames at a time, when first asked for, and kept. A feature that does not vary
        gets the deviation 1, so that one can always divide by it; without any frames all deviations are 1 and all means 0.

        Returns:
            (F,) float32 means and (F,) float32 deviations > 0, the caller's own.
        """
        if modality not in self._statistics:
            self._statistics[modality] = self._computed_statistics(modality)
        mean, std = self._statistics[modality]
        return mean.copy(), std.copy()

    def _computed_statistics(self, modality: Modality) -> tuple[np.ndarray, np.ndarray]:
        frames = self._frames[modality]
        chunks = [slice(start, start + _CHUNK_FRAMES) for start in range(0, len(frames), _CHUNK_FRAMES)]
        total = np.zeros(frames.shape[1])
        for chunk in chunks:
            total += frames[chunk].sum(axis=0, dtype=np.float64)
        mean = total / max(len(frames), 1)
        squares = np.zeros_like(mean)
        for chunk in chunks:  # a second pass, because E[x^2] - E[x]^2 loses everything at eGeMAPS' scales
            squares += ((frames[chunk] - mean) ** 2).sum(axis=0)
        std = np.sqrt(squares / max(len(frames), 1))
        # Below 1e-6 of the mean there is only float32 rounding; below `tiny` the quotient would overflow.
        std[std <= np.maximum(1e-6 * np.abs(mean), np.finfo(np.float32).tiny)] = 1.0
        return mean.astype(np.float32), std.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Three splits with where they come from."""

    name: str
    task: Task
    splits: dict[str, Split]  # "train", "valid", "test"
    generated: bool  # drawn by `cmpta_lib.embedded.synthetic`: says nothing about the paper
    repairs: dict[str, int]  # kind of data issue -> how often it was mended (values or frames)
    sources: dict[str, str]  # file name -> SHA-256
    fingerprint: str  # SHA-256 of task, rows and features: equal content, equal fingerprint, whatever path or name
    features: Mapping[str, Any] = field(default_factory=dict)  # modality -> set and hop, where recordings were read; or none

    @property
    def has_known_truth(self) -> bool:
        """Whether the generator left its Bayes-optimal answers and true cue windows in the tables."""
        return "bayes_all" in self.splits["test"].table


@dataclass(frozen=True)
class Inputs:
    """What a method must know of its clips before it sees one; stored with a run, so that the corpus may go."""

    task: Task
    widths: Mapping[Modality, int]  # F of each modality
    features: Mapping[str, Any] = field(default_factory=dict)  # as `Corpus.features`

    @classmethod
    def of(cls, corpus: Corpus) -> Self:
        train = corpus.splits["train"]
        return cls(corpus.task, {"audio": train.audio_dim, "vision": train.vision_dim}, corpus.features)

    def to_json(self) -> str:
        known = {"task": self.task.stored(), "widths": dict(self.widths)}
        known |= {"features": dict(self.features)} if self.features else {}
        return json.dumps(known, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError, KeyError or TypeError where the text is not what `to_json` writes."""
        stored = json.loads(text)
        return cls(Task.from_stored(stored["task"]), stored["widths"], stored.get("features", {}))


def dialogues_of(names: Iterable[object]) -> list[list[int]]:
    """The places of each dialogue's clips, from the clips' dialogue names; a clip without (None, NaN) is one of its own."""
    found: dict[object, list[int]] = {}
    for place, name in enumerate(names):
        found.setdefault(name if isinstance(name, str) else ("clip", place), []).append(place)
    return list(found.values())


def problem(where: str, field: str | None, expected: str, came: str, remedy: str) -> ValueError:
    """An error that names file, sample and, unless it is about the whole of them, the field, and says what to do."""
    subject = where if field is None else f"{where}: {field!r}"
    return ValueError(f"{subject} must be {expected}, but is {came}; {remedy}")


def shown(value: object) -> str:
    """A value that a file gave, for a message.

    Of containers and arrays the kind and size only: a small file can hold some that take hours and GB to print.
    """
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    if isinstance(value, list | tuple | dict | set | frozenset):
        return f"a {type(value).__name__} of length {len(value)}"
    return short(value[:100]) if isinstance(value, str | bytes | bytearray) else short(value)


def check_sample(
    sample: Sample, where: str, task: Task, widths: Mapping[Modality, int], repairs: Counter[str], *, labelled: bool, like: str
) -> Sample:
    """A sample as `write_corpus` stores it: finite float32 frames, (0, F) for a modality that is None; nothing given is changed.

    Args:
        where: what messages call it, such as its file.
        widths: F of each modality; of one that is not there any width will do.
        repairs: gets what had to be set to 0: kind -> how many values.
        labelled: whether it needs a label; otherwise it may have one, and it is checked.
        like: where the widths come from, for messages.
    Raises:
        ValueError: it is not as `Sample` says or of another width; names it, the field, what was expected and came.
    """
    if not isinstance(sample, Sample):
        raise problem(where, None, "a Sample", shown(sample), "make one: cmpta_lib.data.corpus.Sample(id, text, ...)")
    where = f"{where} (id {shown(sample.id)})"
    for name in ("id", "text", "speaker", "dialogue"):
        value = getattr(sample, name)
        if value is None and name in ("speaker", "dialogue"):
            continue
        if not isinstance(value, str) or value.encode("utf-8", "replace").decode() != value:
            remedy = "correct it, or write '' if nothing is said"
            raise problem(where, name, "a string of valid Unicode", shown(value), remedy)
    frames = {name: _frames(where, name, getattr(sample, name), widths.get(name), repairs, like) for name in MODALITIES}
    label = None if sample.label is None and not labelled else _label(where, sample.label, task)
    return replace(sample, label=label, audio=frames["audio"], vision=frames["vision"])


def is_number(value: object) -> TypeGuard[float]:
    """Any real number, numpy's and fractions too (for type checkers a float, they know no order of `Real`); no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object) -> TypeGuard[int]:
    """Any number of an integral type, numpy's too; no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _label(where: str, label: object, task: Task) -> float | int:
    if task.kind == "regression":
        if is_number(label) and -1 <= label <= 1:  # NaN is not
            return float(label)
        raise problem(where, "label", "a number in [-1, 1]", shown(label), "rescale scores; write classes as text")
    if is_whole(label) and 0 <= label < len(task.labels):
        return int(label)
    raise problem(where, "label", f"a class index below {len(task.labels)}", shown(label), "correct it")


def _frames(
    where: str, modality: Modality, frames: object, width: int | None, repairs: Counter[str], like: str
) -> np.ndarray:
    """(T, F) numbers -> (T, F) finite little-endian float32; counts what had to be set to 0."""
    if frames is None and width is not None:
        return np.zeros((0, width), "<f4")
    if not isinstance(frames, np.ndarray) or frames.ndim != 2 or frames.shape[1] == 0 or frames.dtype.kind not in "fiu":
        raise problem(where, modality, "a (T, F) array of numbers, F >= 1", shown(frames), "an absent modality is (0, F)")
    if width not in (None, frames.shape[1]):
        expected = f"{width} features wide, as {like}"
        raise problem(where, modality, expected, f"{frames.shape[1]} wide", "extract all clips alike")
    with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes inf, and is then counted as one
        frames = np.array(frames, dtype="<f4")
    is_nan, is_inf = np.isnan(frames), np.isinf(frames)
    for kind, found in (("nan", is_nan), ("inf", is_inf), ("huge", (np.abs(frames) > HUGE) & ~is_inf)):
        if count := int(found.sum()):
            repairs[f"{modality}_{kind}"] += count
            frames[found] = 0
    return frames
