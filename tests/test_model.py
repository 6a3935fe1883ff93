"""CMPTA around the frozen LLM: the packed batch, the answer trie and the loss, each against a slow plain way."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random_llm
from torch import Tensor

from cmpta_lib import registry
from cmpta_lib.base import Resources
from cmpta_lib.config import CmptaConfig, DataConfig, RunConfig, TextOnlyConfig, override
from cmpta_lib.data.corpus import Inputs, Sample, Task
from cmpta_lib.fast.prompted import PromptBatch, PromptedLM
from cmpta_lib.method.answers import AnswerTrie
from cmpta_lib.method.llm import FrozenLLM, weights_fingerprint
from cmpta_lib.method.prompted import Layout, answer_text, legal_answers

WORLDS = ("embedded-sims", "embedded-meld")
CONFIG = RunConfig(data=DataConfig(name="test", fingerprint=""), method=CmptaConfig(dim=16, num_heads=2))
TEXT_ONLY = RunConfig(data=CONFIG.data, method=TextOnlyConfig())


def tools_of(llm: FrozenLLM) -> Resources:
    return Resources(llm.device, lambda config: llm)


def build(llm: FrozenLLM, corpus, start: RunConfig = CONFIG, **changes) -> PromptedLM:
    torch.manual_seed(0)
    config = override(start, {name.replace("__", "."): value for name, value in changes.items()})
    method = registry.build(config, Inputs.of(corpus), tools_of(llm))
    method.fit(corpus.splits["train"])
    method.module.eval()
    return method


def replies(model: PromptedLM, batch: PromptBatch) -> list[str | None]:
    return list(model.predict(batch).replies)


def clips(corpus, count: int = 6) -> list[Sample]:
    """The first clips, of which one has no vision, one no audio and one no text."""
    samples = [corpus.splits["train"][i] for i in range(count)]
    samples[1] = replace(samples[1], vision=samples[1].vision[:0])
    samples[2] = replace(samples[2], audio=samples[2].audio[:0])
    samples[3] = replace(samples[3], text="")
    return samples


def plain(llm: FrozenLLM, attention: str = "sdpa"):
    """The same LLM as transformers runs it, without our attention function."""
    model = copy.deepcopy(llm.model)
    model.set_attn_implementation(attention)
    return model


def input_ids(llm: FrozenLLM, task: Task, text: str, tail: str = "") -> list[int]:
    layout = Layout.of(task)
    parts = (layout.open, text, layout.close, layout.prompt, tail)
    return llm.first_ids + [token for part in parts for token in llm.token_ids(part)]


def one_input(model: PromptedLM, sample: Sample, tail: list[int] | None = None) -> Tensor:
    """(1, n, E) the LLM's input for one clip, put together piece by piece."""
    llm, layout = model.llm, Layout.of(model.task)
    tokens, _ = model.pseudo_tokens(model.collate([sample]))

    def rows(ids: list[int]) -> Tensor:
        return llm.embedding(torch.tensor(ids, dtype=torch.int64))

    content = [tokens[0], rows(llm.token_ids(sample.text))]
    if model.settings.prompt.pseudo_token_position == "after_text":
        content.reverse()
    fixed = rows(llm.token_ids(layout.close) + llm.token_ids(layout.prompt) + (tail or []))
    return torch.cat([rows(llm.first_ids + llm.token_ids(layout.open)), *content, fixed])[None]


@pytest.fixture(params=WORLDS)
def corpus(request, corpora):
    return corpora[request.param]


# --- the frozen LLM ---------------------------------------------------------------------------------------------------


def test_only_the_adapter_moves(corpora):
    corpus, llm = corpora["embedded-sims"], random_llm()
    before = weights_fingerprint(llm.model)
    model = build(llm, corpus)
    model.module.train()
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=0.1)
    start = {name: weight.detach().clone() for name, weight in model.maker.named_parameters()}
    for _ in range(3):
        loss = model.loss(model.collate(clips(corpus)))
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    assert weights_fingerprint(llm.model) == before == llm.fingerprint
    assert all(p.grad is None and not p.requires_grad for p in llm.model.parameters())
    assert not any(module.training for module in llm.model.modules())
    assert all(not torch.equal(w, start[n]) for n, w in model.maker.named_parameters())


