"""Text by the columns that it takes on a screen: a Chinese character takes two."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def columns(text: str) -> int:
    """How many columns a terminal gives to this text."""
    return sum(_columns(sign) for sign in text)


def cut(text: str, width: int) -> str:
    """The text in at most so many columns, with an ellipsis where something is left out."""
    if columns(text) <= width:
        return text
    kept, room = "", width - 1
    for sign in text:
        if (room := room - _columns(sign)) < 0:
            break
        kept += sign
    return kept + "…"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Lines of a table whose columns are as wide as they must be, two spaces apart.

    Args:
        right: places of the columns that end flush, such as numbers.
    """
    widths = [max(columns(row[place]) for row in (head, *rows)) for place in range(len(head))]
    return ["  ".join(_padded(cell, widths[n], n in right) for n, cell in enumerate(row)).rstrip() for row in (head, *rows)]


def duration(seconds: float) -> str:
    """So long in a reader's units: "54 s", "14 min", "3.2 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _padded(text: str, width: int, is_right: bool) -> str:
    room = " " * (width - columns(text))
    return room + text if is_right else text + room


def _columns(sign: str) -> int:
    if unicodedata.combining(sign):
        return 0
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1
