"""The test split is not looked at before the end: other labels and noise in it change no byte of what is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_every_method
import torch
from test_every_method import METHODS

from cmpta_lib import registry
from cmpta_lib.base import Resources
from cmpta_lib.config import RunConfig, override
from cmpta_lib.data.corpus import MODALITIES, Corpus, Inputs, Split
from cmpta_lib.runs import loop

UNTRAINED = ("text_only", "constant", "linear")  # no gradient, so no epoch to choose


def config_of(name: str) -> RunConfig:
    return override(test_every_method.config_of(name, {}), {"training.epochs": 3, "training.learning_rate": 0.01})


def with_another_test_split(corpus: Corpus) -> Corpus:
    """The same corpus; in its test split clips have other labels, another share of each, and noise for frames."""
    test, rng = corpus.splits["test"], np.random.default_rng(0)
    labels = test.labels % 2 - 1 if corpus.task.kind == "regression" else (test.labels + 1) % len(corpus.task.labels)
    frames = []
    for modality in MODALITIES:
        _, std = test.feature_statistics(modality)
        count = int(test.table[f"{modality}_length"].sum())
        frames.append((rng.standard_normal((count, len(std))) * std).astype(np.float32))
    other = Split("test", corpus.task, test.table.assign(label=labels), *frames)
    assert (other.labels != test.labels).any() and sorted(other.labels) != sorted(test.labels)
    return replace(corpus, splits=corpus.splits | {"test": other})


def both_outcomes(name: str, corpus: Corpus, tools: Resources, folder: Path) -> list[dict[str, Any]]:
    """What training gives on the corpus, and on the one with another test split."""
    found = []
    for number, given in enumerate((corpus, with_another_test_split(corpus))):
        method, state = loop.train(config_of(name), given, tools, folder / str(number))
        weights = {name: weight.numpy().tobytes() for name, weight in method.module.state_dict().items()}
        found.append({"weights": weights, "history": state.history, "best_epoch": state.best_epoch})
    return found


@pytest.mark.parametrize(
    ("name", "world"), [*zip([*METHODS, "small"], len(METHODS) * ["embedded-sims", "embedded-meld"], strict=False)]
)
def test_training_does_not_depend_on_the_test_split(name, world, small, corpora, tools, tmp_path):
    given, other = both_outcomes(name, corpora[world], tools, tmp_path)
    assert given == other
    assert bool(given["weights"]) == (name != "text_only") and bool(given["history"]) == (name not in UNTRAINED)


def chosen_on_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint chosen by its test score."""
    train, evaluate = loop.train, loop.evaluate

    def faulty(config, corpus, *rest):
        monkeypatch.setattr(loop, "evaluate", lambda method, split, *size: evaluate(method, corpus.splits["test"], *size))
        return train(config, corpus, *rest)

    monkeypatch.setattr(loop, "train", faulty)


def scaled_by_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Feature statistics of the test split."""

    def faulty(config, corpus, tools):
        torch.manual_seed(config.seed)
        method = registry.build(config, Inputs.of(corpus), tools)
        method.fit(corpus.splits["test"])
        return method

    monkeypatch.setattr(loop, "build", faulty)


# That a fault would be noticed needs few methods: trained in one stage and in two, with statistics and with clip state.
FAULTS = [
    *((name, chosen_on_the_test_split) for name in ("cmpta", "self_mm", "mmgcn", "small")),
    *((name, scaled_by_the_test_split) for name in ("cmpta", "self_mm", "constant", "linear", "small")),
]


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_a_look_at_the_test_split_would_be_noticed(name, fault, small, corpora, tools, tmp_path, monkeypatch):
    fault(monkeypatch)
    if fault is scaled_by_the_test_split and registry.method_class(name).keeps_clip_state:
        with pytest.raises(ValueError, match="none of them"):  # it knows which clips it was fitted to
            both_outcomes(name, corpora["embedded-sims"], tools, tmp_path)
        return
    given, other = both_outcomes(name, corpora["embedded-sims"], tools, tmp_path)
    assert given != other
