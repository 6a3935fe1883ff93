"""CMPTA: temporal alignment (eqs 3-5) and the cross-modal pseudo-token adapter (eqs 6-8) before a frozen LLM.

Shapes: B clips, T frames, F raw features, L text tokens, D adapter width, E LLM width, K pseudo tokens, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cmpta_lib.base import start_at_embedding_norm
from cmpta_lib.config import CmptaConfig
from cmpta_lib.data.corpus import Inputs, Modality
from cmpta_lib.fast.packing import Ragged, read_in_order
from cmpta_lib.method.prompted import PromptedLM, TokenMaker

Pair = tuple[str, str]  # (Y, X): Y's positions query X's
PAIRS: dict[str, Pair] = {  # eq 8, in the order in which the LLM reads them
    "t1": ("text", "vision"),
    "t2": ("text", "audio"),
    "v1": ("vision", "text"),
    "v2": ("vision", "audio"),
    "a1": ("audio", "text"),
    "a2": ("audio", "vision"),
}
MODALITIES = ("text", "vision", "audio")
WORTH_A_LOOP = 1 << 20  # scores of padding in a batch, above which a CPU is faster clip by clip
KEPT = 40  # numbers that a frame leaves behind for the way back, in widths D, about
MOST_KEPT = 1 << 24  # numbers; above, a CPU, whose memory is everybody's, keeps none of them while the LLM is read
VECTOR = 16  # a CPU's softmax is ten times slower over fewer numbers that lie side by side than over a column of them


class TemporalAlignment(nn.Module):
    """Raw frames of one modality -> frames of width D (eqs 3-5); `kind` carries the first two ablations."""

    feature_mean: Tensor  # (F,) buffers
    feature_std: Tensor

    def __init__(self, features: int, config: CmptaConfig) -> None:
        super().__init__()
        self.kind, dim = config.alignment, config.dim
        if self.kind == "bilstm":  # register 2: D/2 per direction keeps [forward; backward] at D
            self.forward_lstm = nn.LSTM(features, dim // 2, batch_first=True)
            self.backward_lstm = nn.LSTM(features, dim // 2, batch_first=True)
        elif self.kind == "lstm":
            self.forward_lstm = nn.LSTM(features, dim, batch_first=True)
        self.linear = nn.Linear(features if self.kind == "linear" else dim, dim)  # register 12: no LSTM, per frame
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_std", torch.ones(features))

    def forward(self, frames: Tensor, lengths: Tensor, layout: Ragged | None = None, padded: bool = True) -> Tensor:
        """Nothing is computed of a padded frame.

        Args:
            frames: (B, T, F) float32, zero-padded at the end.
            lengths: (B,), 0 = absent.
            layout: where the real frames lie; made of the lengths where it is not given.
        Returns:
            (B, T, D), zero beyond each length; not `padded`: (N, D), the real frames of all clips end to end.
        """
        layout = layout or Ragged.of(lengths, frames.shape[1])
        scaled = (frames - self.feature_mean) / self.feature_std  # register 16
        if self.kind == "linear":
            hidden = layout.packed(scaled)
        elif self.kind == "lstm":
            hidden = read_in_order([self.forward_lstm], scaled, layout)
        else:
            hidden = read_in_order([self.forward_lstm, self.backward_lstm], scaled, layout)  # eq 4
        aligned: Tensor = self.dropout(self.norm(self.linear(hidden)))  # eq 5
        return layout.padded(aligned) if padded else aligned


class CrossModalAttention(nn.Module):
    """Attn(Q_Y, K_X, V_X) = softmax(Q_Y K_X^T / sqrt(d)) V_X for the six ordered pairs (eq 7), multi-head.

    d is the width of a head, as usual for multi-head attention. Padding of X is masked; an absent X gives zeros.
    """

    def __init__(self, config: CmptaConfig) -> None:
        super().__init__()
        self.num_heads, dim = config.num_heads, config.dim
        self.shared = config.projections == "per_modality"  # register 4
        owners = MODALITIES if self.shared else tuple(PAIRS)
        self.query, self.value = (nn.ModuleDict({o: nn.Linear(dim, dim) for o in owners}) for _ in range(2))
        # A key's bias adds the same to every score of a softmax: it has no gradient, only rounding noise to follow.
        self.key = nn.ModuleDict({o: nn.Linear(dim, dim, bias=False) for o in owners})

    def forward(
        self, sequences: Mapping[str, Tensor], layouts: Mapping[str, Ragged]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Eq 7 as it is written: sequences, modality -> (N, D), and where their clips lie.

        Returns:
            Pair name -> (B, n_Y, D), whatever stands in Y's padding, and pair name -> (B, H, n_Y, n_X) weights.
        """
        known = _Projected(self, sequences, layouts)
        attended, weights = {}, {}
        for name, (_, x) in PAIRS.items():
            present = layouts[x].real.any(1)[:, None, None, None]
            weights[name] = known.weights(name).unflatten(0, (-1, self.num_heads)) * present
            values = layouts[x].padded(self.value[x if self.shared else name](sequences[x]))
            attended[name] = (weights[name] @ self.heads(values)).transpose(1, 2).flatten(2)
        return attended, weights

    def means(self, sequences: Mapping[str, Tensor], layouts: Mapping[str, Ragged]) -> Tensor:
        """(B, 6, D): what `forward` gives of each pair, averaged over Y's real positions; zeros where Y or X is absent.

        Averaging and V are linear, so that both may trade places: the weights are averaged over Y first, the frames of X are
        averaged by those, and only one vector a head passes V, not every frame.
        """
        known = _Projected(self, sequences, layouts)
        read = []
        for name, (y, x) in PAIRS.items():
            waste = _waste(layouts[y], layouts[x]) * self.num_heads
            is_loop = waste > WORTH_A_LOOP and sequences[x].device.type == "cpu"
            read.append(known.read_each(name) if is_loop else known.read(name))
        owners = [self.value[x if self.shared else name] for name, (_, x) in PAIRS.items()]
        weight, bias = (torch.stack([getattr(one, part) for one in owners]) for part in ("weight", "bias"))
        summed = torch.einsum("pbhe,phde->bphd", torch.stack(read), weight.unflatten(1, (self.num_heads, -1)))
        here = {name: layout.real.any(1) for name, layout in layouts.items()}
        present = torch.stack([here[y] & here[x] for y, x in PAIRS.values()], dim=1)
        return (summed.flatten(2) + bias) * present[..., None]

    def heads(self, projected: Tensor) -> Tensor:
        """(..., n, D) -> (..., H, n, d)."""
        return projected.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)


