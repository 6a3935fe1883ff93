"""`cmpta benchmark`: a measurement as a row of a table, and the table on screen, as files, as a figure, in a README."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from cmpta_lib import files
from cmpta_lib.benchmark.contest import ANCESTOR, CONTENDERS, OURS, PARTS, REFERENCE, Contest, Times, peak, peaks_apart
from cmpta_lib.benchmark.options import BACKBONES, CORPORA, Options
from cmpta_lib.runs import provenance

if TYPE_CHECKING:
    from cmpta_lib.figures.style import PageFigure
    from cmpta_lib.report.tables import Table

FOLDER = "benchmark"  # below figures/
# There, where somebody has measured it: columns engine, workers, speed_up over one worker; and what, value, ours_ms, floor_ms.
WORKERS, SCALING = "workers.csv", "scaling-*.csv"
SPEED, PAGE = "speed", "cmpta_lib/README.md"  # what the marks around it are called, and where they stand
SHOWN = {  # column -> heading on screen
    "corpus": "lengths of",
    "step_ms": "step ms",
    "floor_ms": "bare LLM ms",
    "ancestor_step_ms": "MSE-Adapter's step ms",
    "step_over_floor": "step / bare LLM",
    "ancestor_over_step": "step, times faster",
    "answer_ms": "answer ms",
    "ancestor_answer_ms": "MSE-Adapter's answer ms",
    "ancestor_over_answer": "answer, times faster",
    "memory_over_ancestor": "memory, share of MSE-Adapter's",
}
COMMANDS = {
    "tiny": "`cmpta benchmark`",
    "slice": "`cmpta benchmark --backbone slice --steps 5 --vocabulary qwen.tiktoken`",
    "full": "python -m cmpta_lib.benchmark.gpu OUT --vocabulary qwen.tiktoken",
}
_WHAT = {"tiny": "The embedded LLM's size", "slice": "Four layers of Qwen-1.8B's width", "full": "Qwen-1.8B's shape"}
Row = dict[str, Any]
Stored = Mapping[str, Mapping[str, Any]]  # name -> about and rows, as `store` wrote them


def run(options: argparse.Namespace, asked: Sequence[Options]) -> int:
    """What the command does; returns the exit code."""
    from cmpta_lib.figures import style  # not above: a GPU's machine need not have matplotlib

    if options.publish:
        print(publish())
        return 0
    if options.threads:
        torch.set_num_threads(options.threads)
    rows, made = measure(asked, with_memory=options.memory)
    print(screen(rows, made), flush=True)
    folder, name = files.figures_folder() / FOLDER, f"{options.backbone}-batch{options.batch_size}-dim{asked[0].dim}"
    paths = store(folder, name, rows, made) + style.save_figure(costs(rows, title(rows, made)), folder, name)
    print("in full: " + ", ".join(map(str, paths)))
    return 0


def quick(smoke: bool = False) -> list[Options]:
    """Measurements of seconds, for a first look: the tiny backbone, few batches, no process of its own for memory."""
    few = Options(steps=3, batch_size=4, answers=1, answered=8)
    if smoke:
        few = replace(few, steps=1, batch_size=2, dim=16, answered=4)
    return [replace(few, corpus=key) for key in CORPORA]


def measure(asked: Sequence[Options], with_memory: bool = True) -> tuple[list[Row], dict[str, Any]]:
    """A `row` for each, and where and when it was measured.

    Peak memory is exact within one process on a GPU only; on a CPU each contender has one of its own.
    """
    rows, in_gpu = [], torch.cuda.is_available()
    for one in asked:
        peaks = peaks_apart(one) if with_memory and not in_gpu else None
        contest = Contest(one)
        times = contest.run()
        if with_memory and in_gpu:
            peaks = {name: peak(contest, name) for name in CONTENDERS}
        rows.append(row(one, times, peaks))
    return rows, about(asked)


def row(options: Options, times: Times, peaks: Mapping[str, Mapping[str, float]] | None = None) -> Row:
    """One line: settings, medians with interquartile ranges, ratios, shares, memory.

    Times are milliseconds: medians over the timed steps, and the mean of an answer. `floor_of_matmul_peak` is what the bare
    LLM reaches of the matrix products' peak. `memory_over_ancestor` compares what the steps take above what was loaded,
    `peak_over_ancestor` all of it. Columns of the bare LLM are named "floor".
    """
    steps, parts = times.steps, times.parts[list(PARTS)].sum()
    found: Row = {
        "corpus": CORPORA[options.corpus], "backbone": options.backbone, "batch": options.batch_size, "dim": options.dim,
        "steps": len(steps), "tokens": round(steps["tokens"].median()), "frames": round(steps["frames"].median()),
    }  # fmt: skip
    for name, contender in (("step", OURS), ("floor", REFERENCE), ("ancestor_step", ANCESTOR)):
        low, middle, high = steps[contender].quantile([0.25, 0.5, 0.75])
        found |= {f"{name}_ms": middle, f"{name}_iqr_ms": high - low}
    found |= {"answer_ms": times.answers[OURS], "ancestor_answer_ms": times.answers[ANCESTOR]}
    operations = 1000 * steps["operations"].sum()
    found |= {
        "step_over_floor": found["step_ms"] / found["floor_ms"],
        "ancestor_over_step": found["ancestor_step_ms"] / found["step_ms"],
        "ancestor_over_answer": found["ancestor_answer_ms"] / found["answer_ms"],
        "tokens_per_second": 1000 * steps["tokens"].sum() / steps[OURS].sum(),
        **{f"share {part}": parts[part] / parts.sum() for part in PARTS},
        "matmul_peak_tflops": times.peak_rate / 1e12,
        "floor_of_matmul_peak": operations / steps[REFERENCE].sum() / times.peak_rate,
    }
    if peaks:
        for name, measured in peaks.items():
            found |= {f"{name}_peak_gb": measured["peak"], f"{name}_growth_gb": measured["growth"]}
        if peaks[ANCESTOR]["growth"]:  # a small backbone's steps may fit into what is held anyway
            found["memory_over_ancestor"] = peaks[OURS]["growth"] / peaks[ANCESTOR]["growth"]
        found["peak_over_ancestor"] = peaks[OURS]["peak"] / peaks[ANCESTOR]["peak"]
    return found


def about(asked: Sequence[Options]) -> dict[str, Any]:
    """Where, when and with what it was measured; files by their names, as where they lie is nobody else's business."""
    options = [asdict(one) for one in asked]
    for one in options:
        one |= {name: Path(one[name]).name for name in ("vocabulary", "annotations")}
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return {"date": date, **provenance.environment(threads=torch.get_num_threads()), "options": options}


