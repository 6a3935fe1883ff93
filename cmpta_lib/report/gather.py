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
from cmpta_lib.report.tables import NOT_RUN, escaped
from cmpta_lib.runs.provenance import other_versions
from cmpta_lib.runs.store import Run, sound
from cmpta_lib.study.exports import PAGES
from cmpta_lib.study.plan import CMPTA, NOTEBOOKS, Notebook, added, sections
from cmpta_lib.study.profiles import PROFILES
from cmpta_lib.study.study import Study


def title(name: str) -> str:
    """What a reader calls an export: "Table 3" for table3, "Figure 5" for fig5_case_study, else its name in words."""
    if found := re.match(r"(table|fig)(\d)(_parameters)?", name):
        return f"{'Table' if found[1] == 'table' else 'Figure'} {found[2]}{', continued' if found[3] else ''}"
    return name.replace("_", " ")


def exported(folder: Path, notebook: Notebook, keys: Sequence[str]) -> Iterator[str]:
    """Stems of what a notebook has left in a folder of exports; a pattern that nothing fits stands for itself."""
    for pattern in (*(f"{name}.md" for name in notebook.tables), *(f"{name}.png" for name in notebook.figures)):
        for one in dict.fromkeys(pattern.replace("{key}", key) for key in keys):
            yield from sorted(path.stem for path in folder.glob(one)) or [one.rpartition(".")[0]]


def _own_runs(study: Study) -> dict[str, Run]:
    return {run.folder.name: run for _, run in study.planned_runs([notebook.name for notebook in NOTEBOOKS])}


def addresses(study: Study, beyond: bool = False) -> pd.DataFrame:
    """One line for every table and figure of the paper's notebooks, and of those beyond it that are there, or all of `beyond`.

    Columns: item, file, notebook, command, runs (how many stand behind it; `provenance.json` names them), minutes (of
    training, added up over its runs), status.
    """
    known, runs, lines = recorded(study.figures), _own_runs(study), []
    for notebook in NOTEBOOKS:
        keys = study.keys if study.data else [key for key in notebook.corpora if key in study.keys]
        unfinished = sum(not run.done for run in study.needed(notebook.name))
        for name in exported(study.figures, notebook, keys):
            if notebook.is_beyond and not beyond and name not in known:
                continue  # nobody asked for it
            behind = known[name]["runs"] if name in known else ()
            own = [runs[one] for one in behind if one in runs]
            problems = {"unfinished runs of its notebook": unfinished if behind else 0}
            problems["runs that are not this study's"] = len(behind) - len(own)
            said = ["made", *(f"{problem}: {count}" for problem, count in problems.items() if count)]
            minutes = sum(run.environment["train_seconds"] for run in sound(own)) / 60
            lines.append({
                "item": title(name), "file": name, "notebook": notebook.name,
                "command": f"cmpta reproduce --only {notebook.name}", "runs": str(len(behind) or NOTHING),
                "minutes": f"{minutes:.1f}" if own else NOTHING, "status": "; ".join(said) if name in known else "not made",
            })  # fmt: skip
    return pd.DataFrame(lines)


def _as_markdown(study: Study, beyond: bool) -> str:
    """`addresses` for report.md, each notebook a link to its page where that is there."""
    table = addresses(study, beyond)
    pages = {name: f"{PAGES}/{name}.html" for name in table["notebook"] if (study.figures / PAGES / f"{name}.html").exists()}
    table["notebook"] = [f"[{name}]({pages[name]})" if name in pages else name for name in table["notebook"]]
    for code in ("file", "command"):
        table[code] = "`" + table[code] + "`"
    return _grid([*table.columns], ["---"] * table.shape[1], *table.itertuples(index=False, name=None))


def _grid(*lines: Sequence[str], gap: str = " ") -> str:
    return "\n".join(f"|{gap}{f'{gap}|{gap}'.join(line)}{gap}|" for line in lines)


def made_otherwise(study: Study, folder: Path) -> list[str]:
    """Exports of a folder that were made of other runs than this study's: by an earlier version of the code, say."""
    own = _own_runs(study).keys()
    return [name for name, item in recorded(folder).items() if not set(item.get("runs", ())) <= own]


