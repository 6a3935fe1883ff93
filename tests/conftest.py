"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.pop("CMPTA_FIGURES", None)  # tests export to folders of their own, whatever their caller's shell says


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of real files that are not in the repository; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("CMPTA_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data" / "ravdess").is_dir():
        pytest.skip(f"no real files: {folder}/data/ravdess is absent; CMPTA_SHARED can name another folder")
    return folder


def finish_by_hand(folder: Path, config, **contents: str) -> None:
    """The folder of a finished run, as a worker leaves it; `contents` by file name, the others nearly empty."""
    from cmpta_lib.config import to_json
    from cmpta_lib.data.corpus import Inputs, Task
    from cmpta_lib.runs import store

    contents = {store.CLIPS: Inputs(Task("regression", "zh"), {}).to_json()} | contents
    folder.mkdir(parents=True, exist_ok=True)
    (folder / store.CONFIG).write_text(to_json(config))
    for name in store.FILES:
        if name in contents or not (folder / name).exists():
            (folder / name).write_text(contents.get(name, "{}"))
    store.finalise(folder)


def random_llm(num_key_value_heads: int = 4):
    """A tiny Qwen2 with random weights, large enough for its logits to differ clearly, behind the tiny tokenizer."""
    import torch
    from transformers.models.qwen2 import Qwen2Config, Qwen2ForCausalLM

    from cmpta_lib.embedded import tiny
    from cmpta_lib.llm.loading import weights_fingerprint
    from cmpta_lib.method.llm import FrozenLLM

    pages, phrases = tiny.pages(300, "always")
    tokenizer = tiny.bpe_tokenizer((parts[1] + parts[4] for parts in pages), phrases)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    # With transformers' 0.02 all next tokens would be equally likely.
    more = {"num_key_value_heads": num_key_value_heads, "initializer_range": 0.2, "tie_word_embeddings": True}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **sizes, **more, **ends))
    return FrozenLLM(model, tokenizer, weights_fingerprint(model), "random")


def language_model(family: str, llm, gradient_checkpointing: bool = False):
    """A small random LLM of a family behind the tiny tokenizer, as `FrozenLLM` runs it."""
    import torch
    from transformers import GlmConfig, GlmForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    from cmpta_lib.llm.loading import weights_fingerprint
    from cmpta_lib.method.llm import FrozenLLM

    kinds = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
    kinds |= {"glm": (GlmConfig, GlmForCausalLM)}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": None, "initializer_range": 0.2}
    settings, model = kinds[family]
    torch.manual_seed(0)
    built = model(settings(**sizes, **heads, vocab_size=len(llm.tokenizer)))
    return FrozenLLM(built, llm.tokenizer, weights_fingerprint(built), family, gradient_checkpointing)


@pytest.fixture(scope="session")
def llm():
    """The random LLM that most tests share; nothing may change it."""
    return random_llm()


@pytest.fixture(scope="session")
def encoder():
    """A random BERT behind a tokenizer of the embedded corpora's words; methods get copies of it."""
    import torch
    from transformers import BertConfig, BertModel

    from cmpta_lib.config import EncoderConfig
    from cmpta_lib.embedded import synthetic, tiny
    from cmpta_lib.llm.loading import TextEncoder

    tokenizer = tiny.wordpiece_tokenizer(page.directions + page.text for page in synthetic.documents(300))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=len(tokenizer), initializer_range=0.2, max_position_embeddings=64, **sizes)
    return TextEncoder(BertModel(config), tokenizer, EncoderConfig(name="random"))


@pytest.fixture
def tools(llm, encoder):
    """What methods are built with: the random LLM, and copies of the random BERT."""
    from cmpta_lib.base import Resources

    return Resources(llm.device, lambda config: llm, lambda config: encoder.copy())


@pytest.fixture(scope="session")
def corpora(tmp_path_factory):
    """Both embedded corpora, a few clips each: world name -> Corpus."""
    from cmpta_lib.embedded import synthetic

    sizes = {"train": 20, "valid": 7, "test": 5}
    folder = tmp_path_factory.mktemp("corpora")
    return {name: synthetic.embedded_corpus(name, folder, sizes) for name in synthetic.generative_models()}


def outputs(method, samples):
    """(B, outputs) what a method without an LLM makes of these clips."""
    import torch

    with torch.no_grad():
        return method.forward(method.clips(method.collate(samples)))


@pytest.fixture
def small():
    """Settings of the test-only method of `small_method`, registered while the test runs."""
    import small_method

    from cmpta_lib import registry
    from cmpta_lib.config import MethodConfig

    MethodConfig.known["small"] = small_method.SmallConfig
    registry.register(small_method.SmallConfig, small_method.SmallMethod, row="small")
    yield small_method.SmallConfig
    del MethodConfig.known["small"], registry.ENTRIES["small"]


@pytest.fixture
def staged():
    """The test-only method of `staged_method`, registered while the test runs."""
    import staged_method

    from cmpta_lib import registry
    from cmpta_lib.config import MethodConfig

    MethodConfig.known["staged"] = staged_method.StagedConfig
    registry.register(staged_method.StagedConfig, staged_method.StagedMethod, row="staged")
    staged_method.StagedMethod.seen = []
    yield staged_method.StagedMethod
    for name in ("small", "staged"):
        MethodConfig.known.pop(name, None)
    del registry.ENTRIES["staged"]


@pytest.fixture(scope="session")
def smoke_models(tmp_path_factory) -> Path:
    """A cache with the barely trained LLM and BERT of smoke runs, made once; tests copy it."""
    from cmpta_lib.embedded import tiny
    from cmpta_lib.study.profiles import SMOKE_DOCUMENTS

    cache = tmp_path_factory.mktemp("smoke-models")
    for name in ("tiny", "tiny-bert"):
        tiny.build(cache, SMOKE_DOCUMENTS, name)
    return cache


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A runs folder with the records of the tiny models."""
    from finished import record_llms

    return record_llms(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def study(root: Path, monkeypatch: pytest.MonkeyPatch):
    """Studies in `root`, whose corpora are small."""
    from finished import small_studies

    return small_studies(root, monkeypatch)
