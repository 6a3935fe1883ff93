"""MELD's features are joined to the official rows; where both do not belong together, the rows are named."""

from __future__ import annotations

import csv
import io
import json
import pickle
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmpta_lib.paper import MELD_LABELS
from data_prep import hub, meld, synthetic_files, verify
from data_prep.meld import mend, prepare, read_annotations

HEADER = ("Sr No.", *meld._COLUMNS)
ROWS = {
    # text, speaker, emotion, sentiment, dialogue, utterance, season, episode, start, end
    "train": [
        ("Hi there.", "Ross", "neutral", "neutral", 0, 0, 8, 21, "00:16:16,059", "00:16:21,731"),
        ("You must’ve been  busy…", "The Interviewer", "joy", "positive", 0, 2, 8, 21, "0:16:21,940", "00:16:23,442"),
        ("None", "Ross", "surprise", "positive", 1, 0, 3, 2, "01:00:00,5", "01:00:01,25"),
        ("Hey!", "Rachel", "joy", "positive", 1, 1, 3, 2, "0:00:00,000", "00:00:01,000"),
        ("Hey!", "Ross", "joy", "positive", 1, 2, 3, 2, "00:00:01,000", "00:00:02,000"),
        ('He said "no", twice.', "Joey", "anger", "negative", 2, 0, 1, 1, "00:00:03,000", "00:00:04,000"),
        ("Oh no.", "Joey", "sadness", "negative", 2, 1, 1, 1, "00:00:05,000", "00:00:06,000"),
    ],
    "valid": [("nan", "Gunther", "disgust", "negative", 0, 0, 1, 1, "00:00:01,000", "00:00:02,000")],
    "test": [
        ("Fine.", "Joey", "fear", "negative", 0, 0, 1, 1, "00:00:01,000", "00:00:02,000"),
        ("Fine.", "Joey", "fear", "negative", 0, 1, 1, 1, "00:00:03,000", "00:00:02,000"),
    ],
}
SIZES = {split: len(rows) for split, rows in ROWS.items()}


