"""The tables of notebook 14: what knowledge, fine-tuning and each modality bring to a multimodal LLM, and what they cost.

Every table shows the corpus' headline metric. Differences are paired: both rows on the same redrawn test clips.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cmpta_lib import registry
from cmpta_lib.llm.files import OMNI_MODELS
from cmpta_lib.metrics import headline
from cmpta_lib.report.rows import over_seeds, result_row, runs_of, sound
from cmpta_lib.report.tables import NOT_RUN, NOTE, NOTHING, Table
from cmpta_lib.report.uncertainty import compared, scored
from cmpta_lib.runs import provenance as memory
from cmpta_lib.study.plan import (
    GIVEN,
    MLLM_ROWS,
    NOTHING_TOLD,
    OMNI,
    SAID,
    SHUFFLED,
    TEXT_ONLY,
    TOLD,
    TUNED,
    WHOLE,
    ZERO_SHOT,
    Row,
)
from cmpta_lib.study.study import Study

INTERVAL = "95 % CI"
_PAIRED = "Differences: paired on the same redrawn clips; below 0 is better in MAE, above 0 in WF1 (percentage points)."
_HOW = (
    "Omni models run where their weights and the recordings are: `cmpta weights {}`, the folder of recordings in CMPTA_MEDIA, "
    "then `cmpta reproduce --profile paper --only 14_mllm_mac`."
)


@dataclass(frozen=True)
class Line:
    """A line of a table: its words, the row behind it, and by heading the rows that it is compared with."""

    words: Mapping[str, str]
    row: Row
    minus: Mapping[str, Row] = field(default_factory=dict)


def caption(study: Study, what: str, has_differences: bool = False) -> str:
    """What a table shows, on which clips, and what its numbers are."""
    said = f"{what} Test split, {over_seeds(study)}; {INTERVAL}: bootstrap over test clips."
    return f"{said} {_PAIRED}" if has_differences else said


def zero_shot_table(study: Study) -> Table:
    """Every model as it is, on every corpus: score and interval; no row has seen a label."""
    models = {"frozen LLM, words only": TEXT_ONLY, "frozen LLM that perceives": GIVEN[ZERO_SHOT]["TAV"]}
    models |= {row.name: row for row in OMNI}
    full = _frame(study, [Line({"model": name}, row) for name, row in models.items()])
    columns = {"model": list(models)}
    for corpus, part in full.groupby("corpus", sort=False):
        columns[f"{corpus} {part['metric'].iloc[0]}"] = list(part["score"])
        columns[f"{corpus} {INTERVAL}"] = list(part[INTERVAL])
    waiting = full["model"].isin([row.name for row in OMNI]) & (full["score"] == NOT_RUN)
    how = [_HOW.format(OMNI_MODELS[0])] if waiting.any() else []
    return Table(pd.DataFrame(columns, dtype=object), full, notes=(*_notes(full, "model"), *how))


def two_by_two_table(study: Study) -> Table:
    """Knowledge off and on, fine-tuning off and on: the four scores."""
    return _table(_frame(study, [
        Line({"knowledge": told, "training": training}, TOLD[training][told])
        for told in (NOTHING_TOLD, SAID) for training in (ZERO_SHOT, TUNED)
    ]))  # fmt: skip


MARGINS: Mapping[str, tuple[Row, Row]] = {
    "knowledge alone": (TOLD[ZERO_SHOT][SAID], TOLD[ZERO_SHOT][NOTHING_TOLD]),
    "fine-tuning alone": (TOLD[TUNED][NOTHING_TOLD], TOLD[ZERO_SHOT][NOTHING_TOLD]),
    "both, against none": (WHOLE, TOLD[ZERO_SHOT][NOTHING_TOLD]),
    "both, against fine-tuning alone": (WHOLE, TOLD[TUNED][NOTHING_TOLD]),
    "both, against knowledge alone": (WHOLE, TOLD[ZERO_SHOT][SAID]),
}


def margins_table(study: Study) -> Table:
    """What each half of the strategy brings, alone and on top of the other, in paired intervals."""
    lines = [Line({"margin": name}, more, {"difference": less}) for name, (more, less) in MARGINS.items()]
    return _table(_frame(study, lines).drop(columns=["score", INTERVAL]), single="difference")


def modalities_table(study: Study) -> Table:
    """Words, with voice, with face, with both; without knowledge."""
    lines = []
    for training, rows in GIVEN.items():
        known = {"T": TEXT_ONLY} | dict(rows) if training == ZERO_SHOT else rows
        for given, row in known.items():
            minus = {} if given == "T" else {"minus T": known["T"]}
            lines.append(Line({"training": training, "given": given}, row, minus))
    return _table(_frame(study, lines))


def knowledge_table(study: Study) -> Table:
    """Every kind of statement beside none, and beside that of another clip."""
    lines = []
    for training, rows in TOLD.items():
        for told, row in rows.items():
            minus = {} if told == NOTHING_TOLD else {"minus none": rows[NOTHING_TOLD]}
            if (control := SHUFFLED.get(told, "")) in rows:
                minus["minus another clip's"] = rows[control]
            lines.append(Line({"training": training, "statement": told}, row, minus))
    return _table(_frame(study, lines))


def _frame(study: Study, lines: Sequence[Line]) -> pd.DataFrame:
    """The complete frame, one line per corpus and line: differences each with an interval and a p-value of their own."""
    headings = dict.fromkeys(heading for line in lines for heading in line.minus)
    shown, found = {line.row.name for line in lines}, []  # what is missing is said where it is shown, and not again
    for key in study.keys:
        metric = headline(study.corpus(key).task.kind)
        rows = [row for line in lines for row in (line.row, *line.minus.values())]
        known = {row.name: result_row(study, key, row) for row in {row.name: row for row in rows}.values()}
        for line in lines:
            own = known[line.row.name]
            cells: dict[str, str] = {"corpus": study.corpus(key).name, "metric": metric.label} | dict(line.words)
            cells["score"], cells[INTERVAL] = scored(metric, own)
            notes = [own.note]
            for heading in headings:
                other = known[line.minus[heading].name] if heading in line.minus else None
                headed = (heading, f"{heading}, {INTERVAL}", f"{heading}, p")
                cells |= dict(zip(headed, compared(metric, own, other), strict=True))
                notes += [other.note] if other and other.method not in shown else []
            found.append(cells | {NOTE: "; ".join(dict.fromkeys(filter(None, notes)))})
    frame = pd.DataFrame(found, dtype=object)
    return frame if frame[NOTE].any() else frame.drop(columns=NOTE)


def _table(full: pd.DataFrame, single: str = "") -> Table:
    """The short form: metric beside corpus, a difference with its interval in one cell, p-values only where `single`.

    Where there are two differences, the scores' own intervals and the p-values are folded away.
    """
    short = full.drop(columns=[NOTE, "metric"], errors="ignore")
    short["corpus"] = full["corpus"] + ", " + full["metric"]
    for heading in [column.removesuffix(", p") for column in full if column.endswith(", p")]:
        interval = short.pop(f"{heading}, {INTERVAL}")
        short[heading] = short[heading].where(interval == NOTHING, short[heading] + " " + interval)
        p_values = short.pop(f"{heading}, p")
        if heading == single:
            short["p"] = p_values
    words = [column for column in ("training", "statement", "given", "knowledge", "margin") if column in full]
    tests = [column for column in full if column.endswith(", p")]
    folded = None
    if len(tests) > 1:
        folded = Table.of(pd.concat([short[["corpus", *words, INTERVAL]], full[tests]], axis=1))
        short = short.drop(columns=INTERVAL)
    return Table(short, full, notes=_notes(full, "corpus", *words), blocks=tuple(full["corpus"]), details=folded)


def _notes(full: pd.DataFrame, *words: str) -> tuple[str, ...]:
    """Each note once, behind the lines of which it is true."""
    if NOTE not in full:
        return ()
    names = full[list(words)].agg(", ".join, axis=1)
    said = [note for note in dict.fromkeys(full[NOTE]) if note]
    return tuple(f"{'; '.join(names[full[NOTE] == note])}: {note.rstrip('.')}." for note in said)


def costs_table(study: Study) -> pd.DataFrame:
    """What a row costs that is the same on every machine, and how many of its replies were no legal answer.

    No seconds and no memory: `spent_table` has them for the page alone.
    """
    lines = []
    for key in study.keys:
        for row in every_row():
            line = {"corpus": study.corpus(key).name, "row": _name(row)}
            runs = runs_of(study, key, row)
            if len(done := sound(runs)) < len(runs) or not runs:
                if row.method != OMNI[0].method:  # what these wait for stands below the first table
                    lines.append(line | {"trained": NOT_RUN})
                continue
            answers = np.concatenate([run.predictions()["prediction"].to_numpy(float) for run in done])
            lines.append(line | _cost(done[0].config.method, done[0].metrics) | {
                "unparsable replies": f"{int((~np.isfinite(answers)).sum())} of {len(answers)}"
            })  # fmt: skip
    return pd.DataFrame(lines, columns=["corpus", "row", *_COSTS, "unparsable replies"], dtype=object).fillna(NOTHING)


_COSTS = ("trained", "parameters", "statements", "tokens said", "readings")


def _cost(method: Any, records: Mapping[str, object]) -> dict[str, str]:
    """What is trained last and how large it is; per clip, at most: statements, tokens that the LLM says for them, readings."""
    if method.name != WHOLE.method:
        return {"trained": "nothing", "readings": "1"}
    trained = "LoRA" if method.sft else "perception"
    count = {"none": 0, "generated": 1 if method.shuffled else method.statements}.get(method.knowledge, 1)
    says = method.knowledge == "generated" and not method.shuffled
    return {
        "trained": trained,
        "parameters": f"{records['trainable_parameters']:,}",
        "statements": str(count),
        "tokens said": str(count * method.max_new_tokens if says else 0),
        "readings": str(1 + count if method.integration == "max_conf" else 1),
    }


def spent_table(study: Study) -> pd.DataFrame:
    """Median seconds and peak memory of each row's runs on whatever machine made them: for a page, not for an export."""
    lines = []
    for key in study.keys:
        for row in every_row():
            if not (done := sound(runs_of(study, key, row))):
                continue
            line = {"corpus": study.corpus(key).name, "row": _name(row), "runs": str(len(done))}
            for heading, name in _SPENT.items():
                values = [run.environment[name] for run in done if name in run.environment]
                line[heading] = f"{np.median(values):.2f}" if values else NOTHING
            lines.append(line)
    return pd.DataFrame(lines, columns=["corpus", "row", "runs", *_SPENT])


_SPENT: Mapping[str, str] = {
    "training s": "train_seconds", "all s": "seconds", "memory GB": memory.RESIDENT, "GPU memory GB": memory.ALLOCATED,
}  # fmt: skip


def every_row() -> Iterator[Row]:
    """What the notebook compares: the LLM as it is, every version of MLLM-MAC, the whole, and the omni models."""
    yield from (TEXT_ONLY, *(row for row in MLLM_ROWS if row not in OMNI), WHOLE, *OMNI)


def _name(row: Row) -> str:
    return registry.ENTRIES[row.method].row if row.method == TEXT_ONLY.method else row.name