def title(rows: Sequence[Mapping[str, Any]], made: Mapping[str, Any]) -> str:
    """What was measured, where and when, in one line."""
    what = f"{rows[0]['backbone']} backbone of random weights, batch {rows[0]['batch']}, D {rows[0]['dim']}"
    return f"{what}; {made['hardware']}, {made['threads']} threads, {made['date']}, commit {made['commit']}"


def shown(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The columns that matter most, for a screen: three digits of each number, or all before the point."""
    table = pd.DataFrame(rows)
    table = table[[column for column in SHOWN if column in table]].rename(columns=SHOWN)
    digits = "{:,.0f}".format, "{:.3g}".format
    return table.map(lambda value: digits[abs(value) < 100](value) if isinstance(value, float) else value)


def screen(rows: Sequence[Mapping[str, Any]], made: Mapping[str, Any]) -> str:
    """The table as it is printed, where a step's time goes, and what it stands on."""
    lines = [shown(rows).to_string(index=False), ""]
    for one in rows:
        lines.append(f"{one['corpus']}: " + ", ".join(f"{part} {one[f'share {part}']:.0%}" for part in PARTS))
    return "\n".join([*lines, title(rows, made)])


def store(folder: Path, name: str, rows: Sequence[Row], made: Mapping[str, Any]) -> list[Path]:
    """Write `name`.json and `name`.csv; what was there before is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.json", folder / f"{name}.csv"]
    with files.writing(folder):
        files.write_text(paths[0], json.dumps({"about": made, "rows": rows}, indent=1, ensure_ascii=False) + "\n")
        files.write_text(paths[1], pd.DataFrame(rows).to_csv(index=False))
    return paths


def stored(*folders: Path) -> Stored:
    """What `store` wrote into these folders, the last one's before those of the same name."""
    paths = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    return {name: one for name, one in found.items() if one["rows"] and "step_ms" in one["rows"][0]}


def measurements() -> Stored:
    """What is published, and what was measured here, which goes before it."""
    return stored(*_folders())


def _folders() -> tuple[Path, Path]:
    return files.ROOT / "figures" / files.PUBLISHED / FOLDER, files.figures_folder() / FOLDER


def beside(pattern: str) -> pd.DataFrame:
    """What else was measured, `WORKERS` or `SCALING`, on this machine or as published; empty where nobody has."""
    paths = [path for folder in reversed(_folders()) for path in sorted(folder.glob(pattern))]
    return pd.read_csv(paths[0]) if paths else pd.DataFrame()


def overview(measured: Stored) -> Table:
    """Every measurement: steps first, answers and memory folded away; for each backbone without one the command for it."""
    from cmpta_lib.report.tables import NOTHING, Table

    first, steps = ["backbone", "batch", SHOWN["corpus"]], [*SHOWN.values()][1:6]
    parts = [pd.DataFrame(columns=[*first, *steps])]
    for one in measured.values():
        when = f"{one['about']['date']}, {one['about']['commit']}"  # where, the figures say
        parts.append(pd.DataFrame(one["rows"])[first[:2]].join(shown(one["rows"])).assign(measured=when))
    whole = pd.concat([part.astype(object) for part in parts], ignore_index=True)
    whole = whole.where(whole.notna(), NOTHING)
    missing = [name for name in COMMANDS if name not in set(whole["backbone"])]
    folded = Table.of(whole[[*first, *whole.columns.drop([*first, *steps])]]) if len(whole) else None
    notes = tuple(f"{name}: not measured yet; {COMMANDS[name]} does it." for name in missing)
    return Table(whole[[*first, *steps]], whole, notes=notes, details=folded)


def figures(measured: Stored) -> Iterator[PageFigure]:
    """A figure of each measurement and batch size."""
    for one in measured.values():
        for batch in dict.fromkeys(row["batch"] for row in one["rows"]):
            rows = [row for row in one["rows"] if row["batch"] == batch]
            yield costs(rows, title(rows, one["about"]))


def costs(rows: Sequence[Mapping[str, Any]], where: str) -> PageFigure:
    """Steps and answers of each contender, and the shares of a step."""
    from cmpta_lib.figures import style

    looks = {"CMPTA": style.BLUE, "MSE-Adapter's way": style.VERMILLION}
    bars = {"ms per step": ("step", "ancestor_step"), "ms per answer": ("answer", "ancestor_answer")}
    table = pd.DataFrame(rows).set_index("corpus").rename_axis(None)
    with style.figure_style():
        drawn = (
            "Milliseconds of a training step and of an answer, with interquartile ranges, and where a step's time goes. Black "
            "lines: the bare LLM's forward and backward pass, with no method around it."
        )
        named = {"title": "What a step and an answer cost", "footer": where, "drawn": drawn}
        figure = style.new_figure(style.DOUBLE_COLUMN_IN, 2.8, **named)
        *places, parts = figure.subplots(1, 3)
        for axes, (label, columns) in zip(places, bars.items(), strict=True):
            named = dict(zip(columns, looks, strict=True))
            heights = table[[f"{column}_ms" for column in named]].set_axis(list(named.values()), axis=1)
            spread = table.reindex(columns=[f"{column}_iqr_ms" for column in named]).set_axis(heights.columns, axis=1) / 2
            heights.plot.bar(ax=axes, yerr=spread, color=looks, width=0.8, rot=0, error_kw={"lw": 0.6}, ylabel=label)
            if axes is places[0]:
                at = np.arange(len(table))
                axes.hlines(table["floor_ms"], at - 0.45, at + 0.45, color="black", linewidth=1.3, label="bare LLM", zorder=3)
            axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.12), handlelength=1)
        shares = 100 * table.filter(like="share ").dropna(axis=1, how="all")
        shares.rename(columns=lambda name: name.removeprefix("share ")).plot.barh(
            stacked=True, ax=parts, width=0.6, xlabel="% of a step"
        )
        parts.invert_yaxis()
        for axes in (*places, parts):
            axes.spines[["top", "right"]].set_visible(False)
        parts.legend(loc="upper center", bbox_to_anchor=(0.45, -0.25), ncols=2, handlelength=1, columnspacing=1)
    figure.again = partial(costs, rows, where)
    return figure


