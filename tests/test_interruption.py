"""Ctrl-C, SIGTERM and a closed terminal: one line, the shell's exit code, at once, and nothing of ours left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import nbformat
import psutil
import pytest

from cmpta_lib.cli import interruption
from cmpta_lib.cli.__main__ import main

ROOT = Path(__file__).parents[1]
SOON_S = 3.0
# A script may ignore SIGINT for its background jobs, `nohup` SIGHUP, and so may whoever runs these tests.
COMMAND = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from cmpta_lib.cli import __main__, reproduce
folder = Path(sys.argv[1])
def run(arguments):
{body}
__main__.run = run
sys.exit(__main__.main([]))
"""
TWO_NOTEBOOKS = """
    from types import SimpleNamespace
    reproduce.ROOT = folder
    study = SimpleNamespace(root=folder, name="study", figures=folder, without={})
    reproduce._execute(study, ["01_data", "02_model"], {"folder": str(folder)}, 0)
"""
ENDLESS = """
import os, subprocess, sys, time
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path(folder, f"{child.pid}.pid").write_text(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""
SWALLOWING = """
    import time
    try:
        (folder / "01.pid").write_text("")
        time.sleep(600)
    except KeyboardInterrupt:
        time.sleep(600)
"""
DRAWING = """
    import time
    from cmpta_lib.runs.progress import making
    with making("a corpus"):
        time.sleep(2.3)
        (folder / "01.pid").write_text("")
        time.sleep(600)
"""
WRITING = """
    import subprocess, time
    from cmpta_lib import files
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with files.replacing(folder / "table.md") as partial:
        partial.write_text("half")
        (folder / "01.pid").write_text(str(child.pid))
        time.sleep(600)
"""


def interrupted(
    folder: Path, body: str, number: int, parts: int = 1, stderr: int = subprocess.PIPE
) -> tuple[subprocess.Popen, str, list[int]]:
    """Start the command, wait until its parts have written their process ids, and send the signal."""
    (folder / "temp").mkdir()
    environment = os.environ | {"TMPDIR": str(folder / "temp"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", COMMAND.replace("{body}", body), str(folder)]
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.pid"))) < parts and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)  # written whole
    pids = [int(pid) for path in folder.glob("*.pid") for pid in path.read_text().split()]
    sent = time.monotonic()
    process.send_signal(number)
    try:
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert time.monotonic() - sent < SOON_S, said
    return process, said, pids


def alive(pid: int) -> bool:
    """Whether a process still runs; one that has ended and that nobody has asked about does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_notebooks_end_at_once_with_their_kernels_and_workers(tmp_path: Path):
    parameters = nbformat.v4.new_code_cell("folder = ''", metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(ENDLESS)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (tmp_path / "notebooks").mkdir()
    for name in ("01_data", "02_model"):
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
    process, said, pids = interrupted(tmp_path, TWO_NOTEBOOKS, signal.SIGINT, parts=2)
    assert (process.returncode, said) == (130, interruption.MESSAGE + "\n")
    assert len(pids) == 4 and not [pid for pid in pids if alive(pid)]
    assert not list((tmp_path / "temp").glob("cmpta-*")), "sockets"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_was_half_written_goes_and_so_do_helpers(number: int, tmp_path: Path):
    process, said, (child,) = interrupted(tmp_path, WRITING, number)
    assert (process.returncode, said) == (128 + number, interruption.MESSAGE + "\n")
    assert not alive(child)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["01.pid", "temp"]


def test_code_that_does_not_come_to_its_end_is_left(tmp_path: Path):
    process, said, _ = interrupted(tmp_path, SWALLOWING, signal.SIGINT)
    assert (process.returncode, said) == (130, interruption.MESSAGE + "\n")


def test_in_a_terminal_it_has_a_line_of_its_own_below_what_was_at_work(tmp_path: Path):
    reader, terminal = os.openpty()
    process, _, _ = interrupted(tmp_path, DRAWING, signal.SIGINT, stderr=terminal)
    shown = os.read(reader, 10_000).decode()
    assert process.returncode == 130 and shown.rpartition("\r\n")[0].endswith(f" s)\r\n{interruption.MESSAGE}")


def test_an_interruption_before_anything_has_begun_is_one_line(monkeypatch, capsys):
    """Modules are still being imported: that takes a third of a second on a busy machine."""

    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "cmpta_lib.cli.interruption", Interrupted("interruption"))
    assert main(["runs"]) == 130 and capsys.readouterr().err == "interrupted\n"


def test_the_callers_handlers_come_back_and_what_the_caller_ignores_stays_ignored():
    """As under nohup."""
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        before = [signal.getsignal(number) for number in interruption.SIGNALS]
        with interruption.interruptible():
            assert signal.getsignal(signal.SIGTERM) is interruption._interrupt
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert [signal.getsignal(number) for number in interruption.SIGNALS] == before
    finally:
        signal.signal(signal.SIGHUP, ignored)
