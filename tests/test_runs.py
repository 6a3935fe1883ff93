"""Runs: trained once whoever asks and however often they are killed, and the same bytes every time.

Most are made in this process. What is killed is a process of its own, forked from a server that has imported torch already.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from cmpta_lib import files, metrics
from cmpta_lib.config import DataConfig, RunConfig, from_json, to_json
from cmpta_lib.embedded import synthetic
from cmpta_lib.runs import checkpoint, engines, loop, store
from cmpta_lib.runs import load as trained
from cmpta_lib.runs import provenance as records
from cmpta_lib.runs import worker as runs
from cmpta_lib.runs.store import DONE, LOCK, METRICS, WEIGHTS, Run
from cmpta_lib.study.plan import CHOICES, TEXT_ONLY, Row
from cmpta_lib.study.study import Study

FILES = {*store.FILES, DONE}
RESULTS = ("history.csv", WEIGHTS, "predictions.parquet", METRICS)  # what a killed run must end with, byte for byte


def study_in(folder: Path, **settings: Any) -> Study:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMPTA_RUNS", str(folder))
        return Study(smoke=True, **settings)


def changed(changes: dict[str, Any]) -> Row:
    """CMPTA with these fields."""
    return Row("changed", changes=changes)


def files_of(run: Run) -> set[str]:
    """The lock stays: removing a lock file while another process opens it would let two hold it."""
    return {path.name for path in run.folder.iterdir()} - {LOCK}


def contents(run: Run, names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: (run.folder / name).read_bytes() for name in names}


def begin(folder: Path, config: RunConfig) -> Run:
    """A run's folder as `ensure` leaves it to its workers."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(to_json(config))
    return Run(config, folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory, smoke_models) -> Study:
    """A smoke study with its corpora and LLM."""
    made = study_in(tmp_path_factory.mktemp("runs"))
    shutil.copytree(smoke_models, made.cache / "llm", dirs_exist_ok=True)
    for key in made.keys:
        made.corpus(key)
    return made


@pytest.fixture(scope="module")
def voices(tmp_path_factory, study) -> Study:
    """The same folder with a user's own clips: three classes, a voice each and no face."""
    folder, rng = tmp_path_factory.mktemp("voices"), np.random.default_rng(0)
    for split, size in (("train", 20), ("valid", 6), ("test", 7)):
        items = []
        for number in range(size):
            audio = rng.standard_normal((int(rng.integers(5, 12)), 10)).astype(np.float32) + number % 3
            features = {"text": "Kids are talking by the door.", "audio": audio, "audio_len": len(audio)}
            features |= {"video": np.zeros((1, 4), np.float32), "video_len": 0}
            items.append({"label": ("angry", "calm", "happy")[number % 3], "features": features})
        (folder / f"voices_{split}.pkl").write_bytes(pickle.dumps(items))
    return study_in(study.root.parent, data=str(folder))


@pytest.fixture(scope="module")
def done(study, voices) -> dict[str, Run]:
    """The runs of this file, made here."""
    made = {
        "CMPTA": study.runs("sims")[0],
        "text only": study.runs("sims", TEXT_ONLY)[0],
        "free": study.runs("sims", next(row for row in CHOICES if row.name == "11: free decoding"))[0],
        "own clips": voices.runs("data")[0],
    }
    for name, run in made.items():
        begin(run.folder, run.config)
        assert runs.attempt(study.root, run.folder, row=name) == "done"
    return made


# --- finished runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CMPTA", "text only", "free", "own clips"])
def test_a_finished_run_holds_its_files_and_no_others(done, name):
    run = done[name]
    assert files_of(run) == FILES
    assert from_json((run.folder / "config.json").read_text()) == run.config
    written = {path.name: path.stat().st_mtime_ns for path in run.folder.iterdir() if path.name != LOCK}
    assert max(written, key=written.get) == DONE


