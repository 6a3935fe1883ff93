"""Engines: one run's failure is its own, a dead worker costs no finished epoch, and none outlives who asked for it.

Most workers here are real but for their training: a stand-in does to each run what a file in its folder says. One test
goes through every engine with a real method (`halting_method`), whose runs wait, die or raise when a file says so.
"""

from __future__ import annotations

import errno
import importlib.util
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
from typing import Any

import psutil
import pytest
from conftest import finish_by_hand
from filelock import FileLock

from cmpta_lib import files, registry
from cmpta_lib.config import DataConfig, MethodConfig, RunConfig, TrainingConfig
from cmpta_lib.embedded import synthetic
from cmpta_lib.runs import dispatch, engines, provenance, worker
from cmpta_lib.runs.dispatch import Engine
from cmpta_lib.runs.engines import Processes, RunsFailed, engine_of, ensure
from cmpta_lib.runs.provenance import CONTEXT_GB, MARGIN, fit, warning
from cmpta_lib.runs.store import DONE, FAILURE, HISTORY, METRICS, PREDICTIONS, WEIGHTS, Run
from cmpta_lib.study.profiles import SMOKE_SIZES

ROOT = Path(__file__).parents[1]
PYTHON = sys.executable  # the engine's is replaced below
COMES_S = 240.0  # until a real run is where it waits: on a cold, busy machine Ray and torch alone take a minute to start
EXTRAS = {"ray": "ray", "submitit-local": "submitit", "slurm": "submitit"}
WORKER = """
import os, sys, time
from cmpta_lib.runs import provenance, store, worker

def execute(root, folder, report, row):
    with open(folder / "tries", "a") as tries:
        print(os.getpid(), file=tries)
    print("from the worker itself", row)
    what = folder / "what"
    exec(what.read_text() if what.exists() else "")
    for epoch in (1, 2):
        report({"event": "epoch", "epoch": epoch})
    for name in set(store.FILES) - {store.CONFIG}:
        (folder / name).touch()
    store.finalise(folder)

worker.execute = execute
provenance.take_device = lambda: None  # it would import torch
worker.serve()
"""


