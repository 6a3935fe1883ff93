"""What is here: `cmpta runs`, every run as a line or as JSON; `cmpta fields`, all settings; `cmpta check`, what is missing."""

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
from cmpta_lib.cli.arguments import chosen_notebooks, study_of
from cmpta_lib.config import nearest
from cmpta_lib.files import runs_folder
from cmpta_lib.runs import provenance, store
from cmpta_lib.runs.progress import STATES, Summary, columns, cut, duration, summarise, table
from cmpta_lib.study.naming import Name, names
from cmpta_lib.study.parameters import fields

SHORT = 8  # hex digits of a run's hash that are shown; any unique beginning names it
_HEAD = ("run", "name", "corpus", "seed", "LLM or encoder", "epochs", "best", "training", "valid", "test", "further", "state")
_RIGHT = ("seed", "epochs", "best", "training")
_HIDDEN_FIRST = ("LLM or encoder", "further", "best", "training", "valid", "epochs")  # where a terminal is too narrow for all
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
        test, _, further = found.shown("test").partition(", ")
        return [
            self.hash[:SHORT], cut(self.title, _WIDEST_NAME), self.corpus, "" if self.seed is None else str(self.seed),
            self.model, f"{found.epochs}/{config.epochs}" if config and trains else "", str(found.best_epoch or ""),
            duration(found.seconds) if found.seconds is not None and trains else "", found.shown("valid").partition(", ")[0],
            test, further, f"{found.state}: {found.detail}" if found.detail else found.state,
        ]  # fmt: skip


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
    """Print what `--set` can change, under the methods that have it: CMPTA's fields, or what the words are about.

    Raises:
        ValueError: a word is in no field's name or comment, and no method's name.
    """
    every = fields()
    asked = options.words or ([] if options.json else ["'cmpta'"])
    about = {str(one): f"{one['field']} {one['says']} {one['methods']}".lower() for one in every}
    found = [one for one in every if all(word.lower() in about[str(one)] for word in asked)]
    if not found:
        known = [*registry.ENTRIES, *(one["field"] for one in every)]
        hints = "".join(nearest(word, known) for word in options.words)
        raise ValueError(f"no field or method is called so{hints}; `cmpta fields` lists those of CMPTA and all methods")
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    for methods, group in groupby(found, lambda one: one["methods"]):
        heading = "every method" if len(methods) == len(registry.ENTRIES) else ", ".join(methods)
        print("\n".join(textwrap.wrap(f"{heading}:", 80)))
        for one in group:
            default = "none" if one["default"] is None else json.dumps(one["default"]).strip('"')
            line = f"{one['field']}={default:<3}"
            line = f"{line:<40}  {one['expects']}" + f" ({one['says']})" * bool(one["says"])
            print("\n".join(textwrap.wrap(line, 80, initial_indent="  ", subsequent_indent=" " * 8, break_on_hyphens=False)))
    if not options.words:
        own = Counter(name for one in every if len(one["methods"]) < len(registry.ENTRIES) for name in one["methods"])
        said = ", ".join(f"{name} ({count})" for name, count in own.items() if name != "cmpta")
        more = "`cmpta fields WORD` searches all fields. Choices: what the paper leaves open, see cmpta_lib/README.md"
        print("\n".join(textwrap.wrap(f"`cmpta fields METHOD` lists a method's own: {said}. {more}", 80)))
    return 0


def _fits(row: Listed, options: argparse.Namespace) -> bool:
    asked = [(options.method, row.method), (options.corpus, row.corpus), (options.seed, row.seed)]
    asked.append((options.state, row.summary.state))
    text = f"{row.title} {row.method} {row.summary.folder.name}".lower()
    return all(wanted in (None, found) for wanted, found in asked) and all(word.lower() in text for word in options.words)


def screen(rows: Sequence[Listed], width: int | None = None) -> list[str]:
    """The table's lines, heading first; where a width is given nothing is wider, and the last says which columns are hidden."""
    cells, hidden = [dict(zip(_HEAD, row.cells(), strict=True)) for row in rows], list[str]()
    while True:
        head = [name for name in _HEAD if name not in hidden]
        right = [place for place, name in enumerate(head) if name in _RIGHT]
        lines = table(head, [[row[name] for name in head] for row in cells], right)
        if width is None or columns(lines[0]) + 3 <= width or len(hidden) == len(_HIDDEN_FIRST):  # "finished" below "state"
            break
        hidden.append(_HIDDEN_FIRST[len(hidden)])
        cells = [row | {"name": cut(row["name"], max(24, width // 4))} for row in cells]
    if hidden:
        lines.append(f"{len(hidden)} columns hidden: a wider terminal or --json shows {', '.join(hidden)}")
    return [cut(line, width) if width else line for line in lines]


def check_study(options: argparse.Namespace) -> int:
    """Print what is here and what is missing; with everything here, also hours from a few measured steps and answers."""
    from cmpta_lib.study import check, estimate  # here: with torch, which a list of runs does without

    study, names = study_of(options), chosen_notebooks(options)
    found = check.needs(study, names) + (check.stored(study, names) if options.deep else [])
    is_missing, planned = any(need.missing for need in found), study.planned(names)
    print(check.screen(study, found), flush=True)  # what follows may take minutes
    # Where something is missing, runs that wait for something of their own count as if they did not.
    runs = [one for one in planned if is_missing or not study.missing(one.row, one.key)]
    notebooks = {name: [one for one in study.planned([name]) if one in runs] for name in names}
    if is_missing:
        print(f"\n{estimate.by_notebook(notebooks, {}, {})}")
        print(f"{len(planned)} runs in all: listed by `cmpta reproduce --dry-run`; hours once nothing is missing")
        return 1
    configs = {one: run.config for one in runs if not (run := study.run(one.key, one.row, one.seed)).done}
    print(f"{len(runs)} runs, {len(runs) - len(configs)} of them finished", flush=True)
    if configs:
        print(f"timing a few steps and answers of each kind on {provenance.hardware()}", flush=True)
        speeds, head, rows = estimate.measured(study, configs), ["corpus", "method", "own LLM", "epoch s", "once s", "GPU GB"], []
        for (key, method, llm), speed in speeds.items():
            epochs = ", ".join(f"{seconds:.1f}" for seconds in speed.epochs.values()) or "-"
            rows.append([study.corpus(key).name, method, llm or "-", epochs, f"{speed.once:.1f}", f"{speed.gpu_gb:.1f}"])
        hours = estimate.by_notebook(notebooks, configs, speeds, options.jobs or provenance.usual())
        print("\n".join([*table(head, rows, range(3, 6)), "", hours]))
        if (largest := max(speed.gpu_gb for speed in speeds.values())) and (gpu := provenance.first_gpu()):
            print(f"runs at a time that fit into a GPU of {gpu[1]:.0f} GB: {max(1, provenance.fit(gpu[1], largest))}")
    return 0
