"""The tiny BERT of the embedded default: the text encoder of methods without an LLM, pre-trained here on generated text.

It reads the same pages as the tiny LLM, with words masked, and has met neither a label nor a face nor a voice. Its files
are laid out as bert-base-chinese is published.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cmpta_lib.embedded import recipe, synthetic
from cmpta_lib.embedded.building import build_once
from cmpta_lib.llm import files as llm_files

NAME = "tiny-bert"
ARCHITECTURE = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "max_position_embeddings": 128,
}
VOCABULARY = 1200
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BATCH = 32
LEARNING_RATE = 1e-3
MASKED = 0.15  # of all tokens, as in BERT's paper; all of them become [MASK]
SEED = 11


def build(cache: Path, documents: int | None = None) -> Path:
    """Its folder, pre-training it first if it is not there (half a minute).

    Raises:
        Damaged: it is there and not what was written; names the file and says what to do.
        OSError: it is not there and the cache cannot be written; names it and says what to do.
    """
    read = documents or recipe.DOCUMENTS
    return build_once(recipe.tiny_folder(cache, documents, NAME), lambda folder: _pretrain(folder, read))


def train_tokenizer(texts: Iterable[str]) -> Any:
    """A WordPiece tokenizer, split as BERT's: every character of `texts`, alone and inside words, and their commonest words.

    Counted, not trained: the library's trainer breaks ties by the order of a hash table, which is another in every call,
    and with the vocabulary all weights would be others.
    """
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from transformers import BertTokenizerFast

    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    inner = sorted({character for word in counts for character in word[1:]})
    pieces = [*SPECIAL, *sorted({character for word in counts for character in word}), *(f"##{one}" for one in inner)]
    words = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    pieces += words[: max(0, VOCABULARY - len(pieces))]
    return BertTokenizerFast(vocab={piece: number for number, piece in enumerate(pieces)}, do_lower_case=True)


def _pretrain(folder: Path, documents: int) -> None:
    """Masked language modelling over what is said in `synthetic.documents`; saves model and tokenizer."""
    import torch
    from tqdm.auto import tqdm
    from transformers import BertConfig, BertForMaskedLM, BertModel

    texts = [page.directions + page.text for page in synthetic.documents(documents)]
    tokenizer = train_tokenizer(texts)
    torch.set_num_threads(1)  # another number of threads gives other weights, and so another fingerprint
    torch.manual_seed(SEED)
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **ARCHITECTURE))
    model.train()
    steps = documents // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for batch in tqdm(_batches(texts), total=steps, desc="pre-training the tiny BERT", unit="step"):
        given = tokenizer(batch, padding=True, return_tensors="pt")
        ids, real = given["input_ids"], given["attention_mask"].bool()
        special = (ids == tokenizer.cls_token_id) | (ids == tokenizer.sep_token_id)
        masked = (torch.rand(ids.shape) < MASKED) & real & ~special
        masked[0, 1] = True  # at least one, or the mean below is of nothing
        read = ids.masked_fill(masked, tokenizer.mask_token_id)
        loss = model(input_ids=read, attention_mask=real.long(), labels=ids.masked_fill(~masked, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    encoder = BertModel(model.config)  # with the pooler that MAG-BERT reads, freshly initialised
    encoder.load_state_dict(model.bert.state_dict(), strict=False)
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    llm_files.finalise_tiny(folder, masked_loss=float(loss.detach()), steps=steps)


def _batches(texts: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts) - BATCH + 1, BATCH):
        yield texts[start : start + BATCH]


if __name__ == "__main__":
    build(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
