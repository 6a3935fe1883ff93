"""The tiny models of the embedded default, pre-trained here on generated text: two LLMs, and a BERT for methods without one.

They make "frozen pre-trained LLM" mean something offline: they read Chinese and English utterances, know what these say of
the speaker's sentiment and what a written stage direction adds, and have met neither a face nor a voice. "tiny" is a Qwen2
of about a million weights; "tiny-llama", of Llama's family and wider, stands in for Llama 2 7B and meets scores as that
family writes them, without a plus; "tiny-bert" reads the same pages with words masked, and has met no label either.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmpta_lib import files
from cmpta_lib.embedded import synthetic
from cmpta_lib.llm import files as llm_files
from cmpta_lib.method import prompted as prompts

if TYPE_CHECKING:
    from torch import Tensor

    from cmpta_lib.method.llm import FrozenLLM

    Losses = Callable[[slice], tuple[Tensor, Tensor]]
    Report = Callable[[float], object]  # takes the share that is done

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
ARCHITECTURES: dict[str, dict[str, int]] = {  # of each tiny model, by its name
    "tiny": dict(zip(_SIZES, (192, 2, 4, 512), strict=True)) | {"num_key_value_heads": 4},
    "tiny-llama": dict(zip(_SIZES, (256, 2, 8, 640), strict=True)) | {"num_key_value_heads": 8},
    "tiny-bert": dict(zip(_SIZES, (96, 2, 4, 192), strict=True)) | {"max_position_embeddings": 128},
}
VOCABULARY = 1600
# Wide, shallow, slowly trained and read through noise: a small LLM that is trained hard on a few sentences bends only to
# the words it knows, and no pseudo token can steer it. Chosen on RAVDESS's and the embedded validation splits.
LEARNING_RATE = 6e-4
NOISE = 0.5  # standard deviation of what is added to each input, in norms of its embedding
# As Qwen splits text, so that digits are single tokens and a sign never joins them; Chinese in pairs, so that the few
# sentences of a generated corpus do not become one token each.
_SPLIT = (
    r"\p{Han}{1,2}|(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}&&[^\p{Han}]]+"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BERT_VOCABULARY = 1200
_MASKED = 0.15  # of all tokens, as in BERT's paper; all of them become [MASK]


_SHARE = "done:"  # begins a line that says how far a process of its own is


def build(cache: Path, documents: int | None = None, name: str = "tiny", report: Report = lambda share: None) -> Path:
    """The folder of the tiny model of this name, which is pre-trained first if it is not there (about a minute).

    Raises:
        Damaged: it is there and not what was written; names the file and says what to do.
        OSError: it is not there and the cache cannot be written; names it and says what to do.
    """
    folder = synthetic.tiny_folder(cache, documents, name)
    files.built_once(folder, lambda draft: pretrain(draft, documents or synthetic.DOCUMENTS, name, report))
    llm_files.tiny_fingerprint(folder)
    return folder


def build_apart(cache: Path, documents: int | None, name: str, report: Report) -> None:
    """As `build`, in a process of its own: this one stays small, and others can be built meanwhile.

    Raises:
        RuntimeError: it cannot be built; with the last lines of why.
    """
    command = [sys.executable, "-m", "cmpta_lib.embedded.tiny", str(cache), name, *map(str, filter(None, [documents]))]
    environment, said = os.environ | {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}, ""
    with subprocess.Popen(
        command, env=environment, cwd=files.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as builder:
        for line in builder.stdout or ():
            if line.startswith(_SHARE):
                report(float(line.removeprefix(_SHARE)))
            else:
                said += line
    if builder.returncode:
        raise RuntimeError(f"building {name} failed, exit code {builder.returncode}:\n{said[-3000:]}")


def pretrain(folder: Path, documents: int, name: str, report: Report = lambda share: None) -> None:
    """Train on `synthetic.documents`, each read once, by AdamW in one cycle; save model and tokenizer as such are published.

    An LLM predicts the next token of pages written as the runs will write them, BERT the masked tokens of what is said.
    """
    import torch

    is_bert = name == "tiny-bert"
    seed, size, rate, betas = (11, 32, 1e-3, (0.9, 0.999)) if is_bert else (7, 40, LEARNING_RATE, (0.9, 0.98))
    torch.set_num_threads(1)  # another number of threads gives other weights, and so another fingerprint
    torch.manual_seed(seed)
    model, tokenizer, losses = (_bert if is_bert else _llm)(documents, name)
    optimizer, steps = torch.optim.AdamW(model.parameters(), lr=rate, betas=betas, weight_decay=0.01), documents // size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        report(step / steps)
        rest, told = losses(slice(step * size, (step + 1) * size))  # of an LLM's few answer tokens: they count as all the rest
        optimizer.zero_grad()
        (rest + told).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    if is_bert:
        trained, model = model.bert, type(model.bert)(model.config)  # with the pooler that MAG-BERT reads, freshly initialised
        model.load_state_dict(trained.state_dict(), strict=False)
    else:
        model.set_attn_implementation("sdpa")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    told_loss = {"masked_loss" if is_bert else "answer_loss": float(told.detach())}
    llm_files.finalise_tiny(folder, **told_loss, steps=steps)


# LLMs ----------------------------------------------------------------------------------------------------------------
def _llm(documents: int, name: str) -> tuple[Any, Any, Losses]:
    """An LLM with its initial weights, input and output embeddings one table; its tokenizer; its losses on some pages."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.qwen2 import Qwen2Config, Qwen2ForCausalLM

    from cmpta_lib.method.llm import FrozenLLM

    texts, phrases = pages(documents, "negative" if name == "tiny-llama" else "always")
    tokenizer = bpe_tokenizer((parts[1] + parts[3] + parts[4] for parts in texts), phrases)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    settings: dict[str, Any] = {"vocab_size": len(tokenizer), "tie_word_embeddings": True, **ends, **ARCHITECTURES[name]}
    is_llama = name == "tiny-llama"
    model = LlamaForCausalLM(LlamaConfig(**settings)) if is_llama else Qwen2ForCausalLM(Qwen2Config(**settings))
    reader = FrozenLLM(model, tokenizer, "", "tiny")
    model.train().requires_grad_(True)
    return model, tokenizer, lambda chosen: _next_token_losses(reader, texts[chosen])


