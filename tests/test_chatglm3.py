"""ChatGLM3: logits against the published architecture written slowly, ids against sentencepiece's own."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from cmpta_lib.llm import chatglm3

CONFIG = {
    "model_type": "chatglm",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False,
    "ffn_hidden_size": 72,
    "hidden_size": 64,
    "kv_channels": 16,
    "layernorm_epsilon": 1e-5,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 4,
    "num_layers": 3,
    "padded_vocab_size": 300,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 128,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights as the base model is published: torch files, fused projections, ChatGLM's names."""
    folder = tmp_path_factory.mktemp("chatglm")
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.1

    width, gate = CONFIG["hidden_size"], CONFIG["ffn_hidden_size"]
    fused = (CONFIG["num_attention_heads"] + 2 * CONFIG["multi_query_group_num"]) * CONFIG["kv_channels"]
    weights = {
        "transformer.embedding.word_embeddings.weight": random(300, width),
        "transformer.rotary_pos_emb.inv_freq": random(4),
        "transformer.encoder.final_layernorm.weight": 1 + random(width),
        "transformer.output_layer.weight": random(300, width),
    }
    for layer in (f"transformer.encoder.layers.{n}" for n in range(CONFIG["num_layers"])):
        weights |= {
            f"{layer}.input_layernorm.weight": 1 + random(width),
            f"{layer}.self_attention.query_key_value.weight": random(fused, width),
            f"{layer}.self_attention.query_key_value.bias": random(fused),
            f"{layer}.self_attention.dense.weight": random(width, width),
            f"{layer}.post_attention_layernorm.weight": 1 + random(width),
            f"{layer}.mlp.dense_h_to_4h.weight": random(2 * gate, width),
            f"{layer}.mlp.dense_4h_to_h.weight": random(width, gate),
        }
    names, shards = list(weights), ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    weight_map = {name: shards[i % 2] for i, name in enumerate(names)}
    for shard in shards:
        torch.save({name: weights[name] for name in names if weight_map[name] == shard}, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def slow_logits(folder: Path, ids: list[int]) -> torch.Tensor:
    """The published architecture, position by position and head by head."""
    weights: dict[str, torch.Tensor] = {}
    for shard in folder.glob("*.bin"):
        weights |= torch.load(shard, weights_only=True)
    heads, groups, size = (CONFIG[name] for name in ("num_attention_heads", "multi_query_group_num", "kv_channels"))

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean() + CONFIG["layernorm_epsilon"]).sqrt() * weight

    def rotated(vector: torch.Tensor, position: int) -> torch.Tensor:
        out = vector.clone()
        for pair in range(size // 4):  # neighbouring dimensions turn together, in the first half of the head only
            angle = position / 10_000 ** (2 * pair / (size // 2))
            a, b = vector[2 * pair], vector[2 * pair + 1]
            out[2 * pair] = a * math.cos(angle) - b * math.sin(angle)
            out[2 * pair + 1] = b * math.cos(angle) + a * math.sin(angle)
        return out

    hidden = [weights["transformer.embedding.word_embeddings.weight"][token] for token in ids]
    for layer in range(CONFIG["num_layers"]):
        w = {k.split(f"layers.{layer}.", 1)[1]: v for k, v in weights.items() if f"layers.{layer}." in k}
        keys, values, after = [], [], []
        for position, x in enumerate(hidden):
            fused = w["self_attention.query_key_value.weight"] @ norm(x, w["input_layernorm.weight"])
            fused = fused + w["self_attention.query_key_value.bias"]
            q, k, v = fused.split([heads * size, groups * size, groups * size])
            keys.append([rotated(part, position) for part in k.split(size)])
            values.append(v.split(size))
            mixed = []
            for head in range(heads):
                group = head // (heads // groups)
                query = rotated(q.split(size)[head], position)
                scores = torch.stack([query @ key[group] for key in keys]) / math.sqrt(size)
                mixed.append(sum(p * value[group] for p, value in zip(scores.softmax(0), values, strict=True)))
            x = x + w["self_attention.dense.weight"] @ torch.cat(mixed)
            gate, up = (w["mlp.dense_h_to_4h.weight"] @ norm(x, w["post_attention_layernorm.weight"])).chunk(2)
            after.append(x + w["mlp.dense_4h_to_h.weight"] @ (gate * gate.sigmoid() * up))
        hidden = after
    last = weights["transformer.encoder.final_layernorm.weight"]
    return torch.stack([weights["transformer.output_layer.weight"] @ norm(x, last) for x in hidden])


def test_logits_equal_the_published_architecture(published: Path):
    model = chatglm3.load_model(published, torch.float32, torch.device("cpu"))
    ids = [3, 141, 59, 26, 5, 258, 97, 9, 3, 238]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    expected = slow_logits(published, ids)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"add_bias_linear": True}, "add_bias_linear=True"),
        ({"rmsnorm": False}, "rmsnorm=False"),
        ({"num_layers": 4}, "missing: model.layers.3"),
    ],
)
def test_config_that_does_not_fit_is_refused(published: Path, tmp_path: Path, change: dict, message: str):
    for file in published.glob("pytorch*"):
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(ValueError, match=message):
        chatglm3.load_model(tmp_path, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import sentencepiece

    folder = tmp_path_factory.mktemp("vocabulary")
    lines = [f"the quick brown fox number {n} 请对上述多模态内容的情感强度进行预测" for n in range(50)]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def test_ids_are_sentencepieces_own(vocabulary: Path):
    from sentencepiece import SentencePieceProcessor

    ours, theirs = chatglm3.ChatGLMTokenizer(vocabulary), SentencePieceProcessor(model_file=str(vocabulary))
    size = theirs.vocab_size()
    for text in ("the fox", "情感 +0.6", "[gMASK]sop", "😀 é", ""):
        ids = ours(text)["input_ids"]
        assert ids == theirs.encode(text) and all(i < size for i in ids)
        assert ours.decode([*ids, size + 1]) == text
    # Published: 64789 pieces, then [MASK] 64789, [gMASK] 64790, [sMASK] 64791, sop 64792, eop 64793.
    assert ours.first_ids == [size + 1, size + 3]
    assert len(ours) == size + 5


def test_missing_or_damaged_vocabulary(tmp_path: Path):
    path = tmp_path / "tokenizer.model"
    with pytest.raises(FileNotFoundError, match="expected ChatGLM3's vocabulary"):
        chatglm3.ChatGLMTokenizer(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=f"{path}: is no sentencepiece model"):
        chatglm3.ChatGLMTokenizer(path)
