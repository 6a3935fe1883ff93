"""The command line: what it runs in which order, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from conftest import finish_by_hand

from cmpta_lib import cli
from cmpta_lib.cli import STAGES, NotebookFailed, execute_notebook, main
from cmpta_lib.config import DataConfig, RunConfig
from cmpta_lib.report import rows as reports
from cmpta_lib.study import study as experiments
from cmpta_lib.study.study import Study

ROOT = Path(__file__).parents[1]
NAMES = [name for stage in STAGES for name in stage]
COMMANDS = ("reproduce", "check", "benchmark", "runs", "data", "weights", "rehearse")


@pytest.fixture(autouse=True)
def runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty runs folder of its own for each test."""
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


# --- one notebook -----------------------------------------------------------------------------------------------------


def write_notebook(path: Path, last_cell: str) -> None:
    parameters = nbformat.v4.new_code_cell("smoke = False  # a few clips\nseeds = None  # how many")
    parameters.metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(last_cell)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


def test_an_unknown_parameter_names_the_known_ones(tmp_path):
    """papermill itself would warn and run the notebook with its defaults."""
    write_notebook(tmp_path / "a.ipynb", "print(smoke)")
    with pytest.raises(ValueError, match=r"a\.ipynb has no parameter profil, smok; it has: smoke, seeds"):
        execute_notebook(tmp_path / "a.ipynb", tmp_path / "out.ipynb", {"smok": True, "seeds": 2, "profil": "demo"})
    assert not (tmp_path / "out.ipynb").exists()


@pytest.fixture(scope="module")
def failure(tmp_path_factory) -> tuple[str, Path]:
    """What a notebook leaves whose second and last cell raises: the message, and the executed copy."""
    folder = tmp_path_factory.mktemp("failing")
    write_notebook(folder / "failing.ipynb", "values = {'seeds': seeds, 'smoke': smoke}\nvalues['sedes']")
    with pytest.raises(NotebookFailed) as caught:
        execute_notebook(folder / "failing.ipynb", folder / "out.ipynb", {"seeds": [7], "smoke": True})
    return str(caught.value), folder / "out.ipynb"


def test_a_notebook_that_raises_is_named_with_its_error_and_copy(failure):
    message, copy = failure
    assert message.startswith("notebook failing.ipynb, code cell ")
    assert ": KeyError: 'sedes'. " in message and str(copy) in message
    cells = [cell for cell in nbformat.read(copy, as_version=4).cells if cell.cell_type == "code"]
    assert [output.ename for output in cells[-1].outputs if output.output_type == "error"] == ["KeyError"]
    assert any("seeds = [7]" in cell.source and "smoke = True" in cell.source for cell in cells)


def test_the_cell_that_raised_is_counted_as_in_the_notebook(failure):
    assert "code cell 2:" in failure[0]


# --- reproduce --------------------------------------------------------------------------------------------------------


def test_every_notebook_has_its_stage():
    assert sorted(NAMES) == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_only_nothing_lists_the_names(runs_folder, capsys):
    assert main(["reproduce", "--only", "table9", "nothing"]) == 1
    message = capsys.readouterr().err
    assert "--only table9 nothing: no notebook has that in its name; there are:" in message
    assert all(name in message for name in NAMES)
    assert not runs_folder.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "papper"], "no profile 'papper'; there are: demo, paper"),
        (["--seeds", "6"], "seeds=6: expected how many of the 5 seeds"),
        (["--seeds", "[1.5]"], "expected a number from 1 to 5, or a list of whole numbers"),
        (["--data", "/no/such/folder"], "/no/such/folder: expected <name>_train.pkl"),
    ],
)
def test_a_wrong_argument_is_explained(arguments, message, runs_folder, capsys):
    assert main(["reproduce", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not runs_folder.exists()


@pytest.mark.parametrize(
    "seeds",
    ["five", "[1111"],
)
def test_seeds_that_are_no_python_literal_are_a_usage_error(seeds, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["reproduce", "--seeds", seeds])
    assert caught.value.code == 2 and "argument --seeds" in capsys.readouterr().err


PAPER_ON_A_BARE_MACHINE = """
import sys
from huggingface_hub import constants
constants.HF_HUB_CACHE = "nowhere"  # no LLM of this machine's owner
from cmpta_lib.cli import main
code = main(["reproduce", "--profile", "paper"])
assert "torch" not in sys.modules, "a message needs no torch"
sys.exit(code)
"""


def test_the_papers_profile_without_its_data_says_so_at_once(runs_folder):
    before = sorted((ROOT / "figures" / "paper").rglob("*"))
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PAPER_ON_A_BARE_MACHINE], env=os.environ, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert time.monotonic() - started < 10
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) <= 24, "one screen"
    missing = [line for line in lines if line.strip().startswith("MISSING")]
    assert [line.split()[1] for line in missing if "GPU" not in line] == ["corpus", "corpus", "LLM"]
    for command in ("cmpta data simsv2", "cmpta data meld", "cmpta weights qwen-1.8b"):
        assert any(line.strip().startswith("-> ") and command in line for line in lines)
    assert lines[-1].startswith("Nothing was started")
    assert sorted((ROOT / "figures" / "paper").rglob("*")) == before
    assert not [path for path in runs_folder.rglob("*") if path.is_file()]


