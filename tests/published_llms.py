"""Small LLMs in the layouts of Qwen v1 and ChatGLM3, and their published architecture written slowly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "model.safetensors"
CHATGLM3 = {
    "model_type": "chatglm", "add_bias_linear": False, "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False, "ffn_hidden_size": 72, "hidden_size": 64, "kv_channels": 16,
    "layernorm_epsilon": 1e-5, "multi_query_attention": True, "multi_query_group_num": 2, "num_attention_heads": 4,
    "num_layers": 3, "padded_vocab_size": 300, "post_layer_norm": True, "rmsnorm": True, "seq_length": 128,
}  # fmt: skip


def write_chatglm3(folder: Path, **changes: int) -> Path:
    """Random weights as the base model is published: torch files, fused projections, ChatGLM's names."""
    config = CHATGLM3 | changes
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.1

    words, width, gate = config["padded_vocab_size"], config["hidden_size"], config["ffn_hidden_size"]
    fused = (config["num_attention_heads"] + 2 * config["multi_query_group_num"]) * config["kv_channels"]
    weights = {
        "transformer.embedding.word_embeddings.weight": random(words, width),
        "transformer.rotary_pos_emb.inv_freq": random(4),
        "transformer.encoder.final_layernorm.weight": 1 + random(width),
        "transformer.output_layer.weight": random(words, width),
    }
    for layer in (f"transformer.encoder.layers.{n}" for n in range(config["num_layers"])):
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
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_chatglm3_vocabulary(folder: Path) -> Path:
    import sentencepiece

    lines = [f"the quick brown fox number {n} 请对上述多模态内容的情感强度进行预测" for n in range(50)]
    text, name = folder / "text.txt", folder / "tokenizer"
    text.write_text("\n".join(lines), encoding="utf-8")
    size = {"vocab_size": 420, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=str(name), **size)
    return folder / "tokenizer.model"


def chatglm3_logits(folder: Path, ids: list[int]) -> Tensor:
    weights: dict[str, Tensor] = {}
    for shard in folder.glob("*.bin"):
        weights |= torch.load(shard, weights_only=True)
    attention = [f"self_attention.{name}" for name in ("query_key_value.weight", "query_key_value.bias", "dense.weight")]
    mlp = ["post_attention_layernorm.weight", "mlp.dense_h_to_4h.weight", "mlp.dense_4h_to_h.weight"]
    inner = ["input_layernorm.weight", *attention, *mlp]
    layers = [[weights[f"transformer.encoder.layers.{n}.{name}"] for name in inner] for n in range(CHATGLM3["num_layers"])]
    size = CHATGLM3["kv_channels"]  # neighbouring dimensions turn together, in the first half of the head only
    turns = [(2 * pair, 2 * pair + 1, 10_000 ** -(2 * pair / (size // 2))) for pair in range(size // 4)]
    names = ("embedding.word_embeddings", "encoder.final_layernorm", "output_layer")
    around = [weights[f"transformer.{name}.weight"] for name in names]
    return slow_logits(ids, around, layers, turns, heads=4, groups=2, epsilon=CHATGLM3["layernorm_epsilon"])


def qwen_v1_logits(folder: Path, ids: list[int]) -> Tensor:
    config = json.loads((folder / "config.json").read_text())
    weights: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        weights |= {name: tensor.float() for name, tensor in load_file(shard).items()}
    layers = []
    for start in (f"transformer.h.{n}." for n in range(config["num_hidden_layers"])):
        w = {name.removeprefix(start): tensor for name, tensor in weights.items()}
        gate_and_up = torch.cat([w["mlp.w2.weight"], w["mlp.w1.weight"]])
        attention = [w[f"attn.{name}"] for name in ("c_attn.weight", "c_attn.bias", "c_proj.weight")]
        layers.append([w["ln_1.weight"], *attention, w["ln_2.weight"], gate_and_up, w["mlp.c_proj.weight"]])
    size, heads = config["kv_channels"], config["num_attention_heads"]  # dimension i turns together with i + size / 2
    turns = [(i, i + size // 2, config["rotary_emb_base"] ** -(2 * i / size)) for i in range(size // 2)]
    around = [weights[name] for name in ("transformer.wte.weight", "transformer.ln_f.weight", "lm_head.weight")]
    return slow_logits(ids, around, layers, turns, heads=heads, groups=heads, epsilon=config["layer_norm_epsilon"])


def slow_logits(
    ids: list[int], around: Sequence[Tensor], layers: Sequence[Sequence[Tensor]],
    turns: Sequence[tuple[int, int, float]], heads: int, groups: int, epsilon: float,
) -> Tensor:  # fmt: skip
    """(len(ids), V) the published architecture, position by position and head by head, in float32.

    Args:
        around: the embedding table, the last norm, the head.
        layers: norm, fused queries, keys and values with their bias, output, norm, fused gate and up, down.
        turns: pairs of a head's dimensions that turn together, and the angle at position 1.
    """
    table, last, head = around
    size = len(layers[0][2]) // (heads + 2 * groups)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.pow(2).mean() + epsilon).sqrt() * weight

    def rotated(vector: Tensor, position: int) -> Tensor:
        out = vector.clone()
        for one, other, speed in turns:
            a, b, angle = vector[one], vector[other], position * speed
            out[one] = a * math.cos(angle) - b * math.sin(angle)
            out[other] = b * math.cos(angle) + a * math.sin(angle)
        return out

    hidden = [table[token] for token in ids]
    for norm_in, fused, bias, out, norm_mid, gate_and_up, down in layers:
        keys, values, after = [], [], []
        for position, x in enumerate(hidden):
            q, k, v = (fused @ norm(x, norm_in) + bias).split([heads * size, groups * size, groups * size])
            keys.append([rotated(part, position) for part in k.split(size)])
            values.append(v.split(size))
            mixed = []
            for number in range(heads):
                group = number // (heads // groups)
                query = rotated(q.split(size)[number], position)
                scores = torch.stack([query @ key[group] for key in keys]) / math.sqrt(size)
                mixed.append(sum(p * value[group] for p, value in zip(scores.softmax(0), values, strict=True)))
            x = x + out @ torch.cat(mixed)
            gate, up = (gate_and_up @ norm(x, norm_mid)).chunk(2)
            after.append(x + down @ (gate * gate.sigmoid() * up))
        hidden = after
    return torch.stack([head @ norm(x, last) for x in hidden])


# Damage to a folder -------------------------------------------------------------------------------------------------
Change = Callable[[Path], object]


def stored(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Change:
    """Other tensors in a file of weights."""

    def do(folder: Path) -> None:
        changed = change(load_file(folder / WEIGHTS))
        save_file({name: tensor.clone().contiguous() for name, tensor in changed.items()}, folder / WEIGHTS, {"format": "pt"})

    return do


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    return stored(lambda all_: all_ | {name: change(all_[name])})


def edited(name: str, change: Callable[[dict], object] = lambda content: None, **values: Any) -> Change:
    """Other contents of a JSON file."""

    def do(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | values
        change(content)
        (folder / name).write_text(json.dumps(content))

    return do