def test_the_checkpoint_and_the_optimiser_hold_the_adapter_only(llm, corpora):
    model = build(llm, corpora["embedded-sims"])
    assert model.module is model.maker
    llm_weights = {weight.data_ptr() for weight in llm.model.state_dict().values()}
    assert not llm_weights & {weight.data_ptr() for weight in model.module.state_dict().values()}
    assert not {"embed_tokens", "lm_head"} & {part for name in model.module.state_dict() for part in name.split(".")}


def test_text_only_has_nothing_to_train_or_keep(llm, corpora):
    model = build(llm, corpora["embedded-sims"], TEXT_ONLY)
    assert not list(model.module.parameters()) and not model.module.state_dict()
    batch = model.collate(clips(corpora["embedded-sims"]))
    assert set(replies(model, batch)) <= set(model.answers)
    with pytest.raises(NotImplementedError, match="PromptedLM has no attention maps to show"):
        model.attention(batch)


def test_settings_of_another_kind_are_refused(llm, corpora):
    from cmpta_lib.config import MethodConfig

    config = CONFIG.model_copy(update={"method": MethodConfig(name="other", recipe=1)})
    with pytest.raises(TypeError, match="expected the settings of a prompted LLM, got MethodConfig"):
        PromptedLM(config, Inputs.of(corpora["embedded-sims"]), tools_of(llm))


def test_a_clip_without_label_can_be_answered_and_not_trained_on(llm, corpora):
    model, samples = build(llm, corpora["embedded-sims"]), clips(corpora["embedded-sims"])
    unlabelled = [replace(sample, label=None) for sample in samples]
    assert replies(model, model.collate(unlabelled)) == replies(model, model.collate(samples))
    with pytest.raises(ValueError, match=f"clips {samples[1].id} have no label: only labelled clips"):
        model.loss(model.collate([samples[0], unlabelled[1]]))


def test_the_loss_is_the_sum_over_answer_tokens_and_their_number(llm, corpus):
    model = build(llm, corpus)
    batch = model.collate(clips(corpus))
    loss, (losses, _) = model.loss(batch), model.answer_losses(batch)
    assert loss.total.shape == () and loss.count == len(losses) == sum(map(len, batch.answer_ids))
    torch.testing.assert_close(loss.total, losses.sum())


def test_calling_the_llm_without_packing_is_refused(llm):
    with pytest.raises(ValueError, match="packing"):
        llm.model(input_ids=torch.tensor([[1, 2, 3]]))


def test_special_tokens_in_a_text_stay_text(llm):
    ids = llm.token_ids("<|endoftext|>")
    assert llm.tokenizer.eos_token_id not in ids and llm.tokenizer.decode(ids) == "<|endoftext|>"


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@torch.no_grad()
def test_without_pseudo_tokens_it_is_the_plain_llm(corpus, kv_heads):
    llm = random_llm(num_key_value_heads=kv_heads)
    assert llm.model.config.num_key_value_heads == kv_heads
    model, reference, samples = build(llm, corpus, TEXT_ONLY), plain(llm), clips(corpus)
    batch = model.collate(samples)
    tokens, _ = model.pseudo_tokens(batch)
    assert tokens.shape == (6, 0, llm.dim)
    rows = model._rows(batch, tokens.shape[1], [[]] * 6)
    embeds, packing, _ = model._placed(rows, tokens, [])
    everywhere = llm.logits(embeds, packing, torch.arange(len(embeds)))
    start = 0
    for sample, end in zip(samples, rows.ends.tolist(), strict=True):
        expected = reference(input_ids=torch.tensor([input_ids(llm, corpus.task, sample.text)])).logits[0]
        torch.testing.assert_close(everywhere[start : start + len(expected)], expected, rtol=0, atol=1e-4)
        start += len(expected)
        assert end == start - 1
    assert start == len(everywhere)


