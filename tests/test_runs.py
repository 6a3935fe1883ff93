"""Runs: trained once whoever asks and however often they are killed, the same bytes every time, and loaded from anywhere.

Most are made in this process. What is killed is a process of its own, forked from a server that has imported torch already.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from finished import clips
from safetensors.torch import load_file, save_file

import cmpta_lib
from cmpta_lib import files, metrics
from cmpta_lib.cli.dry_run import write_qwen_v1
from cmpta_lib.config import RunConfig, from_json, to_json
from cmpta_lib.data.corpus import Sample, Split
from cmpta_lib.embedded import synthetic
from cmpta_lib.llm.loading import weights_fingerprint
from cmpta_lib.runs import checkpoint, engines, loop, store, worker
from cmpta_lib.runs import load as opened
from cmpta_lib.runs import provenance as records
from cmpta_lib.runs import worker as runs
from cmpta_lib.runs.checkpoint import State
from cmpta_lib.runs.store import DONE, LOCK, METRICS, WEIGHTS, Run
from cmpta_lib.study import plan, trained
from cmpta_lib.study.plan import CHOICES, CMPTA, TEXT_ONLY, Row
from cmpta_lib.study.profiles import SMOKE_DOCUMENTS
from cmpta_lib.study.study import Study
from cmpta_lib.study.trained import Answer, TrainedRun, load

FREE = next(row for row in CHOICES if "free" in row.name)
ASKED = {"CMPTA": ("sims", CMPTA), "CMPTA on MELD": ("meld", CMPTA), "text only": ("sims", TEXT_ONLY), "free": ("sims", FREE)}
FILES = {*store.FILES, store.STEPS, DONE}
RESULTS = ("history.csv", "steps.csv", WEIGHTS, "predictions.parquet", METRICS)  # what a killed run must end with, byte for byte


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
def study(tmp_path_factory, smoke_models) -> Iterator[Study]:
    """A smoke study with its corpora and LLM."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMPTA_RUNS", str(tmp_path_factory.mktemp("runs")))
        made = Study(smoke=True)
        shutil.copytree(smoke_models, made.cache / "llm", dirs_exist_ok=True)
        for key in made.keys:
            made.corpus(key)
        yield made


@pytest.fixture(scope="module")
def voices(tmp_path_factory, study) -> Study:
    """The same folder with a user's own clips: three classes, a voice each and no face."""
    return Study(smoke=True, data=str(of_three_classes((20, 6, 7), tmp_path_factory.mktemp("voices"))))


def of_three_classes(sizes: tuple[int, ...], folder: Path) -> Path:
    return clips(lambda number: ("angry", "calm", "happy")[number % 3], sizes, folder, has_face=False)


@pytest.fixture(scope="module")
def done(study, voices) -> dict[str, Run]:
    """The runs of this file, made here: workers of their own would import torch once more each."""
    made = {name: study.runs(key, row)[0] for name, (key, row) in ASKED.items()} | {"own clips": voices.runs("data")[0]}
    for name, run in made.items():
        begin(run.folder, run.config)
        assert runs.attempt(study.root, run.folder, row=name) == "done"
    return made


@pytest.fixture(scope="module")
def loaded(done) -> dict[str, TrainedRun]:
    return {name: load(run.folder) for name, run in done.items()}


# --- finished runs ----------------------------------------------------------------------------------------------------


def test_a_finished_run_holds_its_files_and_no_others_and_is_not_touched_again(done, study, monkeypatch):
    before = {path: path.stat().st_mtime_ns for run in done.values() for path in run.folder.iterdir()}
    for run in done.values():
        assert files_of(run) == FILES - (set() if len(run.history) else {store.STEPS})
        assert from_json((run.folder / "config.json").read_text()) == run.config
        assert max(files_of(run), key=lambda name: before[run.folder / name]) == DONE
    monkeypatch.setattr(engines.subprocess, "Popen", None)
    assert study.ensure(list(done.values())) == list(done.values())
    assert {path: path.stat().st_mtime_ns for path in before} == before


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
    untrained = done["text only"]
    assert list(untrained.history.columns) == ["epoch", "learning_rate", "train_loss"] and len(untrained.history) == 0
    assert untrained.metrics["best_epoch"] == untrained.metrics["trainable_parameters"] == 0