def executable(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def plain(folder: Path, seed: int = 0, row: str = "") -> Run:
    """A run of nothing in particular."""
    config = RunConfig(data=DataConfig(name="a", fingerprint="b"), seed=seed)
    return Run(config, folder / f"a-{config.hash}", row)


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the engine takes for Python: it starts the worker above."""
    (tmp_path / "worker.py").write_text(WORKER)
    found = executable(tmp_path / "python", f'exec {PYTHON} {tmp_path / "worker.py"} "$@"')
    monkeypatch.setattr(engines.sys, "executable", found)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def asked(root: Path, python: str) -> Callable[..., list[Run]]:
    """Runs that do what is said, in order; "" finishes at once."""

    def make(*what: str) -> list[Run]:
        runs = [plain(root, seed, "CMPTA") for seed in range(len(what))]
        for run, code in zip(runs, what, strict=True):
            run.folder.mkdir(parents=True)
            (run.folder / "what").write_text(code)
        return runs

    return make


def tries(run: Run) -> list[int]:
    """The workers that tried this run, by process id."""
    return [int(line) for line in (run.folder / "tries").read_text().split()]


def together(count: int) -> str:
    """What a run does to wait until so many have been begun."""
    return f"while len(list(root.glob('*/tries'))) < {count}: time.sleep(0.02)"


def gone(process: int) -> bool:
    """Whether it has ended, waited for by whatever adopted it or not."""
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def until(condition: Callable[[], Any], seconds: float) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        time.sleep(0.02)


# --- runs that go well ------------------------------------------------------------------------------------------------


def test_a_worker_goes_from_run_to_run_and_what_it_says_reaches_the_caller(asked, root):
    runs = asked("import logging; logging.getLogger('cmpta_lib.training').warning('starting %s', 'anew')", "", "")
    for run in runs:
        engines.prepare(run)
    events: list[tuple[Run, dict]] = []
    assert Processes(1).run(runs, root, lambda run, event: events.append((run, event))) == []
    assert all(run.done and not run.problem for run in runs)
    assert len({process for run in runs for process in tries(run)}) == 1
    assert not list(root.glob("logs/*")), "the log goes where nothing failed"
    assert [event for run, event in events if run == runs[0]] == [
        {"event": "start"},
        {"event": "note", "text": "starting anew"},
        {"event": "epoch", "epoch": 1},
        {"event": "epoch", "epoch": 2},
        {"event": "done"},
    ]
    until(lambda: gone(tries(runs[0])[0]), 3)


def test_what_can_be_imported_here_can_be_in_a_worker(asked, root, tmp_path, monkeypatch):
    """A method that a test or a notebook's folder defines, named in an environment variable; and the row's name."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "a_method_of_ones_own.py").write_text("import os\nassert os.environ['CMPTA_METHODS'] == 'own'")
    monkeypatch.setenv("CMPTA_METHODS", "own")
    monkeypatch.syspath_prepend(tmp_path / "plugins")
    (run,) = asked("import a_method_of_ones_own; assert row == 'CMPTA'")
    ensure([run], root, jobs=1)
    assert run.done


def test_what_another_launcher_says_is_not_believed(asked, root, monkeypatch):
    """Images and pods export it; the one of two processes that this seems to be would wait for the other."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PMI_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MASTER_ADDR", "10.255.255.1")
    (run,) = asked("assert worker._is_first() and not {'RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'PMI_SIZE'} & os.environ.keys()")
    ensure([run], root, jobs=1)
    assert run.done and not provenance.by_torchrun()
    with pytest.raises(SystemExit, match="start it by torchrun"):
        worker.work_together(root, [run.folder])


# --- runs that fail ---------------------------------------------------------------------------------------------------


def test_a_run_that_raises_is_recorded_the_others_go_on_and_it_is_tried_again(asked, root):
    raising = "print('some last words')\nif len(list(open(folder / 'tries'))) == 1: raise ValueError('loss is\\nnan')"
    runs = asked("", raising, "", "")
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
    assert len(list(root.glob("logs/*"))) == 1, "the log stays where something failed"
    ensure(runs, root, jobs=1)
    assert runs[1].done and not record.exists() and len(tries(runs[0])) == 1


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("os.kill(os.getpid(), 9)", r"its worker was killed by signal 9 \(perhaps for memory\)"),
        ("os.kill(os.getpid(), 11)", r"its worker was killed by signal 11 \(Segmentation fault\)"),
        ("sys.exit(3)", "its worker ended with exit code 3"),
    ],
)
def test_a_worker_that_dies_fails_only_its_run_and_is_replaced(asked, root, end, reason):
    runs = asked("", f"sys.stderr.write('the end\\n'); sys.stderr.flush(); {end}", "", "")
    said = f"1 of 4 runs failed, 3 are finished: {runs[1].folder.name}: WorkerDied: {reason}; the log is .*workers.log"
    with pytest.raises(RunsFailed, match=said):
        ensure(runs, root, jobs=1)
    assert [run.done for run in runs] == [True, False, True, True]
    assert "the end" in json.loads((runs[1].folder / FAILURE).read_text())["log"]
    assert tries(runs[0]) == tries(runs[1]) and tries(runs[2]) == tries(runs[3]) != tries(runs[1])


def test_workers_that_never_start_end_the_call(asked, root, tmp_path, monkeypatch):
    monkeypatch.setattr(engines.sys, "executable", executable(tmp_path / "broken", "echo no torch here >&2; exit 3"))
    said = "no worker starts: its worker ended with exit code 3; the log is .*workers.log and ends with: no torch here; 2 of 2"
    with pytest.raises(RuntimeError, match=f"{said} runs are left. Finished epochs are kept: call again"):
        ensure(asked("", ""), root, jobs=1)
    assert len(list(root.glob("logs/*"))) == 1, "the log that is named stays"


def test_what_is_under_way_ends_well_where_no_further_worker_starts(root, monkeypatch):
    monkeypatch.setattr(dispatch, "AGAIN_S", 0)
    good, other = (plain(root, seed) for seed in range(2))
    for run in (good, other):
        engines.prepare(run)

    class OneStarts(Engine):
        starts = looks = 0  # of the other's workers; at the good one, after the last of them

        def submit(self, attempt: Any, job: Any) -> None:
            if job.run is good:
                attempt._say({"event": "start"})
            self.starts += job.run is other

        def ended(self, job: Any) -> str:
            if job.run is other:
                return "its worker ended"
            self.looks += self.starts == dispatch.MOST_FALSE_STARTS
            if self.looks == 3:
                finish_by_hand(job.run.folder, job.run.config)
            return "its worker ended" if good.done else ""

    with pytest.raises(RuntimeError, match="no worker starts: its worker ended; 1 of 2 runs are left"):
        OneStarts(2).run([good, other], root, lambda run, event: None)
    assert good.done and not other.done


class Scripted(Engine):
    """Each attempt trains so many epochs and dies, one after another; after the last it finishes."""

    retries = 1

    def __init__(self, *epochs: int) -> None:
        super().__init__(1)
        self.epochs = list(epochs)

    def submit(self, attempt: Any, job: Any) -> None:
        attempt._say({"event": "start"})
        if self.epochs:
            (job.run.folder / HISTORY).write_text("epoch\n" * (1 + self.epochs.pop(0)))
        else:
            finish_by_hand(job.run.folder, job.run.config)

    def ended(self, job: Any) -> str:
        return "its worker died"


def test_deaths_count_as_long_as_no_further_epoch_is_finished(root, monkeypatch):
    monkeypatch.setattr(dispatch, "AGAIN_S", 0)
    notes: list[str] = []
    (run, other) = (plain(root, seed) for seed in range(2))
    for one in (run, other):
        engines.prepare(one)
    assert Scripted(0, 1, 2).run([run], root, lambda run, event: notes.append(event.get("text", ""))) == [] and run.done
    assert [note.rpartition(", ")[2] for note in notes if note] == ["attempt 2 of 2"] * 3
    (failure,) = Scripted(1, 1, 1).run([other], root, lambda run, event: None)
    assert failure.reason == "WorkerDied: its worker died, 2 times without another finished epoch"
    assert json.loads((other.folder / FAILURE).read_text())["kind"] == "WorkerDied"


def test_an_engine_that_loses_runs_is_found_out(root):
    class Forgetful(Engine):
        def run(self, *_: Any) -> list:
            return []

    said = rf"^12 of 12 runs failed, 0 are finished: a-\w+ and 11 more: it ended without {DONE}. Call again"
    with pytest.raises(RunsFailed, match=said):
        ensure([plain(root, seed) for seed in range(12)], root, engine=Forgetful())


# --- several who ask --------------------------------------------------------------------------------------------------


def test_a_run_that_another_process_holds_is_waited_for_while_others_are_made(asked, root):
    held, left, free = asked("raise ValueError('tried twice')", "", "")
    locks = [FileLock(run.folder / "lock") for run in (held, left)]
    for lock in locks:
        lock.acquire()
    waiting = threading.Thread(target=ensure, args=([held, left, free], root, 1))
    waiting.start()
    until(lambda: free.done, 20)
    time.sleep(1)
    assert waiting.is_alive() and not held.done
    finish_by_hand(held.folder, held.config)
    for lock in locks:  # the other one is left half done
        lock.release()
    waiting.join(20)
    assert not waiting.is_alive() and not (held.folder / "tries").exists()
    assert left.done and len(tries(left)) == 1, "what another process left half done is taken over"


def test_what_dead_processes_said_is_removed_after_a_week(root):
    for name, age_s in (("old", 8 * 24 * 3600), ("young", 0)):
        folder = root / "logs" / f"{dispatch.platform.node()}.{name}.jobs"
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age_s,) * 2)
    folder = dispatch._folder_of_this_call(root)
    assert {path.name for path in root.glob("logs/*")} == {f"{dispatch.platform.node()}.young.jobs", folder.name}


# --- the end of who asked ---------------------------------------------------------------------------------------------

ASK = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs these tests may ignore it
from pathlib import Path
from cmpta_lib import registry
from cmpta_lib.config import from_json
from cmpta_lib.runs import engines
from cmpta_lib.runs.store import Run
engines.sys.executable, name, jobs, *folders = sys.argv[1:]
registry.load_plugins()
folders = [Path(folder) for folder in folders]
runs = [Run(from_json((folder / "config.json").read_text()), folder) for folder in folders]
engines.ensure(runs, folders[0].parent, int(jobs), engine=name)
"""


def asking(python: str, name: str, runs: list[Run], jobs: int) -> subprocess.Popen:
    """A process of its own that asks for these runs; it says what it says in "said"."""
    for run in runs:
        engines.prepare(run)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [PYTHON, "-c", ASK, python, name, str(jobs), *(str(run.folder) for run in runs)]
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with (runs[0].folder.parent / "said").open("a") as said:  # no pipe: a job that outlives its asker would hold it
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=said)


