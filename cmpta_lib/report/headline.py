"""What came out, in one screen: the rows that matter of Tables 3 and 4, and how many of the paper's claims hold.

The report begins with it, the README shows it, and `cmpta reproduce` ends with it. All of it is read from exported files.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from cmpta_lib.metrics import METRICS
from cmpta_lib.report import claims, judge
from cmpta_lib.report.export import NOTHING, recorded
from cmpta_lib.report.rows import PAPER_NAMES
from cmpta_lib.report.tables import NOT_RUN
from cmpta_lib.study.plan import CMPTA, NOTEBOOKS, TEXT_ONLY, added

TABLES = {"table3": "sims", "table4": "meld"}
BEYOND = [row.name for key in (*PAPER_NAMES, "data") for row in added(key)]  # what `make reproduce` does not run
CLAIMS = next(one.section for one in NOTEBOOKS if "claims" in one.tables)
BEST, _HERE = "*best possible*", " this run"
_LOWER = {metric.label: metric.lower_is_better for metric in METRICS.values()}


def scores(folder: Path, name: str) -> dict[str, pd.DataFrame]:
    """Table 3 or 4 as exported: metric -> by method "paper", "here", "place" (1: the best; NaN: not run), "bound".

    Raises:
        ValueError: the file is no table of scores; names it.
    """
    try:
        table, found = pd.read_csv(folder / f"{name}.csv", dtype=str, keep_default_na=False), dict[str, pd.DataFrame]()
        table = table.set_index(table["method"].str.partition(" [")[0].rename(None))
        for metric in [column.removesuffix(_HERE) for column in table if column.endswith(_HERE)] or table[_HERE]:
            here, bounds = table[metric + _HERE].str.partition(" (n=")[0], table.filter(like=f"{metric} Bayes-optimal")
            means = pd.to_numeric(here.str.partition(" ")[0].str.replace(",", ""), errors="coerce")
            bound = bounds.agg("; in context ".join, axis=1) if bounds.shape[1] else NOTHING
            place = means.rank(ascending=_LOWER[metric], method="first")
            found[metric] = pd.DataFrame({"paper": table[f"{metric} paper"], "here": here, "place": place, "bound": bound})
    except (ValueError, LookupError) as error:
        raise ValueError(f"{folder / name}.csv is no table of scores ({type(error).__name__}); restore it") from error
    return found


def read(folder: Path) -> dict[str, tuple[str, dict[str, pd.DataFrame]]]:
    """Corpus -> name and scores of its table, as far as Tables 3 and 4 are there; of one's own clips both show the same."""
    known = recorded(folder)
    there = [name for name in TABLES if name in known and (folder / f"{name}.csv").exists()]
    return {known[name]["data"].partition(" (")[0]: (name, scores(folder, name)) for name in there}


def best_printed(table: Mapping[str, pd.DataFrame]) -> str:
    """Of the methods that the paper compares in one table, the one that is best here; "" for none."""
    first = next(iter(table.values())).sort_values("place")
    return next((name for name in first.index[first["paper"] != NOTHING] if name != CMPTA.name), "")


def beside(columns: Mapping[tuple[str, str], pd.DataFrame], methods: Sequence[str]) -> pd.DataFrame:
    """Scores of some methods under heads "paper" and "here": the best in bold, the second underlined, the best possible last."""
    found: dict[str, list[str]] = {}
    for (paper, here), table in columns.items():
        shown = table.reindex(list(methods))
        marks = dict(zip(shown["place"].dropna().sort_values().index, ("**%s**", "<ins>%s</ins>"), strict=False))
        found[paper] = [*shown["paper"].fillna(NOTHING), NOTHING]
        ours = (marks.get(name, "%s") % text for name, text in shown["here"].fillna(NOTHING).items())
        found[here] = [*ours, table["bound"].iloc[0]]
    return pd.DataFrame(found, index=[*(f"**{name}**" if name == CMPTA.name else name for name in methods), BEST])


