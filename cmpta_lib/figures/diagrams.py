"""Figures 1 and 2, drawn by code so that they say what the code does: one unit of the drawing is one inch on paper."""

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
    figure_style,
    new_figure,
)
from cmpta_lib.paper import WRAP_TAGS

Point = tuple[float, float]

KINDS: dict[str, Look] = {
    "trainable": {"facecolor": "#FDE8C4", "edgecolor": ORANGE, "linewidth": 0.8},
    "frozen": {"facecolor": "#E4EDF4", "edgecolor": "#7FA0B8", "linewidth": 0.8, "hatch": "/////"},
    "plain": {"facecolor": "white", "edgecolor": "0.45", "linewidth": 0.8},
    "group": {"facecolor": "none", "edgecolor": "0.6", "linewidth": 0.8, "linestyle": (0, (3, 2))},
}
PAIR_TOKENS = {"t": "text", "v": "vision", "a": "audio"}  # first letter of a pair's name -> Y
LETTERS = {"text": "T", "vision": "V", "audio": "A"}
MOST_TOKENS = 16  # more do not fit the drawn sequence


@figure_style()
def architecture_figure(*, num_pseudo_tokens: int = 6, backbone: str = "Qwen-1.8B", footer: str = "") -> Figure:
    """Figure 1: from text, face and voice to the LLM's answer, with equation numbers and what is trained.

    Raises:
        ValueError: `num_pseudo_tokens` is not in 1..16.
    """
    if not 1 <= num_pseudo_tokens <= MOST_TOKENS:
        raise ValueError(f"can draw 1 to {MOST_TOKENS} pseudo tokens, not {num_pseudo_tokens}")
    figure, axes = _canvas(4.72, footer)
    left, right = (0.1, 3.5), (3.9, 6.8)  # the trained branch, and the words
    for x, name, features in ((0.1, "vision", r"$T_v \times F_v$"), (1.87, "audio", r"$T_a \times F_a$")):
        _box(axes, x, 0.05, 1.63, 0.38, f"{name} frames\n{features}", colour=MODALITY_COLOURS[name])
        _box(axes, x, 0.67, 1.63, 1.0, "", kind="group")
        _note(axes, x + 0.815, 1.57, "temporal alignment", ha="center")
        _box(axes, x + 0.1, 0.76, 1.43, 0.27, "BiLSTM (3, 4)", kind="trainable")
        _box(axes, x + 0.1, 1.17, 1.43, 0.27, "Linear, LayerNorm (5)", kind="trainable")
        _arrow(axes, (x + 0.815, 0.43), (x + 0.815, 0.76))
        _arrow(axes, (x + 0.815, 1.03), (x + 0.815, 1.17))
        _arrow(axes, (x + 0.815, 1.67), (x + 0.815, 2.0))
    words = (
        (3.9, 1.0, "text", "“这也太好了吧”"),
        (4.98, 1.12, "prompt", "“…响应：情感为”"),
        (6.18, 0.62, "answer", "“-0.4”"),
    )
    for x, width, name, example in words:
        _box(axes, x, 0.05, width, 0.38, f"{name}\n{example}", colour=MODALITY_COLOURS.get(name, "0.2"))
        _arrow(axes, (x + width / 2, 0.43), (x + width / 2, 0.67))
    _box(axes, right[0], 0.67, right[1] - right[0], 0.5, "LLM's own embedding table (1, 2)", kind="frozen")
    _box(axes, left[0], 2.0, left[1] - left[0], 0.55, _adapter_label(num_pseudo_tokens), kind="trainable")
    _arrow(axes, (4.2, 1.17), (4.2, 2.275), (left[1], 2.275), colour=MODALITY_COLOURS["text"])
    _note(axes, 4.27, 2.0, "text embeddings", color=MODALITY_COLOURS["text"])

    opening, closing = WRAP_TAGS["zh"]
    cells = ((0.67, opening), (1.95, ""), (1.05, "text"), (0.72, closing), (1.53, "prompt"), (0.78, "answer"))
    x, y = 0.1, 3.0
    for width, name in cells:
        if name:
            _box(axes, x, y, width, 0.28, name, kind="frozen")
        else:
            _pseudo_tokens(axes, x, y, width, num_pseudo_tokens)
        _arrow(axes, (x + width / 2, y + 0.28), (x + width / 2, y + 0.53))
        x += width
    _arrow(axes, (1.745, 2.55), (1.745, y))
    axes.plot([2.76, 2.76, 6.76, 6.76], [2.95, 2.9, 2.9, 2.95], color="0.3", linewidth=0.8)
    _arrow(axes, (5.35, 1.17), (5.35, 2.9))
    _note(axes, 1.85, 2.78, "pseudo tokens (8)")
    _note(axes, 5.45, 2.0, "one row per token;\nthe two tags as well")
    _box(axes, 0.1, 3.53, 6.7, 0.42, f"LLM: {backbone}, weights never change", kind="frozen", size=9)
    _arrow(axes, (6.41, 3.95), (6.41, 4.25))
    _box(axes, 6.02, 4.25, 0.78, 0.38, "answer\n“-0.4”")
    _arrow(axes, (6.02, 4.44), (5.7, 4.44))
    _box(axes, 3.6, 4.25, 2.1, 0.38, "loss: next-token cross-entropy\non the answer tokens only (9)")
    _legend(axes, (0.05, 4.68), ("trainable", "frozen", "plain"), ("trained", "frozen", "data, no weights"), 3)
    _note(axes, 0.12, 4.3, "(n): equation of the paper")
    return figure


