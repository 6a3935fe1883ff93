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
    from cmpta_lib.cli import commands, listing, planning
    from cmpta_lib.cli.arguments import parser
    from cmpta_lib.cli.reproduce import rehearse_paper, reproduce, work

    options = parser().parse_args(arguments)
    actions = {
        "reproduce": reproduce,
        "worker": work,
        "check": planning.check_study,
        "runs": listing.list_runs,
        "compare": _compare,
        "publish": commands.publish_exports,
        "benchmark": _benchmark,
        "data": commands.prepare_data,
        "weights": commands.fetch_weights,
        "rehearse": rehearse_paper,
    }
    try:
        if options.command in commands.WITH_NOTEBOOKS:
            files.need_checkout(f"cmpta {options.command}")
        return actions[options.command](options)
    except OSError as error:
        print(f"cmpta {options.command}: {files.explained(error)}", file=sys.stderr)
    except (ValueError, RuntimeError) as error:
        print(f"cmpta {options.command}: {error}", file=sys.stderr)
    return 1


def _benchmark(options: argparse.Namespace) -> int:
    from cmpta_lib.benchmark.command import run  # torch, which most commands answer without

    return run(options)


def _compare(options: argparse.Namespace) -> int:
    from cmpta_lib.cli.compare import compare  # pandas and matplotlib, which no other command needs at once

    return compare(options)


if __name__ == "__main__":
    sys.exit(main())