ASKED_TO_END = [(signal.SIGTERM, "time.sleep(600)"), (signal.SIGINT, "time.sleep(600)"), (signal.SIGKILL, "sum(range(10**12))")]


def test_two_who_ask_share_the_runs_of_one_folder(asked, root, python):
    runs = asked(*[together(2)] * 4)  # the first that begins waits for the second, so that both take part
    askers = [asking(python, "processes", runs, 1) for _ in range(2)]
    assert [asker.wait(COMES_S) for asker in askers] == [0, 0], (root / "said").read_text()
    assert [len(tries(run)) for run in runs] == [1] * 4, "each run was made once"
    assert len({process for run in runs for process in tries(run)}) == 2 and all(run.done for run in runs)


@pytest.mark.parametrize(("ending", "what"), ASKED_TO_END, ids=lambda part: getattr(part, "name", ""))
def test_workers_are_gone_within_three_seconds_of_their_asker(ending, what, asked, root, python):
    runs = asked(what, what)
    process = asking(python, "processes", runs, 2)
    try:
        until(lambda: all((run.folder / "tries").exists() and tries(run) for run in runs), 30)
        workers = [tries(run)[0] for run in runs]
        assert {os.getsid(worker) for worker in workers} == set(workers), "a terminal's Ctrl-C reaches the asker alone"
        process.send_signal(ending)
        until(lambda: all(map(gone, workers)), 3)
        assert process.wait(3) == -ending
        assert ("KeyboardInterrupt" in (root / "said").read_text()) == (ending == signal.SIGINT)
    finally:
        process.kill()
        process.wait()
        for run in runs:
            with suppress(OSError):
                os.kill(tries(run)[0], signal.SIGKILL)


