"""Result tables "paper | this run", exported as CSV, LaTeX and Markdown that each say where they come from.

Scores enter as fractions; per cent (WF1) and the paper's number of decimals appear only in the table's text. Same rows
in, same bytes out: no clock, no random ids, and no column padding that depends on which packages are installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from cmpta_lib.metrics import METRICS, MetricName
from cmpta_lib.report import uncertainty
from cmpta_lib.report.export import NOTHING

if TYPE_CHECKING:
    import pandas as pd

NOT_RUN = "not run"


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
    rows: Sequence[ResultRow],
    metrics: Sequence[MetricName],
    *,
    bayes: Mapping[str, float] | None = None,
    bayes_in_context: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """The table as text: per metric "paper", "this run" (mean ± sample sd), "95 % CI", "gap", "seeds".

    The interval is `uncertainty.bootstrap_interval`: over test samples, of the seed mean. The gap is this run minus the
    paper. "seeds" lists each seed's score, so that a collapsed one stays visible. Columns "group" and "note" appear
    only if some row has one.

    Args:
        rows: in the order to print.
        metrics: "mae", "corr" or "f1_weighted".
        bayes: best score that any predictor can reach on generated data, by metric, as a fraction; adds a column.
        bayes_in_context: the same for a predictor that reads whole dialogues.
    Raises:
        ValueError: a metric without a display rule; predictions that `uncertainty` refuses, naming the row.
    """
    import pandas as pd

    if unknown := [metric for metric in metrics if metric not in METRICS]:
        raise ValueError(f"no display rule for {unknown}; known: {', '.join(METRICS)}")
    bounds = {"Bayes-optimal": bayes or {}, "Bayes-optimal in context": bayes_in_context or {}}
    lines = []
    for row in rows:
        line = {"group": row.group, "method": row.method}
        for metric in metrics:
            try:
                cells = _cells(row, metric, bounds)
            except ValueError as error:
                raise ValueError(f"row '{row.group} {row.method}', {metric}: {error}") from error
            line |= {f"{METRICS[metric].label} {column}": text for column, text in cells.items()}
        lines.append(line | {"note": row.note})
    frame = pd.DataFrame(lines, dtype=object)
    return frame.drop(columns=[name for name in ("group", "note") if lines and not any(frame[name])])


def _cells(row: ResultRow, metric: MetricName, bounds: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    scale, show = METRICS[metric].scale, METRICS[metric].shown
    printed = row.paper.get(metric)
    cells = {"paper": NOTHING, "this run": NOT_RUN, "95 % CI": NOTHING, "gap": NOTHING}
    if printed is not None:
        cells["paper"] = show(printed)
    cells |= {heading: show(scale * best[metric]) for heading, best in bounds.items() if metric in best}
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


