"""Figures: legible, the same in notebook, file and article, and saying what the settings and numbers say."""

from __future__ import annotations

import io
import logging
import re
import warnings
from functools import cache
from pathlib import Path
from unittest.mock import patch

import matplotlib
import numpy as np
import pandas as pd
import pytest
from finished import record_llms, small_studies
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, StepPatch
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from cmpta_lib.config import CmptaConfig
from cmpta_lib.data.corpus import Task
from cmpta_lib.figures import curves as plots
from cmpta_lib.figures import style
from cmpta_lib.figures.answers import (
    ClipAnswer,
    calibration_error,
    calibration_figure,
    clip_figure,
    confusion_figure,
    reliability,
)
from cmpta_lib.figures.style import MISSING_GLYPH, PAPER, SMALLEST_PT, figure_style, lay_out, printable, rendered, wrap

FOOTER = "Data: embedded SIMS (generated); backbone: tiny; seeds: 1111; profile: demo."
CLASSES = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
SIMS, MELD = Task("regression", "zh"), Task("classification", "en", CLASSES)


def model(task=SIMS, text="说实话，这也太好了吧", label=-0.4, backbone="tiny", llm_dim=192, **settings) -> plots.ShownModel:
    config = CmptaConfig.model_validate({"dim": 64, "num_heads": 4} | settings)
    return plots.ShownModel(config, task, backbone, llm_dim, 25, 177, text, label)


def english(**settings) -> plots.ShownModel:
    given = {"text": "Oh great, it costs $5 and another lovely meeting about nothing", "label": 1, "dim": 1024, "num_heads": 8}
    return model(**{"task": MELD, "backbone": "qwen1.5-1.8b", "llm_dim": 2048} | given | settings)


MODELS = {
    "maximum of eight": lambda: model(summary="max", num_pseudo_tokens=8),
    "after the text": lambda: english(alignment="lstm", prompt={"pseudo_token_position": "after_text"}),
    "a projection per pair": lambda: english(projections="per_pair", num_pseudo_tokens=4, token_count_rule="repeat"),
    "pooled, English": lambda: english(fusion="pooled", num_pseudo_tokens=24),
    "many": lambda: english(num_pseudo_tokens=30, token_count_rule="repeat"),
    "one, of a long name": lambda: model(num_pseudo_tokens=1, num_heads=1, backbone="some-company/" + "a-long-name-" * 9),
}


def panel(modality="vision", tokens="说实话，$5_也太好了", frames=20, **changes) -> plots.AttentionPanel:
    weights = np.random.default_rng(0).dirichlet(np.ones(frames), len(tokens))
    given = {"weights": weights, "query_labels": list(tokens), "modality": modality, "padded_length": frames}
    return plots.AttentionPanel(**(given | changes))


def attention(**changes):
    pair = [panel("vision", padded_length=30, hop_ms=40, cue_window=(5, 9)), panel("audio", frames=500, hop_ms=10)]
    return plots.attention_figure(pair, title="注意力 attention", footer=FOOTER, **changes)


def case_study(**changes):
    given = {"text": "这也太好了吧", "true_label": "-0.6", "text_only_answer": "+0.8", "cmpta_answer": "-0.6"}
    return plots.case_study_figure([panel(), panel("audio")], footer=FOOTER, **(given | changes))


def history(best_epoch=3):
    epochs = np.arange(1, 7)
    scores = 0.3 + 0.1 * np.abs(epochs - best_epoch)
    return pd.DataFrame(
        {"epoch": epochs, "train_loss": 1 / epochs, "valid_mae": scores, "learning_rate": 5e-4 / epochs}
    )


def clips(labels):
    lengths = {"audio_length": range(len(labels)), "vision_length": range(len(labels))}
    return pd.DataFrame({"text": ["好" * (n % 9 + 1) for n in range(len(labels))], "label": labels, **lengths})


def corpus(kind="classification", labels=(0, 1, 1, 2), **changes):
    splits = {name: clips(list(labels)) for name in ("train", "valid", "test")}
    return plots.corpus_figure(splits, kind, footer=FOOTER, **changes)


def scores(*metrics, groups=("in the paper", "reference"), **changes):
    rows = [
        (group, name, 0.3 + 0.1 * k, 0.25 + 0.1 * k, 0.35 + 0.1 * k, [0.28 + 0.1 * k, 0.32 + 0.1 * k], paper, name == "CMPTA")
        for k, group in enumerate(groups)
        for name, paper in (("a name of two words", np.nan), ("CMPTA" if k == 0 else "linear", 0.308))
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["group", "method", "mean", "low", "high", "seeds", "paper", "is_ours"])
    given = {"best": {"Bayes-optimal from words": dict.fromkeys(metrics, 0.5), "Bayes-optimal": dict.fromkeys(metrics, 0.2)}}
    return plots.scores_figure(dict.fromkeys(metrics, frame), **({"title": "Scores", "footer": FOOTER} | given | changes))


