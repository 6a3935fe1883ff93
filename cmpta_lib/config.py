"""One tree of frozen dataclasses says everything that decides a run's result.

A run's folder is named by the hash of this tree, so whatever changes a number must be a field here and nothing else
may be. Fields marked `register N` settle a question the paper leaves open; N is the row of the README's
interpretation register.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cmpta_lib import paper

Seeds = tuple[int, ...]
PAPER_SEEDS: Seeds = (1111, 2222, 3333, 4444, 5555)  # register 17


class _Checked:
    """Checks a config's field types and choices at birth, and makes whole numbers given for floats floats.

    The cast keeps equal configs at one hash: 0 and 0.0 are the same dropout but not the same JSON.
    """

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            self._need(_fits(value, hint), name, f"is not {hint if get_origin(hint) else hint.__name__}")
            if hint is float:
                object.__setattr__(self, name, float(value))

    def _need(self, condition: bool, name: str, problem: str) -> None:
        if not condition:
            section = type(self).__name__.removesuffix("Config").lower()
            where = name if section == "run" else f"{section}.{name}"
            raise ValueError(f"{where}={getattr(self, name)!r} {problem}")


@dataclass(frozen=True)
class DataConfig(_Checked):
    """Which corpus, by name and content; where it lies on disk is not part of a run's identity."""

    name: str
    fingerprint: str
    feature_scaling: Literal["zscore", "none"] = "zscore"  # register 16: training statistics over real frames


@dataclass(frozen=True)
class AdapterConfig(_Checked):
    """Temporal alignment (eqs 3-5) and the cross-modal pseudo-token adapter (eqs 6-8)."""

    dim: int = paper.HYPERPARAMETERS.feature_dim  # D, Table 2
    num_pseudo_tokens: int = 6  # K, eq 8 and section 4.5.4
    alignment: Literal["bilstm", "lstm", "linear"] = "bilstm"  # registers 2 and 12: D/2 per direction; D; per frame
    fusion: Literal["cross_modal", "pooled", "none"] = "cross_modal"  # register 13: adapter on; adapter off; text only
    num_heads: int = 8  # register 3
    projections: Literal["per_modality", "per_pair"] = "per_modality"  # register 4: nine in all, as eq 7 is indexed
    summary: Literal["mean", "max"] = "mean"  # register 6: how a sequence of attended vectors becomes one token
    token_count_rule: Literal["mix", "repeat"] = "mix"  # register 7: learned n x 6 mix; or drop and repeat pairs
    token_scale: Literal["embedding_norm", "default"] = "embedding_norm"  # register 8
    dropout: float = 0.1  # register 15

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(
            self.dim >= 2 and self.dim % 2 == 0,
            "dim",
            "must be even and positive: each LSTM direction takes half of it",
        )
        self._need(self.num_heads >= 1, "num_heads", "must be at least 1")
        self._need(self.dim % self.num_heads == 0, "dim", f"is not a multiple of adapter.num_heads={self.num_heads}")
        self._need(self.num_pseudo_tokens >= 1, "num_pseudo_tokens", "must be at least 1")
        odd = self.fusion == "pooled" and self.num_pseudo_tokens % 2 == 1
        self._need(
            not odd, "num_pseudo_tokens", "is odd: fusion='pooled' gives half to each modality, use an even count"
        )
        self._need(0 <= self.dropout < 1, "dropout", "must lie in [0, 1)")


@dataclass(frozen=True)
class LLMConfig(_Checked):
    """The frozen language model; its sizes are asked of the model, never written here."""

    name: str = "tiny"  # register 1: "tiny", or a hub id or folder of a causal LM
    fingerprint: str = ""  # of the weights, filled in when the model is resolved
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class PromptConfig(_Checked):
    """How the LLM's input is laid out around the pseudo tokens."""

    pseudo_token_position: Literal["before_text", "after_text"] = "before_text"  # register 9
    answer_decimals: int = 1  # register 10: "+0.6"
    answer_sign: Literal["always", "negative"] = "always"  # register 10: "+0.6", or "0.6" where the LLM's habit is that
    max_text_tokens: int = 65  # longer utterances are cut at the end and counted

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(1 <= self.answer_decimals <= 4, "answer_decimals", "must lie in 1..4")
        self._need(self.max_text_tokens >= 1, "max_text_tokens", "must be at least 1")


