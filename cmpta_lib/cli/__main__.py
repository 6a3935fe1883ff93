"""`cmpta`, and `python -m cmpta_lib.cli`."""

from __future__ import annotations

import argparse
import pkgutil
import sys
from collections.abc import Sequence

from cmpta_lib.cli.interruption import interruptible

# What does a command, imported when it is called: takes its options and returns the exit code.
_DONE_BY = {
    "reproduce": "cmpta_lib.cli.reproduce:reproduce",
    "publish": "cmpta_lib.cli.reproduce:publish",
    "check": "cmpta_lib.cli.check:check_study",
    "benchmark": "cmpta_lib.benchmark.table:run",
    "runs": "cmpta_lib.cli.listing:list_runs",
    "compare": "cmpta_lib.cli.compare:compare",
    "dry-run": "cmpta_lib.cli.dry_run:dry_run",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    with interruptible():  # before the imports, which take a second: Ctrl-C during them is no traceback either
        return run(arguments)


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and do what they ask; what goes wrong is one line on stderr."""
    from cmpta_lib import files
    from cmpta_lib.cli.arguments import parser

    options = parser().parse_args(arguments)
    try:
        if options.command in ("reproduce", "dry-run", "publish"):  # they need the repository, not the package alone
            files.need_checkout(f"cmpta {options.command}")
        return _act(options)
    except OSError as error:
        print(f"cmpta {options.command}: {files.explained(error)}", file=sys.stderr)
    except (ValueError, RuntimeError) as error:
        print(f"cmpta {options.command}: {error}", file=sys.stderr)
    return 1


def _act(options: argparse.Namespace) -> int:
    if options.command in _DONE_BY:
        return int(pkgutil.resolve_name(_DONE_BY[options.command])(options))
    if options.command == "data":
        fetch_corpus = pkgutil.resolve_name(f"data_prep.{options.corpus}:main")
        return int(fetch_corpus(options.rest, f"cmpta data {options.corpus}"))
    print(pkgutil.resolve_name("cmpta_lib.llm.files:fetch")(options.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
