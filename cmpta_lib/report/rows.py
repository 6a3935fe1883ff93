"""From finished runs to the rows of tables, and what stands under every table: where it comes from."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cmpta_lib import metrics, paper
from cmpta_lib.embedded import bounds
from cmpta_lib.files import runs_folder
from cmpta_lib.metrics import METRICS, Metric, MetricName
from cmpta_lib.report.export import Provenance, export_table, record
from cmpta_lib.report.tables import Best, Shown, Table
from cmpta_lib.report.uncertainty import ResultRow
from cmpta_lib.runs import provenance as records
from cmpta_lib.runs.store import FAILURE, Run, failure, sound
from cmpta_lib.study import plan
from cmpta_lib.study.plan import CMPTA, TEXT_ONLY, Row
from cmpta_lib.study.study import ONLY_FINISHED, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER_NAMES: Mapping[str, str] = {"sims": "SIMS-V2", "meld": "MELD"}


def tabled(study: Study, key: str) -> tuple[Metric, ...]:
    """The metrics that tables of this corpus show."""
    return metrics.TABLED[study.corpus(key).task.kind]


def scores_of(study: Study, key: str) -> list[MetricName]:
    """Their names."""
    return [metric.name for metric in tabled(study, key)]


def unusable(runs: Sequence[Run]) -> str:
    """Why nothing can be shown of these runs together, with the remedy; "" where all are finished and sound."""
    told = os.environ.get(ONLY_FINISHED, "")
    remedy = told if len(told) > 1 else "call again, or make it with Study.ensure"
    for run in runs:
        reason = run.problem
        if not reason and not run.done:
            failed = failure(run.folder)
            reason = f"failed, {failed}; see {run.folder / FAILURE}, and call again once it is mended" if failed else (
                f"{run.folder} is not finished; {remedy}"
            )
        if reason:
            return f"seed {run.config.seed}: {shown_reason(reason)}"
    return ""


def shown_reason(reason: str) -> str:
    """A reason as tables and report tell it; paths begin at the runs folder: these do not tell of this machine."""
    return textwrap.shorten(reason.replace(str(runs_folder()), "runs"), 400, placeholder=" ...")


def runs_of(study: Study, key: str, row: Row) -> list[Run]:
    """A row's runs, finished or not; none where what the row needs is not here."""
    return [] if study.missing(row, key) else study.runs(key, row)


def first_runs(study: Study, key: str, *rows: Row) -> tuple[list[Run], str]:
    """The first seed's run of each row; or none, and why nothing can be shown of them together."""
    reason = next(filter(None, (study.missing(row, key) for row in rows)), "")
    runs = [] if reason else [study.runs(key, row)[0] for row in rows]
    reason = shown_reason(reason) or unusable(runs)
    return ([] if reason else runs), reason


def result_row(
    study: Study, key: str, row: Row, group: str = "", name: str = "", printed: Mapping[str, float] | None = None
) -> ResultRow:
    """A table row from the finished runs of its seeds.

    Free replies that were unparsable are counted in its note. Where runs of some seeds are missing, failed or damaged the row
    is made of the others and says of how many; without any it says "not run" and why. The table's other rows stand.
    """
    name, runs = name or row.name, runs_of(study, key, row)
    whole = [run for run in runs if not unusable([run])]
    if reason := study.missing(row, key) or ("" if whole else unusable(runs)):
        return ResultRow(group, name, printed or {}, note=shown_reason(reason), is_ours=row == CMPTA)
    tables = [run.predictions() for run in whole]
    predictions = np.stack([table["prediction"].to_numpy(float) for table in tables])
    odd = int((~np.isfinite(predictions)).sum())
    task = study.corpus(key).task
    if task.kind == "classification":
        predictions = np.where(np.isfinite(predictions), predictions, metrics.UNPARSABLE).astype(int)
    notes = [f"{odd} unparsable replies"] if odd else []
    if len(whole) < len(runs):  # those that are merely still to come need no reason
        wrong = unusable([run for run in runs if run.problem or failure(run.folder)])
        notes = [f"{len(whole)} of {len(runs)} seeds so far", *([wrong] if wrong else []), *notes]
    labels = tables[0]["label"].to_numpy()
    return ResultRow(group, name, printed or {}, labels, predictions, "; ".join(notes), len(runs), task.unit, row == CMPTA)


