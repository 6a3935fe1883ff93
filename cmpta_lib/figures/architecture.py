"""Figure 1, drawn by code from a run's settings so that it says what the run does."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cmpta_lib.figures.drawing import BOX_PT, arrow, as_written, box, canvas, legend, note, quoted, token_colour
from cmpta_lib.figures.shown_model import ShownModel
from cmpta_lib.figures.style import MODALITY_COLOURS, figure_style, fit_line

MOST_TOKENS = 12  # more do not fit the drawn sequence
BRANCH = (0.1, 3.5)  # inches across: the trained branch; the words stand right of it
ADAPTER_Y, SEQUENCE_Y, BUS_Y = 2.0, 3.0, 2.84
# Inches across of what the LLM reads.
WIDTHS = {"open": 0.86, "tokens": 1.85, "text": 0.95, "close": 0.9, "prompt": 1.35, "answer": 0.79}


@figure_style()
def architecture_figure(model: ShownModel, *, footer: str = "") -> Figure:
    """Figure 1: from text, face and voice to the LLM's answer, with equation numbers and what is trained."""
    figure, axes = canvas(4.72, footer, _drawn(model))
    for x, name, features in ((0.1, "vision", model.vision_features), (1.87, "audio", model.audio_features)):
        _alignment(axes, x, name, features, model)
    _words(axes, model)
    left, right = BRANCH
    box(axes, left, ADAPTER_Y, right - left, 0.55, _adapter_label(model), kind="trainable")
    if model.settings.fusion == "cross_modal":
        arrow(axes, (4.2, 1.17), (4.2, 2.275), (right, 2.275), colour=MODALITY_COLOURS["text"])
        note(axes, 4.27, 2.0, "text embeddings", color=MODALITY_COLOURS["text"])
    _sequence(axes, model)
    backbone = fit_line(model.backbone, 3.0, 9)
    label = as_written(f"LLM: {backbone}, width {model.llm_dim}, weights never change")
    box(axes, 0.1, 3.53, 6.7, 0.42, label, kind="frozen", size=9)
    arrow(axes, (6.41, 3.95), (6.41, 4.25))
    box(axes, 6.02, 4.25, 0.78, 0.38, _answer(model, 0.7))
    arrow(axes, (6.02, 4.44), (5.7, 4.44))
    box(axes, 3.6, 4.25, 2.1, 0.38, "loss: next-token cross-entropy\non the answer tokens only (9)")
    legend(axes, (0.05, 4.68), ("trainable", "frozen", "plain"), ("trained", "frozen", "data, no weights"))
    note(axes, 0.12, 4.3, "(n): equation of the paper")
    return figure


def _drawn(model: ShownModel) -> str:
    fusion = "the cross-modal adapter" if model.settings.fusion == "cross_modal" else "pooling without cross-modal attention"
    count, side = model.settings.num_pseudo_tokens, model.settings.prompt.pseudo_token_position.replace("_", " the ")
    return (
        f"The framework: face and voice are aligned in time, {fusion} turns them into {count} pseudo tokens that stand "
        f"{side}, and the frozen LLM reads them and writes the answer. Numbers in parentheses are the paper's equations."
    )


def _alignment(axes: Axes, x: float, name: str, features: int, model: ShownModel) -> None:
    """The column of one modality, from its frames to the adapter."""
    dim, letter, middle = model.settings.dim, name[0], x + 0.815
    shape = rf"$T_{letter} \times {features}$"
    box(axes, x, 0.05, 1.63, 0.38, f"{name} frames\n{shape}", colour=MODALITY_COLOURS[name])
    box(axes, x, 0.67, 1.63, 1.0, "", kind="group")
    note(axes, middle, 1.57, "temporal alignment", ha="center")
    if model.settings.alignment == "linear":
        box(axes, x + 0.1, 0.84, 1.43, 0.5, f"Linear {features} → {dim},\nLayerNorm (5)", kind="trainable")
        arrow(axes, (middle, 0.43), (middle, 0.84))
    else:
        bilstm = model.settings.alignment == "bilstm"
        lstm = f"BiLSTM, 2 × {dim // 2} (3, 4)" if bilstm else f"LSTM, {dim} (3)"
        box(axes, x + 0.1, 0.76, 1.43, 0.27, lstm, kind="trainable")
        box(axes, x + 0.1, 1.17, 1.43, 0.27, "Linear, LayerNorm (5)", kind="trainable")
        arrow(axes, (middle, 0.43), (middle, 0.76))
        arrow(axes, (middle, 1.03), (middle, 1.17))
    arrow(axes, (middle, 1.67), (middle, ADAPTER_Y))
    note(axes, middle + 0.07, 1.84, rf"$T_{letter} \times {dim}$")


