"""`cmpta benchmark`: measure, print, store."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from cmpta_lib.benchmark import clips, ours, peak, scaling, table
from cmpta_lib.benchmark.ancestor import Ancestor
from cmpta_lib.benchmark.contest import Contest
from cmpta_lib.benchmark.options import CORPORA, DEFAULT_DIM, Options
from cmpta_lib.benchmark.ours import Ours
from cmpta_lib.benchmark.shapes import random_llm
from cmpta_lib.benchmark.times import CONTENDERS, PARTS
from cmpta_lib.data.corpus import Inputs
from cmpta_lib.files import figures_folder
from cmpta_lib.method.llm import FrozenLLM


def run(options: argparse.Namespace) -> int:
    """What the command does; returns the exit code."""
    from cmpta_lib.benchmark import page, plots  # matplotlib, which a GPU's machine need not have

    if options.publish:
        print(table.publish())
        return 0
    if options.threads:
        torch.set_num_threads(options.threads)
    asked = [of_corpus(options, key) for key in options.corpora]
    rows, made = measure(asked, with_memory=options.memory)
    print(screen(rows, made), flush=True)
    folder, name = figures_folder() / table.FOLDER, f"{options.backbone}-batch{options.batch_size}-dim{asked[0].dim}"
    paths = table.store(folder, name, rows, made) + plots.save(plots.costs(rows, table.title(rows, made)), folder / name)
    for one in asked if options.scaling else []:
        grown = scaled(one)
        print(pd.DataFrame(scaling.fits(grown)).to_string(index=False), flush=True)
        stem = f"{page.SCALING}{name}-{one.corpus}"
        made = table.about([one]) | {"fits": scaling.fits(grown)}
        figure = plots.growth(grown, table.title(made["options"], made), plots.read_workers(folder))
        paths += table.store(folder, stem, grown, made) + plots.save(figure, folder / stem)
    print("in full: " + ", ".join(map(str, paths)))
    return 0


def of_corpus(options: argparse.Namespace, key: str) -> Options:
    """The measurement that these command-line options ask for on one corpus."""
    return Options(
        corpus=key,
        backbone=options.backbone,
        batch_size=options.batch_size,
        dim=options.dim or DEFAULT_DIM[options.backbone],
        steps=options.steps,
        answers=options.answers,
        answered=options.answered,
        vocabulary=options.vocabulary,
        annotations=options.annotations,
        seed=options.seed,
    )


def quick(smoke: bool = False) -> list[Options]:
    """Measurements of seconds, for a first look: the tiny backbone, few batches, no process of its own for memory."""
    few = Options(steps=3, batch_size=4, answers=1, answered=8)
    if smoke:
        few = replace(few, steps=1, batch_size=2, dim=16, answered=4)
    return [replace(few, corpus=key) for key in CORPORA]


def contest_of(options: Options, llm: FrozenLLM | None = None) -> Contest:
    """Everything built for one measurement: clips, contenders, and where none is given the backbone."""
    corpus = clips.corpus(options)
    llm = llm or random_llm(options.backbone, corpus.splits["train"].table["text"], options.vocabulary)
    limit, longest = clips.TEXT_LIMIT[options.corpus], clips.LONGEST[options.corpus]
    ancestor = Ancestor(llm, corpus.task, Inputs.of(corpus).widths, limit, longest)
    return Contest(options, corpus, llm, Ours(options, corpus, llm), ancestor)


def measure(asked: Sequence[Options], with_memory: bool = True) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row of `table.row` for each, and where and when it was measured."""
    rows = []
    for one in asked:
        in_gpu = torch.cuda.is_available()
        peaks = {name: peak.apart(one, name) for name in CONTENDERS} if with_memory and not in_gpu else None
        contest = contest_of(one)
        times = contest.run()
        rows.append(table.row(one, times, peaks_here(contest) if with_memory and in_gpu else peaks))
    return rows, table.about(asked)


def peaks_here(contest: Contest) -> dict[str, dict[str, float]]:
    """What each contender's steps take, in this process: exact on a GPU; on a CPU what one has left the next may use."""
    batches = contest.batches[: peak.STEPS]
    found = {}
    for name in CONTENDERS:
        works = [contest.work(name, batch) for batch in batches]
        found[name] = peak.measured(works)
    return found


def scaled(base: Options) -> list[dict[str, Any]]:
    """Rows of `scaling.measure` around this measurement."""
    llm = contest_of(base).llm

    def epoch_seconds(options: Options) -> float:
        few = replace(options, answers=1, answered=2)  # eight clips are validated
        return ours.epoch_seconds(few, clips.corpus(few), llm)

    return scaling.measure(base, lambda options: contest_of(options, llm), epoch_seconds)


def screen(rows: Sequence[dict[str, Any]], made: dict[str, Any]) -> str:
    """The table as it is printed, and what it stands on."""
    lines = [table.shown(rows).to_string(index=False), ""]
    for one in rows:
        parts = ", ".join(f"{name} {one[f'share {name}']:.0%}" for name in PARTS)
        lines.append(f"{one['corpus']}: {parts}")
    return "\n".join([*lines, table.title(rows, made)])