def test_the_environment_says_what_made_the_run(done, study, voices):
    record = done["own clips"].environment
    assert record["llm_fingerprint"] == study.llm.fingerprint and record["row"] == "own clips"
    assert record["commit"] == records.commit() and record["seconds"] >= record["train_seconds"] >= 0
    assert 0.05 < record["peak_memory_gb"] < 100
    assert {"torch", "transformers", "numpy"} <= record["packages"].keys() and record["hardware"]
    assert record["data_sources"].keys() == {f"voices_{split}.pkl" for split in ("train", "valid", "test")}
    assert record["data_sources"] == voices.corpus("data").sources


def test_free_replies_that_are_no_answer_are_counted_once_a_clip_and_stay_empty(done):
    """The barely trained LLM of a smoke run says many of them."""
    run, counted = done["free"], 0
    for split in ("valid", "test"):
        table = run.predictions(split)
        unparsable = table["prediction"].isna()
        assert list(table["reply"].isna()) == list(unparsable)
        assert run.metrics[split]["unparsable_count"] == unparsable.sum()
        counted += unparsable.sum()
    assert run.metrics["oddities"]["unparsable_replies"] == counted > 0
    assert "unparsable_replies" not in done["CMPTA"].metrics["oddities"]


@pytest.mark.parametrize("name", [*ASKED, "own clips"])
def test_a_loaded_model_gives_the_stored_predictions(done, loaded, study, tmp_path, name):
    run, method = done[name], loaded[name].method
    corpus = opened.find_corpus(study.root / "cache" / "data", run.config.data)
    for split in ("valid", "test"):
        table, _ = loop.evaluate(method, corpus.splits[split], 64)
        pd.testing.assert_frame_equal(table, run.predictions(split), check_dtype=False)
    checkpoint.write_tensors(tmp_path / WEIGHTS, method.module.state_dict())
    assert (tmp_path / WEIGHTS).read_bytes() == (run.folder / WEIGHTS).read_bytes() and not method.module.training


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
                while name == "step" and not (folder / "history.csv").exists():
                    time.sleep(0.01)  # what the thread beside it writes of the epoch before
                if name == "replace":
                    os.truncate(arguments[0], os.path.getsize(arguments[0]) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **more)

        setattr(owner, name, call)

    for owner, name in ((training, "step"), (os, "replace"), (store, "sweep")):
        watch(owner, name)
    runs.attempt(root, folder)


@pytest.fixture(scope="module")
def undisturbed(study) -> Run:
    """The same config in another folder, trained through."""
    run = begin(study.root / "undisturbed", study.config("sims", changed(LONG)))
    assert runs.attempt(study.root, run.folder) == "done"
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
    # Else the kills came at other moments than their names say.
    assert left["within an epoch"] == {"config.json", "history.csv", "checkpoint.pt"}
    (partial,) = left["while a checkpoint is written"] - left["within an epoch"]
    assert partial.endswith(".partial") and "predictions.parquet" not in left["while predictions are written"]
    assert FILES - left["while the mark is written"] == {DONE}
    assert {runs.attempt(study.root, run.folder) for run in hit.values()} == {"done"}
    return hit, left


