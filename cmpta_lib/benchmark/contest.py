"""CMPTA, the bare LLM and MSE-Adapter's way on one corpus: one backbone object, the same clips, one process, turn by turn.

The bare LLM's forward and input-gradient backward over the same real tokens is the reference cost: every real position
through every layer, the head at answer positions only, nothing pruned, shared or cached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.benchmark import timer  # waits for the device

from cmpta_lib.base import Resources
from cmpta_lib.benchmark import shapes
from cmpta_lib.benchmark.ancestor import Ancestor
from cmpta_lib.benchmark.options import CORPORA, Options
from cmpta_lib.config import CmptaConfig, DataConfig, EvaluationConfig, LLMConfig, RunConfig, TrainingConfig
from cmpta_lib.data.corpus import Sample
from cmpta_lib.fast.llm import packed_logits
from cmpta_lib.fast.packing import Ragged
from cmpta_lib.fast.prompted import PromptBatch, PromptedLM
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.paper import PUBLIC_SHAPES
from cmpta_lib.runs import loop, provenance

OURS, REFERENCE, ANCESTOR = CONTENDERS = ("ours", "floor", "ancestor")  # as columns of the stored tables begin
PARTS = ("data", "adapter", "LLM forward", "LLM backward", "optimiser")
PEAK_STEPS = 2  # the first makes what the optimiser keeps
_RATE = 1e-6  # weights move, and stay where they began
PRODUCT = {"cuda": (8192, 20), "cpu": (2048, 5)}  # width and number of the products that the peak is measured with


@dataclass
class Times:
    """What was measured, milliseconds a row.

    Attributes:
        steps: a training batch each: the three contenders, real `tokens` that the LLM reads, real `frames`, and
            `operations` of the reference in products with the LLM's weights.
        answers: of a clip of the validation split: "ours" and "ancestor".
        parts: a step of ours each: `PARTS`.
        peak_rate: floating-point operations a second of a large matrix product.
    """

    steps: pd.DataFrame
    answers: dict[str, float]
    parts: pd.DataFrame
    peak_rate: float


class Contest:
    """Contenders before the same LLM, and the batches that they take turns with.

    Args:
        llm: the backbone; built where none is given.
    """

    def __init__(self, options: Options, llm: FrozenLLM | None = None) -> None:
        self.options, self.corpus = options, shapes.corpus(options)
        self.train = self.corpus.splits["train"]
        self.llm = llm or shapes.random_llm(options.backbone, self.train.table["text"], options.vocabulary)
        self.config = RunConfig(
            data=DataConfig(name=self.corpus.name, fingerprint=self.corpus.fingerprint),
            method=CmptaConfig(dim=options.dim, llm=LLMConfig(name=options.backbone)),
            training=TrainingConfig(batch_size=options.batch_size, num_threads=torch.get_num_threads()),
            evaluation=EvaluationConfig(batch_size=options.answered),
            seed=options.seed,
        )
        built = loop.build(self.config, self.corpus, Resources(self.llm.device, lambda _: self.llm))
        assert isinstance(built, PromptedLM)
        self.method = built
        self.optimizer = loop.optimizer_of(built.groups(self.config.training), self.config.training)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * _RATE
        limits = (PUBLIC_SHAPES[CORPORA[options.corpus]], shapes.TEXT_LIMIT[options.corpus])
        self.ancestor = Ancestor(self.llm, self.corpus.task, *limits)
        drawn = np.random.default_rng(options.seed).permutation(options.batches * options.batch_size) % len(self.train)
        self.batches: list[list[int]] = drawn.reshape(options.batches, options.batch_size).tolist()

    def run(self) -> Times:
        """Time everything; the first `warm_up` batches do not count."""
        warm_up = self.options.warm_up
        steps = pd.DataFrame([self._steps(batch, turn) for turn, batch in enumerate(self.batches)])
        answers = self._answers()
        parts = pd.DataFrame([self.step_parts(batch) for batch in self.batches[warm_up:]])
        return Times(steps[warm_up:], answers, parts, steps.pop("peak_rate").max())

    def work(self, contender: str, batch: Sequence[int]) -> Callable[[], object]:
        """A contender's step on these clips of the training split. The bare LLM is given at once what it reads."""
        if contender == REFERENCE:
            given = self.given(batch)
            return lambda: reference_step(self.llm, *given)
        if contender == OURS:
            self.method.module.train()
            units = [[clip] for clip in batch]
            return lambda: loop.step(self.method, self.optimizer, self.train, units, self.config.training)
        samples = self.samples(batch)
        return lambda: self.ancestor.step(samples)

    def samples(self, batch: Sequence[int]) -> list[Sample]:
        return [self.train[clip] for clip in batch]

    def given(self, batch: Sequence[int]) -> tuple[Tensor, Ragged, Tensor, Tensor]:
        """What the LLM reads in a step on these clips, without the way there; the embeddings (N, E) are a leaf."""
        collated = self.method.collate(self.samples(batch))
        assert isinstance(collated, PromptBatch)
        with torch.no_grad():
            embeds, layout, positions, targets = self.method.training_inputs(collated)
        return embeds.detach().clone().requires_grad_(True), layout, positions, targets

    def _steps(self, batch: Sequence[int], turn: int) -> dict[str, float]:
        """One step of each; who begins changes from batch to batch."""
        first = turn % len(CONTENDERS)
        found = {name: _milliseconds(self.work(name, batch)) for name in CONTENDERS[first:] + CONTENDERS[:first]}
        frames = sum(len(sample.audio) + len(sample.vision) for sample in self.samples(batch))
        embeds, _, positions, _ = self.given(batch)
        operations = reference_operations(self.llm, len(embeds), len(positions))
        return found | {"tokens": len(embeds), "frames": frames, "operations": operations, "peak_rate": self._peak_rate()}

    def _answers(self) -> dict[str, float]:
        """Ours answers the validation split as evaluation does, the ancestor in training's batches, in any order."""
        valid, size = self.corpus.splits["valid"], self.options.batch_size
        samples = [valid[clip] for clip in np.random.default_rng(self.options.seed).permutation(len(valid))]
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        if self.options.warm_up:
            self.method.predict(self.method.collate(batches[0]))
            self.ancestor.answer(batches[0])
        works = {
            OURS: lambda: loop.evaluate(self.method, valid, self.config.evaluation.batch_size),
            ANCESTOR: lambda: [self.ancestor.answer(batch) for batch in batches],
        }
        return {name: _milliseconds(work) / len(valid) for name, work in works.items()}

    def _peak_rate(self) -> float:
        """Operations a second of matrix products now: a machine that others share has fast and slow minutes."""
        size, count = PRODUCT[self.llm.device.type]
        dtype, device = self.llm.embedding.weight.dtype, self.llm.device
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        torch.mm(left, right)
        fastest = min(_milliseconds(lambda: torch.mm(left, right)) for _ in range(count))
        return 2 * size**3 / (fastest / 1000)

    def step_parts(self, batch: Sequence[int]) -> dict[str, float]:
        """Milliseconds of each of `PARTS` in one step of ours.

        Forward, the adapter's part is its module's call; backward, a part begins when the gradient reaches what it put out.
        """
        marks: list[tuple[str, float]] = []

        def mark(part: str) -> None:
            marks.append((part, timer()))

        def tokens_made(_: Any, __: Any, made: tuple[Tensor, Any]) -> None:
            mark("LLM forward")
            made[0].register_hook(lambda _: mark("adapter"))

        def logits_made(_: Any, __: Any, logits: Tensor) -> None:
            logits.register_hook(lambda _: mark("LLM backward"))

        trained = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        maker, head = self.method.maker, self.llm.model.get_output_embeddings()
        assert maker is not None
        hooks = [
            maker.register_forward_pre_hook(lambda *_: mark("adapter")),
            maker.register_forward_hook(tokens_made),
            head.register_forward_hook(logits_made),
            torch.autograd.graph.register_multi_grad_hook(trained, lambda _: mark("optimiser")),
        ]
        work = self.work(OURS, batch)
        try:
            mark("data")
            work()
            mark("end")
        finally:
            for hook in hooks:
                hook.remove()
        spent = dict.fromkeys(PARTS, 0.0)
        for (part, start), (_, end) in zip(marks, marks[1:], strict=False):
            spent[part] += 1000 * (end - start)
        return spent


