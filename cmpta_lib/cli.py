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

# Stages run one after another, the notebooks of a stage side by side; within a stage none needs another's output.
STAGES = (
    ("01_data", "02_model"),
    ("03_training",),
    ("04_table3_simsv2", "05_table4_meld", "06_table5_ablation_simsv2", "07_table6_ablation_meld"),
    ("08_attention_figs3_4", "09_case_study_fig5"),
)
SIDE_BY_SIDE = 2


class NotebookFailed(RuntimeError):
    """A cell raised; the message names notebook, cell and error, and where the executed copy lies."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="cmpta", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    reproduce_parser = commands.add_parser(
        "reproduce", help="run the notebooks and export tables, figures and report.md"
    )
    run_parser = commands.add_parser("runs", help="list the finished runs and their test scores")
    benchmark_parser = commands.add_parser("benchmark", help="time a training step against the bare frozen LLM's")
    for sub in (reproduce_parser, benchmark_parser):
        sub.add_argument("--profile", default="demo", help="demo (offline, minutes) or paper (real data, one GPU)")
        sub.add_argument("--data", default="", help="folder of <name>_{train,valid,test}.pkl in MELD's public format")
        sub.add_argument("--smoke", action="store_true", help="a few clips and one epoch, to see that everything runs")
    reproduce_parser.add_argument(
        "--seeds", type=seeds, default=None, help="how many seeds, or a list such as [1111,3333]"
    )
    reproduce_parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="notebooks by a part of their name: table3"
    )
    run_parser.set_defaults(profile="demo", data="", smoke=False)
    options = parser.parse_args(arguments)
    try:
        return {"reproduce": reproduce, "runs": list_runs, "benchmark": benchmark}[options.command](options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"cmpta {options.command}: {error}", file=sys.stderr)
        return 1


def seeds(text: str) -> Any:
    """A number or a list; argparse shows this function's name when it is neither."""
    try:
        return ast.literal_eval(text)
    except SyntaxError as error:
        raise ValueError(text) from error


def reproduce(options: argparse.Namespace) -> int:
    """Prepare corpora and LLM, finish all runs in one pool, execute the notebooks, write the report."""
    from cmpta_lib import reports
    from cmpta_lib.experiments import ROOT, Study

    started = time.monotonic()
    study = Study(options.profile, options.seeds, options.data, options.smoke)
    names = [name for stage in STAGES for name in stage]
    chosen = [n for n in names if not options.only or any(part in n for part in options.only)]
    if not chosen:
        raise ValueError(
            f"--only {' '.join(options.only)}: no notebook has that in its name; there are: {', '.join(names)}"
        )
    print(f"[1/3] corpora and language model of profile '{study.profile}'", flush=True)
    for key in study.keys:
        study.corpus(key)
    print(f"      backbone {study.llm.name} {study.llm.fingerprint}  ({time.monotonic() - started:.0f} s)", flush=True)
    runs = [] if options.only else study.all_runs()
    print(f"[2/3] runs: {sum(run.done for run in runs)} of {len(runs)} are finished already", flush=True)
    study.ensure(runs)
    print(f"[3/3] {len(chosen)} notebooks  ({time.monotonic() - started:.0f} s)", flush=True)
    folder = study.root / "notebooks" / study.figures.name
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {
        "profile": options.profile,
        "seeds": list(study.seeds),
        "data": _absolute(options.data),
        "smoke": options.smoke,
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
    report = reports.write_report(study)
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
        config = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/k"}})
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
    from cmpta_lib.experiments import DONE, Run, runs_folder

    for path in sorted(runs_folder().glob(f"*/{DONE}")):
        run = Run(from_json((path.parent / "config.json").read_text()), path.parent)
        scores = {name: value for name, value in run.metrics["test"].items() if name in ("mae", "corr", "f1_weighted")}
        shown = " ".join(f"{name}={value:.4f}" for name, value in scores.items())
        print(f"{run.folder.name}  seed {run.config.seed}  {shown}  {run.environment['train_seconds']:.0f} s")
    return 0


def benchmark(options: argparse.Namespace) -> int:
    """Print the step times of `cmpta_lib.benchmark`."""
    from cmpta_lib.benchmark import step_times
    from cmpta_lib.experiments import Study

    print(step_times(Study(options.profile, 1, options.data, options.smoke)).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
