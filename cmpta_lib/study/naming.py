"""What to call a run: the row of a table that it is, and the fields in which the run differs from that row.

A run's record says which row asked for it. The row of a run without such a record is the one whose config on the same corpus
is the nearest to the run's; the difference also tells what a caller has changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Any

from cmpta_lib import registry
from cmpta_lib.config import DataConfig, RunConfig, paths
from cmpta_lib.llm.files import hub_id
from cmpta_lib.study.plan import every_row, label
from cmpta_lib.study.profiles import DRY_RUN, PROFILES, planned_config, smoke_changes

SHOWN_CHANGES = 3
# Data, backbone and seed stand beside a run's name; the sign of answers follows from the backbone, and what a machine fills
# in of an omni model from the model.
_BESIDE = ("seed", "data.name", "data.fingerprint", "method.name", "method.recipe", "method.prompt.answer_sign", "method.media")
_READERS = ("method.llm.", "method.encoder.", "method.model.fingerprint", "method.model.dtype")


@dataclass(frozen=True)
class Name:
    """A row's name, and the config fields in which a run differs from that row, with the run's values."""

    row: str
    changed: Mapping[str, Any]

    def __str__(self) -> str:
        said = [f"{field.rpartition('.')[2]}={value}" for field, value in self.changed.items()]
        if len(said) > SHOWN_CHANGES:
            said = [*said[: SHOWN_CHANGES - 1], f"{len(said) - SHOWN_CHANGES + 1} more fields"]
        return ", ".join([self.row, *said])


def names(root: Path) -> Callable[[RunConfig, str], Name]:
    """What names the runs below `root`, the runs folder or the smoke runs' folder in it, from a config and a recorded row.

    Among equally near rows the first of the plan; the recorded one ("" = none) before all, where the plan has it.
    """
    dry_run: dict[str, Any] = {}
    try:
        dry_run |= json.loads((root / DRY_RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):  # none was made, or its record is damaged: a name is no place to say so
        pass

    @cache
    def rows(corpus: str, method: str, llm: str) -> list[tuple[str, dict[str, Any]]]:
        """Every row of this method on this corpus with this LLM: its name, and the fields that it gives a run."""
        found = []
        places = [(name, key) for name, one in PROFILES.items() for key, known in one.corpora.items() if known == corpus]
        for profile, key in places or [(name, "data") for name in PROFILES]:  # both serve a user's own corpus
            more = smoke_changes(method, dry_run if profile == "paper" else {}) if root.name == "smoke" else {}
            for row in every_row(key, method):
                own = PROFILES[profile].llms.get(row.llm, "")
                if not row.llm or llm in (own, hub_id(own), Path(dry_run.get("llms", {}).get(row.llm, own)).name):
                    config = planned_config(profile, key, row, DataConfig(name=corpus, fingerprint=""), 0, more)
                    found.append((label(row), _compared(config)))
        return found

    def name(config: RunConfig, recorded: str = "") -> Name:
        own, method = _compared(config), config.method.name
        llm = str(getattr(getattr(config.method, "llm", None), "name", ""))
        known = rows(config.data.name, method, llm) if method in registry.ENTRIES else []
        found = [
            Name(row, {field: value for field, value in own.items() if given.get(field) != value})
            for row, given in [one for one in known if one[0] == recorded] or known
        ]
        return min(found, key=lambda one: len(one.changed), default=Name(recorded or method, {}))

    return name


def fields(config: RunConfig) -> dict[str, Any]:
    """Dotted name -> value of every field of a config."""
    return {path: reduce(getattr, path.split("."), config) for path in paths(config)}


def _compared(config: RunConfig) -> dict[str, Any]:
    return {f: v for f, v in fields(config).items() if f not in _BESIDE and not f.startswith(_READERS)}
