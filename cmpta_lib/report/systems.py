"""Tables of the systems beyond the paper: versions of a method beside it, and labels against pre-training."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from cmpta_lib.metrics import METRICS, MetricName
from cmpta_lib.report import uncertainty
from cmpta_lib.report.layout import NOT_RUN, NOTHING
from cmpta_lib.report.rows import result_row, scores_of
from cmpta_lib.report.tables import ResultRow, mean_and_sd
from cmpta_lib.study import systems
from cmpta_lib.study.row import Row
from cmpta_lib.study.study import Study


def versions(study: Study, key: str, rows: Sequence[Row], base: Row) -> pd.DataFrame:
    """Each row's test scores, mean ± sd over seeds with their interval, and the row minus `base` in its paired interval."""
    lines, reference = [], result_row(study, key, base)
    for row in rows:
        found = reference if row == base else result_row(study, key, row)
        for metric in scores_of(study, key):
            line = {"version": row.name, "metric": METRICS[metric].label, **score(metric, found)}
            line |= paired(metric, found, reference, f"minus {base.name}", is_same=row == base)
            lines.append(line | {"note": found.note or reference.note})
    return pd.DataFrame(lines)


def labels(study: Study, key: str) -> pd.DataFrame:
    """By share of the training labels: with the pre-training, without, and the first minus the second."""
    lines = []
    for share, rows in systems.LABEL_SHARES.items():
        with_it, without = (result_row(study, key, row) for row in rows)
        for metric in scores_of(study, key):
            line = {"labels": f"{share:.0%}", "metric": METRICS[metric].label}
            line |= {"pre-trained": score(metric, with_it)["score"], "not pre-trained": score(metric, without)["score"]}
            line |= paired(metric, with_it, without, "pre-trained minus not")
            lines.append(line | {"note": with_it.note or without.note})
    return pd.DataFrame(lines)


def score(metric: MetricName, row: ResultRow) -> dict[str, str]:
    """Mean ± sample sd over seeds, and the bootstrap interval of the mean over test clips."""
    if row.truth is None or row.predictions is None:
        return {"score": NOT_RUN, "95 % CI": NOTHING}
    shown, scale = METRICS[metric].shown, METRICS[metric].scale
    seeds = scale * uncertainty.seed_scores(metric, row.truth, row.predictions)
    low, high = uncertainty.bootstrap_interval(metric, row.truth, row.predictions)
    return {"score": mean_and_sd(METRICS[metric], seeds), "95 % CI": f"[{shown(scale * low)}, {shown(scale * high)}]"}


def paired(metric: MetricName, one: ResultRow, other: ResultRow, heading: str, is_same: bool = False) -> dict[str, str]:
    """One row minus another on the same redrawn test clips, and how often chance alone would differ as much."""
    if is_same or one.truth is None or one.predictions is None or other.predictions is None:
        return {heading: NOTHING, "p": NOTHING}
    found = uncertainty.paired_bootstrap(metric, one.truth, one.predictions, other.predictions)
    scale, shown = METRICS[metric].scale, METRICS[metric].shown
    difference, low, high = (shown(scale * value, "+") for value in (found.difference, found.low, found.high))
    return {heading: f"{difference} [{low}, {high}]", "p": f"{found.p_value:.4f}"}

