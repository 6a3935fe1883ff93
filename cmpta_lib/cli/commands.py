"""The smaller commands: each takes the parsed options and returns the exit code."""

from __future__ import annotations

import argparse

from cmpta_lib.cli.arguments import chosen_notebooks, study_of
from cmpta_lib.llm import files as llm_files
from cmpta_lib.runs import provenance
from cmpta_lib.runs.progress import duration, table
from cmpta_lib.study import check, estimate
from cmpta_lib.study.estimate import Costs


def publish_exports(options: argparse.Namespace) -> int:
    """Copy a profile's exports into the published ones and rewrite the README's results."""
    from cmpta_lib.report.gather import publish

    print(publish(options.profile))
    return 0


def prepare_data(options: argparse.Namespace) -> int:
    """Hand over to the corpus' own command."""
    from data_prep import meld, simsv2

    return {"simsv2": simsv2, "meld": meld}[options.corpus].main(options.rest, f"cmpta data {options.corpus}")


def fetch_weights(options: argparse.Namespace) -> int:
    """Fetch an LLM and say where it lies."""
    print(llm_files.fetch(options.name))
    return 0


def check_study(options: argparse.Namespace) -> int:
    """Print what is here and what is missing; with everything here, also hours from a few measured steps and answers."""
    study, names = study_of(options), chosen_notebooks(options)
    found = check.needs(study, names) + (check.stored(study, names) if options.deep else [])
    missing, jobs, needs = any(need.missing for need in found), options.jobs or provenance.usual(), check.screen(study, found)
    # Where corpora are missing, runs that wait for something of their own count as if they did not.
    waits = {one for one in study.planned(names) if study.missing(one.row, "" if missing else one.key)}
    notebooks = {name: [one for one in study.planned([name]) if one not in waits] for name in names}
    if missing:
        print(f"{estimate.by_notebook(study, notebooks, None)}\n\n{needs}")  # last, so that it is what a terminal shows
        count = len(study.planned(names))
        print(f"{count} runs in all, which `cmpta reproduce --dry-run` lists; hours are estimated once nothing is missing.")
        return 1
    print(needs, flush=True)
    runs = [one for one in study.planned(names) if one not in waits]
    done = sum(study.run(one.key, one.row, one.seed).done for one in runs)
    if done == len(runs):
        print(f"all {done} runs are finished: nothing is left to train" if runs else "no run is needed for this")
        return 0
    print(f"{len(runs)} runs, {done} of them finished; timing a few steps and answers of each kind ...", flush=True)
    costs = estimate.measured(study, runs)
    rows = []
    for kind, speed in costs.speeds.items():
        steps = ", ".join(f"{1000 * seconds:.1f}" for seconds in speed.steps.values()) or "-"
        times = [steps, f"{1000 * speed.answer:.2f}", f"{speed.start:.1f}", f"{speed.gpu_gb:.1f}" if speed.gpu_gb else "-"]
        rows.append([study.corpus(kind.key).name, kind.method, kind.llm or "-", *times])
    head = ["corpus", "method", "own LLM", "step ms", "answer ms", "start s", "GPU GB"]
    print("\n".join([*table(head, rows, range(3, len(head))), "", estimate.by_notebook(study, notebooks, costs, jobs), ""]))
    taken = [seconds or 0.0 for seconds in costs(runs)]
    how = "one run at a time" if jobs == 1 else f"{jobs} runs at a time ({duration(sum(taken))} one after another)"
    print(f"about {duration(max(estimate.ends(taken, jobs)))} for the rest, {how}, on {provenance.hardware()}")
    print(_sharing(costs), end="")
    return 0


def _sharing(costs: Costs) -> str:
    """How many runs a GPU's memory takes at once; "" without a GPU."""
    gpus, gpu = provenance.gpu_count(), provenance.first_gpu()
    largest = max((speed.gpu_gb for speed in costs.speeds.values()), default=0.0)
    if not gpus or gpu is None or not largest:
        return ""
    if (most := provenance.fit(gpu[1], largest)) < 2:
        return f"one run fits into a GPU of {gpu[1]:.0f} GB at a time: the largest allocates {largest:.1f} GB\n"
    return (
        f"{most} runs fit into a GPU of {gpu[1]:.0f} GB at once, as the largest allocates {largest:.1f} GB: pass up to "
        f"--jobs {most * gpus}. Whether that is faster depends on how far one run fills the GPU, and was not measured here\n"
    )
