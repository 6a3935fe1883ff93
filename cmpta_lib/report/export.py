"""Tables as CSV, LaTeX and Markdown files that each say where they come from, and one record of what made them all.

The LaTeX is to paste into an article of one column or two: 8 pt, never shrunk, nothing wider than the page. Numbers are
never broken, texts only where they must be. More columns than a page is wide are split in panels, and a table that is
taller than a page goes on over pages of its own. It cites methods by their keys in figures/references.bib. Needs booktabs,
array and longtable, and CJKutf8 for Chinese.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from glob import escape as literal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from cmpta_lib import files, paper
from cmpta_lib.report.tables import BLOCKS, NOTHING, Table, marked_up, to_markdown, written

CHINESE = re.compile("[\u3000-\u9fff\uff00-\uffef]")
_WORDS = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater", "|": "bar"}
_SIGNS = {"Δ": "Delta", "±": "pm", "×": "times", "≈": "approx", "→": "rightarrow", "≤": "leq", "≥": "geq"}
_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"\\text{name}{{}}" for character, name in _WORDS.items()},
    **{character: f"$\\{name}$" for character, name in _SIGNS.items()},
    "[": "{[}",  # at the start of a row it would be the optional argument of the line break before it,
    "*": "{*}",  # and this one a variant of that break
    "…": r"\dots{}",
    "²": r"\raisebox{.5ex}{2}",  # a raised digit of its own would be set at 6 pt
    "\N{MINUS SIGN}": "$-$",
    "\N{EM DASH}": "---",
    "\N{EN DASH}": "--",
    "\N{NO-BREAK SPACE}": "~",
    "\N{ZERO WIDTH SPACE}": r"\allowbreak{}",
    "\N{WORD JOINER}": "{}",
    "`": r"\textasciigrave{}",
    "\n": r"\newline ",
    **dict.fromkeys("🟩🟥🟨🟧⬜⬛", ""),  # colours are for screens, and stand before words that say the same
}
# What pdfLaTeX's own fonts lack, in tables without Chinese and with it.
_LACKING = re.compile(
    "[^ -~\u00a0-\u00aa\u00ac-\u00ba\u00bc-\u00cf\u00d1-\u00dd\u00df-\u00ef\u00f1-\u00fd\u00ff-\u0103\u0106-\u010f\u0112-\u0117"
    "\u011a-\u0125\u0128-\u012d\u0130-\u0137\u0139-\u013e\u0141-\u0148\u014c-\u0165\u0168-\u0171\u0174-\u017e\u2010-\u201d\u2020-\u2022"
    "\u20ac\u2122\u3000-\u9fff\uff00-\uffef]"
)
_SIGN = '\\providecommand{\\cmptasign}[1]{\\ifdefined\\Umathcode\\char"#1 \\else U+#1\\fi}  % other engines may have it\n'
_CITED = re.compile(rf"\b({'|'.join(map(re.escape, paper.CITED))}) \[\d*\]")  # "LMF [24]"
_HEADS = {"this run": "measured", "gap": "Δ"}  # in the words of the article that the table is for
_DELTA = "Δ: measured minus printed."
_JOINTS = re.compile(r"(?<=[_./=:])(?=[A-Za-z])")  # where long names may be broken, beside spaces and hyphens
_DIGIT_PT, GAP_PT = 4.4, 6.0  # a digit at 8 pt; between two columns
PAGE_PT = 344.0  # article's only column, less a margin
_WIDE, _NARROW = "+-±≈→%#&<>|mw", " .,:;'[]()|ijlt"
_PAGE_LINES = 42  # of a table that floats, with what stands below it
_SIZE = f"\\fontsize{{8}}{{9.6}}\\selectfont\\setlength{{\\tabcolsep}}{{{GAP_PT / 2:g}pt}}"
# What goes on over pages takes the whole width of an article of two columns.
_ONE_COLUMN = "\\makeatletter\\let\\cmptaback\\relax\n\\if@twocolumn\\onecolumn\\let\\cmptaback\\twocolumn\\fi\\makeatother\n"


def escaped(value: object) -> str:
    """Text as LaTeX prints it, to be broken inside of long names too; "LMF [24]" is cited.

    Hyphens before digits become minus signs: -0.095 but SIMS-2. What pdfLaTeX's fonts lack is shown by its number.
    """
    if found := _CITED.search(str(value)):
        before, after = str(value)[: found.start()], str(value)[found.end() :]
        return f"{escaped(before)}{escaped(found[1])}~\\cite{{{paper.CITED[found[1]]}}}{escaped(after)}"
    text = re.sub(r"(?<=-)(?=-)", "\N{WORD JOINER}", re.sub(r"\r\n?", "\n", str(value)))  # no font joins hyphens to a dash
    text = "".join(map(_printed, _JOINTS.sub("\N{ZERO WIDTH SPACE}", text)))
    return re.sub(r"(?<![\w.)-])([+-])(?=\d)", r"$\1$", text)


def _printed(character: str) -> str:
    if character in _SPECIAL or not _LACKING.match(character):
        return _SPECIAL.get(character, character)
    return f"\\cmptasign{{{ord(character):04X}}}"


def sentence(text: str) -> str:
    """A caption or note, with our own commands, which stand between backticks, as code."""
    return marked_up(text, escaped, lambda code: f"\\texttt{{{escaped(code)}}}")


def width_pt(text: str) -> float:
    """How wide a text is at 8 pt, about: by counting characters as two digits, one and a half, one or less."""
    wide = {NOTHING: 2.0, **dict.fromkeys(_WIDE, 1.5), **dict.fromkeys(_NARROW, 0.65)}
    sizes = (
        7 if "cmptasign" in _printed(one) else 2 if CHINESE.match(one) else wide.get(one, 1.5 if one.isupper() else 1)
        for one in text
    )
    return _DIGIT_PT * sum(sizes)


def word_pt(texts: Sequence[str]) -> float:
    """How wide the longest piece of these texts is that cannot be broken, at most."""
    pieces = re.split(r"\s+|(?<=-)(?=[A-Za-z])", _JOINTS.sub(" ", CHINESE.sub(r" \g<0> ", "\n".join(texts))))
    return 1.06 * max(map(width_pt, pieces)) + 1  # letters like n and u are wider than a digit


def left_pt(widths: np.ndarray) -> float:
    """What columns of these widths leave of a page."""
    return PAGE_PT - float(widths.sum()) - GAP_PT * (len(widths) - 1)


def panels_of(keys: int, least: np.ndarray) -> list[np.ndarray]:
    """Places of the columns in as few even panels as fit a page, the first `keys` in each; `least`: of each, in points."""
    named, rest = np.split(np.arange(len(least)), [keys])
    panels = [named]
    for count in range(1, len(rest) + 1):
        panels = [np.append(named, part) for part in np.array_split(rest, count)]
        if all(left_pt(least[panel]) >= 0 for panel in panels):
            break
    return panels


def fitted(whole: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Widths in points of a panel's columns: as they are, or what is long broken to the root of its length until all fit."""
    every = (np.clip(root * np.sqrt(whole), least, whole) for root in np.arange(20, 0, -0.05))
    return next((widths for widths in every if left_pt(widths) >= 0), least)


