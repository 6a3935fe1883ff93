"""Leaving out of the frozen LLM what no asked logit needs changes no logit, no gradient and no answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import language_model
from test_model import CONFIG, TEXT_ONLY, build, clips

from cmpta_lib.fast.llm import PackedInput, PrunedDecoder
from cmpta_lib.fast.prompted import PromptedLM
from cmpta_lib.llm.generation import adapted

WORLDS = ("embedded-sims", "embedded-meld")
FAMILIES = ("qwen2", "llama", "glm")


def with_and_without(monkeypatch: pytest.MonkeyPatch, work):
    """What `work` gives by the pruned decoder and by the whole one."""
    found = work()
    with monkeypatch.context() as patched:
        patched.setattr(PrunedDecoder, "fits", staticmethod(lambda model: False))
        return found, work()


def gradients(method: PromptedLM, samples) -> list[torch.Tensor]:
    method.module.zero_grad()
    losses, _ = method.answer_losses(method.collate(samples))
    losses.sum().backward()
    return [losses, *(p.grad.clone() for p in method.module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("position", ["before_text", "after_text"])
@pytest.mark.parametrize(("family", "world"), [*zip(FAMILIES, (*WORLDS, *WORLDS), strict=False)])
def test_losses_and_gradients_are_those_of_the_whole_llm(
    world, family, position, checkpointing, llm, corpora, monkeypatch
):
    corpus, loaded = corpora[world], language_model(family, llm, checkpointing)
    method = build(loaded, corpus, method__prompt__pseudo_token_position=position)
    loaded.model.double()  # random weights make large gradients: in float32 rounding alone would show
    method.module.double()
    pruned, whole = with_and_without(monkeypatch, lambda: gradients(method, clips(corpus)))
    assert len(pruned) == len(whole) > 10
    for one, other in zip(pruned, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("start", [CONFIG, TEXT_ONLY], ids=["cmpta", "text_only"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("world", WORLDS)
@torch.no_grad()
def test_the_trie_is_scored_as_by_the_whole_llm(world, family, start, llm, corpora, monkeypatch):
    corpus = corpora[world]
    method = build(language_model(family, llm), corpus, start)
    batch = method.collate(clips(corpus))
    pruned, whole = with_and_without(monkeypatch, lambda: method.trie_scores(batch, method.pseudo_tokens(batch)[0]))
    assert pruned.shape == (6, len(method.trie.choices))
    np.testing.assert_allclose(pruned, whole, rtol=0, atol=2e-4)


def test_a_single_layer_is_the_first_and_the_last(llm, corpora, monkeypatch):
    corpus, loaded = corpora["embedded-sims"], language_model("qwen2", llm)
    loaded.model.model.layers = loaded.model.model.layers[:1]
    method = build(loaded, corpus)
    pruned, whole = with_and_without(monkeypatch, lambda: method.answer_losses(method.collate(clips(corpus)))[0])
    torch.testing.assert_close(pruned, whole, rtol=0, atol=1e-4)


def test_the_common_beginning_is_read_once(llm, corpora):
    method = build(llm, corpora["embedded-sims"])
    ids, pruned = method.ids.start, PrunedDecoder(llm)
    first = pruned.prefix(ids)
    assert PrunedDecoder(llm).prefix(ids) is first and len(first) == len(llm.model.model.layers)
    assert {tuple(part.shape) for pair in first for part in pair} == {(len(ids), first[0][0].shape[1])}
    assert pruned.prefix(ids[:1]) is not first


def test_each_layer_computes_what_is_asked_of_it(llm, corpora):
    """Rows that pass the projections and MLP of the first and the last layer."""
    corpus = corpora["embedded-sims"]
    method, seen = build(llm, corpus), {}
    batch = method.collate(clips(corpus))
    method.answer_losses(batch)
    layers = llm.model.model.layers
    watched = {"first q": layers[0].self_attn.q_proj, "first mlp": layers[0].mlp}
    watched |= {"last k": layers[-1].self_attn.k_proj, "last q": layers[-1].self_attn.q_proj, "last mlp": layers[-1].mlp}
    watched["head"] = llm.model.get_output_embeddings()
    for name, module in watched.items():
        seen[name] = rows = []
        module.register_forward_hook(lambda _, given, __, rows=rows: rows.append(len(given[0])))
    try:
        losses, _ = method.answer_losses(batch)
        found = {name: [*rows] for name, rows in seen.items()}
        method.predict(batch)
        assert len(seen["head"]) == 1, "of an answer trie's tokens only their own columns of the head"
    finally:
        for module in watched.values():
            module._forward_hooks.clear()
    given, _ = method._packed(batch, 6, [ids[:-1] for ids in batch.answer_ids], [[]] * 6)
    distinct, everywhere = len(given.distinct), [len(given.source)]
    assert distinct < everywhere[0]
    asked = dict.fromkeys(("last q", "last mlp", "head"), [len(losses)])
    assert found == {"first q": [distinct, 36], "first mlp": everywhere, "last k": everywhere} | asked


def test_what_is_put_into_the_layers_is_not_left_out(llm):
    assert PrunedDecoder.fits(llm.model) and not PrunedDecoder.fits(adapted(llm, rank=2, alpha=4)[0].model)


def test_another_family_is_read_whole(llm, corpora, monkeypatch):
    method = build(llm, corpora["embedded-sims"])
    monkeypatch.setattr(llm.model.config, "model_type", "other")
    batch = method.collate(clips(corpora["embedded-sims"]))
    assert method._packed(batch, 6, [[]] * 6, [[0]] * 6)[0].left_out == 0


def test_positions_and_places_of_a_layout():
    given, _ = PackedInput.of([[7, 5], [7, 9, 5]], np.array([1]), [], torch.device("cpu"), left_out=2)
    assert given.distinct.tolist() == [5, 7, 9] and given.source.tolist() == [1, 0, 1, 2, 0]
    assert given.position_ids.tolist() == [[2, 3, 2, 3, 4]] and given.mask is None and given.layout.size == 5
    assert given.layout.slots.tolist() == [2, 3, 7, 8, 9], "rows of five places, the first two the prefix's"
