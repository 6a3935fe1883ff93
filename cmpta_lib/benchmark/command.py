"""`cmpta benchmark`: measure, print, store."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from cmpta_lib.benchmark import clips, peak, table
from cmpta_lib.benchmark.ancestor import Ancestor
from cmpta_lib.benchmark.contest import Contest
from cmpta_lib.benchmark.options import DEFAULT_DIM, Options
from cmpta_lib.benchmark.ours import Ours
from cmpta_lib.benchmark.shapes import Shape, random_llm
from cmpta_lib.benchmark.times import CONTENDERS, PARTS
from cmpta_lib.data.corpus import Inputs
from cmpta_lib.files import figures_folder


def run(options: argparse.Namespace) -> int:
    """What the command does; returns the exit code."""
    if options.threads:
        torch.set_num_threads(options.threads)
    rows, made = measure([of_corpus(options, key) for key in options.corpora], with_memory=options.memory)
    name = f"{options.backbone}-batch{options.batch_size}-dim{rows[0]['dim']}"
    paths = table.store(figures_folder() / table.FOLDER, name, rows, made)
    print(screen(rows, made))
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


def contest_of(options: Options, shape: Shape | None = None) -> Contest:
    """Everything built for one measurement: clips, backbone (of another shape, where one is given), contenders."""
    corpus = clips.corpus(options)
    llm = random_llm(options.backbone, corpus.splits["train"].table["text"], options.vocabulary, shape)
    limit, longest = clips.TEXT_LIMIT[options.corpus], clips.LONGEST[options.corpus]
    ancestor = Ancestor(llm, corpus.task, Inputs.of(corpus).widths, limit, longest)
    return Contest(options, corpus, llm, Ours(options, corpus, llm), ancestor)


def measure(asked: Sequence[Options], with_memory: bool = True) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row of `table.row` for each, and where and when it was measured."""
    rows = []
    for one in asked:
        peaks = {name: peak.apart(one, name) for name in CONTENDERS} if with_memory else None
        rows.append(table.row(one, contest_of(one).run(), peaks))
    return rows, table.about(asked)


def screen(rows: Sequence[dict[str, Any]], made: dict[str, Any]) -> str:
    """The table as it is printed, and what it stands on."""
    lines = [table.shown(rows).to_string(index=False), ""]
    for one in rows:
        parts = ", ".join(f"{name} {one[f'share {name}']:.0%}" for name in PARTS)
        lines.append(f"{one['corpus']}: {parts}")
    first = rows[0]
    what = f"{first['backbone']} backbone of random weights, batch {first['batch']}, D {first['dim']}"
    lines.append(f"{what}; {made['hardware']}, {made['threads']} threads, {made['date']}, commit {made['commit']}")
    return "\n".join(lines)
