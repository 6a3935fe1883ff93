"""`cmpta benchmark`: measure, print, store."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from cmpta_lib.benchmark import table
from cmpta_lib.benchmark.contest import CONTENDERS, PARTS, Contest, peak_apart, peaks_here
from cmpta_lib.benchmark.options import CORPORA, DEFAULT_DIM, Options
from cmpta_lib.files import figures_folder


def run(options: argparse.Namespace) -> int:
    """What the command does; returns the exit code."""
    if options.publish:
        print(table.publish())
        return 0
    if options.threads:
        torch.set_num_threads(options.threads)
    given = {field.name: getattr(options, field.name) for field in fields(Options) if hasattr(options, field.name)}
    given["dim"] = options.dim or DEFAULT_DIM[options.backbone]
    rows, made = measure([Options(**given | {"corpus": key}) for key in options.corpora], with_memory=options.memory)
    print(screen(rows, made), flush=True)
    folder, name = figures_folder() / table.FOLDER, f"{options.backbone}-batch{options.batch_size}-dim{given['dim']}"
    paths = table.store(folder, name, rows, made)
    paths += table.save(table.costs(rows, table.title(rows, made)), folder / name)
    print("in full: " + ", ".join(map(str, paths)))
    return 0


def quick(smoke: bool = False) -> list[Options]:
    """Measurements of seconds, for a first look: the tiny backbone, few batches, no process of its own for memory."""
    few = Options(steps=3, batch_size=4, answers=1, answered=8)
    if smoke:
        few = replace(few, steps=1, batch_size=2, dim=16, answered=4)
    return [replace(few, corpus=key) for key in CORPORA]


def measure(asked: Sequence[Options], with_memory: bool = True) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row of `table.row` for each, and where and when it was measured.

    Peak memory is exact within one process on a GPU only; on a CPU each contender has one of its own.
    """
    rows = []
    for one in asked:
        in_gpu, peaks = torch.cuda.is_available(), None
        if with_memory and not in_gpu:
            peaks = {name: peak_apart(one, name) for name in CONTENDERS}
        contest = Contest(one)
        times = contest.run()
        rows.append(table.row(one, times, peaks_here(contest) if with_memory and in_gpu else peaks))
    return rows, table.about(asked)


def screen(rows: Sequence[dict[str, Any]], made: dict[str, Any]) -> str:
    """The table as it is printed, and what it stands on."""
    lines = [table.shown(rows).to_string(index=False), ""]
    for one in rows:
        parts = ", ".join(f"{name} {one[f'share {name}']:.0%}" for name in PARTS)
        lines.append(f"{one['corpus']}: {parts}")
    return "\n".join([*lines, table.title(rows, made)])
