"""CMPTA for many clips at once: the same modules and weights as `method.adapter`, and no padded frame computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial, reduce

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cmpta_lib.config import CmptaConfig
from cmpta_lib.data.corpus import Inputs, Sample
from cmpta_lib.fast.packing import Chained, Streams, read_in_order
from cmpta_lib.fast.prompted import PromptedLM, TokenMaker
from cmpta_lib.method.adapter import MODALITIES, PAIRS, CMPTAdapter, CrossModalAttention, TemporalAlignment

WORTH_A_LOOP = 1 << 20  # scores of padding in a batch, above which a CPU is faster clip by clip
LONG = 1 << 25  # scores of a pair in one clip (40 s of sound and face), above which its queries are read in pieces
PIECE = 1 << 20  # scores of a piece; larger ones leave a CPU's cache, which is two to four times slower
KEPT = 40  # numbers that a frame leaves behind for the way back, in widths D, about
MOST_KEPT = 1 << 24  # numbers; above, a CPU, whose memory is everybody's, keeps none of them while the LLM is read
VECTOR = 16  # a CPU's softmax is ten times slower over fewer numbers that lie side by side than over a column of them


class BatchedAlignment(TemporalAlignment):
    """Frames of B clips, read in as many steps as the longest has."""

    def forward(self, frames: Tensor, layout: Chained) -> Tensor:  # type: ignore[override]  # of many clips
        """frames (B, T, F), zero-padded at the end -> (N, D), the real frames of all clips end to end (eqs 3-5)."""
        scaled = (frames - self.feature_mean) / self.feature_std  # choice 16
        if self.kind == "linear":
            hidden = layout.packed(scaled)
        elif self.kind == "lstm":
            hidden = read_in_order([self.forward_lstm], scaled, layout)
        else:
            hidden = read_in_order([self.forward_lstm, self.backward_lstm], scaled, layout)  # eq 4
        return self.dropout(self.norm(self.linear(hidden)))  # eq 5


class BatchedAttention(CrossModalAttention):
    """All six pairs of B clips; where only their means are wanted, averaged before V."""

    def forward(  # type: ignore[override]  # of many clips
        self, sequences: Mapping[str, Tensor], layouts: Mapping[str, Chained]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Eq 7 as it is written: sequences, modality -> (N, D), and where their clips lie.

        Returns:
            Pair name -> (B, n_Y, D), whatever stands in Y's padding, and pair name -> (B, H, n_Y, n_X) weights.
        """
        known = _Projected(self, sequences, layouts)
        attended, weights = {}, {}
        for name, (_, x) in PAIRS.items():
            present = (layouts[x].counts > 0)[:, None, None, None]
            weights[name] = known.weights(name).unflatten(0, (-1, self.num_heads)) * present
            values = layouts[x].padded(self.value[self.owners(name)[1]](sequences[x]))
            attended[name] = (weights[name] @ self.heads(values)).transpose(1, 2).flatten(2)
        return attended, weights

    def means(self, sequences: Mapping[str, Tensor], layouts: Mapping[str, Chained]) -> Tensor:
        """(B, 6, D): what `forward` gives of each pair, averaged over Y's real positions; zeros where Y or X is absent.

        Averaging and V are linear, so that both may trade places: the weights are averaged over Y first, the frames of X are
        averaged by those, and only one vector a head passes V, not every frame.
        """
        known = _Projected(self, sequences, layouts)
        read = [known.read(name) for name in PAIRS]
        owners = [self.value[self.owners(name)[1]] for name in PAIRS]
        weight, bias = (torch.stack([getattr(one, part) for one in owners]) for part in ("weight", "bias"))
        summed = torch.einsum("pbhe,phde->bphd", torch.stack(read), weight.unflatten(1, (self.num_heads, -1)))
        present = torch.stack([torch.minimum(layouts[y].counts, layouts[x].counts) > 0 for y, x in PAIRS.values()], dim=1)
        return (summed.flatten(2) + bias) * present[..., None]


