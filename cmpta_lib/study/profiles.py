"""Profiles: a set of corpora, a backbone and the settings that fit them; the code behind every profile is the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cmpta_lib.config import PAPER_SEEDS, RunConfig, override, paths
from cmpta_lib.data.corpus import Language
from cmpta_lib.study.plan import Row


@dataclass(frozen=True)
class Profile:
    """What `profile` means. A method's own settings for it stand in its registration."""

    corpora: Mapping[str, str]  # key in notebooks -> corpus name
    llm: str  # a name that `llm.files` knows, or one of `embedded.tiny.ARCHITECTURES`
    num_seeds: int
    llms: Mapping[str, str]  # of rows with an LLM of their own: role -> name
    encoders: Mapping[Language, str]  # of methods without an LLM: "tiny-bert", or a name that `llm.files` knows
    changes: Mapping[str, Any] = field(default_factory=dict)
    corpus_changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by key; "data" = a user's own


PROFILES: Mapping[str, Profile] = {
    "demo": Profile(
        corpora={"sims": "embedded-sims", "meld": "embedded-meld"},
        llm="tiny",
        llms={"llama2-7b": "tiny-llama"},
        encoders={"zh": "tiny-bert", "en": "tiny-bert"},
        num_seeds=2,
        changes={"training.learning_rate": 3e-3, "training.batch_size": 16},
        corpus_changes={
            "sims": {"training.epochs": 2},
            "meld": {"training.epochs": 2},
            "data": {"training.epochs": 30, "training.learning_rate": 1e-3},
        },
    ),
    "paper": Profile(
        corpora={"sims": "simsv2", "meld": "meld"},
        llm="qwen-1.8b",
        llms={"llama2-7b": "llama2-7b"},
        encoders={"zh": "bert-base-chinese", "en": "bert-base-uncased"},
        num_seeds=len(PAPER_SEEDS),
    ),
}
SMOKE_SIZES = {"train": 48, "valid": 24, "test": 24}
SMOKE_CHANGES = {"training.epochs": 1}
SMOKE_DOCUMENTS = 800  # 20 steps: the schedule needs two of warm-up
REHEARSAL = "rehearsal.json"  # what `cmpta rehearse` leaves in runs/smoke: the LLM and the changes of its smoke runs


def settings_of(profile: str, key: str, row: Row, own: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Config fields that a profile sets for a row on the corpus of this key, the narrower word last; none of the row's own.

    Args:
        own: what its method has to say, `methods.entries.Entry.settings`.
    """
    chosen = PROFILES[profile]
    found = dict(chosen.changes) | dict(chosen.corpus_changes.get(key, {}))
    for place in (profile, f"{profile}/{key}", f"{profile}/{key}/{row.llm}"):
        found |= own.get(place, {})
    return found


def applied(base: RunConfig, settings: Mapping[str, Any], row: Row) -> RunConfig:
    """A config with those settings that its method has, and what the row is about.

    Raises:
        ValueError: they do not fit; names the row.
    """
    known = set(paths(base))
    try:
        config = override(base, {path: value for path, value in settings.items() if path in known} | dict(row.changes))
        if row.rate == 1:
            return config
        return override(config, {"training.learning_rate": row.rate * config.training.learning_rate})
    except ValueError as error:
        raise ValueError(f"row '{row.name}' cannot be run as asked: {error}") from error
