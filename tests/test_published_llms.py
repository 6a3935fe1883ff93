"""Qwen v1 and ChatGLM3: ids against tiktoken and sentencepiece, logits against the published architecture written slowly."""

from __future__ import annotations

import base64
import csv
import json
import random
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import torch
from published_llms import chatglm3_logits, qwen_v1_logits, write_chatglm3, write_chatglm3_vocabulary
from safetensors.torch import load_file

from cmpta_lib.cli.dry_run import write_qwen_v1
from cmpta_lib.llm import chatglm3, qwen_v1

SHARED = Path(__file__).resolve().parents[2] / "shared"
PUBLISHED = SHARED / "qwen" / "qwen.tiktoken"
# The split rule of Qwen's published tokenizer, as its model page gives it.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real vocabulary where it lies beside the checkout, else a small one of the same format."""
    if PUBLISHED.exists():
        return PUBLISHED
    folder = tmp_path_factory.mktemp("model")
    write_qwen_v1(folder, ["the quick brown fox's 情感 12345 dog"] * 9, width=16, layers=1, vocabulary_size=600)
    return folder / "qwen.tiktoken"


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Path) -> qwen_v1.QwenTokenizer:
    return qwen_v1.load_tokenizer(vocabulary)


@pytest.fixture(scope="module")
def reference(vocabulary: Path) -> tiktoken.Encoding:
    lines = (line.split() for line in vocabulary.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    return tiktoken.Encoding("qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


def same_ids(tokenizer, reference: tiktoken.Encoding, text: str) -> bool:
    """Whether both agree, and the ids spell the text again."""
    normal = unicodedata.normalize("NFC", text)
    ids = tokenizer(text)["input_ids"]
    return ids == reference.encode_ordinary(normal) and tokenizer.decode(ids) == normal


def test_ids_of_all_meld_texts(tokenizer, reference):
    folder = SHARED / "data" / "meld"
    if not folder.exists():
        pytest.skip("needs the official MELD CSVs beside the checkout")
    texts = []
    for split in ("train", "dev", "test"):
        with open(folder / f"{split}_sent_emo.csv", encoding="utf-8", newline="") as file:
            texts += [row["Utterance"] for row in csv.DictReader(file)]
    assert len(texts) == 13_708
    assert [text for text in texts if not same_ids(tokenizer, reference, text)] == []


def test_ids_of_random_unicode(tokenizer, reference):
    draw = random.Random(20)
    ranges = [
        *[(0x20, 0xD800), (0xE000, 0x110000), (0x20, 0x7F)],
        *[(0x300, 0x370), (0x900, 0x1200), (0x4E00, 0xA000), (0x20000, 0x32000), (0x1F300, 0x1FB00)],
        (0x0, 0x21),  # control characters, line ends, spaces
    ]
    texts = [
        "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randint(1, 40))) for _ in range(10_000)
    ]
    assert [ascii(text) for text in texts if not same_ids(tokenizer, reference, text)] == []


AWKWARD = [
    *("", " ", "\n\n \n", "I'LL we'Re 's", "1234567 ½ ²", "e\u0301\u0323 \u0958"),
    *("👩‍👩‍👧‍👦🇨🇳", "𠀀𰀀 彁", "한글 각", "a\u3000b\x85c", "\u017fK"),
]
NAMES = ["<|im_end|>", "<|endoftext|>", "<|extra_17|>", "a<|im_start|>b"]


@pytest.mark.parametrize("text", AWKWARD + NAMES)
def test_ids_of_awkward_text_and_special_tokens_named_in_a_text(tokenizer, reference, text: str):
    assert same_ids(tokenizer, reference, text)
    assert text not in NAMES or tokenizer.encode(text) == reference.encode_ordinary(text)


def test_special_ids_follow_the_vocabulary(tokenizer, reference):
    first = reference.n_vocab
    ids = tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>", "<|extra_204|>"]
    )
    assert ids == [first, first + 1, first + 2, first + 3, first + 207]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, len(tokenizer)) == (first, first + 1, first + 208)
    if PUBLISHED.exists():
        assert first == 151_643  # the published ids: 151643, 151644, ...


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("IQ== 0\nIg== 2\n", "expected all bytes, and ranks from 0 on without a gap"),
        ("IQ==\n", "expected lines of"),
        ("!!! 0\n", "expected lines of"),
    ],
)
def test_damaged_vocabulary(tmp_path: Path, content: str, reason: str):
    path = tmp_path / "qwen.tiktoken"
    with pytest.raises(FileNotFoundError, match="expected Qwen's vocabulary"):
        qwen_v1.load_tokenizer(path)
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path}.*{reason}"):
        qwen_v1.load_tokenizer(path)


