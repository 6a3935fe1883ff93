"""The command line that the converters share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cmpta_lib import files
from cmpta_lib.data.corpus import Corpus
from cmpta_lib.files import runs_folder
from data_prep import verify


def convert(
    argv: Sequence[str] | None, prog: str, what: str | None, prepare: Callable[..., Corpus], folders: Mapping[str, str]
) -> int:
    """Prepare a corpus and print what was found in it; returns the exit code.

    Args:
        prepare: takes the cache, then one folder or None for each of `folders`.
        folders: option -> what its help says.
    """
    parser = argparse.ArgumentParser(prog=prog, description=what)
    given = [
        parser.add_argument(option, type=Path, metavar="FOLDER", help=text).dest for option, text in folders.items()
    ]
    cache, default = runs_folder() / "cache", "the default: %(default)s"
    parser.add_argument("--cache", type=Path, metavar="FOLDER", default=cache, help=default)
    options = parser.parse_args(argv)
    try:
        corpus = prepare(options.cache, *(getattr(options, name) for name in given))
    except (ValueError, OSError) as error:
        print(f"{prog}: {files.explained(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        return 1
    print(verify.report(corpus))
    print(options.cache / "data" / corpus.name)
    return 0
