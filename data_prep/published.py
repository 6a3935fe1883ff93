"""The published corpora by name: fetch, verify and convert those that are not here yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from cmpta_lib.data.corpus import Corpus
from data_prep import meld, simsv2

PREPARE: Mapping[str, Callable[[Path], Corpus]] = {module.NAME: module.prepare for module in (simsv2, meld)}


def fetch(names: Iterable[str], cache: Path) -> list[Corpus]:
    """Those of the named corpora that are published, below `cache`; generated ones need no fetching.

    Raises:
        ValueError, OSError: as `data_prep.simsv2.prepare` and `data_prep.meld.prepare`.
    """
    return [PREPARE[name](cache) for name in names if name in PREPARE]
