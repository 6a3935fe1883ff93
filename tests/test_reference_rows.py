"""The reference lines: a constant, linear models of scikit-learn, a plain BiLSTM and a tuned soft prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import outputs
from sklearn.linear_model import RidgeCV
from sklearn.svm import LinearSVC
from test_every_method import built, config_of

from cmpta_lib.baselines.reference import NEVER, AttentivePool, SoftPromptConfig
from cmpta_lib.config import override
from cmpta_lib.data.corpus import COLUMNS, Corpus, Sample, Split, Task
from cmpta_lib.runs import loop
from cmpta_lib.runs.checkpoint import State

SCORES, CLASSES = Task("regression", "zh"), Task("classification", "en", ("calm", "glad", "sad"))
TASKS = pytest.mark.parametrize("task", [SCORES, CLASSES], ids=["scores", "classes"])
WIDTHS = {"audio": 4, "vision": 5}


def clip(number: int, frames: tuple[int, int] = (6, 7), text: str = "真是太好了", label: Any = 0, scale: float = 1.0) -> Sample:
    rng = np.random.default_rng(number)
    audio, vision = (
        (scale * rng.standard_normal((length, width))).astype(np.float32)
        for length, width in zip(frames, WIDTHS.values(), strict=True)
    )
    return Sample(f"clip {number}", text, audio, vision, label)


def split_of(samples: list[Sample], task: Task) -> Split:
    lengths = ({f"{modality}_length": len(getattr(sample, modality)) for modality in WIDTHS} for sample in samples)
    rows = [{"id": s.id, "text": s.text, "label": s.label, **length} for s, length in zip(samples, lengths, strict=True)]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"label": float if task.kind == "regression" else np.int64})
    frames = (np.concatenate([getattr(sample, modality) for sample in samples]) for modality in WIDTHS)
    return Split("train", task, table, *frames)


def corpus_of(samples: list[Sample], task: Task) -> Corpus:
    splits = {name: split_of(samples, task) for name in ("train", "valid", "test")}
    return Corpus("own", task, splits, False, {}, {}, "fingerprint")


# Constant ----------------------------------------------------------------------------------------------------------
def test_the_constant_is_the_median_the_mean_or_the_majority(tools):
    scores = [clip(n, label=label) for n, label in enumerate((-1.0, 0.2, 0.4, 0.6, 0.8, 1.0))]
    for statistic, expected in (("median", 0.5), ("mean", 1 / 3)):
        method = built("constant", corpus_of(scores, SCORES), tools, statistic=statistic)
        assert method.predict(method.collate(scores)).values == pytest.approx(6 * [expected])
    classes = [clip(n, label=label) for n, label in enumerate((2, 0, 2, 2, 0))]
    method = built("constant", corpus_of(classes, CLASSES), tools)
    answers = method.predict(method.collate(classes[:2]))
    assert answers.values.tolist() == [2, 2] and answers.replies == ["2", "2"]
    np.testing.assert_allclose(answers.probabilities, 2 * [[3 / 8, 1 / 8, 4 / 8]])  # each counted once more


# Linear ------------------------------------------------------------------------------------------------------------
def pooled_by_hand(method: Any, samples: list[Sample]) -> np.ndarray:
    """(N, F): what `Linear` reads, one clip at a time with numpy."""
    rows = []
    for sample in samples:
        parts = []
        for modality in WIDTHS:
            scaling = method.scaling[modality]
            frames = (getattr(sample, modality).astype(float) - scaling.mean.numpy()) / scaling.std.numpy()
            parts += [frames.mean(0), frames.std(0)] if len(frames) else [np.zeros(frames.shape[1])] * 2
        ids = torch.tensor([method.encoder.token_ids(sample.text)])
        parts.append(method.encoder.states(ids, torch.ones_like(ids).bool())[0].mean(0).detach().double().numpy())
        rows.append(np.concatenate(parts))
    return np.stack(rows)


def labelled(task: Task, count: int = 30) -> list[Sample]:
    texts = ("真是太好了", "差得离谱", "就那么回事", "")
    labels = [round(0.2 * (n % 11) - 1, 1) if task is SCORES else n % 3 for n in range(count)]
    lengths = [(n % 5, 3 + n % 7) for n in range(count)]
    return [clip(n, lengths[n], texts[n % 4], label) for n, label in enumerate(labels)]


@TASKS
def test_it_answers_as_scikit_learn_on_features_pooled_by_hand(task, tools):
    samples = labelled(task)
    method = built("linear", corpus_of(samples, task), tools)
    features = pooled_by_hand(method, samples)
    given = (features - features.mean(0)) / features.std(0)
    settings, labels = method.settings, [sample.label for sample in samples]
    if task is SCORES:
        expected = RidgeCV(settings.alphas).fit(given, labels).predict(given)
        found = method.predict(method.collate(samples)).values
        np.testing.assert_allclose(found, expected.clip(-1, 1), atol=1e-4)
    else:
        expected = LinearSVC(C=settings.svm_c, dual=False, max_iter=10_000).fit(given, labels).decision_function(given)
        np.testing.assert_allclose(outputs(method, samples), expected, atol=1e-4)
        assert method.predict(method.collate(samples)).probabilities is None


def test_a_class_without_a_training_clip_is_never_answered(tools):
    two = [replace(sample, label=(0, 2)[n % 2]) for n, sample in enumerate(labelled(CLASSES, 12))]
    method = built("linear", corpus_of(two, CLASSES), tools)
    assert method.net.bias[1] == NEVER and set(method.predict(method.collate(two)).values) == {0, 2}
    one = [replace(sample, label=1) for sample in two]
    method = built("linear", corpus_of(one, CLASSES), tools)
    assert set(method.predict(method.collate(two)).values) == {1}


@TASKS
def test_features_that_do_not_vary_and_a_training_split_of_one_clip_are_no_trouble(task, tools):
    still = [replace(clip(n), audio=np.full((5 + n, 4), 0.1, np.float32), label=n % 2) for n in range(6)]
    for samples in (still, still[:1], [clip(n, (0, 0), "", n % 2) for n in range(4)], [clip(n, scale=0.0) for n in range(3)]):
        method = built("linear", corpus_of(samples, task), tools)
        assert all(buffer.isfinite().all() for buffer in method.module.buffers())
        assert np.isfinite(method.predict(method.collate([clip(7), clip(8, (0, 0), "")])).values).all()


@pytest.mark.parametrize("name", ["constant", "linear"])
@TASKS
def test_nothing_is_trained_and_its_buffers_hold_all_that_was_learned(name, task, tools, tmp_path):
    samples = labelled(task)
    corpus = corpus_of(samples, task)
    method, state = loop.train(override(config_of(name, {}), {"seed": 1}), corpus, tools, tmp_path)
    again, _ = loop.train(override(config_of(name, {}), {"seed": 2}), corpus, tools, tmp_path)
    assert state == State() and not list(tmp_path.iterdir()) and not method.module.training
    stored, other = method.module.state_dict(), again.module.state_dict()
    assert all(torch.equal(stored[key], other[key]) for key in stored)  # whatever the seed
    loss = method.loss(method.collate(samples))
    assert loss.total.isfinite() and not loss.total.requires_grad and loss.count == len(samples)


# Both that read clips ----------------------------------------------------------------------------------------------
def test_the_bilstm_reads_the_order_of_frames_and_the_linear_model_does_not(tools):
    samples = labelled(SCORES)
    usual = clip(0)
    backwards = replace(usual, audio=usual.audio[::-1].copy(), vision=usual.vision[::-1].copy())
    for name, same in (("linear", True), ("bilstm", False)):
        method = built(name, corpus_of(samples, SCORES), tools)
        found, other = (outputs(method, [sample]) for sample in (usual, backwards))
        assert torch.allclose(found, other, atol=1e-5) == same


def test_attentive_pooling_equals_a_bidirectional_lstm_on_each_clip_alone():
    torch.manual_seed(0)
    pool, sequence, lengths = AttentivePool(3, 4), torch.randn(3, 6, 3), torch.tensor([6, 2, 0])
    both = torch.nn.LSTM(3, 4, batch_first=True, bidirectional=True)
    for name, weight in pool.ahead.named_parameters():
        getattr(both, name).data.copy_(weight.data)
        getattr(both, f"{name}_reverse").data.copy_(getattr(pool.back, name).data)
    found = pool(sequence, lengths)
    for row, length in enumerate(lengths.tolist()):
        if length == 0:
            assert found[row].eq(0).all()
            continue
        states = both(sequence[row : row + 1, :length])[0][0]
        expected = (pool.weigh(states).softmax(0) * states).sum(0)
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=0)


# Soft prompt -------------------------------------------------------------------------------------------------------
def test_six_vectors_are_all_that_is_trained_and_start_as_large_as_embeddings(tools, corpora, llm):
    assert SoftPromptConfig().num_pseudo_tokens == 6
    method = loop.build(config_of("soft_prompt", {"num_pseudo_tokens": 50}), corpora["embedded-sims"], tools)
    (tokens,) = method.module.parameters()
    assert tokens.shape == (50, llm.dim)
    assert tokens.norm(dim=1).mean().item() == pytest.approx(llm.embedding_norm, rel=0.1)