def reference_step(llm: FrozenLLM, embeds: Tensor, layout: Ragged, positions: Tensor, targets: Tensor) -> Tensor:
    """The bare LLM's loss and the gradient of its inputs `embeds`, a leaf; returns the loss, ()."""
    embeds.grad = None
    loss = F.cross_entropy(packed_logits(llm, embeds, layout, positions), targets)
    loss.backward()
    return loss.detach()


def reference_operations(llm: FrozenLLM, tokens: int, answers: int) -> float:
    """Of `reference_step` in products with the LLM's weights: all layers for `tokens`, the head for `answers`, twice each."""
    layers = [weight for name, weight in llm.model.named_parameters() if weight.dim() == 2 and "layers." in name]
    head = llm.model.get_output_embeddings().weight.numel()
    return 4.0 * (tokens * sum(weight.numel() for weight in layers) + answers * head)


def peaks_apart(options: Options) -> dict[str, dict[str, float]]:
    """`peak` of each contender in a process of its own, as on a CPU a peak holds what others left behind.

    Raises:
        RuntimeError: a process was killed, as one that takes all memory may be.
    """
    found = {}
    for name in CONTENDERS:
        threads = (torch.get_num_threads(),)
        with ProcessPoolExecutor(1, get_context("spawn"), initializer=torch.set_num_threads, initargs=threads) as alone:
            try:
                found[name] = alone.submit(_peak_alone, options, name).result()
            except BrokenProcessPool as error:
                raise RuntimeError(f"measuring the memory of '{name}' failed: its process was ended from outside") from error
    return found


def _peak_alone(options: Options, contender: str) -> dict[str, float]:
    return peak(Contest(options), contender)


def peak(contest: Contest, contender: str) -> dict[str, float]:
    """GB in all at the highest, and above what was held before, during two training steps; exact on a GPU."""
    works = [contest.work(contender, batch) for batch in contest.batches[:PEAK_STEPS]]
    provenance.watch()
    name = provenance.ALLOCATED if torch.cuda.is_available() else provenance.RESIDENT
    before = provenance.peaks_gb()[name]
    for work in works:
        work()
    most = provenance.peaks_gb()[name]
    return {"peak": most, "growth": round(most - before, 3)}


def _milliseconds(work: Callable[[], object]) -> float:
    """Of one call, with all that it set off on the device."""
    start = timer()
    work()
    return 1000 * (timer() - start)
