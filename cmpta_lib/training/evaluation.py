"""Answering a split and scoring the answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from cmpta_lib import metrics
from cmpta_lib.data.corpus import Corpus, Split
from cmpta_lib.methods.prompted_lm import CMPTA


def evaluate(
    model: CMPTA, split: Split, progress: Callable[[Iterable], Iterable] = lambda items: items
) -> pd.DataFrame:
    """Answer every clip of a split: columns id, label, reply, prediction (NaN where a free reply is unparsable).

    Clips are batched by length, so that little padding is made; the rows come back in the split's order, and no answer
    depends on its batch.
    """
    was_training = model.training
    model.eval()
    size = model.config.evaluation.batch_size
    lengths = split.table["audio_length"].to_numpy() + split.table["vision_length"].to_numpy()
    order = np.argsort(lengths, kind="stable")
    replies: list[str | None] = [None] * len(split)
    for start in progress(range(0, len(order), size)):
        rows = order[start : start + size]
        for row, reply in zip(rows, model.answer(model.collate([split[int(i)] for i in rows])), strict=True):
            replies[row] = reply
    model.train(was_training)
    values = [model.answers[r] if r is not None else np.nan for r in replies]
    return pd.DataFrame({"id": split.table["id"], "label": split.labels, "reply": replies, "prediction": values})


def score_of(predictions: pd.DataFrame, corpus: Corpus) -> dict[str, float]:
    """Metrics of a prediction table. Unparsable replies: wrong for a class; for a score left out, and counted."""
    truth, answer = predictions["label"].to_numpy(), predictions["prediction"].to_numpy(float)
    parsed = np.isfinite(answer)
    if corpus.task.kind == "classification":
        return metrics.classification_metrics(
            truth, np.where(parsed, answer, metrics.UNPARSABLE).astype(int), corpus.task.labels
        )
    if parsed.sum() < 2:  # nothing to correlate; without any answer a score that never wins a comparison
        mae = float(np.abs(truth[parsed] - answer[parsed]).mean()) if parsed.any() else math.inf
        return {"mae": mae, "unparsable_count": float((~parsed).sum())}
    scores = metrics.regression_metrics(truth[parsed], answer[parsed])
    return scores | {"unparsable_count": float((~parsed).sum())}
