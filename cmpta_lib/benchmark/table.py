"""A measurement as a row of a table, and the table as files: CSV, JSON with where and when, and Markdown to read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cmpta_lib import files
from cmpta_lib.benchmark.options import BACKBONES, CORPORA, Options
from cmpta_lib.benchmark.times import ANCESTOR, FLOOR, OURS, PARTS, Times
from cmpta_lib.benchmark.timing import Spread
from cmpta_lib.runs import provenance

FOLDER = "benchmark"  # below figures/
SPEED = "speed"  # what the README's marks around it are called
SHOWN = {  # column -> heading on screen
    "corpus": "lengths of",
    "step_ms": "step ms",
    "floor_ms": "floor ms",
    "ancestor_step_ms": "ancestor step ms",
    "step_over_floor": "step/floor",
    "ancestor_over_step": "ancestor/step",
    "answer_ms": "answer ms",
    "ancestor_answer_ms": "ancestor answer ms",
    "ancestor_over_answer": "ancestor/answer",
    "memory_over_ancestor": "memory/ancestor",
}
_WHAT = {"tiny": "The embedded LLM's size", "slice": "Four layers of Qwen-1.8B's width", "full": "Qwen-1.8B's shape"}
Peaks = Mapping[str, Mapping[str, float]]  # contender -> what `peak.measured` says


def row(options: Options, times: Times, peaks: Peaks | None = None) -> dict[str, Any]:
    """One line: settings, medians with interquartile ranges, ratios, shares, memory.

    Times are milliseconds, of a step or a clip; medians over the timed steps. Answers are means over the timed evaluation
    batches, which are few and of different lengths. Of the matrix products' peak, the floor and the LLM's part of a step
    reach what their own products with the LLM's weights make of their own time. `memory_over_ancestor` compares what the
    steps take above what was loaded, `peak_over_ancestor` all of it.
    """
    step, floor, ancestor = (Spread.of(times.steps[name]) for name in (OURS, FLOOR, ANCESTOR))
    answer, generated = (sum(times.answers[name]) / len(times.answers[name]) for name in (OURS, ANCESTOR))
    found: dict[str, Any] = {
        "corpus": CORPORA[options.corpus],
        "backbone": options.backbone,
        "batch": options.batch_size,
        "dim": options.dim,
        "steps": len(times.steps[OURS]),
        "tokens": round(Spread.of(times.tokens).median),
        "frames": round(Spread.of(times.frames).median),
        "step_ms": step.median,
        "step_iqr_ms": step.iqr,
        "floor_ms": floor.median,
        "floor_iqr_ms": floor.iqr,
        "ancestor_step_ms": ancestor.median,
        "ancestor_step_iqr_ms": ancestor.iqr,
        "step_over_floor": step.median / floor.median,
        "ancestor_over_step": ancestor.median / step.median,
        "answer_ms": answer,
        "answer_iqr_ms": Spread.of(times.answers[OURS]).iqr,
        "ancestor_answer_ms": generated,
        "ancestor_answer_iqr_ms": Spread.of(times.answers[ANCESTOR]).iqr,
        "ancestor_over_answer": generated / answer,
        "tokens_per_second": 1000 * sum(times.tokens) / sum(times.steps[OURS]),
    }
    spent = {part: sum(one[part] for one in times.parts) for part in PARTS}
    found |= {f"share {part}": value / sum(spent.values()) for part, value in spent.items()}
    floor_rate = sum(times.operations) / (sum(times.steps[FLOOR]) / 1000)
    in_llm = sum(spent[part] for part in ("LLM forward", "LLM backward", "head and loss"))
    llm_rate = sum(times.products) / (in_llm / 1000)
    found |= {
        "matmul_peak_tflops": times.peak_rate / 1e12,
        "floor_of_matmul_peak": floor_rate / times.peak_rate,
        "llm_part_of_matmul_peak": llm_rate / times.peak_rate,
    }
    for name, one in (peaks or {}).items():
        found |= {f"{name}_peak_gb": one["peak"], f"{name}_growth_gb": one["growth"]}
    if peaks:
        ours, theirs = peaks[OURS], peaks[ANCESTOR]
        if theirs["growth"]:  # a small backbone's steps may fit into what is held anyway
            found["memory_over_ancestor"] = ours["growth"] / theirs["growth"]
        found["peak_over_ancestor"] = ours["peak"] / theirs["peak"]
    return found


def about(asked: Sequence[Options]) -> dict[str, Any]:
    """Where, when and with what it was measured."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        **provenance.environment(threads=torch.get_num_threads()),
        "options": [_without_places(asdict(one)) for one in asked],
    }


