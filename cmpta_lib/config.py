"""One tree of frozen settings says everything that decides a run's result; pydantic checks it at birth.

A run's folder is named by the hash of this tree, so whatever changes a number must be a field here and nothing else may
be. `RunConfig.method` is a tagged union: each method has its own settings, found by their `name`, and a class that is
defined elsewhere joins by being defined (`MethodConfig`). Fields marked `choice N` settle a question the paper leaves
open; N is its row in this folder's README.md.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import reprlib
import textwrap
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from cmpta_lib.paper import HYPERPARAMETERS

PAPER_SEEDS: tuple[int, ...] = (1111, 2222, 3333, 4444, 5555)  # choice 17
# Upper bounds leave room for any machine and any patience; what lies beyond is a slip of the hand.
AtLeastOne = Annotated[int, Field(ge=1, le=10**6)]
Few = Annotated[int, Field(ge=1, le=1024)]  # layers, heads, pseudo tokens, threads
Width = Annotated[int, Field(ge=1, le=2**16)]  # of a layer
EvenWidth = Annotated[int, Field(ge=2, le=2**16, multiple_of=2)]
Positive = Annotated[float, Field(gt=0, le=1e9)]
Weight = Annotated[float, Field(ge=0, le=1e6)]  # of one part of a sum beside the others
Rate = Annotated[float, Field(ge=1e-10, le=10)]  # of learning
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # every generator takes 32 bits, some no more


class Settings(BaseModel):
    """Immutable; unknown fields and values of another type raise. Whole numbers given for floats become floats.

    That cast keeps equal settings at one hash: 0 and 0.0 are the same dropout but not the same JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)

    @field_validator("*")
    @classmethod
    def _one_way_to_write(cls, value: Any) -> Any:
        """-0.0 equals 0.0 but is other JSON; half a surrogate pair is no text that a file can hold."""
        if isinstance(value, str) and any("\ud800" <= sign <= "\udfff" for sign in value):
            raise ValueError("text that cannot be written as UTF-8 (half of a surrogate pair)")
        return value + 0.0 if isinstance(value, float) else value


class DataConfig(Settings):
    """Which corpus, by name and content; where it lies on disk is not part of a run's identity."""

    name: str
    fingerprint: str
    feature_scaling: Literal["zscore", "none"] = "zscore"  # choice 16: training statistics over real frames


@dataclass(frozen=True)
class Stage:
    """A part of a training with an aim of its own; most methods have one.

    An unlabelled stage answers no validation split and hands on its last weights; others hand on their best. `share`:
    part of the training units that it draws from, chosen by the run's seed, a smaller one within a larger; an epoch has
    as many steps as over all of them. `outcome`: what decides its result, where runs that agree in it share it: the first
    to finish the stage leaves its weights for the others; None = each run makes its own.
    """

    name: str  # "training", or what it is before that
    training: TrainingConfig
    share: float = 1.0
    is_labelled: bool = True
    outcome: Mapping[str, Any] | None = None


class MethodConfig(Settings):
    """Settings of one method: the base of all, told apart by `name`.

    A subclass gives `name` and `recipe` one legal value each, `name: Literal["cmpta"] = "cmpta"`, and is known to
    `RunConfig` from its definition on. `recipe` is raised when the method's code changes what its runs give: they alone
    become stale then.
    """

    known: ClassVar[dict[str, type[MethodConfig]]] = {}
    name: str
    recipe: int

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if not (field := cls.model_fields["name"]).is_required():
            MethodConfig.known[field.default] = cls

    def stages(self, run: RunConfig) -> tuple[Stage, ...]:
        """The parts of a run's training, in order."""
        return (Stage("training", run.training),)


class LLMConfig(Settings):
    """The frozen language model; its sizes are asked of the model, never written here."""

    name: str = "tiny"  # choice 1: "tiny", or a hub id or folder of a causal LM
    fingerprint: str = ""  # of the weights, filled in when the model is resolved
    dtype: Literal["float32", "bfloat16"] = "float32"


