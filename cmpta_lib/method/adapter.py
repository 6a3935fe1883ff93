"""CMPTA's trained part: temporal alignment (eqs 3-5) and the cross-modal pseudo-token adapter (eqs 6-8), for one clip.

Shapes: T frames, F raw features, L text tokens, D adapter width, E LLM width, K pseudo tokens, H heads, d = D / H, n_Y
positions of a sequence Y. "choice N" is a row of "Choices the paper leaves open" in cmpta_lib/README.md.
"""

from __future__ import annotations

import math
from itertools import permutations
from typing import cast

import torch
from torch import Tensor, nn

from cmpta_lib.config import CmptaConfig
from cmpta_lib.data.corpus import Modality

MODALITIES = ("text", "vision", "audio")
PAIRS: dict[str, tuple[str, str]] = {  # eq 8: token -> (Y, X), Y's positions query X's; in the order that the LLM reads
    "t1": ("text", "vision"),
    "t2": ("text", "audio"),
    "v1": ("vision", "text"),
    "v2": ("vision", "audio"),
    "a1": ("audio", "text"),
    "a2": ("audio", "vision"),
}

MOST_MAPS = 1e9  # bytes of one clip's maps in float32; a minute of sound and face has half of it


class TemporalAlignment(nn.Module):
    """Raw frames of one modality -> frames of width D (eqs 3-5); "bilstm" is the paper's kind, the others are ablations."""

    feature_mean: Tensor  # (F,) buffers
    feature_std: Tensor

    def __init__(self, features: int, config: CmptaConfig) -> None:
        super().__init__()
        self.kind, dim = config.alignment, config.dim
        if self.kind == "bilstm":  # choice 2: D/2 per direction keeps [forward; backward] at D
            self.forward_lstm = nn.LSTM(features, dim // 2, batch_first=True)
            self.backward_lstm = nn.LSTM(features, dim // 2, batch_first=True)
        elif self.kind == "lstm":
            self.forward_lstm = nn.LSTM(features, dim, batch_first=True)
        self.linear = nn.Linear(features if self.kind == "linear" else dim, dim)  # choice 12: no LSTM, per frame
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_std", torch.ones(features))

    def forward(self, frames: Tensor) -> Tensor:
        """(T, F), T > 0 -> (T, D)."""
        frames = (frames - self.feature_mean) / self.feature_std  # choice 16
        if self.kind == "linear":
            hidden = frames
        elif self.kind == "lstm":
            hidden, _ = self.forward_lstm(frames)
        else:
            ahead, _ = self.forward_lstm(frames)  # eq 3
            back, _ = self.backward_lstm(frames.flip(0))  # eq 3, from the last frame to the first
            hidden = torch.cat([ahead, back.flip(0)], dim=1)  # eq 4
        return self.dropout(self.norm(self.linear(hidden)))  # eq 5


class CrossModalAttention(nn.Module):
    """Attn(Q_Y, K_X, V_X) = softmax(Q_Y K_X^T / sqrt(d)) V_X (eq 7) for the six ordered pairs, multi-head.

    Q, K and V are linear projections (eq 6); d is the width of a head, as usual for multi-head attention (choice 3).
    """

    def __init__(self, config: CmptaConfig) -> None:
        super().__init__()
        self.num_heads, dim = config.num_heads, config.dim
        self.shared = config.projections == "per_modality"  # choice 4
        owners = MODALITIES if self.shared else tuple(PAIRS)
        self.query, self.value = (nn.ModuleDict({o: nn.Linear(dim, dim) for o in owners}) for _ in range(2))
        # A key's bias adds the same to every score of a softmax: its gradient is 0 but for rounding errors.
        self.key = nn.ModuleDict({o: nn.Linear(dim, dim, bias=False) for o in owners})

    def owners(self, pair: str) -> tuple[str, str]:
        """Whose projections a pair uses: for its queries, and for its keys and values."""
        return PAIRS[pair] if self.shared else (pair, pair)

    def forward(self, pair: str, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Y (n_Y, D), X (n_X, D) -> what Y reads in X (n_Y, D), zeros where X is absent, and the weights (H, n_Y, n_X)."""
        of_y, of_x = self.owners(pair)
        q, k, v = map(self.heads, (self.query[of_y](y), self.key[of_x](x), self.value[of_x](x)))  # eq 6
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)  # eq 7; what Figures 3-5 show
        return (weights @ v).transpose(0, 1).flatten(1), weights  # eq 7

    def heads(self, projected: Tensor) -> Tensor:
        """(..., n, D) -> (..., H, n, d)."""
        return projected.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)


class CMPTAdapter(nn.Module):
    """Face, voice and the text's embeddings -> K pseudo tokens in the LLM's embedding space (Figures 1 and 2).

    Args:
        audio_features, vision_features: F of each modality.
        llm_dim: E, asked of the LLM.
        embedding_norm: mean norm of the LLM's text embeddings, the size at which pseudo tokens start.
    """

    aligner: type[TemporalAlignment] = TemporalAlignment  # `fast.cmpta` has batched ones here, with the same weights
    attender: type[CrossModalAttention] = CrossModalAttention

    def __init__(
        self, config: CmptaConfig, audio_features: int, vision_features: int, llm_dim: int, embedding_norm: float
    ) -> None:
        super().__init__()
        self.config, self.num_tokens = config, config.num_pseudo_tokens
        self.alignment = nn.ModuleDict(
            {"audio": self.aligner(audio_features, config), "vision": self.aligner(vision_features, config)}
        )
        if config.fusion == "cross_modal":
            self.text_projection = nn.Linear(llm_dim, config.dim)  # choice 5
            self.attention = self.attender(config)
            if config.num_pseudo_tokens != len(PAIRS) and config.token_count_rule == "mix":  # choice 7
                self.token_mix = nn.Parameter(_mix_init(config.num_pseudo_tokens, len(PAIRS)))
        self.summary_norm = nn.LayerNorm(config.dim)  # choice 6
        self.to_llm = nn.Linear(config.dim, llm_dim)
        if config.token_scale == "embedding_norm":
            start_at_embedding_norm(self.to_llm, embedding_norm, llm_dim)

    def set_feature_statistics(self, modality: Modality, mean: Tensor, std: Tensor) -> None:
        """Training mean and standard deviation of raw frames, (F,) each, for z-scoring (choice 16)."""
        alignment = cast(TemporalAlignment, self.alignment[modality])
        alignment.feature_mean.copy_(mean)
        alignment.feature_std.copy_(std)

    def forward(self, text: Tensor, audio: Tensor, vision: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Make the pseudo tokens of one clip; a modality of no positions is absent.

        Args:
            text: (L, E) rows of the LLM's embedding table (eqs 1-2).
            audio, vision: (T, F) float32 each.
        Returns:
            (K, E), and pair -> (H, n_Y, n_X) attention; an empty dict where the adapter is off (fusion "pooled").
        Raises:
            ValueError: the maps would need more memory than `MOST_MAPS`; says how much.
        """
        given = {"audio": audio, "vision": vision}
        self.check_room_for_maps(len(text), len(vision), len(audio))
        sequences = {
            name: self.alignment[name](frames) if len(frames) else frames.new_zeros(0, self.config.dim)
            for name, frames in given.items()
        }
        weights: dict[str, Tensor] = {}
        if self.config.fusion == "pooled":  # choice 13: adapter off
            spans = self.num_tokens // 2
            summaries = torch.cat([pool_spans(sequences[name], spans) for name in ("vision", "audio")])
        else:
            sequences["text"] = self.text_projection(text.to(self.text_projection.weight.dtype))
            tokens = []
            for pair, (y, x) in PAIRS.items():  # eq 8: six ordered pairs, each summarised to one vector
                attended, weights[pair] = self.attention(pair, sequences[y], sequences[x])
                tokens.append(self._summary(attended) if len(attended) else attended.new_zeros(self.config.dim))
            summaries = torch.stack(tokens)
        return self.counted(self.to_llm(self.summary_norm(summaries))), weights  # eq 8: to the LLM's width

    def check_room_for_maps(self, *lengths: int) -> None:
        """Raise ValueError where maps of a clip with so many positions of each modality would fill a machine."""
        if (size := 4 * self.config.num_heads * sum(y * x for y, x in permutations(lengths, 2))) > MOST_MAPS:
            raise ValueError(
                f"attention maps of a clip with {sum(lengths)} tokens and frames would need {size / 1e9:.1f} GB, more than "
                f"{MOST_MAPS / 1e9:.0f} GB; cut the clip, or merge its frames"
            )

    def _summary(self, attended: Tensor) -> Tensor:
        """(n, D) -> (D,) (choice 6)."""
        return attended.mean(0) if self.config.summary == "mean" else attended.amax(0)

    def counted(self, tokens: Tensor) -> Tensor:
        """A token of each pair (..., 6, E) -> K tokens (..., K, E) (choice 7)."""
        if hasattr(self, "token_mix"):
            return torch.einsum("kp,...pe->...ke", self.token_mix, tokens)
        if self.config.fusion == "cross_modal":
            return tokens[..., torch.arange(self.num_tokens, device=tokens.device) % len(PAIRS), :]
        return tokens


def pool_spans(frames: Tensor, spans: int) -> Tensor:
    """(T, D) -> (spans, D): means over consecutive parts, which overlap where there are fewer frames than parts."""
    size = len(frames)
    if not size:
        return frames.new_zeros(spans, frames.shape[1])
    return torch.stack([frames[part * size // spans : -(-(part + 1) * size // spans)].mean(0) for part in range(spans)])


def start_at_embedding_norm(to_llm: nn.Linear, embedding_norm: float, llm_dim: int) -> None:
    """Let a projection of LayerNorm's outputs, of norm sqrt(D), give vectors as large as the LLM's embeddings (choice 8)."""
    nn.init.normal_(to_llm.weight, std=embedding_norm / (llm_dim * to_llm.in_features) ** 0.5)
    nn.init.zeros_(to_llm.bias)


def _mix_init(tokens: int, pairs: int) -> Tensor:
    """(tokens, pairs): the first rows pass one pair each, further rows start as random combinations of unit size."""
    mix = torch.randn(tokens, pairs) / pairs**0.5
    kept = min(tokens, pairs)
    mix[:kept] = torch.eye(pairs)[:kept]
    return mix
