"""What an LLM's name means: folders, the hub's local cache, fingerprints, and errors that say how to get it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cmpta_lib import files
from cmpta_lib.config import LLMConfig
from cmpta_lib.llm import files as llm_files


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local cache of the hub, and no network."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(folder))
    return folder


def model_folder(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen"}')
    (folder / "qwen.tiktoken").write_text("IQ== 0")
    (folder / "model-1.safetensors").write_bytes(weights)
    (folder / "model-2.safetensors").write_bytes(weights)
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return folder


def in_hub_cache(cache: Path, repo: str) -> Path:
    """A model as the hub's client stores it: a commit's snapshot, named by the branch."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0123456789" * 4)
    return model_folder(root / "snapshots" / ("0123456789" * 4))


def test_a_published_name_is_found_in_the_hubs_cache(hub_cache: Path, tmp_path: Path):
    folder = in_hub_cache(hub_cache, "Qwen/Qwen-1_8B")
    assert llm_files.locate("qwen-1.8b") == llm_files.locate("Qwen/Qwen-1_8B") == folder.resolve()
    config = llm_files.resolve("qwen-1.8b", "bfloat16", tmp_path / "cache")
    assert config == LLMConfig(name="Qwen/Qwen-1_8B", fingerprint=llm_files.fingerprint(folder), dtype="bfloat16")
    assert llm_files.find(config, tmp_path / "cache") == folder.resolve()


def test_every_published_name_says_how_to_get_it(tmp_path: Path):
    for name in (*llm_files.PUBLISHED, *llm_files.ENCODERS, "some/model", str(tmp_path / "no such folder")):
        with pytest.raises(FileNotFoundError, match="Fetch it with: cmpta weights ") as caught:
            llm_files.locate(name)
        assert str(caught.value).endswith(f"cmpta weights {name}")


INCOMPLETE = {
    "config.json": "config.json", "qwen.tiktoken": "a vocabulary", "model-2.safetensors": "model-2.safetensors",
    "model.safetensors.index.json": "expected model weights",
}  # fmt: skip


@pytest.mark.parametrize(("gone", "expected"), INCOMPLETE.items())
def test_an_incomplete_folder_says_what_is_missing(tmp_path: Path, gone: str, expected: str):
    folder = model_folder(tmp_path / "model")
    (folder / gone).unlink()
    with pytest.raises(FileNotFoundError, match=f"{folder}: .*{expected}"):
        llm_files.locate(str(folder))


def test_the_fingerprint_is_of_contents_not_places(tmp_path: Path):
    first, second = model_folder(tmp_path / "a"), model_folder(tmp_path / "elsewhere" / "b")
    (second / "README.md").write_text("says nothing about answers")
    assert llm_files.fingerprint(first) == llm_files.fingerprint(second)
    for name in ("config.json", "qwen.tiktoken", "model-1.safetensors"):
        before = llm_files.fingerprint(second)
        (second / name).write_bytes((second / name).read_bytes() + b" ")
        assert llm_files.fingerprint(second) != before


def test_a_folders_config_names_no_path_and_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, cache = model_folder(tmp_path / "private place" / "my-model"), tmp_path / "cache"
    config = llm_files.resolve(str(folder), "float32", cache)
    assert config.name == "my-model"
    with monkeypatch.context() as patch:
        patch.setattr(files, "sha256", None)
        assert llm_files.resolve(str(folder), "float32", cache) == config
        assert llm_files.find(config, cache) == folder
    os.utime(folder / "config.json", (1, 1))  # touched, but the same
    assert llm_files.find(config, cache) == folder
    (folder / "config.json").write_text("{}")
    assert llm_files.resolve(str(folder), "float32", cache).fingerprint != config.fingerprint
    gone = f"{folder}: config.json changed, so it is no longer the one with fingerprint {config.fingerprint}; restore"
    with pytest.raises(files.Damaged, match=gone):
        llm_files.find(config, cache)
    with pytest.raises(FileNotFoundError, match="no LLM 'x' with fingerprint feed"):
        llm_files.find(LLMConfig(name="x", fingerprint="feed"), cache)


def test_a_changed_byte_that_no_size_and_time_tells_shows_in_a_deep_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, cache = model_folder(tmp_path / "model"), tmp_path / "cache"
    monkeypatch.setattr(files, "stamp", lambda path: [path.stat().st_size])
    config = llm_files.resolve(str(folder), "float32", cache)
    assert llm_files.find(config, cache, deep=True) == folder
    (folder / "model-2.safetensors").write_bytes(b"Weights")
    assert llm_files.find(config, cache) == folder
    with pytest.raises(files.Damaged, match=f"^{folder}: model-2.safetensors changed, .*; restore or fetch it again$"):
        llm_files.find(config, cache, deep=True)
    (folder / "model-2.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(files.Damaged, match="tokenizer.json changed"):
        llm_files.find(config, cache)


def test_a_folder_keeps_the_name_under_which_it_was_first_resolved(hub_cache: Path, tmp_path: Path):
    """A run's config holds it: opening the hub's own copy by its path must not make other runs."""
    folder, cache = in_hub_cache(hub_cache, "Qwen/Qwen-1_8B"), tmp_path / "cache"
    assert llm_files.resolve("qwen-1.8b", "float32", cache) == llm_files.resolve(str(folder), "float32", cache)
    llm_files.resolve(str(model_folder(tmp_path / "copy")), "float32", cache)
    assert llm_files.resolve(str(folder), "float32", cache).name == folder.name


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"folder": "elsewhere"}', '{"name": "x", "seal": ""}'])
def test_a_damaged_record_is_named_and_made_anew(tmp_path: Path, content: str):
    folder, cache = model_folder(tmp_path / "model"), tmp_path / "cache"
    config = llm_files.resolve(str(folder), "float32", cache)
    record = cache / f"{config.fingerprint}.json"
    record.write_text(content)
    with pytest.raises(files.Damaged, match=f"^{record} .*; remove it and call again: it is made anew$"):
        llm_files.find(config, cache)
    assert llm_files.resolve(str(folder), "float32", cache) == config
    assert llm_files.find(config, cache) == folder


def test_a_record_under_another_name_is_not_believed(tmp_path: Path):
    folder, cache = model_folder(tmp_path / "model"), tmp_path / "cache"
    config = llm_files.resolve(str(folder), "float32", cache)
    wrong = cache / "0123456789abcdef.json"
    (cache / f"{config.fingerprint}.json").rename(wrong)
    with pytest.raises(files.Damaged, match=f"^{wrong} is the record of another LLM; remove it"):
        llm_files.find(LLMConfig(name="model", fingerprint="0123456789abcdef"), cache)
    assert llm_files.resolve(str(folder), "float32", cache) == config


def test_fetching_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="cannot fetch the LLM 'llama2-7b' .*HF_ENDPOINT.*hf auth login.*into a folder"):
        llm_files.fetch("llama2-7b")
