"""What diagrams are drawn from: boxes, arrows and notes in axes of which one unit is one inch on paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path

from cmpta_lib.figures.style import (
    DOUBLE_COLUMN_IN,
    MODALITY_COLOURS,
    ORANGE,
    SMALLEST_PT,
    Look,
    fit_line,
    new_figure,
    pieces,
    printable,
    text_width_in,
    wrap,
)

Point = tuple[float, float]

KINDS: dict[str, Look] = {
    "trainable": {"facecolor": "#FDE8C4", "edgecolor": ORANGE, "linewidth": 0.8},
    "frozen": {"facecolor": "#E4EDF4", "edgecolor": "#7FA0B8", "linewidth": 0.8, "hatch": "/////"},
    "plain": {"facecolor": "white", "edgecolor": "0.45", "linewidth": 0.8},
    "group": {"facecolor": "none", "edgecolor": "0.6", "linewidth": 0.8, "linestyle": (0, (3, 2))},
}
LETTERS = {"text": "T", "vision": "V", "audio": "A"}
BOX_PT = 7.5
MIXED = "0.2"  # colour of a token that comes from no one modality


def token_colour(modality: str) -> str:
    return MODALITY_COLOURS.get(modality, MIXED)


def canvas(height_in: float, footer: str, drawn: str) -> tuple[Figure, Axes]:
    """A figure, and axes in it without frame that measure inches, above the footer."""
    figure = new_figure(DOUBLE_COLUMN_IN, height_in, footer=footer, drawn=drawn)
    layout = figure.get_layout_engine()
    assert layout, "`new_figure` gives one"
    rect = layout.get()["rect"]
    figure.set_layout_engine("none")
    axes = figure.add_axes(rect)
    axes.set(xlim=(0, DOUBLE_COLUMN_IN), ylim=(0, height_in))
    axes.axis("off")
    return figure, axes


def quoted(text: str, width_in: float, *, end: bool = False) -> str:
    """`text` in quotation marks, as much as two lines of a box take in whole words: its start, or its end."""
    words = pieces(printable(text).strip())
    for count in range(len(words), 0, -1):
        part = "".join(words[-count:] if end else words[:count]).strip()
        if count < len(words):
            part = f"…{part}" if end else f"{part}…"
        lines = wrap(f"“{part}”", width_in, BOX_PT).split("\n")
        if len(lines) <= 2 and all(text_width_in(line, BOX_PT) <= width_in for line in lines):
            return "\n".join(lines)
    return f"“{fit_line(text, width_in - text_width_in('“”', BOX_PT), BOX_PT)}”"


def as_written(text: str) -> str:
    """A text of the corpus, of which a dollar sign is no formula."""
    return text.replace("$", r"\$")


def box(
    axes: Axes, x: float, y: float, width: float, height: float, text: str, *, kind: str = "plain",
    colour: str = "black", size: float = BOX_PT, rotation: float = 0,
) -> None:  # fmt: skip
    look = KINDS[kind]
    shape = "round,pad=0,rounding_size=0.04"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, zorder=2, **look))
    # Behind the letters the hatch is interrupted, or they would be hard to read.
    behind = {"facecolor": look["facecolor"], "edgecolor": "none", "pad": 1.5} if "hatch" in look else None
    if text:
        axes.text(
            x + width / 2, y + height / 2, text, ha="center", va="center", size=size, color=_dark(colour),
            rotation=rotation, bbox=behind, zorder=3, linespacing=1.15,
        )  # fmt: skip


def note(
    axes: Axes, x: float, y: float, text: str, *, ha: Literal["left", "center"] = "left", color: str = "0.3", rotation: float = 0
) -> None:
    axes.text(x, y, text, ha=ha, va="center", size=SMALLEST_PT, color=color, rotation=rotation)


def _dark(colour: str) -> tuple[float, float, float]:
    """A little darker, so that coloured letters keep their contrast on a tinted box."""
    red, green, blue = to_rgb(colour)
    return 0.8 * red, 0.8 * green, 0.8 * blue


def arrow(axes: Axes, *points: Point, colour: str = "0.3") -> None:
    """A line through `points` with a head at the last one; a white rim lets it pass over the lines it crosses."""
    path = Path(points)
    if len(points) > 2:
        axes.add_patch(FancyArrowPatch(path=path, arrowstyle="-", color="white", linewidth=3, zorder=1.2))
    axes.add_patch(
        FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=6, color=colour, linewidth=0.9, zorder=1.5)
    )


def legend(axes: Axes, place: Point, kinds: Sequence[str], labels: Sequence[str]) -> None:
    handles = [Patch(label=label, **KINDS[kind]) for kind, label in zip(kinds, labels, strict=True)]
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=place, bbox_transform=axes.transData, ncol=len(labels),
        borderaxespad=0, borderpad=0.2, handlelength=2.2, columnspacing=1.2,
    )  # fmt: skip
