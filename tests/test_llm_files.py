"""What an LLM's name means: folders, the hub's local cache, fingerprints, and errors that say how to get it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import language_model
from published_llms import WEIGHTS, Change, edited, stored, tensor
from safetensors.torch import load_file, save_file

from cmpta_lib import files, registry
from cmpta_lib.config import DataConfig, LLMConfig, RunConfig
from cmpta_lib.llm import files as llm_files
from cmpta_lib.llm import loading
from cmpta_lib.runs.dispatch import Engine
from cmpta_lib.runs.engines import RunsFailed, ensure
from cmpta_lib.runs.store import Run, failure
from data_prep import weights


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
        weights.fetch("llama2-7b")


# --- the LLM is the one of its files ----------------------------------------------------------------------------------

INDEX, BIN, TOKENIZER = "model.safetensors.index.json", "pytorch_model.bin", "tokenizer.json"
UP, HEAD, TABLE = "model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.embed_tokens.weight"
ANGLES = "model.layers.0.self_attn.rotary_emb.inv_freq"
MASK = "model.layers.0.attn.causal_mask"  # as CodeGen's files hold
CPU = torch.device("cpu")


def cut(name: str) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-40])


def as_bin(content: Callable[[dict[str, torch.Tensor]], Any] = lambda all_: all_, **options: Any) -> Change:
    def do(folder: Path) -> None:
        torch.save(content(load_file(folder / WEIGHTS)), folder / BIN, **options)
        (folder / WEIGHTS).unlink()

    return do


def sharded(change: Callable[[dict[str, str]], object] = lambda places: None, place: Callable[[int], int] = int) -> Change:
    """Two shards; `change` is done to the index, `place` says of what the index promises to each where it is."""

    def do(folder: Path) -> None:
        tensors, names = load_file(folder / WEIGHTS), ("model-1.safetensors", "model-2.safetensors")
        promised = {name: names[i % 2] for i, name in enumerate(sorted(tensors))}
        for number, shard in enumerate(names):
            there = {name: tensors[name] for name, promise in promised.items() if promise == names[place(number)]}
            save_file(there, folder / shard)
        change(promised)
        (folder / INDEX).write_text(json.dumps({"weight_map": promised}))
        (folder / WEIGHTS).unlink()

    return do


def pad(special: bool) -> Change:
    """One more token, behind the last row of the weights."""

    def add(content: dict) -> None:
        number = 1 + max(*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"]))
        content["added_tokens"].append(content["added_tokens"][0] | {"id": number, "content": "<pad>", "special": special})

    return edited(TOKENIZER, add)


@pytest.fixture(scope="module")
def published(llm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random llama of two layers, its head apart, in one file, behind the tiny vocabulary."""
    folder = tmp_path_factory.mktemp("llama")
    language_model("llama", llm).model.save_pretrained(folder)
    llm.tokenizer.save_pretrained(folder)
    return folder


def opened(folder: Path) -> Any:
    return loading.load(LLMConfig(name=str(folder)), folder / "cache", CPU)


RIGHT: dict[str, Change] = {
    "as saved": lambda folder: None,
    "names without the class's prefix": stored(lambda all_: {n.removeprefix("model."): t for n, t in all_.items()}),
    "half precision": stored(lambda all_: {n: t.half().float() for n, t in all_.items()}),
    "shards": sharded(),
    "shards, whose index lists angles": sharded(lambda all_: all_.update({ANGLES: "model-1.safetensors"})),
    "torch's file": as_bin(),
    "torch's old file, with angles and masks": as_bin(
        lambda all_: all_ | {ANGLES: torch.ones(4), MASK: torch.ones(9, dtype=torch.uint8)}, _use_new_zipfile_serialization=False
    ),
    "an adapter that no fingerprint is of": lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}'),
    "<pad> behind the rows": pad(special=True),
    "<pad> behind the rows, no special one": pad(special=False),
}


@pytest.mark.parametrize("change", RIGHT.values(), ids=RIGHT)
def test_a_right_folder_is_opened_with_the_weights_of_its_files(published: Path, tmp_path: Path, change: Change):
    folder = shutil.copytree(published, tmp_path / "llm")
    change(folder)
    found, expected = opened(folder), opened(published)
    same = [torch.allclose(*pair, atol=1e-3) for pair in zip(found.model.parameters(), expected.model.parameters(), strict=True)]
    assert all(same) and found.token_ids("a <pad> b") == expected.token_ids("a <pad> b")
    assert found.embedding_norm == pytest.approx(expected.embedding_norm, rel=1e-3)


