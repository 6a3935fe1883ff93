"""The rules by which a claim is judged, and what a study's finished runs say about them.

Two kinds of luck stand between a difference and a claim: which clips were drawn for testing, which a paired bootstrap over
clips measures, and which seed was drawn for training, which the spread over seeds measures. A claim must clear both.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial, wraps
from typing import Any

import numpy as np

from cmpta_lib.figures import clips
from cmpta_lib.metrics import METRICS, Metric, MetricName, headline
from cmpta_lib.report import uncertainty
from cmpta_lib.report.rows import first_runs, result_row
from cmpta_lib.report.tables import NOT_RUN
from cmpta_lib.report.uncertainty import ResultRow, scored
from cmpta_lib.runs.store import Run
from cmpta_lib.study import plan
from cmpta_lib.study.plan import CHOICES, CMPTA, TEXT_ONLY, Row
from cmpta_lib.study.study import Study

SUPPORTED, NOT_SUPPORTED = "supported", "not supported"
INSIDE_SEEDS, INSIDE_CLIPS = "inside seed noise", "inside clip noise"
NOT_TESTABLE, ONE_SEED = "not testable on this data", "one seed: "
SMALL = 0.05  # "little difference": within this share of the full method's score; the paper gives no number

NO_DROPOUT = next(row for row in CHOICES if "method.dropout" in row.changes)

BETTER = "better, with 0 outside the 95 % paired bootstrap interval over test clips, by more than the larger sd over seeds"
NUMBER = (
    "the printed value lies in the 95 % bootstrap interval over test clips, or within 2 sample sd over seeds of this run's "
    "mean; else not supported"
)
LITTLE = (
    f"every 95 % paired interval against 6 tokens lies within ± {SMALL:.0%} of the score with 6 (our reading of small); one "
    "wholly beyond it: not supported; else inside clip noise"
)
CUE = (
    "on generated clips, whose cues are known: the 95 % interval over clips of attention on the cue minus uniform "
    "attention's share lies above 0 for vision and audio; below 0 for one: not supported"
)
SARCASM = (
    "among test clips labelled disgust or anger: CMPTA right where text only says joy, against the reverse, first seed; "
    "exact sign test, p < 0.05"
)
COUNTS = "the clips of the three splits are the printed ones, exactly"


@dataclass(frozen=True)
class Finding:
    """What a rule gives on this run's data, and the figures behind it in words."""

    verdict: str
    figures: str
    decides: str = ""  # those of the comparison that decides, where there are several


class NotRun(Exception):
    """A run that a rule needs is missing; says which, why, and the command that makes it."""


def judged(gain: float, low: float, high: float, spread: float | None) -> str:
    """Verdict of BETTER on a gain (positive = as claimed) whose difference has this interval; spread None: only one seed."""
    if spread is not None and abs(gain) <= spread:
        return INSIDE_SEEDS
    verdict = INSIDE_CLIPS if low <= 0 <= high else SUPPORTED if gain > 0 else NOT_SUPPORTED
    return (ONE_SEED if spread is None else "") + verdict


def together(findings: Sequence[Finding]) -> Finding:
    """All must be supported: one that is not decides, then one that is not run, then noise."""
    verdicts = [finding.verdict.removeprefix(ONE_SEED) for finding in findings]
    order = (NOT_SUPPORTED, NOT_RUN, NOT_TESTABLE, INSIDE_SEEDS, INSIDE_CLIPS, SUPPORTED)
    worst = min(verdicts, key=order.index)
    alone = any(f.verdict.startswith(ONE_SEED) for f in findings) and worst not in (NOT_RUN, NOT_TESTABLE)
    one = findings[verdicts.index(worst)]
    decides = f"{one.figures} (one of {len(findings)})" if len(findings) > 1 and not one.decides else one.decides
    return Finding((ONE_SEED if alone else "") + worst, "; ".join(finding.figures for finding in findings), decides)


def _rule(apply: Callable[..., Finding]) -> Callable[..., Finding]:
    """A rule, which is "not run" where a run that it needs is missing."""

    @wraps(apply)
    def tried(*given: Any) -> Finding:
        try:
            return apply(*given)
        except NotRun as gap:
            return Finding(NOT_RUN, str(gap))

    return tried


