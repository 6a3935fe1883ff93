"""Ours, floor and ancestor-style on one corpus: one backbone object, the same clips, one process, turn by turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from cmpta_lib.benchmark import floor, shares
from cmpta_lib.benchmark.options import Options
from cmpta_lib.benchmark.times import ANCESTOR, CONTENDERS, FLOOR, OURS, Times
from cmpta_lib.benchmark.timing import matmul_peak, milliseconds
from cmpta_lib.data.corpus import Corpus, Sample, Split
from cmpta_lib.fast.prompted import PromptBatch, PromptedLM
from cmpta_lib.method.llm import FrozenLLM


class Trained(Protocol):
    """The method as it is trained and evaluated: `ours.Ours`."""

    method: PromptedLM
    optimizer: torch.optim.Optimizer

    def step(self, clips: Sequence[int]) -> None: ...
    def batch(self, clips: Sequence[int]) -> PromptBatch: ...
    def answer(self, split: Split) -> None: ...


class Padded(Protocol):
    """The ancestor's way: `ancestor.Ancestor`."""

    def step(self, samples: Sequence[Sample]) -> float: ...
    def answer(self, samples: Sequence[Sample]) -> list[str]: ...


class Contest:
    """Contenders before the same LLM, and the batches that they take turns with."""

    def __init__(self, options: Options, corpus: Corpus, llm: FrozenLLM, ours: Trained, ancestor: Padded) -> None:
        self.options, self.corpus, self.llm, self.ours, self.ancestor = options, corpus, llm, ours, ancestor
        train, needed = corpus.splits["train"], options.batches * options.batch_size
        generator = torch.Generator().manual_seed(options.seed)
        order = torch.cat([torch.randperm(len(train), generator=generator) for _ in range(1 + needed // len(train))])
        self.batches: list[list[int]] = [batch.tolist() for batch in order[:needed].split(options.batch_size)]

    def run(self) -> Times:
        """Time everything; the first `warm_up` batches do not count."""
        times, warm_up = Times(), self.options.warm_up
        for number, batch in enumerate(self.batches):
            self._step(batch, times if number >= warm_up else Times(), turn=number)
            times.peak_rate = max(times.peak_rate, self._peak_rate())
        for number, part in enumerate(self.evaluation_batches()):
            if number == 0 and warm_up:
                self._answer(_subset(part, np.arange(min(len(part), self.options.batch_size))), Times())
            self._answer(part, times)
        for batch in self.batches[warm_up:]:
            parts, operations = self._parts(batch)
            times.parts.append(parts)
            times.products.append(operations)
            times.peak_rate = max(times.peak_rate, self._peak_rate())
        return times

    def _peak_rate(self) -> float:
        """Of matrix products now: a machine that others share has fast and slow minutes, and so its best is sought often."""
        return matmul_peak(self.llm.device, self.llm.embedding.weight.dtype)

    def work(self, contender: str, batch: Sequence[int]) -> Callable[[], object]:
        """A contender's step on these clips of the training split. The floor is given at once what the LLM reads.

        Raises:
            ValueError: there is no such contender.
        """
        if contender == FLOOR:
            inputs = self.given(batch)
            return lambda: floor.step(self.llm, inputs)
        if contender == OURS:
            return lambda: self.ours.step(batch)
        if contender != ANCESTOR:
            raise ValueError(f"no contender '{contender}'; there are: {', '.join(CONTENDERS)}")
        samples = self._samples(batch)
        return lambda: self.ancestor.step(samples)

    def given(self, batch: Sequence[int]) -> floor.Given:
        """What the LLM reads in a step on these clips."""
        return floor.given(self.ours.method, self.ours.batch(batch))

    def frames(self, batch: Sequence[int]) -> int:
        """Real frames of voice and face in these clips."""
        return sum(len(sample.audio) + len(sample.vision) for sample in self._samples(batch))

    def _samples(self, batch: Sequence[int]) -> list[Sample]:
        return [self.corpus.splits["train"][clip] for clip in batch]

    def _step(self, batch: Sequence[int], times: Times, turn: int) -> None:
        """One step of each; who begins changes from batch to batch."""
        first = turn % len(CONTENDERS)
        for name in CONTENDERS[first:] + CONTENDERS[:first]:
            times.steps[name].append(milliseconds(self.work(name, batch), self.llm.device))
        inputs = self.given(batch)
        times.tokens.append(inputs.tokens)
        times.frames.append(self.frames(batch))
        times.operations.append(floor.operations(self.llm, inputs))

    def _parts(self, batch: Sequence[int]) -> tuple[dict[str, float], float]:
        self.ours.method.module.train()
        return shares.step_parts(self.ours.method, self.ours.optimizer, lambda: self.ours.step(batch))

    def evaluation_batches(self) -> list[Split]:
        """As many whole batches of the validation split as are timed, as evaluation makes them: clips of like length.

        They stand evenly among all batches, short and long, so that their mean cost is that of the whole split.
        """
        valid, size = self.corpus.splits["valid"], self.options.answered
        lengths = valid.table["audio_length"].to_numpy() + valid.table["vision_length"].to_numpy()
        order, count = np.argsort(lengths, kind="stable"), self.options.answers
        whole = len(order) // size
        places = [int((number + 0.5) * whole / count) for number in range(count)]
        return [_subset(valid, order[place * size : (place + 1) * size]) for place in places]

    def _answer(self, part: Split, times: Times) -> None:
        """Ours answers a batch as evaluation does, the ancestor the same clips in training's batches, in any order."""
        size, step = len(part), self.options.batch_size
        samples = [part[clip] for clip in np.random.default_rng(self.options.seed).permutation(size)]
        batches = [samples[start : start + step] for start in range(0, size, step)]
        works: dict[str, Callable[[], object]] = {
            OURS: lambda: self.ours.answer(part),
            ANCESTOR: lambda: [self.ancestor.answer(batch) for batch in batches],
        }
        for name, work in works.items():
            times.answers[name].append(milliseconds(work, self.llm.device) / size)


def _subset(split: Split, rows: np.ndarray) -> Split:
    """Some clips of a split, in this order."""
    audio, vision = (np.concatenate([getattr(split[int(row)], m) for row in rows]) for m in ("audio", "vision"))
    return Split(split.name, split.task, split.table.iloc[rows], audio, vision)