@dataclass(frozen=True)
class TrainingConfig(_Checked):
    """Table 2, and register 14 and 15 where it is silent."""

    epochs: int = paper.HYPERPARAMETERS.epochs
    batch_size: int = paper.HYPERPARAMETERS.batch_size
    learning_rate: float = paper.HYPERPARAMETERS.learning_rate
    weight_decay: float = 0.01
    warmup_fraction: float = 0.1
    gradient_clip: float = 1.0
    patience: int | None = None  # epochs without a better validation score, counted after the warm-up; None = off
    validate_every: int = 1  # epochs
    num_threads: int = 1  # part of the identity: another thread count gives other last bits

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size", "validate_every", "num_threads"):
            self._need(getattr(self, name) >= 1, name, "must be at least 1")
        for name in ("learning_rate", "gradient_clip"):
            self._need(0 < getattr(self, name) < float("inf"), name, "must be positive")
        self._need(self.weight_decay >= 0, "weight_decay", "must not be negative")
        self._need(0 <= self.warmup_fraction <= 1, "warmup_fraction", "must lie in [0, 1]")
        self._need(self.patience is None or self.patience >= 1, "patience", "must be at least 1, or None for off")


@dataclass(frozen=True)
class EvaluationConfig(_Checked):
    decoding: Literal["trie", "free"] = "trie"  # register 11
    batch_size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(self.batch_size >= 1, "batch_size", "must be at least 1")


@dataclass(frozen=True)
class RunConfig(_Checked):
    data: DataConfig
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    llm: LLMConfig = field(default_factory=LLMConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = PAPER_SEEDS[0]

    @property
    def hash(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON: the name of the run's folder."""
        return hashlib.sha256(to_json(self).encode()).hexdigest()[:12]


def to_json(config: RunConfig) -> str:
    return json.dumps(dataclasses.asdict(config), indent=1, sort_keys=True, ensure_ascii=False)


def from_json(text: str) -> RunConfig:
    """Rebuild a config; unknown or missing keys raise ValueError."""
    return _build(RunConfig, json.loads(text), "config")


def override(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Return a copy with dotted fields changed, e.g. `{"adapter.num_heads": 4, "seed": 2222}`.

    Raises:
        ValueError: an unknown field, or a value of the wrong type; the message lists the fields that exist.
    """
    tree = dataclasses.asdict(config)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = tree
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            raise ValueError(f"unknown config field '{path}'; known: {', '.join(sorted(_paths(config)))}")
        node[last] = value
    return _build(RunConfig, tree, "config")


def _paths(config: Any, prefix: str = "") -> list[str]:
    found: list[str] = []
    for f in fields(config):
        value = getattr(config, f.name)
        found += _paths(value, f"{prefix}{f.name}.") if is_dataclass(value) else [prefix + f.name]
    return found


def _build(cls: type, tree: Any, where: str) -> Any:
    hints = get_type_hints(cls)
    if not isinstance(tree, dict):
        raise ValueError(f"{where}: expected a table of fields, got {tree!r}")
    unknown, missing = set(tree) - set(hints), set(hints) - set(tree)
    if unknown or missing:
        raise ValueError(f"{where}: unknown fields {sorted(unknown)}, missing fields {sorted(missing)}")
    values = {n: _build(h, tree[n], f"{where}.{n}") if is_dataclass(h) else tree[n] for n, h in hints.items()}
    return cls(**values)


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
