"""Which files an LLM's name means, where they lie, and what identifies them. Imports no torch.

A name is one of `PUBLISHED`, any hub id, or a folder. Hub files are looked for in the hub's local cache only; fetching
is `cmpta weights NAME`, which takes weights, configuration and vocabulary, never code.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from cmpta_lib import files
from cmpta_lib.config import EncoderConfig, LLMConfig, MethodConfig, nearest

PUBLISHED: Mapping[str, str] = {  # name -> hub id
    "qwen-1.8b": "Qwen/Qwen-1_8B",
    "qwen1.5-1.8b": "Qwen/Qwen1.5-1.8B",
    "llama2-7b": "meta-llama/Llama-2-7b-hf",
    "chatglm3-6b-base": "THUDM/chatglm3-6b-base",
}
ENCODERS: Mapping[str, str] = {  # text encoders of methods without an LLM: name -> hub id
    "bert-base-chinese": "google-bert/bert-base-chinese",
    "bert-base-uncased": "google-bert/bert-base-uncased",
}
# Omni models, by hub id: what transformers has classes for that read words, sound and moving pictures without torchvision.
OMNI_MODELS = ("Qwen/Qwen2.5-Omni-3B", "Qwen/Qwen2.5-Omni-7B", "Qwen/Qwen3-Omni-30B-A3B-Instruct")
QWEN_1_8B = {"hidden": 2048, "layers": 24, "mlp": 5504, "vocabulary": 151_936}  # its published config
# Families whose scores MSE-Adapter writes without a plus; with it all of Qwen's answers have four tokens (choice 10).
PLAIN_SIGN = ("llama", "chatglm")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # beside each may stand <name>.index.json, which lists its shards
VOCABULARIES = ("qwen.tiktoken", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
HASHES = "hashes.json"  # beside the records of resolved LLMs
TINY = "cmpta.json"  # the tiny LLM's own record, beside its files
BESIDE = (
    "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "preprocessor_config.json", "processor_config.json",  # of omni models: how frames and sound are prepared
)  # fmt: skip


def hub_id(name: str) -> str:
    """The hub's name of a published model; any other name is one already."""
    return {**PUBLISHED, **ENCODERS}.get(name, name)


def is_tiny(name: str) -> bool:
    """Whether a model of this name is made here, from generated text: "tiny", "tiny-bert", ..."""
    return name == "tiny" or name.startswith("tiny-")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises ValueError, naming the file, if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        raise ValueError(f"{path}: expected JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found a {type(content).__name__}; fetch it again")
    return content


def family(folder: Path) -> str:
    """The model type that config.json gives: "qwen" for v1, "qwen2", "llama", "chatglm", ..."""
    return str(read_json(folder / "config.json").get("model_type", ""))


def weight_files(folder: Path) -> dict[Path, set[str]]:
    """The files that hold a model's weights, in order, each with the tensors that an index promises to be there, if one does.

    safetensors where they exist, else torch's own.

    Raises:
        FileNotFoundError: there are none, or a shard that the index lists is missing.
        ValueError: the index is damaged.
    """
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            places = read_json(index).get("weight_map")
            if not isinstance(places, dict) or not places or any(str(one) != Path(str(one)).name for one in places.values()):
                raise ValueError(f"{index}: expected a weight_map that names the shards; fetch it again")
            shards = sorted(set(map(str, places.values())))
            if absent := [shard for shard in shards if not (folder / shard).is_file()]:
                listed = f"{absent[0]} is missing" + (f", {len(absent)} in all" if absent[1:] else "")
                raise FileNotFoundError(f"{folder}: {index.name} lists {len(shards)} shards, but {listed}; fetch it again")
            return {folder / shard: {name for name, place in places.items() if place == shard} for shard in shards}
        if (folder / name).is_file():
            return {folder / name: set()}
    raise FileNotFoundError(f"{folder}: expected model weights ({' or '.join(WEIGHTS)}, or their shards with an index)")


