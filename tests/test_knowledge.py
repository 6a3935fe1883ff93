"""Statements about face and voice: facts by hand, the generator's own words, other clips', and where they are kept."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from cmpta_lib.beyond.knowledge import ABSENT, WORDINGS, Describer, StatementCache, content_key
from cmpta_lib.data.corpus import MODALITIES, Corpus, Sample, Split
from cmpta_lib.embedded.generative import generative_models

WORLDS = ("embedded-sims", "embedded-meld")
FORM = {"wording": "words", "facts": ("energy", "movement", "course"), "courses": 2, "steady_share": 1 / 3, "donors": 256}


def describer(corpus: Corpus, **settings) -> Describer:
    train = corpus.splits["train"]
    found = Describer({"audio": train.audio_dim, "vision": train.vision_dim}, corpus.task.language, **FORM | settings)
    found.fit(train)
    return found


def by_hand(corpus: Corpus) -> tuple[Describer, Sample]:
    """One that z-scores nothing and follows each modality's first two features, and a clip of zeros."""
    found = describer(corpus)
    for modality in MODALITIES:
        width = getattr(found, f"{modality}_mean").shape[0]
        getattr(found, f"{modality}_mean").zero_()
        getattr(found, f"{modality}_std").fill_(1.0)
        getattr(found, f"{modality}_directions").copy_(torch.eye(2, width))
        getattr(found, f"{modality}_cuts").copy_(torch.tensor([[0.1, 0.5], [0.1, 0.2]]))
        getattr(found, f"{modality}_steady").fill_(1.0)
    train = corpus.splits["train"]
    return found, Sample("x", "", np.zeros((4, train.audio_dim), np.float32), np.zeros((4, train.vision_dim), np.float32))


def test_facts_by_hand(corpora):
    found, clip = by_hand(corpora["embedded-sims"])  # 25 and 177 features
    assert found.facts(clip).tolist() == [[0, 0, 0, 0], [0, 0, 0, 0]]
    audio = clip.audio.copy()
    audio[1, 0], audio[3, 0] = 3.0, -3.0  # up, then down: energy sqrt(18/100) = 0.42, movement 12 / 75 = 0.16
    audio[:, 1] = [0.0, 0.9, 0.0, 0.0]  # too small a range
    voice = found.facts(replace(clip, audio=audio))[0]
    assert np.sqrt((audio**2).mean()) == pytest.approx(0.434, abs=1e-3)
    assert np.abs(np.diff(audio, axis=0)).mean() == pytest.approx(13.8 / 75 - 3 / 75, abs=1e-6)
    assert voice.tolist() == [1, 1, 1, 0]
    assert found.facts(replace(clip, audio=audio[::-1].copy()))[0].tolist() == [1, 1, 2, 0]
    assert found.facts(replace(clip, audio=10 * audio))[0].tolist() == [2, 2, 1, 2]  # now the second course is seen: low, high
    assert found.facts(replace(clip, audio=audio[:0]))[0].tolist() == [ABSENT] * 4
    assert found.facts(replace(clip, audio=audio[:1]))[0].tolist() == [0, 0, 0, 0]


def test_statements_by_hand(corpora):
    facts = np.array([[2, 0, 1, 0], [ABSENT] * 4])
    english, chinese = (describer(corpora[world]) for world in reversed(WORLDS))
    assert english.statement(facts) == "voice strong, slow, rises then falls, steady; face absent."
    assert chinese.statement(facts) == "声音强度高、变化慢、先升后降、起伏平稳；表情缺失。"
    assert english.statement(facts, ("vision",)) == "face absent." and english.statement(facts, ()) == ""
    short = describer(corpora["embedded-sims"], facts=["course"], wording="signs")
    assert short.statement(facts) == "（话+-0，样.）"


@pytest.mark.parametrize("key", WORDINGS)
def test_other_facts_are_another_statement(key, corpora):
    corpus = corpora["embedded-sims" if key[0] == "zh" else "embedded-meld"]
    found = describer(corpus, wording=key[1], courses=1)
    rows = [[ABSENT] * 3, *np.ndindex(3, 3, 3)]
    statements = {found.statement(np.array([voice, face])) for voice in rows for face in rows}
    assert len(statements) == len(rows) ** 2 and not any("\n" in statement for statement in statements)


@pytest.mark.parametrize("world", WORLDS)
def test_levels_are_thirds_of_the_training_clips_and_labels_change_nothing(world, corpora):
    corpus = corpora[world]
    found = describer(corpus)
    facts = np.array([found.facts(sample) for sample in corpus.splits["train"]])
    for modality in range(2):
        present = facts[facts[:, modality, 0] != ABSENT, modality]
        assert all(np.ptp(np.bincount(fact, minlength=3)) <= 2 for fact in present.T[:2])
        assert all(abs((course == 0).mean() - 1 / 3) < 0.1 for course in present.T[2:])
    train = relabelled(corpus.splits["train"])
    assert (train.labels != corpus.splits["train"].labels).any()
    first, second = found.state_dict(), describer(replace(corpus, splits=corpus.splits | {"train": train})).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_courses_direction_is_where_frames_differ_most(corpora):
    corpus = corpora["embedded-meld"]
    found, train = describer(corpus), corpus.splits["train"]
    mean, std = train.feature_statistics("audio")
    scaled = np.concatenate([(sample.audio.astype(float) - mean) / std for sample in train])
    variances = np.linalg.svd(scaled, compute_uv=False)[:2] ** 2
    directions = found.audio_directions.numpy()
    np.testing.assert_allclose(((scaled @ directions.T) ** 2).sum(0), variances, rtol=1e-6)
    assert (np.take_along_axis(directions, np.abs(directions).argmax(1)[:, None], 1) > 0).all()


