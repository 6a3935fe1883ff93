"""Result tables "paper | this run", exported as CSV, LaTeX and Markdown that each say where they come from.

Scores enter as fractions; per cent (WF1) and the paper's number of decimals appear only in the table's text. Same rows
in, same bytes out: no clock, no random ids, and no column padding that depends on which packages are installed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cmpta_lib.report import uncertainty

if TYPE_CHECKING:
    import pandas as pd

NOT_RUN = "not run"
NOTHING = "\N{EM DASH}"


class _Display(NamedTuple):
    label: str
    scale: float
    decimals: int


_DISPLAY: Mapping[str, _Display] = {  # as the paper prints them
    "mae": _Display("MAE", 1, 3),
    "corr": _Display("Corr", 1, 3),
    "f1_weighted": _Display("WF1 (%)", 100, 2),
}


@dataclass(frozen=True)
class Provenance:
    """Where a table or figure comes from. No date: the commit dates it, and files must not differ between reruns."""

    data: str
    backbone: str
    seeds: tuple[int, ...]
    commit: str  # with "+dirty" appended when the working tree had changes
    profile: str
    generated: bool  # made from generated data
    hardware: str

    def line(self) -> str:
        """One line for a caption, e.g. "Data: ...; backbone: ...; seeds: 1111, 2222; ..."."""
        data = f"{self.data} (generated)" if self.generated else self.data
        seeds = ", ".join(map(str, self.seeds)) or "none"
        return (
            f"Data: {data}; backbone: {self.backbone}; seeds: {seeds}; profile: {self.profile}; "
            f"commit: {self.commit}; hardware: {self.hardware}."
        )

    def warning(self) -> str:
        """What a reader must know of generated data or the embedded LLM; empty where both are real."""
        if self.generated:
            return "Generated data: this shows that the code works, it says nothing about the paper's claims."
        if self.backbone.startswith("tiny"):
            return "A tiny language model stands in for the paper's: no claim of the paper is tested here."
        return ""


@dataclass(frozen=True, eq=False)
class ResultRow:
    """One method of one table.

    `paper` maps metric names to the value as printed (WF1 in per cent), and may be empty. `truth` (N,) and
    `predictions` (n_seeds, N) are both None for a method that was not run; `note` then says how to run it.
    """

    group: str
    method: str
    paper: Mapping[str, float] = field(default_factory=dict)
    truth: np.ndarray | None = None
    predictions: np.ndarray | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if (self.truth is None) != (self.predictions is None):
            raise ValueError(f"row '{self.method}': give both truth and predictions, or neither for 'not run'")


def result_table(
    rows: Sequence[ResultRow], metrics: Sequence[uncertainty.Metric], *, bayes: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """The table as text: per metric "paper", "this run" (mean ± sample sd), "95 % CI", "gap", "seeds".

    The interval is `uncertainty.bootstrap_interval`: over test samples, of the seed mean. The gap is this run minus the
    paper. "seeds" lists each seed's score, so that a collapsed one stays visible. Columns "group" and "note" appear
    only if some row has one.

    Args:
        rows: in the order to print.
        metrics: "mae", "corr" or "f1_weighted".
        bayes: best score that any predictor can reach on generated data, by metric, as a fraction; adds a column.
    Raises:
        ValueError: a metric without a display rule; predictions that `uncertainty` refuses, naming the row.
    """
    import pandas as pd

    if unknown := [metric for metric in metrics if metric not in _DISPLAY]:
        raise ValueError(f"no display rule for {unknown}; known: {', '.join(_DISPLAY)}")
    lines = []
    for row in rows:
        line = {"group": row.group, "method": row.method}
        for metric in metrics:
            try:
                cells = _cells(row, metric, bayes or {})
            except ValueError as error:
                raise ValueError(f"row '{row.group} {row.method}', {metric}: {error}") from error
            line |= {f"{_DISPLAY[metric].label} {column}": text for column, text in cells.items()}
        lines.append(line | {"note": row.note})
    frame = pd.DataFrame(lines, dtype=object)
    return frame.drop(columns=[name for name in ("group", "note") if lines and not any(frame[name])])


def _cells(row: ResultRow, metric: uncertainty.Metric, bayes: Mapping[str, float]) -> dict[str, str]:
    _, scale, decimals = _DISPLAY[metric]

    def show(value: float, sign: str = "") -> str:
        return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"  # + 0.0 turns -0.0 into 0.0

    printed = row.paper.get(metric)
    cells = {"paper": NOTHING, "this run": NOT_RUN, "95 % CI": NOTHING, "gap": NOTHING}
    if printed is not None:
        cells["paper"] = show(printed)
    if metric in bayes:
        cells["Bayes-optimal"] = show(scale * bayes[metric])
    cells["seeds"] = NOTHING
    if row.truth is not None and row.predictions is not None:
        scores = scale * uncertainty.seed_scores(metric, row.truth, row.predictions)
        summary = uncertainty.summarise(scores.tolist())
        low, high = uncertainty.bootstrap_interval(metric, row.truth, row.predictions)
        spread = "" if summary.sd is None else f" ± {show(summary.sd)}"
        cells["this run"] = f"{show(summary.mean)}{spread} (n={summary.n})"
        cells["95 % CI"] = f"[{show(scale * low)}, {show(scale * high)}]"
        cells["seeds"] = ", ".join(show(score) for score in scores)
        if printed is not None:
            cells["gap"] = show(summary.mean - printed, "+")
    return cells


def export_table(
    frame: pd.DataFrame, folder: str | Path, name: str, *, caption: str, provenance: Provenance
) -> list[Path]:
    """Write `name`.csv, `name`.tex and `name`.md into `folder` (made if missing); return their paths.

    The CSV has no comment lines, so every reader takes it as it is; two last columns, `generated` and `provenance`,
    repeat on each row so that a row copied out of it still says what it is. LaTeX (booktabs, adjustbox) and Markdown
    carry caption, warning and provenance as text. Each file is replaced whole, never seen half written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "csv": frame.assign(generated=provenance.generated, provenance=provenance.line()).to_csv(
            index=False, lineterminator="\n"
        ),
        "tex": _to_latex(frame, name, " ".join(filter(None, [caption, provenance.warning(), provenance.line()]))),
        "md": _to_markdown(frame, caption, provenance),
    }
    paths = []
    for suffix, text in texts.items():
        paths.append(folder / f"{name}.{suffix}")
        _write_atomically(paths[-1], text)
    return paths


