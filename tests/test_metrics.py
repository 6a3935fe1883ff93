import numpy as np
import pytest
from sklearn.metrics import f1_score

from cmpta_lib.metrics import (
    CORR,
    MAE,
    METRICS,
    TABLED,
    UNPARSABLE,
    WF1,
    classification_metrics,
    headline,
    regression_metrics,
)
from cmpta_lib.paper import MELD_LABELS

SIMS_TRUTH = [-1, -0.8, -0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6, 0.8, 1, 0, -0.2, 0.4]
SIMS_PREDICTION = [-0.9, -0.7, -0.1, -0.4, 0, 0.1, 0.1, 0.5, -0.2, 0.7, 1.4, -0.1, 0.2, 0.3]


def test_sims_golden_values():
    # From running MMSA's utils/metricsTop.py (commit a94e65d) on these rows in float32; six printed digits.
    golden = {
        "acc2": 0.785714,
        "f1_weighted": 0.786813,
        "acc2_weak": 0.750000,
        "mae": 0.192857,
        "corr": 0.864245,
        "acc3": 0.642857,
        "acc5": 0.571429,
        "r2": 0.745494,
    }
    ours = regression_metrics(SIMS_TRUTH, SIMS_PREDICTION)
    assert {name: ours[name] for name in golden} == pytest.approx(golden, abs=1e-6)
    assert ours["corr_defined"] == 1 and ours["acc2_weak_count"] == 8


def test_meld_golden_values():
    # From scikit-learn as MSE-Adapter calls it; the last prediction was 9 there, outside the classes: unparsable here.
    ours = classification_metrics([0, 1, 1, 4, 6, 5, 3, 2], [0, 0, 1, 4, 6, 0, 3, UNPARSABLE], MELD_LABELS)
    assert ours["accuracy"] == 0.625
    assert ours["f1_weighted"] == pytest.approx(0.604167, abs=1e-6)
    assert ours["unparsable_count"] == 1
    assert ours["f1_neutral"] == pytest.approx(0.5) and ours["f1_fear"] == 0 and ours["f1_sadness"] == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("edge", [-0.7, -0.1, 0.0, 0.1, 0.7])
def test_a_score_on_an_edge_belongs_to_the_lower_bin_in_any_dtype(edge, dtype):
    truth = np.array([edge, 1.0], dtype=dtype)
    same_bin = regression_metrics(truth, [edge - 0.05, 1.0])
    next_bin = regression_metrics(truth, [edge + 0.05, 1.0])
    metric = "acc2" if edge == 0 else "acc5"
    assert same_bin[metric] == 1
    assert next_bin[metric] == 0.5


def test_weak_samples_include_four_tenths_in_float64_too():
    assert regression_metrics(np.array([0.4, -0.4, 0.6]), [0.1, 0.1, 0.1])["acc2_weak_count"] == 2


def test_both_sides_are_clipped():
    assert regression_metrics([-1, 1, 0], [-3, 9, 0])["mae"] == 0
    assert regression_metrics([-3, 9, 0], [-1, 1, 0])["mae"] == 0


@pytest.mark.parametrize("prediction", [[0.2, 0.2, 0.2], [5.0, 7.0, 9.0]], ids=["constant", "constant once clipped"])
def test_a_constant_prediction_has_corr_zero_and_a_flag(prediction):
    ours = regression_metrics([-0.5, 0.6, 1.0], prediction)
    assert (ours["corr"], ours["corr_defined"]) == (0, 0)
    assert all(np.isfinite(value) for value in ours.values())


def test_no_weak_sample_gives_a_count_of_zero_instead_of_nan():
    ours = regression_metrics([-1, 1], [-1, 1])
    assert (ours["acc2_weak"], ours["acc2_weak_count"]) == (0, 0)


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        ([0.1, 0.2], [0.1, float("nan")], r"prediction\[1\] is nan"),
        ([float("inf"), 0.2], [0.1, 0.2], r"truth\[0\] is inf"),
        ([0.1, 0.2], [0.1], r"\(2,\) and \(1,\)"),
        ([0.1], [0.1], "at least 2 samples, got 1"),
    ],
)
def test_regression_refuses_bad_input(truth, prediction, message):
    with pytest.raises(ValueError, match=message):
        regression_metrics(truth, prediction)


def test_weighted_f1_is_eq_11_written_out():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 7, 300), rng.integers(-1, 7, 300)
    ours = classification_metrics(truth, prediction, MELD_LABELS)
    by_hand = 0.0
    for index, label in enumerate(MELD_LABELS):
        hits = ((truth == index) & (prediction == index)).sum()
        f1 = 2 * hits / ((truth == index).sum() + (prediction == index).sum())
        assert ours[f"f1_{label}"] == pytest.approx(f1)
        by_hand += f1 * (truth == index).mean()
    assert ours["f1_weighted"] == pytest.approx(by_hand)


def test_an_unparsable_answer_is_never_better_than_a_wrong_class_elsewhere():
    truth = [0, 0, 1, 1]
    unparsable = classification_metrics(truth, [0, UNPARSABLE, 1, 1], ["a", "b", "c"])
    wrong = classification_metrics(truth, [0, 2, 1, 1], ["a", "b", "c"])
    assert unparsable["f1_weighted"] == wrong["f1_weighted"] == f1_score(truth, [0, 2, 1, 1], average="weighted")
    assert unparsable["accuracy"] == wrong["accuracy"] == 0.75


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        ([0, 1], [0, 2], "prediction must be at least -1 and below 2"),
        ([0, -1], [0, 1], "truth must be at least 0"),
        ([0, 1], [0, float("nan")], "whole class indices"),
        ([0, 1], [0, 0.5], "whole class indices"),
        (["joy", "fear"], [0, 1], "whole class indices"),
        ([], [], "at least 1 samples"),
    ],
)
def test_classification_refuses_bad_input(truth, prediction, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(truth, prediction, ["a", "b"])


def test_headline_metrics():
    assert (headline("regression").name, headline("regression").lower_is_better) == ("mae", True)
    assert (headline("classification").name, headline("classification").lower_is_better) == ("f1_weighted", False)
    with pytest.raises(ValueError, match="unknown kind"):
        headline("ranking")


def test_better_is_lower_for_an_error_and_higher_for_a_score_and_equal_is_never_better():
    assert MAE.is_better(0.2, than=0.3) and not MAE.is_better(0.3, than=0.2)
    assert WF1.is_better(0.3, than=0.2) and not WF1.is_better(0.2, than=0.3)
    assert not any(metric.is_better(0.2, than=0.2) for metric in METRICS.values())
    assert not any(metric.is_better(float("nan"), than=0.2) for metric in METRICS.values())


def test_a_metric_is_shown_as_the_paper_prints_it():
    assert [metric.with_unit(0.80734) for metric in (MAE, CORR, WF1)] == ["0.807", "0.807", "80.73 %"]
    assert MAE.with_unit(float("nan")) == "—"
    assert (CORR.shown(-0.0001), CORR.shown(0.0123, "+"), CORR.shown(-0.0123, "+")) == ("0.000", "+0.012", "-0.012")


def test_every_metric_in_a_table_is_listed_under_its_own_name():
    assert all(metric.name == name for name, metric in METRICS.items())
    assert {metric for metrics in TABLED.values() for metric in metrics} == set(METRICS.values())
