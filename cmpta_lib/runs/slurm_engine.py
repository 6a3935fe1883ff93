"""Runs as jobs of submitit: on a Slurm cluster, or as processes of this machine in the same way (extra `slurm`)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from cmpta_lib.runs import provenance as machine
from cmpta_lib.runs import remote, sharing
from cmpta_lib.runs.engines import Failure, Report, checked_jobs, needs_extra, one_line
from cmpta_lib.runs.remote import Attempt, Dispatch
from cmpta_lib.runs.store import Run

_NO_LIMIT_MIN = 60 * 24 * 365  # for jobs on this machine; submitit's own default is two minutes
_GRACE_S = 5.0


class Slurm:
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

    def __init__(self, jobs: int | None = None, *, retries: int = remote.RETRIES, **parameters: Any) -> None:
        self.jobs, self.retries, self.parameters = checked_jobs(jobs), retries, parameters
        with needs_extra("slurm"):
            import submitit  # noqa: F401
        if not {"timeout_min", f"{self.cluster}_time"} & parameters.keys():  # submitit's own five minutes suit no run
            raise ValueError(
                f"--engine {self.name}: say how long a job may take, in minutes: --engine-set timeout_min=720. One that "
                f"reaches it goes back into the queue and on from its last finished epoch"
            )
        self._executor(Path("unused"))  # what is wrong with the parameters is said before hours of preparation

    def run(self, runs: Sequence[Run], root: Path, report: Report) -> list[Failure]:
        """As `engines.Engine.run`."""
        with remote.job_folder(root) as folder, _environment(remote.environment(runs)):
            return Dispatch(self._jobs(folder), root, folder, report, self._at_a_time(), self.retries).work(runs)

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

    def _jobs(self, folder: Path) -> _Jobs:
        return _Jobs(self._executor(folder))

    def _at_a_time(self) -> int | None:
        return self.jobs


class SubmititLocal(Slurm):
    """The same jobs as processes of this machine, to try them out without Slurm.

    Args:
        jobs: at a time; None = one a GPU, each its own, or else one a core.
    """

    name, cluster = "submitit-local", "local"

    def __init__(self, jobs: int | None = None, *, retries: int = remote.RETRIES, **parameters: Any) -> None:
        super().__init__(jobs, retries=retries, **({"timeout_min": _NO_LIMIT_MIN} | parameters))

    def _jobs(self, folder: Path) -> _Jobs:
        return _LocalJobs(self._executor(folder))

    def _at_a_time(self) -> int:
        return self.jobs or sharing.usual()


class _Jobs:
    """`remote.Backend` on a submitit executor."""

    patience_s = 30.0  # a network file system's, before a job counts as lost
    lost = ""

    def __init__(self, executor: Any) -> None:
        self.executor = executor

    def submit(self, attempt: Attempt, run: Run) -> Any:
        self.executor.update_parameters(cpus_per_task=run.config.training.num_threads, name=attempt.folder.name)
        return self.executor.submit(attempt)

    def ended(self, job: Any) -> str:
        if not job.done():
            return ""
        return f"its job {job.job_id} ended ({job.state}; the log is {job.paths.stderr})"

    def cancel(self, jobs: Sequence[Any]) -> None:
        for job in jobs:
            with suppress(Exception):  # whatever it is, the next one is still to be ended
                job.cancel(check=False)


class _LocalJobs(_Jobs):
    """Their processes, a controller and the job itself, are ours: a terminal's Ctrl-C must not reach them."""

    patience_s = 0.0

    def __init__(self, executor: Any) -> None:
        super().__init__(executor)
        self.gpus = machine.gpu_count()
        self.slots: dict[str, int] = {}  # job id -> place among those at work

    def submit(self, attempt: Attempt, run: Run) -> Any:
        slot = min(set(range(len(self.slots) + 1)) - set(self.slots.values()))
        if self.gpus:  # submitit would number all GPUs of the machine, whichever of them its caller may use
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            device = {"CUDA_VISIBLE_DEVICES": visible, "LOCAL_RANK": str(slot % self.gpus)}
            attempt = replace(attempt, environment=device)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which a child process inherits
        try:
            job = super().submit(attempt, run)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.slots[job.job_id] = slot
        return job

    def ended(self, job: Any) -> str:
        how = super().ended(job)
        if how:
            self.slots.pop(job.job_id, None)
        return how

    def cancel(self, jobs: Sequence[Any]) -> None:
        family = []
        for job in jobs:
            with suppress(psutil.Error):
                controller = psutil.Process(int(job.job_id))
                family += [controller, *controller.children(recursive=True)]
        for process in family:
            with suppress(psutil.Error):
                process.kill()  # it holds nothing that a checkpoint does not
        deadline = time.monotonic() + _GRACE_S
        while not all(job.done() for job in jobs) and time.monotonic() < deadline:
            time.sleep(0.01)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Jobs inherit this process's environment."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
