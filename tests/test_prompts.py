"""The words around the pseudo tokens, the answers that may be given, and what is said by the trie of them or freely."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_model import WORLDS, build, by_transformers, clips, one_input, plain_of

from cmpta_lib import paper
from cmpta_lib.data.corpus import Task
from cmpta_lib.method.answers import AnswerTrie
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.method.prompted import Layout, answer_text, is_whole, legal_answers

SIMS = Task("regression", "zh")
MELD = Task("classification", "en", paper.MELD_LABELS)


@pytest.mark.parametrize(
    ("label", "text"),
    [(0.6, "+0.6"), (-0.4, "-0.4"), (0.0, "+0.0"), (-0.0, "+0.0"), (1, "+1.0"), (-1, "-1.0"), (-0.04, "+0.0")],
)
def test_a_score_is_written_with_its_sign(label, text):
    assert answer_text(SIMS, label) == text
    assert answer_text(SIMS, np.float32(label)) == text


@pytest.mark.parametrize("decimals", [0, 1, 2])
def test_minus_zero_never_appears(decimals):
    texts = {answer_text(SIMS, label, decimals) for label in np.linspace(-1, 1, 4001)}
    assert not any(text.startswith("-") and float(text) == 0 for text in texts)
    assert texts == set(legal_answers(SIMS, decimals))


def test_legal_scores_are_the_whole_grid():
    answers = legal_answers(SIMS)
    assert list(answers.values()) == pytest.approx(np.arange(-10, 11) / 10)
    assert all(float(text) == value for text, value in answers.items())
    plain = legal_answers(SIMS, 1, "negative")
    assert list(plain.values()) == list(answers.values()) and [*plain][9:12] == ["-0.1", "0.0", "0.1"]
    assert len(legal_answers(SIMS, 2)) == 201 and list(legal_answers(SIMS, 0)) == ["-1", "+0", "+1"]


@pytest.mark.parametrize(("count", "first", "last"), [(2, "0", "1"), (10, "0", "9"), (11, "00", "10"), (101, "000", "100")])
def test_legal_classes_are_their_numbers_in_the_prompt_and_none_is_the_beginning_of_another(count, first, last):
    task = Task("classification", "en", tuple(f"emotion {i}" for i in range(count)))
    answers = legal_answers(task)
    assert list(answers.values()) == list(range(count))
    assert list(answers)[0] == first and list(answers)[-1] == last
    assert len({len(answer) for answer in answers}) == 1
    for answer, label in answers.items():
        assert answer_text(task, label) == answer and f"emotion {label}:{answer}" in Layout.of(task).prompt


def test_the_layout_is_table_2():
    sims, meld = Layout.of(SIMS), Layout.of(MELD)
    assert sims.prompt == "请对上述多模态内容的情感强度进行预测，范围在[-1.0, +1.0]之间。响应：情感为"
    assert meld.prompt == (
        "Please recognize the emotion of the above multimodal content from the target set <neutral:0, surprise:1, "
        "fear:2, sadness:3, joy:4, disgust:5, anger:6>. Assistant: The emotion is"
    )
    assert (sims.open, sims.close) == ("<多模态>", "</多模态>")
    assert (meld.open, meld.close) == ("<Multimodal>", "</Multimodal>")


def test_the_prompt_lists_a_users_own_labels():
    layout = Layout.of(Task("classification", "zh", ("平静", "高兴")))
    assert "<平静:0, 高兴:1>" in layout.prompt and layout.open == "<多模态>"


@pytest.mark.parametrize(
    ("task", "prompt"),
    [
        (Task("regression", "en", prompt=paper.ENGLISH_SCORE_PROMPT), paper.ENGLISH_SCORE_PROMPT),
        (Task("regression", "en"), paper.SIMS_PROMPT),  # as runs were asked before there was an English question
        (Task("regression", "en", prompt="Quel sentiment ? Réponse :"), "Quel sentiment ? Réponse :"),
        (Task("classification", "en", ("gai", "triste"), prompt="Dis {classes} {x}"), "Dis gai:0, triste:1 {x}"),
    ],
)  # fmt: skip
def test_a_question_of_ones_own_is_asked(task, prompt):
    assert Layout.of(task).prompt == prompt


# --- the trie of answers, and free decoding -----------------------------------------------------------------------------


@pytest.fixture(params=WORLDS)
def corpus(request, corpora):
    return corpora[request.param]


def test_the_trie_spells_exactly_the_legal_answers(llm, corpus):
    model = build(llm, corpus)
    assert model.trie.leaves == {tuple(llm.token_ids(answer)): answer for answer in legal_answers(corpus.task)}


@torch.no_grad()
def test_trie_with_answers_of_unequal_length(llm, corpora):
    corpus = corpora["embedded-meld"]
    model, samples = build(llm, corpus), clips(corpus)
    texts = ("good", "good morning to all", "bad", "so so", "so what")
    model.answers = {text + "!": i for i, text in enumerate(texts)}
    model.trie = AnswerTrie({answer: llm.token_ids(answer) for answer in model.answers})
    plain = plain_of(model, corpus)
    plain.answers, plain.trie = model.answers, model.trie
    found = model.predict(model.collate(samples))
    for row, sample in enumerate(samples):
        said = plain.answer(sample)
        assert said.reply == found.replies[row]
        np.testing.assert_allclose([*said.probabilities.values()], found.probabilities[row], rtol=0, atol=1e-5)


@torch.no_grad()
def test_free_decoding_equals_generate(llm, corpus):
    model, reference, samples = build(llm, corpus, method__decoding="free"), by_transformers(llm), clips(corpus)
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


@pytest.mark.parametrize(
    ("written", "said"),
    [("0.6!", "0.6"), ("-0.6", "-0.6"), (" 0.6", "0.6"), ("0.6" * 2, "0.6"), ("x0.6", "x0.6"), ("06.0", "06.0")],
)
@torch.no_grad()
def test_a_free_reply_ends_where_it_is_a_whole_answer(written, said, llm, corpora, monkeypatch):
    """Where the positive answers are shorter than the negative ones they get no surplus token, by either path."""
    corpus = corpora["embedded-sims"]
    model, samples = build(llm, corpus, method__decoding="free", method__prompt__answer_sign="negative"), clips(corpus, 4)[:2]
    plain, batch, wanted = plain_of(model, corpus), model.collate(samples), llm.token_ids(written)
    asked: list[int] = []

    def scripted(*_: object) -> torch.Tensor:
        asked.append(len(asked))
        return torch.eye(len(llm.tokenizer))[wanted[asked[-1]]].expand(2, -1)

    monkeypatch.setattr("cmpta_lib.fast.prompted.read", scripted)
    assert model._free_replies(batch, model.pseudo_tokens(batch)[0]) == [said] * 2
    asked.clear()
    monkeypatch.setattr(FrozenLLM, "logits", scripted)
    assert plain._free_reply(samples[0], plain.pseudo_tokens(samples[0])) == said
    assert (said in model.answers) == (said in ("0.6", "-0.6"))
    assert [is_whole(text, ("so", "so what")) for text in ("s", "so", "so what", "so whats")] == [False, False, True, False]


def test_unparsable_replies_are_none_and_counted(llm, corpora, monkeypatch):
    model = build(llm, corpora["embedded-sims"], method__decoding="free")
    said = ["+0.6", "+0.7x", "", "0.6", "-0.0", "+1.0"]
    monkeypatch.setattr(model, "_free_replies", lambda batch, tokens: said)
    predictions = model.predict(model.collate(clips(corpora["embedded-sims"])))
    assert predictions.replies == ["+0.6", None, None, None, None, "+1.0"]
    np.testing.assert_array_equal(predictions.values, [0.6, np.nan, np.nan, np.nan, np.nan, 1.0])
    assert predictions.issues == {"unparsable_replies": 4}


def test_the_target_is_the_answer_rounded_to_its_decimals(llm, corpora):
    corpus = corpora["embedded-sims"]
    model = build(llm, corpus)
    sample = replace(corpus.splits["train"][0], label=-0.333)
    assert model.collate([sample]).answer_ids == [llm.token_ids("-0.3")]
    two = build(llm, corpus, method__prompt__answer_decimals=2)
    assert two.collate([sample]).answer_ids == [llm.token_ids("-0.33")] and len(two.answers) == 201
