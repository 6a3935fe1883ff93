"""Figures 1 and 2, drawn by code from a run's settings so that they say what the run does.

All is placed by hand, in inches. A variant changes the words of a box, and what has no part in it is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path

from cmpta_lib.config import CmptaConfig
from cmpta_lib.data.corpus import Task
from cmpta_lib.figures import style
from cmpta_lib.figures.style import DOUBLE_COLUMN_IN, MODALITY_COLOURS, figure_style, fit_line
from cmpta_lib.method.adapter import PAIRS
from cmpta_lib.method.prompted import Layout, answer_text

if TYPE_CHECKING:
    from cmpta_lib.study.study import Study

KINDS: dict[str, style.Look] = {
    "trained": {"facecolor": "#FDE8C4", "edgecolor": style.ORANGE, "linewidth": 0.8},
    "frozen": {"facecolor": "#E4EDF4", "edgecolor": "#7FA0B8", "linewidth": 0.8, "hatch": "/////"},
    "no weights": {"facecolor": "white", "edgecolor": "0.45", "linewidth": 0.8},
}
BOX_PT = 7.5
BUSES = {"text": 1.87, "vision": 2.02, "audio": 2.17}  # inches across: where its keys and values run down the page
_SUMMARIES = {"mean": "mean", "max": "maximum"}
_SMALL = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


@dataclass(frozen=True)
class ShownModel:
    """One CMPTA model as its drawings name it: its settings, its task's words, its sizes, and one clip as an example.

    Attributes:
        backbone: name of the frozen LLM.
        llm_dim: E, its width.
        audio_features, vision_features: F of the corpus.
        text, label: of the clip that stands as the example.
    """

    settings: CmptaConfig
    task: Task
    backbone: str
    llm_dim: int
    audio_features: int
    vision_features: int
    text: str
    label: float | int

    @classmethod
    def of(cls, study: Study, key: str) -> ShownModel:
        """CMPTA as a study trains it on one of its corpora; the example is the first clip of the training split."""
        from cmpta_lib.runs.load import load_llm

        settings, corpus = study.config(key).method, study.corpus(key)
        assert isinstance(settings, CmptaConfig)
        train, width = corpus.splits["train"], load_llm([study.cache / "llm"], settings.llm).dim
        sizes, (text, label) = (width, train.audio_dim, train.vision_dim), train.table.iloc[0][["text", "label"]]
        return cls(settings, corpus.task, settings.llm.name, *sizes, text, label)

    @property
    def answer(self) -> str:
        """The example's answer as the LLM writes it, and the class that it stands for."""
        prompt = self.settings.prompt
        written = f"“{answer_text(self.task, self.label, prompt.answer_decimals, prompt.answer_sign)}”"
        name = fit_line(self.task.labels[int(self.label)], 0.6, BOX_PT) if self.task.labels else ""
        return _literal(f"answer {written}\n{name}" if name else f"answer\n{written}")

    @property
    def heads(self) -> str:
        return f"{self.settings.num_heads} head{'s' if self.settings.num_heads > 1 else ''}"

    @property
    def is_pooled(self) -> bool:
        """Whether the adapter is switched off: frames are pooled and the text is not read."""
        return self.settings.fusion == "pooled"

    @property
    def token_rule(self) -> str:
        """How the K tokens come about; empty where each ordered pair is one token."""
        count, pairs = self.settings.num_pseudo_tokens, len(PAIRS)
        if self.is_pooled:
            return f"means over {count // 2} equal spans of its frames" if count > 2 else "mean over its frames"
        if count == pairs:
            return ""
        if self.settings.token_count_rule == "mix":
            return f"learned mix {pairs} → {count}"
        return f"the first {count} of {pairs} pairs" if count < pairs else f"pairs repeated {pairs} → {count}"

    def tokens(self, most: int) -> list[tuple[str, str]]:
        """(name, its modality's colour) of the K pseudo tokens in order; an ellipsis for those that are more than `most`."""
        count = self.settings.num_pseudo_tokens
        named = [(name.translate(_SMALL), MODALITY_COLOURS[y]) for name, (y, _) in PAIRS.items()]
        if self.is_pooled:
            spans = [(m, f"{m[0]}{n + 1}") for m in ("vision", "audio") for n in range(count // 2)]
            named = [(name.translate(_SMALL), MODALITY_COLOURS[m]) for m, name in spans]
        elif "mix" in self.token_rule:
            named = [(str(n + 1), "0.2") for n in range(count)]
        every = list(islice(cycle(named), count))
        return every if count <= most else [*every[: most - 2], ("…", "0.2"), every[-1]]


@figure_style()
def architecture_figure(model: ShownModel, *, footer: str = "") -> Figure:
    """Figure 1: from text, face and voice to the LLM's answer, with equation numbers and what is trained."""
    settings, words = model.settings, Layout.of(model.task)
    drawn = (
        f"The framework: face and voice are aligned in time and become {settings.num_pseudo_tokens} pseudo tokens, which the "
        "frozen LLM reads among the text's before it writes the answer. Numbers in parentheses are the paper's equations."
    )
    figure, axes = _canvas(4.5, footer, drawn, KINDS, legend_y=4.46)
    for x, name, features in ((0.1, "vision", model.vision_features), (1.87, "audio", model.audio_features)):
        _alignment(axes, x, name, features, settings)
    if model.is_pooled:
        label = f"no adapter, no cross-modal attention: each modality is pooled\n{model.token_rule}, see Figure 2"
    else:
        rule = f"pairs Y ← X, {model.token_rule}" if model.token_rule else "one token per ordered pair Y ← X"
        label = f"Cross-modal pseudo-token (CMPT) adapter (6–8)\n{model.heads}; {rule}, see Figure 2"
        arrow(axes, (4.2, 1.17), (4.2, 2.075), (3.5, 2.075), colour=MODALITY_COLOURS["text"])
        note(axes, 4.27, 1.8, "text embeddings", color=MODALITY_COLOURS["text"])
    box(axes, 0.1, 1.8, 3.4, 0.55, label, kind="trained")
    text, prompt = f"text\n{_quoted(model.text, 0.92)}", f"prompt\n{_quoted(words.prompt, 0.98, end=True)}"
    for x, width, said in ((3.9, 1.0, text), (4.98, 1.06, prompt), (6.12, 0.68, "answer\nso far")):
        box(axes, x, 0.05, width, 0.5, said, colour=MODALITY_COLOURS["text"] if said is text else "black")
        arrow(axes, (x + width / 2, 0.55), (x + width / 2, 0.74))
    box(axes, 3.9, 0.74, 2.9, 0.43, f"LLM's own embedding table (1, 2)\none row of {model.llm_dim} for each token", kind="frozen")
    _sequence(axes, model, words)
    backbone = _literal(fit_line(model.backbone, 3.0, 9))
    box(axes, 0.1, 3.33, 6.7, 0.42, f"LLM: {backbone}, width {model.llm_dim}, weights never change", kind="frozen", size=9)
    arrow(axes, (6.41, 3.75), (6.41, 4.05))
    box(axes, 6.02, 4.05, 0.78, 0.38, model.answer)
    arrow(axes, (6.02, 4.24), (5.7, 4.24))
    box(axes, 3.6, 4.05, 2.1, 0.38, "loss: next-token cross-entropy\non the answer tokens only (9)")
    note(axes, 0.12, 4.1, "(n): equation of the paper")
    return figure


def _alignment(axes: Axes, x: float, name: str, features: int, settings: CmptaConfig) -> None:
    """The column of one modality, from its frames to the adapter."""
    dim, frames, middle = settings.dim, f"T_{name[0]}", x + 0.815
    layers = {
        "bilstm": f"BiLSTM, 2 × {dim // 2} (3, 4)\nLinear, LayerNorm (5)",
        "lstm": f"LSTM, {dim} (3)\nLinear, LayerNorm (5)",
        "linear": f"Linear {features} → {dim},\nLayerNorm (5)",
    }
    box(axes, x, 0.05, 1.63, 0.5, rf"{name} frames" f"\n${frames} \\times {features}$", colour=MODALITY_COLOURS[name])
    arrow(axes, (middle, 0.55), (middle, 0.74))
    box(axes, x, 0.74, 1.63, 0.6, f"temporal alignment\n{layers[settings.alignment]}", kind="trained")
    arrow(axes, (middle, 1.34), (middle, 1.8))
    note(axes, middle + 0.07, 1.57, rf"${frames} \times {dim}$")


def _sequence(axes: Axes, model: ShownModel, words: Layout) -> None:
    """What the LLM reads, from left to right; all but the pseudo tokens comes from its embedding table."""
    middle = [("", 1.85), ("text", 0.95)]  # the pseudo tokens have names of their own
    if model.settings.prompt.pseudo_token_position == "after_text":
        middle.reverse()
    x, y, bus = 0.1, 2.8, 2.64
    for name, width in [(words.open, 0.86), *middle, (words.close, 0.9), ("prompt", 1.3), ("answer so far", 0.84)]:
        up = x + width / 2
        arrow(axes, (up, y + 0.28), (up, 3.33))
        if name:
            box(axes, x, y, width, 0.28, name, kind="frozen")
            arrow(axes, (up, bus), (up, y))
        else:
            tokens = model.tokens(12)  # more do not fit
            each = width / len(tokens)
            for i, (token, colour) in enumerate(tokens):
                box(axes, x + i * each, y, each, 0.28, token, colour=colour)
            # Three points, so that it has a rim and passes over the line to the words.
            arrow(axes, (up, 2.35), (up, bus - 0.05), (up, y), colour="black")
            note(axes, up + 0.08, 2.49, "pseudo tokens" if model.is_pooled else "pseudo tokens (8)")
        x += width
    axes.plot([0.53, 6.38], [bus, bus], color="0.3", linewidth=0.9, zorder=1)  # from the opening tag to the answer
    arrow(axes, (5.6, 1.17), (5.6, bus))
    note(axes, 5.68, 1.8, "embeddings of\nall other tokens")


@figure_style()
def adapter_figure(model: ShownModel, *, footer: str = "") -> Figure:
    """Figure 2: projections, ordered pairs Y ← X and how each pair becomes a token; or the pooling in their place."""
    settings, each = model.settings, model.settings.projections.replace("per_", "per ")
    if model.is_pooled:
        groups, shared, tokens = tuple(BUSES)[1:], "both", "pseudo\ntokens"
        attention, remark = "pooling", "adapter off: the text is not read here, no cross-modal attention"
        drawn = f"The adapter switched off: each modality gives the {model.token_rule} as tokens; no attention."
    else:
        groups, shared, tokens = tuple(BUSES), "the six pairs", "pseudo\ntokens (8)"
        attention = f"attention (7), {model.heads},\nd = {settings.dim // settings.num_heads}"
        remark = "padding of X is masked; (n): equation of the paper"
        drawn = (
            f"The adapter: one set of query, key and value projections {each}, multi-head attention in six ordered pairs "
            f"Y ← X (Y queries X), and the {_SUMMARIES[settings.summary]} of each as one token for the frozen LLM"
            f"{'; ' * bool(model.token_rule)}{model.token_rule}. T text, V vision, A audio."
        )
    page_in = 0.63 + 1.24 * len(groups)
    figure, axes = _canvas(page_in, footer, drawn, ("trained", "no weights"), legend_y=0.2)
    headers = {3.62: attention, 5.4: f"shared by {shared}", 6.44: tokens}
    if not model.is_pooled:
        headers |= {0.58: "sequences (6)", 1.45: f"projections\n{each}", 2.02: "keys,\nvalues"}
    for x, text in headers.items():
        note(axes, x, page_in - 0.15, text, ha="center")
    note(axes, 2.7, 0.13, remark)
    centres = {name: page_in - 0.93 - 1.24 * i for i, name in enumerate(groups)}
    for name, centre in centres.items():
        _group(axes, name, centre, model)
    _tokens(axes, list(centres.values()) if model.is_pooled else _attention(axes, centres), model)
    return figure


def _group(axes: Axes, name: str, centre: float, model: ShownModel) -> None:
    """The sequence of one modality, its projections, and the bus that brings its keys and values to the pairs."""
    colour, dim, letter = MODALITY_COLOURS[name], model.settings.dim, name[0].upper()
    if name == "text":
        box(axes, 0.08, centre - 0.48, 0.55, 0.96, f"text\n$L \\times {model.llm_dim}$", colour=colour)
        arrow(axes, (0.63, centre), (0.76, centre))
        box(axes, 0.76, centre - 0.48, 0.3, 0.96, f"Linear\n{model.llm_dim} → {dim}", kind="trained", rotation=90)
    else:
        box(axes, 0.08, centre - 0.48, 0.98, 0.96, f"aligned\n{name}\n$T_{name[0]} \\times {dim}$", colour=colour)
    if model.is_pooled:
        arrow(axes, (1.06, centre), (2.7, centre), colour=colour)
        box(axes, 2.7, centre - 0.22, 1.85, 0.44, style.wrap(model.token_rule, 1.7, BOX_PT))
        return
    each = " × 2" if model.settings.projections == "per_pair" else ""  # a modality queries in two pairs, and is read in two
    for height, names in ((0.38, f"$Q_{letter}${each}"), (-0.18, f"$K_{letter}{'' if each else ','} V_{letter}${each}")):
        box(axes, 1.18, centre + height - 0.14, 0.54, 0.28, names, kind="trained", colour=colour)
        arrow(axes, (1.06, centre + height), (1.18, centre + height))
    axes.plot([1.72, BUSES[name]], [centre - 0.18] * 2, "-o", color=colour, linewidth=1, ms=3, markevery=[1])


def _attention(axes: Axes, centres: Mapping[str, float]) -> list[float]:
    """Six pairs, queries from the projection of Y, keys and values from the bus of X; returns the heights of their boxes."""
    heights: list[float] = []
    for y, x in PAIRS.values():
        heights.append(height := centres[y] + (-0.28 if len(heights) % 2 else 0.28))
        q, k = y[0].upper(), x[0].upper()
        formula = rf"$\mathrm{{softmax}}(Q_{q} K_{k}^{{\top}} / \sqrt{{d}})\, V_{k}$"
        box(axes, 2.7, height - 0.22, 1.85, 0.44, f"{q} ← {k}\n{formula}")
        query, key, bus, colour = centres[y] + 0.38, height - 0.1, BUSES[x], MODALITY_COLOURS[x]
        arrow(axes, (1.72, query), (2.4, query), (2.4, height + 0.1), (2.7, height + 0.1), colour=MODALITY_COLOURS[y])
        arrow(axes, (bus, key), (2.7, key), colour=colour)
        axes.plot([bus, bus], [centres[x] - 0.18, key], color=colour, linewidth=1, zorder=1)
        axes.plot(bus, key, "o", color=colour, ms=3)
    return heights


def _tokens(axes: Axes, heights: list[float], model: ShownModel) -> None:
    """From what stands at these heights to the pseudo tokens: the steps that all of it shares."""
    stages = [("LayerNorm", "trained"), (f"Linear  {model.settings.dim} → {model.llm_dim}", "trained")]
    if not model.is_pooled:
        stages.insert(0, (f"{_SUMMARIES[model.settings.summary]} over the real positions of Y", "no weights"))
        if model.token_rule:
            stages.append((model.token_rule, "trained" if "mix" in model.token_rule else "no weights"))
    bottom, top = heights[-1] - 0.22, heights[0] + 0.22
    end, step = 4.55, 1.2 / len(stages)
    for i, (text, kind) in enumerate(stages):
        left = 4.8 + step * i
        box(axes, left, bottom, 0.7 * step, top - bottom, text, kind=kind, rotation=90)
        for height in heights:
            arrow(axes, (end, height), (left, height))
        end = left + 0.7 * step
    tokens = model.tokens(int((top - bottom) / 0.2))
    each = (top - bottom) / len(tokens)
    size = min(0.3, 0.92 * each)
    places = [top - each * (i + 0.5) for i in range(len(tokens))] if model.token_rule else heights
    for height, (name, colour) in zip(places, tokens, strict=True):
        arrow(axes, (end, height), (6.24, height))
        box(axes, 6.24, height - size / 2, 0.38, size, name, colour=colour)
    note(axes, 6.76, (top + bottom) / 2, "to the frozen LLM", ha="center", rotation=90)


def _canvas(height_in: float, footer: str, drawn: str, kinds: Iterable[str], legend_y: float) -> tuple[Figure, Axes]:
    """A figure, and axes in it without frame that measure inches, above the footer; with a key to the kinds of boxes."""
    figure = style.new_figure(DOUBLE_COLUMN_IN, height_in, footer=footer, drawn=drawn)
    figure.layout = None
    axes = figure.add_axes((0, figure.foot_in / figure.get_figheight(), 1, height_in / figure.get_figheight()))
    axes.set(xlim=(0, DOUBLE_COLUMN_IN), ylim=(0, height_in))
    axes.axis("off")
    handles = [Patch(label=kind, **KINDS[kind]) for kind in kinds]
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.05, legend_y), bbox_transform=axes.transData, ncol=len(handles),
        borderaxespad=0, borderpad=0.2, handlelength=2.2, columnspacing=1.2,
    )  # fmt: skip
    return figure, axes


