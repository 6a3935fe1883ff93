"""How long runs take, from the time of a step and of an answer: measured here on the study's own clips, or anywhere else.

Seconds of a run: what is not repeated, epochs × steps, the validation answers of every epoch, and the answers at its end.
Finished runs take none; a stage that several runs share is counted with the first of them.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from cmpta_lib import paper, registry
from cmpta_lib.config import DataConfig, RunConfig, Stage
from cmpta_lib.data.corpus import Corpus
from cmpta_lib.runs import provenance as memory
from cmpta_lib.runs.load import resources
from cmpta_lib.study import plan
from cmpta_lib.study.forecast import Asked, Forecast
from cmpta_lib.study.plan import Planned, Row
from cmpta_lib.study.profiles import applied, settings_of
from cmpta_lib.study.study import Study

_TIMED_STEPS = 3  # of a method
_Found = TypeVar("_Found")


class Kind(NamedTuple):
    """Runs that count alike, versions of a method among them."""

    key: str  # the corpus': "sims", "meld" or "data"
    method: str
    llm: str = ""  # the role of a row's own LLM, as in `Row`
    stages: tuple[str, ...] = ("training",)


@dataclass(frozen=True)
class Speed:
    """What a kind of run takes, in seconds.

    `answer`: for one clip. `steps`: for a step of each stage that trains anything, by the stage's name. `start`: once a run,
    to build and fit. `unit`: what a step's batch is drawn from. `gpu_gb`: its most memory on the GPU, where there is one.
    """

    answer: float
    steps: Mapping[str, float] = field(default_factory=dict)
    start: float = 0.0
    unit: Literal["clip", "dialogue"] = "clip"
    gpu_gb: float = 0.0

    @classmethod
    def of(cls, step_ms: float, answer_ms: float) -> Speed:
        """From a benchmark's milliseconds per step and per answered clip, for a method of one stage."""
        return cls(answer_ms / 1000, {"training": step_ms / 1000})


@dataclass(frozen=True)
class Sizes:
    """Clips by split, and the training dialogues."""

    train: int
    valid: int
    test: int
    dialogues: int


_PUBLISHED_DIALOGUES = {"SIMS-V2": 2722, "MELD": 1038}  # of training; SIMS-V2's clips stand alone
PUBLISHED: Mapping[str, Sizes] = {  # corpus -> what the paper's Table 1 says of it
    key: Sizes(said.train, said.valid, said.test, _PUBLISHED_DIALOGUES[name])
    for key, (name, said) in zip(("sims", "meld"), paper.TABLE1.items(), strict=True)
}
# What counts as CMPTA where nothing else was measured: the same LLM, prompt and answers around another token maker.
LIKE_CMPTA: Mapping[str, str] = dict.fromkeys(("soft_prompt", "mse_adapter", "text_only"), "cmpta")


def seconds(config: RunConfig, sizes: Sizes, speed: Speed, made: set[str]) -> float:
    """Of one unfinished run.

    Args:
        made: shared stages that are there, by the names of their files; those that this run makes are added.
    """
    units = sizes.train if speed.unit == "clip" else sizes.dialogues
    total = speed.start + (sizes.valid + sizes.test) * speed.answer
    for stage in config.stages:
        if stage.name not in speed.steps or (common := _common(stage)) in made:
            continue
        made |= {common} if common else set()
        steps = math.ceil(units / stage.training.batch_size) * speed.steps[stage.name]
        total += stage.training.epochs * (steps + (sizes.valid * speed.answer if stage.is_labelled else 0))
    return total


def _common(stage: Stage) -> str:
    """The file of a stage that several runs share."""
    from cmpta_lib.runs import checkpoint as shared

    return "" if stage.outcome is None else shared.path_of(Path(), stage).name


@dataclass(frozen=True)
class Costs:
    """What planned runs take; `speeds` may lack kinds, whose runs then count as unknown.

    `configs` and `sizes` need no corpus in a projection. `made`: shared stages that are there already.
    """

    speeds: Mapping[Kind, Speed]
    config: Callable[[Planned], RunConfig]
    sizes: Callable[[str], Sizes]
    done: Callable[[Planned], bool] = lambda one: False
    made: frozenset[str] = frozenset()

    def __call__(self, runs: Sequence[Planned]) -> list[float | None]:
        """Seconds of each of these runs, made in this order and with nothing else; 0 where finished, None where unknown."""
        made = set(self.made)
        return [self._seconds(one, made) for one in runs]

    def _seconds(self, one: Planned, made: set[str]) -> float | None:
        if self.done(one):
            return 0.0
        config = self.config(one)
        speed = self.speeds.get(kind_of(one, config))
        return None if speed is None else seconds(config, self.sizes(one.key), speed, made)


def kind_of(one: Planned, config: RunConfig) -> Kind:
    return Kind(one.key, one.row.method, one.row.llm, tuple(stage.name for stage in config.stages))


# --- elsewhere --------------------------------------------------------------------------------------------------------


