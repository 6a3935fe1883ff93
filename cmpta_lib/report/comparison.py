"""Tables 3 and 4 and what stands beside them, versions of a method beside it, and `versus`: two runs or rows side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from cmpta_lib import metrics, paper, registry
from cmpta_lib.data.corpus import Inputs, Task
from cmpta_lib.figures.clips import NEAR, errors, is_right, show_answer
from cmpta_lib.metrics import Metric
from cmpta_lib.report.rows import result_row, runs_of, sound, tabled
from cmpta_lib.report.tables import NOT_RUN, NOTHING
from cmpta_lib.report.uncertainty import ResultRow, compared, scored, spread, without_unit
from cmpta_lib.runs.store import CLIPS, Run
from cmpta_lib.study import plan
from cmpta_lib.study.naming import fields
from cmpta_lib.study.plan import CMPTA, Row
from cmpta_lib.study.study import Study

PRINTED, ADDED, REFERENCE = "in the paper", "added", "reference"
STEP = 0.2  # scores are gathered to the nearest multiple: the steps of SIMS' labels
# Metrics of the field beyond the paper's: stored name -> heading; all are shown in per cent but R2.
_SCORE_METRICS: Mapping[str, str] = {
    "acc2": "Acc-2", "acc2_weak": "weak Acc-2", "acc3": "Acc-3", "acc5": "Acc-5", "f1_weighted": "F1", "r2": "R²",
}  # fmt: skip
_CLASS_METRICS: Mapping[str, str] = {"accuracy": "Acc", "f1_macro": "macro F1"}


def added_runs(study: Study, key: str) -> list[Run]:
    """The finished runs of the rows beyond the paper: the comparison shows them where they are, and makes none."""
    rows = [row for row in plan.added(key) if not study.missing(row, key)]
    return sound([run for row in rows for run in study.runs(key, row)])


def comparison_rows(study: Study, key: str) -> list[ResultRow]:
    """Table 3 or 4: the paper's lines, then methods and reference lines that it does not print; CMPTA is the last."""
    lines = {line.method.removesuffix(" (Ours)"): line for line in plan.printed(key)}
    wanted = {row.name: row for row in plan.comparison(key)}
    rows, command = [], f"`cmpta reproduce --profile {study.profile}"
    for name in dict.fromkeys([*(name for name in lines if name != CMPTA.name), *wanted]):
        line, row = lines.get(name), wanted.get(name)
        title = f"{name} [{line.reference}]" if line and row != CMPTA else name
        scores = line.scores if line else {}
        if row is None:
            note = f"not part of this repository; {command}` will run it once it is"
            rows.append(ResultRow(PRINTED, title, scores, note=note))
            continue
        entry = registry.ENTRIES[row.method]
        group = PRINTED if line or row == CMPTA else REFERENCE if entry.is_reference else ADDED
        found = result_row(study, key, row, group, title, scores)
        if entry.is_beyond and not any(run.folder.exists() for run in runs_of(study, key, row)):
            found = replace(found, note=f"beyond the paper: {command} --all` runs it")
        rows.append(found)
    return rows


def paired_table(study: Study, key: str, rows: Sequence[ResultRow]) -> pd.DataFrame:
    """The last row, CMPTA, minus each other row on the same redrawn test clips; percentage points for F1."""
    *others, full = rows
    lines = [
        (f"{full.method} minus {other.method}", metric.label, *compared(replace(metric, decimals=3), full, other))
        for other in others for metric in tabled(study, key)
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=["comparison", "metric", "difference", "95 % CI", "p"])


def methods_table(study: Study, key: str) -> pd.DataFrame:
    """What each row of the comparison is: what it reads, what is trained, how long, and what others published for it.

    Medians over runs; a method that is fitted rather than trained has no epochs.
    """
    metric, lines = tabled(study, key)[0], []
    for row in plan.comparison(key):
        runs = runs_of(study, key, row)
        done, models = sound(runs), [run.config.method.model_dump() for run in runs]
        readers = (str(model[kind]["name"]) for model in models for kind in ("llm", "encoder") if kind in model)
        epochs, others = [len(run.history) for run in done], paper.published(row.name, metric.name)
        lines.append({
            "method": row.name,
            "reads": registry.ENTRIES[row.method].reads,
            "LLM or encoder": next(readers, NOTHING) if runs else study.llm_name_of(row),
            "trained parameters": f"{int(np.median([run.metrics['trainable_parameters'] for run in done])):,}" if done else "",
            "epochs": str(int(np.median(epochs))) if any(epochs) else "",
            "best epoch": ", ".join(str(run.metrics["best_epoch"]) for run in done) if any(epochs) else "",
            f"{metric.label} elsewhere": "; ".join(f"{metric.shown(score)} ({source})" for score, source in others),
        })  # fmt: skip
    return pd.DataFrame(lines).replace("", NOTHING)


