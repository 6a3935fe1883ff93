"""A frozen LLM prompted by a token maker: samples -> packed LLM inputs -> loss on the answer (eq 9), or an answer.

The token maker is the trained part: CMPTA's adapter, or none for text only. `PromptedLM` lays out the LLM's inputs: ids,
embeddings, positions, mask and the positions whose logits are wanted grow together here, clip after clip. All indices are
made on the host and sent at once. How the LLM reads them is `fast.llm`'s; `check_reading` sees that it reads them right.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmpta_lib import paper
from cmpta_lib.base import Batch, Loss, Method, Predictions, Resources
from cmpta_lib.config import PromptedLMConfig, RunConfig
from cmpta_lib.data.corpus import MODALITIES, Inputs, Modality, Sample, Split
from cmpta_lib.fast import packing
from cmpta_lib.fast.llm import PackedInput, PrunedDecoder, packs, read
from cmpta_lib.fast.packing import Chained, Ragged, Stream, Streams, pad
from cmpta_lib.llm.weights import is_of_machine
from cmpta_lib.method.answers import AnswerTrie
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.method.prompted import PLACEHOLDER, InputIds, answer_text, is_whole, legal_answers

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptBatch(Batch):
    """Host arrays; frames are zero-padded at the end to the longest of the batch. A length of 0 = absent."""

    text_ids: list[list[int]]
    answer_ids: list[list[int]]  # empty where a sample has no label
    frames: Mapping[Modality, np.ndarray]  # (B, T, F) float32
    lengths: Mapping[Modality, np.ndarray]  # (B,) int64
    tokens: Tensor | None = None  # (B, K, E) pseudo tokens, where they are made already


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
        if batch.tokens is not None and not return_weights:
            return batch.tokens, {}
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
        words, voice, face = map(Stream, (text, audio, vision), layouts)
        return self.maker(Streams(words, voice, face, return_weights))

    def loss(self, batch: PromptBatch) -> Loss:  # type: ignore[override]  # what our own `collate` made
        """Next-token cross-entropy on the answer tokens (eq 9), summed over them."""
        losses, _ = self.answer_losses(batch)
        return Loss(losses.sum(), len(losses))

    def answer_losses(self, batch: PromptBatch) -> tuple[Tensor, np.ndarray]:
        """(M,) cross-entropies, one per answer token, and the clip that each belongs to; raises as `training_inputs`."""
        tokens, given, targets = self._answers_asked(batch)
        clips = np.repeat(np.arange(len(batch.ids)), [len(answer) for answer in batch.answer_ids])
        return F.cross_entropy(read(self.llm, self.ids.start, given, tokens), targets, reduction="none"), clips

    def training_inputs(self, batch: PromptBatch) -> tuple[Tensor, Ragged, Tensor, Tensor]:
        """What `packed_logits` would read in a training step: embeddings (N, E), where they lie, and per answer token the
        position (M,) whose logits predict it and its id (M,). Raises ValueError where a clip has no label."""
        tokens, given, targets = self._answers_asked(batch, whole=True)
        return given.embeds(self.llm, tokens), given.layout, given.asked, targets

    def prompt_embeddings(self, batch: PromptBatch) -> list[Tensor]:
        """What the LLM reads before each clip's answer, (n, E)."""
        tokens, _ = self.pseudo_tokens(batch)
        none: list[list[int]] = [[]] * len(batch.ids)
        given, _ = self._packed(batch, tokens.shape[1], none, none, whole=True)
        return list(given.embeds(self.llm, tokens).split(given.layout.lengths))

    def _answers_asked(self, batch: PromptBatch, whole: bool = False) -> tuple[Tensor, PackedInput, Tensor]:
        """Pseudo tokens, inputs up to the last answer token but one that ask for all of them, and the answers' ids (M,)."""
        answers = batch.answer_ids
        if unlabelled := [name for name, ids in zip(batch.ids, answers, strict=True) if not ids]:
            raise ValueError(f"clips {', '.join(unlabelled[:3])} have no label: only labelled clips can be trained on")
        (tokens, _), targets = self.pseudo_tokens(batch), np.array(list(chain(*answers)), np.int64)
        tails, asked = [ids[:-1] for ids in answers], [range(len(ids)) for ids in answers]
        given, (sent,) = self._packed(batch, tokens.shape[1], tails, asked, [targets], whole)
        return tokens, given, sent

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
        tree-shaped mask lets each see the prompt and its own ancestors only. LLMs that do not `packs` are asked by node.
        """
        trie, size = self.trie, len(batch.ids)
        if not packs(self.llm.model):
            found = []
            for node in trie.asked:
                tails, asked, children = [[*node]] * size, [[len(node)]] * size, np.array(trie.children[node], np.int64)
                given, sent = self._packed(batch, tokens.shape[1], tails, asked, [children])
                found.append(read(self.llm, self.ids.start, given, tokens, sent[0]))
            return torch.cat(found, dim=1).cpu().numpy()
        place = {(): 0} | {node: i for i, node in enumerate(trie.inner, 1)}
        places = [place[node] for node in trie.asked]
        nodes = np.repeat(np.arange(len(places)), [len(trie.children[node]) for node in trie.asked])
        columns, column = np.unique([child[-1] for child in trie.choices], return_inverse=True)
        tails = [[node[-1] for node in trie.inner]] * size
        given, sent = self._packed(batch, tokens.shape[1], tails, [places] * size, [columns, nodes, column], tree=trie)
        logits = read(self.llm, self.ids.start, given, tokens, sent[0])
        return logits.view(size, len(places), -1)[:, sent[1], sent[2]].cpu().numpy()

    def attention(self, batch: PromptBatch) -> Mapping[str, Tensor]:  # type: ignore[override]
        """The token maker's maps, by the name of the pair."""
        with torch.no_grad():
            weights = self.pseudo_tokens(batch, return_weights=True)[1]
        return weights or super().attention(batch)

    def _packed(
        self, batch: PromptBatch, num_tokens: int, tails: Sequence[list[int]], asked: Sequence[Sequence[int]],
        further: Sequence[np.ndarray] = (), whole: bool = False, tree: AnswerTrie | None = None,
    ) -> tuple[PackedInput, list[Tensor]]:  # fmt: skip
        """Every clip's input with its tail, and further index arrays, all sent at once.

        Args:
            asked: per clip the positions whose logits are wanted, counted from the prompt's last token, which is 0.
            whole: also what all clips begin with, where the LLM need not read it again (`PrunedDecoder`).
            tree: as in `PackedInput.of`.
        """
        left_out = len(self.ids.start) if not whole and PrunedDecoder.fits(self.llm.model) else 0
        rows = [self.ids.row(text, num_tokens, tail) for text, tail in zip(batch.text_ids, tails, strict=True)]
        longest = max(len(answer) for answer in self.trie.leaves) - 1  # of an answer's tokens the last is never read
        self.llm.need_room(longest + max(len(row) - len(tail) for row, tail in zip(rows, tails, strict=True)))
        ids = [row[left_out:] for row in rows]
        ends = np.cumsum([len(row) for row in ids]) - [len(tail) for tail in tails] - 1
        places = [end + step for end, steps in zip(ends, asked, strict=True) for step in steps]
        return PackedInput.of(ids, np.array(places, np.int64), further, self.llm.device, left_out, tree)

    def _free_replies(self, batch: PromptBatch, tokens: Tensor) -> list[str]:
        longest = max(map(len, self.trie.leaves))
        tails: list[list[int]] = [[] for _ in batch.ids]
        said = [""] * len(tails)
        while going := [
            clip for clip, tail in enumerate(tails) if len(tail) < longest and not is_whole(said[clip], self.answers)
        ]:
            given, _ = self._packed(batch, tokens.shape[1], tails, [[len(tail)] for tail in tails])
            following = read(self.llm, self.ids.start, given, tokens).argmax(-1).tolist()
            for clip in going:
                tails[clip].append(following[clip])
                said[clip] = self.llm.tokenizer.decode(tails[clip]).strip()
        return said


