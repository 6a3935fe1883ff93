"""The metrics, golden and by hand, and how sure a score is: intervals and differences against slow loops and scipy."""

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import f1_score

from cmpta_lib.metrics import (
    CORR,
    MAE,
    METRICS,
    UNPARSABLE,
    WF1,
    classification_metrics,
    headline,
    regression_metrics,
)
from cmpta_lib.paper import MELD_LABELS
from cmpta_lib.report import uncertainty
from cmpta_lib.report.uncertainty import bootstrap_interval, paired_bootstrap, seed_scores, summarise

SIMS_TRUTH = [-1, -0.8, -0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6, 0.8, 1, 0, -0.2, 0.4]
SIMS_PREDICTION = [-0.9, -0.7, -0.1, -0.4, 0, 0.1, 0.1, 0.5, -0.2, 0.7, 1.4, -0.1, 0.2, 0.3]


def test_sims_golden_values():
    # From running MMSA's utils/metricsTop.py (commit a94e65d) on these rows in float32; six printed digits.
    golden = {
        "acc2": 0.785714, "f1_weighted": 0.786813, "acc2_weak": 0.750000, "mae": 0.192857,
        "corr": 0.864245, "acc3": 0.642857, "acc5": 0.571429, "r2": 0.745494,
    }  # fmt: skip
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
    truth, metric = np.array([edge, 1.0], dtype=dtype), "acc2" if edge == 0 else "acc5"
    assert regression_metrics(truth, [edge - 0.05, 1.0])[metric] == 1
    assert regression_metrics(truth, [edge + 0.05, 1.0])[metric] == 0.5


def test_weak_samples_include_four_tenths_in_float64_too():
    assert regression_metrics(np.array([0.4, -0.4, 0.6]), [0.1, 0.1, 0.1])["acc2_weak_count"] == 2


def test_both_sides_are_clipped():
    assert regression_metrics([-1, 1, 0], [-3, 9, 0])["mae"] == regression_metrics([-3, 9, 0], [-1, 1, 0])["mae"] == 0


def test_what_is_not_defined_is_zero_with_a_flag_instead_of_nan():
    for prediction in ([0.2, 0.2, 0.2], [5.0, 7.0, 9.0]):  # constant, the second once clipped
        ours = regression_metrics([-0.5, 0.6, 1.0], prediction)
        assert (ours["corr"], ours["corr_defined"]) == (0, 0) and all(np.isfinite(value) for value in ours.values())
    ours = regression_metrics([-1, 1], [-1, 1])
    assert (ours["acc2_weak"], ours["acc2_weak_count"]) == (0, 0)


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


NAN = float("nan")


