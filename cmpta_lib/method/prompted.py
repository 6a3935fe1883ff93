"""The paper's method around its adapter, plain: what the LLM reads, the loss (eq 9) and the answer.

It puts the words of a task together (tags and prompts stand in `paper.py`): the text of an answer, the set of legal
answers, and how a clip's tokens are laid out between the fixed ones. "choice N": see "Choices the paper leaves open" in
cmpta_lib/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cmpta_lib import paper
from cmpta_lib.config import PromptConfig, PromptedLMConfig
from cmpta_lib.data.corpus import Sample, Task
from cmpta_lib.method.answers import AnswerTrie
from cmpta_lib.method.llm import FrozenLLM

Sign = Literal["always", "negative"]


@dataclass(frozen=True)
class Layout:
    """The fixed text of a task's input: <open> [pseudo tokens] [text] <close> [prompt] [answer] (choice 9)."""

    open: str
    close: str
    prompt: str

    @classmethod
    def of(cls, task: Task) -> Layout:
        tags = paper.WRAP_TAGS[task.language]
        if task.prompt:
            prompt = task.prompt.replace("{classes}", paper.numbered(task.labels))
        elif task.kind == "classification":
            prompt = paper.class_prompt(task.labels, task.language)
        else:  # in any language: a conversion gives English scores their own question, so that older runs keep theirs
            prompt = paper.SIMS_PROMPT
        return cls(open=tags[0], close=tags[1], prompt=prompt)


def answer_text(task: Task, label: float | int, decimals: int = 1, sign: Sign = "always") -> str:
    """The answer as the LLM writes it (choice 10): "+0.6", "-0.4", "+0.0"; or the class's number.

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


PLACEHOLDER = -1  # in a row of token ids: a pseudo token comes here


@dataclass(frozen=True)
class InputIds:
    """The token ids of an input that stay the same from clip to clip, and how a clip's own stand between them."""

    start: list[int]  # the LLM's first tokens and <open>
    close: list[int]
    prompt: list[int]
    position: Literal["before_text", "after_text"]

    @classmethod
    def of(cls, llm: FrozenLLM, task: Task, settings: PromptConfig) -> InputIds:
        opened, close, prompt = (llm.token_ids(part) for part in astuple(Layout.of(task)))
        return cls(llm.first_ids + opened, close, prompt, settings.pseudo_token_position)

    def row(self, text: list[int], num_tokens: int, tail: Sequence[int] = ()) -> list[int]:
        """<open> [pseudo tokens] [text] <close> [prompt] [tail] (choice 9), PLACEHOLDER where a pseudo token comes."""
        pseudo = [PLACEHOLDER] * num_tokens
        content = pseudo + text if self.position == "before_text" else text + pseudo
        return [*self.start, *content, *self.close, *self.prompt, *tail]


@dataclass(frozen=True)
class PlainAnswer:
    """What is said of one clip. `reply` is None and `value` NaN where a free reply is no legal answer."""

    reply: str | None
    value: float
    probabilities: dict[str, float]  # of every legal answer; their sum is 1


# Text (L, E), audio and vision (T, F) of one clip -> (K, E) pseudo tokens, and attention maps by name.
MakeTokens = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


class PlainLM:
    """A frozen LLM that reads a clip's pseudo tokens and words, and answers; one clip at a time, nothing padded or packed.

    Slow, and what everything quick in `fast` must equal.

    Args:
        make_tokens: such as a `CMPTAdapter`; None = text only.
    """

    def __init__(self, llm: FrozenLLM, settings: PromptedLMConfig, task: Task, make_tokens: MakeTokens | None = None) -> None:
        self.llm, self.settings, self.task, self.make_tokens = llm, settings, task, make_tokens
        self.ids = InputIds.of(llm, task, settings.prompt)
        self.form = settings.prompt.answer_decimals, settings.prompt.answer_sign
        self.answers = legal_answers(task, *self.form)
        self.trie = AnswerTrie({answer: llm.token_ids(answer) for answer in self.answers})

    def text_ids(self, sample: Sample) -> list[int]:
        """Too long texts are cut at the end."""
        return self.llm.token_ids(sample.text)[: self.settings.prompt.max_text_tokens]

    def _made(self, sample: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        text = self.llm.embed(self.text_ids(sample))  # eqs 1-2
        if self.make_tokens is None:
            return text.new_zeros(0, self.llm.dim), {}
        frames = (torch.tensor(np.asarray(one, np.float32)) for one in (sample.audio, sample.vision))
        audio, vision = (one.to(self.llm.device) for one in frames)
        return self.make_tokens(text, audio, vision)  # eqs 3-8

    def pseudo_tokens(self, sample: Sample) -> Tensor:
        """(K, E)."""
        return self._made(sample)[0]

    def attention(self, sample: Sample) -> dict[str, Tensor]:
        """Attention maps by name, CMPTA's by pair: (H, n_Y, n_X)."""
        return self._made(sample)[1]

    def inputs(self, sample: Sample, tokens: Tensor, tail: Sequence[int] = ()) -> Tensor:
        """(N, E): what the LLM reads, up to the answer's beginning `tail`."""
        row = self.ids.row(self.text_ids(sample), len(tokens), tail)
        embeds = self.llm.embed([max(token, 0) for token in row])  # rows of placeholders are replaced below
        if len(tokens):
            start = row.index(PLACEHOLDER)
            embeds = torch.cat([embeds[:start].to(tokens.dtype), tokens, embeds[start + len(tokens) :].to(tokens.dtype)])
        return embeds

    def loss(self, sample: Sample) -> Tensor:
        """Next-token cross-entropy on the answer's tokens only, summed over them (eq 9): a scalar that carries the gradient."""
        if sample.label is None:
            raise ValueError(f"clip {sample.id} has no label: only labelled clips can be trained on")
        answer = self.llm.token_ids(answer_text(self.task, sample.label, *self.form))
        logits = self.llm.logits(self.inputs(sample, self.pseudo_tokens(sample), answer[:-1]))
        return F.cross_entropy(logits[-len(answer) :], torch.tensor(answer, device=logits.device), reduction="sum")

    @torch.no_grad()
    def answer(self, sample: Sample) -> PlainAnswer:
        """Greedily, token by token, among the legal answers or freely (choice 11), and every legal answer's chance."""
        tokens, scores = self.pseudo_tokens(sample), []
        for node in self.trie.asked:
            logits = self.llm.logits(self.inputs(sample, tokens, node))[-1]
            scores += [float(logits[token]) for token in self.trie.children[node]]
        options = np.array([scores], np.float32)
        reply: str | None = self.trie.greedy(options)[0]
        if self.settings.decoding == "free":
            said = self._free_reply(sample, tokens)
            reply = said if said in self.answers else None
        value = np.nan if reply is None else self.answers[reply]
        chances = self.trie.probabilities(options)[0].tolist()
        return PlainAnswer(reply, float(value), dict(zip(self.answers, chances, strict=True)))

    def _free_reply(self, sample: Sample, tokens: Tensor) -> str:
        said: list[int] = []
        for _ in range(max(len(self.llm.token_ids(answer)) for answer in self.answers)):
            said.append(int(self.llm.logits(self.inputs(sample, tokens, said))[-1].argmax()))
        return str(self.llm.tokenizer.decode(said)).strip()
