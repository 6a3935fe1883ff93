"""Everything that is to be known on a GPU, in one call of some minutes:

    python -m cmpta_lib.benchmark.gpu OUT [--vocabulary qwen.tiktoken] [--annotations FOLDER]

`cmpta benchmark` with the whole of Qwen-1.8B's shape, random bf16 weights drawn on the GPU, on the lengths of SIMS-V2 and MELD
at batches of 16 and 64, and the hours of profile `paper` that follow. OUT gets gpu.json and gpu.csv; the same is printed.

Needs torch, transformers, pandas, numpy, safetensors and scikit-learn, and of smaller packages pydantic (with pydantic-core,
annotated-types, typing-inspection), filelock, psutil and tqdm; no Jupyter. Without a GPU it runs on the CPU, in float32,
which only `--small` makes bearable: the same calls at the tiny LLM's size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmpta_lib.benchmark import table
from cmpta_lib.benchmark.contest import CONTENDERS, Contest, peak
from cmpta_lib.benchmark.options import CORPORA, DEFAULT_DIM, Options
from cmpta_lib.config import TrainingConfig
from cmpta_lib.study import estimate
from cmpta_lib.study.study import Study

BATCHES = (16, 64)
SMALL_BATCHES = (2, 4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cmpta_lib.benchmark.gpu", description=(__doc__ or "").split(":")[0])
    parser.add_argument("out", type=Path, help="folder for gpu.json and gpu.csv")
    parser.add_argument("--vocabulary", default="", help="a published qwen.tiktoken, for its real tokens")
    parser.add_argument("--annotations", default="", help="folder of MELD's CSVs, for its real texts")
    parser.add_argument("--small", action="store_true", help="the tiny LLM's size, to see that everything runs")
    options = parser.parse_args(arguments)
    common: dict[str, Any] = {"vocabulary": options.vocabulary, "annotations": options.annotations}
    if options.small:
        common |= {"backbone": "tiny", "dim": 16, "steps": 1, "answers": 1, "answered": 4}
    else:
        common |= {"backbone": "full", "dim": DEFAULT_DIM["full"], "steps": 10, "answers": 3, "warm_up": 3}
    asked, rows = [], []
    for key in CORPORA:
        llm = None  # one for all batch sizes
        for size in SMALL_BATCHES if options.small else BATCHES:
            asked.append(Options(corpus=key, batch_size=size, **common))
            contest = Contest(asked[-1], llm)
            llm, times = contest.llm, contest.run()
            rows.append(table.row(asked[-1], times, {name: peak(contest, name) for name in CONTENDERS}))
            print(table.screen(rows[-1:], table.about(asked[-1:])), flush=True)
    made = table.about(asked) | {"projection": projection(rows)}
    paths = table.store(options.out, "gpu", rows, made)
    print(f"{made['projection']}\n" + ", ".join(map(str, paths)))
    return 0


def projection(rows: Sequence[Mapping[str, Any]]) -> str:
    """What profile `paper` would take on this machine, by notebook, from each corpus' smallest batch."""
    milliseconds = {}
    for key, name in CORPORA.items():
        one = min((row for row in rows if row["corpus"] == name), key=lambda row: row["batch"])
        step_ms = one["step_ms"] * TrainingConfig().batch_size / one["batch"]
        milliseconds[key] = step_ms, one["answer_ms"]
    return estimate.projection(Study("paper"), milliseconds)


if __name__ == "__main__":
    sys.exit(main())
