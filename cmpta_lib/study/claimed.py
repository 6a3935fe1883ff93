"""Which runs each claim of the paper is judged by. `report.claims` has the rules, and reads from here what they compare.

A claim about SIMS-V2 and one about MELD share a name: "best" of `best-sims` and `best-meld`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cmpta_lib import paper
from cmpta_lib.paper import Claim
from cmpta_lib.study import plan
from cmpta_lib.study.plan import CMPTA, TEXT_ONLY, Row

NO_ROW: Mapping[str, str] = {
    "layer-norm": "no row trains without them, and the paper gives no curve",
    "speakers": "no row isolates speakers or noise, and the paper measures neither",
    "transformer": "no row has a Transformer for the alignment, and the paper prints none",
    "contributions": "weights sum to 1 within each modality, whatever it contributes",
    "extensible": "the paper tries one LLM and one task per corpus",
}
ALIGNMENT, ADAPTER = plan.ABLATIONS[paper.ALIGNMENT, "off"], plan.ABLATIONS[paper.ADAPTER, "off"]
ONE_WAY = plan.ABLATIONS[paper.LSTM_TYPE, "unidirectional"]
COUNTS: Mapping[str, Row] = {number: plan.ABLATIONS[paper.TOKEN_COUNT, number] for number in ("5", "7", "8")}
NO_DROPOUT = next(row for row in plan.REGISTER if "method.dropout" in row.changes)
FIRST_SEED = ("attention", "dropout", "sarcasm")  # names of claims that are judged by the first seed's runs alone


@dataclass(frozen=True)
class Needed:
    """A row on the corpus of this key; of the first seed alone, or of every seed."""

    key: str
    row: Row
    first_seed_only: bool = False


def name_of(claim: Claim) -> str:
    """A claim's name without its corpus, where it is about one."""
    return claim.id.removesuffix(f"-{claim.corpora[0]}") if len(claim.corpora) == 1 else claim.id


def rivals(wanted: str, key: str) -> list[Row]:
    """The rows of the printed methods but CMPTA; on a user's own clips those that are registered."""
    names = [line.method for line in plan.printed(wanted)[:-1]]
    return [row for row in plan.comparison(key) if row.name in names]


def others(name: str, wanted: str, key: str) -> list[Row]:
    """What CMPTA is held against by the claims of this name; none where it stands alone.

    Args:
        wanted: the paper's key of the corpus.
        key: the study's.
    """
    if name in ("best-of-all", "best", "fine-intensity"):
        return rivals(wanted, key)
    if name == "generalises":
        return [TEXT_ONLY, *rivals(wanted, key)]
    if name == "tokens-help":  # words alone, as they are and with a tuned soft prompt
        tuned = [row for row in plan.comparison(key) if row.method in plan.WITHOUT_MODALITIES and row != TEXT_ONLY]
        return [TEXT_ONLY, *tuned]
    fixed: Mapping[str, Sequence[Row]] = {
        "modalities": (TEXT_ONLY,),
        "sarcasm": (TEXT_ONLY,),
        "dropout": (NO_DROPOUT,),
        "alignment-most": (ADAPTER, ONE_WAY, ALIGNMENT),
        "tokens-small": tuple(COUNTS.values()),
        "six-best": tuple(COUNTS.values()),
        "too-many": (COUNTS["7"], COUNTS["8"]),
        "key-parts": (ALIGNMENT, ADAPTER),
    }
    return list(fixed.get(name, ()))


_WITHOUT_RUNS = ("lightweight", "llm-untouched", "compact", "padding", "table1")
_WITHOUT_CMPTA = ("alignment-most",)  # one part taken out against another taken out


def needed(claim: Claim, at: Mapping[str, str]) -> list[Needed]:
    """The rows that must be run before a claim can be judged; none where none must, or where no run could (`NO_ROW`).

    Args:
        at: the paper's key of a corpus -> the study's.
    """
    name, found = name_of(claim), []
    if name in _WITHOUT_RUNS or claim.id in NO_ROW:
        return []
    for wanted in claim.corpora:
        compared = others(name, wanted, at[wanted])
        rows = compared if name in _WITHOUT_CMPTA else [CMPTA, *compared]
        found += [Needed(at[wanted], row, name in FIRST_SEED) for row in rows]
    return found
