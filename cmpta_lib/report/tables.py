"""Result tables "paper | this run": the complete frame for programs, and from the same rows the short one that is read.

Scores enter as fractions; per cent (WF1) and the paper's number of decimals appear only in the table's text. Same rows
in, same bytes out: no clock, no random ids, and no column padding that depends on which packages are installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cmpta_lib.metrics import METRICS, Metric, MetricName
from cmpta_lib.report import uncertainty
from cmpta_lib.report.layout import NOT_RUN as NOT_RUN
from cmpta_lib.report.layout import NOTHING, Table


@dataclass(frozen=True, eq=False)
class ResultRow:
    """One method of one table.

    `paper` maps metric names to the value as printed (WF1 in per cent), and may be empty. `truth` (N,) and
    `predictions` (n_seeds, N) are both None for a method that was not run; `note` then says how to run it. `asked`: of how
    many seeds it is to be, where that is known.
    """

    group: str
    method: str
    paper: Mapping[str, float] = field(default_factory=dict)
    truth: np.ndarray | None = None
    predictions: np.ndarray | None = None
    note: str = ""
    asked: int | None = None

    @property
    def seeds(self) -> str:
        """How many seeds it is of: "2", or "1 of 2" where runs are still to come or went wrong."""
        made = 0 if self.predictions is None else len(self.predictions)
        return str(made) if self.asked in (None, made) else f"{made} of {self.asked}"

    @property
    def ran(self) -> bool:
        return self.predictions is not None

    def scores(self, metric: MetricName) -> np.ndarray:
        """(n_seeds,) what each seed scores, in the stored unit; only of a row that was run."""
        assert self.truth is not None and self.predictions is not None
        return uncertainty.seed_scores(metric, self.truth, self.predictions)

    def interval(self, metric: MetricName) -> tuple[float, float]:
        """The bootstrap interval of the mean over seeds, in the stored unit; only of a row that was run."""
        assert self.truth is not None and self.predictions is not None
        return uncertainty.bootstrap_interval(metric, self.truth, self.predictions)

    def minus(self, other: ResultRow, metric: MetricName) -> uncertainty.PairedDifference:
        """This row minus another on the same redrawn test clips, in the stored unit; only of rows that were run."""
        assert self.truth is not None and self.predictions is not None and other.predictions is not None
        return uncertainty.paired_bootstrap(metric, self.truth, self.predictions, other.predictions)

    def __post_init__(self) -> None:
        if (self.truth is None) != (self.predictions is None):
            raise ValueError(f"row '{self.method}': give both truth and predictions, or neither for 'not run'")


def result_table(
    rows: Sequence[ResultRow],
    metrics: Sequence[MetricName],
    *,
    bayes: Mapping[str, float] | None = None,
    bayes_in_context: Mapping[str, float] | None = None,
    bound_rule: str = "",
    by_group: bool = False,
) -> Table:
    """The short form, per metric "paper", "this run" (mean ± sample sd) and "gap" (this run minus the paper).

    The complete frame, `full`, has beside them "95 % CI" (`uncertainty.bootstrap_interval`: over test samples, of the
    seed mean), "seeds" (each seed's score, so that a collapsed one stays visible) and the bounds; its columns "group" and
    "note" appear only if some row has one. What is best and what is within noise of it is marked in the short form.

    Args:
        rows: in the order to print.
        metrics: "mae", "corr" or "f1_weighted".
        bayes: best score that any predictor can reach on generated data, by metric, as a fraction.
        bayes_in_context: the same for a predictor that reads whole dialogues.
        bound_rule: what decision these best scores are of; stands below them.
        by_group: groups are studies of their own: named in the short form, each with a best row of its own.
    Raises:
        ValueError: a metric without a display rule; predictions that `uncertainty` refuses, naming the row.
    """
    if unknown := [metric for metric in metrics if metric not in METRICS]:
        raise ValueError(f"no display rule for {unknown}; known: {', '.join(METRICS)}")
    known = {"Bayes-optimal": bayes or {}, "Bayes-optimal in context": bayes_in_context or {}}
    bounds = {heading: {name: scores[name] for name in metrics if name in scores} for heading, scores in known.items()}
    shown = {metric: [_cells(row, metric, bounds) for row in rows] for metric in metrics}
    lines = []
    for place, row in enumerate(rows):
        line = {"group": row.group, "method": row.method}
        for metric in metrics:
            line |= {f"{METRICS[metric].label} {column}": text for column, text in shown[metric][place].items()}
        lines.append(line | {"note": row.note})
    full = pd.DataFrame(lines, dtype=object)
    short = _short(rows, shown, by_group)
    first = short.shape[1] - 3 * len(metrics)
    best, near = _marks(rows, metrics, first, by_group)
    details, remarks = _details(rows, shown, by_group), _bounds(bounds)
    return Table(
        short,
        full.drop(columns=[name for name in ("group", "note") if lines and not any(full[name])]),
        best,
        near,
        notes=(*_legend(rows, best, by_group), *_groups(rows, by_group), *_notes(rows)),
        blocks=tuple(row.group for row in rows),
        details=details,
        remarks=(_REMARK, *remarks, *filter(None, [bound_rule])) if details is not None else (),
    )


_REMARK = (
    "95 % CI: bootstrap interval of the mean over seeds, test clips redrawn 2,000 times. "
    "Seeds: the score of each. The CSV file has everything in one table."
)
_Bounds = Mapping[str, Mapping[MetricName, float]]
_Shown = Mapping[MetricName, Sequence[Mapping[str, str]]]


def _cells(row: ResultRow, metric: MetricName, bounds: _Bounds) -> dict[str, str]:
    scale, show, printed = METRICS[metric].scale, METRICS[metric].shown, row.paper.get(metric)
    try:
        score, interval = scored(METRICS[metric], row)
    except ValueError as error:
        raise ValueError(f"row '{row.group} {row.method}', {metric}: {error}") from error
    scores = scale * row.scores(metric) if row.ran else np.array([])
    cells = {"paper": NOTHING if printed is None else show(printed)}
    cells |= {"this run": f"{score} (n={row.seeds})" if row.ran else NOT_RUN, "95 % CI": interval}
    cells["gap"] = show(float(scores.mean()) - printed, "+") if row.ran and printed is not None else NOTHING
    cells |= {heading: show(scale * best[metric]) for heading, best in bounds.items() if metric in best}
    return cells | {"seeds": ", ".join(show(score) for score in scores) or NOTHING}


def scored(metric: Metric, row: ResultRow) -> tuple[str, str]:
    """A row's mean ± sample sd over seeds, and the bootstrap interval of the mean over test clips."""
    if not row.ran:
        return NOT_RUN, NOTHING
    score = spread(metric.scale * row.scores(metric.name), metric.decimals)
    low, high = (metric.shown(metric.scale * edge) for edge in row.interval(metric.name))
    return score, f"[{low}, {high}]"


def compared(metric: Metric, row: ResultRow, other: ResultRow | None) -> tuple[str, str, str]:
    """`row` minus `other`, its interval, and how often chance alone would differ as much, on the same redrawn test clips.

    Dashes where there is no other, "not run" where a run of either is missing.
    """
    if other is None or not (row.ran and other.ran):
        return NOTHING if other is None else NOT_RUN, NOTHING, NOTHING
    found = row.minus(other, metric.name)
    difference, low, high = (metric.shown(metric.scale * value, "+") for value in (found.difference, found.low, found.high))
    return difference, f"[{low}, {high}]", f"{found.p_value:.4f}"


def compared_in_one(metric: Metric, row: ResultRow, other: ResultRow | None) -> tuple[str, str]:
    """`compared` with the interval beside the difference; dashes where there is nothing to compare, whatever the reason."""
    difference, interval, p_value = compared(metric, row, other)
    return (NOTHING if interval == NOTHING else f"{difference} {interval}"), p_value


def spread(values: Sequence[float] | np.ndarray, decimals: int) -> str:
    """Mean ± sample sd of the values that are defined, as "0.251 ± 0.001"; one has no deviation, none is a dash."""
    known = [value for value in map(float, values) if np.isfinite(value)]
    if not known:
        return NOTHING
    found = uncertainty.summarise(known)
    mean = round(found.mean, decimals) + 0.0  # + 0.0 turns -0.0 into 0.0
    return f"{mean:.{decimals}f}" + ("" if found.sd is None else f" ± {found.sd:.{decimals}f}")


def without_unit(metric: Metric, score: float) -> str:
    """A stored value for a column whose heading has the unit; a dash where it is not defined."""
    return metric.shown(metric.scale * score) if np.isfinite(score) else NOTHING


def _short(rows: Sequence[ResultRow], shown: _Shown, by_group: bool) -> pd.DataFrame:
    columns = {("", "group"): [row.group for row in rows]} if by_group else {}
    columns[("", "method")] = [row.method for row in rows]
    for place, (metric, cells) in enumerate(shown.items()):
        label = METRICS[metric].label
        columns[(label, "paper")] = [cell["paper"] for cell in cells]
        scores = [cell["this run"].partition(" (n=")[0] for cell in cells]
        columns[(label, "this run")] = [NOTHING if place and score == NOT_RUN else score for score in scores]  # said once
        columns[(label, "gap")] = [cell["gap"] for cell in cells]
    return pd.DataFrame(columns, dtype=object)


def _details(rows: Sequence[ResultRow], shown: _Shown, by_group: bool) -> pd.DataFrame | None:
    """Intervals and single seeds of the rows that were run; None where there are none."""
    ran = [place for place, row in enumerate(rows) if row.predictions is not None]
    columns = {("", "group"): [rows[place].group for place in ran]} if by_group else {}
    columns[("", "method")] = [rows[place].method for place in ran]
    for metric, cells in shown.items():
        for name in ("95 % CI", "seeds"):
            columns[(METRICS[metric].label, name)] = [cells[place][name] for place in ran]
    return pd.DataFrame(columns, dtype=object) if ran else None


def _peers(rows: Sequence[ResultRow], by_group: bool) -> Iterator[list[int]]:
    """Positions of rows that were run and are compared with each other, two at least."""
    for group in dict.fromkeys(row.group if by_group else "" for row in rows):
        ran = [place for place, row in enumerate(rows) if row.predictions is not None and group in (row.group, "")]
        if len(ran) > 1:
            yield ran


def _marks(
    rows: Sequence[ResultRow], metrics: Sequence[MetricName], first: int, by_group: bool
) -> tuple[frozenset[tuple[int, int]], frozenset[tuple[int, int]]]:
    """Positions in the short form of what is best and of what is within noise of it; `first`: the first metric's column."""
    best, near = set(), set()
    for number, metric in enumerate(metrics):
        column = first + 3 * number + 1
        for places in _peers(rows, by_group):
            means = {place: float(np.mean(rows[place].scores(metric))) for place in places}
            top = (min if METRICS[metric].lower_is_better else max)(places, key=means.__getitem__)
            for place in places:
                if means[place] == means[top]:
                    best.add((place, column))
                elif within_noise(metric, rows[place], rows[top]):
                    near.add((place, column))
    return frozenset(best), frozenset(near)


def within_noise(metric: MetricName, one: ResultRow, other: ResultRow) -> bool:
    """Whether two rows that were run on the same clips differ by no more than clips or seeds make them differ.

    The 95 % paired bootstrap interval of the difference holds 0, or the difference is not larger than the larger of the
    two standard deviations over seeds.
    """
    found = one.minus(other, metric)
    spread = max(uncertainty.summarise(row.scores(metric).tolist()).sd or 0.0 for row in (one, other))
    return found.low <= 0 <= found.high or abs(found.difference) <= spread


def _legend(rows: Sequence[ResultRow], best: frozenset[object], by_group: bool) -> Iterator[str]:
    if best:
        sds = ", or the difference is not larger than the larger of the two sds over seeds"
        several = any(row.predictions is not None and len(row.predictions) > 1 for row in rows)
        rule = f"the 95 % paired bootstrap interval of the difference holds 0{sds if several else ''}"
        of_what = "in its group" if by_group else "of all rows"
        yield f"Bold: best {of_what}. \N{ALMOST EQUAL TO}: within noise of the best: {rule}."


def _groups(rows: Sequence[ResultRow], by_group: bool) -> Iterator[str]:
    """In one sentence what a column would repeat: which rows are of another group than the last one."""
    groups = [] if by_group else [group for group in dict.fromkeys(row.group for row in rows) if group]
    if len(groups) > 1:
        members = {group: [row.method for row in rows if row.group == group] for group in groups if group != rows[-1].group}
        yield " ".join(f"{group.capitalize()}: {', '.join(methods)}." for group, methods in members.items())


def _notes(rows: Sequence[ResultRow]) -> Iterator[str]:
    """What rows have to say, each once: the methods of which it is true, and what."""
    for note in dict.fromkeys(row.note for row in rows if row.note):
        for state, ran in (("Not run, ", False), ("", True)):
            methods = dict.fromkeys(row.method for row in rows if row.note == note and (row.predictions is not None) == ran)
            if methods:
                yield f"{state}{', '.join(methods)}: {note.rstrip('.')}."


def _bounds(bounds: _Bounds) -> Iterator[str]:
    for heading, scores in bounds.items():
        known = {name: metric for name, metric in METRICS.items() if name in scores}
        said = [f"{metric.label.partition(' ')[0]} {metric.with_unit(scores[name])}" for name, metric in known.items()]
        if said:
            yield f"{heading}: {', '.join(said)}."
