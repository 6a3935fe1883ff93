"""Publishing: exports that are complete and of one kind go under figures/published, and the README shows them.

Everything else under figures/ is anybody's experiment and not in git.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from cmpta_lib import files
from cmpta_lib.files import PUBLISHED, ROOT, figures_folder
from cmpta_lib.report.export import PROVENANCE, recorded
from cmpta_lib.study.plan import sections
from cmpta_lib.study.profiles import PROFILES

BEGIN, END = "<!-- results: begin -->\n", "<!-- results: end -->"
_SUFFIXES = (".csv", ".md", ".tex", ".pdf", ".png")
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
    exports = [path for path in sorted(source.iterdir()) if path.suffix in _SUFFIXES or path.name == PROVENANCE]
    _split(root / "README.md")  # before anything is copied
    draft = target.with_name(f".{target.name}.partial")
    with files.writing(target):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for path in exports:
            shutil.copyfile(path, draft / path.name)
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
    before, after = _split(root / "README.md")
    shown = "\n\n".join(_results(root, name) for name in PROFILES if (root / "figures" / PUBLISHED / name).is_dir())
    files.write_text(root / "README.md", f"{before}{BEGIN}{shown}\n{END}{after}")


def _split(readme: Path) -> tuple[str, str]:
    """What stands before and after the results."""
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{readme}: expected one line {BEGIN.strip()} and after it one line {END.strip()}")
    return text.partition(BEGIN)[0], text.partition(END)[2]


def _results(root: Path, profile: str) -> str:
    """What the README shows of a profile: Tables 3 and 4, the ablations folded away, figures, attention on cues."""
    folder = root / "figures" / PUBLISHED / profile
    where = folder.relative_to(root).as_posix()

    def table(name: str) -> str:
        path = folder / f"{name}.md"
        return path.read_text(encoding="utf-8").strip() if path.exists() else ""

    def figures(pattern: str) -> list[str]:
        return [f"![Figure {path.name[3]}]({where}/{path.name})" for path in sorted(folder.glob(pattern))]

    command = "make reproduce" if profile == "demo" else f"make reproduce PROFILE={profile}"
    return "\n\n".join(
        filter(
            None,
            [
                f"All of it was made by `{command}`; the full report is [`{where}/report.md`]({where}/report.md).",
                *map(table, ("table3", "table4")),
                "<details><summary>Ablations, Tables 5 and 6</summary>",
                *map(table, ("table5", "table6")),
                "</details>",
                "| Figure 1: the framework | Figure 2: the adapter |\n|---|---|\n"
                f"| {' | '.join(figures('fig[12]_*.png'))} |",
                *figures("fig[345]_*.png"),
                table("attention_on_cues"),
            ],
        )
    )
