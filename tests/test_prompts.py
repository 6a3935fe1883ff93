"""The words around the pseudo tokens and the answers that may be given."""

from __future__ import annotations

import numpy as np
import pytest

from cmpta_lib import paper
from cmpta_lib.data.corpus import Task
from cmpta_lib.method.prompted import Layout, answer_text, legal_answers

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


def test_legal_classes_are_their_numbers():
    assert legal_answers(MELD) == {str(index): index for index in range(7)}


@pytest.mark.parametrize(
    ("count", "first", "last"), [(2, "0", "1"), (10, "0", "9"), (11, "00", "10"), (101, "000", "100")]
)
def test_no_class_is_the_beginning_of_another(count, first, last):
    task = Task("classification", "en", tuple(f"emotion {i}" for i in range(count)))
    answers = legal_answers(task)
    assert list(answers.values()) == list(range(count))
    assert list(answers)[0] == first and list(answers)[-1] == last
    assert len({len(answer) for answer in answers}) == 1
    assert all(answer_text(task, label) == answer for answer, label in answers.items())


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


@pytest.mark.parametrize("count", [3, 11])
def test_the_numbers_in_the_prompt_are_the_numbers_answered(count):
    task = Task("classification", "en", tuple(f"emotion {i}" for i in range(count)))
    for label, name in enumerate(task.labels):
        assert f"{name}:{answer_text(task, label)}" in Layout.of(task).prompt
