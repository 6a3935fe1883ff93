"""A frozen LLM prompted by a token maker: samples -> packed LLM inputs -> loss on the answer (eq 9), or an answer.

The token maker is the trained part: CMPTA's adapter, or none for text only. `PromptedLM` lays out the LLM's inputs: ids,
embeddings, positions, mask and the positions whose logits are wanted grow together here, and every clip is one segment
of a packed row, so no padding reaches the LLM. All indices are made on the host and sent at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmpta_lib.base import Batch, Loss, Method, Predictions, Resources
from cmpta_lib.config import PromptedLMConfig, RunConfig
from cmpta_lib.data.corpus import MODALITIES, Inputs, Modality, Sample, Split
from cmpta_lib.fast import packing
from cmpta_lib.fast.llm import PackedInput, PrunedDecoder, packed_logits
from cmpta_lib.fast.packing import Chained, Ragged, Stream, Streams, pad
from cmpta_lib.method.answers import AnswerTrie
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.method.prompted import InputIds, answer_text, legal_answers


@dataclass(frozen=True)
class PromptBatch(Batch):
    """Host arrays; frames are zero-padded at the end to the longest of the batch. A length of 0 = absent."""

    text_ids: list[list[int]]
    answer_ids: list[list[int]]  # empty where a sample has no label
    frames: Mapping[Modality, np.ndarray]  # (B, T, F) float32
    lengths: Mapping[Modality, np.ndarray]  # (B,) int64


class TokenMaker(nn.Module, ABC):
    """Face, voice and the text's embeddings -> K pseudo tokens in the LLM's embedding space: what is trained.

    Methods beside CMPTA build theirs as `TokenMaker(settings, inputs, llm)`.
    """

    num_tokens: int  # K

    @abstractmethod
    def set_feature_statistics(self, modality: Modality, mean: Tensor, std: Tensor) -> None:
        """Give `modality`'s training mean and standard deviation, (F,) each, for z-scoring; kept in buffers."""

    @abstractmethod
    def forward(self, streams: Streams) -> tuple[Tensor, dict[str, Tensor]]:
        """Make the pseudo tokens of B clips.

        Returns:
            (B, K, E) pseudo tokens, and where maps are wanted name -> (B, H, queries, keys) attention.
        """


@dataclass(frozen=True)
class _Rows:
    """The token ids of B inputs on the host, whole or without the tokens that all begin with."""

    ids: list[list[int]]  # PLACEHOLDER where a pseudo token comes
    ends: (
        np.ndarray
    )  # (B,) place, in all rows together, of each prompt's last token: its logits choose the first answer token
    left_out: int  # tokens at the start of each that are not among the ids


