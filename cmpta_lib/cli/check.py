"""`cmpta check`: what is here and what is missing, and how long each notebook takes."""

from __future__ import annotations

import argparse

from cmpta_lib.cli.arguments import chosen_notebooks, study_of
from cmpta_lib.runs import provenance
from cmpta_lib.runs.progress import duration, table
from cmpta_lib.study import check, estimate


def check_study(options: argparse.Namespace) -> int:
    """Print what is here and what is missing; with everything here, also hours from a few measured steps and answers."""
    study, names = study_of(options), chosen_notebooks(options)
    found = check.needs(study, names) + (check.stored(study, names) if options.deep else [])
    is_missing, jobs, planned = any(need.missing for need in found), options.jobs or provenance.usual(), study.planned(names)
    # Where corpora are missing, runs that wait for something of their own count as if they did not.
    waits = {one for one in planned if study.missing(one.row, "" if is_missing else one.key)}
    notebooks = {name: [one for one in study.planned([name]) if one not in waits] for name in names}
    if is_missing:
        print(f"{estimate.by_notebook(study, notebooks, None)}\n\n{check.screen(study, found)}")  # last, as terminals show that
        said = "runs in all, which `cmpta reproduce --dry-run` lists; hours are estimated once nothing is missing."
        print(f"{len(planned)} {said}")
        return 1
    print(check.screen(study, found), flush=True)
    runs = [one for one in planned if one not in waits]
    done = sum(study.run(one.key, one.row, one.seed).done for one in runs)
    if done == len(runs):
        print(f"all {done} runs are finished: nothing is left to train" if runs else "no run is needed for this")
        return 0
    print(f"{len(runs)} runs, {done} of them finished; timing a few steps and answers of each kind ...", flush=True)
    costs, rows = estimate.measured(study, runs), []
    for kind, speed in costs.speeds.items():
        steps = ", ".join(f"{1000 * seconds:.1f}" for seconds in speed.steps.values()) or "-"
        times = [steps, f"{1000 * speed.answer:.2f}", f"{speed.start:.1f}", f"{speed.gpu_gb:.1f}" if speed.gpu_gb else "-"]
        rows.append([study.corpus(kind.key).name, kind.method, kind.llm or "-", *times])
    head = ["corpus", "method", "own LLM", "step ms", "answer ms", "start s", "GPU GB"]
    print("\n".join([*table(head, rows, range(3, len(head))), "", estimate.by_notebook(study, notebooks, costs, jobs), ""]))
    taken = [seconds or 0.0 for seconds in costs(runs)]
    how = "one run at a time" if jobs == 1 else f"{jobs} runs at a time ({duration(sum(taken))} one after another)"
    print(f"about {duration(max(estimate.ends(taken, jobs)))} for the rest, {how}, on {provenance.hardware()}")
    gpus, gpu = provenance.gpu_count(), provenance.first_gpu()
    largest = max((speed.gpu_gb for speed in costs.speeds.values()), default=0.0)
    if gpus and gpu and largest:
        fits, most = f"into a GPU of {gpu[1]:.0f} GB at", provenance.fit(gpu[1], largest)
        if most < 2:
            print(f"one run fits {fits} a time: the largest allocates {largest:.1f} GB")
        else:
            print(
                f"{most} runs fit {fits} once, as the largest allocates {largest:.1f} GB: pass up to --jobs {most * gpus}. "
                "Whether that is faster depends on how far one run fills the GPU, and was not measured here"
            )
    return 0