@pytest.mark.slow  # five workers are killed
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one_and_leaves_nothing_over(killed, undisturbed, moment):
    runs_by_moment, left = killed
    assert (DONE in left[moment]) == (moment == "before the checkpoint is removed"), "the mark comes last"
    assert contents(runs_by_moment[moment], RESULTS) == contents(undisturbed, RESULTS)
    assert files_of(runs_by_moment[moment]) == FILES


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
    diverging = {"training.learning_rate": 10.0, "training.weight_decay": 1000.0, "training.batch_size": 2}
    bad = begin(study.root / "together-bad", study.config("sims", changed(quick | diverging)))
    plain = Row("text only", "text_only", {"training.num_threads": 1})
    untrained = begin(study.root / "together-text", study.config("sims", plain))
    # Batches of 7: unequal shares of a batch.
    exact = changed(quick | {"method.dropout": 0.0, "training.batch_size": 7, "training.learning_rate": 1e-3})
    new, alone = (begin(study.root / f"together-{name}", study.config("sims", exact)) for name in ("new", "alone"))
    ended = torchrun(study.root, done["CMPTA"].folder, untrained.folder, new.folder, bad.folder)
    assert ended.returncode, "one of them failed"
    assert {path: path.stat().st_mtime_ns for path in done["CMPTA"].folder.iterdir()} == before
    assert new.done and untrained.done and not new.problem and files_of(new) == FILES, ended.stderr
    assert not bad.done and store.failure(bad.folder).startswith("FloatingPointError")
    assert runs.attempt(study.root, alone.folder) == "done"
    start = loop.build(alone.config, study.corpus("sims"), opened.resources(study.root)).module.state_dict()
    one, two = (load_file(run.folder / WEIGHTS) for run in (alone, new))
    assert one.keys() == two.keys() == start.keys()
    assert all((one[name] - two[name]).abs().max() <= 1e-5 for name in one), "two processes train the same weights as one"
    assert (two["to_llm.weight"] - start["to_llm.weight"]).abs().max() > 1e-3


# --- a run as others use it ------------------------------------------------------------------------------------------

SMALL = {"training.epochs": 1, "method.dim": 16}


@pytest.fixture(scope="module")
def cmpta(loaded: dict[str, TrainedRun]) -> TrainedRun:
    return loaded["CMPTA"]


@pytest.fixture(scope="module")
def split(study: Study) -> Split:
    return study.corpus("sims").splits["test"]


@pytest.fixture(scope="module")
def sample(split: Split) -> Sample:
    """A clip with words, face and voice."""
    return next(clip for clip in split if len(clip.audio) > 3 and len(clip.vision) > 3)


def same(first: Answer, second: Answer) -> bool:
    """But for rounding: batch mates decide how a sum is split up."""
    said, again = ((answer.id, answer.value, answer.text, [*answer.probabilities]) for answer in (first, second))
    chances = [np.array(list(answer.probabilities.values())) for answer in (first, second)]
    return said == again and np.allclose(*chances, rtol=0, atol=1e-5)


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ASKED)
def test_it_answers_as_it_was_evaluated_and_every_legal_answer_has_its_probability(
    name: str, done: dict[str, Run], loaded: dict[str, TrainedRun], study: Study
):
    split, task = study.corpus(ASKED[name][0]).splits["test"], loaded[name].inputs.task
    scores = [f"{tenth / 10:+.1f}" for tenth in range(-10, 11)]
    answers = loaded[name].predict(replace(split[index], label=None) for index in range(3))
    for answer, row in zip(answers, done[name].predictions().head(3).itertuples(), strict=True):
        assert answer.id == row.id and answer.repairs == {}
        assert list(answer.probabilities) == (list(task.labels) or scores)
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-9) and min(answer.probabilities.values()) >= 0
        if np.isnan(row.prediction):
            assert name == "free" and (answer.value, answer.text) == (None, "unparsable")
        else:
            assert answer.value == row.prediction
            assert answer.text == (task.labels[int(row.prediction)] if task.labels else f"{row.prediction:+.1f}")


