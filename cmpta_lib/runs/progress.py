"""What one sees while runs are made: what is running, what has ended how, how many are left and for how long.

In a terminal it is one line at the bottom, and a line above it for each run that ends. Anywhere else (a log, a notebook)
it is plain lines at a sane rate, so that what is saved of it can be read.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from cmpta_lib.methods import registry
from cmpta_lib.metrics import shown_scores
from cmpta_lib.runs.console import cut, duration

if TYPE_CHECKING:
    from cmpta_lib.runs.store import Run

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
