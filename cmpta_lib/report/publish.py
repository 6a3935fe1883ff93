"""Publishing: exports that are complete and of one kind go under figures/published, and the README shows them.

Everything else under figures/ is anybody's experiment and not in git.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from cmpta_lib import files
from cmpta_lib.files import PUBLISHED, ROOT, figures_folder
from cmpta_lib.report.export import NOTHING, PROVENANCE, recorded
from cmpta_lib.report.layout import NOT_RUN
from cmpta_lib.report.rows import PAPER_NAMES
from cmpta_lib.study.plan import CMPTA, added, sections
from cmpta_lib.study.profiles import PROFILES

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
    exports = {path for path in source.rglob("*") if path.suffix in _SUFFIXES or path.name == PROVENANCE}

    def others(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if not (path := Path(folder, name)).is_dir() and path not in exports]

    draft = target.with_name(f".{target.name}.partial")
    with files.writing(target):
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(source, draft, ignore=others, copy_function=shutil.copyfile)
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
    import pandas as pd

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
