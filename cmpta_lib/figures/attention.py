"""Figures 3-5: where the text looks in the face and in the voice, and what that changes for one clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cmpta_lib.figures import style
from cmpta_lib.figures.style import Look, figure_style, new_figure, printable, wrap

MODALITY_MAPS = {"vision": "Blues", "audio": "Oranges", "text": "Greens"}  # white = no attention, so both also work in grey
PADDING: Look = {"facecolor": "0.94", "edgecolor": "0.65", "hatch": "////", "linewidth": 0, "label": "padding", "gid": "padding"}
CUE: Look = {"edgecolor": "black", "linestyle": (0, (3, 1.5)), "linewidth": 1.0, "label": "true cue window", "gid": "cue"}
MAX_CELLS = 400  # across a heatmap half a page wide: two printed dots per cell
CURVE_IN, AROUND_IN, KEY_IN = 0.65, 0.95, 0.25  # heights: of a mean, of titles and axes' names around a map, of the key
MAPS_SHOW = (
    "How much each row attends to each column, in multiples of uniform attention; above, the mean over the rows, dotted where "
    "attention would be uniform. All panels share one scale. Hatched: padding. Dashed frame: the true cue, where it is known."
)


@dataclass(frozen=True, eq=False)
class AttentionPanel:
    """One attention map: how much each text token looks at each frame of one modality, or another pair of eq 8.

    Attributes:
        weights: (Q, T) float, the real text tokens by the real frames; every row sums to 1.
        query_labels: Q texts of the tokens, in order.
        modality: whose frames, "vision" or "audio"; or "text", whose T tokens are `key_labels`.
        padded_length: frames of the batch's longest clip, >= T; the rest is shown as padding.
        hop_ms: milliseconds from one frame to the next, if known: adds an axis in seconds.
        cue_window: (start, stop) frames of the true cue, stop excluded, if known; and `cue`, what it is, such as "smiling".
        source: the modality that looks; and `rows`, what a row is.
        chosen: a row to draw beside the mean of all.
    Raises:
        ValueError: a shape, sum or range is not as above.
    """

    weights: np.ndarray
    query_labels: Sequence[str]
    modality: str
    padded_length: int
    hop_ms: float | None = None
    cue_window: tuple[int, int] | None = None
    cue: str = ""
    source: str = "text"
    rows: str = "text token (query)"
    key_labels: Sequence[str] = ()
    chosen: int | None = None

    def __post_init__(self) -> None:
        given = f"{self.modality!r} weights of shape {np.shape(self.weights)}"
        queries, frames = np.shape(self.weights) if np.ndim(self.weights) == 2 else (0, 0)
        start, stop = self.cue_window or (0, frames)
        named = self.modality in MODALITY_MAPS and len(self.key_labels) == (frames if self.modality == "text" else 0)
        if not named or not queries or not frames or len(self.query_labels) != queries:
            wanted = "vision or audio weights (text tokens, frames), or others with key_labels, and a label for each token"
            raise ValueError(f"expected {wanted}, got {given} and {len(self.query_labels)} labels")
        if np.min(self.weights) < 0 or not np.allclose(np.sum(self.weights, 1, np.float64), 1, atol=1e-2):  # or bfloat16's
            raise ValueError(f"expected rows that are >= 0 and sum to 1, got others in {given}")
        hop_ms = 1 if self.hop_ms is None else self.hop_ms
        if self.padded_length < frames or hop_ms <= 0 or not 0 <= start < stop <= frames:
            got = f"padded_length={self.padded_length}, hop_ms={self.hop_ms}, cue_window={self.cue_window}"
            raise ValueError(f"expected at least {frames} frames, a positive hop and a cue within, got {got} for {given}")


Panels = Sequence[AttentionPanel]


@figure_style()
def attention_figure(panels: Panels, *, title: str = "", footer: str = "", beside: Panels = ()) -> Figure:
    """Figures 3 and 4: a heatmap per panel below its mean, two to a row; `beside`, as of other heads, only share the scale."""
    if not panels:
        raise ValueError("no attention panels to draw")
    width = style.SINGLE_COLUMN_IN if len(panels) == 1 else style.DOUBLE_COLUMN_IN
    figure = new_figure(width, sum(_heights(panels)), title=title, footer=footer, drawn=MAPS_SHOW)
    _draw_maps(figure, figure.add_gridspec(1, 1)[0], panels, beside)
    return figure


@figure_style()
def case_study_figure(
    panels: Panels, *, text: str, true_label: str, text_only_answer: str, cmpta_answer: str,
    title: str = "", footer: str = "",
) -> Figure:  # fmt: skip
    """Figure 5: one clip's words, its label, the answers without and with pseudo tokens, and its attention maps.

    An answer equal to the label gets a tick, another a cross; a number that differs says by how much instead.
    """
    drawn = "One clip's text, its true label and the answers without and with pseudo tokens."
    is_stacked = style.is_column()
    figure, place = clip_page(f"“{text}”", 0.96 if is_stacked else 0.32, panels, drawn, title=title, footer=footer)
    axes = figure.add_subplot(place)
    axes.axis("off")
    answers = {"true label": true_label, "text only": text_only_answer, "CMPTA": cmpta_answer}
    for k, (name, answer) in enumerate(answers.items()):
        mark, colour = _verdict(answer, true_label) if k else ("", "0.3")
        look: Look = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": colour, "linewidth": 1.2}
        said = f"{name}: {printable(answer)}  {mark}".rstrip()
        at = (0.5, 1 - (k + 0.5) / 3) if is_stacked else ((k + 0.5) / 3, 0.5)
        axes.text(*at, said, ha="center", va="center", size=style.TITLE_PT, bbox=look)
    return figure


def _verdict(answer: str, true_label: str) -> tuple[str, str]:
    if answer == true_label:
        return "✓", style.GREEN
    try:
        return f"(off by {abs(float(answer) - float(true_label)):.2g})", "0.3"
    except ValueError:
        return "✗", style.VERMILLION


def clip_page(
    quote: str, middle_in: float, panels: Panels, drawn: str, *, title: str, footer: str
) -> tuple[Figure, SubplotSpec]:
    """A page with one clip's words on top and its attention maps, if any, below; and the place between, `middle_in` high."""
    width = style.SINGLE_COLUMN_IN if style.is_column() else style.DOUBLE_COLUMN_IN
    quote = wrap(quote, width - 0.3, style.TITLE_PT)
    heights = (0.165 * (quote.count("\n") + 1) + 0.06, middle_in, *([sum(_heights(panels))] if panels else []))
    drawn = f"{drawn} {MAPS_SHOW}" if panels else drawn
    figure = new_figure(width, sum(heights), title=title, footer=footer, drawn=drawn)
    parts = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    axes = figure.add_subplot(parts[0])
    axes.axis("off")
    axes.text(0.5, 1, quote, ha="center", va="top", size=style.TITLE_PT)
    if panels:
        _draw_maps(figure, parts[2], panels)
    return figure, parts[1]


