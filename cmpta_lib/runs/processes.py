"""The engine that needs nothing else: worker processes on this machine."""

from __future__ import annotations

import itertools
import json
import os
import platform
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cmpta_lib import files, registry
from cmpta_lib.files import ROOT
from cmpta_lib.runs import provenance as machine
from cmpta_lib.runs import sharing
from cmpta_lib.runs.engines import RETRY_S, Failure, Report, checked_jobs, one_line, record_death
from cmpta_lib.runs.store import Run

MOST_FALSE_STARTS = 3  # workers in a row that end before they take a run: then something is wrong with all of them
_calls = itertools.count()


class Processes:
    """Worker processes on this machine, each of which keeps torch and the LLM from run to run.

    A worker holds a pipe from this process and ends when that closes, so none outlives it however it ends. Workers are in
    a session of their own: a terminal's Ctrl-C reaches this process alone, which then ends them.

    Args:
        jobs: how many; None = one a GPU, each its own, or else one a core.
    """

    def __init__(self, jobs: int | None = None) -> None:
        self.jobs = checked_jobs(jobs)

    def run(self, runs: Sequence[Run], root: Path, report: Report) -> list[Failure]:
        """As `Engine.run`.

        Raises:
            OSError: the log cannot be written.
        """
        count = min(len(runs), self.jobs or sharing.usual())
        with _log(root) as log:
            pool = _Pool(runs, root, report, log, machine.gpu_count())
            try:
                pool.work(count)
            finally:
                pool.end()
            if not pool.failures:
                with suppress(FileNotFoundError):
                    os.unlink(log.name)
        return pool.failures


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[str]
    slot: int
    started: bool = False  # it has said "ready" once
    ready: bool = False
    run: Run | None = None  # what it works on


class _Pool:
    """The workers of one call, the runs that wait for them, and what they say."""

    def __init__(self, runs: Sequence[Run], root: Path, report: Report, log: IO[bytes], gpus: int) -> None:
        self.root, self.report, self.log, self.gpus = root, report, log, gpus
        self.waiting: deque[tuple[float, Run]] = deque((0.0, run) for run in runs)  # with the time not to ask before
        self.workers: list[_Worker] = []
        self.failures: list[Failure] = []
        self.news: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]] = queue.SimpleQueue()
        self.false_starts = 0
        self.threads = runs[0].config.training.num_threads

    def work(self, count: int) -> None:
        """Until every run is finished or failed."""
        while unfinished := len(self.waiting) + sum(worker.run is not None for worker in self.workers):
            while len(self.workers) < min(count, unfinished):
                self.start()
            self.hand_out()
            with suppress(queue.Empty):
                self.take(*self.news.get(timeout=RETRY_S))

    def start(self) -> None:
        slot = min(set(range(len(self.workers) + 1)) - {worker.slot for worker in self.workers})
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)  # what can be imported here can be there
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "PYTHONPATH": path}
        environment[registry.PLUGINS] = registry.plugins()
        if self.gpus:
            environment["LOCAL_RANK"] = str(slot % self.gpus)  # each worker its own GPU
        process = subprocess.Popen(
            [sys.executable, "-m", "cmpta_lib.runs.worker", str(self.root)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            start_new_session=True,
            text=True,
            encoding="utf-8",
        )
        worker = _Worker(process, slot)
        self.workers.append(worker)
        threading.Thread(target=self.listen, args=(worker,), daemon=True).start()

    def listen(self, worker: _Worker) -> None:
        assert worker.process.stdout
        with worker.process.stdout as lines:
            for line in lines:
                with suppress(ValueError):  # what an interpreter prints before the worker itself starts is no event
                    self.news.put((worker, json.loads(line)))
        self.news.put((worker, None))

    def hand_out(self) -> None:
        now = time.monotonic()
        for worker in self.workers:
            for _ in range(len(self.waiting) if worker.ready else 0):
                not_before, run = self.waiting.popleft()
                if run.done:  # another process has finished it meanwhile
                    self.report(run, {"event": "done"})
                elif not_before > now:
                    self.waiting.append((not_before, run))
                else:
                    worker.run, worker.ready = run, False
                    self.report(run, {"event": "start"})
                    with suppress(OSError):  # it has just died, and its end is about to be read
                        print(json.dumps(str(run.folder)), file=worker.process.stdin, flush=True)
                    break

    def take(self, worker: _Worker, event: dict[str, Any] | None) -> None:
        """Act on what a worker said; None: it ended."""
        if event is None:
            self.bury(worker)
        elif event["event"] == "ready":
            worker.ready = worker.started = True
            self.false_starts = 0
        elif worker.run is not None and event["event"] in ("epoch", "note"):
            self.report(worker.run, event)
        elif worker.run is not None:
            run, worker.run = worker.run, None
            self.report(run, event)
            if event["event"] == "busy":
                self.waiting.append((time.monotonic() + RETRY_S, run))
            elif event["event"] != "done":
                self.failures.append(Failure(run, one_line(f"{event['kind']}: {event['message']}")))

    def bury(self, worker: _Worker) -> None:
        """A worker ended by itself: the run that it held failed, and the others go on."""
        self.workers.remove(worker)
        code = _close(worker)
        how = f"its worker ended with exit code {code}"
        if code < 0:
            name = signal.strsignal(-code) or "unknown"
            how = f"its worker was killed by signal {-code} ({'perhaps for memory' if code == -9 else name})"
        if worker.run is not None:
            self.failures.append(Failure(worker.run, how))
            self.report(worker.run, {"event": "failed", "kind": "WorkerDied", "message": how})
            record_death(worker.run, how, _end_of(self.log))
        elif not worker.started:
            self.false_starts += 1
            if self.false_starts >= MOST_FALSE_STARTS:
                end = _end_of(self.log).strip().splitlines()
                reason = f"no worker starts: {how.removeprefix('its worker ')}; the log {self.log.name} ends with: "
                self.failures += [Failure(run, reason + (end[-1] if end else "nothing")) for _, run in self.waiting]
                self.waiting.clear()

    def end(self) -> None:
        for worker in self.workers:
            worker.process.kill()  # it holds nothing that a checkpoint does not
        for worker in self.workers:
            _close(worker)


def _close(worker: _Worker) -> int:
    """Wait for a worker that has ended; returns its exit code."""
    assert worker.process.stdin
    with suppress(OSError):  # what was still to be handed to it
        worker.process.stdin.close()
    return worker.process.wait()


def _end_of(log: IO[bytes], size: int = 2000) -> str:
    return os.pread(log.fileno(), size, max(0, os.fstat(log.fileno()).st_size - size)).decode("utf-8", "replace")


@contextmanager
def _log(root: Path) -> Iterator[IO[bytes]]:
    """This call's log for all its workers; those of processes that are gone are removed."""
    folder, host = root / "logs", platform.node() or "localhost"
    for path in folder.glob(f"{host}.*.log"):
        with suppress(OSError, ValueError):
            if not _alive(int(path.name.removeprefix(f"{host}.").split("-")[0])):
                path.unlink()
    path = folder / f"{host}.{os.getpid()}-{next(_calls)}.log"
    with files.writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        log = path.open("a+b", buffering=0)
    with log:
        yield log


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
