"""MLLM-MAC: equal to the plain LLM where it adds nothing, each stage moves its own weights, and knowledge sees no label."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_knowledge import relabelled
from test_model import clips

import cmpta_lib
from cmpta_lib.beyond.mllm_mac import MllmMac, MllmMacConfig
from cmpta_lib.config import CmptaConfig, DataConfig, RunConfig, TextOnlyConfig, TrainingConfig, override
from cmpta_lib.data.corpus import Inputs
from cmpta_lib.fast.prompted import PromptedLM
from cmpta_lib.llm.generation import generate
from cmpta_lib.runs import loop
from cmpta_lib.study.trained import TrainedRun

WORLDS = ("embedded-sims", "embedded-meld")
SMALL = MllmMacConfig(
    dim=16, speech_rank=2, perception_epochs=1, perception_rate=0.01, perception_batch_size=10, facts=["course"], courses=1,
    wording="signs", statements=2, max_new_tokens=6, lora_rank=2, lora_alpha=4, knowledge="none", top_p=0.9,
)  # fmt: skip
TRAINING = TrainingConfig(epochs=1, batch_size=10, learning_rate=0.01)
CONFIG = RunConfig(data=DataConfig(name="test", fingerprint=""), method=SMALL, training=TRAINING)


def config(changes) -> RunConfig:
    return override(CONFIG, {f"method.{name}": value for name, value in changes.items()})


def built(tools, corpus, settings=None, **changes):
    given = config(changes) if settings is None else RunConfig(data=CONFIG.data, method=settings, training=TRAINING)
    method = loop.build(given, corpus, tools)
    method.module.eval()
    return method


def answers(method, samples):
    found = method.predict(method.collate(samples))
    return list(found.replies), found.probabilities


def equal(first, second) -> bool:
    return first[0] == second[0] and np.array_equal(first[1], second[1])


def stirred(method: MllmMac, *parts: str) -> MllmMac:
    """As after some training of these parts."""
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in [weight for part in parts for weight in method.module[part].parameters()]:
            weight.add_(0.2 * torch.randn_like(weight))
    return method


# --- what it is where it adds nothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
def test_where_it_adds_nothing_it_is_the_plain_llm_with_or_without_pseudo_tokens(world, tools, corpora):
    corpus, samples = corpora[world], clips(corpora[world])
    text = built(tools, corpus, sft=False, modalities="T")
    assert equal(answers(text, samples), answers(built(tools, corpus, TextOnlyConfig()), samples))
    assert not list(text.module.parameters()) and text.config.stages == ()
    plain, method = built(tools, corpus, CmptaConfig(dim=16)), built(tools, corpus, sft=False)
    method.maker.load_state_dict(plain.maker.state_dict())
    assert equal(answers(method, samples), answers(plain, samples))


@pytest.mark.parametrize("world", WORLDS)
def test_before_it_is_tuned_it_answers_zero_shot(world, tools, corpora):
    corpus = corpora[world]
    first, second = (built(tools, corpus, sft=sft, knowledge="features") for sft in (True, False))
    tuned, plain = (answers(method, clips(corpus)) for method in (first, second))
    assert tuned[0] == plain[0]
    np.testing.assert_allclose(tuned[1], plain[1], rtol=0, atol=1e-5)  # with LoRA in its layers the LLM is read whole
    assert not np.allclose(answers(stirred(first, "lora"), clips(corpus))[1], plain[1], rtol=0, atol=1e-3)


@pytest.mark.parametrize(("modalities", "absent", "name"), [("TA", "vision", "样"), ("TV", "audio", "话")])
def test_what_is_not_given_is_not_read(modalities, absent, name, tools, corpora):
    corpus = corpora["embedded-sims"]
    method = built(tools, corpus, modalities=modalities, knowledge="features")
    for sample in clips(corpus):
        other = replace(sample, **{absent: getattr(sample, absent)[:0]})
        assert equal(answers(method, [sample]), answers(method, [other]))
        assert method.knowledge([sample]) == method.knowledge([other]) and name not in method.knowledge([sample])[0][0]


# --- stages -------------------------------------------------------------------------------------------------------------


def test_stages_are_perception_which_runs_share_that_perceive_alike_and_fine_tuning():
    for sft, modalities, names in (
        (False, "T", []), (True, "T", ["training"]), (False, "TA", ["perception"]), (True, "TAV", ["perception", "training"])
    ):  # fmt: skip
        assert [stage.name for stage in config({"sft": sft, "modalities": modalities}).stages] == names
    perception, training = CONFIG.stages
    assert not perception.is_labelled and perception.training.learning_rate == 0.01 and training.outcome is None
    assert perception.training.patience is None and perception.training.batch_size == 10
    alike = [{"sft": False}, {"modalities": "TV"}, {"knowledge": "cue", "shuffled": True}, {"lora_rank": 8}, {"decoding": "free"}]
    assert all(config(changes).stages[0].outcome == perception.outcome for changes in alike)
    other = [{"dim": 32}, {"wording": "words"}, {"perception_epochs": 3}, {"prompt.max_text_tokens": 9}, {"llm.name": "x"}]
    assert all(config(changes).stages[0].outcome != perception.outcome for changes in other)
    assert override(CONFIG, {"seed": 1}).stages[0].outcome != perception.outcome


def test_what_is_perceived_does_not_hang_on_what_else_there_is(tools, corpora):
    states = []
    for changes in ({}, {"sft": False}, {"modalities": "TA", "knowledge": "cue", "shuffled": True}):
        state = built(tools, corpora["embedded-meld"], **changes).module.state_dict()
        states.append({name: weight for name, weight in state.items() if not name.startswith("lora")})
    assert all(state.keys() == states[0].keys() for state in states)
    assert all(torch.equal(state[name], states[0][name]) for state in states for name in state)


def test_perception_teaches_the_statement(tools, corpora):
    """The loss is that of the statement behind its question, and it falls."""
    method, stage = built(tools, corpora["embedded-meld"]), CONFIG.stages[0]
    method.enter(stage)
    method.module.train()
    samples = [replace(sample, label=None) for sample in clips(corpora["embedded-meld"])]
    batch = method.collate(samples)
    said = [method.llm.tokenizer.decode(ids) for ids in batch.answer_ids]
    assert said == [method.describer.of_frames(sample, method.given) + "\n" for sample in samples]
    optimizer = torch.optim.Adam(method.groups(stage.training)[0].parameters, lr=0.02)
    losses = []
    for _ in range(12):
        loss = method.loss(batch)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
        losses.append(float(loss.total.detach()) / loss.count)
    assert loss.count == sum(map(len, batch.answer_ids)) and losses[-1] < 0.8 * losses[0]


# --- knowledge ----------------------------------------------------------------------------------------------------------


KINDS = [
    {"knowledge": "features", "prompt.max_text_tokens": 4, "decoding": "free"},
    {"knowledge": "cue", "modalities": "TV"},
    {"knowledge": "generated"},
    {"knowledge": "generated", "shuffled": True},
    {"knowledge": "generated", "integration": "max_conf"},
    {"knowledge": "cue", "shuffled": True, "integration": "max_conf"},
]


@pytest.mark.parametrize(("changes", "world"), [*zip(KINDS, 3 * WORLDS, strict=True)], ids=str)
def test_it_answers_and_learns_as_its_plain_form_does_clip_by_clip(world, changes, tools, corpora):
    corpus, samples = corpora[world], clips(corpora[world])
    method = stirred(built(tools, corpus, **changes), "lora", "speech")
    plain = cmpta_lib.plain(TrainedRun(None, Inputs.of(corpus), method))  # type: ignore[arg-type]  # asked for its name only
    found = method.predict(method.collate(samples))
    for place, sample in enumerate(samples):
        method.module.said = None  # it must say everything again
        said = plain.answer(sample)
        assert said.reply == found.replies[place]
        np.testing.assert_allclose([*said.probabilities.values()], found.probabilities[place], rtol=0, atol=1e-5)
        torch.testing.assert_close(plain.loss(sample), method.loss(method.collate([sample])).total, rtol=1e-5, atol=1e-4)
    if "decoding" in changes:
        assert found.issues["unparsable_replies"] == [*found.replies].count(None) == np.isnan(found.values).sum() > 0


def test_knowledge_stands_before_the_words_and_cuts_none_and_the_adapter_reads_the_words_alone(tools, corpora):
    corpus, samples = corpora["embedded-meld"], clips(corpora["embedded-meld"])
    plain, told = built(tools, corpus), built(tools, corpus, knowledge="cue")
    batch = told.collate(samples)
    for ids, sample in zip(*batch.readings, samples, strict=True):
        cue = told.describer.cue(sample, told.given)
        assert told.llm.tokenizer.decode(ids) == cue + " " * bool(cue) + sample.text
    assert torch.equal(told.pseudo_tokens(batch)[0], plain.pseudo_tokens(plain.collate(samples))[0])
    assert not equal(answers(told, samples), answers(plain, samples))
    method = built(tools, corpus, knowledge="features", **{"prompt.max_text_tokens": 3})
    batch, (said,) = method.collate(samples[:1]), method.knowledge(samples[:1])[0]
    assert len(batch.readings[0][0]) == len(method.llm.token_ids(said)) + 3 and batch.issues == {"texts_cut": 1}


def test_the_surest_reading_counts(tools, corpora):
    corpus, samples = corpora["embedded-meld"], clips(corpora["embedded-meld"])
    kinds = ({"knowledge": "none"}, {"knowledge": "features"}, {"knowledge": "features", "integration": "max_conf"})
    alone, told, method = (stirred(built(tools, corpus, **changes), "lora") for changes in kinds)
    both = np.stack([answers(alone, samples)[1], answers(told, samples)[1]])
    surest = both.max(2).argmax(0)
    np.testing.assert_allclose(answers(method, samples)[1], both[surest, np.arange(len(samples))], atol=1e-6)
    assert set(surest) == {0, 1}
    losses = [one.loss(one.collate(samples)) for one in (alone, told, method)]
    torch.testing.assert_close(losses[2].total, losses[0].total + losses[1].total)
    assert losses[2].count == losses[0].count + losses[1].count


def test_what_the_model_says_is_said_once_and_kept(tools, corpora, tmp_path):
    corpus, samples = corpora["embedded-sims"], clips(corpora["embedded-sims"])
    kept = replace(tools, knowledge=tmp_path)
    method, other = (stirred(built(kept, corpus, knowledge="generated"), "speech") for _ in range(2))
    first = method.knowledge(samples)
    (path,) = tmp_path.iterdir()
    assert all(0 < len(set(said)) == len(said) <= 2 for said in first) and any(len(said) == 2 for said in first)
    asked = method._as_it_describes()
    greedy = generate(asked.llm, asked.prompt_embeddings(PromptedLM.collate(method, samples)), 6)
    assert [said[0] for said in first if said] == [line for line in greedy if line]
    other._describe = None  # it would fail if it had to say anything
    assert other.knowledge(samples) == first
    content = path.read_bytes()
    method = stirred(method, "maker")
    method.module.eval()  # so it ends whatever changed the weights
    assert method.knowledge(samples) != first
    assert path.read_bytes() == content and len(list(tmp_path.iterdir())) == 2, "another model, another file"


def test_no_label_reaches_perception_or_knowledge(tools, corpora, tmp_path):
    """Trained and asked with permuted labels: the same weights of perception, the same bytes in the cache."""
    states, caches, corpus = [], [], corpora["embedded-meld"]
    for number, train in enumerate([corpus.splits["train"], relabelled(corpus.splits["train"])]):
        kept = replace(tools, knowledge=tmp_path / str(number))
        given = replace(corpus, splits=corpus.splits | {"train": train})
        method, _ = loop.train(config({"knowledge": "generated"}), given, kept, tmp_path / f"run{number}")
        states.append(method.module.state_dict())
        method.knowledge([*train])
        caches.append({path.name: path.read_bytes() for path in (tmp_path / str(number)).iterdir()})
    assert len(caches[0]) == 1 and caches[0] == caches[1]
    assert {name.partition(".")[0] for name in states[0] if not torch.equal(states[0][name], states[1][name])} == {"lora"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"modalities": "T", "knowledge": "features"}, "there is nothing to say"),
        ({"shuffled": True}, "nothing to shuffle"),
        ({"dim": 20}, "not a multiple of num_heads"),
        ({"facts": []}, "method.facts"),
    ],
)
def test_senseless_settings_are_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        config(changes)
