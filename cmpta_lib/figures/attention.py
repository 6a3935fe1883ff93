"""Figures 3-5: where the text looks in the face and in the voice, and what that changes for one clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch, Rectangle

from cmpta_lib.figures.style import (
    DOUBLE_COLUMN_IN,
    GREEN,
    MODALITY_COLOURS,
    SINGLE_COLUMN_IN,
    SMALLEST_PT,
    TITLE_PT,
    VERMILLION,
    YELLOW,
    Look,
    figure_style,
    new_figure,
    printable,
    wrap,
)

MODALITY_MAPS = {"vision": "Blues", "audio": "Oranges"}  # white = no attention, so both also work in grey
PADDING: Look = {"facecolor": "0.94", "edgecolor": "0.65", "hatch": "////", "linewidth": 0.0}
CUE_OUTLINE: Look = {"edgecolor": "black", "linestyle": (0, (3, 1.5)), "linewidth": 1.0}
MAX_CELLS = 400  # across a heatmap half a page wide: two printed dots per cell


@dataclass(frozen=True, eq=False)
class AttentionPanel:
    """One attention map: how much each text token looks at each frame of one modality.

    Attributes:
        weights: (Q, T) float, the real text tokens by the real frames; every row sums to 1.
        query_labels: Q texts of the tokens, in order.
        modality: whose frames, "vision" or "audio".
        padded_length: frames of the batch's longest clip, >= T; the rest is shown as padding.
        hop_ms: milliseconds from one frame to the next, if known: adds an axis in seconds.
        cue_window: (start, stop) frames of the true cue, stop excluded, if known.
    Raises:
        ValueError: a shape, sum or range is not as above.
    """

    weights: np.ndarray
    query_labels: Sequence[str]
    modality: Literal["vision", "audio"]
    padded_length: int
    hop_ms: float | None = None
    cue_window: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.modality not in MODALITY_MAPS:
            raise ValueError(f"modality must be one of {', '.join(MODALITY_MAPS)}, got {self.modality!r}")
        shape = np.shape(self.weights)
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"{self.modality}: weights must be (text tokens, frames) and not empty, got shape {shape}")
        if len(self.query_labels) != shape[0]:
            raise ValueError(f"{self.modality}: {shape[0]} rows of weights but {len(self.query_labels)} query labels")
        sums = np.asarray(self.weights, np.float64).sum(1)
        if np.min(self.weights) < 0 or not np.allclose(sums, 1, atol=1e-2):  # 1e-2: weights may have been bfloat16
            raise ValueError(
                f"{self.modality}: weights must be >= 0 and rows sum to 1, not {sums.min():.3g} to {sums.max():.3g}"
            )
        if self.padded_length < shape[1]:
            raise ValueError(f"{self.modality}: padded_length={self.padded_length} is below the {shape[1]} real frames")
        if self.hop_ms is not None and self.hop_ms <= 0:
            raise ValueError(f"{self.modality}: hop_ms={self.hop_ms} must be positive")
        if self.cue_window is not None and not 0 <= self.cue_window[0] < self.cue_window[1] <= shape[1]:
            raise ValueError(f"{self.modality}: cue_window={self.cue_window} is not inside the {shape[1]} real frames")


@figure_style()
def attention_figure(panels: Sequence[AttentionPanel], *, title: str = "", footer: str = "") -> Figure:
    """Figures 3 and 4: one heatmap per panel with its mean over the text tokens above, two panels to a row."""
    width, height, heights = attention_size(panels)
    figure = new_figure(width, height, title=title, footer=footer, drawn=what_is_drawn(panels))
    draw_attention(figure, figure.add_gridspec(1, 1)[0], panels, heights)
    return figure


@figure_style()
def case_study_figure(
    panels: Sequence[AttentionPanel],
    *,
    text: str,
    true_label: str,
    text_only_answer: str,
    cmpta_answer: str,
    title: str = "",
    footer: str = "",
) -> Figure:
    """Figure 5: one clip's words, its label, the answers without and with pseudo tokens, and its attention maps.

    An answer equal to the label gets a tick, another a cross; a number that differs says by how much instead.
    """
    width, height, heights = attention_size(panels)
    quote = wrap(f"“{text}”", width - 0.3, TITLE_PT)
    quote_in, boxes_in = 0.165 * (quote.count("\n") + 1) + 0.06, 0.5
    drawn = f"One clip's text, its true label and the answers without and with pseudo tokens. {what_is_drawn(panels)}"
    figure = new_figure(width, height + quote_in + boxes_in, title=title, footer=footer, drawn=drawn)
    parts = figure.add_gridspec(2, 1, height_ratios=(quote_in + boxes_in, height))
    axes = figure.add_subplot(parts[0])
    axes.set(xlim=(0, width), ylim=(0, quote_in + boxes_in))
    axes.axis("off")
    axes.text(width / 2, quote_in + boxes_in, quote, ha="center", va="top", size=TITLE_PT, parse_math=False)
    answers = (("true label", true_label), ("text only", text_only_answer), ("CMPTA", cmpta_answer))
    for k, (name, answer) in enumerate(answers):
        mark, colour = _verdict(answer, true_label) if k else ("", "0.3")
        _draw_answer(axes, k * width / 3, width / 3, name, f"{printable(answer)}  {mark}".rstrip(), colour)
    draw_attention(figure, parts[1], panels, heights)
    return figure


def what_is_drawn(panels: Sequence[AttentionPanel]) -> str:
    """What a reader of the maps must know, for a caption."""
    parts = [
        "How much each text token (row) attends to each frame (column), in per cent of the row; above, the mean over the text "
        "tokens, dotted where attention would be uniform."
    ]
    if any(_is_padded(p) for p in panels):
        parts.append("Hatched: padding.")
    if any(p.cue_window for p in panels):
        parts.append("Dashed frame: the true cue.")
    return " ".join(parts)


def _is_padded(panel: AttentionPanel) -> bool:
    return panel.padded_length > np.shape(panel.weights)[1]


def _verdict(answer: str, true_label: str) -> tuple[str, str]:
    if answer == true_label:
        return "✓", GREEN
    try:
        return f"(off by {abs(float(answer) - float(true_label)):.2g})", "0.3"
    except ValueError:
        return "✗", VERMILLION


def _draw_answer(axes: Axes, left: float, width: float, name: str, answer: str, colour: str) -> None:
    """A box 0.44 inches tall, in axes that measure inches."""
    shape = "round,pad=0,rounding_size=0.05"
    box = FancyBboxPatch((left + 0.05, 0.02), width - 0.1, 0.42, boxstyle=shape, fc="white", ec=colour, lw=1.2)
    axes.add_patch(box)
    axes.text(left + width / 2, 0.34, name, ha="center", va="center", size=SMALLEST_PT, color="0.3")
    axes.text(left + width / 2, 0.15, answer, ha="center", va="center", size=TITLE_PT, parse_math=False)


def attention_size(panels: Sequence[AttentionPanel]) -> tuple[float, float, tuple[float, float]]:
    """Inches: width and height of all rows with the key, and the heights of a row's curve and heatmap."""
    if not panels:
        raise ValueError("no attention panels to draw")
    heat_in = min(max(0.14 * max(len(p.query_labels) for p in panels), 1.1), 4.5)
    width = SINGLE_COLUMN_IN if len(panels) == 1 else DOUBLE_COLUMN_IN
    return width, math.ceil(len(panels) / 2) * (heat_in + 1.6) + 0.25, (0.65, heat_in)


