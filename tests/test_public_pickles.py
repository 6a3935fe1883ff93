"""Folders in MELD's public format, a user's own among them: read as they are meant, blamed by file and sample, odd ones named."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmpta_lib.data.corpus import SPLITS, Corpus, Inputs, Split, Task
from cmpta_lib.paper import MELD_LABELS
from data_prep import hub, meld, published, safe_pickle, simsv2, tasks, verify
from data_prep.public_pickles import read_folder
from data_prep.verify import findings


def item(label: Any = "joy", text: Any = "Hey!", audio_len: Any = 2, video_len: Any = 1, **changes: Any) -> dict:
    audio, video = np.zeros((6, 3), np.float32), np.zeros((4, 2))
    audio[: max(audio_len, 0) if isinstance(audio_len, int) else 0] = 0.5
    video[: max(video_len, 0) if isinstance(video_len, int) else 0] = -0.5
    features = {"text": text, "audio": audio, "audio_len": audio_len, "video": video, "video_len": video_len}
    features |= {key: changes.pop(key) for key in ("audio", "video") if key in changes}
    return {"label": label, "features": features} | changes


def clips(count: int, seed: int) -> list[dict]:
    """Clips that differ."""
    rng = np.random.default_rng(seed)
    frames = [rng.normal(size=(6, 3)).astype(np.float32) for _ in range(count)]
    return [item(("joy", "anger")[n % 2], f"clip {seed} {n}", audio=audio, audio_len=6) for n, audio in enumerate(frames)]


def save(folder: Path, train: Any = None, valid: Any = None, test: Any = None, name: str = "tiny") -> Path:
    """The three files; a split that is not given holds clips of the joyful and the angry."""
    folder.mkdir(exist_ok=True)
    usual = {"train": [item("joy"), item("anger")], "valid": [item()], "test": [item()]}
    for split, items in (("train", train), ("valid", valid), ("test", test)):
        content = pickle.dumps(usual[split] if items is None else items, 4)
        (folder / f"{name}_{split}.pkl").write_bytes(content)
    return folder


def convert(folder: Path | str, cache: Path | None = None) -> Corpus:
    return read_folder(folder, cache or Path(folder).parent / "cache")


def converted(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder.parent / "cache").glob("*") if path.is_dir())


def counts(corpus: Corpus, check: str) -> dict[str, int]:
    found = findings(corpus)
    return found[found["check"] == check].set_index("split")["count"].to_dict()


# --- what conforms ----------------------------------------------------------------------------------------------------


def test_public_files_are_cut_to_their_true_lengths(tmp_path: Path):
    ours = item("anger", audio_len=np.int64(5), video_len=0, id=17, speaker="Ross", dialogue=3)
    ours["features"]["audio"] = np.arange(18.0).reshape(6, 3) * (np.arange(6) < 5)[:, None]
    corpus = convert(save(tmp_path / "in", [item(), ours]))
    assert (corpus.name, corpus.generated, corpus.repairs) == ("tiny", False, {})
    assert corpus.task == Task("classification", "en", ("anger", "joy"))
    first, second = corpus.splits["train"]
    assert (first.id, first.speaker, first.dialogue, first.label) == ("train_00000", None, None, 1)
    assert (second.id, second.speaker, second.dialogue, second.label) == ("17", "Ross", "3", 0)
    np.testing.assert_array_equal(second.audio, np.arange(15).reshape(5, 3))
    assert second.vision.shape == (0, 2) and first.vision.tolist() == [[-0.5, -0.5]]
    assert corpus.splits["train"].labels.dtype == np.int64


def test_labels_and_texts_make_the_task(tmp_path: Path):
    corpus = convert(save(tmp_path / "seven", [item(label) for label in sorted(MELD_LABELS)]))
    assert corpus.task.labels == MELD_LABELS, "in the paper's order"
    assert [corpus.task.labels[one.label] for one in corpus.splits["train"]] == sorted(MELD_LABELS)
    chinese = [item(-1, "真好"), item(np.float32(0.5), "你 OK"), item(1.0, "hm")]
    corpus = convert(save(tmp_path / "scores", chinese, [item(0, "好")], [item(0.0, "")]))
    assert corpus.task == Task("regression", "zh") and corpus.splits["train"].labels.tolist() == [-1, 0.5, 1]
    words = ["joy", "mixed feelings", "愤怒", "je-ne-sais-quoi", "9", "a" * 100]
    assert convert(save(tmp_path / "words", [item(word) for word in words])).task.labels == tuple(sorted(words))


def test_the_second_call_does_not_convert_again(tmp_path: Path, monkeypatch):
    folder = save(tmp_path / "in")
    first = convert(folder)
    with monkeypatch.context() as patch:
        patch.setattr(safe_pickle, "load", lambda path: pytest.fail("read again"))
        assert convert(folder).fingerprint == first.fingerprint
    assert convert(save(folder, test=[item("anger")])).fingerprint != first.fingerprint
    assert len(converted(folder)) == 2
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path / "runs"))
    assert read_folder(folder).name == "tiny"  # where every study looks
    assert {path.name[:5] for path in (tmp_path / "runs" / "cache" / "data").iterdir()} == {"tiny-"}


def test_published_corpora_are_fetched_by_name_and_others_left_alone(tmp_path: Path, monkeypatch):
    asked: list[tuple[str, Path]] = []
    for module in (simsv2, meld):
        monkeypatch.setattr(module, "prepare", lambda cache, name=module.NAME: asked.append((name, cache)))
    published.fetch(["embedded-sims", "meld", "simsv2"], tmp_path)
    assert asked == [("meld", tmp_path), ("simsv2", tmp_path)]


def test_real_speech_is_converted(shared_folder: Path, tmp_path: Path):
    folder = shared_folder / "data" / "ravdess"
    corpus = read_folder(folder, tmp_path / "cache")
    labels = ("angry", "calm", "disgust", "fearful", "happy", "neutral", "sad", "surprised")
    assert corpus.task == Task("classification", "en", labels)
    assert corpus.repairs == {} and set(corpus.sources) == {f"ravdess_{split}.pkl" for split in SPLITS}
    assert {name: len(split) for name, split in corpus.splits.items()} == {"train": 1080, "valid": 120, "test": 240}
    actors = {name: {one_id[-2:] for one_id in split.table["id"]} for name, split in corpus.splits.items()}
    assert [len(actors[name]) for name in SPLITS] == [18, 2, 4]
    original = safe_pickle.load(folder / "ravdess_test.pkl")
    test = corpus.splits["test"]
    assert isinstance(test, Split) and (test.audio_dim, test.vision_dim) == (25, 177)
    for index in (0, 17, 239):
        features = original[index]["features"]
        assert test[index].vision.shape == (0, 177) and test[index].text == features["text"]
        assert labels[test[index].label] == original[index]["label"]
        np.testing.assert_array_equal(test[index].audio, features["audio"][: features["audio_len"]])
        assert not features["audio"][features["audio_len"] :].any()


Q = "which may be classes or scores; say it in the call, --data classes:FOLDER or scores"
NUMBERED = tuple(map(str, range(12)))


@pytest.mark.parametrize(
    ("call", "about", "labels", "expected"),
    [  # expected: the classes, or the scores in [-1, 1] and the range; or words of the refusal
        ("", None, (0, 1), f"labels are whole numbers (0, 1), {Q}:FOLDER, or in corpus.json in it: "),
        ("", None, (-1, 0.0, np.float32(1)), f"labels are whole numbers (-1, 0, 1), {Q}:FOLDER"),
        ("", None, (1, 5, 3), f'(1, 3, 5), {Q}=1..5:FOLDER, or in corpus.json in it: {{"task": "classes"}} or '),
        ("", None, ("0.5", "-1"), f"labels are numbers written as text (-1, 0.5), {Q}"),
        ("", None, NUMBERED[::-1], NUMBERED),
        ("classes:", None, (*range(11, -1, -1),), NUMBERED),
        ("", {"task": "classes"}, (1.0, -1, 0), ("-1", "0", "1")),
        ("classes:", {"task": "scores"}, (0, 1), ("0", "1")),  # the call counts
        ("scores:", None, (-1, 0, 1), ([-1, 0, 1], (-1, 1))),
        ("scores:", None, ("0.5", "-1"), ([0.5, -1], (-1, 1))),
        ("scores=1..5:", None, (1, 2, 5), ([-1, -0.5, 1], (1, 5))),
        ("", {"range": [-3, 3]}, (-3, 1.5, 0.0), ([-1, 0.5, 0], (-3, 3))),
        ("", None, (-2.5, 0.5), "sample 0: 'label' must be a number in [-1, 1], as no other range is said, but is -2.5; say"),
        ("", {"range": [1, 5]}, (1, 7), "sample 1: 'label' must be a number in [1, 5], the range that was said, but is 7;"),
        ("", None, (0.5, float("nan")), "sample 1: 'label' must be a finite number, as most in train, but is nan; "),
        ("", None, ("Sad", "Happy", "happy "), "sample 2: 'label' must be a class name of visible characters"),
        ("classes:", None, range(101), "_train.pkl must be of two classes or more, 100 at most, but is of 101; join some"),
        ("scores=5..1:", None, (0, 1), "'range' must be the lowest and the highest score, as in scores=1..5:FOLDER or"),
        ("class:", None, (0, 1), "there is no such folder: correct its name; only classes:, scores: or scores=LOW..HIGH: may"),
        ("", {"task": "classes", "range": [0, 1]}, (0, 1), "'range' must be of scores, but is said of classes;"),
        ("", {"taks": "classes"}, (0, 1), "corpus.json: 'taks' must be one of task, range, language, prompt, but is"),
        ("", {"range": "1-5"}, (1, 5), "corpus.json: 'range' must be the lowest and the highest score"),
        ("", {"language": "de"}, ("a", "b"), """corpus.json: 'language' must be "en" or "zh" (of another language, write the"""),
        ("", {"prompt": " "}, ("a", "b"), "corpus.json: 'prompt' must be a question in one line of at most 2000 characters"),
        ("", "{", ("a", "b"), "corpus.json must be JSON in UTF-8"),
        ("", '{"task": "classes", "task": "scores"}', (0, 1), "corpus.json must be a JSON object, each key once"),
    ],
)  # fmt: skip
def test_the_owner_says_what_labels_leave_open(tmp_path: Path, call: str, about: Any, labels: Any, expected: Any):
    folder = save(tmp_path / "in", *([item(label) for label in labels] for _ in SPLITS))
    if about is not None:
        (folder / "corpus.json").write_text(about if isinstance(about, str) else json.dumps(about))
    if isinstance(expected, str):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            convert(f"{call}{folder}", tmp_path / "cache")
        assert expected in str(caught.value) and len(str(caught.value)) - len(str(tmp_path)) < 250
        return
    corpus = convert(f"{call}{folder}", tmp_path / "cache")
    task, found = corpus.task, corpus.splits["test"].labels
    if isinstance(expected[0], str):
        assert (task.labels, [task.labels[one] for one in found]) == (expected, [str(int(float(one))) for one in labels])
    else:
        assert (found.tolist(), task.score_range) == expected
        assert task.to_range(found) == pytest.approx([float(one) for one in labels])


def test_the_conversion_says_the_task_and_what_is_odd(tmp_path: Path, capsys):
    silent = item("Happy", "", audio=np.zeros((6, 3)), video=None, video_len=0, id="quiet", speaker="Ann")
    long, other = (item(label, f"says {label}", speaker="Ann", audio_len=6, video_len=4) for label in ("happy", "Sad"))
    long["features"]["audio"][:] = other["features"]["audio"][:] = 0.25
    nothing = item("Sad", " ", audio=None, audio_len=0, video=None, video_len=None, id="void")
    convert(save(tmp_path / "in", [silent, long, item("Sad")], [nothing], [other]))
    said = capsys.readouterr().err
    for words in (
        "3 classes: Happy, Sad, happy; 3 train, 1 valid, 1 test clips: audio in 4, vision in 3, words in 3, read as English",
        "data issues: audio_all_zero 1",
        "WARNING: 1 clips have neither words nor face nor voice (void)",
        "WARNING: 1 of 1 test clips are in train too (train_00001 = test_00000): test scores are too good",
        "1 of 1 test speakers are in train too (Ann)",
        "WARNING: 1 clips, first quiet, have audio of zeros only: absent is a length of 0",
        "WARNING: the classes 'Happy' and 'happy' look alike; if they are one, write them alike",
    ):
        assert f"{tmp_path}/in: {words}\n" in said
    scores = [item(label) for label in (1, 2, 4.5)]
    assert tasks.absolute(f"classes:{tmp_path}/x/../in") == f"classes:{tmp_path}/in"
    (save(tmp_path / "scores", scores, scores, scores) / "corpus.json").write_text('{"range": [1, 5], "prompt": "Wie froh?"}')
    corpus = convert(tmp_path / "scores")
    assert "scores: regression, scores from 1 to 4.5 in the range [1, 5]; 3 train" in capsys.readouterr().err
    assert corpus.task == Task("regression", "en", score_range=(1, 5), prompt="Wie froh?")
    assert Inputs.from_json(Inputs.of(corpus).to_json()).task == corpus.task


@pytest.mark.parametrize("frames", ["no key", None, [], np.zeros(0), np.zeros((0, 0)), np.zeros((1, 7))])
@pytest.mark.parametrize("place", [0, 1])
def test_a_modality_that_is_not_there_may_be_left_out(tmp_path: Path, frames: Any, place: int):
    bare, other = item("joy", video_len=0), item("anger")
    bare["features"]["video"] = frames
    if isinstance(frames, str):
        del bare["features"]["video"], bare["features"]["video_len"]
    corpus = convert(save(tmp_path / "in", [bare, other][:: 1 - 2 * place]))
    assert corpus.splits["train"][place].vision.shape == (0, 2) and corpus.repairs == {}
    corpus = convert(save(tmp_path / "sound", [bare, bare | {"label": "anger"}], [bare], [bare]))
    assert {len(one.vision) for split in corpus.splits.values() for one in split} == {0}


# --- what does not: file and sample are blamed ------------------------------------------------------------------------


def without(path: str) -> dict:
    broken = item()
    *parents, last = path.split(".")
    del (broken[parents[0]] if parents else broken)[last]
    return broken


WHOLE = "must be a string that is not empty, or a whole number, of at most 200 characters, but is"
ROWS = "must be a (T, F) array of numbers, but is"


UNSHAPED = [
    ("audio", np.zeros(3), "an array of shape (3,)", r"a vector of one frame is audio\[None\], of one feature audio\[:, None\]"),
    ("audio", np.zeros((1, 2, 3)), "an array of shape (1, 2, 3)", r"write audio\[0\]"),
    ("video", np.zeros((2, 2, 3)), "an array of shape (2, 2, 3)", "make each frame one row"),
    ("video", np.zeros((2, 0)), "an array of shape (2, 0)", "make each frame one row"),
    ("video", [[1, 2], [3]], "a list of length 2", r"write np.array\(video, 'float32'\), all frames as long; an absent"),
    ("video", "a.npy", "'a.npy'", "write np.array"),
    ("video", np.ones((2, 2), complex), "an array of shape (2, 2) and type complex128", "write np.array"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        *((item(audio_len=length), "'audio_len' must be a whole number from 0 to the array's 6 rows, but is .")
          for length in (7, 1.5, True, 10**400)),
        (item(video_len=-1), r"'video_len' must be a whole number from 0 to the array's 4 rows, but is -1"),
        *((item(**{source: frames}), re.escape(f"{source!r} {ROWS} {came}") + f".*; {remedy}")
          for source, frames, came, remedy in UNSHAPED),
        (item(video=None), "'video_len' must be 0, as 'video' has no frames, but is 1; write 0, or add the frames"),
        (without("features.audio_len"), "'audio_len' must be a whole number from 0 to .* 6 rows, but is None; count the real"),
        ({"label": "joy", "features": {"text": "", "audio": None, "vision": 1}},
         "'features' must be a dict with 'audio' and 'video', but is one with .*; rename what was meant, and write None"),
        (without("features.text"), r"'features' must be a dict with \['text'\], but is .*; write '' if nothing is said"),
        (item(text=3), "'text' must be a string, but is 3"),
        (item(label=None), "'label' must be text or a number, but is None; write .*, or leave the clip out"),
        (item(label=[["long"] * 1000] * 1000), "'label' must be text or a number, but is a list of length 1000"),
        (item(label=0.5), r"'label' must be one of train's labels \['anger', 'joy'\], but is 0.5"),
        (item(label="fear"), r"'label' must be one of train's labels .* but is 'fear'; correct it or add"),
        (without("label"), r" must be a dict with \['features', 'label'\], but is one with \['features'\]; add what"),
        (item() | {"features": [1]}, "'features' must be a dict with .* but is a list"),
        ("text", "tiny_valid.pkl, sample 1 must be a dict with .'features', 'label'., but is 'text'"),
        ({}, r"sample 1 must be a dict with .*, but is one with \[\]"),
        (item(id=["a"]), "'id' must be a string"),
        (item(id={"a": 1}), r"\(id a dict of length 1\): 'id' must be a string"),
        (item(id=""), rf"sample 1 \(id ''\): 'id' {WHOLE} ''"),
        (item(id=True), f"'id' {WHOLE} True"),
        (item(speaker=False), f"'speaker' {WHOLE} False"),
        (item(dialogue=3.0), f"'dialogue' {WHOLE} 3.0"),
        (item(id="x" * 201), f"'id' {WHOLE} 'xxx"),
    ],
)  # fmt: skip
def test_a_sample_that_does_not_conform_is_named(tmp_path: Path, broken: Any, message: str):
    folder = save(tmp_path / "in", valid=[item(), broken])
    with pytest.raises(ValueError, match=message) as caught:
        convert(folder)
    assert str(folder / "tiny_valid.pkl, sample 1") in str(caught.value) and len(str(caught.value)) < 500
    assert converted(folder) == []


MIXED = "sample {}: 'label' must be a finite number, as most in train, but is 'joy'; correct it, or leave the clip out"
LONG = "sample 1: 'label' must be a class name of at most 100 characters, but is one of 100000, 'aaa"


def scores(*labels: Any) -> list[dict]:
    return [item(label) for label in labels]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        *(({split: []}, rf"_{split}.pkl.*(is empty; fill it|holds no samples; every split)") for split in SPLITS),
        ({"train": scores("joy", "joy")}, "_train.pkl must be of two classes or more, 100 at most, but is of 'joy' alone; add"),
        (dict.fromkeys(SPLITS, scores("joy", 0.2, 0.3)), f"_train.pkl, {MIXED.format(0)}"),
        (dict.fromkeys(SPLITS, scores(0.1, 0.2, "joy")), f"_train.pkl, {MIXED.format(2)}"),
        ({"train": scores(0.1, "joy", "anger")}, "_train.pkl, sample 0: 'label' must be one of train's labels"),
        ({"train": scores("joy", "a" * 100_000)}, f"_train.pkl, {LONG}"),
        ({"train": [item(f"label {n}") for n in range(3000)]}, "_valid.pkl, .* one of train's labels .'label 0', "),
        ({"train": [item(0.5), item(3, id="c7")], "valid": scores(0.1), "test": scores(0.2)},
         r"_train.pkl, sample 1 \(id 'c7'\): 'label' must be a number in \[-1, 1\], as no other range is said, but is 3; say"),
        ({"test": {"train": []}}, "_test.pkl must be a list of dicts, one per sample, but is a dict"),
        ({"test": [print]}, "_test.pkl: .*'builtins' 'print'"),
    ],
)  # fmt: skip
def test_files_that_do_not_go_together_blame_the_odd_one(tmp_path: Path, splits: dict, message: str):
    folder = save(tmp_path / "in", **splits)
    with pytest.raises(ValueError, match=f"^{folder}/tiny{message}") as caught:
        convert(folder)
    assert len(str(caught.value)) < 500
    assert isinstance(caught.value, safe_pickle.UnsafePickleError) == ("print" in message)


@pytest.mark.parametrize(
    ("label", "remedy"),
    [
        ("", "write the class's name"),
        (" \n", "write the class's name"),
        *((label, "write 'joy'") for label in ("joy ", "\tjoy", "jo\u200by", "joy\n", "joy\x00", "joy\ud800")),
        ("mixed\xa0 feelings", "write 'mixed feelings'"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_that_look_like_others_are_refused(tmp_path: Path, label: str, remedy: str, split: str):
    folder = save(tmp_path / "in", **{split: scores("joy", "anger", label)})
    with pytest.raises(ValueError, match="'label' must be a class name of visible characters") as caught:
        convert(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder}/tiny_{split}.pkl, sample 2: ") and message.endswith(f"; {remedy}")
    assert message.isprintable()


@pytest.mark.parametrize("name", ["..", ".hidden", "a\nb", "a\x7f", "\udcff", "n" * 240, "名" * 80])
def test_a_name_that_cannot_name_results_is_refused(tmp_path: Path, name: str):
    folder = save(tmp_path / "in", name=name)
    with pytest.raises(ValueError, match=f"^{folder}: the dataset's name, .* must be one .*; rename or remove") as caught:
        convert(folder)
    assert len(str(caught.value)) < 400 and str(caught.value).isprintable()
    assert not (tmp_path / "cache").exists()
    assert convert(save(tmp_path / "longest", name="n" * 120)).name == "n" * 120


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["tiny_train.pkl", "tiny_test.pkl.gz"], "expected 'tiny_valid.pkl', 'tiny_test.pkl', .*; unpack 'tiny_test.pkl.gz'"),
        (["tiny_train.pkl", "test.pkl"], "found 'test.pkl', 'tiny_train.pkl'; rename 'test.pkl' to end in _train.pkl, "),
        (["tiny_train.pkl"], "; fetch what is missing, or split your clips"),
        ([f"clip{n}.wav" for n in range(200)], "found 'clip0.wav', .* and 197 more; recordings need features first: cmpta "),
        (["features/tiny_train.pkl"], "found nothing; name the folder below it: 'features'"),
        (["tiny_train.pkl", "other_test.pkl"], "expected one dataset, found 'other', 'tiny'; give each a folder of its own"),
        ([f"tiny_{n}.pkl" for n in ("train", "val", "valid")], "one file a split, found 'tiny_val.pkl', 'tiny_valid.pkl'"),
        (["z" * 90 + f"{n}.txt" for n in range(9)], "found 'zzz"),
    ],
)  # fmt: skip
def test_missing_packed_and_mixed_files_are_named(tmp_path: Path, names: list[str], message: str):
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    with pytest.raises((FileNotFoundError, ValueError), match=message) as caught:
        convert(tmp_path / "in")
    assert len(str(caught.value)) - len(str(tmp_path)) < 300


def test_a_folder_that_is_none_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    for name, message in (
        ("nowhere", "there is no such folder: correct its name$"),
        ("file", "it is a file: name its folder$"),
        ("class:in", "; only classes:, scores: or scores=LOW..HIGH: may stand before it$"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            convert(tmp_path / name)


@pytest.mark.parametrize("name", ["val", "dev", "validation", "VALID"])
def test_other_names_of_the_splits_are_understood(tmp_path: Path, name: str):
    folder = save(tmp_path / "数据")
    (folder / "z_train.pkl").mkdir()  # not taken for a file
    (folder / "._tiny_test.pkl").touch()  # of a Mac
    (folder / "tiny_valid.pkl").rename(folder / f"tiny_{name}.pkl")
    corpus = convert(folder)
    assert len(corpus.splits["valid"]) == 1 and f"tiny_{name}.pkl" in corpus.sources


@pytest.mark.parametrize(
    ("owner", "call", "wanted", "message"),
    [
        (hub, "hash_of", "in/tiny_valid.pkl", "cannot read {}: no permission; grant it, or read a copy"),
        (safe_pickle, "load", "in/tiny_test.pkl", "cannot read {}: no permission; grant it, or read a copy"),
        (Path, "iterdir", "in", "cannot read {}: no permission; grant it, or read a copy"),
        (Path, "mkdir", "cache", "cannot write {}/tiny-.*: no permission: .* CMPTA_RUNS"),
    ],
)
def test_what_may_not_be_read_or_written_is_named_with_what_to_do(tmp_path: Path, monkeypatch, owner, call, wanted, message):
    folder, real = save(tmp_path / "in"), getattr(owner, call)

    def forbidden(path: Path, *rest: Any, **named: Any) -> Any:  # root may all
        if Path(path) == tmp_path / wanted:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **named)

    monkeypatch.setattr(owner, call, forbidden)
    with pytest.raises(PermissionError, match=message.format(tmp_path / wanted)):
        convert(folder)


# --- data issues ------------------------------------------------------------------------------------------------------


def test_data_issues_are_counted(tmp_path: Path):
    noisy = np.zeros((6, 3))
    noisy[1], noisy[3:5, 0] = np.nan, 2  # one real frame, two behind the true length of 2
    corpus = convert(save(tmp_path / "in", [item(audio=noisy), item("anger", note="x"), item(note="y")]))
    assert corpus.repairs == {"audio_nan": 3, "audio_nonzero_frames_after_length": 2, "ignored_field_note": 2}
    assert corpus.splits["train"][0].audio.tolist() == [[0, 0, 0], [0, 0, 0]]
    corpus = convert(save(tmp_path / "absent", [item(), item("anger", audio_len=0, video_len=0), item(audio_len=0)]))
    assert counts(corpus, "neither face nor voice") == {"train": 1, "valid": 0, "test": 0}


def test_values_that_would_flatten_a_feature_become_zero_or_are_listed(tmp_path: Path):
    check, train = "audio features ruled by one frame", clips(30, 0)
    for value, repairs, ruled in ((0, {}, 0), (1e30, {"audio_huge": 1}, 0), (1e12, {}, 1)):
        train[4]["features"]["audio"][2, 1] = value
        corpus = convert(save(tmp_path / f"{value}", train, clips(2, 1), clips(2, 2)))
        assert corpus.repairs == repairs and counts(corpus, check) == {"train": ruled}
        assert counts(corpus, "vision features ruled by one frame") == {"train": 0}
        assert ruled or corpus.splits["train"].feature_statistics("audio")[1].max() < 2
    (shown,) = findings(corpus).query("check == @check")["examples"]
    assert shown == "feature 1 by a value about 1e+12"


def test_one_file_under_two_names_is_said_aloud_in_every_call(tmp_path: Path, capsys):
    folder = save(tmp_path / "in", train := clips(8, 0), clips(2, 1), train)
    for _ in range(2):
        corpus = convert(folder)
        said = capsys.readouterr().err.splitlines()
        assert said[-2].startswith(f"{folder}: WARNING: tiny_train.pkl = tiny_test.pkl: one file under two names")
        assert said[-1].startswith(f"{folder}: WARNING: 8 of 8 test clips are in train too (train_00000 = test_00000, ")
    assert counts(corpus, "files with equal contents") == {"all": 1}
    assert counts(corpus, "same clip") == {"train+valid": 0, "train+test": 8, "valid+test": 0}
    table = verify.overview([corpus])
    assert verify.report(corpus).startswith("WARNING: ") and table["check"][:2].str.startswith("WARNING: ").all()
    page = verify.summary(table)
    assert page["check"][:2].tolist() == table["check"][:2].tolist() and page["count"][:2].tolist() == ["1", "1"]
    assert page.set_index("check").loc["same clip", "count"] == "train+test 8"


@pytest.mark.parametrize("present", ["audio", "video"])
def test_the_same_clip_in_two_files_is_said_aloud(tmp_path: Path, capsys, present: str):
    absent = {"audio": "video", "video": "audio"}[present]
    twice, other = (item("joy", "Hey!", **{f"{absent}_len": 0}) for _ in range(2))
    other["features"][present] = other["features"][present] + 1  # the same words in another voice
    other["features"][f"{present}_len"] = twice["features"][f"{present}_len"]
    corpus = convert(save(tmp_path / "in", [item("anger", "No!"), twice], [twice], [other]))
    assert counts(corpus, "same clip") == {"train+valid": 1, "train+test": 0, "valid+test": 0}
    assert "1 of 1 valid clips are in train too (train_00001 = valid_00000): valid scores" in capsys.readouterr().err


def test_of_clean_clips_the_conversion_says_the_task_alone(tmp_path: Path, capsys):
    folder = save(tmp_path / "in", clips(8, 0), clips(2, 1), clips(2, 2))
    corpus = convert(folder)
    said = "2 classes: anger, joy; 8 train, 2 valid, 2 test clips: audio in 12, vision in 12, words in 12, read as English"
    assert capsys.readouterr() == ("", f"{folder}: {said}\n") and verify.warnings(corpus) == []
    convert(folder)
    assert capsys.readouterr() == ("", "")
