"""The tiny LLM of the embedded default: a Qwen2 of about a million weights, pre-trained here on generated text.

It makes "frozen pre-trained LLM" mean something offline: it reads Chinese and English utterances, knows what they say of
the speaker's sentiment and what a written stage direction adds, and has met neither a face nor a voice.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmpta_lib.embedded import recipe, synthetic
from cmpta_lib.embedded.building import build_once
from cmpta_lib.llm import files as llm_files
from cmpta_lib.method import prompted as prompts

if TYPE_CHECKING:
    from torch import Tensor

    from cmpta_lib.method.llm import FrozenLLM

ARCHITECTURE = {
    "hidden_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 512,
}
VOCABULARY = 1600
BATCH = 40
# Wide, shallow, slowly trained and read through noise: a small LLM that is trained hard on a few sentences bends only to
# the words it knows, and no pseudo token can steer it. Chosen on RAVDESS's and the embedded validation splits.
LEARNING_RATE = 6e-4
NOISE = 0.5  # standard deviation of what is added to each input, in norms of its embedding
SEED = 7
# As Qwen splits text, so that digits are single tokens and a sign never joins them; Chinese in pairs, so that the few
# sentences of a generated corpus do not become one token each.
SPLIT = (
    r"\p{Han}{1,2}|(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}&&[^\p{Han}]]+"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build(cache: Path, documents: int | None = None) -> Path:
    """Its folder, pre-training it first if it is not there (under a minute on two cores).

    Raises:
        Damaged: it is there and not what was written; names the file and says what to do.
        OSError: it is not there and the cache cannot be written; names it and says what to do.
    """
    read = documents or recipe.DOCUMENTS
    return build_once(recipe.tiny_folder(cache, documents), lambda folder: _pretrain(folder, read))


def train_tokenizer(texts: Iterable[str], phrases: list[str]) -> Any:
    """A byte-level BPE tokenizer over `texts`, split as Qwen splits; each of `phrases` is one token.

    The phrases are the tags and questions that stand in every input: as single tokens they make inputs three times
    shorter, which is what lets a laptop train the embedded default in minutes.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(phrases)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|endoftext|>")


def _pretrain(folder: Path, documents: int) -> None:
    pretrain(folder, documents, _untrained)


def _untrained(tokenizer: Any) -> Any:
    from transformers.models.qwen2 import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**vocabulary_of(tokenizer), **ARCHITECTURE))


def vocabulary_of(tokenizer: Any) -> dict[str, Any]:
    """What a model's config must say of its tokenizer; input and output embeddings are one table."""
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return {"vocab_size": len(tokenizer), "tie_word_embeddings": True, **ends}


def pretrain(
    folder: Path, documents: int, untrained: Callable[[Any], Any], sign: prompts.Sign = "always"
) -> None:
    """Next-token prediction over `synthetic.documents`, written as the runs will write them; saves model and tokenizer.

    Args:
        untrained: tokenizer -> a causal LM with its initial weights.
        sign: how its family writes positive scores.
    """
    import torch
    from tqdm.auto import tqdm

    from cmpta_lib.method.llm import FrozenLLM

    texts, fixed = _texts(documents, sign)
    tokenizer = train_tokenizer((parts[1] + parts[3] + parts[4] for parts in texts), fixed)
    torch.set_num_threads(1)  # another number of threads gives other weights, and so another fingerprint
    torch.manual_seed(SEED)
    model = untrained(tokenizer)
    reader = FrozenLLM(model, tokenizer, "", "tiny")
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98))
    steps = documents // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for step in tqdm(range(steps), desc="pre-training the tiny LLM", unit="step"):
        batch = [[reader.token_ids(part) for part in parts] for parts in texts[step * BATCH : (step + 1) * BATCH]]
        rest, answers = _losses(reader, batch)
        loss = rest + answers  # the few answer tokens count as much as all the rest
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.set_attn_implementation("sdpa")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    llm_files.finalise_tiny(folder, answer_loss=float(answers.detach()), steps=steps)


def _texts(documents: int, sign: prompts.Sign) -> tuple[list[tuple[str, ...]], list[str]]:
    """The parts of every page (open, words, close, prompt, answer), and the phrases that stand in every input."""
    texts: list[tuple[str, ...]] = []
    for page in synthetic.documents(documents):
        lay, answer = prompts.Layout.of(page.task), prompts.answer_text(page.task, page.label, sign=sign)
        texts.append((lay.open, page.directions + page.text, lay.close, lay.prompt, answer))
    asked = [prompts.Layout.of(world.task) for world in synthetic.worlds().values()]
    return texts, sorted({part for lay in asked for part in (lay.open, lay.close, lay.prompt)})


def _losses(reader: FrozenLLM, batch: Sequence[Sequence[list[int]]]) -> tuple[Tensor, Tensor]:
    """Mean next-token cross-entropy of noisy pages: of all tokens but the answers', and of the answers'."""
    import torch
    import torch.nn.functional as F

    from cmpta_lib.fast.llm import packed_logits
    from cmpta_lib.fast.packing import Ragged

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


if __name__ == "__main__":
    build(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
