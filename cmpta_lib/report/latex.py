"""Text in LaTeX: escaped, measured, and where it may be broken.

Columns of a LaTeX table: how each is aligned, how wide it is, and how all of them fit a page.

A table as LaTeX to paste into an article: 8 pt, aligned at the decimal point and the ±, never shrunk.

Tables that fit one column of a two-column page are `table`, wider ones `table*`. Long texts become paragraphs, and where
numbers alone are too wide the columns are stacked in panels. Needs booktabs, and CJKutf8 where a cell holds Chinese.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cmpta_lib.report.layout import BLOCKS, NOT_RUN, NOTHING, Kind, Table, code_spans, heads, kind_of, spans, with_minus

CHINESE = re.compile("[\u3000-\u9fff\uff00-\uffef]")
_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at the start of a row it would be the optional argument of the line break before it,
    "*": "{*}",  # and this one a variant of that break
    "±": r"$\pm$",
    "×": r"$\times$",
    "≈": r"$\approx$",
    "→": r"$\rightarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "…": r"\dots{}",
    "²": r"\raisebox{.5ex}{2}",  # a raised digit of its own would be set at 6 pt
    "\N{MINUS SIGN}": "$-$",
    "\N{EM DASH}": "---",
    "\N{EN DASH}": "--",
    "\N{NO-BREAK SPACE}": "~",
    "\n": r"\newline ",
}
_BREAK = "\N{ZERO WIDTH SPACE}"
# Where long names may be broken, beside spaces and hyphens: after a joint, before a letter.
_JOINTS = re.compile(r"(?<=[_./=:])(?=[A-Za-z])")
# Widths at 8 pt in points of Computer Modern, the widest of the usual text fonts, as TeX reports them, rounded up.
_WIDTHS = {
    **dict.fromkeys("!',.:;[]`il", 2.4),
    **dict.fromkeys("fj- ", 2.9),
    **dict.fromkeys("I()rst", 3.4),
    **dict.fromkeys("cez", 3.8),
    **dict.fromkeys("\"$*/0123456789\\^ago{}~?J", 4.4),
    **dict.fromkeys("LFZ", 5.6),
    **dict.fromkeys("EPBCTw", 6.2),
    **dict.fromkeys("RAHNUVXYDK&+=<>@OQG±×\N{MINUS SIGN}", 6.7),
    **dict.fromkeys("#%mM", 7.8),
    **dict.fromkeys("W|≈→…\N{EM DASH}", 8.8),
}
_OTHER_PT, _CHINESE_PT, BOLD = 4.8, 8.1, 1.16


def escaped(value: object) -> str:
    """Text as LaTeX prints it; signs before digits become minus and plus, hyphens stay: -0.095 but SIMS-2."""
    text = "".join(_SPECIAL.get(character, character) for character in str(value))
    text = re.sub(r"(?<![\w.)-])([+-])(?=\d)", r"$\1$", text)
    return text.replace(_BREAK, r"\allowbreak{}")


def paragraph(text: str) -> str:
    """Escaped text that may be broken inside of long names too."""
    return escaped(_JOINTS.sub(_BREAK, text))


def measured(text: str) -> float:
    """Width at 8 pt in points, rather too large than too small."""
    return sum(_CHINESE_PT if CHINESE.match(one) else _WIDTHS.get(one, _OTHER_PT) for one in with_minus(text))


def longest_piece(text: str) -> float:
    """Width in points of what cannot be broken."""
    pieces = re.split(r"\s+|(?<=-)(?=[A-Za-z])", _JOINTS.sub(" ", CHINESE.sub(r" \g<0> ", text)))
    return max(map(measured, pieces), default=0)


COLUMN_PT, PAGE_PT = 220.0, 343.0  # a column of a two-column page, and article's only column; both less a margin
GAP_PT = 8.0  # between two columns
PAGE_LINES = 46  # of a float: article's page less caption and notes
_NARROWEST_PT, _MOST_LINES = 56.0, 3.5  # of a column of sentences
_HEAD_PT = 40.0  # a heading as wide as this is not broken
_PM, _PM_PT = "${}\\pm{}$", 10.4


@dataclass(frozen=True, eq=False)
class Column:
    """One column of the frame, which may become two of LaTeX: left and right of the ± or the decimal point."""

    over: str
    head: str
    cells: tuple[str, ...]
    kind: Kind
    best: frozenset[int] = frozenset()
    near: frozenset[int] = frozenset()
    wrapped_pt: float = 0.0  # > 0: a paragraph of this width
    joint: str = field(default="", init=False)  # where a cell is cut in two

    def __post_init__(self) -> None:
        numbers = [cell for cell in self.cells if re.search(r"\d", cell)]
        decimals = {len(cell.partition(".")[2]) for cell in numbers}
        if self.kind == "spread":
            object.__setattr__(self, "joint", " ± ")
        elif self.kind == "number" and len(decimals - {0}) > 1:
            object.__setattr__(self, "joint", ".")

    @property
    def tex_columns(self) -> int:
        return 2 if self.joint else 1

    @property
    def form(self) -> str:
        if self.wrapped_pt:
            return f"p{{{self.wrapped_pt:.1f}pt}}"
        if self.joint:
            return "r@{}l"
        return "l" if self.kind in ("text", "list") else "r"

    @property
    def flexible(self) -> bool:
        return self.kind in ("text", "list")

    @property
    def body_pt(self) -> float:
        """Width of its cells, unwrapped."""
        if not self.joint:
            return max((self._cell_pt(row, cell) for row, cell in enumerate(self.cells)), default=0)
        cut = [(row, *cell.partition(self.joint)) for row, cell in enumerate(self.cells) if re.search(r"\d", cell)]
        left = max((self._cell_pt(row, before) for row, before, _, _ in cut), default=0)
        right = max((measured(after) for _, _, _, after in cut), default=0)
        middle = _PM_PT if self.joint != "." else measured(".")
        return max(left + right + middle, *(measured(cell) for cell in self.cells if not re.search(r"\d", cell)), 0)

    def _cell_pt(self, row: int, text: str) -> float:
        return measured(text) * (BOLD if row in self.best else 1) + (8.1 if row in self.near else 0)

    def head_lines(self) -> list[str]:
        """The heading in lines no wider than the cells, as far as its words allow."""
        words = self.head.split(" ")
        width = self.wrapped_pt or max(self.body_pt, _HEAD_PT, *map(measured, words))
        lines = words[:1]
        for word in words[1:]:
            together = f"{lines[-1]} {word}"
            lines = [*lines[:-1], together] if measured(together) <= width else [*lines, word]
        return lines

    @property
    def width_pt(self) -> float:
        return self.wrapped_pt or max(self.body_pt, *map(measured, self.head_lines()))

    @property
    def least_pt(self) -> float:
        """The narrowest that it can be."""
        if not self.flexible:
            return self.width_pt
        return min(self.width_pt, max(longest_piece(text) for text in (self.head, *self.cells, "x" * 8)) + 2)

    def header(self) -> str:
        side = "c" if self.joint else "l" if self.flexible else "r"
        lines = [escaped(line) for line in self.head_lines()]
        stacked = " \\\\ ".join(lines)
        shown = f"\\shortstack[{side}]{{{stacked}}}" if len(lines) > 1 else stacked
        return f"\\multicolumn{{2}}{{c}}{{{shown}}}" if self.joint else shown

    def body(self, row: int) -> str:
        text = self.cells[row]
        if self.wrapped_pt:
            return f"\\raggedright {paragraph(text)}"
        if not self.joint:
            side = not self.flexible and text in (NOTHING, NOT_RUN)
            return f"\\multicolumn{{1}}{{c}}{{{escaped(text)}}}" if side else self._marked(row, escaped(text))
        if not re.search(r"\d", text):
            return f"\\multicolumn{{2}}{{c}}{{{escaped(text)}}}"
        before, joint, after = text.partition(self.joint)
        between = {"": "", ".": "."}.get(joint, _PM)
        return f"{self._marked(row, escaped(before))} & {between}{escaped(after)}"

    def _marked(self, row: int, text: str) -> str:
        if row in self.best:
            return f"\\textbf{{{text}}}"
        return f"$\\approx$\\,{text}" if row in self.near else text


def columns_of(table: Table) -> tuple[Column | None, list[Column]]:
    """The column that heads blocks of rows, if there is one, and the others."""
    frame, columns = table.short, []
    for place, (over, head) in enumerate(heads(frame)):
        texts = tuple(str(value) for value in frame.iloc[:, place])
        best, near = (frozenset(row for row, column in marks if column == place) for marks in (table.best, table.near))
        columns.append(Column(over, head, texts, kind_of(texts), best, near))
    if len(columns) > 1 and columns[0].head in BLOCKS:
        return columns[0], columns[1:]
    return None, columns


def width_of(columns: Sequence[Column]) -> float:
    """Width of a tabular in points."""
    return sum(column.width_pt for column in columns) + GAP_PT * (len(columns) - 1)


def arranged(columns: Sequence[Column]) -> list[list[Column]]:
    """The columns in panels that fit a page; the first columns, which name a row, stand in each."""
    whole, keys = _fitted(columns), _naming(columns)
    if width_of(columns) <= PAGE_PT or len(keys) == len(columns):
        return [whole]
    if width_of(whole) <= PAGE_PT and sum(lines_of(whole, row) for row in range(len(columns[0].cells))) <= PAGE_LINES:
        return [whole]
    units: list[list[Column]] = []
    for column in columns[len(keys) :]:
        if units and column.over and units[-1][0].over == column.over:
            units[-1].append(column)
        else:
            units.append([column])
    filled = _filled(keys, units, len(units))
    even = -(-len(units) // len(filled))  # a last panel of one column beside a full first one looks like a mistake
    balanced = _filled(keys, units, even)
    return [_fitted([*keys, *panel]) for panel in (balanced if len(balanced) == len(filled) else filled)]


def _filled(keys: Sequence[Column], units: Sequence[Sequence[Column]], most: int) -> list[list[Column]]:
    """Units in as few panels as hold them, `most` in each."""
    panels: list[list[Column]] = []
    count = 0
    for unit in units:
        if panels and count < most and _least([*keys, *panels[-1], *unit]) <= PAGE_PT:
            panels[-1] += unit
            count += 1
        else:
            panels.append(list(unit))
            count = 1
    return panels


def _narrow(column: Column) -> float:
    return max(column.least_pt, min(column.width_pt, _NARROWEST_PT))


def lines_of(columns: Sequence[Column], row: int) -> int:
    """How many lines a row is tall, rather too many than too few."""
    wrapped = [column for column in columns if column.wrapped_pt]
    return max([1, *(math.ceil(1.15 * measured(column.cells[row]) / column.wrapped_pt) for column in wrapped)])


def _naming(columns: Sequence[Column]) -> list[Column]:
    """The leading columns, three at most, that tell one row from another."""
    for count in (1, 2, 3):
        rows = list(zip(*(column.cells for column in columns[:count]), strict=True))
        if len(set(rows)) == len(rows):
            return list(columns[:count])
    return list(columns[:1])


def _least(columns: Sequence[Column]) -> float:
    """The narrowest width of a panel whose cells do not become taller than `_MOST_LINES`."""
    wanted = (max(_narrow(column), _few_lines(column)) for column in columns)
    return sum(wanted) + GAP_PT * (len(columns) - 1)


def _few_lines(column: Column) -> float:
    return min(column.width_pt / _MOST_LINES, PAGE_PT / 2) if column.flexible else 0.0


def _fitted(columns: Sequence[Column]) -> list[Column]:
    """Where they are too wide together, the widest texts become paragraphs that share what is left."""
    if width_of(columns) <= PAGE_PT:
        return list(columns)
    left = PAGE_PT - GAP_PT * (len(columns) - 1) - sum(column.width_pt for column in columns if not column.flexible)
    open_ = sorted((column for column in columns if column.flexible), key=lambda column: column.width_pt)
    widths: dict[int, float] = {}
    needed = sum(_narrow(column) for column in open_)
    for place, column in enumerate(open_):
        # What the others cannot do without is theirs; of the rest each may take an even share.
        needed -= _narrow(column)
        share = max(_narrow(column), min(left / (len(open_) - place), left - needed))
        widths[id(column)] = min(column.width_pt, share)
        left -= widths[id(column)]
    return [
        replace(column, wrapped_pt=widths[id(column)])
        if id(column) in widths and widths[id(column)] < column.width_pt
        else column
        for column in columns
    ]


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
