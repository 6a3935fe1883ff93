"""What one sees of runs: of a folder, how far it is and what is wrong with it; and a bar while runs are made."""

from __future__ import annotations

import io
import os
import sys
import time
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TextIO

from cmpta_lib.config import RunConfig
from cmpta_lib.metrics import in_units, shown_scores
from cmpta_lib.runs import store
from cmpta_lib.runs.store import Run

# --- text by the columns that it takes on a screen: a Chinese character takes two --------------------------------------


def columns(text: str) -> int:
    """How many columns a terminal gives to this text."""
    wide = sum(unicodedata.east_asian_width(sign) in "WF" for sign in text)
    return len(text) + wide - sum(unicodedata.combining(sign) > 0 for sign in text)


def cut(text: str, width: int) -> str:
    """The text in at most so many columns, with an ellipsis where something is left out."""
    if columns(text) <= width:
        return text
    while columns(text) >= width:
        text = text[:-1]
    return text + "…"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Lines of a table whose columns are as wide as they must be, two spaces apart.

    Args:
        right: places of the columns that end flush, such as numbers.
    """
    widths = [max(columns(row[place]) for row in (head, *rows)) for place in range(len(head))]

    def padded(cell: str, place: int) -> str:
        room = " " * (widths[place] - columns(cell))
        return room + cell if place in right else cell + room

    return ["  ".join(padded(cell, place) for place, cell in enumerate(row)).rstrip() for row in (head, *rows)]


def duration(seconds: float) -> str:
    """So long in a reader's units: "54 s", "14 min", "3.2 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


# --- what a folder is; reading it never raises -------------------------------------------------------------------------

RunState = Literal["finished", "unfinished", "failed", "damaged", "other version"]
STATES: tuple[RunState, ...] = ("finished", "unfinished", "failed", "damaged", "other version")


@dataclass(frozen=True)
class Summary:
    """One folder; `detail` says on one line why it is not finished, `config` is None where it cannot be read."""

    folder: Path
    state: RunState
    config: RunConfig | None = None
    detail: str = ""
    epochs: int = 0  # that it has finished
    records: Mapping[str, Any] = field(default_factory=dict)  # metrics.json, of a finished run
    environment: Mapping[str, Any] = field(default_factory=dict)
    unit: float = 1.0  # as `Run.unit`

    @property
    def best_epoch(self) -> int | None:
        return self.records.get("best_epoch")

    @property
    def seconds(self) -> float | None:
        """Of training."""
        return self.environment.get("train_seconds")

    def scores(self, split: str) -> dict[str, float]:
        """Every metric of a split, as `Run.scores`; none where the run is not finished."""
        found = self.records.get(split)
        return in_units(found, self.unit) if isinstance(found, Mapping) else {}

    def shown(self, split: str) -> str:
        """The tabled scores of a split with their units: "MAE 0.251, Corr 0.863"."""
        return ", ".join(shown_scores(self.scores(split)))


def summarise(entry: Run | tuple[Path, str]) -> Summary:
    """A `Summary` of what `store.found` found."""
    if not isinstance(entry, Run):
        folder, why = entry
        return Summary(folder, "other version" if store.OTHER_VERSION in why else "damaged", None, why)
    folder, config = entry.folder, entry.config
    try:
        epochs = store.finished_epochs(folder)
        if not entry.done:
            done, reason = f"{epochs} of {config.epochs} epochs", store.failure(folder)
            state: RunState = "failed" if reason else "unfinished"
            return Summary(folder, state, config, f"{done}, {reason}" if reason else done, epochs)
        float(entry.environment["train_seconds"])  # an edited record may hold anything
        if not shown_scores(entry.metrics["test"]):
            raise ValueError(f"{folder / store.METRICS} holds no test score")
        return Summary(folder, "finished", config, "", epochs, entry.metrics, entry.environment, entry.unit)
    except (ValueError, OSError, LookupError, TypeError, AttributeError) as error:  # `Damaged` is a ValueError
        return Summary(folder, "damaged", config, " ".join(str(error).split()) or type(error).__name__)


# --- while runs are made -----------------------------------------------------------------------------------------------

EVERY_S = 30.0  # between two words on how far it is, where it is no terminal


class Progress:
    """Shows what an engine reports of these runs: a line for each that ends, and a bar in epochs.

    A context manager, and itself the engine's `report`. Where there is no terminal (a log, a notebook) the bar is a plain
    line twice a minute, so that what is saved of it can be read. A reader that has gone ends no run.

    Args:
        stream: where to; default: standard error, and standard output in a notebook, which marks errors.
    """

    def __init__(self, runs: Sequence[Run], stream: TextIO | None = None) -> None:
        from tqdm import tqdm

        in_notebook = type(sys.stderr).__module__.startswith("ipykernel")
        self.stream = stream or (sys.stdout if in_notebook else sys.stderr)
        self.is_terminal = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self.total, self.left = len(runs), {run.folder: run.config.epochs for run in runs}  # epochs to train
        self.began: dict[Path, float] = {}
        self.bar = tqdm(
            total=sum(self.left.values()),
            file=self.stream if self.is_terminal else io.StringIO(),
            dynamic_ncols=True,
            leave=False,
            delay=1e-9,  # nothing is written before somebody can catch what that raises
            bar_format="{desc} {percentage:3.0f}% |{bar:20}| {elapsed}, {remaining} to go{postfix}",
        )
        self.said = time.monotonic()

    def __enter__(self) -> Self:
        self.line("1 run to make" if self.total == 1 else f"{self.total} runs to make")
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, ValueError):
            self.bar.close()

    def __call__(self, run: Run, event: dict[str, Any]) -> None:
        """As `Engine.run`'s `report`."""
        what, folder = event["event"], run.folder
        if what == "note":
            self.line(event["text"])
        elif what == "start":
            self.began[folder] = time.monotonic()
        elif what == "busy":
            self.began.pop(folder, None)
        elif what == "epoch" and folder in self.left:
            self._move(folder, run.config.epochs - event["epoch"])
        elif what in ("done", "failed") and folder in self.left:
            self._move(folder, 0)
            del self.left[folder]
            took = f", {duration(time.monotonic() - self.began.pop(folder))}" if folder in self.began else ""
            text = f"{run.row or folder.name}, {run.config.data.name}, seed {run.config.seed}: {_outcome(run, event)}{took}"
            self.line(f"{text}; {self._rest()}")
        if not self.is_terminal and self.left and time.monotonic() - self.said >= EVERY_S:
            self.line(str(self.bar).strip())

    def _move(self, folder: Path, left: int) -> None:
        with suppress(OSError, ValueError):
            self.bar.set_description_str(f"{self._rest()}, {len(self.began)} at work", refresh=False)
            self.bar.update(self.left[folder] - left)
        self.left[folder] = left

    def _rest(self) -> str:
        return f"{len(self.left)} of {self.total} left" if self.left else "none left"

    def line(self, text: str) -> None:
        """Say something that stays."""
        self.said = time.monotonic()
        with suppress(OSError, ValueError):
            self.bar.write(text, file=self.stream)
            self.stream.flush()


def _outcome(run: Run, event: dict[str, Any]) -> str:
    if event["event"] == "failed":
        return "failed, " + " ".join(f"{event['kind']}: {event['message']}".split())
    try:
        scores = {split: shown_scores(run.scores(split))[0] for split in ("valid", "test")}
    except (ValueError, OSError, LookupError, TypeError) as error:  # damaged, which whoever reads it next says in full
        return f"ended, its scores cannot be read ({type(error).__name__})"
    return ", ".join(f"{split} {score}" for split, score in scores.items())
