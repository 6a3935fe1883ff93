"""What a notebook shows of stored measurements: which there are, their tables, their figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from cmpta_lib.benchmark import plots, table
from cmpta_lib.figures.style import PageFigure
from cmpta_lib.files import PUBLISHED, ROOT, figures_folder

Stored = Mapping[str, Mapping[str, Any]]  # name -> about and rows, as `table.store` wrote them
SCALING = "scaling-"  # how names of measurements begin that vary one thing
COMMANDS = {
    "tiny": "cmpta benchmark --scaling",
    "slice": "cmpta benchmark --backbone slice --steps 5 --vocabulary qwen.tiktoken",
    "full": "python -m cmpta_lib.benchmark.gpu OUT --vocabulary qwen.tiktoken",
}


def measurements() -> Stored:
    """What is published, and what was measured here, which goes before it."""
    return {
        **table.stored(ROOT / "figures" / PUBLISHED / table.FOLDER),
        **table.stored(figures_folder() / table.FOLDER),
    }


def overview(stored: Stored) -> pd.DataFrame:
    """Every measurement of whole steps and answers, and for each backbone without one the command that makes it."""
    parts = []
    for one in _whole(stored).values():
        shown = table.shown(one["rows"])
        shown.insert(0, "backbone", [row["backbone"] for row in one["rows"]])
        shown.insert(1, "batch", [row["batch"] for row in one["rows"]])
        about = one["about"]
        shown["measured"] = f"{about['date']}, {about['commit']}"  # where, the figures say
        parts.append(shown.astype(object))
    there = {row["backbone"] for one in _whole(stored).values() for row in one["rows"]}
    missing = [{"backbone": name, "measured": f"not yet: {said}"} for name, said in COMMANDS.items() if name not in there]
    whole = pd.concat([*parts, pd.DataFrame(missing, dtype=object)], ignore_index=True)
    return whole.where(whole.notna(), "—")


def figures(stored: Stored) -> Iterator[PageFigure]:
    """A figure of each measurement, those of whole steps first."""
    for one in _whole(stored).values():
        for batch in dict.fromkeys(row["batch"] for row in one["rows"]):
            rows = [row for row in one["rows"] if row["batch"] == batch]
            yield plots.costs(rows, table.title(rows, one["about"]))
    published = ROOT / "figures" / PUBLISHED / table.FOLDER
    workers = plots.read_workers(figures_folder() / table.FOLDER)
    workers = plots.read_workers(published) if workers is None else workers
    for name, one in stored.items():
        if name.startswith(SCALING):
            yield plots.growth(one["rows"], table.title(one["about"]["options"], one["about"]), workers)


def _whole(stored: Stored) -> Stored:
    return {name: one for name, one in stored.items() if not name.startswith(SCALING)}
