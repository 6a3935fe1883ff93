"""How sure a trained method is of its answers, whether rightly so, and the clips on which it was surest and wrong.

A run stores answers without their probabilities. They are computed anew from its weights, which costs what one evaluation
of the test split costs; the run's files stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cmpta_lib.data.corpus import Corpus, Task
from cmpta_lib.figures import clips
from cmpta_lib.figures.answers import ClipAnswer, calibration_error, reliability
from cmpta_lib.report.errors import COMPARED
from cmpta_lib.report.export import NOTHING
from cmpta_lib.report.rows import described
from cmpta_lib.report.tables import NOT_RUN
from cmpta_lib.study.plan import CMPTA, TEXT_ONLY
from cmpta_lib.study.study import Study

if TYPE_CHECKING:
    from cmpta_lib.runs.load import TrainedRun

WORST = 10  # clips in the exported table
BINS = 10
DRAWS = 1000  # imagined test splits, on which a method is exactly as sure as right
INTERVALS = (50, 90)  # per cent


@dataclass(frozen=True, eq=False)
class Answers:
    """One run's answers to the test split, with the probability of everything that it could have said.

    Attributes:
        predictions: as the run stores them, in the split's order.
        names: the A legal answers as a reader sees them.
        values: (A,) their scores, ascending, or class indices.
        probabilities: (N, A) float, rows sum to 1.
        other: clips that the loaded run answers otherwise than it once did (another machine rounds otherwise).
    """

    predictions: pd.DataFrame
    names: tuple[str, ...]
    values: np.ndarray
    probabilities: np.ndarray
    other: int = 0


def answers_of(trained: TrainedRun, corpus: Corpus) -> Answers:
    """Answer the test split again, for the probabilities.

    Raises:
        ValueError: the method gives a number only.
    """
    stored, found = trained.run.predictions(), trained.predict(corpus.splits["test"])
    names = tuple(found[0].probabilities)
    if not names:
        name = trained.run.config.method.name
        raise ValueError(f"run {trained.run.folder.name}: its method '{name}' gives no probabilities, so none can be judged")
    labels = corpus.task.labels
    values = np.array([labels.index(name) if labels else float(name) for name in names])
    now = np.array([np.nan if answer.value is None else answer.value for answer in found], float)
    same = np.isclose(now, stored["prediction"].to_numpy(float), atol=clips.ROUNDING, equal_nan=True)
    probabilities = np.array([list(answer.probabilities.values()) for answer in found])
    return Answers(stored, names, values, probabilities, int((~same).sum()))


def probability_of(task: Task, answers: Answers, targets: np.ndarray) -> np.ndarray:
    """(N,) probability of what counts as right for these targets: the class, or every score within `clips.NEAR`.

    With the answers as targets that is the confidence, with the labels the probability given to the truth. NaN for a
    target that is NaN.
    """
    near = clips.NEAR + clips.ROUNDING if task.kind == "regression" else 0.5
    targets = np.asarray(targets, float)
    right = np.abs(answers.values - targets[:, None]) <= near
    return np.where(np.isfinite(targets), np.minimum((answers.probabilities * right).sum(1), 1.0), np.nan)


def confidence(task: Task, answers: Answers) -> np.ndarray:
    """(N,) the probability that a method itself gives to its answer being right; NaN where the reply was unparsable."""
    return probability_of(task, answers, answers.predictions["prediction"].to_numpy())


def judged(task: Task, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    """(M,) confidence and (M,) bool whether right, of the clips whose reply is an answer."""
    sure = confidence(task, answers)
    known = np.isfinite(sure)
    return sure[known], clips.is_right(task, answers.predictions)[known]


def all_judged(task: Task, found: Mapping[str, Answers]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What `calibration_figure` draws: `judged` of every method that has given any answer."""
    return {name: pair for name, answers in found.items() if len((pair := judged(task, answers))[0])}


def calibration_table(task: Task, found: Mapping[str, Answers]) -> pd.DataFrame:
    """How sure and how right, one column for each compared method; per cent of the clips whose reply is an answer.

    The calibration error is that of `BINS` bins of equally many answers; the line below it is `imagined_errors`.
    """
    columns = {name: _calibration(task, found[name]) if name in found else {} for name in COMPARED}
    measures = dict.fromkeys(measure for column in columns.values() for measure in column)
    rows = [
        {"measure": what} | {name: column.get(what, NOTHING if column else NOT_RUN) for name, column in columns.items()}
        for what in measures
    ]
    return pd.DataFrame(rows, columns=["measure", *columns])


