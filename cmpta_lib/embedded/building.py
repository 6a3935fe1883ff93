"""Making a tiny pre-trained model once, whoever asks first: behind a lock, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cmpta_lib import files
from cmpta_lib.llm import files as llm_files


def build_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """The model in `folder`, written by `write` into an empty folder first if it is not there.

    Raises:
        Damaged: it is there and not what was written; names the file and says what to do.
        OSError: it is not there and the cache cannot be written; names it and says what to do.
    """
    llm_files.tiny_fingerprint(files.built_once(folder, write))
    return folder
