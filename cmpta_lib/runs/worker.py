"""Runs: each is one folder, trained once, whoever asks for it and however often it is killed.

The folder `runs/<corpus>-<config hash>/` holds config.json, history.csv, predictions.parquet, adapter.safetensors,
environment.json and, written last, metrics.json: the mark of a finished run. Worker processes claim runs by a file lock,
so any number of notebooks may ask for the same run at the same time; a killed worker's lock falls with it, and the next
call goes on from the last epoch's checkpoint.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

from cmpta_lib.runs.store import DONE

PARENT = "CMPTA_PARENT"  # environment variable of workers: the process that waits for them


def work(root: Path, folders: Sequence[Path]) -> None:
    """A worker: claim and finish runs until none is left; runs that another worker holds are waited for."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # one run over several processes: the first of them holds the lock
        from torch import distributed

        distributed.init_process_group()
        for folder in folders:
            with FileLock(folder / "lock") if distributed.get_rank() == 0 else nullcontext():
                execute(root, folder)
            distributed.barrier()
        distributed.destroy_process_group()
        return
    for patience in (0, -1):  # first what is free, then wait for the rest
        for folder in folders:
            try:
                with FileLock(folder / "lock", timeout=patience):
                    if not (folder / DONE).exists():
                        execute(root, folder)
                    _sweep(folder)
            except Timeout:
                continue


def execute(root: Path, folder: Path) -> None:
    from cmpta_lib.runs import execution

    execution.execute(root, folder)


def _sweep(folder: Path) -> None:
    """Remove what killed workers left in a finished run's folder."""
    for leftover in {*folder.glob("*.partial"), *folder.glob("checkpoint.*")}:
        leftover.unlink(missing_ok=True)


if __name__ == "__main__":  # a worker; `torchrun -m cmpta_lib.runs.worker <runs> <folder>` trains one run on several processes
    work(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
