"""What is written around the pseudo tokens, and the answers that the LLM may give.

One home for the words of the task: the wrap tags and prompts of Table 2, the text of an answer, and the set of legal
answers, from which the decoding trie is built for whichever tokenizer is at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cmpta_lib import paper
from cmpta_lib.data.corpus import Task

Sign = Literal["always", "negative"]


@dataclass(frozen=True)
class Layout:
    """The fixed text of a task's input: <open> [pseudo tokens] [text] <close> [prompt] [answer] (register 9)."""

    open: str
    close: str
    prompt: str

    @classmethod
    def of(cls, task: Task) -> Layout:
        tags = paper.WRAP_TAGS[task.language]
        if task.kind == "classification":
            prompt = paper.class_prompt(task.labels, task.language)
        else:
            prompt = paper.SIMS_PROMPT
        return cls(open=tags[0], close=tags[1], prompt=prompt)


def answer_text(task: Task, label: float | int, decimals: int = 1, sign: Sign = "always") -> str:
    """The answer as the LLM writes it (register 10): "+0.6", "-0.4", "+0.0"; or the class's number.

    With sign="negative" there is no plus: "0.6", "-0.4", "0.0".

    With more than ten classes the numbers are padded to one length, so that no answer is the beginning of another.
    """
    if task.kind == "classification":
        return f"{int(label):0{len(str(len(task.labels) - 1))}d}"
    rounded = round(float(label), decimals) + 0.0  # + 0.0 turns -0.0 into 0.0
    return f"{rounded:{'+' if sign == 'always' else ''}.{decimals}f}"


def legal_answers(task: Task, decimals: int = 1, sign: Sign = "always") -> dict[str, float | int]:
    """Every answer text and its value: all scores in [-1, 1] at the given decimals, or all classes."""
    if task.kind == "classification":
        return {answer_text(task, label): label for label in range(len(task.labels))}
    steps = 10**decimals
    return {answer_text(task, i / steps, decimals, sign): i / steps for i in range(-steps, steps + 1)}
