"""From measured steps and answers to the hours of profile `paper` on the same machine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cmpta_lib.benchmark.options import CORPORA
from cmpta_lib.config import PAPER_SEEDS, PromptedLMConfig, TrainingConfig
from cmpta_lib.methods import registry
from cmpta_lib.paper import TABLE1
from cmpta_lib.study import plan
from cmpta_lib.study.profiles import PROFILES

_PROFILE = "paper"


@dataclass(frozen=True)
class Projection:
    """Hours by corpus, what they are of, and what they leave out."""

    hours: Mapping[str, float]  # corpus key -> of the runs that stand before the profile's LLM
    one_run: Mapping[str, float]  # corpus key -> of one CMPTA run
    runs: int
    others: int  # runs before another LLM, or before none: not projected

    @property
    def total(self) -> float:
        return sum(self.hours.values())

    def __str__(self) -> str:
        single = ", ".join(f"one CMPTA run on {CORPORA[key]} {hours:.2f} h" for key, hours in self.one_run.items())
        return (
            f"profile {_PROFILE}, one run at a time: at most {self.total:.1f} h for the {self.runs} runs before its LLM, all "
            f"their epochs at CMPTA's pace ({single}); {self.others} runs before another LLM or none are not in it"
        )


def project(rows: Mapping[str, Mapping[str, Any]]) -> Projection:
    """Hours of every planned run of profile `paper` that stands before its LLM, from a row of `table.row` a corpus.

    Each step is taken to cost what CMPTA's does, times its batch size over the measured one's; patience is not reckoned
    with. Answers: the validation split after every epoch, the test split once.
    """
    planned = plan.planned(plan.chosen([]), [*rows], False, PAPER_SEEDS)
    hours, one_run, counted = dict.fromkeys(rows, 0.0), dict.fromkeys(rows, 0.0), Counter[bool]()
    for one in planned:
        entry = registry.ENTRIES[one.row.method]
        is_before_its_llm = issubclass(entry.config, PromptedLMConfig) and not one.row.llm
        counted[is_before_its_llm] += 1
        if not is_before_its_llm:
            continue
        taken = _hours(one.key, rows[one.key], _training(one.key, one.row) if entry.is_trained else None)
        hours[one.key] += taken
        if one.row == plan.CMPTA:
            one_run[one.key] = taken
    return Projection(hours, one_run, counted[True], counted[False])


def _training(key: str, row: plan.Row) -> TrainingConfig:
    changes: dict[str, Any] = dict(PROFILES[_PROFILE].changes) | dict(PROFILES[_PROFILE].corpus_changes.get(key, {}))
    for place in (_PROFILE, f"{_PROFILE}/{key}"):
        changes |= registry.ENTRIES[row.method].settings.get(place, {})
    changes |= row.changes
    own = {name.removeprefix("training."): value for name, value in changes.items() if name.startswith("training.")}
    return TrainingConfig(**own)


def _hours(key: str, measured: Mapping[str, Any], training: TrainingConfig | None) -> float:
    clips, answer = TABLE1[CORPORA[key]], measured["answer_ms"]
    taken = clips.test * answer
    if training is not None:
        steps = math.ceil(clips.train / training.batch_size)
        step = measured["step_ms"] * training.batch_size / measured["batch"]
        taken += training.epochs * (steps * step + clips.valid * answer)
    return float(taken / 3.6e6)
