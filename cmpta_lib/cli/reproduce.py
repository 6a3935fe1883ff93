"""Notebooks, executed headless, and what a failure says.

`cmpta reproduce`: corpora and LLM, then all runs in one pool, then the notebooks, then the report.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from html import escape
from pathlib import Path
from typing import Any

from cmpta_lib import files
from cmpta_lib.cli.arguments import chosen_notebooks, study_of
from cmpta_lib.cli.interruption import SCRATCH
from cmpta_lib.files import ROOT
from cmpta_lib.llm.files import is_tiny
from cmpta_lib.runs import provenance
from cmpta_lib.runs.engines import DEFAULT, KEEP_FAILED, Engine, RunsFailed, engine_of
from cmpta_lib.runs.store import Run, sound
from cmpta_lib.study import check, exports
from cmpta_lib.study.plan import label
from cmpta_lib.study.study import ONLY_FINISHED, Study

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
    from cmpta_lib.report import gather

    started = time.monotonic()
    study, chosen = study_of(options), chosen_notebooks(options)
    engine = engine_of(options.engine, options.jobs, dict(options.engine_settings))
    if not _has_needs(study, chosen, options.dry_run):
        return 1
    print(f"[1/3] corpora and language models of profile '{study.profile}'", flush=True)
    keys, failed = _prepared(study, chosen)
    print(f"      backbone {study.llm.name} {study.llm.fingerprint}  ({time.monotonic() - started:.0f} s)", flush=True)
    planned = study.planned_runs(chosen, keys)
    runs = [run for _, run in planned]
    print(f"[2/3] runs: {sum(run.done for run in runs)} of {len(runs)} are finished already", flush=True)
    if options.dry_run:
        for name, run in planned:
            state = "finished" if run.done else "to do"
            print(f"      {run.folder.name}  seed {run.config.seed}  {state:8}  {name}")
        return 0
    whole = _make(study, runs, options, failed, engine)
    print(f"[3/3] {len(chosen)} notebooks  ({time.monotonic() - started:.0f} s)", flush=True)

    def export() -> Path:
        failed.extend(_execute(study, chosen, _parameters(options, study), started))
        return gather.write_report(study, keys, options.all)

    if options.only or study.smoke:
        report = export()
    else:
        with exports.collected(study.name) as draft:
            report = export()
            report = exports.finish(draft, complete=whole and not failed) / report.name
    print(f"{report} written after {time.monotonic() - started:.0f} s", flush=True)
    if failed:
        print(f"cmpta reproduce: {len(failed)} failed; what is finished is kept, call again once it is mended:", file=sys.stderr)
        print("\n".join(f"- {reason}" for reason in failed), file=sys.stderr)
    return 1 if failed else 0


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
        failed += [f"{failure.run.folder.name}: {failure.reason}" for failure in error.failures]
        os.environ[KEEP_FAILED] = "1"  # the notebooks show what is there, and do not try again for hours
        print(f"      {len(error.failures)} failed; the notebooks show what can be shown without", flush=True)
    return True


def _has_needs(study: Study, chosen: Sequence[str], plan: bool) -> bool:
    """Whether everything is here that the notebooks need; else what is missing is printed, and the plan where asked for."""
    found, planned = check.needs(study, chosen), study.planned(chosen)
    if missing := sum(need.missing for need in found):
        print(check.screen(study, found))
        for one in planned if plan else ():
            print(f"      {study.data or study.settings.corpora[one.key]}  seed {one.seed}  {label(one.row)}")
        print(f"Nothing was started: {missing} of {len(found)} needs are missing. {len(planned)} runs in all.")
    return not missing


def _prepared(study: Study, chosen: Sequence[str]) -> tuple[list[str], list[str]]:
    """Make or open tiny models and the corpora that the notebooks read: keys of the sound ones, and what the others have.

    Raises:
        ValueError, OSError: no corpus is sound; as the first.
    """
    keys, problems = [], []
    names = [] if study.data else [*study.llm_names(chosen), *study.encoder_names(chosen).values()]
    with ThreadPoolExecutor(SIDE_BY_SIDE) as meanwhile:  # but for a user's folder, which may be wrong: then nothing is made
        meanwhile.map(study.tiny, filter(is_tiny, dict.fromkeys(names)))
        for key in study.keys_of(chosen):
            try:
                study.corpus(key)
                keys.append(key)
            except (ValueError, OSError) as error:
                problems.append(error)
    if problems and not keys:
        raise problems[0]
    return keys, [str(problem) for problem in problems]


def _execute(study: Study, chosen: Sequence[str], parameters: Mapping[str, Any], started: float) -> list[str]:
    """Execute the notebooks, each also to a page beside its exports; returns what failed and why, which stops no other."""
    folder, failed = study.root / "notebooks" / study.name, []
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)

    def execute(name: str) -> None:
        executed = folder / f"{name}.ipynb"
        executed.unlink(missing_ok=True)
        try:
            execute_notebook(ROOT / "notebooks" / executed.name, executed, parameters)
        finally:
            if executed.exists():
                write_page(executed, study.figures / exports.PAGES / f"{name}.html")

    pool = ThreadPoolExecutor(SIDE_BY_SIDE)  # their runs are made before the first of them starts, so none waits for another
    names = {pool.submit(execute, name): name for name in chosen}
    try:
        for job in as_completed(names):
            if error := job.exception():
                where = "" if isinstance(error, NotebookFailed) else f"notebook {names[job]}.ipynb: {type(error).__name__}: "
                failed.append(f"{where}{error}")
            print(f"      {names[job]} {'failed' if error else 'done'}  ({time.monotonic() - started:.0f} s)", flush=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # all have ended, or an interruption ends this process
    print(f"      the executed notebooks are in {folder}", flush=True)
    return failed


def _parameters(options: argparse.Namespace, study: Study) -> dict[str, Any]:
    """What every notebook gets; folders as seen from anywhere, since a notebook runs in its own."""
    llm = str(Path(options.llm).resolve()) if options.llm and Path(options.llm).is_dir() else options.llm
    data = str(Path(options.data).resolve()) if options.data else ""
    asked = {"profile": options.profile, "seeds": list(study.seeds), "data": data, "smoke": options.smoke, "llm": llm}
    return asked | {"changes": dict(options.changes)}


# Executed notebooks as pages that any browser shows, so that a reader needs neither Jupyter nor the runs ----------------
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ max-width: 62rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 sans-serif; color: #222; }}
pre {{ font-size: 13px; line-height: 1.4; margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }}
.prompt, .anchor-link {{ display: none; }}
.input_area {{ background: #f6f8fa; border: 1px solid #ddd; border-radius: 4px; padding: .5rem .7rem; margin: .6rem 0; }}
.output_subarea {{ overflow-x: auto; margin: .6rem 0; }}
.output_png img {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; font-size: 13px; }}
caption {{ text-align: left; padding: .3rem 0; color: #444; }}
th, td {{ padding: .2rem .6rem; text-align: left; border-bottom: 1px solid #e4e4e4; }}
{colours}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_page(executed: Path, page: Path) -> None:
    """Write an executed notebook as an HTML file below the exports that it shows: the same outputs, the same bytes.

    A picture that lies among these is linked, any other is held in the page. What needs a live kernel (widgets) is left
    out, and so are the ids that Jupyter draws at random.
    """
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.read(executed, as_version=4)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        outputs = cell.get("outputs", [])
        cell.outputs = [one for one in outputs if "application/vnd.jupyter.widget-view+json" not in one.get("data", {})]
        if cell.cell_type != "code":
            del cell["outputs"]
    body, resources = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    title = notebook.cells[0].source.partition("\n")[0].lstrip("# ")
    body = _linked(body, page.parent.parent)
    colours = "\n".join(resources["inlining"]["css"])  # of the highlighted code
    with files.writing(page):
        page.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(page, _PAGE.format(title=escape(title), colours=colours, body=body))


def _linked(body: str, exports: Path) -> str:
    """The page's text, with each picture that is one of the exports as a link to it: a third of a page's bytes, once in git."""
    known = {base64.b64encode(path.read_bytes()).decode(): f"../{path.name}" for path in sorted(exports.glob("*.png"))}

    def link(found: re.Match[str]) -> str:
        return f'src="{known.get(found[1].replace(chr(10), ""), found[0][5:-1])}"'

    return re.sub(r'src="data:image/png;base64,([^"]*)"', link, body)