def ablation():
    return scores("mae", groups=("Temporal alignment", "Cross-modal pseudo-token adapter"))


def confusion(classes=CLASSES, methods=("CMPTA", "text only", "MSE-Adapter", "a method that has a rather long name")):
    maps = {name: np.random.default_rng(0).dirichlet(np.full(len(classes), 0.3), len(classes)) for name in methods}
    maps[methods[0]] = np.eye(len(classes))  # "100" is the widest number
    return confusion_figure(maps, classes, title="Answers by true class", footer=FOOTER)


def calibration(methods=5):
    random, answers = np.random.default_rng(0), {}
    for k in range(methods):
        sure = random.beta(1 + k, 1, 200)
        answers[f"method {k}"] = (sure, random.random(200) < sure)
    return calibration_figure(answers, title="Calibration", footer=FOOTER)


def clip(**changes):
    says = {"CMPTA": 0.4, "text only": 0.2}
    scores = [f"{k / 5 - 1:+.1f}" for k in range(11)]
    answers = {name: ClipAnswer(f"+{high}", scores, np.full(11, high / 4), 7, 2) for name, high in says.items()}
    return clip_figure([panel(), panel("audio")], text="这也太好了吧", label="-0.6", answers=answers, footer=FOOTER, **changes)


def judged(confidence, correct):
    return calibration_figure({"LMF": (np.array(confidence), np.array(correct))})


def training():
    given = {"1111": history(), "2222": history(5)}
    known = {"luck": 0.01, "possible": 0.2}
    return plots.training_curves(given, "mae", title="Training CMPTA on embedded SIMS", footer=FOOTER, **known)


DOUBLE, SINGLE = 2070, 990  # 6.9 and 3.3 inches at 300 dpi
FIGURES = {
    "architecture": (lambda: plots.architecture_figure(model(), footer=FOOTER), DOUBLE),
    "adapter": (lambda: plots.adapter_figure(model(), footer=FOOTER), DOUBLE),
    "attention": (attention, DOUBLE),
    "attention_single": (lambda: plots.attention_figure([panel()], footer=FOOTER), SINGLE),
    "case_study": (case_study, DOUBLE),
    "training": (training, DOUBLE),
    "classes": (lambda: corpus(label_names=("neutral", "joy", "厌恶")), DOUBLE),
    "scores": (lambda: corpus("regression", (-1.0, -0.2, 0.0, 0.4)), DOUBLE),
    "ablation": (ablation, SINGLE),
    "scores of two": (lambda: scores("mae", "corr"), DOUBLE),
    "confusion": (confusion, DOUBLE),
    "calibration": (calibration, SINGLE),
    "calibration of nine": (lambda: calibration(9), SINGLE),
}
DIAGRAMS_OF_PAPER = ("architecture", "adapter")
DIAGRAMS = {
    f"{kind}: {name}": (lambda draw=draw, make=make: draw(make(), footer=FOOTER))
    for name, make in MODELS.items()
    for kind, draw in (("architecture", plots.architecture_figure), ("adapter", plots.adapter_figure))
}


@cache
def texts_of(name: str) -> tuple[Figure, list[tuple[Text, Bbox]]]:
    figure = (FIGURES[name][0] if name in FIGURES else DIAGRAMS[name])()
    return figure, drawn_texts(figure)


def drawn_texts(figure: Figure) -> list[tuple[Text, Bbox]]:
    """Every text that is drawn, with the pixels that it takes."""
    lay_out(figure)
    found: list[tuple[Text, Bbox]] = []
    draw = Text.draw

    def noted(text, renderer, *more, **options):
        if text.get_visible() and text.get_text().strip():
            found.append((text, text.get_window_extent(renderer)))
        draw(text, renderer, *more, **options)

    with figure_style(), patch.object(Text, "draw", noted):
        figure.draw_without_rendering()
    return found


def words(figure: Figure) -> str:
    return " | ".join(text.get_text().replace("\n", " ") for text in figure.axes[0].texts)


