"""Engines for many machines: Ray (extra `ray`), and submitit's jobs on Slurm or, in the same way, here (extra `slurm`)."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from cmpta_lib import files
from cmpta_lib.config import shown
from cmpta_lib.runs import provenance
from cmpta_lib.runs.dispatch import RETRIES, Engine, Job, environment, one_line
from cmpta_lib.runs.store import Run
from cmpta_lib.runs.worker import Attempt

_OBJECTS_BYTES = 100 * 2**20  # runs go through files; Ray would set aside a third of the memory for objects
_SOCKET_BYTES = 70  # of their names, below the folder for temporary files: a session's name and a socket's
_COUNTS = {"timeout_min", "mem_gb", "nodes", "tasks_per_node"}  # of submitit's parameters, which itself takes any number
_ANSWERS_S = 10.0
_NO_LIMIT_MIN = 60 * 24 * 365  # for jobs on this machine; submitit's own default is two minutes


def _need(package: str, extra: str) -> None:
    """Raise RuntimeError where an extra's package is not installed; it says how to do that."""
    if importlib.util.find_spec(package) is None:
        raise RuntimeError(
            f"this engine needs the package '{package}', which is not installed: in the repository call "
            f"`pip install -c constraints.txt -e '.[{extra}]'`, on every machine that is to make runs"
        )


def _need_number(name: str, value: object, least: int) -> None:
    """Raise ValueError unless an engine's setting is a number from `least` to a million, whole but for GPUs and GB."""
    kinds, words = ((int, float), "a number") if name in ("gpus", "mem_gb") else (int, "a whole number")
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= 1e6:
        raise ValueError(f"{name}={str(value)[:40]}: expected {words} from {least} to a million")