_READ: set[tuple[Any, ...]] = set()  # what `check_reading` has found right: fingerprint, device, type


def check_reading(llm: FrozenLLM, where: Path | str) -> None:
    """Refuse an LLM that batches would not read as it reads itself; once per process for the same weights.

    Raises:
        ValueError: names the folder `where`, the family, and what differs by how much.
    """
    family, dtype = llm.model.config.model_type, llm.embedding.weight.dtype
    if (key := (llm.fingerprint, llm.device, dtype)) in _READ:
        return
    try:
        for what, found, own, is_alike in _readings(llm):
            apart = float((found - own).norm() / (own - own.mean()).norm().clamp(min=1e-9))
            # 16-bit types round by up to 0.06 where the two are computed in other shapes, and 0.2 where that chooses experts,
            # which no family that packs has.
            rounded = 0.01 if is_alike else 0.15 if packs(llm.model) else 0.5
            if not apart < (1e-3 if dtype == torch.float32 else rounded):  # nor where it is no number
                raise ValueError(f"{what} differ by {apart:.2g} of their size")
    except Exception as error:  # whatever a family raises
        if is_of_machine(error):
            raise
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0][:120]
        raise ValueError(f"{where}: '{family}' is no LLM that can be read here: {reason}; take another LLM") from error
    if packs(llm.model):
        llm.model.set_attn_implementation("sdpa")  # as it came
    else:
        _log.warning("LLM '%s' ('%s') is read padded, by transformers' own forward: right, but slower", llm.name, family)
    _READ.add(key)


