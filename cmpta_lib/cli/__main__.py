"""`cmpta`, and `python -m cmpta_lib.cli`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cmpta_lib.cli.interruption import interruptible


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    with interruptible():  # before the imports, which take a second: Ctrl-C during them is no traceback either
        from cmpta_lib.cli.commands import run

        return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
