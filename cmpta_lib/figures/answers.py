"""One clip looked at closely: its words, the probability of every answer to it, and its attention maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cmpta_lib.figures.attention import AttentionPanel, attention_size, draw_attention, what_is_drawn
from cmpta_lib.figures.page import new_figure
from cmpta_lib.figures.style import (
    BLUE,
    DOUBLE_COLUMN_IN,
    TITLE_PT,
    VERMILLION,
    figure_style,
    printable,
    wrap,
)

MAX_BARS = 22  # half a page wide: the 21 scores of one decimal, or as many classes
LONG_NAME = 4  # characters; longer names stand upright below their bars
_BARS_IN, _LINE_IN = 1.75, 0.165


@dataclass(frozen=True, eq=False)
class ClipAnswer:
    """What one method says of one clip.

    Attributes:
        text: the answer as a reader sees it.
        names: the A answers that it could give, in order.
        probabilities: (A,) of each.
        chosen: position of its answer among them; None where its reply is none of them.
        truth: position of the label, or of the score that is nearest to it.
    Raises:
        ValueError: not as many probabilities as names.
    """

    text: str
    names: Sequence[str]
    probabilities: np.ndarray
    chosen: int | None
    truth: int

    def __post_init__(self) -> None:
        if np.shape(self.probabilities) != (len(self.names),):
            raise ValueError(f"{len(self.names)} answers, but probabilities of shape {np.shape(self.probabilities)}")


@figure_style()
def clip_figure(
    panels: Sequence[AttentionPanel],
    *,
    text: str,
    label: str,
    answers: Mapping[str, ClipAnswer],
    title: str = "",
    footer: str = "",
) -> Figure:
    """A clip's words and label, each method's answers as bars of their probability, and its attention maps below.

    Args:
        panels: none for a clip without face and voice: then there are no maps.
        answers: method -> what it says; one or two methods side by side.
    Raises:
        ValueError: no answers.
    """
    if not answers:
        raise ValueError("no answers to draw: no method was given")
    maps_in, heights = attention_size(panels)[1:] if panels else (0.0, (0.0, 0.0))
    quote = wrap(f"“{text}”  label: {label}", DOUBLE_COLUMN_IN - 0.3, TITLE_PT)
    quote_in = _LINE_IN * (quote.count("\n") + 1) + 0.06
    drawn = "Above, the probability of each answer: the answer in blue, the label under the red mark. "
    drawn += what_is_drawn(panels) if panels else ""
    figure = new_figure(DOUBLE_COLUMN_IN, quote_in + _BARS_IN + maps_in, title=title, footer=footer, drawn=drawn.strip())
    sizes = (quote_in, _BARS_IN, maps_in) if panels else (quote_in, _BARS_IN)
    parts = figure.add_gridspec(len(sizes), 1, height_ratios=sizes)
    words = figure.add_subplot(parts[0])
    words.axis("off")
    words.text(0.5, 1, quote, ha="center", va="top", size=TITLE_PT, parse_math=False, transform=words.transAxes)
    bars = parts[1].subgridspec(1, len(answers))
    for place, (name, answer) in enumerate(answers.items()):
        axes = figure.add_subplot(bars[place])
        _draw_bars(axes, name, answer)
        axes.set_ylabel("" if place else "probability (%)")
    if panels:
        draw_attention(figure, parts[2], panels, heights)
    return figure


def _draw_bars(axes: Axes, name: str, answer: ClipAnswer) -> None:
    shown = _likeliest(answer)
    percent = 100 * np.asarray(answer.probabilities, float)[shown]
    colours = [BLUE if place == answer.chosen else "0.75" for place in shown]
    axes.bar(range(len(shown)), percent, color=colours, width=0.8)
    top = max(percent.max(), 1e-6)
    at_label = shown.index(answer.truth)
    axes.plot(at_label, percent[at_label] + 0.07 * top, marker="v", color=VERMILLION, ms=4, mew=0, gid="label")
    names = [printable(answer.names[place]) for place in shown]
    upright = len(names) > 10 or max(map(len, names)) > LONG_NAME
    axes.set_xticks(range(len(shown)), names, rotation=90 if upright else 0, parse_math=False)
    axes.tick_params(axis="x", length=0)
    axes.set(ylim=(0, 1.2 * top), xlim=(-0.7, len(shown) - 0.3))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{printable(name)}: {printable(answer.text)}", parse_math=False)
    handles: list[Artist] = [Patch(color=BLUE, label="answer")] if answer.chosen is not None else []
    handles.append(Line2D([], [], linestyle="", marker="v", color=VERMILLION, ms=4, mew=0, label="label"))
    axes.legend(handles=handles, loc="best", borderaxespad=0.1, handlelength=1)


def _likeliest(answer: ClipAnswer) -> list[int]:
    """Positions to draw, in order: all, or the likeliest with the label and the answer among them."""
    if len(answer.names) <= MAX_BARS:
        return list(range(len(answer.names)))
    needed = {answer.truth} | ({answer.chosen} if answer.chosen is not None else set())
    by_probability = [int(place) for place in np.argsort(-np.asarray(answer.probabilities), kind="stable")]
    others = [place for place in by_probability if place not in needed]
    return sorted([*needed, *others[: MAX_BARS - len(needed)]])