def test_a_worker_begins_nothing_for_an_asker_that_is_gone(root, tmp_path):
    """As one that is killed while its worker still starts: too early for the kernel to end that one with it."""
    given = {"root": str(root), "folder": str(tmp_path), "events": str(tmp_path / "events.jsonl")}
    (tmp_path / "config.json").touch()
    ask = "import time; time.sleep(0.5); from cmpta_lib.runs import worker; worker.serve()"
    done = subprocess.run([PYTHON, "-c", ask], input=json.dumps(given) + "\n", text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0 and not (tmp_path / "events.jsonl").exists()


# --- disks that refuse ------------------------------------------------------------------------------------------------


def test_a_disk_that_refuses_is_named_with_the_remedy(asked, root, tmp_path, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    code = (
        f"from cmpta_lib import files; from unittest import mock\nfull = OSError({errno.ENOSPC}, os.strerror({errno.ENOSPC}))\n"
        "with mock.patch('os.replace', side_effect=full): files.write_text(folder / 'x.json', '')"
    )
    (run,), events = asked(code), []
    with pytest.raises(RunsFailed, match=rf"cannot write {run.folder}/x.json: the disk is full.* CMPTA_RUNS"):
        ensure([run], root, jobs=1)
    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert worker.attempt(tmp_path, tmp_path / "run", events.append) == "failed"
    assert f"cannot write {tmp_path / 'run' / 'lock'}: the file system is read-only" in events[0]["message"]
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=rf"cannot write {run.folder}: the file system is read-only.* CMPTA_RUNS"):
        ensure([run], root, jobs=1)


# --- this machine's GPUs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gpus", "workers"), [(0, os.cpu_count()), (2, 2)])
def test_by_default_there_is_a_worker_for_each_gpu_or_else_core(gpus, workers, asked, root, monkeypatch):
    monkeypatch.setattr(provenance, "gpu_count", lambda: gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5" if gpus else "")
    note = "(folder / 'gpu').write_text(os.environ.get('CUDA_VISIBLE_DEVICES', ''))\n"
    runs = asked(*[note + together(min(4, workers))] * 4)
    ensure(runs, root)
    assert len({process for run in runs for process in tries(run)}) == min(4, workers)
    assert {(run.folder / "gpu").read_text() for run in runs} == ({"3", "5"} if gpus else {""})


def test_sharing_a_gpu_is_said_and_whether_it_fits():
    """With a context for each process and a margin: 0.9 · 25.8 = 23.2 GB, to the last byte."""
    sizes = ((25.8, 8.0), (25.8, 20.0), (25.8, 24.0), (150.0, 8.0), ((3.4 + CONTEXT_GB) / (1 - MARGIN) * 4, 3.4))
    assert [fit(*size) for size in sizes] == [2, 1, 0, 15, 4]
    assert warning(2, 2, 24.0, 20.0) == warning(8, 0, 0.0, 0.0) == "", "nothing is shared"
    assert warning(2, 1, 25.8, 8.0) == (
        "2 runs at a time share 1 GPU, up to 2 on one: each allocates up to 8.0 GB of 26 GB, and 2 fit"
    )
    too_many = warning(5, 2, 25.8, 8.0)
    assert too_many.startswith("5 runs at a time share 2 GPUs, up to 3 on one: each") and too_many.endswith("pass --jobs 4")
    assert warning(2, 1, 25.8, 30.0).endswith("pass --jobs 1")
    assert warning(2, 1, 25.8, 0.0).endswith("`cmpta check` says how many fit")


# --- what is asked for cannot be had ----------------------------------------------------------------------------------


def needed(name: str) -> None:
    if name in EXTRAS and importlib.util.find_spec(EXTRAS[name]) is None:
        extra = "ray" if name == "ray" else "slurm"
        pytest.skip(f"{EXTRAS[name]} is not installed: pip install -c constraints.txt -e .[{extra}]")


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("dask", {}, "no engine 'dask'; there are: processes, ray, slurm, submitit-local"),
        ("processes", {"gpus": 1}, "no setting of engine processes 'gpus'; it has none"),
        ("ray", {"adress": "auto"}, "no setting of engine ray 'adress'; there are: address, gpus, retries"),
        ("ray", {"gpus": 1.5}, "gpus=1.5: expected a fraction below 1, or a whole number"),
        ("ray", {"gpus": "a"}, "gpus=a: expected a number from 0 to a million"),
        ("ray", {"retries": -1}, "retries=-1: expected a whole number from 0 to a million"),
        ("submitit-local", {"timeout_min": 0}, "timeout_min=0: expected a whole number from 1 to a million"),
        ("slurm", {}, "--engine slurm: say how long a job may take, in minutes: --engine-set timeout_min=720"),
        ("submitit-local", {"partition_of_slurm": "gpu"}, "--engine submitit-local: .*partition_of_slurm"),
        ("submitit-local", {"timeout_min": "long"}, "timeout_min=long: expected a whole number"),
    ],
)
def test_settings_are_checked_at_once(name, settings, said):
    needed(name)
    with pytest.raises(ValueError, match=said):
        engine_of(name, 1, settings)
    for jobs in (0, 1.5, "2", True) if name in engines.ENGINES else ():
        with pytest.raises(ValueError, match=rf"jobs={jobs!r}: Input should be "):
            engine_of(name, jobs)