def _quoted(text: str, width_in: float, *, end: bool = False) -> str:
    """`text` in quotation marks, as much as two lines of a box take: its start, or its end."""
    lines = style.wrap(f"“{text}”", width_in - style.text_width_in("…”", BOX_PT), BOX_PT).split("\n")
    if len(lines) > 2:
        lines = [f"“…{lines[-2]}", lines[-1]] if end else [lines[0], f"{lines[1]}…”"]
    return _literal("\n".join(fit_line(line, width_in, BOX_PT) for line in lines))


def _literal(text: str) -> str:
    """A text of the corpus, of which a dollar sign is no formula."""
    return text.replace("$", r"\$")


def box(
    axes: Axes, x: float, y: float, width: float, height: float, text: str, *, kind: str = "no weights",
    colour: str = "black", size: float = BOX_PT, rotation: float = 0,
) -> None:  # fmt: skip
    look, shape = KINDS[kind], "round,pad=0,rounding_size=0.04"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, zorder=2, **look))
    # Behind the letters the hatch is interrupted, or they would be hard to read.
    behind = {"facecolor": look["facecolor"], "edgecolor": "none", "pad": 1.5} if "hatch" in look else None
    darker = [0.8 * part for part in to_rgb(colour)]  # coloured letters keep their contrast on a tinted box
    axes.text(
        x + width / 2, y + height / 2, text, ha="center", va="center", size=size, color=darker, rotation=rotation,
        bbox=behind, zorder=3, linespacing=1.15, parse_math=True,
    )  # fmt: skip


def note(axes: Axes, x: float, y: float, text: str, color: str = "0.3", **look: Any) -> None:
    axes.text(x, y, text, va="center", size=style.SMALLEST_PT, color=color, parse_math=True, **look)


def arrow(axes: Axes, *points: tuple[float, float], colour: str = "0.3") -> None:
    """A line through `points` with a head at the last one; a white rim lets it pass over the lines it crosses."""
    if len(points) > 2:
        axes.add_patch(FancyArrowPatch(path=Path(points), arrowstyle="-", color="white", linewidth=3, zorder=1.2))
    head = FancyArrowPatch(path=Path(points), arrowstyle="-|>", mutation_scale=6, color=colour, linewidth=0.9, zorder=1.5)
    axes.add_patch(head)
