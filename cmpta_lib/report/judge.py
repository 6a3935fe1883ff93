"""The rules by which a claim is judged, and what a study's finished runs say about them.

Two kinds of luck stand between a difference and a claim: which clips were drawn for testing, which a paired bootstrap over
clips measures, and which seed was drawn for training, which the spread over seeds measures. A claim must clear both.
"""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cmpta_lib.config import PAPER_SEEDS
from cmpta_lib.figures import clips
from cmpta_lib.metrics import METRICS, Metric, MetricName, headline
from cmpta_lib.report import uncertainty
from cmpta_lib.report.rows import result_row, runs_of, sound, unusable
from cmpta_lib.report.tables import NOT_RUN
from cmpta_lib.report.uncertainty import ResultRow, scored
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


def judged(gain: float, low: float, high: float, spread: float | None) -> str:
    """Verdict of BETTER on a gain (positive = as claimed) with its interval; spread None: one seed, so nobody knows it."""
    if spread is not None and abs(gain) <= spread:
        return INSIDE_SEEDS
    prefix = ONE_SEED if spread is None else ""
    if low <= 0 <= high:
        return prefix + INSIDE_CLIPS
    return prefix + (SUPPORTED if gain > 0 else NOT_SUPPORTED)


def together(findings: Sequence[Finding]) -> Finding:
    """All must be supported: one that is not decides, then one that is not run, then noise."""
    verdicts = [finding.verdict.removeprefix(ONE_SEED) for finding in findings]
    order = (NOT_SUPPORTED, NOT_RUN, NOT_TESTABLE, INSIDE_SEEDS, INSIDE_CLIPS, SUPPORTED)
    worst = min(verdicts, key=order.index)
    alone = any(f.verdict.startswith(ONE_SEED) for f in findings) and worst not in (NOT_RUN, NOT_TESTABLE)
    return Finding((ONE_SEED if alone else "") + worst, "; ".join(finding.figures for finding in findings))


