"""Finished runs that can be trusted: whatever happens to a file is named with its remedy, and never used."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import finish_by_hand

from cmpta_lib import files
from cmpta_lib.config import DataConfig, RunConfig, override, to_json
from cmpta_lib.data.corpus import Inputs, Task
from cmpta_lib.runs import engines, store
from cmpta_lib.runs.dispatch import Engine
from cmpta_lib.runs.progress import summarise
from cmpta_lib.runs.store import CONFIG, DONE, ENVIRONMENT, FILES, HISTORY, METRICS, PREDICTIONS, WEIGHTS, Run


def make(root: Path, seed: int, mae: float = 0.25) -> Run:
    """A finished run with contents of its own."""
    config = RunConfig(data=DataConfig(name="corpus", fingerprint="f00d"), seed=seed)
    folder = root / f"corpus-{config.hash}"
    folder.mkdir(parents=True)
    table = pd.DataFrame({"split": ["valid", "test"], "id": ["a", "b"], "label": [0.0, 1.0], "prediction": [seed, mae]})
    table.to_parquet(folder / PREDICTIONS)
    contents = {
        METRICS: json.dumps({"test": {"mae": mae, "corr": 0.5, "acc2": 0.8}}),
        ENVIRONMENT: json.dumps({"train_seconds": 12.4, "seed": seed}),
        HISTORY: f"epoch,train_loss\n1,{seed}\n",
        WEIGHTS: f"weights of {seed}",
        store.CLIPS: Inputs(Task("regression", "en", prompt=f"of {seed}"), {}).to_json(),
    }
    finish_by_hand(folder, config, **contents)
    return Run(config, folder)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make(tmp_path, 1)


@pytest.fixture
def other(tmp_path: Path) -> Run:
    return make(tmp_path, 2, mae=0.5)


READS: dict[str, Callable[[Run], Any]] = {
    "metrics": lambda run: run.metrics,
    "environment": lambda run: run.environment,
    "predictions": lambda run: run.predictions(),
    "history": lambda run: run.history,
    "weights": lambda run: run.path(WEIGHTS),
}


def flip(path: Path, _: Path) -> None:
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a disk does it: no time tells


DAMAGES: dict[str, Callable[[Path, Path], Any]] = {  # of a file, given the other run's
    "flip": flip,
    "cut": lambda path, _: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path, _: path.write_bytes(b""),
    "delete": lambda path, _: path.unlink(),
    "edit": lambda path, _: path.write_bytes(path.read_bytes().replace(b"1", b"2", 1) + b"\n"),
    "swap": lambda path, others: shutil.copy(others, path),
}


# --- one file of a finished run ---------------------------------------------------------------------------------------


def test_a_finished_run_is_read(run):
    assert run.done and not run.problem
    assert run.metrics["test"]["mae"] == run.predictions()["prediction"][0] == 0.25
    assert run.environment["seed"] == 1 and list(run.history["epoch"]) == [1]
    assert run.path(WEIGHTS).read_text() == "weights of 1"
    assert run.predictions("valid")["id"].tolist() == ["a"]


@pytest.mark.parametrize("name", [*FILES, DONE])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_its_remedy_and_never_used(run, other, name, damage, monkeypatch):
    assert not run.problem, "what was compared once is compared again"
    DAMAGES[damage](run.folder / name, other.folder / name)
    if (name, damage) == (DONE, "delete"):
        assert not run.done, "without its manifest it is unfinished"
        return
    assert run.done and str(run.folder / name) in run.problem
    assert name == DONE or damage == "delete" or "is not the file that was written" in run.problem
    assert run.problem.endswith(f"; remove the folder {run.folder} and call again; or restore the file")
    for read in READS.values():
        with pytest.raises(files.Damaged) as caught:
            read(run)
        assert str(caught.value) == run.problem
    monkeypatch.setattr(store, "_hashes", files.HashCache())  # as another process, without sizes and times to go by
    assert str(run.folder / name) in run.problem
    assert not other.problem and other.metrics["test"]["mae"] == 0.5
    shown = beside(run, other)
    assert "MAE" not in shown and str(run.folder / name) in shown


def test_files_are_compared_once_while_nobody_touches_them(run, monkeypatch):
    assert not run.problem
    monkeypatch.setattr(files, "sha256", None)
    assert run.metrics and run.predictions() is not None
    os.utime(run.folder / WEIGHTS)
    with pytest.raises(TypeError):
        run.check()


def test_a_users_own_files_beside_it_do_not_matter(run):
    (run.folder / "notes.txt").write_text("looks good")
    (run.folder / "lock").touch()
    assert not run.problem


# --- a whole folder ---------------------------------------------------------------------------------------------------


def test_a_swapped_folder_is_told_by_its_config_and_a_manifest_that_is_none_is_refused(run, other):
    shutil.rmtree(run.folder)
    shutil.copytree(other.folder, run.folder)
    said = f"{run.folder / DONE} is not the checksum manifest of run {run.config.hash}; remove"
    assert run.problem.startswith(said)
    (run.folder / DONE).write_text(files.checksummed({"clips": 3}))
    assert run.problem.startswith(said)


def test_nothing_is_finalised_that_is_not_there(run):
    (run.folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=WEIGHTS):
        store.finalise(run.folder)


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_an_unfinished_run_is_not_read(run, read):
    (run.folder / DONE).unlink()
    with pytest.raises(FileNotFoundError, match=f"{DONE} is missing: this run is not finished; call Study.ensure for it"):
        read(run)
    assert run.problem == ""


class Counted(Engine):
    """An engine that finishes every run by hand and remembers which."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Run] = []

    def run(self, runs: Any, root: Path, report: Any) -> list:
        for run in runs:
            self.made.append(run)
            finish_by_hand(run.folder, run.config)
            report(run, {"event": "done"})
        return []


