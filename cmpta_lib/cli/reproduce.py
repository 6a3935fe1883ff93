"""Notebooks, executed headless, and what a failure says.

`cmpta reproduce`: corpora and LLM, then all runs in one pool, then the notebooks, then the report.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from cmpta_lib import files
from cmpta_lib.cli.arguments import chosen_notebooks, study_of
from cmpta_lib.cli.interruption import SCRATCH
from cmpta_lib.files import ROOT, figures_folder
from cmpta_lib.llm.files import is_tiny
from cmpta_lib.runs import provenance
from cmpta_lib.runs.engines import DEFAULT, KEEP_FAILED, Engine, RunsFailed, engine_of
from cmpta_lib.runs.progress import Status, duration
from cmpta_lib.runs.store import Run, found, sound
from cmpta_lib.study import check, exports, plan
from cmpta_lib.study.plan import CMPTA, NOTEBOOKS, label
from cmpta_lib.study.study import ONLY_FINISHED, WITHOUT, Study
from data_prep import public_pickles, tasks

MEASURES = "`cmpta check` measures how long the others take"
SIDE_BY_SIDE = 2  # notebooks, and tiny models in the making


class NotebookFailed(RuntimeError):
    """A cell raised; the message names notebook, cell and error, and where the executed copy lies."""


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
    tempfile.tempdir = files.socket_folder(room=len(SCRATCH) + 16)  # for this process, so that what clears up looks there too
    # Sockets instead of ports picked beforehand: with several kernels at once two may pick the same port.
    with tempfile.TemporaryDirectory(prefix=SCRATCH, ignore_cleanup_errors=True) as sockets:
        # A kernel that is told to end while torch's threads wind down would log that as an error.
        quiet = {"extra_arguments": ["--IPKernelApp.log_level=50"]}
        config = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/k"}, "NotebookClient": quiet})
        settings: dict[str, Any] = {"kernel_name": "python3", "progress_bar": False, "config": config}
        try:
            papermill.execute_notebook(str(path), str(out), dict(parameters), cwd=str(path.parent), **settings)
        except PapermillExecutionError as error:
            reason = f"{error.ename}: {error.evalue}".rstrip(".")
            raise NotebookFailed(
                f"notebook {path.name}, code cell {error.exec_count - bool(parameters)}: {reason}. "
                f"The executed copy with its traceback is {out}; finished runs are kept, so call again once it is mended."
            ) from error


def reproduce(options: argparse.Namespace) -> int:
    """Prepare corpora and LLM, finish all runs in one pool, execute the notebooks, write the report.

    A corpus, run or notebook that fails stops no other: what failed is listed at the end, and the exit code is then 1.
    """
    started = time.monotonic()
    study, chosen = study_of(options), chosen_notebooks(options)
    engine = engine_of(options.engine, options.jobs, dict(options.engine_settings))
    _need_all(study, chosen, options.dry_run)
    if options.dry_run:
        return 0
    from cmpta_lib.report import gather, pages  # here: a list of runs is printed without, a third of a second sooner

    print(f"[1/3] corpora and language models of profile '{study.profile}'", flush=True)
    keys, failed = _prepared(study, chosen)
    backbone = study.llm_name if study.llm_name in study.without else f"{study.llm.name} {study.llm.fingerprint}"
    print(f"      backbone {backbone}  ({time.monotonic() - started:.0f} s)", flush=True)
    runs = [run for _, run in study.planned_runs(chosen, keys)]
    print(f"[2/3] runs: {sum(run.done for run in runs)} of {len(runs)} are finished already", flush=True)
    if study.data and runs and (reason := study.missing(CMPTA, "data")):
        print(f"      CMPTA will not run: {reason}", flush=True)
    whole = _make(study, runs, options, failed, engine)
    print(f"[3/3] {len(chosen)} notebooks, two at a time  ({time.monotonic() - started:.0f} s)", flush=True)

    def export() -> Path:
        failures = _execute(study, chosen, _parameters(options, study), started)
        known = study.without.values()  # said once: not for every notebook that misses the same
        failed.extend(said for said in failures.values() if not any(why in said for why in known))
        return gather.write_report(study, keys, options.all, failures)

    if options.only or study.smoke:
        report = export()
    else:
        with exports.collected(study.name) as draft:
            report = export()
            report = exports.finish(draft, complete=whole and not failed) / report.name
    if came_out := "\n".join(pages.lines(report.parent)):
        print(f"\n{came_out}\n")
    place = exports.shown(report.parent)
    print(f"{place}/{report.name} written after {time.monotonic() - started:.0f} s")
    print(f"notebooks with their results, for a browser: {place}/{exports.PAGES}/", flush=True)
    if study.data and (answering := [run for run in runs if run.done and run.row == label(CMPTA)]):
        print(f"ask CMPTA about a clip: cmpta predict {answering[0].folder.name} CLIP", flush=True)
    if failed:
        print(f"cmpta reproduce: {len(failed)} failed; what is finished is kept, call again once it is mended:", file=sys.stderr)
        print("\n".join(f"- {reason}" for reason in failed), file=sys.stderr)
    return 1 if failed else 0


def publish(options: argparse.Namespace) -> int:
    """Make a profile's exports anew of its finished runs (minutes), and publish what comes out, if they are the same.

    Raises:
        ValueError: they are not, or a run is missing or damaged; names which.
    """
    from cmpta_lib.report import gather
    from cmpta_lib.report.export import recorded, recorded_hashes

    gather.check_exports(options.profile)
    started, study, folder = time.monotonic(), Study(options.profile), figures_folder() / options.profile
    there, named = recorded_hashes(folder), {run for item in recorded(folder).values() for run in item.get("runs", ())}
    whole = {one.folder.name for one in found(study.root) if isinstance(one, Run) and one.done and not one.problem}
    if lost := sorted(named - whole):  # before anything is made there
        raise ValueError(f"{len(lost)} of the runs behind {folder} are not whole, such as {lost[0]}: see `cmpta runs`")
    chosen = [one.name for one in NOTEBOOKS if not one.is_beyond or f"{exports.PAGES}/{one.name}.html" in there]
    keys, failed = _prepared(study, chosen)
    if failed:
        raise ValueError(failed[0])
    print(f"making the exports of {len(chosen)} notebooks anew of the finished runs, to compare them", flush=True)
    os.environ[ONLY_FINISHED] = "1"
    asked = argparse.Namespace(profile=options.profile, data="", llm="", smoke=False, changes=())
    with exports.collected(study.name) as draft:
        try:
            if failures := _execute(study, chosen, _parameters(asked, study), started):
                raise ValueError("; ".join(failures.values()))
            gather.write_report(study, keys, beyond=set(chosen) >= {one.name for one in NOTEBOOKS if not one.by_name})
            if is_tiny(study.llm_name):  # few megabytes, for notebooks opened alone; another LLM's would need its weights too
                exports.copy_runs(study.needed("11_errors"), draft / gather.RUNS)
            print(gather.publish(options.profile, draft))
        finally:
            shutil.rmtree(draft)  # what it holds is published, or said to differ
    return 0


def _make(study: Study, runs: Sequence[Run], options: argparse.Namespace, failed: list[str], engine: Engine) -> bool:
    """Finish the runs, or with `--finished` leave them as they are; adds what failed. Whether all are there to be shown."""
    if options.finished:
        os.environ[ONLY_FINISHED] = "1"
        return all(run.done for run in runs)
    if options.engine == DEFAULT and options.jobs and (gpus := provenance.gpu_count()) and (gpu := provenance.first_gpu()):
        known = [run.environment.get(provenance.ALLOCATED, 0.0) for run in sound(runs)]
        if said := provenance.warning(min(options.jobs, len(runs)), gpus, gpu[1], max(known, default=0.0)):
            print(f"      {said}", flush=True)
    try:
        study.ensure(runs, options.jobs, engine)
    except RunsFailed as error:
        failed += error.reasons
        os.environ[KEEP_FAILED] = "1"  # the notebooks show what is there, and do not try again for hours
        print(f"      {len(error.failures)} failed; the notebooks show what can be shown without", flush=True)
    if study.rows:  # the notebooks would make the others
        os.environ[ONLY_FINISHED] = "not asked for: cmpta reproduce with --all or --only makes it"
    return True


def _need_all(study: Study, chosen: Sequence[str], is_plan: bool) -> None:
    """Print the plan where it is asked for; what is missing of all that the notebooks need is printed, and raises ValueError."""
    found, planned = check.needs(study, chosen), study.planned(chosen)
    missing = [need for need in found if need.missing]
    if missing:
        print(check.screen(study, found))
    if is_plan and not missing and study.is_made(chosen):
        runs = study.planned_runs(chosen)
        for name, run in runs:
            print(f"      {run.folder.name}  seed {run.config.seed}  {'finished' if run.done else 'to do':8}  {name}")
        print(f"runs: {sum(run.done for _, run in runs)} of {len(runs)} are finished already; {MEASURES}")
    elif is_plan:
        own = study.data and public_pickles.public_files(tasks.said(study.data)[1])[0]
        for one in planned:
            print(f"      {own or study.settings.corpora[one.key]}  seed {one.seed}  {label(one.row)}")
        later = "" if missing else f", to be named once corpora and models are made; {MEASURES}"
        print(f"{len(planned)} runs in all{later}")
    if missing:
        said = textwrap.shorten(f"{missing[0].what}: {missing[0].found}", 150, placeholder=" ...")
        raise ValueError(f"nothing was started: {len(missing)} of {len(found)} needs are missing. {said}; {missing[0].remedy}")


def _prepared(study: Study, chosen: Sequence[str]) -> tuple[list[str], list[str]]:
    """Make or open the corpora and models that the notebooks need: keys of the sound corpora, and what is wrong with the rest.

    Raises:
        ValueError, OSError: no corpus is sound, or the backbone that was asked for is not; as the first.
    """
    problems = check.opened(study, chosen)
    keys = [key for key in study.keys_of(chosen) if key not in problems]
    if problems and (not keys or study.own_llm in problems):
        raise next(iter(problems.values()))
    return keys, [str(problem) for problem in problems.values()]


def _execute(study: Study, chosen: Sequence[str], parameters: Mapping[str, Any], started: float) -> dict[str, str]:
    """Execute the notebooks, each also to a page beside its exports; returns what failed and why, which stops no other."""
    from cmpta_lib.report import pages

    folder, failed = study.root / "notebooks" / study.name, dict[str, str]()
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)

    def execute(name: str) -> None:
        executed = folder / f"{name}.ipynb"
        executed.unlink(missing_ok=True)
        try:
            with status.doing(name):
                execute_notebook(ROOT / "notebooks" / executed.name, executed, parameters)
        finally:
            if executed.exists():
                pages.write_page(executed, study.figures / exports.PAGES / f"{name}.html", chosen)

    # How long each takes, roughly: drawing takes most.
    work = {one.name: (2 + len(one.tables) + 2 * len(one.figures)) * len(one.corpora) or 1 for one in plan.chosen(chosen)}
    left, began = set(chosen), time.monotonic()

    def rest() -> str:
        to_do = sum(work[name] for name in left)
        took, done = time.monotonic() - began, sum(work.values()) - to_do
        return f"{len(left)} of {len(chosen)} left{f', about {duration(took * to_do / done)}' if done else ''}: "

    os.environ[WITHOUT] = json.dumps(study.without)
    pool = ThreadPoolExecutor(SIDE_BY_SIDE)  # their runs are made before the first of them starts, so none waits for another
    try:
        with Status(sys.stdout, rest) as status:
            names = {pool.submit(execute, name): name for name in sorted(work, key=lambda name: -work[name])}
            for job in as_completed(names):
                left.remove(name := names[job])
                if error := job.exception():
                    where = "" if isinstance(error, NotebookFailed) else f"notebook {name}.ipynb: {type(error).__name__}: "
                    failed[name] = f"{where}{error}"
                how, took = "failed" if error else "done", time.monotonic() - started
                status.line(f"      {name} {how}  ({took:.0f} s); {len(left)} left")
    finally:
        del os.environ[WITHOUT]
        pool.shutdown(wait=False, cancel_futures=True)  # all have ended, or an interruption ends this process
    return failed


def _parameters(options: argparse.Namespace, study: Study) -> dict[str, Any]:
    """What every notebook gets; folders as seen from anywhere, since a notebook runs in its own."""
    llm = str(Path(options.llm).resolve()) if options.llm and Path(options.llm).is_dir() else options.llm
    data = tasks.absolute(options.data) if options.data else ""
    asked = {"profile": options.profile, "seeds": list(study.seeds), "data": data, "smoke": options.smoke, "llm": llm}
    return asked | {"changes": study.changes}
