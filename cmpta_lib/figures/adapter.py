"""Figure 2, drawn by code from a run's settings: how aligned sequences become pseudo tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cmpta_lib.figures.drawing import LETTERS, arrow, box, canvas, legend, note, token_colour
from cmpta_lib.figures.shown_model import GROUPS, PAIRS, ShownModel
from cmpta_lib.figures.style import MODALITY_COLOURS, figure_style

MOST_TOKENS = 16  # more do not fit the drawn column
SUMMARIES = {"mean": "mean", "max": "maximum"}
TOKENS_X, TO_LLM_X = 6.24, 6.76
CENTRES = {name: 3.42 - 1.24 * i for i, name in enumerate(GROUPS)}
BUSES = {name: 1.87 + 0.15 * i for i, name in enumerate(GROUPS)}  # where a modality's keys and values run down the page
# Pair -> height of its row: two for each Y, around the sequence of Y.
HEIGHTS = {name: CENTRES[y] + (0.28, -0.28)[i % 2] for i, (name, (y, _)) in enumerate(PAIRS.items())}


@figure_style()
def adapter_figure(model: ShownModel, *, footer: str = "") -> Figure:
    """Figure 2: projections, ordered pairs Y ← X and how each pair becomes a token; or the pooling in their place."""
    if model.settings.fusion == "pooled":
        return _pooled(model, footer)
    figure, axes = canvas(4.35, footer, _drawn(model))
    for name in GROUPS:
        _sequence(axes, name, model)
    if model.settings.projections == "per_modality":
        _shared_projections(axes)
        attention_x = 2.7
    else:
        _projections_of_pairs(axes)
        attention_x = 2.98
    for name, (y, x) in PAIRS.items():
        q, k = LETTERS[y], LETTERS[x]
        formula = rf"$\mathrm{{softmax}}(Q_{q} K_{k}^{{\top}} / \sqrt{{d}})\, V_{k}$"
        box(axes, attention_x, HEIGHTS[name] - 0.22, 4.55 - attention_x, 0.44, f"{q} ← {k}\n{formula}")
    _tail(axes, model)
    heads, width = model.settings.num_heads, model.settings.dim // model.settings.num_heads
    headers = (
        (0.58, "sequences (6)"),
        ((4.55 + attention_x) / 2, f"attention (7), {heads} head{'s' if heads > 1 else ''},\nd = {width}"),
        (5.4, "shared by the six pairs"),
    )
    for centre, text in headers:
        note(axes, centre, 4.2, text, ha="center")
    note(axes, TOKENS_X + 0.2, 4.2, "pseudo\ntokens (8)", ha="center")
    legend(axes, (0.05, 0.2), ("trainable", "plain"), ("trained", "no weights"))
    note(axes, 2.7, 0.13, "padding of X is masked; (n): equation of the paper")
    return figure


def _drawn(model: ShownModel) -> str:
    settings = model.settings
    projections = "one set of query, key and value projections per " + (
        "modality" if settings.projections == "per_modality" else "pair"
    )
    rule = f"; {model.count_rule}" if model.count_rule else ""
    return (
        f"The adapter: {projections}, multi-head attention in six ordered pairs Y ← X (Y queries X), and the "
        f"{SUMMARIES[settings.summary]} of each as one token for the frozen LLM{rule}. T text, V vision, A audio."
    )


def _sequence(axes: Axes, name: str, model: ShownModel) -> None:
    """The sequence of one modality."""
    colour, centre, dim = MODALITY_COLOURS[name], CENTRES[name], model.settings.dim
    if name == "text":
        box(axes, 0.08, centre - 0.48, 0.55, 0.96, f"text\n$L \\times {model.llm_dim}$", colour=colour)
        arrow(axes, (0.63, centre), (0.78, centre))
        box(axes, 0.78, centre - 0.48, 0.3, 0.96, f"Linear\n{model.llm_dim} → {dim}", kind="trainable", rotation=90)
    else:
        box(axes, 0.08, centre - 0.48, 1.0, 0.96, f"aligned\n{name}\n$T_{name[0]} \\times {dim}$", colour=colour)


def _shared_projections(axes: Axes) -> None:
    """Nine projections: a query goes to the two rows of its own modality, keys and values to the rows that read it."""
    note(axes, 1.4, 4.2, "projections", ha="center")
    note(axes, 2.02, 4.2, "keys,\nvalues", ha="center")
    for name, centre in CENTRES.items():
        colour, letter, bus = MODALITY_COLOURS[name], LETTERS[name], BUSES[name]
        for k, projection in enumerate("QKV"):
            height = centre + 0.31 * (1 - k)
            box(axes, 1.25, height - 0.125, 0.32, 0.25, f"${projection}_{letter}$", kind="trainable", colour=colour)
            arrow(axes, (1.08, height), (1.25, height))
            if projection != "Q":
                axes.plot([1.57, bus], [height, height], color=colour, linewidth=1)
                axes.plot(bus, height, "o", color=colour, ms=3)
        taps = [HEIGHTS[pair] - 0.1 for pair, (_, x) in PAIRS.items() if x == name]
        _bus(axes, name, [*taps, centre - 0.31, centre])
    for pair, (y, x) in PAIRS.items():
        query, row = CENTRES[y] + 0.31, HEIGHTS[pair]
        way = ((1.57, query), (2.4, query), (2.4, row + 0.1), (2.7, row + 0.1))
        arrow(axes, *way, colour=MODALITY_COLOURS[y])
        _tap(axes, x, row - 0.1, 2.7)


def _projections_of_pairs(axes: Axes) -> None:
    """Six sets of projections, one in front of each pair's attention, fed by the sequences themselves."""
    note(axes, 2.02, 4.2, "sequences\nto the pairs", ha="center")
    note(axes, 2.64, 4.2, "projections\nper pair", ha="center")
    for name, centre in CENTRES.items():
        queries = [HEIGHTS[pair] + 0.1 for pair, (y, _) in PAIRS.items() if y == name]
        keys = [HEIGHTS[pair] - 0.1 for pair, (_, x) in PAIRS.items() if x == name]
        axes.plot([1.08, BUSES[name]], [centre, centre], color=MODALITY_COLOURS[name], linewidth=1)
        axes.plot(BUSES[name], centre, "o", color=MODALITY_COLOURS[name], ms=3)
        _bus(axes, name, [*queries, *keys, centre])
    for pair, (y, x) in PAIRS.items():
        row = HEIGHTS[pair]
        _tap(axes, y, row + 0.1, 2.48)
        _tap(axes, x, row - 0.1, 2.48)
        box(axes, 2.48, row - 0.2, 0.34, 0.4, "Q\nKV", kind="trainable")
        arrow(axes, (2.82, row), (2.98, row))


