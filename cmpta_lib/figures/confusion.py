"""Which class, or score, is taken for which: one map for each compared method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from cmpta_lib.figures.page import new_figure
from cmpta_lib.figures.style import (
    DOUBLE_COLUMN_IN,
    SMALLEST_PT,
    figure_style,
    fit_line,
    printable,
    text_width_in,
    wrap,
)

CELL_IN, LARGEST_CELL_IN = 0.21, 0.3  # "100" in the smallest type takes 0.19
MOST_COLUMNS, SMALLEST_MAP_IN = 4, 1.2
GAP_IN, TITLE_IN, LINE_IN, AXIS_IN = 0.15, 0.27, 0.13, 0.3  # between maps, above each, more lines there, an axis's name


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
    label_in = max(text_width_in(name, SMALLEST_PT) for name in names)
    room_in = DOUBLE_COLUMN_IN - label_in - AXIS_IN
    columns = min(max(int(room_in / (CELL_IN * len(labels) + GAP_IN)), 1), MOST_COLUMNS, len(shares))
    map_in = min(room_in / columns - GAP_IN, max(LARGEST_CELL_IN * len(labels), SMALLEST_MAP_IN))
    rows = math.ceil(len(shares) / columns)
    named = 1 if len(shares) % columns == 0 or rows == 1 else 2  # rows with answers named below them
    titles = ["\n".join(fit_line(line, map_in) for line in wrap(name, map_in, 8).split("\n")) for name in shares]
    more_lines = sum(max(title.count("\n") for title in titles[row * columns :][:columns]) for row in range(rows))
    height = rows * (map_in + TITLE_IN) + LINE_IN * more_lines + named * (label_in + AXIS_IN)
    drawn = f"Of the clips of each true {noun} (row), how many per cent get each answer (column), one map per method."
    figure = new_figure(DOUBLE_COLUMN_IN, height, title=title, footer=footer, drawn=drawn)
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(shares):
            axes.set_visible(False)
            continue
        name = list(shares)[place]
        percent = np.round(100 * shares[name]).astype(int)
        is_legible = map_in / len(labels) >= CELL_IN
        is_left, is_lowest = place % columns == 0, place + columns >= len(shares)
        sns.heatmap(
            shares[name], ax=axes, vmin=0, vmax=1, cmap="Blues", cbar=False, square=True, annot=percent if is_legible else None,
            fmt="d", annot_kws={"size": SMALLEST_PT}, xticklabels=names, yticklabels=names,
        )  # fmt: skip
        axes.set_title(titles[place], parse_math=False)
        axes.tick_params(length=0)
        axes.tick_params(axis="x", rotation=90, labelbottom=is_lowest)
        axes.tick_params(axis="y", rotation=0, labelleft=is_left)
        axes.set(xlabel=f"answer (% of the {noun})" if is_lowest else "", ylabel=f"true {noun}" if is_left else "")
    return figure
