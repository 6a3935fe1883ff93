"""The best answers to generated clips: recomputed exactly, and best by the metric that they stand beside."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from cmpta_lib import metrics
from cmpta_lib.embedded import bounds, synthetic
from cmpta_lib.embedded.generative import generative_models

SIZES = {"train": 1, "valid": 1, "test": 640}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Both corpora with a test split of the demo's size: name -> Corpus."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: synthetic.embedded_corpus(name, folder, SIZES) for name in generative_models()}


def simulated(chances: np.ndarray, times: int, rng: np.random.Generator) -> np.ndarray:
    """(times, N) labels drawn from each clip's probabilities."""
    return (rng.random((times, len(chances), 1)) > chances.cumsum(1)).sum(-1).clip(max=chances.shape[1] - 1)


def expected_weighted_f1(chances: np.ndarray, decision: np.ndarray) -> float:
    """Weighted F1 at its expected counts: chances (N, C), decision (N,)."""
    answered = np.eye(chances.shape[1])[decision]
    support, both = chances.sum(0), chances.sum(0) + answered.sum(0)
    return float((support * 2 * (answered * chances).sum(0) / np.where(both > 0, both, 1)).sum() / len(chances))


def weighted_f1(truth: np.ndarray, answers: np.ndarray, classes: int) -> float:
    names = [str(number) for number in range(classes)]
    return metrics.classification_metrics(truth, answers, names)["f1_weighted"]


@pytest.mark.parametrize("name", list(generative_models()))
def test_posteriors_from_stored_clips_give_the_generators_own_answers(whole, name):
    """On a whole split: neither float32 nor the hiding scale and offset move a single answer."""
    table, world = whole[name].splits["test"].table, generative_models()[name]
    found = bounds.posteriors(whole[name])
    assert {f"bayes_{known}" for known in found} == {c for c in table if c.startswith("bayes_")} - {"bayes_text_context"}
    for known, chances in found.items():
        np.testing.assert_allclose(chances.sum(1), 1)
        assert world.decide(chances).tolist() == table[f"bayes_{known}"].tolist()


def test_a_clip_that_shows_nothing_is_judged_by_its_words(whole):
    for name, corpus in whole.items():
        found, table = bounds.posteriors(corpus), corpus.splits["test"].table
        blind = (table["vision_length"] + table["audio_length"] == 0).to_numpy()
        np.testing.assert_allclose(found["all"][blind], found["text"][blind], err_msg=name)


def test_no_decision_of_a_small_split_has_a_higher_expected_weighted_f1():
    """Against every one of the C^N decisions."""
    rng, lost_by_the_mode = np.random.default_rng(0), 0
    for _ in range(60):
        count, classes = int(rng.integers(1, 9)), int(rng.integers(2, 4))
        chances = rng.dirichlet(np.full(classes, rng.choice([0.3, 1.0, 3.0])) * rng.uniform(0.2, 3, classes), count)
        every = [np.array(one) for one in itertools.product(range(classes), repeat=count)]
        best = max(expected_weighted_f1(chances, one) for one in every)
        found = expected_weighted_f1(chances, bounds.weighted_f1_decision(chances))
        assert found == pytest.approx(best, abs=1e-9)
        lost_by_the_mode += found > expected_weighted_f1(chances, chances.argmax(1)) + 1e-6
    assert lost_by_the_mode > 10, "else this would not tell the decision from the mode"


def test_the_expected_score_is_the_mean_score_of_drawn_labels(whole):
    chances = bounds.posteriors(whole["embedded-meld"])["text"]
    decision = bounds.weighted_f1_decision(chances)
    drawn = simulated(chances, 300, np.random.default_rng(1))
    scores = [weighted_f1(labels, decision, chances.shape[1]) for labels in drawn]
    assert np.mean(scores) == pytest.approx(expected_weighted_f1(chances, decision), abs=0.003)


def test_on_a_whole_split_the_decision_is_expected_to_score_at_least_as_the_mode(whole):
    corpus = whole["embedded-meld"]
    decisions, gains = bounds.best_answers(corpus, "f1_weighted"), {}
    for known, chances in bounds.posteriors(corpus).items():
        best, mode = (expected_weighted_f1(chances, said) for said in (decisions[known], chances.argmax(1)))
        gains[known] = best - mode
    assert set(gains) == {"text", "face_voice", "all", "context"} and min(gains.values()) >= 0
    assert gains["text"] > 0.01, "words seldom name a rare class, so the mode never does"


def test_the_mean_correlates_better_than_the_median_and_the_median_errs_less(whole):
    corpus = whole["embedded-sims"]
    grid, rng = generative_models()[corpus.name].label_values, np.random.default_rng(3)
    for known, chances in bounds.posteriors(corpus).items():
        mean, median = (bounds.best_answers(corpus, metric)[known] for metric in ("corr", "mae"))
        drawn = grid[simulated(chances, 200, rng)]
        scores = {
            name: [metrics.regression_metrics(labels, answer) for labels in drawn]
            for name, answer in (("mean", mean), ("median", median), ("bent", np.sign(mean) * mean**2))
        }
        corr, mae = ({name: np.mean([one[m] for one in found]) for name, found in scores.items()} for m in ("corr", "mae"))
        assert corr["mean"] == max(corr.values()) and mae["median"] == min(mae.values())


def test_a_class_that_nobody_shows_is_no_trouble():
    chances = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert bounds.weighted_f1_decision(chances).tolist() == [0, 1]
    assert expected_weighted_f1(chances, np.array([2, 2])) == 0


def test_bounds_are_fast_and_kept(whole):
    corpus = whole["embedded-meld"]
    bounds.posteriors.cache_clear()
    bounds.best_answers.cache_clear()
    start = time.perf_counter()
    first = bounds.best_answers(corpus, "f1_weighted")
    assert time.perf_counter() - start < 15, "0.6 s on an idle core"
    assert bounds.best_answers(corpus, "f1_weighted") is first


def test_a_metric_without_a_rule_is_refused(whole):
    with pytest.raises(ValueError, match="no rule for the best classification answer by 'mae'; known: mae, corr, f1_wei"):
        bounds.best_answers(whole["embedded-meld"], "mae")
