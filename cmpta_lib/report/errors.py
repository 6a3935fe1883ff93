"""Which clips are answered how: answers by label, errors by label, and which clips a method wins or loses.

Everything is counted from prediction tables, method by method and seed by seed, for classes and for scores alike. No
model is opened here, so nothing imports torch; how sure a method was is `report.confidence`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cmpta_lib import metrics
from cmpta_lib.data.corpus import Task
from cmpta_lib.figures import clips
from cmpta_lib.method.prompted import answer_text
from cmpta_lib.report.export import NOTHING
from cmpta_lib.report.rows import runs_of, sound, unusable
from cmpta_lib.report.tables import NOT_RUN
from cmpta_lib.report.uncertainty import spread
from cmpta_lib.runs.store import Run
from cmpta_lib.study.plan import CMPTA, TEXT_ONLY, Row
from cmpta_lib.study.study import Study

Tables = Mapping[str, Mapping[int, pd.DataFrame]]  # method -> seed -> its answers to the test split; {} = not run

COMPARED: Mapping[str, Row] = {row.name: row for row in (CMPTA, TEXT_ONLY)}
STEP = 0.2  # scores are gathered to the nearest multiple: the steps of SIMS' labels
ALL = "all"
AGREEMENT = ("both right", "only CMPTA right", "only text only right", "neither right")


def first_runs(study: Study, key: str) -> dict[str, Run]:
    """CMPTA and text only -> the run of the first seed; a method without one is left out."""
    firsts = {name: sound(runs_of(study, key, row)[:1]) for name, row in COMPARED.items()}
    return {name: runs[0] for name, runs in firsts.items() if runs}


def whole_runs(study: Study, key: str) -> dict[str, list[Run]]:
    """The runs of CMPTA and text only; none of a method of which any seed is missing, as in Tables 3 and 4."""
    found = {name: runs_of(study, key, row) for name, row in COMPARED.items()}
    return {name: [] if unusable(runs) else runs for name, runs in found.items()}


def tables_of(study: Study, key: str) -> dict[str, dict[int, pd.DataFrame]]:
    """The stored answers of `whole_runs`."""
    return {name: {run.config.seed: run.predictions() for run in runs} for name, runs in whole_runs(study, key).items()}


def state(study: Study) -> pd.DataFrame:
    """What this page rests on: the seeds of each method that are there, and why another is not."""
    rows = []
    for key in study.keys:
        for name, row in COMPARED.items():
            runs = runs_of(study, key, row)
            seeds = ", ".join(str(run.config.seed) for run in sound(runs)) or NOTHING
            line = {"corpus": study.corpus(key).name, "method": name, "finished seeds": seeds}
            rows.append(line | {"not run, because": study.missing(row, key) or unusable(runs)})
    table = pd.DataFrame(rows)
    return table if table["not run, because"].any() else table.drop(columns="not run, because")


def groups(task: Task, values: np.ndarray) -> np.ndarray:
    """(N,) place of each class, or of each score among the multiples of `STEP` from -1 to 1; -1 where there is none."""
    values = np.asarray(values, float)
    if task.kind == "regression":
        # Rounded twice: 0.3 / 0.2 is 1.4999999999999998 in binary, and must not fall otherwise than 0.1 / 0.2.
        values = np.round(np.round((np.clip(values, -1, 1) + 1) / STEP, 6))
    return np.where(np.isfinite(values), values, -1).astype(int)


def group_names(task: Task) -> list[str]:
    """What `groups` counts: class names, or scores as they are written."""
    return list(task.labels) or [answer_text(task, STEP * place - 1) for place in range(round(2 / STEP) + 1)]


def answer_shares(task: Task, tables: Tables) -> dict[str, np.ndarray]:
    """Method -> (C, C) share of the clips of each label (rows) that is answered so (columns), its seeds together.

    C are `group_names`. A row sums to less than 1 where replies were unparsable, and to 0 where no clip has the label.
    """
    from sklearn.metrics import confusion_matrix

    places, found = range(len(group_names(task))), {}
    for name, by_seed in tables.items():
        if by_seed:
            every = pd.concat(by_seed.values())
            truth, answer = (groups(task, every[column].to_numpy()) for column in ("label", "prediction"))
            # A column of their own for what was unparsable, so that a row counts all clips of its label.
            counts = confusion_matrix(truth, answer, labels=[*places, -1])[:-1]
            found[name] = counts[:, :-1] / np.maximum(counts.sum(1, keepdims=True), 1)
    return found


def per_label_table(task: Task, tables: Tables) -> pd.DataFrame:
    """How each label is answered: mean ± sample sd over seeds, a class's or a score's measures, a last line for all.

    Classes: precision, recall and F1 in per cent. Scores, to the nearest `STEP`: the mean error (answer minus label), the
    mean absolute error, and the share on the wrong side of Acc-2, in which 0 counts as negative. Unparsable replies are
    wrong for a class; for a score they are left out, and counted in a column of their own where there are any.
    """
    names, tables = group_names(task), dict(tables)
    any_table = next((table for by_seed in tables.values() for table in by_seed.values()), None)
    if any_table is None:
        return pd.DataFrame(columns=["label", "clips"])
    counts = np.bincount(groups(task, any_table["label"].to_numpy()), minlength=len(names))
    shown = [place for place, count in enumerate(counts) if count or task.labels]
    columns: dict[str, list[str]] = {
        "label": [*(names[place] for place in shown), ALL],
        "clips": [*(str(counts[place]) for place in shown), str(counts.sum())],
    }
    measure = _class_measures if task.kind == "classification" else _score_measures
    for name, by_seed in tables.items():
        found = [measure(task, table) for table in by_seed.values()]
        for what in measure(task, any_table):
            decimals, places = 3 if "error" in what else 1, (*shown, len(names))
            cells = [spread(np.array([one[what][place] for one in found]), decimals) for place in places]
            columns[f"{name}: {what}"] = cells if found else [NOT_RUN] * len(places)
        odd = [int((~np.isfinite(table["prediction"])).sum()) for table in by_seed.values()]
        if any(odd):
            columns[f"{name}: unparsable"] = [NOTHING] * len(shown) + [spread(np.array(odd, float), 1)]
    return pd.DataFrame(columns)


def _class_measures(task: Task, table: pd.DataFrame) -> dict[str, np.ndarray]:
    """(C + 1,) per cent each, the last for all classes, weighted by their clips; NaN where nothing is defined."""
    from sklearn.metrics import precision_recall_fscore_support as scores

    truth, answer = table["label"].to_numpy(int), groups(task, table["prediction"].to_numpy())
    labels = range(len(task.labels))
    each = scores(truth, answer, labels=labels, average=None, zero_division=np.nan)[:3]
    weighted = scores(truth, answer, labels=labels, average="weighted", zero_division=0)[:3]
    return {
        what: 100 * np.append(one, whole)
        for what, one, whole in zip(("precision (%)", "recall (%)", "F1 (%)"), each, weighted, strict=True)
    }


def _score_measures(task: Task, table: pd.DataFrame) -> dict[str, np.ndarray]:
    """(C + 1,) each, the last for all clips; NaN where no clip has the label or none was answered."""
    parsed = table[np.isfinite(table["prediction"])]
    truth, answer = (metrics.sentiment_scores(parsed[name], name) for name in ("label", "prediction"))
    error = pd.DataFrame({"error": answer.astype(float) - truth, "wrong": 100.0 * ((truth > 0) != (answer > 0))})
    error["size"] = error["error"].abs()
    label = groups(task, truth)
    means = error.groupby(label).mean().reindex(range(len(group_names(task))))
    return {
        what: np.append(means[column], error[column].mean())
        for what, column in (("mean error", "error"), ("mean absolute error", "size"), ("wrong sign (%)", "wrong"))
    }


def agreement_table(task: Task, tables: Tables) -> pd.DataFrame:
    """How many clips both methods answer rightly, one alone, or none: mean ± sample sd over the seeds that both have.

    One line for each class, or for scores below, at and above 0, and one for all clips.
    """
    cmpta, text_only = (tables[name] for name in COMPARED)
    any_table = next((table for by_seed in (cmpta, text_only) for table in by_seed.values()), None)
    if any_table is None:
        return pd.DataFrame(columns=["label", "clips", *AGREEMENT])
    counted: list[tuple[np.ndarray, ...]] = []
    for seed in (seed for seed in cmpta if seed in text_only):
        ours, theirs = (clips.is_right(task, by_seed[seed]) for by_seed in (cmpta, text_only))
        counted.append((ours & theirs, ours & ~theirs, ~ours & theirs, ~ours & ~theirs))
    labels, rows = any_table["label"].to_numpy(), []
    parts = {name: labels == place for place, name in enumerate(task.labels)}
    parts = parts or {"below 0": labels < 0, "0": labels == 0, "above 0": labels > 0}
    for name, members in (parts | {ALL: np.ones(len(labels), bool)}).items():
        line = {"label": name, "clips": str(members.sum())}
        for place, what in enumerate(AGREEMENT):
            numbers = [one[place][members].sum() for one in counted]
            line[what] = spread(numbers, 0 if len(counted) == 1 else 1) if counted else NOT_RUN
        rows.append(line)
    return pd.DataFrame(rows)


def seeds_shown(tables: Tables) -> str:
    """The seeds that these answers are of, for a caption."""
    seeds: Sequence[int] = sorted({seed for by_seed in tables.values() for seed in by_seed})
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds)) or NOTHING}"