class Evidence:
    """Rows and comparisons of a study's finished runs, each read and made once; trains nothing.

    Its rules give a `Finding` each, of the corpus `key`.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self._results = cache(partial(result_row, study))

    def row(self, key: str, row: Row) -> ResultRow:
        """A row's answers on the test clips of all seeds; raises NotRun where it has none."""
        found = self._results(key, row)
        if not found.ran:
            raise self._not_run(key, row, found.note)
        return found

    def first(self, key: str, row: Row) -> Run:
        """The run of a row's first seed; raises NotRun."""
        runs, reason = first_runs(self.study, key, row)
        if reason:
            raise self._not_run(key, row, reason)
        return runs[0]

    def metric(self, key: str) -> Metric:
        """The headline metric of a corpus."""
        return headline(self.study.corpus(key).task.kind)

    def _not_run(self, key: str, row: Row, reason: str) -> NotRun:
        said = f"{row.name} on {self.study.corpus(key).name}: {textwrap.shorten(reason, 160, placeholder=' ...')}"
        if self.study.missing(row, key):  # nothing runs it
            return NotRun(said)
        made = (n.name for n in plan.NOTEBOOKS if row in n.rows(key) or (n.has_choices and row in CHOICES))
        return NotRun(f"{said}; `cmpta reproduce --only {next(made)}`, with this study's options, runs it")

    @_rule
    def better(self, key: str, metric: MetricName, row: Row, than: Row) -> Finding:
        """BETTER for one row against another."""
        return compared(metric, self.row(key, row), self.row(key, than))

    @_rule
    def dropout(self, key: str) -> Finding:
        """The default against the line without dropout: first seed."""
        tables = [self.first(key, one).predictions() for one in (CMPTA, NO_DROPOUT)]
        truth, answers = tables[0]["label"].to_numpy(), [table["prediction"].to_numpy(float)[None] for table in tables]
        row = partial(ResultRow, "", paper={}, truth=truth, unit=self.study.corpus(key).task.unit)
        with_it, without = (row(n, predictions=a) for n, a in zip(("CMPTA", "no dropout"), answers, strict=True))
        return compared(self.metric(key).name, with_it, without)

    @_rule
    def number(self, key: str, metric: MetricName, printed: float) -> Finding:
        """NUMBER for the full method."""
        found, shown = self.row(key, CMPTA), METRICS[metric]
        low, high = (shown.scale * edge for edge in found.interval(metric))
        mean, sd = uncertainty.summarise(shown.scale * found.scores(metric))
        agrees = low <= printed <= high or abs(mean - printed) <= 2 * (sd or 0)
        text = f"{' '.join(scored(shown, found))}, printed {shown.shown(printed)}"
        text += f"; {found.seeds} seeds" if " of " in found.seeds else ""
        return Finding((ONE_SEED if sd is None else "") + (SUPPORTED if agrees else NOT_SUPPORTED), text)

    @_rule
    def little(self, key: str, others: Mapping[str, Row]) -> Finding:
        """LITTLE for the numbers of pseudo tokens."""
        metric, found = self.metric(key), []
        for number, row in others.items():
            other, full = self.row(key, row), self.row(key, CMPTA)
            pair, limit = other.minus(full, metric.name), SMALL * abs(float(full.scores(metric.name).mean()))
            within, beyond = -limit <= pair.low <= pair.high <= limit, pair.low > limit or pair.high < -limit
            verdict = SUPPORTED if within else NOT_SUPPORTED if beyond else INSIDE_CLIPS
            alone = min(len(one.scores(metric.name)) for one in (full, other)) < 2
            edges = (metric.shown(metric.scale * value, "+") for value in (pair.low, pair.high))
            text = f"{number} tokens minus 6: [{', '.join(edges)}], limit ±{metric.shown(metric.scale * limit)}"
            found.append(Finding((ONE_SEED if alone else "") + verdict, text))
        return together(found)

    @_rule
    def cues(self, key: str) -> Finding:
        """CUE, on the first seed's run, as notebook 08 measures it; opens the model, so this imports torch."""
        from cmpta_lib.study.trained import load

        corpus = self.study.corpus(key)
        if not corpus.has_known_truth:
            return Finding(NOT_TESTABLE, "nobody knows where the cues of real clips are, and a map alone shows no reason")
        run, found = self.first(key, CMPTA), []
        for modality, pairs in clips.shares_on_cues(load(run.folder), corpus, run.predictions()).items():
            if len(pairs) < 2:
                found.append(Finding(NOT_TESTABLE, f"{modality}: fewer than two rightly answered clips with a cue"))
                continue
            gains, (inside, uniform) = pairs[:, 0] - pairs[:, 1], 100 * pairs.mean(0)
            error = 1.96 * float(gains.std(ddof=1)) / np.sqrt(len(gains))
            verdict = judged(gains.mean(), gains.mean() - error, gains.mean() + error, None)
            text = f"{modality}: {inside:.1f} % of attention on the cue, uniform {uniform:.1f} %, {len(pairs)} clips"
            found.append(Finding(verdict, text))
        return together(found)

    @_rule
    def sarcasm(self, key: str) -> Finding:
        """SARCASM, on the runs of Figure 5."""
        from scipy.stats import binomtest

        labels = self.study.corpus(key).task.labels
        wanted = [labels.index(name) for name in clips.SARCASTIC if name in labels]
        if not wanted or "joy" not in labels:
            return Finding(NOT_TESTABLE, "the corpus has no classes joy and disgust or anger")
        tables = [self.first(key, row).predictions() for row in (CMPTA, TEXT_ONLY)]
        truth, joy = tables[0]["label"].to_numpy(), labels.index("joy")
        about, (ours, theirs) = np.isin(truth, wanted), (table["prediction"].to_numpy() for table in tables)
        mended, spoilt = (int((about & (a == truth) & (b == joy)).sum()) for a, b in ((ours, theirs), (theirs, ours)))
        p_value = binomtest(mended, mended + spoilt).pvalue if mended + spoilt else 1.0
        verdict = INSIDE_CLIPS if p_value >= 0.05 else SUPPORTED if mended > spoilt else NOT_SUPPORTED
        return Finding(ONE_SEED + verdict, f"{mended} clips mended, {spoilt} the reverse, of {about.sum()}; p = {p_value:.2g}")


@cache
def compared(metric: MetricName, row: ResultRow, than: ResultRow) -> Finding:
    """BETTER on two rows that were run."""
    shown, pair = METRICS[metric], row.minus(than, metric)
    sds = [uncertainty.summarise(one.scores(metric))[1] for one in (row, than)]
    spread = None if None in sds else max(sd for sd in sds if sd is not None)
    difference, low, high = (shown.shown(shown.scale * value, "+") for value in (pair.difference, pair.low, pair.high))
    about = "seeds' spread unknown" if spread is None else f"seeds' sd {shown.shown(shown.scale * spread)}"
    text = f"{row.method} minus {than.method}: {shown.label.split()[0]} {difference} [{low}, {high}], {about}"
    text += "".join(f"; {one.method}: {one.seeds} seeds" for one in (row, than) if " of " in one.seeds)
    sign = -1 if shown.lower_is_better else 1
    return Finding(judged(sign * pair.difference, pair.low, pair.high, spread), text)
