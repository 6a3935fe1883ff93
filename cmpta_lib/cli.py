"""The command line: `cmpta reproduce` runs every notebook headless and writes one report."""

from __future__ import annotations

import argparse
import ast
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from cmpta_lib.files import ROOT
from cmpta_lib.llm import files as llm_files
from cmpta_lib.runs import provenance as records
from cmpta_lib.study import preflight as check
from cmpta_lib.study.plan import NOTEBOOKS
from cmpta_lib.study.study import Study

# Stages run one after another, the notebooks of a stage side by side; within a stage none needs another's output.
STAGES = tuple(
    tuple(notebook.name for notebook in NOTEBOOKS if notebook.stage == stage)
    for stage in sorted({notebook.stage for notebook in NOTEBOOKS})
)
SIDE_BY_SIDE = 2


class NotebookFailed(RuntimeError):
    """A cell raised; the message names notebook, cell and error, and where the executed copy lies."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="cmpta", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, what: str, *, study: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=what, description=what)
        if study:
            profiles = "demo (offline, minutes) or paper (real data, one GPU)"
            sub.add_argument("--profile", default="demo", help=profiles)
            folder = "folder of <name>_{train,valid,test}.pkl in MELD's public format"
            sub.add_argument("--data", default="", help=folder)
            sub.add_argument(
                "--smoke", action="store_true", help="a few clips and one epoch, to see that everything runs"
            )
            sub.add_argument("--llm", default="", help="another backbone: a published name, a hub id, or a folder")
            count = "how many seeds, or a list such as [1111,3333]"
            sub.add_argument("--seeds", type=seeds, default=None, help=count)
            sub.add_argument(
                "--only", nargs="+", default=[], metavar="NAME", help="notebooks by a part of their name: table3"
            )
        return sub

    run = command("reproduce", "run the notebooks and export tables, figures and report.md")
    run.add_argument("--jobs", type=int, default=None, help="runs at a time (default: one on a GPU, else one per core)")
    run.add_argument("--dry-run", action="store_true", help="list the runs with their config hashes, and train nothing")
    command("check", "what is here and what is missing, how many runs there are, and how long they will take")
    times = command("benchmark", "time a training step against the bare frozen LLM's")
    times.add_argument("--steps", type=int, default=20, help="batches to time (default 20)")
    times.add_argument("--batch-size", type=int, default=None, help="clips a batch (default: the runs')")
    command("runs", "list the finished runs and their test scores", study=False)
    data = command("data", "fetch, verify and convert a published corpus", study=False)
    data.add_argument("corpus", choices=("simsv2", "meld"))
    data.add_argument("rest", nargs=argparse.REMAINDER, help="its own options; see cmpta data CORPUS --help")
    weights = command("weights", "fetch an LLM from the hub: weights, configuration, vocabulary, no code", study=False)
    weights.add_argument("name", help=f"{', '.join(llm_files.PUBLISHED)}, or a hub id")
    rehearse = command("rehearse", "run profile paper on generated files laid out like the published ones", study=False)
    sizes = "small (minutes on a CPU) or full (Qwen-1.8B's and the published sizes); default: full where there is a GPU"
    rehearse.add_argument("--size", choices=("small", "full"), default=None, help=sizes)
    rehearse.add_argument("--factor", type=float, default=None, help="split sizes, as a fraction of the published ones")
    rehearse.add_argument("--annotations", default="", help="folder of MELD's CSVs, for its real texts and labels")
    rehearse.add_argument("--vocabulary", default="", help="a published qwen.tiktoken, for its real tokens")
    rehearse.add_argument("--files-only", action="store_true", help="write and convert the files, run no notebook")
    options = parser.parse_args(arguments)
    actions = {
        "reproduce": reproduce,
        "check": check_study,
        "runs": list_runs,
        "benchmark": benchmark,
        "data": prepare_data,
        "weights": fetch_weights,
        "rehearse": rehearse_paper,
    }
    try:
        return actions[options.command](options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"cmpta {options.command}: {error}", file=sys.stderr)
        return 1


def _study(options: argparse.Namespace) -> Study:
    return Study(options.profile, options.seeds, options.data, options.smoke, options.llm)


def _chosen(options: argparse.Namespace) -> list[str]:
    names = [name for stage in STAGES for name in stage]
    chosen = [n for n in names if not options.only or any(part in n for part in options.only)]
    if not chosen:
        raise ValueError(
            f"--only {' '.join(options.only)}: no notebook has that in its name; there are: {', '.join(names)}"
        )
    return chosen


def seeds(text: str) -> Any:
    """A number or a list."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        raise argparse.ArgumentTypeError(f"expected a number or a list such as [1111,3333], not '{text}'") from None


