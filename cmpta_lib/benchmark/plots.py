"""Figures of what was measured: contenders side by side, what a step is made of, and how costs grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from cmpta_lib.benchmark.scaling import AXES, fits
from cmpta_lib.benchmark.times import FLOOR, OURS, PARTS
from cmpta_lib.figures.style import BLUE, DOUBLE_COLUMN_IN, GREEN, SKY, VERMILLION, PageFigure, figure_style, new_figure

WORKERS = "workers.csv"  # columns engine, workers, speed_up: over one worker of that engine
_ANCESTOR = "MSE-Adapter's way"
_STEPS = (("floor_ms", "bare LLM (floor)", SKY), ("step_ms", "CMPTA", BLUE), ("ancestor_step_ms", _ANCESTOR, VERMILLION))
_ANSWERS = (("answer_ms", "CMPTA", BLUE), ("ancestor_answer_ms", _ANCESTOR, VERMILLION))
_UNITS = {
    "batch size": "clips in a batch",
    "text length": "real tokens in a batch",
    "audio frames": "real frames in a batch",
    "adapter width": "adapter width D",
    "samples": "training clips",
}


def costs(rows: Sequence[Mapping[str, Any]], where: str) -> PageFigure:
    """Steps and answers of each contender, and the shares of a step."""
    with figure_style():
        figure = new_figure(DOUBLE_COLUMN_IN, 2.8, title="What a step and an answer cost", footer=where)
        steps, answers, parts = figure.subplots(1, 3)
        _bars(steps, rows, _STEPS, "ms per step")
        _bars(answers, rows, _ANSWERS, "ms per answer")
        names, left = [row["corpus"] for row in rows], [0.0] * len(rows)
        for part in PARTS:
            values = [100 * row[f"share {part}"] for row in rows]
            parts.barh(names, values, left=left, label=part, height=0.6)
            left = [start + value for start, value in zip(left, values, strict=True)]
        parts.set_xlabel("% of a step")
        parts.invert_yaxis()
        parts.legend(loc="upper center", bbox_to_anchor=(0.45, -0.25), ncols=2, handlelength=1, columnspacing=1)
    return figure


def _bars(axes: Axes, rows: Sequence[Mapping[str, Any]], bars: Sequence[tuple[str, str, str]], label: str) -> None:
    width = 0.8 / len(bars)
    for number, (column, name, colour) in enumerate(bars):
        places = [place + (number - (len(bars) - 1) / 2) * width for place in range(len(rows))]
        spread = column.replace("_ms", "_iqr_ms")
        errors = [row[spread] / 2 for row in rows]
        axes.bar(places, [row[column] for row in rows], width, yerr=errors, label=name, color=colour, error_kw={"lw": 0.6})
    axes.set_xticks(range(len(rows)), [row["corpus"] for row in rows])
    axes.set_ylabel(label)
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.12), handlelength=1)


def growth(rows: Sequence[Mapping[str, Any]], where: str, workers: pd.DataFrame | None = None) -> PageFigure:
    """A panel for everything that varied, with the fitted line where one belongs; one for workers where they were measured."""
    lines = {one["what"]: one for one in fits(rows)}
    with figure_style():
        figure = new_figure(DOUBLE_COLUMN_IN, 4.0, title="How costs grow", footer=where)
        panels = figure.subplots(2, 3).flat
        for axes, (what, (over, _)) in zip(panels, AXES.items(), strict=False):
            points = sorted((row for row in rows if row["what"] == what), key=lambda row: row[over])
            x, y = [row[over] for row in points], [row[f"{OURS}_ms"] / 1000 for row in points]
            axes.plot(x, y, "o", color=BLUE, markersize=3, label="CMPTA", ls="" if what in lines else "-")
            if all(row.get(f"{FLOOR}_ms") for row in points):
                axes.plot(x, [row[f"{FLOOR}_ms"] / 1000 for row in points], "s--", color=SKY, markersize=3, label="floor")
            if line := lines.get(what):
                fitted = [(line["at_zero_ms"] + line["slope_ms"] * one) / 1000 for one in x]
                axes.plot(x, fitted, color=BLUE, lw=0.8)
                axes.set_title(f"{line['slope_ms']:.3g} ms per {line['per']}, R² = {line['r2']:.3f}")
            axes.set(xlabel=_UNITS[what], ylabel="s per epoch" if what == "samples" else "s per step")
            axes.set_ylim(bottom=0)
        axes = figure.axes[-1]
        if workers is None:
            axes.set_axis_off()
        else:
            for engine, colour in zip(sorted(set(workers["engine"])), (GREEN, BLUE, VERMILLION, SKY), strict=False):
                table = workers[workers["engine"] == engine]
                axes.plot(table["workers"], table["speed_up"], "o-", color=colour, markersize=3, label=engine)
            axes.set(xlabel="workers", ylabel="speed-up over one", xticks=sorted(set(workers["workers"])))
            axes.legend()
        figure.axes[0].legend()
    return figure


def read_workers(folder: Path) -> pd.DataFrame | None:
    """The table of workers in a folder of measurements, where somebody has measured them.

    Raises:
        ValueError: columns are missing.
    """
    path = folder / WORKERS
    if not path.exists():
        return None
    table = pd.read_csv(path)
    if missing := {"engine", "workers", "speed_up"} - set(table.columns):
        raise ValueError(f"{path}: expected columns engine, workers, speed_up; missing: {', '.join(sorted(missing))}")
    return table


def save(figure: PageFigure, stem: Path) -> list[Path]:
    """Write stem.png and stem.svg."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    with figure_style():
        figure.savefig(paths[0], dpi=200)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths
