"""The frozen LLM's own matters: the tiny one is built once and alike, folders load, and errors say where to look."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_llm

from cmpta_lib import files
from cmpta_lib.cli import dry_run
from cmpta_lib.config import LLMConfig
from cmpta_lib.embedded import synthetic, tiny
from cmpta_lib.fast.llm import packed_logits
from cmpta_lib.fast.packing import Ragged
from cmpta_lib.llm import files as llm_files
from cmpta_lib.llm.loading import load, weights_fingerprint
from cmpta_lib.method import prompted as prompts
from cmpta_lib.method.llm import FrozenLLM

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def smallest():
    """The real recipe with sizes of a few seconds: 50 steps over 2000 pages."""
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        patch.setitem(tiny.ARCHITECTURES, "tiny", sizes | {"num_key_value_heads": 4})
        patch.setattr(synthetic, "DOCUMENTS", 2000)
        patch.setattr(tiny, "LEARNING_RATE", 1e-2)  # in so few steps
        patch.setattr(tiny, "NOISE", 0.1)
        yield


@pytest.fixture(scope="module")
def cache(smallest, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    tiny.build(folder)
    return folder


# --- the tiny LLM -----------------------------------------------------------------------------------------------------


def test_the_tiny_llm_is_built_once(cache, monkeypatch):
    monkeypatch.setattr(tiny, "pretrain", None)
    folder = tiny.build(cache)
    assert {path.name for path in cache.iterdir()} == {folder.name, f"{folder.name}.lock"}
    llm = load(LLMConfig(name="tiny"), cache, CPU)
    record = json.loads((folder / "cmpta.json").read_text())
    assert record["fingerprint"] == llm.fingerprint == llm_files.fingerprint(folder)
    assert record["steps"] == 50 and llm.name == "tiny" and llm.dim == 32
    assert not llm.model.training and not any(p.requires_grad for p in llm.model.parameters())


def test_whoever_waited_for_the_tiny_llm_takes_what_was_built_meanwhile(cache, tmp_path, monkeypatch):
    (built,) = (path for path in cache.iterdir() if path.is_dir())

    @contextmanager
    def lock_of_another(_: str) -> Iterator[None]:
        shutil.copytree(built, tmp_path / built.name)  # the other one is done
        yield

    monkeypatch.setattr("filelock.FileLock", lock_of_another)
    monkeypatch.setattr(tiny, "pretrain", None)
    assert tiny.build(tmp_path) == tmp_path / built.name


def test_the_tiny_llm_is_the_same_wherever_it_is_built(cache, tmp_path):
    again = tiny.build(tmp_path)
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    for name in ("model.safetensors", "tokenizer.json", "cmpta.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_the_tiny_llama_reads_the_same_pages_and_is_of_another_family(cache, tmp_path, monkeypatch):
    monkeypatch.setitem(tiny.ARCHITECTURES, "tiny-llama", tiny.ARCHITECTURES["tiny"] | {"hidden_size": 48})
    folder = tiny.build(tmp_path, name="tiny-llama")
    assert folder == synthetic.tiny_folder(tmp_path, name="tiny-llama") and llm_files.family(folder) == "llama"
    llm, other = load(LLMConfig(name="tiny-llama"), tmp_path, CPU), load(LLMConfig(name="tiny"), cache, CPU)
    assert llm.dim == 48 and llm.fingerprint == llm_files.fingerprint(folder) != other.fingerprint
    assert json.loads((folder / "cmpta.json").read_text())["steps"] == 50
    signs = [llm_files.answer_sign(LLMConfig(name=name), tmp_path) for name in ("tiny", "tiny-llama")]
    assert signs == ["always", "negative"]


def test_pages_are_written_as_the_family_writes_scores():
    always, negative = ([page[-1] for page in tiny.pages(300, sign)[0]] for sign in ("always", "negative"))
    assert any(answer.startswith("+") for answer in always) and any(answer.startswith("-") for answer in negative)
    assert [answer.removeprefix("+") for answer in always] == negative


def test_a_damaged_tiny_llm_is_not_taken_and_the_remedy_is_said(cache, tmp_path):
    (folder,) = (path for path in Path(shutil.copytree(cache, tmp_path / "copy")).iterdir() if path.is_dir())
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    message = f"{folder}/model.safetensors is not the file that was written .*; remove the folder {folder} and call"
    for use in (lambda: load(LLMConfig(name="tiny"), folder.parent, CPU), lambda: tiny.build(folder.parent)):
        with pytest.raises(files.Damaged, match=message):
            use()


def test_pre_training_teaches_something(cache):
    """Even fifty small steps make real pages likelier than the untrained weights do."""
    llm = load(LLMConfig(name="tiny"), cache, CPU)
    model = copy.deepcopy(llm.model)
    model.set_attn_implementation("sdpa")
    rows = [torch.tensor([llm.token_ids(page.text)]) for page in synthetic.documents(20, seed=5)]
    losses = [float(model(input_ids=row, labels=row).loss.detach()) for row in rows]
    assert sum(losses) / len(losses) < math.log(len(llm.tokenizer)) - 1, "those say that all tokens are equally likely"


def test_other_weights_than_the_run_asks_for_are_refused(cache):
    with pytest.raises(FileNotFoundError, match="fingerprint 0123456789abcdef"):
        load(LLMConfig(name="tiny", fingerprint="0123456789abcdef"), cache, CPU)


def test_dtype(cache):
    llm = load(LLMConfig(name="tiny", dtype="bfloat16"), cache, CPU)
    assert {p.dtype for p in llm.model.parameters()} == {torch.bfloat16}
    assert llm.embedding_norm == pytest.approx(load(LLMConfig(name="tiny"), cache, CPU).embedding_norm, rel=1e-2)


# --- any other LLM ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(llm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llm")
    plain = copy.deepcopy(llm.model)
    plain.set_attn_implementation("sdpa")
    plain.save_pretrained(folder)
    llm.tokenizer.save_pretrained(folder)
    return folder


def test_a_folder_can_be_the_llm(llm, stored, tmp_path):
    loaded = load(LLMConfig(name=str(stored)), tmp_path, CPU)
    assert weights_fingerprint(loaded.model) == weights_fingerprint(llm.model) and loaded.first_ids == llm.first_ids
    assert llm.embedding_norm == pytest.approx(float(llm.embedding.weight[: len(llm.tokenizer)].norm(dim=1).mean()))
    assert loaded.embedding_norm == llm.embedding_norm and loaded.num_parameters == llm.num_parameters
    texts = [page.text for page in synthetic.documents(50)]
    assert [loaded.token_ids(text) for text in texts] == [llm.token_ids(text) for text in texts]


def test_a_missing_llm_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match="Fetch it with: cmpta weights nobody/nothing-here"):
        load(LLMConfig(name="nobody/nothing-here"), tmp_path, CPU)


def test_a_model_with_code_of_its_own_is_refused(stored, tmp_path, monkeypatch):
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto}))
    (tmp_path / "own.py").write_text("open('it_ran', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nobody may be asked whether to run it"))
    with pytest.raises(OSError, match="transformers knows without remote code, not 'own'"):
        load(LLMConfig(name=str(tmp_path)), tmp_path / "cache", CPU)
    assert not (tmp_path / "it_ran").exists()


CONFIG, INDEX, PICKLE = "config.json", "model.safetensors.index.json", "pytorch_model.bin"
BROKEN: dict[str, tuple[str, str, Any]] = {  # what a file of a good folder is made: other values, other bytes, an object, or cut
    "no epsilon": ("qwen", CONFIG, {"layer_norm_epsilon": None}),
    "heads as text": ("qwen", CONFIG, {"num_attention_heads": "4"}),
    "no heads": ("qwen", CONFIG, {"num_attention_heads": 0}),
    "a list": ("qwen", CONFIG, b"[1]"),
    "no JSON": ("qwen", CONFIG, b"{not JSON"),
    "not UTF-8": ("qwen", CONFIG, b'{"a": "\xff"}'),
    "empty index": ("qwen", INDEX, b"{}"),
    "index of a list": ("qwen", INDEX, b"[]"),
    "no vocabulary": ("qwen", "qwen.tiktoken", b""),
    "a pickled object": ("qwen", PICKLE, {"weight": Path()}),
    "a pickled list": ("qwen", PICKLE, [1, 2]),
    "a known family's pickled object": ("qwen2", PICKLE, {"weight": Path()}),
    "a known family's cut weights": ("qwen2", "model.safetensors", None),
}


@pytest.mark.parametrize(("family", "file", "content"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_named_in_one_message(family, file, content, stored, tmp_path):
    folder, path = tmp_path / "own", tmp_path / "own" / file
    if family == "qwen":
        dry_run.write_qwen_v1(folder, ["a few words"], width=32, layers=1, vocabulary_size=700)
    else:
        shutil.copytree(stored, folder)
    if file == PICKLE:
        for other in (INDEX, "model.safetensors"):
            (folder / other).unlink(missing_ok=True)
        torch.save(content, path)
    elif isinstance(content, dict):
        known = json.loads(path.read_text()) | content
        path.write_text(json.dumps({key: value for key, value in known.items() if value is not None}))
    else:
        path.write_bytes(path.read_bytes()[:-50] if content is None else content)
    with pytest.raises((ValueError, OSError), match=str(folder)) as caught:
        load(LLMConfig(name=str(folder)), tmp_path / "cache", CPU)
    assert "weights_only" not in str(caught.value)


def test_a_vocabulary_with_more_tokens_than_the_weights_have_rows_is_refused(tmp_path):
    dry_run.write_qwen_v1(tmp_path, ["words"], width=32, layers=1, vocabulary_size=300)
    with pytest.raises(ValueError, match=f"{tmp_path}: the vocabulary has .* tokens, the weights 300: not of one model"):
        load(LLMConfig(name=str(tmp_path)), tmp_path / "cache", CPU)


def test_more_tokens_than_an_llm_takes_are_refused(tmp_path):
    dry_run.write_qwen_v1(tmp_path, ["a few words"], width=32, layers=1, vocabulary_size=700)
    loaded = load(LLMConfig(name=str(tmp_path)), tmp_path / "cache", CPU)
    loaded.need_room(8192)
    with pytest.raises(ValueError, match="8193 tokens does not fit .* takes 8192; lower prompt.max_text_tokens"):
        loaded.need_room(8193)


def test_gradient_checkpointing_changes_no_gradient(llm):
    """Layers are computed twice and nothing else: same logits, same gradients, and no dropout comes alive."""
    results = []
    for on in (False, True):
        model = FrozenLLM(copy.deepcopy(llm.model), llm.tokenizer, "", "x", gradient_checkpointing=on)
        calls = []
        model.model.model.layers[0].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        embeds = torch.randn(9, llm.dim, generator=torch.Generator().manual_seed(1), requires_grad=True)
        logits = packed_logits(model, embeds, Ragged.rows([4, 5], CPU), torch.tensor([3, 8]))
        logits.logsumexp(-1).sum().backward()
        assert len(calls) == 1 + on
        results.append((logits.detach(), embeds.grad))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_the_fingerprint_sees_every_weight():
    llm = random_llm()
    seen = {llm.fingerprint}
    for weight in llm.model.parameters():
        weight.flatten()[-1] += 1
        seen.add(weights_fingerprint(llm.model))
    assert len(seen) == 1 + len(list(llm.model.parameters()))


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def test_fixed_phrases_digits_and_signs_are_one_token_each(llm):
    for world in synthetic.generative_models().values():
        layout = prompts.Layout.of(world.task)
        assert [len(llm.token_ids(part)) for part in (layout.open, layout.close, layout.prompt)] == [1, 1, 1]
    for answer in ("+0.6", "-0.4", "+0.0", "-1.0", "3", "07"):
        assert [llm.tokenizer.decode([token]) for token in llm.token_ids(answer)] == list(answer)


@pytest.mark.parametrize("text", ["这部电影真是太好了", "I hate the party.", "😀 café\n\n  x", "", "1.5 %", "<|endoftext|>"])
def test_texts_come_back_from_their_tokens(llm, text):
    ids = llm.token_ids(text)
    assert llm.tokenizer.decode(ids) == text and llm.tokenizer.eos_token_id not in ids, "a special token's name is text"


def test_a_model_without_bos_starts_with_nothing(llm):
    tokenizer = copy.deepcopy(llm.tokenizer)
    tokenizer.bos_token = None
    assert llm.first_ids and FrozenLLM(copy.deepcopy(llm.model), tokenizer, "", "x").first_ids == []
