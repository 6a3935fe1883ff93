"""The report: what the notebooks have exported, in one file; what is missing is named, not left out.

It ends with where each table and figure comes from: notebook, command, runs, and whether it is there. Exports that are
complete and of one kind are published: they go under figures/published, and the README shows them. Everything else under
figures/ is anybody's experiment and not in git.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from cmpta_lib import files, paper
from cmpta_lib.files import PUBLISHED, ROOT, figures_folder
from cmpta_lib.report.export import NOTHING, PROVENANCE, recorded
from cmpta_lib.report.rows import PAPER_NAMES, changed, provenance
from cmpta_lib.report.tables import NOT_RUN
from cmpta_lib.runs.store import Run, sound
from cmpta_lib.study.exports import PAGES
from cmpta_lib.study.plan import CMPTA, NOTEBOOKS, Notebook, added, sections
from cmpta_lib.study.profiles import PROFILES
from cmpta_lib.study.study import Study

_NAMES = {"table": "Table", "fig": "Figure"}


def title(name: str) -> str:
    """What a reader calls an export: "Table 3" for table3, "Figure 5" for fig5_case_study, else its name in words."""
    found = re.match(r"(table|fig)(\d)(?:_(parameters))?", name)
    if found:
        return f"{_NAMES[found[1]]} {found[2]}{', continued' if found[3] else ''}"
    return name.replace("_", " ")


def exported(folder: Path, notebook: Notebook, keys: tuple[str, ...]) -> Iterator[str]:
    """Stems of what a notebook has left in a folder of exports; a pattern that nothing fits stands for itself."""
    for pattern, suffix in [(name, "md") for name in notebook.tables] + [(name, "png") for name in notebook.figures]:
        for one in dict.fromkeys(pattern.replace("{key}", key) for key in keys):
            yield from sorted(path.stem for path in folder.glob(f"{one}.{suffix}")) or [one]


def addresses(study: Study, beyond: bool = False) -> pd.DataFrame:
    """One line for every table and figure of the paper's notebooks, and of those beyond it where `beyond`.

    Columns: item, file, notebook, command, runs (how many stand behind it; `provenance.json` names them), minutes (of
    training, added up over its runs), status.
    """
    folder, lines = study.figures, []
    known, runs = recorded(folder), {run.folder.name: run for _, run in study.planned_runs([one.name for one in NOTEBOOKS])}
    for notebook in (one for one in NOTEBOOKS if beyond or not one.is_beyond):
        keys = study.keys if study.data else tuple(key for key in notebook.corpora if key in study.keys)
        lacking = sum(not run.done for run in study.needed(notebook.name))
        for name in exported(folder, notebook, keys):
            behind = known[name]["runs"] if name in known else ()
            line = {"item": title(name), "file": name, "notebook": notebook.name}
            line |= {"command": f"cmpta reproduce --only {notebook.name}", "runs": str(len(behind) or NOTHING)}
            line["minutes"] = _minutes([runs[one] for one in behind if one in runs])
            problems = {"unfinished runs of its notebook": lacking if behind else 0}
            problems["runs that are not this study's"] = len(set(behind) - runs.keys())
            said = ["made", *(f"{problem}: {count}" for problem, count in problems.items() if count)]
            lines.append(line | {"status": "; ".join(said) if name in known else "not made"})
    return pd.DataFrame(lines)


def _minutes(runs: Sequence[Run]) -> str:
    return f"{sum(run.environment['train_seconds'] for run in sound(runs)) / 60:.1f}" if runs else NOTHING


def as_markdown(study: Study, beyond: bool = False) -> str:
    """`addresses` for report.md, each notebook a link to its page where that is there."""
    table = addresses(study, beyond)
    for name in dict.fromkeys(table["notebook"]):
        page = Path(PAGES) / f"{name}.html"
        if (study.figures / page).exists():
            table["notebook"] = table["notebook"].replace(name, f"[{name}]({page})")
    for code in ("file", "command"):
        table[code] = "`" + table[code] + "`"
    lines = [table.columns, ["---"] * table.shape[1], *table.itertuples(index=False, name=None)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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


def _shown(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.suffix == ".md" else f"![{path.stem}]({path.name})"


def made_otherwise(study: Study, folder: Path) -> list[str]:
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
    if mixed := made_otherwise(study, folder):
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
            found = {pattern: sorted(folder.glob(pattern)) for pattern in patterns}
            if beyond and not any(found.values()):
                continue  # nobody asked for it
            parts.append(f"## {heading}")
            parts += [part for name, paths in found.items() for part in [*map(_shown, paths)] or [f"({name}: not made.)"]]
    parts += ["## Where each table and figure comes from", as_markdown(study, beyond)]
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    return folder / "report.md"


RESULTS = "results"  # what the README's marks around them are called
_SUFFIXES = (".csv", ".md", ".tex", ".pdf", ".png", ".txt", ".html")
_SAME_SEEDS = ("table3", "table4", "table5", "table6")


def publish(profile: str, root: Path = ROOT) -> str:
    """Copy a profile's exports to figures/published and rewrite the README's results; says what was done.

    Args:
        root: the checkout whose published figures and README these become.
    Raises:
        ValueError: an unknown profile, or exports that are incomplete, of a smoke run or of several settings.
    """
    if profile not in PROFILES:
        raise ValueError(f"no profile '{profile}'; there are: {', '.join(PROFILES)}")
    source, target = figures_folder() / profile, root / "figures" / PUBLISHED / profile
    if problems := unfit(source):
        again = f"run `make reproduce PROFILE={profile}` to the end first"
        raise ValueError(f"{source} is not published, {again}: {'; '.join(problems)}")
    files.split(root / "README.md", RESULTS)  # before anything is copied
    exports = [path for path in source.rglob("*") if path.suffix in _SUFFIXES or path.name == PROVENANCE]
    draft = target.with_name(f".{target.name}.partial")
    with files.writing(target):
        shutil.rmtree(draft, ignore_errors=True)
        for path in exports:
            (place := draft / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        shutil.rmtree(target, ignore_errors=True)  # what is no longer exported must not stay
        draft.rename(target)
    rewrite_readme(root)
    return f"{len(exports)} files of {source} are now in {target}, and README.md shows them; commit both"


def unfit(folder: Path) -> list[str]:
    """Why a folder of exports cannot stand for a profile's results; empty where it can."""
    items = recorded(folder)
    wanted = [pattern for _, patterns in sections(("sims", "meld"), False) for pattern in patterns] + ["report.md", PROVENANCE]
    if not any(item["generated"] for item in items.values()):
        wanted.remove("attention_on_cues.md")  # nobody knows where the cues of real clips are
    if missing := [pattern for pattern in wanted if not any(folder.glob(pattern))]:
        return [f"not there: {', '.join(missing)}"]
    made = {path.stem for path in folder.iterdir() if path.suffix in _SUFFIXES and path.name != "report.md"}
    problems = [f"{name} is not in {PROVENANCE}" for name in sorted(made - set(items))]
    if smoke := [name for name, item in items.items() if "SMOKE RUN" in item["data"]]:
        problems.append(f"of a smoke run: {', '.join(smoke)}")
    for what, names in (("seeds", _SAME_SEEDS), ("profile", tuple(items))):
        values = {str(items[name][what]) for name in names if name in items}
        if len(values) > 1:
            problems.append(f"made with different {what}: {' and '.join(sorted(values))}")
    return problems