def _calibration(task: Task, answers: Answers) -> dict[str, str]:
    sure, right = judged(task, answers)
    lines = {"clips": str(len(answers.probabilities))}
    if odd := len(answers.probabilities) - len(sure):
        lines["unparsable replies"] = str(odd)
    if answers.other:
        lines["answered otherwise than in the stored run"] = str(answers.other)
    if not len(sure):
        return lines
    lines |= {
        "right": _percent(right),
        "mean confidence": _percent(sure),
        "mean confidence where right": _percent(sure[right]),
        "mean confidence where wrong": _percent(sure[~right]),
        "expected calibration error": _percent(calibration_error(reliability(sure, right, BINS))),
    }
    lines["the same, were it exactly as sure as right"] = (
        f"{_percent(imagined := imagined_errors(sure))} (95 %: {_percent(np.quantile(imagined, 0.95))} at most)"
    )
    if task.kind == "regression":
        for percent in INTERVALS:
            inside, mass = central_interval(answers, percent / 100)
            lines[f"labels in the central {percent} % interval"] = f"{_percent(inside)} (its probability: {_percent(mass)})"
    return lines


def imagined_errors(sure: np.ndarray, seed: int = 0) -> np.ndarray:
    """(DRAWS,) calibration errors of a method that is exactly as sure as right, by the chance of finitely many clips.

    Args:
        sure: (M,) its confidences in [0, 1], of which each answer is right with just that probability.
    """
    sure = np.sort(sure)
    right = np.random.default_rng(seed).random((DRAWS, len(sure))) < sure
    counts = reliability(sure, right[0], BINS)["count"].to_numpy()  # bins follow the confidence alone
    gaps = np.add.reduceat(right - sure, counts.cumsum() - counts, axis=1)
    errors: np.ndarray = np.abs(gaps).sum(1) / len(sure)
    return errors


def _percent(values: object) -> str:
    mean = np.mean(values) if np.size(values) else np.nan  # type: ignore[arg-type, call-overload]
    return f"{100 * mean:.1f}" if np.isfinite(mean) else NOTHING


def central_interval(answers: Answers, share: float) -> tuple[np.ndarray, np.ndarray]:
    """(N,) whether the label lies in the interval that leaves (1 - share) / 2 out on either side, and (N,) its probability.

    Scores are few, so an interval's probability is more than `share`; a label between two scores counts as the nearer.
    """
    labels = answers.predictions["label"].to_numpy(float)
    place = np.abs(answers.values - labels[:, None]).argmin(1)
    total = answers.probabilities.cumsum(1)
    tail = (1 - share) / 2
    last = answers.probabilities.shape[1] - 1
    low, high = ((total < edge - 1e-9).sum(1).clip(max=last) for edge in (tail, 1 - tail))
    rows = np.arange(len(labels))
    return (low <= place) & (place <= high), total[rows, high] - total[rows, low] + answers.probabilities[rows, low]


def worst_first(task: Task, answers: Answers) -> np.ndarray:
    """(N,) positions of all clips, the largest error first, among equals the surest, then in the split's order."""
    error = np.round(clips.errors(task, answers.predictions), 6)
    return np.lexsort((-np.nan_to_num(confidence(task, answers), nan=-1.0), -error))


def worst_table(corpus: Corpus, found: Mapping[str, Answers], number: int = WORST) -> pd.DataFrame:
    """The clips that CMPTA gets most wrong, `worst_first`, each with its words whole and what happened.

    Fewer than `number` where fewer are wrong.

    Raises:
        ValueError: `number` is no positive whole number.
    """
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"worst={number!r}: expected how many clips to show, a whole number from 1")
    task, table = corpus.task, corpus.splits["test"].table
    ours, theirs = found[CMPTA.name], found.get(TEXT_ONLY.name)
    right = clips.is_right(task, ours.predictions)
    sure, on_label = confidence(task, ours), probability_of(task, ours, ours.predictions["label"].to_numpy())
    rows = []
    for place in [place for place in worst_first(task, ours) if not right[place]][:number]:
        clip = table.iloc[place]
        speaker = NOTHING if pd.isna(clip["speaker"]) else clip["speaker"]
        line = {"clip": clip["id"], "speaker": speaker, "text": clip["text"]}
        line |= {"label": label_text(task, clip["label"]), "on the label (%)": _percent(on_label[place])}
        line |= {"CMPTA": _said(task, ours, place), "sure (%)": _percent(sure[place])}
        line["text only"] = NOT_RUN if theirs is None else _said(task, theirs, place)
        line["what happened"] = "; ".join([_verdict(task, ours, theirs, place), *_known_truth(corpus, place)])
        rows.append(line)
    if not rows:
        return pd.DataFrame({"clip": [NOTHING], "what happened": ["CMPTA answers every test clip rightly"]})
    shown = pd.DataFrame(rows)
    return shown if (shown["speaker"] != NOTHING).any() else shown.drop(columns="speaker")


