"""How sure a score is: spread over seeds, bootstrap intervals over test samples, paired differences; and a table's row of them.

Every metric here is a function of sums over samples, so a resample is one row of integer counts and 2,000 of them are
a few matrix products: 0.04 s per 1,000 resamples of 2,610 utterances, where scipy's bootstrap around scikit-learn's F1
takes 1.5 s and gives the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cmpta_lib.metrics import UNPARSABLE, Metric, MetricName, class_indices, sentiment_scores

Floats = NDArray[np.float64]
NOTHING = "\N{EM DASH}"  # a cell in which nothing is to be said
NOT_RUN = "not run"
P_FLOOR = f"p is of 2,000 redrawn test sets, one added above and below: it is never less than 2/2001 = {2 / 2001:.4f}."

_CHUNK = 256  # resamples held at once: 5 MiB of counts for MELD's 2,610 test utterances
_CONSTANT_VARIANCE = 1e-12  # scores are float32 in [-1, 1]; less than this is rounding, not variation


@dataclass(frozen=True)
class PairedDifference:
    """Seed-mean metric of A minus that of B, its interval, and a two-sided bootstrap p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def summarise(values: Sequence[float] | np.ndarray) -> tuple[float, float | None]:
    """Mean and sample sd (n - 1) of per-seed scores, None for one seed; raises ValueError for none or for a non-finite one."""
    if not len(values) or not all(math.isfinite(value) for value in values):
        raise ValueError(f"expected at least one finite score per method, got {list(values)}")
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def seed_scores(metric: MetricName, truth: ArrayLike, predictions: ArrayLike) -> Floats:
    """The metric of each seed, (n_seeds,): what `metrics` gives for each row of `predictions`."""
    features, score = _prepare(metric, truth, predictions)
    return score(features.sum(axis=0, keepdims=True))[0]


