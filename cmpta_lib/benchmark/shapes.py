"""Frozen LLMs of a chosen size with random weights: what they compute is noise, what it costs is real.

A slice has Qwen-1.8B's width, four of its 24 layers, and its vocabulary in the same proportion, so that the LM head weighs
as much beside the layers as in the whole. Texts keep their real tokens there: they are read by a tokenizer of the whole
vocabulary, and every token that is met gets a row of the smaller table, in the order in which they are met. Different
tokens stay different and lengths are real; which row is which does not matter where weights are random.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cmpta_lib.benchmark.options import Backbone
from cmpta_lib.embedded.tiny import ARCHITECTURES, VOCABULARY
from cmpta_lib.llm.files import QWEN_1_8B
from cmpta_lib.method.llm import FrozenLLM

SLICE_LAYERS = 4
POSITIONS = 8192
_SEED = 7


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2 whose output table is not its input table."""

    hidden: int
    layers: int
    heads: int
    mlp: int
    vocabulary: int


_LAYERS = QWEN_1_8B["layers"]
FULL = Shape(QWEN_1_8B["hidden"], _LAYERS, 16, QWEN_1_8B["mlp"], QWEN_1_8B["vocabulary"])
SHAPES: dict[Backbone, Shape] = {
    "tiny": Shape(
        ARCHITECTURES["tiny"]["hidden_size"],
        ARCHITECTURES["tiny"]["num_hidden_layers"],
        ARCHITECTURES["tiny"]["num_attention_heads"],
        ARCHITECTURES["tiny"]["intermediate_size"],
        VOCABULARY,
    ),
    "slice": Shape(FULL.hidden, SLICE_LAYERS, FULL.heads, FULL.mlp, round(FULL.vocabulary * SLICE_LAYERS / _LAYERS)),
    "full": FULL,
}


class FoldedTokenizer:
    """A tokenizer whose ids are rows of a smaller table, handed out in the order in which tokens are first met."""

    def __init__(self, whole: Any, rows: int) -> None:
        self.whole, self.rows = whole, rows
        self._row_of: dict[int, int] = {}
        self.bos_token_id, self.eos_token_id = (self._row(i) for i in (whole.bos_token_id, whole.eos_id))
        self.pad_token_id = self.eos_token_id

    def __len__(self) -> int:
        return self.rows

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [self._row(one) for one in self.whole(text, **options)["input_ids"]]}

    def decode(self, rows: Iterable[int]) -> str:
        """The text of rows; one that no token has got yet is skipped."""
        whole_of = {row: one for one, row in self._row_of.items()}
        return str(self.whole.decode([whole_of[row] for row in rows if row in whole_of]))

    def _row(self, one: int) -> int:
        row = self._row_of.setdefault(one, len(self._row_of))
        if row >= self.rows:
            raise ValueError(
                f"expected at most {self.rows} different tokens in all texts, as many as this backbone has rows for, and "
                f"more came; take fewer clips or a larger backbone"
            )
        return row


def tokenizer(rows: int, texts: Iterable[str], vocabulary: str = "") -> FoldedTokenizer:
    """The published vocabulary's tokens, or those of a small one made from `texts`, in a table of so many rows.

    Raises:
        FileNotFoundError, ValueError: `vocabulary` is not there, or not what was published.
    """
    from cmpta_lib.llm import qwen_v1

    if vocabulary:
        whole = qwen_v1.load_tokenizer(Path(vocabulary))
    else:
        with tempfile.TemporaryDirectory() as folder:
            small = Path(folder) / qwen_v1.VOCABULARY
            qwen_v1.write_vocabulary(small, texts)
            whole = qwen_v1.load_tokenizer(small)
    whole.eos_id = whole.convert_tokens_to_ids(qwen_v1.SPECIAL_TOKENS[0])
    return FoldedTokenizer(whole, rows)


def random_llm(
    backbone: Backbone, texts: Iterable[str], vocabulary: str = "", shape: Shape | None = None
) -> FrozenLLM:
    """A frozen LLM of this shape, drawn where it will compute: bf16 on a GPU, float32 on a CPU.

    Args:
        shape: in place of the one that `backbone` names, to prove at a small size what is meant for a large one.
    """
    from transformers import Qwen2ForCausalLM

    from cmpta_lib.llm import qwen_v1

    size = shape or SHAPES[backbone]
    published = {
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "intermediate_size": 2 * size.mlp,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10_000,
        "seq_length": POSITIONS,
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    usual = torch.get_default_dtype()
    torch.manual_seed(_SEED)
    try:
        torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
        with device:
            model = Qwen2ForCausalLM(qwen_v1.config_of(published))
    finally:
        torch.set_default_dtype(usual)
    model.generation_config.eos_token_id = None  # noise never says that it has ended
    return FrozenLLM(model, tokenizer(size.vocabulary, texts, vocabulary), "random", f"{backbone}, random weights")