def _without_places(options: dict[str, Any]) -> dict[str, Any]:
    """Files by their names: where they lie is nobody else's business."""
    return options | {name: Path(options[name]).name for name in ("vocabulary", "annotations")}


def title(rows: Sequence[Mapping[str, Any]], made: Mapping[str, Any]) -> str:
    """What was measured, where and when, in one line, from rows or options of one kind."""
    first = rows[0]
    batch = first.get("batch", first.get("batch_size"))
    lengths = f"lengths of {CORPORA[first['corpus']]}, " if first["corpus"] in CORPORA else ""
    what = f"{lengths}{first['backbone']} backbone of random weights"
    where = f"{made['hardware']}, {made['threads']} threads, {made['date']}, commit {made['commit']}"
    return f"{what}, batch {batch}, D {first['dim']}; {where}"


def shown(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The columns that matter most, rounded, for a screen."""
    table = pd.DataFrame(rows)
    table = table[[column for column in SHOWN if column in table]].rename(columns=SHOWN)
    return table.map(lambda value: _rounded(value) if isinstance(value, float) else value)


def _rounded(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def store(folder: Path, name: str, rows: Sequence[Mapping[str, Any]], made: Mapping[str, Any]) -> list[Path]:
    """Write `name`.json and `name`.csv; what was there before is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.json", folder / f"{name}.csv"]
    with files.writing(folder):
        files.write_text(paths[0], json.dumps({"about": made, "rows": list(rows)}, indent=1, ensure_ascii=False) + "\n")
        files.write_text(paths[1], pd.DataFrame(rows).to_csv(index=False))
    return paths


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> what `store` wrote, of every measurement in a folder."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def publish(root: Path = files.ROOT) -> str:
    """Copy all measurements that are stored into the published figures, and let the README show them; says what was done.

    Raises:
        FileNotFoundError: there are none.
        ValueError: the README has no place for them.
    """
    source, target = files.figures_folder() / FOLDER, root / "figures" / files.PUBLISHED / FOLDER
    if not any(source.glob("*.json")):
        raise FileNotFoundError(f"{source}: no measurement is stored there; call `cmpta benchmark` first")
    files.split(root / "README.md", SPEED)  # before anything is copied
    with files.writing(target):
        shutil.copytree(source, target, dirs_exist_ok=True)
    files.put(root / "README.md", SPEED, in_readme(stored(target)))
    return f"{sum(1 for _ in source.iterdir())} files of {source} are now in {target}, and README.md shows them; commit both"


def in_readme(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """The largest backbone's rows at the smallest batch, as Markdown, and what they were measured on."""
    tables = [one for one in measured.values() if one["rows"] and "step_ms" in one["rows"][0]]
    if not tables:
        return "Not measured: `cmpta benchmark --backbone slice`."
    chosen = max(tables, key=lambda one: (BACKBONES.index(one["rows"][0]["backbone"]), len(one["rows"])))
    batch = min(row["batch"] for row in chosen["rows"])
    lines = ["||step|bare LLM (floor)|MSE-Adapter's way|answer per clip|its `generate`|peak memory|", "|-|-|-|-|-|-|-|"]
    for row in (row for row in chosen["rows"] if row["batch"] == batch):
        memory = f"{row['ours_peak_gb']:.1f} GB, its {row['ancestor_peak_gb']:.1f}" if "ours_peak_gb" in row else "—"
        lines.append(
            f"|{row['corpus']}|{row['step_ms']:,.0f} ms|{row['floor_ms']:,.0f} ms|{row['ancestor_step_ms']:,.0f} ms"
            f"|{row['answer_ms']:.0f} ms|{row['ancestor_answer_ms']:.0f} ms|{memory}|"
        )
    about, first = chosen["about"], chosen["rows"][0]
    what = _WHAT[first["backbone"]]
    where = f"{about['hardware']}, {about['threads']} threads, {about['date']}"
    return "\n".join([f"{what}, random weights, batch {batch}, D {first['dim']}; {where}:", "", *lines])
