"""`cmpta`, and `python -m cmpta_lib.cli`. Imports nothing before it can be interrupted."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

# What does a command, imported when it is called: takes its options and returns the exit code.
_DONE_BY = {
    "reproduce": "cmpta_lib.cli.reproduce:reproduce",
    "publish": "cmpta_lib.cli.reproduce:publish",
    "check": "cmpta_lib.cli.listing:check_study",
    "benchmark": "cmpta_lib.cli.arguments:benchmark",
    "runs": "cmpta_lib.cli.listing:list_runs",
    "compare": "cmpta_lib.cli.finished:compare",
    "predict": "cmpta_lib.cli.finished:predict",
    "fields": "cmpta_lib.cli.listing:list_fields",
    "dry-run": "cmpta_lib.cli.dry_run:dry_run",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that knows few signs shows the others by their numbers
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        from cmpta_lib.cli.interruption import interruptible

        with interruptible():  # before the other imports, which take a second
            return run(arguments)
    except KeyboardInterrupt:  # before the block
        print("interrupted", file=sys.stderr)
        return 130


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and do what they ask; what goes wrong is one line on stderr."""
    from cmpta_lib import files
    from cmpta_lib.cli.arguments import parser

    options = parser().parse_args(arguments)
    try:
        if options.command in ("reproduce", "dry-run", "publish"):  # they need the repository, not the package alone
            files.need_checkout(f"cmpta {options.command}")
        code = _act(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads what is printed, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter says so at its end
        return 128 + signal.SIGPIPE
    except OSError as error:
        said = files.explained(error)
    except (ValueError, RuntimeError, ImportError) as error:
        said = " ".join(str(error).split())
    print(f"cmpta {options.command}: {said}", file=sys.stderr)
    return 1


def _act(options: argparse.Namespace) -> int:
    from pkgutil import resolve_name

    if options.command in _DONE_BY:
        return int(resolve_name(_DONE_BY[options.command])(options))
    if options.command == "data":
        fetch_corpus = resolve_name(f"data_prep.{options.corpus}:main")
        return int(fetch_corpus(options.rest, f"cmpta data {options.corpus}"))
    print(resolve_name("data_prep.weights:fetch")(options.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