def laid_out(table: Table) -> tuple[list[tuple[pd.DataFrame, str]], float]:
    """A table's short form in panels that fit a page, headings and cells in LaTeX with the columns' form; and its lines.

    Only texts and headings are broken, and blocks' names stand over their rows.
    """
    named = table.short.astype(str).map(lambda text: f"{text} []" if text in paper.CITED else text)  # all that can be cited
    heads = [re.sub(rf"({'|'.join(_HEADS)})$", lambda found: _HEADS[found[0]], str(head)) for head in named.columns]
    table = replace(table, short=named)
    cells, kinds = written(table, lambda text, kind: escaped(text), "\\textbf{%s}", "\\underline{%s}")
    first = int(len(heads) > 1 and heads[0] in BLOCKS)
    titles, is_text = [*map(str, table.short.iloc[:, 0])], np.isin(kinds[first:], ["text", "list"])
    cells, heads, plain = cells[first:], heads[first:], table.short.iloc[:, first:]
    for row, block in enumerate(table.blocks):
        if not row or block != table.blocks[row - 1]:
            title = f"\\makebox[0pt][l]{{\\textit{{{escaped(titles[row])}}}}} \\\\*\n" * first
            cells[0][row] = "\\midrule\n" * bool(row) + title + cells[0][row]
    words = np.array([word_pt([head, *(plain.iloc[:, n] if is_text[n] else [])]) for n, head in enumerate(heads)])
    marked = {r"\*\*": "0", "__": "", r"\[\]": "[99]"}  # bold is a sixth wider
    sizes = plain.replace(marked, regex=True).map(width_pt).to_numpy(float)
    whole = np.maximum(sizes.max(axis=0, initial=0), words)
    least = np.where(is_text, words, whole)
    frame = pd.DataFrame(dict(zip(map(escaped, heads), cells, strict=True)), dtype=object)
    sides, panels, lines = np.where(is_text, "raggedright", "raggedleft"), [], 0.0
    for places in panels_of(min(max(1, [*is_text, False].index(False)), 3), least):  # leading texts tell rows apart
        widths = fitted(whole[places], least[places])
        tall = np.where(sizes[:, places] > widths, np.ceil(1.2 * sizes[:, places] / widths), 1)
        lines += 4 + len(set(table.blocks)) + tall.max(axis=1).sum()
        form = [f">{{\\{sides[n]}\\arraybackslash}}p{{{width:.1f}pt}}" for n, width in zip(places, widths, strict=True)]
        panels.append((frame.iloc[:, places], f"@{{}}{''.join(form)}@{{}}"))
    return panels, lines


