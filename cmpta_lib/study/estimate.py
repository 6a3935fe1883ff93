"""How long runs take, from the time of a step and of an answer: measured here on the study's own clips, or anywhere else.

Seconds of a run: what is not repeated, epochs × steps, the validation answers of every epoch, and the answers at its end.
Finished runs take none; a stage that several runs share is counted with the first of them.
"""

from __future__ import annotations

import heapq
import math
import statistics
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cmpta_lib import paper, registry
from cmpta_lib.config import DataConfig, RunConfig
from cmpta_lib.data.corpus import SPLITS, Corpus
from cmpta_lib.runs import provenance
from cmpta_lib.runs.progress import duration, table
from cmpta_lib.study import plan
from cmpta_lib.study.plan import Planned
from cmpta_lib.study.profiles import planned_config
from cmpta_lib.study.study import Study

_TIMED_STEPS = 3  # of each stage of a method
Sizes = Mapping[str, int]  # clips of "train", "valid" and "test", and the training "dialogues"
PUBLISHED: Mapping[str, Sizes] = {  # corpus -> what the paper's Table 1 says of it; SIMS-V2's clips stand alone
    key: {split: getattr(paper.TABLE1[name], split) for split in SPLITS} | {"dialogues": dialogues}
    for key, name, dialogues in (("sims", "SIMS-V2", 2722), ("meld", "MELD", 1038))
}
# What counts as CMPTA where nothing else was measured: the same LLM, prompt and answers around another token maker.
LIKE_CMPTA = ("soft_prompt", "mse_adapter", "text_only")


class Kind(NamedTuple):
    """Runs that take alike, versions of a method among them."""

    key: str  # the corpus': "sims", "meld" or "data"
    method: str
    llm: str = ""  # the role of a row's own LLM, as in `Row`
    stages: tuple[str, ...] = ("training",)


@dataclass(frozen=True)
class Speed:
    """What a kind of run takes, in seconds."""

    answer: float  # for one clip
    steps: Mapping[str, float] = field(default_factory=dict)  # for a step of each stage that trains anything, by its name
    start: float = 0.0  # once a run, to build and fit
    unit: str = "clip"  # what a step's batch is drawn from
    gpu_gb: float = 0.0  # its most memory on the GPU, where there is one


def seconds(config: RunConfig, sizes: Sizes, speed: Speed, made: set[str]) -> float:
    """Of one unfinished run; `made`: files of shared stages that are there, to which those that this run makes are added."""
    from cmpta_lib.runs.checkpoint import path_of

    units = sizes["train"] if speed.unit == "clip" else sizes["dialogues"]
    total = speed.start + (sizes["valid"] + sizes["test"]) * speed.answer
    for stage in config.stages:
        shared = set() if stage.outcome is None else {path_of(Path(), stage).name}
        if stage.name in speed.steps and not shared & made:
            made |= shared
            epoch = math.ceil(units / stage.training.batch_size) * speed.steps[stage.name]
            total += stage.training.epochs * (epoch + stage.is_labelled * sizes["valid"] * speed.answer)
    return total


@dataclass(frozen=True)
class Costs:
    """What runs take; `speeds` may lack kinds, whose runs then count as unknown, and `configs` are those of unfinished runs."""

    speeds: Mapping[Kind, Speed]
    sizes: Mapping[str, Sizes]
    configs: Mapping[Planned, RunConfig]
    made: frozenset[str] = frozenset()  # shared stages that are there already

    def __call__(self, runs: Sequence[Planned]) -> list[float | None]:
        """Seconds of each of these runs, made in this order and with nothing else; 0 where finished, None where unknown."""
        made, found = set(self.made), list[float | None]()
        for one in runs:
            config = self.configs.get(one)
            speed = self.speeds.get(_kind(one, config)) if config else None
            found.append(seconds(config, self.sizes[one.key], speed, made) if config and speed else None if config else 0.0)
        return found


def _kind(one: Planned, config: RunConfig) -> Kind:
    return Kind(one.key, one.row.method, one.row.llm, tuple(stage.name for stage in config.stages))


def projected(study: Study, speeds: Mapping[Kind, Speed]) -> Costs:
    """Costs of `study.planned()` where speeds were measured elsewhere, its corpora having the published sizes.

    Nothing of it need be here, and nothing counts as finished. Methods around CMPTA's LLM and prompt that were not measured
    count as CMPTA.
    """
    known = dict(speeds)
    for kind, speed in speeds.items():
        for method in LIKE_CMPTA if kind.method == "cmpta" else ():
            trains = registry.ENTRIES[method].is_trained
            known.setdefault(kind._replace(method=method), speed if trains else replace(speed, steps={}))
    data = {key: DataConfig(name=name, fingerprint="") for key, name in study.settings.corpora.items()}
    runs = study.planned()
    configs = {one: planned_config(study.profile, one.key, one.row, data[one.key], one.seed, study.changes) for one in runs}
    return Costs(known, PUBLISHED, configs)


def projection(study: Study, milliseconds: Mapping[str, tuple[float, float]]) -> str:
    """Hours by notebook of what reproduces the paper, from CMPTA's milliseconds a step and an answer by a corpus' key."""
    speeds = {Kind(key, "cmpta"): Speed(answer / 1000, {"training": step / 1000}) for key, (step, answer) in milliseconds.items()}
    return by_notebook(study, {one.name: study.planned([one.name]) for one in plan.chosen([])}, projected(study, speeds))