def test_numpy_counts_its_threads_by_what_the_runs_ask_for(root):
    """It does so once, when it is imported: another number gives the linear row's weights other last bits."""
    silent = "import sys; from cmpta_lib.runs import worker; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", silent], cwd=ROOT).returncode == 0
    engine, events = Processes(1), root / "events"
    root.mkdir(exist_ok=True)
    with engine.opened([], root):
        attempt = worker.Attempt(root, root, events, environment={"OMP_NUM_THREADS": "7"})
        process = engine.submit(attempt, dispatch.Job(plain(root), events, 0))
        if Path("/proc/self/environ").exists():
            assert b"OMP_NUM_THREADS=7" in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")


@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_an_extra_that_is_not_installed_is_named_with_the_command(name, monkeypatch):
    monkeypatch.setitem(sys.modules, EXTRAS[name], None)
    with pytest.raises(RuntimeError, match=rf"needs the package '{EXTRAS[name]}'.* `pip install .* -e '.\[{name}\]'`"):
        engine_of(name)


def test_a_ray_cluster_that_does_not_answer_is_named(root):
    needed("ray")
    with pytest.raises(ConnectionError, match="the Ray cluster at 127.0.0.1:1 cannot be reached"):
        ensure([plain(root)], root, engine=engine_of("ray", 1, {"address": "127.0.0.1:1"}))