def _tabular(frame: pd.DataFrame, form: str, **options: str) -> str:
    shown = frame.style.hide(axis="index")
    return str(shown.to_latex(column_format=form, hrules=True, **options))


def to_latex(table: Table, name: str, caption: str, warning: str, source: str) -> str:
    """A table's short form as a float, or where it is taller than a page as a table that goes on over pages.

    Args:
        name: its label is "cmpta:" and this.
        caption: without a number of its own; LaTeX gives it one.
    """
    has_delta = any(str(head).endswith(" gap") for head in table.short.columns)
    (panels, lines), below = laid_out(table), [*filter(None, table.notes), *([_DELTA] if has_delta else [])]
    said = sentence(" ".join(filter(None, [re.sub(r"^(Table|Figure) \d+(, continued)?\.\s*", "", caption), warning])))
    notes = "".join(f"\\par\\smallskip {{\\raggedright {sentence(note)}\\par}}\n" for note in below)
    notes += f"% {' '.join(source.split())}\n" if source else ""  # for whoever asks; the article says it in its own words
    if lines + sum(width_pt(note) // PAGE_PT + 1 for note in below) > _PAGE_LINES:
        again = "(continued)"
        first = _tabular(*panels[0], environment="longtable", caption=said, label=f"cmpta:{name}")
        others = [_tabular(*panel, environment="longtable", caption=again) for panel in panels[1:]]
        body = "\\addtocounter{table}{-1}\n".join([first.replace(f"\\caption[]{{{said}}}", f"\\caption[]{{{again}}}"), *others])
        text = f"{_ONE_COLUMN}{{{_SIZE}\\setlength{{\\LTcapwidth}}{{\\textwidth}}\n{body}{notes}}}\\cmptaback\n"
    else:
        body = "\\par\\medskip\n".join(_tabular(*panel) for panel in panels)
        head = f"\\centering\n\\caption{{{said}}}\n\\label{{cmpta:{name}}}\n{_SIZE}\n\\par\\smallskip\n"
        text = f"\\begin{{table*}}\n{head}{body}{notes}\\end{{table*}}\n"
    needs = "\\usepackage{booktabs,array,longtable}"
    if CHINESE.search(text):
        needs += " and, for its Chinese, \\usepackage{CJKutf8}"
        text = f"\\begin{{CJK}}{{UTF8}}{{gbsn}}\n{text}\\end{{CJK}}\n"
    return f"% Needs {needs}\n{_SIGN * ('cmptasign' in text)}{text}"


PROVENANCE = "provenance.json"
HASHES = "sha256"  # in it, beside the exports: the SHA-256 of each file
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
    """Write down in the folder's `provenance.json` what made the export `name`, and the SHA-256 of each of its files.

    Raises:
        ValueError: the file is there and no record; names it.
    """
    forms = (f"{literal(name)}.*", f"paper/{literal(name)}.*", f"paper/{literal(name)}_column.*")
    _record(folder, {name: asdict(provenance)}, *(path for form in forms for path in folder.glob(form)))


def record_files(folder: Path, *paths: Path) -> None:
    """Write down the SHA-256 of files below the folder that are no export, such as pages; raises as `record`."""
    _record(folder, {}, *paths)


def _record(folder: Path, items: Mapping[str, Any], *paths: Path) -> None:
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{PROVENANCE}.lock"):  # notebooks write side by side
            now = {path.relative_to(folder).as_posix(): files.sha256(path) for path in paths}
            hashes = dict(sorted({**recorded_hashes(folder), **now}.items()))
            every = {HASHES: hashes, **dict(sorted({**recorded(folder), **items}.items()))}
            files.write_text(folder / PROVENANCE, json.dumps(every, ensure_ascii=False, indent=1) + "\n")


def recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """Export -> what made it, as far as the folder's record tells; raises ValueError for a file that is no record."""
    return {name: item for name, item in _read(folder).items() if name != HASHES}


def recorded_hashes(folder: Path) -> dict[str, str]:
    """File, by its path in the folder -> SHA-256 when it was exported, as far as the record tells; raises as `recorded`."""
    return _read(folder).get(HASHES, {})


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / PROVENANCE
    try:
        items = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {str(name): dict(item) for name, item in items.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no record of exports; remove it and export again") from error
