"""What a run's config names, opened: its corpus, its frozen LLM, its trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cmpta_lib.config import DataConfig, LLMConfig
from cmpta_lib.data.corpus import Corpus
from cmpta_lib.data.store import load_corpus
from cmpta_lib.runs.store import WEIGHTS, Run


def find_corpus(cache: Path, wanted: DataConfig) -> Corpus:
    """The stored corpus with this content, wherever in the cache it lies."""
    for meta in sorted(cache.glob("[!.]*/meta.json")):
        if wanted.fingerprint in meta.read_text(encoding="utf-8", errors="replace"):  # others may be damaged
            return load_corpus(meta.parent)
    raise FileNotFoundError(
        f"no corpus '{wanted.name}' with fingerprint {wanted.fingerprint} in {cache}: open it through Study.corpus"
    )
_LLMS: dict[LLMConfig, Any] = {}


def load_llm(cache: Path, config: LLMConfig) -> Any:
    """The frozen LLM a config names, on the GPU where there is one; the last one asked for is kept."""
    import torch

    from cmpta_lib.llm import loading

    if config not in _LLMS:
        _LLMS.clear()
        _LLMS[config] = loading.load(config, cache, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return _LLMS[config]


def load_model(run: Run, root: Path) -> Any:
    """The trained model of a finished run, in eval mode.

    Raises:
        FileNotFoundError, Damaged: as `Run.path`.
    """
    from safetensors.torch import load_file

    from cmpta_lib.training import loop as training

    corpus = find_corpus(root / "cache" / "data", run.config.data)
    model = training.build(run.config, corpus, load_llm(root / "cache" / "llm", run.config.llm))
    model.adapter.load_state_dict(load_file(run.path(WEIGHTS), device=str(model.llm.device)))
    return model.eval()
