"""`cmpta`, and `python -m cmpta_lib.cli`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cmpta_lib.cli.interruption import interruptible


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
    """Do what a command asks; each imports what it needs alone."""
    match options.command:
        case "reproduce":
            from cmpta_lib.cli.reproduce import reproduce

            return reproduce(options)
        case "dry-run":
            from cmpta_lib.cli.dry_run import dry_run

            return dry_run(options)
        case "check":
            from cmpta_lib.cli.check import check_study

            return check_study(options)
        case "benchmark":
            from cmpta_lib.benchmark import table

            return table.run(options)
        case "runs":
            from cmpta_lib.cli.listing import list_runs

            return list_runs(options)
        case "compare":
            from cmpta_lib.cli.compare import compare

            return compare(options)
        case "publish":  # and rewrite the README's results
            from cmpta_lib.report.gather import publish

            print(publish(options.profile))
        case "data":
            from data_prep import meld, simsv2

            return {"simsv2": simsv2, "meld": meld}[options.corpus].main(options.rest, f"cmpta data {options.corpus}")
        case "weights":
            from cmpta_lib.llm.files import fetch

            print(fetch(options.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
