"""Runs on Ray: on this machine, or on a cluster that is there already (extra `ray`)."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cmpta_lib.runs import provenance as machine
from cmpta_lib.runs import remote
from cmpta_lib.runs.engines import Failure, Report, checked_jobs, needs_extra, one_line
from cmpta_lib.runs.remote import Attempt, Dispatch
from cmpta_lib.runs.store import Run

_OBJECTS_BYTES = 100 * 2**20  # runs go through files; Ray would set aside a third of the memory for objects

_KNOCK_S = 10.0


class Ray:
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
        self,
        jobs: int | None = None,
        *,
        address: str | None = None,
        gpus: float | None = None,
        retries: int = remote.RETRIES,
    ) -> None:
        self.jobs, self.retries = checked_jobs(jobs), retries
        self.address = address or os.environ.get("RAY_ADDRESS") or None
        if gpus is not None and not (0 <= gpus < 1 or gpus == int(gpus)):
            raise ValueError(f"gpus={gpus}: expected a fraction below 1, or a whole number of GPUs")
        self.gpus = gpus
        with needs_extra("ray"):
            import ray  # noqa: F401

    def run(self, runs: Sequence[Run], root: Path, report: Report) -> list[Failure]:
        """As `engines.Engine.run`.

        Raises:
            ConnectionError: the cluster at `address` does not answer, or Ray's daemon here dies.
            ValueError: runs ask for GPUs that the cluster does not have.
        """
        with self._connected(runs), remote.job_folder(root) as folder:
            tasks = _Tasks(self._gpus())
            return Dispatch(tasks, root, folder, report, self.jobs, self.retries).work(runs)

    @contextmanager
    def _connected(self, runs: Sequence[Run]) -> Iterator[None]:
        import ray

        if ray.is_initialized():  # by a caller who wants it so
            yield
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # today's way, else warned about
        settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        settings["runtime_env"] = {"env_vars": remote.environment(runs)}
        if self.address:
            settings["address"] = self.address
        else:
            threads = max(run.config.training.num_threads for run in runs)
            cores = threads * self.jobs if self.jobs else os.cpu_count() or 1
            settings |= {"address": "local", "num_cpus": cores, "num_gpus": machine.gpu_count()}
            settings |= {"include_dashboard": False, "object_store_memory": _OBJECTS_BYTES}
        try:
            _knock(self.address or "")
            with _own_handlers():
                ray.init(**settings)
        except (OSError, RuntimeError, ValueError) as error:
            where = f"the Ray cluster at {self.address}" if self.address else "a Ray of one's own"
            token = " It asks for a token: set RAY_AUTH_MODE=token." if "token" in str(error.__cause__) else ""
            raise ConnectionError(
                f"{where} cannot be reached or started ({one_line(str(error))[:300]}). See that `ray status` answers there, "
                f"with this version of Ray and Python ({ray.__version__}); without an address, one is started here.{token}"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()

    def _gpus(self) -> float:
        import ray

        there = float(ray.cluster_resources().get("GPU", 0))
        if self.gpus is None:
            return 1.0 if there else 0.0
        if self.gpus > there:
            raise ValueError(f"gpus={self.gpus}: the Ray cluster has {there:g} GPUs in all, so no run would ever start")
        return self.gpus


class _Tasks:
    """`remote.Backend` on a connected Ray."""

    patience_s = 5.0  # a network file system's

    def __init__(self, gpus: float) -> None:
        import ray

        self.gpus, self.lost = gpus, ""
        self.most_cores = max((node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]), default=1)
        # A dead worker's run is tried again by `Dispatch`, which says so; Ray itself would do it in silence.
        self.function = ray.remote(max_retries=0)(_make)

    def submit(self, attempt: Attempt, run: Run) -> Any:
        cores = min(run.config.training.num_threads, self.most_cores)  # more would never start anywhere
        return self.function.options(num_cpus=cores, num_gpus=self.gpus, name=attempt.folder.name).remote(attempt)

    def ended(self, job: Any) -> str:
        import ray
        from ray.exceptions import LocalRayletDiedError, RayError, RayTaskError

        ready, _ = ray.wait([job], timeout=0)
        if not ready:
            return ""
        try:
            ray.get(job)
        except RayTaskError as error:
            return f"its worker ended with {one_line(str(error.cause))}"
        except LocalRayletDiedError:
            self.lost = "Ray's daemon on this machine, the raylet, has died, and nothing more can be started through it"
            return "its raylet died"
        except RayError as error:
            return f"its worker died ({type(error).__name__}: {one_line(str(error)).partition('. ')[0]})"
        return "its worker ended without a word"

    def cancel(self, jobs: Sequence[Any]) -> None:
        import ray

        for job in jobs:
            with suppress(Exception):  # whatever it is, the next one is still to be ended
                ray.cancel(job, force=True)


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at `host:port`; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.rpartition("/")[2].strip("[]"), int(port)), _KNOCK_S).close()


def _make(attempt: Attempt) -> str:
    return attempt()


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Ray puts a handler of its own for SIGTERM; whoever calls this has better ones, or none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
