"""What came out, in one screen: the rows that matter of Tables 3 and 4, and how many of the paper's claims hold.

The report begins with it, the README shows it, and `cmpta reproduce` ends with it. All of it is read from exported files.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cmpta_lib.metrics import METRICS
from cmpta_lib.report import claims
from cmpta_lib.report.export import NOTHING, recorded
from cmpta_lib.report.judge import INSIDE_CLIPS, INSIDE_SEEDS, NOT_SUPPORTED, NOT_TESTABLE, SUPPORTED
from cmpta_lib.report.rows import PAPER_NAMES
from cmpta_lib.report.tables import NOT_RUN
from cmpta_lib.study.plan import CMPTA, NOTEBOOKS, TEXT_ONLY, added

TABLES = {"table3": "sims", "table4": "meld"}
BEYOND = dict.fromkeys(row.name for key in (*PAPER_NAMES, "data") for row in added(key))  # what `make reproduce` does not run
_PAPER, _HERE, _BOUND, _BEST = " paper", " this run", " Bayes-optimal", "best possible"
_LOWER = {metric.label: metric.lower_is_better for metric in METRICS.values()}
CLAIMS = next(one.section for one in NOTEBOOKS if "claims" in one.tables)
_NUMBER = re.compile(r"-?[\d,]*\.?\d+")


@dataclass(frozen=True, eq=False)
class Scores:
    """Table 3 or 4 as it was exported, by method, without the rows that only `--all` runs; `beyond` are those that it ran."""

    key: str
    corpus: str
    table: pd.DataFrame
    metrics: tuple[str, ...]
    beyond: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path, name: str) -> Scores:
        """Raises ValueError where the file is no table of scores; names it."""
        try:
            table = pd.read_csv(folder / f"{name}.csv", dtype=str, keep_default_na=False)
            table = table.set_index(table["method"].str.partition(" [")[0].rename(None))
            metrics = tuple(column.removesuffix(_HERE) for column in table.columns if column.endswith(_HERE))
            ran = [method for method in table.index if _NUMBER.match(table.loc[method, metrics[0] + _HERE])]
        except (ValueError, LookupError) as error:
            raise ValueError(f"{folder / name}.csv is no table of scores ({type(error).__name__}); restore it") from error
        corpus = recorded(folder)[name]["data"].partition(" (")[0]
        ours = table[[method not in BEYOND for method in table.index]]
        return cls(TABLES[name], corpus, ours, metrics, tuple(method for method in ran if method in BEYOND))

    def here(self, metric: str) -> pd.Series:
        """This run's scores as text, without the number of seeds."""
        return self.table[metric + _HERE].str.partition(" (n=")[0]

    def ranked(self, metric: str) -> list[str]:
        """The methods that were run, the best first, by this run's mean; equal ones in the table's order."""
        found = {name: _NUMBER.match(text) for name, text in self.here(metric).items()}
        means = {name: float(one[0].replace(",", "")) for name, one in found.items() if one}
        return sorted(means, key=means.__getitem__, reverse=not _LOWER[metric])

    def bound(self, metric: str) -> str:
        """The best possible score on these clips, and from whole dialogues where that is more; a dash for real data."""
        known = [text for name, text in self.table.iloc[0].items() if str(name).startswith(metric + _BOUND)]
        return NOTHING if not known else "; ".join([known[0], *(f"in context {text}" for text in known[1:])])

    def beside(self, metric: str, methods: Sequence[str], heads: Sequence[str]) -> pd.DataFrame:
        """The paper's and this run's scores of these methods, ours with the best in bold and the second underlined.

        CMPTA is in bold, and the best possible stands last.
        """
        marks = dict(zip((name for name in self.ranked(metric) if name in methods), ("**%s**", "<ins>%s</ins>"), strict=False))
        ours, printed = self.here(metric), self.table[metric + _PAPER]
        cells = [[printed.get(one, NOTHING), marks.get(one, "%s") % ours.get(one, NOTHING)] for one in methods]
        names = [f"**{one}**" if one == CMPTA.name else one for one in methods]
        return pd.DataFrame([*cells, [NOTHING, self.bound(metric)]], [*names, f"*{_BEST}*"], list(heads))

    def best_printed(self) -> list[str]:
        """Of the methods that the paper compares only here, the one that is best: by this run, or where none ran by the paper."""
        metric = self.metrics[0]
        named = self.table[self.table[metric + _PAPER] != NOTHING].drop(index=CMPTA.name, errors="ignore")
        by_paper = sorted(named.index, key=lambda name: float(named.loc[name, metric + _PAPER]), reverse=not _LOWER[metric])
        return [name for name in [*self.ranked(metric), *by_paper] if name in named.index][:1]


def read(folder: Path) -> list[Scores]:
    """Those of Tables 3 and 4 that a folder of exports has; of one's own clips, which both show, once."""
    there = [Scores.read(folder, name) for name in TABLES if (folder / f"{name}.csv").exists() and name in recorded(folder)]
    return list({one.corpus: one for one in reversed(there)}.values())[::-1]


