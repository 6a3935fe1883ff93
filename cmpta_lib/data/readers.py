"""Raw files of a user's own -> a corpus, by whichever reader is installed: the library itself opens no pickle.

A reader is a function (folder, cache) -> Corpus under the entry point group `GROUP`; `data_prep` brings one.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from cmpta_lib.data.corpus import Corpus

GROUP = "cmpta.readers"


def read_raw(folder: Path, cache: Path, reader: str = "public_pickles") -> Corpus:
    """Open a folder of raw files; converted on first use, below `cache`.

    Args:
        reader: name of the entry point; "public_pickles" reads MELD's public format.
    Raises:
        RuntimeError: no such reader is installed, or it does not load; says what to do.
        ValueError, OSError: as the reader.
    """
    found = entry_points(group=GROUP)
    if reader not in found.names:
        listed = ", ".join(sorted(found.names)) or "none"
        raise RuntimeError(
            f"cannot read {folder}: expected a reader '{reader}' among the installed entry points '{GROUP}', found {listed}; "
            "run make setup"
        )
    try:
        read = found[reader].load()
    except (ImportError, AttributeError) as error:
        raise RuntimeError(
            f"cannot read {folder}: the reader '{reader}' ({found[reader].value}) does not load ({error}); run make setup"
        ) from error
    return read(Path(folder), Path(cache))
