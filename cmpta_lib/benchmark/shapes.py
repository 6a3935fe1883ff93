"""Frozen LLMs and corpora of published sizes with random contents: what they compute is noise, what it costs is real.

A slice has Qwen-1.8B's width, four of its 24 layers, and its vocabulary in the same proportion, so that the LM head weighs
as much beside the layers as in the whole. Corpora have the lengths and the made-up texts of `data_prep.synthetic_files`, or for
MELD its official texts where their folder is given.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cmpta_lib.benchmark.options import CORPORA, Backbone, Options
from cmpta_lib.data.corpus import COLUMNS, SPLITS, Corpus, Split, Task
from cmpta_lib.embedded.tiny import ARCHITECTURES, VOCABULARY
from cmpta_lib.llm.files import QWEN_1_8B
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.paper import MELD_LABELS, PUBLIC_SHAPES, TABLE1
from data_prep import synthetic_files

TASKS = {"sims": Task("regression", "zh"), "meld": Task("classification", "en", MELD_LABELS)}
TEXT_LIMIT = {"sims": 50, "meld": 65}  # tokens to which MSE-Adapter pads and cuts texts
_MELD_FIELDS = (("audio", "audio"), ("vision", "video"))
SLICE_LAYERS, POSITIONS = 4, 8192
_SEED = 7

# Sizes of Qwen2s whose output table is not their input table, in transformers' words.
FULL = {
    "vocab_size": QWEN_1_8B["vocabulary"], "hidden_size": QWEN_1_8B["hidden"], "num_hidden_layers": QWEN_1_8B["layers"],
    "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": QWEN_1_8B["mlp"],
}  # fmt: skip
_SLICE_ROWS = round(FULL["vocab_size"] * SLICE_LAYERS / FULL["num_hidden_layers"])
SHAPES: dict[Backbone, dict[str, int]] = {
    "tiny": ARCHITECTURES["tiny"] | {"vocab_size": VOCABULARY},
    "slice": FULL | {"num_hidden_layers": SLICE_LAYERS, "vocab_size": _SLICE_ROWS},
    "full": FULL,
}


class FoldedTokenizer:
    """A tokenizer of a whole vocabulary for a smaller table: an id is taken modulo the table's rows.

    Lengths are real; which row a token has does not matter where weights are random. Single bytes come first in the
    vocabulary, so what answers are made of stays apart.
    """

    def __init__(self, whole: Any, rows: int, eos_id: int) -> None:
        self.whole, self.rows, self.bos_token_id = whole, rows, whole.bos_token_id % rows
        self.eos_token_id = self.pad_token_id = eos_id % rows

    def __len__(self) -> int:
        return self.rows

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [one % self.rows for one in self.whole(text, **options)["input_ids"]]}

    def decode(self, rows: Sequence[int]) -> str:
        """Some text of these rows."""
        return str(self.whole.decode(rows))


def random_llm(backbone: Backbone, texts: Iterable[str], vocabulary: str = "") -> FrozenLLM:
    """A frozen LLM of this shape, drawn where it will compute: bf16 on a GPU, float32 on a CPU.

    Args:
        texts: what a small vocabulary is made from where `vocabulary`, a published `qwen.tiktoken`, is not given.
    Raises:
        FileNotFoundError, ValueError: `vocabulary` is not there, or not what was published.
    """
    from transformers import AutoModelForCausalLM, Qwen2Config

    from cmpta_lib.llm import qwen_v1

    size = SHAPES[backbone]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(vocabulary or Path(folder) / qwen_v1.VOCABULARY)
        if not vocabulary:
            qwen_v1.write_vocabulary(path, texts)
        tokenizer = qwen_v1.load_tokenizer(path)
    folded = FoldedTokenizer(tokenizer, size["vocab_size"], tokenizer.convert_tokens_to_ids(qwen_v1.SPECIAL_TOKENS[0]))
    config = Qwen2Config(**size, max_position_embeddings=POSITIONS, tie_word_embeddings=False)
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    torch.manual_seed(_SEED)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = None  # noise never says that it has ended
    return FrozenLLM(model, folded, "random", f"{backbone}, random weights")


def corpus(options: Options) -> Corpus:
    """Training clips for every timed step, a validation split of the published size, and no test split to speak of.

    Frames are noise and nothing is written.
    """
    published = TABLE1[CORPORA[options.corpus]]
    wanted = {
        "train": min(published.train, options.batches * options.batch_size),
        "valid": min(published.valid, options.answers * options.answered),
        "test": 1,
    }
    splits = {name: _split(name, max(size, synthetic_files.MIN_CLIPS), options) for name, size in wanted.items()}
    return Corpus(f"{options.corpus}-lengths", TASKS[options.corpus], splits, True, {}, {}, "benchmark")


def _split(name: str, size: int, options: Options) -> Split:
    if options.corpus == "sims":
        drawn = synthetic_files.simsv2_split(name, size, options.seed)
        columns = {"id": "id", "text": "raw_text", "label": "regression_labels"}
        columns |= {f"{m}_length": f"{m}_lengths" for m in ("audio", "vision")}
        table = pd.DataFrame({column: drawn[field] for column, field in columns.items()})
    else:
        annotations = Path(options.annotations) if options.annotations else None
        rows = list(synthetic_files.meld_rows(name, size, annotations, options.seed))
        items = list(synthetic_files.meld_items(name, iter(rows), options.seed))
        lengths = {f"{m}_length": [item["features"][f"{field}_len"] for item in items] for m, field in _MELD_FIELDS}
        labels = [MELD_LABELS.index(item["label"]) for item in items]
        texts = [row["Utterance"] for row in rows]
        table = pd.DataFrame({"id": [f"{name}{n}" for n in range(len(rows))], "text": texts, "label": labels, **lengths})
    table = table.reindex(columns=[*COLUMNS]).replace({np.nan: None})
    rng = np.random.default_rng([options.seed, SPLITS.index(name), 20])
    shapes = {m: (int(table[f"{m}_length"].sum()), PUBLIC_SHAPES[CORPORA[options.corpus]][m][1]) for m in ("audio", "vision")}
    frames = {m: rng.standard_normal(shape, np.float32) for m, shape in shapes.items()}
    return Split(name, TASKS[options.corpus], table, frames["audio"], frames["vision"])