WRONG: dict[str, tuple[Change, str]] = {
    "lacks a tensor": (stored(lambda all_: all_.pop(UP) is None or all_), f"{WEIGHTS}: .*{UP} is missing"),
    "one more": (stored(lambda all_: all_ | {"score.weight": torch.ones(2)}), f"{WEIGHTS}: .*score.weight has no place"),
    "twice": (stored(lambda all_: all_ | {UP[6:]: all_[UP] + 1}), f"{WEIGHTS}: .*{UP[6:]} is there twice"),
    "renamed": (stored(lambda all_: all_ | {"up": all_.pop(UP)}), f"up has no place; {UP} is missing"),
    "transposed": (tensor(UP, lambda t: t.T), rf"{WEIGHTS}: .*{UP} is \[32, 48\], not \[48, 32\]"),
    "whole numbers": (tensor(UP, lambda t: (9 * t).long()), f"{WEIGHTS}: {UP} is of type torch.int64"),
    "one rounded": (tensor(UP, torch.Tensor.half), f"{WEIGHTS}: {UP} is of type torch.float16"),
    "not a number": (tensor(UP, lambda t: t / (t - t[3, 4])), f"{WEIGHTS}: {UP} holds values that are not finite"),
    "fewer layers": (edited("config.json", num_hidden_layers=1), "layers.1.*has no place .9 tensors in all"),
    "more layers": (edited("config.json", num_hidden_layers=3), "layers.2.*is missing .9 tensors in all"),
    "wider": (edited("config.json", hidden_size=64), rf"{WEIGHTS}: .*{HEAD} is \[.*, 32\], not \[.*, 64\]"),
    "another family": (edited("config.json", model_type="mistral"), "config.json: .*Mistral.* says LlamaForCausalLM"),
    "another family's": (edited("config.json", model_type="qwen2", architectures=None), "k_proj.bias is missing"),
    "an encoder": (edited("config.json", model_type="bert", architectures=["BertForMaskedLM"]), "it says BertForMaskedLM"),
    "an encoder as decoder": (edited("config.json", model_type="bert", architectures=None), "is_decoder=false"),
    "one that is two": (edited("config.json", tie_word_embeddings=True), f"{WEIGHTS}: {HEAD} is not {TABLE}.*tie_word"),
    "two that are one": (stored(lambda all_: all_.pop(HEAD) is None or all_), f"{HEAD} is missing"),
    "no number": (edited("config.json", hidden_size="32"), "config.json: .*hidden_size. expected int, got str"),
    "shards that are swapped": (sharded(place=lambda number: 1 - number), "model-1.safetensors: lacks|holds .* says otherwise"),
    "a shard that lacks": (sharded(lambda all_: all_.update({"x": "model-2.safetensors"})), "model-2.safetensors: lacks x"),
    "a shard without its index": (sharded(lambda all_: all_.pop(UP)), f"holds {UP}, and the index says otherwise"),
    "a shard elsewhere": (sharded(lambda all_: all_.update({UP: "../x"})), f"{INDEX}: expected a weight_map"),
    "cut": (cut(WEIGHTS), f"{WEIGHTS}: expected weights"),
    "torch's, cut": (lambda folder: [as_bin()(folder), cut(BIN)(folder)], f"{BIN}: expected weights"),
    "torch's, nested": (as_bin(lambda all_: {"state": all_}), f"{BIN}: state is no plain tensor"),
    "torch's, with more": (as_bin(lambda all_: [Path()]), f"{BIN}: expected weights .it holds more than tensors"),
    "vocabulary cut": (cut(TOKENIZER), f"{TOKENIZER}: expected the model's vocabulary"),
    "vocabulary's settings cut": (cut("tokenizer_config.json"), "tokenizer_config.json: expected JSON"),
    "no vocabulary": (
        edited(TOKENIZER, lambda it: it["model"].update(vocab={}, merges=[]), added_tokens=[]), f"{TOKENIZER}: .*that spells"),
    "a longer vocabulary": (
        edited(TOKENIZER, lambda it: it["model"]["vocab"].update(zzz=5000)), "tokens, the weights .*: not of one model"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_a_folder_that_is_not_one_model_is_refused_in_one_line(published: Path, tmp_path: Path, change: Change, said: str):
    folder = shutil.copytree(published, tmp_path / "llm")
    change(folder)
    with pytest.raises((ValueError, OSError)) as caught:
        opened(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder}") and re.search(said, message), message
    assert "\n" not in message and len(message) - len(str(folder)) <= 260 and "weights_only" not in message


def test_what_is_wrong_with_a_model_is_said_once_and_stops_only_the_runs_that_need_it(published, tmp_path, monkeypatch):
    cache, folder = tmp_path / "cache" / "llm", shutil.copytree(published, tmp_path / "llama")
    tensor("model.norm.weight", lambda one: one * float("nan"))(folder)
    broken, tiny = llm_files.resolve(str(folder), "float32", cache), LLMConfig(name="tiny")
    cmpta, data = registry.ENTRIES["cmpta"].defaults(), DataConfig(name="a", fingerprint="b")
    configs = [
        RunConfig(data=data, seed=seed, method=cmpta.model_copy(update={"llm": llm}))
        for seed, llm in ((0, broken), (1, broken), (0, tiny))
    ]
    runs, started, opened = [Run(one, tmp_path / f"a-{one.hash}") for one in configs], [], []

    class Noting(Engine):
        def run(self, runs, *_):
            return started.extend(runs) or []

    monkeypatch.setattr(loading, "load", lambda *given, load=loading.load: opened.append(given[0]) or load(*given))
    before = torch.random.get_rng_state()
    with pytest.raises(RunsFailed, match=f"{runs[0].folder.name} and 1 more: Damaged: .*model.norm.weight holds") as caught:
        ensure(runs, tmp_path, engine=Noting())
    assert started == runs[2:] and opened == [broken] and str(caught.value).count("model.norm.weight") == 1
    assert "model.norm.weight" in failure(runs[1].folder) and torch.equal(torch.random.get_rng_state(), before)


def test_too_little_memory_is_no_fault_of_the_files_and_no_reason_to_start_no_run(published, tmp_path, monkeypatch):
    own = llm_files.resolve(str(published), "float32", tmp_path / "cache" / "llm")
    method = registry.ENTRIES["cmpta"].defaults().model_copy(update={"llm": own})
    config, started = RunConfig(data=DataConfig(name="a", fingerprint="b"), method=method), []

    class Noting(Engine):
        def run(self, runs, *_):
            return started.extend(runs) or []

    def short_of_memory(path: Path) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12")

    monkeypatch.setattr("cmpta_lib.llm.weights._read", short_of_memory)
    with pytest.raises(RuntimeError, match="allocate memory"):
        opened(published)
    run = Run(config, tmp_path / f"a-{config.hash}")
    with pytest.raises(RunsFailed, match="it ended without"):
        ensure([run], tmp_path, engine=Noting())
    assert started == [run]
