"""Worker processes: one run's failure is its own, a dead worker is replaced, and none outlives who asked for it.

The workers here are real but for their training: a stand-in does to each run what a file in its folder says.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import finish_by_hand
from filelock import FileLock

from cmpta_lib.config import DataConfig, RunConfig
from cmpta_lib.runs import engines, processes, worker
from cmpta_lib.runs import provenance as machine
from cmpta_lib.runs.engines import RunsFailed, ensure
from cmpta_lib.runs.processes import Processes
from cmpta_lib.runs.store import DONE, FAILURE, Run

ROOT = Path(__file__).parents[1]
PYTHON = sys.executable  # the engine's is replaced below
WORKER = """
import os, sys, time
from pathlib import Path
from cmpta_lib.runs import machine, store, worker

def execute(root, folder, report):
    with open(folder / "tries", "a") as tries:
        print(os.getpid(), file=tries)
    print("from the worker itself")
    what = folder / "what"
    exec(what.read_text() if what.exists() else "")
    for epoch in (1, 2):
        report({"event": "epoch", "epoch": epoch})
    for name in set(store.SEALED) - {store.CONFIG}:
        (folder / name).touch()
    store.seal(folder)

worker.execute = execute
machine.take_device = lambda: None  # it would import torch
worker.serve(Path(sys.argv[-1]))
"""


def executable(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the engine takes for Python: it starts the worker above."""
    (tmp_path / "worker.py").write_text(WORKER)
    found = executable(tmp_path / "python", f'exec {PYTHON} {tmp_path / "worker.py"} "$@"')
    monkeypatch.setattr(processes.sys, "executable", found)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def asked(root: Path, python: str) -> Callable[..., list[Run]]:
    """Runs that do what is said, in order; "" finishes at once."""

    def make(*what: str) -> list[Run]:
        runs = []
        for seed, code in enumerate(what):
            config = RunConfig(data=DataConfig(name="a", fingerprint="b"), seed=seed)
            folder = root / f"a-{config.hash}"
            folder.mkdir(parents=True)
            (folder / "what").write_text(code)
            runs.append(Run(config, folder))
        return runs

    return make


def tries(run: Run) -> list[int]:
    """The workers that tried this run, by process id."""
    return [int(line) for line in (run.folder / "tries").read_text().split()]


def together(count: int) -> str:
    """What a run does to wait until so many have been begun."""
    return f"while len(list(root.glob('*/tries'))) < {count}: time.sleep(0.02)"


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{process}/stat") as file:  # ended, but not waited for by whatever adopted it
        return file.read().rsplit(")", 1)[1].split()[0] == "Z"


def until(condition: Callable[[], Any], seconds: float) -> float:
    """Wait for a condition; returns how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - began


# --- runs that go well ------------------------------------------------------------------------------------------------


def test_a_worker_goes_from_run_to_run(asked, root):
    runs = asked("", "", "")
    ensure(runs, root, jobs=1)
    assert all(run.done and not run.problem for run in runs)
    assert len({process for run in runs for process in tries(run)}) == 1
    assert not list(root.glob("logs/*")), "the log goes where nothing failed"
    until(lambda: gone(tries(runs[0])[0]), 3)


def test_no_more_workers_than_jobs_or_runs(asked, root):
    runs = asked(*[together(2)] * 4)
    ensure(runs, root, jobs=2)
    assert len({process for run in runs for process in tries(run)}) == 2
    assert all(len(tries(run)) == 1 for run in runs)


def test_events_reach_the_engines_caller(asked, root):
    (run,) = asked("import logging; logging.getLogger('cmpta_lib.training').warning('starting %s', 'anew')")
    engines._prepare(run)
    events: list[dict] = []
    assert Processes(1).run([run], root, lambda run, event: events.append(event)) == []
    assert events == [
        {"event": "start"},
        {"event": "note", "text": "starting anew"},
        {"event": "epoch", "epoch": 1},
        {"event": "epoch", "epoch": 2},
        {"event": "done"},
    ]


def test_what_can_be_imported_here_can_be_in_a_worker(asked, root, tmp_path, monkeypatch):
    """A method that a test or a notebook's folder defines, named in an environment variable."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "a_method_of_ones_own.py").write_text("import os\nassert os.environ['CMPTA_METHODS'] == 'own'")
    monkeypatch.setenv("CMPTA_METHODS", "own")
    monkeypatch.syspath_prepend(tmp_path / "plugins")
    (run,) = asked("import a_method_of_ones_own")
    ensure([run], root, jobs=1)
    assert run.done


