"""CMPTA: temporal alignment (eqs 3-5) and the cross-modal pseudo-token adapter (eqs 6-8) before a frozen LLM.

Shapes: B clips, T frames, F raw features, L text tokens, D adapter width, E LLM width, K pseudo tokens, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmpta_lib.config import CmptaConfig
from cmpta_lib.data.corpus import Inputs, Modality
from cmpta_lib.methods.prompted_lm import PromptedLM, TokenMaker
from cmpta_lib.methods.subnets import real_positions, reorder, reversed_order, start_at_embedding_norm

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


class TemporalAlignment(nn.Module):
    """Raw frames of one modality -> frames of width D (eqs 3-5); `kind` carries the first two ablations.

    The backward LSTM of eq 4 reads each clip reversed within its own length, so padding never reaches it. That equals
    a packed bidirectional LSTM (`test_alignment_equals_packed_lstm`) and is 2-5 times faster on CPU.
    """

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

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """frames (B, T, F) float32, zero-padded at the end; lengths (B,), 0 = absent -> (B, T, D), zero beyond length."""
        real = real_positions(lengths, frames.shape[1])[..., None]
        if frames.shape[1] == 0:
            return frames.new_zeros(*frames.shape[:2], self.linear.out_features)
        hidden = (frames - self.feature_mean) / self.feature_std  # register 16
        if self.kind == "bilstm":
            backward_order = reversed_order(lengths, frames.shape[1])
            ahead, _ = self.forward_lstm(hidden)
            back, _ = self.backward_lstm(reorder(hidden, backward_order))
            hidden = torch.cat([ahead, reorder(back, backward_order)], dim=-1)  # eq 4
        elif self.kind == "lstm":
            hidden, _ = self.forward_lstm(hidden)
        hidden = self.dropout(self.norm(self.linear(hidden)))  # eq 5
        return hidden.masked_fill(~real, 0.0)


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
        self, sequences: Mapping[str, Tensor], lengths: Mapping[str, Tensor], return_weights: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """sequences: modality -> (B, n, D) -> pair name -> (B, n_Y, D), and on request weights (B, H, n_Y, n_X)."""
        projected: dict[tuple[nn.ModuleDict, str, str], Tensor] = {}

        def heads(projection: nn.ModuleDict, name: str, modality: str) -> Tensor:
            owner = modality if self.shared else name
            if (projection, owner, modality) not in projected:
                hidden = projection[owner](sequences[modality])
                projected[projection, owner, modality] = hidden.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            return projected[projection, owner, modality]

        # Additive masks, made once: a bool mask would be turned into one in each of the six attentions. A clip without
        # any key keeps all of them, as its softmax would be NaN, and its output is zeroed.
        present = {m: (lengths[m] > 0)[:, None, None, None] for m in MODALITIES}
        masks = {}
        for m in MODALITIES:
            keep = real_positions(lengths[m], sequences[m].shape[1])[:, None, None] | ~present[m]
            masks[m] = sequences[m].new_zeros(keep.shape).masked_fill(~keep, -torch.inf)
        attended, weights = {}, {}
        for name, (y, x) in PAIRS.items():
            q, k, v = heads(self.query, name, y), heads(self.key, name, x), heads(self.value, name, x)
            if k.shape[2] == 0:
                attended[name] = torch.zeros_like(q).transpose(1, 2).flatten(2)
                weights[name] = q.new_zeros(*q.shape[:3], 0)
                continue
            if return_weights:
                weights[name] = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + masks[x]).softmax(-1) * present[x]
                out = weights[name] @ v
            else:
                out = F.scaled_dot_product_attention(q, k, v, attn_mask=masks[x]) * present[x]
            attended[name] = out.transpose(1, 2).flatten(2)
        return attended, weights


class CMPTAdapter(TokenMaker):
    """Face, voice and the text's embeddings -> K pseudo tokens in the LLM's embedding space (Figures 1 and 2).

    Args:
        audio_features, vision_features: F of each modality.
        llm_dim: E, asked of the LLM.
        embedding_norm: mean norm of the LLM's text embeddings, the size at which pseudo tokens start.
    """

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
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Align (eqs 3-5), attend (eqs 6-7), and pool each pair to a token (eq 8)."""
        sequences = {
            "audio": self.alignment["audio"](audio, audio_lengths),
            "vision": self.alignment["vision"](vision, vision_lengths),
        }
        lengths = {"text": text_lengths, "audio": audio_lengths, "vision": vision_lengths}
        weights: dict[str, Tensor] = {}
        if self.config.fusion == "pooled":
            spans = self.config.num_pseudo_tokens // 2
            summaries = torch.cat([_pool_spans(sequences[m], lengths[m], spans) for m in ("vision", "audio")], dim=1)
        else:
            sequences["text"] = self.text_projection(text.to(self.text_projection.weight.dtype))
            attended, weights = self.attention(sequences, lengths, return_weights)
            summaries = torch.stack([self._summary(attended[n], lengths[y]) for n, (y, _) in PAIRS.items()], dim=1)
        tokens = self.to_llm(self.summary_norm(summaries))
        if hasattr(self, "token_mix"):
            tokens = torch.einsum("kp,bpe->bke", self.token_mix, tokens)
        elif self.config.fusion == "cross_modal":
            tokens = tokens[:, torch.arange(self.num_tokens, device=tokens.device) % len(PAIRS)]
        return tokens, weights

    def _summary(self, attended: Tensor, lengths: Tensor) -> Tensor:
        """(B, n, D) -> (B, D) over the real positions of Y; zeros where Y is absent (register 6)."""
        real = real_positions(lengths, attended.shape[1])[..., None]
        if self.config.summary == "max" and attended.shape[1]:
            best = attended.masked_fill(~real, -torch.inf).amax(1)
            return best.masked_fill(lengths[:, None] == 0, 0.0)
        return (attended * real).sum(1) / lengths.clamp(min=1)[:, None]


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
