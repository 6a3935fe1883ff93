"""A trained run as others use it: loaded from wherever it was copied to, it answers as it did when it was evaluated."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from finished import clips
from safetensors.torch import save_file

import cmpta_lib
from cmpta_lib import files
from cmpta_lib.cli.dry_run import write_qwen_v1
from cmpta_lib.config import to_json
from cmpta_lib.data.corpus import Sample, Split
from cmpta_lib.embedded import synthetic
from cmpta_lib.runs import load as trained
from cmpta_lib.runs import store, worker
from cmpta_lib.runs.load import Answer, TrainedRun, load
from cmpta_lib.runs.store import Run
from cmpta_lib.study.plan import CHOICES, CMPTA, TEXT_ONLY
from cmpta_lib.study.profiles import SMOKE_DOCUMENTS
from cmpta_lib.study.study import Study

FREE = next(row for row in CHOICES if "free" in row.name)
ASKED = {"CMPTA": ("sims", CMPTA), "CMPTA on MELD": ("meld", CMPTA), "text only": ("sims", TEXT_ONLY), "free": ("sims", FREE)}
SMALL = {"training.epochs": 1, "method.dim": 16}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, smoke_models: Path) -> Iterator[Study]:
    """A smoke study with its LLM."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMPTA_RUNS", str(tmp_path_factory.mktemp("runs")))
        made = Study(smoke=True)
        shutil.copytree(smoke_models, made.cache / "llm", dirs_exist_ok=True)
        yield made


@pytest.fixture(scope="module")
def runs(study: Study) -> dict[str, Run]:
    """Trained in this process: workers of their own would import torch once more each."""
    made = {name: study.runs(key, row)[0] for name, (key, row) in ASKED.items()}
    for run in made.values():
        run.folder.mkdir()
        (run.folder / store.CONFIG).write_text(to_json(run.config))
        assert worker.attempt(study.root, run.folder) == "done"
    return made


@pytest.fixture(scope="module")
def loaded(runs: dict[str, Run]) -> dict[str, TrainedRun]:
    return {name: load(run.folder) for name, run in runs.items()}


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
def test_it_answers_as_it_was_evaluated(name: str, runs: dict[str, Run], loaded: dict[str, TrainedRun], study: Study):
    split, task = study.corpus(ASKED[name][0]).splits["test"], loaded[name].inputs.task
    answers = loaded[name].predict(replace(split[index], label=None) for index in range(3))
    for answer, row in zip(answers, runs[name].predictions().head(3).itertuples(), strict=True):
        assert answer.id == row.id and answer.repairs == {}
        if np.isnan(row.prediction):
            assert name == "free" and (answer.value, answer.text) == (None, "unparsable")
        else:
            assert answer.value == row.prediction
            assert answer.text == (task.labels[int(row.prediction)] if task.labels else f"{row.prediction:+.1f}")


@pytest.mark.parametrize("name", ASKED)
def test_every_legal_answer_has_its_probability(name: str, loaded: dict[str, TrainedRun], study: Study):
    run, split = loaded[name], study.corpus(ASKED[name][0]).splits["test"]
    scores = [f"{tenth / 10:+.1f}" for tenth in range(-10, 11)]
    for answer in run.predict([split[index] for index in range(5)]):
        assert list(answer.probabilities) == (list(run.inputs.task.labels) or scores)
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-9) and min(answer.probabilities.values()) >= 0


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


def test_no_clips_no_answers(cmpta: TrainedRun):
    assert cmpta.predict([]) == []


@pytest.mark.parametrize("text", ["", " ", "\n", "好" * 400])
def test_any_words_or_none_are_answered(text: str, loaded: dict[str, TrainedRun], sample: Sample):
    for name in ("CMPTA", "text only", "free"):
        (answer,) = loaded[name].predict([replace(sample, text=text)])
        assert answer.value is None or -1 <= answer.value <= 1


@pytest.mark.parametrize("absent", [("audio",), ("vision",), ("audio", "vision")])
def test_an_absent_modality_is_none_or_has_no_frames(absent: tuple[str, ...], cmpta: TrainedRun, sample: Sample):
    as_none = replace(sample, **dict.fromkeys(absent))
    as_empty = replace(sample, **{name: getattr(sample, name)[:0] for name in absent})
    first, second, with_words, whole = cmpta.predict([as_none, as_empty, replace(as_none, text=""), sample])
    assert same(first, second) and first.repairs == {} and with_words.value is not None
    assert not same(first, whole), "what is there is read"
    assert same(cmpta.predict([as_none])[0], first)


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


