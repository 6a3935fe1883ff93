"""A dry run of profile `paper` without its downloads: random weights laid out as Qwen-1.8B and BERT are published.

What is written here has the names, shapes and files of the real thing and the contents of a random generator, so that
everything after the download can be run, timed and tested anywhere. `data_prep.synthetic_files` does the same for corpora.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmpta_lib import files
from cmpta_lib.benchmark.options import Options
from cmpta_lib.cli.arguments import parser
from cmpta_lib.cli.reproduce import reproduce
from cmpta_lib.data.corpus import Corpus
from cmpta_lib.embedded.tiny import wordpiece_tokenizer
from cmpta_lib.llm import qwen_v1
from cmpta_lib.llm.files import QWEN_1_8B
from cmpta_lib.paper import MELD_PROMPT, SIMS_PROMPT, WRAP_TAGS
from cmpta_lib.study.profiles import DRY_RUN
from cmpta_lib.study.study import Study
from data_prep import meld, simsv2, synthetic_files

FULL_WIDTH, FULL_LAYERS, VOCABULARY_SIZE = (QWEN_1_8B[name] for name in ("hidden", "layers", "vocabulary"))
RECIPE = 5  # raise when what is written changes: what older recipes wrote is then written anew
SMALL_FACTOR = 0.01  # of the published split sizes
BERT_SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
# What is written for each model, small or full. A small LLM's vocabulary is its own where no published one is given; BERT's
# other sizes are transformers' defaults; LLaMA2-7B has two of its 32 layers: the other thirty are the same again, and 13 GB.
_SIZES: Mapping[str, Mapping[str, Mapping[str, int]]] = {
    "small": {
        "qwen": {"width": 128, "layers": 3, "vocabulary_size": 8192},
        "bert": BERT_SMALL,
        "llama2": {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192},
    },
    "full": {
        "qwen": {"width": FULL_WIDTH, "layers": FULL_LAYERS},
        "bert": {"vocab_size": 21_128},
        "llama2": {"hidden_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 32, "intermediate_size": 11_008},
    },
}
_CHANGES = {"small": {"method.dim": 64, "training.epochs": 1}, "full": {"training.epochs": 1}}
CORPORA = ("simsv2", "meld")


def dry_run(options: argparse.Namespace) -> int:
    """Write synthetic files laid out like the published ones, then drive profile `paper` through every notebook on them."""
    prepare(options)
    return 0 if options.files_only else reproduce(parser().parse_args(["reproduce", "--profile", "paper", "--smoke"]))


def prepare(options: argparse.Namespace) -> None:
    """Write corpora and models into the smoke runs' folder, convert the corpora as downloaded ones are, and record it all.

    Raises:
        FileNotFoundError, ValueError: `--annotations` or `--vocabulary` is not there, or no such thing.
    """
    Options(vocabulary=options.vocabulary, annotations=options.annotations)  # refuses files that are no such thing
    size = options.size or ("full" if torch.cuda.is_available() else "small")
    factor = (1.0 if size == "full" else SMALL_FACTOR) if options.factor is None else options.factor
    root = Study("paper", smoke=True).root
    wanted = {"recipe": [RECIPE, synthetic_files.RECIPE], "size": size, "factor": factor}
    _forget_others(root, wanted | {"annotations": options.annotations, "vocabulary": options.vocabulary})
    print(f"writing files laid out like the published ones, {factor:g} of their size, below {root}", flush=True)
    corpora = _corpora(root, factor, Path(options.annotations) if options.annotations else None)
    texts = {corpus.task.language: list(corpus.splits["train"].table["text"]) for corpus in corpora}
    every = [text for own in texts.values() for text in own]
    print("writing random weights in the layouts of Qwen-1.8B, BERT and LLaMA2", flush=True)

    def made(name: str, write: Callable[..., None], texts: Iterable[str], **more: Any) -> str:
        return str(files.built_once(root / "llm" / f"{name}-random-{size}", partial(write, texts=texts, **more)))

    sizes = _SIZES[size]
    shape = {name: number for name, number in sizes["qwen"].items() if name != "vocabulary_size" or not options.vocabulary}
    record = {
        "llm": made("qwen-1_8b", write_qwen_v1, every, vocabulary=options.vocabulary, **shape),
        "llms": {"llama2-7b": made("llama2", write_llama2, every, sizes=sizes["llama2"])},
        "encoders": {one: made(f"bert-{one}", write_bert, own, sizes=sizes["bert"]) for one, own in texts.items()},
        "changes": _CHANGES[size],
    }
    files.write_text(root / DRY_RUN, json.dumps(record, indent=1))


def _forget_others(root: Path, wanted: Mapping[str, Any]) -> None:
    """Remove what another dry run generated; what this one has begun stays."""
    begun = root / "dry_run.begun"
    with suppress(FileNotFoundError, ValueError):  # a damaged record is nobody's
        if json.loads(begun.read_text(encoding="utf-8")) == wanted:
            return
    (root / DRY_RUN).unlink(missing_ok=True)
    for place in (root / "raw", root / "llm", *(root / "cache" / "data" / name for name in CORPORA)):
        shutil.rmtree(place, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    files.write_text(begun, json.dumps(wanted))


def _corpora(root: Path, factor: float, annotations: Path | None) -> list[Corpus]:
    """Write the raw files that are not there yet, and convert them as downloaded ones are."""
    raw = {name: root / "raw" / name for name in CORPORA}
    files.built_once(raw["simsv2"], partial(synthetic_files.write_simsv2, factor=factor))
    files.built_once(raw["meld"], partial(synthetic_files.write_meld, factor=factor, annotations=annotations))
    return [simsv2.prepare(root / "cache", raw["simsv2"]), meld.prepare(root / "cache", raw["meld"], raw["meld"])]


def write_qwen_v1(
    folder: Path, texts: Iterable[str], width: int = FULL_WIDTH, layers: int = FULL_LAYERS, vocabulary: str | Path = "",
    vocabulary_size: int = VOCABULARY_SIZE, seed: int = 0,
) -> None:  # fmt: skip
    """Write random bf16 weights in Qwen v1's published layout: config.json, two shards with their index, vocabulary.

    Args:
        texts: what a small vocabulary is made from where `vocabulary`, a real `qwen.tiktoken`, is not given.
        width: a multiple of 16; heads are 128 wide as published, or half the width where that is less.
    """
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: _random(name, shape, generator) for name, shape in _shapes(width, layers, vocabulary_size).items()}
    half = sum(tensor.nbytes for tensor in tensors.values()) * 2 // 3  # the input table and the layers, and what is left
    save_torch_state_dict(tensors, folder, max_shard_size=half)
    if vocabulary:
        shutil.copyfile(vocabulary, folder / qwen_v1.VOCABULARY)
    else:
        qwen_v1.write_vocabulary(folder / qwen_v1.VOCABULARY, texts)
    head_dim = min(128, width // 2)
    config = {"architectures": ["QWenLMHeadModel"], "model_type": "qwen", "no_bias": True, "tie_word_embeddings": False}
    config |= {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 2 * _gate_width(width)}
    config |= {"kv_channels": head_dim, "num_attention_heads": width // head_dim, "scale_attn_weights": True}
    config |= {"max_position_embeddings": 8192, "seq_length": 8192, "use_dynamic_ntk": True, "use_logn_attn": True}
    config |= {"rotary_emb_base": 10000, "rotary_pct": 1.0, "layer_norm_epsilon": 1e-6, "vocab_size": vocabulary_size}
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def write_bert(folder: Path, texts: Iterable[str], sizes: Mapping[str, int]) -> None:
    """Write a random BERT as bert-base-chinese is published: weights of its pre-training class, vocab.txt, config.json."""
    from transformers import BertConfig, BertForPreTraining

    tokenizer = wordpiece_tokenizer(texts)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    vocabulary += [f"[unused{n}]" for n in range(sizes.get("vocab_size", 0) - len(vocabulary))]  # as the published one
    torch.manual_seed(0)
    model = BertForPreTraining(BertConfig(**{"vocab_size": len(vocabulary), **sizes}))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in vocabulary), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 512}))
    model.save_pretrained(folder)


def write_llama2(folder: Path, texts: Iterable[str], sizes: Mapping[str, int]) -> None:
    """Write a random LLaMA2 as its hub page has it: bf16 shards with their index, tokenizer.json, config.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    unk, bos, eos = marks = ["<unk>", "<s>", "</s>"]
    digits = list("+-.0123456789")
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=marks, initial_alphabet=digits, show_progress=False)
    asked = [text for language in WRAP_TAGS for text in (*WRAP_TAGS[language], SIMS_PROMPT, MELD_PROMPT)]
    bpe.train_from_iterator([*texts, *asked], trainer)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=bpe.get_vocab_size(), tie_word_embeddings=False, dtype="bfloat16", **sizes)
    shard = "200KB" if sizes["hidden_size"] < 1000 else "1GB"
    PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token=unk, bos_token=bos, eos_token=eos).save_pretrained(folder)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size=shard)


def _gate_width(width: int) -> int:
    """5504 at Qwen-1.8B's 2048; in proportion elsewhere."""
    return width * QWEN_1_8B["mlp"] // FULL_WIDTH


def _shapes(width: int, layers: int, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    gate = _gate_width(width)
    of_layer: dict[str, tuple[int, ...]] = {
        "ln_1.weight": (width,), "attn.c_attn.weight": (3 * width, width), "attn.c_attn.bias": (3 * width,),
        "attn.c_proj.weight": (width, width), "ln_2.weight": (width,), "mlp.w1.weight": (gate, width),
        "mlp.w2.weight": (gate, width), "mlp.c_proj.weight": (width, gate),
    }  # fmt: skip
    every = {f"transformer.h.{n}.{name}": shape for n in range(layers) for name, shape in of_layer.items()}
    embedding = (vocabulary_size, width)
    return {"transformer.wte.weight": embedding, **every, "transformer.ln_f.weight": (width,), "lm_head.weight": embedding}


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
    return noise + 1 if ".ln_" in name else noise
