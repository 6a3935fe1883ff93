"""The commands: each takes the parsed options and returns the exit code."""

from __future__ import annotations

import argparse

from cmpta_lib.llm import files as llm_files

WITH_NOTEBOOKS = ("reproduce", "rehearse", "publish")  # commands that need the repository, not the package alone


def publish_exports(options: argparse.Namespace) -> int:
    """Copy a profile's exports into the published ones and rewrite the README's results."""
    from cmpta_lib.report import publish

    print(publish.publish(options.profile))
    return 0


def prepare_data(options: argparse.Namespace) -> int:
    """Hand over to the corpus' own command."""
    from data_prep import meld, simsv2

    return {"simsv2": simsv2, "meld": meld}[options.corpus].main(options.rest, f"cmpta data {options.corpus}")


def fetch_weights(options: argparse.Namespace) -> int:
    """Fetch an LLM and say where it lies."""
    print(llm_files.fetch(options.name))
    return 0