_LATEX_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at the start of a row it would be the optional argument of the line break before it
    "±": r"$\pm$",
    "\N{MINUS SIGN}": "$-$",
    NOTHING: "---",
}


def _latex(value: object) -> str:
    escaped = "".join(_LATEX_SPECIAL.get(character, character) for character in str(value))
    return re.sub(r"(?<![\w.)-])([+-])(?=\d)", r"$\1$", escaped)  # a sign, not a hyphen: -0.095 but SIMS-2


def _to_latex(frame: pd.DataFrame, name: str, caption: str) -> str:
    escaped = frame.map(_latex).set_axis(frame.columns.map(_latex), axis=1)
    columns = "l" * escaped.shape[1]
    table = escaped.style.hide(axis="index").to_latex(
        hrules=True, caption=_latex(caption), label=f"tab:{name}", position_float="centering", column_format=columns
    )
    table = table.replace(r"\begin{tabular}", "\\begin{adjustbox}{max width=\\linewidth}\n\\begin{tabular}")
    table = table.replace(r"\end{tabular}", "\\end{tabular}\n\\end{adjustbox}")
    return "% needs \\usepackage{booktabs,adjustbox}, and a CJK font (e.g. xeCJK) where cells hold Chinese\n" + table


def _markdown(value: object) -> str:
    return re.sub(r"([\\|*_<`~])", r"\\\1", str(value)).replace("\n", "<br>")


def _to_markdown(frame: pd.DataFrame, caption: str, provenance: Provenance) -> str:
    # Not DataFrame.to_markdown: tabulate pads by display width, which depends on whether wcwidth is installed.
    body = [frame.columns, ["---"] * frame.shape[1], *frame.itertuples(index=False, name=None)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in ([*map(_markdown, line)] for line in body))
    warning = f"**{text}**" if (text := provenance.warning()) else ""
    return "\n\n".join(filter(None, [_markdown(caption), warning, table, _markdown(provenance.line())])) + "\n"


def _write_atomically(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
