"""What names the embedded default's caches: change what a recipe stands for, raise its number, and caches are made anew."""

from __future__ import annotations

from pathlib import Path

CORPORA = 1  # generated clips and generated text
TINY = 1  # anything else that changes the tiny LLM's weights
DOCUMENTS = 16_000  # that it is pre-trained on, each read once: 400 steps of 40


def tiny_folder(cache: Path, documents: int | None = None) -> Path:
    """Where the tiny LLM lies, or would lie; fewer `documents` than usual make a worse one (smoke runs)."""
    return cache / f"tiny-{CORPORA}.{TINY}-{documents or DOCUMENTS}"
