"""What a run writes down about itself, whole or not at all, and what one sees while runs are made."""

from __future__ import annotations

import ctypes
import io
import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import finish_by_hand

from cmpta_lib import files
from cmpta_lib.config import DataConfig, RunConfig, TrainingConfig
from cmpta_lib.data.corpus import Inputs, Task
from cmpta_lib.runs import checkpoint, progress
from cmpta_lib.runs import provenance as records
from cmpta_lib.runs.progress import Progress
from cmpta_lib.runs.store import CLIPS, METRICS, Run


@pytest.fixture(autouse=True)
def forgotten():
    """`commit` and `hardware` remember their first answer; each test asks anew."""
    records.commit.cache_clear()
    records.hardware.cache_clear()
    yield
    records.commit.cache_clear()
    records.hardware.cache_clear()


# --- files ------------------------------------------------------------------------------------------------------------

TABLE = pd.DataFrame({"id": ["a", "b"], "prediction": [0.2, float("nan")]})
WRITE = {
    "metrics.json": lambda path: files.write_text(path, "mæ 表"),
    "predictions.parquet": lambda path: files.write_parquet(path, TABLE),
    "weights.safetensors": lambda path: checkpoint.write_tensors(path, {"a": torch.zeros(2)}),
}


@pytest.mark.parametrize("name", WRITE)
def test_a_file_is_whole_before_it_takes_its_name_and_a_crash_leaves_the_old_one(name, tmp_path: Path, monkeypatch):
    path, seen, replace = tmp_path / name, [], os.replace

    def watch(source: Path, target: Path) -> None:
        seen.append(Path(source).read_bytes())
        assert Path(source).parent == Path(target).parent, "a rename is atomic only within a file system"
        replace(source, target)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    path.write_bytes(b"a much longer old content" * 1000)
    monkeypatch.setattr(os, "replace", watch)
    WRITE[name](path)
    whole = path.read_bytes()
    assert seen == [whole] and os.listdir(tmp_path) == [name]
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        WRITE[name](path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_have_the_permissions_that_the_umask_gives(umask: int, mode: int, tmp_path: Path):
    """tempfile would keep its own from everybody but their owner."""
    before = os.umask(umask)
    try:
        for name, write in WRITE.items():
            write(tmp_path / name)
        with files.replacing(tmp_path / "moved.txt") as partial, tempfile.NamedTemporaryFile(dir=tmp_path, delete=False) as file:
            os.replace(file.name, partial)
        with tempfile.TemporaryDirectory(dir=tmp_path) as scratch:
            Path(scratch, "model.safetensors").touch(0o600)
            files.by_umask(Path(scratch))
            assert stat.S_IMODE(os.stat(scratch).st_mode) == 0o777 & ~umask
            assert stat.S_IMODE(Path(scratch, "model.safetensors").stat().st_mode) == mode
    finally:
        os.umask(before)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert found == dict.fromkeys((*WRITE, "moved.txt"), mode)


STEPS = "step,epoch,loss,learning_rate\n1,1,2.5,0.1\n2,1,2.25,0.05\n"


def test_the_steps_of_a_run_are_vouched_for_where_it_has_them_and_a_run_without_them_is_as_valid(tmp_path: Path):
    config = RunConfig(data=DataConfig(name="sims", fingerprint="f"))
    for name, contents in {"new": {"steps.csv": STEPS}, "before": {}}.items():
        (tmp_path / name).mkdir()
        for file, text in contents.items():
            files.write_text(tmp_path / name / file, text)
        finish_by_hand(tmp_path / name, config)
    new, before = (Run(config, tmp_path / name) for name in ("new", "before"))
    assert list(new.steps["loss"]) == [2.5, 2.25] and not new.problem and not before.problem
    assert len(before.steps) == 0 and list(before.steps) == list(new.steps) == STEPS.splitlines()[0].split(",")
    files.write_text(before.folder / "steps.csv", STEPS)
    assert len(before.steps) == 0 and not before.problem, "nobody vouches for what came later"
    files.write_text(new.folder / "steps.csv", STEPS.replace("2.5", "2.4"))
    assert "steps.csv is not the file that was written" in new.problem


# --- commit -----------------------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    named = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", folder, *named, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def notebook(path: Path, code: str, output: str = "") -> None:
    outputs = [{"output_type": "stream", "name": "stdout", "text": output}] if output else []
    cells = [{"cell_type": "markdown", "source": ["words"]}, {"cell_type": "code", "source": [code], "outputs": outputs}]
    path.write_text(json.dumps({"cells": cells, "nbformat": 4}))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository that `records` takes for its own."""
    for folder in ("figures", "notebooks/figures", "runs", "site-packages"):
        (tmp_path / folder).mkdir(parents=True)
    texts = {".gitignore": "runs/\n", "code.py": "a = 1\n", "figures/table3.md": "old\n", "pyproject.toml": "[project]\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    notebook(tmp_path / "notebooks" / "01.ipynb", "a = 1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "First")
    monkeypatch.setattr(records, "_ROOT", tmp_path)
    return tmp_path


def writes(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text("new\n")


CHANGES: dict[str, tuple[bool, Callable[[Path], object]]] = {
    "nothing": (False, lambda root: None),
    # Else the second figure of a reproduction would differ from the first in its small print.
    **{name: (False, writes(name)) for name in ("figures/table3.md", "figures/new.md", "README.md", "runs/metrics.json")},
    **{f"stray {name}": (False, writes(name)) for name in ("out.csv", "notebooks/table.html")},
    **{name: (True, writes(name)) for name in ("code.py", "untracked.py", "notebooks/figures/code.py", "constraints.txt")},
    "requirements": (True, writes("pyproject.toml")),
    # Whoever runs the notebooks in Jupyter and saves them has changed no number.
    "a notebook that was run": (False, lambda root: notebook(root / "notebooks" / "01.ipynb", "a = 1", output="0.25")),
    "a new notebook": (False, lambda root: notebook(root / "out.ipynb", "b = 2")),
    "changed cells": (True, lambda root: notebook(root / "notebooks" / "01.ipynb", "a = 2")),
    "a notebook is gone": (True, lambda root: (root / "notebooks" / "01.ipynb").unlink()),
    "a notebook is damaged": (True, lambda root: (root / "notebooks" / "01.ipynb").write_text("{")),
    "code is gone": (True, lambda root: (root / "code.py").unlink()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_commit_says_whether_code_differs(checkout: Path, what: str, monkeypatch: pytest.MonkeyPatch):
    is_dirty, change = CHANGES[what]
    change(checkout)
    expected = git(checkout, "rev-parse", "HEAD")[:10] + ("+dirty" if is_dirty else "")
    assert records.commit() == expected
    git(checkout, "add", "-A")
    assert records.commit.__wrapped__() == expected, "staged, too"
    monkeypatch.setattr(records, "_ROOT", checkout / "site-packages")
    assert records.commit.__wrapped__() == "unknown", "a package inside somebody's repository is none of its commits"


@pytest.mark.parametrize("where", ["outside git", "before the first commit", "without git"])
def test_the_commit_is_unknown(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if where != "outside git":
        git(tmp_path, "init", "-q")
    if where == "without git":
        monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(records, "_ROOT", tmp_path)
    assert records.commit() == "unknown"


# --- environment ------------------------------------------------------------------------------------------------------


def test_the_environment_names_versions_and_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(records.sys.modules, "torch", raising=False)
    monkeypatch.setattr(records, "commit", lambda: "c0ffee")
    record = records.environment(seconds=1.5)
    processor, _, cores = record["hardware"].rpartition(", ")  # where there is no GPU
    assert processor and cores == f"{os.cpu_count()} cores" and (record["commit"], record["seconds"]) == ("c0ffee", 1.5)
    assert records.other_versions(["torch 1.0", "torch 2.13.0+cpu", "nobodys 1"]) == "torch 1.0 for 2.13.0"
    assert record["packages"]["torch"] == version("torch") and record["packages"]["pandas"] == pd.__version__


# --- this machine -----------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(records, "_DRIVER", "libno-such-driver.so.1")
    assert records.gpu_count() == 0
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert records.gpu_count() == count


@pytest.mark.parametrize(("rank", "taken"), [(None, []), ("1", [1]), ("5", [1])])
def test_a_process_takes_the_gpu_of_its_rank(rank, taken, monkeypatch):
    asked_for: list[int] = []
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2, set_device=asked_for.append)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
        records.take_device()
        assert not asked_for, "nobody but torchrun is believed"
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    records.take_device()
    assert asked_for == taken


HOLD = """
import json, sys
from cmpta_lib.runs import provenance
before = bytearray(b"x") * 300_000_000
del before
provenance.watch()
small = provenance.peaks_gb()
held = bytearray(b"x") * 200_000_000
del held
print(json.dumps([small, provenance.peaks_gb(), "torch" in sys.modules]))
"""


def test_a_peak_is_what_was_held_since_one_began_to_watch():
    """What is freed again counts, what was freed before does not."""
    done = subprocess.run([sys.executable, "-c", HOLD], capture_output=True, text=True, check=True)
    small, large, has_torch = json.loads(done.stdout)
    assert list(small) == list(large) == [records.RESIDENT] and not has_torch, "no GPU is asked for where none is used"
    assert large[records.RESIDENT] - small[records.RESIDENT] > 0.19
    if sys.platform == "linux":
        assert small[records.RESIDENT] < 0.2


def test_on_a_gpu_its_own_peak_stands_beside():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here, so no memory of it to count")
    torch.cuda.init()
    records.watch()
    torch.zeros(100_000_000, device="cuda")
    assert records.peaks_gb()[records.ALLOCATED] >= 0.4


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time as the tests say."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "monotonic", found)
    return found


def runs(folder: Path, *corpora: str) -> list[Run]:
    found = []
    for seed, corpus in enumerate(corpora):
        config = RunConfig(data=DataConfig(name=corpus, fingerprint="f"), seed=seed, training=TrainingConfig(epochs=4))
        found.append(Run(config, folder / f"{corpus}-{config.hash}", "7 tokens"))
    return found


def test_each_run_that_ends_is_one_line(tmp_path, clock):
    first, second, third = runs(tmp_path, "sims", "sims", "sims")
    scores, task = {"mae": 0.25, "corr": 0.5}, Task("regression", "en", score_range=(1, 5))  # half as wide inside
    contents = {METRICS: json.dumps({"valid": scores, "test": scores | {"mae": 0.26}}), CLIPS: Inputs(task, {}).to_json()}
    with Progress([first, second, third], stream := io.StringIO()) as report:
        report(first, {"event": "start"})
        clock.now += 54
        finish_by_hand(first.folder, first.config, **contents)
        report(first, {"event": "done"})
        report(second, {"event": "start"})
        report(second, {"event": "failed", "kind": "ValueError", "message": "loss is\nnan"})
        report(third, {"event": "note", "text": "starting anew"})
        report(third, {"event": "done"})
    assert stream.getvalue().splitlines() == [
        "3 runs to make",
        "7 tokens, sims, seed 0: test MAE 0.520 (54 s); 2 left",
        "7 tokens, sims, seed 1: failed, ValueError: loss is nan (0 s); 1 left",
        "starting anew",
        "7 tokens, sims, seed 2: ended, its scores cannot be read (FileNotFoundError); none left",
    ]


def test_in_a_log_it_says_how_far_it_is_every_half_minute_and_no_control_codes(tmp_path, clock):
    (run,) = runs(tmp_path, "sims")
    with Progress([run], stream := io.StringIO()) as report:
        report(run, {"event": "start"})
        for epoch in (1, 2):
            clock.now += 29
            report(run, {"event": "note", "text": "so far"})
            clock.now += 30
            report(run, {"event": "epoch", "epoch": epoch})
    first, *lines = [line for line in stream.getvalue().splitlines() if line != "so far"]
    assert first == "1 run to make" and len(lines) == 2
    assert lines == [
        "1 of 1 left, 25% done, about 3 min to go; 7 tokens, sims 0 (59 s)",
        "1 of 1 left, 50% done, about 2 min to go; 7 tokens, sims 0 (2 min)",
    ]
    assert not set("\r\x1b") & set(stream.getvalue())


class Gone(Terminal):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_in_a_terminal_it_is_a_line_that_goes_and_a_reader_that_has_gone_ends_no_run(tmp_path, clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    (run,) = runs(tmp_path, "声音")
    for stream in (Gone(), Terminal()):
        with Progress([run], stream) as report:
            report(run, {"event": "start"})
            for epoch in (1, 2):
                clock.now += 10
                report(run, {"event": "epoch", "epoch": epoch})
            report(run, {"event": "note", "text": "a long word " * 10})
            report(run, {"event": "busy"})  # another process holds it
    shown = stream.getvalue()
    assert "1 of 1 left, 50% done, about 20 s to go; " in shown and "\n    a long word" in shown
    assert max(map(progress.columns, shown.replace("\r", "\n").splitlines())) == 59, "nothing wraps"
    assert not shown.split("\r")[-1].strip(), "nothing stays"


def test_what_is_made_says_so_at_once_and_how_far_it_is(clock, monkeypatch):
    monkeypatch.setattr(progress.sys, "stderr", stream := io.StringIO())
    with progress.making("tiny") as first, progress.making("tiny-bert"):
        for seconds, share in ((2, 0.0), (8, 0.25), (2, 0.5)):
            clock.now += seconds
            first(share)
            progress._MAKERS.show()
    with progress.making("corpus", is_new=False):
        clock.now += 60
    assert stream.getvalue().splitlines() == [
        "making tiny (2 s), tiny-bert (2 s)",
        "making tiny (50%, about 12 s left), tiny-bert (12 s)",
        "tiny-bert made (12 s)",
        "tiny made (12 s)",
    ]


def test_columns_of_wide_text():
    assert progress.columns("a声é") == 4 and progress.cut("声音声音", 6) == "声音…" and progress.cut("abc", 3) == "abc"
    assert progress.table(["a", "number"], [["声音", "7"], ["x", "12"]], [1]) == ["a     number", "声音       7", "x         12"]
    assert [progress.duration(s) for s in (3.4, 99, 100, 5999, 36000)] == ["3 s", "99 s", "2 min", "100 min", "10.0 h"]