class _Projected:
    """Queries and keys of a batch for all pairs, each projected, and where wanted padded, once."""

    def __init__(
        self, attention: CrossModalAttention, sequences: Mapping[str, Tensor], layouts: Mapping[str, Ragged]
    ) -> None:
        self.heads, self.sequences, self.layouts = attention.heads, sequences, layouts
        self.owners = {name: pair if attention.shared else (name, name) for name, pair in PAIRS.items()}
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
        y, x = PAIRS[name]
        weights, real = self.weights(name), self.layouts[y].real
        share = real.to(weights.dtype) / real.sum(1, keepdim=True).clamp(min=1)
        heads = len(weights) // max(1, len(real))
        averaged = share.repeat_interleave(heads, 0)[:, None] @ weights  # (B * H, 1, n_X)
        return averaged.view(len(real), heads, -1) @ self.frames(x)

    def read_each(self, name: str) -> Tensor:
        """The same clip by clip, without any padding."""
        (y, x), (of_y, of_x) = PAIRS[name], self.owners[name]
        queries = self.query(of_y, y).split(self.layouts[y].lengths)
        keys, frames = (part.split(self.layouts[x].lengths) for part in (self.key(of_x, x), self.sequences[x]))
        return torch.stack([self._read_one(*clip) for clip in zip(queries, keys, frames, strict=True)])

    def _read_one(self, queries: Tensor, keys: Tensor, frames: Tensor) -> Tensor:
        """One clip's (n_Y, D), (n_X, D), (n_X, D) -> (H, D)."""
        q, k = self.heads(queries), self.heads(keys)
        if not len(queries) or not len(keys):
            return frames.new_zeros(len(q), frames.shape[1])
        return _attention_weights(q, k, q.new_zeros(1, 1, 1)).mean(1) @ frames


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


def _waste(y: Ragged, x: Ragged) -> int:
    """How many scores of padding a batch has."""
    return len(y.lengths) * y.size * x.size - sum(a * b for a, b in zip(y.lengths, x.lengths, strict=True))


