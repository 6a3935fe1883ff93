"""Tables: a short form that is read, with its marks, and the complete frame behind it; and "paper | this run" from rows.

Written here in Markdown, for the report, a notebook and GitHub, with the details in a fold below; `export` writes LaTeX
and the files. Same rows in, same bytes out: no clock, no random ids, and no padding that depends on installed packages.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from cmpta_lib.embedded.bounds import RULES
from cmpta_lib.metrics import METRICS, Metric, MetricName
from cmpta_lib.report.uncertainty import NOT_RUN, NOTHING, ResultRow, scored, within_noise, without_unit
from cmpta_lib.study.plan import CMPTA

Kind = Literal["number", "list", "text"]

BLOCKS = ("corpus", "group")  # a first column of this name is a heading over its rows
METHOD, NOTE = "method", "note"
_NUMBER = r"[+\-\N{MINUS SIGN}]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?: ?%)?"
_INTERVAL = rf"\[{_NUMBER}, {_NUMBER}\]"
_KINDS: Sequence[tuple[Kind, str]] = (
    ("number", rf"(?:≈ )?{_NUMBER}(?: ± {_NUMBER}| {_INTERVAL})?|{_INTERVAL}"),
    ("list", rf"{_NUMBER}(?:, {_NUMBER})*"),
)
_COMMAND = re.compile("`(cmpta [^`]*)`")
_OWN = re.compile(r"(?P<apart>[$\\]|:(?=//|[a-z0-9_+-]+:)|(?<=www)\.|@(?=\w))|[&|*_<`~]|\](?=[(\[:])")
_BEGINS = re.compile(r"^(\d+(?=[.)]\s)|(?=[#>+-]))")


@dataclass(frozen=True, eq=False)
class Table:
    """One table in its forms.

    `short` is what is read: cells of text, the best score between "**", the second between "__". `full` is what programs
    read. `blocks`: one name per row; a rule stands where it changes. `notes` stand below, and `details` is folded away.
    `ours`: the rows that are CMPTA's, whose method is bold.
    """

    short: pd.DataFrame
    full: pd.DataFrame
    notes: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    details: Table | None = None
    ours: frozenset[int] = frozenset()

    @classmethod
    def of(cls, frame: pd.DataFrame, *notes: str) -> Table:
        """A frame that is its own short form, but for a column "note": what it says stands below, before these notes."""
        short = frame.drop(columns=NOTE, errors="ignore")
        said = enumerate(frame[NOTE] if NOTE in frame else ())
        notes = (*(f"{_name(short, row)}: {note}." for row, note in said if note not in ("", NOTHING)), *notes)
        has_blocks = frame.shape[1] and frame.columns[0] in BLOCKS
        blocks = tuple(map(str, frame.iloc[:, 0])) if has_blocks else ()
        ours = np.flatnonzero(short[METHOD] == CMPTA.name) if METHOD in short else ()
        return cls(short, frame, notes=notes, blocks=blocks, ours=frozenset(ours))


def _name(frame: pd.DataFrame, row: int) -> str:
    """The words with which a row begins."""
    words = [str(value) for value in frame.iloc[row]]
    return ", ".join(words[:1] + [word for word in words[1:3] if kind_of([word]) == "text"])


def kind_of(texts: Sequence[str]) -> Kind:
    """What a column holds: numbers, also with spread or interval, lists of them, or text; an empty one counts as numbers."""
    filled = [text.strip("*_") for text in texts if text not in (NOTHING, NOT_RUN, "")]
    return next((kind for kind, form in _KINDS if all(re.fullmatch(form, text) for text in filled)), "text")


def written(table: Table, escaped: Callable[[str, Kind], str], *looks: str) -> tuple[list[list[str]], list[Kind]]:
    """The short form's cells, column by column, in a markup; and what each column holds. Repeated blocks' names are blank.

    Args:
        escaped: a cell's text in that markup.
        looks: bold and underlined, with "%s" for the cell.
    """
    columns = [[*map(str, table.short.iloc[:, place])] for place in range(table.short.shape[1])]
    if columns and table.short.columns[0] in BLOCKS:
        columns[0] = ["" if row and text == columns[0][row - 1] else text for row, text in enumerate(columns[0])]
    kinds, marks = [kind_of(texts) for texts in columns], dict(zip(("**", "__"), looks, strict=True))
    for place, (texts, kind) in enumerate(zip(columns, kinds, strict=True)):
        of_ours = table.ours if table.short.columns[place] == METHOD else ()
        for row, text in enumerate(texts):
            mark = "**" * (row in of_ours) if kind == "text" else text[:2]  # in a text the stars are its own
            texts[row] = marks.get(mark, "%s") % escaped(text if kind == "text" else text.strip("*_"), kind)
    return columns, kinds


def marked_up(text: str, plain: Callable[[str], str], code: Callable[[str], str]) -> str:
    """A sentence in a markup; `code`: a command of ours between backticks, which are nothing but backticks in data."""
    return "".join((code if place % 2 else plain)(part) for place, part in enumerate(_COMMAND.split(text)) if part)


def escaped(value: object) -> str:
    """Text that neither Markdown takes for its own, nor the HTML and the mathematics in it.

    A backslash does for GitHub, JupyterLab and our pages but for what JupyterLab looks for again in the page that it has made,
    and what is made a picture or an address, with the backslashes in it; that stands in an element of its own, left alone.
    """
    return re.sub(r"\r\n?|\n", "<br>", _OWN.sub(_quoted, str(value)))


def _quoted(sign: re.Match[str]) -> str:
    if sign["apart"]:
        return f"<span>&#{ord(sign[0])};</span>"
    return "&amp;" if sign[0] == "&" else f"\\{sign[0]}"


def sentence(text: str) -> str:
    """A caption or note, escaped but for commands, and no heading, list or quotation whatever it begins with."""
    return _BEGINS.sub(r"\1\\", marked_up(text.lstrip(), escaped, lambda code: f"`{code}`"))


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

    columns, kinds = written(table, cell, "**%s**", "<ins>%s</ins>")
    sides = ["---" if kind == "text" else "---:" for kind in kinds]
    lines = [[*map(escaped, table.short.columns)], sides, *zip(*columns, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True, eq=False)
class Shown:
    """What a notebook cell ends with: the short form, the details in a fold below, or `folded` all of it under its caption."""

    table: Table
    caption: str
    folded: bool = False

    def _repr_markdown_(self) -> str:
        if self.folded:
            summary = f"<details><summary>{html.escape(self.caption, quote=False)}</summary>"
            return f"{summary}\n\n{to_markdown(self.table, '')}\n</details>\n"
        return to_markdown(self.table, self.caption)

    def __repr__(self) -> str:
        return f"{self.caption}\n{self.table.full.to_string(index=False)}"


Best = Mapping[str, Mapping[str, float]]


def result_table(
    rows: Sequence[ResultRow], metrics: Sequence[MetricName], best: Best | None = None, *, by_group: bool = False
) -> Table:
    """The short form, per metric "paper", "this run" (mean ± sample sd) and "gap" (this run minus the paper).

    The complete frame, `full`, has beside them "95 % CI" (`uncertainty.bootstrap_interval`: over test samples, of the
    seed mean), the best possible scores, and "seeds" (each seed's score, so that a collapsed one stays visible); its columns
    "group" and "note" appear only if some row has one. The short form marks what is best and what is within noise of it.

    Args:
        rows: in the order to print.
        metrics: "mae", "corr" or "f1_weighted".
        best: heading -> metric -> score that any predictor can reach at most on generated data, as a fraction.
        by_group: groups are studies of their own: named in the short form, each with a best row of its own.
    Raises:
        ValueError: a metric without a display rule; predictions that `uncertainty` refuses, naming the row.
    """
    if unknown := [metric for metric in metrics if metric not in METRICS]:
        raise ValueError(f"no display rule for {unknown}; known: {', '.join(METRICS)}")
    shown, names = [METRICS[metric] for metric in metrics], ["group"] * by_group + ["method"]
    lines = []
    for row in rows:
        cells = {f"{metric.label} {what}": text for metric in shown for what, text in _cells(row, metric, best or {}).items()}
        lines.append({"group": row.group, "method": row.method, **cells, NOTE: row.note})
    full, marks = pd.DataFrame(lines, dtype=object), _marks(rows, shown, by_group)
    short = full[[*names, *(f"{metric.label} {what}" for metric in shown for what in ("paper", "this run", "gap"))]].copy()
    for metric in shown:
        scores = short[f"{metric.label} this run"].str.partition(" (n=")[0]
        if metric != shown[0]:
            scores = scores.replace(NOT_RUN, NOTHING)  # said once
        short[f"{metric.label} this run"] = [marks.get((place, metric), "%s") % score for place, score in enumerate(scores)]
    details = full[[*names, *(f"{metric.label} {what}" for metric in shown for what in ("95 % CI", "seeds"))]]
    details = details[[row.ran for row in rows]].reset_index(drop=True)
    return Table(
        short, full.drop(columns=[name for name in ("group", NOTE) if not any(full[name])]),
        notes=tuple(_notes(rows, bool(marks), by_group)), blocks=tuple(row.group for row in rows),
        details=None if details.empty else Table.of(details, *_remarks(best or {}, shown)),
        ours=frozenset(place for place, row in enumerate(rows) if row.is_ours),
    )  # fmt: skip


def _cells(row: ResultRow, metric: Metric, best: Best) -> dict[str, str]:
    printed = row.paper.get(metric.name)
    try:
        score, interval = scored(metric, row)
    except ValueError as error:
        raise ValueError(f"row '{row.group} {row.method}', {metric.name}: {error}") from error
    scores = metric.scale * row.scores(metric.name) if row.ran else np.array([])
    cells = {"paper": NOTHING if printed is None else metric.shown(printed)}
    cells |= {"this run": f"{score} (n={row.seeds})" if row.ran else NOT_RUN, "95 % CI": interval}
    cells["gap"] = NOTHING if printed is None or not row.ran else metric.shown(float(scores.mean()) - printed, "+")
    cells |= {name: without_unit(metric, known[metric.name]) for name, known in best.items() if metric.name in known}
    return cells | {"seeds": ", ".join(map(metric.shown, scores)) or NOTHING}


def _remarks(best: Best, metrics: Sequence[Metric]) -> Iterator[str]:
    """What stands below the details."""
    yield (
        "95 % CI: bootstrap interval of the mean over seeds, test clips redrawn 2,000 times. "
        "Seeds: the score of each. The CSV file has everything in one table."
    )
    names = {metric: metric.label.partition(" ")[0] for metric in metrics}
    for heading, known in best.items():
        if said := [f"{name} {metric.with_unit(known[metric.name])}" for metric, name in names.items() if metric.name in known]:
            yield f"{heading}: {', '.join(said)}."
    if any(best.values()):
        rules = "; ".join(f"{name}: {RULES[metric.name]}" for metric, name in names.items())
        yield f"Bayes-optimal: what the best decision rule scores on these clips, which luck on them can exceed ({rules})."


def _marks(rows: Sequence[ResultRow], metrics: Sequence[Metric], by_group: bool) -> dict[tuple[int, Metric], str]:
    """(row, metric) -> the marks of what is best, second, and within noise of the best, with "%s" for the score.

    Rows that were run are compared with each other, two at least; with `by_group` those of one group. Of two none is second.
    """
    marks = {}
    for group in dict.fromkeys(row.group if by_group else "" for row in rows):
        places = [place for place, row in enumerate(rows) if row.ran and group in (row.group, "")]
        for metric in metrics if len(places) > 1 else ():
            means = {place: float(rows[place].scores(metric.name).mean()) for place in places}
            order = sorted(set(means.values()), reverse=not metric.lower_is_better)
            top = next(place for place in places if means[place] == order[0])
            for place in places:
                if means[place] == order[0]:
                    marks[place, metric] = "**%s**"
                    continue
                near = "≈ %s" if within_noise(metric.name, rows[place], rows[top]) else "%s"
                is_second = means[place] == order[1] and len(places) > 2
                marks[place, metric] = f"__{near}__" if is_second else near
    return marks


def _notes(rows: Sequence[ResultRow], marked: bool, by_group: bool) -> Iterator[str]:
    """What the marks mean, which rows are of another group than the last one, and what rows have to say, each once."""
    if marked:
        several = any(row.predictions is not None and len(row.predictions) > 1 for row in rows)
        sds = ", or the difference is not larger than the larger of the two sds over seeds" if several else ""
        yield (
            f"Bold: best {'in its group' if by_group else 'of all rows'}; underlined: second. \N{ALMOST EQUAL TO}: within noise "
            f"of the best: the 95 % paired bootstrap interval of the difference holds 0{sds}."
        )
    if by_group and any(row.is_ours for row in rows):
        yield f"A bold name: {CMPTA.name} itself."
    groups = dict.fromkeys(row.group for row in rows if row.group and not by_group)
    if len(groups) > 1:
        members = {group: [row.method for row in rows if row.group == group] for group in groups if group != rows[-1].group}
        yield " ".join(f"{group.capitalize()}: {', '.join(methods)}." for group, methods in members.items())
    for note in dict.fromkeys(row.note for row in rows if row.note):
        for state, ran in (("Not run, ", False), ("", True)):
            if methods := dict.fromkeys(row.method for row in rows if row.note == note and row.ran == ran):
                yield f"{state}{', '.join(methods)}: {note.rstrip('.')}."