def items_of(split: str) -> list[dict[str, Any]]:
    """Item i has 3 + i frames of audio and 1 + i of video."""
    items = []
    for i, (text, _, label, *_) in enumerate(ROWS[split]):
        audio, video = np.full((20, 3), i + 0.5, np.float32), np.full((10, 2), -i - 0.5, np.float32)
        audio[3 + i :], video[1 + i :] = 0, 0
        features = {"text": text, "audio": audio, "audio_len": 3 + i, "video": video, "video_len": 1 + i}
        items.append({"label": label, "features": features})
    return items


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write synthetic files; `changes` replace a split's items, `rows` a split's table."""

    def save(
        changes: dict[str, list] | None = None,
        rows: dict[str, list] | None = None,
        sizes: dict[str, int] | None = SIZES,
        encode: Callable[[str], bytes] = str.encode,
    ) -> Path:
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        for split in ROWS:
            items = (changes or {}).get(split, items_of(split))
            (folder / meld.FEATURES[split]).write_bytes(pickle.dumps(items, 4))
            table = io.StringIO(newline="")
            csv.writer(table).writerows([HEADER, *((0, *row) for row in (rows or {}).get(split, ROWS[split]))])
            (folder / meld.TABLES[split]).write_bytes(encode(table.getvalue()))
        manifest = {"source": "test", "revision": "", "generated": True, "sizes": sizes, "files": {}}
        (folder / hub.MANIFEST).unlink(missing_ok=True)
        if sizes:
            (folder / hub.MANIFEST).write_text(json.dumps(manifest))
        return folder

    return save


def refuse(folder: Path, cache: Path) -> str:
    with pytest.raises(ValueError) as caught:
        prepare(cache, folder)
    assert not (cache / "data" / "meld").exists()
    return str(caught.value)


# What belongs together -------------------------------------------------------------------------------------------
def test_features_get_their_official_rows(save, tmp_path: Path):
    folder = save()
    corpus = prepare(tmp_path / "cache", folder)
    assert (corpus.name, corpus.task.kind, corpus.task.language) == ("meld", "classification", "en")
    assert corpus.task.labels == MELD_LABELS and corpus.generated and corpus.repairs == {}
    assert corpus.sources == {name: hub.sha256(folder / name) for name in (*meld.FEATURES.values(), *meld.TABLES.values())}
    assert {name: len(split) for name, split in corpus.splits.items()} == SIZES
    sample = corpus.splits["train"][1]
    assert (sample.id, sample.speaker, sample.dialogue) == ("dia0_utt2", "The Interviewer", "train_dia0")
    assert sample.text == "You must’ve been  busy…" and sample.label == MELD_LABELS.index("joy")
    assert sample.extra == {"utterance": 2, "season": 8, "episode": 21, "sentiment": "positive"} | {
        "start_s": 16 * 60 + 21.94, "end_s": 16 * 60 + 23.442
    }  # fmt: skip
    assert sample.audio.tolist() == [[1.5] * 3] * 4 and sample.vision.tolist() == [[-1.5] * 2] * 2
    assert corpus.splits["train"][2].text == "None" and corpus.splits["valid"][0].text == "nan"
    times = corpus.splits["train"][2].extra
    assert (times["start_s"], times["end_s"]) == (3600.5, 3601.25)  # one digit is a tenth, two are hundredths
    assert corpus.splits["test"][0].dialogue == "test_dia0"


def test_texts_of_old_copies_are_mended_on_both_sides(save, tmp_path: Path):
    clean = prepare(tmp_path / "clean", save())
    items = items_of("train")
    items[1]["features"]["text"] = "You must\x92ve\xa0been  busy\x85"
    old = [("Hi\xa0there.", "Ro\x92ss", *ROWS["train"][0][2:]), *ROWS["train"][1:]]
    corpus = prepare(tmp_path / "old", save({"train": items}, {"train": old}))
    assert corpus.repairs == {"annotation_speaker_mended": 1, "annotation_utterance_mended": 1, "text_mended": 1}
    assert list(corpus.splits["train"].table["text"]) == list(clean.splits["train"].table["text"])
    assert corpus.splits["train"][0].speaker == "Ro’ss"
    assert mend("It\x92s \x93fine\x94\x85 caf\xe9 — it’s") == "It’s “fine”… café — it’s"
    assert mend("\x81\x8d\x8f\x90\x9d") == "\x81\x8d\x8f\x90\x9d"  # Windows-1252 has nothing there
    assert mend("a\xa0b") == "a b"


def test_what_is_odd_is_counted_and_the_official_rows_kept(save, tmp_path: Path):
    items, test = items_of("train"), items_of("test")
    items[1]["features"]["text"] = " You must’ve been busy…"
    items[1] |= {"id": "mine", "speaker": "Somebody", "dialogue": None}
    items[2] |= {"id": 7}
    test[1]["features"] |= {"audio_len": 0, "audio": np.zeros((20, 3), np.float32)}
    corpus = prepare(tmp_path / "cache", save({"train": items, "test": test}))
    counts = {"audio_absent": 1, "ignored_field_id": 2, "ignored_field_speaker": 1, "text_spaces_differ": 1}
    kept = corpus.splits["train"][1]
    assert corpus.repairs == counts and corpus.splits["test"][1].audio.shape == (0, 3)
    assert (kept.text, kept.id, kept.speaker) == ("You must’ve been  busy…", "dia0_utt2", "The Interviewer")


def test_what_is_not_given_is_fetched(save, tmp_path: Path, monkeypatch):
    folder, cache = save(sizes=None), tmp_path / "cache"
    sizes = type("Row", (), SIZES)
    monkeypatch.setattr(meld, "TABLE1", {"MELD": sizes})
    asked: list[tuple[str, Path]] = []

    def fetch(published: hub.Published, target: Path) -> hub.Found:
        asked.append((published.title, target))
        return hub.find(published, folder)

    monkeypatch.setattr(hub, "fetch", fetch)
    corpus = prepare(cache)
    assert not corpus.generated
    raw = cache / "raw" / "meld"
    assert prepare(cache).fingerprint == prepare(cache, folder).fingerprint == corpus.fingerprint  # opened
    assert asked == [("MELD features", raw), ("MELD annotations", raw / "annotations")]
    asked.clear()
    assert prepare(tmp_path / "second", folder).fingerprint == corpus.fingerprint and asked == []
    (tmp_path / "features").mkdir()
    for name in meld.FEATURES.values():
        (tmp_path / "features" / name).write_bytes((folder / name).read_bytes())
    assert prepare(tmp_path / "third", tmp_path / "features").fingerprint == corpus.fingerprint
    assert [title for title, _ in asked] == ["MELD annotations"]
    assert prepare(tmp_path / "fourth", tmp_path / "features", folder).fingerprint == corpus.fingerprint
    assert len(asked) == 1


# What does not: the message names the rows ------------------------------------------------------------------------
def changed(index: int, **fields: object) -> list[dict[str, Any]]:
    """Training items with one changed."""
    items = items_of("train")
    if "label" in fields:
        items[index]["label"] = fields.pop("label")
    items[index]["features"] |= fields
    return items


def line(row: int, split: str = "train") -> str:
    """How a message names a row."""
    text, _, label, _, dialogue, utterance, *_ = ROWS[split][row]
    return f"{meld.TABLES[split]} line {row + 2} (dia{dialogue}_utt{utterance}) {text!r} [{label}]"


ITEMS, TABLE = items_of("train"), ROWS["train"]
EXTRA = ("Extra.", "Ross", "joy", "positive", 9, 9, 1, 1, "00:00:01,000", "00:00:02,000")


def item(place: int, items: list = ITEMS) -> str:
    """How a message names an item."""
    return f"item {place} {items[place]['features']['text']!r} [{items[place]['label']}]"


def without(index: int, rows: list = ITEMS) -> list:
    return [row for i, row in enumerate(rows) if i != index]


OTHER = changed(5, text="He said yes.", label="Anger")
SWAPPED, MOVED = [ITEMS[5], *ITEMS[1:5], ITEMS[0], ITEMS[6]], ITEMS[1:6] + ITEMS[:1] + ITEMS[6:]
KEEP = "lengths 0, or take the pickles as your own data: --data FOLDER"
MEND = "fetch both of one release, or mend the named rows"


@pytest.mark.parametrize(
    ("items", "rows", "expected"),
    [
        (OTHER, TABLE, f" has {item(5, OTHER)}, expected {line(5)}; {MEND}"),
        *((changed(5, label=label), TABLE, f"[{label}], expected {line(5)}; ") for label in ("fear", "Anger", 3)),
        *((without(i), TABLE, f"(6 items, 7 rows): lacks {line(i)}, expected before item {i}; keep such a clip, with {KEEP}")
          for i in (0, 2, 5, 6)),
        *((without(i), TABLE, f" lacks {line(4)}, expected before item 4; ") for i in (3, 4)),  # neighbours are equal
        (ITEMS[3:], TABLE, f" lacks {line(0)} and 2 more from there, expected before item 0; "),
        (ITEMS[:1] + ITEMS[4:], TABLE, f" lacks {line(1)} and 2 more from there"),
        ([ITEMS[0], changed(0, text="Who is this?")[0], *ITEMS[1:]], TABLE,
         f" has item 1 'Who is this?' [neutral], and there is no such row before {line(1)}; {MEND}"),
        (ITEMS, without(6, TABLE), f"(7 items, 6 rows): has {item(6)}, and there is no such row after the last line of"),
        (ITEMS, [*TABLE, EXTRA], " lacks train_sent_emo.csv line 9 (dia9_utt9) 'Extra.' [joy], expected before item 7; "),
        (SWAPPED, TABLE, f" has {item(0, SWAPPED)}, expected {line(0)}, and so in 1 more places; "),
        (MOVED, TABLE, f" lacks {line(0)}, expected before item 0, and so in 1 more places; "),
        ([OTHER[5], *ITEMS[2:]], TABLE, f" has {item(0, [OTHER[5]])}, expected {line(0)} and 1 more from there"),
    ],
)  # fmt: skip
def test_rows_that_differ_are_named(save, tmp_path: Path, items: list, rows: list, expected: str):
    message = refuse(folder := save({"train": items}, {"train": rows}), tmp_path / "cache")
    assert message.startswith(f"{folder}/meld_train.pkl (") and expected in message, message
    assert len(message) - len(str(folder)) < 250 and "\n" not in message


def test_the_split_is_named_and_features_that_do_not_conform(save, tmp_path: Path):
    for split, table in (("valid", "dev_sent_emo.csv"), ("test", "test_sent_emo.csv")):
        items = items_of(split)
        items[0]["features"]["text"] = "Wrong."
        message = refuse(save({split: items}), tmp_path / "cache")
        assert f"meld_{split}.pkl" in message and f", expected {line(0, split)}" in message and table in message
    items = items_of("train")
    del items[2]["features"]["video_len"]
    message = refuse(save({"train": items}), tmp_path / "cache")
    assert "sample 2: 'video_len' must be a whole number, but is not given; write how many" in message
    assert "'audio_len' must be a whole number" in refuse(save({"train": changed(1, audio_len=21)}), tmp_path / "cache")


def test_splits_of_another_size_than_table_1_says_are_refused(save, tmp_path: Path):
    message = refuse(save(sizes=None), tmp_path / "cache")
    assert f"{meld.FEATURES['train']} must be of 9989 samples, the split's size in Table 1 of the paper, but is of 7" in message
    assert message.endswith("; keep such a clip, with lengths 0, or take the pickles as your own data: --data FOLDER")


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("Emotion", "happy", "one of neutral, surprise"),
        ("Dialogue_ID", "1.0", "a whole number"),
        ("Dialogue_ID", "9" * 23, "a whole number of 9 digits at most"),
        ("Utterance_ID", "٣", "a whole number"),
        ("Sentiment", "", "one of neutral, positive, negative"),
        ("Sentiment", "joy", "one of neutral, positive, negative"),
        ("Speaker", "", "a name"),
        ("Speaker", " ", "a name"),
        ("StartTime", "9" * 12 + ":00:00,0", "a time such as"),
        ("Season", "", "a whole number"),
        ("StartTime", "16:21", "a time such as 00:16:16,059"),
        ("EndTime", "", "a time such as"),
    ],
)
def test_a_table_field_that_does_not_conform_is_named(save, tmp_path: Path, column: str, value: str, expected: str):
    row = list(ROWS["train"][3])
    row[HEADER.index(column) - 1] = value
    message = refuse(save(rows={"train": [*ROWS["train"][:3], row, *ROWS["train"][4:]]}), tmp_path / "cache")
    assert f"train_sent_emo.csv, line 5: {column!r} must be {expected}" in message and f"is {value!r}" in message


def test_a_repeated_key_is_named_and_lines_counted_where_a_field_spans_two(save, tmp_path: Path):
    message = refuse(save(rows={"train": [*ROWS["train"], ROWS["train"][0]]}), tmp_path / "cache")
    assert "line 9 must be of another Dialogue_ID and Utterance_ID than all before, but is dia0_utt0" in message
    rows = [("Two\nlines.", *ROWS["train"][0][1:]), *ROWS["train"][1:6], ("Other.", *ROWS["train"][6][1:])]
    message = refuse(save({"train": changed(0, text="Two\nlines.")}, {"train": rows}), tmp_path / "cache")
    assert ", expected train_sent_emo.csv line 9 (dia2_utt1) 'Other.'" in message


@pytest.mark.parametrize(
    ("encode", "expected"),
    [
        (lambda text: b"", "expected a table, but the file is empty"),
        (lambda text: text.encode().splitlines(keepends=True)[0], "only the header is there"),
        (lambda text: text.encode() + b'8,"Oh', "expected a complete table of comma-separated values"),
        (lambda text: text.replace("\r\n", ",x\r\n").replace(",x", "", 1).encode(), "expected a complete table of comma"),
        (lambda text: text.replace("Sr No.", "Speaker").encode(), "Speaker there twice"),
        (lambda text: text.replace("Emotion", "Feeling").encode(), "expected the columns Utterance, "),
        (lambda text: text.replace("Emotion", "Feeling").encode(), "Emotion missing"),
        (lambda text: text.encode()[:-33], "'Episode' must be a whole number"),
        (lambda text: text.encode("cp1252", "replace"), "train_sent_emo.csv: expected a table in UTF-8"),
        (lambda text: text.encode("utf-16"), "train_sent_emo.csv: expected a table in UTF-8"),
    ],
)
def test_a_damaged_table_is_refused(save, tmp_path: Path, encode: Callable[[str], bytes], expected: str):
    message = refuse(save(encode=encode), tmp_path / "cache")
    assert "train_sent_emo.csv" in message and expected in message
    assert ("UTF-8" in message) == ("UTF-8" in expected)
    assert "use the official table from https://github.com/declare-lab/MELD" in message


def test_a_byte_order_mark_and_unknown_columns_do_no_harm(save, tmp_path: Path):
    expected = prepare(tmp_path / "cache", save()).fingerprint
    marked = save(encode=lambda text: b"\xef\xbb\xbf" + text.replace("Sr No.", "Utterance?").encode())
    assert prepare(tmp_path / "other cache", marked).fingerprint == expected


def test_random_damage_is_explained_completely():
    """Undoing the differences gives the original, and there are no more of them than were made."""
    draw = random.Random(0)
    for _ in range(300):
        rows = [draw.choice("abcde") + str(draw.randrange(4)) for _ in range(draw.randrange(0, 40))]
        items, changes = list(rows), draw.randrange(0, 6)
        for _ in range(changes):
            place = draw.randrange(len(items) + 1)
            new = [f"new {draw.randrange(9)}"]
            items[place : place + draw.randrange(2)] = draw.choice([[], new])
        found, rebuilt = meld._differences(items, rows), list(items)
        for start, stop, first, last in reversed(found):
            rebuilt[start:stop] = rows[first:last]
        assert rebuilt == rows and (changes or not found)


# The official tables ---------------------------------------------------------------------------------------------
OFFICIAL = {  # neutral, surprise, fear, sadness, joy, disgust, anger
    "train": (4710, 1205, 268, 683, 1743, 271, 1109),
    "valid": (470, 150, 40, 111, 163, 22, 153),
    "test": (1256, 281, 50, 208, 402, 68, 345),
}


@pytest.fixture(scope="module")
def official(shared_folder: Path) -> Path:
    folder = shared_folder / "data" / "meld"
    if not (folder / "train_sent_emo.csv").is_file():
        pytest.skip(f"no official tables: {folder} is absent")
    return folder


def test_the_official_tables_have_the_known_counts_and_times(official: Path):
    repairs: Counter[str] = Counter()
    tables = {split: read_annotations(official / meld.TABLES[split], repairs) for split in OFFICIAL}
    for split, counts in OFFICIAL.items():
        assert tuple(tables[split]["Emotion"].value_counts()[list(MELD_LABELS)]) == counts
        assert len(tables[split]) == getattr(meld.TABLE1["MELD"], split) == sum(counts)
    dialogues = {split: table["Dialogue_ID"].nunique() for split, table in tables.items()}
    assert dialogues == {"train": 1038, "valid": 114, "test": 280}
    assert len(set().union(*(table["Speaker"] for table in tables.values()))) == 304
    assert repairs.total() == 0  # nothing to mend in them
    test = tables["test"].set_index("name")
    length = test["EndTime"] - test["StartTime"]
    known = [length["dia38_utt4"], length["dia220_utt0"], length["dia155_utt3"], length.mean()]
    assert known == pytest.approx([304.94, 235.07, 0, 3.31], abs=0.006)


@pytest.fixture(scope="module")
def complete(official: Path, tmp_path_factory) -> Path:
    """All 13,708 official rows with frames of one value each: text, label, order and count decide, not features."""
    folder = tmp_path_factory.mktemp("complete")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_files, "MELD_SHAPES", {"audio": (2, 3), "video": (2, 3)})
        synthetic_files.write_meld(folder, annotations=official)
    return folder


def test_a_complete_set_is_converted_with_its_known_duplicates(official: Path, complete: Path, tmp_path: Path):
    for name in meld.TABLES.values():
        assert (complete / name).read_bytes() == (official / name).read_bytes()
    corpus = prepare(tmp_path / "cache", complete)
    assert {split: tuple(np.bincount(corpus.splits[split].labels)) for split in OFFICIAL} == OFFICIAL
    assert corpus.repairs["text_mended"] > 500
    assert corpus.splits["train"].table["id"].is_unique
    assert corpus.splits["train"].table["dialogue"].nunique() == 1038
    found = verify.findings(corpus).set_index(["check", "split"])
    clips = found.loc["same official clip", "count"].to_dict()
    assert clips == {"train": 10, "valid": 0, "test": 0, "train+valid": 0, "train+test": 1, "valid+test": 0}
    assert found.loc[("same official clip", "train+test"), "examples"] == "dia12_utt7 = dia85_utt0"
    assert found.loc["same words", "count"].to_dict() == {"train+valid": 2, "train+test": 8}
    assert verify.report(corpus).count("\n") < 45


@pytest.mark.slow
def test_corruptions_of_a_complete_set_are_found(complete: Path, tmp_path: Path):
    path = complete / "meld_train.pkl"
    items = pickle.loads(path.read_bytes())
    damaged, swapped = [*items], [*items]
    damaged[777] = {**items[777], "features": {**items[777]["features"], "text": "Not this."}}
    swapped[100], swapped[7000] = items[7000], items[100]
    for content, pattern in (
        (damaged, r"rows\): has item 777 'Not this.'.*, expected train_sent_emo.csv line 779 "),
        (items[:5000] + items[5001:], r"rows\): lacks \S+ line 5002 \(dia531_utt6\).*; keep such a clip"),
        (swapped, r"rows\): has item 100 .*, expected \S+ line 102 .*, and so in 1 more places; "),
    ):
        path.write_bytes(pickle.dumps(content, 4))
        assert "meld_train.pkl must be the file with SHA-256" in refuse(complete, tmp_path / "other cache")
        manifest = json.loads((complete / hub.MANIFEST).read_text())
        (complete / hub.MANIFEST).write_text(json.dumps(manifest | {"files": {}}))
        said = refuse(complete, tmp_path / "other cache")
        (complete / hub.MANIFEST).write_text(json.dumps(manifest))
        assert re.search(pattern, said) and len(said) < 400


def test_the_command_takes_both_folders_and_says_what_is_wrong_in_few_words(save, tmp_path: Path, capsys):
    folder, cache = str(save()), str(tmp_path / "cache")
    assert meld.main(["--from", folder, "--annotations", folder, "--cache", cache]) == 0
    shown = capsys.readouterr().out
    assert "Corpus meld" in shown and "label disgust" in shown and shown.endswith(f"{cache}/data/meld\n")
    folder = str(save({"train": changed(5, label="x" * 10**6)}))
    assert meld.main(["--from", folder, "--cache", str(tmp_path / "other")], "cmpta data meld") == 1
    shown = capsys.readouterr()
    assert shown.out == "" and ", expected train_sent_emo.csv line 7 " in shown.err and len(shown.err) < 400
