"""Every family of LLMs through the same model: batches equal single clips, answers are legal, gradients arrive.

And of transformers' many families: each is read in batches as it reads itself, or refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_llms import write_chatglm3, write_chatglm3_vocabulary
from test_model import build, clips, plain_of

from cmpta_lib import registry
from cmpta_lib.base import Resources
from cmpta_lib.cli.dry_run import write_qwen_v1
from cmpta_lib.config import CmptaConfig, DataConfig, LLMConfig, PromptConfig, RunConfig
from cmpta_lib.data.corpus import Inputs
from cmpta_lib.fast import llm as fast_llm
from cmpta_lib.fast import prompted
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


# --- transformers' families ---------------------------------------------------------------------------------------------

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
HEADS = SIZES | {"head_dim": 8}
OLDER = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
EXPERTS = HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2}
TWO_KINDS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {f"linear_{name}": size for name, size in {"num_key_heads": 2, "num_value_heads": 4}.items()}
LINEAR |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
LINEAR |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
BERT = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}
READ: dict[str, dict[str, Any]] = {  # windows and chunks are shorter than the inputs
    "llama": SIZES,
    "qwen2 of windows": SIZES | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "mistral of windows": HEADS | {"sliding_window": 8},
    "gemma2 of caps": HEADS | TWO_KINDS | {"attn_logit_softcapping": 0.5},
    "gemma3_text": HEADS | TWO_KINDS,
    "gpt_oss of sinks": EXPERTS | TWO_KINDS,
    "llama4_text of chunks": EXPERTS | {"attention_chunk_size": 8, "intermediate_size_mlp": 48},
    "gpt2": OLDER,
    "ctrl": OLDER | {"dff": 48},
    "opt": BERT | {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "falcon of biases": BERT | {"alibi": True},
    "lfm2": SIZES | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "rwkv": {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2},
    "recurrent_gemma": SIZES | {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8},
    "qwen3_next": HEADS | LINEAR | {"layer_types": ["linear_attention", "full_attention"]},
}
PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64, "laurel_rank": 4, "num_kv_shared_layers": 0}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bert": (BERT, "logits before other later tokens differ by"),
    "xlnet": ({"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}, "later tokens differ by"),
    "gemma3_text that looks ahead": (HEADS | {"use_bidirectional_attention": True}, "later tokens differ by"),
    "gemma3n_text": (HEADS | TWO_KINDS | PER_LAYER | {"altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 2},
                     "embeddings and of token ids differ by"),
    "reformer": ({"hidden_size": 32, "attention_head_size": 8, "num_attention_heads": 4, "attn_layers": ["local"],
                  "feed_forward_size": 48, "axial_pos_embds": False, "is_decoder": True}, "training"),
}  # fmt: skip


def causal_lm(name: str, settings: dict[str, Any], llm: FrozenLLM, **further: Any) -> FrozenLLM:
    """A small random LLM of a family behind the tiny tokenizer; nothing in it is zero, as much is at the start."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    own = CONFIG_MAPPING[name.split(" ")[0]]
    torch.manual_seed(0)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[own](own(**settings, vocab_size=len(llm.tokenizer), pad_token_id=0))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return FrozenLLM(model, llm.tokenizer, f"{name} {further}", name, **further)


@pytest.mark.parametrize(("name", "settings"), READ.items(), ids=READ)
def test_a_batch_is_read_as_the_family_reads_a_clip_alone(name, settings, llm, corpora):
    """Losses, gradients, answers freely and by the trie: the plain method is the judge."""
    corpus, own = corpora["embedded-sims"], causal_lm(name, settings, llm)
    prompted.check_reading(own, "folder")
    assert fast_llm.packs(own.model) == (name == "llama"), "only what `test_pruned` holds to it"
    model, samples = build(own, corpus, method__decoding="free"), clips(corpus, 4)[::3]
    plain, batch = plain_of(model, corpus), model.collate(samples)
    losses, owners = model.answer_losses(batch)
    alone = torch.stack([plain.loss(sample) for sample in samples])
    torch.testing.assert_close(torch.stack([losses[owners == row].sum() for row in range(2)]), alone, rtol=0, atol=1e-4)
    losses.sum().backward()
    alone.sum().backward()
    theirs = dict(plain.make_tokens.named_parameters())
    for weight_name, weight in model.module.named_parameters():
        assert (weight.grad - theirs[weight_name].grad).norm() <= 1e-4 * weight.grad.norm() + 1e-4, weight_name
    found = model.predict(batch)
    for row, sample in enumerate(samples):
        said = plain.answer(sample)
        assert said.reply == found.replies[row]
        np.testing.assert_allclose([*said.probabilities.values()], found.probabilities[row], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "settings", "reason"), [(name, *given) for name, given in REFUSED.items()], ids=REFUSED)