@pytest.mark.parametrize("jobs", [0, -3, 1.5, "2", True])
def test_jobs_are_a_whole_number_from_one(jobs, root):
    with pytest.raises(ValueError, match=rf"--jobs {jobs}: expected how many runs at a time, a whole number from 1"):
        ensure([], root, jobs=jobs)


# --- runs that fail ---------------------------------------------------------------------------------------------------


def test_a_run_that_raises_is_recorded_and_the_others_go_on(asked, root):
    runs = asked("", "print('some last words'); raise ValueError('loss is\\nnan')", "", "")
    with pytest.raises(RunsFailed) as caught:
        ensure(runs, root, jobs=1)
    (failure,) = caught.value.failures
    assert failure.run == runs[1] and failure.reason == "ValueError: loss is nan"
    name, record = runs[1].folder.name, runs[1].folder / FAILURE
    assert str(caught.value) == (
        f"1 of 4 runs failed, 3 are finished: {name}: ValueError: loss is nan. Details: {record}. "
        "Call again to try them again."
    )
    assert [run.done for run in runs] == [True, False, True, True]
    written = json.loads(record.read_text())
    assert (written["kind"], written["message"]) == ("ValueError", "loss is\nnan")
    assert "in execute" in written["traceback"] and "some last words" in written["log"]
    assert len({process for run in runs for process in tries(run)}) == 1, "the worker itself is well"


def test_a_failed_run_is_tried_again_and_its_record_goes(asked, root):
    runs = asked("", "if len(list(open(folder / 'tries'))) == 1: raise ValueError('once')")
    with pytest.raises(RunsFailed, match="1 of 2 runs failed, 1 are finished"):
        ensure(runs, root, jobs=1)
    assert (runs[1].folder / FAILURE).exists()
    ensure(runs, root, jobs=1)
    assert runs[1].done and not (runs[1].folder / FAILURE).exists() and len(tries(runs[0])) == 1


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("os.kill(os.getpid(), 9)", r"its worker was killed by signal 9 \(perhaps for memory\)"),
        ("os.kill(os.getpid(), 11)", r"its worker was killed by signal 11 \(Segmentation fault\)"),
        ("os._exit(3)", "its worker ended with exit code 3"),
        ("sys.exit(3)", "its worker ended with exit code 3"),
    ],
)
def test_a_worker_that_dies_fails_only_its_run_and_is_replaced(asked, root, end, reason):
    runs = asked("", f"sys.stderr.write('the end\\n'); sys.stderr.flush(); {end}", "", "")
    with pytest.raises(RunsFailed, match=f"1 of 4 runs failed, 3 are finished: {runs[1].folder.name}: {reason}"):
        ensure(runs, root, jobs=1)
    assert [run.done for run in runs] == [True, False, True, True]
    assert "the end" in json.loads((runs[1].folder / FAILURE).read_text())["log"]
    assert tries(runs[0]) == tries(runs[1]) and tries(runs[2]) == tries(runs[3]) != tries(runs[1])


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("echo no torch here >&2; exit 3", "ended with exit code 3; the log .*ends with: no torch here"),
        ("kill -9 $$", r"was killed by signal 9 \(perhaps for memory\); the log .*ends with: nothing"),
        ("echo {not json; exit 1", "ended with exit code 1"),
    ],
)
def test_workers_that_never_start_end_the_call(ending, reason, asked, root, tmp_path, monkeypatch):
    runs = asked("", "")
    monkeypatch.setattr(processes.sys, "executable", executable(tmp_path / "broken", ending))
    with pytest.raises(RunsFailed, match=f"2 of 2 runs failed, 0 are finished: .*: no worker starts: {reason}"):
        ensure(runs, root, jobs=1)


