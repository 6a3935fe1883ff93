"""`cmpta check`: what is here and what is missing, what each table costs on this machine, and when which claim can be judged."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from cmpta_lib.cli.arguments import chosen_notebooks, study_of
from cmpta_lib.runs import provenance, sharing
from cmpta_lib.runs import provenance as machine
from cmpta_lib.runs.progress import duration, table
from cmpta_lib.study import forecast, plan
from cmpta_lib.study import preflight as check
from cmpta_lib.study.forecast import Asked, Forecast
from cmpta_lib.study.plan import Planned
from cmpta_lib.study.study import Study

if TYPE_CHECKING:
    from cmpta_lib.study.estimate import Costs


def check_study(options: argparse.Namespace) -> int:
    """Print what is here and what is missing, then the plan; with everything here, from a few measured steps and answers."""
    study, chosen = study_of(options), chosen_notebooks(options)
    found = check.needs(study, chosen)
    if options.deep:
        found += check.stored(study, chosen)
    missing, jobs = any(need.missing for need in found), options.jobs or sharing.usual()
    asked = _asked(study, chosen, jobs, missing)
    runs, needs = asked.runs(), check.screen(study, found)
    if missing:
        print(forecast.screen(Forecast(asked, lambda runs: [None] * len(runs))))
        print(f"\n{needs}")  # last, so that it is what a terminal shows
        count = len(study.planned(chosen))
        print(f"{count} runs in all, which `cmpta reproduce --dry-run` lists; hours are estimated once nothing is missing.")
        return 1
    print(needs, flush=True)
    done = sum(study.run(one.key, one.row, one.seed).done for one in runs)
    if done == len(runs):
        print(f"all {done} runs are finished: nothing is left to train" if runs else "no run is needed for this")
        return 0
    print(f"{len(runs)} runs, {done} of them finished; timing a few steps and answers of each kind ...", flush=True)
    from cmpta_lib.study import estimate

    costs = estimate.measured(study, runs)
    print("\n".join([*_speeds(study, costs), "", forecast.screen(Forecast(asked, costs)), "", _in_all(runs, costs, jobs)]))
    if advice := _sharing(costs):
        print(advice)
    return 0


def _asked(study: Study, notebooks: Sequence[str], jobs: int, missing: bool) -> Asked:
    """What the forecast is of; where corpora are missing, runs that wait for their own recordings count as if they did not."""

    @cache
    def lacks(key: str, row: str) -> bool:
        return bool(study.lacks(rows[row], "" if missing else key))

    rows = {repr(one.row): one.row for one in study.planned(notebooks)}
    if not study.data:
        corpora = {key: key for key in study.keys_of(notebooks)}
    elif missing:
        corpora = {}
    else:
        corpora = {"sims" if study.corpus("data").task.kind == "regression" else "meld": "data"}
    return Asked(
        plan.chosen(notebooks),
        study.keys,
        corpora,
        study.seeds,
        own=bool(study.data),
        absent=lambda one: lacks(one.key, repr(one.row)),
        jobs=jobs,
        cues=not missing and any(study.corpus(key).has_known_truth for key in study.keys_of(notebooks)),
    )


def _speeds(study: Study, costs: Costs) -> list[str]:
    """What was timed: a line for each corpus, method and LLM of its own."""
    rows = []
    for kind, speed in costs.speeds.items():
        steps = ", ".join(f"{1000 * seconds:.1f}" for seconds in speed.steps.values()) or "-"
        size = f"{speed.gpu_gb:.1f}" if speed.gpu_gb else "-"
        times = [steps, f"{1000 * speed.answer:.2f}", f"{speed.start:.1f}"]
        rows.append([study.corpus(kind.key).name, kind.method, kind.llm or "-", *times, size])
    head = ["corpus", "method", "own LLM", "step ms", "answer ms", "start s", "GPU GB"]
    return table(head, rows, range(3, len(head)))


def _in_all(runs: Sequence[Planned], costs: Costs, jobs: int) -> str:
    taken = [seconds or 0.0 for seconds in costs(runs)]
    at_a_time = "one run at a time" if jobs == 1 else f"{jobs} runs at a time"
    end = max(moment.seconds for moment in forecast.moments(taken, jobs))
    work = "" if jobs == 1 else f" ({duration(sum(taken))} one after another)"
    return f"about {duration(end)} for the rest, {at_a_time}{work}, on {provenance.hardware()}"


def _sharing(costs: Costs) -> str:
    """How many runs a GPU's memory takes at once; "" without a GPU."""
    gpus, gpu = machine.gpu_count(), sharing.first_gpu()
    largest = max((speed.gpu_gb for speed in costs.speeds.values()), default=0.0)
    if not gpus or gpu is None or not largest:
        return ""
    most = sharing.fit(gpu[1], largest)
    if most < 2:
        return f"one run fits into a GPU of {gpu[1]:.0f} GB at a time: the largest allocates {largest:.1f} GB"
    return (
        f"{most} runs fit into a GPU of {gpu[1]:.0f} GB at once, as the largest allocates {largest:.1f} GB: pass up to "
        f"--jobs {most * gpus}. Whether that is faster depends on how far one run fills the GPU, and was not measured here"
    )
