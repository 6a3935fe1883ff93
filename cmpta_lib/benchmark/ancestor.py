"""A step and an answer as MSE-Adapter's public code makes them, written anew, to measure what that way costs.

Every text is padded at the start, or cut, to the corpus' limit (50 tokens for SIMS-V2, 65 for MELD), frames are padded to
the longest of the corpus, and prompts stand around: all positions, padding included and attended to, pass all layers and
the whole LM head, whose logits over the full vocabulary give the shifted loss with ignored labels. On a GPU it computes
under autocast. An answer is written token by token by transformers' own `generate`, in training's batches.

What differs from that code makes it faster here, never slower: weights need no cast under autocast (bf16, where it has
fp16), no loss scaler runs, no cache is kept in training, frames are padded in numpy, nothing is tokenized twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from cmpta_lib.baselines.mse_adapter import MultiScaleFusion
from cmpta_lib.data.corpus import MODALITIES, Modality, Sample, Task
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.method.prompted import Layout, answer_text

IGNORED = -100  # a label that transformers' loss leaves out
NEW_TOKENS = {"regression": 4, "classification": 1}  # "+0.6" is four tokens, a class's number one
MIXER = 256
# Widths of the LSTMs over voice and face, and pseudo tokens, as published for Qwen-1.8B.
HIDDEN: Mapping[str, tuple[int, int]] = {"regression": (64, 64), "classification": (32, 16)}
PSEUDO_TOKENS = {"regression": 4, "classification": 2}
SCALES = (8, 32, 16)
_EPSILON, _RATE = 1e-4, 1e-6


@dataclass(frozen=True)
class Padded:
    """A batch on the device."""

    text: Tensor  # (B, L) int64, padding at the start
    frames: Mapping[Modality, Tensor]  # (B, longest of the corpus, F) float32
    lengths: Mapping[Modality, Tensor]  # (B,) int64, on the host, where a packed LSTM wants them
    answers: Tensor  # (B, A) int64


class Tokens(nn.Module):
    """Voice, face and the padded text's embeddings -> (B, K, E): packed LSTMs, text-guided mixer, multi-scale fusion."""

    def __init__(self, shapes: Mapping[Modality, tuple[int, int]], task: Task, llm_dim: int) -> None:
        super().__init__()
        hidden = dict(zip(MODALITIES, HIDDEN[task.kind], strict=True))
        self.lstms = nn.ModuleDict({m: nn.LSTM(shapes[m][1], hidden[m], batch_first=True) for m in MODALITIES})
        self.linears = nn.ModuleDict({m: nn.Linear(hidden[m], MIXER) for m in MODALITIES})
        self.mixer = nn.Linear(llm_dim, MIXER)
        self.fusion = MultiScaleFusion(MIXER, llm_dim, SCALES)
        self.spread = nn.Linear(1, PSEUDO_TOKENS[task.kind])

    def forward(self, text: Tensor, batch: Padded) -> Tensor:
        """text (B, L, E), of which the mean is taken with its padding."""
        guide = self.mixer(text.to(self.mixer.weight.dtype).mean(1))
        mixed = torch.zeros_like(guide)
        for m in MODALITIES:
            packed = pack_padded_sequence(batch.frames[m], batch.lengths[m], batch_first=True, enforce_sorted=False)
            _, (last, _) = self.lstms[m](packed)
            mixed = mixed + self.linears[m](last[0]) * guide
        tokens: Tensor = self.spread(self.fusion(mixed)[..., None]).transpose(1, 2)
        return tokens