def test_many_clips_are_answered_as_each_alone(cmpta: TrainedRun, split: Split, monkeypatch: pytest.MonkeyPatch):
    alone = [cmpta.predict([clip])[0] for clip in split]
    config = cmpta.run.config.model_copy(update={"evaluation": cmpta.run.config.evaluation.model_copy(update={"batch_size": 5})})
    small = TrainedRun(Run(config, cmpta.run.folder), cmpta.inputs, cmpta.method)
    for together in (cmpta.predict(split), small.predict(iter(split))):
        assert len(together) == len(alone) == 24
        assert all(same(first, second) for first, second in zip(together, alone, strict=True))


def test_labels_are_no_matter(cmpta: TrainedRun, sample: Sample):
    answers = cmpta.predict([replace(sample, label=label) for label in (None, 0.4, -1.0, 7, "none of yours")])
    assert all(same(answer, answers[0]) for answer in answers)


@pytest.mark.parametrize("text", ["", " ", "\n", "好" * 400])
def test_any_words_or_none_are_answered(text: str, loaded: dict[str, TrainedRun], sample: Sample):
    for name in ("CMPTA", "text only", "free"):
        (answer,) = loaded[name].predict([replace(sample, text=text)], strict=False)
        assert answer.value is None or -1 <= answer.value <= 1


@pytest.mark.parametrize("absent", [("audio",), ("vision",), ("audio", "vision")])
def test_an_absent_modality_is_none_or_has_no_frames(absent: tuple[str, ...], cmpta: TrainedRun, sample: Sample):
    as_none = replace(sample, **dict.fromkeys(absent))
    as_empty = replace(sample, **{name: getattr(sample, name)[:0] for name in absent})
    first, second, whole = cmpta.predict([as_none, as_empty, sample])
    assert same(first, second) and first.repairs == {} and not same(first, whole), "what is there is read"
    assert same(cmpta.predict([as_none])[0], first)


@pytest.mark.parametrize("left", ["audio", "vision", None])
def test_a_clip_of_which_nothing_could_be_read_is_refused(left, loaded: dict[str, TrainedRun], sample: Sample):
    """Every pair joins two modalities: without words, sound alone has the answer of any other sound."""
    alone = replace(sample, text="", **{name: None for name in ("audio", "vision") if name != left})
    for ask in (loaded["CMPTA"].predict, lambda clips: loaded["CMPTA"].attention(clips[0])):
        with pytest.raises(ValueError, match="has no words and not both sound and face, .*give its words"):
            ask([alone])
    assert all(loaded[name].predict([alone], strict=name != "CMPTA")[0].value is not None for name in ("text only", "CMPTA"))


def test_scores_are_answered_in_their_owners_range(cmpta: TrainedRun, sample: Sample):
    inputs = replace(cmpta.inputs, task=replace(cmpta.inputs.task, score_range=(1.0, 5.0)))
    (plain,), (scaled,) = (one.predict([sample]) for one in (cmpta, TrainedRun(cmpta.run, inputs, cmpta.method)))
    assert scaled.value == pytest.approx(3 + 2 * plain.value) and scaled.text == f"{scaled.value:g}"
    assert [*scaled.probabilities.values()] == [*plain.probabilities.values()]
    assert list(scaled.probabilities)[::10] == ["1", "3", "5"]


def test_words_that_are_cut_are_told(loaded: dict[str, TrainedRun], sample: Sample):
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than this run reads, and were cut at the end: clip 'long'"):
        long, short = loaded["CMPTA"].predict([replace(sample, id="long", text="好" * 400), replace(sample, text="好")])
    assert long.repairs == {"texts_cut": 1} and short.repairs == {}


def test_a_loaded_run_says_what_it_is(cmpta: TrainedRun):
    said = "<cmpta trained on embedded-sims, seed 1111: words, sound (T, 25) and face (T, 177) -> scores from -1 to 1>"
    assert repr(cmpta) == said


