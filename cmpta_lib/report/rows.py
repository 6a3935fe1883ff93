"""From finished runs to the rows of tables, and what stands under every table: where it comes from."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cmpta_lib import metrics, paper
from cmpta_lib.files import runs_folder
from cmpta_lib.metrics import METRICS, MetricName
from cmpta_lib.report import uncertainty
from cmpta_lib.report.export import Provenance, export_table, record
from cmpta_lib.report.tables import ResultRow
from cmpta_lib.runs import provenance as records
from cmpta_lib.runs.store import FAILURE, Run, failure
from cmpta_lib.study import plan
from cmpta_lib.study.plan import CMPTA, TEXT_ONLY, Row
from cmpta_lib.study.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas.io.formats.style import Styler

PAPER_NAMES: Mapping[str, str] = {"sims": "SIMS-V2", "meld": "MELD"}


def scores_of(study: Study, key: str) -> list[MetricName]:
    """The metrics that tables of this corpus show."""
    return [metric.name for metric in metrics.TABLED[study.corpus(key).task.kind]]


def sound(runs: Sequence[Run]) -> list[Run]:
    """Those that are finished and whose files are what was written."""
    return [run for run in runs if run.done and not run.problem]


def unusable(runs: Sequence[Run]) -> str:
    """Why nothing can be shown of these runs together, with the remedy; "" where all are finished and sound.

    Paths begin at the runs folder: an exported table does not tell of the machine that it was made on.
    """
    for run in runs:
        if reason := run.problem or ("" if run.done else _unfinished(run)):
            shown = reason.replace(str(runs_folder()), "runs")
            return f"seed {run.config.seed}: {textwrap.shorten(shown, 400, placeholder=' ...')}"
    return ""


def _unfinished(run: Run) -> str:
    if reason := failure(run.folder):
        return f"failed, {reason}; see {run.folder / FAILURE}, and call again once it is mended"
    return f"{run.folder} is not finished; call again, or make it with Study.ensure"


def runs_of(study: Study, key: str, row: Row) -> list[Run]:
    """A row's runs, finished or not; none where its own LLM is not here."""
    return [] if study.lacks(row) else study.runs(key, row)


def result_row(
    study: Study, key: str, row: Row, group: str = "", name: str = "", printed: Mapping[str, float] | None = None
) -> ResultRow:
    """A table row from the finished runs of all seeds.

    Free replies that were unparsable are counted in its note. A row of which a run is missing, failed or damaged says
    "not run" and why; the table's other rows stand.
    """
    name, runs = name or row.name, runs_of(study, key, row)
    if reason := study.lacks(row) or unusable(runs):
        return ResultRow(group, name, printed or {}, note=reason)
    tables = [run.predictions() for run in runs]
    predictions = np.stack([table["prediction"].to_numpy(float) for table in tables])
    odd = int((~np.isfinite(predictions)).sum())
    if study.corpus(key).task.kind == "classification":
        predictions = np.where(np.isfinite(predictions), predictions, metrics.UNPARSABLE).astype(int)
    note = f"{odd} unparsable replies" if odd else ""
    return ResultRow(group, name, printed or {}, tables[0]["label"].to_numpy(), predictions, note)


def ablation_rows(study: Study, key: str) -> list[ResultRow]:
    """Table 5 or 6, in the paper's order; the full method's runs serve every group's first row."""
    rows = []
    for line in paper.TABLE5 if key == "sims" else paper.TABLE6:
        row = plan.ABLATIONS.get((line.group, line.method), CMPTA)
        rows.append(result_row(study, key, row, line.group, line.method, line.scores if key != "data" else {}))
        if (line.group, line.method) == (paper.ADAPTER, "off"):
            rows.append(result_row(study, key, TEXT_ONLY, line.group, "text only, no pseudo tokens"))
    return rows


def ablation_frame(rows: Sequence[ResultRow], metric: MetricName) -> pd.DataFrame:
    """What `curves.ablation_figure` draws, from a table's rows that were run; fractions throughout."""
    lines = []
    for row in rows:
        if row.truth is None or row.predictions is None:
            continue
        mean = float(uncertainty.seed_scores(metric, row.truth, row.predictions).mean())
        low, high = uncertainty.bootstrap_interval(metric, row.truth, row.predictions)
        printed = row.paper.get(metric, np.nan) / METRICS[metric].scale
        lines.append([row.group, row.method, mean, low, high, printed])
    return pd.DataFrame(lines, columns=["study", "variant", "mean", "low", "high", "paper"])


