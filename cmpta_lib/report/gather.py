"""The report: what the notebooks have exported, in one file; what is missing is named, not left out.

It ends with where each table and figure comes from. Exports that are complete and of one kind are published: they go under
figures/published, and the README shows them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from textwrap import shorten

import pandas as pd

from cmpta_lib import files, paper
from cmpta_lib.files import PUBLISHED, ROOT, figures_folder
from cmpta_lib.report import pages
from cmpta_lib.report.export import PROVENANCE, record_files, recorded, recorded_hashes
from cmpta_lib.report.rows import PAPER_NAMES, changed, provenance, shown_reason
from cmpta_lib.report.tables import NOTHING, escaped
from cmpta_lib.runs.provenance import other_versions
from cmpta_lib.runs.store import Run, sound
from cmpta_lib.study import check
from cmpta_lib.study.exports import PAGES
from cmpta_lib.study.plan import CMPTA, NOTEBOOKS, Notebook
from cmpta_lib.study.profiles import PROFILES
from cmpta_lib.study.study import Study


def _patterns(notebook: Notebook) -> list[str]:
    """Names of what a notebook exports, with "{key}" in those of one corpus."""
    return [*(f"{name}.md" for name in notebook.tables), *(f"{name}.png" for name in notebook.figures)]


def exported(folder: Path, notebook: Notebook, keys: Sequence[str]) -> Iterator[str]:
    """Stems of what a notebook has left in a folder of exports; a pattern that nothing fits stands for itself."""
    own = [key for key in keys if key in (*notebook.corpora, "data")]  # "data": of one's own, for every notebook
    for pattern in _patterns(notebook):
        for one in dict.fromkeys(pattern.replace("{key}", key) for key in own):
            yield from sorted(path.stem for path in folder.glob(one)) or [one.rpartition(".")[0]]


def _own_runs(study: Study) -> dict[str, Run]:
    """The study's runs by name, but for those of what is damaged."""
    check.opened(study, models=False)
    return {run.folder.name: run for _, run in study.planned_runs([notebook.name for notebook in NOTEBOOKS])}


def addresses(study: Study, beyond: bool = False) -> pd.DataFrame:
    """One line for every table and figure of the paper's notebooks, and of those beyond it that are there, or all of `beyond`.

    Columns: item, file, notebook, command, runs (how many stand behind it; `provenance.json` names them), minutes (of
    training, added up over its runs), status.
    """
    known, runs, lines = recorded(study.figures), _own_runs(study), []
    for notebook in NOTEBOOKS:
        needed = [*study.needed(notebook.name), *(study.choice_runs() if notebook.has_choices else ())]
        unfinished, asked = sum(not run.done for run in needed), {run.folder.name for run in needed}
        for name in exported(study.figures, notebook, study.every_key):
            if notebook.is_beyond and not beyond and name not in known:
                continue  # nobody asked for it
            behind = known[name]["runs"] if name in known else ()
            own = [runs[one] for one in behind if one in runs]
            problems = {"unfinished runs of its notebook": unfinished if behind else 0}
            problems["runs that are not this study's"] = 0 if study.without else len(behind) - len(own)
            said = ["made", *(f"{problem}: {count}" for problem, count in problems.items() if count)]
            is_enough = {run.folder.name for run in own} <= asked  # else rows beyond the paper are in it
            minutes = sum(run.environment["train_seconds"] for run in sound(own)) / 60
            lines.append({
                "item": pages.title(name), "file": name, "notebook": notebook.name,
                "command": f"cmpta reproduce {f'--only {notebook.name}' if is_enough else '--all'}",
                "runs": str(len(behind) or NOTHING),
                "minutes": f"{minutes:.1f}" if own else NOTHING, "status": "; ".join(said) if name in known else "not made",
            })  # fmt: skip
    return pd.DataFrame(lines)


def made_otherwise(study: Study, folder: Path) -> list[str]:
    """Exports of a folder that were made of other runs than this study's: by an earlier version of the code, say.

    None where something of the study is damaged: nobody knows then which runs would be its own.
    """
    own = _own_runs(study).keys()
    return [] if study.without else [name for name, item in recorded(folder).items() if not set(item.get("runs", ())) <= own]


