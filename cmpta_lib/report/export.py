"""Tables as CSV, LaTeX and Markdown files that each say where they come from, and one record of what made them all.

The LaTeX is to paste into an article: 8 pt, never shrunk, nothing wider or taller than the page. Columns are paragraphs of
a given width, so what is long is broken. Where numbers alone are too wide for a page the columns are split in panels, and
what is too tall goes on in another float. Needs booktabs and array, and CJKutf8 for Chinese.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from cmpta_lib import files
from cmpta_lib.report.layout import BLOCKS, Table, heads, marked_up, to_markdown, written
from cmpta_lib.report.layout import NOTHING as NOTHING

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
    "\N{ZERO WIDTH SPACE}": r"\allowbreak{}",
    "\n": r"\newline ",
}
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
_BOLD, _NEAR_PT = 1.16, 8.1
PAGE_PT, COLUMN_PT = 343.0, 220.0  # article's only column, and one of two; both less a margin
GAP_PT = 8.0  # between two columns
_PAGE_LINES, _HEAD_LINES = 46, 4  # of a float less caption and notes; of headings and rules
_SENTENCE_PT, _MOST_LINES = 72.0, 25  # a column of sentences is no narrower, and its cells no taller
_SIZE = "\\fontsize{8}{9.6}\\selectfont"


def escaped(value: object) -> str:
    """Text as LaTeX prints it; signs before digits become minus and plus, hyphens stay: -0.095 but SIMS-2."""
    text = "".join(_SPECIAL.get(character, character) for character in str(value))
    return re.sub(r"(?<![\w.)-])([+-])(?=\d)", r"$\1$", text)


def paragraph(text: str) -> str:
    """Escaped text that may be broken inside of long names too."""
    return escaped(_JOINTS.sub("\N{ZERO WIDTH SPACE}", text))


def measured(text: str) -> float:
    """Width at 8 pt in points, rather too large than too small; a hyphen before a digit is a minus."""
    text = re.sub(r"(?<!\w)-(?=\d)", "+", text)
    return sum(8.1 if CHINESE.match(one) else _WIDTHS.get(one, 4.8) for one in text)


def longest_piece(text: str) -> float:
    """Width in points of what cannot be broken."""
    pieces = re.split(r"\s+|(?<=-)(?=[A-Za-z])", _JOINTS.sub(" ", CHINESE.sub(r" \g<0> ", text)))
    return max(map(measured, pieces), default=0)


@dataclass(frozen=True, eq=False)
class Column:
    """A column's heading and cells, in LaTeX and as plain text, and its width in points: unbroken, and at least."""

    over: str
    head: str
    cells: Sequence[str]
    plain: Sequence[str]
    is_text: bool
    whole_pt: float
    least_pt: float


def columns_of(table: Table) -> tuple[Column | None, list[Column]]:
    """The column that heads blocks of rows, if there is one, and the others."""
    cells, kinds = written(table, lambda text, kind: paragraph(text), "\\textbf{%s}", "$\\approx$\\,%s")
    columns = []
    for place, (over, head) in enumerate(heads(table.short)):
        plain, is_text = [str(value) for value in table.short.iloc[:, place]], kinds[place] in ("text", "list")
        wide = [
            measured(text) * (_BOLD if (row, place) in table.best else 1) + _NEAR_PT * ((row, place) in table.near)
            for row, text in enumerate(plain)
        ]
        whole, least = max([longest_piece(head), *wide]), max(longest_piece(text) for text in (head, *plain)) + 2
        enough = max(min(whole / _MOST_LINES, PAGE_PT / 2), _SENTENCE_PT if whole > 2 * _SENTENCE_PT else 0)
        least = min(whole, max(least, enough)) if is_text else whole
        columns.append(Column(over, head, cells[place], plain, is_text, whole, least))
    return (columns[0], columns[1:]) if len(columns) > 1 and columns[0].head in BLOCKS else (None, columns)


def arranged(columns: Sequence[Column]) -> list[list[Column]]:
    """The columns in panels that fit a page; the leading ones, three at most, that tell one row from another stand in each."""
    rows = [list(zip(*(column.plain for column in columns[:count]), strict=True)) for count in (1, 2, 3)]
    named = next((count for count, names in enumerate(rows, start=1) if len(set(names)) == len(names)), 1)
    keys, rest = columns[:named], columns[named:]
    for count in range(1, len(rest) + 1):
        parts = np.array_split(np.arange(len(rest)), count)  # even: a last panel of one column looks like a mistake
        panels = [[*keys, *(rest[place] for place in part)] for part in parts]
        if all(sum(c.least_pt for c in panel) + GAP_PT * (len(panel) - 1) <= PAGE_PT for panel in panels):
            return panels
    return [[*keys, column] for column in rest] or [list(keys)]


