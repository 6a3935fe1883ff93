"""Result tables "paper | this run": the complete frame for programs, and from the same rows the short one that is read.

Scores enter as fractions; per cent (WF1) and the paper's number of decimals appear only in the table's text. Same rows
in, same bytes out: no clock, no random ids, and no column padding that depends on which packages are installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cmpta_lib.embedded.bounds import RULES
from cmpta_lib.metrics import METRICS, Metric, MetricName
from cmpta_lib.report import uncertainty
from cmpta_lib.report.layout import NOT_RUN as NOT_RUN
from cmpta_lib.report.layout import NOTE, NOTHING, Table

Best = Mapping[str, Mapping[str, float]]
Places = frozenset[tuple[int, int]]


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

    def __post_init__(self) -> None:
        if (self.truth is None) != (self.predictions is None):
            raise ValueError(f"row '{self.method}': give both truth and predictions, or neither for 'not run'")

    @property
    def ran(self) -> bool:
        return self.predictions is not None

    @property
    def _answers(self) -> tuple[np.ndarray, np.ndarray]:
        assert self.truth is not None and self.predictions is not None, "only of a row that was run"
        return self.truth, self.predictions

    @property
    def seeds(self) -> str:
        """How many seeds it is of: "2", or "1 of 2" where runs are still to come or went wrong."""
        made = 0 if self.predictions is None else len(self.predictions)
        return str(made) if self.asked in (None, made) else f"{made} of {self.asked}"

    def scores(self, metric: MetricName) -> np.ndarray:
        """(n_seeds,) what each seed scores, in the stored unit; only of a row that was run."""
        return uncertainty.seed_scores(metric, *self._answers)

    def interval(self, metric: MetricName) -> tuple[float, float]:
        """The bootstrap interval of the mean over seeds, in the stored unit; only of a row that was run."""
        return uncertainty.bootstrap_interval(metric, *self._answers)

    def minus(self, other: ResultRow, metric: MetricName) -> uncertainty.PairedDifference:
        """This row minus another on the same redrawn test clips, in the stored unit; only of rows that were run."""
        return uncertainty.paired_bootstrap(metric, *self._answers, other._answers[1])


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
    shown, names = [METRICS[metric] for metric in metrics], [("", "group")] * by_group + [("", "method")]
    columns: dict[tuple[str, str], list[str]] = {
        ("", "group"): [row.group for row in rows],
        ("", "method"): [row.method for row in rows],
        **{(metric.label, heading): cells for metric in shown for heading, cells in _cells(rows, metric, best or {}).items()},
        ("", NOTE): [row.note for row in rows],
    }
    full = pd.DataFrame({f"{over} {heading}".strip(): cells for (over, heading), cells in columns.items()}, dtype=object)
    short = {name: columns[name] for name in names}
    for metric in shown:
        short |= {(metric.label, heading): columns[metric.label, heading] for heading in ("paper", "this run", "gap")}
        said = {NOT_RUN: NOTHING} if metric != shown[0] else {}  # once
        scores = [score.partition(" (n=")[0] for score in short[metric.label, "this run"]]
        short[metric.label, "this run"] = [said.get(score, score) for score in scores]
    folded = names + [(metric.label, heading) for metric in shown for heading in ("95 % CI", "seeds")]
    details = pd.DataFrame({name: columns[name] for name in folded}, dtype=object)[[row.ran for row in rows]]
    marked, near = _marks(rows, shown, len(names), by_group)
    return Table(
        pd.DataFrame(short, dtype=object),
        full.drop(columns=[name for name in ("group", NOTE) if not any(full[name])]),
        marked,
        near,
        notes=tuple(_notes(rows, bool(marked), by_group)),
        blocks=tuple(row.group for row in rows),
        details=None if details.empty else Table.of(details.reset_index(drop=True), *_remarks(best or {}, shown)),
    )


def _cells(rows: Sequence[ResultRow], metric: Metric, best: Best) -> dict[str, list[str]]:
    """A metric's columns: heading -> cells."""
    lines = []
    for row in rows:
        printed = row.paper.get(metric.name)
        try:
            score, interval = scored(metric, row)
        except ValueError as error:
            raise ValueError(f"row '{row.group} {row.method}', {metric.name}: {error}") from error
        scores = metric.scale * row.scores(metric.name) if row.ran else np.array([])
        line = {"paper": NOTHING if printed is None else metric.shown(printed)}
        line |= {"this run": f"{score} (n={row.seeds})" if row.ran else NOT_RUN, "95 % CI": interval}
        line["gap"] = NOTHING if printed is None or not row.ran else metric.shown(float(scores.mean()) - printed, "+")
        line |= {name: without_unit(metric, known[metric.name]) for name, known in best.items() if metric.name in known}
        lines.append(line | {"seeds": ", ".join(map(metric.shown, scores)) or NOTHING})
    return {heading: [line[heading] for line in lines] for heading in lines[0]}


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