def write_report(study: Study, keys: Sequence[str], beyond: bool = False, failures: Mapping[str, str] | None = None) -> Path:
    """Gather what the notebooks have exported into report.md beside it; what is not there says why, where that is known.

    Args:
        keys: the corpora that are here; the report says on its face if one of them is generated.
        beyond: whether what goes beyond the paper was asked for too.
        failures: notebook -> why it failed.
    """
    folder, name = study.figures, study.corpus("data").name if study.data else f"profile {study.profile}"
    parts = [f"# CMPTA, paper | this run: {escaped(name + changed(study))}{', SMOKE RUN' if study.smoke else ''}"]
    if warning := provenance(study, keys).warning():
        parts.append(f"**{warning}**")
    mixed, by = made_otherwise(study, folder), _made_by(folder, study.every_key)
    lost = map(escaped, map(shown_reason, dict.fromkeys(study.without.values())))
    parts += [f"**Left out, and all that needs it:** {why}." for why in lost]
    if mixed:
        parts.append(
            f"**Not all of one piece:** {', '.join(mixed)} in this folder were made of other runs than the rest (other code or "
            f"settings), and their numbers are not to be compared with the others'. A complete `cmpta reproduce` mends that."
        )
    drawn = [path for path in folder.glob(_ABOVE[0]) if path.stem in by]  # others are of clips that somebody chose
    first = [*pages.front(folder, lambda export: _link(folder, by[export])), *_pictures(drawn, by)]
    said, reasons = f"**{warning}**", _reasons(study, failures or {})
    body, last = _sections(study, beyond, reasons, by, said), _end(study, beyond, said)
    headings = [part.removeprefix("## ") for part in [*body, *last] if part.startswith("## ")]
    parts.append(" · ".join(f"[{heading}](#{pages.anchor(heading)})" for heading in headings))
    parts += ["## Does the paper hold here?"] * bool(first) + first + body + last
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    record_files(folder, folder / "report.md")
    return folder / "report.md"


# Headings begin with what answers; what the data are and what training did come after it.
_FIRST = ("10_claims", "04_table3_simsv2", "06_table5_ablation_simsv2", "08_attention_figs3_4", "09_case_study_fig5", "11_errors")
_ABOVE, _LAST = ("fig3_*.png", "claims_summary.md"), "findings.md"  # what the report begins and ends with
_LONG, _MANY, _PX_PER_INCH = 900, 11, 130  # characters and rows that are not folded; 6.9 inches nearly fill GitHub's page


def _sections(study: Study, beyond: bool, reasons: Mapping[str, str], by: Mapping[str, str], warning: str) -> list[str]:
    """The report's sections but the last: tables as they were exported, those that are long folded, and figures."""
    folder, order = study.figures, {one.section: -_FIRST[::-1].index(one.name) for one in NOTEBOOKS if one.name in _FIRST}
    parts: list[str] = []
    for is_beyond in (False, True):
        every: dict[str, list[str]] = {}
        for one in (one for one in NOTEBOOKS if one.is_beyond == is_beyond):
            keys = [key for key in study.every_key if study.data or key in one.corpora] or ["*"]
            every.setdefault(one.section, []).extend(name.replace("{key}", key) for name in _patterns(one) for key in keys)
        for heading, patterns in sorted(every.items(), key=lambda one: order.get(one[0], 1)):
            found = {pattern: sorted(folder.glob(pattern)) for pattern in patterns}
            if is_beyond and not any(found.values()):
                continue  # nobody asked for it
            there = [path for paths in found.values() for path in paths if not any(map(path.match, (*_ABOVE, _LAST)))]
            parts.append(f"## {heading}")
            parts += [_table(path, _link(folder, by[path.stem]), warning) for path in there if path.suffix == ".md"]
            parts += _pictures([path for path in there if path.suffix == ".png"], by)
            absent: dict[str, list[str]] = {}
            for name in (name for name, paths in found.items() if not paths):
                absent.setdefault(reasons.get(name, ""), []).append(name)
            parts += [f"({', '.join(names)}: not made{reason}.)" for reason, names in absent.items()]
    return parts


def _end(study: Study, beyond: bool, warning: str) -> list[str]:
    """What the paper's numbers are worth, what the files hold, and where each item comes from."""
    folder, items, table = study.figures, recorded(study.figures), addresses(study, beyond)
    parts = ["## The paper's numbers", paper.CONTEXT, "Slips, as far as they touch tables and figures:"] * (not study.data)
    parts += ["\n".join(f"- {slip}" for slip in paper.ERRATA)] * (not study.data)
    if (checks := folder / _LAST).exists():
        parts += ["## Data checks", _table(checks, _link(folder, "01_data"), warning)]
    parts.append("## Where each table and figure comes from")
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
    table["notebook"] = [_link(folder, name) for name in table["notebook"]]
    for code in ("file", "command"):
        table[code] = "`" + table[code] + "`"
    return [*parts, *_folded(f"{len(table)} tables and figures", pages.grid(table.set_index("item")))]


