"""Runs as jobs of submitit: on a Slurm cluster, or as processes of this machine in the same way (extra `slurm`)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from cmpta_lib.runs import provenance, sharing
from cmpta_lib.runs.dispatch import RETRIES, Engine, Job, environment, needs_extra, one_line
from cmpta_lib.runs.store import Run
from cmpta_lib.runs.worker import Attempt

_NO_LIMIT_MIN = 60 * 24 * 365  # for jobs on this machine; submitit's own default is two minutes
_GRACE_S = 5.0


class Slurm(Engine):
    """Each run is a Slurm job, with as many cores as it has threads.

    A job that is preempted or reaches its time limit goes back into the queue by itself and on from its last finished
    epoch; one whose node died is submitted again.

    Args:
        jobs: jobs in the queue or at work at a time; None = one for every run.
        retries: attempts that finish no further epoch, after one whose job died; also how often a job may reach its limit.
        parameters: submitit's, such as `timeout_min=720`, `gpus_per_node=1`, `mem_gb=32`, `slurm_partition="gpu"`,
            `slurm_account`, `slurm_setup`; but for the time limit, what is not given is as submitit has it.
    Raises:
        ValueError: no time limit is given, submitit has no such parameter, or another kind of value for it.
        RuntimeError: submitit is not installed, or there is no Slurm here; says what to do.
    """

    name, cluster = "slurm", "slurm"  # ours and submitit's
    patience_s = 30.0  # a network file system's, before a job counts as lost

    def __init__(self, jobs: int | None = None, *, retries: int = RETRIES, **parameters: Any) -> None:
        super().__init__(jobs)
        self.retries, self.parameters = retries, parameters
        with needs_extra("slurm"):
            import submitit  # noqa: F401
        if not {"timeout_min", f"{self.cluster}_time"} & parameters.keys():  # submitit's own five minutes suit no run
            raise ValueError(
                f"--engine {self.name}: say how long a job may take, in minutes: --engine-set timeout_min=720. One that "
                f"reaches it goes back into the queue and on from its last finished epoch"
            )
        self._executor(Path("unused"))  # what is wrong with the parameters is said before hours of preparation

    @contextmanager
    def opened(self, runs: Sequence[Run], folder: Path) -> Iterator[None]:
        before = dict(os.environ)
        os.environ.update(environment(runs))  # which jobs inherit
        try:
            self.lost, self.executor = "", self._executor(folder)
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def _executor(self, folder: Path) -> Any:
        import submitit

        try:
            executor = submitit.AutoExecutor(folder, self.cluster, **{f"{self.cluster}_max_num_timeout": self.retries})
        except RuntimeError as error:
            raise RuntimeError(
                f"--engine slurm: {one_line(str(error))} Call it where `srun` and `sbatch` are at hand, such as a cluster's "
                f"login node; `--engine submitit-local` makes the same jobs on this machine"
            ) from error
        try:
            executor.update_parameters(**self.parameters)
        except (NameError, ValueError, AssertionError, TypeError) as error:
            raise ValueError(f"--engine {self.name}: {one_line(str(error))}") from error
        return executor

    def submit(self, attempt: Attempt, run: Run) -> Any:
        self.executor.update_parameters(cpus_per_task=run.config.training.num_threads, name=run.folder.name)
        return self.executor.submit(attempt)

    def ended(self, job: Job) -> str:
        if not job.handle.done():
            return ""
        return f"its job {job.handle.job_id} ended ({job.handle.state}; the log is {job.handle.paths.stderr})"

    def cancel(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            with suppress(Exception):  # whatever it is, the next one is still to be ended
                job.handle.cancel(check=False)


class SubmititLocal(Slurm):
    """The same jobs as processes of this machine, to try them out without Slurm.

    Args:
        jobs: at a time; None = one a GPU, each its own, or else one a core.
    """

    name, cluster = "submitit-local", "local"
    patience_s = 0.0

    def __init__(self, jobs: int | None = None, *, retries: int = RETRIES, **parameters: Any) -> None:
        super().__init__(jobs, retries=retries, **({"timeout_min": _NO_LIMIT_MIN} | parameters))
        self.jobs = jobs or sharing.usual()
        self.slots: dict[str, int] = {}  # job id -> place among those at work

    def submit(self, attempt: Attempt, run: Run) -> Any:
        slot = min(set(range(len(self.slots) + 1)) - set(self.slots.values()))
        if gpus := provenance.gpu_count():  # submitit would number all GPUs, whichever of them its caller may use
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            attempt = replace(attempt, environment={"CUDA_VISIBLE_DEVICES": visible, "LOCAL_RANK": str(slot % gpus)})
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # of a terminal; a child process inherits that
        try:
            job = super().submit(attempt, run)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.slots[job.job_id] = slot
        return job

    def ended(self, job: Job) -> str:
        if how := super().ended(job):
            self.slots.pop(job.handle.job_id, None)
        return how

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Each job is a controller and the job itself."""
        family = []
        for job in jobs:
            with suppress(psutil.Error):
                controller = psutil.Process(int(job.handle.job_id))
                family += [controller, *controller.children(recursive=True)]
        for process in family:
            with suppress(psutil.Error):
                process.kill()  # it holds nothing that a checkpoint does not
        self.slots.clear()
        deadline = time.monotonic() + _GRACE_S
        while not all(job.handle.done() for job in jobs) and time.monotonic() < deadline:
            time.sleep(0.01)