def scored(metric: Metric, row: ResultRow) -> tuple[str, str]:
    """A row's mean ± sample sd over seeds, and the bootstrap interval of the mean over test clips."""
    if not row.ran:
        return NOT_RUN, NOTHING
    score = spread(metric.scale * row.scores(metric.name), metric.decimals)
    return score, _interval(metric, *row.interval(metric.name))


def _interval(metric: Metric, low: float, high: float, sign: str = "") -> str:
    return f"[{metric.shown(metric.scale * low, sign)}, {metric.shown(metric.scale * high, sign)}]"


def compared(metric: Metric, row: ResultRow, other: ResultRow | None) -> tuple[str, str, str]:
    """`row` minus `other`, its interval, and how often chance alone would differ as much, on the same redrawn test clips.

    Dashes where there is no other, "not run" where a run of either is missing.
    """
    if other is None or not (row.ran and other.ran):
        return NOTHING if other is None else NOT_RUN, NOTHING, NOTHING
    found = row.minus(other, metric.name)
    difference = metric.shown(metric.scale * found.difference, "+")
    return difference, _interval(metric, found.low, found.high, "+"), f"{found.p_value:.4f}"


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


def _marks(rows: Sequence[ResultRow], metrics: Sequence[Metric], first: int, by_group: bool) -> tuple[Places, Places]:
    """Positions in the short form of what is best and of what is within noise of it; `first`: the first metric's column.

    Rows that were run are compared with each other, two at least; with `by_group` those of one group.
    """
    best, near = set(), set()
    for group in dict.fromkeys(row.group if by_group else "" for row in rows):
        places = [place for place, row in enumerate(rows) if row.ran and group in (row.group, "")]
        for column, metric in enumerate(metrics if len(places) > 1 else ()):
            means = {place: float(rows[place].scores(metric.name).mean()) for place in places}
            top = (min if metric.lower_is_better else max)(places, key=means.__getitem__)
            for place in places:
                if means[place] == means[top]:
                    best.add((place, first + 3 * column + 1))
                elif within_noise(metric.name, rows[place], rows[top]):
                    near.add((place, first + 3 * column + 1))
    return frozenset(best), frozenset(near)


def within_noise(metric: MetricName, one: ResultRow, other: ResultRow) -> bool:
    """Whether two rows that were run on the same clips differ by no more than clips or seeds make them differ.

    The 95 % paired bootstrap interval of the difference holds 0, or the difference is not larger than the larger of the
    two standard deviations over seeds.
    """
    found = one.minus(other, metric)
    sds = [uncertainty.summarise(row.scores(metric).tolist()).sd or 0.0 for row in (one, other)]
    return found.low <= 0 <= found.high or abs(found.difference) <= max(sds)


def _notes(rows: Sequence[ResultRow], marked: bool, by_group: bool) -> Iterator[str]:
    """What the marks mean, which rows are of another group than the last one, and what rows have to say, each once."""
    if marked:
        several = any(row.predictions is not None and len(row.predictions) > 1 for row in rows)
        sds = ", or the difference is not larger than the larger of the two sds over seeds" if several else ""
        yield (
            f"Bold: best {'in its group' if by_group else 'of all rows'}. \N{ALMOST EQUAL TO}: within noise of the best: "
            f"the 95 % paired bootstrap interval of the difference holds 0{sds}."
        )
    groups = dict.fromkeys(row.group for row in rows if row.group and not by_group)
    if len(groups) > 1:
        members = {group: [row.method for row in rows if row.group == group] for group in groups if group != rows[-1].group}
        yield " ".join(f"{group.capitalize()}: {', '.join(methods)}." for group, methods in members.items())
    for note in dict.fromkeys(row.note for row in rows if row.note):
        for state, ran in (("Not run, ", False), ("", True)):
            if methods := dict.fromkeys(row.method for row in rows if row.note == note and row.ran == ran):
                yield f"{state}{', '.join(methods)}: {note.rstrip('.')}."
