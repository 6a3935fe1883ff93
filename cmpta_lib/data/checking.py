"""How an error about a sample reads: where, what was expected, what came, what to do.

What a sample must be, wherever it comes from: one check for conversions and for clips that a trained run is asked about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from numbers import Integral, Real
from reprlib import repr as short
from typing import TypeGuard

import numpy as np

from cmpta_lib.data.corpus import MODALITIES, Modality, Sample, Task


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


# The square of a larger value leaves float32, so no variance or norm of it exists; one such frame would make z-scoring
# flatten that feature in all clips. It is as broken as an infinite one, and published files hold those.
HUGE = 1e18
_ODD: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "nan": np.isnan,
    "inf": np.isinf,
    "huge": lambda frames: np.abs(frames) > HUGE,
}


def checked(
    samples: Iterable[Sample],
    *,
    task: Task,
    widths: Mapping[Modality, int],
    where: str,
    labelled: bool = False,
    like: str = "in training",
) -> tuple[list[Sample], Counter[str]]:
    """Samples as `write_corpus` would store them, and what had to be repaired: kind -> how many values.

    Frames become finite float32, and a modality that is None becomes (0, F). Nothing given is changed in place.

    Args:
        widths: F of each modality.
        where: what messages call the samples, such as their file.
        labelled: whether every sample needs a label; otherwise one may have it, and it is checked.
        like: where the widths come from, for messages.
    Raises:
        ValueError: a sample is not as `Sample` says or of another width; names it, the field, what was expected and came.
    """
    repairs: Counter[str] = Counter()
    places = ((f"{where}, sample {index}", sample) for index, sample in enumerate(samples))
    return [check_sample(one, place, task, widths, repairs, labelled=labelled, like=like) for place, one in places], repairs


def check_sample(
    sample: Sample,
    where: str,
    task: Task,
    widths: Mapping[Modality, int],
    repairs: Counter[str],
    *,
    labelled: bool,
    like: str,
) -> Sample:
    """One sample of `checked`; of a modality that is not in `widths` any width will do."""
    if not isinstance(sample, Sample):
        raise problem(where, None, "a Sample", shown(sample), "make one: cmpta_lib.data.corpus.Sample(id, text, ...)")
    where = f"{where} (id {shown(sample.id)})"
    for name in ("id", "text", "speaker", "dialogue"):
        value = getattr(sample, name)
        if value is None and name in ("speaker", "dialogue"):
            continue
        if not isinstance(value, str) or value.encode("utf-8", "replace").decode() != value:
            remedy = "write '' if nothing is said" if name == "text" and value is None else "correct it"
            raise problem(where, name, "a string of valid Unicode", shown(value), remedy)
    frames = {name: _frames(where, name, getattr(sample, name), widths.get(name), repairs, like) for name in MODALITIES}
    label = _label(where, sample.label, task, labelled)
    return replace(sample, label=label, audio=frames["audio"], vision=frames["vision"])


def is_number(value: object) -> TypeGuard[float]:
    """Any real number, numpy's and fractions too (for type checkers a float, they know no order of `Real`); no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object) -> TypeGuard[int]:
    """Any number of an integral type, numpy's too; no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _label(where: str, label: object, task: Task, labelled: bool) -> float | int | None:
    if label is None and not labelled:
        return None
    if task.kind == "regression":
        if not is_number(label):
            raise problem(where, "label", "a number", shown(label), "correct it")
        if not -1 <= label <= 1:  # NaN is not, either
            raise problem(where, "label", "in [-1, 1]", shown(label), "rescale scores; write classes as text")
        return float(label)
    if not is_whole(label):
        raise problem(where, "label", "a class index", shown(label), "correct it")
    if not 0 <= label < len(task.labels):
        expected = f"a class index below {len(task.labels)}"
        raise problem(where, "label", expected, shown(label), "rescale scores; write classes as text")
    return int(label)


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
    for kind, is_odd in _ODD.items():  # one after the other: what is 0 by then is not counted again
        found = is_odd(frames)
        if count := int(found.sum()):
            repairs[f"{modality}_{kind}"] += count
            frames[found] = 0
    return frames
