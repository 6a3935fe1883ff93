"""`cmpta runs`: every run as a line that one can read, or as JSON with all that is known of it."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from cmpta_lib import registry
from cmpta_lib.config import nearest
from cmpta_lib.files import runs_folder
from cmpta_lib.runs import provenance, store
from cmpta_lib.runs.progress import STATES, Summary, cut, duration, summarise, table
from cmpta_lib.study.naming import Name, names
from cmpta_lib.study.parameters import fields

SHORT = 8  # hex digits of a run's hash that are shown; any unique beginning names it
_HEAD = ("run", "name", "corpus", "LLM or encoder", "seed", "epochs", "best", "training", "valid", "test", "state")
_RIGHT = (4, 5, 6, 7)
_WIDEST_NAME = 56
# Keys of its records that stand in the JSON as they are: of metrics.json, and of environment.json.
_MEASURED = ("trainable_parameters", "llm_parameters", "oddities")
_OF_ITS_MAKING = ("commit", "hardware", "packages", "train_seconds", "seconds", provenance.RESIDENT, provenance.ALLOCATED)


@dataclass(frozen=True)
class Listed:
    """A run folder, and what its run is called; only a title, the folder's name, where its config cannot be read."""

    summary: Summary
    hash: str
    title: str
    name: Name | None = None
    method: str = ""
    corpus: str = ""
    seed: int | None = None
    model: str = ""  # name of the LLM, text encoder or omni model that reads the words; "" where none does

    def as_json(self) -> dict[str, Any]:
        """All that is known of it; a number that is not finite is null."""
        found, config = self.summary, self.summary.config
        told: dict[str, Any] = {"run": self.hash, "folder": str(found.folder), "name": self.title}
        told |= {"row": self.name.row if self.name else None, "changed": dict(self.name.changed) if self.name else {}}
        told |= {"method": self.method, "corpus": self.corpus, "llm_or_encoder": self.model, "seed": self.seed}
        told |= {"state": found.state, "detail": found.detail, "epochs_finished": found.epochs, "best_epoch": found.best_epoch}
        told |= {"valid": found.scores("valid"), "test": found.scores("test")}
        told |= {key: found.records.get(key) for key in _MEASURED} | {key: found.environment.get(key) for key in _OF_ITS_MAKING}
        told["config"] = config.model_dump(mode="json") if config else None
        finite: dict[str, Any] = json.loads(json.dumps(told), parse_constant=lambda _: None)
        return finite

    def cells(self) -> list[str]:
        """Its line of the table."""
        found, config = self.summary, self.summary.config
        trains = bool(found.epochs) or found.state != "finished"  # a method without training has no epochs
        return [
            self.hash[:SHORT],
            cut(self.title, _WIDEST_NAME),
            self.corpus,
            self.model,
            "" if self.seed is None else str(self.seed),
            f"{found.epochs}/{config.epochs}" if config and trains else "",
            str(found.best_epoch or ""),
            duration(found.seconds) if found.seconds is not None and trains else "",
            found.shown("valid").partition(", ")[0],
            found.shown("test"),
            f"{found.state}: {found.detail}" if found.detail else found.state,
        ]


def listed(root: Path) -> list[Listed]:
    """Every run folder below `root`: by corpus, method, name and seed; what cannot be read comes last."""
    registry.load_plugins()
    named, order, rows = names(root), list(registry.ENTRIES), []
    for one in map(summarise, store.found(root)):
        if (config := one.config) is None:
            rows.append(Listed(one, one.folder.name.rpartition("-")[2], one.folder.name))
            continue
        name = named(config, str(one.environment.get("row", "")))
        readers = (getattr(config.method, reader, None) for reader in ("llm", "encoder", "model"))
        model = next((str(reader.name) for reader in readers if reader), "")
        rows.append(Listed(one, config.hash, str(name), name, config.method.name, config.data.name, config.seed, model))

    def place(row: Listed) -> tuple[bool, str, int, str, int]:
        known = order.index(row.method) if row.method in order else len(order)
        return row.name is None, row.corpus, known, row.title, row.seed or 0

    return sorted(rows, key=place)


def list_runs(options: argparse.Namespace) -> int:
    """Print the runs that the options ask for."""
    root = runs_folder() / "smoke" if options.smoke else runs_folder()
    every = listed(root)
    chosen = [row for row in every if _fits(row, options)]
    asked = [*options.words, *filter(None, (options.method, options.corpus))]
    if asked and every and not chosen:
        known = {name for row in every for name in (row.title, row.method, row.corpus)}
        hints = "".join(nearest(word, known) for word in asked)
        raise ValueError(f"none of the {len(every)} runs in {root} is like that{hints}")
    if options.json:
        print(json.dumps([row.as_json() for row in chosen], indent=1))  # in ASCII, for any terminal
    elif not chosen:
        print(f"none of the {len(every)} runs in {root} is like that" if every else f"no runs in {root} yet")
    else:
        print("\n".join(screen(chosen, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)))
        counts = Counter(row.summary.state for row in chosen)
        print(", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) + f"; in {root}")
    return 0


def list_fields(options: argparse.Namespace) -> int:
    """Print what `--set` can change, under the methods that have it; ValueError where a word is in no name."""
    every = fields()
    found = [one for one in every if all(word in f"{one['field']} {one['methods']}" for word in options.words)]
    if not found:
        known = [*registry.ENTRIES, *(one["field"] for one in every)]
        hints = "".join(nearest(word, known) for word in options.words)
        raise ValueError(f"no field or method is called so{hints}; `cmpta fields` lists all")
    if options.json:
        print(json.dumps(found, indent=1))
    for methods, group in () if options.json else groupby(found, lambda one: one["methods"]):
        heading = "every method" if len(methods) == len(registry.ENTRIES) else ", ".join(methods)
        print("\n".join(textwrap.wrap(f"{heading}:", 80)))
        for one in group:
            line = f"{one['field']}={json.dumps(one['default']).strip(chr(34)):<3}"
            print("\n".join(textwrap.wrap(f"{line:<40}  {one['expects']}", 80, initial_indent="  ", subsequent_indent="      ")))
    return 0


def _fits(row: Listed, options: argparse.Namespace) -> bool:
    asked = [(options.method, row.method), (options.corpus, row.corpus), (options.seed, row.seed)]
    asked.append((options.state, row.summary.state))
    text = f"{row.title} {row.method} {row.summary.folder.name}".lower()
    return all(wanted in (None, found) for wanted, found in asked) and all(word.lower() in text for word in options.words)


def screen(rows: Sequence[Listed], width: int | None = None) -> list[str]:
    """The table's lines, heading first, cut to `width` columns where that is given."""
    return [cut(line, width or len(line) * 2) for line in table(_HEAD, [row.cells() for row in rows], _RIGHT)]
