"""CMPTA as it is trained and evaluated: the training loop's own step, and the evaluation's own answers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from cmpta_lib.base import Resources
from cmpta_lib.benchmark.options import Options
from cmpta_lib.config import (
    CmptaConfig,
    DataConfig,
    EvaluationConfig,
    LLMConfig,
    PromptConfig,
    RunConfig,
    TrainingConfig,
    override,
)
from cmpta_lib.data.corpus import Corpus, Split
from cmpta_lib.fast.prompted import PromptBatch, PromptedLM
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.runs import loop
from cmpta_lib.runs.evaluation import evaluate

_RATE = 1e-6  # weights move, and stay where they began


def config_of(options: Options, corpus: Corpus) -> RunConfig:
    """CMPTA's settings in profile `paper`, but for what the benchmark varies."""
    limit = PromptConfig() if options.text_tokens is None else PromptConfig(max_text_tokens=options.text_tokens)
    return RunConfig(
        data=DataConfig(name=corpus.name, fingerprint=corpus.fingerprint),
        method=CmptaConfig(dim=options.dim, llm=LLMConfig(name=options.backbone), prompt=limit),
        training=TrainingConfig(batch_size=options.batch_size, num_threads=torch.get_num_threads()),
        evaluation=EvaluationConfig(batch_size=options.answered),
        seed=options.seed,
    )


class Ours:
    """A fresh CMPTA before this LLM, with its optimiser."""

    def __init__(self, options: Options, corpus: Corpus, llm: FrozenLLM) -> None:
        self.config, self.train = config_of(options, corpus), corpus.splits["train"]
        built = loop.build(self.config, corpus, Resources(llm.device, lambda _: llm))
        assert isinstance(built, PromptedLM)
        self.method = built
        self.optimizer = loop.optimizer_of(built.groups(self.config.training), self.config.training)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * _RATE

    def step(self, clips: Sequence[int]) -> None:
        """One optimiser step on these clips of the training split."""
        self.method.module.train()
        loop.step(self.method, self.optimizer, self.train, [[clip] for clip in clips], self.config.training)

    def answer(self, split: Split) -> None:
        """Answer a split as evaluation does."""
        evaluate(self.method, split, self.config.evaluation.batch_size)

    def batch(self, clips: Sequence[int]) -> PromptBatch:
        """These clips as a training step lays them out."""
        collated = self.method.collate([self.train[clip] for clip in clips])
        assert isinstance(collated, PromptBatch)
        return collated


def epoch_seconds(options: Options, corpus: Corpus, llm: FrozenLLM) -> float:
    """Of one epoch over this corpus as a run makes it: order, data, steps, validation."""
    config = override(config_of(options, corpus), {"training.epochs": 1, "training.learning_rate": _RATE})
    with tempfile.TemporaryDirectory() as folder:
        _, state = loop.train(config, corpus, Resources(llm.device, lambda _: llm), Path(folder))
    return state.seconds
