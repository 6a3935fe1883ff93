"""A table as its readers see it: a short form with its marks, the complete frame behind it, and what each column holds.

Written here in Markdown, for the report, a notebook and GitHub, with the details in a fold below; `export` writes LaTeX
and the files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

Kind = Literal["number", "list", "text"]

NOTHING = "\N{EM DASH}"
NOT_RUN = "not run"
BLOCKS = ("corpus", "group")  # a first column of this name is a heading over its rows
NOTE = "note"
_NUMBER = r"[+\-\N{MINUS SIGN}]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?: ?%)?"
_INTERVAL = rf"\[{_NUMBER}, {_NUMBER}\]"
_KINDS: Sequence[tuple[Kind, str]] = (
    ("number", rf"{_NUMBER}(?: ± {_NUMBER}| {_INTERVAL})?|{_INTERVAL}"),
    ("list", rf"{_NUMBER}(?:, {_NUMBER})*"),
)


@dataclass(frozen=True, eq=False)
class Table:
    """One table in its forms.

    `short` is what is read: cells of text, columns of one level or of two (metric, what). `full` is what programs read,
    one level. `best` and `near` are positions (row, column) in `short`: marked bold, and with "≈" as within noise of the
    best. `blocks`: one name per row; a rule stands where it changes. `notes` stand below, and `details` is folded away.
    """

    short: pd.DataFrame
    full: pd.DataFrame
    best: frozenset[tuple[int, int]] = frozenset()
    near: frozenset[tuple[int, int]] = frozenset()
    notes: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    details: Table | None = None

    @classmethod
    def of(cls, frame: pd.DataFrame, *notes: str) -> Table:
        """A frame that is its own short form, but for a column "note": what it says stands below, before these notes."""
        short = frame.drop(columns=NOTE, errors="ignore")
        said = enumerate(frame[NOTE] if NOTE in frame else ())
        notes = (*(f"{_name(short, row)}: {note}." for row, note in said if note not in ("", NOTHING)), *notes)
        has_blocks = frame.shape[1] and heads(frame)[0][1] in BLOCKS
        return cls(short, frame, notes=notes, blocks=tuple(map(str, frame.iloc[:, 0])) if has_blocks else ())


def _name(frame: pd.DataFrame, row: int) -> str:
    """The words with which a row begins."""
    words = [str(value) for value in frame.iloc[row]]
    return ", ".join(words[:1] + [word for word in words[1:3] if kind_of([word]) == "text"])


def heads(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """(metric or "", heading) of each column."""
    return [tuple(map(str, head)) if isinstance(head, tuple) else ("", str(head)) for head in frame.columns]  # type: ignore[misc]


def kind_of(texts: Sequence[str]) -> Kind:
    """What a column holds: numbers, also with spread or interval, lists of them, or text; an empty one counts as numbers."""
    filled = [text for text in texts if text not in (NOTHING, NOT_RUN, "")]
    return next((kind for kind, form in _KINDS if all(re.fullmatch(form, text) for text in filled)), "text")


def written(table: Table, escaped: Callable[[str, Kind], str], best: str, near: str) -> tuple[list[list[str]], list[Kind]]:
    """The short form's cells, column by column, in a markup; and what each column holds. Repeated blocks' names are blank.

    Args:
        escaped: a cell's text in that markup.
        best, near: its marks, with "%s" for the cell.
    """
    columns = [[str(value) for value in table.short.iloc[:, column]] for column in range(table.short.shape[1])]
    if columns and heads(table.short)[0][1] in BLOCKS:
        columns[0] = ["" if row and text == columns[0][row - 1] else text for row, text in enumerate(columns[0])]
    kinds = [kind_of(texts) for texts in columns]
    found = [[escaped(text, kind) for text in texts] for texts, kind in zip(columns, kinds, strict=True)]
    for marks, form in ((table.best, best), (table.near, near)):
        for row, column in marks:
            found[column][row] = form % found[column][row]
    return found, kinds


def marked_up(text: str, plain: Callable[[str], str], code: Callable[[str], str]) -> str:
    """A sentence in a markup; `code`: what stands between backticks in it."""
    return "".join((code if place % 2 else plain)(part) for place, part in enumerate(text.split("`")) if part)


def escaped(value: object) -> str:
    """Text that neither Markdown nor the HTML in it takes for its own."""
    text = str(value).replace("&", "&amp;")
    return re.sub(r"([\\|*_<`~])", r"\\\1", text).replace("\n", "<br>")


def sentence(text: str) -> str:
    """A caption or note, escaped but for what stands between backticks."""
    return marked_up(text, escaped, lambda code: f"`{code}`")


def to_markdown(table: Table, caption: str, warning: str = "", source: str = "") -> str:
    """Caption, warning, table, notes, where it comes from, and the fold."""
    parts = [sentence(caption), f"**{warning}**" if warning else "", _grid(table), *map(sentence, table.notes), escaped(source)]
    if folded := table.details:
        parts += ["<details><summary>Details</summary>", _grid(folded), *map(sentence, folded.notes), "</details>"]
    return "\n\n".join(filter(None, parts)) + "\n"


def _grid(table: Table) -> str:
    # Not DataFrame.to_markdown: tabulate pads by display width, which depends on whether wcwidth is installed.
    def cell(text: str, kind: Kind) -> str:
        if kind == "text":
            return escaped(text)
        text = re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", escaped(text))  # a line may break after a hyphen,
        return text if kind == "list" else text.replace(" ", "\N{NO-BREAK SPACE}")  # or at a space

    columns, kinds = written(table, cell, "**%s**", "\N{ALMOST EQUAL TO}\N{NO-BREAK SPACE}%s")
    names = [escaped(f"{over} {name}".strip()) for over, name in heads(table.short)]
    lines = [names, ["---" if kind == "text" else "---:" for kind in kinds], *zip(*columns, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True, eq=False)
class Shown:
    """What a notebook cell ends with: the short form, the details in a fold below. Same table, same bytes."""

    table: Table
    caption: str

    def _repr_markdown_(self) -> str:
        return to_markdown(self.table, self.caption)

    def __repr__(self) -> str:
        return f"{self.caption}\n{self.table.full.to_string(index=False)}"