@pytest.mark.parametrize("name", ["CMPTA", "text only", "own clips"])
def test_predictions_cover_both_splits_in_order_and_give_the_stored_scores(done, study, voices, name):
    run = done[name]
    corpus = voices.corpus("data") if name == "own clips" else study.corpus("sims")
    for split in ("valid", "test"):
        table = run.predictions(split)
        assert list(table.columns) == ["id", "label", "reply", "prediction"]
        assert list(table["id"]) == list(corpus.splits[split].table["id"])
        assert list(table["label"]) == list(corpus.splits[split].labels)
        truth, answers = table["label"].to_numpy(), table["prediction"].to_numpy()
        if corpus.task.kind == "regression":
            scores = metrics.regression_metrics(truth, answers)
        else:
            scores = metrics.classification_metrics(truth, answers.astype(int), corpus.task.labels)
        assert run.metrics[split] == scores | {"unparsable_count": 0.0}


def test_the_history_has_a_line_for_every_epoch(done):
    assert list(done["CMPTA"].history["epoch"]) == [1] and "valid_mae" in done["CMPTA"].history
    assert "valid_f1_weighted" in done["own clips"].history
    assert done["CMPTA"].metrics["best_epoch"] == 1 and done["CMPTA"].metrics["trainable_parameters"] > 0


def test_text_only_trains_nothing(done):
    run = done["text only"]
    assert list(run.history.columns) == ["epoch", "learning_rate", "train_loss"] and len(run.history) == 0
    assert run.metrics["best_epoch"] == run.metrics["trainable_parameters"] == 0


def test_the_environment_says_what_made_the_run(done, study, voices):
    record = done["own clips"].environment
    assert record["llm_fingerprint"] == study.llm.fingerprint and record["row"] == "own clips"
    assert record["commit"] == records.commit() and record["seconds"] >= record["train_seconds"] >= 0
    assert 0.05 < record["peak_memory_gb"] < 100
    assert {"torch", "transformers", "numpy"} <= record["packages"].keys() and record["hardware"]
    assert record["data_sources"].keys() == {f"voices_{split}.pkl" for split in ("train", "valid", "test")}
    assert record["data_sources"] == voices.corpus("data").sources


def test_free_replies_that_are_no_answer_are_counted_and_stay_empty(done):
    """The barely trained LLM of a smoke run says many of them."""
    run, counted = done["free"], 0
    for split in ("valid", "test"):
        table = run.predictions(split)
        unparsable = table["prediction"].isna()
        assert list(table["reply"].isna()) == list(unparsable)
        assert run.metrics[split]["unparsable_count"] == unparsable.sum()
        counted += unparsable.sum()
    assert run.metrics["oddities"]["unparsable_replies"] >= counted > 0
    assert "unparsable_replies" not in done["CMPTA"].metrics["oddities"]


def test_an_oddity_is_counted_once_a_clip(done):
    run = done["free"]
    unparsable = sum(run.metrics[split]["unparsable_count"] for split in ("valid", "test"))
    assert run.metrics["oddities"]["unparsable_replies"] == unparsable


def test_a_finished_run_is_neither_trained_nor_touched_again(done, study, monkeypatch):
    before = {path: path.stat().st_mtime_ns for run in done.values() for path in run.folder.iterdir()}
    monkeypatch.setattr(engines.subprocess, "Popen", None)
    assert study.ensure(list(done.values())) == list(done.values())
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("name", ["CMPTA", "text only", "free", "own clips"])
def test_a_loaded_model_gives_the_stored_predictions(done, study, tmp_path, name):
    run = done[name]
    method = trained.load(run.folder).method
    corpus = trained.find_corpus(study.root / "cache" / "data", run.config.data)
    for split in ("valid", "test"):
        table, _ = loop.evaluate(method, corpus.splits[split], 64)
        pd.testing.assert_frame_equal(table, run.predictions(split), check_dtype=False)
    checkpoint.write_tensors(tmp_path / WEIGHTS, method.module.state_dict())
    assert (tmp_path / WEIGHTS).read_bytes() == (run.folder / WEIGHTS).read_bytes() and not method.module.training


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_missing_corpus_is_named(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "meta.json").write_text('{"fingerprint": "abc"}')
    message = f"no corpus 'simsv2' with fingerprint f00d in {tmp_path}: open it through Study.corpus"
    with pytest.raises(FileNotFoundError, match=message):
        trained.find_corpus(tmp_path, DataConfig(name="simsv2", fingerprint="f00d"))