def test_an_engine_that_loses_a_run_is_found_out(asked, root):
    class Forgetful:
        def run(self, runs: Any, root: Path, report: Any) -> list:
            return []

    with pytest.raises(RunsFailed, match=f"it ended without {DONE}"):
        ensure(asked(""), root, engine=Forgetful())


def test_many_failures_are_counted_and_the_first_shown(asked, root):
    with pytest.raises(RunsFailed, match="12 of 12 runs failed, 0 are finished: .*; and 2 more. Details: .*") as caught:
        ensure(asked(*["raise ValueError('no')"] * 12), root, jobs=1)
    assert len(caught.value.failures) == 12 and str(caught.value).count("ValueError") == 10


# --- several who ask --------------------------------------------------------------------------------------------------


def test_a_run_that_another_process_holds_is_waited_for_while_others_are_made(asked, root):
    held, free = asked("raise ValueError('tried twice')", "")
    lock = FileLock(held.folder / "lock")
    with lock:
        waiting = threading.Thread(target=ensure, args=([held, free], root, 1))
        waiting.start()
        until(lambda: free.done, 20)
        time.sleep(1)
        assert waiting.is_alive() and not held.done
        finish_by_hand(held.folder, held.config)
    waiting.join(10)
    assert not waiting.is_alive() and not (held.folder / "tries").exists()


def test_what_another_process_left_half_done_is_taken_over(asked, root):
    (run,) = asked("")
    with FileLock(run.folder / "lock"):
        waiting = threading.Thread(target=ensure, args=([run], root, 1))
        waiting.start()
        time.sleep(1.5)
        assert waiting.is_alive()
    waiting.join(10)
    assert run.done and len(tries(run)) == 1


# --- the end of who asked ---------------------------------------------------------------------------------------------

ASK = """
import sys
from pathlib import Path
from cmpta_lib.config import from_json
from cmpta_lib.runs import engines, processes
from cmpta_lib.runs.store import Run
processes.sys.executable = sys.argv[1]
folders = [Path(folder) for folder in sys.argv[3:]]
runs = [Run(from_json((folder / "config.json").read_text()), folder) for folder in folders]
engines.ensure(runs, Path(sys.argv[2]), jobs=2)
"""
BUSY = {"asleep": "time.sleep(600)", "computing": "sum(range(10**12))"}


@pytest.fixture
def asking(asked, root, python) -> Iterator[Callable[[str], tuple[subprocess.Popen, list[int]]]]:
    """A process that waits in `ensure` for two workers, and their ids."""
    started, workers = [], []

    def ask(what: str) -> tuple[subprocess.Popen, list[int]]:
        runs = asked(what, what)
        for run in runs:
            engines._prepare(run)
        command = [PYTHON, "-c", ASK, python, str(root), *(str(run.folder) for run in runs)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        started.append(process)
        until(lambda: all((run.folder / "tries").exists() and tries(run) for run in runs), 30)
        workers.extend(found := [tries(run)[0] for run in runs])
        return process, found

    yield ask
    for process in started:
        process.kill()
        process.wait()
    for process_id in workers:  # where the test failed
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)


@pytest.mark.parametrize("what", BUSY)
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda ending: ending.name)
def test_workers_are_gone_within_three_seconds_of_their_asker(asking, ending, what):
    process, workers = asking(BUSY[what])
    assert not any(gone(worker) for worker in workers)
    process.send_signal(ending)
    until(lambda: all(gone(worker) for worker in workers), 3)
    _, shown = process.communicate(timeout=3)
    assert process.returncode == -ending and ("KeyboardInterrupt" in shown) == (ending == signal.SIGINT)


