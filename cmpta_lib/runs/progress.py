"""Text by the columns that it takes on a screen: a Chinese character takes two.

What one can say of a run folder: how far it is, what is wrong with it, and its scores. Reading it never raises.

What one sees while runs are made: what is running, what has ended how, how many are left and for how long.

In a terminal it is one line at the bottom, and a line above it for each run that ends. Anywhere else (a log, a notebook)
it is plain lines at a sane rate, so that what is saved of it can be read.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TextIO

from cmpta_lib import registry
from cmpta_lib.config import RunConfig
from cmpta_lib.metrics import shown_scores
from cmpta_lib.runs import store
from cmpta_lib.runs.store import Run

if TYPE_CHECKING:
    from cmpta_lib.runs.store import Run

def columns(text: str) -> int:
    """How many columns a terminal gives to this text."""
    return sum(_columns(sign) for sign in text)


def cut(text: str, width: int) -> str:
    """The text in at most so many columns, with an ellipsis where something is left out."""
    if columns(text) <= width:
        return text
    kept, room = "", width - 1
    for sign in text:
        if (room := room - _columns(sign)) < 0:
            break
        kept += sign
    return kept + "…"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Lines of a table whose columns are as wide as they must be, two spaces apart.

    Args:
        right: places of the columns that end flush, such as numbers.
    """
    widths = [max(columns(row[place]) for row in (head, *rows)) for place in range(len(head))]
    return ["  ".join(_padded(cell, widths[n], n in right) for n, cell in enumerate(row)).rstrip() for row in (head, *rows)]


