import logging
import warnings

import numpy as np
import pandas as pd
import pytest
from drawn import attention, case_study, corpus, history, panel
from matplotlib.patches import StepPatch

from cmpta_lib.figures import curves as plots
from cmpta_lib.figures.style import MISSING_GLYPH, printable, wrap


@pytest.fixture(autouse=True)
def nothing_is_drawn_as_a_box(caplog):
    """matplotlib reports a missing glyph by a warning, and inside formulas by a log record."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert not [
        r for r in caplog.get_records("call") if r.name.startswith("matplotlib") and r.levelno >= logging.WARNING
    ]


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


def marked(figure, gid):
    return [patch.get_window_extent().transformed(axes.transData.inverted()) for axes in figure.axes
            for patch in axes.patches if patch.get_gid() == gid]  # fmt: skip


def test_padding_and_cue_are_marked_where_they_are():
    figure = plots.attention_figure([panel(padded_length=30, cue_window=(5, 9))])
    figure.draw_without_rendering()
    paddings, cues = marked(figure, "padding"), marked(figure, "cue")
    assert [(box.x0, box.x1) for box in paddings] == [pytest.approx((19.5, 29.5))] * 2  # on the map and on its mean
    assert [(box.x0, box.x1) for box in cues] == [pytest.approx((4.5, 8.5))] * 2


def test_nothing_is_marked_where_nothing_is_known():
    figure = plots.attention_figure([panel()])
    assert not marked(figure, "padding") and not marked(figure, "cue")


@pytest.mark.parametrize("frames", [20, 1000])
def test_the_map_keeps_every_frame_and_the_mean_above_it(frames):
    given = panel(frames=frames)
    figure = plots.attention_figure([given])
    drawn = figure.axes[0].images[0].get_array()
    assert drawn.shape[1] <= 400
    np.testing.assert_allclose(drawn.mean(1), 100 / frames)  # weights of a row sum to 1 however they are binned
    mean = next(patch for patch in figure.axes[1].patches if isinstance(patch, StepPatch))
    np.testing.assert_allclose(mean.get_data().values, given.weights.mean(0) * 100)


def test_seconds_follow_the_hop():
    figure = plots.attention_figure([panel(hop_ms=40)])
    figure.draw_without_rendering()
    (seconds,) = figure.axes[1].child_axes
    assert seconds.get_xlim() == pytest.approx((-0.5 * 0.04, 19.5 * 0.04))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": np.ones(4)}, r"must be \(text tokens, frames\) and not empty, got shape \(4,\)"),
        ({"weights": np.zeros((0, 4))}, "not empty"),
        ({"query_labels": ["a"]}, "11 rows of weights but 1 query labels"),
        ({"weights": np.ones((11, 20))}, "rows sum to 1, not 20 to 20"),
        ({"padded_length": 19}, "padded_length=19 is below the 20 real frames"),
        ({"hop_ms": 0.0}, "hop_ms=0.0 must be positive"),
        ({"cue_window": (15, 21)}, r"cue_window=\(15, 21\) is not inside the 20 real frames"),
        ({"modality": "text"}, "one of vision, audio, got 'text'"),
    ],
)
def test_a_panel_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        panel(**changes)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.attention_figure([]), "no attention panels"),
        (lambda: plots.training_curves({}, "mae"), "no training histories"),
        (lambda: plots.training_curves({"1111": history()}, "corr"), "history of '1111' has no columns valid_corr"),
        (lambda: plots.corpus_figure({"train": pd.DataFrame({"text": []})}, "regression"), "'train' has no columns .*label"),
        (lambda: corpus(label_names=("neutral",)), "do not all have one of the 1 names"),
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
    assert shown in [text.get_text() for text in figure.axes[0].texts]


def test_the_best_epoch_is_the_lowest_mae():
    figure = plots.training_curves({"1111": history(3), "2222": history(5)}, "mae")
    best = [line.get_xdata().item() for line in figure.axes[1].lines if line.get_gid() == "best"]
    assert best == [3, 5]


def test_the_caller_keeps_their_own_style():
    import matplotlib

    before = matplotlib.rcParams["font.family"]
    attention()
    assert matplotlib.rcParams["font.family"] == before


def test_epochs_are_ticked_in_whole_numbers():
    columns = {"train_loss": [1.0, 0.5], "valid_mae": [0.4, 0.3], "learning_rate": [1e-3, 0.0]}
    figure = plots.training_curves({"1111": pd.DataFrame({"epoch": [1, 2], **columns})}, "mae")
    for axes in figure.axes:
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