def _words(axes: Axes, model: ShownModel) -> None:
    """Text, prompt and answer of the example, and the table that embeds them."""
    places = (
        (3.9, 1.0, "text", f"text\n{as_written(quoted(model.text, 0.92))}"),
        (4.98, 1.06, "prompt", f"prompt\n{as_written(quoted(model.words.prompt, 0.98, end=True))}"),
        (6.12, 0.68, "answer", _answer(model, 0.6)),
    )
    for x, width, name, words in places:
        box(axes, x, 0.05, width, 0.5, words, colour=MODALITY_COLOURS.get(name, "0.2"))
        arrow(axes, (x + width / 2, 0.55), (x + width / 2, 0.74))
    table = f"LLM's own embedding table (1, 2)\none row of {model.llm_dim} for each token"
    box(axes, 3.9, 0.74, 2.9, 0.43, table, kind="frozen")


def _answer(model: ShownModel, width: float) -> str:
    if not model.class_name:
        return f"answer\n“{model.answer}”"
    return f"answer “{model.answer}”\n{as_written(fit_line(model.class_name, width, BOX_PT))}"


def _adapter_label(model: ShownModel) -> str:
    settings = model.settings
    if settings.fusion == "pooled":
        each = settings.num_pseudo_tokens // 2
        parts = "one span" if each == 1 else f"{each} consecutive spans"
        return f"pooled tokens: means over {parts} of each modality;\nno cross-modal attention, see Figure 2"
    rule = f"pairs Y ← X, {model.count_rule}" if model.count_rule else "one token per ordered pair Y ← X"
    return (
        "Cross-modal pseudo-token (CMPT) adapter (6–8)\n"
        f"{settings.num_heads} head{'s' if settings.num_heads > 1 else ''}; {rule}, see Figure 2"
    )


def _sequence(axes: Axes, model: ShownModel) -> None:
    """What the LLM reads, from left to right; all but the pseudo tokens comes from its embedding table."""
    before = model.settings.prompt.pseudo_token_position == "before_text"
    order = ("open", *(("tokens", "text") if before else ("text", "tokens")), "close", "prompt", "answer")
    shown = {"open": model.words.open, "close": model.words.close}
    x, ups = 0.1, []
    for name in order:
        width = WIDTHS[name]
        if name == "tokens":
            _pseudo_tokens(axes, x, width, model)
            entry = x + width / 2
        else:
            box(axes, x, SEQUENCE_Y, width, 0.28, shown.get(name, name), kind="frozen")
            ups.append(x + width / 2)
        arrow(axes, (x + width / 2, SEQUENCE_Y + 0.28), (x + width / 2, 3.53))
        x += width
    axes.plot([ups[0], ups[-1]], [BUS_Y, BUS_Y], color="0.3", linewidth=0.9, zorder=1)
    for up in ups:
        arrow(axes, (up, BUS_Y), (up, SEQUENCE_Y))
    arrow(axes, (5.6, 1.17), (5.6, BUS_Y))
    note(axes, 5.68, 2.0, "embeddings of\nall other tokens")
    # Three points, so that it has a rim and passes over the line to the words.
    arrow(axes, (entry, ADAPTER_Y + 0.55), (entry, BUS_Y - 0.05), (entry, SEQUENCE_Y), colour="black")
    note(axes, entry + 0.08, 2.69, "pseudo tokens (8)" if model.settings.fusion == "cross_modal" else "pseudo tokens")


def _pseudo_tokens(axes: Axes, x: float, width: float, model: ShownModel) -> None:
    tokens = model.shown_tokens(MOST_TOKENS)
    for i, (name, modality) in enumerate(tokens):
        left = x + i * width / len(tokens)
        box(axes, left, SEQUENCE_Y, width / len(tokens), 0.28, name, colour=token_colour(modality))
