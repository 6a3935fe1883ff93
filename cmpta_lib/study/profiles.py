"""Profiles: a set of corpora, a backbone and the settings that fit them; the code behind every profile is the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cmpta_lib import registry
from cmpta_lib.config import PAPER_SEEDS, DataConfig, RunConfig, one_of, override, paths
from cmpta_lib.data.corpus import Language

if TYPE_CHECKING:
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
        corpora={"sims": "simsv2", "meld": "meld"}, llm="qwen-1.8b", llms={"llama2-7b": "llama2-7b"},
        encoders={"zh": "bert-base-chinese", "en": "bert-base-uncased"}, num_seeds=len(PAPER_SEEDS),
    ),  # fmt: skip
}
SMOKE_SIZES = {"train": 48, "valid": 24, "test": 24}
SMOKE_CHANGES = {"training.epochs": 1}
SMOKE_DOCUMENTS = 800  # 20 steps: the schedule needs two of warm-up
DRY_RUN = "dry_run.json"  # what `cmpta dry-run` leaves in runs/smoke: the LLM and the changes of its smoke runs


def smoke_changes(method: str, dry_run: Mapping[str, Any]) -> dict[str, Any]:
    """Config fields of a smoke run: what the record of a dry run says, or a method's own small sizes."""
    return dict(dry_run.get("changes") or {**SMOKE_CHANGES, **registry.ENTRIES[method].settings.get("smoke", {})})


def planned_config(profile: str, key: str, row: Row, data: DataConfig, seed: int, more: Mapping[str, Any]) -> RunConfig:
    """The one way from a row of a table to the config of its run on the corpus of this key.

    Its method's defaults, what the profile sets, the method's own settings for it, `more` (what a machine, a smoke run or a
    caller sets), and last what the row is about. Fields that the method does not have are left out, but for the row's.

    Raises:
        ValueError: the row's method is not registered, or a value does not fit.
    """
    entry, chosen = registry.ENTRIES[one_of("method", row.method, registry.ENTRIES)], PROFILES[profile]
    settings = {**chosen.changes, **chosen.corpus_changes.get(key, {})}
    for place in (profile, f"{profile}/{key}", f"{profile}/{key}/{row.llm}"):
        settings |= entry.settings.get(place, {})
    settings |= more
    base = RunConfig(data=data, method=entry.defaults(), seed=seed)
    try:
        config = override(base, {path: settings[path] for path in paths(base) if path in settings} | dict(row.changes))
        searched = {"training.learning_rate": row.rate * config.training.learning_rate}
        return config if row.rate == 1 else override(config, searched)
    except ValueError as error:
        raise ValueError(f"row '{row.name}' cannot be run as asked: {error}") from error
