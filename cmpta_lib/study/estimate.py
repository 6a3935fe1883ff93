"""How long a study's unfinished runs will take on this machine, from a few measured steps and answers."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cmpta_lib.config import RunConfig, Stage
from cmpta_lib.data.corpus import Corpus
from cmpta_lib.runs.store import Run
from cmpta_lib.runs.trained import tools
from cmpta_lib.study.study import Study

_TIMED_STEPS = 3  # of a method


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
            taken.append(_seconds(one))
        steps[stage.name] = statistics.median(taken[1:])
    method.module.eval()
    clips = [split[index] for index in range(min(len(split), config.evaluation.batch_size))]
    answer = _seconds(lambda: method.predict(method.collate(clips))) / len(clips)
    return _Speed(start, answer, steps)


def _seconds(work: Callable[[], object]) -> float:
    import torch

    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
