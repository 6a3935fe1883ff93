"""The text encoder of methods without an LLM: laid out as published, read without code of its own, never trained by chance."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

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


def test_another_model_and_cut_weights_are_named(published: Path, tmp_path: Path):
    folder = shutil.copytree(published, tmp_path / "other")
    weights, config = folder / "model.safetensors", folder / "config.json"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=f"{weights}: expected weights .Error while deserializing header.*; fetch it again"):
        load(folder, tmp_path)
    config.write_text(config.read_text().replace('"bert"', '"gpt2"'))
    with pytest.raises(OSError, match="expected a BERT, such as bert-base-chinese, not 'gpt2'"):
        load(folder, tmp_path)


def test_the_tiny_one_is_made_alike_twice(tmp_path: Path):
    folders = [tiny.build(tmp_path / name, 64, "tiny-bert") for name in ("a", "b")]
    assert len({llm_files.tiny_fingerprint(folder) for folder in folders}) == 1
    found = loading.load_encoder(EncoderConfig(name="tiny-bert", fingerprint=""), tmp_path / "a", CPU)
    assert found.dim == tiny.ARCHITECTURES["tiny-bert"]["hidden_size"] and len(found.token_ids("真是太好了")) == 7
