"""The engine that needs nothing else: worker processes on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cmpta_lib.files import ROOT
from cmpta_lib.runs import provenance, sharing
from cmpta_lib.runs.dispatch import LOG, Attempt, Engine, Job, environment
from cmpta_lib.runs.store import Run


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[str]
    slot: int
    is_busy: bool = False


class Processes(Engine):
    """Worker processes on this machine, each of which keeps torch and the LLM from run to run.

    A worker holds a pipe from this process and ends when that closes, so none outlives it however it ends. Workers are in
    a session of their own: a terminal's Ctrl-C reaches this process alone, which then ends them. One that dies fails the
    run that it held, and another takes its place.

    Args:
        jobs: how many; None = one a GPU, each its own, or else one a core.
    """

    def __init__(self, jobs: int | None = None) -> None:
        super().__init__(jobs)
        self.jobs = jobs or sharing.usual()

    @contextmanager
    def opened(self, runs: Sequence[Run], folder: Path) -> Iterator[None]:
        self.workers: list[_Worker] = []
        self.lost, self.gpus = "", provenance.gpu_count()
        self.environment, self.log = os.environ | environment(runs) | {"PYTHONUNBUFFERED": "1"}, folder / LOG
        try:
            yield
        finally:
            self._end(list(self.workers))

    def submit(self, attempt: Attempt, run: Run) -> _Worker:
        worker = next((worker for worker in self.workers if not worker.is_busy), None) or self._start()
        worker.is_busy = True
        with suppress(OSError):  # it has just died, which is about to be found out
            print(json.dumps([*map(str, (attempt.root, attempt.folder, attempt.events)), attempt.row]), file=worker.process.stdin)
        return worker

    def _start(self) -> _Worker:
        slot = min(set(range(len(self.workers) + 1)) - {worker.slot for worker in self.workers})
        own_gpu = {"LOCAL_RANK": str(slot % self.gpus)} if self.gpus else {}
        with self.log.open("a+b") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cmpta_lib.runs.worker"],
                cwd=ROOT,
                env=self.environment | own_gpu,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                text=True,
                encoding="utf-8",
                bufsize=1,
            )
        self.workers.append(worker := _Worker(process, slot))
        return worker

    def ended(self, job: Job) -> str:
        worker: _Worker = job.handle
        if job.outcome:
            worker.is_busy = False
            if self.gpus and job.outcome["event"] == "failed":  # which may leave the GPU unusable for this process
                self._end([worker])
            return "its worker is free again"
        if worker.process.poll() is None:
            return ""
        (code,) = self._end([worker])
        if code < 0:
            return f"its worker was killed by signal {-code} ({'perhaps for memory' if code == -9 else signal.strsignal(-code)})"
        return f"its worker ended with exit code {code}"

    def _end(self, workers: Sequence[_Worker]) -> list[int]:
        """End these workers, which hold nothing that a checkpoint does not; returns their exit codes."""
        for worker in workers:
            worker.process.kill()
            self.workers.remove(worker)
            assert worker.process.stdin
            with suppress(OSError):  # what was still to be handed to it
                worker.process.stdin.close()
        return [worker.process.wait() for worker in workers]