def identifying_files(folder: Path) -> list[Path]:
    """Every file that decides what the LLM answers: configuration, vocabulary, weights.

    Raises:
        FileNotFoundError: one of the three is missing.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: expected config.json of a causal LM")
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise FileNotFoundError(f"{folder}: expected a vocabulary ({' or '.join(VOCABULARIES)})")
    vocabulary = [folder / name for name in (*VOCABULARIES, *BESIDE) if (folder / name).is_file()]
    return [folder / "config.json", *vocabulary, *weight_files(folder)]


def fingerprint(folder: Path) -> str:
    """First 16 hex digits of a SHA-256 over the names and contents of `identifying_files`; 2 GB/s or so."""
    return _combined(_hashes(folder, files.sha256))


def _hashes(folder: Path, sha256: Callable[[Path], str]) -> dict[str, str]:
    return {path.name: sha256(path) for path in identifying_files(folder)}


def _combined(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in hashes.items()).encode()).hexdigest()[:16]


def locate(name: str) -> Path:
    """The folder that holds the LLM of this name, complete; asks no network.

    Raises:
        FileNotFoundError: it is not there or not complete; says what is missing and how to get it.
        ValueError: a folder's index of weights is damaged.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if os.path.exists(name):
        identifying_files(Path(name))
        return Path(name).resolve()
    try:
        folder = Path(snapshot_download(hub_id(name), local_files_only=True))
        identifying_files(folder)
    except (HFValidationError, FileNotFoundError):
        raise FileNotFoundError(
            f"cannot load the LLM '{name}'{nearest(name, PUBLISHED)}: it is not on this machine, or not complete. "
            f"Expected one of {', '.join(PUBLISHED)}, a hub id, or a folder with config.json, vocabulary and weights. "
            f"Fetch it with: cmpta weights {name}"
        ) from None
    return folder.resolve()



def answer_sign(config: LLMConfig, cache: Path) -> Literal["always", "negative"]:
    """How the family of a resolved LLM writes positive scores; raises as `find`, but for a tiny one, whose name tells."""
    told = config.name.removeprefix("tiny-") if is_tiny(config.name) else family(find(config, cache))
    return "negative" if told in PLAIN_SIGN else "always"


def resolve(name: str, dtype: Literal["float32", "bfloat16"], cache: Path) -> LLMConfig:
    """The config of the LLM of this name, with its fingerprint; files are read again only after they changed.

    `cache` keeps the hashes of files, and under each fingerprint a record of the folder and of what was in it.

    Raises:
        FileNotFoundError: as `locate`.
    """
    folder, known = locate(name), files.HashCache(cache / HASHES)
    hashes = _hashes(folder, known.sha256)
    known.save()
    path = cache / f"{_combined(hashes)}.json"
    try:
        record = _record(path)
    except files.Damaged:  # or never written
        record = {}
    if record.get("folder") != str(folder):
        shown = folder.name if Path(name).is_dir() else hub_id(name)  # a path of this machine is nobody's business
        record = {"name": shown, "folder": str(folder), "sha256": hashes}
        files.write_text(path, files.checksummed(record))
    return LLMConfig(name=record["name"], fingerprint=path.stem, dtype=dtype)


def find(config: LLMConfig | EncoderConfig, cache: Path, deep: bool = False) -> Path:
    """The folder of a resolved config, unchanged since; without a fingerprint, of whatever its name means.

    Args:
        deep: read every file, whatever sizes and times say; 2 GB/s or so.
    Raises:
        FileNotFoundError: it was never resolved here, or is gone.
        Damaged: its files changed, or the record of them did; names the file and says what to do.
    """
    if is_tiny(config.name):
        return find_tiny(config.fingerprint, cache, config.name)
    if not config.fingerprint:
        return locate(config.name)
    path = cache / f"{config.fingerprint}.json"
    if not path.exists():
        raise FileNotFoundError(
            f"no LLM '{config.name}' with fingerprint {config.fingerprint} in {cache}: open it through Study.llm"
        )
    record = _record(path)
    folder, recorded = Path(record["folder"]), record["sha256"]
    found = _hashes(folder, files.sha256 if deep else files.HashCache(cache / HASHES).sha256)
    if changed := [name for name in {**recorded, **found} if found.get(name) != recorded.get(name)]:
        raise files.Damaged(
            f"{folder}: {', '.join(changed)} changed, so it is no longer the one with fingerprint "
            f"{config.fingerprint}; restore or fetch it again"
        )
    return folder