def label_text(task: Task, label: float) -> str:
    """A label for a reader: as an answer, or with two decimals where no answer of one decimal is the same score."""
    if task.kind == "regression" and abs(label - round(label, 1)) > clips.ROUNDING:
        return f"{label:+.2f}"
    return clips.show_answer(task, label)


def _said(task: Task, answers: Answers, place: int) -> str:
    return clips.show_answer(task, answers.predictions["prediction"].iloc[place])


def _verdict(task: Task, ours: Answers, theirs: Answers | None, place: int) -> str:
    """How text only fares on a clip that CMPTA gets wrong."""
    if theirs is None:
        return "CMPTA wrong"
    if clips.is_right(task, theirs.predictions)[place]:
        return "text only right, CMPTA wrong"
    mine, other = (clips.errors(task, one.predictions)[place] for one in (ours, theirs))
    if task.kind == "classification" or abs(mine - other) <= clips.ROUNDING:
        same = _said(task, ours, place) == _said(task, theirs, place)
        return f"both wrong, {'with the same answer' if same else 'each in its own way'}"
    return f"both wrong, {'text only' if other < mine else 'CMPTA'} less"


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


def unavoidable(corpus: Corpus, answers: Answers) -> str:
    """For a caption: how many of the wrong answers the best possible answer would share; "" for real clips."""
    if not corpus.has_known_truth:
        return ""
    table = corpus.splits["test"].table
    best = pd.DataFrame({"label": table["label"], "prediction": table["bayes_all"]})
    wrong = ~clips.is_right(corpus.task, answers.predictions)
    shared = int((wrong & ~clips.is_right(corpus.task, best)).sum())
    return f" Of its {wrong.sum()} wrong answers, the best possible answer from all that the clip holds is wrong in {shared}."


def clips_to_show(
    corpora: Mapping[str, Corpus], found: Mapping[str, Mapping[str, Answers]], clip_id: str = ""
) -> dict[str, tuple[int, str]]:
    """Corpus key -> position of the test clip to look at, and the rule that chose it; only where CMPTA was run.

    Raises:
        ValueError: no corpus has a test clip with this id.
    """
    usable = [key for key in corpora if CMPTA.name in found.get(key, {})]
    if not clip_id:
        rule = "the one that CMPTA gets most wrong, among equals the one that it was surest of"
        return {key: (int(worst_first(corpora[key].task, found[key][CMPTA.name])[0]), rule) for key in usable}
    ids = {key: list(corpus.splits["test"].table["id"]) for key, corpus in corpora.items()}
    if not any(clip_id in known for known in ids.values()):
        first = "; ".join(f"{corpora[key].name}: {', '.join(known[:3])}, ..." for key, known in ids.items())
        raise ValueError(f"clip={clip_id!r} is no test clip of this study; their ids: {first}")
    return {key: (ids[key].index(clip_id), clips.BY_HAND) for key in usable if clip_id in ids[key]}


def clip_title(study: Study, key: str, place: int, rule: str) -> str:
    """What a figure of one test clip is called: the clip, its corpus, the seed, and the rule that chose it."""
    clip_id = study.corpus(key).splits["test"].table["id"].iloc[place]
    return f"Test clip {clip_id} of {described(study, key)}, seed {study.seeds[0]}: {rule}"


def clip_answers(corpus: Corpus, found: Mapping[str, Answers], place: int) -> dict[str, ClipAnswer]:
    """Method -> its answer to one test clip with the probability of each, as `figures.answers` draws it."""
    drawn = {}
    for name, answers in found.items():
        label, said = (answers.predictions[column].iloc[place] for column in ("label", "prediction"))
        chosen = int(np.abs(answers.values - said).argmin()) if np.isfinite(said) else None
        truth = int(np.abs(answers.values - label).argmin())
        drawn[name] = ClipAnswer(_said(corpus.task, answers, place), answers.names, answers.probabilities[place], chosen, truth)
    return drawn
