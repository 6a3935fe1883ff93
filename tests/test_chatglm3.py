"""ChatGLM3: logits against the published architecture written slowly, ids against sentencepiece's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from published_llms import CHATGLM3, chatglm3_logits, write_chatglm3, write_chatglm3_vocabulary

from cmpta_lib.llm import chatglm3


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chatglm3(tmp_path_factory.mktemp("chatglm"))


def test_logits_equal_the_published_architecture(published: Path):
    model = chatglm3.load_model(published, torch.float32, torch.device("cpu"))
    ids = [3, 141, 59, 26, 5, 258, 97, 9, 3, 238]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    expected = chatglm3_logits(published, ids)
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
    (tmp_path / "config.json").write_text(json.dumps(CHATGLM3 | change))
    with pytest.raises(ValueError, match=message):
        chatglm3.load_model(tmp_path, torch.float32, torch.device("cpu"))


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
    assert ours.first_ids == [size + 1, size + 3]
    assert len(ours) == size + 5


def test_missing_or_damaged_vocabulary(tmp_path: Path):
    path = tmp_path / "tokenizer.model"
    with pytest.raises(FileNotFoundError, match="expected ChatGLM3's vocabulary"):
        chatglm3.ChatGLMTokenizer(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=f"{path}: is no sentencepiece model"):
        chatglm3.ChatGLMTokenizer(path)
