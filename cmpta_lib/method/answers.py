"""The legal answers as a tree of token ids. The plain method asks the LLM node by node, `fast` all nodes in one pass."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Node: TypeAlias = tuple[int, ...]  # the beginning of an answer: its token ids so far


class AnswerTrie:
    """The legal answers as a tree of token ids: () is the root, a leaf spells one answer.

    Built from the tokenizer at hand, so nothing is assumed about how it cuts signs and digits.

    Attributes:
        children: node -> the tokens that may follow.
        asked: nodes where several may follow: only there must the LLM be asked.
        inner: asked nodes and their ancestors but for the root, parents first; `fast` feeds their tokens behind the prompt.
        choices: all children of asked nodes, node after node: one score each.
        options: asked node -> the slice of the choices that its children are.
    Raises:
        ValueError: an answer's ids are the beginning of another's, or two answers share their ids.
    """

    def __init__(self, answers: dict[str, list[int]]) -> None:
        self.leaves: dict[Node, str] = {}
        self.children: dict[Node, list[int]] = {}
        for answer, ids in answers.items():
            leaf = tuple(ids)
            if leaf in self.leaves:
                raise ValueError(f"answers {self.leaves[leaf]!r} and {answer!r} have the same token ids {ids}")
            self.leaves[leaf] = answer
            for depth, token in enumerate(leaf):
                following = self.children.setdefault(leaf[:depth], [])
                if token not in following:
                    following.append(token)
        if clash := [answer for leaf, answer in self.leaves.items() if leaf in self.children]:
            raise ValueError(f"answers {clash} are the beginning of other answers: a reply could not be told apart")
        self.asked = [node for node, following in self.children.items() if len(following) > 1]
        needed = {node[: depth + 1] for node in self.asked for depth in range(len(node))}
        self.inner = [node for node in self.children if node in needed]
        self.choices: list[Node] = []
        self.options: dict[Node, slice] = {}
        for node in self.asked:
            start = len(self.choices)
            self.choices += [(*node, token) for token in self.children[node]]
            self.options[node] = slice(start, len(self.choices))

    def visible(self) -> NDArray[np.bool_]:
        """(M, M) over `inner`: which inner nodes each may attend to, its own ancestors and itself."""
        place = {node: i for i, node in enumerate(self.inner)}
        mask = np.zeros((len(self.inner), len(self.inner)), bool)
        for node, i in place.items():
            mask[i, [place[node[: depth + 1]] for depth in range(len(node))]] = True
        return mask

    def greedy(self, scores: NDArray[np.float32]) -> list[str]:
        """Per clip, walk from the root to the likeliest child each time. `scores`: (B, choices) logits."""
        best = {node: scores[:, options].argmax(1) for node, options in self.options.items()}
        replies = []
        for clip in range(len(scores)):
            node: Node = ()
            while node not in self.leaves:
                node = (*node, self.children[node][best[node][clip] if node in best else 0])
            replies.append(self.leaves[node])
        return replies

    def probabilities(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """(B, answers), in the order given: chance of each answer when each open choice is drawn among its children."""
        within = np.array(scores, np.float64)
        for options in self.options.values():
            within[:, options] -= np.logaddexp.reduce(within[:, options], axis=1, keepdims=True)
        place = {child: i for i, child in enumerate(self.choices)}
        columns = []
        for leaf in self.leaves:
            taken = [place[leaf[:depth]] for depth in range(len(leaf), 0, -1) if leaf[:depth] in place]
            columns.append(np.exp(within[:, taken].sum(1)))
        return np.stack(columns, axis=1)
