import numpy as np
import pytest

from cmpta_lib.figures.answers import calibration_error, calibration_figure, reliability


def answers(n=500, sharpness=2.0, seed=0):
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
    curve = reliability(*answers(n))
    assert curve["count"].sum() == n and len(curve) == min(n, 10)
    assert curve["count"].max() - curve["count"].min() <= 1


def test_the_legend_names_each_method_with_its_error():
    given = {"CMPTA": answers(), "text only": (np.full(100, 0.8), np.arange(100) < 60)}
    figure = calibration_figure(given)
    legend = figure.axes[2].get_legend()
    said = [text.get_text() for text in legend.get_texts()]
    assert said[0] == "as sure as right" and said[2] == "text only, ECE 20.0 %"
    assert said[1] == f"CMPTA, ECE {100 * calibration_error(reliability(*answers())):.1f} %"


def test_the_histogram_counts_every_answer_once():
    figure = calibration_figure({"CMPTA": (np.array([0.0, 0.5, 1.0, 1.0]), np.array([False, True, True, True]))})
    (steps,) = figure.axes[1].patches
    values, edges, _ = steps.get_data()
    assert values.sum() == pytest.approx(100) and values[-1] == 50
    assert edges[0] == 0 and edges[-1] == 100


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no method was given"),
        ({"LMF": (np.array([0.2, 1.2]), np.array([True, False]))}, r"'LMF': a confidence is not in \[0, 1\]"),
        ({"LMF": (np.array([np.nan]), np.array([True]))}, "leave out answers that have none"),
        ({"LMF": (np.array([0.2]), np.array([True, False]))}, r"'LMF': .* got shapes \(1,\) and \(2,\)"),
        ({"LMF": (np.array([0.2]), np.array([1]))}, "'LMF': expected bool verdicts"),
    ],
)
def test_confidences_that_cannot_be_drawn_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        calibration_figure(given)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_key_and_footer_do_not_meet(count):
    figure = calibration_figure({f"method {k}": answers(seed=k) for k in range(count)}, title="Title", footer="Data " * 30)
    for _ in range(2):
        figure.draw_without_rendering()
    footer = next(text for text in figure.texts if text.get_gid() == "footer").get_window_extent()
    key, axis = figure.axes[2].get_legend().get_window_extent(), figure.axes[1].get_tightbbox()
    assert footer.y1 <= key.y0 and key.y1 <= axis.y0 and figure.bbox.x0 <= key.x0 and key.x1 <= figure.bbox.x1