def write_report(study: Study, keys: Sequence[str], beyond: bool = False) -> Path:
    """Gather what the notebooks have exported into report.md beside it.

    Args:
        keys: the corpora that are here; the report says on its face if one of them is generated.
        beyond: whether what goes beyond the paper was asked for too.
    """
    folder, items = study.figures, recorded(study.figures)
    name = study.corpus("data").name if study.data else f"profile {study.profile}"
    parts = [f"# CMPTA, paper | this run: {escaped(name + changed(study))}{', SMOKE RUN' if study.smoke else ''}"]
    if warning := provenance(study, keys).warning():
        parts.append(f"**{warning}**")
    if mixed := made_otherwise(study, folder):
        parts.append(
            f"**Not all of one piece:** {', '.join(mixed)} in this folder were made of other runs than the rest (other code or "
            f"settings), and their numbers are not to be compared with the others'. A complete `cmpta reproduce` mends that."
        )
    if items:
        commits, machines, packages = (
            sorted({one for item in items.values() for one in item.get(what, ())}) for what in ("commits", "hardware", "packages")
        )
        parts.append(
            f"Made at commit {' and '.join(commits)} on {' and '.join(machines)} with {', '.join(packages)}; "
            f"which runs made which item is in [{PROVENANCE}]({PROVENANCE})."
        )
        if other := other_versions(packages):
            parts.append(f"**Other versions than the published numbers' (constraints.txt):** {other}; numbers differ a little.")
    if not study.data:
        parts += [paper.CONTEXT, "Slips of the paper, as far as they touch its tables and figures:"]
        parts.append("\n".join(f"- {slip}" for slip in paper.ERRATA))
    for is_beyond in (False, True):
        for heading, patterns in sections(study.keys, bool(study.data), is_beyond):
            found = {pattern: sorted(folder.glob(pattern)) for pattern in patterns}
            if is_beyond and not any(found.values()):
                continue  # nobody asked for it
            parts.append(f"## {heading}")
            parts += [part for name, paths in found.items() for part in [*map(_shown, paths)] or [f"({name}: not made.)"]]
    parts += ["## Where each table and figure comes from", _as_markdown(study, beyond)]
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    return folder / "report.md"


def _shown(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.suffix == ".md" else f"![{path.stem}]({path.name})"


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
    draft = target.with_name(f".{target.name}.partial")
    with files.writing(target):
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(source, draft, ignore=_unpublished, copy_function=shutil.copyfile)
        shutil.rmtree(target, ignore_errors=True)  # what is no longer exported must not stay
        draft.rename(target)
    rewrite_readme(root)
    count = sum(path.is_file() for path in target.rglob("*"))
    return f"{count} files of {source} are now in {target}, and README.md shows them; commit both"


def _unpublished(folder: str, names: list[str]) -> list[str]:
    paths = [Path(folder, name) for name in names]
    return [path.name for path in paths if path.is_file() and path.suffix not in _SUFFIXES and path.name != PROVENANCE]


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
    problems += [f"of a smoke run: {name}" for name, item in items.items() if "SMOKE RUN" in item["data"]]
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
    where, said = folder.relative_to(root).as_posix(), recorded(folder)["table3"]
    command = "make reproduce" if profile == "demo" else f"make reproduce PROFILE={profile}"
    warning = "**Generated clips and a tiny LLM: nothing here speaks for or against the paper.** " if said["generated"] else ""
    table = headline(folder)
    beyond = dict.fromkeys(row.name for key in PAPER_NAMES for row in added(key))
    measured = [name for name in beyond if name in table.index and NOT_RUN not in [*table.loc[name]]]
    apart = f" ({', '.join(measured)}: by `{command} ARGS=--all`)" if measured else ""
    lines = _grid(["", *table.columns], ["-"] * (1 + table.shape[1]), *table.reset_index().itertuples(index=False), gap="")
    return (
        f"{warning}Test split, mean ± sd over seeds {', '.join(map(str, said['seeds']))}, by `{command}`{apart}; everything "
        f"else is in [the report]({where}/report.md).\n\n{lines}"
    )


def headline(folder: Path) -> pd.DataFrame:
    """Tables 3 and 4 side by side by method, paper and this run, CMPTA last; dashes for a method that one of them lacks."""
    parts, groups = [], []
    for name, key in (("table3", "sims"), ("table4", "meld")):
        table = pd.read_csv(folder / f"{name}.csv", dtype=str, keep_default_na=False)
        table = table.set_index(table["method"].str.partition(" [")[0])
        metric = table.columns[table.columns.str.endswith(" this run")][0].removesuffix(" this run")
        corpus = recorded(folder)[name]["data"].partition(" (")[0]
        printed, ours = table[f"{metric} paper"], table[f"{metric} this run"].str.partition(" (n=")[0]
        parts += [printed.rename(f"{PAPER_NAMES[key]} {metric}, paper"), ours.rename(f"{corpus}, this run")]
        groups.append(table["group"])
    order = pd.concat(groups)
    order = order.iloc[pd.factorize(order)[0].argsort(kind="stable")]  # methods of one group stand together
    methods = dict.fromkeys([*(name for name in order.index if name != CMPTA.name), CMPTA.name])
    return pd.concat([part.reindex(list(methods), fill_value=NOTHING) for part in parts], axis=1)