def test_a_family_that_cannot_be_read_is_refused_by_name(name, settings, reason, llm):
    with pytest.raises(ValueError, match=f"^folder: '{name.split(' ')[0]}' is no LLM .*{reason}.*; take another LLM$") as told:
        prompted.check_reading(causal_lm(name, settings, llm), "folder")
    assert len(str(told.value)) <= 300


@pytest.mark.parametrize("name", ["lfm2", "mistral of windows", "gemma2 of caps", "gpt_oss of sinks", "bloom"])
def test_what_packing_would_read_wrong_does_not_pass(name, llm, monkeypatch):
    """Whichever family is thought to be like the others by mistake."""
    for module in (fast_llm, prompted):
        monkeypatch.setattr(module, "packs", lambda model: True)
    monkeypatch.setattr(prompted, "_READ", set())
    monkeypatch.setattr(fast_llm.PrunedDecoder, "fits", staticmethod(lambda model: False))
    with pytest.raises(ValueError, match="differ by|argument"):
        prompted.check_reading(causal_lm(name, READ[name], llm), "folder")


def test_weights_that_give_no_numbers_are_refused_and_good_ones_read_once(llm, monkeypatch):
    own = causal_lm("llama", SIZES, llm)
    own.fingerprint = "one"
    prompted.check_reading(own, "folder")
    monkeypatch.setattr(prompted, "_readings", None)
    prompted.check_reading(own, "folder")
    monkeypatch.undo()
    own.fingerprint = "another"
    own.model.lm_head.weight[3] = torch.nan
    with pytest.raises(ValueError, match="folder: 'llama' .*: .* differ by nan"):
        prompted.check_reading(own, "folder")


def test_loading_looks_at_how_an_llm_reads(llm, tmp_path):
    name = "gemma3_text that looks ahead"
    causal_lm(name, REFUSED[name][0], llm).model.save_pretrained(tmp_path)
    llm.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"^{tmp_path}: 'gemma3_text' is no LLM that can be read here"):
        loading.load(LLMConfig(name=str(tmp_path)), tmp_path, torch.device("cpu"))


def test_settings_hold_what_json_cannot_and_known_families_take_no_memory_before_their_runs(llm, tmp_path, monkeypatch):
    """Mamba2's hold an infinity, which transformers writes in a way of its own."""
    mamba2 = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "num_heads": 4, "head_dim": 16, "n_groups": 1}
    read: list[FrozenLLM] = []
    monkeypatch.setattr(loading, "check_reading", lambda found, _: read.append(found))
    for name, settings in (("llama", SIZES), ("mamba2", mamba2)):
        own = causal_lm(name, settings, llm)
        own.model.save_pretrained(tmp_path / name)
        llm.tokenizer.save_pretrained(tmp_path / name)
        loading.open_once(LLMConfig(name=str(tmp_path / name)), tmp_path)
        assert len(read) == (name == "mamba2")
    assert read[0].device.type == "cpu" and read[0].model.config.time_step_limit[1] == float("inf")
    torch.testing.assert_close(read[0].logits(read[0].embed([5, 9, 2])), own.logits(own.embed([5, 9, 2])))


def test_no_dropout_comes_alive_where_layers_are_computed_again(llm):
    for name in ("opt", "bloom"):
        dropout = {"dropout": 0.5} if name == "opt" else {"hidden_dropout": 0.5}
        once, again = (causal_lm(name, READ[name] | dropout, llm, gradient_checkpointing=on) for on in (False, True))
        embeds = once.embed([5, 9, 2])
        assert torch.equal(once.logits(embeds), again.logits(embeds))


def test_an_llms_room_and_its_embeddings_norm(llm):
    """Where a factor for long inputs would turn all of a batch, it fits no long one; some families scale what they look up."""
    turned = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32}
    turned |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 8.0}
    lengths = {"max_position_embeddings": 256, "original_max_position_embeddings": 32, "eos_token_id": 1}
    phi = causal_lm("phi3", SIZES | {"rope_parameters": turned} | lengths, llm)
    rooms = [own.room for own in (phi, causal_lm("gpt2", OLDER, llm), causal_lm("mamba", READ["mamba"], llm))]
    assert rooms == [32, 64, None]
    own = causal_lm("gemma3_text", READ["gemma3_text"], llm)
    assert own.embedding_norm == pytest.approx(32**0.5 * float(own.embedding.weight.norm(dim=1).mean()), rel=1e-5)