def fetched(method: MethodConfig) -> list[LLMConfig | EncoderConfig]:
    """The LLM and the text encoder of these settings, but for those that are made here."""
    return [config for name, config in method if name in ("llm", "encoder") and not is_tiny(config.name)]


def _record(path: Path) -> dict[str, Any]:
    """What it says, if it is of the LLM whose fingerprint is its name; raises Damaged."""
    remedy = "remove it and call again: it is made anew"
    record = files.read_checksummed(path, remedy)
    if _combined(record["sha256"]) != path.stem:
        raise files.Damaged(f"{path} is the record of another LLM; {remedy}")
    return record


# The tiny models ----------------------------------------------------------------------------------------------------
def finalise_tiny(folder: Path, **about: object) -> None:
    """Write the record of a tiny LLM that is complete in `folder`: its fingerprint, a hash of each file, and `about`."""
    names = sorted(path.name for path in folder.iterdir() if path.name != TINY)
    record = {"fingerprint": fingerprint(folder), **about, "files": files.hashes(folder, names)}
    files.write_text(folder / TINY, files.checksummed(record))


def tiny_fingerprint(folder: Path) -> str:
    """Fingerprint of the tiny LLM in `folder`, after a look at every file (10 ms).

    Raises:
        Damaged: a file is not what was written; names it and says what to do.
    """
    remedy = f"remove the folder {folder} and call again: it is made anew in a minute"
    with files.reading(folder):
        record = files.read_checksummed(folder / TINY, remedy)
        files.check(folder, record["files"], remedy)
    known = {TINY, *record["files"]}
    if added := sorted(path for path in folder.iterdir() if path.name not in known and path.name[0] != "."):
        raise files.Damaged(f"{added[0]} was not written with the rest and may change answers; {remedy}")
    return record["fingerprint"]


def or_published(folder: Path) -> Path:
    """Where the tiny LLM of a folder lies: there, or before it is built among the published runs, which is said."""
    published = files.PUBLISHED_RUNS / "cache" / "llm" / folder.name
    if folder.exists() or not published.exists():
        return folder
    try:
        tiny_fingerprint(published)
    except (files.Damaged, OSError) as error:
        print(f"the published LLM is damaged, and one is built: {error}", flush=True)
        return folder
    print(f"LLM: the published one, {published.relative_to(files.ROOT)}; `make reproduce` builds your own", flush=True)
    return published


def find_tiny(wanted: str, cache: Path, name: str = "tiny") -> Path:
    """The stored tiny model of this name with this fingerprint, unchanged, in `cache` or published; "" = whichever `cache` has.

    Raises:
        FileNotFoundError: none has it; says how to build it.
        Damaged: as `tiny_fingerprint`, of the wanted one, or of one that may be it.
    """
    folders = sorted(path for path in cache.glob(f"{name}-[0-9]*") if path.is_dir())
    published = (files.PUBLISHED_RUNS / "cache" / "llm").glob(f"{name}-[0-9]*") if wanted else ()
    for folder in (*folders, *published):
        record = folder / TINY
        told = record.read_text(encoding="utf-8", errors="replace") if record.is_file() else ""
        if wanted in told and wanted in ("", tiny_fingerprint(folder)):  # another one may be damaged
            return folder
    for folder in folders:
        tiny_fingerprint(folder)
    raise FileNotFoundError(
        f"no {name} with fingerprint {wanted} in {cache}: build it with `python -m cmpta_lib.embedded.tiny {cache} {name}`"
    )
