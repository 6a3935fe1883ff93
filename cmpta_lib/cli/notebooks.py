"""Notebooks, executed headless, and what a failure says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from cmpta_lib.cli.interruption import scratch_folder

SIDE_BY_SIDE = 2


class NotebookFailed(RuntimeError):
    """A cell raised; the message names notebook, cell and error, and where the executed copy lies."""


def side_by_side(names: Sequence[str], work: Callable[[str], None]) -> Iterator[tuple[str, Exception | None]]:
    """Do `work` for each notebook; yields name and what ended it, as they end. One that fails stops no other.

    Their runs are made before the first of them starts, so none waits for another.
    """
    pool = ThreadPoolExecutor(SIDE_BY_SIDE)
    jobs = {pool.submit(work, name): name for name in names}
    try:
        for job in as_completed(jobs):
            error = job.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            yield jobs[job], error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # all have ended, or an interruption ends this process


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
    with scratch_folder() as sockets:
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
            reason = f"{error.ename}: {error.evalue}".rstrip(".")
            raise NotebookFailed(
                f"notebook {path.name}, code cell {error.exec_count - bool(parameters)}: {reason}. "
                f"The executed copy with its traceback is {out}; finished runs are kept, so call again once it is mended."
            ) from error
