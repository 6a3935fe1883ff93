"""ChatGLM3-6B-base in transformers' own GLM classes, with its sentencepiece vocabulary: no code from the hub.

Both are the same network: rotary positions on the first half of each head, in neighbouring pairs; few key and value heads;
a fused gate. ChatGLM keeps query, key and value in one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import GlmConfig, GlmForCausalLM

from cmpta_lib.llm.weights import Published, expect, told

VOCABULARY = "tokenizer.model"
SPECIAL_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")  # their ids follow the vocabulary's
PREFIX = ("[gMASK]", "sop")  # what every input starts with

_EXPECTED = {
    "rmsnorm": True, "add_bias_linear": False, "add_qkv_bias": True, "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False, "multi_query_attention": True, "pre_seq_len": None,
}  # fmt: skip


class ChatGLMTokenizer:
    """The published vocabulary, read by sentencepiece itself; names of special tokens in a text stay text.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no sentencepiece model.
    """

    bos_token_id = None

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected ChatGLM3's vocabulary; fetch {VOCABULARY} from the model's page")
        with told(path, "a sentencepiece model"):
            self._pieces = SentencePieceProcessor(model_file=str(path))
        self.special_ids = {name: self._pieces.vocab_size() + i for i, name in enumerate(SPECIAL_TOKENS)}
        self.first_ids = [self.special_ids[name] for name in PREFIX]

    def __len__(self) -> int:
        return self._pieces.vocab_size() + len(SPECIAL_TOKENS)

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": self._pieces.encode(text)}

    def decode(self, ids: Sequence[int]) -> str:
        return self._pieces.decode([i for i in ids if i < self._pieces.vocab_size()])


def config_of(published: dict[str, Any]) -> GlmConfig:
    """ChatGLM3's config.json as a GlmConfig.

    Raises:
        ValueError: it asks for something that the GLM classes cannot do.
    """
    expect(published, _EXPECTED, "ChatGLM3")
    theta = 10_000.0 * published.get("rope_ratio", 1)
    return GlmConfig(
        vocab_size=published["padded_vocab_size"], hidden_size=published["hidden_size"],
        num_hidden_layers=published["num_layers"], num_attention_heads=published["num_attention_heads"],
        num_key_value_heads=published["multi_query_group_num"], head_dim=published["kv_channels"],
        intermediate_size=published["ffn_hidden_size"], rms_norm_eps=published["layernorm_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.5},
        max_position_embeddings=published["seq_length"], attention_bias=True, tie_word_embeddings=False, pad_token_id=None,
    )  # fmt: skip


load_tokenizer = ChatGLMTokenizer
PUBLISHED = Published(
    model=GlmForCausalLM,
    config_of=config_of,
    layer=r"transformer\.encoder\.layers\.(\d+)\.(.+)",
    in_layer={
        "self_attention.dense.weight": "self_attn.o_proj.weight",
        "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
        "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
    },
    outside={
        "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "transformer.encoder.final_layernorm.weight": "model.norm.weight",
        "transformer.output_layer.weight": "lm_head.weight",
    },
    fused="self_attention.query_key_value",
)
load_model = PUBLISHED.load