def test_of_long_clips_fewer_are_read_together(cmpta: TrainedRun, split: Split, monkeypatch: pytest.MonkeyPatch):
    together, sizes, collate = cmpta.predict(split), [], cmpta.method.collate
    longest = max(len(clip.audio) + len(clip.vision) for clip in split)
    monkeypatch.setattr(trained, "MOST_FRAMES", 3 * longest)
    monkeypatch.setattr(cmpta.method, "collate", lambda clips: sizes.append(len(clips)) or collate(clips))
    assert all(same(first, second) for first, second in zip(cmpta.predict(split), together, strict=True))
    assert max(sizes) == 3 and sum(sizes) == len(split)


def test_frames_that_are_no_numbers_are_read_as_zeros_and_counted(cmpta: TrainedRun, sample: Sample):
    audio, vision, clean = sample.audio.copy(), sample.vision.astype(np.float64), sample.audio.copy()
    audio[0, :3] = [np.nan, np.inf, -np.inf]
    clean[0, :3] = 0
    vision[1, 2] = 1e300
    zeroed = sample.vision.copy()
    zeroed[1, 2] = 0
    odd, expected = cmpta.predict([replace(sample, audio=audio, vision=vision), replace(sample, audio=clean, vision=zeroed)])
    assert odd.repairs == {"audio_nan": 1, "audio_inf": 2, "vision_inf": 1} and expected.repairs == {}
    assert same(odd, expected) and np.isnan(audio[0, 0]), "what was given is not changed"
    whole = sample.audio.round()
    assert same(*cmpta.predict([replace(sample, audio=whole.astype(np.int16)), replace(sample, audio=whole)]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"audio": np.zeros((4, 3))}, r"sample 1 \(id '.*'\): 'audio' must be 25 features wide, as in the clips that this"),
        ({"vision": np.zeros((4, 0))}, r"'vision' must be a \(T, F\) array of numbers, F >= 1, but is an array of shape"),
        ({"vision": np.zeros(177)}, r"'vision' must be a \(T, F\) array of numbers"),
        ({"audio": [[0.0] * 25]}, r"'audio' must be .* but is a list of length 1"),
        ({"audio": np.full((2, 25), "a")}, "'audio' must be"),
        ({"text": None}, "'text' must be a string of valid Unicode, but is None; correct it, or write '' if nothing is said"),
        ({"text": "\ud800"}, "'text' must be a string of valid Unicode"),
        ({"id": 3}, "'id' must be a string"),
    ],
)
def test_a_clip_unlike_the_training_clips_is_named(change: dict, said: str, cmpta: TrainedRun, sample: Sample):
    with pytest.raises(ValueError, match=said) as caught:
        cmpta.predict([sample, replace(sample, **change)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [["words"], [3], [None], [{"text": "a"}], [np.zeros((2, 3))], np.zeros((2, 3))])
def test_what_is_no_sample_is_named(given: object, cmpta: TrainedRun):
    with pytest.raises(ValueError, match="sample 0 must be a Sample, but is "):
        cmpta.predict(given)


def test_one_clip_is_a_list_of_one_and_none_has_no_answers(loaded: dict[str, TrainedRun], sample: Sample):
    for given in (None, 3):
        with pytest.raises(ValueError, match="expected samples or where clips lie, not ") as caught:
            loaded["CMPTA"].predict(given)
        assert len(str(caught.value)) < 300
    assert loaded["CMPTA"].predict([]) == [] and len(loaded["CMPTA"].predict(sample)) == 1
    with pytest.raises(ValueError, match="must be a Sample, but is a list of length 1"):
        loaded["CMPTA"].attention([sample])
    with pytest.raises(NotImplementedError, match="has no attention maps to show"):
        loaded["text only"].attention(sample)


# --- attention --------------------------------------------------------------------------------------------------------


def test_attention_is_one_map_a_pair_whose_rows_sum_to_one(cmpta: TrainedRun, sample: Sample):
    maps = cmpta.attention(sample)
    words = len(cmpta.method.collate([sample]).text_ids[0])
    sizes = {"t": words, "v": len(sample.vision), "a": len(sample.audio)}
    heads = cmpta.run.config.method.num_heads
    pairs = {"t1": "tv", "t2": "ta", "v1": "vt", "v2": "va", "a1": "at", "a2": "av"}
    assert {name: weights.shape for name, weights in maps.items()} == {
        name: (heads, sizes[queries], sizes[keys]) for name, (queries, keys) in pairs.items()
    }
    for weights in maps.values():
        assert weights.dtype == np.float32 and weights.min() >= 0
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    maps = cmpta.attention(replace(sample, vision=None))
    assert maps["t1"].shape[-1] == 0 and maps["v1"].shape[1] == 0 and maps["t2"].shape[-1] == len(sample.audio)
    assert cmpta.attention(replace(sample, text=""))["t1"].shape[1] == 0


# --- wherever it was copied to ----------------------------------------------------------------------------------------


@pytest.fixture
def copied(done: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's folder alone, under another name, on a machine that has neither its corpus nor its LLM."""
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path / "other runs"))
    monkeypatch.setattr(opened, "_kept", {})
    monkeypatch.setattr(opened, "kept_corpus", None)
    return Path(shutil.copytree(done["CMPTA"].folder, tmp_path / "mail" / "my model"))


