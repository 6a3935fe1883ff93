"""Every family of LLMs through the same model: batches equal single clips, answers are legal, gradients arrive."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from published_llms import write_chatglm3, write_chatglm3_vocabulary

from cmpta_lib import registry
from cmpta_lib.base import Resources
from cmpta_lib.cli.dry_run import write_qwen_v1
from cmpta_lib.config import CmptaConfig, DataConfig, LLMConfig, PromptConfig, RunConfig
from cmpta_lib.data.corpus import Inputs
from cmpta_lib.llm import files as llm_files
from cmpta_lib.llm import loading
from cmpta_lib.method.llm import FrozenLLM

FAMILIES = ("qwen", "llama", "chatglm")


@pytest.fixture(scope="module", params=FAMILIES)
def own_llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, llm: FrozenLLM) -> Path:
    """A small random LLM in each family's published layout."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "qwen":
        write_qwen_v1(folder, ["请对上述多模态内容 a few words"], width=32, layers=2, vocabulary_size=900)
    elif request.param == "llama":
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(llm.tokenizer))).save_pretrained(folder)
        llm.tokenizer.save_pretrained(folder)
    else:
        write_chatglm3(folder, padded_vocab_size=440, seq_length=512)  # room for the vocabulary and its special tokens
        write_chatglm3_vocabulary(folder)
    return folder


@pytest.mark.parametrize("world", ["embedded-sims", "embedded-meld"])
def test_batches_equal_single_clips(own_llm: Path, world: str, corpora, tmp_path: Path):
    corpus = corpora[world]
    loaded = loading.load(LLMConfig(name=str(own_llm)), tmp_path, torch.device("cpu"))
    sign = llm_files.answer_sign(LLMConfig(name=str(own_llm)), tmp_path)
    first = ["[gMASK]", "sop"] if llm_files.family(own_llm) == "chatglm" else ["<|im_start|>"]
    known = getattr(loaded.tokenizer, "special_ids", None) or loaded.tokenizer.get_vocab()
    assert loaded.first_ids == [known[name] for name in first]
    config = RunConfig(
        data=DataConfig(name=corpus.name, fingerprint=corpus.fingerprint),
        method=CmptaConfig(dim=16, prompt=PromptConfig(answer_sign=sign)),
    )
    torch.manual_seed(0)
    split = corpus.splits["train"]
    model = registry.build(config, Inputs.of(corpus), Resources(loaded.device, lambda config: loaded))
    model.module.eval()
    samples = [split[i] for i in range(4)]
    losses, owners = model.answer_losses(model.collate(samples))
    losses.sum().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in model.module.parameters())
    assert not any(p.requires_grad for p in loaded.model.parameters())
    with torch.no_grad():
        answers = model.predict(model.collate(samples)).replies
        for number, sample in enumerate(samples):
            alone, _ = model.answer_losses(model.collate([sample]))
            torch.testing.assert_close(losses[owners == number], alone, rtol=0, atol=1e-4)
            assert model.predict(model.collate([sample])).replies == answers[number : number + 1]
    assert set(answers) <= set(model.answers)
    if corpus.task.kind == "regression":
        assert ("+0.4" in model.answers, "0.4" in model.answers) == (sign == "always", sign == "negative")