class CMPTAdapter(TokenMaker):
    """Face, voice and the text's embeddings -> K pseudo tokens in the LLM's embedding space (Figures 1 and 2).

    No padded frame is computed.

    Args:
        audio_features, vision_features: F of each modality.
        llm_dim: E, asked of the LLM.
        embedding_norm: mean norm of the LLM's text embeddings, the size at which pseudo tokens start.
    """

    packs = True

    def __init__(
        self, config: CmptaConfig, audio_features: int, vision_features: int, llm_dim: int, embedding_norm: float
    ) -> None:
        super().__init__()
        self.config, self.num_tokens = config, config.num_pseudo_tokens
        self.alignment = nn.ModuleDict(
            {"audio": TemporalAlignment(audio_features, config), "vision": TemporalAlignment(vision_features, config)}
        )
        if config.fusion == "cross_modal":
            self.text_projection = nn.Linear(llm_dim, config.dim)  # register 5
            self.attention = CrossModalAttention(config)
            if config.num_pseudo_tokens != len(PAIRS) and config.token_count_rule == "mix":  # register 7
                self.token_mix = nn.Parameter(_mix_init(config.num_pseudo_tokens, len(PAIRS)))
        self.summary_norm = nn.LayerNorm(config.dim)  # register 6
        self.to_llm = nn.Linear(config.dim, llm_dim)
        if config.token_scale == "embedding_norm":
            start_at_embedding_norm(self.to_llm, embedding_norm, llm_dim)

    def set_feature_statistics(self, modality: Modality, mean: Tensor, std: Tensor) -> None:
        """For the z-scoring of raw frames (register 16)."""
        alignment = cast(TemporalAlignment, self.alignment[modality])
        alignment.feature_mean.copy_(mean)
        alignment.feature_std.copy_(std)

    def forward(
        self,
        text: Tensor,
        text_lengths: Tensor,
        audio: Tensor,
        audio_lengths: Tensor,
        vision: Tensor,
        vision_lengths: Tensor,
        return_weights: bool = False,
        layouts: Mapping[str, Ragged] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Align (eqs 3-5), attend (eqs 6-7), and pool each pair to a token (eq 8)."""
        padded = {"text": text, "audio": audio, "vision": vision}
        lengths = {"text": text_lengths, "audio": audio_lengths, "vision": vision_lengths}
        layouts = layouts or {name: Ragged.of(lengths[name], padded[name].shape[1]) for name in padded}
        run, sequences = self._remembering(layouts, text.device), {}
        for name in ("audio", "vision"):
            sequences[name] = run(self.alignment[name], padded[name], lengths[name], layouts[name], False)
        weights: dict[str, Tensor] = {}
        if self.config.fusion == "pooled":
            spans = self.config.num_pseudo_tokens // 2
            pooled = (_pool_spans(layouts[m].padded(sequences[m]), lengths[m], spans) for m in ("vision", "audio"))
            summaries = torch.cat([*pooled], dim=1)
        else:
            sequences["text"] = self.text_projection(layouts["text"].packed(text.to(self.text_projection.weight.dtype)))
            if return_weights or self.config.summary == "max":
                attended, weights = self.attention(sequences, layouts)
            if self.config.summary == "max":  # register 6
                best = (_maximum(attended[name], layouts[y]) for name, (y, _) in PAIRS.items())
                summaries = torch.stack([*best], dim=1)
            else:
                summaries = run(self.attention.means, sequences, layouts)
        tokens = self.to_llm(self.summary_norm(summaries))
        if hasattr(self, "token_mix"):
            tokens = torch.einsum("kp,bpe->bke", self.token_mix, tokens)
        elif self.config.fusion == "cross_modal":
            tokens = tokens[:, torch.arange(self.num_tokens, device=tokens.device) % len(PAIRS)]
        return tokens, weights

    def _remembering(self, layouts: Mapping[str, Ragged], device: torch.device) -> Callable[..., Tensor]:
        """How a part is run: as it is, or so that what it needs on the way back is made again there, bit for bit."""
        numbers = KEPT * self.config.dim * sum(len(layouts[name].slots) for name in ("audio", "vision"))
        is_kept = device.type != "cpu" or numbers <= MOST_KEPT
        return (lambda part, *given: part(*given)) if is_kept else partial(checkpoint, use_reentrant=False)


def _maximum(attended: Tensor, y: Ragged) -> Tensor:
    """(B, n, D) -> (B, D) over the real positions of Y; zeros where Y is absent (register 6)."""
    if not y.size:
        return attended.new_zeros(len(attended), attended.shape[2])
    best = attended.masked_fill(~y.real[..., None], -torch.inf).amax(1)
    return best.masked_fill(~y.real.any(1, keepdim=True), 0.0)


class CMPTA(PromptedLM):
    """The paper's method: the adapter's pseudo tokens before a frozen LLM."""

    def token_maker(self, inputs: Inputs) -> CMPTAdapter:
        settings = self.settings
        assert isinstance(settings, CmptaConfig)
        return CMPTAdapter(
            settings, inputs.widths["audio"], inputs.widths["vision"], self.llm.dim, self.llm.embedding_norm
        )


def _pool_spans(frames: Tensor, lengths: Tensor, spans: int) -> Tensor:
    """(B, T, D) -> (B, spans, D): means over `spans` consecutive parts of the real frames (register 13)."""
    position = torch.arange(frames.shape[1], device=frames.device)
    part = torch.arange(spans, device=frames.device)
    start = (part * lengths[:, None]) // spans  # (B, spans); parts overlap when there are fewer frames than parts
    stop = ((part + 1) * lengths[:, None] + spans - 1) // spans
    inside = ((position >= start[..., None]) & (position < stop[..., None])).to(frames.dtype)  # (B, spans, T)
    return inside @ frames / inside.sum(-1, keepdim=True).clamp(min=1)


def _mix_init(tokens: int, pairs: int) -> Tensor:
    """(tokens, pairs): the first rows pass one pair each, further rows start as random combinations of unit size."""
    mix = torch.randn(tokens, pairs) / pairs**0.5
    kept = min(tokens, pairs)
    mix[:kept] = torch.eye(pairs)[:kept]
    return mix
