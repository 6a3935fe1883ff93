"""How an error about a sample reads: where, what was expected, what came, what to do.

What a sample must be, wherever it comes from: one check for conversions and for clips that a trained run is asked about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
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