def field_table(study: Study, key: str) -> pd.DataFrame:
    """The field's metrics beyond the paper's on the test split: mean ± sample sd over seeds, per cent but for R²."""
    task, lines = study.corpus(key).task, []
    names = dict(_SCORE_METRICS) if task.kind == "regression" else dict(_CLASS_METRICS)
    names |= {f"f1_{label}": f"F1 {label}" for label in task.labels}
    for row in plan.comparison(key):
        stored = [run.metrics["test"] for run in sound(runs_of(study, key, row))]
        cells = []
        for name in names:
            scale, decimals = (1, 3) if name == "r2" else (100, 1)
            cells.append(spread([scale * scores[name] for scores in stored if name in scores], decimals))
        lines.append([row.name, *cells] if stored else [row.name, NOT_RUN, *cells[1:]])
    return pd.DataFrame(lines, columns=["method", *names.values()])


def every_answer(task: Task, runs: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """One line for each method, seed and test clip.

    Columns: method, seed, clip (its position), label, prediction, right; and `truth` and `answer`, the places of label and
    prediction among `group_names`, -1 for an unparsable reply.
    """
    tables = {(name, run.config.seed): run.predictions() for name, found in runs.items() for run in found}
    columns = ["method", "seed", "clip", "label", "prediction"]
    every = pd.concat(tables, names=columns[:3]).reset_index()[columns] if tables else pd.DataFrame(columns=columns)
    every["right"] = is_right(task, every)
    return every.assign(truth=groups(task, every["label"]), answer=groups(task, every["prediction"]))


def groups(task: Task, values: Sequence[float] | pd.Series) -> np.ndarray:
    """(N,) place of each class, or of each score on the scale in steps of `step` from -1 to 1; -1 where there is none."""
    places = np.asarray(values, float)
    if task.kind == "regression":
        # Rounded twice: 0.3 / 0.2 is 1.4999999999999998 in binary, and must not fall otherwise than 0.1 / 0.2.
        places = np.round(np.round((np.clip(places, -1, 1) + 1) / step(task), 6))
    return np.where(np.isfinite(places), places, -1).astype(int)


def group_names(task: Task) -> list[str]:
    """What `groups` counts: class names, or scores as they are written."""
    return list(task.labels) or [show_answer(task, step(task) * place - 1) for place in range(round(2 / step(task)) + 1)]


def step(task: Task) -> float:
    """Between the scores that are counted together, inside: `STEP`, or such that each whole number of the owner's is one."""
    length = 2 * task.unit
    return 2 / (10 // length * length) if task.is_scaled and length in range(1, 11) else STEP


def answer_shares(task: Task, every: pd.DataFrame) -> dict[str, np.ndarray]:
    """Method -> (C, C) share of the clips of each label (rows) that is answered so (columns), its seeds together.

    C are `group_names`. A row sums to less than 1 where replies were unparsable, and to 0 where no clip has the label.
    """
    places = range(len(group_names(task)))
    counts = {str(name): pd.crosstab(one["truth"], one["answer"]) for name, one in every.groupby("method", sort=False)}
    shares = {name: one.div(one.sum(axis=1), axis=0) for name, one in counts.items()}
    return {name: one.reindex(index=places, columns=places, fill_value=0).to_numpy() for name, one in shares.items()}


def confusions(study: Study, key: str) -> dict[str, np.ndarray]:
    """Row's name -> (C, C) share of each true class (rows) that is answered so (columns), all seeds together."""
    task, runs = study.corpus(key).task, {row.name: sound(runs_of(study, key, row)) for row in plan.comparison(key)}
    return answer_shares(task, every_answer(task, runs))


Pair = tuple[Mapping[str, str], ResultRow, ResultRow | None]  # the words of a line, what it is about, and beside what


def side_by_side(pairs: Iterable[Pair], shown: Sequence[Metric], columns: Mapping[str, str]) -> pd.DataFrame:
    """A line for each pair and metric: its words, the metric, then under each heading of `columns` what that says of them.

    "score" and "interval" are of the first of the two, "other" is the second's score; "difference" is the first minus the
    second with its paired interval, and "p" its p-value. A last column, note, says what either lacks.
    """
    lines = []
    for words, row, other in pairs:
        for metric in shown:
            score, interval = scored(metric, row)
            difference, paired, p_value = compared(metric, row, other)
            difference = NOTHING if paired == NOTHING else f"{difference} {paired}"
            cells = {"score": score, "interval": interval, "difference": difference, "p": p_value}
            if other and "other" in columns.values():
                cells["other"], _ = scored(metric, other)
            line = {**words, "metric": metric.label} | {heading: cells[what] for heading, what in columns.items()}
            lines.append(line | {"note": row.note or (other.note if other else "")})
    return pd.DataFrame(lines)


def versions(study: Study, key: str, rows: Sequence[Row], base: Row) -> pd.DataFrame:
    """Each row's test scores, mean ± sd over seeds with their interval, and the row minus `base` in its paired interval."""
    found = {row: result_row(study, key, row) for row in (base, *rows)}
    pairs = [({"version": row.name}, found[row], None if row == base else found[base]) for row in rows]
    columns = {"score": "score", "95 % CI": "interval", f"minus {base.name}": "difference", "p": "p"}
    return side_by_side(pairs, tabled(study, key), columns)


def labels(study: Study, key: str) -> pd.DataFrame:
    """By share of the training labels: with the pre-training, without, and the first minus the second."""
    pairs = [
        ({"labels": f"{share:.0%}"}, result_row(study, key, with_it), result_row(study, key, without))
        for share, (with_it, without) in plan.LABEL_SHARES.items()
    ]
    columns = {"pre-trained": "score", "not pre-trained": "other", "pre-trained minus not": "difference", "p": "p"}
    return side_by_side(pairs, tabled(study, key), columns)


def versions_table(study: Study, key: str, rows: Sequence[Row]) -> pd.DataFrame:
    """Rows beside the method each is a version of: the test score, and the version minus the method, in its paired interval."""
    wholes = [result_row(study, key, plan.method_row(key, row.method)) for row in rows]
    pairs = [
        ({"method": whole.method, "version": row.name}, result_row(study, key, row), whole)
        for row, whole in zip(rows, wholes, strict=True)
    ]
    columns = {"whole": "other", "this version": "score", "version minus whole": "difference"}
    return side_by_side(pairs, tabled(study, key)[:1], columns)


def search_table(study: Study, key: str) -> pd.DataFrame:
    """The small search that each trained method got: its best VALIDATION score at three learning rates, first seed."""
    metric, lines = tabled(study, key)[0], []
    for row in plan.trained(key):
        rate = next((f"{run.config.training.learning_rate:g}" for run in runs_of(study, key, row)), NOTHING)
        line = {"method": row.name, "metric": f"validation {metric.label}", "learning rate": rate}
        for factor, tried in plan.search(row).items():
            done = sound(runs_of(study, key, tried)[:1])
            line[f"× {factor:g}"] = without_unit(metric, done[0].scores("valid")[metric.name]) if done else NOT_RUN
        lines.append(line)
    return pd.DataFrame(lines)


def of_every_corpus(
    study: Study, table: Callable[..., pd.DataFrame], rows: Callable[[str], Sequence[Row]] | None = None
) -> pd.DataFrame:
    """`table` of each of the study's corpora, one below the other; `rows`: what of a corpus it is about."""
    parts = [table(study, key, *([rows(key)] if rows else [])).assign(corpus=study.corpus(key).name) for key in study.keys]
    return pd.concat(parts, ignore_index=True)[["corpus", *parts[0].columns.drop("corpus")]]


@dataclass(frozen=True)
class Versus:
    """What `versus` finds.

    `fields`: config field -> its value in A and in B, None where a method has no such field; `shared`: those of them that
    both have. `scores`: a line for each tabled metric, as `ResultRow.scores`: metric, a and b (by seed), difference A - B
    with low and high of its 95 % interval and p_value, better ("A" or "B" where the interval leaves out 0, else "").
    `clips`: a line for each test clip, most changed first: id, label, A's and B's answers, whether each is right and their
    mean errors. With several seeds a side is right where more than half of its runs are. `left_out`: clips without a score
    of some run. `near`: how far from the label a score may be to be right, 0 for classes.
    """

    fields: dict[str, tuple[Any, Any]]
    shared: frozenset[str]
    scores: pd.DataFrame
    clips: pd.DataFrame
    left_out: int
    near: float

    def only_right(self, side: str) -> int:
        """How many clips this side alone answers rightly."""
        other = {"a": "b", "b": "a"}[side]
        return int((self.clips[f"{side}_right"] & ~self.clips[f"{other}_right"]).sum())


def versus(a: Sequence[Run], b: Sequence[Run]) -> Versus:
    """Compare two sides of finished runs, which differ within a side in their seed alone.

    Raises:
        ValueError: they are not of one corpus with one test split; says which.
        FileNotFoundError, Damaged: as `Run.check`.
    """
    runs = [*a, *b]
    data = {(run.config.data.name, run.config.data.fingerprint) for run in runs}
    if len(data) > 1:
        said = " and ".join(sorted(f"'{name}' ({fingerprint[:8]})" for name, fingerprint in data))
        raise ValueError(f"expected runs on one corpus, these are on {said}: their test clips are not the same")
    tables = [run.predictions() for run in runs]
    for run, table in zip(runs, tables, strict=True):
        if not (table["id"].equals(tables[0]["id"]) and table["label"].equals(tables[0]["label"])):
            raise ValueError(f"{run.folder.name} and {runs[0].folder.name} do not answer the same test clips in one order")
    task = Inputs.from_json(runs[0].path(CLIPS).read_text(encoding="utf-8")).task
    scores, left_out = _scores(task, tables[: len(a)], tables[len(a) :])
    found = differing(a[0], b[0], len(runs) == 2)
    near = 0.0 if task.labels else NEAR * task.unit
    shared = frozenset(found) & fields(a[0].config).keys() & fields(b[0].config).keys()
    return Versus(found, shared, scores, _clips(task, tables[: len(a)], tables[len(a) :]), left_out, near)


def differing(a: Run, b: Run, with_seed: bool = True) -> dict[str, tuple[Any, Any]]:
    """The config fields in which two runs differ, with both values."""
    one, other = fields(a.config), fields(b.config)
    names = [name for name in dict.fromkeys([*one, *other]) if with_seed or name != "seed"]
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def _scores(task: Task, a: Sequence[pd.DataFrame], b: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, int]:
    answers = [np.stack([table["prediction"].to_numpy(float) for table in side]) for side in (a, b)]
    kept = np.isfinite(np.vstack(answers)).all(axis=0) | (task.kind == "classification")
    if not kept.any():
        raise ValueError("no test clip has a score of every run: there is nothing to compare")
    if task.kind == "classification":
        answers = [np.nan_to_num(side, nan=metrics.UNPARSABLE).astype(int) for side in answers]
    truth, lines = a[0]["label"].to_numpy()[kept], []
    one, other = (ResultRow("", "", truth=truth, predictions=side[:, kept], unit=task.unit) for side in answers)
    for metric in metrics.TABLED[task.kind]:
        found = one.minus(other, metric.name)
        better = "" if found.low <= 0 <= found.high else "A" if metric.is_better(found.difference, 0) else "B"
        scores = {"a": one.scores(metric.name).tolist(), "b": other.scores(metric.name).tolist()}
        lines.append({"metric": metric.name, **scores, **vars(found), "better": better})
    return pd.DataFrame(lines), int((~kept).sum())


def _clips(task: Task, a: Sequence[pd.DataFrame], b: Sequence[pd.DataFrame]) -> pd.DataFrame:
    lines = {"id": a[0]["id"], "label": [show_answer(task, value) for value in a[0]["label"]]}
    for side, tables in (("a", a), ("b", b)):
        answers = zip(*(table["prediction"] for table in tables), strict=True)
        shown = [[show_answer(task, value) for value in values] for values in answers]
        lines[side] = [one[0] if len(set(one)) == 1 else "/".join(one) for one in shown]  # once where all seeds agree
        lines[f"{side}_right"] = np.mean([is_right(task, table) for table in tables], axis=0) > 0.5
        lines[f"{side}_error"] = np.mean([errors(task, table) for table in tables], axis=0) * task.unit
    changed = (np.abs(lines["a_error"] - lines["b_error"]) / task.unit).round(6)
    return pd.DataFrame(lines).iloc[np.argsort(-changed, kind="stable")].reset_index(drop=True)