def llm_folder(study: Study) -> Path:
    return synthetic.tiny_folder(study.cache / "llm", SMOKE_DOCUMENTS)


@pytest.mark.parametrize("place", ["of caches", "of runs", "cache", "its own", "a copy"])
def test_a_copied_run_answers_with_its_llm_named(
    place: str, copied: Path, study: Study, cmpta: TrainedRun, sample: Sample, tmp_path: Path
):
    its_own = llm_folder(study)
    places = {"of caches": study.cache / "llm", "of runs": study.root, "cache": study.cache, "its own": its_own}
    if place == "a copy":
        places[place] = Path(shutil.copytree(its_own, tmp_path / "mail" / "llm"))
    elsewhere = load(copied, llm=places[place])
    assert same(elsewhere.predict([sample])[0], cmpta.predict([sample])[0])
    np.testing.assert_array_equal(elsewhere.attention(sample)["t1"], cmpta.attention(sample)["t1"])
    assert not (tmp_path / "other runs").exists(), "loading writes nothing"


def test_without_its_llm_a_run_says_where_it_looked(copied: Path, study: Study):
    with pytest.raises(FileNotFoundError) as caught:
        load(copied)
    said = str(caught.value)
    assert str(copied.parent) in said and study.llm.fingerprint in said and "pass llm=<its folder>" in said and "\n" not in said


def test_another_llm_is_refused(copied: Path, tmp_path: Path):
    write_qwen_v1(tmp_path / "qwen", ["a word"], width=16, layers=1, vocabulary_size=500)
    with pytest.raises(ValueError, match="qwen is not the LLM that the run was trained with: expected 'tiny' with fingerprint"):
        load(copied, llm=tmp_path / "qwen")


def test_a_sound_llm_is_found_behind_a_damaged_one(copied: Path, study: Study, cmpta: TrainedRun, sample: Sample):
    near = Path(shutil.copytree(study.cache / "llm", copied.parent / "cache" / "llm"))
    weights = synthetic.tiny_folder(near, SMOKE_DOCUMENTS) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(files.Damaged, match=f"{weights} is not the file that was written"):
        load(copied)
    elsewhere = Path(shutil.copytree(study.cache, files.runs_folder() / "cache", ignore=shutil.ignore_patterns("data")))
    assert same(load(copied).predict([sample])[0], cmpta.predict([sample])[0]) and elsewhere.is_dir()


