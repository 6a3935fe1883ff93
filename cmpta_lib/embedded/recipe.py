"""What names the embedded default's caches: change what a recipe stands for, raise its number, and caches are made anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

CORPORA = 3  # generated clips and generated text
TINY = 2  # anything else that changes the tiny models' weights
DOCUMENTS = 16_000  # that it is pre-trained on, each read once: 400 steps of 40
TINY_MODELS: Mapping[str, str] = {  # name -> the module that makes it
    "tiny": "cmpta_lib.embedded.tiny_llm",
    "tiny-llama": "cmpta_lib.embedded.tiny_llama",
    "tiny-bert": "cmpta_lib.embedded.tiny_bert",
}


def tiny_folder(cache: Path, documents: int | None = None, name: str = "tiny") -> Path:
    """Where the tiny model of this name lies, or would lie; fewer `documents` than usual make a worse one (smoke runs)."""
    return cache / f"{name}-{CORPORA}.{TINY}-{documents or DOCUMENTS}"
