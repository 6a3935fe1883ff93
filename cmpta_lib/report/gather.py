"""The report: what the notebooks have exported, in one file; what is missing is named, not left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cmpta_lib import files, paper
from cmpta_lib.report import addresses
from cmpta_lib.report.export import PROVENANCE, recorded
from cmpta_lib.report.rows import changed, provenance
from cmpta_lib.study.plan import NOTEBOOKS, sections
from cmpta_lib.study.study import Study


def made_by(folder: Path) -> str:
    """Every commit, machine and package version that the exports of a folder come from, in one paragraph."""
    items = recorded(folder).values()
    commits, machines, packages = (
        sorted({one for item in items for one in item.get(name, ())}) for name in ("commits", "hardware", "packages")
    )
    return (
        f"Made at commit {' and '.join(commits)} on {' and '.join(machines)} with {', '.join(packages)}; "
        f"which runs made which item is in [{PROVENANCE}]({PROVENANCE})."
    )


def _shown(folder: Path, patterns: Sequence[str]) -> dict[str, list[str]]:
    """Pattern -> what the report shows of the files that fit it."""
    return {
        pattern: [
            path.read_text(encoding="utf-8").strip() if path.suffix == ".md" else f"![{path.stem}]({path.name})"
            for path in sorted(folder.glob(pattern))
        ]
        for pattern in patterns
    }


def strangers(study: Study, folder: Path) -> list[str]:
    """Exports of a folder that were made of other runs than this study's: by an earlier version of the code, say."""
    own = {run.folder.name for _, run in study.planned_runs([notebook.name for notebook in NOTEBOOKS])}
    return [name for name, item in recorded(folder).items() if not set(item.get("runs", ())) <= own]


def write_report(study: Study, keys: Sequence[str], beyond: bool = False) -> Path:
    """Gather what the notebooks have exported into report.md beside it.

    Args:
        keys: the corpora that are here; the report says on its face if one of them is generated.
        beyond: whether what goes beyond the paper was asked for too.
    """
    folder = study.figures
    title = study.corpus("data").name if study.data else f"profile {study.profile}"
    parts = [f"# CMPTA, paper | this run: {title}{changed(study)}{', SMOKE RUN' if study.smoke else ''}"]
    if warning := provenance(study, keys).warning():
        parts.append(f"**{warning}**")
    if mixed := strangers(study, folder):
        parts.append(
            f"**Not all of one piece:** {', '.join(mixed)} in this folder were made of other runs than the rest (other code or "
            f"settings), and their numbers are not to be compared with the others'. A complete `cmpta reproduce` mends that."
        )
    parts += [made_by(folder)] if recorded(folder) else []
    if not study.data:
        parts += [paper.CONTEXT, "Slips of the paper, as far as they touch its tables and figures:"]
        parts.append("\n".join(f"- {slip}" for slip in paper.ERRATA))
    for beyond in (False, True):
        for heading, patterns in sections(study.keys, bool(study.data), beyond):
            shown = _shown(folder, patterns)
            if beyond and not any(shown.values()):
                continue  # nobody asked for it
            parts.append(f"## {heading}")
            parts += [part for pattern, found in shown.items() for part in found or [f"({pattern}: not made.)"]]
    parts += ["## Where each table and figure comes from", addresses.as_markdown(study, beyond)]
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    return folder / "report.md"