class EncoderConfig(Settings):
    """The text encoder of methods that have no LLM: a BERT."""

    name: str = "tiny-bert"  # "tiny-bert", or a hub id or folder of a BERT
    fingerprint: str = ""  # of its files, filled in when it is resolved


class PromptConfig(Settings):
    """How the LLM's input is laid out around the pseudo tokens."""

    pseudo_token_position: Literal["before_text", "after_text"] = "before_text"  # choice 9
    answer_decimals: Annotated[int, Field(ge=1, le=4)] = 1  # choice 10: "+0.6"
    answer_sign: Literal["always", "negative"] = "always"  # choice 10: "+0.6", or "0.6" where the LLM's habit is that
    max_text_tokens: AtLeastOne = 65  # longer utterances are cut at the end and counted


class PromptedLMConfig(MethodConfig):
    """What all methods share that prompt a frozen LLM."""

    llm: LLMConfig = LLMConfig()
    prompt: PromptConfig = PromptConfig()
    decoding: Literal["trie", "free"] = "trie"  # choice 11


class TextOnlyConfig(PromptedLMConfig):
    """The frozen LLM with its prompt and no pseudo tokens: nothing is trained."""

    name: Literal["text_only"] = "text_only"
    recipe: Literal[1] = 1


class CmptaConfig(PromptedLMConfig):
    """Temporal alignment (eqs 3-5) and the cross-modal pseudo-token adapter (eqs 6-8)."""

    name: Literal["cmpta"] = "cmpta"
    recipe: Literal[1] = 1
    dim: EvenWidth = HYPERPARAMETERS.feature_dim  # D, Table 2; half per direction
    num_pseudo_tokens: Few = 6  # K, eq 8 and section 4.5.4
    alignment: Literal["bilstm", "lstm", "linear"] = "bilstm"  # choices 2 and 12: D/2 per direction; D; per frame
    fusion: Literal["cross_modal", "pooled"] = "cross_modal"  # choice 13: adapter on; adapter off
    num_heads: Few = 8  # choice 3
    projections: Literal["per_modality", "per_pair"] = "per_modality"  # choice 4: nine in all, as eq 7 is indexed
    summary: Literal["mean", "max"] = "mean"  # choice 6: how a sequence of attended vectors becomes one token
    token_count_rule: Literal["mix", "repeat"] = "mix"  # choice 7: learned n x 6 mix; or drop and repeat pairs
    token_scale: Literal["embedding_norm", "default"] = "embedding_norm"  # choice 8
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1  # choice 15

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.dim % self.num_heads:
            raise ValueError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}")
        if self.fusion == "pooled" and self.num_pseudo_tokens % 2:
            raise ValueError("an odd num_pseudo_tokens: fusion='pooled' gives half to each modality, use an even count")
        return self


class TrainingConfig(Settings):
    """Table 2, and choices 14 and 15 where it is silent."""

    epochs: AtLeastOne = HYPERPARAMETERS.epochs
    batch_size: AtLeastOne = HYPERPARAMETERS.batch_size  # clips, or dialogues where a method reads whole dialogues
    learning_rate: Rate = HYPERPARAMETERS.learning_rate
    optimizer: Literal["adamw", "adamw_amsgrad", "adam"] = "adamw"  # Adam adds the weight decay to the gradient
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    schedule: Literal["cosine", "constant"] = "cosine"  # after the warm-up
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 0.01
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    gradient_clip: Positive | None = 1.0
    patience: AtLeastOne | None = None  # epochs without a better validation score, after the warm-up; None = off
    validate_every: AtLeastOne = 1  # epochs
    num_threads: Few = 1  # part of the identity: another thread count gives other last bits


class EvaluationConfig(Settings):
    batch_size: AtLeastOne = 64


def _as_method(value: Any) -> Any:
    """A table of fields -> the settings class that its `name` stands for."""
    if not isinstance(value, Mapping):
        return value
    own = "one of your own is known once its file is imported: name that in the environment variable CMPTA_METHODS"
    return MethodConfig.known[one_of("method", value.get("name"), MethodConfig.known, own)].model_validate(value)


