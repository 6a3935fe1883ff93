"""`python -m cmpta_lib.benchmark.alone OPTIONS CONTENDER`: one contender's peak memory, as a line of JSON."""

from __future__ import annotations

import json
import sys

from cmpta_lib.benchmark.command import contest_of
from cmpta_lib.benchmark.options import Options
from cmpta_lib.benchmark.peak import STEPS, measured


def main(arguments: list[str]) -> None:
    """Train so many steps, and say what they took."""
    contest = contest_of(Options.from_json(arguments[0]))
    works = [contest.work(arguments[1], batch) for batch in contest.batches[:STEPS]]
    print(json.dumps(measured(works)))


if __name__ == "__main__":
    main(sys.argv[1:])
