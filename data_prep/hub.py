"""How published files get here: downloads that resume, copies by hand, and the hashes of both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from cmpta_lib.data.corpus import problem
from cmpta_lib.files import reading, write_text, writing
from cmpta_lib.files import sha256 as hash_of
from data_prep import network
from data_prep.catalogue import File, Published

MANIFEST = "manifest.json"
_LISTED, _LISTED_CHARACTERS = 4, 20  # names that are there, in an error
# What to do about a file that does not conform: whatever is fetched has the published hash, so it is one's own.
CORRECT = "correct your copy or fetch the published one, without --from"


@dataclass(frozen=True)
class Found:
    """Complete files in a folder."""

    folder: Path
    paths: Mapping[str, Path]  # name -> where it lies
    sources: Mapping[str, str]  # name -> SHA-256, computed here and now
    generated: bool = False  # written by `data_prep.synthetic_files`
    sizes: Mapping[str, int] = field(default_factory=dict)  # split -> samples, where a dry run says so

    def require_size(self, split: str, count: int, in_table_1: int, where: str, remedy: str = CORRECT) -> None:
        """Raise ValueError unless the split has as many samples as the manifest of a dry run says, or else Table 1."""
        whose = f"{self.folder / MANIFEST}" if split in self.sizes else "Table 1 of the paper"
        if count != (size := self.sizes.get(split, in_table_1)):
            raise problem(where, None, f"of {size} samples, the split's size in {whose}", f"of {count}", remedy)


# Files that are here -------------------------------------------------------------------------------------------------
def find(published: Published, folder: Path) -> Found:
    """Somebody's own copy, used where it lies, in `folder` or below it.

    A file other than the published one is named in a printed line and used: it may be another release.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is there twice, or it is not the one of the manifest beside it, or that is damaged.
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    paths: dict[str, Path] = {}
    for file in published.files:
        path = _locate(folder, file.name)
        if path is None:
            raise FileNotFoundError(
                f"{folder}: expected {file.name} ({published.title}), unpacked, in it or below it, found {_listing(folder)}; "
                f"it is published at {published.page}"
            )
        paths[file.name] = path
    sources = {name: sha256(path) for name, path in paths.items()}
    generated = bool(manifest.get("generated"))
    for name, path in paths.items():  # what was fetched or generated is what it was then, or it was damaged since
        noted = [_manifest(place).get("files", {}).get(name, {}).get("sha256") for place in {folder, path.parent}]
        if other := next((one for one in noted if one not in (None, sources[name])), None):
            expected, came = f"the file with SHA-256 {other[:12]}…, as {MANIFEST} says", f"with {sources[name][:12]}…"
            remedy = "fetch or copy the file again, or delete the manifest if you changed the file on purpose"
            raise problem(str(path), None, expected, came, remedy)
    for file in published.files:
        if file.sha256 not in (None, sources[file.name]) and not generated:
            expected = f"SHA-256 {sources[file.name]}, expected {file.sha256}"
            print(f"{paths[file.name]} is not the published file ({expected}); used all the same")
    return Found(folder, paths, sources, generated, dict(manifest.get("sizes") or {}))


def holds(published: Published, folder: Path) -> bool:
    """Whether `find` would find all files there."""
    return all(_locate(Path(folder), file.name) is not None for file in published.files)


def sha256(path: Path) -> str:
    """Hex digest of a file's contents; without permission to read it, an error that names it."""
    with reading(path):
        return hash_of(path)


def need_space(folder: Path, size_bytes: int, what: str) -> None:
    """Raise OSError unless `size_bytes` more fit beside `folder`; better now than after an hour of download."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if (free := shutil.disk_usage(existing).free) < size_bytes:
        raise OSError(
            f"{folder}: {what} needs {size_bytes / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free; make room, or choose "
            "another folder with --cache"
        )


def _locate(folder: Path, name: str) -> Path | None:
    if (folder / name).is_file():
        return folder / name
    found = sorted(path for path in folder.rglob(name) if path.is_file()) if folder.is_dir() else []
    if len(found) > 1:
        raise ValueError(f"{folder}: expected one {name}, found {', '.join(map(str, found))}; name the right one's folder")
    return found[0] if found else None


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return "nothing, as there is no such folder"
    names = [path.name[:_LISTED_CHARACTERS] for path in sorted(folder.iterdir())]
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "") or "nothing"


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for entry in manifest["files"].values():
            entry["sha256"], entry["bytes"]
        if not all(type(size) is int for size in (manifest.get("sizes") or {}).values()):
            raise TypeError("sizes are whole numbers")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected a manifest of this project, found something else ({type(error).__name__}: {error}); "
            "delete it, then fetch again or pass the folder with --from"
        ) from error
    return manifest


def write_manifest(folder: Path, paths: Mapping[str, Path], sources: Mapping[str, str], **about: object) -> None:
    """Write manifest.json in one step: source, revision, generated, and each file's hash and size."""
    entries = {name: {"sha256": sources[name], "bytes": path.stat().st_size} for name, path in paths.items()}
    write_text(folder / MANIFEST, json.dumps({**about, "files": entries}, ensure_ascii=False, indent=1))


