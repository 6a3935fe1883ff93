"""The paper's metrics (eqs 10 and 11) and the field's own, on arrays of truth and prediction.

Regression follows the conventions of the public SIMS-V2 code so that numbers compare; where that code returns NaN we
return 0 and a flag, because a NaN that reaches a comparison picks the wrong checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cmpta_lib.paper import Kind

MetricName = Literal["mae", "corr", "f1_weighted"]

UNPARSABLE = -1  # the class index of an answer that names no class
# Edges of half-open bins (lo, hi]; a neutral 0.0 counts as negative in acc2, as in the public SIMS-V2 code.
_EDGES = {"acc2": (0.0,), "acc3": (-0.1, 0.1), "acc5": (-0.7, -0.1, 0.1, 0.7)}
_WEAK_LIMIT = 0.4


@dataclass(frozen=True)
class Metric:
    """One metric's name in run records and code, and how tables and figures show it: its one home.

    `label` heads columns, `axis` stands on figures, both with the unit; `scale` turns the stored value into the shown.
    """

    name: MetricName
    label: str
    axis: str
    lower_is_better: bool = False
    scale: float = 1.0
    decimals: int = 3
    unit: str = ""

    def shown(self, value: float, sign: str = "") -> str:
        """A value already in the shown scale, as the paper prints it; `sign` = "+" writes a plus too."""
        return f"{round(value, self.decimals) + 0.0:{sign}.{self.decimals}f}"  # + 0.0 turns -0.0 into 0.0

    def with_unit(self, value: float) -> str:
        """A stored value for running text: "0.251", "80.73 %"; a dash where it is not defined."""
        return f"{self.shown(self.scale * value)}{self.unit}" if np.isfinite(value) else "\N{EM DASH}"

    def is_better(self, value: float, than: float) -> bool:
        return value < than if self.lower_is_better else value > than


MAE = Metric("mae", "MAE", "MAE (label units)", lower_is_better=True)
CORR = Metric("corr", "Corr", "Pearson correlation")
WF1 = Metric("f1_weighted", "WF1 (%)", "weighted F1 (%)", scale=100, decimals=2, unit=" %")
METRICS: Mapping[MetricName, Metric] = {metric.name: metric for metric in (MAE, CORR, WF1)}
TABLED: Mapping[Kind, tuple[Metric, ...]] = {"regression": (MAE, CORR), "classification": (WF1,)}


def shown_scores(scores: Mapping[str, float]) -> list[str]:
    """A split's recorded scores as tables show them, the headline first: "MAE 0.251"; those that are not recorded lack."""
    kind: Kind = "regression" if "mae" in scores else "classification"
    found = [metric for metric in TABLED[kind] if metric.name in scores]
    return [f"{metric.label.partition(' (')[0]} {metric.with_unit(scores[metric.name])}" for metric in found]


def in_units(scores: Mapping[str, float], unit: float) -> dict[str, float]:
    """A split's recorded scores with `mae` as the owner of the labels counts; `unit`: what a distance of 1 inside is there."""
    return {name: value * unit if name == MAE.name else value for name, value in scores.items()}


def headline(kind: Kind) -> Metric:
    """The metric that chooses checkpoints and heads tables (section 4.2)."""
    return TABLED[kind][0]


def sentiment_scores(values: ArrayLike, name: str) -> NDArray[np.float32]:
    """Finite float32 scores clipped to [-1, 1], any shape; NaN or ±inf raises ValueError with its position."""
    scores = np.asarray(values, dtype=np.float32)
    if not np.isfinite(scores).all():
        where = np.argwhere(~np.isfinite(scores))[0].tolist()
        raise ValueError(
            f"{name}{where} is {scores[tuple(where)]}, expected a finite score; "
            "an answer that is no number must be counted and set apart before scoring"
        )
    return np.clip(scores, -1, 1)


def class_indices(values: ArrayLike, name: str, lowest: int, num_classes: int | None = None) -> NDArray[np.int64]:
    """Whole numbers in [lowest, num_classes), any shape; anything else raises ValueError."""
    given = np.asarray(values)
    if given.dtype.kind not in "biuf" or not np.isfinite(given).all() or (given != np.floor(given)).any():
        raise ValueError(f"{name} holds something other than whole class indices (a name, NaN, infinity or a fraction)")
    indices = given.astype(np.int64)
    if indices.size and not lowest <= indices.min() <= indices.max() < (num_classes or np.inf):
        limit = "" if num_classes is None else f" and below {num_classes}"
        raise ValueError(f"{name} must be at least {lowest}{limit}, but it reaches from {indices.min()} to {indices.max()}")
    return indices