def bpe_tokenizer(texts: Iterable[str], phrases: list[str]) -> Any:
    """A byte-level BPE tokenizer trained on `texts`, split as Qwen splits; each of `phrases` is one token.

    The phrases are the tags and questions that stand in every input: as single tokens they make inputs three times
    shorter, which is what lets a laptop train the embedded default in minutes.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(_SPLIT), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|endoftext|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(phrases)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|endoftext|>")


def pages(documents: int, sign: prompts.Sign) -> tuple[list[tuple[str, ...]], list[str]]:
    """The parts of every page (open, words, close, prompt, answer), and the phrases that stand in every input.

    Args:
        sign: how the LLM's family writes positive scores.
    """
    texts: list[tuple[str, ...]] = []
    for page in synthetic.documents(documents):
        lay, answer = prompts.Layout.of(page.task), prompts.answer_text(page.task, page.label, sign=sign)
        texts.append((lay.open, page.directions + page.text, lay.close, lay.prompt, answer))
    asked = [prompts.Layout.of(source.task) for source in synthetic.generative_models().values()]
    return texts, sorted({part for lay in asked for part in (lay.open, lay.close, lay.prompt)})


def _next_token_losses(reader: FrozenLLM, texts: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    """Mean next-token cross-entropy of noisy pages: of all tokens but the answers', and of the answers'."""
    import torch
    import torch.nn.functional as F

    from cmpta_lib.fast.llm import packed_logits
    from cmpta_lib.fast.packing import Ragged

    batch = [[reader.token_ids(part) for part in parts] for parts in texts]
    rows = [reader.first_ids + sum(parts, []) for parts in batch]
    layout = Ragged.rows([len(row) for row in rows], reader.device)
    lengths = torch.tensor(layout.lengths)
    tokens = torch.tensor(sum(rows, []))
    ends = lengths.cumsum(0)
    inner = torch.ones_like(tokens, dtype=torch.bool)
    inner[ends - 1] = False  # the last token of a page predicts nothing
    positions = inner.nonzero()[:, 0]
    answer_sizes = torch.tensor([len(parts[-1]) for parts in batch])
    from_end = ends.repeat_interleave(lengths) - 1 - torch.arange(len(tokens))
    is_answer = (from_end <= answer_sizes.repeat_interleave(lengths))[positions]
    embeds = reader.embedding(tokens)
    size = embeds.detach().norm(dim=1, keepdim=True) / reader.dim**0.5
    embeds = embeds + NOISE * size * torch.randn(embeds.shape)
    losses = F.cross_entropy(packed_logits(reader, embeds, layout, positions), tokens[positions + 1], reduction="none")
    return losses[~is_answer].mean(), losses[is_answer].mean()


# BERT ----------------------------------------------------------------------------------------------------------------
def _bert(documents: int, name: str) -> tuple[Any, Any, Losses]:
    """As `_llm`; the second loss is that of the masked tokens, and there is no first."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    texts = [page.directions + page.text for page in synthetic.documents(documents)]
    tokenizer = wordpiece_tokenizer(texts)
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **ARCHITECTURES[name]))
    model.train()

    def losses(chosen: slice) -> tuple[Tensor, Tensor]:
        given = tokenizer(texts[chosen], padding=True, return_tensors="pt")
        ids, real = given["input_ids"], given["attention_mask"].bool()
        special = (ids == tokenizer.cls_token_id) | (ids == tokenizer.sep_token_id)
        masked = (torch.rand(ids.shape) < _MASKED) & real & ~special
        masked[0, 1] = True  # at least one, or the mean below is of nothing
        read = ids.masked_fill(masked, tokenizer.mask_token_id)
        loss = model(input_ids=read, attention_mask=real.long(), labels=ids.masked_fill(~masked, -100)).loss
        return loss.new_zeros(()), loss

    return model, tokenizer, losses


def wordpiece_tokenizer(texts: Iterable[str]) -> Any:
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
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({character for word in counts for character in word})]
    pieces += [f"##{character}" for character in inner]
    words = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    pieces += words[: max(0, _BERT_VOCABULARY - len(pieces))]
    return BertTokenizerFast(vocab={piece: number for number, piece in enumerate(pieces)}, do_lower_case=True)


if __name__ == "__main__":  # python -m cmpta_lib.embedded.tiny CACHE [NAME [DOCUMENTS]]
    _name, _size = sys.argv[2] if len(sys.argv) > 2 else "tiny", int(sys.argv[3]) if len(sys.argv) > 3 else None
    build(Path(sys.argv[1]), _size, _name, lambda share: print(f"{_SHARE}{share:.3f}", flush=True))
