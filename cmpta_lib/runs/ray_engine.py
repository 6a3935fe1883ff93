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

from cmpta_lib.runs import provenance
from cmpta_lib.runs.dispatch import RETRIES, Engine, Job, environment, needs_extra, one_line
from cmpta_lib.runs.store import Run
from cmpta_lib.runs.worker import Attempt

_OBJECTS_BYTES = 100 * 2**20  # runs go through files; Ray would set aside a third of the memory for objects
_ANSWERS_S = 10.0


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

    patience_s = 5.0  # a network file system's

    def __init__(
        self, jobs: int | None = None, *, address: str | None = None, gpus: float | None = None, retries: int = RETRIES
    ) -> None:
        super().__init__(jobs)
        self.address, self.gpus, self.retries = address or os.environ.get("RAY_ADDRESS") or None, gpus, retries
        if gpus is not None and not (0 <= gpus < 1 or gpus == int(gpus)):
            raise ValueError(f"gpus={gpus}: expected a fraction below 1, or a whole number of GPUs")
        with needs_extra("ray"):
            import ray  # noqa: F401

    @contextmanager
    def opened(self, runs: Sequence[Run], folder: Path) -> Iterator[None]:
        """Connected to the cluster.

        Raises:
            ConnectionError: the cluster at `address` does not answer.
            ValueError: runs ask for GPUs that the cluster does not have.
        """
        import ray

        is_connected = ray.is_initialized()  # by a caller who wants it so
        if not is_connected:
            self._connect(runs)
        try:
            there = float(ray.cluster_resources().get("GPU", 0))
            if (self.gpus or 0) > there:
                raise ValueError(f"gpus={self.gpus}: the Ray cluster has {there:g} GPUs in all, so no run would ever start")
            self.lost, self.gpus_each = "", min(1.0, there) if self.gpus is None else self.gpus
            self.cores = max((node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]), default=1)
            # A dead worker's run is tried again by the dispatcher, which says so; Ray itself would do it in silence.
            self.function = ray.remote(max_retries=0)(_make)
            yield
        finally:
            if not is_connected:
                ray.shutdown()

    def _connect(self, runs: Sequence[Run]) -> None:
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # today's way, else warned about
        settings: dict[str, Any] = {"address": self.address or "local", "logging_level": "ERROR", "log_to_driver": False}
        settings["runtime_env"] = {"env_vars": environment(runs)}
        if not self.address:
            threads = max(run.config.training.num_threads for run in runs)
            cores = threads * self.jobs if self.jobs else os.cpu_count() or 1
            settings |= {"num_cpus": cores, "num_gpus": provenance.gpu_count()}
            settings |= {"include_dashboard": False, "object_store_memory": _OBJECTS_BYTES}
        try:
            _need_listener(self.address or "")
            with _own_handler():
                ray.init(**settings)
        except (OSError, RuntimeError, ValueError) as error:
            where = f"the Ray cluster at {self.address}" if self.address else "a Ray of one's own"
            token = " It asks for a token: set RAY_AUTH_MODE=token." if "token" in str(error.__cause__) else ""
            raise ConnectionError(
                f"{where} cannot be reached or started ({one_line(str(error))[:300]}). See that `ray status` answers there, "
                f"with this version of Ray and Python ({ray.__version__}); without an address, one is started here.{token}"
            ) from error

    def submit(self, attempt: Attempt, run: Run) -> Any:
        cores = min(run.config.training.num_threads, self.cores)  # more would never start anywhere
        return self.function.options(num_cpus=cores, num_gpus=self.gpus_each, name=run.folder.name).remote(attempt)

    def ended(self, job: Job) -> str:
        import ray
        from ray.exceptions import LocalRayletDiedError, RayError, RayTaskError

        ready, _ = ray.wait([job.handle], timeout=0)
        if not ready:
            return ""
        try:
            ray.get(job.handle)
        except RayTaskError as error:
            return f"its worker ended with {one_line(str(error.cause))}"
        except LocalRayletDiedError:
            self.lost = "Ray's daemon on this machine, the raylet, has died, and nothing more can be started through it"
            return "its raylet died"
        except RayError as error:
            return f"its worker died ({type(error).__name__}: {one_line(str(error)).partition('. ')[0]})"
        return "its worker ended without a word"

    def cancel(self, jobs: Sequence[Job]) -> None:
        import ray

        for job in jobs:
            with suppress(Exception):  # whatever it is, the next one is still to be ended
                ray.cancel(job.handle, force=True)


def _make(attempt: Attempt) -> str:
    return attempt()


def _need_listener(address: str) -> None:
    """Raise OSError where nobody listens at `host:port`; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.rpartition("/")[2].strip("[]"), int(port)), _ANSWERS_S).close()


@contextmanager
def _own_handler() -> Iterator[None]:
    """Ray puts a handler of its own for SIGTERM; whoever calls this has a better one, or none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
