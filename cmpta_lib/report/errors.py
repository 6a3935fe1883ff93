"""What CMPTA and text only get wrong: answers and errors by label, who is right, how sure each is, and the worst clips.

What is counted comes from stored answers, which have no probabilities. Those are computed anew from a run's weights, which
costs what one evaluation of the test split costs; the run's files stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cmpta_lib import metrics
from cmpta_lib.data.corpus import Corpus, Task
from cmpta_lib.figures import clips
from cmpta_lib.figures.answers import ClipAnswer, calibration_error, reliability
from cmpta_lib.report.comparison import group_names
from cmpta_lib.report.rows import runs_of, unusable
from cmpta_lib.report.tables import NOT_RUN, NOTHING
from cmpta_lib.report.uncertainty import spread
from cmpta_lib.runs.store import Run
from cmpta_lib.study.plan import CMPTA, TEXT_ONLY, Row
from cmpta_lib.study.study import Study

if TYPE_CHECKING:
    from cmpta_lib.study.trained import TrainedRun

COMPARED: Mapping[str, Row] = {row.name: row for row in (CMPTA, TEXT_ONLY)}
ALL = "all"
WORST = 10  # clips in the exported table
BINS = 10
DRAWS = 1000  # imagined test splits, on which a method is exactly as sure as right
INTERVALS = (50, 90)  # per cent
_MEASURES: Mapping[str, Mapping[str, int]] = {  # kind of task -> measure -> its decimals
    "classification": {"precision (%)": 1, "recall (%)": 1, "F1 (%)": 1},
    "regression": {"mean error": 3, "mean absolute error": 3, "wrong sign (%)": 1},
}


def whole_runs(study: Study, key: str) -> dict[str, list[Run]]:
    """The runs of CMPTA and text only; none of a method of which any seed is missing."""
    found = {name: runs_of(study, key, row) for name, row in COMPARED.items()}
    return {name: [] if unusable(runs) else runs for name, runs in found.items()}


def per_label_table(task: Task, every: pd.DataFrame) -> pd.DataFrame:
    """How each label is answered: mean ± sample sd over seeds, a class's or a score's measures, a last line for all.

    Classes: precision, recall and F1 in per cent. Scores, gathered by `comparison.step`: the mean error (answer minus label), the
    mean absolute error, and the share on the wrong side of Acc-2, in which the middle counts as negative. Unparsable replies are
    wrong for a class; for a score they are left out, and counted in a column of their own where there are any.
    """
    names, counts = group_names(task), every.drop_duplicates("clip")["truth"].value_counts()
    if every.empty:
        return pd.DataFrame(columns=["label", "clips"])
    shown = [place for place in range(len(names)) if place in counts or task.labels]
    lines = [(names[place], str(counts.get(place, 0))) for place in shown] + [(ALL, str(counts.sum()))]
    table = pd.DataFrame(lines, columns=["label", "clips"])
    measures = _class_measures if task.kind == "classification" else _score_measures
    for name in COMPARED:
        seeds = [one for _, one in every[every["method"] == name].groupby("seed")]
        found = np.array([measures(task, one) for one in seeds])
        for number, (what, decimals) in enumerate(_MEASURES[task.kind].items()):
            what = what.replace("sign", f"side of {task.to_range(0.0):g}") if task.is_scaled else what
            table[f"{name}: {what}"] = [spread(found[:, number, place], decimals) for place in (*shown, -1)] if seeds else NOT_RUN
        odd = [int((one["answer"] < 0).sum()) for one in seeds]
        if any(odd):
            table[f"{name}: unparsable"] = [NOTHING] * len(shown) + [spread(odd, 1)]
    return table


def _class_measures(task: Task, one: pd.DataFrame) -> np.ndarray:
    """(3, C + 1) per cent, the last for all classes, weighted by their clips; NaN where nothing is defined."""
    from sklearn.metrics import precision_recall_fscore_support as scores

    answers, labels = (one["truth"], one["answer"]), range(len(task.labels))
    each = scores(*answers, labels=labels, average=None, zero_division=np.nan)[:3]
    return 100 * np.column_stack([each, scores(*answers, labels=labels, average="weighted", zero_division=0)[:3]])


def _score_measures(task: Task, one: pd.DataFrame) -> np.ndarray:
    """(3, C + 1), the last for all clips; NaN where no clip has the label or none was answered."""
    parsed = one[one["answer"] >= 0]
    truth, answer = (metrics.sentiment_scores(parsed[name], name) for name in ("label", "prediction"))
    error = (answer.astype(float) - truth) * task.unit
    found = pd.DataFrame({"error": error, "size": np.abs(error), "wrong": 100.0 * ((truth > 0) != (answer > 0))})
    means = found.groupby(parsed["truth"].to_numpy()).mean().reindex(range(len(group_names(task))))
    return np.column_stack([means.T, found.mean()])


def agreement_table(task: Task, every: pd.DataFrame) -> pd.DataFrame:
    """How many clips both methods answer rightly, one alone, or none: mean ± sample sd over the seeds that both have.

    One line for each class, or for scores below, at and above the middle, and one for all clips.
    """
    right = (every[every["method"] == name].pivot(index="seed", columns="clip", values="right") for name in COMPARED)
    ours, theirs = next(right).align(next(right), join="inner")
    verdicts = {"both right": ours & theirs, "only CMPTA right": ours & ~theirs}
    verdicts |= {"only text only right": ~ours & theirs, "neither right": ~ours & ~theirs}
    labels, rows = every.drop_duplicates("clip").set_index("clip")["label"], []
    parts = {name: labels == place for place, name in enumerate(task.labels)}
    middle = f"{task.to_range(0.0):g}"
    parts = parts or {f"below {middle}": labels < 0, middle: labels == 0, f"above {middle}": labels > 0}
    for name, members in (parts | {ALL: labels.notna()}).items() if len(labels) else ():
        counts = [of_seed.loc[:, members].sum(axis=1) for of_seed in verdicts.values()] if len(ours) else []
        cells = [spread(count, 0 if len(ours) == 1 else 1) for count in counts] or [NOT_RUN] * len(verdicts)
        rows.append([name, str(members.sum()), *cells])
    return pd.DataFrame(rows, columns=["label", "clips", *verdicts])


def answers_of(trained: TrainedRun, corpus: Corpus) -> pd.DataFrame:
    """One run's stored answers to the test split beside the probability of everything that it could have said.

    Returns:
        a line for each clip, in the split's order: id, label, prediction, `said` for a reader, `right`, `error`; `chances`,
        legal answer -> its probability; the probability of what counts as right (the class, or every score within
        `clips.NEAR`): `sure` were the answer the truth (NaN where it is unparsable), `on_label`; and `same`, whether the
        loaded run still answers so (another machine rounds otherwise).
    Raises:
        ValueError: the method gives a number only.
    """
    table, found, task = trained.run.predictions(), trained.predict(corpus.splits["test"], strict=False), corpus.task
    if not found[0].probabilities:
        name = trained.run.config.method.name
        raise ValueError(f"run {trained.run.folder.name}: its method '{name}' gives no probabilities, so none can be judged")
    now = task.from_range(np.array([answer.value for answer in found], float))  # None is NaN
    table = table.assign(
        said=[clips.show_answer(task, value) for value in table["prediction"]],
        right=clips.is_right(task, table),
        error=np.round(clips.errors(task, table), 6),
        chances=[answer.probabilities for answer in found],
        same=np.isclose(now, table["prediction"].to_numpy(float), atol=clips.ROUNDING, equal_nan=True),
    )
    values, probabilities = _chances(task, table)
    near = 0.5 if task.labels else clips.NEAR + clips.ROUNDING
    for name, column in (("sure", "prediction"), ("on_label", "label")):
        truth = table[column].to_numpy(float)
        chance = (probabilities * (np.abs(values - truth[:, None]) <= near)).sum(1)
        table[name] = np.where(np.isfinite(truth), np.minimum(chance, 1.0), np.nan)
    return table


def _chances(task: Task, answers: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(A,) the legal answers, ascending scores or class indices, and (N, A) their probabilities, rows sum to 1."""
    chances = pd.DataFrame([*answers["chances"]])
    values = [task.labels.index(name) if task.labels else task.from_range(float(name)) for name in chances]
    return np.array(values), chances.to_numpy(float)


