"""The command line: `cmpta reproduce` runs every notebook headless and writes one report."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    from cmpta_lib.cli.interruption import interruptible

    with interruptible():  # before the imports, which take a second: Ctrl-C during them is no traceback either
        from cmpta_lib.cli.commands import run

        return run(arguments)
