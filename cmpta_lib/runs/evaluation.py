"""Answering a split and scoring the answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from cmpta_lib import metrics
from cmpta_lib.base import Method
from cmpta_lib.data.corpus import Split, Task


def units(split: Split, unit: Literal["clip", "dialogue"]) -> Sequence[Sequence[int]]:
    """What batches are drawn from: every clip alone, or the clips of a dialogue together, in the split's order."""
    return [[index] for index in range(len(split))] if unit == "clip" else dialogues(split.table["dialogue"])


def dialogues(names: Iterable[object]) -> list[list[int]]:
    """Places of the clips of each dialogue, however they are mixed; a clip without one (None, NaN) is one of its own."""
    found: dict[object, list[int]] = {}
    for place, name in enumerate(names):
        found.setdefault(name if isinstance(name, str) else ("clip", place), []).append(place)
    return list(found.values())


def evaluate(
    method: Method, split: Split, batch_size: int, progress: Callable[[Iterable], Iterable] = lambda items: items
) -> tuple[pd.DataFrame, Counter[str]]:
    """Answer every clip of a split: columns id, label, reply, prediction (NaN where a reply is no legal answer).

    Units are batched by length, so that little padding is made; the rows come back in the split's order, and no answer
    depends on its batch. Also returns what was odd, each clip counted once.
    """
    was_training = method.module.training
    method.module.eval()
    frames = split.table["audio_length"].to_numpy() + split.table["vision_length"].to_numpy()
    drawn = units(split, method.unit)
    order = np.argsort([frames[list(unit)].max() for unit in drawn], kind="stable")
    replies: list[str | None] = [None] * len(split)
    values = np.full(len(split), np.nan)
    issues: Counter[str] = Counter()
    for start in progress(range(0, len(order), batch_size)):
        rows = [row for place in order[start : start + batch_size] for row in drawn[place]]
        batch = method.collate([split[row] for row in rows])
        answered = method.predict(batch)
        values[rows] = answered.values
        for row, reply in zip(rows, answered.replies, strict=True):
            replies[row] = reply
        issues.update(batch.issues)
        issues.update(answered.issues)
    method.module.train(was_training)
    table = {"id": split.table["id"], "label": split.labels, "reply": replies, "prediction": values}
    return pd.DataFrame(table), issues


def score_of(predictions: pd.DataFrame, task: Task) -> dict[str, float]:
    """Metrics of a prediction table. Unparsable replies: wrong for a class; for a score left out, and counted."""
    truth, answer = predictions["label"].to_numpy(), predictions["prediction"].to_numpy(float)
    parsed = np.isfinite(answer)
    if task.kind == "classification":
        return metrics.classification_metrics(
            truth, np.where(parsed, answer, metrics.UNPARSABLE).astype(int), task.labels
        )
    if parsed.sum() < 2:  # nothing to correlate; without any answer a score that never wins a comparison
        mae = float(np.abs(truth[parsed] - answer[parsed]).mean()) if parsed.any() else math.inf
        return {"mae": mae, "unparsable_count": float((~parsed).sum())}
    scores = metrics.regression_metrics(truth[parsed], answer[parsed])
    return scores | {"unparsable_count": float((~parsed).sum())}
