"""Where a study's tables and figures go: `figures/<name>` is what a complete `cmpta reproduce` left, the rest is exploring."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import psutil

from cmpta_lib import files
from cmpta_lib.files import figures_folder
from cmpta_lib.llm.files import find_tiny, is_tiny
from cmpta_lib.runs.store import DONE, Run

EXPLORED = "explored"  # below figures/: single notebooks, chosen clips, reproductions in which something failed
PAGES = "notebooks"  # below a set of exports: its executed notebooks as pages
_COLLECTED = "CMPTA_COLLECTED"  # environment variable: the folder that a running `cmpta reproduce` collects exports in


def short_name(text: str) -> str:
    """What a folder's name says of `text`, behind a hyphen: all of it where that fits, else its beginning and a hash."""
    if not text:
        return ""
    plain = re.sub(r"[^A-Za-z0-9_.,=-]", "_", text)
    return f"-{plain}" if plain == text and len(text) <= 60 else f"-{plain[:40]}-{sha256(text.encode()).hexdigest()[:6]}"


def folder(name: str) -> Path:
    """Where the exports of a set go: to the complete reproduction that is being made, or to what is explored."""
    collected = os.environ.get(_COLLECTED)
    return Path(collected) if collected else figures_folder() / EXPLORED / name


def shown(folder: Path) -> str:
    """A folder of exports as a reader may call it: below figures/, under the name that it will have in the end."""
    final = folder.parent.parent / folder.name if folder.parent.suffix == ".partial" else folder
    base = figures_folder().parent if not os.environ.get("CMPTA_FIGURES") else Path()
    return str(final.relative_to(base)) if final.is_relative_to(base) else str(final)


@contextmanager
def collected(name: str) -> Iterator[Path]:
    """While a complete reproduction runs, its exports gather in a folder of their own; `finish` puts it in its place.

    Where the block ends without that, and where another such call was killed, they go to what is explored; it says where.

    Raises:
        OSError: the figures folder cannot be written; says what to do.
    """
    base = figures_folder()
    draft = base / f".{os.getpid()}.partial" / name
    with files.writing(draft):
        for left in (path for path in base.glob(".*.partial") if path.stem[1:].isdecimal()):
            if left == draft.parent or not psutil.pid_exists(int(left.stem[1:])):
                _keep(left)
        draft.mkdir(parents=True)
    os.environ[_COLLECTED] = str(draft)
    try:
        yield draft
    finally:
        del os.environ[_COLLECTED]
        _keep(draft.parent)


def _keep(left: Path) -> None:
    """Put what a reproduction that did not end well has exported to what is explored."""
    for draft in left.glob("*"):
        if any(draft.rglob("*")):
            print(f"what was exported before it ended is kept in {finish(draft, complete=False)}", file=sys.stderr)
    shutil.rmtree(left, ignore_errors=True)


def finish(draft: Path, complete: bool) -> Path:
    """Put collected exports in their place: a complete set replaces the last one as a whole, others go to what is explored.

    Returns:
        Where they lie now.
    """
    base = draft.parent.parent
    final = base / draft.name if complete else base / EXPLORED / draft.name
    with files.writing(final):
        if complete:
            shutil.rmtree(final, ignore_errors=True)
            draft.rename(final)
        else:
            shutil.copytree(draft, final, dirs_exist_ok=True)
        shutil.rmtree(draft.parent)
    return final


def copy_runs(runs: Sequence[Run], folder: Path) -> None:
    """Copy finished runs, and the tiny LLMs behind them, into `folder`, laid out as a runs folder; each is checked first.

    Raises:
        FileNotFoundError, Damaged: as `Run.check`, or as `find_tiny`.
    """
    for run in runs:
        names = (*run.check(), DONE)  # no lock, and nothing else that an earlier failure left
        (folder / run.folder.name).mkdir(parents=True)
        for name in names:
            shutil.copyfile(run.folder / name, folder / run.folder.name / name)
        llm = getattr(run.config.method, "llm", None)
        if llm and is_tiny(llm.name):
            found = find_tiny(llm.fingerprint, run.folder.parent / "cache" / "llm", llm.name)
            shutil.copytree(found, folder / "cache" / "llm" / found.name, dirs_exist_ok=True)
