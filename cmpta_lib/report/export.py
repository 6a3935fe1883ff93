"""Tables as CSV, LaTeX and Markdown files that each say where they come from, and one record of what made them all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from cmpta_lib import files

if TYPE_CHECKING:
    import pandas as pd


NOTHING = "\N{EM DASH}"
PROVENANCE = "provenance.json"


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
    frame: pd.DataFrame, folder: str | Path, name: str, *, caption: str, provenance: Provenance
) -> list[Path]:
    """Write `name`.csv, `name`.tex and `name`.md into `folder` (made if missing); return their paths.

    The CSV has no comment lines, so every reader takes it as it is; two last columns, `generated` and `provenance`,
    repeat on each row so that a row copied out of it still says what it is. LaTeX (booktabs, adjustbox) and Markdown
    carry caption, warning and provenance as text. Each file is replaced whole, never seen half written.
    """
    folder = Path(folder)
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "csv": frame.assign(generated=provenance.generated, provenance=provenance.line()).to_csv(
            index=False, lineterminator="\n"
        ),
        "tex": _to_latex(frame, name, " ".join(filter(None, [caption, provenance.warning(), provenance.line()]))),
        "md": _to_markdown(frame, caption, provenance),
    }
    paths = []
    for suffix, text in texts.items():
        paths.append(folder / f"{name}.{suffix}")
        files.write_text(paths[-1], text)
    return paths


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


_LATEX_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at the start of a row it would be the optional argument of the line break before it
    "±": r"$\pm$",
    "\N{MINUS SIGN}": "$-$",
    NOTHING: "---",
}


def _latex(value: object) -> str:
    escaped = "".join(_LATEX_SPECIAL.get(character, character) for character in str(value))
    return re.sub(r"(?<![\w.)-])([+-])(?=\d)", r"$\1$", escaped)  # a sign, not a hyphen: -0.095 but SIMS-2


def _to_latex(frame: pd.DataFrame, name: str, caption: str) -> str:
    escaped = frame.map(_latex).set_axis(frame.columns.map(_latex), axis=1)
    columns = "l" * escaped.shape[1]
    table = escaped.style.hide(axis="index").to_latex(
        hrules=True, caption=_latex(caption), label=f"tab:{name}", position_float="centering", column_format=columns
    )
    table = table.replace(r"\begin{tabular}", "\\begin{adjustbox}{max width=\\linewidth}\n\\begin{tabular}")
    table = table.replace(r"\end{tabular}", "\\end{tabular}\n\\end{adjustbox}")
    return "% needs \\usepackage{booktabs,adjustbox}, and a CJK font (e.g. xeCJK) where cells hold Chinese\n" + table


def _markdown(value: object) -> str:
    return re.sub(r"([\\|*_<`~])", r"\\\1", str(value)).replace("\n", "<br>")


def _to_markdown(frame: pd.DataFrame, caption: str, provenance: Provenance) -> str:
    # Not DataFrame.to_markdown: tabulate pads by display width, which depends on whether wcwidth is installed.
    body = [frame.columns, ["---"] * frame.shape[1], *frame.itertuples(index=False, name=None)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in ([*map(_markdown, line)] for line in body))
    warning = f"**{text}**" if (text := provenance.warning()) else ""
    return "\n\n".join(filter(None, [_markdown(caption), warning, table, _markdown(provenance.line())])) + "\n"