@pytest.mark.parametrize(
    ("labels", "truth", "prediction", "message"),
    [
        ((), [0.1, 0.2], [0.1, NAN], r"prediction\[1\] is nan"),
        ((), [float("inf"), 0.2], [0.1, 0.2], r"truth\[0\] is inf"),
        ((), [0.1, 0.2], [0.1], r"\(2,\) and \(1,\)"),
        ((), [0.1], [0.1], "at least 2 samples, got 1"),
        ("ab", [0, 1], [0, 2], "prediction must be at least -1 and below 2"),
        ("ab", [0, -1], [0, 1], "truth must be at least 0"),
        ("ab", [0, 1], [0, NAN], "whole class indices"),
        ("ab", [0, 1], [0, 0.5], "whole class indices"),
        ("ab", ["joy", "fear"], [0, 1], "whole class indices"),
        ("ab", [], [], "at least 1 samples"),
    ],
)
def test_bad_input_is_refused(labels, truth, prediction, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(truth, prediction, labels) if labels else regression_metrics(truth, prediction)


def test_headline_metrics():
    assert headline("regression") is MAE and headline("classification") is WF1


def test_better_is_lower_for_an_error_and_higher_for_a_score_and_equal_is_never_better():
    assert MAE.is_better(0.2, than=0.3) and not MAE.is_better(0.3, than=0.2)
    assert WF1.is_better(0.3, than=0.2) and not WF1.is_better(0.2, than=0.3)
    assert not any(metric.is_better(value, than=0.2) for metric in METRICS.values() for value in (0.2, NAN))


def test_a_metric_is_shown_as_the_paper_prints_it():
    assert [metric.with_unit(0.80734) for metric in (MAE, CORR, WF1)] == ["0.807", "0.807", "80.73 %"]
    assert MAE.with_unit(NAN) == "—"
    assert (CORR.shown(-0.0001), CORR.shown(0.0123, "+"), CORR.shown(-0.0123, "+")) == ("0.000", "+0.012", "-0.012")


# --- how sure a score is --------------------------------------------------------------------------------------------

BOOTSTRAPPED = ("mae", "corr", "f1_weighted")
WITH_NAN = [[0] * 5, [0, 0, 0, 0, np.nan]]
LABELS = [str(index) for index in range(7)]


def example(metric: str, num_seeds: int = 3, n: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Truth (n,) and predictions (num_seeds, n); classes are unbalanced and some answers unparsable."""
    rng = np.random.default_rng(7)
    if metric == "f1_weighted":
        truth = rng.choice(7, n, p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.02])
        return truth, np.where(rng.random((num_seeds, n)) < 0.6, truth, rng.integers(-1, 7, (num_seeds, n)))
    truth = np.clip(rng.normal(0, 0.6, n), -1, 1).round(1)
    return truth, np.clip(truth + rng.normal(0, 0.4, (num_seeds, n)), -1.3, 1.3).round(1)


def one_score(metric: str, truth: np.ndarray, prediction: np.ndarray) -> float:
    if metric == "f1_weighted":
        return classification_metrics(truth, prediction, LABELS)[metric]
    return regression_metrics(truth, prediction)[metric]


@pytest.mark.parametrize("metric", BOOTSTRAPPED)
def test_seed_scores_equal_the_metrics_module(metric):
    truth, predictions = example(metric)
    expected = [one_score(metric, truth, prediction) for prediction in predictions]
    np.testing.assert_allclose(seed_scores(metric, truth, predictions), expected, rtol=0, atol=1e-12)


def test_weighted_f1_equals_sklearn_for_any_labels():
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = rng.integers(0, rng.integers(1, 8), 50)
        predictions = rng.integers(0, rng.integers(1, 10), (4, 50))  # sometimes classes that the truth never shows
        expected = [f1_score(truth, prediction, average="weighted", zero_division=0) for prediction in predictions]
        np.testing.assert_allclose(seed_scores("f1_weighted", truth, predictions), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("metric", BOOTSTRAPPED)
def test_interval_equals_scipys_on_the_same_resamples(metric):
    truth, predictions = example(metric)

    def seed_mean(drawn: np.ndarray) -> float:
        return float(np.mean([one_score(metric, truth[drawn], prediction[drawn]) for prediction in predictions]))

    options = {"n_resamples": 120, "vectorized": False, "method": "percentile", "rng": np.random.default_rng(5)}
    slow = scipy.stats.bootstrap((np.arange(len(truth)),), seed_mean, **options).confidence_interval
    np.testing.assert_allclose(bootstrap_interval(metric, truth, predictions, resamples=120, seed=5), slow, rtol=0, atol=1e-12)


@pytest.mark.parametrize("metric", BOOTSTRAPPED)
def test_paired_difference_equals_a_loop_over_the_same_resamples(metric):
    truth, a = example(metric)
    b = np.where(np.arange(len(truth)) % 7 == 0, 0, a)[:2]
    drawn = np.random.default_rng(3).integers(0, len(truth), (80, len(truth)))

    def difference(index: np.ndarray) -> float:
        means = [np.mean([one_score(metric, truth[index], p[index]) for p in method]) for method in (a, b)]
        return float(means[0] - means[1])

    loop = np.array([difference(index) for index in drawn])
    ours = paired_bootstrap(metric, truth, a, b, resamples=80, seed=3)
    assert ours.difference == pytest.approx(difference(np.arange(len(truth))), abs=1e-11)
    np.testing.assert_allclose((ours.low, ours.high), np.percentile(loop, [2.5, 97.5]), rtol=0, atol=1e-11)
    rarer = min((loop <= 0).sum(), (loop >= 0).sum())
    assert ours.p_value == pytest.approx(min(1, 2 * (rarer + 1) / 81))


@pytest.mark.parametrize("metric", BOOTSTRAPPED)
def test_a_method_does_not_differ_from_itself_and_swapping_turns_a_difference_round(metric):
    truth, a = example(metric)
    same = paired_bootstrap(metric, truth, a, a[::-1], resamples=100)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    b = np.where(np.arange(len(truth)) % 3, a, 0)
    forth, back = paired_bootstrap(metric, truth, a, b, resamples=200), paired_bootstrap(metric, truth, b, a, resamples=200)
    assert (back.difference, back.low, back.high) == pytest.approx((-forth.difference, -forth.high, -forth.low))
    assert forth.p_value == back.p_value and forth.difference != 0


def test_a_clear_difference_has_a_small_p_value_that_is_not_zero():
    truth, _ = example("mae")
    result = paired_bootstrap("mae", truth, truth[None], np.zeros((1, len(truth))), resamples=500)
    assert result.high < 0 and result.p_value == pytest.approx(2 / 501)


def test_chunks_do_not_change_the_interval(monkeypatch):
    truth, predictions = example("f1_weighted")
    whole = bootstrap_interval("f1_weighted", truth, predictions, resamples=100)
    monkeypatch.setattr(uncertainty, "_CHUNK", 7)
    assert bootstrap_interval("f1_weighted", truth, predictions, resamples=100) == pytest.approx(whole, abs=1e-12)


def test_a_collapsed_seed_counts_as_corr_zero():
    truth, predictions = example("corr")
    collapsed = np.vstack([predictions[0], np.full(len(truth), 0.3)])
    assert seed_scores("corr", truth, collapsed)[1] == 0
    low, high = bootstrap_interval("corr", truth, collapsed)
    alone = bootstrap_interval("corr", truth, predictions[:1])
    assert (low, high) == pytest.approx((alone[0] / 2, alone[1] / 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predictions": np.zeros(5)}, r"predictions \(n_seeds, N\)"),
        ({"predictions": np.zeros((2, 4))}, r"got \(5,\) and \(2, 4\)"),
        ({"predictions": np.zeros((0, 5))}, "none empty"),
        ({"metric": "acc7"}, "known: mae, corr, f1_weighted"),
        ({"resamples": 0}, "at least 1"),
        ({"metric": "mae", "predictions": WITH_NAN}, r"predictions\[1, 4\] is nan"),
        ({"metric": "corr", "predictions": WITH_NAN}, r"predictions\[1, 4\] is nan"),
        ({"metric": "f1_weighted", "predictions": WITH_NAN}, "whole class indices"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    valid = {"metric": "mae", "truth": np.zeros(5), "predictions": np.zeros((2, 5))}
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(**(valid | arguments))


def test_a_summary_is_the_sample_sd_and_none_for_one_seed():
    assert summarise([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, np.sqrt(7 / 3))) and summarise([0.25]) == (0.25, None)
    for values in ([], [0.1, float("nan")]):
        with pytest.raises(ValueError, match="at least one finite score"):
            summarise(values)