def test_another_corpus_whose_record_was_edited_does_not_stand_in_the_way(tmp_path):
    sizes = {"train": 3, "valid": 2, "test": 2}
    made = [synthetic.embedded_corpus(name, tmp_path, sizes) for name in ("embedded-meld", "embedded-sims")]
    wanted = DataConfig(name=made[1].name, fingerprint=made[1].fingerprint)
    (first, _) = sorted(tmp_path.glob("*/meta.json"))
    first.write_text(first.read_text().replace(made[0].fingerprint, wanted.fingerprint))
    assert trained.find_corpus(tmp_path, wanted).fingerprint == wanted.fingerprint
    (folder,) = tmp_path.glob("embedded-sims*/")
    shutil.rmtree(folder)
    with pytest.raises(files.Damaged, match=str(first)):
        trained.find_corpus(tmp_path, wanted)


def test_a_run_that_failed_can_be_finished_later(study, tmp_path):
    broken = study_in(tmp_path)
    shutil.copytree(study.cache / "llm", broken.cache / "llm")
    (bad,) = broken.runs("sims", TEXT_ONLY)
    (folder,) = (broken.cache / "data").glob("embedded-sims*/")
    shutil.rmtree(folder)
    begin(bad.folder, bad.config)
    assert not runs.work(broken.root, [bad.folder])
    assert store.failure(bad.folder).startswith("FileNotFoundError: no corpus 'embedded-sims' with") and not bad.done
    study_in(tmp_path).corpus("sims")
    assert runs.work(broken.root, [bad.folder])
    assert bad.done and files_of(bad) == FILES, "the record of its failure goes with it"


# --- claiming ---------------------------------------------------------------------------------------------------------


def test_each_run_is_claimed_by_one_worker_and_waited_for_by_the_others(tmp_path, monkeypatch):
    data = DataConfig(name="a", fingerprint="b")
    folders = [begin(tmp_path / f"run{n}", RunConfig(data=data, seed=n)).folder for n in range(6)]
    trained: Counter[Path] = Counter()
    unfinished: list[Path] = []

    def execute(root: Path, folder: Path, report: Any, row: str) -> None:
        trained[folder] += 1
        time.sleep(0.05)
        (folder / DONE).write_text("{}")

    def work() -> None:
        runs.work(tmp_path, folders)
        unfinished.extend(folder for folder in folders if not (folder / DONE).exists())

    monkeypatch.setattr(runs, "execute", execute)
    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert trained == dict.fromkeys(folders, 1) and not unfinished


def test_the_runs_folder_can_be_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path))
    assert files.runs_folder() == tmp_path
    monkeypatch.delenv("CMPTA_RUNS")
    assert files.runs_folder() == files.ROOT / "runs"


def test_a_relative_runs_folder_is_the_callers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CMPTA_RUNS", "my-runs")
    assert files.runs_folder() == tmp_path / "my-runs"


# --- kills ------------------------------------------------------------------------------------------------------------

server = multiprocessing.get_context("forkserver")
LONG = {"training.epochs": 3}  # of three steps each
MOMENTS = {  # what a worker is about to do, for the how-maniest time, when it is killed; and what is then missing
    "within an epoch": ("step", 5),
    "while a checkpoint is written": ("checkpoint.pt", 2),
    "while predictions are written": ("predictions.parquet", 1),
    "while the mark is written": (DONE, 1),
    "before the checkpoint is removed": ("sweep", 1),
}