class _Projected:
    """Queries and keys of a batch for all pairs, each projected, and where wanted padded, once."""

    def __init__(
        self, attention: BatchedAttention, sequences: Mapping[str, Tensor], layouts: Mapping[str, Chained]
    ) -> None:
        self.heads, self.num_heads, self.sequences, self.layouts = attention.heads, attention.num_heads, sequences, layouts
        self.owners = {name: attention.owners(name) for name in PAIRS}
        self.query = cache(lambda owner, modality: attention.query[owner](sequences[modality]))
        self.key = cache(lambda owner, modality: attention.key[owner](sequences[modality]))
        self.padded = cache(lambda side, *of: attention.heads(layouts[of[1]].padded(side(*of))).flatten(0, 1))
        self.frames = cache(lambda modality: layouts[modality].padded(sequences[modality]))
        self.mask = cache(lambda modality: _additive(layouts[modality].real, attention.num_heads, sequences[modality].dtype))

    def weights(self, name: str) -> Tensor:
        """(B * H, n_Y, n_X): softmax(Q_Y K_X^T / sqrt(d)) over X's real positions; over its padding where there are none."""
        (y, x), (of_y, of_x) = PAIRS[name], self.owners[name]
        return _attention_weights(self.padded(self.query, of_y, y), self.padded(self.key, of_x, x), self.mask(x))

    def read(self, name: str) -> Tensor:
        """(B, H, D): each head's mean of X's frames, by its weights averaged over Y's real positions."""
        (y, x), (of_y, of_x) = PAIRS[name], self.owners[name]
        asking, heard, frames = self.layouts[y], self.layouts[x], self.sequences[x]
        each = [a * b * self.num_heads for a, b in zip(asking.lengths, heard.lengths, strict=True)]
        together = len(each) * asking.size * heard.size * self.num_heads
        is_waste = together - sum(each) > WORTH_A_LOOP and frames.device.type == "cpu"
        if is_waste or max(each) > LONG or together > 8 * LONG:  # clip by clip, without any padding
            keys, parts = (part.split(heard.lengths) for part in (self.key(of_x, x), frames))
            clips = zip(self.query(of_y, y).split(asking.lengths), keys, parts, strict=True)
            return torch.stack([self._read_one(*clip) for clip in clips])
        weights, real = self.weights(name), asking.real
        share = real.to(weights.dtype) / real.sum(1, keepdim=True).clamp(min=1)
        averaged = share.repeat_interleave(self.num_heads, 0)[:, None] @ weights  # (B * H, 1, n_X)
        return averaged.view(len(real), self.num_heads, -1) @ self.frames(x)

    def _read_one(self, queries: Tensor, keys: Tensor, frames: Tensor) -> Tensor:
        """One clip's (n_Y, D), (n_X, D), (n_X, D) -> (H, D); a long one's queries in pieces, made again on the way back."""
        q, k, each = self.heads(queries), self.heads(keys), self.num_heads * len(keys)  # scores of a query
        if not len(queries) or not len(keys):
            return frames.new_zeros(len(q), frames.shape[1])

        def summed(some: Tensor) -> Tensor:
            return _attention_weights(some, k, q.new_zeros(1, 1, 1)).sum(1)

        if each * len(queries) <= LONG:
            return summed(q) / len(queries) @ frames
        pieces = q.split(max(1, PIECE // each), dim=1)
        again = (checkpoint(summed, some, use_reentrant=False, preserve_rng_state=False) for some in pieces)
        return reduce(torch.add, again) / len(queries) @ frames


def _attention_weights(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) over the keys: (R, n_Y, d), (R, n_X, d), (R or 1, 1, n_X or 1) -> (R, n_Y, n_X)."""
    scale = q.shape[-1] ** -0.5
    if k.shape[1] < VECTOR:
        return torch.baddbmm(mask.mT, k, q.mT, alpha=scale).softmax(-2).mT
    return torch.baddbmm(mask, q, k.mT, alpha=scale).softmax(-1)


def _additive(real: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """(B, n) -> (B * H, 1, n): 0 where a key is real, -inf elsewhere.

    A clip without any key keeps all of them, as its softmax would be NaN.
    """
    keep = real | ~real.any(1, keepdim=True)
    mask = torch.zeros(keep.shape, dtype=dtype, device=real.device).masked_fill(~keep, -torch.inf)
    return mask.repeat_interleave(heads, 0)[:, None]


class BatchedAdapter(CMPTAdapter, TokenMaker):
    """CMPTA's adapter for many clips at once."""

    aligner, attender = BatchedAlignment, BatchedAttention

    def forward(self, streams: Streams) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]  # of many clips
        """Align (eqs 3-5), attend (eqs 6-7), and pool each pair to a token (eq 8)."""
        layouts = {name: streams[name].layout for name in MODALITIES}
        run, sequences = self._remembering(layouts, streams.text.values.device), {}
        for name in ("audio", "vision"):
            sequences[name] = run(self.alignment[name], streams[name].values, layouts[name])
        weights: dict[str, Tensor] = {}
        if self.config.fusion == "pooled":
            spans = self.num_tokens // 2
            padded = {m: layouts[m].padded(sequences[m]) for m in ("vision", "audio")}
            summaries = torch.cat([_pool_spans(padded[m], streams[m].lengths, spans) for m in padded], dim=1)
        else:
            text = layouts["text"].packed(streams.text.values.to(self.text_projection.weight.dtype))
            sequences["text"] = self.text_projection(text)
            if streams.wants_maps or self.config.summary == "max":
                for clip in zip(*(layouts[name].lengths for name in MODALITIES), strict=True):
                    self.check_room_for_maps(*clip)
                attended, weights = self.attention(sequences, layouts)
            if self.config.summary == "max":  # choice 6
                best = (_maximum(attended[name], layouts[y]) for name, (y, _) in PAIRS.items())
                summaries = torch.stack([*best], dim=1)
            else:
                summaries = run(self.attention.means, sequences, layouts)
        return self.counted(self.to_llm(self.summary_norm(summaries))), weights

    def _remembering(self, layouts: Mapping[str, Chained], device: torch.device) -> Callable[..., Tensor]:
        """How a part is run: as it is, or so that what it needs on the way back is made again there, bit for bit."""
        numbers = KEPT * self.config.dim * sum(len(layouts[name].slots) for name in ("audio", "vision"))
        is_kept = device.type != "cpu" or numbers <= MOST_KEPT
        return (lambda part, *given: part(*given)) if is_kept else partial(checkpoint, use_reentrant=False)


def _maximum(attended: Tensor, y: Chained) -> Tensor:
    """(B, n, D) -> (B, D) over the real positions of Y; zeros where Y is absent (choice 6)."""
    if not y.size:
        return attended.new_zeros(len(attended), attended.shape[2])
    best = attended.masked_fill(~y.real[..., None], -torch.inf).amax(1)
    return best.masked_fill(~y.real.any(1, keepdim=True), 0.0)


def _pool_spans(frames: Tensor, lengths: Tensor, spans: int) -> Tensor:
    """(B, T, D) -> (B, spans, D): means over `spans` consecutive parts of the real frames (choice 13)."""
    position = torch.arange(frames.shape[1], device=frames.device)
    part = torch.arange(spans, device=frames.device)
    start = (part * lengths[:, None]) // spans  # (B, spans); parts overlap when there are fewer frames than parts
    stop = ((part + 1) * lengths[:, None] + spans - 1) // spans
    inside = ((position >= start[..., None]) & (position < stop[..., None])).to(frames.dtype)  # (B, spans, T)
    return inside @ frames / inside.sum(-1, keepdim=True).clamp(min=1)


class CMPTA(PromptedLM):
    """The paper's method: the adapter's pseudo tokens before a frozen LLM."""

    settings: CmptaConfig

    def check(self, sample: Sample) -> None:
        is_joined = self.llm.token_ids(sample.text) or (len(sample.audio) and len(sample.vision))
        if self.settings.fusion == "cross_modal" and not is_joined:
            raise ValueError(
                f"clip {sample.id!r} has no words and not both sound and face, and each pseudo token joins two modalities: the "
                "answer would be the same whatever it holds; give its words, or use a run of another method"
            )

    def token_maker(self, inputs: Inputs) -> BatchedAdapter:
        widths = inputs.widths["audio"], inputs.widths["vision"]
        return BatchedAdapter(self.settings, *widths, self.llm.dim, self.llm.embedding_norm)