def test_whole_numbers_are_frames_too(cmpta: TrainedRun, sample: Sample):
    whole = sample.audio.round()
    first, second = cmpta.predict([replace(sample, audio=whole.astype(np.int16)), replace(sample, audio=whole)])
    assert same(first, second)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"audio": np.zeros((4, 3))}, r"sample 1 \(id '.*'\): 'audio' must be 25 features wide, as in the clips that this"),
        ({"vision": np.zeros((4, 0))}, r"'vision' must be a \(T, F\) array of numbers, F >= 1, but is an array of shape"),
        ({"vision": np.zeros(177)}, r"'vision' must be a \(T, F\) array of numbers"),
        ({"audio": [[0.0] * 25]}, r"'audio' must be .* but is a list of length 1"),
        ({"audio": np.full((2, 25), "a")}, "'audio' must be"),
        ({"text": None}, "'text' must be a string of valid Unicode, but is None; write '' if nothing is said"),
        ({"text": "\ud800"}, "'text' must be a string of valid Unicode"),
        ({"id": 3}, "'id' must be a string"),
    ],
)
def test_a_clip_unlike_the_training_clips_is_named(change: dict, said: str, cmpta: TrainedRun, sample: Sample):
    with pytest.raises(ValueError, match=said) as caught:
        cmpta.predict([sample, replace(sample, **change)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["words", [3], [None], [{"text": "a"}], [np.zeros((2, 3))]])
def test_what_is_no_sample_is_named(given: object, cmpta: TrainedRun):
    with pytest.raises(ValueError, match="sample 0 must be a Sample, but is "):
        cmpta.predict(given)


def test_one_clip_wants_a_list(cmpta: TrainedRun, sample: Sample):
    message = r"expected a list of samples, not .*; for one clip: predict\(\[sample\]\)"
    for given in (sample, None, 3):
        with pytest.raises(ValueError, match=message) as caught:
            cmpta.predict(given)
        assert len(str(caught.value)) < 300


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


def test_attention_to_what_is_absent_has_no_columns(cmpta: TrainedRun, sample: Sample):
    maps = cmpta.attention(replace(sample, vision=None))
    assert maps["t1"].shape[-1] == 0 and maps["v1"].shape[1] == 0 and maps["t2"].shape[-1] == len(sample.audio)
    assert cmpta.attention(replace(sample, text=""))["t1"].shape[1] == 0


def test_a_method_without_attention_says_so(loaded: dict[str, TrainedRun], sample: Sample):
    with pytest.raises(NotImplementedError, match="run embedded-sims-.*: its method 'text_only' has no attention maps"):
        loaded["text only"].attention(sample)


def test_attention_is_of_one_clip(cmpta: TrainedRun, sample: Sample):
    with pytest.raises(ValueError, match="must be a Sample, but is a list of length 1"):
        cmpta.attention([sample])


# --- wherever it was copied to ----------------------------------------------------------------------------------------


@pytest.fixture
def copied(runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's folder alone, under another name, on a machine that has neither its corpus nor its LLM."""
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path / "other runs"))
    monkeypatch.setattr(trained, "_kept", {})
    monkeypatch.setattr(trained, "kept_corpus", None)
    return Path(shutil.copytree(runs["CMPTA"].folder, tmp_path / "mail" / "my model"))


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
    assert str(copied) in said and study.llm.fingerprint in said and "pass llm=<its folder>" in said and "\n" not in said


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


def test_a_run_is_found_by_its_name(runs: dict[str, Run], study: Study, sample: Sample, cmpta: TrainedRun):
    assert same(cmpta_lib.load(runs["CMPTA"].folder.name).predict([sample])[0], cmpta.predict([sample])[0])
    with pytest.raises(FileNotFoundError, match=f"no run 'sims-0': expected .* in {study.root.parent}; see cmpta runs"):
        load("sims-0")


@pytest.mark.parametrize("name", [*store.FILES, store.DONE])
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


def test_a_run_of_another_version_is_named(copied: Path, study: Study):
    config = copied / store.CONFIG
    config.write_text(config.read_text().replace('"num_heads"', '"num_eyes"'))
    finalise_again(copied)
    with pytest.raises(files.Damaged, match=f"{copied}: of another version of this code .*num_eyes"):
        load(copied, llm=study.cache / "llm")


def test_weights_of_another_method_are_named(copied: Path, study: Study):
    save_file({"bias": torch.zeros(3)}, copied / store.WEIGHTS)
    finalise_again(copied)
    with pytest.raises(files.Damaged, match=f"{copied / store.WEIGHTS}: does not fit the method 'cmpta' of this version"):
        load(copied, llm=study.cache / "llm")


# --- one run on clips of one's own ------------------------------------------------------------------------------------


@pytest.fixture
def own(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of clips, and a runs folder whose tiny LLM is the smoke runs', under the name of the full one."""
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path / "runs"))
    shutil.copytree(llm_folder(study), synthetic.tiny_folder(tmp_path / "runs" / "cache" / "llm"))
    (tmp_path / "voices").mkdir()
    return clips(lambda number: ("angry", "calm", "happy")[number % 3], (24, 9, 12), tmp_path / "voices", has_face=False)


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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "cmpt"}, "row 'cmpt': no method 'cmpt'; there are: text_only, .*, cmpta$"),
        ({"changes": {"training.epoch": 1}}, r"no method has .* 'training.epoch' \(did you mean 'training.epochs'\?\)"),
        ({"changes": {"method.dim": 15}}, "method.cmpta: |multiple of 2"),
        ({"seed": -1}, "seeds=.-1.: expected"),
        ({"profile": "papper"}, "no profile 'papper'; there are: demo, paper"),
    ],
)
def test_what_cannot_be_trained_is_named_before_anything_starts(options: dict, said: str, own: Path):
    with pytest.raises(ValueError, match=said) as caught:
        cmpta_lib.train(own, **options)
    assert "\n" not in str(caught.value)
    assert not list(files.runs_folder().glob("voices-*"))


def test_a_folder_without_clips_says_what_was_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path / "runs"))
    with pytest.raises(FileNotFoundError, match="expected <name>_train.pkl and <name>_valid.pkl and <name>_test.pkl"):
        cmpta_lib.train(tmp_path)
