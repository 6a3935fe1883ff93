"""Two runs, or two rows with all their seeds, side by side: settings, scores, how sure the difference is, and which clips.

Everything is read from the runs' records, so nothing imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cmpta_lib import metrics
from cmpta_lib.data.corpus import Inputs, Task
from cmpta_lib.figures.clips import errors, is_right, show_answer
from cmpta_lib.report import uncertainty
from cmpta_lib.runs.store import CLIPS, Run
from cmpta_lib.study.naming import fields


@dataclass(frozen=True)
class Versus:
    """What `versus` finds.

    `fields`: config field -> its value in A and in B, None where a method has no such field; `shared`: those of them that
    both have. `scores`: a line for each tabled metric, in stored units: metric, a and b (the scores by seed), difference A - B
    with low and high of its 95 % interval and p_value, better ("A" or "B" where the interval leaves out 0, else "").
    `clips`: a line for each test clip, most changed first: id, label, A's and B's answers, whether each is right and their
    mean errors. With several seeds a side is right where more than half of its runs are. `left_out`: clips without a score
    of some run.
    """

    fields: dict[str, tuple[Any, Any]]
    shared: frozenset[str]
    scores: pd.DataFrame
    clips: pd.DataFrame
    left_out: int

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
    shared = frozenset(found) & fields(a[0].config).keys() & fields(b[0].config).keys()
    return Versus(found, shared, scores, _clips(task, tables[: len(a)], tables[len(a) :]), left_out)


def differing(a: Run, b: Run, with_seed: bool = True) -> dict[str, tuple[Any, Any]]:
    """The config fields in which two runs differ, with both values."""
    one, other = fields(a.config), fields(b.config)
    names = [name for name in dict.fromkeys([*one, *other]) if with_seed or name != "seed"]
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def _scores(task: Task, a: Sequence[pd.DataFrame], b: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, int]:
    truth = a[0]["label"].to_numpy()
    answers = [np.stack([table["prediction"].to_numpy(float) for table in side]) for side in (a, b)]
    kept = np.isfinite(np.vstack(answers)).all(axis=0)
    if task.kind == "classification":
        answers = [np.where(np.isfinite(side), side, metrics.UNPARSABLE).astype(int) for side in answers]
        kept[:] = True
    if not kept.any():
        raise ValueError("no test clip has a score of every run: there is nothing to compare")
    one, other = (side[:, kept] for side in answers)
    lines = []
    for metric in metrics.TABLED[task.kind]:
        a_scores, b_scores = (uncertainty.seed_scores(metric.name, truth[kept], side).tolist() for side in (one, other))
        found = uncertainty.paired_bootstrap(metric.name, truth[kept], one, other)
        is_clear, is_a = not found.low <= 0 <= found.high, metric.is_better(found.difference, 0)
        lines.append({"metric": metric.name, "a": a_scores, "b": b_scores, **vars(found)})
        lines[-1]["better"] = ("A" if is_a else "B") if is_clear else ""
    return pd.DataFrame(lines), int((~kept).sum())


def _clips(task: Task, a: Sequence[pd.DataFrame], b: Sequence[pd.DataFrame]) -> pd.DataFrame:
    lines = {"id": a[0]["id"], "label": [show_answer(task, value) for value in a[0]["label"]]}
    for side, tables in (("a", a), ("b", b)):
        answers = zip(*(table["prediction"] for table in tables), strict=True)
        shown = [[show_answer(task, value) for value in values] for values in answers]
        lines[side] = [one[0] if len(set(one)) == 1 else "/".join(one) for one in shown]  # once where all seeds agree
        lines[f"{side}_right"] = np.mean([is_right(task, table) for table in tables], axis=0) > 0.5
        lines[f"{side}_error"] = np.mean([errors(task, table) for table in tables], axis=0)
    found = pd.DataFrame(lines)
    changed = (found["a_error"] - found["b_error"]).abs().round(6)
    return found.iloc[np.argsort(-changed.to_numpy(), kind="stable")].reset_index(drop=True)
