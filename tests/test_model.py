"""CMPTA around the frozen LLM: the packed batch against the plain method, and the plain method against transformers."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import language_model, random_llm
from torch import Tensor

import cmpta_lib
from cmpta_lib import registry
from cmpta_lib.base import Resources
from cmpta_lib.config import CmptaConfig, DataConfig, PromptedLMConfig, RunConfig, TextOnlyConfig, override
from cmpta_lib.data.corpus import Inputs, Sample, Task
from cmpta_lib.fast.llm import PrunedDecoder, packed_logits
from cmpta_lib.fast.prompted import PromptBatch, PromptedLM
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.method.prompted import Layout, PlainLM, answer_text
from cmpta_lib.study.trained import TrainedRun

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


def by_transformers(llm: FrozenLLM):
    """The same LLM as transformers runs it, without our attention function."""
    model = copy.deepcopy(llm.model)
    model.set_attn_implementation("sdpa")
    return model


def plain_of(model: PromptedLM, corpus) -> PlainLM:
    return cmpta_lib.plain(TrainedRun(None, Inputs.of(corpus), model))  # type: ignore[arg-type]  # asked for its name only


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


def test_only_the_adapter_moves(llm, corpora):
    """Optimiser and checkpoint hold it and nothing of the LLM; that nothing else moves, `test_every_method` says."""
    model = build(llm, corpora["embedded-sims"])
    model.module.train()
    assert model.module is model.maker and not any(module.training for module in llm.model.modules())
    assert not any(p.requires_grad for p in llm.model.parameters())
    llm_weights = {weight.data_ptr() for weight in llm.model.state_dict().values()}
    assert not llm_weights & {weight.data_ptr() for weight in model.module.state_dict().values()}


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


def test_calling_the_packed_llm_without_a_layout_is_refused(llm):
    from cmpta_lib.fast.llm import _packed_attention

    with pytest.raises(ValueError, match=r"needs layout=.*fast.llm.packed_logits"):
        _packed_attention(torch.nn.Identity(), *[torch.zeros(1, 1, 3, 4)] * 3, None)


@pytest.mark.parametrize("family", ["qwen2", "llama", "glm"])
@torch.no_grad()
def test_without_pseudo_tokens_it_is_the_plain_llm(corpus, family, llm):
    llm = language_model(family, llm)
    model, reference, samples = build(llm, corpus, TEXT_ONLY), by_transformers(llm), clips(corpus)
    batch = model.collate(samples)
    tokens, _ = model.pseudo_tokens(batch)
    assert tokens.shape == (6, 0, llm.dim)
    given, _ = model._packed(batch, 0, [[]] * 6, [[0]] * 6, whole=True)
    embeds = given.embeds(llm, tokens)
    everywhere = packed_logits(llm, embeds, given.layout, torch.arange(len(embeds)))
    start = 0
    for sample, end in zip(samples, given.asked.tolist(), strict=True):
        expected = reference(input_ids=torch.tensor([input_ids(llm, corpus.task, sample.text)])).logits[0]
        torch.testing.assert_close(everywhere[start : start + len(expected)], expected, rtol=0, atol=1e-4)
        start += len(expected)
        assert end == start - 1
    assert start == len(everywhere)


# --- one packed row per batch -----------------------------------------------------------------------------------------


ABLATIONS = [
    {"method__alignment": "lstm", "method__summary": "max", "method__num_pseudo_tokens": 8},
    {"method__alignment": "linear", "method__projections": "per_pair", "method__num_pseudo_tokens": 5},
    {"method__fusion": "pooled", "method__token_scale": "default", "method__prompt__max_text_tokens": 4},
    {"method__num_pseudo_tokens": 8, "method__token_count_rule": "repeat", "method__decoding": "free"},
]
AFTER_TEXT = {"method__prompt__pseudo_token_position": "after_text", "method__prompt__answer_decimals": 2}
OTHERS = {  # prompted by another token maker
    name: CONFIG.model_copy(update={"method": entry.defaults()})
    for name, entry in registry.ENTRIES.items()
    if issubclass(entry.config, PromptedLMConfig) and name not in ("cmpta", "text_only", "mllm_mac")
}
PLAIN = {
    "cmpta": ({}, CONFIG, 4),
    "shared keys": ({}, CONFIG, 2),
    "after the text": (AFTER_TEXT, CONFIG, 4),
    "text only": ({}, TEXT_ONLY, 4),
    "text only, freely": ({"method__decoding": "free"}, TEXT_ONLY, 4),
    **{str(changes): (changes, CONFIG, 4) for changes in ABLATIONS},
    **{name: (registry.ENTRIES[name].settings.get("smoke", {}), config, 4) for name, config in OTHERS.items()},
}


@pytest.mark.parametrize("is_pruned", [True, False], ids=["pruned", "whole"])
@pytest.mark.parametrize(("changes", "start", "kv_heads"), PLAIN.values(), ids=PLAIN)
def test_a_batch_equals_the_plain_method(changes, start, kv_heads, is_pruned, corpus, monkeypatch):
    """Loss, gradients, answers, probabilities, attention: by packed rows, and with what no answer needs left out or not."""
    if not is_pruned:
        monkeypatch.setattr(PrunedDecoder, "fits", staticmethod(lambda model: False))
    model, samples = build(random_llm(num_key_value_heads=kv_heads), corpus, start, **changes), clips(corpus)
    plain, batch = plain_of(model, corpus), model.collate(samples)
    losses, owners = model.answer_losses(batch)
    assert len(losses) == sum(map(len, batch.answer_ids))
    found, own = model.predict(batch), [plain.loss(sample) for sample in samples]
    maps = {} if start in OTHERS.values() else model.pseudo_tokens(batch, return_weights=True)[1]
    for row, sample in enumerate(samples):
        torch.testing.assert_close(losses[owners == row].sum(), own[row], rtol=1e-5, atol=1e-4)
        said = plain.answer(sample)
        assert said.reply == found.replies[row]
        np.testing.assert_equal(said.value, found.values[row])
        assert list(said.probabilities) == list(found.answers)
        np.testing.assert_allclose([*said.probabilities.values()], found.probabilities[row], rtol=0, atol=1e-5)
        looked = plain.attention(sample)
        assert looked.keys() == maps.keys() or start in OTHERS.values()
        for name, one in looked.items() if maps else ():
            torch.testing.assert_close(maps[name][row, :, : one.shape[1], : one.shape[2]], one, rtol=0, atol=1e-5)
    if start is CONFIG:
        loss = model.loss(batch)
        assert loss.count == len(losses)
        loss.total.backward()
        torch.stack(own).sum().backward()
        theirs = dict(plain.make_tokens.named_parameters())
        for name, weight in model.module.named_parameters():  # random weights make gradients up to 1e3 large
            assert (weight.grad - theirs[name].grad).norm() < 1e-3 * weight.grad.norm() + 1e-4, name


def test_what_has_no_plain_form_is_refused(corpora, tools):
    from types import SimpleNamespace

    config = CONFIG.model_copy(update={"method": registry.ENTRIES["constant"].config()})
    method = registry.build(config, Inputs.of(corpora["embedded-sims"]), tools)
    run = SimpleNamespace(folder=SimpleNamespace(name="a-run"), config=config)
    with pytest.raises(ValueError, match="run a-run: its method 'constant' has no plain form"):
        cmpta_lib.plain(TrainedRun(run, Inputs.of(corpora["embedded-sims"]), method))  # type: ignore[arg-type]


@pytest.mark.parametrize("position", ["before_text", "after_text"])
def test_the_loss_is_the_cross_entropy_of_the_answer_alone(llm, corpus, position):
    model, reference = build(llm, corpus, method__prompt__pseudo_token_position=position), by_transformers(llm)
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
    for modality, layer in model.maker.alignment.items():
        frames = np.concatenate([getattr(sample, modality) for sample in corpus.splits["train"]])
        np.testing.assert_allclose(layer.feature_mean, frames.astype(np.float64).mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(layer.feature_std, frames.astype(np.float64).std(0), rtol=1e-4, atol=1e-6)
    raw = build(llm, corpus, data__feature_scaling="none").maker.alignment["audio"]
    assert (raw.feature_mean == 0).all() and (raw.feature_std == 1).all()


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