@pytest.mark.parametrize("module", ["builtins", "ray.exceptions"])
def test_what_the_library_behind_an_engine_raises_is_one_line(module, root):
    class Library(Engine):
        def submit(self, attempt, job):
            kind = type("Lost", (Exception,), {"__module__": module}) if module != "builtins" else Exception
            raise kind("The node\ntimed out")

    with pytest.raises(RuntimeError, match=r"^the engine fails \(\w+: The node timed out\). Finished epochs are kept: call"):
        ensure([plain(root)], root, engine=Library(1))


def test_sockets_find_a_short_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path / ("x" * 150)))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert files.socket_folder(107 - len(str(tmp_path))) == str(tmp_path)
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    with pytest.raises(OSError, match="TMPDIR is .*name a shorter folder"):
        files.socket_folder(30)


def test_a_callers_own_connection_to_ray_stays(root):
    needed("ray")
    import ray

    ray.init("local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        with engine_of("ray", 1).opened([plain(root)], root):
            assert ray.is_initialized()
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_slurm_is_refused_where_there_is_none(monkeypatch, tmp_path):
    needed("slurm")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="--engine slurm: .*srun.* `--engine submitit-local` makes the same jobs"):
        engine_of("slurm", None, {"timeout_min": 60})


# --- every engine with a real method ----------------------------------------------------------------------------------

KILLED, PREEMPTED, DYING, RAISING, WELL = 1, 2, 3, 4, 5


@pytest.fixture(scope="module")
def gates_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("gates")


@pytest.fixture
def gates(gates_folder: Path) -> Path:
    """A folder, empty at first, whose files say what the runs of `halting` do, by seed."""
    for path in gates_folder.iterdir():
        path.unlink()
    return gates_folder


@pytest.fixture(scope="module")
def halting(tmp_path_factory, gates_folder) -> Iterator[Callable[..., list[Run]]]:
    """Runs of the halting method with these seeds, not yet made, in a runs folder of their own at each call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(registry.PLUGINS, str(ROOT / "tests" / "halting_method.py"))
        patch.syspath_prepend(ROOT / "tests")
        registry.load_plugins()
        config = registry.ENTRIES["halting"].config

        def make(*seeds: int) -> list[Run]:
            root = tmp_path_factory.mktemp("runs")
            corpus = synthetic.embedded_corpus("embedded-sims", root / "cache" / "data", SMOKE_SIZES)
            data = DataConfig(name=corpus.name, fingerprint=corpus.fingerprint)
            training = TrainingConfig(epochs=3, batch_size=16, num_threads=1)
            configs = [RunConfig(data=data, method=config(gates=str(gates_folder)), training=training, seed=s) for s in seeds]
            return [Run(one, root / f"{corpus.name}-{one.hash}") for one in configs]

        yield make
    del registry.ENTRIES["halting"], sys.modules["halting_method"]
    MethodConfig.known.pop("halting", None)


def process_at(gates: Path, seed: int) -> int:
    """The process that waits within this run, once it does."""
    place = gates / f"at-{seed}"
    until(place.exists, COMES_S)
    return int(place.read_text())


def same_bytes(runs: list[Run], halting: Callable[..., list[Run]]) -> bool:
    """Whether the runs ended as the same ones made here, one after another."""
    others = halting(*(run.config.seed for run in runs))
    for run in others:
        engines.prepare(run)
        assert worker.attempt(run.folder.parent, run.folder) == "done"
    return not any(run.problem for run in runs) and all(
        (run.folder / name).read_bytes() == (other.folder / name).read_bytes()
        for run, other in zip(runs, others, strict=True)
        for name in (HISTORY, WEIGHTS, PREDICTIONS, METRICS)
    )


@pytest.mark.slow  # real jobs, each of which imports torch
@pytest.mark.parametrize("name", ["processes", "ray", "submitit-local"])
def test_a_worker_that_dies_costs_no_epoch_and_no_other_run(name, halting, gates):
    """The contract of an engine; only those of other machines try a dead worker's run again by themselves."""
    needed(name)
    again = name != "processes"
    struck = {KILLED: signal.SIGKILL} if again else {}
    if name == "submitit-local":
        struck[PREEMPTED] = signal.SIGUSR2  # submitit's way to preempt
    runs = halting(*struck, DYING, RAISING, WELL)
    root = runs[0].folder.parent
    for name_of_file in [*(f"wait-{seed}" for seed in struck), f"die-{DYING}", f"raise-{RAISING}"]:
        (gates / name_of_file).touch()

    def strike() -> None:
        for seed, number in struck.items():
            process = process_at(gates, seed)
            (gates / f"wait-{seed}").unlink()  # the next one will not wait
            os.kill(process, number)

    hand = threading.Thread(target=strike, daemon=True)
    hand.start()
    events: list[tuple[int, dict]] = []
    before = signal.getsignal(signal.SIGTERM)
    for run in runs:
        engines.prepare(run)
    engine = engine_of(name, 2, {"retries": 1} if again else {})
    failures = engine.run(runs, root, lambda run, event: events.append((run.config.seed, event)))
    hand.join(1)
    assert not hand.is_alive() and signal.getsignal(signal.SIGTERM) is before
    reasons = {failure.run.config.seed: failure.reason for failure in failures}
    assert reasons.keys() == {DYING, RAISING} and reasons[RAISING] == "ValueError: as it was told"
    end = ", 2 times without another finished epoch" if again else r"killed by signal 9 (perhaps for memory)"
    assert end in reasons[DYING]
    assert json.loads((runs[-3].folder / FAILURE).read_text())["kind"] == "WorkerDied"
    notes = {seed: event["text"] for seed, event in events if event["event"] == "note"}
    assert notes.keys() == ({KILLED, DYING} if again else set())
    assert all("goes on from its last finished epoch, attempt 2 of 2" in note for note in notes.values())
    begun = [line for seed in struck for line in (gates / f"begun-{seed}").read_text().splitlines()]
    assert len(begun) == 2 * len(struck), "tried twice"
    of_the_killed = [event["epoch"] for seed, event in events if seed == KILLED and event["event"] == "epoch"]
    assert of_the_killed.count(1) == again, "the first epoch was trained once"
    assert {seed for seed, event in events if event["event"] == "done"} == {*struck, WELL}
    assert same_bytes([run for run in runs if run.done], halting)
    assert len(list(root.glob("logs/*"))) == 1, "what the jobs said stays where something failed"