# Files that are not here yet -----------------------------------------------------------------------------------------
def fetch(published: Published, folder: Path) -> Found:
    """The published files in `folder`, downloaded where they are missing; a stopped download goes on where it was.

    Files of a manifest that says "generated" (a dry run) are taken as they are.

    Raises:
        OSError: no network, no such file, or no room on the disk; the message says how to get the files by hand.
        ValueError: a file's hash is not the expected one.
    """
    from filelock import FileLock

    folder = Path(folder)
    if _manifest(folder).get("generated"):
        return find(published, folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".fetch.lock"):  # several notebooks may want the same file
        return _fetch(published, folder)


def _fetch(published: Published, folder: Path) -> Found:
    listed, wanted = _manifest(folder).get("files", {}), list(published.files)
    source, revision = published.page, ", ".join(dict.fromkeys(file.url.split("/")[-4] for file in wanted if file.url))
    here = {file.name: path for file in wanted if file.name in listed and (path := _locate(folder, file.name))}
    if len(here) == len(wanted):  # nobody is asked
        wanted = [replace(file, sha256=file.sha256 or listed[file.name]["sha256"]) for file in wanted]
        remedy = "delete it and fetch again, or pass --from for your own copy"
        known = [(here[f.name], f.size_bytes, f.sha256, f"{here[f.name]}: {f.name}", remedy) for f in wanted]
        return Found(folder, here, {f.name: network.check(*one) for f, one in zip(wanted, known, strict=True)})
    if published.repo:
        wanted, source, revision = _listed_by_hub(published)
    paths = {file.name: folder / (file.path or file.name) for file in wanted}
    # Named by content, so that versions never mix.
    partials = {f.name: paths[f.name].with_name(f".{f.name}.{(f.sha256 or revision)[:12]}.partial") for f in wanted}
    there = sum(partial.stat().st_size for partial in partials.values() if partial.exists())
    need_space(folder, sum(f.size_bytes or 0 for f in wanted if not paths[f.name].exists()) - there, published.title)
    sources = {}
    for file in wanted:
        path, partial, size, is_hub = paths[file.name], partials[file.name], file.size_bytes, bool(published.repo)
        with _asking(published):
            sources[file.name] = network.bring(file.url, path, partial, size, file.sha256, file.name, is_hub)
    write_manifest(folder, paths, sources, source=source, revision=revision, generated=False)
    return Found(folder, paths, sources)


def _listed_by_hub(published: Published) -> tuple[list[File], str, str]:
    """The hub's own listing: newest commit, and for every file its address there, size and hash."""
    from huggingface_hub import HfApi, hf_hub_url

    endpoint, files = network.endpoint(), []
    with _asking(published):
        ask = HfApi(endpoint=endpoint).dataset_info
        listing = network.answer(lambda: ask(published.repo, files_metadata=True, timeout=2 * network.ENDS_S), endpoint)
        siblings = {entry.rfilename: entry for entry in listing.siblings or ()}
        for file in published.files:
            names = [name for name in siblings if PurePosixPath(name).name == file.name]
            if len(names) != 1:
                raise ConnectionError(f"expected one {file.name}, found {', '.join(names or sorted(siblings)[:8]) or 'none'}")
            name, entry = names[0], siblings[names[0]]
            if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
                raise ConnectionError(f"it lists {name!r}, which would lie outside of the folder")
            url = hf_hub_url(published.repo, name, repo_type="dataset", revision=network.hash_in(listing.sha), endpoint=endpoint)
            size, digest = (entry.lfs.size, network.hash_in(entry.lfs.sha256)) if entry.lfs else (entry.size, None)
            files.append(File(file.name, digest, size, url, name))
    for place, (file, now) in enumerate(zip(published.files, files, strict=True)):
        for what, known, listed in (("bytes", file.size_bytes, now.size_bytes), ("SHA-256", file.sha256, now.sha256)):
            if None not in (known, listed) and known != listed:
                raise ValueError(
                    f"{published.page}: {file.name} has changed: expected {what} {known}, the hub now lists {listed}. If "
                    "you trust the new one, get it by hand and pass its folder with --from"
                )
        files[place] = replace(now, sha256=file.sha256 or now.sha256, size_bytes=file.size_bytes or now.size_bytes)
    return files, f"{endpoint}/datasets/{published.repo}", str(listing.sha)


def _asking(published: Published) -> AbstractContextManager[None]:
    if published.repo:
        where, remedy = network.endpoint(), f"Call again, set HF_ENDPOINT to a mirror, or get its files from {published.page}"
    else:
        where, remedy = published.page, f"Call again, or get {', '.join(file.name for file in published.files)}"
    return network.asking(f"cannot fetch {published.title} from {where}", f"{remedy} by hand and pass --from")
