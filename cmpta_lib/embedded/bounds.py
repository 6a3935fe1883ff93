"""The best answers to a generated corpus's clips, by the metric that judges them; imports no torch.

The posterior of every clip's label is known, so the best answer is too, and it depends on the metric: the median has the
least expected absolute error, the mean the highest correlation, the mode the highest accuracy. Weighted F1 is none of these:
it judges a split as a whole, and rare classes are worth naming more often than the mode does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from cmpta_lib.data.corpus import Corpus
from cmpta_lib.embedded.generative import generative_models
from cmpta_lib.embedded.synthetic import FACE, VOICE, cue_likelihoods, in_dialogue

RULES: Mapping[str, str] = {
    "mae": "the median of each clip's exact distribution of scores, which has the least expected error",
    "corr": "the mean of each clip's exact distribution of scores, which has the highest expected correlation",
    "f1_weighted": "the classes that together maximise the split's expected weighted F1 given each clip's exact probabilities",
    "accuracy": "each clip's most probable class",
}
_TILTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # starts: the mode of p / prior^tilt, from the mode itself to rare classes first
_RANDOM_STARTS = 8
_MOST_SWEEPS = 50


@lru_cache(maxsize=4)
def best_answers(corpus: Corpus, metric: str, split: str = "test") -> Mapping[str, np.ndarray]:
    """What is known ("text", "face_voice", "all"; "context" in dialogues) -> (N,) best answers for this metric.

    Empty where nobody knows: the corpus is not one of ours.

    Raises:
        ValueError: a metric without a rule, or one that does not fit the corpus's task.
    """
    source = generative_models().get(corpus.name)
    if source is None or not corpus.has_known_truth:
        return {}
    if metric not in RULES or (metric in ("mae", "corr")) != (source.task.kind == "regression"):
        raise ValueError(f"no rule for the best {source.task.kind} answer by {metric!r}; known: {', '.join(RULES)}")
    decide = {"corr": lambda chances: chances @ source.label_values, "f1_weighted": weighted_f1_decision}
    return {known: decide.get(metric, source.decide)(chances) for known, chances in posteriors(corpus, split).items()}


@lru_cache(maxsize=4)
def posteriors(corpus: Corpus, split: str = "test") -> Mapping[str, np.ndarray]:
    """What is known -> (N, labels) exact probabilities of each clip's label, rows sum to 1, from the clips as stored.

    Raises:
        KeyError: the corpus has no generator here.
    """
    source, clips = generative_models()[corpus.name], corpus.splits[split]
    shown = ((cue_likelihoods(c.vision, source.face, FACE), cue_likelihoods(c.audio, source.voice, VOICE)) for c in clips)
    joint = np.array([np.einsum("cfvy,f,v->cy", source.joint, *likelihoods) for likelihoods in shown])  # (N, words, labels)
    words, prior = clips.table["words"].to_numpy(int), source.joint.sum((0, 1, 2))
    everything = joint[np.arange(len(clips)), words]
    found = {"text": source.joint.sum((1, 2))[words], "face_voice": joint.sum(1), "all": everything}
    if source.task.kind == "classification":
        found["context"] = np.empty_like(everything)
        for _, dialogue in clips.table.groupby("dialogue", sort=False):
            turns = dialogue.index.to_numpy()
            found["context"][turns] = in_dialogue(dialogue["speaker"].tolist(), everything[turns], prior)
    return {known: chances / chances.sum(1, keepdims=True) for known, chances in found.items()}


def weighted_f1_decision(chances: np.ndarray) -> np.ndarray:
    """(N, C) probabilities -> (N,) classes of the largest expected weighted F1 found, never below that of the mode.

    That is the sum over classes of S/N * 2H / (S + P), with S, P and H a class's expected clips, answers and hits. The counts
    of a split of hundreds of clips vary by a few per cent, which moves the expectation of the score itself by O(1/N).

    Coordinate ascent: each clip in turn takes the class that raises the score most, until none does. From several starts,
    side by side; the mode is one of them.
    """
    count, classes = chances.shape
    support, everyone = chances.sum(0), np.eye(classes)
    rarity = np.where(support > 0, support, 1.0)
    starts = [(chances / rarity**tilt).argmax(1) for tilt in _TILTS]
    starts += list(np.random.default_rng(0).integers(0, classes, (_RANDOM_STARTS, count)))
    decisions = np.array(starts)  # (starts, N)
    answered = everyone[decisions]
    predicted, hits = answered.sum(1), (answered * chances).sum(1)  # (starts, C)
    for _ in range(_MOST_SWEEPS):
        before, rows = decisions.copy(), np.arange(len(starts))
        for clip, chance in enumerate(chances):
            now = everyone[decisions[:, clip]]
            predicted, hits = predicted - now, hits - now * chance  # without this clip
            gains = _gain(support, predicted, hits, chance)
            best = gains.argmax(1)
            kept = decisions[:, clip]
            best = np.where(gains[rows, best] > gains[rows, kept] + 1e-12, best, kept)  # equally good: stay, and so end
            decisions[:, clip] = best
            predicted, hits = predicted + everyone[best], hits + everyone[best] * chance
        if (decisions == before).all():
            break
    both = support + predicted
    return decisions[(support * 2 * hits / np.where(both > 0, both, 1)).sum(-1).argmax()]


def _gain(support: np.ndarray, predicted: np.ndarray, hits: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """(starts, C) what one more answer of each class, right with `chance` (C,), adds to N times the weighted F1."""
    both = support + predicted
    return 2 * support * ((hits + chance) / (both + 1) - hits / np.where(both > 0, both, 1))
