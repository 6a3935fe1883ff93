"""The text encoder of methods without an LLM: laid out as published, read without code of its own, never trained by chance."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from published_llms import WEIGHTS, Change, edited, stored

from cmpta_lib.cli.dry_run import BERT_SMALL, write_bert
from cmpta_lib.config import EncoderConfig
from cmpta_lib.embedded import synthetic, tiny
from cmpta_lib.llm import files as llm_files
from cmpta_lib.llm import loading
from cmpta_lib.llm.loading import TextEncoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A random BERT with the files, names and weights of bert-base-chinese's page."""
    folder = tmp_path_factory.mktemp("bert")
    write_bert(folder, [page.text for page in synthetic.documents(200)], BERT_SMALL)
    return folder


def load(folder: Path, cache: Path) -> TextEncoder:
    return loading.load_encoder(EncoderConfig(name=str(folder)), cache, CPU)


def test_a_bert_laid_out_as_published_is_read(published: Path, tmp_path: Path):
    assert {"config.json", "vocab.txt", "model.safetensors"} <= {path.name for path in published.iterdir()}
    found = load(published, tmp_path)
    ids = found.token_ids("这部电影真是太好了")
    assert ids[0] == found.tokenizer.cls_token_id and ids[-1] == found.tokenizer.sep_token_id and len(ids) > 4
    assert not found.model.training and not any(weight.requires_grad for weight in found.model.parameters())
    assert found.dim == BERT_SMALL["hidden_size"]


def test_loading_leaves_no_bar_and_callers_keep_theirs(published: Path, tmp_path: Path, capsys):
    """A saved notebook would show it for ever."""
    from transformers.utils import logging

    for switch, shown in ((logging.enable_progress_bar, True), (logging.disable_progress_bar, False)):
        switch()
        load(published, tmp_path)
        assert capsys.readouterr().err == "" and logging.is_progress_bar_enabled() is shown
    logging.enable_progress_bar()


def test_a_long_text_loses_its_end_and_keeps_its_last_mark(encoder):
    ids = encoder.token_ids("I had no idea about that movie, that movie, that movie")
    assert encoder.cut(ids, 5) == [*ids[:4], ids[-1]] and encoder.cut(ids, len(ids)) == ids
    assert len(encoder.token_ids("")) == 2


DENSE, HEAD = "bert.encoder.layer.1.output.dense.weight", "cls.predictions.decoder.weight"


def vocabulary(change: Callable[[list[str]], list[str]]) -> Change:
    def do(folder: Path) -> None:
        path = folder / "vocab.txt"
        path.write_text("".join(change(path.read_text(encoding="utf-8").splitlines(keepends=True))), encoding="utf-8")

    return do


def hostile(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"a": Path()}, folder / "pytorch_model.bin")


def old(name: str) -> str:
    return name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")


RIGHT: dict[str, Change] = {
    "without heads of the pre-training": stored(lambda all_: {n: t for n, t in all_.items() if not n.startswith("cls.")}),
    "with names of the first years": stored(lambda all_: {old(name): tensor for name, tensor in all_.items()}),
    "with positions": stored(lambda all_: all_ | {"bert.embeddings.position_ids": torch.arange(512)[None]}),
}


@pytest.mark.parametrize("change", RIGHT.values(), ids=RIGHT)
def test_what_published_files_have_beside_the_encoder_changes_nothing(published: Path, tmp_path: Path, change: Change):
    folder = shutil.copytree(published, tmp_path / "bert")
    change(folder)
    found, expected = load(folder, tmp_path), load(published, tmp_path)
    assert loading.weights_fingerprint(found.model) == loading.weights_fingerprint(expected.model)


WRONG: dict[str, tuple[Change, str]] = {
    "lacks a tensor": (stored(lambda all_: all_.pop(DENSE) is None or all_), f"{WEIGHTS}: .*output.dense.weight is missing"),
    "one more": (stored(lambda all_: all_ | {"classifier.bias": torch.ones(2)}), "classifier.bias has no place"),
    "like a head": (stored(lambda all_: all_ | {f"{HEAD}.lora": torch.ones(2)}), f"{HEAD}.lora has no place"),
    "transposed": (stored(lambda all_: all_ | {DENSE: all_[DENSE].T}), r"dense.weight is \[96, 48\], not \[48, 96\]"),
    "rounded": (stored(lambda all_: all_ | {DENSE: all_[DENSE].half()}), f"{DENSE} is of type torch.float16"),
    "not a number": (stored(lambda all_: all_ | {DENSE: all_[DENSE] / 0}), f"{DENSE} holds values that are not finite"),
    "fewer layers": (edited("config.json", num_hidden_layers=1), "layer.1.* has no place .16 tensors"),
    "a decoder": (edited("config.json", is_decoder=True), "config.json: .* BertModel, and it says is_decoder=true"),
    "an LLM's settings": (edited("config.json", architectures=["LlamaForCausalLM"]), "BertModel, and it says LlamaFor"),
    "another family": (edited("config.json", model_type="gpt2"), "expected a BERT, such as bert-base-chinese, not 'gpt2'"),
    "more words": (vocabulary(lambda words: [*words, "zzz\n"]), "the vocabulary has .* tokens, the weights .*: not of one"),
    "hardly a word": (vocabulary(lambda words: words[:9]), "the vocabulary has 9 tokens, the weights .*: not of one model"),
    "code": (hostile, "pytorch_model.bin: expected weights .it holds more than tensors.; fetch it again$"),
}


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_a_folder_that_is_not_one_bert_is_refused_in_one_line(published: Path, tmp_path: Path, change: Change, said: str):
    folder = shutil.copytree(published, tmp_path / "bert")
    change(folder)
    with pytest.raises((ValueError, OSError), match=f"^{folder}.*{said}") as caught:
        load(folder, tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) - len(str(folder)) <= 260


def test_the_tiny_one_is_made_alike_twice(tmp_path: Path):
    folders = [tiny.build(tmp_path / name, 64, "tiny-bert") for name in ("a", "b")]
    assert len({llm_files.tiny_fingerprint(folder) for folder in folders}) == 1
    found = loading.load_encoder(EncoderConfig(name="tiny-bert", fingerprint=""), tmp_path / "a", CPU)
    assert found.dim == tiny.ARCHITECTURES["tiny-bert"]["hidden_size"] and len(found.token_ids("真是太好了")) == 7
