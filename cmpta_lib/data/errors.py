"""How an error about a sample reads: where, what was expected, what came, what to do."""

from __future__ import annotations

from reprlib import repr as short

import numpy as np


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