def test_a_run_is_found_by_its_name(done: dict[str, Run], study: Study, sample: Sample, cmpta: TrainedRun):
    assert same(cmpta_lib.load(done["CMPTA"].folder.name).predict([sample])[0], cmpta.predict([sample])[0])
    with pytest.raises(FileNotFoundError, match=f"no run 'sims-0': expected .* in {study.root.parent}; see cmpta runs"):
        load("sims-0")


@pytest.mark.parametrize("name", [store.CONFIG, WEIGHTS, DONE])
@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_run_is_named(name: str, damage: str, copied: Path, study: Study):
    path = copied / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9] + b"x")
    with pytest.raises((files.Damaged, FileNotFoundError)) as caught:
        load(copied, llm=study.cache / "llm")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def finalise_again(folder: Path) -> None:
    """As a version of this code would have finalised it to which these files are right."""
    run = files.read_checksummed(folder / store.DONE, "")["run"]
    files.write_text(folder / store.DONE, files.checksummed({"run": run, "files": files.hashes(folder, store.FILES)}))


def test_a_config_or_weights_of_another_version_are_named(copied: Path, study: Study):
    save_file({"bias": torch.zeros(3)}, copied / store.WEIGHTS)
    finalise_again(copied)
    with pytest.raises(files.Damaged, match=f"{copied / store.WEIGHTS}: does not fit the method 'cmpta' of this version"):
        load(copied, llm=study.cache / "llm")
    config = copied / store.CONFIG
    config.write_text(config.read_text().replace('"num_heads"', '"num_eyes"'))
    finalise_again(copied)
    with pytest.raises(files.Damaged, match=f"{config} is of another version of this code .*num_eyes"):
        load(copied, llm=study.cache / "llm")


# --- one run on clips of one's own ------------------------------------------------------------------------------------


@pytest.fixture
def own(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of clips, and a runs folder whose tiny LLM is the smoke runs', under the name of the full one."""
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path / "runs"))
    shutil.copytree(llm_folder(study), synthetic.tiny_folder(tmp_path / "runs" / "cache" / "llm"))
    (tmp_path / "voices").mkdir()
    return of_three_classes((24, 9, 12), tmp_path / "voices")


@pytest.mark.slow  # a worker of its own
def test_a_run_is_trained_on_a_folder_of_clips_and_answers(own: Path, monkeypatch: pytest.MonkeyPatch):
    run = cmpta_lib.train(own, changes=SMALL, seed=5)
    config = run.run.config
    assert (config.training.epochs, config.method.dim, config.seed, config.data.name) == (1, 16, 5, "voices")
    split = cmpta_lib.read_folder(own).splits["test"]
    answers = run.predict(split)
    assert [answer.value for answer in answers] == run.run.predictions()["prediction"].tolist()
    assert list(answers[0].probabilities) == ["angry", "calm", "happy"] and answers[0].text in answers[0].probabilities
    before = {path: path.stat().st_mtime_ns for path in run.run.folder.iterdir()}
    again = cmpta_lib.train(str(own), changes=SMALL, seed=5)
    assert again.run.folder == run.run.folder and before == {path: path.stat().st_mtime_ns for path in before}
    pd.testing.assert_frame_equal(again.run.predictions(), run.run.predictions())


# --- systems that train in stages ----------------------------------------------------------------------------------------

FEW = {"training.epochs": 2}
ROWS = {
    "transformer": Row("transformer", plan.MMT.method, {"method.pretraining_epochs": 2, **FEW}),
    "told and tuned": Row("told and tuned", plan.WHOLE.method, {"method.perception_epochs": 2, **FEW}),
}


