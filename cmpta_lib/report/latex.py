"""A table as LaTeX to paste into an article: 8 pt, aligned at the decimal point and the ±, never shrunk.

Tables that fit one column of a two-column page are `table`, wider ones `table*`. Long texts become paragraphs, and where
numbers alone are too wide the columns are stacked in panels. Needs booktabs, and CJKutf8 where a cell holds Chinese.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cmpta_lib.report.latex_columns import (
    COLUMN_PT,
    GAP_PT,
    PAGE_LINES,
    Column,
    arranged,
    columns_of,
    lines_of,
    width_of,
)
from cmpta_lib.report.latex_text import CHINESE, escaped, paragraph
from cmpta_lib.report.layout import Table, code_spans, spans

_SIZE = "\\fontsize{8}{9.6}\\selectfont"
_HEAD_LINES = 4  # of a tabular's headings and rules
_END = " \\tabularnewline"  # not \\: \raggedright in a paragraph column takes that for its own


def to_latex(table: Table, name: str, caption: str, warning: str, source: str) -> str:
    """The float that shows a table's short form, with nothing but booktabs (and CJKutf8) to load.

    What is taller than a page goes on in another float under the same number.

    Args:
        name: its label is "cmpta:" and this.
        caption: without a number of its own; LaTeX gives it one.
    """
    title, columns = columns_of(table)
    panels = arranged(columns)
    star = "*" if max((width_of(panel) for panel in panels), default=0) > COLUMN_PT else ""
    said = " ".join(filter(None, [re.sub(r"^(Table|Figure) \d+(, continued)?\.\s*", "", caption), warning]))
    notes = [f"\\par\\smallskip {{\\raggedright {_sentence(note)}\\par}}" for note in (*table.notes, source) if note]
    chinese = any(CHINESE.search(text) for text in (said, *table.notes, *_texts(table)))
    opened, closed = ("\\begin{CJK}{UTF8}{gbsn}\n", "\\end{CJK}\n") if chinese else ("", "")
    needs = "\\usepackage{booktabs}" + (" and, for its Chinese, \\usepackage{CJKutf8}" if chinese else "")
    floats, parts = [], _pages(panels, title, table.blocks)
    for place, tabulars in enumerate(parts):
        head = f"\\caption{{{_sentence(said)}}}\n\\label{{cmpta:{name}}}"
        again = "\\addtocounter{table}{-1}\n\\caption{(continued)}"
        body = "\n\\par\\medskip\n".join(tabulars)
        last = "".join(f"\n{note}" for note in notes) if place == len(parts) - 1 else ""
        floats.append(
            f"\\begin{{table{star}}}\n{opened}\\centering\\sloppy\n{again if place else head}\n{_SIZE}"
            f"\\setlength{{\\tabcolsep}}{{{GAP_PT / 2:g}pt}}\n\\par\\smallskip\n"
            f"{body}{last}\n{closed}\\end{{table{star}}}\n"
        )
    return f"% Needs {needs}\n{''.join(floats)}"


def _pages(panels: Sequence[Sequence[Column]], title: Column | None, blocks: Sequence[str]) -> list[list[str]]:
    """Every panel as one or more tabulars, as many on each page as it holds."""
    pages: list[list[str]] = [[]]
    filled = 0
    for columns in panels:
        for rows, lines in _chunks(columns, title, blocks):
            if pages[-1] and filled + lines > PAGE_LINES:
                pages.append([])
                filled = 0
            pages[-1].append(_tabular(columns, rows, title, blocks))
            filled += lines
    return pages


def _chunks(columns: Sequence[Column], title: Column | None, blocks: Sequence[str]) -> list[tuple[range, int]]:
    """Rows that fit one page together, and how many lines they fill with their headings."""
    chunks, first, filled = [], 0, _HEAD_LINES
    count = len(columns[0].cells)
    for row in range(count):
        tall = lines_of(columns, row) + (1 if title and _starts(blocks, row) else 0)
        if filled + tall > PAGE_LINES and row > first:
            chunks.append((range(first, row), filled))
            first, filled = row, _HEAD_LINES
        filled += tall
    return [*chunks, (range(first, count), filled)]


def _starts(blocks: Sequence[str], row: int) -> bool:
    return not row or (bool(blocks) and blocks[row] != blocks[row - 1])


def _texts(table: Table) -> list[str]:
    return [str(value) for column in table.short.columns for value in (column, *table.short[column])]


def _sentence(text: str) -> str:
    # A path or a command is too long for a line of one column unless it may be broken.
    def words(part: str) -> str:
        return " ".join(paragraph(word) if len(word) > 30 else escaped(word) for word in part.split(" "))

    return "".join(
        f"\\texttt{{{paragraph(part).replace('--', '-{}-')}}}" if code else words(part) for part, code in code_spans(text)
    )


def _tabular(columns: Sequence[Column], rows: range, title: Column | None, blocks: Sequence[str]) -> str:
    count = sum(column.tex_columns for column in columns)
    form = "".join(column.form for column in columns)
    lines = [f"\\begin{{tabular}}{{@{{}}{form}@{{}}}}", "\\toprule"]
    if any(column.over for column in columns):
        lines += _overs(columns)
    lines.append(" & ".join(column.header() for column in columns) + _END)
    for row in rows:
        starts = row == rows.start or _starts(blocks, row)
        if starts:
            lines.append("\\midrule")
        if title and starts:
            lines.append(f"\\multicolumn{{{count}}}{{@{{}}l@{{}}}}{{\\textit{{{escaped(title.cells[row])}}}}}{_END}")
        lines.append(" & ".join(column.body(row) for column in columns) + _END)
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def _overs(columns: Sequence[Column]) -> list[str]:
    """The line of the metrics, each over its columns, and the rules below it."""
    cells, rules, first, place = [], [], 1, 0
    for over, count in spans([column.over for column in columns]):
        wide = sum(column.tex_columns for column in columns[place : place + count])
        cells.append(f"\\multicolumn{{{wide}}}{{c}}{{{escaped(over)}}}")
        rules += [f"\\cmidrule(lr){{{first}-{first + wide - 1}}}"] if over else []
        first, place = first + wide, place + count
    return [" & ".join(cells) + _END, "".join(rules)]