def widths_of(columns: Sequence[Column]) -> list[float]:
    """Points for each: the narrow ones are unbroken, the widest share what is left."""
    left, widths = PAGE_PT - GAP_PT * (len(columns) - 1), [0.0] * len(columns)
    order = sorted(range(len(columns)), key=lambda place: columns[place].whole_pt)
    for number, place in enumerate(order):
        reserved = sum(columns[other].least_pt for other in order[number + 1 :])
        share = min(left / (len(order) - number), left - reserved)
        widths[place] = min(columns[place].whole_pt, max(columns[place].least_pt, share))
        left -= widths[place]
    return widths


def to_latex(table: Table, name: str, caption: str, warning: str, source: str) -> str:
    """The float that shows a table's short form, in several parts under one number where it is wider or taller than a page.

    Args:
        name: its label is "cmpta:" and this.
        caption: without a number of its own; LaTeX gives it one.
    """
    title, columns = columns_of(table)
    tabulars = [text for panel in arranged(columns) for text in _tabulars(panel, title, table.blocks)]
    star = "*" if sum(c.whole_pt for c in columns) + GAP_PT * (len(columns) - 1) > COLUMN_PT else ""
    said = " ".join(filter(None, [re.sub(r"^(Table|Figure) \d+(, continued)?\.\s*", "", caption), warning]))
    notes = "".join(f"\n\\par\\smallskip {{\\raggedright {_sentence(note)}\\par}}" for note in (*table.notes, source) if note)
    chinese = CHINESE.search(" ".join([said, *table.notes, *tabulars]))
    opened, closed = ("\\begin{CJK}{UTF8}{gbsn}\n", "\\end{CJK}\n") if chinese else ("", "")
    head, again = f"\\caption{{{_sentence(said)}}}\n\\label{{cmpta:{name}}}", "\\addtocounter{table}{-1}\n\\caption{(continued)}"
    floats = [
        f"\\begin{{table{star}}}\n{opened}\\centering\\sloppy\n"
        f"{again if place else head}\n"
        f"{_SIZE}\\setlength{{\\tabcolsep}}{{{GAP_PT / 2:g}pt}}\n\\par\\smallskip\n"
        f"{text}{notes if place == len(tabulars) - 1 else ''}\n{closed}\\end{{table{star}}}\n"
        for place, text in enumerate(tabulars)
    ]
    needs = "\\usepackage{booktabs,array}" + (" and, for its Chinese, \\usepackage{CJKutf8}" if chinese else "")
    return f"% Needs {needs}\n{''.join(floats)}"


def _tabulars(columns: Sequence[Column], title: Column | None, blocks: Sequence[str]) -> Iterator[str]:
    """A panel, in as many parts as its rows need pages."""
    widths, first, filled = widths_of(columns), 0, _HEAD_LINES
    count = len(columns[0].cells)
    starts = [not row or (bool(blocks) and blocks[row] != blocks[row - 1]) for row in range(count)]
    for row in range(count):
        lines = [math.ceil(1.15 * measured(c.plain[row]) / w) for c, w in zip(columns, widths, strict=True) if w < c.whole_pt]
        tall = max([1, *lines]) + (starts[row] and title is not None)
        if filled + tall > _PAGE_LINES and row > first:
            yield _tabular(columns, widths, range(first, row), title, starts)
            first, filled = row, _HEAD_LINES
        filled += tall
    yield _tabular(columns, widths, range(first, count), title, starts)


def _tabular(
    columns: Sequence[Column], widths: Sequence[float], rows: range, title: Column | None, starts: Sequence[bool]
) -> str:
    frame = pd.DataFrame({place: [column.cells[row] for row in rows] for place, column in enumerate(columns)}, dtype=object)
    for place, row in enumerate(rows):  # what stands above a row goes before its first cell
        above = "\\midrule\n" if place and starts[row] else ""
        if title and (starts[row] or not place):
            above += f"\\multicolumn{{{len(columns)}}}{{@{{}}l@{{}}}}{{\\textit{{{escaped(title.plain[row])}}}}} \\\\\n"
        frame.iloc[place, 0] = above + frame.iloc[place, 0]
    tops = [(escaped(column.over), paragraph(column.head)) for column in columns]
    has_overs = any(over for over, _ in tops)
    frame.columns = pd.MultiIndex.from_tuples(tops) if has_overs else pd.Index([head for _, head in tops])
    sides = ["raggedright" if column.is_text else "raggedleft" for column in columns]
    form = "".join(f">{{\\{side}\\arraybackslash}}p{{{width:.1f}pt}}" for side, width in zip(sides, widths, strict=True))
    text = frame.style.hide(axis="index").to_latex(column_format=f"@{{}}{form}@{{}}", hrules=True, multicol_align="c")
    return str(text).strip()


