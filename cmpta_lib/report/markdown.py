"""A table in Markdown, for the report, the README and GitHub: the short form, and the details in a fold below."""

from __future__ import annotations

import re

from cmpta_lib.report.layout import Table, cells, code_spans, heads, kind_of, with_minus

_NO_BREAK = "\N{NO-BREAK SPACE}"


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
    frame = table.short
    columns = [cells(frame, column) for column in range(frame.shape[1])]
    kinds = [kind_of(column) for column in columns]
    names = [escaped(f"{over} {name}".strip()) for over, name in heads(frame)]
    lines = [names, ["---" if kind == "text" else "---:" for kind in kinds]]
    for row in range(len(frame)):
        lines.append([_cell(table, row, place, texts[row], kinds[place]) for place, texts in enumerate(columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(table: Table, row: int, column: int, text: str, kind: str) -> str:
    shown = escaped(text)
    if kind != "text":  # in Markdown nothing else keeps a number in one line
        shown = shown.replace(" ", _NO_BREAK) if kind != "list" else shown
        shown = with_minus(shown)
    if (row, column) in table.best:
        return f"**{shown}**"
    return f"\N{ALMOST EQUAL TO}{_NO_BREAK}{shown}" if (row, column) in table.near else shown