def _readings(llm: FrozenLLM) -> Iterator[tuple[str, Tensor, Tensor, bool]]:
    """What is compared, two tensors that should be equal, and whether the same shapes are computed for both."""
    known = np.unique(llm.token_ids(f"{paper.SIMS_PROMPT} {paper.class_prompt(paper.MELD_LABELS, 'en')}"))
    known, draw = known if len(known) > 9 else np.arange(len(llm.embedding.weight)), np.random.default_rng(0)
    # One clip is longer than small windows, the other a single word.
    ids, text = draw.permutation(known)[:9].tolist(), draw.choice(known, max(2, min(40, (llm.room or 40) - 8))).tolist()
    start, end, texts = ids[:2], ids[2:5], (text, ids[5:6])
    written = torch.tensor([[*start, *text, *end], [*start, text[0], *text[:0:-1], *ids[5:8]]], device=llm.device)
    with torch.no_grad():
        by_ids = llm.model(input_ids=written[:1], use_cache=False).logits[0].float()
        logits, changed = (llm.logits(llm.embedding(row)) for row in written)
    yield "logits of embeddings and of token ids", logits, by_ids, True
    yield "logits before other later tokens", changed[:3], logits[:3], True
    tokens = (llm.embed(ids[:3]) + llm.embed(ids[3:6])).detach().repeat(2, 1, 1).requires_grad_()  # of no token
    parts = [(llm.embed(start), pseudo, llm.embed([*text, *end])) for pseudo, text in zip(tokens, texts, strict=True)]
    own = torch.cat([llm.logits(torch.cat(part))[-4:-1] for part in parts])  # before each token of the end

    def together(tail: list[int], asked: Sequence[int], tree: AnswerTrie | None = None) -> Tensor:
        left_out = len(start) if PrunedDecoder.fits(llm.model) else 0
        rows = [[*start, *[PLACEHOLDER] * 3, *text, *tail][left_out:] for text in texts]
        places = np.cumsum([len(row) for row in rows])[:, None] - len(tail) - 1 + np.array(asked)
        return read(llm, start, PackedInput.of(rows, places.ravel(), [], llm.device, left_out, tree)[0], tokens)

    found = together(end, [0, 1, 2])
    yield "logits of a batch and of its clips", found.detach(), own.detach(), False
    mine, theirs = (torch.autograd.grad(scores.log_softmax(-1)[:, end].sum(), tokens)[0] for scores in (found, own))
    yield "gradients of a batch and of its clips", mine, theirs, False
    if packs(llm.model):  # the answers' trie in one pass
        answers = [[ids[6], ids[7]], [ids[6], ids[8]], end, [*end[:2], ids[7]]]
        found = together([ids[6], *end[:2]], [0, 2, 3], AnswerTrie({str(ids): ids for ids in answers}))
        yield "logits of a trie and of its answers", found.detach(), own.detach(), False