def relabelled(split: Split) -> Split:
    table = split.table.copy()
    table["label"] = table["label"].to_numpy()[::-1].copy()
    return Split(split.name, split.task, table, split._frames["audio"], split._frames["vision"])


@pytest.mark.parametrize("world", WORLDS)
def test_the_generators_words_are_what_the_tiny_llm_has_read(world, corpora):
    corpus, known = corpora[world], generative_models()[world]
    found = describer(corpus)
    for sample in corpus.splits["train"]:
        face, voice = (cues.values.index(sample.extra[n]) for cues, n in ((known.face, "face"), (known.voice, "voice")))
        written = found.cue(sample, MODALITIES)
        assert written + found.wording.gap * bool(written) == known.directions(face, voice)
    shown = next(sample for sample in corpus.splits["train"] if sample.extra["face"] and sample.extra["voice"])
    assert found.cue(shown, ("vision",)) + found.cue(shown, ("audio",)) == found.cue(shown, MODALITIES).replace(") (", ")(")
    with pytest.raises(ValueError, match="has no known cues: knowledge='cue' needs a corpus whose generator"):
        found.cue(replace(shown, extra={}), MODALITIES)


@pytest.mark.parametrize(("kind", "world"), [("features", "embedded-sims"), ("cue", "embedded-meld")])
def test_another_clips_statement_is_of_a_training_clip_that_is_not_this_one(kind, world, corpora):
    train = corpora[world].splits["train"]
    for donors in (2, 256):
        found = describer(corpora[world], donors=donors)
        own = [found.cue(s, MODALITIES) if kind == "cue" else found.of_frames(s, MODALITIES) for s in train]
        other = [found.of_another(s, kind, MODALITIES) for s in train]
        assert set(other) <= set(own)
        assert all(said != statement for said, statement in zip(other, own, strict=True) if own.count(statement) == 1)
        renamed = [replace(sample, id="other", label=None, speaker=None, extra={}) for sample in train]
        assert [found.of_another(sample, kind, MODALITIES) for sample in renamed] == other
    assert sum(a != b for a, b in zip(own, other, strict=True)) > len(train) / 2


def test_the_content_is_what_is_said_heard_and_seen(corpora):
    sample = corpora["embedded-sims"].splits["train"][0]
    same = replace(sample, id="y", label=None, speaker="z", dialogue="d", extra={})
    assert content_key(same) == content_key(sample)
    changed = [replace(sample, text="另一句"), replace(sample, audio=sample.audio[1:]), replace(sample, vision=-sample.vision)]
    assert len({content_key(one) for one in (sample, *changed)}) == 4


def test_more_courses_than_features_are_steady():
    found = Describer({"audio": 1, "vision": 2}, "en", **FORM | {"courses": 3})
    frames = np.random.default_rng(0).standard_normal((6, 1)).astype(np.float32)

    class Few(list):
        def feature_statistics(self, modality):
            width = 1 if modality == "audio" else 2
            return np.zeros(width, np.float32), np.ones(width, np.float32)

    train = Few(Sample(str(n), "", frames * n, np.zeros((0, 2), np.float32)) for n in range(1, 4))
    found.fit(train)
    assert found.facts(train[2])[0, 3:].tolist() == [0, 0] and found.facts(train[2])[1].tolist() == [ABSENT] * 5


def test_statements_are_found_again_by_another_process_and_a_damaged_line_is_not_believed(tmp_path):
    first = StatementCache("abc", tmp_path / "deep")
    for found in ({"1": ["你好", "a\nb"], "2": []}, {"1": ["later"]}, {"3": ["statement 3"]}, {"4": ["the last"]}):
        first.add(found)
    kept = {"1": ["你好", "a\nb"], "2": [], "3": ["statement 3"], "4": ["the last"]}
    assert StatementCache("abc", tmp_path / "deep") == kept
    assert StatementCache("abd", tmp_path / "deep") == StatementCache("abc", None) == {}
    shutil.copy(first.path, tmp_path / "deep" / "abd.txt")
    another = StatementCache("abd", tmp_path / "deep")
    assert another == {} and another.refused == 5, "what one model said is no statement of another, whatever the file is called"
    text = first.path.read_text()
    first.path.write_text(text.replace("statement 3", "statement 7")[:-9])  # one changed, the last one cut
    damaged = StatementCache("abc", tmp_path / "deep")
    assert damaged == {"1": kept["1"], "2": []}
    damaged.add({"4": ["anew"]})
    assert StatementCache("abc", tmp_path / "deep")["4"] == ["anew"]