class RunConfig(Settings):
    data: DataConfig
    method: Annotated[SerializeAsAny[MethodConfig], BeforeValidator(_as_method)] = CmptaConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: Seed = PAPER_SEEDS[0]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The parts of its training, in order."""
        return self.method.stages(self)

    @property
    def epochs(self) -> int:
        """Of all stages together."""
        return sum(stage.training.epochs for stage in self.stages)

    @property
    def hash(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON: the name of the run's folder."""
        return hashlib.sha256(to_json(self).encode()).hexdigest()[:12]


def to_json(config: RunConfig) -> str:
    return json.dumps(config.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False)


def from_json(text: str) -> RunConfig:
    """Rebuild a config.

    Raises:
        ValueError: no JSON, or fields that are unknown, missing or wrong; one line names each.
    """
    try:
        config: RunConfig = fitting(RunConfig, json.loads(text), "config")
    except json.JSONDecodeError as error:
        raise ValueError(f"expected a run's config as JSON ({error})") from None
    if missing := sorted(paths(config, only_unset=True)):  # defaults may change
        raise ValueError(f"missing fields {', '.join(missing)}")
    return config


def override(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Return a copy with dotted fields changed, e.g. `{"method.num_heads": 4, "seed": 2222}`.

    Raises:
        ValueError: an unknown field, with the nearest that exists, or a wrong value, with what is expected.
    """
    tree, known = config.model_dump(), sorted(paths(config))
    for path, value in changes.items():
        *parents, last = one_of("config field", path, known, LISTED).split(".")
        reduce(getitem, parents, tree)[last] = value
    return fitting(RunConfig, tree, "config")


def paths(settings: BaseModel, prefix: str = "", only_unset: bool = False) -> Iterator[str]:
    """Dotted names of all fields that hold a value, or only of those whose value is their default as nobody gave one."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from paths(value, f"{prefix}{name}.", only_unset)
        elif not only_unset or name not in settings.model_fields_set:
            yield prefix + name


def fitting(kind: Any, value: Any, name: str = "", strict: bool | None = None) -> Any:
    """`value` as pydantic reads it for this type; ValueError, in one line, says the first three things that are wrong."""
    try:
        return TypeAdapter(kind).validate_python(value, strict=strict)
    except ValidationError as error:
        raise ValueError("; ".join(_one_line(one, name) for one in error.errors()[:3])) from None


def _one_line(error: Mapping[str, Any], name: str) -> str:
    where = shown(".".join(map(str, error["loc"])))[1:-1] or name  # an unknown field may be called anything
    came = "" if isinstance(error["input"], Mapping | BaseModel) else shown(error["input"])
    return f"{'='.join(filter(None, (where, came)))}: {error['msg'].removeprefix('Value error, ')}"


LISTED = "`cmpta fields` lists all"
_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60  # characters of a value in a message


def shown(value: object) -> str:
    """A value as Python writes it, cut in its middle where that is long or deep."""
    try:
        return _short.repr(value).replace("\n", " ")
    except ValueError:  # Python writes no whole number of over 4300 digits
        return "a huge number"


def nearest(name: object, known: Collection[str]) -> str:
    """`` (did you mean 'x'?)``, the known name that a wrong one resembles most, also by what follows its last dot; or ""."""
    names = {one.rpartition(".")[2].lower(): one for one in known} | {one.lower(): one for one in known}
    if not isinstance(name, str) or name in known:
        return ""
    near = difflib.get_close_matches(name[:100].lower(), names, n=1)
    return f" (did you mean '{names[near[0]]}'?)" if near else ""


def one_of(what: str, name: Any, known: Collection[str], more: str = "") -> str:
    """`name`, which must be one of these; raises ValueError that says the nearest, and what there are or `more`."""
    if isinstance(name, str) and name in known:
        return name
    there = more or "there are: " + textwrap.shorten(", ".join(known), 190, placeholder=" ...")
    raise ValueError(f"no {what} {shown(name)}; {there}{nearest(name, known)}")