def regression_metrics(truth: ArrayLike, prediction: ArrayLike) -> dict[str, float]:
    """MAE (eq 10) and the SIMS-V2 metrics.

    Both inputs are cast to float32 and clipped to [-1, 1]. float32 is part of the definition: answers have one decimal
    and sit on the bin edges, and float32(0.1) > 0.1 in float64 would move them to the next bin.

    Args:
        truth, prediction: (N,) sentiment strength, N >= 2.
    Returns:
        mae; corr (Pearson; 0 with `corr_defined` 0 if either side is constant); acc2, acc3, acc5 and f1_weighted over
        the two classes of acc2 (all fractions in [0, 1], zeros in); acc2_weak on the `acc2_weak_count` samples with
        |truth| <= 0.4 (0 if there is none); r2.
    Raises:
        ValueError: unequal shapes, fewer than two samples, NaN or infinite values.
    """
    from sklearn.metrics import f1_score, r2_score

    y, p = sentiment_scores(truth, "truth"), sentiment_scores(prediction, "prediction")
    _check_pair(y, p, at_least=2)
    bins = {name: [np.digitize(x, np.asarray(edges, np.float32), right=True) for x in (y, p)] for name, edges in _EDGES.items()}
    agrees = {name: truth == answer for name, (truth, answer) in bins.items()}
    weak = np.abs(y) <= np.float32(_WEAK_LIMIT)
    corr_defined = bool(np.ptp(y) > 0 and np.ptp(p) > 0)
    y64, p64 = y.astype(np.float64), p.astype(np.float64)
    return {
        "mae": float(np.abs(y64 - p64).mean()),
        "corr": float(np.corrcoef(y64, p64)[0, 1]) if corr_defined else 0.0,
        "corr_defined": float(corr_defined),
        "acc2": float(agrees["acc2"].mean()),
        "acc2_weak": float(agrees["acc2"][weak].mean()) if weak.any() else 0.0,
        "acc2_weak_count": float(weak.sum()),
        "acc3": float(agrees["acc3"].mean()),
        "acc5": float(agrees["acc5"].mean()),
        "f1_weighted": float(f1_score(*bins["acc2"], average="weighted")),
        "r2": float(r2_score(y64, p64)),
    }


def classification_metrics(truth: ArrayLike, prediction: ArrayLike, labels: Sequence[str]) -> dict[str, float]:
    """Accuracy and weighted F1 (eq 11), as fractions in [0, 1].

    Args:
        truth: (N,) class indices, N >= 1.
        prediction: (N,) class indices, or `UNPARSABLE` (-1): wrong, and never a class of its own.
        labels: names of the C classes; index = position.
    Returns:
        accuracy; f1_weighted; f1_macro; `f1_<label>` for each class (0 where undefined); unparsable_count.
    Raises:
        ValueError: unequal shapes, no samples, or an index outside the label set.
    """
    from sklearn.metrics import f1_score

    classes = range(len(labels))
    y = class_indices(truth, "truth", 0, len(labels))
    p = class_indices(prediction, "prediction", UNPARSABLE, len(labels))
    _check_pair(y, p, at_least=1)
    per_class = f1_score(y, p, labels=classes, average=None, zero_division=0)
    return {f"f1_{label}": float(score) for label, score in zip(labels, per_class, strict=True)} | {
        "accuracy": float((y == p).mean()),
        "f1_weighted": float(f1_score(y, p, labels=classes, average="weighted", zero_division=0)),
        "f1_macro": float(per_class.mean()),
        "unparsable_count": float((p == UNPARSABLE).sum()),
    }


def _check_pair(truth: NDArray, prediction: NDArray, at_least: int) -> None:
    if truth.ndim != 1 or truth.shape != prediction.shape:
        raise ValueError(f"truth and prediction must both be (N,), got {truth.shape} and {prediction.shape}")
    if len(truth) < at_least:
        raise ValueError(f"these metrics need at least {at_least} samples, got {len(truth)}")