def ablation_rows(study: Study, key: str) -> list[ResultRow]:
    """Table 5 or 6, in the paper's order; the full method's runs serve every group's first row."""
    rows = []
    for line in paper.TABLE5 if key == "sims" else paper.TABLE6:
        row = plan.ABLATIONS.get((line.group, line.method), CMPTA)
        rows.append(result_row(study, key, row, line.group, line.method, line.scores if key != "data" else {}))
        if (line.group, line.method) == (paper.ADAPTER, "off"):
            rows.append(result_row(study, key, TEXT_ONLY, line.group, "text only"))
    return rows


_DRAWN = ("group", "method", "mean", "low", "high", "seeds", "paper", "is_ours")


def scores_frame(rows: Sequence[ResultRow], metric: MetricName) -> pd.DataFrame:
    """What `curves.scores_figure` draws of a metric, from a table's rows that were run; fractions throughout."""
    lines = []
    for row in (row for row in rows if row.ran):
        name, scores = re.sub(r" \[\d+\]$", "", row.method), row.scores(metric)
        printed = row.paper.get(metric, np.nan) / METRICS[metric].scale
        lines.append([row.group, name, float(scores.mean()), *row.interval(metric), scores, printed, row.is_ours])
    return pd.DataFrame(lines, columns=_DRAWN)


def differences_frame(pairs: Iterable[tuple[str, str, ResultRow, ResultRow]], metric: MetricName) -> pd.DataFrame:
    """The same of differences, paired by clip: group, name, and one row minus another; `seeds` where both have the same."""
    lines = []
    for group, name, row, other in pairs:
        if row.ran and other.ran:
            found, one, two = row.minus(other, metric), row.scores(metric), other.scores(metric)
            seeds = one - two if len(one) == len(two) else []
            lines.append([group, name, found.difference, found.low, found.high, seeds, np.nan, False])
    return pd.DataFrame(lines, columns=_DRAWN)


def bayes(study: Study, key: str, metric: MetricName, split: str = "test") -> dict[str, float]:
    """Score on a split's clips of the answers that are best for this metric from {text, face_voice, all}; {} for real data.

    Corpora of dialogues add "context": the best from all clips of the whole dialogue. No rule does better on average;
    luck on these clips may.
    """
    corpus = study.corpus(key)
    truth, task = corpus.splits[split].labels, corpus.task

    def scores(answers: np.ndarray) -> dict[str, float]:
        if task.kind == "regression":
            return metrics.regression_metrics(truth, answers)
        return metrics.classification_metrics(truth, answers, task.labels)

    return {known: scores(answers)[metric] for known, answers in bounds.best_answers(corpus, metric, split).items()}


_BEST = {"text": "Bayes-optimal from words", "all": "Bayes-optimal", "context": "Bayes-optimal in context"}


def best_of(study: Study, key: str, names: Sequence[MetricName], known: Sequence[str] = ("all", "context")) -> Best:
    """What `result_table` says of the best scores from all that a clip holds and from its whole dialogue, where known."""
    scores = {name: bayes(study, key, name) for name in names}
    return {_BEST[one]: {name: found[one] for name, found in scores.items() if one in found} for one in known}


def changed(study: Study) -> str:
    """The config fields that a caller has changed in all runs, to stand behind the name of a profile or corpus."""
    return "".join(f", {field}={value}" for field, value in study.changes.items())


