"""A method's answers: does it know when it is right, what does it take for what, and what does it say of one clip?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cmpta_lib.figures import style
from cmpta_lib.figures.attention import AttentionPanel, clip_page
from cmpta_lib.figures.style import figure_style, fit_line, new_figure, printable, text_width_in, wrap

MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # as many as there are colours


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """Bins of equally many answers: their mean confidence, the share that is right (both in [0, 1]) and their count.

    Equal confidences share a bin, so that the order of the clips plays no part; a method that is always equally sure
    has one bin.

    Args:
        confidence: (N,) in [0, 1], the probability of the chosen answer.
        correct: (N,) bool.
    Raises:
        ValueError: another shape or dtype, no answers, or a confidence outside [0, 1].
    """
    sure, right = np.asarray(confidence, float), np.asarray(correct)
    fit = sure.ndim == 1 and sure.shape == right.shape and sure.size and right.dtype == bool
    if not fit or not ((sure >= 0) & (sure <= 1)).all():  # NaN is outside as well
        raise ValueError(
            f"expected a confidence in [0, 1] and a bool verdict for each answer, got shapes {sure.shape} and {right.shape} of "
            f"{right.dtype}; leave out answers that have none, such as unparsable replies"
        )
    answers = pd.DataFrame({"confidence": sure, "correct": right})
    place = (answers["confidence"].rank() - 0.5) / len(answers) * bins  # ties have one rank, the mean of theirs
    found = answers.groupby(np.floor(place + 1e-9).astype(int).rename("bin"))
    return found.agg(confidence=("confidence", "mean"), correct=("correct", "mean"), count=("correct", "size"))


def calibration_error(curve: pd.DataFrame) -> float:
    """Expected calibration error of a `reliability` curve: the mean gap between confidence and right answers, in [0, 1]."""
    return float(np.average((curve["confidence"] - curve["correct"]).abs(), weights=curve["count"]))


@figure_style()
def calibration_figure(
    answers: Mapping[str, tuple[np.ndarray, np.ndarray]], *, title: str = "", footer: str = ""
) -> Figure:
    """Reliability curves with the expected calibration error, and below them how often each confidence occurs.

    Args:
        answers: method -> (confidence of the chosen answer in [0, 1], is it right?), each (N,).
    Raises:
        ValueError: no methods, or as `reliability`.
    """
    if not answers:
        raise ValueError("no confidences to draw: no method was given")
    legend_in = 0.15 * (len(answers) + 1)
    drawn = (
        "Above: share of right answers by confidence, in 10 bins of equally many answers, with the expected calibration "
        "error (ECE); on the grey line a method is right as often as it is sure. Below: how often each confidence occurs."
    )
    figure = new_figure(style.SINGLE_COLUMN_IN, 3.5 + legend_in, title=title, footer=footer, drawn=drawn)
    curves, sure, key = figure.subplots(3, 1, height_ratios=(2, 0.8, legend_in))
    key.axis("off")
    handles = curves.plot([0, 100], [0, 100], color="0.6", linewidth=0.8, zorder=1, label="as sure as right")
    for k, (name, (confidence, correct)) in enumerate(answers.items()):
        curve = reliability(confidence, correct)
        label = f"{printable(name)}, ECE {100 * calibration_error(curve):.1f} %"
        look: style.Look = {"marker": MARKERS[k % len(MARKERS)], "ms": 3.5, "mew": 0, "label": label, "clip_on": False}
        handles += curves.plot(100 * curve["confidence"], 100 * curve["correct"], color=f"C{k}", **look)
        shares, edges = np.histogram(100 * np.asarray(confidence, float), bins=20, range=(0, 100))
        sure.stairs(100 * shares / len(confidence), edges, linewidth=1, baseline=None, color=f"C{k}")
    curves.set(ylim=(0, 100), ylabel="right answers (%)")
    sure.set(xlabel="confidence in the answer (%)", ylabel="answers (%)", ylim=(0, None))
    for axes in (curves, sure):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(xlim=(0, 100), xticks=range(0, 101, 20))
    curves.tick_params(labelbottom=False)
    key.legend(handles=handles, loc="center", handlelength=1.8, borderaxespad=0)
    return figure


CELL_IN, LARGEST_CELL_IN = 0.195, 0.3  # "100" in the smallest type takes 0.19
HIGHEST_IN = 8.2  # with title and footer a page of 640 pt
SMALLEST_MAP_IN, MOST_COLUMNS = 1.2, 4
GAP_IN, TITLE_IN = 0.15, 0.4  # between maps, and for two lines above each


@figure_style()
def confusion_figure(
    shares: Mapping[str, np.ndarray], labels: Sequence[str], *, noun: str = "class", title: str = "", footer: str = ""
) -> Figure:
    """A grid of confusion maps, one method each: rows are the true class, columns the answer, each row sums to 1.

    The more classes, the fewer maps stand in a row; where not even one map has room for its numbers, they are left out.

    Args:
        shares: method -> (C, C); a class without clips is a row of zeros.
        labels: the C class names.
        noun: what the labels are, "class" or "score".
    Raises:
        ValueError: no methods, or a map that does not fit the labels.
    """
    import seaborn as sns

    if not shares:
        raise ValueError("no confusion maps to draw: no method of this comparison was run")
    for name, share in shares.items():
        if share.shape != (len(labels), len(labels)):
            raise ValueError(f"'{name}': expected a map of {len(labels)} x {len(labels)} classes, got {share.shape}")
    names = [printable(label) for label in labels]
    names_in = max(text_width_in(name, style.SMALLEST_PT) for name in names) + 0.28  # with the name of the axis
    room_in = (style.SINGLE_COLUMN_IN if style.is_column() else style.DOUBLE_COLUMN_IN) - names_in
    columns = min(max(int(room_in / (CELL_IN * len(labels) + GAP_IN)), 1), MOST_COLUMNS, len(shares)) - 1
    height = math.inf
    while height > HIGHEST_IN and columns < len(shares):  # else maps without numbers, more of them in a row
        columns += 1
        rows, map_in = math.ceil(len(shares) / columns), room_in / columns - GAP_IN
        map_in = min(map_in, max(LARGEST_CELL_IN * len(labels), SMALLEST_MAP_IN))
        height = rows * (map_in + TITLE_IN) + names_in
    drawn = f"Of the clips of each true {noun} (row), how many per cent get each answer (column), one map per method."
    figure = new_figure(style.DOUBLE_COLUMN_IN, height, title=title, footer=footer, drawn=drawn)
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes in grid[len(shares) :]:
        axes.set_visible(False)
    size = 8 if map_in > 1 else style.SMALLEST_PT
    for place, (name, share) in enumerate(shares.items()):
        axes, is_left, is_top = grid[place], place % columns == 0, place < columns
        percent = np.round(100 * share).astype(int) if map_in / len(labels) >= CELL_IN else None  # else not legible
        sns.heatmap(
            share, ax=axes, vmin=0, vmax=1, cmap="Blues", cbar=False, square=True, annot=percent, fmt="d",
            annot_kws={"size": style.SMALLEST_PT}, xticklabels=names, yticklabels=names,
        )  # fmt: skip
        lines = wrap(name, map_in + GAP_IN, size).split("\n")
        axes.set_title("\n".join(fit_line(line, map_in + GAP_IN, size) for line in lines), size=size)
        axes.tick_params(length=0)
        axes.tick_params(axis="x", rotation=90, labelbottom=False, labeltop=is_top)
        axes.tick_params(axis="y", rotation=0, labelleft=is_left)
        axes.set(xlabel="", ylabel=f"true {noun}" if is_left else "")
    grid[columns * (rows - 1)].set_xlabel(f"answer (% of the {noun})")  # once: it may be wider than a map
    return figure


MAX_BARS = 22  # half a page wide: the 21 scores of one decimal, or as many classes
LONG_NAME = 4  # characters; longer names stand upright below their bars


@dataclass(frozen=True, eq=False)
class ClipAnswer:
    """What one method says of one clip.

    Attributes:
        text: the answer as a reader sees it.
        names: the A answers that it could give, in order.
        probabilities: (A,) of each.
        chosen: position of its answer among them; None where its reply is none of them.
        truth: position of the label, or of the score that is nearest to it.
    """

    text: str
    names: Sequence[str]
    probabilities: np.ndarray
    chosen: int | None
    truth: int


@figure_style()
def clip_figure(
    panels: Sequence[AttentionPanel], *, text: str, label: str, answers: Mapping[str, ClipAnswer], title: str = "",
    footer: str = "",
) -> Figure:  # fmt: skip
    """A clip's words and label, each method's answers as bars of their probability, and its attention maps below.

    Args:
        panels: none for a clip without face and voice: then there are no maps.
        answers: method -> what it says; one or two methods side by side.
    Raises:
        ValueError: no answers.
    """
    if not answers:
        raise ValueError("no answers to draw: no method was given")
    rows, high_in = (len(answers), 1.2) if style.is_column() else (1, 1.75)
    drawn = "Above, on one scale, the probability of each answer: the answer in blue, the label under the red mark."
    figure, place = clip_page(f"“{text}”  label: {label}", high_in * rows, panels, drawn, title=title, footer=footer)
    bars = place.subgridspec(rows, len(answers) // rows)
    top = max(100 * float(np.max(answer.probabilities)) for answer in answers.values())
    for column, (name, answer) in enumerate(answers.items()):
        axes = figure.add_subplot(bars[column])
        _draw_bars(axes, name, answer, max(top, 1e-6))
        axes.set_ylabel("" if column and rows == 1 else "probability (%)")
    return figure


def _draw_bars(axes: Axes, name: str, answer: ClipAnswer, top: float) -> None:
    shown = _likeliest(answer)
    percent = 100 * np.asarray(answer.probabilities, float)[shown]
    bars = axes.bar(range(len(shown)), percent, color="0.75", width=0.8)
    if answer.chosen is not None:
        bars[shown.index(answer.chosen)].set(color=style.BLUE, label="answer")
    at_label = shown.index(answer.truth)
    mark: style.Look = {"linestyle": "", "marker": "v", "color": style.VERMILLION, "ms": 4, "mew": 0}
    axes.plot(at_label, percent[at_label] + 0.07 * top, label="label", gid="label", **mark)
    names = [printable(answer.names[place]) for place in shown]
    upright = len(names) > 10 or max(map(len, names)) > LONG_NAME
    axes.set_xticks(range(len(shown)), names, rotation=90 if upright else 0)
    axes.tick_params(axis="x", length=0)
    axes.set(ylim=(0, 1.2 * top), xlim=(-0.7, len(shown) - 0.3))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{printable(name)}: {printable(answer.text)}")
    axes.legend(loc="best", borderaxespad=0.1, handlelength=1)


def _likeliest(answer: ClipAnswer) -> list[int]:
    """Positions to draw, in order: all, or the likeliest with the label and the answer among them."""
    first = [answer.truth] if answer.chosen is None else [answer.truth, answer.chosen]
    by_probability = np.argsort(-np.asarray(answer.probabilities), kind="stable").tolist()
    return sorted(list(dict.fromkeys([*first, *by_probability]))[:MAX_BARS])
