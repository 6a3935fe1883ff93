"""The tables of notebook 14: what knowledge, fine-tuning and each modality bring to a multimodal LLM, and what they cost.

Every table shows the corpus' headline metric. Differences are paired: both rows on the same redrawn test clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pandas as pd

from cmpta_lib.llm.files import OMNI_MODELS
from cmpta_lib.report.rows import over_seeds, result_row, runs_of, sound, tabled
from cmpta_lib.report.tables import NOT_RUN, NOTE, NOTHING, Table
from cmpta_lib.report.uncertainty import ResultRow, compared, scored
from cmpta_lib.study import plan
from cmpta_lib.study.plan import GIVEN, NOTHING_TOLD, OMNI, SAID, TEXT_ONLY, TOLD, TUNED, WHOLE, ZERO_SHOT, Row
from cmpta_lib.study.study import Study

INTERVAL = "95 % CI"
_PAIRED = "Differences: paired on the same redrawn clips; below 0 is better in MAE, above 0 in WF1 (percentage points)."
_HOW = (
    f"Omni models run where their weights and the recordings are: `cmpta weights {OMNI_MODELS[0]}`, the folder of recordings in "
    "CMPTA_MEDIA, then `cmpta reproduce --profile paper --only 14_mllm_mac`."
)
# What the notebook compares: the LLM as it is, every version of MLLM-MAC, the whole, and the omni models.
EVERY_ROW = (TEXT_ONLY, *(row for row in plan.MLLM_ROWS if row not in OMNI), WHOLE, *OMNI)
Line = tuple[tuple[str, ...], Row, tuple[Row | None, ...]]  # its words, the row behind it, and what that is compared with


def caption(study: Study, what: str, has_differences: bool = False) -> str:
    """What a table shows, on which clips, and what its numbers are."""
    said = f"{what} Test split, {over_seeds(study)}; {INTERVAL}: bootstrap over test clips."
    return f"{said} {_PAIRED}" if has_differences else said


def zero_shot_table(study: Study) -> Table:
    """Every model as it is, on every corpus: score and interval; no row has seen a label."""
    models = {"frozen LLM, words only": TEXT_ONLY, "frozen LLM that perceives": GIVEN[ZERO_SHOT]["TAV"]}
    models |= {row.name: row for row in OMNI}
    full = _frame(study, ["model"], [((name,), row, ()) for name, row in models.items()], [])
    columns = {"model": list(models)}
    for corpus, part in full.groupby("corpus", sort=False):
        columns[f"{corpus} {part['metric'].iloc[0]}"] = list(part["score"])
        columns[f"{corpus} {INTERVAL}"] = list(part[INTERVAL])
    waits = (full["score"][full["model"].isin([row.name for row in OMNI])] == NOT_RUN).any()
    return Table(pd.DataFrame(columns, dtype=object), full, notes=(*_notes(full, ["model"]), *([_HOW] if waits else [])))


def two_by_two_table(study: Study) -> Table:
    """Knowledge off and on, fine-tuning off and on: the four scores."""
    lines: list[Line] = [
        ((told, training), TOLD[training][told], ()) for told in (NOTHING_TOLD, SAID) for training in (ZERO_SHOT, TUNED)
    ]
    return _table(study, ["knowledge", "training"], lines)


MARGINS: Mapping[str, tuple[Row, Row]] = {
    "knowledge alone": (TOLD[ZERO_SHOT][SAID], TOLD[ZERO_SHOT][NOTHING_TOLD]),
    "fine-tuning alone": (TOLD[TUNED][NOTHING_TOLD], TOLD[ZERO_SHOT][NOTHING_TOLD]),
    "both, against none": (WHOLE, TOLD[ZERO_SHOT][NOTHING_TOLD]),
    "both, against fine-tuning alone": (WHOLE, TOLD[TUNED][NOTHING_TOLD]),
    "both, against knowledge alone": (WHOLE, TOLD[ZERO_SHOT][SAID]),
}


def margins_table(study: Study) -> Table:
    """What each half of the strategy brings, alone and on top of the other, in paired intervals."""
    lines: list[Line] = [((name,), more, (less,)) for name, (more, less) in MARGINS.items()]
    return _table(study, ["margin"], lines, ["difference"], has_scores=False)


def modalities_table(study: Study) -> Table:
    """Words, with voice, with face, with both; without knowledge."""
    lines: list[Line] = []
    for training, rows in GIVEN.items():
        known = {"T": TEXT_ONLY, **rows}  # rows have a T of their own where it is trained
        lines += [((training, given), row, (None if given == "T" else known["T"],)) for given, row in known.items()]
    return _table(study, ["training", "given"], lines, ["minus T"])


def knowledge_table(study: Study) -> Table:
    """Every kind of statement beside none, and beside that of another clip."""
    lines: list[Line] = []
    for training, rows in TOLD.items():
        for told, row in rows.items():
            none = None if told == NOTHING_TOLD else rows[NOTHING_TOLD]
            lines.append(((training, told), row, (none, rows.get(plan.SHUFFLED.get(told, "")))))
    return _table(study, ["training", "statement"], lines, ["minus none", "minus another clip's"])


def _frame(study: Study, words: Sequence[str], lines: Sequence[Line], minus: Sequence[str]) -> pd.DataFrame:
    """The complete frame, one line per corpus and line: differences each with an interval and a p-value of their own."""
    shown, found = {row for _, row, _ in lines}, []  # what is missing is said where it is shown, and not again
    for key in study.keys:
        metric, results = tabled(study, key)[0], cache(lambda row, key=key: result_row(study, key, row))
        for said, row, others in lines:
            own: ResultRow = results(row)
            cells = [study.corpus(key).name, metric.label, *said, *scored(metric, own)]
            for other in others:
                cells += compared(metric, own, results(other) if other else None)
            notes = [own.note, *(results(other).note for other in others if other and other not in shown)]
            found.append([*cells, "; ".join(dict.fromkeys(filter(None, notes)))])
    paired = [part for heading in minus for part in (heading, f"{heading}, {INTERVAL}", f"{heading}, p")]
    frame = pd.DataFrame(found, columns=["corpus", "metric", *words, "score", INTERVAL, *paired, NOTE], dtype=object)
    return frame if frame[NOTE].any() else frame.drop(columns=NOTE)


def _table(
    study: Study, words: Sequence[str], lines: Sequence[Line], minus: Sequence[str] = (), has_scores: bool = True
) -> Table:
    """The short form: metric beside corpus, a difference with its interval in one cell, p-values only without scores.

    Where there are two differences, the scores' own intervals and the p-values are folded away.
    """
    full = _frame(study, words, lines, minus)
    full = full if has_scores else full.drop(columns=["score", INTERVAL])
    short = full.drop(columns=[NOTE, "metric"], errors="ignore").assign(corpus=full["corpus"] + ", " + full["metric"])
    tests = [f"{heading}, p" for heading in minus]
    for heading in minus:
        interval = short.pop(f"{heading}, {INTERVAL}")
        short[heading] = short[heading].where(interval == NOTHING, short[heading] + " " + interval)
    folded = None
    if len(minus) > 1:
        folded = Table.of(short[["corpus", *words, INTERVAL, *tests]])
        short = short.drop(columns=INTERVAL)
    short = short.drop(columns=tests) if has_scores else short.rename(columns=dict.fromkeys(tests, "p"))
    return Table(short, full, notes=_notes(full, ["corpus", *words]), blocks=tuple(full["corpus"]), details=folded)


def _notes(full: pd.DataFrame, words: Sequence[str]) -> tuple[str, ...]:
    """Each note once, behind the lines of which it is true."""
    if NOTE not in full:
        return ()
    names = full[words].agg(", ".join, axis=1).groupby(full[NOTE], sort=False).agg("; ".join)
    return tuple(f"{lines}: {note.rstrip('.')}." for note, lines in names.items() if note)


_COSTS = ("trained", "parameters", "statements", "tokens said", "readings", "unparsable replies")


# Rows whose costs are read first: those that are compared, and those that cost most or go wrong otherwise.
_FIRST = [row.name for row in (TEXT_ONLY, *(TOLD[how][told] for how in TOLD for told in (NOTHING_TOLD, SAID)))]
_FIRST += [TOLD[ZERO_SHOT][plan.SUREST].name, plan.FREE.name]


def costs_table(study: Study) -> Table:
    """What a row costs that is the same on every machine, and how many of its replies were no legal answer.

    Most rows are folded away. No seconds, which belong to a machine: `cmpta runs` shows them.
    """
    lines = []
    for key in study.keys:
        for row in EVERY_ROW:
            line, runs = {"corpus": study.corpus(key).name, "row": row.name}, runs_of(study, key, row)
            if runs and len(sound(runs)) == len(runs):
                answers = pd.concat([run.predictions()["prediction"] for run in runs])
                cost = _cost(runs[0].config.method, runs[0].metrics)
                lines.append(line | cost | {"unparsable replies": f"{answers.isna().sum()} of {len(answers)}"})
            elif row not in OMNI:  # what these wait for stands below the first table
                lines.append(line | {"trained": NOT_RUN})
    full = pd.DataFrame(lines, columns=["corpus", "row", *_COSTS], dtype=object).fillna(NOTHING)
    short, rest = (full[full["row"].isin(_FIRST) == is_first].reset_index(drop=True) for is_first in (True, False))
    return Table(short, full, blocks=tuple(short["corpus"]), details=Table.of(rest))


def _cost(method: Any, records: Mapping[str, object]) -> dict[str, str]:
    """What is trained last and how large it is; per clip, at most: statements, tokens that the LLM says for them, readings."""
    if method.name != WHOLE.method:
        return {"trained": "nothing", "readings": "1"}
    says = method.knowledge == "generated" and not method.shuffled
    count = method.statements if says else int(method.knowledge != "none")
    return {
        "trained": "LoRA" if method.sft else "perception",
        "parameters": f"{records['trainable_parameters']:,}",
        "statements": str(count),
        "tokens said": str(count * method.max_new_tokens if says else 0),
        "readings": str(1 + count if method.integration == "max_conf" else 1),
    }
