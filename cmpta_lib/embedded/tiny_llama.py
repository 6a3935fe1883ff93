"""A second tiny LLM, of Llama's family: the stand-in for Llama 2 7B where a row of a table has that backbone.

It reads the pages that `tiny_llm` reads and is wider; scores it meets as Llama's family writes them, without a plus.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cmpta_lib.embedded import recipe, tiny_llm
from cmpta_lib.embedded.building import build_once

NAME = "tiny-llama"
ARCHITECTURE = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 640,
}


def build(cache: Path, documents: int | None = None) -> Path:
    """Its folder, pre-training it first if it is not there (a minute); raises as `tiny_llm.build`."""
    read = documents or recipe.DOCUMENTS
    folder = recipe.tiny_folder(cache, documents, NAME)
    return build_once(folder, lambda folder: tiny_llm.pretrain(folder, read, _untrained, sign="negative"))


def _untrained(tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**tiny_llm.vocabulary_of(tokenizer), **ARCHITECTURE))


if __name__ == "__main__":
    build(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
