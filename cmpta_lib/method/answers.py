"""The legal answers as a tree of token ids, of which one forward pass scores all."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from numpy.typing import NDArray


class AnswerTrie:
    """The legal answers as a tree of token ids: node 0 is the root, a path to a leaf spells one answer.

    Built from the tokenizer at hand, so nothing is assumed about how it cuts signs and digits.

    Raises:
        ValueError: an answer's ids are the beginning of another's, or two answers share their ids.
    """

    def __init__(self, answers: dict[str, list[int]]) -> None:
        self.tokens, self.parents = [-1], [-1]
        self.children: list[dict[int, int]] = [{}]
        self.leaves: dict[int, str] = {}
        for answer, ids in answers.items():
            node = 0
            for token in ids:
                if token not in self.children[node]:
                    self.children[node][token] = len(self.tokens)
                    self.tokens.append(token)
                    self.parents.append(node)
                    self.children.append({})
                node = self.children[node][token]
            if node in self.leaves:
                raise ValueError(f"answers {self.leaves[node]!r} and {answer!r} have the same token ids {ids}")
            self.leaves[node] = answer
        if clash := [answer for node, answer in self.leaves.items() if self.children[node]]:
            raise ValueError(f"answers {clash} are the beginning of other answers: a reply could not be told apart")
        # Only where a choice is open must the LLM be asked: those nodes and the way to them.
        asked = {node for node, children in enumerate(self.children) if len(children) > 1}
        needed = {a for node in asked for a in self._ancestors(node)} - {0}
        self.inner = sorted(needed)  # nodes that are fed to the LLM behind the prompt; parents before children
        self.asked = sorted(asked)
        # One score per child of an asked node: (place of the node in `asked`, child), node after node.
        self.choices = [(place, child) for place, node in enumerate(self.asked) for child in self.children[node].values()]
        stops = list(accumulate(len(self.children[node]) for node in self.asked))
        self.options = {n: slice(stop - len(self.children[n]), stop) for n, stop in zip(self.asked, stops, strict=True)}
        self.depth = [len(self._ancestors(node)) - 1 for node in range(len(self.tokens))]

    def _ancestors(self, node: int) -> list[int]:
        """The node and all above it."""
        path = [node]
        while self.parents[path[-1]] >= 0:
            path.append(self.parents[path[-1]])
        return path

    def path(self, node: int) -> list[int]:
        """The tokens from the root to a node: the beginning of an answer."""
        return [self.tokens[ancestor] for ancestor in reversed(self._ancestors(node)[:-1])]

    def visible(self) -> NDArray[np.bool_]:
        """(M, M) over `inner`: which inner nodes each may attend to, its own ancestors and itself."""
        place = {node: i for i, node in enumerate(self.inner)}
        mask = np.zeros((len(self.inner), len(self.inner)), bool)
        for node, i in place.items():
            for ancestor in self._ancestors(node):
                if ancestor:
                    mask[i, place[ancestor]] = True
        return mask

    def greedy(self, scores: NDArray[np.float32]) -> list[str]:
        """Per clip, walk from the root to the likeliest child each time. `scores`: (B, options) log-probabilities."""
        best = {node: scores[:, options].argmax(1) for node, options in self.options.items()}
        replies = []
        for clip in range(len(scores)):
            node = 0
            while node not in self.leaves:
                children = list(self.children[node].values())
                node = children[best[node][clip]] if node in best else children[0]
            replies.append(self.leaves[node])
        return replies

    def probabilities(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """(B, answers), in the order given: chance of each answer when each open choice is drawn among its children."""
        within = np.array(scores, np.float64)
        for options in self.options.values():
            within[:, options] -= np.logaddexp.reduce(within[:, options], axis=1, keepdims=True)
        place = {child: i for i, (_, child) in enumerate(self.choices)}
        columns = []
        for leaf in self.leaves:
            taken = [place[node] for node in self._ancestors(leaf) if node in place]
            columns.append(np.exp(within[:, taken].sum(1)))
        return np.stack(columns, axis=1)
