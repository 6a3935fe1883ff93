"""A table as its readers see it: a short form with its marks, the complete frame behind it, and what each column holds.

`markup` (Markdown and HTML) and `latex` write it; neither computes anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["number", "spread", "interval", "list", "text"]

NOTHING = "\N{EM DASH}"
NOT_RUN = "not run"
BLOCKS = ("corpus", "group")  # a first column of this name is a heading over its rows
NOTE = "note"
_NUMBER = r"[+\-\N{MINUS SIGN}]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?: ?%)?"
_INTERVAL = rf"\[{_NUMBER}, {_NUMBER}\]"
_KINDS: Sequence[tuple[Kind, str]] = (
    ("number", _NUMBER),
    ("spread", rf"{_NUMBER}(?: ± {_NUMBER})?"),
    ("interval", rf"(?:{_NUMBER} )?{_INTERVAL}"),
    ("list", rf"{_NUMBER}(?:, {_NUMBER})*"),
)


@dataclass(frozen=True, eq=False)
class Table:
    """One table in its forms.

    `short` is what is read: cells of text, columns of one level or of two (metric, what). `full` is what programs read,
    one level. `best` and `near` are positions (row, column) in `short`: marked bold, and with "≈" as within noise of the
    best. `blocks`: one name per row; a rule stands where it changes. `details`: what is folded away, with `remarks` below.
    """

    short: pd.DataFrame
    full: pd.DataFrame
    best: frozenset[tuple[int, int]] = frozenset()
    near: frozenset[tuple[int, int]] = frozenset()
    notes: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    details: pd.DataFrame | None = None
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, frame: pd.DataFrame) -> Table:
        """A frame that is its own short form, but for a column "note": what it says stands below."""
        name = heads(frame)[0][1] if frame.shape[1] else ""
        short = frame.drop(columns=NOTE) if NOTE in frame else frame
        said = [(row, str(note)) for row, note in enumerate(frame[NOTE] if NOTE in frame else ()) if note not in ("", NOTHING)]
        notes = tuple(f"{_name(short, row)}: {note}." for row, note in said)
        return cls(short, frame, notes=notes, blocks=tuple(map(str, frame.iloc[:, 0])) if name in BLOCKS else ())

    def folded(self) -> Table | None:
        """The details as a table of their own; None where nothing is folded away."""
        if self.details is None:
            return None
        return Table(self.details, self.details, notes=self.remarks, blocks=Table.of(self.details).blocks)


def _name(frame: pd.DataFrame, row: int) -> str:
    """The words with which a row begins."""
    words = [str(value) for value in frame.iloc[row]]
    return ", ".join(words[:1] + [word for word in words[1:3] if kind_of([word]) == "text"])


def heads(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """(metric or "", heading) of each column."""
    return [tuple(map(str, head)) if isinstance(head, tuple) else ("", str(head)) for head in frame.columns]  # type: ignore[misc]


def cells(frame: pd.DataFrame, column: int) -> list[str]:
    """A column's cells as text; under a heading of blocks its repetitions are blank."""
    texts = [str(value) for value in frame.iloc[:, column]]
    if column == 0 and heads(frame)[0][1] in BLOCKS:
        return [text if not row or text != texts[row - 1] else "" for row, text in enumerate(texts)]
    return texts


def written(table: Table, escaped: Callable[[str, Kind], str], best: str, near: str) -> tuple[list[list[str]], list[Kind]]:
    """The short form's cells, column by column, in a markup; and what each column holds.

    Args:
        escaped: a cell's text in that markup.
        best, near: its marks, with "%s" for the cell.
    """
    columns = [cells(table.short, column) for column in range(table.short.shape[1])]
    kinds = [kind_of(texts) for texts in columns]
    found = [[escaped(text, kind) for text in texts] for texts, kind in zip(columns, kinds, strict=True)]
    for marks, form in ((table.best, best), (table.near, near)):
        for row, column in marks:
            found[column][row] = form % found[column][row]
    return found, kinds


def kind_of(texts: Sequence[str]) -> Kind:
    """What a column holds; a column in which nothing is filled in counts as numbers."""
    filled = [text for text in texts if text not in (NOTHING, NOT_RUN, "")]
    return next((kind for kind, form in _KINDS if all(re.fullmatch(form, text) for text in filled)), "text")


def with_minus(text: str) -> str:
    """A number's hyphen as the minus sign that it stands for; a line may break after a hyphen."""
    return re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text)


def code_spans(text: str) -> list[tuple[str, bool]]:
    """A sentence's parts, each with whether it stood between backticks."""
    return [(part, place % 2 == 1) for place, part in enumerate(text.split("`")) if part]
