"""What a study's runs will have shown by when: hours by notebook, and in which order the paper's claims can be judged.

From the plan and what each run takes, measured or projected (`estimate.Costs`). Imports no torch and asks for no corpus.
"""

from __future__ import annotations

import heapq
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cmpta_lib import paper
from cmpta_lib.runs.progress import duration, table
from cmpta_lib.study import claimed, naming, plan
from cmpta_lib.study.plan import Notebook, Planned

Costs = Callable[[Sequence[Planned]], Sequence[float | None]]  # seconds; 0 where finished, None where unknown
NOTHING = "-"


@dataclass(frozen=True)
class Asked:
    """What a forecast is of.

    `corpora`: the paper's key of a corpus -> the study's. `absent`: whether a run waits for something that is not here.
    `jobs`: runs at a time. `cues`: whether it is known where the clips' cues are, as only of generated ones.
    """

    notebooks: Sequence[Notebook]
    keys: Sequence[str]
    corpora: Mapping[str, str]
    seeds: Sequence[int]
    own: bool = False
    absent: Callable[[Planned], bool] = lambda one: False
    jobs: int = 1
    cues: bool = False

    def runs(self, notebooks: Sequence[Notebook] | None = None) -> list[Planned]:
        """What these notebooks (or all) need and what can be made, in the order in which it is made."""
        found = plan.planned(self.notebooks if notebooks is None else notebooks, self.keys, self.own, self.seeds)
        return [one for one in found if not self.absent(one)]


@dataclass(frozen=True)
class Moment:
    """When the last of some runs is finished: how many are then, and seconds by the clock, at least."""

    runs: int
    seconds: float


@dataclass(frozen=True)
class NotebookLine:
    """A notebook's runs: how many it needs, how many come new with it, seconds for these and for all it needs; when it is whole.

    `unknown`: runs of its own that nobody timed; they count as nothing in the seconds.
    """

    name: str
    needs: int
    new: int
    unknown: int
    seconds: float
    alone: float
    first: Moment | None
    every: Moment | None


@dataclass(frozen=True)
class ClaimLine:
    """A claim of the paper, the rows that it needs, and when the first seed and all seeds of them are there.

    `first` is None where no run is needed, where one waits for something (`waits` names its row), or where `never` says why
    no run can decide it.
    """

    claim: paper.Claim
    needed: Sequence[claimed.Needed]
    first: Moment | None
    every: Moment | None
    waits: str = ""
    never: str = ""


class Forecast:
    """A study's runs on a time line, made in the plan's order, so many at a time."""

    def __init__(self, asked: Asked, costs: Costs) -> None:
        self.asked, self.costs = asked, costs
        self.runs = asked.runs()
        self.taken = list(costs(self.runs))
        self.moments = dict(zip(map(repr, self.runs), moments(self.taken, asked.jobs), strict=True))

    @property
    def unknown(self) -> list[Planned]:
        """The runs that nobody timed."""
        return [one for one, seconds in zip(self.runs, self.taken, strict=True) if seconds is None]

    def when(self, runs: Sequence[Planned]) -> Moment | None:
        """When the last of these is finished; None for none."""
        found = [self.moments[repr(one)] for one in runs]
        return Moment(max(one.runs for one in found), max(one.seconds for one in found)) if found else None

    def notebooks(self) -> list[NotebookLine]:
        """In their order, each with what it adds to those before it."""
        known: list[Planned] = []
        lines, before = [], 0.0
        for notebook in self.asked.notebooks:
            needs = self.asked.runs([notebook])
            new = [one for one in needs if one not in known]
            known += new
            taken = self.costs(known)
            after = sum(filter(None, taken))
            alone = self.costs(needs)
            first = [one for one in needs if one.seed == self.asked.seeds[0]]
            lines.append(
                NotebookLine(
                    notebook.name, len(needs), len(new), alone.count(None), after - before, sum(filter(None, alone)),
                    self.when(first), self.when(needs),
                )
            )  # fmt: skip
            before = after
        return lines

    def claims(self) -> list[ClaimLine]:
        """The paper's claims in words, those first that can be judged first; those that no run of this study decides last."""
        lines = []
        for claim in paper.CLAIMS:
            if not set(claim.corpora) <= self.asked.corpora.keys():
                continue
            needed, never = claimed.needed(claim, self.asked.corpora), claimed.NO_ROW.get(claim.id, "")
            if claimed.name_of(claim) == "attention" and not self.asked.cues:
                never = "nobody knows where the cues of real clips are"
            first = [self._made(one, self.asked.seeds[:1]) for one in needed]
            gone = [one.row.name for one, found in zip(needed, first, strict=True) if found is None]
            if never or not needed or gone:
                lines.append(ClaimLine(claim, needed, None, None, ", ".join(dict.fromkeys(gone)), never))
                continue
            every = [self._made(one, self.asked.seeds[: 1 if one.first_seed_only else None]) for one in needed]
            lines.append(ClaimLine(claim, needed, _last(first), _last(every)))
        return sorted(lines, key=_order)

    def _made(self, needed: claimed.Needed, seeds: Sequence[int]) -> Moment | None:
        """When a row's runs with these seeds are there; None where the plan has not all of them."""
        seeds = seeds if needed.row.is_seeded else seeds[:1]
        wanted = [Planned(needed.key, needed.row, seed) for seed in seeds]
        return self.when(wanted) if all(repr(one) in self.moments for one in wanted) else None