def _bus(axes: Axes, name: str, heights: Sequence[float]) -> None:
    ends = [min(heights), max(heights)]
    axes.plot([BUSES[name]] * 2, ends, color=MODALITY_COLOURS[name], linewidth=1, zorder=1)


def _tap(axes: Axes, name: str, height: float, stop: float) -> None:
    arrow(axes, (BUSES[name], height), (stop, height), colour=MODALITY_COLOURS[name])
    axes.plot(BUSES[name], height, "o", color=MODALITY_COLOURS[name], ms=3)


def _tail(axes: Axes, model: ShownModel) -> None:
    """From the six attended sequences to the K tokens: the steps that all pairs share, then the rule for K."""
    rows = list(HEIGHTS.values())
    bottom, top = rows[-1] - 0.22, rows[0] + 0.22
    settings = model.settings
    stages = [
        (f"{SUMMARIES[settings.summary]} over the real positions of Y", "plain"),
        ("LayerNorm", "trainable"),
        (f"Linear  {settings.dim} → {model.llm_dim}", "trainable"),
    ]
    if model.count_rule:
        stages.append((model.count_rule, "trainable" if model.is_mixed else "plain"))
    width, step = (0.3, 0.45) if len(stages) == 3 else (0.26, 0.37)
    lefts = [4.8 - 0.04 * (len(stages) - 3) + step * i for i in range(len(stages))]
    for left, (text, kind) in zip(lefts, stages, strict=True):
        box(axes, left, bottom, width, top - bottom, text, kind=kind, rotation=90)
    tokens = model.shown_tokens(MOST_TOKENS)
    size = min(0.3, 0.92 * (top - bottom) / len(tokens))
    ends = rows
    if model.count_rule:
        ends = [top - (top - bottom) * (i + 0.5) / len(tokens) for i in range(len(tokens))]
    for height in rows:
        for start, stop in zip([4.55, *(left + width for left in lefts[:-1])], lefts, strict=True):
            arrow(axes, (start, height), (stop, height))
    for (name, modality), height in zip(tokens, ends, strict=True):
        arrow(axes, (lefts[-1] + width, height), (TOKENS_X, height))
        box(axes, TOKENS_X, height - size / 2, 0.38, size, name, colour=token_colour(modality))
    note(axes, TO_LLM_X, (top + bottom) / 2, "to the frozen LLM", ha="center", rotation=90)


