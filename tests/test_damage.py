"""Stored corpora and the tiny LLM are what was written, or are refused: file and remedy are named, nothing is believed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cmpta_lib import files
from cmpta_lib.config import DataConfig, LLMConfig
from cmpta_lib.data import store
from cmpta_lib.data.corpus import Sample, Task
from cmpta_lib.data.store import kept_corpus, load_corpus, write_corpus
from cmpta_lib.embedded import synthetic
from cmpta_lib.llm import files as llm_files
from cmpta_lib.runs.load import find_corpus

PARTS = ("meta.json", "audio.f32", "vision.f32", "table.parquet")


# --- what may happen to a file ----------------------------------------------------------------------------------------


def flip(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(path: Path, other: Path) -> None:
    """As somebody would by hand who wants other results, or only means to help."""
    if path.suffix == ".json":
        text = path.read_text()
        path.write_text(re.sub(r'"(fingerprint|name|model_type|bos_token|version)": "', r'\g<0>x', text, count=1))
        assert path.read_text() != text or path.write_text(text + "\n")
    elif path.suffix == ".parquet":
        table = pd.read_parquet(path)
        table.assign(label=-table["label"]).to_parquet(path, index=False)
    else:
        path.write_bytes(path.read_bytes()[:-4] + np.float32(0.5).tobytes())


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "a bit flipped": flip,
    "cut": lambda path, other: path.write_bytes(path.read_bytes()[:-9]),
    "emptied": lambda path, other: path.write_bytes(b""),
    "deleted": lambda path, other: path.unlink(),
    "edited": edit,
    "swapped": lambda path, other: shutil.copyfile(other / path.name, path),
    "longer": lambda path, other: path.write_bytes(path.read_bytes() + b"\0"),
    "a folder": lambda path, other: (path.unlink(), path.mkdir()),
}


def refused(function: Callable[[], object], path: Path, remedy: str) -> None:
    """The call raises `Damaged`, in one line that names the file, or a file that no longer belongs to it, and the remedy."""
    with pytest.raises(files.Damaged) as caught:
        function()
    message = str(caught.value)
    assert str(path) in message and message.endswith(remedy) and "\n" not in message


# --- corpora ----------------------------------------------------------------------------------------------------------


def corpus(folder: Path, first: float = 0.1) -> Path:
    def sample(number: int) -> Sample:
        rng = np.random.default_rng(number)
        frames = {"audio": rng.normal(size=(3, 5)), "vision": rng.normal(size=(2, 4)) + first}
        return Sample(str(number), "words", label=first, **frames)

    splits = {"train": [sample(0), sample(1)], "valid": [sample(2)], "test": [sample(3)]}
    write_corpus(folder, name="own", task=Task("regression", "en"), splits=splits, generated=True)
    return folder


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_corpus_is_refused_also_where_it_was_kept(tmp_path: Path, monkeypatch, size: str, part: str, damage: str):
    if size == "large":
        monkeypatch.setattr(store, "SMALL_BYTES", 0)
    good, other = corpus(tmp_path / "good"), corpus(tmp_path / "other", 0.2)
    if damage == "swapped" and part == "audio.f32":
        (other / part).write_bytes((other / part).read_bytes()[::-1])
    kept_corpus(good)
    DAMAGES[damage](good / part, other)
    named = good / part
    if (part, damage) == ("meta.json", "swapped"):
        named = good  # a whole record of another corpus: the files are not its own
    for opened in (load_corpus, kept_corpus):
        refused(lambda opened=opened: opened(good), named, f"; remove the folder {good} and call again")


def test_a_record_of_anything_else_or_cut_anywhere_is_refused(tmp_path: Path):
    good = corpus(tmp_path / "good")
    meta, remedy = good / "meta.json", f"; remove the folder {good} and call again"
    whole = meta.read_text()
    others = ("{}", "[]", "nul", '"text"', "[" * 100_000, '{"a": "\\ud800", "seal": 1}', "\udcff")
    for content in (*others, *(whole[:size] for size in range(0, 500, 30))):
        meta.write_bytes(content.encode("utf-8", "surrogateescape"))
        refused(lambda: load_corpus(good), meta, remedy)
    meta.write_text(files.checksummed({"format": 1, "name": "own"}))
    with pytest.raises(files.Damaged, match=f"{meta}: expected format {store.FORMAT}, found 1; remove the"):
        load_corpus(good)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus that counts as large."""
    monkeypatch.setattr(store, "SMALL_BYTES", 0)
    return corpus(tmp_path / "good")


