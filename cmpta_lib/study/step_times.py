"""How long a training step takes, beside its floor: the bare frozen LLM's forward and backward on the same real tokens.

From the same measurement comes the estimate of how long a study's unfinished runs will take on this machine.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cmpta_lib.config import RunConfig, Stage
from cmpta_lib.data.corpus import Corpus
from cmpta_lib.runs import memory
from cmpta_lib.runs.store import Run
from cmpta_lib.runs.trained import tools
from cmpta_lib.study.study import Study

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from cmpta_lib.data.corpus import Split
    from cmpta_lib.methods.prompted_lm import PromptedLM

STEPS = 20
WARM_UP = 3
_TIMED_STEPS = 3  # of a method, for an estimate of hours


def step_times(
    study: Study, steps: int = STEPS, batch_size: int | None = None, keys: Sequence[str] | None = None
) -> pd.DataFrame:
    """Median milliseconds of a step's parts on each corpus over `steps` different batches, and its ratio to the floor.

    Peak memory is the GPU's where there is one, else this process's. Nothing is written.
    """
    import pandas as pd
    import torch

    from cmpta_lib.methods.prompted_lm import PromptedLM
    from cmpta_lib.training import loop

    rows = []
    for key in study.keys if keys is None else keys:
        config, corpus = study.config(key), study.corpus(key)
        split, size = corpus.splits["train"], batch_size or config.training.batch_size
        torch.set_num_threads(config.training.num_threads)
        memory.watch()
        method = loop.build(config, corpus, tools(study.root))
        assert isinstance(method, PromptedLM)
        optimizer = torch.optim.AdamW(method.module.parameters(), lr=1e-6)
        generator = torch.Generator().manual_seed(config.seed)
        warm = WARM_UP if steps > WARM_UP else 0
        order = torch.randperm(len(split), generator=generator).repeat(1 + (steps + warm) * size // len(split))
        times: dict[str, list[float]] = {"floor": [], "step": [], "answer": []}
        positions = []
        for batch in order.split(size)[: steps + warm]:
            one, count = _measure(method, optimizer, split, batch.tolist())
            positions.append(count)
            for name, value in one.items():
                times[name].append(value)
        peaks = memory.peaks_gb()
        bare, whole, reply = (statistics.median(times[name][warm:]) for name in ("floor", "step", "answer"))
        rows.append(
            {
                "corpus": corpus.name,
                **{name: len(part) for name, part in corpus.splits.items()},
                "batch": size,
                "LLM positions": round(statistics.median(positions)),
                "bare LLM forward + backward ms": round(bare, 1),
                "training step ms": round(whole, 1),
                "step / floor": round(whole / bare, 2),
                "answer ms": round(reply, 1),
                "peak GB": round(peaks.get(memory.ALLOCATED, peaks[memory.RESIDENT]), 2),
                "threads": config.training.num_threads,
            }
        )
    return pd.DataFrame(rows)


def _measure(
    method: PromptedLM, optimizer: torch.optim.Optimizer, split: Split, indices: list[int]
) -> tuple[dict[str, float], int]:
    """Milliseconds of a whole step, of answering and of the bare LLM on one batch, and its number of LLM positions."""
    import torch

    from cmpta_lib.training import loop

    method.module.train()
    drawn, settings = [[index] for index in indices], method.config.training
    step = _milliseconds(lambda: loop.step(method, optimizer, split, drawn, settings))
    method.module.eval()
    samples = [split[i] for i in indices]
    answer = _milliseconds(lambda: method.predict(method.collate(samples)))
    with torch.no_grad():
        embeds, packing, positions, _ = method.training_inputs(method.collate(samples))
    leaf = embeds.clone().requires_grad_(True)
    floor = _milliseconds(lambda: method.llm.logits(leaf, packing, positions).logsumexp(-1).sum().backward())
    return {"step": step, "answer": answer, "floor": floor}, embeds.shape[0]


def hours(study: Study, runs: Sequence[Run]) -> float:
    """Hours that these runs take here, one after another, unfinished ones only.

    A few steps and one batch of answers of each method are timed on each corpus; versions of a method count alike.
    """
    corpora = {study.corpus(key).name: study.corpus(key) for key in study.keys}
    known: dict[tuple[str, ...], _Speed] = {}
    total, made = 0.0, set((study.cache / "stages").glob("*"))
    for run in runs:
        if run.done:
            continue
        config, corpus = run.config, corpora[run.config.data.name]
        stages = [stage.name for stage in config.stages]
        alike = (corpus.name, config.method.name, str(config.method.model_dump().get("llm", {}).get("name")), *stages)
        if alike not in known:
            known[alike] = _speed(config, corpus, study.root)
        speed, units = known[alike], _units(corpus, config.method.name)
        valid, test = (len(corpus.splits[name]) * speed.answer for name in ("valid", "test"))
        total += speed.start + valid + test
        for stage in config.stages:
            if stage.name not in speed.steps or (path := _common(study.cache, stage)) in made:
                continue
            made |= {path} if path else set()
            steps = math.ceil(units / stage.training.batch_size) * speed.steps[stage.name]
            total += stage.training.epochs * (steps + (valid if stage.is_labelled else 0))
    return total / 3600


def _common(cache: Path, stage: Stage) -> Path | None:
    """Where the result of a stage lies that several runs share."""
    from cmpta_lib.training import shared

    return None if stage.outcome is None else shared.path_of(cache / "stages", stage)


def _units(corpus: Corpus, method: str) -> int:
    """How many units an epoch draws from."""
    from cmpta_lib.methods.registry import method_class
    from cmpta_lib.training.evaluation import units

    return len(units(corpus.splits["train"], method_class(method).unit))


@dataclass(frozen=True)
class _Speed:
    """Seconds to build and fit a method, for one answer, and for a step of each stage that trains anything."""

    start: float
    answer: float
    steps: Mapping[str, float]


def _speed(config: RunConfig, corpus: Corpus, root: Path) -> _Speed:
    from cmpta_lib.training import evaluation, loop

    started = time.perf_counter()
    method = loop.build(config, corpus, tools(root))
    start = time.perf_counter() - started
    split, steps = corpus.splits["train"], {}
    for stage in config.stages:
        method.enter(stage)
        groups = [group for group in method.groups(stage.training) if group.parameters]
        if not groups:
            continue
        optimizer = loop.optimizer_of(groups, stage.training)
        drawn, size, taken = evaluation.units(split, method.unit), stage.training.batch_size, []
        method.module.train()
        for number in range(1 + _TIMED_STEPS):  # the first warms up
            batch = [drawn[(number * size + place) % len(drawn)] for place in range(min(size, len(drawn)))]
            one = partial(loop.step, method, optimizer, split, batch, stage.training, labelled=stage.is_labelled)
            taken.append(_milliseconds(one) / 1000)
        steps[stage.name] = statistics.median(taken[1:])
    method.module.eval()
    clips = [split[index] for index in range(min(len(split), config.evaluation.batch_size))]
    answer = _milliseconds(lambda: method.predict(method.collate(clips))) / 1000 / len(clips)
    return _Speed(start, answer, steps)


def _milliseconds(work: Callable[[], object]) -> float:
    import torch

    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started)