class PromptedLM(Method):
    """Text only, or with a subclass's `maker_type` whatever pseudo tokens that makes.

    Raises:
        ValueError: the legal answers cannot be told apart in the LLM's tokens.
    """

    maker_type: ClassVar[Any] = None  # a `TokenMaker`, which is built of settings, inputs and the LLM
    settings: Any  # a `PromptedLMConfig`, of the subclass's own kind

    def __init__(self, config: RunConfig, inputs: Inputs, resources: Resources) -> None:
        if not isinstance(config.method, PromptedLMConfig):
            raise TypeError(f"expected the settings of a prompted LLM, got {type(config.method).__name__}")
        self.config, self.settings, self.task = config, config.method, inputs.task
        self.llm: FrozenLLM = resources.llm(self.settings.llm)
        self.maker = self.token_maker(inputs)
        self.module = (self.maker or nn.Module()).to(self.llm.device)
        self.ids = InputIds.of(self.llm, self.task, self.settings.prompt)
        self._form = (self.settings.prompt.answer_decimals, self.settings.prompt.answer_sign)
        self.answers = legal_answers(self.task, *self._form)
        self.trie = AnswerTrie({answer: self.llm.token_ids(answer) for answer in self.answers})

    def token_maker(self, inputs: Inputs) -> TokenMaker | None:
        """The trained part, freshly initialised; None = text only."""
        return self.maker_type(self.settings, inputs, self.llm) if self.maker_type else None

    def fit(self, train: Split) -> None:
        """Take the z-scoring statistics from the training split's real frames (choice 16)."""
        if self.maker and self.config.data.feature_scaling == "zscore":
            for modality in MODALITIES:
                mean, std = (torch.from_numpy(np.asarray(x)) for x in train.feature_statistics(modality))
                self.maker.set_feature_statistics(modality, mean, std)

    def collate(self, samples: Sequence[Sample]) -> PromptBatch:
        """Too long texts are cut at the end and counted."""
        limit = self.settings.prompt.max_text_tokens
        known = [self.llm.token_ids(sample.text) for sample in samples]
        labels = [sample.label for sample in samples]
        answers = ["" if label is None else answer_text(self.task, label, *self._form) for label in labels]
        padded = {modality: pad([getattr(s, modality) for s in samples], np.float32) for modality in MODALITIES}
        return PromptBatch(
            ids=tuple(sample.id for sample in samples),
            issues={"texts_cut": sum(len(ids) > limit for ids in known)},
            text_ids=[ids[:limit] for ids in known],
            answer_ids=[self.llm.token_ids(answer) if answer else [] for answer in answers],
            frames={modality: frames for modality, (frames, _) in padded.items()},
            lengths={modality: lengths for modality, (_, lengths) in padded.items()},
        )

    def pseudo_tokens(self, batch: PromptBatch, return_weights: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, K, E) pseudo tokens; with `return_weights` also name -> (B, heads, queries, keys) attention."""
        device, size = self.llm.device, len(batch.ids)
        if self.maker is None:
            return torch.zeros(size, 0, self.llm.dim, dtype=self.llm.embedding.weight.dtype, device=device), {}
        text_ids, sizes = pad(batch.text_ids, np.int64)
        audio, vision = packing.send([batch.frames[name] for name in MODALITIES], device)
        shapes = [(sizes, text_ids.shape[1]), *((batch.lengths[m], batch.frames[m].shape[1]) for m in MODALITIES)]
        indices = [Chained.arrays(*shape) for shape in shapes]
        ids, *sent = packing.send([text_ids, *chain(*indices)], device)
        layouts = [
            Chained(tuple(lengths.tolist()), longest, *sent[4 * place : 4 * place + 4])
            for place, (lengths, longest) in enumerate(shapes)
        ]
        text = self.llm.embedding(ids) * layouts[0].real[..., None]  # eqs 1-2
        streams = map(Stream, (text, audio, vision), layouts)
        return self.maker(Streams(*streams, wants_maps=return_weights))

    def loss(self, batch: PromptBatch) -> Loss:  # type: ignore[override]  # what our own `collate` made
        """Next-token cross-entropy on the answer tokens (eq 9), summed over them."""
        losses, _ = self.answer_losses(batch)
        return Loss(losses.sum(), len(losses))

    def answer_losses(self, batch: PromptBatch) -> tuple[Tensor, np.ndarray]:
        """(M,) cross-entropies, one per answer token, and the clip that each belongs to; raises as `training_inputs`."""
        rows, tokens, asked, targets = self._answers_asked(batch)
        logits, (goals,) = self._logits(rows, tokens, asked, [targets])
        clips = np.repeat(np.arange(len(batch.ids)), [len(answer) for answer in batch.answer_ids])
        return F.cross_entropy(logits, goals, reduction="none"), clips

    def training_inputs(self, batch: PromptBatch) -> tuple[Tensor, Ragged, Tensor, Tensor]:
        """What `packed_logits` would read in a training step: embeddings (N, E), where they lie, and per answer token the
        position (M,) whose logits predict it and its id (M,). Raises ValueError where a clip has no label."""
        rows, tokens, asked, targets = self._answers_asked(batch, whole=True)
        given, (goals,) = PackedInput.of(rows.ids, asked, [targets], self.llm.device)
        return given.embeds(self.llm, tokens), given.layout, given.asked, goals

    def prompt_embeddings(self, batch: PromptBatch) -> list[Tensor]:
        """What the LLM reads before each clip's answer, (n, E)."""
        tokens, _ = self.pseudo_tokens(batch)
        rows = self._rows(batch, tokens.shape[1], [[]] * len(batch.ids), whole=True)
        given, _ = PackedInput.of(rows.ids, np.zeros(0, np.int64), [], self.llm.device)
        return list(given.embeds(self.llm, tokens).split([len(row) for row in rows.ids]))

    def _answers_asked(self, batch: PromptBatch, whole: bool = False) -> tuple[_Rows, Tensor, np.ndarray, np.ndarray]:
        """Inputs up to the last answer token but one, pseudo tokens, and of each answer token who predicts it and its id."""
        if unlabelled := [name for name, ids in zip(batch.ids, batch.answer_ids, strict=True) if not ids]:
            raise ValueError(f"clips {', '.join(unlabelled[:3])} have no label: only labelled clips can be trained on")
        tokens, _ = self.pseudo_tokens(batch)
        rows = self._rows(batch, tokens.shape[1], [answer[:-1] for answer in batch.answer_ids], whole)
        asked = [end + step for end, ids in zip(rows.ends, batch.answer_ids, strict=True) for step in range(len(ids))]
        return rows, tokens, np.array(asked, np.int64), np.array(list(chain(*batch.answer_ids)), np.int64)

    @torch.no_grad()
    def predict(self, batch: PromptBatch) -> Predictions:  # type: ignore[override]
        """Greedy inside the trie of legal answers, or plain greedy (choice 11).

        `free` replies that are no legal answer come back as None; they are counted and never become a label.
        """
        tokens, _ = self.pseudo_tokens(batch)
        scores = self.trie_scores(batch, tokens)
        issues: dict[str, int] = {}
        replies: list[str | None] = [*self.trie.greedy(scores)]
        if self.settings.decoding == "free":
            said = self._free_replies(batch, tokens)
            replies = [reply if reply in self.answers else None for reply in said]
            issues["unparsable_replies"] = replies.count(None)
        values = np.array([np.nan if reply is None else self.answers[reply] for reply in replies], np.float64)
        return Predictions(values, replies, tuple(self.answers), self.trie.probabilities(scores), issues)

    def trie_scores(self, batch: PromptBatch, tokens: Tensor) -> np.ndarray:
        """(B, options) logits at every open choice of the trie (`AnswerTrie.choices`): comparable within a choice.

        One forward pass serves the whole trie: its inner nodes stand behind the prompt, each at its true position, and a
        tree-shaped mask lets each see the prompt and its own ancestors only.
        """
        inner, size = self.trie.inner, len(batch.ids)
        rows = self._rows(batch, tokens.shape[1], [[self.trie.tokens[node] for node in inner]] * size)
        place = {node: i + 1 for i, node in enumerate(inner)} | {0: 0}
        asked = np.array([place[node] for node in self.trie.asked], np.int64)
        nodes, children = np.array([(node, self.trie.tokens[child]) for node, child in self.trie.choices], np.int64).T
        columns, column = np.unique(children, return_inverse=True)
        where = (rows.ends[:, None] + asked).ravel()
        logits, (node, child) = self._logits(rows, tokens, where, [nodes, column], columns, self.trie)
        return logits.view(size, len(asked), -1)[:, node, child].cpu().numpy()

    def attention(self, batch: PromptBatch) -> Mapping[str, Tensor]:  # type: ignore[override]
        """The token maker's maps, by the name of the pair."""
        with torch.no_grad():
            weights = self.pseudo_tokens(batch, return_weights=True)[1]
        return weights or super().attention(batch)

    def _rows(self, batch: PromptBatch, num_tokens: int, tails: Sequence[list[int]], whole: bool = False) -> _Rows:
        """Every clip's input and its tail; not `whole`: without what all begin with, where the LLM need not read it again."""
        left_out = len(self.ids.start) if not whole and PrunedDecoder.fits(self.llm.model) else 0
        rows = [self.ids.row(text, num_tokens, tail) for text, tail in zip(batch.text_ids, tails, strict=True)]
        self.llm.need_room(max(len(row) - len(tail) for row, tail in zip(rows, tails, strict=True)))
        ids = [row[left_out:] for row in rows]
        ends = np.cumsum([len(row) for row in ids]) - [len(tail) for tail in tails] - 1
        return _Rows(ids, ends, left_out)

    def _logits(
        self, rows: _Rows, tokens: Tensor, asked: np.ndarray, further: Sequence[np.ndarray] = (),
        columns: np.ndarray | None = None, tree: AnswerTrie | None = None,
    ) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
        """Logits (M, vocabulary or `columns`) at the asked positions, and further index arrays, all sent at once.

        The LLM leaves out what it can (`PrunedDecoder`); `tree` as in `PackedInput.of`.
        """
        chosen = [] if columns is None else [columns]
        given, sent = PackedInput.of(rows.ids, asked, [*chosen, *further], self.llm.device, rows.left_out, tree)
        wanted = sent.pop(0) if chosen else None
        if rows.left_out and (pruned := PrunedDecoder.of(self.llm)):
            return pruned.logits(self.ids.start, given, tokens, wanted), sent
        embeds = given.embeds(self.llm, tokens)
        logits = packed_logits(self.llm, embeds, given.layout, given.asked, given.position_ids, given.mask)
        return (logits if wanted is None else logits[:, wanted]), sent

    def _free_replies(self, batch: PromptBatch, tokens: Tensor) -> list[str]:
        longest = max(len(self.llm.token_ids(answer)) for answer in self.answers)
        tails: list[list[int]] = [[] for _ in batch.ids]
        for step in range(longest):
            rows = self._rows(batch, tokens.shape[1], tails)
            logits, _ = self._logits(rows, tokens, rows.ends + step)
            for tail, token in zip(tails, logits.argmax(-1).tolist(), strict=True):
                tail.append(token)
        return [self.llm.tokenizer.decode(tail).strip() for tail in tails]