def duration(seconds: float) -> str:
    """So long in a reader's units: "54 s", "14 min", "3.2 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _padded(text: str, width: int, is_right: bool) -> str:
    room = " " * (width - columns(text))
    return room + text if is_right else text + room


def _columns(sign: str) -> int:
    if unicodedata.combining(sign):
        return 0
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1


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


EVERY_S = 30.0  # between plain lines that say how far it is
REDRAW_S = 0.2
Kind = tuple[str, str]  # corpus and method: their runs' epochs take alike


@dataclass
class _Made:
    """A run that is being made."""

    began: float
    seen: tuple[float, float] | None = None  # when it last said how far it is, and how far
    trained: float = 0.0  # seconds between what it said first and last


@dataclass
class Estimate:
    """How long the rest will take, from the epochs and runs seen so far."""

    epochs: dict[Path, float]  # still to train, by run
    kinds: dict[Path, Kind]
    spent: dict[Kind, tuple[float, float]] = field(default_factory=dict)  # seconds, and the epochs that they were for
    beside: list[float] = field(default_factory=list)  # seconds of finished runs outside their epochs

    def learn(self, run: Path, seconds: float, epochs: float) -> None:
        known = self.spent.get(self.kinds[run], (0.0, 0.0))
        self.spent[self.kinds[run]] = (known[0] + seconds, known[1] + epochs)

    def seconds(self, jobs: int) -> float | None:
        """With so many runs at a time; None as long as nothing was seen. Kinds not met yet count as the mean of the others."""
        rates = {kind: seconds / epochs for kind, (seconds, epochs) in self.spent.items() if epochs > 0}
        if not rates and (not self.beside or any(self.epochs.values())):
            return None
        mean = sum(rates.values()) / len(rates) if rates else 0.0
        training = sum(left * rates.get(self.kinds[run], mean) for run, left in self.epochs.items())
        beside = sum(self.beside) / len(self.beside) if self.beside else 0.0
        return (training + beside * len(self.epochs)) / max(1, jobs)


class Progress:
    """Shows what an engine reports of these runs; a context manager, and itself the engine's `report`.

    Args:
        name: what to call a run.
        stream: where to; default: standard error, and standard output in a notebook, which marks errors.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        name: Callable[[Run], str] = lambda run: run.folder.name,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        in_notebook = type(sys.stderr).__module__.startswith("ipykernel")
        self.stream = stream or (sys.stdout if in_notebook else sys.stderr)
        self.name, self.clock, self.total = name, clock, len(runs)
        self.is_terminal = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self.left = {run.folder: run for run in runs}
        self.running: dict[Path, _Made] = {}
        kinds = {run.folder: (run.config.data.name, run.config.method.name) for run in runs}
        self.estimate = Estimate({run.folder: _epochs(run) for run in runs}, kinds)
        self.shown = clock()

    def __enter__(self) -> Self:
        runs = "1 run" if self.total == 1 else f"{self.total} runs"
        self.line(f"{runs} to make")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.is_terminal:
            self._write("\r\x1b[K")

    def __call__(self, run: Run, event: dict[str, Any]) -> None:
        """As `Engine.run`'s `report`."""
        what, now = event["event"], self.clock()
        if what == "note":
            self.line(event["text"])
        elif what == "start":
            self.running[run.folder] = _Made(now)
        elif what == "busy":
            self.running.pop(run.folder, None)
        elif what == "epoch":
            self._epoch(run, float(event["epoch"]), now)
        elif what in ("done", "failed") and run.folder in self.left:
            self._ended(run, event, now)
        self._draw(now)

    def _epoch(self, run: Run, epoch: float, now: float) -> None:
        made = self.running.setdefault(run.folder, _Made(now))
        if made.seen and epoch > made.seen[1]:
            self.estimate.learn(run.folder, now - made.seen[0], epoch - made.seen[1])
            made.trained += now - made.seen[0]
        made.seen = (now, epoch)
        self.estimate.epochs[run.folder] = max(0.0, _epochs(run) - epoch)

    def _ended(self, run: Run, event: dict[str, Any], now: float) -> None:
        made = self.running.pop(run.folder, None)
        del self.left[run.folder], self.estimate.epochs[run.folder]
        if made and event["event"] == "done":
            self.estimate.beside.append(now - made.began - made.trained)
        took = f", {duration(now - made.began)}" if made else ""
        self.line(f"{self._title(run)}: {_outcome(run, event)}{took}; {self._rest()}")

    def _title(self, run: Run) -> str:
        return f"{self.name(run)}, {run.config.data.name}, seed {run.config.seed}"

    def _rest(self) -> str:
        return f"{len(self.left)} of {self.total} left" if self.left else "none left"

    def status(self) -> str:
        """One line: how many are left and for how long, then what is being made."""
        seconds = self.estimate.seconds(len(self.running))
        parts = [self._rest() + (f", about {duration(seconds)}" if seconds is not None and self.left else "")]
        for folder, made in self.running.items():
            run = self.left[folder]
            epoch = f", epoch {made.seen[1]:.1f} of {run.config.epochs}" if made.seen else ""
            parts.append(self._title(run) + epoch)
        return " | ".join(parts)

    def line(self, text: str) -> None:
        """Say something that stays."""
        self._write(f"\r\x1b[K{text}\n" if self.is_terminal else f"{text}\n")
        if self.is_terminal:
            self.shown = 0.0  # the line at the bottom is gone

    def _draw(self, now: float) -> None:
        if not self.left or now - self.shown < (REDRAW_S if self.is_terminal else EVERY_S):
            return
        self.shown = now
        if self.is_terminal:
            self._write("\r\x1b[K" + cut(self.status(), shutil.get_terminal_size().columns - 1))
        else:
            self._write(self.status() + "\n")

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # whoever reads it has gone: no reason to end what is being made
            self.stream.write(text)
            self.stream.flush()


def _epochs(run: Run) -> float:
    """How many it has to train."""
    entry = registry.ENTRIES.get(run.config.method.name)
    return float(run.config.epochs) if entry is None or entry.is_trained else 0.0


def _outcome(run: Run, event: dict[str, Any]) -> str:
    if event["event"] == "failed":
        return "failed, " + " ".join(f"{event['kind']}: {event['message']}".split())
    try:
        scores = {split: shown_scores(run.metrics[split])[0] for split in ("valid", "test")}
    except (ValueError, OSError, LookupError, TypeError) as error:  # damaged, which whoever reads it next says in full
        return f"ended, its scores cannot be read ({type(error).__name__})"
    return ", ".join(f"{split} {score}" for split, score in scores.items())