@pytest.fixture
def executed(monkeypatch) -> list:
    """Nothing is trained or executed: what would be, in order."""
    done: list = []
    monkeypatch.setattr(Study, "corpus", lambda self, key: done.append(("corpus", key)))
    monkeypatch.setattr(Study, "llm", experiments.LLMConfig("tiny", "f"))
    monkeypatch.setattr(Study, "planned_runs", lambda self, notebooks: [])
    monkeypatch.setattr(Study, "ensure", lambda self, runs, jobs=None: done.append(("ensure", len(runs))))
    monkeypatch.setattr(Study, "figures", Path("figures/demo"))
    monkeypatch.setattr(cli, "execute_notebook", lambda path, out, given: done.append((path.stem, out, dict(given))))
    monkeypatch.setattr(reports, "write_report", lambda study, keys: done.append(("report", keys)) or "report.md")
    return done


def test_reproduce_prepares_trains_executes_and_reports_in_this_order(executed, capsys):
    assert main(["reproduce", "--smoke"]) == 0
    steps = [step[0] for step in executed]
    assert steps[:3] == ["corpus", "corpus", "ensure"] and steps[-1] == "report"
    notebooks = steps[3:-1]
    assert sorted(notebooks) == sorted(NAMES)
    for stage in STAGES:
        size = len(stage)
        assert set(notebooks[:size]) == set(stage), "a stage ends before the next begins"
        notebooks = notebooks[size:]
    assert "report.md written after" in capsys.readouterr().out


def test_every_notebook_gets_the_same_parameters(executed, runs_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "--data", "clips", "--seeds", "[5,6]", "--only", "table3", "03"]) == 0
    given = {step[0]: step[1:] for step in executed if step[0] in NAMES}
    assert list(given) == ["03_training", "04_table3_simsv2"]
    for name, (out, parameters) in given.items():
        assert out == runs_folder / "notebooks" / "demo" / f"{name}.ipynb"
        assert parameters == {
            "profile": "demo",
            "seeds": [5, 6],
            "data": str(tmp_path / "clips"),
            "smoke": False,
            "llm": "",
        }


@pytest.mark.parametrize("llm", ["qwen1.5-1.8b", "own-model"])
def test_another_backbone_goes_to_every_notebook(llm, executed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.check, "needs", lambda study, notebooks: [])
    (tmp_path / "own-model").mkdir()
    assert main(["reproduce", "--llm", llm, "--only", "02"]) == 0
    (given,) = (step[2]["llm"] for step in executed if step[0] == "02_model")
    assert given == (str(tmp_path / llm) if llm == "own-model" else llm)


def test_a_failed_notebook_ends_with_its_message_and_no_report(executed, monkeypatch, capsys):
    def fail(path: Path, out: Path, given: dict) -> None:
        raise NotebookFailed(f"notebook {path.name}, code cell 2: KeyError: 'sedes'.")

    monkeypatch.setattr(cli, "execute_notebook", fail)
    assert main(["reproduce", "--only", "02"]) == 1
    assert "cmpta reproduce: notebook 02_model.ipynb, code cell 2: KeyError: 'sedes'." in capsys.readouterr().err
    assert "report" not in [step[0] for step in executed]


# --- runs -------------------------------------------------------------------------------------------------------------


def write_run(folder: Path, seed: int, test: dict[str, float] | None) -> RunConfig:
    config = RunConfig(data=DataConfig("embedded-sims", "f"), seed=seed)
    run = folder / f"embedded-sims-{config.hash}"
    files = {"environment.json": json.dumps({"train_seconds": 12.4}), "metrics.json": json.dumps({"test": test})}
    finish_by_hand(run, config, **files)
    if test is None:
        (run / "seal.json").unlink()
    return config


def test_runs_lists_the_finished_ones(runs_folder, capsys):
    finished = write_run(runs_folder, 2222, {"mae": 0.31234, "corr": 0.7, "acc2": 0.8, "f1_weighted": 0.8125})
    write_run(runs_folder, 3333, None)
    assert main(["runs"]) == 0
    line = f"embedded-sims-{finished.hash}  seed 2222  mae=0.3123 corr=0.7000 f1_weighted=0.8125  12 s\n"
    assert capsys.readouterr().out == line


def test_without_runs_there_is_nothing_to_list(runs_folder, capsys):
    assert main(["runs"]) == 0
    assert "embedded" not in capsys.readouterr().out


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0 and all(name in shown for name in COMMANDS)