def bayes(study: Study, key: str, metric: MetricName) -> dict[str, float]:
    """Best score that any answer from {text, face_voice, all} can reach on the test split; empty for real data.

    Corpora of dialogues add "context": the best from all clips of the whole dialogue.
    """
    corpus = study.corpus(key)
    if not corpus.has_known_truth:
        return {}
    table, labels = corpus.splits["test"].table, corpus.task.labels
    scores = {}
    for known in ("text", "face_voice", "all", "context"):
        if f"bayes_{known}" not in table:
            continue
        answer = table[f"bayes_{known}"].to_numpy()
        if corpus.task.kind == "regression":
            scores[known] = metrics.regression_metrics(table["label"], answer)[metric]
        else:
            scores[known] = metrics.classification_metrics(table["label"], answer.astype(int), labels)[metric]
    return scores


def bayes_of(study: Study, key: str, names: Sequence[MetricName], known: str = "all") -> dict[str, float]:
    """Metric -> best score from all that a clip holds, or its whole dialogue ("context"); empty where nobody knows."""
    return {name: scores[known] for name in names if known in (scores := bayes(study, key, name))}


def changed(study: Study) -> str:
    """The config fields that a caller has changed in all runs, to stand behind the name of a profile or corpus."""
    return "".join(f", {field}={value}" for field, value in study.changes.items())


def provenance(study: Study, keys: Sequence[str], runs: Sequence[Run] = ()) -> Provenance:
    """What made a table or figure: these corpora, and the commits, machines and packages of these runs."""
    corpora = [study.corpus(key) for key in keys]
    made_by = sound(runs)
    made = [run.environment for run in made_by] or [records.environment()]
    fingerprints = {corpus.name: corpus.fingerprint for corpus in corpora}
    llms = _backbones(study, runs)
    return Provenance(
        data=", ".join(f"{c.name} ({c.fingerprint[:8]})" for c in corpora) + (", SMOKE RUN" if study.smoke else ""),
        backbone=", ".join(f"{name} ({fingerprint[:8]})" for name, fingerprint in llms.items()) or "none",
        seeds=tuple(sorted({run.config.seed for run in made_by})),
        commits=tuple(sorted({environment["commit"] for environment in made})),
        profile=study.profile + changed(study),
        generated=any(c.generated for c in corpora),
        hardware=tuple(sorted({environment["hardware"] for environment in made})),
        fingerprints=fingerprints | llms,
        runs=tuple(sorted({run.folder.name for run in made_by})),
        packages=tuple(sorted({f"{name} {version}" for one in made for name, version in one["packages"].items()})),
    )


def _backbones(study: Study, runs: Sequence[Run]) -> dict[str, str]:
    """Name and fingerprint of the study's LLM, and of what else these runs read text with; none without runs."""
    methods = [run.config.method.model_dump() for run in runs]
    own = {method[kind]["name"]: method[kind]["fingerprint"] for method in methods for kind in _READERS if kind in method}
    return {study.llm.name: study.llm.fingerprint} | own if runs else {}


_READERS = ("llm", "encoder")


def footer(stated: Provenance) -> str:
    """The small print of a figure: the warning where data are generated, then where everything comes from."""
    return " ".join(filter(None, [stated.warning(), stated.line()]))


def drawing_footer(study: Study) -> str:
    """The small print of a diagram, which no data enter."""
    smoke = ", SMOKE RUN" if study.smoke else ""
    return f"Drawn by code, no data enter; profile: {provenance(study, ()).profile}{smoke}."


def save_table(
    study: Study, frame: pd.DataFrame, name: str, caption: str, keys: Sequence[str], runs: Sequence[Run] = ()
) -> Styler:
    """Export a table beside the study's figures, and return it for a notebook to show uncut."""
    stated = provenance(study, keys, runs)
    export_table(frame, study.figures, name, caption=caption, provenance=stated)
    record(study.figures, name, stated)
    return frame.style.hide(axis="index").set_caption(caption)


def save_figure(study: Study, figure: Figure, name: str, keys: Sequence[str] = (), runs: Sequence[Run] = ()) -> None:
    """Export a figure beside the study's tables, and write down what made it; a drawing has neither keys nor runs."""
    from cmpta_lib.figures import style  # not above: tables need no matplotlib

    style.save_figure(figure, study.figures, name)
    record(study.figures, name, provenance(study, keys, runs))


def described(study: Study, key: str) -> str:
    """A corpus as captions name it."""
    corpus = study.corpus(key)
    return f"{corpus.name} (generated, in place of {PAPER_NAMES[key]})" if corpus.generated else corpus.name


def seeds_of(study: Study) -> str:
    """How many seeds, for a caption."""
    return f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}"


def scores_caption(study: Study, key: str, what: str) -> str:
    """Caption of a table of scores: what it compares, on which clips, and what its numbers are."""
    over = f"mean ± sample sd over {seeds_of(study)}" if len(study.seeds) > 1 else f"seed {study.seeds[0]}"
    return f"{what} on {described(study, key)}, test split: {over}, 95 % bootstrap interval over test clips."
