"""`cmpta check`: what is here and what is missing, and how long each notebook takes."""

from __future__ import annotations

import argparse

from cmpta_lib.cli.arguments import chosen_notebooks, study_of
from cmpta_lib.runs import provenance
from cmpta_lib.runs.progress import table
from cmpta_lib.study import check, estimate


def check_study(options: argparse.Namespace) -> int:
    """Print what is here and what is missing; with everything here, also hours from a few measured steps and answers."""
    study, names = study_of(options), chosen_notebooks(options)
    found = check.needs(study, names) + (check.stored(study, names) if options.deep else [])
    is_missing, planned = any(need.missing for need in found), study.planned(names)
    # Where something is missing, runs that wait for something of their own count as if they did not.
    runs = [one for one in planned if is_missing or not study.missing(one.row, one.key)]
    notebooks = {name: [one for one in study.planned([name]) if one in runs] for name in names}
    if is_missing:
        print(f"{check.screen(study, found)}\n\n{estimate.by_notebook(notebooks, {}, {})}")
        print(f"{len(planned)} runs in all: listed by `cmpta reproduce --dry-run`; hours once nothing is missing")
        return 1
    configs = {one: run.config for one in runs if not (run := study.run(one.key, one.row, one.seed)).done}
    print(f"{check.screen(study, found)}\n{len(runs)} runs, {len(runs) - len(configs)} of them finished", flush=True)
    if configs:
        print(f"timing a few steps and answers of each kind on {provenance.hardware()} ...", flush=True)
        speeds, head, rows = estimate.measured(study, configs), ["corpus", "method", "own LLM", "epoch s", "once s", "GPU GB"], []
        for (key, method, llm), speed in speeds.items():
            epochs = ", ".join(f"{seconds:.1f}" for seconds in speed.epochs.values()) or "-"
            rows.append([study.corpus(key).name, method, llm or "-", epochs, f"{speed.once:.1f}", f"{speed.gpu_gb:.1f}"])
        hours = estimate.by_notebook(notebooks, configs, speeds, options.jobs or provenance.usual())
        print("\n".join([*table(head, rows, range(3, 6)), "", hours]))
        if (largest := max(speed.gpu_gb for speed in speeds.values())) and (gpu := provenance.first_gpu()):
            print(f"runs at a time that fit into a GPU of {gpu[1]:.0f} GB: {max(1, provenance.fit(gpu[1], largest))}")
    return 0