def judged(answers: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(M,) confidence and (M,) bool whether right, of the clips whose reply is an answer: what `calibration_figure` draws."""
    known = answers.dropna(subset="sure")
    return known["sure"].to_numpy(), known["right"].to_numpy()


def worst_first(answers: pd.DataFrame) -> pd.DataFrame:
    """The largest error first, among equals the surest, then in the split's order."""
    return answers.sort_values(["error", "sure"], ascending=False, kind="stable")


def calibration_table(task: Task, found: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How sure and how right, one column for each compared method; per cent of the clips whose reply is an answer.

    The calibration error is that of `BINS` bins of equally many answers; the line below it is `imagined_errors`.
    """
    columns = {name: _calibration(task, answers) for name, answers in found.items()}
    table = pd.DataFrame({"measure": list(dict.fromkeys(measure for column in columns.values() for measure in column))})
    for name in COMPARED:
        table[name] = table["measure"].map(columns[name]).fillna(NOTHING) if name in columns else NOT_RUN
    return table


def _calibration(task: Task, answers: pd.DataFrame) -> dict[str, str]:
    (sure, right), total = judged(answers), len(answers)
    counts = {"unparsable replies": total - len(sure), "answered otherwise than in the stored run": (~answers["same"]).sum()}
    lines = {"clips": str(total)} | {what: str(count) for what, count in counts.items() if count}
    if not len(sure):
        return lines
    imagined = imagined_errors(sure)
    lines |= {
        "right": _percent(right),
        "mean confidence": _percent(sure),
        "mean confidence where right": _percent(sure[right]),
        "mean confidence where wrong": _percent(sure[~right]),
        "expected calibration error": _percent(calibration_error(reliability(sure, right, BINS))),
        "the same, were it exactly as sure as right":
            f"{_percent(imagined)} (95 %: {_percent(np.quantile(imagined, 0.95))} at most)",
    }  # fmt: skip
    for percent in INTERVALS if task.kind == "regression" else ():
        inside, mass = central_interval(task, answers, percent / 100)
        lines[f"labels in the central {percent} % interval"] = f"{_percent(inside)} (its probability: {_percent(mass)})"
    return lines


def imagined_errors(sure: np.ndarray) -> np.ndarray:
    """(DRAWS,) calibration errors by chance alone, were each answer right with just its probability in `sure`, (M,)."""
    sure = np.sort(sure)
    right = np.random.default_rng(0).random((DRAWS, len(sure))) < sure
    counts = reliability(sure, right[0], BINS)["count"].to_numpy()  # bins follow the confidence alone
    gaps = np.add.reduceat(right - sure, counts.cumsum() - counts, axis=1)
    return np.asarray(np.abs(gaps).sum(1) / len(sure))


def _percent(values: object) -> str:
    mean = np.mean(values) if np.size(values) else np.nan  # type: ignore[arg-type, call-overload]
    return f"{100 * mean:.1f}" if np.isfinite(mean) else NOTHING


def central_interval(task: Task, answers: pd.DataFrame, share: float) -> tuple[np.ndarray, np.ndarray]:
    """(N,) whether the label lies in the interval that leaves (1 - share) / 2 out on either side, and (N,) its probability.

    Scores are few, so an interval's probability is more than `share`; a label between two scores counts as the nearer.
    """
    values, probabilities = _chances(task, answers)
    place = np.abs(values - answers["label"].to_numpy(float)[:, None]).argmin(1)
    total, tail = probabilities.cumsum(1), (1 - share) / 2
    low, high = ((total < edge - 1e-9).sum(1).clip(max=total.shape[1] - 1) for edge in (tail, 1 - tail))
    rows = np.arange(len(place))
    return (low <= place) & (place <= high), total[rows, high] - total[rows, low] + probabilities[rows, low]


def worst_table(corpus: Corpus, found: Mapping[str, pd.DataFrame], number: int = WORST) -> pd.DataFrame:
    """The `number` clips that CMPTA gets most wrong or fewer, `worst_first`, each with its words whole and what happened.

    Raises:
        ValueError: `number` is no positive whole number.
    """
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"worst={number!r}: expected how many clips to show, a whole number from 1")
    ours = worst_first(found[CMPTA.name]).query("not right").head(number)
    if ours.empty:
        return pd.DataFrame({"clip": [NOTHING], "what happened": ["CMPTA answers every test clip rightly"]})
    said, verdicts = NOT_RUN, np.full(len(ours), "CMPTA wrong")
    if TEXT_ONLY.name in found:
        theirs = found[TEXT_ONLY.name].loc[ours.index]
        said, alike, both = theirs["said"], theirs["error"] == ours["error"], "both wrong, "
        cases = {
            "text only right, CMPTA wrong": theirs["right"],
            f"{both}with the same answer": alike & (said == ours["said"]),
            f"{both}each in its own way": alike,
            f"{both}text only less": theirs["error"] < ours["error"],
        }
        verdicts = np.select([*cases.values()], [*cases], f"{both}CMPTA less")
    happened = [[verdict, *_known_truth(corpus, place)] for verdict, place in zip(verdicts, ours.index, strict=True)]
    table = corpus.splits["test"].table.iloc[ours.index]
    shown = pd.DataFrame({
        "clip": table["id"], "speaker": table["speaker"].fillna(NOTHING), "text": table["text"],
        "label": [label_text(corpus.task, label) for label in table["label"]],
        "on the label (%)": ours["on_label"].map(_percent), "CMPTA": ours["said"], "sure (%)": ours["sure"].map(_percent),
        "text only": said, "what happened": ["; ".join(parts) for parts in happened],
    })  # fmt: skip
    return shown if table["speaker"].notna().any() else shown.drop(columns="speaker")


def label_text(task: Task, label: float) -> str:
    """A label for a reader: as an answer, or with two decimals where no answer of one decimal is the same score."""
    if task.kind == "regression" and not task.is_scaled and abs(label - round(label, 1)) > clips.ROUNDING:
        return f"{label:+.2f}"
    return clips.show_answer(task, label)


def _known_truth(corpus: Corpus, place: int) -> list[str]:
    """What the generator knows of a test clip: the cues, whether they were shown, and the best that anyone could answer."""
    if not corpus.has_known_truth:
        return []
    clip, parts = corpus.splits["test"].table.iloc[place], []
    for modality, name in clips.CUES.items():
        if not clip[f"{modality}_length"]:
            parts.append(f"no {name} in the clip" + (f" (it would be: {clip[name]})" if clip[name] else ""))
        else:
            parts.append(f"{name}: {clip[name]}" if clip[f"{name}_start"] >= 0 else f"{name} shows nothing")
    said, away = clips.show_answer(corpus.task, clip["bayes_all"]), abs(clip["bayes_all"] - clip["label"])
    verdict = ("wrong too" if away else "right") if corpus.task.labels else f"off by {away:.1f}"
    return [*parts, f"the best answer from all that the clip holds: {said}, {verdict}"]


def avoidable(corpus: Corpus) -> np.ndarray:
    """(N,) bool: test clips whose best possible answer is right, so that a wrong one is the model's; all real clips."""
    if not corpus.has_known_truth:
        return np.ones(len(corpus.splits["test"]), bool)
    best = corpus.splits["test"].table[["label", "bayes_all"]].set_axis(["label", "prediction"], axis=1)
    return clips.is_right(corpus.task, best)


def clips_to_show(study: Study, found: Mapping[str, Mapping[str, pd.DataFrame]], clip_id: str = "") -> dict[str, tuple[int, str]]:
    """Corpus key -> position of the test clip to look at, and the rule that chose it; only where CMPTA was run.

    Raises:
        ValueError: none of these corpora has a test clip with this id.
    """
    shown, ours = {}, {key: answers[CMPTA.name] for key, answers in found.items() if CMPTA.name in answers}
    for key in clips.holding({key: study.corpus(key) for key in ours}, clip_id):
        fault = ~ours[key]["right"] & avoidable(study.corpus(key))
        worst = worst_first(ours[key][fault] if fault.any() else ours[key]).index[0]
        rule = f"CMPTA's worst {'avoidable ' * bool(fault.any() and study.corpus(key).has_known_truth)}error"
        place = ours[key].index[ours[key]["id"] == clip_id][0] if clip_id else worst
        shown[key] = int(place), clips.BY_HAND if clip_id else f"{rule}, among equals the one that it was surest of"
    return shown


def clip_answers(task: Task, found: Mapping[str, pd.DataFrame], place: int) -> dict[str, ClipAnswer]:
    """Method -> its answer to one test clip with the probability of each, as `figures.answers` draws it."""
    drawn = {}
    for name, answers in found.items():
        clip, (values, probabilities) = answers.iloc[place], _chances(task, answers)
        truth, chosen = (int(np.abs(values - clip[column]).argmin()) for column in ("label", "prediction"))
        is_answer = np.isfinite(clip["prediction"])
        drawn[name] = ClipAnswer(clip["said"], [*clip["chances"]], probabilities[place], chosen if is_answer else None, truth)
    return drawn