def headline(folder: Path) -> pd.DataFrame:
    """Tables 3 and 4 side by side, by their first metric: what both have, and of what the paper prints in one the best here.

    Raises:
        ValueError: a file is no table of scores; names it.
    """
    tables = {(name, key): scores(folder, name) for name, key in TABLES.items()}
    one, other = ([*next(iter(table.values())).index] for table in tables.values())
    shared = [name for name in one if name in other and name not in (*BEYOND, CMPTA.name)]
    columns = {}
    for (name, key), table in tables.items():
        corpus, metric = recorded(folder)[name]["data"].partition(" (")[0], next(iter(table))
        columns[f"{PAPER_NAMES[key]} {metric}, paper", f"{corpus} {metric}, here"] = table[metric]
    best = [name for table in tables.values() if (name := best_printed(table))]
    return beside(columns, list(dict.fromkeys([*best, *shared, CMPTA.name])))


def grid(frame: pd.DataFrame, gap: str = " ") -> str:
    """A frame of Markdown as a table, its index the first column."""
    lines = [["", *map(str, frame.columns)], ["---"] * (1 + frame.shape[1]), *frame.reset_index().astype(str).to_numpy().tolist()]
    return "\n".join(f"|{gap}{f'{gap}|{gap}'.join(line)}{gap}|" for line in lines)


def anchor(heading: str) -> str:
    """What GitHub calls the place of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def counts(folder: Path) -> pd.DataFrame:
    """By verdict, how many claims have it on the paper and by the same rule here, of an exported claims table; else empty."""
    path = folder / "claims.csv"
    return claims.counted(pd.read_csv(path, keep_default_na=False)).set_index("claims") if path.exists() else pd.DataFrame()


def front(folder: Path, link: Callable[[str], str]) -> Iterator[str]:
    """The report's first screen, in Markdown: how the claims fare, and Tables 3 and 4 in the rows that `make reproduce` runs.

    Args:
        link: export -> the words that lead to its notebook.
    """
    if len(found := counts(folder)):
        here, theirs = found[claims.HERE], found[claims.VERDICT]
        noise = here.reindex([judge.INSIDE_SEEDS, judge.INSIDE_CLIPS]).sum()
        told = theirs.sum() - theirs.reindex([judge.NOT_TESTABLE, NOT_RUN]).sum()
        yield (
            f"Of {theirs.sum()} claims of the paper, {here.get(judge.SUPPORTED, 0)} hold in this run, "
            f"{here.get(judge.NOT_SUPPORTED, 0)} do not, and {noise:.0f} differences are within noise; the others cannot be "
            f"tried here. About the paper itself, which needs its corpora and its LLM, this run can tell of {told:.0f}. "
            f"({link('claims')}; claim by claim [below](#{anchor(CLAIMS)}).)"
        )
        yield grid(found[[claims.HERE, claims.VERDICT]].T.rename(columns=claims.signed))
    for corpus, (name, table) in read(folder).items():
        heads = {(f"{metric}, paper", f"{metric}, here"): one for metric, one in table.items()}
        shown = beside(heads, [method for method in next(iter(table.values())).index if method not in BEYOND])
        yield f"**Table {name[-1]} in short**, {corpus}, test split; best in bold, second underlined ({link(name)})."
        yield grid(shown.loc[:, (shown != NOTHING).any()])


def lines(folder: Path) -> Iterator[str]:
    """For a terminal of 80 columns: CMPTA, words alone, the best other method and the best possible, and how claims fare."""
    found = pd.DataFrame(index=[CMPTA.name, TEXT_ONLY.name, "best other", BEST.strip("*")])
    for corpus, (_, table) in read(folder).items():
        metric, first = next(iter(table.items()))
        others = first.drop(index=[CMPTA.name, TEXT_ONLY.name, *BEYOND], errors="ignore").sort_values("place").dropna()
        best = f"{others['here'].iloc[0]} {others.index[0]}" if len(others) else NOTHING
        known = first["here"].reindex([CMPTA.name, TEXT_ONLY.name], fill_value=NOTHING)
        found[f"{corpus} {metric}"] = [*known, best, first["bound"].iloc[0]]
    if found.shape[1]:
        yield from map(str.rstrip, found.to_string(justify="left").splitlines())
    for about, verdicts in counts(folder).items():
        said = ", ".join(f"{count} {name}" for name, count in verdicts.items() if count)
        yield textwrap.fill(f"claims, {about}: {said}", 80, subsequent_indent="  ")
