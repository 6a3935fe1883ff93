"""What one sees of runs: of a folder, how far it is and what is wrong with it; and a line on whatever is at work."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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


# --- while something is at work ----------------------------------------------------------------------------------------

FIRST_S, TICK_S = 1.5, 0.5  # until the first word on what is at work; between two looks at it


class Status:
    """Says what is at work while its block runs: one line, which is rewritten in a terminal.

    Elsewhere (a log, a notebook) it is a plain line now and then, so that what is saved of it can be read. A reader that has
    gone stops nothing.

    Args:
        stream: where to; default: standard error, and standard output in a notebook, which marks errors.
        before: gives what is said before what is at work.
    """

    every_s = 10.0  # between two words, where it is no terminal

    def __init__(self, stream: TextIO | None = None, before: Callable[[], str] = str) -> None:
        self.given, self.before, self.lock = stream, before, threading.RLock()
        self.items: dict[str, tuple[float, float]] = {}  # at work, several at a time: since when, and the share that is done
        self.blocks, self.drawn, self.said = 0, 0, 0.0  # drawn: columns that the line takes now

    def __enter__(self) -> Self:
        with self.lock:
            self.blocks += 1
            if self.blocks == 1:  # of several threads that share it
                in_notebook = type(sys.stderr).__module__.startswith("ipykernel")
                self.stream = self.given or (sys.stdout if in_notebook else sys.stderr)
                self.is_terminal = self.stream.isatty() and os.environ.get("TERM") != "dumb"
                self.said = time.monotonic() + FIRST_S - self.every_s
                threading.Thread(target=self._go_on, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.blocks -= 1
            self._write("")

    def _go_on(self) -> None:
        while self.blocks:
            time.sleep(TICK_S)
            self.show()

    @contextmanager
    def doing(self, what: str) -> Iterator[Callable[[float], None]]:
        """Within the block this is at work; yields what takes the share that is done."""
        self.items[what] = (began := time.monotonic(), 0.0)
        try:
            yield lambda share: self.items.update({what: (began, share)})
        finally:
            del self.items[what]

    def show(self) -> None:
        """Say how far it is, if it is time for that."""
        with self.lock:
            if not self.items or not self.blocks or not (self.is_terminal or time.monotonic() - self.said >= self.every_s):
                return
            text = self.before() + ", ".join(_at_work(what, *how) for what, how in list(self.items.items()))
            self._write(cut(text, _width())) if self.is_terminal else self.line(text)

    def line(self, text: str) -> None:
        """Say something that stays; what is wider than a terminal goes on in the next line, indented."""
        self.said = time.monotonic()
        self._write("", "\n".join(textwrap.wrap(text, _width(), subsequent_indent="    ")) if self.is_terminal else text)

    def _write(self, drawn: str, staying: str = "") -> None:
        with self.lock, suppress(OSError, ValueError):
            self.stream.write((f"\r{' ' * self.drawn}\r" if self.drawn else "") + staying + "\n" * bool(staying) + drawn)
            self.drawn = columns(drawn)
            self.stream.flush()


def _width() -> int:
    return shutil.get_terminal_size().columns - 1  # with the last one some terminals begin another line


def _at_work(what: str, began: float, share: float) -> str:
    took = time.monotonic() - began
    left = f", about {duration(took * (1 - share) / share)} left" if share > 0.02 else ""
    return f"{what} ({f'{share:.0%}' if share else duration(took)}{left})"


_MAKERS = Status(before=lambda: "making ")


@contextmanager
def making(what: str, is_new: bool = True) -> Iterator[Callable[[float], None]]:
    """Within the block this is being made, which is shown together with whatever else is; yields what takes the share done.

    Args:
        is_new: False: it is there already, and there is nothing to show.
    """
    if not is_new:
        yield lambda share: None
        return
    began = time.monotonic()
    with _MAKERS:
        with _MAKERS.doing(what) as tell:
            yield tell
        if (took := time.monotonic() - began) >= FIRST_S:
            _MAKERS.line(f"{what} made ({duration(took)})")


class Progress(Status):
    """Shows what an engine reports of these runs: a line for each that ends, and how far all are, in epochs.

    A context manager, and itself the engine's `report`.
    """

    every_s = 30.0  # they may take days

    def __init__(self, runs: Sequence[Run], stream: TextIO | None = None) -> None:
        super().__init__(stream, self._rest)
        self.total, self.left = len(runs), {run.folder: run.config.epochs for run in runs}  # epochs to train
        self.epochs, self.started = sum(self.left.values()), time.monotonic()

    def __enter__(self) -> Self:
        super().__enter__().line("1 run to make" if self.total == 1 else f"{self.total} runs to make")
        return self

    def __call__(self, run: Run, event: dict[str, Any]) -> None:
        """As `Engine.run`'s `report`."""
        what, folder, name = event["event"], run.folder, f"{run.row or run.folder.name}, {run.config.data.name}"
        place = f"{name} {run.config.seed}"
        if what == "note":
            self.line(event["text"])
        elif what == "start":
            self.items[place] = time.monotonic(), 0.0
        elif what == "busy":
            self.items.pop(place, None)
        elif what == "epoch" and folder in self.left:
            self.left[folder] = run.config.epochs - event["epoch"]
        elif what in ("done", "failed") and folder in self.left:
            del self.left[folder]
            took = f" ({duration(time.monotonic() - self.items.pop(place)[0])})" if place in self.items else ""
            left = f"{len(self.left)} left" if self.left else "none left"
            self.line(f"{name}, seed {run.config.seed}: {_outcome(run, event)}{took}; {left}")
        self.show()

    def _rest(self) -> str:
        left, took = sum(self.left.values()), time.monotonic() - self.started
        done = self.epochs - left
        about = f", {done / self.epochs:.0%} done, about {duration(took * left / done)} to go" if done else ""
        return f"{len(self.left)} of {self.total} left{about}; "


def _outcome(run: Run, event: dict[str, Any]) -> str:
    if event["event"] == "failed":
        return "failed, " + " ".join(f"{event['kind']}: {event['message']}".split())
    try:
        return f"test {shown_scores(run.scores('test'))[0]}"
    except (ValueError, OSError, LookupError, TypeError) as error:  # damaged, which whoever reads it next says in full
        return f"ended, its scores cannot be read ({type(error).__name__})"
