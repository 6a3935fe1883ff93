"""One run on clips of one's own, from a folder to answers: what `cmpta_lib.train` is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmpta_lib import registry
from cmpta_lib.config import PAPER_SEEDS, one_of
from cmpta_lib.runs.load import TrainedRun, load
from cmpta_lib.study.plan import Row
from cmpta_lib.study.study import Study


def train(
    data: str | Path,
    *,
    method: str = "cmpta",
    seed: int = PAPER_SEEDS[0],
    changes: Mapping[str, Any] | None = None,
    profile: str = "demo",
    llm: str | Path = "",
) -> TrainedRun:
    """Train one run, or find it trained already, and open it.

    Args:
        data: folder of `<name>_{train,valid,test}.pkl` in MELD's public format, or the key of one of the profile's
            corpora, "sims" or "meld".
        method: a name in `registry.ENTRIES`.
        changes: config fields to set, such as `{"training.epochs": 10, "method.summary": "max"}`.
        profile: whose settings hold where `changes` says nothing.
        llm: another backbone than the profile's.
    Raises:
        ValueError, OSError: as `Study`; the files do not conform, the backbone is not here, or the method is unknown or has
            not the fields that `changes` sets.
        RunsFailed: the run failed; says why.
    """
    own = str(data) not in ("sims", "meld")
    study = Study(profile, [seed], data if own else "", llm=llm, changes=changes)
    key, row = "data" if own else str(data), Row(method, one_of("method", method, registry.ENTRIES))
    study.check_changes([(key, row)])
    (run,) = study.ensure(study.runs(key, row))
    return load(run.folder)
