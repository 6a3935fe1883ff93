"""What one can say of a run folder: how far it is, what is wrong with it, and its scores. Reading it never raises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cmpta_lib.config import RunConfig
from cmpta_lib.metrics import shown_scores
from cmpta_lib.runs import store
from cmpta_lib.runs.store import Run

State = Literal["finished", "unfinished", "failed", "damaged", "other version"]
STATES: tuple[State, ...] = ("finished", "unfinished", "failed", "damaged", "other version")


@dataclass(frozen=True)
class Summary:
    """One folder; `detail` says on one line why it is not finished, `config` is None where it cannot be read."""

    folder: Path
    state: State
    config: RunConfig | None = None
    detail: str = ""
    epochs: int = 0  # that it has finished
    records: Mapping[str, Any] = field(default_factory=dict)  # metrics.json, of a finished run
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best_epoch(self) -> int | None:
        return self.records.get("best_epoch")

    @property
    def seconds(self) -> float | None:
        """Of training."""
        return self.environment.get("train_seconds")

    def scores(self, split: str) -> dict[str, float]:
        """Every metric of a split as it was recorded; none where the run is not finished."""
        found = self.records.get(split)
        return dict(found) if isinstance(found, Mapping) else {}

    def shown(self, split: str) -> str:
        """The tabled scores of a split with their units: "MAE 0.251, Corr 0.863"."""
        return ", ".join(shown_scores(self.scores(split)))


def summarise(entry: Run | tuple[Path, str]) -> Summary:
    """A `Summary` of what `store.found` found."""
    if not isinstance(entry, Run):
        folder, why = entry
        return Summary(folder, "other version" if store.OTHER_VERSION in why else "damaged", None, why)
    try:
        epochs = store.finished_epochs(entry.folder)
        if entry.done:
            text = shown_scores(entry.metrics["test"])  # an edited record may hold anything
            float(entry.environment["train_seconds"])
            if not text:
                raise ValueError(f"{entry.folder / store.METRICS} holds no test score")
            return Summary(entry.folder, "finished", entry.config, "", epochs, entry.metrics, entry.environment)
        done = f"{epochs} of {entry.config.epochs} epochs"
        if reason := store.failure(entry.folder):
            return Summary(entry.folder, "failed", entry.config, f"{done}, {reason}", epochs)
        return Summary(entry.folder, "unfinished", entry.config, done, epochs)
    except (ValueError, OSError, LookupError, TypeError, AttributeError) as error:  # `Damaged` is a ValueError
        why = " ".join(str(error).split()) or type(error).__name__
        return Summary(entry.folder, "damaged", entry.config, why)
