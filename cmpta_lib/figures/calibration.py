"""Does a method know when it is right? Its confidence against the share of answers that are, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cmpta_lib.figures.page import new_figure
from cmpta_lib.figures.style import SINGLE_COLUMN_IN, SMALLEST_PT, figure_style, printable, text_width_in

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":")  # the colours begin again at the eighth method: another dash then
WIDEST_IN = 1.28  # a label in the key of which two fit side by side


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """Bins of equally many answers: their mean confidence, the share that is right (both in [0, 1]) and their count.

    Equal confidences share a bin, so that the order of the clips plays no part; a method that is always equally sure
    has one bin.

    Args:
        confidence: (N,) in [0, 1], the probability of the chosen answer.
        correct: (N,) bool.
    Raises:
        ValueError: another shape, no answers, or a confidence outside [0, 1].
    """
    sure, right = np.asarray(confidence, float), np.asarray(correct)
    if sure.ndim != 1 or sure.shape != right.shape or not len(sure):
        raise ValueError(f"expected one confidence and one verdict per answer, got shapes {sure.shape} and {right.shape}")
    if right.dtype != bool:
        raise ValueError(f"expected bool verdicts (is the answer right?), got {right.dtype}")
    if not ((sure >= 0) & (sure <= 1)).all():  # NaN as well
        raise ValueError("a confidence is not in [0, 1]; leave out answers that have none, such as unparsable replies")
    answers = pd.DataFrame({"confidence": sure, "correct": right})
    place = (answers["confidence"].rank() - 0.5) / len(answers) * bins  # ties have one rank, the mean of theirs
    found = answers.groupby(np.floor(place + 1e-9).astype(int).rename("bin"))
    return found.agg(confidence=("confidence", "mean"), correct=("correct", "mean"), count=("correct", "size"))


def calibration_error(curve: pd.DataFrame) -> float:
    """Expected calibration error of a `reliability` curve: the mean gap between confidence and right answers, in [0, 1]."""
    return float(np.average((curve["confidence"] - curve["correct"]).abs(), weights=curve["count"]))


@figure_style()
def calibration_figure(
    answers: Mapping[str, tuple[np.ndarray, np.ndarray]], *, bins: int = 10, title: str = "", footer: str = ""
) -> Figure:
    """Reliability curves with the expected calibration error, and below them how often each confidence occurs.

    Args:
        answers: method -> (confidence of the chosen answer in [0, 1], is it right?), each (N,).
        bins: of equally many answers, for the curves; those of the histogram are 5 % wide.
    Raises:
        ValueError: no methods, or arrays that do not fit, named with their method.
    """
    if not answers:
        raise ValueError("no confidences to draw: no method was given")
    widest = max(text_width_in(f"{printable(name)}, ECE 10.0 %", SMALLEST_PT) for name in answers)
    columns = 1 if widest > WIDEST_IN else 2
    legend_in = 0.15 * math.ceil((len(answers) + 1) / columns)
    drawn = (
        f"Above: share of right answers by confidence, in {bins} bins of equally many answers, with the expected calibration "
        "error (ECE); on the grey line a method is right as often as it is sure. Below: how often each confidence occurs."
    )
    figure = new_figure(SINGLE_COLUMN_IN, 3.5 + legend_in, title=title, footer=footer, drawn=drawn)
    curves, sure, key = figure.subplots(3, 1, height_ratios=(2, 0.8, legend_in))
    key.axis("off")
    curves.plot([0, 100], [0, 100], color="0.6", linewidth=0.8, zorder=1)
    handles = [Line2D([], [], color="0.6", linewidth=0.8, label="as sure as right")]
    for k, (name, (confidence, correct)) in enumerate(answers.items()):
        try:
            curve = reliability(confidence, correct, bins)
        except ValueError as error:
            raise ValueError(f"'{name}': {error}") from None
        colour, dashes, marker = f"C{k}", LINES[k // 7 % len(LINES)], MARKERS[k % len(MARKERS)]
        style = {"color": colour, "linestyle": dashes, "marker": marker, "ms": 3.5, "mew": 0}
        label = f"{printable(name)}, ECE {100 * calibration_error(curve):.1f} %"
        handles += curves.plot(100 * curve["confidence"], 100 * curve["correct"], label=label, **style)
        shares, edges = np.histogram(100 * np.asarray(confidence, float), bins=20, range=(0, 100))
        sure.stairs(100 * shares / len(confidence), edges, color=colour, linestyle=dashes, linewidth=1, baseline=None)
    curves.set(ylim=(0, 100), ylabel="right answers (%)")
    sure.set(xlabel="confidence in the answer (%)", ylabel="answers (%)", ylim=(0, None))
    for axes in (curves, sure):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(xlim=(0, 100), xticks=range(0, 101, 20))
    curves.tick_params(labelbottom=False)
    key.legend(handles=handles, loc="center", ncol=columns, columnspacing=1, handlelength=1.8, borderaxespad=0)
    return figure