def test_a_large_corpus_is_hashed_once_and_again_when_it_looks_changed(large: Path, monkeypatch):
    hashed: list[Path] = []
    monkeypatch.setattr(files, "sha256", lambda path, real=files.sha256: hashed.append(path) or real(path))
    load_corpus(large)
    assert hashed == []  # it was when it was written
    os.utime(large / "audio.f32", (1, 1))
    load_corpus(large)
    load_corpus(large)
    assert len(hashed) == 1
    load_corpus(large, deep=True)
    assert len(hashed) == 4
    large.with_name("good.checked").write_text("{")
    load_corpus(large)
    assert len(hashed) == 8, "the record too"


def test_a_corpus_is_opened_once_while_it_stays_as_it_is(tmp_path: Path, monkeypatch):
    folders = [corpus(tmp_path / name) for name in ("first", "second", "third")]
    opened: list[Path] = []
    store._kept.cache_clear()
    monkeypatch.setattr(store, "load_corpus", lambda folder, real=load_corpus: opened.append(folder) or real(folder))
    first = kept_corpus(folders[0])
    assert kept_corpus(folders[1]) is not first and kept_corpus(folders[0]) is first and opened == folders[:2]
    os.utime(folders[0] / "audio.f32", (1, 1))
    assert kept_corpus(folders[0]) is not first and len(opened) == 3
    kept_corpus(folders[2])
    assert store._kept.cache_info().currsize == 2, "what was used longest ago is let go"


def test_a_changed_byte_under_an_old_time_is_noticed_and_what_the_disk_itself_lost_in_a_deep_check(large: Path):
    audio = large / "audio.f32"
    before = audio.stat()
    flip(audio, audio)
    os.utime(audio, ns=(before.st_atime_ns, before.st_mtime_ns))
    refused(lambda: load_corpus(large), audio, "and call again")
    recorded = {store.META: files.sha256(large / store.META)} | json.loads((large / store.META).read_text())["files"]
    known = {str(large / name): (digest, files.stamp(large / name)) for name, digest in recorded.items()}
    files.write_text(large.with_name("good.checked"), files.checksummed({"hashes": known}))
    load_corpus(large)
    refused(lambda: load_corpus(large, deep=True), audio, "and call again")


FORGED: dict[str, Callable[[dict, Path], object]] = {  # what somebody writes into meta.json, with checksums that fit
    "fingerprint": lambda meta, folder: meta.update(fingerprint="f00d"),
    "task": lambda meta, folder: meta["task"].update(language="zh"),
    "labels": lambda meta, folder: edit(folder / "table.parquet", folder),
    "frames": lambda meta, folder: edit(folder / "audio.f32", folder),
    "kind": lambda meta, folder: meta["task"].update(kind="classification", labels=["a", "b"]),
}


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("forged", FORGED)
def test_a_fingerprint_is_that_of_the_clips_whatever_their_record_says(tmp_path: Path, monkeypatch, size: str, forged: str):
    if size == "large":
        monkeypatch.setattr(store, "SMALL_BYTES", 0)
    good = corpus(tmp_path / "good")
    meta = files.read_checksummed(good / "meta.json", "")
    FORGED[forged](meta, good)
    meta["files"] = files.hashes(good, store.CONTENT)
    (good / "meta.json").write_text(files.checksummed(meta))
    for opened in (load_corpus, kept_corpus, load_corpus):
        refused(lambda opened=opened: opened(good), good / "meta.json", f"; remove the folder {good} and call again")


def test_a_corpus_is_not_believed_for_its_folders_name(tmp_path: Path):
    sizes = {"train": 3, "valid": 2, "test": 2}
    names, other = [*synthetic.generative_models()], {"train": 4, "valid": 2, "test": 2}
    folders = {}
    for name, asked in ((names[0], sizes), (names[1], sizes), (names[0], other)):
        synthetic.embedded_corpus(name, tmp_path, asked)
        (new,) = {path for path in tmp_path.iterdir() if path.is_dir()} - {*folders.values()}
        folders[name, asked["train"]] = new
    first = folders[names[0], 3]
    for wrong in (folders[names[1], 3], folders[names[0], 4]):  # another corpus, and the same of another size
        shutil.rmtree(first)
        shutil.copytree(wrong, first)
        refused(lambda: synthetic.embedded_corpus(names[0], tmp_path, sizes), first, f"remove the folder {first} and call again")
    with pytest.raises(FileNotFoundError, match="no corpus 'renamed' with fingerprint"):
        find_corpus(tmp_path, DataConfig(name="renamed", fingerprint=load_corpus(first).fingerprint))