def rewrite_readme(root: Path = ROOT) -> None:
    """Write the results between the README's marks anew, from the published files.

    Raises:
        ValueError: the marks are not there once each.
    """
    shown = "\n\n".join(_results(root, name) for name in PROFILES if (root / "figures" / PUBLISHED / name).is_dir())
    files.put(root / "README.md", RESULTS, shown)


def _results(root: Path, profile: str) -> str:
    """What the README shows of a profile: one table of the headline scores, and where all the rest is."""
    folder = root / "figures" / PUBLISHED / profile
    where = folder.relative_to(root).as_posix()
    command = "make reproduce" if profile == "demo" else f"make reproduce PROFILE={profile}"
    said = recorded(folder)["table3"]
    seeds = ", ".join(map(str, said["seeds"]))
    warning = "**Generated clips and a tiny LLM: nothing here speaks for or against the paper.** " if said["generated"] else ""
    table = headline(folder)
    measured = {line.split("|")[1] for line in table.splitlines() if NOT_RUN not in line}
    beyond = dict.fromkeys(row.name for key in PAPER_NAMES for row in added(key))
    further = [name for name in beyond if name in measured]
    apart = f" ({', '.join(further)}: by `{command} ARGS=--all`)" if further else ""
    return (
        f"{warning}Test split, mean ± sd over seeds {seeds}, by `{command}`{apart}; everything else is in "
        f"[the report]({where}/report.md).\n\n{table}"
    )


def headline(folder: Path) -> str:
    """Tables 3 and 4 side by side, paper and this run, as Markdown; a method that one of them lacks has dashes there."""
    parts, heads, groups = [], [""], []
    for name, key in (("table3", "sims"), ("table4", "meld")):
        table = pd.read_csv(folder / f"{name}.csv", dtype=str, keep_default_na=False)
        metric = table.columns[table.columns.str.endswith(" this run")][0].removesuffix(" this run")
        corpus = recorded(folder)[name]["data"].partition(" (")[0]
        heads += [f"{PAPER_NAMES[key]} {metric}, paper", f"{corpus}, this run"]
        scores = table[[f"{metric} paper", f"{metric} this run"]].set_axis(heads[-2:], axis=1)
        parts.append(scores.set_axis(table["method"].str.partition(" [")[0], axis=0))
        parts[-1][heads[-1]] = parts[-1][heads[-1]].str.partition(" (n=")[0]
        groups.append(pd.Series(list(table["group"]), index=parts[-1].index))
    order = pd.concat(groups)
    methods = [method for group in dict.fromkeys(order) for method in dict.fromkeys(order.index[order == group])]
    methods = [*dict.fromkeys(method for method in methods if method != CMPTA.name), CMPTA.name]
    cells = pd.concat([part.reindex(methods, fill_value=NOTHING) for part in parts], axis=1)
    lines = [heads, ["-"] * len(heads), *cells.reset_index().itertuples(index=False, name=None)]
    return "\n".join(f"|{'|'.join(line)}|" for line in lines)