# --- one packed row per batch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("position", ["before_text", "after_text"])
def test_a_packed_batch_equals_its_clips_one_by_one(corpus, position, kv_heads):
    llm = random_llm(num_key_value_heads=kv_heads)
    model, samples = build(llm, corpus, method__prompt__pseudo_token_position=position), clips(corpus)
    losses, owners = model.answer_losses(model.collate(samples))
    alone = [model.answer_losses(model.collate([sample]))[0] for sample in samples]
    assert owners.tolist() == [i for i, row in enumerate(alone) for _ in row]
    torch.testing.assert_close(losses, torch.cat(alone), rtol=0, atol=1e-5)
    # Gradients in float64: random weights make them up to 1e3 large, where float32's rounding alone exceeds 1e-5.
    llm.model.double()
    model.module.double()
    gradients = []
    for batches in ([samples], [[sample] for sample in samples]):
        for batch in map(model.collate, batches):
            frames = {modality: values.astype(np.float64) for modality, values in batch.frames.items()}
            model.loss(replace(batch, frames=frames)).total.backward()
        gradients.append({name: p.grad.clone() for name, p in model.module.named_parameters()})
        model.module.zero_grad()
    for name, packed in gradients[0].items():
        torch.testing.assert_close(packed, gradients[1][name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("position", ["before_text", "after_text"])
def test_the_loss_is_the_cross_entropy_of_the_answer_alone(llm, corpus, position):
    model, reference = build(llm, corpus, method__prompt__pseudo_token_position=position), plain(llm)
    samples = clips(corpus)
    losses, owners = model.answer_losses(model.collate(samples))
    expected = []
    for row, sample in enumerate(samples):
        answer = llm.token_ids(answer_text(corpus.task, sample.label))
        embeds = one_input(model, sample, answer)
        log_probs = reference(inputs_embeds=embeds).logits[0].log_softmax(-1)
        first = embeds.shape[1] - len(answer)
        by_hand = [-log_probs[first + i - 1, token] for i, token in enumerate(answer)]
        torch.testing.assert_close(losses[owners == row], torch.stack(by_hand), rtol=0, atol=1e-4)
        labels = torch.full(embeds.shape[:2], -100)
        labels[0, first:] = torch.tensor(answer)
        expected.append(reference(inputs_embeds=embeds, labels=labels).loss * len(answer))  # transformers' own
    torch.testing.assert_close(losses.sum(), torch.stack(expected).sum(), rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_the_two_layouts_differ(llm, corpora):
    corpus = corpora["embedded-sims"]
    samples = clips(corpus)[:1]
    scores = [build(llm, corpus, method__prompt__pseudo_token_position=p) for p in ("before_text", "after_text")]
    before, after = (model.answer_losses(model.collate(samples))[0] for model in scores)
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("change", ["text", "frames", "label"])
@torch.no_grad()
def test_nothing_leaks_from_one_clip_to_another(llm, corpus, change):
    model, samples = build(llm, corpus), clips(corpus)
    other = corpus.splits["train"][10]
    changed = {
        "text": {"text": samples[0].text + other.text},
        "frames": {"audio": samples[0].audio[:9] + 5, "vision": other.vision[:7]},
        "label": {"label": next(v for v in model.answers.values() if v != samples[0].label)},
    }[change]
    losses, owners = model.answer_losses(model.collate(samples))
    others, _ = model.answer_losses(model.collate([replace(samples[0], **changed), *samples[1:]]))
    torch.testing.assert_close(others[owners > 0], losses[owners > 0], rtol=0, atol=1e-5)
    assert not torch.allclose(others[owners == 0], losses[owners == 0], atol=1e-3)


@torch.no_grad()
def test_the_order_of_a_batch_does_not_matter(llm, corpus):
    model, samples, order = build(llm, corpus), clips(corpus), [4, 2, 0, 5, 1, 3]
    losses, owners = model.answer_losses(model.collate(samples))
    shuffled, shuffled_owners = model.answer_losses(model.collate([samples[i] for i in order]))
    for place, row in enumerate(order):
        torch.testing.assert_close(shuffled[shuffled_owners == place], losses[owners == row], rtol=0, atol=1e-5)
    said = replies(model, model.collate(samples))
    assert replies(model, model.collate([samples[i] for i in order])) == [said[i] for i in order]


def test_only_asked_positions_pass_the_llms_head(llm, corpus):
    model, seen = build(llm, corpus), []
    head = llm.model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        losses, _ = model.answer_losses(model.collate(clips(corpus)))
        assert [x.flatten(0, -2).shape for x in seen] == [(len(losses), llm.dim)]
        replies(model, model.collate(clips(corpus)))
        assert len(seen) == 1, "of an answer trie's tokens only their own columns of the head"
    finally:
        handle.remove()


@torch.no_grad()
def test_neither_padding_nor_the_common_beginning_is_computed(llm, corpus):
    model, samples = build(llm, corpus), clips(corpus)
    model.answer_losses(model.collate(samples))  # the beginning's keys and values are known from now on
    rows = []
    handle = llm.model.model.layers[0].mlp.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape))
    try:
        model.answer_losses(model.collate(samples))
    finally:
        handle.remove()
    answers = [llm.token_ids(answer_text(corpus.task, s.label)) for s in samples]
    common = len(llm.first_ids + model._ids["open"])
    texts = [len(input_ids(llm, corpus.task, s.text)) + 6 + len(a) - 1 for s, a in zip(samples, answers, strict=True)]
    assert rows == [(sum(texts) - common * len(texts), llm.dim)]


def test_long_texts_are_cut_at_their_end_and_counted(llm, corpora):
    corpus = corpora["embedded-sims"]
    model, sample = build(llm, corpus, method__prompt__max_text_tokens=5), corpora["embedded-sims"].splits["train"][0]
    long = replace(sample, text="这部电影真是太好了，" * 4)
    batch = model.collate([sample, long, replace(sample, text="")])
    assert batch.text_ids[1] == llm.token_ids(long.text)[:5] and batch.text_ids[2] == []
    assert batch.issues["texts_cut"] == 1 + (len(llm.token_ids(sample.text)) > 5)


def test_features_are_scaled_by_the_training_split(llm, corpora):
    corpus = corpora["embedded-sims"]
    model = build(llm, corpus)
    for modality in ("audio", "vision"):
        frames = np.concatenate([getattr(corpus.splits["train"][i], modality) for i in range(20)])
        layer = model.maker.alignment[modality]
        np.testing.assert_allclose(layer.feature_mean, frames.astype(np.float64).mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(layer.feature_std, frames.astype(np.float64).std(0), rtol=1e-4, atol=1e-6)
    raw = build(llm, corpus, data__feature_scaling="none").maker.alignment["audio"]
    assert (raw.feature_mean == 0).all() and (raw.feature_std == 1).all()


# --- the answer trie --------------------------------------------------------------------------------------------------


def answers_of(trie: AnswerTrie) -> dict[str, list[int]]:
    spelt = {}
    for leaf, answer in trie.leaves.items():
        ids = []
        while leaf:
            ids.append(trie.tokens[leaf])
            leaf = trie.parents[leaf]
        spelt[answer] = ids[::-1]
    return spelt


def test_the_trie_spells_exactly_the_legal_answers(llm, corpus):
    model = build(llm, corpus)
    expected = {answer: llm.token_ids(answer) for answer in legal_answers(corpus.task)}
    assert answers_of(model.trie) == expected
    assert {len(model.trie.children[node]) > 1 for node in model.trie.asked} == {True}
    assert not any(len(model.trie.children[n]) > 1 for n in set(range(len(model.trie.tokens))) - {*model.trie.asked})


def test_a_clash_of_answers_is_refused():
    with pytest.raises(ValueError, match=r"'1'.*beginning"):
        AnswerTrie({"1": [5], "10": [5, 6]})
    with pytest.raises(ValueError, match=r"'10'.*beginning|'1'.*beginning"):
        AnswerTrie({"10": [5, 6], "1": [5]})
    with pytest.raises(ValueError, match="'a' and 'b' have the same token ids"):
        AnswerTrie({"a": [5], "b": [5]})


ODD_TRIES = {
    "one token each": {"0": [3], "1": [4], "2": [9]},
    "common beginning": {"a": [7, 3, 8], "b": [7, 3, 9], "c": [7, 4, 8]},
    "unequal lengths": {"a": [3], "b": [4, 5, 6], "c": [4, 5, 7, 8], "d": [4, 9]},
    "the same token at several depths": {"a": [3, 3, 3], "b": [3, 4, 3], "c": [4, 3, 3], "d": [4, 4]},
}


def scored(trie: AnswerTrie, node: int, scores: np.ndarray) -> dict[int, float]:
    """Next token -> its score at an asked node, from one clip's (options,) scores; nothing at other nodes."""
    if node not in trie.asked:
        return {}
    columns = range(len(trie.choices))[trie.options[node]]
    places = {trie.choices[column] for column in columns}
    assert places == {(trie.asked.index(node), child) for child in trie.children[node].values()}
    return {trie.tokens[trie.choices[column][1]]: float(scores[column]) for column in columns}


@pytest.mark.parametrize("answers", ODD_TRIES.values(), ids=ODD_TRIES)
def test_a_greedy_walk_equals_brute_force(answers):
    trie = AnswerTrie(answers)
    assert answers_of(trie) == answers
    scores = np.random.default_rng(0).standard_normal((50, len(trie.choices))).astype(np.float32)
    for clip, reply in enumerate(trie.greedy(scores)):
        prefix: list[int] = []
        while prefix not in answers.values():
            node = 0
            for token in prefix:
                node = trie.children[node][token]
            likelihood = scored(trie, node, scores[clip])
            legal = {ids[len(prefix)] for ids in answers.values() if ids[: len(prefix)] == prefix}
            assert legal == set(trie.children[node]) and (likelihood.keys() == legal or len(legal) == 1)
            prefix.append(max(legal, key=lambda token: likelihood.get(token, 0)))
        assert answers[reply] == prefix


def slow_probabilities(trie: AnswerTrie, scores: np.ndarray) -> dict[str, float]:
    """Answer -> the product, along its path, of each choice's share among the children it is drawn from."""
    chances = {}
    for leaf, answer in trie.leaves.items():
        chance, node = 1.0, leaf
        while node:
            siblings = scored(trie, trie.parents[node], scores) or {trie.tokens[node]: 0.0}
            weights = {token: math.exp(score) for token, score in siblings.items()}
            chance *= weights[trie.tokens[node]] / sum(weights.values())
            node = trie.parents[node]
        chances[answer] = chance
    return chances


@pytest.mark.parametrize("answers", ODD_TRIES.values(), ids=ODD_TRIES)
def test_the_probability_of_an_answer_is_the_product_of_its_choices(answers):
    trie = AnswerTrie(answers)
    scores = np.random.default_rng(1).standard_normal((20, len(trie.choices))).astype(np.float32) * 3
    found = trie.probabilities(scores)
    np.testing.assert_allclose(found.sum(1), 1, rtol=0, atol=1e-12)
    for row, given in zip(found, scores, strict=True):
        assert dict(zip(answers, row, strict=True)) == pytest.approx(slow_probabilities(trie, given), abs=1e-12)


@pytest.mark.parametrize("answers", ODD_TRIES.values(), ids=ODD_TRIES)
def test_where_one_path_dominates_it_is_both_likeliest_and_greedy(answers):
    trie = AnswerTrie(answers)
    for number, favourite in enumerate(answers):
        scores = np.random.default_rng(number).uniform(-1, 1, (1, len(trie.choices))).astype(np.float32)
        leaf = next(node for node, answer in trie.leaves.items() if answer == favourite)
        scores[0, [i for i, (_, child) in enumerate(trie.choices) if child in trie._ancestors(leaf)]] += 40
        probabilities = trie.probabilities(scores)[0]
        assert trie.greedy(scores) == [favourite] == [list(answers)[int(probabilities.argmax())]]
        assert probabilities.max() == pytest.approx(1, abs=1e-9)


@torch.no_grad()
def test_predictions_give_every_answer_its_probability(llm, corpus):
    model = build(llm, corpus)
    batch = model.collate(clips(corpus))
    predictions, scores = model.predict(batch), model.trie_scores(batch, model.pseudo_tokens(batch)[0])
    assert list(predictions.answers) == list(model.answers) and predictions.probabilities.shape == (6, len(model.answers))
    np.testing.assert_allclose(predictions.probabilities.sum(1), 1, rtol=0, atol=1e-9)
    for row in range(6):
        named = dict(zip(predictions.answers, predictions.probabilities[row], strict=True))
        assert named == pytest.approx(slow_probabilities(model.trie, scores[row]), abs=1e-9)
    if corpus.task.kind == "classification":  # one token an answer: greedy is the likeliest
        assert [predictions.answers[i] for i in predictions.probabilities.argmax(1)] == list(predictions.replies)


def slow_scores(model: PromptedLM, reference, sample: Sample) -> dict[tuple[int, ...], dict[int, float]]:
    """Beginning of an answer -> next token -> logit, by one plain forward for every beginning."""
    spelt = [model.llm.token_ids(answer) for answer in model.answers]
    found = {}
    for prefix in {tuple(ids[:i]) for ids in spelt for i in range(len(ids))}:
        after = {ids[len(prefix)] for ids in spelt if tuple(ids[: len(prefix)]) == prefix}
        logits = reference(inputs_embeds=one_input(model, sample, list(prefix))).logits[0, -1]
        found[prefix] = {token: float(logits[token]) for token in after}
    return found


@pytest.mark.parametrize("kv_heads", [4, 2])
@torch.no_grad()
def test_trie_scores_equal_a_forward_for_every_beginning(corpus, kv_heads):
    llm = random_llm(num_key_value_heads=kv_heads)
    model, reference, samples = build(llm, corpus), plain(llm), clips(corpus)
    batch = model.collate(samples)
    scores = model.trie_scores(batch, model.pseudo_tokens(batch)[0])
    said = replies(model, batch)
    for row, sample in enumerate(samples):
        slow = slow_scores(model, reference, sample)
        for node in model.trie.asked:
            prefix = tuple(model.trie.tokens[n] for n in reversed(model.trie._ancestors(node)[:-1]))
            assert scored(model.trie, node, scores[row]) == pytest.approx(slow[prefix], abs=1e-4)
        walk: tuple[int, ...] = ()
        while walk in slow:
            walk += (max(slow[walk], key=slow[walk].get),)
        assert llm.token_ids(said[row]) == list(walk)


@torch.no_grad()
def test_trie_with_answers_of_unequal_length(llm, corpora):
    corpus = corpora["embedded-meld"]
    model, reference, samples = build(llm, corpus), plain(llm), clips(corpus)
    texts = ("good", "good morning to all", "bad", "so so", "so what")
    model.answers = {text + "!": i for i, text in enumerate(texts)}
    model.trie = AnswerTrie({answer: llm.token_ids(answer) for answer in model.answers})
    batch = model.collate(samples)
    scores = model.trie_scores(batch, model.pseudo_tokens(batch)[0])
    for row, sample in enumerate(samples):
        slow = slow_scores(model, reference, sample)
        for node in model.trie.asked:
            prefix = tuple(model.trie.tokens[n] for n in reversed(model.trie._ancestors(node)[:-1]))
            assert scored(model.trie, node, scores[row]) == pytest.approx(slow[prefix], abs=1e-4)


@torch.no_grad()
def test_many_classes_can_be_answered(llm, corpora):
    task = Task("classification", "en", tuple(f"emotion {i}" for i in range(12)))
    torch.manual_seed(0)
    model = registry.build(CONFIG, Inputs(task, {"audio": 64, "vision": 64}), tools_of(llm))
    model.module.eval()
    sample = replace(corpora["embedded-meld"].splits["train"][0], label=11)
    assert set(replies(model, model.collate([sample]))) <= set(model.answers) and "11" in model.answers


# --- free decoding ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_free_decoding_equals_generate(llm, corpus):
    model, reference, samples = build(llm, corpus, method__decoding="free"), plain(llm), clips(corpus)
    batch = model.collate(samples)
    said = model._free_replies(batch, model.pseudo_tokens(batch)[0])
    longest = max(len(llm.token_ids(answer)) for answer in model.answers)
    for sample, reply in zip(samples, said, strict=True):
        embeds = one_input(model, sample)
        ids = reference.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
            max_new_tokens=longest,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert reply == llm.tokenizer.decode(ids[0]).strip()


def test_unparsable_replies_are_none_and_counted(llm, corpora, monkeypatch):
    model = build(llm, corpora["embedded-sims"], method__decoding="free")
    said = ["+0.6", "+0.7x", "", "0.6", "-0.0", "+1.0"]
    monkeypatch.setattr(model, "_free_replies", lambda batch, tokens: said)
    predictions = model.predict(model.collate(clips(corpora["embedded-sims"])))
    assert predictions.replies == ["+0.6", None, None, None, None, "+1.0"]
    np.testing.assert_array_equal(predictions.values, [0.6, np.nan, np.nan, np.nan, np.nan, 1.0])
    assert predictions.issues == {"unparsable_replies": 4}


def test_a_random_llm_seldom_answers_freely_and_always_in_the_trie(llm, corpora):
    corpus = corpora["embedded-sims"]
    free, trie = (build(llm, corpus, method__decoding=d) for d in ("free", "trie"))
    freely, legal = (model.predict(model.collate(clips(corpus))) for model in (free, trie))
    assert freely.issues["unparsable_replies"] == freely.replies.count(None) > 0
    assert set(legal.replies) <= set(trie.answers) and not legal.issues.get("unparsable_replies")
    assert legal.values.tolist() == [trie.answers[reply] for reply in legal.replies]
    np.testing.assert_array_equal(freely.probabilities, legal.probabilities)  # how likely an answer is, said or not


@pytest.mark.parametrize("decoding", ["trie", "free"])
def test_answers_ask_for_no_gradient(llm, corpora, decoding):
    model = build(llm, corpora["embedded-meld"], method__decoding=decoding)
    replies(model, model.collate(clips(corpora["embedded-meld"])))
    assert all(p.grad is None for p in itertools.chain(model.module.parameters(), llm.model.parameters()))


# --- attention for the heatmaps, and shapes ---------------------------------------------------------------------------


@torch.no_grad()
def test_attention_maps_come_with_the_pseudo_tokens(llm, corpus):
    model, samples = build(llm, corpus), clips(corpus)
    batch = model.collate(samples)
    tokens, weights = model.pseudo_tokens(batch, return_weights=True)
    assert tokens.shape == (6, 6, llm.dim)
    assert weights["t1"].shape == (6, 2, max(map(len, batch.text_ids)), batch.frames["vision"].shape[1])
    assert model.attention(batch).keys() == weights.keys()
    torch.testing.assert_close(tokens, model.pseudo_tokens(batch)[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_batch_without_any_frames_is_answered(llm, corpora):
    corpus = corpora["embedded-sims"]
    model = build(llm, corpus)
    silent = [replace(s, audio=s.audio[:0], vision=s.vision[:0]) for s in clips(corpus)]
    losses, _ = model.answer_losses(model.collate(silent))
    assert losses.isfinite().all() and set(replies(model, model.collate(silent))) <= set(model.answers)


def test_the_target_is_the_answer_rounded_to_its_decimals(llm, corpora):
    corpus = corpora["embedded-sims"]
    model = build(llm, corpus)
    sample = replace(corpus.splits["train"][0], label=-0.333)
    assert model.collate([sample]).answer_ids == [llm.token_ids("-0.3")]
    two = build(llm, corpus, method__prompt__answer_decimals=2)
    assert two.collate([sample]).answer_ids == [llm.token_ids("-0.33")] and len(two.answers) == 201


@torch.no_grad()
def test_a_bfloat16_llm_gives_nearly_the_same_losses(corpora):
    corpus, llm = corpora["embedded-sims"], random_llm()
    samples = clips(corpus)
    model = build(llm, corpus)
    exact, _ = model.answer_losses(model.collate(samples))
    half = FrozenLLM(copy.deepcopy(llm.model).to(torch.bfloat16), llm.tokenizer, "", "half")
    model.llm = half
    losses, _ = model.answer_losses(model.collate(samples))
    assert losses.dtype == torch.float32 and next(model.module.parameters()).dtype == torch.float32
    torch.testing.assert_close(losses, exact, rtol=0.1, atol=0.3)


def test_cross_entropy_is_never_asked_of_the_whole_input(llm, corpora, monkeypatch):
    corpus = corpora["embedded-meld"]
    model, shapes = build(llm, corpus), []
    original = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda *a, **k: shapes.append(a[0].shape) or original(*a, **k))
    model.answer_losses(model.collate(clips(corpus)))
    assert shapes == [(6, llm.model.config.vocab_size)]  # one digit for each clip
