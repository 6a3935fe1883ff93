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
    bounds = {"Bayes-optimal": bayes or {}, "Bayes-optimal in context": bayes_in_context or {}}
    lines = []
    for row in rows:
        line = {_GROUP: row.group, _METHOD: row.method}
        for metric in metrics:
            line |= {(METRICS[metric].label, heading): text for heading, text in _cells(row, metric, bounds).items()}
        lines.append(line | {("", "note"): row.note})
    every = pd.DataFrame({head: [line[head] for line in lines] for head in lines[0]}, dtype=object)
    full = every.set_axis([f"{over} {heading}".strip() for over, heading in every.columns], axis=1)
    names, labels = [_GROUP] * by_group + [_METHOD], [METRICS[metric].label for metric in metrics]
    short = every[names + [(label, heading) for label in labels for heading in ("paper", "this run", "gap")]].copy()
    for place, head in enumerate((label, "this run") for label in labels):
        scores = short[head].str.partition(" (n=")[0]
        short[head] = scores.replace(NOT_RUN, NOTHING) if place else scores  # said once
    details = every.loc[[row.ran for row in rows], names + [(label, name) for label in labels for name in ("95 % CI", "seeds")]]
    remarks = [_REMARK, *_bounds(bounds, metrics), bound_rule]
    best, near = _marks(rows, metrics, len(names), by_group)
    return Table(
        short,
        full.drop(columns=[name for name in ("group", "note") if not any(full[name])]),
        best,
        near,
        notes=tuple(_notes(rows, bool(best), by_group)),
        blocks=tuple(row.group for row in rows),
        details=None if details.empty else Table.of(details.reset_index(drop=True), *filter(None, remarks)),
    )


_GROUP, _METHOD = ("", "group"), ("", "method")
_REMARK = (
    "95 % CI: bootstrap interval of the mean over seeds, test clips redrawn 2,000 times. "
    "Seeds: the score of each. The CSV file has everything in one table."
)
_Bounds = Mapping[str, Mapping[str, float]]


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


def _marks(
    rows: Sequence[ResultRow], metrics: Sequence[MetricName], first: int, by_group: bool
) -> tuple[frozenset[tuple[int, int]], frozenset[tuple[int, int]]]:
    """Positions in the short form of what is best and of what is within noise of it; `first`: the first metric's column.

    Rows that were run are compared with each other, two at least; with `by_group` those of one group.
    """
    best, near = set(), set()
    for group in dict.fromkeys(row.group if by_group else "" for row in rows):
        places = [place for place, row in enumerate(rows) if row.ran and group in (row.group, "")]
        for number, metric in enumerate(metrics if len(places) > 1 else ()):
            means = {place: float(np.mean(rows[place].scores(metric))) for place in places}
            top = (min if METRICS[metric].lower_is_better else max)(places, key=means.__getitem__)
            for place in places:
                if means[place] == means[top]:
                    best.add((place, first + 3 * number + 1))
                elif within_noise(metric, rows[place], rows[top]):
                    near.add((place, first + 3 * number + 1))
    return frozenset(best), frozenset(near)


def within_noise(metric: MetricName, one: ResultRow, other: ResultRow) -> bool:
    """Whether two rows that were run on the same clips differ by no more than clips or seeds make them differ.

    The 95 % paired bootstrap interval of the difference holds 0, or the difference is not larger than the larger of the
    two standard deviations over seeds.
    """
    found = one.minus(other, metric)
    spread = max(uncertainty.summarise(row.scores(metric).tolist()).sd or 0.0 for row in (one, other))
    return found.low <= 0 <= found.high or abs(found.difference) <= spread


def _notes(rows: Sequence[ResultRow], marked: bool, by_group: bool) -> Iterator[str]:
    """What the marks mean, which rows are of another group than the last one, and what rows have to say, each once."""
    if marked:
        sds = ", or the difference is not larger than the larger of the two sds over seeds"
        several = any(row.predictions is not None and len(row.predictions) > 1 for row in rows)
        rule = f"the 95 % paired bootstrap interval of the difference holds 0{sds if several else ''}"
        of_what = "in its group" if by_group else "of all rows"
        yield f"Bold: best {of_what}. \N{ALMOST EQUAL TO}: within noise of the best: {rule}."
    groups = [] if by_group else [group for group in dict.fromkeys(row.group for row in rows) if group]
    if len(groups) > 1:
        members = {group: [row.method for row in rows if row.group == group] for group in groups if group != rows[-1].group}
        yield " ".join(f"{group.capitalize()}: {', '.join(methods)}." for group, methods in members.items())
    for note in dict.fromkeys(row.note for row in rows if row.note):
        for state, ran in (("Not run, ", False), ("", True)):
            if methods := dict.fromkeys(row.method for row in rows if row.note == note and row.ran == ran):
                yield f"{state}{', '.join(methods)}: {note.rstrip('.')}."


def _bounds(bounds: _Bounds, metrics: Sequence[MetricName]) -> Iterator[str]:
    for heading, scores in bounds.items():
        known = [metric for name, metric in METRICS.items() if name in scores and name in metrics]
        if said := [f"{metric.label.partition(' ')[0]} {metric.with_unit(scores[metric.name])}" for metric in known]:
            yield f"{heading}: {', '.join(said)}."
