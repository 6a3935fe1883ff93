"""What a run names, opened: its corpus, its frozen LLM, its text encoder, from the caches where they may lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cmpta_lib.base import Resources
from cmpta_lib.config import DataConfig, EncoderConfig, LLMConfig
from cmpta_lib.data.corpus import Corpus
from cmpta_lib.data.store import kept_corpus
from cmpta_lib.files import Damaged
from cmpta_lib.llm import loading
from cmpta_lib.llm.files import is_tiny
from cmpta_lib.llm.loading import TextEncoder
from cmpta_lib.method.llm import FrozenLLM


def find_corpus(cache: Path, wanted: DataConfig) -> Corpus:
    """The stored corpus of this name and content, wherever in the cache it lies; opened once while it stays as it is.

    Raises:
        FileNotFoundError: there is none.
        Damaged: there is none, and what may have been it is not what was written; names the file.
    """
    said = f"no corpus '{wanted.name}' with fingerprint {wanted.fingerprint} in {cache}: open it through Study.corpus"
    problem: Exception = FileNotFoundError(said)
    for meta in sorted(cache.glob("[!.]*/meta.json")):
        if meta.is_file() and wanted.fingerprint in meta.read_text(encoding="utf-8", errors="replace"):
            try:
                corpus = kept_corpus(meta.parent)
                if (corpus.name, corpus.fingerprint) == (wanted.name, wanted.fingerprint):
                    return corpus
            except Damaged as error:
                problem = error
    raise problem


_kept: dict[type, tuple[Any, Any]] = {}  # the last LLM and the last encoder that were asked for, by their settings


def load_llm(places: Sequence[Path], config: LLMConfig) -> FrozenLLM:
    """The frozen LLM a config names, from the first place that has it; the last one asked for is kept.

    Args:
        places: caches, folders of an LLM itself, or its name on the hub.
    Raises:
        OSError, ValueError: as `loading.load`, for the first place that has it damaged, or else for the last one; also where
            a folder holds another LLM.
    """
    found: FrozenLLM = _from_first(places, config, loading.load)
    return found


def _from_first(places: Sequence[Path], config: Any, load: Callable[..., Any]) -> Any:
    kind, problems = type(config), []
    if kind in _kept and _kept[kind][0] == config:
        return _kept[kind][1]
    _kept.pop(kind, None)
    for place in places:
        is_llm = kind is LLMConfig and ((place / "config.json").is_file() or str(place) == config.name)
        wanted = config.model_copy(update={"name": str(place), "fingerprint": ""}) if is_llm else config
        try:
            with torch.random.fork_rng(devices=[]):  # whoever asks has seeded the generator for the method's weights
                found = load(wanted, place, device())
        except (FileNotFoundError, Damaged) as error:
            problems.append(error)
            continue
        if is_llm and found.fingerprint != config.fingerprint:
            said = f"expected '{config.name}' with fingerprint {config.fingerprint}, found {found.fingerprint}"
            raise ValueError(f"{place} is not the LLM that the run was trained with: {said}; pass llm=<folder of that one>")
        _kept[kind] = config, found
        return found
    worst = max(reversed(problems), key=lambda problem: isinstance(problem, Damaged))
    folders = [str(place) for place in places if str(place) != config.name]
    if isinstance(worst, Damaged) or len(folders) < 2:
        raise worst
    raise FileNotFoundError(f"{worst}; or copy it into one of {', '.join(folders)}, or pass llm=<its folder>")


def device() -> torch.device:
    """Where everything is computed on this machine."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resources_in(places: Sequence[Path], knowledge: Path | None = None) -> Resources:
    """What methods are built with, where LLMs and encoders lie in one of these places."""

    def find_llm(config: LLMConfig) -> FrozenLLM:
        return load_llm([*places, *([] if is_tiny(config.name) else [Path(config.name)])], config)

    def find_encoder(config: EncoderConfig) -> TextEncoder:
        found: TextEncoder = _from_first(places, config, loading.load_encoder)
        return found.copy()

    return Resources(device(), find_llm, find_encoder, knowledge)


def resources(root: Path) -> Resources:
    """What methods are built with, for runs whose caches lie below `root`."""
    return resources_in([root / "cache" / "llm"], root / "cache" / "knowledge")
