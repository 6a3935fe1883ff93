"""CMPTA whole: samples -> packed LLM inputs with pseudo tokens -> loss on the answer (eq 9) or an answer from the trie.

`CMPTA.pack` is the one place where the LLM's inputs are built: ids, embeddings, positions, mask and the positions whose
logits are wanted grow together there, and every clip is one segment of a packed row, so no padding reaches the LLM.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmpta_lib.config import RunConfig
from cmpta_lib.data.corpus import Sample, Split, Task
from cmpta_lib.llm.frozen import FrozenLLM, Packing
from cmpta_lib.methods.answer_trie import AnswerTrie
from cmpta_lib.methods.cmpta import CMPTAdapter
from cmpta_lib.methods.prompts import Layout, answer_text, legal_answers

UNPARSABLE = None  # what `free` decoding gives for a reply that is no legal answer; counted, never a label


@dataclass(frozen=True)
class Batch:
    """B clips, features zero-padded at the end to the longest of the batch."""

    text_ids: list[list[int]]
    audio: Tensor  # (B, T_a, F_a) float32
    audio_lengths: Tensor  # (B,) int64
    vision: Tensor
    vision_lengths: Tensor
    answer_ids: list[list[int]]


class CMPTA(nn.Module):
    """The adapter (trainable, saved) around a frozen LLM (neither).

    Args:
        task: what is asked; decides prompt and legal answers.
        audio_features, vision_features: F of each modality.
    """

    def __init__(
        self, config: RunConfig, task: Task, llm: FrozenLLM, audio_features: int, vision_features: int
    ) -> None:
        super().__init__()
        self.config, self.task = config, task
        self._llm = (llm,)  # in a tuple: not a submodule, so its weights reach neither optimiser nor checkpoint
        self.adapter = CMPTAdapter(config.adapter, audio_features, vision_features, llm.dim, llm.embedding_norm)
        layout = Layout.of(task)
        self._ids = {name: llm.token_ids(getattr(layout, name)) for name in ("open", "close", "prompt")}
        self.answers = legal_answers(task, config.prompt.answer_decimals, config.prompt.answer_sign)
        self.trie = AnswerTrie({answer: llm.token_ids(answer) for answer in self.answers})
        self.counts: Counter[str] = Counter()  # oddities met, stored with the result
        self.to(llm.device)

    @property
    def llm(self) -> FrozenLLM:
        return self._llm[0]

    def fit_features(self, train: Split) -> None:
        """Take the z-scoring statistics from the training split's real frames (register 16)."""
        if self.config.data.feature_scaling == "zscore":
            for modality in ("audio", "vision"):
                mean, std = (torch.from_numpy(np.asarray(x)) for x in train.feature_statistics(modality))
                self.adapter.set_feature_statistics(modality, mean, std)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples -> a batch on the LLM's device; too long texts are cut at the end and counted."""
        limit, text_ids = self.config.prompt.max_text_tokens, []
        for sample in samples:
            ids = self.llm.token_ids(sample.text)
            self.counts["texts_cut"] += len(ids) > limit
            text_ids.append(ids[:limit])
        audio, audio_lengths = _pad([s.audio for s in samples], self.llm.device)
        vision, vision_lengths = _pad([s.vision for s in samples], self.llm.device)
        form = (self.config.prompt.answer_decimals, self.config.prompt.answer_sign)
        answers = [self.llm.token_ids(answer_text(self.task, s.label, *form)) for s in samples]
        return Batch(text_ids, audio, audio_lengths, vision, vision_lengths, answers)

    def pseudo_tokens(self, batch: Batch, return_weights: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, K, E) pseudo tokens; with `return_weights` also pair name -> (B, heads, n_Y, n_X) attention."""
        lengths = torch.tensor([len(ids) for ids in batch.text_ids], device=self.llm.device)
        padded = torch.zeros(len(lengths), int(lengths.max()), dtype=torch.int64, device=self.llm.device)
        real = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
        padded[real] = torch.tensor(sum(batch.text_ids, []), dtype=torch.int64, device=padded.device)
        text = self.llm.embedding(padded) * real[..., None]  # eqs 1-2
        return self.adapter(
            text, lengths, batch.audio, batch.audio_lengths, batch.vision, batch.vision_lengths, return_weights
        )

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Next-token cross-entropy on the answer tokens (eq 9): (M,) losses, one per answer token, and their clips."""
        tokens, _ = self.pseudo_tokens(batch)
        embeds, packing, ends = self.pack(batch, tokens, [answer[:-1] for answer in batch.answer_ids])
        sizes = torch.tensor([len(answer) for answer in batch.answer_ids], device=embeds.device)
        clips = torch.arange(len(sizes), device=embeds.device).repeat_interleave(sizes)
        step = torch.arange(len(clips), device=embeds.device) - (sizes.cumsum(0) - sizes)[clips]
        logits = self.llm.logits(embeds, packing, ends[clips] + step)
        targets = torch.tensor(sum(batch.answer_ids, []), device=embeds.device)
        return F.cross_entropy(logits, targets, reduction="none"), clips

    @torch.no_grad()
    def answer(self, batch: Batch) -> list[str | None]:
        """One reply per clip: greedy inside the trie of legal answers, or plain greedy (register 11).

        `free` replies that are no legal answer come back as None; they are counted and never become a label.
        """
        tokens, _ = self.pseudo_tokens(batch)
        if self.config.evaluation.decoding == "trie":
            return list(self.trie.greedy(self.trie_scores(batch, tokens)))
        replies = self._free_replies(batch, tokens)
        self.counts["unparsable_replies"] += sum(reply not in self.answers for reply in replies)
        return [reply if reply in self.answers else UNPARSABLE for reply in replies]

    def trie_scores(self, batch: Batch, tokens: Tensor) -> dict[int, Tensor]:
        """Log-probabilities at every open choice of the trie: asked node -> (B, number of its children).

        One forward pass serves the whole trie: its inner nodes stand behind the prompt, each at its true position, and a
        tree-shaped mask lets each see the prompt and its own ancestors only.
        """
        inner, size = self.trie.inner, len(batch.text_ids)
        branch = [self.trie.tokens[node] for node in inner]
        embeds, packing, ends = self.pack(batch, tokens, [branch] * size)
        if inner:
            packing = self._with_tree(packing, ends)
        place = {node: i + 1 for i, node in enumerate(inner)} | {0: 0}
        offsets = torch.tensor([place[node] for node in self.trie.asked], device=embeds.device)
        logits = self.llm.logits(embeds, packing, (ends[:, None] + offsets).flatten())
        log_probs = logits.log_softmax(-1).view(size, len(self.trie.asked), -1)
        return {node: log_probs[:, i, list(self.trie.children[node])] for i, node in enumerate(self.trie.asked)}

    def pack(self, batch: Batch, tokens: Tensor, tails: list[list[int]]) -> tuple[Tensor, Packing, Tensor]:
        """Build the LLM's input: [bos] <open> [pseudo tokens] [text] <close> [prompt] [tail] for each clip (register 9).

        Returns:
            (N, E) embeddings of all clips one after another, their packing, and (B,) the packed position of each clip's
            last prompt token, whose logits choose the first answer token.
        """
        hole, device = [-1] * tokens.shape[1], self.llm.device
        rows, ends, total = [], [], 0
        for text, tail in zip(batch.text_ids, tails, strict=True):
            content = hole + text if self.config.prompt.pseudo_token_position == "before_text" else text + hole
            row = self.llm.first_ids + self._ids["open"] + content + self._ids["close"] + self._ids["prompt"]
            rows.append(row + tail)
            ends.append(total + len(row) - 1)
            total += len(rows[-1])
        self.llm.need_room(max(len(row) for row in rows))
        ids = torch.tensor(sum(rows, []), device=device)
        holes = (ids < 0).nonzero()[:, 0]
        embeds = self.llm.embedding(ids.clamp(min=0)).to(
            tokens.dtype if tokens.numel() else self.llm.embedding.weight.dtype
        )
        embeds = embeds.index_copy(0, holes, tokens.flatten(0, 1)) if len(holes) else embeds
        return embeds, Packing.of([len(row) for row in rows], device), torch.tensor(ends, device=device)

    def _with_tree(self, packing: Packing, ends: Tensor) -> Packing:
        """Turn each clip's tail into the trie: positions by depth, and attention along ancestors only."""
        device, branches = ends.device, len(self.trie.inner)
        width = packing.gather.shape[1]
        column = torch.arange(width, device=device)
        prefix = packing.lengths - branches  # (B,)
        mask = (column[:, None] >= column).repeat(len(prefix), 1, 1)
        visible = self.trie.visible().to(device)
        inside = prefix[:, None] + torch.arange(branches, device=device)  # (B, M) columns of the branches
        clip = torch.arange(len(prefix), device=device)[:, None, None]
        mask[clip, inside[:, :, None], inside[:, None, :]] = visible
        positions = packing.position_ids.clone()
        depth = torch.tensor([self.trie.depth[node] for node in self.trie.inner], device=device)
        packed = ends[:, None] + 1 + torch.arange(branches, device=device)
        positions[0, packed] = prefix[:, None] - 1 + depth
        return replace(packing, position_ids=positions, mask=mask[:, None])

    def _free_replies(self, batch: Batch, tokens: Tensor) -> list[str]:
        longest = max(len(self.llm.token_ids(answer)) for answer in self.answers)
        tails: list[list[int]] = [[] for _ in batch.text_ids]
        for step in range(longest):
            embeds, packing, ends = self.pack(batch, tokens, tails)
            for tail, token in zip(
                tails, self.llm.logits(embeds, packing, ends + step).argmax(-1).tolist(), strict=True
            ):
                tail.append(token)
        return [self.llm.tokenizer.decode(tail).strip() for tail in tails]


def _pad(arrays: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(a) for a in arrays])
    padded = torch.zeros(len(arrays), int(lengths.max()), arrays[0].shape[1])
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = torch.from_numpy(np.array(array, dtype=np.float32))
    return padded.to(device), lengths.to(device)