def _link(folder: Path, name: str, words: str = "", where: str = "") -> str:
    """A notebook's name, or other words for it, as a link to what is there of it: executed, which GitHub shows, or a page."""
    there = (f"{PAGES}/{name}.{suffix}" for suffix in ("ipynb", "html"))
    return next((f"[{words or name}]({where}{path})" for path in there if (folder / path).exists()), words or name)


def _folded(what: str, *parts: str) -> list[str]:
    return [f"<details><summary>{what}</summary>", *parts, "</details>"]


def _table(path: Path, link: str, warning: str) -> str:
    """An exported table without the warning that the report begins with, a long one folded, and the way to its notebook."""
    caption, *parts = [part for part in path.read_text(encoding="utf-8").strip().split("\n\n") if part != warning]
    rows = next((part for part in parts if part.startswith("| ")), "")
    parts = [f"<sub>{part}</sub>" if part.startswith("Data: ") else part for part in parts]
    count = rows.count("\n") - 1
    said = _folded(f"{count} rows", *parts) if len(rows) > _LONG or count > _MANY else parts
    return "\n\n".join([f"{caption} <sub>({link})</sub>", *said])


def _pictures(paths: Sequence[Path], by: Mapping[str, str]) -> list[str]:
    """Figures, those that are narrow side by side, and the way to their notebooks."""
    names = ", ".join(dict.fromkeys(pages.title(path.stem) for path in paths))
    links = " and ".join(dict.fromkeys(_link(path.parent, by[path.stem]) for path in paths))
    return ["\n".join(map(_picture, paths)), f"<sub>{names}, by {links}</sub>"] if paths else []


def _picture(path: Path) -> str:
    """A figure as HTML in a width that makes the letters of all alike."""
    from cmpta_lib.figures.style import PRINT_DPI  # not above: lists of runs need no matplotlib

    with path.open("rb") as file:
        width = int.from_bytes(file.read(20)[16:]) / PRINT_DPI * _PX_PER_INCH
    return f'<img src="{path.name}" width="{width:.0f}" alt="{escape(pages.alt_text(path.parent, path.stem))}">'


def _reasons(study: Study, failures: Mapping[str, str]) -> dict[str, str]:
    """Pattern of an export's name -> why it may not be there: CMPTA cannot run on its corpus, or its notebook failed."""
    reasons: dict[str, str] = {}
    for notebook in NOTEBOOKS:
        for key in study.every_key if study.data else notebook.corpora:
            if why := study.missing(CMPTA, key) or failures.get(notebook.name, "").partition(". The executed copy")[0]:
                names = (pattern.replace("{key}", key) for pattern in _patterns(notebook))
                reasons |= dict.fromkeys(names, f": {escaped(shown_reason(why))}")
    return reasons


RESULTS = "results"  # what the README's marks around them are called
RUNS = "runs"  # trained runs that are published with their exports
_DRAWN, _WHERE = (".pdf", ".png", ".html", ".ipynb", "report.md"), ("commits", "hardware", "packages")


def publish(profile: str, made: Path, root: Path = ROOT) -> str:
    """Put a profile's exports into figures/published and the README, both or neither; says what was done.

    Args:
        made: the same exports, made anew of the profile's runs: these are published.
        root: the checkout whose published figures and README these become.
    Raises:
        ValueError: the profile's exports are others, or the README cannot show them; names the files.
        OSError: something cannot be written; README and published figures are then what they were.
    """
    _need_none(profile, differing(figures_folder() / profile, made))
    target, page = root / "figures" / PUBLISHED / profile, root / "README.md"
    draft, before = (target.with_name(f".{profile}.{what}") for what in ("partial", "before"))
    with files.writing(target):
        for left in (draft, before):  # of a call that was killed: git has what was published
            shutil.rmtree(left, ignore_errors=True)
        try:
            text = readme(root, **{profile: made})
            shutil.copytree(made, draft, ignore=lambda _, names: [name for name in names if name[0] == "."])
            if (runs := target / RUNS).is_dir() and not (draft / RUNS).exists():
                shutil.copytree(runs, draft / RUNS)
            if target.exists():  # as a whole: what is no longer exported must not stay
                target.rename(before)
            draft.rename(target)
            files.write_text(page, text)
        except BaseException:
            if before.exists():
                shutil.rmtree(target, ignore_errors=True)
                before.rename(target)
            raise
        finally:
            for left in (draft, before):
                shutil.rmtree(left, ignore_errors=True)
    count = sum(path.is_file() for path in target.rglob("*"))
    return f"{count} files, made anew of their runs, are now in {target}, and README.md shows them; commit both"