def _adapter_label(tokens: int) -> str:
    rule = (
        "one token per ordered pair Y ← X, see Figure 2" if tokens == 6 else f"six pairs Y ← X mixed to {tokens} tokens"
    )
    return f"Cross-modal pseudo-token (CMPT) adapter (6–8)\n{rule}"


def _pseudo_tokens(axes: Axes, x: float, y: float, width: float, count: int) -> None:
    names = ("t₁", "t₂", "v₁", "v₂", "a₁", "a₂") if count == 6 else tuple(f"{i + 1}" for i in range(count))
    for i, name in enumerate(names):
        colour = MODALITY_COLOURS[PAIR_TOKENS[name[0]]] if count == 6 else "0.2"
        _box(axes, x + i * width / count, y, width / count, 0.28, name, colour=colour)


@figure_style()
def adapter_figure(*, footer: str = "") -> Figure:
    """Figure 2: nine projections, six ordered pairs Y ← X, and how each pair becomes one pseudo token."""
    figure, axes = _canvas(4.35, footer)
    headers = (
        (0.58, "sequences (6)"), (1.4, "projections"), (2.02, "keys,\nvalues"), (3.62, "multi-head attention (7)"),
        (5.4, "shared by the six pairs"), (6.42, "pseudo\ntokens (8)"),
    )  # fmt: skip
    for centre, text in headers:
        _note(axes, centre, 4.2, text, ha="center")
    groups = ("text", "vision", "audio")
    centres = {name: 3.42 - 1.24 * i for i, name in enumerate(groups)}
    bus = {name: 1.87 + 0.15 * i for i, name in enumerate(groups)}
    rows = [
        (f"{y[0]}{'₁₂'[k]}", y, x, centres[y] + (0.28, -0.28)[k])
        for y in groups
        for k, x in enumerate(name for name in groups if name != y)
    ]
    for name in groups:
        _modality(axes, name, centres[name], bus[name])
        taps = [height - 0.1 for _, _, x, height in rows if x == name]
        ends = [*taps, centres[name] - 0.31, centres[name]]
        axes.plot([bus[name]] * 2, [min(ends), max(ends)], color=MODALITY_COLOURS[name], linewidth=1, zorder=1)
    for name, y, x, height in rows:
        colour, other = MODALITY_COLOURS[y], MODALITY_COLOURS[x]
        query, fork = centres[y] + 0.31, 2.4
        _arrow(axes, (1.57, query), (fork, query), (fork, height + 0.1), (2.7, height + 0.1), colour=colour)
        _arrow(axes, (bus[x], height - 0.1), (2.7, height - 0.1), colour=other)
        axes.plot(bus[x], height - 0.1, "o", color=other, ms=3)
        q, k = LETTERS[y], LETTERS[x]
        formula = rf"$\mathrm{{softmax}}(Q_{q} K_{k}^{{\top}} / \sqrt{{d}})\, V_{k}$"
        _box(axes, 2.7, height - 0.22, 1.85, 0.44, f"{q} ← {k}\n{formula}")
        for start, stop in ((4.55, 4.8), (5.1, 5.25), (5.55, 5.7), (6.0, 6.22)):
            _arrow(axes, (start, height), (stop, height))
        _box(axes, 6.22, height - 0.15, 0.4, 0.3, name, colour=colour, size=9)
    bottom, top = rows[-1][3] - 0.22, rows[0][3] + 0.22
    for left, text, kind in (
        (4.8, "mean over the real positions of Y", "plain"),
        (5.25, "LayerNorm", "trainable"),
        (5.7, "Linear  D → E", "trainable"),
    ):
        _box(axes, left, bottom, 0.3, top - bottom, text, kind=kind, rotation=90)
    _note(axes, 6.75, (top + bottom) / 2, "to the frozen LLM", ha="center", rotation=90)
    _legend(axes, (0.05, 0.2), ("trainable", "plain"), ("trained", "no weights"), 2)
    _note(axes, 2.7, 0.13, "padding of X is masked; D: adapter width, E: LLM width")
    return figure


