"""Synthetic files have the public files' form, repeat by seed, overwrite nothing, and pass through the same conversion."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmpta_lib.paper import MELD_LABELS, TABLE1
from data_prep import hub, meld, simsv2, synthetic_files
from data_prep.synthetic_files import write_meld, write_simsv2

TINY = 0.001  # eight clips a split, train ten in MELD


@pytest.fixture(scope="module")
def sims(tmp_path_factory) -> Path:
    return write_simsv2(tmp_path_factory.mktemp("synthetic") / "sims", TINY)


@pytest.fixture(scope="module")
def meld_folder(tmp_path_factory) -> Path:
    return write_meld(tmp_path_factory.mktemp("synthetic") / "meld", 0.01)["train"].parent


def test_simsv2_has_the_public_fields_types_and_shapes(sims: Path):
    content = pickle.loads(sims.read_bytes())
    assert list(content) == ["train", "valid", "test"]
    for split in content.values():
        size = len(split["id"])
        assert size == synthetic_files.MIN_CLIPS
        shapes = {
            "audio": (size, 925, 25),
            "vision": (size, 232, 177),
            "text": (size, 50, 768),
            "text_bert": (size, 3, 50),
            **{f"regression_labels{task}": (size,) for task in ("", "_T", "_A", "_V")},
            "classification_labels": (size,),
        }
        assert {name: (value.shape, value.dtype) for name, value in split.items() if isinstance(value, np.ndarray)} == {
            name: (shape, np.dtype("f8")) for name, shape in shapes.items()
        }
        lists = {"raw_text": str, "id": str, "annotations": str, "audio_lengths": int, "vision_lengths": int}
        assert set(split) == {*shapes, *lists}
        for name, kind in lists.items():
            assert len(split[name]) == size and all(type(value) is kind for value in split[name])
        assert all("$_$" in name for name in split["id"])
        labels = split["regression_labels"]
        np.testing.assert_array_equal(labels, np.round(labels * 5) / 5)
        assert labels.min() < 0 < labels.max() <= 1
        for name in ("audio", "vision"):
            lengths = split[f"{name}_lengths"]
            assert 1 in lengths and len(set(lengths)) > 4
            for clip, length in zip(split[name], lengths, strict=True):
                assert not clip[length:].any() and clip[length - 1].any()
        ratio = sum(split["audio_lengths"]) / sum(split["vision_lengths"])
        assert 3.8 < ratio < 4.2
        assert np.isneginf(split["audio"]).sum() == 3
    assert sims.read_bytes()[:2] == b"\x80\x04"


def test_splits_are_table_1s_times_factor():
    assert synthetic_files._sizes("SIMS-V2", 1) == {"train": 2722, "valid": 647, "test": 1034}
    assert synthetic_files._sizes("MELD", 0.1) == {"train": 999, "valid": 111, "test": 261}
    assert set(synthetic_files._sizes("MELD", 1e-9).values()) == {synthetic_files.MIN_CLIPS}
    for factor in (0, 1.01, -1, float("nan")):
        with pytest.raises(ValueError, match="factor must be above 0 and at most 1"):
            synthetic_files._sizes("MELD", factor)


def test_meld_has_the_public_form(meld_folder: Path):
    texts: list[str] = []
    for split, name in meld.FEATURES.items():
        items = pickle.loads((meld_folder / name).read_bytes())
        assert type(items) is list and len(items) == round(0.01 * getattr(TABLE1["MELD"], split))
        for item in items:
            assert set(item) == {"label", "features"} and item["label"] in MELD_LABELS
            features = item["features"]
            assert set(features) == {"text", "audio", "audio_len", "video", "video_len"}
            for modality, shape in (("audio", (157, 64)), ("video", (32, 64))):
                frames, length = features[modality], features[f"{modality}_len"]
                assert frames.shape == shape and frames.dtype == np.float32 and type(length) is int
                assert 1 <= length <= shape[0] and not frames[length:].any() and frames[:length].any(axis=1).all()
            texts.append(features["text"])
    assert any("\x92" in text for text in texts) and any("\xa0" in text for text in texts)
    assert any("’" in text for text in texts)
    table = (meld_folder / "train_sent_emo.csv").read_bytes().decode()
    assert table.startswith("Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartT")
    assert table.count("\r\n") == table.count("\n") == 101 and '"00:01:00,000"' in table


def test_both_pass_through_the_same_conversion(sims: Path, meld_folder: Path, tmp_path: Path):
    corpus = simsv2.prepare(tmp_path, sims.parent)
    assert corpus.generated and {len(split) for split in corpus.splits.values()} == {8}
    assert corpus.repairs == {"audio_inf": 9}
    corpus = meld.prepare(tmp_path, meld_folder)
    assert corpus.generated and len(corpus.splits["train"]) == 100 and corpus.repairs["text_mended"] > 5
    assert set(corpus.repairs) == {"text_mended"}
    for folder, names in ((sims.parent, [simsv2.FILE]), (meld_folder, [*meld.FEATURES.values(), *meld.TABLES.values()])):
        manifest = json.loads((folder / hub.MANIFEST).read_text())
        assert manifest["generated"] is True and set(manifest["sizes"]) == {"train", "valid", "test"}
        assert manifest["files"] == {
            name: {"sha256": hub.sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in names
        }


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hub.sha256(path) for path in folder.iterdir() if path.name != hub.MANIFEST}


def test_files_repeat_by_seed(sims: Path, tmp_path: Path):
    assert hashes(write_simsv2(tmp_path / "a", TINY).parent) == hashes(sims.parent)
    assert hashes(write_simsv2(tmp_path / "b", TINY, seed=1).parent) != hashes(sims.parent)
    first = hashes(write_meld(tmp_path / "c", TINY)["train"].parent)
    assert hashes(write_meld(tmp_path / "d", TINY)["train"].parent) == first
    other = hashes(write_meld(tmp_path / "e", TINY, seed=1)["train"].parent)
    assert not set(first.values()) & set(other.values())


@pytest.mark.parametrize("write", [write_simsv2, write_meld])
def test_nothing_is_overwritten(write: Any, tmp_path: Path):
    write(tmp_path, TINY)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write(tmp_path, TINY)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    for options in ({"seed": 1}, {"factor": 0.02}):
        with pytest.raises(FileExistsError, match=r"expected a folder without .*\.pkl.*delete them or choose another"):
            write(tmp_path, **({"factor": TINY} | options))
    (tmp_path / hub.MANIFEST).unlink()  # real files, for all it knows
    with pytest.raises(FileExistsError, match=r"expected a folder without .*\.pkl"):
        write(tmp_path, TINY)
    del before[tmp_path / hub.MANIFEST]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_official_rows_are_used_where_they_are(shared_folder: Path, tmp_path: Path):
    official = shared_folder / "data" / "meld"
    if not (official / "train_sent_emo.csv").is_file():
        pytest.skip(f"no official tables: {official} is absent")
    write_meld(tmp_path / "part", 0.01, official)
    for name in meld.TABLES.values():
        assert (official / name).read_bytes().startswith((tmp_path / "part" / name).read_bytes())


def test_a_file_that_changed_since_its_manifest_was_written_is_refused(meld_folder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(meld_folder, tmp_path / "meld"))
    content = bytearray((folder / "meld_valid.pkl").read_bytes())
    content[len(content) // 2] ^= 1  # in a frame
    (folder / "meld_valid.pkl").write_bytes(content)
    for source in (folder, folder.parent):  # the manifest lies beside the file, wherever it is looked for
        with pytest.raises(ValueError, match=r"meld_valid.pkl must be the file with SHA-256 \w{12}…, as manifest.json says"):
            meld.prepare(tmp_path / "cache", source)