def _last(moments: Sequence[Moment | None]) -> Moment:
    found = [one for one in moments if one is not None]
    return Moment(max(one.runs for one in found), max(one.seconds for one in found))


def _order(line: ClaimLine) -> tuple[float, ...]:
    if line.first is not None and line.every is not None:
        return 1, line.first.seconds, line.first.runs, line.every.seconds, line.every.runs
    return (3 if line.never else 2 if line.waits else 0,)


def moments(taken: Sequence[float | None], jobs: int) -> Iterator[Moment]:
    """When each run ends, handed out in order to whoever is free first; unknown ones count as nothing, finished ones at once."""
    free = [0.0] * jobs
    made = 0
    for seconds in taken:
        if seconds == 0:
            yield Moment(made, 0.0)
            continue
        made += 1
        end = heapq.heappop(free) + (seconds or 0.0)
        heapq.heappush(free, end)
        yield Moment(made, end)


# --- as text ----------------------------------------------------------------------------------------------------------


def screen(forecast: Forecast, width: int = 0) -> str:
    """Both tables as they fit a terminal (or so many columns), and what their numbers are."""
    width = width or min(130, shutil.get_terminal_size().columns)
    parts = [*_notebooks(forecast), "", *_said(forecast, width), "", *_claims(forecast, width)]
    return "\n".join(parts)


def _notebooks(forecast: Forecast) -> list[str]:
    timed = len(forecast.unknown) < len(forecast.runs)
    rows, hours, gaps = [], [], []
    for line in forecast.notebooks():
        rest = [NOTHING, NOTHING] if line.first is None else [_when(forecast, line.first), _when(forecast, line.every)]
        hours = [duration(line.seconds), duration(line.alone)] if timed else []
        gaps = [str(line.unknown or NOTHING)] if timed and forecast.unknown else []
        rows.append([line.name, str(line.needs), str(line.new), *gaps, *hours, *rest])
    told = [*(["not timed"] if gaps else []), *(["time", "alone"] if hours else [])]
    head = ["notebook", "runs", "new", *told, "first seed", "all seeds"]
    return table(head, rows, range(1, len(head)))


def _said(forecast: Forecast, width: int) -> Iterator[str]:
    jobs, unknown, total = forecast.asked.jobs, len(forecast.unknown), len(forecast.runs)
    said = "new: runs that no notebook above needs."
    if unknown < total:
        at_a_time = "one run at a time" if jobs == 1 else f"{jobs} runs at a time"
        said += (
            " time: these runs one after another; alone: all that the notebook needs, were nothing else made. first seed, all"
            f" seeds: when `cmpta reproduce` has them all, by the clock, with {at_a_time}."
        )
        if unknown:
            said += f" {unknown} of {total} runs were not timed and count as nothing: \N{GREATER-THAN OR EQUAL TO}."
    else:
        said += " first seed, all seeds: after how many runs `cmpta reproduce` has them all."
    if forecast.asked.cues:
        said += " Claims are judged by the same rules on generated clips, which says nothing about the paper."
    yield from textwrap.wrap(said, width)


def _claims(forecast: Forecast, width: int) -> Iterator[str]:
    """Claims that need the same runs stand together."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for line in forecast.claims():
        if line.first is not None and line.every is not None:
            when, rows = (_when(forecast, line.first), _when(forecast, line.every)), _rows(line.needed)
        elif line.never:
            when, rows = (NOTHING, NOTHING), "no run can decide them"
        elif line.waits:
            when, rows = (NOTHING, NOTHING), f"not among these runs: {line.waits}"
        else:
            when, rows = ("at once", "at once"), "no run"
        groups.setdefault((*when, rows), []).append(line.claim.id)
    heads = ("one seed", "all seeds")
    widths = [max(len(head), *(len(key[place]) for key in groups)) for place, head in enumerate(heads)]
    yield f"{heads[0]:>{widths[0]}}  {heads[1]:>{widths[1]}}  claims of the paper that can be judged then: rows needed"
    blank = " " * (sum(widths) + 4)
    for (first, every, rows), claims in groups.items():
        head = f"{first:>{widths[0]}}  {every:>{widths[1]}}  "
        yield from textwrap.wrap(", ".join(claims), width, initial_indent=head, subsequent_indent=blank)
        yield from textwrap.wrap(rows, width, initial_indent=blank + "  ", subsequent_indent=blank + "  ")


def _rows(needed: Sequence[claimed.Needed]) -> str:
    """"sims: CMPTA, text only; meld: the same"."""
    found: dict[str, list[str]] = {}
    for one in needed:
        found.setdefault(one.key, []).append(naming.label(one.row) + (" (first seed)" if one.first_seed_only else ""))
    parts, last = [], ""
    for key, names in found.items():
        said = ", ".join(dict.fromkeys(names))
        parts.append(f"{key}: {'the same' if said == last else said}")
        last = said
    return "; ".join(parts)


def _when(forecast: Forecast, moment: Moment | None) -> str:
    if moment is None:
        return NOTHING
    if moment.runs == 0:
        return "now"
    if len(forecast.unknown) == len(forecast.runs):
        return f"{moment.runs} runs" if moment.runs > 1 else "1 run"
    return ("\N{GREATER-THAN OR EQUAL TO} " if forecast.unknown else "") + duration(moment.seconds)
