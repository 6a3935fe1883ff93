"""Qwen v1 (Qwen-1.8B and its family) in transformers' own Qwen2 classes: no code from the hub.

Both are the same network under other names: v1 keeps query, key and value in one matrix and computes
w1(x) * silu(w2(x)), where Qwen2 has three matrices and writes up(x) * silu(gate(x)). `use_dynamic_ntk` and
`use_logn_attn` of the published config change nothing below its `seq_length`; longer inputs are refused.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AddedToken, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from cmpta_lib.llm.weights import Published, expect, told

VOCABULARY = "qwen.tiktoken"
PUBLISHED_TOKENS = 151_643  # of the file that the whole family shares
_START = 1 << 12  # bytes by which that file is known
_START_SHA256 = "5c10efe80b2b578684e0a996ca773de81d80843f5a6c4623a8c774953574e5a3"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205)))


class QwenTokenizer(Qwen2Tokenizer):
    """Qwen v1's ids. Text is brought to NFC by Python's tables, as the published tokenizer does it: those of the
    `tokenizers` library are of an older Unicode and order some combining marks differently.

    Unlike the published one it never reads a special token's name inside a text as that token.
    """

    def _encode_plus(self, text: str, *more: Any, **options: Any) -> Any:
        return super()._encode_plus(unicodedata.normalize("NFC", text), *more, **options)


def load_tokenizer(path: Path) -> QwenTokenizer:
    """A fast tokenizer from the published `qwen.tiktoken`; takes about a second.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is not `<base64 token> <rank>`, the ranks are not 0, 1, 2, ..., a byte is missing, or the file
            starts as the published one and ends early: every special token would have another id.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected Qwen's vocabulary; fetch {VOCABULARY} from the model's page")
    content = path.read_bytes()
    with told(path, "lines of '<base64 token> <rank>'"):
        lines = (line.split() for line in content.splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([byte]) not in ranks for byte in range(256)):
        raise ValueError(f"{path}: expected all bytes, and ranks from 0 on without a gap; fetch it again")
    if hashlib.sha256(content[:_START]).hexdigest() == _START_SHA256 and len(ranks) != PUBLISHED_TOKENS:
        raise ValueError(f"{path}: is cut, {len(ranks)} of {PUBLISHED_TOKENS} tokens are there; fetch it again")
    letters = bytes_to_unicode()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [tuple(map(spelled, _halves(token, ranks))) for token in sorted(ranks, key=ranks.__getitem__) if token[1:]]
    tokenizer = QwenTokenizer(
        vocab={spelled(token): rank for token, rank in ranks.items()}, merges=merges, unk_token=None, pad_token="<|endoftext|>",
        split_special_tokens=True,
    )  # fmt: skip
    tokenizer.backend_tokenizer.normalizer = None  # `_encode_plus` has done it
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.bos_token = "<|im_start|>"  # what MSE-Adapter's public code starts every input with (choice 9)
    return tokenizer


def write_vocabulary(path: Path, texts: Iterable[str]) -> None:
    """A small byte-level vocabulary in the format of `qwen.tiktoken`: every byte, then merges by frequency."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=4096, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    id_of = tokenizer.get_vocab()
    tokens = sorted(id_of, key=id_of.__getitem__)
    spelled = (base64.b64encode(bytes(byte_of[letter] for letter in token)).decode() for token in tokens)
    path.write_text("".join(f"{token} {rank}\n" for rank, token in enumerate(spelled)))


def _halves(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that byte-pair encoding joins to make this one: its own encoding before the last merge."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(parts[i] + parts[i + 1], len(ranks)) for i in range(len(parts) - 1)]
        i = min(range(len(joined)), key=joined.__getitem__)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def config_of(published: dict[str, Any]) -> Qwen2Config:
    """Qwen v1's config.json as a Qwen2Config.

    Raises:
        ValueError: it asks for something that the Qwen2 classes cannot do.
    """
    fixed = {"no_bias": True, "rotary_pct": 1.0, "scale_attn_weights": True, "tie_word_embeddings": False}
    expect(published, fixed, "Qwen v1")
    heads = published["num_attention_heads"]
    return Qwen2Config(
        vocab_size=published["vocab_size"],
        hidden_size=published["hidden_size"],
        num_hidden_layers=published["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=published.get("kv_channels", published["hidden_size"] // heads),
        intermediate_size=published["intermediate_size"] // 2,  # the published value counts w1 and w2 together
        rms_norm_eps=published["layer_norm_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": float(published["rotary_emb_base"])},
        max_position_embeddings=published["seq_length"],
        tie_word_embeddings=False,
    )


PUBLISHED = Published(
    model=Qwen2ForCausalLM,
    config_of=config_of,
    layer=r"transformer\.h\.(\d+)\.(.+)",
    in_layer={
        "ln_1.weight": "input_layernorm.weight",
        "ln_2.weight": "post_attention_layernorm.weight",
        "attn.c_proj.weight": "self_attn.o_proj.weight",
        "mlp.w2.weight": "mlp.gate_proj.weight",
        "mlp.w1.weight": "mlp.up_proj.weight",
        "mlp.c_proj.weight": "mlp.down_proj.weight",
    },
    outside={"transformer.wte.weight": "model.embed_tokens.weight", "transformer.ln_f.weight": "model.norm.weight"},
    fused="attn.c_attn",
)
load_model = PUBLISHED.load