def test_a_damaged_run_is_neither_remade_nor_removed_and_the_others_go_on(run, other, tmp_path):
    third = replace(run, config=override(run.config, {"seed": 3}), folder=tmp_path / "third")
    DAMAGES["edit"](run.folder / METRICS, run.folder)
    engine = Counted()
    with pytest.raises(engines.RunsFailed) as caught:
        engines.ensure([run, other, third], tmp_path, engine=engine)
    assert engine.made == [third] and third.done and run.done
    assert [failure.run for failure in caught.value.failures] == [run]
    assert str(caught.value) == f"1 of 3 runs failed, 2 are finished: {run.folder.name}: {run.problem}."
    shutil.rmtree(run.folder)
    engines.ensure([run, other, third], tmp_path, engine=engine)
    assert engine.made == [third, run]


@pytest.mark.parametrize("missing", [(DONE,), (DONE, CONFIG)], ids=["manifest", "manifest and config"])
def test_results_without_their_manifest_are_made_again_and_it_is_said(run, tmp_path, capsys, missing):
    for name in missing:
        (run.folder / name).unlink()
    engine = Counted()
    engines.ensure([run], tmp_path, engine=engine)
    said = [line for line in capsys.readouterr().out.splitlines() if line]
    assert engine.made == [run] and len(said) == 1
    assert said[0].startswith(f"{run.folder} holds {PREDICTIONS}, {WEIGHTS}") and f"without {DONE}" in said[0]
    assert said[0].endswith("it is made again")


def test_an_edited_config_of_an_unfinished_run_is_put_right(tmp_path, capsys):
    run = Run(RunConfig(data=DataConfig(name="a", fingerprint="b")), tmp_path / "run")
    run.folder.mkdir()
    (run.folder / CONFIG).write_text(to_json(override(run.config, {"seed": 2})))
    engines.ensure([run], tmp_path, engine=Counted())
    assert (run.folder / CONFIG).read_text() == to_json(run.config) and not capsys.readouterr().out


def test_what_killed_workers_left_in_finished_runs_is_swept(run, tmp_path):
    leftovers = [".metrics.json.12.partial", "checkpoint.safetensors", ".checkpoint.safetensors.12.partial", "failure.json"]
    for name in (*leftovers, "notes.txt"):
        (run.folder / name).write_text("x")
    engines.ensure([run], tmp_path, engine=Counted())
    assert {path.name for path in run.folder.iterdir()} == {*FILES, DONE, "notes.txt"}


# --- listing ----------------------------------------------------------------------------------------------------------


def lines(root: Path) -> dict[str, str]:
    """What is said of each folder: state, then why or the scores."""
    found = {one.folder.name: one for one in map(summarise, store.found(root))}
    return {name: f"{one.state}: {one.detail or one.shown('test')}" for name, one in found.items()}