@pytest.fixture(autouse=True)
def nothing_is_drawn_as_a_box(caplog):
    """matplotlib reports a missing glyph by a warning, and inside formulas by a log record."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert not [
        r for r in caplog.get_records("call") if r.name.startswith("matplotlib") and r.levelno >= logging.WARNING
    ]


def test_scores_are_drawn_in_their_owners_range():
    axes = corpus("regression", (-1.0, 0.0, 1.0), score_range=(1, 5)).axes[0]
    middles = [bar.get_x() + bar.get_width() / 2 for bar in axes.patches if bar.get_height() > 0]
    np.testing.assert_allclose(sorted(middles), [1] * 3 + [3] * 3 + [5] * 3, atol=0.2)


def test_chinese_is_embedded_as_truetype_and_drawn_from_our_font(tmp_path):
    pdf = plots.save_figure(attention(), tmp_path, "attention")[0].read_bytes()
    assert b"NotoSansSCSubset" in pdf
    assert b"/Type3" not in pdf and b"/FontFile3" not in pdf


def test_a_character_without_glyph_is_replaced_and_logged(caplog, tmp_path):
    rare = "\U00020000"
    assert printable(f"好{rare}\n吧") == f"好{MISSING_GLYPH} 吧"
    assert "U+20000" in caplog.text
    plots.save_figure(plots.attention_figure([panel(tokens=f"好{rare}")]), tmp_path, "rare")


def test_wrapping_breaks_chinese_anywhere_and_keeps_closing_marks_on_the_line():
    assert wrap("one two three", 0.5, 8) == "one two\nthree"
    lines = wrap("这也太好了吧。" * 5, 1.0, 8).split("\n")
    assert "".join(lines) == "这也太好了吧。" * 5
    assert len(lines) > 1 and not any(line.startswith("。") for line in lines)


def test_padding_cue_and_seconds_are_where_they_belong():
    def marked(figure, gid):
        figure.draw_without_rendering()
        return [patch.get_window_extent().transformed(axes.transData.inverted()) for axes in figure.axes
                for patch in axes.patches if patch.get_gid() == gid]  # fmt: skip

    figure = plots.attention_figure([panel(padded_length=30, cue_window=(5, 9), hop_ms=40)])
    assert [(box.x0, box.x1) for box in marked(figure, "padding")] == [pytest.approx((19.5, 29.5))] * 2  # map and mean
    assert [(box.x0, box.x1) for box in marked(figure, "cue")] == [pytest.approx((4.5, 8.5))] * 2
    (seconds,) = figure.axes[1].child_axes
    assert seconds.get_xlim() == pytest.approx((-0.5 * 0.04, 29.5 * 0.04))
    unknown = plots.attention_figure([panel()])
    assert not marked(unknown, "padding") and not marked(unknown, "cue") and not unknown.axes[1].child_axes


@pytest.mark.parametrize("frames", [20, 1000])
def test_the_map_keeps_every_frame_and_the_mean_above_it(frames):
    given = panel(frames=frames)
    figure = plots.attention_figure([given])
    drawn = figure.axes[0].images[0].get_array()
    cells, group = drawn.shape[1], -(-frames // 400)
    widths = [group] * (cells - 1) + [frames - group * (cells - 1)]
    np.testing.assert_allclose((drawn * widths).sum(1), 100)  # weights of a row sum to 1 however they are binned
    mean = next(patch for patch in figure.axes[1].patches if isinstance(patch, StepPatch))
    np.testing.assert_allclose(mean.get_data().values, given.weights.mean(0) * 100)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: panel(weights=np.ones(4)), r"\(text tokens, frames\), .* got 'vision' weights of shape \(4,\)"),
        (lambda: panel(weights=np.zeros((0, 4))), r"shape \(0, 4\)"),
        (lambda: panel(query_labels=["a"]), r"got .* \(11, 20\) and 1 labels"),
        (lambda: panel(weights=np.ones((11, 20))), "expected rows that are >= 0 and sum to 1"),
        (lambda: panel(padded_length=19), "expected at least 20 frames, .* got padded_length=19"),
        (lambda: panel(hop_ms=0.0), "a positive hop .* hop_ms=0.0"),
        (lambda: panel(cue_window=(15, 21)), r"a cue within, got .* cue_window=\(15, 21\)"),
        (lambda: panel(modality="text"), "expected vision or audio .* got 'text'"),
        (lambda: plots.attention_figure([]), "no attention panels"),
        (lambda: plots.training_curves({}, "mae"), "no training histories"),
        (lambda: plots.training_curves({"1111": history()}, "corr"), "history of '1111' has no columns valid_corr"),
        (lambda: plots.corpus_figure({"train": pd.DataFrame({"text": []})}, "regression"), "'train' has no columns .*label"),
        (lambda: corpus(label_names=("neutral",)), "do not all have one of the 1 names"),
        (lambda: calibration_figure({}), "no method was given"),
        (lambda: plots.scores_figure({"mae": pd.DataFrame({"group": []})}), "table of mae has no columns method, mean"),
        (lambda: judged([0.2, 1.2], [True, False]), r"expected a confidence in \[0, 1\]"),
        (lambda: judged([np.nan], [True]), "leave out answers that have none"),
        (lambda: judged([0.2], [True, False]), r"got shapes \(1,\) and \(2,\)"),
        (lambda: judged([0.2], [1]), "expected .* a bool verdict .* of int64"),
    ],
)
def test_input_that_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


@pytest.mark.parametrize(
    ("answer", "label", "shown"),
    [("joy", "joy", "joy  ✓"), ("joy", "anger", "joy  ✗"), ("+0.8", "-0.6", "+0.8  (off by 1.4)")],
)
def test_answers_are_judged(answer, label, shown):
    figure = case_study(true_label=label, text_only_answer=answer)
    assert f"text only: {shown}" in [text.get_text() for axes in figure.axes for text in axes.texts]

def test_data_is_no_formula_and_powers_of_ten_are():
    figure = plots.training_curves({"$a$": history(3), "b": history(3)}, "mae", title="$x$ $y$")
    rendered(figure, "png")
    signs = {one: one.get_text() for one in figure.findobj(Text) if "$" in one.get_text() and one.get_visible()}
    assert {"$a$", "$x$ $y$"} < set(signs.values())
    assert all(text.get_parse_math() == ("mathdefault" in said) for text, said in signs.items())


def test_the_best_epoch_is_the_lowest_mae_and_epochs_are_whole_numbers():
    figure = plots.training_curves({"1111": history(3), "2222": history(5)}, "mae")
    assert [line.get_xdata().item() for line in figure.axes[1].lines if line.get_gid() == "best"] == [3, 5]
    short = plots.training_curves({"1111": history(1)[:2]}, "mae")
    assert all(float(tick).is_integer() for axes in short.axes for tick in axes.get_xticks())


def test_curves_show_luck_and_the_best_possible_and_no_line_hides_another():
    figure = plots.training_curves({"1111": history(3), "2222": history(3)}, "mae", luck=0.05, possible=0.2)
    _, score, rate = figure.axes
    low, high = score.get_ylim()
    (band,) = score.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.2, 0.4)), "twice the luck around the best"
    assert low < 0.2 and high > 0.4
    assert [text.get_text() for text in score.get_legend().get_texts()] == [
        "best epoch", "best ± 2 standard errors", "best possible",
    ]  # fmt: skip
    outer, inner = (line.get_markersize() for line in score.lines if line.get_gid() == "best")
    assert outer > inner and rate.lines[0].get_linewidth() > rate.lines[1].get_linewidth()
    assert "too small to tell" not in figure.drawn and "overfitting" in figure.drawn
    plain = plots.training_curves({"1111": history(3)}, "mae")
    assert not plain.axes[1].patches and "overfitting" not in plain.drawn, "nothing is claimed where luck is unknown"


def test_a_picture_of_scores_marks_ours_and_shows_what_the_table_holds():
    figure = scores("mae", "corr")
    panel, other, key = figure.axes
    names = {tick.get_text(): tick for tick in panel.get_yticklabels()}
    assert [name for name, tick in names.items() if tick.get_fontweight() == "bold"] == ["CMPTA"]
    assert [text.get_text() for text in panel.texts] == ["in the paper", "reference"]
    (ours,) = (tick.get_position()[1] for name, tick in names.items() if name == "CMPTA")
    dots = {tuple(line.get_ydata()): line.get_xdata() for line in panel.lines if line.get_label() == "single seed"}
    (near,) = (at for at in dots if abs(at[0] - ours) < 0.5)
    assert dots[near] == pytest.approx([0.28, 0.32]), "each seed, below its mean"
    assert {line.get_xdata()[0] for line in panel.lines if "Bayes" in line.get_label()} == {0.5, 0.2}
    said = [text.get_text() for text in key.get_legend().get_texts()]
    assert said == ["mean, 95 % interval over clips", "single seed", "paper", "Bayes-optimal from words", "Bayes-optimal"]
    assert not other.yaxis.get_tick_params()["labelleft"], "the rows are named once"
    own = scores("mae", best=None, printed="nobody's")
    for line in own.axes[0].lines:
        assert "Bayes" not in line.get_label()


def test_the_caller_keeps_their_own_style():
    before = matplotlib.rcParams["font.family"]
    attention()
    assert matplotlib.rcParams["font.family"] == before


EVERY = [*FIGURES, *DIAGRAMS]


@pytest.mark.parametrize("name", EVERY)
def test_text_is_legible_and_has_its_place_to_itself(name):
    """Inside the page, over no other text; and what an article cuts off, title and footer, holds nothing of the drawing."""
    figure, found = texts_of(name)
    page, point = figure.bbox, figure.dpi / 72
    bottom, top = figure.foot_in * figure.dpi, page.y1 - figure.head_in * figure.dpi
    (footer,) = (text for text, _ in found if text.get_gid() == "footer")
    assert footer.get_text().replace("\n", " ") == FOOTER
    assert name not in FIGURES or round(300 * figure.get_figwidth()) == FIGURES[name][1]
    assert figure.caption.endswith(FOOTER) and figure.drawn in figure.caption and len(figure.drawn) > 40
    # Boxes hold room for tails and accents that the letters do not have.
    boxes = [(text.get_text(), box.padded(-point * 0.8)) for text, box in found]
    for number, (text, box) in enumerate(found):
        said = text.get_text()
        assert text.get_fontsize() >= SMALLEST_PT, said
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, said
        place = {"title": (top, page.y1), "footer": (0, bottom)}.get(text.get_gid(), (bottom - 1, top + 1))
        assert place[0] <= box.y0 and box.y1 <= place[1], said
        assert not [other for other, its in boxes[:number] if boxes[number][1].overlaps(its)], said


IN_A_COLUMN = {
    **{name: draw for name, (draw, width) in FIGURES.items() if width == DOUBLE and name not in DIAGRAMS_OF_PAPER},
    "confusion of 14": lambda: confusion(methods=[f"method {k}" for k in range(14)]),
    "clip": lambda: clip(),
}


@pytest.mark.parametrize("name", IN_A_COLUMN)
def test_every_wide_figure_is_drawn_again_for_one_column_and_stays_legible(name, tmp_path):
    figure = IN_A_COLUMN[name]()
    column = style.as_column(figure)
    assert column.get_figwidth() == style.SINGLE_COLUMN_IN and 72 * column.get_figheight() <= 700
    assert not column.head_in + column.foot_in, "an article has a caption"
    found = drawn_texts(column)
    # Inside the page, of a size to read, over no other; boxes hold room for tails and accents.
    boxes = [(text.get_text(), box.padded(-0.8 * column.dpi / 72)) for text, box in found]
    for number, (text, box) in enumerate(found):
        assert text.get_fontsize() >= SMALLEST_PT, text.get_text()
        assert column.bbox.padded(1).containsx(box.x0) and column.bbox.padded(1).containsx(box.x1), text.get_text()
        assert column.bbox.padded(1).containsy(box.y0) and column.bbox.padded(1).containsy(box.y1), text.get_text()
        assert not [other for other, its in boxes[:number] if boxes[number][1].overlaps(its)], text.get_text()
    wide = {text.get_text().replace("\n", " ") for text, _ in drawn_texts(figure) if text.get_gid() not in ("title", "footer")}
    said = {text.get_text().replace("\n", " ") for text, _ in found}
    if name not in ("confusion", "confusion of 14", "training"):  # fewer numbers; other ticks
        assert {one for one in wide if one.isalpha()} <= said


def test_what_is_one_column_wide_or_placed_by_hand_has_no_second_form(tmp_path):
    assert style.as_column(ablation()) is None and style.as_column(FIGURES["adapter"][0]()) is None
    assert style.as_column(Figure()) is None and not style.is_column()
    paths = plots.save_figure(attention(), tmp_path, "a")
    assert paths[-1] == tmp_path / PAPER / "a_column.pdf" and paths[-1].read_bytes().startswith(b"%PDF")
    width, _ = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", paths[-1].read_bytes()).groups()
    assert float(width) == pytest.approx(72 * style.SINGLE_COLUMN_IN)


def test_maps_of_many_methods_fit_a_page():
    figure = confusion(methods=[f"method {k}" for k in range(14)])
    assert 72 * figure.get_figheight() <= 640
    lay_out(figure)
    named = [axes for axes in figure.axes if axes.get_visible() and axes.xaxis.get_tick_params()["labeltop"]]
    assert len(named) == 4 and named == figure.axes[:4], "answers are named once, above the first row"
    assert all(axes.texts for axes in figure.axes[:14]), "with their numbers"


@pytest.mark.parametrize("classes", [2, 12, 30])
def test_confusion_maps_stay_legible_with_any_number_of_classes(classes):
    figure = confusion([f"surprise {k}" for k in range(classes)], ("CMPTA", "text only", "a third"))
    lay_out(figure)
    for axes in figure.axes:
        width = axes.get_window_extent().width / classes
        assert all(text.get_window_extent().width < width for text in axes.texts)


def ink(path) -> np.ndarray:
    """Rows of a picture on which anything is drawn."""
    with Image.open(path) as image:
        return np.flatnonzero((np.asarray(image.convert("L")) < 250).any(1))


@pytest.mark.parametrize("name", ["architecture", "attention", "calibration"])
def test_notebook_file_and_article_show_the_same(name, tmp_path):
    draw, width = FIGURES[name]
    figure = draw()
    shown, size = figure._repr_png_()
    paths = plots.save_figure(figure, tmp_path, name)
    places = [f"{name}.pdf", f"{name}.png", f"{PAPER}/{name}.pdf", f"{PAPER}/{name}.txt"]
    places += [f"{PAPER}/{name}_column.pdf"] * (style.as_column(figure) is not None)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == places
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(paths)
    _, png, article, caption, *_ = paths
    assert png.read_bytes() == shown and paths[0].read_bytes() != article.read_bytes()
    bare = io.BytesIO(rendered(figure, "png", bare=True))
    with Image.open(png) as page, Image.open(bare) as part:
        assert page.width == part.width == width and size["width"] * 2 == width
        assert page.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        assert part.height == pytest.approx(page.height - 300 * (figure.head_in + figure.foot_in), abs=1)
        rows = ink(bare)
        assert rows[0] < 50 and part.height - rows[-1] < 80  # no band is left where title and footer were
    assert caption.read_text(encoding="utf-8") == f"{figure.caption}\n"


def test_the_same_figure_gives_the_same_bytes():
    figure = attention()
    first = rendered(figure, "pdf")
    rendered(figure, "pdf", bare=True)  # leaves no trace
    assert rendered(attention(), "pdf") == first == rendered(figure, "pdf")


def test_a_caption_is_title_then_content_then_source_and_an_article_numbers_its_figures_itself():
    figure = attention()
    title, drawn, footer = figure.caption.split("\n")
    assert (title, footer) == ("注意力 attention.", FOOTER)
    assert "Dashed frame: the true cue" in drawn and "Hatched: padding." in drawn
    figure.title = "Figure 3. Attention of the text, test clip test_00012"
    assert figure.caption.startswith("Attention of the text, test clip test_00012.\n")


def test_a_figure_that_fails_leaves_nothing_behind(tmp_path):
    figure = attention()
    figure.axes[0].set_title("$\\nonsense$", parse_math=True)
    with pytest.raises(ValueError):
        plots.save_figure(figure, tmp_path, "broken")
    assert not list(tmp_path.iterdir())


def test_a_figure_of_pyplot_s_is_written_too(tmp_path):
    from matplotlib import pyplot

    figure = pyplot.figure()
    figure.subplots().plot([1, 2])
    assert rendered(figure, "png").startswith(b"\x89PNG")
    assert all(path.exists() for path in plots.save_figure(figure, tmp_path, "mine"))
    assert not pyplot.fignum_exists(figure.number)


@pytest.mark.parametrize(
    ("settings", "said", "unsaid"),
    [
        ({}, "temporal alignment BiLSTM, 2 × 32 (3, 4)", " LSTM"),
        ({"alignment": "lstm"}, " LSTM, 64 (3)", "BiLSTM"),
        ({"alignment": "linear"}, "Linear 177 → 64, LayerNorm (5)", "LSTM"),
        ({}, "one token per ordered pair Y ← X", "mix"),
        ({"num_heads": 1}, "1 head;", "heads"),
        ({"dim": 128}, "$T_v \\times 128$", "× 32"),
        ({"num_pseudo_tokens": 8}, "learned mix 6 → 8", "one token per"),
        ({"num_pseudo_tokens": 8, "token_count_rule": "repeat"}, "pairs repeated 6 → 8", "mix"),
        ({"fusion": "pooled"}, "means over 3 equal spans of its frames", "heads"),
        ({"fusion": "pooled"}, "no cross-modal attention", "text embeddings"),
        ({"prompt": {"answer_decimals": 2}}, "answer “-0.40”", "“-0.4”"),
        ({"prompt": {"answer_sign": "negative"}, "label": 0.6}, "answer “0.6”", "+0.6”"),
        ({"llm_dim": 2048, "backbone": "qwen-1.8b"}, "LLM: qwen-1.8b, width 2048", "192"),
    ],
)
def test_figure_1_follows_the_settings(settings, said, unsaid):
    shown = words(plots.architecture_figure(model(**settings)))
    assert said in shown and unsaid not in shown


@pytest.mark.parametrize(
    ("settings", "said", "unsaid"),
    [
        ({}, "mean over the real positions of Y", "maximum"),
        ({"summary": "max"}, "maximum over the real positions of Y", "mean"),
        ({}, "projections per modality", "per pair"),
        ({}, "4 heads, d = 16", "× 2"),
        ({"projections": "per_pair"}, "$Q_T$ × 2 | $K_T V_T$ × 2", "per modality"),
        ({}, "$Q_T$ | $K_T, V_T$ |", "Q KV"),
        ({"llm_dim": 2048}, "Linear  64 → 2048", "192"),
        ({"num_pseudo_tokens": 8}, "learned mix 6 → 8", "t₁"),
        ({"num_pseudo_tokens": 4, "token_count_rule": "repeat"}, "the first 4 of 6 pairs", "a₁"),
        ({"num_pseudo_tokens": 8, "token_count_rule": "repeat"}, "pairs repeated 6 → 8", "mix"),
        ({"fusion": "pooled"}, "means over 3 equal spans of its frames", "softmax"),
        ({"fusion": "pooled"}, "v₁ | v₂ | v₃", "t₁"),
        ({"fusion": "pooled", "num_pseudo_tokens": 2}, "mean over its frames", "v₂"),
        ({"alignment": "lstm"}, "$T_a \\times 64$", "BiLSTM"),
    ],
)
def test_figure_2_follows_the_settings(settings, said, unsaid):
    shown = words(plots.adapter_figure(model(**settings)))
    assert said in shown and unsaid not in shown


def order(shown) -> list[str]:
    """What the LLM reads, from left to right."""
    axes = plots.architecture_figure(shown).axes[0]
    row = [text for text in axes.texts if abs(text.get_position()[1] - 2.94) < 0.01]
    return [text.get_text() for text in sorted(row, key=lambda text: text.get_position()[0])]


def test_figure_1_reads_as_the_llm_does():
    pairs = ["t₁", "t₂", "v₁", "v₂", "a₁", "a₂"]
    assert order(model()) == ["<多模态>", *pairs, "text", "</多模态>", "prompt", "answer so far"]
    after = english(prompt={"pseudo_token_position": "after_text"})
    assert order(after) == ["<Multimodal>", "text", *pairs, "</Multimodal>", "prompt", "answer so far"]
    assert order(model(num_pseudo_tokens=8))[1:9] == [str(n) for n in range(1, 9)]
    assert order(model(num_pseudo_tokens=30))[1:13] == [*map(str, range(1, 11)), "…", "30"]
    assert order(model(num_pseudo_tokens=8, token_count_rule="repeat"))[1:9] == [*pairs, "t₁", "t₂"]
    assert order(model(fusion="pooled", num_pseudo_tokens=4))[1:5] == ["v₁", "v₂", "a₁", "a₂"]


def test_figure_1_speaks_the_language_of_its_corpus():
    shown = words(plots.architecture_figure(english(label=4)))
    assert "text “Oh great, it costs \\$5 and…”" in shown
    assert "The emotion is”" in shown and "answer “4” joy" in shown
    chinese = words(plots.architecture_figure(model())).replace(" ", "")
    assert "说实话，这也太好了吧" in chinese and "响应：情感为”" in chinese
    many = Task("classification", "en", tuple(f"class {k}" for k in range(12)))
    assert "answer “03” class 3" in words(plots.architecture_figure(english(task=many, label=3))), "padded as the LLM writes it"


@pytest.mark.parametrize("name", DIAGRAMS)
def test_every_box_holds_its_words(name):
    figure, found = texts_of(name)
    boxes = [patch.get_window_extent() for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch)]
    for text, drawn in found:
        middle = (drawn.x0 + drawn.x1) / 2, (drawn.y0 + drawn.y1) / 2
        around = [box for box in boxes if box.contains(*middle)]
        assert not around or any(box.x0 <= drawn.x0 and drawn.x1 <= box.x1 for box in around), text.get_text()


@pytest.mark.parametrize("name", MODELS)
def test_captions_say_what_is_drawn(name):
    shown = MODELS[name]()
    first, second = plots.architecture_figure(shown).drawn, plots.adapter_figure(shown).drawn
    assert f"{shown.settings.num_pseudo_tokens} pseudo token" in first
    assert ("attention" in second) and (shown.settings.fusion == "pooled") == ("switched off" in second)
    if shown.token_rule:
        assert shown.token_rule in second


def test_a_study_s_model_is_what_its_runs_train(tmp_path, monkeypatch, llm):
    """Sizes come from the model and the corpus that are there."""
    from cmpta_lib.runs import load as trained

    study = small_studies(record_llms(tmp_path), monkeypatch)(smoke=True, changes={"method.summary": "max"})
    monkeypatch.setattr(trained, "load_llm", lambda caches, config: llm)
    shown = plots.ShownModel.of(study, "meld")
    train = study.corpus("meld").splits["train"]
    assert shown.settings == study.config("meld").method and shown.settings.summary == "max"
    assert (shown.audio_features, shown.vision_features) == (train.audio_dim, train.vision_dim)
    assert (shown.llm_dim, shown.backbone) == (llm.dim, study.llm.name)
    assert (shown.text, shown.label) == (train[0].text, train[0].label)
    assert shown.task.labels == MELD.labels and shown.answer.endswith(MELD.labels[int(train[0].label)])


def drawn_answers(n=500, sharpness=2.0, seed=0):
    rng = np.random.default_rng(seed)
    confidence = rng.beta(sharpness, 1.5, n)
    return confidence, rng.random(n) < confidence


def test_bins_hold_equally_many_answers_and_the_error_is_their_mean_gap():
    confidence = np.array([0.1, 0.2, 0.3, 0.4, 0.9, 1.0])
    curve = reliability(confidence, np.array([False, False, True, False, True, True]), bins=3)
    assert curve["count"].tolist() == [2, 2, 2]
    assert curve["confidence"].to_numpy() == pytest.approx([0.15, 0.35, 0.95])
    assert curve["correct"].to_numpy() == pytest.approx([0, 0.5, 1])
    assert calibration_error(curve) == pytest.approx((0.15 + 0.15 + 0.05) / 3)


def test_equal_confidences_share_a_bin_in_any_order():
    confidence, correct = np.array([0.5] * 7 + [0.9]), np.array([True] * 3 + [False] * 5)
    curve = reliability(confidence, correct, bins=4)
    assert reliability(confidence[::-1], correct[::-1], bins=4).equals(curve)
    assert curve["count"].tolist() == [7, 1]
    assert reliability(np.full(10, 0.3), np.arange(10) < 3)["correct"].tolist() == [0.3]
    assert calibration_error(reliability(np.full(10, 0.3), np.arange(10) < 3)) == pytest.approx(0)


@pytest.mark.parametrize("n", [1, 7, 10, 1034])
def test_every_answer_is_in_one_bin(n):
    curve = reliability(*drawn_answers(n))
    assert curve["count"].sum() == n and len(curve) == min(n, 10)
    assert curve["count"].max() - curve["count"].min() <= 1


def test_the_legend_names_each_method_with_its_error():
    given = {"CMPTA": drawn_answers(), "text only": (np.full(100, 0.8), np.arange(100) < 60)}
    said = [text.get_text() for text in calibration_figure(given).axes[2].get_legend().get_texts()]
    error = calibration_error(reliability(*drawn_answers()))
    assert said == ["as sure as right", f"CMPTA, ECE {100 * error:.1f} %", "text only, ECE 20.0 %"]


def test_the_histogram_counts_every_answer_once():
    figure = calibration_figure({"CMPTA": (np.array([0.0, 0.5, 1.0, 1.0]), np.array([False, True, True, True]))})
    (steps,) = figure.axes[1].patches
    values, edges, _ = steps.get_data()
    assert values.sum() == pytest.approx(100) and values[-1] == 50
    assert edges[0] == 0 and edges[-1] == 100


def test_a_saved_figure_is_shown_as_it_was_saved_until_it_is_changed(tmp_path: Path):
    with style.figure_style():
        figure = style.new_figure(style.SINGLE_COLUMN_IN, 1.0)
        axes = figure.subplots()
    style.save_figure(figure, tmp_path, "one")
    assert figure._repr_png_()[0] == (tmp_path / "one.png").read_bytes() and not figure.stale
    axes.set_title("changed")
    assert figure._repr_png_()[0] != (tmp_path / "one.png").read_bytes()
