"""`cmpta`, and `python -m cmpta_lib.cli`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

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
        return _action(options.command)(options)
    except OSError as error:
        print(f"cmpta {options.command}: {files.explained(error)}", file=sys.stderr)
    except (ValueError, RuntimeError) as error:
        print(f"cmpta {options.command}: {error}", file=sys.stderr)
    return 1


def _action(command: str) -> Callable[[argparse.Namespace], int]:
    """What a command does; each imports what it needs alone."""
    if command == "benchmark":
        from cmpta_lib.benchmark import table as benchmark

        return benchmark.run
    if command == "compare":
        from cmpta_lib.cli.compare import compare

        return compare
    from cmpta_lib.cli import commands, listing, reproduce

    return {
        "reproduce": reproduce.reproduce,
        "check": commands.check_study,
        "runs": listing.list_runs,
        "publish": commands.publish_exports,
        "data": commands.prepare_data,
        "weights": commands.fetch_weights,
        "dry-run": reproduce.dry_run,
    }[command]


if __name__ == "__main__":
    sys.exit(main())