class Ray(Engine):
    """Each run is a Ray task, which Ray places where cores and GPUs are free; its processes keep torch and the LLM.

    Args:
        jobs: runs at a time; None = as many as the cluster has room for, or one a GPU or core of this machine.
        address: of a cluster that is there already, such as "auto" or "10.0.0.1:6379"; None = what the environment
            variable RAY_ADDRESS names, or a Ray of one's own on this machine, which ends with the call.
        gpus: that each run takes, such as 1 or 0.5; None = 1 where the cluster has GPUs, else 0.
        retries: attempts that finish no further epoch, after one whose worker or machine died.
    Raises:
        ValueError: an argument is out of its range.
        RuntimeError: Ray is not installed; says how to.
    """

    def __init__(
        self, jobs: int | None = None, *, address: str | None = None, gpus: float | None = None, retries: int = RETRIES
    ) -> None:
        super().__init__(jobs)
        self.address, self.gpus, self.retries = address or os.environ.get("RAY_ADDRESS") or "local", gpus, retries
        _need_number("retries", retries, 0)
        if not isinstance(self.address, str):
            raise ValueError(f"address={shown(address)}: expected text such as auto or 10.0.0.1:6379")
        _need_number("gpus", 0 if gpus is None else gpus, 0)
        if gpus is not None and not (gpus < 1 or gpus == int(gpus)):
            raise ValueError(f"gpus={gpus}: expected a fraction below 1, or a whole number of GPUs")
        _need("ray", "ray")

    @contextmanager
    def opened(self, runs: Sequence[Run], folder: Path) -> Iterator[None]:
        """Connected to the cluster.

        Raises:
            ConnectionError: the cluster at `address` does not answer.
            ValueError: runs ask for GPUs that the cluster does not have.
        """
        import ray

        is_connected = ray.is_initialized()  # by a caller, who keeps it
        try:
            if not is_connected:
                self._connect(runs)
            there = float(ray.cluster_resources().get("GPU", 0))
            if (self.gpus or 0) > there:
                raise ValueError(f"gpus={self.gpus}: the Ray cluster has {there:g} GPUs in all, so no run would ever start")
            self.gpus_each = min(1.0, there) if self.gpus is None else self.gpus
            self.cores = max((node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]), default=1)
            # A dead worker's run is tried again by the dispatcher, which says so; Ray itself would do it in silence.
            self.function = ray.remote(max_retries=0)(Attempt.__call__)
            yield
        finally:
            if not is_connected:
                ray.shutdown()

    def _connect(self, runs: Sequence[Run]) -> None:
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # today's way, else warned about
        own: dict[str, Any] = {}
        if self.address == "local":
            cores = self.jobs * max(run.config.training.num_threads for run in runs) if self.jobs else os.cpu_count()
            own = {"num_cpus": cores, "num_gpus": provenance.gpu_count(), "object_store_memory": _OBJECTS_BYTES}
            if (folder := files.socket_folder(_SOCKET_BYTES)) != tempfile.gettempdir():
                own |= {"_temp_dir": f"{folder}/ray"}
        host, _, port = self.address.rpartition(":")
        try:
            if port.isdigit():  # Ray itself would try for minutes where nobody listens
                socket.create_connection((host.rpartition("/")[2].strip("[]"), int(port)), _ANSWERS_S).close()
            before = signal.getsignal(signal.SIGTERM)
            ray.init(
                self.address, runtime_env={"env_vars": environment(runs)}, logging_level="ERROR", log_to_driver=False, **own
            )
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray puts its own; whoever calls this has a better one, or none
        except Exception as error:  # a busy machine is a bare Exception of Ray's, which has no class for it
            token = " It asks for a token: set RAY_AUTH_MODE=token." if "token" in str(error.__cause__) else ""
            where = f"the Ray cluster at {self.address} cannot be reached"
            remedy = f"See that `ray status` answers there, with this version of Ray and Python ({ray.__version__})"
            if own:
                where, remedy = "Ray cannot be started here", "On a busy machine call again later, or without --engine ray"
            raise ConnectionError(f"{where} ({one_line(str(error))[:120].rstrip('. ')}). {remedy}.{token}") from error

    def submit(self, attempt: Attempt, job: Job) -> Any:
        cores = min(job.run.config.training.num_threads, self.cores)  # more would never start anywhere
        return self.function.options(num_cpus=cores, num_gpus=self.gpus_each, name=job.run.folder.name).remote(attempt)

    def ended(self, job: Job) -> str:
        import ray

        if not ray.wait([job.handle], timeout=0)[0]:
            return ""
        try:
            ray.get(job.handle)
        except ray.exceptions.RayError as error:
            return f"its worker died ({one_line(str(error))[-150:]})"
        return "its worker ended without a word"

    def cancel(self, job: Job) -> None:
        import ray

        ray.cancel(job.handle, force=True)


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

    def __init__(self, jobs: int | None = None, *, retries: int = RETRIES, **parameters: Any) -> None:
        super().__init__(jobs)
        self.retries, self.parameters = retries, parameters
        _need("submitit", "slurm")
        if not {"timeout_min", f"{self.cluster}_time"} & parameters.keys():  # submitit's own five minutes suit no run
            raise ValueError(
                f"--engine {self.name}: say how long a job may take, in minutes: --engine-set timeout_min=720. One that "
                f"reaches it goes back into the queue and on from its last finished epoch"
            )
        for name in _COUNTS & parameters.keys():
            _need_number(name, parameters[name], 1)
        _need_number("retries", retries, 0)
        self._executor(Path("unused"))  # what is wrong with the parameters is said before hours of preparation

    @contextmanager
    def opened(self, runs: Sequence[Run], folder: Path) -> Iterator[None]:
        before = dict(os.environ)
        os.environ.update(environment(runs))  # which jobs inherit: threads are counted, and this package found, at their start
        try:
            self.executor = self._executor(folder)
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def _executor(self, folder: Path) -> Any:
        import submitit

        try:
            executor = submitit.AutoExecutor(folder, self.cluster, **{f"{self.cluster}_max_num_timeout": self.retries})
            executor.update_parameters(**self.parameters)
        except RuntimeError as error:
            raise RuntimeError(
                f"--engine slurm: {one_line(str(error))} Call it where `srun` and `sbatch` are at hand, such as a cluster's "
                f"login node; `--engine submitit-local` makes the same jobs on this machine"
            ) from error
        except (NameError, ValueError, AssertionError, TypeError) as error:
            raise ValueError(f"--engine {self.name}: {one_line(str(error))[:200]}") from error
        return executor

    def submit(self, attempt: Attempt, job: Job) -> Any:
        self.executor.update_parameters(cpus_per_task=job.run.config.training.num_threads, name=job.run.folder.name)
        return self.executor.submit(attempt)

    def ended(self, job: Job) -> str:
        if not job.handle.done():
            return ""
        return f"its job {job.handle.job_id} ended ({job.handle.state}; the log is {job.handle.paths.stderr})"

    def cancel(self, job: Job) -> None:
        job.handle.cancel(check=False)


class SubmititLocal(Slurm):
    """The same jobs as processes of this machine, to try them out without Slurm.

    Args:
        jobs: at a time; None = one a GPU, each its own, or else one a core.
    """

    name, cluster, is_local = "submitit-local", "local", True

    def __init__(self, jobs: int | None = None, *, retries: int = RETRIES, **parameters: Any) -> None:
        super().__init__(jobs, retries=retries, **({"timeout_min": _NO_LIMIT_MIN} | parameters))

    def cancel(self, job: Job) -> None:
        """Each job is a controller and the job itself, which hold nothing that a checkpoint does not."""
        controller = psutil.Process(int(job.handle.job_id))
        for process in (*controller.children(recursive=True), controller):
            with suppress(psutil.Error):
                process.kill()