def reproduce(options: argparse.Namespace) -> int:
    """Prepare corpora and LLM, finish all runs in one pool, execute the notebooks, write the report."""
    from cmpta_lib.report import gather as reports

    started = time.monotonic()
    study, chosen = _study(options), _chosen(options)
    keys = study.keys_of(chosen)
    found = check.needs(study, chosen)
    if any(need.missing for need in found):
        print(check.screen(study, found))
        print(f"Nothing was started: {sum(need.missing for need in found)} of {len(found)} needs are missing.")
        return 1
    print(f"[1/3] corpora and language model of profile '{study.profile}'", flush=True)
    for key in keys:
        study.corpus(key)
    print(f"      backbone {study.llm.name} {study.llm.fingerprint}  ({time.monotonic() - started:.0f} s)", flush=True)
    planned = study.planned_runs(chosen)
    runs = [run for _, run in planned]
    print(f"[2/3] runs: {sum(run.done for run in runs)} of {len(runs)} are finished already", flush=True)
    if options.dry_run:
        for name, run in planned:
            state = "finished" if run.done else "to do"
            print(f"      {run.folder.name}  seed {run.config.seed}  {state:8}  {name}")
        return 0
    study.ensure(runs, options.jobs)
    print(f"[3/3] {len(chosen)} notebooks  ({time.monotonic() - started:.0f} s)", flush=True)
    folder = study.root / "notebooks" / study.figures.name
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {
        "profile": options.profile,
        "seeds": list(study.seeds),
        "data": _absolute(options.data),
        "smoke": options.smoke,
        "llm": _absolute(options.llm) if Path(options.llm).is_dir() else options.llm,
    }
    for stage in STAGES:
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            jobs = {
                pool.submit(execute_notebook, ROOT / "notebooks" / f"{n}.ipynb", folder / f"{n}.ipynb", parameters): n
                for n in stage
                if n in chosen
            }
            for job in as_completed(jobs):
                job.result()
                print(f"      {jobs[job]} done  ({time.monotonic() - started:.0f} s)", flush=True)
    report = reports.write_report(study, keys)
    print(f"{report} written after {time.monotonic() - started:.0f} s", flush=True)
    return 0


def _absolute(folder: str) -> str:
    return str(Path(folder).resolve()) if folder else ""


def execute_notebook(path: Path, out: Path, parameters: Mapping[str, Any]) -> None:
    """Run a notebook headless with papermill; the executed copy goes to `out`.

    Raises:
        ValueError: a parameter that the notebook does not have (papermill itself would only warn).
        NotebookFailed: a cell raised.
    """
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    known = papermill.inspect_notebook(str(path))
    if unknown := sorted(set(parameters) - set(known)):
        raise ValueError(f"{path.name} has no parameter {', '.join(unknown)}; it has: {', '.join(known)}")
    # Sockets instead of ports picked beforehand: with several kernels at once two may pick the same port.
    with tempfile.TemporaryDirectory(prefix="cmpta-") as sockets:
        # A kernel that is told to end while torch's threads wind down would log that as an error.
        quiet = {"extra_arguments": ["--IPKernelApp.log_level=50"]}
        manager = {"transport": "ipc", "ip": f"{sockets}/k"}
        config = Config({"KernelManager": manager, "NotebookClient": quiet})
        try:
            papermill.execute_notebook(
                str(path),
                str(out),
                dict(parameters),
                kernel_name="python3",
                progress_bar=False,
                cwd=str(path.parent),
                config=config,
            )
        except PapermillExecutionError as error:
            raise NotebookFailed(
                f"notebook {path.name}, code cell {error.exec_count - bool(parameters)}: {error.ename}: {error.evalue}. "
                f"The executed copy with its traceback is {out}; finished runs are kept, so call again once it is mended."
            ) from error


def list_runs(options: argparse.Namespace) -> int:
    """Print a line for every finished run."""
    from cmpta_lib.config import from_json
    from cmpta_lib.files import runs_folder
    from cmpta_lib.runs.store import DONE, Run

    for path in sorted(runs_folder().glob(f"*/{DONE}")):
        run = Run(from_json((path.parent / "config.json").read_text()), path.parent)
        scores = {name: value for name, value in run.metrics["test"].items() if name in ("mae", "corr", "f1_weighted")}
        shown = " ".join(f"{name}={value:.4f}" for name, value in scores.items())
        print(f"{run.folder.name}  seed {run.config.seed}  {shown}  {run.environment['train_seconds']:.0f} s")
    return 0


def check_study(options: argparse.Namespace) -> int:
    """Print what is here and what is missing; with everything here, measure a few steps and estimate the hours."""
    study, chosen = _study(options), _chosen(options)
    found = check.needs(study, chosen)
    print(check.screen(study, found), flush=True)
    if any(need.missing for need in found):
        count = len(study.planned(chosen))
        print(f"{count} runs in all; hours are estimated from real steps once nothing is missing.")
        return 1
    from cmpta_lib.study.step_times import hours, step_times

    runs = [run for _, run in study.planned_runs(chosen)]
    print(f"{len(runs)} runs, {sum(run.done for run in runs)} of them finished; measuring a few steps ...", flush=True)
    measured = step_times(study, steps=10, keys=study.keys_of(chosen))
    print(measured.to_string(index=False))
    estimate = hours(runs, measured)
    shown = f"{estimate:.1f} hours" if estimate >= 1 else f"{60 * estimate:.0f} minutes"
    print(f"about {shown} for the rest, one run at a time on {records.hardware()}")
    return 0


def benchmark(options: argparse.Namespace) -> int:
    """Print the step times of `cmpta_lib.study.step_times`."""
    from cmpta_lib.study.step_times import step_times

    print(step_times(_study(options), options.steps, options.batch_size).to_string(index=False))
    return 0


def prepare_data(options: argparse.Namespace) -> int:
    """Hand over to the corpus' own command."""
    from data_prep import meld, simsv2

    return {"simsv2": simsv2, "meld": meld}[options.corpus].main(options.rest, f"cmpta data {options.corpus}")


def fetch_weights(options: argparse.Namespace) -> int:
    """Fetch an LLM and say where it lies."""
    print(llm_files.fetch(options.name))
    return 0


def rehearse_paper(options: argparse.Namespace) -> int:
    """Write the rehearsal's files, then drive profile `paper` through every notebook on them."""
    from cmpta_lib import rehearsal

    rehearsal.prepare(
        full=None if options.size is None else options.size == "full",
        factor=options.factor,
        annotations=Path(options.annotations) if options.annotations else None,
        vocabulary=Path(options.vocabulary) if options.vocabulary else None,
    )
    return 0 if options.files_only else main(["reproduce", "--profile", "paper", "--smoke"])


if __name__ == "__main__":
    sys.exit(main())
