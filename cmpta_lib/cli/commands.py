"""The commands: each takes the parsed options and returns the exit code."""

from __future__ import annotations

import argparse

from cmpta_lib.cli.arguments import chosen_notebooks, study_of
from cmpta_lib.llm import files as llm_files
from cmpta_lib.runs import provenance as records
from cmpta_lib.study import preflight as check

WITH_NOTEBOOKS = ("reproduce", "rehearse", "publish")  # commands that need the repository, not the package alone


def check_study(options: argparse.Namespace) -> int:
    """Print what is here and what is missing; with everything here, measure a few steps and estimate the hours."""
    study, chosen = study_of(options), chosen_notebooks(options)
    found = check.needs(study, chosen)
    if options.deep:
        found += check.stored(study, chosen)
    print(check.screen(study, found), flush=True)
    if any(need.missing for need in found):
        count = len(study.planned(chosen))
        print(f"{count} runs in all, which `cmpta reproduce --dry-run` lists; hours are estimated once nothing is missing.")
        return 1
    runs = [run for _, run in study.planned_runs(chosen)]
    if all(run.done for run in runs):
        print(f"all {len(runs)} runs are finished: nothing is left to train" if runs else "no run is needed for this")
        return 0
    from cmpta_lib.study.estimate import hours
    from cmpta_lib.study.step_times import step_times

    print(f"{len(runs)} runs, {sum(run.done for run in runs)} of them finished; measuring a few steps ...", flush=True)
    measured = step_times(study, steps=10, keys=study.keys_of(chosen))
    print(measured.to_string(index=False))
    estimate = hours(study, runs)
    shown = f"{estimate:.1f} hours" if estimate >= 1 else f"{60 * estimate:.0f} minutes"
    print(f"about {shown} for the rest, one run at a time on {records.hardware()}")
    return 0


def publish_exports(options: argparse.Namespace) -> int:
    """Copy a profile's exports into the published ones and rewrite the README's results."""
    from cmpta_lib.report import publish

    print(publish.publish(options.profile))
    return 0


def benchmark(options: argparse.Namespace) -> int:
    """Print the step times of `cmpta_lib.study.step_times`."""
    from cmpta_lib.study.step_times import step_times

    print(step_times(study_of(options), options.steps, options.batch_size).to_string(index=False))
    return 0


def prepare_data(options: argparse.Namespace) -> int:
    """Hand over to the corpus' own command."""
    from data_prep import meld, simsv2

    return {"simsv2": simsv2, "meld": meld}[options.corpus].main(options.rest, f"cmpta data {options.corpus}")


def fetch_weights(options: argparse.Namespace) -> int:
    """Fetch an LLM and say where it lies."""
    print(llm_files.fetch(options.name))
    return 0