def publish(root: Path = files.ROOT) -> str:
    """Copy all stored measurements into the published figures, and let the library's README show them; says what was done.

    Raises:
        FileNotFoundError: there are none.
        ValueError: that README has no place for them.
    """
    source, target = files.figures_folder() / FOLDER, root / "figures" / files.PUBLISHED / FOLDER
    if not stored(source):
        raise FileNotFoundError(f"{source}: no measurement is stored there; call `cmpta benchmark` first")
    files.split(root / PAGE, SPEED)  # before anything is copied
    with files.writing(target):
        shutil.copytree(source, target, dirs_exist_ok=True)
    files.write_text(root / PAGE, files.with_text(root / PAGE, SPEED, in_readme(stored(target))))
    return f"{sum(1 for _ in source.iterdir())} files of {source} are now in {target}, and {PAGE} shows them; commit both"


def in_readme(measured: Stored) -> str:
    """The largest backbone's rows at the smallest batch, as Markdown, and what they were measured on."""
    chosen = max(measured.values(), key=lambda one: (BACKBONES.index(one["rows"][0]["backbone"]), len(one["rows"])))
    batch, about = min(row["batch"] for row in chosen["rows"]), chosen["about"]
    what = f"{_WHAT[chosen['rows'][0]['backbone']]}, random weights, batch {batch}, D {chosen['rows'][0]['dim']}"
    lines = [f"{what}; {about['hardware']}, {about['threads']} threads, {about['date']}:", ""]
    lines += ["|lengths of|step|bare LLM|MSE-Adapter's|answer per clip|MSE-Adapter's|peak memory|", "|-|-|-|-|-|-|-|"]
    for row in (row for row in chosen["rows"] if row["batch"] == batch):
        memory = f"{row['ours_peak_gb']:.1f} GB, MSE-Adapter's {row['ancestor_peak_gb']:.1f} GB" if "ours_peak_gb" in row else "—"
        steps = [f"{row[name]:,.0f} ms" for name in ("step_ms", "floor_ms", "ancestor_step_ms")]
        answers = [f"{row[name]:.0f} ms" for name in ("answer_ms", "ancestor_answer_ms")]
        lines.append(f"|{'|'.join([row['corpus'], *steps, *answers, memory])}|")
    return "\n".join(lines)
