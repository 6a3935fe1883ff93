"""The generated corpora: what they claim to know about themselves is recomputed the slow way."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare, multivariate_normal, norm
from sklearn.metrics import f1_score

from cmpta_lib.data.corpus import Sample
from cmpta_lib.embedded import synthetic
from cmpta_lib.embedded.synthetic import CueSet, GenerativeModel

WORLDS = synthetic.generative_models()
VIEWS = ("text", "face_voice", "all")


@pytest.fixture(params=WORLDS)
def world(request) -> GenerativeModel:
    return WORLDS[request.param]


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Sample]]:
    return {name: list(synthetic.samples(world, "train", 1500)) for name, world in WORLDS.items()}


def digest(samples) -> str:
    total = hashlib.sha256()
    for s in samples:
        total.update(repr((s.id, s.text, s.label, s.speaker, s.dialogue, sorted(s.extra.items()))).encode())
        total.update(s.audio.tobytes() + s.vision.tobytes())
    return total.hexdigest()


def noise_of(frames: np.ndarray, cues: CueSet, seed: int) -> np.ndarray:
    """Stored frames without the raw scale and offset: unit noise, plus the cue where there is one."""
    _, scale, offset = synthetic._patterns(cues.dim, seed)
    return (frames.astype(np.float64) - offset) / scale


# --- the joint table --------------------------------------------------------------------------------------------------


def test_the_joint_table_is_a_distribution(world):
    assert world.joint.min() >= 0
    assert world.joint.sum() == pytest.approx(1, abs=1e-12)
    expected = (len(world.phrases), len(world.face.values), len(world.voice.values), len(world.label_values))
    assert world.joint.shape == expected
    assert len(world.face.halves) == len(world.face.values) and len(world.voice.halves) == len(world.voice.values)


def test_scores_given_words_face_and_voice_are_a_rounded_normal():
    world = WORLDS["embedded-sims"]
    given = world.joint[3, 2, 1] / world.joint[3, 2, 1].sum()  # mild praise, smile, no cue in the voice
    score, edge = 0.3 * 0.5 + 0.4, 0.1
    for value, chance in zip(world.label_values[1:-1], given[1:-1], strict=True):
        assert chance == pytest.approx(norm.cdf(value + edge, score, 0.28) - norm.cdf(value - edge, score, 0.28))
    assert given[-1] == pytest.approx(1 - norm.cdf(0.9, score, 0.28))


def test_sarcasm_turns_praise_round():
    sims = WORLDS["embedded-sims"]
    mean = (sims.joint @ sims.label_values) / sims.joint.sum(-1)
    # Highest praise with a frown and a flat voice is worse than neutral words with them.
    assert mean[4, 0, 0] < mean[2, 0, 0] < 0 < mean[4, 2, 2]
    meld = WORLDS["embedded-meld"]
    kind_words, wrinkled_nose, low_voice = 3, 4, 2
    assert meld.joint[kind_words, wrinkled_nose, low_voice].argmax() == meld.task.labels.index("disgust")


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(world):
    first = digest(synthetic.samples(world, "valid", 40))
    assert digest(synthetic.samples(world, "valid", 40)) == first
    assert digest(synthetic.samples(world, "valid", 40, seed=1)) != first
    assert digest(synthetic.samples(world, "test", 40)) != first


def test_the_stored_corpus_is_the_drawn_one(world, tmp_path):
    sizes = {"train": 6, "valid": 3, "test": 4}
    corpus = synthetic.embedded_corpus(world.name, tmp_path, sizes)
    assert corpus.generated and corpus.name == world.name
    for split, size in sizes.items():
        assert digest(corpus.splits[split]) == digest(synthetic.samples(world, split, size))
    again = synthetic.embedded_corpus(world.name, tmp_path, sizes)
    assert again.fingerprint == corpus.fingerprint
    assert synthetic.embedded_corpus(world.name, tmp_path, sizes, seed=1).fingerprint != corpus.fingerprint
    with pytest.raises(ValueError, match="embedded-sims, embedded-meld"):
        synthetic.embedded_corpus("sims", tmp_path)


def test_clips_and_their_cues_are_as_their_world_says(world, drawn):
    places: list[float] = []  # of the faces' onsets, between the first and the last that there may be
    for s in drawn[world.name]:
        assert s.label in world.label_values
        for seed, name, frames, cues in ((1, "face", s.vision, world.face), (2, "voice", s.audio, world.voice)):
            assert frames.dtype == np.float32 and frames.shape[1] == cues.dim and np.isfinite(frames).all()
            assert len(frames) == 0 or cues.frames[0] <= len(frames) <= cues.frames[1]
            start, stop = s.extra[f"{name}_start"], s.extra[f"{name}_stop"]
            order = cues.halves[cues.values.index(s.extra[name])]
            if not order or not len(frames):
                assert (start, stop) == (-1, -1)
                continue
            assert 0 <= start < stop <= len(frames) and stop - start == 2 * cues.half
            projected = noise_of(frames, cues, seed) @ synthetic._patterns(cues.dim, seed)[0].T  # (T, 4), unit noise
            projected[start : start + cues.half, order[0]] -= cues.amplitude
            projected[start + cues.half : stop, order[1]] -= cues.amplitude
            assert np.abs(projected).max() < 6
            places += [start / (len(frames) - 2 * cues.half)] if name == "face" else []
    assert len({s.id for s in drawn[world.name]}) == 1500
    assert min(places) == 0 and max(places) == 1 and np.mean(places) == pytest.approx(0.5, abs=0.04)
    for modality in ("audio", "vision"):
        absent = np.mean([len(getattr(s, modality)) == 0 for s in drawn[world.name]])
        assert absent == pytest.approx(synthetic.ABSENT_SHARE, abs=4 * np.sqrt(0.03 * 0.97 / 1500))


@pytest.mark.parametrize(("name", "pairs"), [("embedded-sims", [(0, 2)]), ("embedded-meld", [(1, 2), (3, 4)])])
def test_opposite_cues_hold_the_same_frames_in_another_order_and_an_absent_clip_says_nothing(name, pairs, monkeypatch):
    class Still:
        """A generator without noise, without absence, and with the onset always at frame 4."""

        random = staticmethod(lambda: 1.0)
        integers = staticmethod(lambda low, high=None: low if high is not None else 4)
        standard_normal = staticmethod(np.zeros)

    class Absent(Still):
        random = staticmethod(lambda: 0.0)

    for cues, seed in ((WORLDS[name].face, 1), (WORLDS[name].voice, 2)):
        frames, window, likelihood = synthetic._clip(cues, 1, Absent(), seed)
        assert frames.shape == (0, cues.dim) and window == (-1, -1) and (likelihood == 1).all()
        for one, other in pairs:
            a, b = (synthetic._clip(cues, value, Still(), seed)[0] for value in (one, other))
            assert not np.array_equal(a, b)
            assert Counter(row.tobytes() for row in a) == Counter(row.tobytes() for row in b)
            np.testing.assert_array_equal(a[4:7], b[7:10])


# --- what the best possible answer is ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("modality", ["face", "voice"])
def test_the_likelihood_equals_brute_force_over_all_onsets(name, modality):
    cues: CueSet = getattr(WORLDS[name], modality)
    # Low amplitude: with the real one nearly every likelihood but one is 0 and there would be little to compare.
    cues = CueSet(cues.values, cues.halves, cues.dim, cues.frames, cues.half, amplitude=0.8)
    seed = 1 if modality == "face" else 2
    directions = synthetic._patterns(cues.dim, seed)[0]
    rng = np.random.default_rng(5)
    gaussian = multivariate_normal(np.zeros(cues.dim))
    for value in range(len(cues.values)):
        frames, _, likelihood = synthetic._clip(cues, value, rng, seed)
        noise = noise_of(frames, cues, seed)
        slow = []
        for order in cues.halves:
            if not order:
                slow.append(gaussian.logpdf(noise).sum())
                continue
            onsets = range(len(noise) - 2 * cues.half + 1)
            by_onset = []
            for onset in onsets:
                shown = np.zeros_like(noise)
                shown[onset : onset + cues.half] = cues.amplitude * directions[order[0]]
                shown[onset + cues.half : onset + 2 * cues.half] = cues.amplitude * directions[order[1]]
                by_onset.append(gaussian.logpdf(noise - shown).sum() - np.log(len(onsets)))
            slow.append(np.logaddexp.reduce(by_onset))
        np.testing.assert_allclose(np.log(likelihood), np.array(slow) - max(slow), atol=5e-3)


def test_text_answers_follow_from_the_words_alone(world, drawn):
    by_words = defaultdict(set)
    for s in drawn[world.name]:
        by_words[s.extra["words"]].add(s.extra["bayes_text"])
    assert {words: len(answers) for words, answers in by_words.items()} == dict.fromkeys(range(len(world.phrases)), 1)


def test_decide_takes_the_median_of_a_score_and_the_mode_of_a_class():
    sims, meld = WORLDS["embedded-sims"], WORLDS["embedded-meld"]
    rng = np.random.default_rng(0)
    posterior = rng.dirichlet(np.full(11, 0.3), 200)
    losses = np.abs(sims.label_values[:, None] - sims.label_values) @ posterior.T  # (answers, samples)
    chosen = [int(np.flatnonzero(sims.label_values == v)[0]) for v in sims.decide(posterior)]
    np.testing.assert_allclose(losses[chosen, np.arange(200)], losses.min(0))
    posterior = rng.dirichlet(np.ones(7), 200)
    assert (meld.decide(posterior) == posterior.argmax(1)).all()
    assert sims.decide(3 * np.eye(11)).tolist() == sims.label_values.tolist()  # need not be normalised


def test_more_to_see_is_never_worse(drawn):
    labels = np.array([s.label for s in drawn["embedded-sims"]])
    errors = {v: np.abs(labels - [s.extra[f"bayes_{v}"] for s in drawn["embedded-sims"]]).mean() for v in VIEWS}
    errors["nothing"] = np.abs(labels - np.median(labels)).mean()
    assert errors["all"] + 0.05 < errors["face_voice"] + 0.02 < errors["text"] < errors["nothing"]
    labels = np.array([s.label for s in drawn["embedded-meld"]])
    answers = {v: [int(s.extra[f"bayes_{v}"]) for s in drawn["embedded-meld"]] for v in VIEWS}
    scores = {v: f1_score(labels, answers[v], average="weighted") for v in VIEWS}
    assert scores["all"] > scores["face_voice"] + 0.03 > scores["text"] + 0.06


def test_context_answers_equal_brute_force_over_all_label_sequences():
    """Every mood and every sequence of labels of a dialogue of five turns, weighed by its chance."""
    rng = np.random.default_rng(3)
    prior, keep, mooded = rng.dirichlet(np.ones(3)), synthetic.INERTIA, synthetic.MOOD
    likelihoods, expected = rng.uniform(0.05, 1, (5, 3)), np.zeros((5, 3))
    speakers = (0, 1, 0, 0, 1)
    for mood, *labels in itertools.product(range(3), repeat=6):
        chance, last = prior[mood], {}
        for turn, (speaker, label) in enumerate(zip(speakers, labels, strict=True)):
            fresh = mooded * (label == mood) + (1 - mooded) * prior[label]
            chance *= keep * (last[speaker] == label) + (1 - keep) * fresh if speaker in last else fresh
            chance *= likelihoods[turn, label]
            last[speaker] = label
        expected[np.arange(5), labels] += chance
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(synthetic.in_dialogue(speakers, likelihoods * prior, prior), expected, atol=1e-12)


def test_a_clips_context_is_its_own_dialogue():
    """What the words of the same dialogue say, recomputed from the finished clips."""
    world, dialogues = WORLDS["embedded-meld"], defaultdict(list)
    for s in synthetic.samples(world, "valid", 61):
        dialogues[s.dialogue].append(s)
    for turns in dialogues.values():
        joint = world.joint.sum((1, 2))[[s.extra["words"] for s in turns]]
        posteriors = synthetic.in_dialogue([s.speaker for s in turns], joint, world.joint.sum((0, 1, 2)))
        assert [s.extra["bayes_text_context"] for s in turns] == world.decide(posteriors).tolist()
    assert sum(map(len, dialogues.values())) == 61


def test_a_lone_turn_has_no_context_and_an_impossible_label_stays_so():
    for seed in range(5):
        (alone,) = synthetic.samples(WORLDS["embedded-meld"], "valid", 1, seed)
        assert alone.extra["bayes_context"] == alone.extra["bayes_all"]
        assert alone.extra["bayes_text_context"] == alone.extra["bayes_text"]
    likelihoods, prior = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1e-30]]), np.array([0.5, 0.3, 0.2])
    posteriors = synthetic.in_dialogue("aaa", likelihoods * prior, prior)
    assert (posteriors[likelihoods == 0] == 0).all() and posteriors.sum(1) == pytest.approx(1)


def test_context_helps_in_dialogues_and_is_not_claimed_elsewhere(drawn):
    turns = drawn["embedded-meld"]
    labels = np.array([s.label for s in turns])
    known = ("text", "all", "text_context", "context")
    right = {v: np.mean([int(s.extra[f"bayes_{v}"]) for s in turns] == labels) for v in known}
    assert right["context"] > right["all"] + 0.02 and right["text_context"] > right["text"] + 0.05
    assert not any("bayes_context" in s.extra for s in drawn["embedded-sims"])


# --- labels and dialogues ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labels() -> dict[str, list[tuple[int, str | None, str | None]]]:
    return {name: list(synthetic._labels(world, "train", 40_000, np.random.default_rng(0))) for name, world in WORLDS.items()}


def test_labels_follow_the_tables_prior(world, labels):
    found, prior = labels[world.name], world.joint.sum((0, 1, 2))
    counts = np.bincount([label for label, _, _ in found], minlength=len(prior))
    # Turns of a dialogue are alike, so counts vary more than independent ones: by its mean length at the most.
    inflation = len(found) / len({dialogue for _, _, dialogue in found}) if found[0][2] else 1.0
    assert chisquare(counts / inflation, prior * len(found) / inflation).pvalue > 1e-3


def test_speakers_tend_to_stay_in_an_emotion_and_in_the_dialogues_mood(labels):
    last: dict[tuple, int] = {}
    kept, alike, before, prior = [], [], None, WORLDS["embedded-meld"].joint.sum((0, 1, 2))
    for label, speaker, dialogue in labels["embedded-meld"]:
        if (dialogue, speaker) in last:
            kept.append(last[dialogue, speaker] == label)
        if before and before[0] == dialogue and before[1] != speaker:
            alike.append(before[2] == label)
        last[dialogue, speaker], before = label, (dialogue, speaker, label)
    fresh = synthetic.MOOD * np.eye(len(prior)) + (1 - synthetic.MOOD) * prior
    by_mood = prior @ (fresh**2).sum(1)
    assert np.mean(kept) == pytest.approx(synthetic.INERTIA + (1 - synthetic.INERTIA) * by_mood, abs=0.02)
    assert np.mean(alike) == pytest.approx(by_mood, abs=0.02)


def test_dialogues_have_a_cast_and_a_length(drawn):
    dialogues = defaultdict(list)
    for s in drawn["embedded-meld"]:
        dialogues[s.dialogue].append(s.speaker)
    sizes = [len(turns) for turns in dialogues.values()]
    assert max(sizes) <= 14 and min(sizes[:-1]) >= 4
    assert all(set(turns) <= set(synthetic.SPEAKERS) and len(set(turns)) <= 4 for turns in dialogues.values())
    assert all(s.speaker is None and s.dialogue is None for s in drawn["embedded-sims"])


def test_cues_and_words_are_drawn_from_the_table(world, drawn):
    size = len(drawn[world.name])
    for axis, found in (
        (0, [s.extra["words"] for s in drawn[world.name]]),
        (1, [world.face.values.index(s.extra["face"]) for s in drawn[world.name]]),
        (2, [world.voice.values.index(s.extra["voice"]) for s in drawn[world.name]]),
    ):
        marginal = world.joint.sum(tuple({0, 1, 2, 3} - {axis}))
        counts = np.bincount(found, minlength=len(marginal))
        assert np.abs(counts / size - marginal).max() < 4.5 * np.sqrt(0.25 / size)


# --- written documents ------------------------------------------------------------------------------------------------


def test_documents_are_written_language_only_and_half_of_them_may_carry_stage_directions():
    pages = list(synthetic.documents(2000))
    assert list(synthetic.documents(50)) == pages[:50] != list(synthetic.documents(50, seed=1))
    for page in pages[:300]:
        assert set(vars(page)) == {"task", "directions", "text", "label"}
        assert isinstance(page.text, str) and isinstance(page.directions, str) and np.isscalar(page.label)
    silent = [w.joint[:, w.face.values.index(""), w.voice.values.index("")].sum() for w in WORLDS.values()]
    share = np.mean([bool(page.directions) for page in pages])
    assert share == pytest.approx(0.5 * (1 - np.mean(silent)), abs=0.05)
    assert not any(page.directions for page in synthetic.documents(300, script_share=0.0))


def test_directions_name_what_is_shown(world):
    face, voice = len(world.face.values) - 1, len(world.voice.values) - 1
    both = world.directions(face, voice)
    assert world.face.values[face] in both and world.voice.values[voice] in both
    assert world.directions(world.face.values.index(""), world.voice.values.index("")) == ""


def test_nothing_but_the_phrase_tells_the_class_of_words(world):
    rng = np.random.default_rng(0)
    openers = np.zeros((len(world.phrases), 2))
    for words in range(len(world.phrases)):
        for _ in range(400):
            sentence = world.sentence(words, rng)
            openers[words, any(o and sentence.startswith(o) for o in world.openers)] += 1
    assert chi2_contingency(openers).pvalue > 1e-3
