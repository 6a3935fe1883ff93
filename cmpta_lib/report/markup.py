"""A table in Markdown, for the report, the README and GitHub, and in HTML, for a notebook: the details in a fold below."""

from __future__ import annotations

import html
import re
import zlib
from dataclasses import dataclass

import pandas as pd

from cmpta_lib.report.layout import Kind, Table, code_spans, heads, with_minus, written

_NO_BREAK = "\N{NO-BREAK SPACE}"
_NEAR = "\N{ALMOST EQUAL TO}"
_WORDS = 22  # characters of a cell that may break: a name is shorter


def escaped(value: object) -> str:
    """Text that neither Markdown nor the HTML in it takes for its own."""
    text = str(value).replace("&", "&amp;")
    return re.sub(r"([\\|*_<`~])", r"\\\1", text).replace("\n", "<br>")


def sentence(text: str) -> str:
    """A caption or note, escaped but for what stands between backticks."""
    return "".join(f"`{part}`" if code else escaped(part) for part, code in code_spans(text))


def to_markdown(table: Table, caption: str, warning: str, source: str) -> str:
    """Caption, warning, table, notes, where it comes from, and the fold."""
    folded = table.folded()
    parts = [sentence(caption), f"**{warning}**" if warning else "", _grid(table), *map(sentence, table.notes), escaped(source)]
    if folded:
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
        folded = self.table.folded()
        parts = [_html(self.table, self.caption), *map(_note, self.table.notes)]
        if folded:
            inner = "".join([_html(folded, ""), *map(_note, folded.notes)])
            parts.append(f"<details><summary>Details</summary>{inner}</details>")
        return f'<div style="overflow-x:auto">{"".join(parts)}</div>'

    def __repr__(self) -> str:
        return f"{self.caption}\n{self.table.full.to_string(index=False)}"


def _rich(text: str) -> str:
    return "".join(f"<code>{html.escape(part)}</code>" if code else html.escape(part) for part, code in code_spans(text))


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
