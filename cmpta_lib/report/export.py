"""Tables as CSV, LaTeX and Markdown files that each say where they come from, and one record of what made them all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from cmpta_lib import files
from cmpta_lib.report.latex import to_latex
from cmpta_lib.report.layout import NOTHING as NOTHING
from cmpta_lib.report.layout import Table
from cmpta_lib.report.markup import to_markdown

if TYPE_CHECKING:
    import pandas as pd

PROVENANCE = "provenance.json"
FULL = "_full"  # ends the name of the LaTeX file that holds what a short table leaves out


@dataclass(frozen=True)
class Provenance:
    """Where a table or figure comes from. No date: the commit dates it, and files must not differ between reruns."""

    data: str
    backbone: str
    seeds: tuple[int, ...]
    commits: tuple[str, ...]  # with "+dirty" appended when the working tree had changes
    profile: str
    generated: bool  # made from generated data
    hardware: tuple[str, ...]
    fingerprints: Mapping[str, str] = field(default_factory=dict)  # of each corpus and of the backbone, in full
    runs: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()

    def line(self) -> str:
        """One line for a caption, e.g. "Data: ...; backbone: ...; seeds: 1111, 2222; ...".

        Commit and machine are not in it: equal numbers make equal files, whoever made them. `record` keeps them.
        """
        data = f"{self.data} (generated)" if self.generated else self.data
        seeds = ", ".join(map(str, self.seeds)) or "none"
        return f"Data: {data}; backbone: {self.backbone}; seeds: {seeds}; profile: {self.profile}."

    def warning(self) -> str:
        """What a reader must know of generated data or the embedded LLM; empty where both are real."""
        if self.generated:
            return "Generated data: this shows that the code works, it says nothing about the paper's claims."
        if self.backbone.startswith("tiny"):
            return "A tiny language model stands in for the paper's: no claim of the paper is tested here."
        return ""


def export_table(
    table: pd.DataFrame | Table, folder: str | Path, name: str, *, caption: str, provenance: Provenance
) -> list[Path]:
    """Write `name`.csv, `name`.md and `name`.tex into `folder` (made if missing); return their paths.

    The CSV is the complete frame and has no comment lines, so every reader takes it as it is; two last columns,
    `generated` and `provenance`, repeat on each row so that a row copied out of it still says what it is. Markdown and
    LaTeX show the short form with caption, warning and provenance as text; what is folded away is in the Markdown's
    fold and in `name`_full.tex. Each file is replaced whole, never seen half written.

    Raises:
        ValueError: a table without columns.
    """
    folder, table = Path(folder), table if isinstance(table, Table) else Table.of(table)
    if not table.short.shape[1]:
        raise ValueError(f"table '{name}' has no columns, so there is nothing to write to {folder}; give it a row first")
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    warning, source = provenance.warning(), provenance.line()
    stated = table.full.assign(generated=provenance.generated, provenance=source)
    texts = {
        f"{name}.csv": stated.to_csv(index=False, lineterminator="\n"),
        f"{name}.md": to_markdown(table, caption, warning, source),
        f"{name}.tex": to_latex(table, name, caption, warning, source),
    }
    if folded := table.folded():
        texts[f"{name}{FULL}.tex"] = to_latex(folded, f"{name}{FULL}", f"{caption} Details.", warning, source)
    for file, text in texts.items():
        files.write_text(folder / file, text)
    return [folder / file for file in texts]


def record(folder: Path, name: str, provenance: Provenance) -> None:
    """Write down in the folder's `provenance.json` what made the export `name`; notebooks may do so side by side.

    Raises:
        ValueError: the file is there and no record; names it.
    """
    path = folder / PROVENANCE
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{PROVENANCE}.lock"):
            items = recorded(folder) | {name: asdict(provenance)}
            text = json.dumps(dict(sorted(items.items())), ensure_ascii=False, indent=1)
            files.write_text(path, text + "\n")


def recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """Export -> what made it, as far as the folder's record tells; raises ValueError for a file that is no record."""
    path = folder / PROVENANCE
    try:
        items = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        items = None
    if not isinstance(items, dict) or not all(isinstance(item, dict) for item in items.values()):
        raise ValueError(f"{path} is no record of exports; remove it and export again")
    return items