def test_a_terminals_interrupt_reaches_the_asker_only(asking):
    process, workers = asking(BUSY["asleep"])
    assert {os.getsid(worker) for worker in workers} == set(workers) and os.getsid(process.pid) not in workers


def test_logs_of_dead_processes_are_swept(asking, asked, root):
    process, _ = asking(BUSY["asleep"])
    (left,) = root.glob("logs/*.log")
    process.kill()
    process.wait()
    config = RunConfig(data=DataConfig(name="a", fingerprint="b"), seed=77)
    mine = root / "logs" / f"{left.name.split('.')[0]}.{os.getpid()}-99.log"
    mine.touch()
    ensure([Run(config, root / "a-next")], root, jobs=1)
    assert list(root.glob("logs/*.log")) == [mine], "a living process keeps its log"


# --- disks that refuse ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "the file system is read-only")]
)
def test_a_disk_that_refuses_in_a_worker_is_named_with_the_remedy(number, remedy, asked, root):
    code = (
        "from cmpta_lib import files; from unittest import mock\n"
        f"with mock.patch('os.replace', side_effect=OSError({number}, 'no')): files.write_text(folder / 'x.json', '')"
    )
    (run,) = asked(code)
    with pytest.raises(RunsFailed, match=rf"cannot write {run.folder}/x.json: {remedy}.* CMPTA_RUNS"):
        ensure([run], root, jobs=1)


def test_a_runs_folder_that_cannot_be_written_is_named_with_the_remedy(asked, root, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    run = Run(RunConfig(data=DataConfig(name="a", fingerprint="b")), root / "a-1")
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=rf"cannot write {run.folder}: the file system is read-only.* CMPTA_RUNS"):
        ensure([run], root, jobs=1)


def test_a_lock_that_cannot_be_made_fails_its_run(tmp_path, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    events: list[dict] = []
    assert worker.attempt(tmp_path, tmp_path / "run", events.append) == "failed"
    assert f"cannot write {tmp_path / 'run' / 'lock'}: the disk is full" in events[0]["message"]


# --- this machine's GPUs ----------------------------------------------------------------------------------------------


class Driver:
    """Stands for the NVIDIA driver's library."""

    def __init__(self, gpus: int, ready: int = 0) -> None:
        self.gpus, self.ready, self.initialized = gpus, ready, False

    def cuInit(self, flags: int) -> int:
        self.initialized = flags == 0
        return self.ready

    def cuDeviceGetCount(self, count: Any) -> int:
        assert self.initialized, "the driver answers only once it is initialised"
        count._obj.value = self.gpus
        return 0


@pytest.mark.parametrize(("driver", "count"), [(Driver(2), 2), (Driver(0), 0), (Driver(1, ready=100), 0)])
def test_the_driver_counts_the_gpus(driver, count, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert machine.gpu_count() == count


def test_without_a_driver_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(machine, "_DRIVER", "libno-such-driver.so.1")
    assert machine.gpu_count() == 0


@pytest.mark.parametrize(("gpus", "workers"), [(0, os.cpu_count()), (1, 1), (2, 2)])
def test_by_default_there_is_a_worker_for_each_gpu_or_else_core(gpus, workers, asked, root, monkeypatch):
    monkeypatch.setattr(machine, "gpu_count", lambda: gpus)
    note = "(folder / 'gpu').write_text(os.environ.get('LOCAL_RANK', ''))\n"
    runs = asked(*[note + together(min(4, workers))] * 4)
    ensure(runs, root)
    assert len({process for run in runs for process in tries(run)}) == min(4, workers)
    assert {(run.folder / "gpu").read_text() for run in runs} == ({str(n) for n in range(gpus)} or {""})


@pytest.mark.parametrize(("rank", "taken"), [(None, []), ("1", [1]), ("5", [1])])
def test_a_process_takes_the_gpu_of_its_rank(rank, taken, monkeypatch):
    asked_for: list[int] = []
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2, set_device=asked_for.append)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    machine.take_device()
    assert asked_for == taken
