"""Making a tiny pre-trained model once, whoever asks first: behind a lock, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from cmpta_lib import files
from cmpta_lib.llm import files as llm_files


def build_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """The sealed model in `folder`, written by `write` into an empty folder first if it is not there.

    Raises:
        Damaged: it is there and not what was written; names the file and says what to do.
        OSError: it is not there and the cache cannot be written; names it and says what to do.
    """
    if not folder.exists():  # before the lock: a cache that may only be read is enough where nothing is to be built
        with files.writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                _build_alone(folder, write)
    llm_files.tiny_fingerprint(folder)
    return folder


def _build_alone(folder: Path, write: Callable[[Path], None]) -> None:
    """Write it, unless another process did while this one waited for the lock."""
    for leftover in folder.parent.glob(f".building-{folder.name}-*"):  # of builders that were killed: who lives has the lock
        shutil.rmtree(leftover, ignore_errors=True)
    if folder.exists():
        return
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".building-{folder.name}-"))
    try:
        write(scratch)
        files.by_umask(scratch)
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