def test_another_corpus_that_is_damaged_stops_no_run(tmp_path: Path):
    good, other = corpus(tmp_path / "b"), corpus(tmp_path / "a", 0.2)
    wanted = DataConfig(name="own", fingerprint=load_corpus(good).fingerprint)
    (other / "meta.json").write_text((good / "meta.json").read_text())  # it comes first, and names what is wanted
    assert find_corpus(tmp_path, wanted).fingerprint == wanted.fingerprint
    shutil.rmtree(good)
    refused(lambda: find_corpus(tmp_path, wanted), other, "and call again")


def test_a_cache_that_cannot_be_written_is_still_read(large: Path, monkeypatch):
    large.with_name("good.checked").unlink()

    def read_only(path: Path, text: str) -> None:
        raise PermissionError(13, f"cannot write {path}")

    monkeypatch.setattr(files, "write_text", read_only)
    assert len(load_corpus(large).splits["train"]) == 2


def test_a_corpus_that_may_not_be_read_is_named_with_what_to_do(tmp_path: Path, monkeypatch):
    good = corpus(tmp_path / "good")

    def forbidden(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "sha256", forbidden)
    with pytest.raises(PermissionError, match=f"cannot read {good}/audio.f32: no permission; grant it, or read a copy"):
        load_corpus(good)


def test_the_remedy_for_an_embedded_corpus_works_and_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch):
    sizes = {"train": 3, "valid": 2, "test": 2}
    first = synthetic.embedded_corpus("embedded-sims", tmp_path, sizes)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    remedy = f"remove the folder {folder} and call again"
    (folder / "meta.json").unlink()
    refused(lambda: synthetic.embedded_corpus("embedded-sims", tmp_path, sizes), folder / "meta.json", remedy)
    shutil.rmtree(folder)
    assert synthetic.embedded_corpus("embedded-sims", tmp_path, sizes).fingerprint == first.fingerprint

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("filelock.FileLock", read_only)
    assert len(synthetic.embedded_corpus("embedded-sims", tmp_path, sizes).splits["train"]) == 3, "what is there opens"
    message = f"cannot write {tmp_path}/embedded-meld-.*: the file system is read-only: .* CMPTA_RUNS"
    with pytest.raises(OSError, match=message):
        synthetic.embedded_corpus("embedded-meld", tmp_path, sizes)


# --- the tiny LLM -----------------------------------------------------------------------------------------------------

WRITTEN = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
LLM_PARTS = (llm_files.TINY, *WRITTEN)


def tiny(cache: Path, seed: int = 0) -> Path:
    """Files as the tiny LLM's, with other contents: what is checked is that they stay."""
    folder = cache / f"tiny-{seed}"
    folder.mkdir(parents=True)
    for name in WRITTEN:
        content = json.dumps({"model_type": "qwen2", "bos_token": "b", "version": "1", "seed": seed})
        (folder / name).write_text(content)
    llm_files.finalise_tiny(folder, steps=3)
    return folder


@pytest.mark.parametrize("part", LLM_PARTS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tiny_llm_is_refused(tmp_path: Path, part: str, damage: str):
    good, other = tiny(tmp_path / "cache"), tiny(tmp_path / "elsewhere", 1)
    fingerprint = llm_files.tiny_fingerprint(good)
    DAMAGES[damage](good / part, other)
    named = good if (part, damage) == (llm_files.TINY, "swapped") else good / part
    remedy = f"; remove the folder {good} and call again: it is made anew in a minute"
    refused(lambda: llm_files.tiny_fingerprint(good), named, remedy)
    refused(lambda: llm_files.find_tiny(fingerprint, good.parent), named, remedy)
    refused(lambda: llm_files.find_tiny("", good.parent), named, remedy)
    refused(lambda: llm_files.find(LLMConfig(name="tiny", fingerprint=fingerprint), good.parent, deep=True), named, remedy)


def test_a_damaged_tiny_llm_stops_only_itself_and_a_file_that_joined_is_named(tmp_path: Path):
    good, other = tiny(tmp_path, 1), tiny(tmp_path, 0)
    flip(other / "model.safetensors", other)
    assert llm_files.find_tiny(llm_files.tiny_fingerprint(good), tmp_path) == good
    (other / llm_files.TINY).unlink()
    (good / ".DS_Store").touch()
    assert llm_files.find_tiny(llm_files.tiny_fingerprint(good), tmp_path) == good
    (good / "added_tokens.json").write_text("{}")
    refused(lambda: llm_files.tiny_fingerprint(good), good / "added_tokens.json", "it is made anew in a minute")
