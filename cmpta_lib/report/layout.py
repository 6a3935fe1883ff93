"""A table as its readers see it: a short form with its marks, the complete frame behind it, and what each column holds.

Written here in Markdown, for the report, the README and GitHub, and in HTML, for a notebook, with the details in a fold
below; `export` writes LaTeX and the files.
"""

from __future__ import annotations

import html
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

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
        name = heads(frame)[0][1] if frame.shape[1] else ""
        short = frame.drop(columns=NOTE) if NOTE in frame else frame
        said = [(row, str(note)) for row, note in enumerate(frame[NOTE] if NOTE in frame else ()) if note not in ("", NOTHING)]
        notes = (*(f"{_name(short, row)}: {note}." for row, note in said), *notes)
        return cls(short, frame, notes=notes, blocks=tuple(map(str, frame.iloc[:, 0])) if name in BLOCKS else ())


def _name(frame: pd.DataFrame, row: int) -> str:
    """The words with which a row begins."""
    words = [str(value) for value in frame.iloc[row]]
    return ", ".join(words[:1] + [word for word in words[1:3] if kind_of([word]) == "text"])


def heads(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """(metric or "", heading) of each column."""
    return [tuple(map(str, head)) if isinstance(head, tuple) else ("", str(head)) for head in frame.columns]  # type: ignore[misc]


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


def kind_of(texts: Sequence[str]) -> Kind:
    """What a column holds; a column in which nothing is filled in counts as numbers."""
    filled = [text for text in texts if text not in (NOTHING, NOT_RUN, "")]
    return next((kind for kind, form in _KINDS if all(re.fullmatch(form, text) for text in filled)), "text")


def with_minus(text: str) -> str:
    """A number's hyphen as the minus sign that it stands for; a line may break after a hyphen."""
    return re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text)


def marked_up(text: str, plain: Callable[[str], str], code: Callable[[str], str]) -> str:
    """A sentence in a markup; `code`: what stands between backticks in it."""
    return "".join((code if place % 2 else plain)(part) for place, part in enumerate(text.split("`")) if part)


_NO_BREAK = "\N{NO-BREAK SPACE}"
_NEAR = "\N{ALMOST EQUAL TO}"
_WORDS = 22  # characters of a cell that may break: a name is shorter


def escaped(value: object) -> str:
    """Text that neither Markdown nor the HTML in it takes for its own."""
    text = str(value).replace("&", "&amp;")
    return re.sub(r"([\\|*_<`~])", r"\\\1", text).replace("\n", "<br>")


def sentence(text: str) -> str:
    """A caption or note, escaped but for what stands between backticks."""
    return marked_up(text, escaped, lambda code: f"`{code}`")


def to_markdown(table: Table, caption: str, warning: str, source: str) -> str:
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
        shown = escaped(text) if kind == "list" else escaped(text).replace(" ", _NO_BREAK)  # else a line may break in it
        return with_minus(shown)

    columns, kinds = written(table, cell, "**%s**", f"{_NEAR}{_NO_BREAK}%s")
    names = [escaped(f"{over} {name}".strip()) for over, name in heads(table.short)]
    lines = [names, ["---" if kind == "text" else "---:" for kind in kinds], *zip(*columns, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True, eq=False)
class Shown:
    """What a notebook cell ends with: the short form, the details in a fold below. Same table, same bytes."""

    table: Table
    caption: str

    def _repr_html_(self) -> str:
        parts = [_html(self.table, self.caption), *map(_note, self.table.notes)]
        if folded := self.table.details:
            inner = "".join([_html(folded, ""), *map(_note, folded.notes)])
            parts.append(f"<details><summary>Details</summary>{inner}</details>")
        return f'<div style="overflow-x:auto">{"".join(parts)}</div>'

    def __repr__(self) -> str:
        return f"{self.caption}\n{self.table.full.to_string(index=False)}"


def _rich(text: str) -> str:
    return marked_up(text, html.escape, lambda code: f"<code>{html.escape(code)}</code>")


def _note(text: str) -> str:
    return f'<p style="font-size:90%;margin:0.3em 0;max-width:60em">{_rich(text)}</p>'


def _html(table: Table, caption: str) -> str:
    """Numbers never wrap, sentences do; a rule stands where a block of rows begins."""
    from pandas.io.formats.style import Styler

    def cell(text: str, kind: Kind) -> str:
        return html.escape(text if kind == "text" else with_minus(text))

    columns, kinds = written(table, cell, "<b>%s</b>", f"{_NEAR} %s")
    tops = [(html.escape(over), html.escape(name)) for over, name in heads(table.short)]
    frame = pd.DataFrame(dict(enumerate(columns)), dtype=object)
    has_overs = any(over for over, _ in tops)
    frame.columns = pd.MultiIndex.from_tuples(tops) if has_overs else pd.Index([name for _, name in tops])
    styles = [("", "border-collapse:collapse;table-layout:auto;margin-left:0")]
    styles += [("th", (padding := "padding:0.15em 0.6em;vertical-align:top")), ("td", padding)]
    styles += [("caption", "caption-side:top;text-align:left;white-space:normal")]
    for place, (texts, kind) in enumerate(zip(columns, kinds, strict=True)):
        wraps = kind == "text" and max(map(len, texts), default=0) > _WORDS
        width = "white-space:normal;overflow-wrap:anywhere;min-width:9em;max-width:34em" if wraps else "white-space:nowrap"
        styles += [(f".col{place}", f"text-align:{'left' if kind == 'text' else 'right'}"), (f"td.col{place}", width)]
    styles += [("th.level0", "text-align:center")] if has_overs else []
    starts = [row for row in range(1, len(table.blocks)) if table.blocks[row] != table.blocks[row - 1]]
    styles += [(f"td.row{row}", "border-top:1px solid currentColor") for row in starts]
    # The name by which the styles find their table: of its text, so that the same table is the same bytes.
    shown = Styler(frame, uuid=f"{zlib.crc32(frame.to_csv().encode()):08x}", cell_ids=False).hide(axis="index")
    shown = shown.set_table_styles([{"selector": selector, "props": props} for selector, props in styles])
    return str((shown.set_caption(_rich(caption)) if caption else shown).to_html())