def fresh(old: Study, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study with the same corpora and models and nothing else: no run, no shared stage, no statement."""
    monkeypatch.setenv("CMPTA_RUNS", str(folder))
    again = Study(smoke=True)
    for part in ("data", "llm"):
        shutil.copytree(old.cache / part, again.cache / part)
    return again


def finished(study: Study, row: Row) -> Run:
    run = study.runs("sims", row)[0]
    begin(run.folder, run.config)
    assert runs.attempt(study.root, run.folder) == "done"
    return run


class Killed(BaseException):
    """As a kill: nothing tidies up after it."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_killed_in_each_stage_it_ends_with_the_same_bytes(study, tmp_path, monkeypatch, name):
    whole = finished(fresh(study, tmp_path / "whole", monkeypatch), ROWS[name])
    again, seen = fresh(study, tmp_path / "killed", monkeypatch), []
    run = begin((planned := again.runs("sims", ROWS[name])[0]).folder, planned.config)
    epochs, train = whole.config.epochs, loop.train
    assert epochs == 4

    def dies(*arguments):
        *others, note, common = arguments

        def noted(state: State) -> None:
            note(state)
            seen.append((state.epoch, state.stage))
            raise Killed

        return train(*others, noted, common)

    monkeypatch.setattr(loop, "train", dies)
    for _ in range(epochs):
        with pytest.raises(Killed):
            worker.execute(again.root, run.folder)
    monkeypatch.setattr(loop, "train", train)
    assert runs.attempt(again.root, run.folder) == "done"
    assert seen == [(1, 0), (2, 1), (3, 1), (4, 1)], "every epoch was made once, in its stage"
    assert contents(run, RESULTS) == contents(whole, RESULTS)


@pytest.mark.slow
def test_a_fine_tuned_run_answers_from_a_copy_as_it_did_and_leaves_the_llm_alone(study, tmp_path):
    llm = opened.resources(study.root).llm(study.llm)
    before = weights_fingerprint(llm.model)
    run = finished(study, ROWS["told and tuned"])
    assert weights_fingerprint(llm.model) == before
    stored = load_file(run.folder / store.WEIGHTS)
    assert {name.split(".")[0] for name in stored} >= {"maker", "lora", "describer"}
    assert not [name for name in stored if "base_layer" in name or "embed_tokens" in name], "no weight of the LLM's own"

    copy = tmp_path / "elsewhere" / run.folder.name
    shutil.copytree(run.folder, copy)
    shutil.copytree(study.cache / "llm", tmp_path / "elsewhere" / "cache" / "llm")
    test = study.corpus("sims").splits["test"]
    answers = load(copy).predict([test[index] for index in range(len(test))])
    table = run.predictions()
    assert [answer.value for answer in answers] == pytest.approx(list(table["prediction"]), abs=1e-6)

    cmpta = finished(study, changed({"method.dim": 8}))
    alone = {name: torch.clone(tensor) for name, tensor in load_file(cmpta.folder / store.WEIGHTS).items()}
    shutil.rmtree(cmpta.folder)
    opened._kept.clear()  # an LLM that was never lent to LoRA
    again = finished(study, changed({"method.dim": 8}))
    assert all(torch.equal(alone[name], tensor) for name, tensor in load_file(again.folder / store.WEIGHTS).items())


@pytest.mark.slow
def test_label_shares_take_one_pre_training(study):
    rows = [Row(f"{share}", plan.MMT.method, {"method.label_share": share}) for share in (0.25, 0.5)]
    both = [finished(study, row) for row in rows]
    (name,) = {name for run in both for name in run.environment["shared_stages"]}
    assert (study.cache / "stages" / f"{name}.pt").is_file()
    first, second = (run.history.query("stage == 'pretraining'").drop(columns="epoch") for run in both)
    assert np.array_equal(first.to_numpy(str), second.to_numpy(str))


def test_every_row_beyond_the_paper_has_a_name_of_its_own():
    for key in ("sims", "meld"):
        rows = [(row.method, row.name) for notebook in plan.NOTEBOOKS if notebook.is_beyond for row in notebook.rows(key)]
        assert len(set(rows)) == len({(row.method, str(row.changes), row.llm) for notebook in plan.NOTEBOOKS
                                      if notebook.is_beyond for row in notebook.rows(key)})  # fmt: skip
