"""A table in a notebook: the short form, nothing that a reader must scroll or decode, the details in a fold below.

Every text is escaped, styles stand inline (viewers drop style sheets), and there are no ids: same table, same bytes.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from cmpta_lib.report.layout import Table, cells, code_spans, heads, kind_of, spans, with_minus

_LEFT, _RIGHT, _CENTRE = ("text-align:left", "text-align:right", "text-align:center")
_NO_WRAP, _WRAPPED = "white-space:nowrap", "white-space:normal;overflow-wrap:anywhere"
_PAGE_EM, _LETTER_EM, _GAP_EM = 72, 0.54, 1.2  # a notebook's width, a letter's and that between columns
_WORDS = 22  # characters of a cell that may break: a name is shorter
_NARROWEST_EM, _WIDEST_EM = 9, 34  # of a column of sentences
_CELL = "padding:0.15em 0.6em;vertical-align:top"
_RULE = "border-top:1px solid currentColor"


@dataclass(frozen=True, eq=False)
class Shown:
    """What a notebook cell ends with."""

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


def _cell(tag: str, text: str, *styles: str, columns: int = 1) -> str:
    span = f' colspan="{columns}"' if columns > 1 else ""
    return f'<{tag}{span} style="{";".join([*filter(None, styles), _CELL])}">{text}</{tag}>'


def _rich(text: str) -> str:
    return "".join(f"<code>{html.escape(part)}</code>" if code else html.escape(part) for part, code in code_spans(text))


def _note(text: str) -> str:
    return f'<p style="font-size:90%;margin:0.3em 0;max-width:60em">{_rich(text)}</p>'


def _html(table: Table, caption: str) -> str:
    frame, kinds = table.short, [kind_of(cells(table.short, column)) for column in range(table.short.shape[1])]
    sides = [_LEFT if kind == "text" else _RIGHT for kind in kinds]
    top = f'<caption style="caption-side:top;{_LEFT};white-space:normal">{_rich(caption)}</caption>' if caption else ""
    overs = [over for over, _ in heads(frame)]
    lines = []
    if any(overs):
        lines.append("".join(_cell("th", html.escape(over), _CENTRE, columns=count) for over, count in spans(overs)))
    names = [name for _, name in heads(frame)]
    lines.append("".join(_cell("th", html.escape(name), side) for name, side in zip(names, sides, strict=True)))
    head = "".join(f"<tr>{line}</tr>" for line in lines)
    columns, body = [cells(frame, column) for column in range(frame.shape[1])], ""
    widths = _sentence_widths(columns, names, kinds)
    for row in range(len(frame)):
        rule = _RULE if row and table.blocks and table.blocks[row] != table.blocks[row - 1] else ""
        line = [
            _body_cell(table, row, place, texts[row], sides[place], rule, widths[place]) for place, texts in enumerate(columns)
        ]
        body += f"<tr>{''.join(line)}</tr>"
    return f'<table style="border-collapse:collapse">{top}<thead>{head}</thead><tbody>{body}</tbody></table>'


def _sentence_widths(columns: Sequence[Sequence[str]], names: Sequence[str], kinds: Sequence[str]) -> list[float]:
    """Em for each column of sentences, 0 for any other, so that the table is no wider than the page.

    Longer sentences get more, by the root of their length.
    """
    longest = [max(map(len, texts), default=0) for texts in columns]
    roots = [length**0.5 if kind == "text" and length > _WORDS else 0 for kind, length in zip(kinds, longest, strict=True)]
    words = [max(map(len, name.split()), default=0) for name in names]  # headings wrap between words
    taken = sum(_LETTER_EM * max(length, word) for length, word, root in zip(longest, words, roots, strict=True) if not root)
    room = _PAGE_EM - taken - _GAP_EM * len(columns)
    return [min(max(room * root / sum(roots), _NARROWEST_EM), _WIDEST_EM) if root else 0 for root in roots]


def _body_cell(table: Table, row: int, column: int, text: str, side: str, rule: str, width: float) -> str:
    if width:
        return _cell("td", f'<div style="{_WRAPPED};max-width:{width:.0f}em">{html.escape(text)}</div>', side, rule)
    shown = html.escape(text if side == _LEFT else with_minus(text))
    if (row, column) in table.best:
        shown = f"<b>{shown}</b>"
    elif (row, column) in table.near:
        shown = f"\N{ALMOST EQUAL TO} {shown}"
    return _cell("td", shown, side, _NO_WRAP, rule)