def _pooled(model: ShownModel, footer: str) -> Figure:
    """Each aligned modality cut into spans, whose means become the tokens: no text, no attention."""
    dim, half = model.settings.dim, model.settings.num_pseudo_tokens // 2
    drawn = (
        f"The adapter switched off: the mean of the aligned frames over {half} consecutive span{'s' if half > 1 else ''} of each "
        "modality is one token for the frozen LLM each; no cross-modal attention."
    )
    figure, axes = canvas(2.75, footer, drawn)
    centres: Mapping[str, float] = {"vision": 1.88, "audio": 0.82}
    for centre, text in ((0.72, "sequences (5)"), (2.5, "pooling"), (4.62, "shared by both"), (TOKENS_X + 0.2, "pseudo\ntokens")):
        note(axes, centre, 2.6, text, ha="center")
    for left, text in ((3.95, "LayerNorm"), (5.0, f"Linear  {dim} → {model.llm_dim}")):
        box(axes, left, 0.38, 0.3, 1.94, text, kind="trainable", rotation=90)
    spans = "one span: all its real frames" if half == 1 else f"{half} consecutive spans\nof its real frames"
    for modality, centre in centres.items():
        colour = MODALITY_COLOURS[modality]
        box(axes, 0.08, centre - 0.44, 1.28, 0.88, f"aligned\n{modality}\n$T_{modality[0]} \\times {dim}$", colour=colour)
        box(axes, 1.75, centre - 0.3, 1.6, 0.6, f"mean over each of\n{spans}")
        for start, stop in ((1.36, 1.75), (3.35, 3.95), (4.25, 5.0)):
            arrow(axes, (start, centre), (stop, centre), colour=colour)
        tokens = [token for token in model.tokens if token[1] == modality]
        tokens = tokens if len(tokens) <= 5 else [*tokens[:3], ("…", modality), tokens[-1]]
        for i, (name, _) in enumerate(tokens):
            height, size = centre + 0.94 * (0.5 - (i + 0.5) / len(tokens)), min(0.24, 0.88 / len(tokens))
            arrow(axes, (5.3, height), (TOKENS_X, height))
            box(axes, TOKENS_X, height - size / 2, 0.38, size, name, colour=colour)
    note(axes, TO_LLM_X, 1.35, "to the frozen LLM", ha="center", rotation=90)
    legend(axes, (0.05, 0.2), ("trainable", "plain"), ("trained", "no weights"))
    note(axes, 2.7, 0.13, "adapter off: the text is not read here, no cross-modal attention")
    return figure