def _heights(panels: Panels) -> tuple[float, float]:
    """Inches: of all rows of maps, and of the key below them."""
    return math.ceil(len(panels) / _columns(panels)) * (CURVE_IN + _map_in(panels) + AROUND_IN), KEY_IN


def _columns(panels: Sequence[AttentionPanel]) -> int:
    return 1 if style.is_column() else min(len(panels), 2)


def _map_in(panels: Panels) -> float:
    return min(max(0.14 * max(len(p.query_labels) for p in panels), 1.1), 4.5)


def _draw_maps(figure: Figure, place: SubplotSpec, panels: Panels, beside: Panels = ()) -> None:
    """The maps, each below its mean, and their key. Clips differ in length: all have one scale, in multiples of uniform."""
    columns, map_in = _columns(panels), _map_in(panels)
    rows = math.ceil(len(panels) / columns)
    # The key has a grid of its own: an axes spanning the panels' columns would make all gaps between them equal.
    parts = place.subgridspec(2, 1, height_ratios=_heights(panels))
    ratios = {"height_ratios": (CURVE_IN, map_in) * rows, "width_ratios": (1, 0.04) * columns}
    grid = parts[0].subgridspec(2 * rows, 2 * columns, **ratios)
    # One sharp weight would leave all others white: the scale ends where the top half per cent of the weights begins.
    darkest, highest = 1e-6, 1.15
    for panel in (*panels, *beside):
        frames = np.shape(panel.weights)[1]
        darkest = max(darkest, float(np.quantile(panel.weights, 0.995)) * frames)
        highest = max(highest, *(1.15 * frames * line.max() for line in _lines(panel)))
    handles: dict[str, Artist] = {"mean": Line2D([], [], color="0.3", label="mean over rows")}
    for k, panel in enumerate(panels):
        row, column = 2 * (k // columns), 2 * (k % columns)
        heat = figure.add_subplot(grid[row + 1, column])
        curve = figure.add_subplot(grid[row, column], sharex=heat)
        _draw_map(figure, heat, figure.add_subplot(grid[row + 1, column + 1]), panel, map_in, darkest)
        _draw_mean(curve, panel, highest)
        for axes, name in ((heat, panel.rows), (curve, "× uniform")):
            axes.set_ylabel("" if column else name)
        handles |= {str(handle.get_label()): handle for handle in curve.get_legend_handles_labels()[0]}
    key = figure.add_subplot(parts[1])
    key.axis("off")
    key.legend(handles=list(handles.values()), loc="center", ncol=2 * columns, borderaxespad=0, handlelength=1.8)


def _lines(panel: AttentionPanel) -> list[np.ndarray]:
    """(T,) in [0, 1]: the mean over the rows, and the chosen row if there is one."""
    weights = np.asarray(panel.weights, np.float64)
    return [weights.mean(0)] + ([] if panel.chosen is None else [weights[panel.chosen]])


def _count_uniform(axes: Axes, uniform: float, top: float) -> None:
    """Number a vertical axis in per cent by multiples of uniform attention, up to `top` of them."""
    ticks = [tick for tick in MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(0, top) if tick <= top]
    axes.set_yticks([tick * uniform for tick in ticks], [f"{tick:g}" for tick in ticks])


def _draw_map(figure: Figure, axes: Axes, bar: Axes, panel: AttentionPanel, height_in: float, darkest: float) -> None:
    queries, frames = np.shape(panel.weights)
    group = math.ceil(frames / MAX_CELLS)  # a cell is the mean of so many frames, so that none is lost in print
    starts = np.arange(0, frames, group)
    percent = 100 * np.add.reduceat(panel.weights, starts, axis=1) / np.diff([*starts, frames])
    top = darkest * 100 / frames
    where: Look = {"aspect": "auto", "extent": (-0.5, group * len(starts) - 0.5, queries - 0.5, -0.5), "interpolation": "none"}
    image = axes.imshow(percent, cmap=MODALITY_MAPS[panel.modality], vmin=0, vmax=top, **where)
    axes.set_xlim(-0.5, panel.padded_length - 0.5)
    axes.set_xlabel("text token (key)" if panel.key_labels else f"{panel.modality} frame (key)")
    if names := [printable(label) for label in panel.key_labels]:
        axes.set_xticks(range(0, frames, skip := math.ceil(frames / 20)), names[::skip], rotation=90)
    step = math.ceil(queries * 0.125 / height_in)  # a line of 7 pt takes an eighth of an inch
    labels = [printable(label) for label in panel.query_labels]
    axes.set_yticks(range(0, queries, step), labels[::step])
    axes.tick_params(axis="y", length=1.5)
    _mark(axes, panel, "none")
    if panel.chosen is not None:
        axes.axhspan(panel.chosen - 0.5, panel.chosen + 0.5, facecolor="none", edgecolor=style.PURPLE, linewidth=1.2)
    figure.colorbar(image, cax=bar, extend="max" if percent.max() > top else "neither", extendfrac=0.06)
    _count_uniform(bar, 100 / frames, darkest)
    bar.set_ylabel("weight (× uniform)", size=style.SMALLEST_PT)
    bar.tick_params(length=1.5)


def _draw_mean(axes: Axes, panel: AttentionPanel, highest: float) -> None:
    """The mean over the rows and the chosen one, with seconds on top where the hop is known."""
    frames = np.shape(panel.weights)[1]
    colour = style.MODALITY_COLOURS[panel.modality]
    mean, *chosen = (100 * line for line in _lines(panel))
    axes.stairs(mean, np.arange(frames + 1) - 0.5, color=colour, fill=True, alpha=0.2)
    axes.stairs(mean, np.arange(frames + 1) - 0.5, color=colour, linewidth=0.9, baseline=None)
    for line in chosen:
        named = f"row “{printable(panel.query_labels[panel.chosen or 0]).strip()}”"
        axes.stairs(line, np.arange(frames + 1) - 0.5, color=style.PURPLE, linewidth=1.2, baseline=None, label=named)
    axes.plot([-0.5, frames - 0.5], [100 / frames] * 2, color="0.3", linestyle=":", linewidth=0.8, label="uniform")
    axes.set_ylim(0, highest * 100 / frames)
    _count_uniform(axes, 100 / frames, highest)
    axes.tick_params(axis="x", labelbottom=False)
    axes.spines[["top", "right"]].set_visible(False)
    _mark(axes, panel, (style.YELLOW, 0.6))
    if panel.hop_ms:
        frame_s = panel.hop_ms / 1000
        seconds = axes.secondary_xaxis("top", functions=(lambda x: np.multiply(x, frame_s), lambda s: np.divide(s, frame_s)))
        seconds.set_xlabel("time (s)", size=style.SMALLEST_PT)
    cue = f", true cue: {printable(panel.cue)}" if panel.cue else ""
    axes.set_title(f"{panel.source} → {panel.modality}{cue}", color=colour)


def _mark(axes: Axes, panel: AttentionPanel, filling: Any) -> None:
    """The padding, and the true cue where it is known."""
    if panel.padded_length > (frames := np.shape(panel.weights)[1]):
        axes.axvspan(frames - 0.5, panel.padded_length - 0.5, **PADDING)
    if panel.cue_window:
        start, stop = panel.cue_window
        axes.axvspan(start - 0.5, stop - 0.5, facecolor=filling, zorder=0 if filling != "none" else 2, **CUE)