def rows_that_matter(tables: Sequence[Scores]) -> list[str]:
    """What all tables have, and of what the paper prints in one of them alone the best of each; CMPTA last."""
    shared = [name for name in tables[0].table.index if all(name in one.table.index for one in tables)]
    best = [name for one in tables for name in one.best_printed()]
    return [*dict.fromkeys(name for name in [*best, *shared] if name != CMPTA.name), CMPTA.name]


def headline(folder: Path) -> pd.DataFrame:
    """Tables 3 and 4 side by side in the rows that matter, by their first metric.

    Raises:
        ValueError: a file is no table of scores; names it.
    """
    tables = [Scores.read(folder, name) for name in TABLES]
    methods, heads = rows_that_matter(tables), ("{} {}, paper", "{2}, this run")
    said = [[head.format(PAPER_NAMES[one.key], one.metrics[0], one.corpus) for head in heads] for one in tables]
    return pd.concat([one.beside(one.metrics[0], methods, head) for one, head in zip(tables, said, strict=True)], axis=1)


def short(one: Scores) -> pd.DataFrame:
    """Table 3 or 4 in the rows that `make reproduce` runs."""
    methods = sorted(one.table.index, key=lambda name: name == CMPTA.name)
    heads = {metric: (f"{metric}, paper", f"{metric}, here") for metric in one.metrics}
    frame = pd.concat([one.beside(metric, methods, head) for metric, head in heads.items()], axis=1)
    return frame.loc[:, (frame != NOTHING).any()]


def anchor(heading: str) -> str:
    """What GitHub calls the place of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def grid(frame: pd.DataFrame, gap: str = " ") -> str:
    """A frame of Markdown as a table, its index the first column."""
    lines = [["", *map(str, frame.columns)], ["---"] * (1 + frame.shape[1]), *frame.reset_index().astype(str).to_numpy().tolist()]
    return "\n".join(f"|{gap}{f'{gap}|{gap}'.join(line)}{gap}|" for line in lines)


def front(folder: Path, link: Callable[[str], str]) -> Iterator[str]:
    """The report's first screen, in Markdown: how the claims fare, Tables 3 and 4 in short, one figure.

    Args:
        link: export -> the words that lead to its notebook.
    """
    if len(frame := counts(folder)):
        found = frame.set_index("claims")
        here, theirs = found[claims.HERE], found[claims.VERDICT]
        noise = int(here.reindex([INSIDE_SEEDS, INSIDE_CLIPS]).sum())
        yield (
            f"Of {theirs.sum()} claims of the paper, {here.get(SUPPORTED, 0)} hold in this run, {here.get(NOT_SUPPORTED, 0)} do "
            f"not, and {noise} differences are within noise; the others cannot be tried here. About the paper itself, which "
            f"needs its corpora and its LLM, this run can tell of {theirs.drop([NOT_TESTABLE, NOT_RUN], errors='ignore').sum()}. "
            f"({link('claims')}; claim by claim [below](#{anchor(CLAIMS)}).)"
        )
        shown = found.T.rename(index={claims.HERE: "same rule on this data", claims.VERDICT: "on the paper"}).iloc[::-1]
        yield grid(shown.rename(columns=claims.signed))
    for one in read(folder):
        name = next(name for name, key in TABLES.items() if key == one.key)
        yield f"**Table {name[-1]} in short**, {one.corpus}, test split; best in bold, second underlined ({link(name)})."
        yield grid(short(one))


def counts(folder: Path) -> pd.DataFrame:
    """How many claims have which verdict, of an exported claims table; without rows where there is none."""
    path = folder / "claims.csv"
    return claims.counted(pd.read_csv(path, keep_default_na=False)) if path.exists() else pd.DataFrame()


def lines(folder: Path) -> Iterator[str]:
    """For a terminal of 80 columns: CMPTA, words alone, the best other method and the best possible, and how claims fare."""
    found: dict[str, Mapping[str, str]] = {}
    for one in read(folder):
        metric, scores = one.metrics[0], one.here(one.metrics[0])
        others = [name for name in one.ranked(metric) if name not in (CMPTA.name, TEXT_ONLY.name)]
        found[f"{one.corpus} {metric}"] = {
            CMPTA.name: scores.get(CMPTA.name, NOTHING), TEXT_ONLY.name: scores.get(TEXT_ONLY.name, NOTHING),
            "best other": f"{scores[others[0]]} {others[0]}" if others else NOTHING, _BEST: one.bound(metric),
        }  # fmt: skip
    if found:
        first = max(map(len, next(iter(found.values()))))
        widths = [max(map(len, [head, *cells.values()])) for head, cells in found.items()]
        table = [["", *found], *([name, *(cells[name] for cells in found.values())] for name in next(iter(found.values())))]
        for line in table:
            yield "  ".join(cell.ljust(width) for cell, width in zip(line, [first, *widths], strict=True)).rstrip()
    if len(frame := counts(folder)):
        for about, column in (("same rule on this data", claims.HERE), ("on the paper", claims.VERDICT)):
            said = (f"{count} {name}" for name, count in zip(frame["claims"], frame[column], strict=True) if count)
            yield textwrap.fill(f"claims, {about}: {', '.join(said)}", 80, subsequent_indent="  ")
