"""How long runs take: measured here from a few steps and a batch of answers of each kind, or projected from CMPTA's pace."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.benchmark import Timer

from cmpta_lib import paper, registry
from cmpta_lib.config import DataConfig, RunConfig
from cmpta_lib.data.corpus import Corpus
from cmpta_lib.runs import loop, provenance
from cmpta_lib.runs.checkpoint import path_of
from cmpta_lib.runs.load import resources
from cmpta_lib.runs.progress import Status, duration, table
from cmpta_lib.study import plan
from cmpta_lib.study.plan import Planned
from cmpta_lib.study.profiles import planned_config
from cmpta_lib.study.study import Study

# What counts as CMPTA in a projection: the same LLM, prompt and answers around another token maker, or none.
_LIKE_CMPTA = ("cmpta", "soft_prompt", "mse_adapter", "text_only")


class Speed(NamedTuple):
    """Seconds that a kind of run takes, and its most memory on a GPU, where there is one."""

    once: float  # building and fitting, and the answers at its end
    epochs: Mapping[str, float] = {}  # of each stage by its name: an epoch with its validation
    gpu_gb: float = 0.0

    def seconds(self, config: RunConfig, made: set[str]) -> float:
        """Of one run; `made`: files of shared stages that are there, to which those that this run makes are added."""
        total = self.once
        for stage in config.stages:
            shared = "" if stage.outcome is None else path_of(Path(), stage).name
            if shared not in made:
                total += stage.training.epochs * self.epochs.get(stage.name, 0.0)
                made |= {shared} - {""}
        return total


Configs = Mapping[Planned, RunConfig]
Speeds = Mapping[tuple[str, str, str], Speed]  # by `Planned.kind`


def projection(study: Study, milliseconds: Mapping[str, tuple[float, float]]) -> str:
    """Hours by notebook of what reproduces the paper, from CMPTA's milliseconds a step and an answer by a corpus' key.

    Nothing of the study need be here and nothing counts as finished; its corpora have the published sizes.
    """
    configs, speeds = dict[Planned, RunConfig](), dict[tuple[str, str, str], Speed]()
    for one in study.planned():
        data = DataConfig(name=study.settings.corpora[one.key], fingerprint="")
        config = configs[one] = planned_config(study.profile, one.key, one.row, data, one.seed, study.changes)
        if one.key in milliseconds and one.row.method in _LIKE_CMPTA and not one.row.llm:
            clips, (step, answer) = paper.TABLE1[{"sims": "SIMS-V2", "meld": "MELD"}[one.key]], milliseconds[one.key]
            epoch = math.ceil(clips.train / config.training.batch_size) * step + clips.valid * answer
            epochs = {"training": epoch / 1000} if registry.ENTRIES[one.row.method].is_trained else {}
            speeds[one.kind] = Speed((clips.valid + clips.test) * answer / 1000, epochs)
    return by_notebook({one.name: study.planned([one.name]) for one in plan.chosen([])}, configs, speeds)


def measured(study: Study, configs: Configs) -> Speeds:
    """The speed of each kind among these runs, from one that has all stages; ordered so that each LLM is loaded once."""
    chosen = {one.kind: config for one, config in sorted(configs.items(), key=lambda item: len(item[1].stages))}
    speeds = dict[tuple[str, str, str], Speed]()
    with Status(before=lambda: f"timing a few steps and answers, {len(speeds)} of {len(chosen)} kinds of runs done: ") as status:
        for kind in sorted(chosen, key=lambda kind: kind[2]):
            with status.doing(f"{kind[1]}, {study.corpus(kind[0]).name}"):
                speeds[kind] = speed(chosen[kind], study.corpus(kind[0]), study.root)
    return speeds


def speed(config: RunConfig, corpus: Corpus, root: Path) -> Speed:
    """How fast this run is here, from a few steps of each of its stages and a batch of answers."""
    tools, splits = resources(root), corpus.splits
    for own, get in ((getattr(config.method, "llm", None), tools.llm), (getattr(config.method, "encoder", None), tools.encoder)):
        if own:
            get(own)  # is in memory from now on, so that building tells of the method alone
    provenance.watch()
    started = time.perf_counter()
    method = loop.build(config, corpus, tools)
    once, train, steps = time.perf_counter() - started, splits["train"], []
    units = loop.units(train, method.unit)
    order = torch.randperm(len(units), generator=torch.Generator().manual_seed(config.seed)).tolist()
    shuffled, threads = itertools.cycle([units[place] for place in order]), config.training.num_threads
    for stage in config.stages:
        method.enter(stage)
        if groups := [group for group in method.groups(stage.training) if group.parameters]:
            step, size = partial(loop.step, method, loop.optimizer_of(groups, stage.training), train), stage.training.batch_size
            known = {"step": step, "units": shuffled, "size": min(size, len(units)), "islice": itertools.islice, "stage": stage}
            method.module.train()
            work = "step(list(islice(units, size)), stage.training, labelled=stage.is_labelled)"
            taken = Timer(work, globals=known, num_threads=threads).timeit(3).mean  # after torch's two to warm up
            steps.append((stage, math.ceil(len(units) / size) * taken))
    method.module.eval()
    clips = [train[index] for place in order for index in units[place]][: config.evaluation.batch_size]
    work, known = "method.predict(method.collate(clips))", {"method": method, "clips": clips}
    answer = Timer(work, globals=known, num_threads=threads).timeit(1).mean / len(clips)
    epochs = {stage.name: trained + stage.is_labelled * len(splits["valid"]) * answer for stage, trained in steps}
    once += (len(splits["valid"]) + len(splits["test"])) * answer
    return Speed(once, epochs, provenance.peaks_gb().get(provenance.ALLOCATED, 0.0))


def by_notebook(notebooks: Mapping[str, Sequence[Planned]], unfinished: Configs, speeds: Speeds, jobs: int = 1) -> str:
    """The table of notebooks with the runs that they need, and hours of the unfinished ones where there are speeds."""
    known, made, rows, total = set[Planned](), set[str](), [], 0.0
    for name, needs in notebooks.items():
        new = [one for one in needs if one not in known]
        known.update(new)
        to_do = [(speeds.get(one.kind), unfinished[one]) for one in new if one in unfinished]
        took = sum(speed.seconds(config, made) for speed, config in to_do if speed)
        rows.append([name, str(len(needs)), str(len(new)), duration(took) + " + untimed" * any(not speed for speed, _ in to_do)])
        total += took
    rows.append(["all", "", str(len(known)), f"{duration(total / jobs)} at {jobs} at a time"])
    shown = 4 if speeds else 3
    lines = table(["notebook", "runs", "new", "time"][:shown], [row[:shown] for row in rows], range(1, 4))
    return "\n".join([*lines, "new: runs that no notebook above needs" + "; time: of these, one after another" * bool(speeds)])