class Evidence:
    """Rows and comparisons of a study's finished runs, each read and made once; trains nothing."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._rows: dict[tuple[str, str, str], ResultRow] = {}
        self._found: dict[tuple[str, ...], Finding] = {}

    def row(self, key: str, row: Row) -> ResultRow:
        """A row's answers on the test clips of all seeds; of the open choices' alternatives there is the first seed only."""
        place = (key, row.method, row.name)
        if place not in self._rows:
            self._rows[place] = result_row(self.study, key, row)
        return self._rows[place]

    def metric(self, key: str) -> Metric:
        """The headline metric of a corpus."""
        return headline(self.study.corpus(key).task.kind)

    def missing(self, key: str, *rows: Row) -> Finding | None:
        """"not run" with the command that runs the first of these that is missing; None where all are finished."""
        for row in rows:
            if not (found := self.row(key, row)).ran:
                return self._not_run(key, row, found.note)
        return None

    def _not_run(self, key: str, row: Row, reason: str) -> Finding:
        where = f"{row.name} on {self.study.corpus(key).name}: "
        return Finding(NOT_RUN, f"{where}{_short(reason)}; {self.command(key, row)}")

    def command(self, key: str, row: Row) -> str:
        """What makes a row's runs, with the options of this study."""
        study, default = self.study, PAPER_SEEDS[: self.study.settings.num_seeds]
        words = ["cmpta", "reproduce", "--profile", study.profile, *(["--smoke"] * study.smoke)]
        for option, value in (("--data", study.data), ("--llm", study.own_llm)):
            words += [option, value] if value else []
        words += [part for name, value in study.changes.items() for part in ("--set", f"{name}={value}")]
        if not study.smoke and study.seeds != default:
            words += ["--seeds", json.dumps(study.seeds).replace(" ", "")]
        made = (n.name for n in plan.NOTEBOOKS if row in n.rows(key) or (n.has_choices and row in CHOICES))
        return f"`{shlex.join([*words, '--only', next(made)])}`"

    def better(self, key: str, metric: MetricName, row: Row, than: Row) -> Finding:
        """BETTER for one row against another."""
        place = (key, metric, row.name, than.method, than.name)
        if place not in self._found:
            gone = self.missing(key, row, than)
            self._found[place] = gone or compared(metric, self.row(key, row), self.row(key, than))
        return self._found[place]

    def dropout(self, key: str) -> Finding:
        """The default against the line without dropout: first seed."""
        runs = [self.study.runs(key, one)[0] for one in (CMPTA, NO_DROPOUT)]
        if reason := unusable(runs):
            return Finding(NOT_RUN, f"{_short(reason)}; {self.command(key, NO_DROPOUT)}")
        tables = [run.predictions() for run in runs]
        truth, answers = tables[0]["label"].to_numpy(), [table["prediction"].to_numpy(float)[None] for table in tables]
        with_it, without = (ResultRow("", n, {}, truth, a) for n, a in zip(("CMPTA", "no dropout"), answers, strict=True))
        return compared(self.metric(key).name, with_it, without)

    def number(self, key: str, metric: MetricName, printed: float, row: Row = CMPTA) -> Finding:
        """NUMBER for the full method."""
        if gone := self.missing(key, row):
            return gone
        found, shown = self.row(key, row), METRICS[metric]
        low, high = (shown.scale * edge for edge in found.interval(metric))
        summary = uncertainty.summarise((shown.scale * found.scores(metric)).tolist())
        agrees = low <= printed <= high or abs(summary.mean - printed) <= 2 * (summary.sd or 0)
        text = f"{' '.join(scored(shown, found))}, printed {shown.shown(printed)}"
        text += f"; {found.seeds} seeds" if " of " in found.seeds else ""
        return Finding((ONE_SEED if summary.sd is None else "") + (SUPPORTED if agrees else NOT_SUPPORTED), text)

    def little(self, key: str, others: Mapping[str, Row]) -> Finding:
        """LITTLE for the numbers of pseudo tokens."""
        metric, found = self.metric(key), []
        for number, row in others.items():
            if gone := self.missing(key, row, CMPTA):
                return gone
            full, other = self.row(key, CMPTA), self.row(key, row)
            pair, limit = other.minus(full, metric.name), SMALL * abs(float(full.scores(metric.name).mean()))
            within, beyond = -limit <= pair.low <= pair.high <= limit, pair.low > limit or pair.high < -limit
            verdict = SUPPORTED if within else NOT_SUPPORTED if beyond else INSIDE_CLIPS
            edges = (metric.shown(metric.scale * value, "+") for value in (pair.low, pair.high))
            text = f"{number} tokens minus 6: [{', '.join(edges)}], limit ±{metric.shown(metric.scale * limit)}"
            alone = min(len(one.scores(metric.name)) for one in (full, other)) < 2
            found.append(Finding((ONE_SEED if alone else "") + verdict, text))
        return together(found)

    def cues(self, key: str) -> Finding:
        """CUE, on the first seed's run, as notebook 08 measures it; opens the model, so this imports torch."""
        from cmpta_lib.runs.load import load

        corpus = self.study.corpus(key)
        if not corpus.has_known_truth:
            return Finding(NOT_TESTABLE, "nobody knows where the cues of real clips are, and a map alone shows no reason")
        run = self.study.runs(key)[0]
        if not sound([run]):
            return Finding(NOT_RUN, f"{_short(unusable([run]))}; {self.command(key, CMPTA)}")
        found = []
        for modality, pairs in clips.shares_on_cues(load(run.folder), corpus, run.predictions()).items():
            if len(pairs) < 2:
                found.append(Finding(NOT_TESTABLE, f"{modality}: fewer than two rightly answered clips with a cue"))
                continue
            gains = pairs[:, 0] - pairs[:, 1]
            error = 1.96 * float(gains.std(ddof=1)) / np.sqrt(len(gains))
            verdict = judged(gains.mean(), gains.mean() - error, gains.mean() + error, None)
            inside, uniform = 100 * pairs.mean(0)
            text = f"{modality}: {inside:.1f} % of attention on the cue, uniform {uniform:.1f} %, {len(pairs)} clips"
            found.append(Finding(verdict, text))
        return together(found)

    def sarcasm(self, key: str) -> Finding:
        """SARCASM, on the runs of Figure 5."""
        from scipy.stats import binomtest

        labels = self.study.corpus(key).task.labels
        wanted = [labels.index(name) for name in clips.SARCASTIC if name in labels]
        if not wanted or "joy" not in labels:
            return Finding(NOT_TESTABLE, "the corpus has no classes joy and disgust or anger")
        tables = []
        for row in (CMPTA, TEXT_ONLY):
            if reason := unusable(first := runs_of(self.study, key, row)[:1]):
                return self._not_run(key, row, reason)
            tables.append(first[0].predictions())
        truth, joy = tables[0]["label"].to_numpy(), labels.index("joy")
        about, (ours, theirs) = np.isin(truth, wanted), (table["prediction"].to_numpy() for table in tables)
        mended, spoilt = (int((about & (a == truth) & (b == joy)).sum()) for a, b in ((ours, theirs), (theirs, ours)))
        p_value = binomtest(mended, mended + spoilt).pvalue if mended + spoilt else 1.0
        verdict = INSIDE_CLIPS if p_value >= 0.05 else SUPPORTED if mended > spoilt else NOT_SUPPORTED
        return Finding(ONE_SEED + verdict, f"{mended} clips mended, {spoilt} the reverse, of {about.sum()}; p = {p_value:.2g}")


def compared(metric: MetricName, row: ResultRow, than: ResultRow) -> Finding:
    """BETTER on two rows that were run."""
    shown, sign, pair = METRICS[metric], -1 if METRICS[metric].lower_is_better else 1, row.minus(than, metric)
    sds = [uncertainty.summarise(one.scores(metric).tolist()).sd for one in (row, than)]
    spread = None if None in sds else max(sd for sd in sds if sd is not None)
    edges = sorted(sign * edge for edge in (pair.low, pair.high))
    difference, low, high = (shown.shown(shown.scale * value, "+") for value in (pair.difference, pair.low, pair.high))
    about = "seeds' spread unknown" if spread is None else f"seeds' sd {shown.shown(shown.scale * spread)}"
    text = f"{row.method} minus {than.method}: {shown.label.split()[0]} {difference} [{low}, {high}], {about}"
    text += "".join(f"; {one.method}: {one.seeds} seeds" for one in (row, than) if " of " in one.seeds)
    return Finding(judged(sign * pair.difference, edges[0], edges[1], spread), text)


def _short(reason: str) -> str:
    return textwrap.shorten(reason, 160, placeholder=" ...")