def provenance(study: Study, keys: Sequence[str], runs: Sequence[Run] = ()) -> Provenance:
    """What made a table or figure: these corpora, and the commits, machines and packages of these runs."""
    corpora, made_by = [study.corpus(key) for key in keys], sound(runs)
    made = [run.environment for run in made_by] or [records.environment()]
    fingerprints = {corpus.name: corpus.fingerprint for corpus in corpora}
    llms = {study.llm.name: study.llm.fingerprint} if runs and study.llm_name not in study.without else {}
    for method in (run.config.method.model_dump() for run in runs):  # and what else they read text with
        llms |= {method[kind]["name"]: method[kind]["fingerprint"] for kind in ("llm", "encoder") if kind in method}

    def shown(known: Mapping[str, str]) -> str:
        return ", ".join(f"{name} ({fingerprint[:8]})" for name, fingerprint in known.items())

    return Provenance(
        data=shown(fingerprints) + (", SMOKE RUN" if study.smoke else ""), backbone=shown(llms) or "none",
        seeds=tuple(sorted({run.config.seed for run in made_by})),
        commits=tuple(sorted({environment["commit"] for environment in made})), profile=study.profile + changed(study),
        generated=any(corpus.generated for corpus in corpora),
        hardware=tuple(sorted({environment["hardware"] for environment in made})), fingerprints=fingerprints | llms,
        runs=tuple(sorted({run.folder.name for run in made_by})),
        packages=tuple(sorted({f"{name} {version}" for one in made for name, version in one["packages"].items()})),
    )  # fmt: skip


def footer(stated: Provenance) -> str:
    """The small print of a figure: the warning where data are generated, then where everything comes from."""
    return " ".join(filter(None, [stated.warning(), stated.line()]))


def drawing_footer(study: Study, key: str = "") -> str:
    """The small print of a diagram: settings are drawn, no results; and whose clip is its example, if one is."""
    smoke = ", SMOKE RUN" if study.smoke else ""
    example = f" The example is the first training clip of {described(study, key)}." if key else ""
    return f"Drawn by code from this run's settings; profile: {provenance(study, ()).profile}{smoke}.{example}"


def save_table(
    study: Study, table: pd.DataFrame | Table, name: str, caption: str, keys: Sequence[str], runs: Sequence[Run] = (),
    folded: bool = False,
) -> Shown:  # fmt: skip
    """Export a table beside the study's figures, and return it for a notebook to end a cell with, or fold it away there."""
    stated = provenance(study, keys, runs)
    for path in export_table(table, study.figures, name, caption=caption, provenance=stated):
        if path.suffix == ".tex":  # there may be a second one, with what the short form leaves out
            record(study.figures, path.stem, stated)
    return Shown(table if isinstance(table, Table) else Table.of(table), caption, folded)


def show(frame: pd.DataFrame) -> Shown:
    """A frame as `save_table` would show it, for a page alone: nothing is exported."""
    return Shown(Table.of(frame), "")


def export_name(name: str, chosen: object = "", usual: object = "") -> str:
    """What an export is called: `name` itself, and with the choice in it where it is not the usual one.

    So looking at another clip never overwrites what the report shows.
    """
    return name if chosen == usual else f"{name}_{re.sub(r'[^0-9A-Za-z-]+', '_', str(chosen)).strip('_')}"


def save_figure(study: Study, figure: Figure, name: str, keys: Sequence[str] = (), runs: Sequence[Run] = ()) -> None:
    """Export a figure beside the study's tables and, as an article takes it, into `paper/` there; write down what made it.

    A drawing has no runs.
    """
    from cmpta_lib.figures import style as page  # not above: tables need no matplotlib

    page.save_figure(figure, study.figures, name)
    record(study.figures, name, provenance(study, keys, runs))


def described(study: Study, key: str) -> str:
    """A corpus as captions name it."""
    corpus = study.corpus(key)
    return f"{corpus.name} (generated, in place of {PAPER_NAMES[key]})" if corpus.generated else corpus.name


def seeds_of(study: Study) -> str:
    """How many seeds, for a caption."""
    return f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}"


def over_seeds(study: Study) -> str:
    """What a score is of: the mean over the seeds, or the only one."""
    return f"mean ± sample sd over {seeds_of(study)}" if len(study.seeds) > 1 else f"seed {study.seeds[0]}"


def scores_caption(study: Study, key: str, what: str) -> str:
    """Caption of a table of scores: what it compares, on which clips, and what its numbers are."""
    return f"{what} on {described(study, key)}, test split: {over_seeds(study)}."
