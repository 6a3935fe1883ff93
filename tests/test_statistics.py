import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import f1_score

from cmpta_lib.metrics import classification_metrics, regression_metrics
from cmpta_lib.report import uncertainty
from cmpta_lib.report.uncertainty import bootstrap_interval, paired_bootstrap, seed_scores, summarise

METRICS = ("mae", "corr", "f1_weighted")
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


@pytest.mark.parametrize("metric", METRICS)
def test_seed_scores_equal_the_metrics_module(metric):
    truth, predictions = example(metric)
    expected = [one_score(metric, truth, prediction) for prediction in predictions]
    np.testing.assert_allclose(seed_scores(metric, truth, predictions), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_weighted_f1_equals_sklearn_for_any_labels(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, rng.integers(1, 8), 50)
    predictions = rng.integers(0, rng.integers(1, 10), (4, 50))  # sometimes classes that the truth never shows
    expected = [f1_score(truth, prediction, average="weighted", zero_division=0) for prediction in predictions]
    np.testing.assert_allclose(seed_scores("f1_weighted", truth, predictions), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("metric", METRICS)
def test_interval_equals_scipys_on_the_same_resamples(metric):
    truth, predictions = example(metric)

    def seed_mean(drawn: np.ndarray) -> float:
        return float(np.mean([one_score(metric, truth[drawn], prediction[drawn]) for prediction in predictions]))

    slow = scipy.stats.bootstrap(
        (np.arange(len(truth)),),
        seed_mean,
        n_resamples=120,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    ours = bootstrap_interval(metric, truth, predictions, resamples=120, seed=5)
    np.testing.assert_allclose(ours, slow, rtol=0, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
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


@pytest.mark.parametrize("metric", METRICS)
def test_a_method_does_not_differ_from_itself(metric):
    truth, predictions = example(metric)
    same = paired_bootstrap(metric, truth, predictions, predictions[::-1], resamples=100)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_swapping_the_methods_turns_the_difference_round():
    truth, a = example("mae")
    b = a * 0.5
    forth, back = paired_bootstrap("mae", truth, a, b), paired_bootstrap("mae", truth, b, a)
    assert (back.difference, back.low, back.high) == pytest.approx((-forth.difference, -forth.high, -forth.low))
    assert forth.p_value == back.p_value


def test_a_clear_difference_has_a_small_p_value_that_is_not_zero():
    truth, _ = example("mae")
    result = paired_bootstrap("mae", truth, truth[None], np.zeros((1, len(truth))), resamples=500)
    assert result.high < 0
    assert result.p_value == pytest.approx(2 / 501)


def test_chunks_do_not_change_the_interval(monkeypatch):
    truth, predictions = example("f1_weighted")
    whole = bootstrap_interval("f1_weighted", truth, predictions, resamples=100)
    monkeypatch.setattr(uncertainty, "_CHUNK", 7)
    assert bootstrap_interval("f1_weighted", truth, predictions, resamples=100) == pytest.approx(whole, abs=1e-12)


def test_the_interval_covers_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    true_mae, covered = 0.3 * np.sqrt(2 / np.pi), 0
    for _ in range(200):
        low, high = bootstrap_interval("mae", np.zeros(100), rng.normal(0, 0.3, (1, 100)), resamples=200, level=0.9)
        covered += low <= true_mae <= high
    assert 0.83 <= covered / 200 <= 0.95  # 0.90 with the binomial noise of 200 trials


def test_a_collapsed_seed_counts_as_corr_zero():
    truth, predictions = example("corr")
    collapsed = np.vstack([predictions[0], np.full(len(truth), 0.3)])
    assert seed_scores("corr", truth, collapsed)[1] == 0
    low, high = bootstrap_interval("corr", truth, collapsed)
    alone = bootstrap_interval("corr", truth, predictions[:1])
    assert (low, high) == pytest.approx((alone[0] / 2, alone[1] / 2))


@pytest.mark.parametrize("metric", METRICS)
def test_nan_is_refused(metric):
    truth, predictions = example(metric)
    predictions = predictions.astype(float)
    predictions[1, 4] = np.nan
    message = "whole class indices" if metric == "f1_weighted" else r"predictions\[1, 4\] is nan"
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(metric, truth, predictions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predictions": np.zeros(5)}, r"predictions \(n_seeds, N\)"),
        ({"predictions": np.zeros((2, 4))}, r"got \(5,\) and \(2, 4\)"),
        ({"predictions": np.zeros((0, 5))}, "none empty"),
        ({"metric": "acc7"}, "known: mae, corr, f1_weighted"),
        ({"level": 1.0}, "strictly between"),
        ({"resamples": 0}, "at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    valid = {"metric": "mae", "truth": np.zeros(5), "predictions": np.zeros((2, 5))}
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(**(valid | arguments))


def test_summary_uses_the_sample_sd_and_none_for_one_seed():
    summary = summarise([1.0, 2.0, 4.0])
    assert (summary.mean, summary.sd, summary.n) == pytest.approx((7 / 3, np.sqrt(7 / 3), 3))
    assert summarise([0.25]) == uncertainty.SeedSummary(0.25, None, 1)


@pytest.mark.parametrize("values", [[], [0.1, float("nan")]])
def test_summary_refuses_nothing_and_nan(values):
    with pytest.raises(ValueError, match="at least one finite score"):
        summarise(values)