def _modality(axes: Axes, name: str, centre: float, bus: float) -> None:
    """The sequence of one modality and its Q, K and V; keys and values go to the modality's vertical line."""
    colour, letter = MODALITY_COLOURS[name], LETTERS[name]
    if name == "text":
        _box(axes, 0.08, centre - 0.48, 0.55, 0.96, "text\n$L \\times E$", colour=colour)
        _arrow(axes, (0.63, centre), (0.78, centre))
        _box(axes, 0.78, centre - 0.48, 0.3, 0.96, "Linear  E → D", kind="trainable", rotation=90)
    else:
        _box(axes, 0.08, centre - 0.48, 1.0, 0.96, f"aligned\n{name}\n$T_{name[0]} \\times D$", colour=colour)
    for k, projection in enumerate("QKV"):
        y = centre + 0.31 * (1 - k)
        _box(axes, 1.25, y - 0.125, 0.32, 0.25, f"${projection}_{letter}$", kind="trainable", colour=colour)
        _arrow(axes, (1.08, y), (1.25, y))
        if projection != "Q":
            axes.plot([1.57, bus], [y, y], color=colour, linewidth=1)
            axes.plot(bus, y, "o", color=colour, ms=3)


def _canvas(height_in: float, footer: str) -> tuple[Figure, Axes]:
    """A figure, and axes in it without frame that measure inches, above the footer."""
    figure = new_figure(DOUBLE_COLUMN_IN, height_in, footer=footer)
    layout = figure.get_layout_engine()
    assert layout, "`new_figure` gives one"
    rect = layout.get()["rect"]
    figure.set_layout_engine("none")
    axes = figure.add_axes(rect)
    axes.set(xlim=(0, DOUBLE_COLUMN_IN), ylim=(0, height_in))
    axes.axis("off")
    return figure, axes


def _box(
    axes: Axes, x: float, y: float, width: float, height: float, text: str, *, kind: str = "plain",
    colour: str = "black", size: float = 7.5, rotation: float = 0,
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


def _note(
    axes: Axes, x: float, y: float, text: str, *, ha: Literal["left", "center"] = "left", color: str = "0.3", rotation: float = 0
) -> None:
    axes.text(x, y, text, ha=ha, va="center", size=SMALLEST_PT, color=color, rotation=rotation)


def _dark(colour: str) -> tuple[float, float, float]:
    """A little darker, so that coloured letters keep their contrast on a tinted box."""
    red, green, blue = to_rgb(colour)
    return 0.8 * red, 0.8 * green, 0.8 * blue


def _arrow(axes: Axes, *points: Point, colour: str = "0.3") -> None:
    """A line through `points` with a head at the last one; a white rim lets it pass over the lines it crosses."""
    path = Path(points)
    if len(points) > 2:
        axes.add_patch(FancyArrowPatch(path=path, arrowstyle="-", color="white", linewidth=3, zorder=1.2))
    axes.add_patch(
        FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=6, color=colour, linewidth=0.9, zorder=1.5)
    )


def _legend(axes: Axes, place: Point, kinds: Sequence[str], labels: Sequence[str], columns: int) -> None:
    handles = [Patch(label=label, **KINDS[kind]) for kind, label in zip(kinds, labels, strict=True)]
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=place, bbox_transform=axes.transData, ncol=columns,
        borderaxespad=0, borderpad=0.2, handlelength=2.2, columnspacing=1.2,
    )  # fmt: skip