def bootstrap_interval(
    metric: MetricName, truth: ArrayLike, predictions: ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the seed-mean metric when the test samples are redrawn with replacement.

    It speaks of test samples only: the seeds are fixed, their spread is in `summarise`.

    Args:
        metric: "mae" and "corr" for scores in [-1, 1]; "f1_weighted" for class indices, prediction -1 = unparsable.
        truth: (N,).
        predictions: (n_seeds, N), row s from seed s; the same resample is used for all rows.
        resamples: how often the N samples are redrawn.
    Returns:
        (low, high) in the unit of the metric, fractions for F1.
    Raises:
        ValueError: NaN or infinite values, shapes that do not fit, an unknown metric.
    """
    features, score = _prepare(metric, truth, predictions)
    return _edges(_draws(features, lambda sums: score(sums).mean(axis=1), resamples, seed))


def paired_bootstrap(
    metric: MetricName, truth: ArrayLike, a: ArrayLike, b: ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> PairedDifference:
    """Compare two methods' predictions on the same redrawn test samples; arguments and errors as in `bootstrap_interval`.

    The numbers of seeds may differ. The p-value is twice the share of resamples on the rarer side of zero, with one
    added above and below so that it is never 0 (Davison and Hinkley 1997, section 4.2).
    """
    (features_a, score_a), (features_b, score_b) = _prepare(metric, truth, a), _prepare(metric, truth, b)
    features, width = np.hstack([features_a, features_b]), features_a.shape[1]

    def difference(sums: Floats) -> Floats:
        # Rounded: equal scores summed in another order must differ by 0, not by a last bit that always has one sign.
        return np.round(score_a(sums[:, :width]).mean(axis=1) - score_b(sums[:, width:]).mean(axis=1), 12)

    draws = _draws(features, difference, resamples, seed)
    rarer = min((draws <= 0).sum(), (draws >= 0).sum())
    observed = float(difference(features.sum(axis=0, keepdims=True))[0])
    return PairedDifference(observed, *_edges(draws), min(1.0, float(2 * (1 + rarer) / (1 + resamples))))


def _prepare(metric: MetricName, truth: ArrayLike, predictions: ArrayLike) -> tuple[Floats, Callable[[Floats], Floats]]:
    """Per-sample features (N, M), and the function from their sums (R, M) to scores (R, n_seeds)."""
    truth_shape, shape = np.shape(truth), np.shape(predictions)
    if len(shape) != 2 or truth_shape != shape[1:] or 0 in shape:
        raise ValueError(f"expected truth (N,) and predictions (n_seeds, N), none empty, got {truth_shape} and {shape}")
    if metric == "f1_weighted":
        return _weighted_f1(truth, predictions)
    if metric not in ("mae", "corr"):
        raise ValueError(f"no bootstrap for metric {metric!r}; known: mae, corr, f1_weighted")
    y = sentiment_scores(truth, "truth").astype(np.float64)
    p = sentiment_scores(predictions, "predictions").astype(np.float64)
    if metric == "mae":
        n = len(y)
        return np.abs(p - y).T, lambda sums: sums / n  # eq 10
    return _correlation(y, p)


def _correlation(y: Floats, p: Floats) -> tuple[Floats, Callable[[Floats], Floats]]:
    n = len(y)
    y, p = y - y.mean(), p - p.mean(axis=1, keepdims=True)  # centred first, or the moments below cancel badly
    features = np.vstack([y, y**2, p, p**2, p * y]).T

    def score(sums: Floats) -> Floats:
        means = sums / n
        y_mean, y_square = means[:, :1], means[:, 1:2]
        p_mean, p_square, product = np.split(means[:, 2:], 3, axis=1)
        y_variance, p_variance = y_square - y_mean**2, p_square - p_mean**2
        defined = (y_variance > _CONSTANT_VARIANCE) & (p_variance > _CONSTANT_VARIANCE)
        scale = np.sqrt(np.where(defined, y_variance * p_variance, 1.0))
        return np.where(defined, (product - y_mean * p_mean) / scale, 0.0)  # 0 where undefined, as in metrics

    return features, score


def _weighted_f1(truth: ArrayLike, predictions: ArrayLike) -> tuple[Floats, Callable[[Floats], Floats]]:
    y = class_indices(truth, "truth", 0)
    p = class_indices(predictions, "predictions", UNPARSABLE)
    (num_seeds, n), num_classes = p.shape, int(max(y.max(), p.max())) + 1
    support = np.eye(num_classes)[y]
    predicted = (p[:, :, None] == np.arange(num_classes)).astype(np.float64)  # (n_seeds, N, C); -1 is in no class
    by_sample = np.stack([predicted, predicted * support]).transpose(2, 0, 1, 3)  # (N, 2, n_seeds, C)
    features = np.hstack([support, by_sample.reshape(n, -1)])

    def score(sums: Floats) -> Floats:
        supports = sums[:, None, :num_classes]
        predictions_of, hits = np.split(sums[:, num_classes:].reshape(-1, 2, num_seeds, num_classes), 2, axis=1)
        f1 = 2 * hits[:, 0] / np.maximum(supports + predictions_of[:, 0], 1)  # no support, no prediction: 0
        return (supports * f1).sum(axis=2) / n  # eq 11

    return features, score


def _draws(features: Floats, statistic: Callable[[Floats], Floats], resamples: int, seed: int) -> Floats:
    """(resamples,) a statistic of the features' sums, (R, M) -> (R,), over redrawn samples; in chunks."""
    if resamples < 1:
        raise ValueError(f"resamples={resamples} must be at least 1")
    rng, n, draws = np.random.default_rng(seed), len(features), []
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        draws.append(statistic(counts.astype(np.float64) @ features))
    return np.concatenate(draws)


def _edges(draws: Floats) -> tuple[float, float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class ResultRow:
    """One method of one table.

    `paper` maps metric names to the value as printed (WF1 in per cent), and may be empty. `truth` (N,) and
    `predictions` (n_seeds, N) are both None for a method that was not run; `note` then says how to run it. `asked`: of how
    many seeds it is to be, where that is known. `unit`: what a distance of 1 inside is in the owner's scores, for `mae`.
    `is_ours`: it is CMPTA, whatever it is called there.
    """

    group: str
    method: str
    paper: Mapping[str, float] = field(default_factory=dict)
    truth: np.ndarray | None = None
    predictions: np.ndarray | None = None
    note: str = ""
    asked: int | None = None
    unit: float = 1.0
    is_ours: bool = False

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
        """(n_seeds,) what each seed scores, of `mae` in the owner's unit; only of a row that was run."""
        return seed_scores(metric, *self._answers) * self._unit(metric)

    def interval(self, metric: MetricName) -> tuple[float, float]:
        """The bootstrap interval of the mean over seeds, in the unit of `scores`; only of a row that was run."""
        low, high = bootstrap_interval(metric, *self._answers)
        return low * self._unit(metric), high * self._unit(metric)

    def minus(self, other: ResultRow, metric: MetricName) -> PairedDifference:
        """This row minus another on the same redrawn test clips, in the unit of `scores`; only of rows that were run."""
        found, unit = paired_bootstrap(metric, *self._answers, other._answers[1]), self._unit(metric)
        return PairedDifference(found.difference * unit, found.low * unit, found.high * unit, found.p_value)

    def _unit(self, metric: MetricName) -> float:
        return self.unit if metric == "mae" else 1.0


def within_noise(metric: MetricName, one: ResultRow, other: ResultRow) -> bool:
    """Whether the 95 % paired bootstrap interval of two rows' difference holds 0, or it is within the larger sd over seeds."""
    found = one.minus(other, metric)
    sds = [summarise(row.scores(metric))[1] or 0.0 for row in (one, other)]
    return found.low <= 0 <= found.high or abs(found.difference) <= max(sds)


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


def spread(values: Sequence[float] | np.ndarray, decimals: int) -> str:
    """Mean ± sample sd of the values that are defined, as "0.251 ± 0.001"; one has no deviation, none is a dash."""
    known = [value for value in map(float, values) if np.isfinite(value)]
    if not known:
        return NOTHING
    mean, sd = summarise(known)
    return f"{round(mean, decimals) + 0.0:.{decimals}f}" + ("" if sd is None else f" ± {sd:.{decimals}f}")  # no -0.0


def without_unit(metric: Metric, score: float) -> str:
    """A stored value for a column whose heading has the unit; a dash where it is not defined."""
    return metric.shown(metric.scale * score) if np.isfinite(score) else NOTHING