def projected(
    study: Study,
    speeds: Mapping[Kind, Speed],
    sizes: Mapping[str, Sizes] = PUBLISHED,
    alike: Mapping[str, str] = LIKE_CMPTA,
) -> Costs:
    """Costs of a study's runs where these speeds were measured, its corpora having these sizes; nothing of it need be here.

    Nothing counts as finished.

    Args:
        study: such as `Study("paper")`.
        speeds: for example `{Kind("sims", "cmpta"): Speed.of(step_ms=..., answer_ms=...)}`.
        alike: method -> the method as which it counts where it was not measured itself; with the study's LLM only.
    """
    known = dict(speeds)
    for kind, speed in speeds.items():
        for other in (name for name, like in alike.items() if like == kind.method and not kind.llm):
            trains = registry.ENTRIES[other].is_trained
            known.setdefault(kind._replace(method=other), speed if trains else replace(speed, steps={}))
    return Costs(known, _remembered(lambda one: outlined(study, one.key, one.row, one.seed)), sizes.__getitem__)


def projection(study: Study, speeds: Mapping[Kind, Speed], jobs: int = 1) -> Forecast:
    """What `projected` costs come to by notebook and claim, for what reproduces the paper; `forecast.screen` prints it."""
    notebooks = [notebook for notebook in plan.NOTEBOOKS if not notebook.is_beyond]
    asked = Asked(notebooks, study.keys, {key: key for key in study.keys}, study.seeds, jobs=jobs)
    return Forecast(asked, projected(study, speeds))


def outlined(study: Study, key: str, row: Row, seed: int) -> RunConfig:
    """A run's config without what its corpus and models say of themselves: stages, epochs, batches are as in `Study.config`."""
    entry = registry.ENTRIES[row.method]
    base = RunConfig(data=DataConfig(name=study.settings.corpora[key], fingerprint=""), method=entry.defaults(), seed=seed)
    return applied(base, settings_of(study.profile, key, row, entry.settings) | study.changes, row)


# --- here -------------------------------------------------------------------------------------------------------------


def measured(study: Study, runs: Sequence[Planned]) -> Costs:
    """Costs of these runs on this machine: of each kind that is not finished, a few steps and a batch of answers are timed.

    Raises:
        ValueError, OSError: as `Study.config`.
    """
    found = _remembered(lambda one: study.run(one.key, one.row, one.seed))
    kinds: dict[Kind, RunConfig] = {}
    for one in runs:
        if not found(one).done:
            kinds.setdefault(kind_of(one, found(one).config), found(one).config)
    speeds: dict[Kind, Speed] = {}
    for backbone in dict.fromkeys(map(_backbone, kinds.values())):  # each is loaded once, as a worker does
        alike = {kind: config for kind, config in kinds.items() if _backbone(config) == backbone}
        for number, (kind, config) in enumerate(alike.items()):
            speeds[kind] = _speed(config, study.corpus(kind.key), study.root, is_loaded=number > 0)
    return Costs(
        speeds,
        config=lambda one: found(one).config,
        sizes=lambda key: _sizes(study.corpus(key)),
        done=lambda one: found(one).done,
        made=frozenset(path.name for path in (study.cache / "stages").glob("*")),
    )


def _remembered(find: Callable[[Planned], _Found]) -> Callable[[Planned], _Found]:
    """The same, asked once for each run."""
    known: dict[str, _Found] = {}

    def get(one: Planned) -> _Found:
        if (name := repr(one)) not in known:  # rows hold dicts, so they cannot be keys
            known[name] = find(one)
        return known[name]

    return get


def _sizes(corpus: Corpus) -> Sizes:
    from cmpta_lib.runs.evaluation import units

    train, valid, test = (len(corpus.splits[name]) for name in ("train", "valid", "test"))
    return Sizes(train, valid, test, len(units(corpus.splits["train"], "dialogue")))


def _backbone(config: RunConfig) -> str:
    """What its text is read with."""
    own = config.method.model_dump()
    return str(next((own[kind]["name"] for kind in ("llm", "encoder") if kind in own), ""))


def _speed(config: RunConfig, corpus: Corpus, root: Path, is_loaded: bool) -> Speed:
    """Time a few steps and answers; `is_loaded`: the LLM or encoder is in memory, so that building tells of the method alone."""
    import torch

    from cmpta_lib.runs import evaluation, loop

    if not is_loaded:
        loop.build(config, corpus, resources(root))
    memory.watch()
    started = time.perf_counter()
    method = loop.build(config, corpus, resources(root))
    start = time.perf_counter() - started
    split, steps = corpus.splits["train"], {}
    drawn = evaluation.units(split, method.unit)
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(config.seed)).tolist()
    for stage in config.stages:
        method.enter(stage)
        groups = [group for group in method.groups(stage.training) if group.parameters]
        if not groups:
            continue
        optimizer = loop.optimizer_of(groups, stage.training)
        size, taken = stage.training.batch_size, []
        method.module.train()
        for number in range(1 + _TIMED_STEPS):  # the first warms up
            batch = [drawn[order[(number * size + place) % len(drawn)]] for place in range(min(size, len(drawn)))]
            one = partial(loop.step, method, optimizer, split, batch, stage.training, labelled=stage.is_labelled)
            taken.append(_seconds(one))
        steps[stage.name] = statistics.median(taken[1:])
    method.module.eval()
    places = [index for place in order for index in drawn[place]][: config.evaluation.batch_size]
    clips = [split[index] for index in places]
    answer = _seconds(lambda: method.predict(method.collate(clips))) / len(clips)
    return Speed(answer, steps, start, method.unit, memory.peaks_gb().get(memory.ALLOCATED, 0.0))


def _seconds(work: Callable[[], object]) -> float:
    import torch

    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


