"""Where runs are made: worker processes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cmpta_lib import files
from cmpta_lib.config import to_json
from cmpta_lib.runs.store import DONE, ROOT, Run
from cmpta_lib.runs.worker import PARENT, _sweep


class Failure: ...


class RunsFailed(RuntimeError):
    failures: list[Failure] = []


def ensure(runs: Sequence[Run], root: Path, jobs: int | None = None) -> None:
    """Finish every run: worker processes claim them one by one, and a bar counts epochs over all of them.

    Raises:
        RuntimeError: a worker failed; shows the end of its log and names the run. Finished runs stay finished.
    """
    from tqdm.auto import tqdm

    for run in runs:
        if run.done:
            _sweep(run.folder)
    pending = {run.folder: run for run in runs if not run.done}
    if not pending:
        return
    for folder, run in pending.items():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / "config.json", to_json(run.config))
    gpu = any(Path("/proc/driver/nvidia/gpus").glob("*"))  # without importing torch
    count = min(len(pending), jobs or (1 if gpu else os.cpu_count() or 1))
    log = root / f"workers-{os.getpid()}.log"
    threads = next(iter(pending.values())).config.training.num_threads
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), PARENT: str(os.getpid())}
    command = [sys.executable, "-m", "cmpta_lib.runs.worker", str(root), *map(str, pending)]
    with open(log, "w") as stream:
        workers = [
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream) for _ in range(count)
        ]
    totals = {
        folder: run.config.training.epochs if run.config.method.name != "text_only" else 1
        for folder, run in pending.items()
    }
    try:
        with tqdm(total=sum(totals.values()), desc=f"{len(pending)} runs", unit="epoch") as bar:
            while any(worker.poll() is None for worker in workers):
                if any(worker.returncode for worker in workers):
                    break
                if news := sum(_epochs(folder, total) for folder, total in totals.items()) - bar.n:
                    bar.update(news)
                time.sleep(0.5)
            bar.update(sum(_epochs(folder, total) for folder, total in totals.items()) - bar.n)
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()
    failed = [run.folder.name for run in pending.values() if not run.done]
    if failed:
        codes = sorted({worker.returncode for worker in workers} - {0})
        raise RuntimeError(
            f"{len(failed)} of {len(pending)} runs did not finish, among them {', '.join(failed[:3])}; workers ended "
            f"with exit codes {codes} (-9: killed, perhaps for memory). Call again to go on. "
            f"Log {log} ends with:\n{log.read_text()[-3000:]}"
        )
    log.unlink()


def _epochs(folder: Path, total: int) -> int:
    if (folder / DONE).exists():
        return total
    history = folder / "history.csv"
    return max(0, history.read_text().count("\n") - 1) if history.exists() else 0