def draw_attention(
    figure: Figure, place: SubplotSpec, panels: Sequence[AttentionPanel], heights: tuple[float, float]
) -> None:
    """The maps with their key, in a place of the size that `attention_size` says."""
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    # The key has a grid of its own: an axes spanning the panels' columns would make all gaps between them equal.
    parts = place.subgridspec(2, 1, height_ratios=(rows * (sum(heights) + 0.95), 0.2))
    grid = parts[0].subgridspec(2 * rows, 2 * columns, height_ratios=heights * rows, width_ratios=(1, 0.04) * columns)
    for k, panel in enumerate(panels):
        row, column = 2 * (k // columns), 2 * (k % columns)
        heat = figure.add_subplot(grid[row + 1, column])
        curve = figure.add_subplot(grid[row, column], sharex=heat)
        _draw_heatmap(figure, heat, figure.add_subplot(grid[row + 1, column + 1]), panel, heights[1])
        _draw_marginal(curve, panel)
        if column == 0:
            heat.set_ylabel("text token (query)")
            curve.set_ylabel("mean (%)")
    key = figure.add_subplot(parts[1])
    key.axis("off")
    handles: list[Artist] = [
        Line2D([], [], color="0.3", label="mean over text tokens"),
        Line2D([], [], color="0.3", linestyle=":", linewidth=0.8, label="uniform"),
    ]
    if any(_is_padded(p) for p in panels):
        handles.append(Patch(**PADDING, label="padding"))
    if any(p.cue_window for p in panels):
        cue: Look = {**CUE_OUTLINE, "facecolor": YELLOW}
        handles.append(Patch(**cue, label="true cue window"))
    key.legend(handles=handles, loc="center", ncol=2 * columns, borderaxespad=0, handlelength=1.8)


def _draw_heatmap(figure: Figure, axes: Axes, bar: Axes, panel: AttentionPanel, height_in: float) -> None:
    queries, frames = np.shape(panel.weights)
    percent = _at_most(panel.weights, MAX_CELLS) * 100
    # One sharp weight would leave all others white: the scale ends where the top half per cent of the cells begins.
    top = max(np.quantile(percent, 0.995), 1e-6)
    where = {"aspect": "auto", "extent": (-0.5, frames - 0.5, queries - 0.5, -0.5), "interpolation": "none"}
    image = axes.imshow(percent, cmap=MODALITY_MAPS[panel.modality], vmin=0, vmax=top, **where)
    axes.set_xlim(-0.5, panel.padded_length - 0.5)
    axes.set_xlabel(f"{panel.modality} frame (key)")
    step = math.ceil(queries * 0.125 / height_in)  # a line of 7 pt takes an eighth of an inch
    labels = [printable(label) for label in panel.query_labels]
    axes.set_yticks(range(0, queries, step), labels[::step], parse_math=False)
    axes.tick_params(axis="y", length=1.5)
    _mark_padding(axes, panel)
    if panel.cue_window:
        start, stop = panel.cue_window
        axes.add_patch(Rectangle((start - 0.5, -0.5), stop - start, queries, fill=False, **CUE_OUTLINE, gid="cue"))
    figure.colorbar(image, cax=bar, extend="max" if percent.max() > top else "neither", extendfrac=0.06)
    bar.set_ylabel("weight (%)", size=SMALLEST_PT)
    bar.tick_params(length=1.5)


def _at_most(weights: np.ndarray, cells: int) -> np.ndarray:
    """(Q, T) -> (Q, min(T, cells)): means over equal stretches of time, so that no frame is lost in print."""
    weights = np.asarray(weights, np.float64)
    frames = weights.shape[1]
    if frames <= cells:
        return weights
    total = np.pad(weights.cumsum(1), ((0, 0), (1, 0)))
    edges = np.linspace(0, frames, cells + 1)
    return np.diff([np.interp(edges, np.arange(frames + 1), row) for row in total], axis=1) * cells / frames


def _draw_marginal(axes: Axes, panel: AttentionPanel) -> None:
    """The mean over the text tokens, with seconds on top where the hop is known."""
    frames = np.shape(panel.weights)[1]
    colour = MODALITY_COLOURS[panel.modality]
    mean = np.asarray(panel.weights, np.float64).mean(0) * 100
    axes.stairs(mean, np.arange(frames + 1) - 0.5, color=colour, fill=True, alpha=0.2)
    axes.stairs(mean, np.arange(frames + 1) - 0.5, color=colour, linewidth=0.9, baseline=None)
    axes.plot([-0.5, frames - 0.5], [100 / frames] * 2, color="0.3", linestyle=":", linewidth=0.8)
    axes.set_ylim(0, max(mean.max(), 100 / frames) * 1.15)
    axes.tick_params(axis="x", labelbottom=False)
    axes.spines[["top", "right"]].set_visible(False)
    _mark_padding(axes, panel)
    if panel.cue_window:
        start, stop = panel.cue_window
        axes.axvspan(start - 0.5, stop - 0.5, color=YELLOW, alpha=0.6, linewidth=0, zorder=0, gid="cue")
    if panel.hop_ms:
        frame_s = panel.hop_ms / 1000
        seconds = axes.secondary_xaxis("top", functions=(lambda x: np.multiply(x, frame_s), lambda s: np.divide(s, frame_s)))
        seconds.set_xlabel("time (s)", size=SMALLEST_PT)
    axes.set_title(f"text → {panel.modality}", color=colour)


def _mark_padding(axes: Axes, panel: AttentionPanel) -> None:
    if _is_padded(panel):
        frames = np.shape(panel.weights)[1]
        axes.axvspan(frames - 0.5, panel.padded_length - 0.5, **PADDING, gid="padding")