def _sentence(text: str) -> str:
    # A path or a command is too long for a line of one column unless it may be broken.
    def words(part: str) -> str:
        return " ".join(paragraph(word) if len(word) > 30 else escaped(word) for word in part.split(" "))

    return marked_up(text, words, lambda code: f"\\texttt{{{paragraph(code).replace('--', '-{}-')}}}")


PROVENANCE = "provenance.json"
FULL = "_full"  # ends the name of the LaTeX file that holds what a short table leaves out


@dataclass(frozen=True)
class Provenance:
    """Where a table or figure comes from. No date: the commit dates it, and files must not differ between reruns."""

    data: str
    backbone: str
    seeds: tuple[int, ...]
    commits: tuple[str, ...]  # with "+dirty" appended when the working tree had changes
    profile: str
    generated: bool  # made from generated data
    hardware: tuple[str, ...]
    fingerprints: Mapping[str, str] = field(default_factory=dict)  # of each corpus and of the backbone, in full
    runs: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()

    def line(self) -> str:
        """One line for a caption, e.g. "Data: ...; backbone: ...; seeds: 1111, 2222; ...".

        Commit and machine are not in it: equal numbers make equal files, whoever made them. `record` keeps them.
        """
        data = f"{self.data} (generated)" if self.generated else self.data
        seeds = ", ".join(map(str, self.seeds)) or "none"
        return f"Data: {data}; backbone: {self.backbone}; seeds: {seeds}; profile: {self.profile}."

    def warning(self) -> str:
        """What a reader must know of generated data or the embedded LLM; empty where both are real."""
        if self.generated:
            return "Generated data: this shows that the code works, it says nothing about the paper's claims."
        if self.backbone.startswith("tiny"):
            return "A tiny language model stands in for the paper's: no claim of the paper is tested here."
        return ""


def export_table(
    table: pd.DataFrame | Table, folder: str | Path, name: str, *, caption: str, provenance: Provenance
) -> list[Path]:
    """Write `name`.csv, `name`.md and `name`.tex into `folder` (made if missing); return their paths.

    The CSV is the complete frame and has no comment lines, so every reader takes it as it is; two last columns,
    `generated` and `provenance`, repeat on each row so that a row copied out of it still says what it is. Markdown and
    LaTeX show the short form with caption, warning and provenance as text; what is folded away is in the Markdown's
    fold and in `name`_full.tex. Each file is replaced whole, never seen half written.

    Raises:
        ValueError: a table without columns.
    """
    folder, table = Path(folder), table if isinstance(table, Table) else Table.of(table)
    if not table.short.shape[1]:
        raise ValueError(f"table '{name}' has no columns, so there is nothing to write to {folder}; give it a row first")
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    warning, source = provenance.warning(), provenance.line()
    stated = table.full.assign(generated=provenance.generated, provenance=source)
    texts = {
        f"{name}.csv": stated.to_csv(index=False, lineterminator="\n"),
        f"{name}.md": to_markdown(table, caption, warning, source),
        f"{name}.tex": to_latex(table, name, caption, warning, source),
    }
    if folded := table.details:
        texts[f"{name}{FULL}.tex"] = to_latex(folded, f"{name}{FULL}", f"{caption} Details.", warning, source)
    for file, text in texts.items():
        files.write_text(folder / file, text)
    return [folder / file for file in texts]


def record(folder: Path, name: str, provenance: Provenance) -> None:
    """Write down in the folder's `provenance.json` what made the export `name`; notebooks may do so side by side.

    Raises:
        ValueError: the file is there and no record; names it.
    """
    path = folder / PROVENANCE
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{PROVENANCE}.lock"):
            items = recorded(folder) | {name: asdict(provenance)}
            text = json.dumps(dict(sorted(items.items())), ensure_ascii=False, indent=1)
            files.write_text(path, text + "\n")


def recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """Export -> what made it, as far as the folder's record tells; raises ValueError for a file that is no record."""
    path = folder / PROVENANCE
    try:
        items = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        items = None
    if not isinstance(items, dict) or not all(isinstance(item, dict) for item in items.values()):
        raise ValueError(f"{path} is no record of exports; remove it and export again")
    return items