def check_exports(profile: str, root: Path = ROOT) -> None:
    """Raise ValueError, naming the files, unless the profile's exports are as they were exported, and the README has room."""
    folder = figures_folder() / profile
    _need_none(profile, _altered(folder, recorded_hashes(folder)))
    files.split(root / "README.md", RESULTS)


def _altered(folder: Path, hashes: Mapping[str, str]) -> list[str]:
    """What lies in a folder of exports otherwise than with these hashes; one that is "" fits whatever is there."""
    there = {path.relative_to(folder).as_posix(): path for path in [folder, *folder.rglob("*")] if path.name[0] != "."}
    plain = [name for name, path in there.items() if not path.is_symlink() and (path.is_file() or path.is_dir())]
    said = [f"a link, or no file: {name}" for name in there if name not in plain and folder.exists()]
    found = {name for name, path in there.items() if path.is_file()} - {PROVENANCE}
    said += [f"not there: {name}" for name in sorted(hashes.keys() - found)] or ["no export is there"] * (not hashes)
    said += [f"not among the exports: {name}" for name in sorted(found - hashes.keys())]
    same = (name for name in sorted(found & hashes.keys()) if hashes[name])
    return said or [f"changed: {name}" for name in same if files.sha256(folder / name) != hashes[name]]


def differing(folder: Path, made: Path) -> list[str]:
    """What of a folder of exports is not as those made anew; pictures, pages and by whom all was made may be others."""
    hashes = {name: "" if name.endswith(_DRAWN) else one for name, one in recorded_hashes(made).items()}
    items, anew = ({name: item | dict.fromkeys(_WHERE) for name, item in recorded(one).items()} for one in (folder, made))
    said = [f"{PROVENANCE}, {name}" for name in sorted({**items, **anew}) if items.get(name) != anew.get(name)]
    return [f"not what the runs say: {one}" for one in [*_altered(folder, hashes), *said]]


def _need_none(profile: str, problems: Sequence[str]) -> None:
    if problems:
        said = f"{figures_folder() / profile} is not published, run `make reproduce PROFILE={profile}` to the end first: "
        raise ValueError(shorten(said + "; ".join(problems), 300, placeholder=" ..."))


def readme(root: Path = ROOT, **drafts: Path) -> str:
    """The README with the published results between its marks, and in place of some profiles' those of `drafts`.

    Raises:
        ValueError: the marks are not there once each, or a published file cannot be read; names it.
    """
    folders = {name: root / "figures" / PUBLISHED / name for name in PROFILES} | drafts
    shown = [_results(name, folder) for name, folder in folders.items() if folder.is_dir()]
    return files.with_text(root / "README.md", RESULTS, "\n\n".join(shown))


def _results(profile: str, folder: Path) -> str:
    """What the README shows of a profile: one table of the rows that matter, and where all the rest is."""
    where, said = f"figures/{PUBLISHED}/{profile}", recorded(folder)["table3"]
    command = "make reproduce" if profile == "demo" else f"make reproduce PROFILE={profile}"
    warning = "**Generated clips and a tiny LLM: nothing here speaks for or against the paper.** " if said["generated"] else ""
    tables = [pages.scores(folder, name) for name in pages.TABLES]
    best = " and ".join(dict.fromkeys(filter(None, map(pages.best_printed, tables))))
    ran = {name for table in tables for name in next(iter(table.values()))["place"].dropna().index}
    beyond = ", ".join(name for name in dict.fromkeys(pages.BEYOND) if name in ran)
    lines = pages.grid(pages.headline(folder), gap="")
    apart = f"; systems beyond the paper ({beyond}) by `{command} ARGS=--all`" if beyond else ""
    made = [(name, by) for name, by in _made_by(folder, list(PAPER_NAMES)).items() if name in pages.TABLES]
    links = (_link(folder, by, pages.title(name), f"{where}/") for name, by in made)
    return (
        f"{warning}Test split, mean ± sd over seeds {', '.join(map(str, said['seeds']))}, by `{command}`; bold: the best, "
        f"underlined: the second. Of the paper's other methods {best} did best here; all are in "
        f"{' and '.join(links)}{apart}. Everything is in [the report]({where}/report.md).\n\n{lines}"
    )


def _made_by(folder: Path, keys: Sequence[str]) -> dict[str, str]:
    """Export -> the notebook that makes it."""
    return {name: one.name for one in NOTEBOOKS for name in exported(folder, one, keys)}
