"""Tables as CSV, LaTeX and Markdown files that each say where they come from."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


NOTHING = "\N{EM DASH}"


@dataclass(frozen=True)
class Provenance:
    """Where a table or figure comes from. No date: the commit dates it, and files must not differ between reruns."""

    data: str
    backbone: str
    seeds: tuple[int, ...]
    commit: str  # with "+dirty" appended when the working tree had changes
    profile: str
    generated: bool  # made from generated data
    hardware: str

    def line(self) -> str:
        """One line for a caption, e.g. "Data: ...; backbone: ...; seeds: 1111, 2222; ..."."""
        data = f"{self.data} (generated)" if self.generated else self.data
        seeds = ", ".join(map(str, self.seeds)) or "none"
        return (
            f"Data: {data}; backbone: {self.backbone}; seeds: {seeds}; profile: {self.profile}; "
            f"commit: {self.commit}; hardware: {self.hardware}."
        )

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
        _write_atomically(paths[-1], text)
    return paths
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


def _write_atomically(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