def beside(run: Run, other: Run) -> str:
    """What is said of `run`; the sound run beside it is listed with its scores all the same."""
    shown = lines(run.folder.parent)
    assert shown.keys() == {run.folder.name, other.folder.name} and "MAE 0.500" in shown[other.folder.name]
    return shown[run.folder.name]


def test_finished_runs_are_listed_with_their_scores(run, other, tmp_path):
    first, second = (f"finished: MAE {mae}, Corr 0.500" for mae in ("0.250", "0.500"))
    assert lines(tmp_path) == {run.folder.name: first, other.folder.name: second}
    assert {one.seconds for one in map(summarise, store.found(tmp_path))} == {12.4}

    for name in ("cache", "logs", "smoke/corpus-1", ".hidden"):  # and what is no run is not listed
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "note.txt").touch()
    assert set(store.found(tmp_path)) == {run, other} and not list(store.found(tmp_path / "nowhere"))


def test_unfinished_runs_are_listed_with_their_progress(run, tmp_path):
    (run.folder / DONE).unlink()
    reached, name = f"1 of {run.config.training.epochs} epochs", run.folder.name
    assert lines(tmp_path)[name] == f"unfinished: {reached}"
    store.record_failure(run.folder, {"kind": "OSError", "message": "disk full\nand more"})
    assert lines(tmp_path)[name] == f"failed: {reached}, OSError: disk full and more"
    (run.folder / store.FAILURE).write_text("{")
    assert lines(tmp_path)[name].endswith("failure.json is damaged")


def finalise_as(name: str, folder: Path) -> None:
    listed = {"run": name, "files": files.hashes(folder, FILES)}
    (folder / DONE).write_text(files.checksummed(listed))


def test_another_version_is_told_from_a_renamed_folder(run, other, tmp_path):
    moved = run.folder.rename(tmp_path / "corpus-0123456789ab")
    why = f"(its hash is {run.config.hash}, the folder's name says 0123456789ab)"
    assert lines(tmp_path)[moved.name].startswith(f"damaged: {moved / CONFIG} is not the file that was written {why}; remove")
    finalise_as("0123456789ab", moved)  # it reads, but has another hash today
    kept = f"other version: {moved / CONFIG} is of another version of this code"
    assert lines(tmp_path)[moved.name] == f"{kept} {why}: kept, and never used"
    (moved / CONFIG).write_text(json.dumps(json.loads(to_json(run.config)) | {"invented": 1}))
    finalise_as("0123456789ab", moved)
    shown = lines(tmp_path)
    assert shown[moved.name].startswith(f"{kept} (") and "invented" in shown[moved.name] and "MAE" in shown[other.folder.name]
    (moved / DONE).unlink()
    assert lines(tmp_path)[moved.name].startswith(f"other version: {moved / CONFIG} is damaged, or of another version")


def test_no_config_and_no_scores_stop_the_list(run, other):
    for text in ("[]", "{}", '{"test": 3}', '{"test": {"mae": "low"}}'):
        finish_by_hand(run.folder, run.config, **{METRICS: text})
        beside(run, other)
    for text in ("", "{", "[]", "null", '{"seed": 1}', "[" * 100_000, "\x00", '{"data": {"name": 3}}'):
        (run.folder / CONFIG).write_text(text)
        assert "MAE" not in beside(run, other)
    (run.folder / DONE).unlink()
    for text in ("", "{", '{"seed": 1}'):
        (run.folder / CONFIG).write_text(text)
        assert "MAE" not in beside(run, other)


# --- the tiny LLM's leftovers -----------------------------------------------------------------------------------------


def test_a_builder_sweeps_what_killed_ones_left_and_spares_a_living_one(tmp_path, monkeypatch):
    """The living one holds the lock of another LLM, so its scratch folder has another name."""
    from cmpta_lib.embedded import synthetic, tiny

    dead, living = (f".{synthetic.tiny_folder(tmp_path, count).name}.building" for count in (80, 800))
    for name in (dead, living):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tiny, "pretrain", lambda *_: None)
    monkeypatch.setattr(tiny.llm_files, "tiny_fingerprint", lambda folder: "f")
    built = tiny.build(tmp_path, 80)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {built.name, living}