class Ancestor:
    """MSE-Adapter's way with this LLM.

    Args:
        shapes: (frames, features) to which voice and face are padded.
        text_limit: tokens to which texts are padded or cut.
    """

    def __init__(self, llm: FrozenLLM, task: Task, shapes: Mapping[Modality, tuple[int, int]], text_limit: int) -> None:
        self.llm, self.task, self.shapes, self.text_limit = llm, task, shapes, text_limit
        torch.manual_seed(0)
        self.maker = Tokens(shapes, task, llm.dim).to(llm.device)
        self.optimizer = torch.optim.AdamW(self.maker.parameters(), lr=_RATE, eps=_EPSILON)
        layout = Layout.of(task)
        self.before = torch.tensor(llm.first_ids + llm.token_ids(layout.open), device=llm.device)
        self.after = torch.tensor(llm.token_ids(layout.close) + llm.token_ids(layout.prompt), device=llm.device)
        self.padding = int(llm.tokenizer.pad_token_id)

    def collate(self, samples: Sequence[Sample]) -> Padded:
        """Samples -> a padded batch on the device."""
        text = np.full((len(samples), self.text_limit), self.padding, np.int64)
        for row, sample in zip(text, samples, strict=True):
            ids = self.llm.token_ids(sample.text)[: len(row)]
            row[len(row) - len(ids) :] = ids
        frames, lengths = {}, {}
        for m in MODALITIES:
            clips = [getattr(sample, m) for sample in samples]
            whole = np.zeros((len(clips), *self.shapes[m]), np.float32)
            for place, clip in zip(whole, clips, strict=True):
                place[: len(clip)] = clip
            frames[m] = torch.from_numpy(whole).to(self.llm.device)
            lengths[m] = torch.tensor([max(1, len(clip)) for clip in clips])
        said = [self.llm.token_ids(answer_text(self.task, sample.label or 0)) for sample in samples]
        return Padded(torch.from_numpy(text).to(self.llm.device), frames, lengths, torch.tensor(said).to(self.llm.device))

    def prompts(self, batch: Padded) -> Tensor:
        """(B, S, E): bos, opening tag, pseudo tokens, padded text, closing tag, prompt; of one length for all clips."""
        text = self.llm.embedding(batch.text)
        before, after = (self.llm.embedding(ids).expand(len(text), -1, -1) for ids in (self.before, self.after))
        tokens = self.maker(text, batch)
        return torch.cat([part.to(tokens.dtype) for part in (before, tokens, text, after)], dim=1)

    def loss(self, batch: Padded) -> Tensor:
        """() mean cross-entropy of the answer's tokens, by transformers' own loss over the logits of all positions."""
        prompts = self.prompts(batch)
        embeds = torch.cat([prompts, self.llm.embedding(batch.answers).to(prompts.dtype)], dim=1)
        ignored = torch.full(prompts.shape[:2], IGNORED, device=embeds.device)
        labels = torch.cat([ignored, batch.answers], dim=1)
        loss: Tensor = self.llm.model(inputs_embeds=embeds, labels=labels, use_cache=False, return_dict=True).loss
        return loss

    def step(self, samples: Sequence[Sample]) -> float:
        """One optimiser step; returns the loss, which that code reads after each step."""
        self.optimizer.zero_grad()
        with self.as_published():
            loss = self.loss(self.collate(samples))
        loss.backward()
        self.optimizer.step()
        return float(loss.item())

    @torch.no_grad()
    def answer(self, samples: Sequence[Sample]) -> list[str]:
        """What the LLM says of a batch, as many tokens as an answer has."""
        with self.as_published():
            prompts = self.prompts(self.collate(samples)).to(self.llm.embedding.weight.dtype)
            length = {"max_new_tokens": NEW_TOKENS[self.task.kind], "pad_token_id": self.padding}
            said = self.llm.model.generate(inputs_embeds=prompts, do_sample=False, **length)
        return [self.llm.tokenizer.decode(row) for row in said.tolist()]

    @contextmanager
    def as_published(self) -> Iterator[None]:
        """Autocast on a GPU, and transformers' attention instead of ours, which knows no padded rows."""
        ours, device = self.llm.model.config._attn_implementation, self.llm.device.type
        self.llm.model.set_attn_implementation("sdpa")
        try:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
                yield
        finally:
            self.llm.model.set_attn_implementation(ours)
