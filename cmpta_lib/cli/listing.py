"""`cmpta runs`: every run as a line that one can read, or as JSON with all that is known of it."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmpta_lib import registry
from cmpta_lib.config import RunConfig
from cmpta_lib.files import runs_folder
from cmpta_lib.runs import provenance, store
from cmpta_lib.runs.progress import STATES, Summary, columns, cut, duration, summarise, table
from cmpta_lib.study.naming import Name, names

SHORT = 8  # hex digits of a run's hash that are shown; any unique beginning names it
# What a narrow terminal goes without, in this order.
_SPARED = ("LLM or encoder", "best", "training", "epochs", "valid", "corpus")
_RIGHT = ("seed", "epochs", "best", "training")
_WIDEST_NAME, _NARROWEST_NAME = 56, 16


@dataclass(frozen=True)
class Listed:
    """A run folder, and what its run is called; no name where its config cannot be read."""

    summary: Summary
    name: Name | None
    title: str
    method: str = ""
    corpus: str = ""
    seed: int | None = None
    model: str = ""  # name of the LLM, text encoder or omni model that reads the words; "" where none does

    @property
    def hash(self) -> str:
        config = self.summary.config
        return config.hash if config else self.summary.folder.name.rpartition("-")[2]


def _listed(one: Summary, name: Callable[[RunConfig, str], Name]) -> Listed:
    config = one.config
    if config is None:
        return Listed(one, None, one.folder.name)
    called = name(config, str(one.environment.get("row", "")))
    readers = (getattr(config.method, reader, None) for reader in ("llm", "encoder", "model"))
    model = next((str(reader.name) for reader in readers if reader), "")
    return Listed(one, called, str(called), config.method.name, config.data.name, config.seed, model)


def listed(root: Path) -> list[Listed]:
    """Every run folder below `root`: by corpus, method, name and seed; what cannot be read comes last."""
    registry.load_plugins()
    name, order = names(root), list(registry.ENTRIES)
    rows = [_listed(summarise(entry), name) for entry in store.found(root)]

    def place(row: Listed) -> tuple[bool, str, int, str, int]:
        known = order.index(row.method) if row.method in order else len(order)
        return row.name is None, row.corpus, known, row.title, row.seed or 0

    return sorted(rows, key=place)


def list_runs(options: argparse.Namespace) -> int:
    """Print the runs that the options ask for."""
    root = runs_folder() / "smoke" if options.smoke else runs_folder()
    every = listed(root)
    chosen = [row for row in every if _fits(row, options)]
    if options.json:
        print(json.dumps([as_json(row) for row in chosen], indent=1, ensure_ascii=False))
        return 0
    if not chosen:
        print(f"none of the {len(every)} runs in {root} is like that" if every else f"no runs in {root} yet")
        return 0
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n".join(screen(chosen, width)))
    counts = Counter(row.summary.state for row in chosen)
    print(", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) + f"; in {root}")
    return 0


def _fits(row: Listed, options: argparse.Namespace) -> bool:
    asked = [(options.method, row.method), (options.corpus, row.corpus), (options.seed, row.seed)]
    asked.append((options.state, row.summary.state))
    text = f"{row.title} {row.method} {row.summary.folder.name}".lower()
    return all(wanted in (None, found) for wanted, found in asked) and all(word.lower() in text for word in options.words)


def screen(rows: Sequence[Listed], width: int | None) -> list[str]:
    """The table's lines, heading first; no line is wider than `width`, where that is given."""
    cells, widest = [_cells(row) for row in rows], _WIDEST_NAME
    spared: list[str] = []
    while True:
        head = [name for name in cells[0] if name not in spared]
        right = [place for place, name in enumerate(head) if name in _RIGHT]
        shown = [[cut(row[name], widest) if name == "name" else row[name] for name in head] for row in cells]
        lines = table(head, shown, right)
        if width is None:
            return lines
        bare = table(head[:-1], [row[:-1] for row in shown], right)  # a long reason may be cut
        over = max(map(columns, bare)) + len("  unfinished") - width
        if over > 0 and len(spared) < len(_SPARED):
            spared.append(_SPARED[len(spared)])
        elif over > 0 and widest > _NARROWEST_NAME:
            widest = max(_NARROWEST_NAME, min(widest, max(columns(row["name"]) for row in cells)) - over)
        else:
            return [cut(line, width) for line in lines]


def _cells(row: Listed) -> dict[str, str]:
    found, config = row.summary, row.summary.config
    seconds, best = found.seconds, found.best_epoch or None
    trains = bool(found.epochs) or found.state != "finished"  # a method without training has no epochs
    tested, validated = found.shown("test"), found.shown("valid").partition(", ")[0]
    return {
        "run": row.hash[:SHORT],
        "name": row.title,
        "corpus": row.corpus,
        "LLM or encoder": row.model,
        "seed": "" if row.seed is None else str(row.seed),
        "epochs": f"{found.epochs}/{config.epochs}" if config and trains else "",
        "best": "" if best is None else str(best),
        "training": "" if seconds is None or not trains else duration(seconds),
        "valid": validated,
        "test": tested,
        "state": f"{found.state}: {found.detail}" if found.detail else found.state,
    }


def as_json(row: Listed) -> dict[str, Any]:
    """All that is known of a run; a number that is not finite is null."""
    found, config = row.summary, row.summary.config
    told: dict[str, Any] = {"run": row.hash, "folder": str(found.folder), "name": row.title}
    told |= {"row": row.name.row if row.name else None, "changed": dict(row.name.changed) if row.name else {}}
    told |= {"method": row.method, "corpus": row.corpus, "llm_or_encoder": row.model, "seed": row.seed}
    told |= {"state": found.state, "detail": found.detail, "epochs_finished": found.epochs, "best_epoch": found.best_epoch}
    told |= {"valid": found.scores("valid"), "test": found.scores("test")}
    told |= {key: found.records.get(key) for key in ("trainable_parameters", "llm_parameters", "oddities")}
    of_its_making = ("commit", "hardware", "packages", "train_seconds", "seconds", provenance.RESIDENT, provenance.ALLOCATED)
    told |= {key: found.environment.get(key) for key in of_its_making}
    finite: dict[str, Any] = _finite(told | {"config": config.model_dump(mode="json") if config else None})
    return finite


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