@pytest.mark.slow  # a real job, which imports torch
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT], ids=lambda ending: ending.name)
def test_calling_again_after_who_asked_was_ended_gives_the_same_bytes(ending, halting, gates):
    """Submitit's job outlives an asker that is killed and ends its run; the next call waits for it."""
    needed("submitit-local")
    runs = halting(11, 12)
    (gates / "wait-11").touch()
    asker = asking(PYTHON, "submitit-local", runs, 1)
    try:
        job = process_at(gates, 11)
        assert (runs[0].folder / "checkpoint.pt").exists() and not runs[1].done
        asker.send_signal(ending)
        asker.wait(60)
        if ending == signal.SIGINT:
            until(lambda: gone(job), 3)
    finally:
        asker.kill()
        asker.wait()
        (gates / "wait-11").unlink()
    ensure(runs, runs[0].folder.parent, 1)
    assert same_bytes(runs, halting)


SBATCH = """
id=$(( $(cat {folder}/last 2>/dev/null || echo 100) + 1 )); echo $id >{folder}/last
cp "$1" {folder}/$id.sh
SLURM_JOB_ID=$id SLURM_PROCID=0 SLURM_LOCALID=0 nohup sh "$1" >/dev/null 2>&1 &
echo "Submitted batch job $id"
"""
SRUN = 'while [ "$1" != {python} ]; do shift; done; exec "$@"'


@pytest.mark.slow  # a job that imports torch
def test_a_slurm_job_asks_for_what_its_run_needs_and_finishes_it(halting, tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands start the job script at once; script, job and result are the real ones."""
    needed("slurm")
    for name, body in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", "echo 'JobID|State'; echo '101|RUNNING'")):
        executable(tmp_path / name, body.format(folder=tmp_path, python=sys.executable))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (run,) = halting(41)
    settings = {"slurm_partition": "gpu", "timeout_min": 720, "gpus_per_node": 1, "mem_gb": 24}
    ensure([run], run.folder.parent, engine=engine_of("slurm", None, settings))
    lines = (tmp_path / "101.sh").read_text().splitlines()
    wanted = ("partition=gpu", "time=720", "gpus-per-node=1", "mem=24GB", "cpus-per-task=1", f"job-name={run.folder.name}")
    assert [word for word in wanted if f"#SBATCH --{word}" not in lines] == []
    assert run.done and not run.problem
    assert not list(run.folder.parent.glob("logs/*")), "nothing failed"