def measured(study: Study, runs: Sequence[Planned]) -> Costs:
    """Costs of these runs on this machine: of each kind that is not finished, a few steps and a batch of answers are timed.

    Raises:
        ValueError, OSError: as `Study.config`.
    """
    from cmpta_lib.runs.loop import units

    found = {one: study.run(one.key, one.row, one.seed) for one in runs}
    configs = {one: run.config for one, run in found.items() if not run.done}
    kinds: dict[Kind, RunConfig] = {}
    for one, config in configs.items():
        kinds.setdefault(_kind(one, config), config)
    speeds, loaded = dict[Kind, Speed](), None
    for kind, config in sorted(kinds.items(), key=lambda one: _backbone(one[1])):  # each backbone is loaded once
        speeds[kind] = _speed(config, study.corpus(kind.key), study.root, is_loaded=_backbone(config) == loaded)
        loaded = _backbone(config)
    sizes = {}
    for key in {one.key for one in runs}:
        splits = study.corpus(key).splits
        sizes[key] = {name: len(split) for name, split in splits.items()}
        sizes[key]["dialogues"] = len(units(splits["train"], "dialogue"))
    return Costs(speeds, sizes, configs, frozenset(path.name for path in (study.cache / "stages").glob("*")))


def _backbone(config: RunConfig) -> str:
    """What its text is read with."""
    return str(next((own["name"] for kind, own in config.method.model_dump().items() if kind in ("llm", "encoder")), ""))


def _speed(config: RunConfig, corpus: Corpus, root: Path, is_loaded: bool) -> Speed:
    """Time a few steps and answers; `is_loaded`: the LLM or encoder is in memory, so that building tells of the method alone."""
    import torch

    from cmpta_lib.runs import loop
    from cmpta_lib.runs.load import resources

    def seconds_of(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    if not is_loaded:
        loop.build(config, corpus, resources(root))
    provenance.watch()
    started = time.perf_counter()
    method = loop.build(config, corpus, resources(root))
    start, steps, split = time.perf_counter() - started, {}, corpus.splits["train"]
    drawn = loop.units(split, method.unit)
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(config.seed)).tolist()
    for stage in config.stages:
        method.enter(stage)
        groups = [group for group in method.groups(stage.training) if group.parameters]
        if not groups:
            continue
        optimizer, size, taken = loop.optimizer_of(groups, stage.training), stage.training.batch_size, []
        method.module.train()
        for number in range(1 + _TIMED_STEPS):  # the first warms up
            batch = [drawn[order[(number * size + place) % len(drawn)]] for place in range(min(size, len(drawn)))]
            one = partial(loop.step, method, optimizer, split, batch, stage.training, labelled=stage.is_labelled)
            taken.append(seconds_of(one))
        steps[stage.name] = statistics.median(taken[1:])
    method.module.eval()
    clips = [split[index] for place in order for index in drawn[place]][: config.evaluation.batch_size]
    answer = seconds_of(lambda: method.predict(method.collate(clips))) / len(clips)
    return Speed(answer, steps, start, method.unit, provenance.peaks_gb().get(provenance.ALLOCATED, 0.0))


# --- as text ----------------------------------------------------------------------------------------------------------


def ends(taken: Sequence[float | None], jobs: int) -> list[float]:
    """When each run ends, begun in order by whoever is free first; unknown ones count as nothing, finished ones at once."""
    free, found = [0.0] * jobs, []
    for time_s in taken:
        found.append(free[0] + time_s if time_s else 0.0)
        if time_s:
            heapq.heapreplace(free, found[-1])
    return found


def by_notebook(study: Study, notebooks: Mapping[str, Sequence[Planned]], costs: Costs | None, jobs: int = 1) -> str:
    """The table of notebooks with the runs that they need and, where costs are known, how long these take."""
    runs = [one for one in study.planned(notebooks) if any(one in needs for needs in notebooks.values())]
    taken = costs(runs) if costs else []
    when, unknown = dict(zip(runs, ends(taken, jobs), strict=bool(costs))), taken.count(None)
    least = "\N{GREATER-THAN OR EQUAL TO} " if unknown else ""
    known, rows = list[Planned](), []
    for name, needs in notebooks.items():
        new = [one for one in needs if one not in known]
        rows.append([name, str(len(needs)), str(len(new))])
        if costs:
            before, after, alone = (sum(filter(None, costs(some))) for some in (known, known + new, needs))
            first = [one for one in needs if one.seed == study.seeds[0]]
            whole = [least + duration(max(when[one] for one in found)) if found else "-" for found in (first, needs)]
            rows[-1] += [str(costs(needs).count(None) or "-")] * bool(unknown)
            rows[-1] += [duration(after - before), duration(alone), *whole]
        known += new
    head, said = ["notebook", "runs", "new"], "new: runs that no notebook above needs."
    if costs:
        head += [*["not timed"] * bool(unknown), "time", "alone", "first seed", "all seeds"]
        at_a_time = "one run at a time" if jobs == 1 else f"{jobs} runs at a time"
        said += (
            " time: these runs one after another; alone: all that the notebook needs, were nothing else made. first seed, all"
            f" seeds: when `cmpta reproduce` has them all, by the clock, with {at_a_time}."
        )
    if unknown:
        said += f" {unknown} of {len(runs)} runs were not timed and count as nothing: {least.strip()}."
    return "\n".join([*table(head, rows, range(1, len(head))), "", *textwrap.wrap(said, 80)])
