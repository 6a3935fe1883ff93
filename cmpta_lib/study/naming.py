"""What to call a run: the table's row that it is, or the nearest row and the fields in which the run differs from it.

A run knows its config alone, not who asked for it. Its row is found by comparing that config with what each row of the
plan (`plan.every_row`) gives on the same corpus. Imports no torch and asks for no corpus.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmpta_lib import registry
from cmpta_lib.config import RunConfig, paths
from cmpta_lib.llm.files import hub_id
from cmpta_lib.registry import Entry
from cmpta_lib.study.profiles import PROFILES, REHEARSAL, SMOKE_CHANGES, settings_of

if TYPE_CHECKING:
    from cmpta_lib.study.plan import Row

Rows = Callable[[str, str], "Sequence[Row]"]  # corpus' key, method -> its rows there
SHOWN_CHANGES = 3
# Data, backbone and seed stand beside a run's name; the sign of answers follows from the backbone.
_BESIDE = ("seed", "data.name", "data.fingerprint", "method.name", "method.recipe", "method.prompt.answer_sign") + (
    "method.media", "method.model.fingerprint", "method.model.dtype",  # an omni model's, which a machine fills in
)  # fmt: skip
_READERS = ("method.llm.", "method.encoder.")


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


class Names:
    """Names of the runs below one folder; smoke runs have settings of their own.

    Args:
        rows: every row that a run of a method may be on a corpus, plain ones first: `plan.every_row`.
        smoke: whether they are smoke runs.
        rehearsal: what `cmpta rehearse` left in their folder.
    """

    def __init__(self, rows: Rows, smoke: bool = False, rehearsal: Mapping[str, Any] | None = None) -> None:
        self.rows, self.smoke, self.rehearsal = rows, smoke, rehearsal or {}
        self._known: dict[tuple[str, str, str], list[tuple[str, dict[str, Any]]]] = {}

    def __call__(self, config: RunConfig) -> Name:
        """The nearest row's name; among equally near ones the first of the plan."""
        own = _comparable(fields(config))
        key = (config.data.name, config.method.name, _backbone(config))
        if key not in self._known:
            self._known[key] = list(self._candidates(config))
        found = [Name(row, {f: v for f, v in own.items() if given.get(f) != v}) for row, given in self._known[key]]
        return min(found, key=lambda name: len(name.changed), default=Name(config.method.name, {}))

    def _candidates(self, config: RunConfig) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every row of this method on this corpus: its name here, and the fields that it gives a run."""
        if config.method.name not in registry.ENTRIES:
            return
        entry = registry.ENTRIES[config.method.name]
        default = fields(RunConfig(data=config.data.model_copy(update={"feature_scaling": "zscore"}), method=entry.defaults()))
        for profile, key in _places(config.data.name):
            for row in self.rows(key, entry.name):
                if row.llm and _backbone(config) not in self._llms(profile, row.llm):
                    continue
                given = default | {f: v for f, v in self._settings(profile, key, entry, row).items() if f in default}
                given |= row.changes
                given["training.learning_rate"] *= row.rate
                yield label(row), _comparable(given)

    def _settings(self, profile: str, key: str, entry: Entry, row: Row) -> dict[str, Any]:
        """As `Study.config` sets them."""
        changes = settings_of(profile, key, row, entry.settings)
        if self.smoke:
            rehearsed = self.rehearsal.get("changes") if profile == "paper" else None
            changes |= rehearsed or {**SMOKE_CHANGES, **entry.settings.get("smoke", {})}
        return changes

    def _llms(self, profile: str, role: str) -> set[str]:
        name = PROFILES[profile].llms[role]
        return {name, hub_id(name), Path(self.rehearsal.get("llms", {}).get(role, name)).name}


def names(root: Path, rows: Rows) -> Names:
    """Names for the runs below `root`, the runs folder or the smoke runs' folder in it; `rows` as in `Names`."""
    try:
        rehearsal = json.loads((root / REHEARSAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none was made, or its record is damaged: a name is no place to say so
        rehearsal = {}
    return Names(rows, root.name == "smoke", rehearsal if isinstance(rehearsal, Mapping) else {})


def fields(config: RunConfig) -> dict[str, Any]:
    """Dotted name -> value of every field of a config."""
    return {path: reduce(getattr, path.split("."), config) for path in paths(config)}


def _comparable(given: Mapping[str, Any]) -> dict[str, Any]:
    return {f: v for f, v in given.items() if f not in _BESIDE and not f.startswith(_READERS)}


def _backbone(config: RunConfig) -> str:
    return str(getattr(getattr(config.method, "llm", None), "name", ""))


def _places(corpus: str) -> list[tuple[str, str]]:
    """Profile and key that a corpus of this name may have been asked for by; both profiles serve a user's own."""
    found = [(name, key) for name, one in PROFILES.items() for key, known in one.corpora.items() if known == corpus]
    return found or [(name, "data") for name in PROFILES]


def label(row: Row) -> str:
    """A row's name where it stands among all runs: a version says of which method it is one, a searched rate which."""
    is_plain = not row.changes or row.llm or row.method == "cmpta"
    name = row.name if is_plain else f"{registry.ENTRIES[row.method].row}, {row.name}"
    return name if row.rate == 1 else f"{name}, learning rate × {row.rate:g}"