def test_a_vocabulary_cut_at_a_line_is_refused(tmp_path: Path):
    """It would load, with every special token under another id."""
    if not PUBLISHED.exists():
        pytest.skip("needs the published vocabulary beside the checkout")
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(b"".join(PUBLISHED.read_bytes().splitlines(keepends=True)[:100_000]))
    with pytest.raises(ValueError, match="is cut, 100000 of 151643 tokens are there"):
        qwen_v1.load_tokenizer(path)


def test_ids_are_sentencepieces_own(tmp_path: Path):
    from sentencepiece import SentencePieceProcessor

    vocabulary = write_chatglm3_vocabulary(tmp_path)
    ours, theirs = chatglm3.ChatGLMTokenizer(vocabulary), SentencePieceProcessor(model_file=str(vocabulary))
    size = theirs.vocab_size()
    for text in ("the fox", "情感 +0.6", "[gMASK]sop", "😀 é", ""):
        ids = ours(text)["input_ids"]
        assert ids == theirs.encode(text) and all(i < size for i in ids)
        assert ours.decode([*ids, size + 1]) == text
    # Published: 64789 pieces, then [MASK] 64789, [gMASK] 64790, [sMASK] 64791, sop 64792, eop 64793.
    assert ours.first_ids == [size + 1, size + 3] and len(ours) == size + 5


def test_a_missing_or_damaged_sentencepiece_vocabulary(tmp_path: Path):
    path = tmp_path / "tokenizer.model"
    with pytest.raises(FileNotFoundError, match="expected ChatGLM3's vocabulary"):
        chatglm3.ChatGLMTokenizer(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=f"{path}: expected a sentencepiece model"):
        chatglm3.ChatGLMTokenizer(path)


# ---- weights


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    write_qwen_v1(folder, ["some words"], width=64, layers=3, vocabulary_size=500, seed=3)
    return folder


@pytest.fixture(scope="module")
def families(published: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path, Any]]:
    glm = write_chatglm3(tmp_path_factory.mktemp("chatglm"))
    return {"qwen": (qwen_v1, published, qwen_v1_logits), "chatglm": (chatglm3, glm, chatglm3_logits)}


@pytest.mark.parametrize("family", ["qwen", "chatglm"])
@torch.no_grad()
def test_logits_equal_the_published_architecture(family: str, families):
    module, folder, slowly = families[family]
    model, ids = module.load_model(folder, torch.float32, CPU), [3, 141, 59, 26, 5, 258, 97, 9, 3, 238]
    logits, expected = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0], slowly(folder, ids)
    assert expected.std() > 0.01
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_weights_in_bfloat16_are_the_files_own(published: Path):
    model, name = qwen_v1.load_model(published, torch.bfloat16, CPU), "transformer.h.1.attn.c_attn.weight"
    (fused,) = (tensors[name] for tensors in map(load_file, published.glob("*.safetensors")) if name in tensors)
    attention = model.model.layers[1].self_attn
    assert torch.equal(torch.cat([getattr(attention, f"{part}_proj").weight for part in "qkv"]), fused)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("qwen", {"no_bias": False}, "no_bias=False"),
        ("qwen", {"rotary_pct": 0.25}, "rotary_pct=0.25"),
        ("qwen", {"num_hidden_layers": 4}, "config.json: .*model.layers.3.input_layernorm.weight is missing .12 tensors"),
        ("qwen", {"num_hidden_layers": 2}, "safetensors: .*model.layers.2.input_layernorm.weight has no place .12 tensors"),
        ("qwen", {"vocab_size": 501}, r"lm_head.weight is \[500, 64\], not \[501, 64\] .2 tensors"),
        ("qwen", {"tie_word_embeddings": True}, "config.json: .*tie_word_embeddings=True cannot be loaded"),
        ("qwen", {"kv_channels": 16}, r"attn\.c_attn\.\w+ has 192 rows, config.json asks for 96"),
        ("chatglm", {"add_bias_linear": True}, "add_bias_linear=True"),
        ("chatglm", {"rmsnorm": False}, "rmsnorm=False"),
        ("chatglm", {"num_layers": 4}, "config.json: .*model.layers.3.*is missing"),
    ],
)
def test_config_that_does_not_fit_is_refused(family: str, change: dict, message: str, families, tmp_path: Path):
    module, folder, _ = families[family]
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | change))
    with pytest.raises(ValueError, match=message):
        module.load_model(tmp_path, torch.float32, CPU)


def test_missing_and_damaged_shards_are_named(published: Path, tmp_path: Path):
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{shard}.*fetch it again"):
        qwen_v1.load_model(tmp_path, torch.float32, CPU)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"lists 2 shards, but {shard.name} is missing"):
        qwen_v1.load_model(tmp_path, torch.float32, CPU)
