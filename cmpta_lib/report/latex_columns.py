"""Columns of a LaTeX table: how each is aligned, how wide it is, and how all of them fit a page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cmpta_lib.report.latex_text import BOLD, escaped, longest_piece, measured, paragraph
from cmpta_lib.report.layout import BLOCKS, NOT_RUN, NOTHING, Kind, Table, heads, kind_of

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
