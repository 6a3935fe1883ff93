"""Which class is taken for which: one map for each compared method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from cmpta_lib.figures.style import DOUBLE_COLUMN_IN, figure_style, new_figure, printable

_COLUMNS = 4


@figure_style()
def confusion_figure(
    shares: Mapping[str, np.ndarray], labels: Sequence[str], *, title: str = "", footer: str = ""
) -> Figure:
    """A grid of confusion maps, one method each: rows are the true class, columns the answer, each row sums to 1.

    Args:
        shares: method -> (C, C); a class without clips is a row of zeros.
        labels: the C class names.
    Raises:
        ValueError: no methods, or a map that does not fit the labels.
    """
    import seaborn as sns

    if not shares:
        raise ValueError("no confusion maps to draw: no method of this comparison was run")
    for name, share in shares.items():
        if share.shape != (len(labels), len(labels)):
            raise ValueError(f"'{name}': expected a map of {len(labels)} x {len(labels)} classes, got {share.shape}")
    rows = math.ceil(len(shares) / _COLUMNS)
    figure = new_figure(DOUBLE_COLUMN_IN, 0.6 + 1.75 * rows, title=title, footer=footer)
    grid = figure.subplots(rows, _COLUMNS, squeeze=False, sharex=True, sharey=True)
    for place, axes in zip(range(rows * _COLUMNS), grid.flat, strict=True):
        if place >= len(shares):
            axes.set_visible(False)
            continue
        name = list(shares)[place]
        sns.heatmap(
            shares[name],
            ax=axes,
            vmin=0,
            vmax=1,
            cmap="Blues",
            cbar=False,
            square=True,
            annot=np.round(100 * shares[name]).astype(int),
            fmt="d",
            annot_kws={"size": 4.5},
            xticklabels=[printable(label) for label in labels],
            yticklabels=[printable(label) for label in labels],
        )
        axes.set_title(printable(name), fontsize=6)
        axes.tick_params(labelsize=5, length=0)
        axes.set_ylabel("" if place % _COLUMNS else "true class", fontsize=6)
        if place + _COLUMNS >= len(shares):
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("answer, per cent of the true class", fontsize=6)
        axes.tick_params(axis="x", rotation=90)
        axes.tick_params(axis="y", rotation=0)
    return figure