def work_until(root: Path, folder: Path, moment: tuple[str, int]) -> None:
    """A worker that is killed at `moment`; a file about to take its name is then half written."""
    from cmpta_lib.runs import loop as training

    calls: Counter[str] = Counter()

    def watch(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def call(*arguments: Any, **more: Any) -> Any:
            event = Path(arguments[1]).name if name == "replace" else name
            calls[event] += 1
            if (event, calls[event]) == moment:
                if name == "replace":
                    os.truncate(arguments[0], os.path.getsize(arguments[0]) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **more)

        setattr(owner, name, call)

    for owner, name in ((training, "step"), (os, "replace"), (store, "sweep")):
        watch(owner, name)
    runs.work(root, [folder])


@pytest.fixture(scope="module")
def undisturbed(study) -> Run:
    """The same config in another folder, trained through."""
    run = begin(study.root / "undisturbed", study.config("sims", changed(LONG)))
    assert runs.work(study.root, [run.folder])
    return run


@pytest.fixture(scope="module")
def killed(study) -> tuple[dict[str, Run], dict[str, set[str]]]:
    """By moment: runs whose worker was killed then and that were finished since; and what the kill left."""
    server.set_forkserver_preload(["cmpta_lib.runs.loop", "transformers.models.qwen2.modeling_qwen2", "pyarrow.parquet"])
    config = study.config("sims", changed(LONG))
    hit = {moment: begin(study.root / f"killed-{number}", config) for number, moment in enumerate(MOMENTS)}
    for moment, when in MOMENTS.items():
        worker = server.Process(target=work_until, args=(study.root, hit[moment].folder, when))
        worker.start()
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
    left = {moment: files_of(run) for moment, run in hit.items()}
    assert runs.work(study.root, [run.folder for run in hit.values()])
    return hit, left


@pytest.mark.slow  # five workers are killed
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one_and_leaves_nothing_over(killed, undisturbed, moment):
    runs_by_moment, left = killed
    assert (DONE in left[moment]) == (moment == "before the checkpoint is removed"), "the mark comes last"
    assert contents(runs_by_moment[moment], RESULTS) == contents(undisturbed, RESULTS)
    assert files_of(runs_by_moment[moment]) == FILES


@pytest.mark.slow
def test_a_kill_leaves_what_was_meant(killed):
    """Else the kills above came at other moments than their names say."""
    _, left = killed
    assert left["within an epoch"] == {"config.json", "history.csv", "checkpoint.pt"}
    partial = left["while a checkpoint is written"] - left["within an epoch"]
    assert len(partial) == 1 and partial.pop().endswith(".partial")
    assert "predictions.parquet" not in left["while predictions are written"]
    assert FILES - left["while the mark is written"] == {DONE}


# --- one run over several processes -----------------------------------------------------------------------------------


def torchrun(root: Path, *folders: Path) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command = [*launcher, "-m", "cmpta_lib.runs.worker", str(root), *map(str, folders)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(files.ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow  # two more processes import torch and transformers
def test_torchrun_trains_as_one_process_skips_a_finished_run_and_records_a_failing_one(done, study):
    before = {path: path.stat().st_mtime_ns for path in done["CMPTA"].folder.iterdir()}
    quick = {"training.epochs": 1, "method.dim": 8, "training.num_threads": 1}
    bad = begin(study.root / "together-bad", study.config("sims", changed(quick | {"training.learning_rate": 1e30})))
    plain = Row("text only", "text_only", {"training.num_threads": 1})
    untrained = begin(study.root / "together-text", study.config("sims", plain))
    # Batches of 7: unequal shares of a batch.
    exact = changed(quick | {"method.dropout": 0.0, "training.batch_size": 7, "training.learning_rate": 1e-3})
    new, alone = (begin(study.root / f"together-{name}", study.config("sims", exact)) for name in ("new", "alone"))
    ended = torchrun(study.root, done["CMPTA"].folder, bad.folder, untrained.folder, new.folder)
    assert ended.returncode, "one of them failed"
    assert {path: path.stat().st_mtime_ns for path in done["CMPTA"].folder.iterdir()} == before
    assert new.done and untrained.done and not new.problem and files_of(new) == FILES, ended.stderr
    assert not bad.done and store.failure(bad.folder).startswith("FloatingPointError")
    assert runs.work(study.root, [alone.folder])
    start = loop.build(alone.config, study.corpus("sims"), trained.resources(study.root)).module.state_dict()
    one, two = (load_file(run.folder / WEIGHTS) for run in (alone, new))
    assert one.keys() == two.keys() == start.keys()
    assert all((one[name] - two[name]).abs().max() <= 1e-5 for name in one), "two processes train the same weights as one"
    assert (two["to_llm.weight"] - start["to_llm.weight"]).abs().max() > 1e-3
