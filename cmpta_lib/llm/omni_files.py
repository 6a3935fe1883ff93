"""Where an omni model's files lie, and whether it is one that runs without code of its own. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cmpta_lib.config import LLMConfig
from cmpta_lib.files import Damaged
from cmpta_lib.llm import files as llm_files

FAMILIES = ("qwen2_5_omni", "qwen3_omni_moe")  # by the model type of config.json
_SETTINGS = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")


def locate(config: LLMConfig, caches: Sequence[Path]) -> Path:
    """The folder of a config's files: where one of the caches remembers it, or by its name.

    Raises:
        FileNotFoundError: it is not on this machine; says how to fetch it.
        Damaged: a cache remembers it, and its files changed.
        ValueError: another model bears its name.
    """
    damaged: Damaged | None = None
    for cache in caches if config.fingerprint else ():
        with suppress(FileNotFoundError):
            try:
                return llm_files.find(config, cache)
            except Damaged as error:
                damaged = damaged or error
    if damaged:
        raise damaged
    folder = llm_files.locate(config.name)
    if config.fingerprint and (found := llm_files.fingerprint(folder)) != config.fingerprint:
        raise ValueError(f"{folder}: expected '{config.name}' with fingerprint {config.fingerprint}, found {found}")
    return folder


def check(folder: Path) -> str:
    """The family of the model in a folder, which must bring no code of its own.

    Raises:
        OSError: another family, or code; says what was expected.
        ValueError: a settings file is no JSON object.
    """
    for name in _SETTINGS:
        if (folder / name).is_file() and "auto_map" in llm_files.read_json(folder / name):
            raise OSError(
                f"{folder}: {name} asks for code of the folder's own (auto_map), which is never run; use a model that "
                f"transformers has classes for"
            )
    if not (folder / "preprocessor_config.json").is_file() and not (folder / "processor_config.json").is_file():
        raise FileNotFoundError(f"{folder}: expected preprocessor_config.json of an omni model; fetch it again")
    family = llm_files.family(folder)
    if family not in FAMILIES:
        raise OSError(f"{folder}: expected an omni model ({' or '.join(FAMILIES)}), not '{family}'")
    return family
