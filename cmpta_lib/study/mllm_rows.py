"""The rows of notebook 14: MLLM-MAC with and without each of its parts, and published omni models beside it.

Chosen to be few: 10 zero-shot answerings and 7 fine-tunings a corpus and seed, which share one perception.
"""

from __future__ import annotations

from collections.abc import Mapping

from cmpta_lib.methods.omni_settings import OMNI_MODELS
from cmpta_lib.methods.prompted_settings import MllmMacConfig
from cmpta_lib.study.row import Row

ZERO_SHOT, TUNED = "zero-shot", "fine-tuned"
WHOLE = Row("MLLM-MAC", "mllm_mac")  # all modalities, knowledge and fine-tuning


def _row(name: str, training: str, **fields: object) -> Row:
    """A version of MLLM-MAC; fields that are as in the whole are left out, so that equal runs are one run."""
    wanted = {"sft": training == TUNED} | fields
    known = MllmMacConfig.model_fields
    changes = {f"method.{field}": value for field, value in wanted.items() if value != known[field].default}
    return Row(f"{name}, {training}", WHOLE.method, changes) if changes else WHOLE


# By training and by what is given; without knowledge. Words alone, zero-shot, are the frozen LLM as it is: text only.
GIVEN: Mapping[str, Mapping[str, Row]] = {
    ZERO_SHOT: {given: _row(given, ZERO_SHOT, modalities=given, knowledge="none") for given in ("TA", "TV", "TAV")},
    TUNED: {given: _row(given, TUNED, modalities=given, knowledge="none") for given in ("T", "TA", "TV", "TAV")},
}
NOTHING_TOLD, FROM_FRAMES, SAID, SUREST = "none", "from frames, by rule", "said by the model", "said, surest answer"
OF_ANOTHER, CUE, CUE_OF_ANOTHER = "of another clip", "the cue itself", "another clip's cue"
_KNOWLEDGE: Mapping[str, Mapping[str, object]] = {
    FROM_FRAMES: {"knowledge": "features"},
    SAID: {"knowledge": "generated"},
    SUREST: {"knowledge": "generated", "integration": "max_conf"},
    OF_ANOTHER: {"knowledge": "generated", "shuffled": True},  # by rule too: of frames it is the same statement
    CUE: {"knowledge": "cue"},
    CUE_OF_ANOTHER: {"knowledge": "cue", "shuffled": True},
}
# By training and by the statement that stands before the words; with all modalities.
TOLD: Mapping[str, Mapping[str, Row]] = {
    ZERO_SHOT: {NOTHING_TOLD: GIVEN[ZERO_SHOT]["TAV"]}
    | {told: _row(f"statement: {told}", ZERO_SHOT, **fields) for told, fields in _KNOWLEDGE.items()},
    TUNED: {NOTHING_TOLD: GIVEN[TUNED]["TAV"]}
    | {told: _row(f"statement: {told}", TUNED, **_KNOWLEDGE[told]) for told in (SAID, OF_ANOTHER, CUE)},
}
SHUFFLED: Mapping[str, str] = {FROM_FRAMES: OF_ANOTHER, SAID: OF_ANOTHER, CUE: CUE_OF_ANOTHER}  # the control of each
FREE = _row("free replies", ZERO_SHOT, knowledge="none", decoding="free")
OMNI: tuple[Row, ...] = tuple(
    Row(name.rpartition("/")[2], "omni", {"method.model.name": name}, is_seeded=False) for name in OMNI_MODELS
)
ROWS: tuple[Row, ...] = (
    *GIVEN[ZERO_SHOT].values(), FREE, *GIVEN[TUNED].values(),
    *(row for rows in TOLD.values() for told, row in rows.items() if told != NOTHING_TOLD and row != WHOLE),
    *OMNI,
)  # fmt: skip
