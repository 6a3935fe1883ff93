"""Files that can be trusted: written whole or not at all, and checked against the hashes taken when they were written."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import platform
import reprlib
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = "published"  # the folder of figures/ that is in git; the others are anybody's experiments
# Runs and the tiny LLM that notebooks opened alone use, laid out as a runs folder; `load("published:sims")` opens one.
PUBLISHED_RUNS = ROOT / "figures" / PUBLISHED / "demo" / "runs"
SOCKET_BYTES = 107  # that a Unix socket's name may have
_ELSEWHERE = "name another folder in the environment variable CMPTA_RUNS (for exported figures and tables: CMPTA_FIGURES)"
_REMEDIES = {
    errno.ENOSPC: f"the disk is full: make room there, or {_ELSEWHERE}",
    errno.EDQUOT: f"the quota is used up: make room there, or {_ELSEWHERE}",
    errno.EROFS: f"the file system is read-only: {_ELSEWHERE}",
    errno.EACCES: f"no permission: grant it, or {_ELSEWHERE}",
    errno.EPERM: f"no permission: grant it, or {_ELSEWHERE}",
    errno.ENOTDIR: f"a file stands where a folder must be: remove it, or {_ELSEWHERE}",
    errno.ENAMETOOLONG: "the name is too long for this file system: use a shorter one",
}


class Damaged(ValueError):
    """A stored file is not what was written; the message names it and says what to do."""


def is_checkout() -> bool:
    """Whether the package lies in its repository, with the notebooks beside it, and not among installed packages."""
    return (ROOT / "notebooks").is_dir() and (ROOT / "pyproject.toml").is_file()


def need_checkout(what: str) -> None:
    """Raise FileNotFoundError, with what to do, where the repository's notebooks are not beside the package."""
    if not is_checkout():
        todo = "clone the repository, and in it call `make setup` or `pip install -e .`"
        raise FileNotFoundError(f"{what} needs the repository's notebooks, and {ROOT} has none: {todo}")


def figures_folder() -> Path:
    """Where exports go: what the environment variable CMPTA_FIGURES names, or `figures/` of this checkout.

    Without a checkout it is `figures/` of the current folder: no result belongs among installed packages.
    """
    return _folder("figures")


def runs_folder() -> Path:
    """Where runs and caches live: what the environment variable CMPTA_RUNS names, or `runs/`, as in `figures_folder`."""
    return _folder("runs")


def _folder(name: str) -> Path:
    variable, home = f"CMPTA_{name.upper()}", ROOT if is_checkout() else Path.cwd()
    try:
        folder = Path(expanded(os.environ.get(variable, "")) or home / name).resolve()
    except ValueError as error:
        raise ValueError(f"{variable}: {error}") from None
    if not (there := next(path for path in (folder, *folder.parents) if os.path.exists(path))).is_dir():
        raise NotADirectoryError(f"{there} is a file, and {name} need a folder: remove it, or name another in {variable}")
    return folder


def expanded(path: str | os.PathLike[str]) -> str:
    """A path as whoever wrote it means it, with `~` and `$NAME` replaced; a name that is no path, and "", stay as they are.

    Raises:
        ValueError: it is no text, or names a user or an environment variable that is not known here.
    """
    given = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(given, str) or "\0" in given or len(given) > 4096:
        raise ValueError(f"expected a path or a name as text, not {reprlib.repr(path)}")
    found = os.path.expanduser(os.path.expandvars(given))
    if (found.startswith("~") or "$" in found) and not os.path.exists(found):
        raise ValueError(f"'{given}' names a user or an environment variable that is not known here; write the whole path")
    return found


def socket_folder(room: int) -> str:
    """The folder for temporary files, or a shorter one where a socket with so many more bytes in its name would not fit there.

    Raises:
        OSError: there is no shorter one that can be written.
    """
    usual = tempfile.gettempdir()
    for folder in (usual, os.environ.get("XDG_RUNTIME_DIR"), "/tmp", "/var/tmp"):
        if folder and len(os.fsencode(folder)) + room <= SOCKET_BYTES and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise OSError(f"TMPDIR is {usual}: a Unix socket's name has no room there, nor can /tmp be written; name a shorter folder")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of which path an error of the file system comes, and what to do about it.

    Raises:
        OSError: of the same class and number, with path and remedy in its message.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES or _is_told(error):
            raise
        raise type(error)(error.errno, f"cannot write {path}: {_REMEDIES[error.errno]}") from error


def _is_told(error: OSError) -> bool:
    """Whether its text is not the system's own any more, but says which path and what to do."""
    return bool(error.strerror) and error.strerror != os.strerror(error.errno or 0)


def end_with_parent(parent: int = 0) -> None:
    """Have Linux kill this process when whoever started it is gone, or is not `parent` any more; elsewhere nothing."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if parent not in (0, os.getppid()):  # gone before it could be asked for
            os.kill(os.getpid(), signal.SIGKILL)


def explained(error: OSError) -> str:
    """What `error` says, in one line and with the remedy where it is one of room or permission and has none yet."""
    if error.errno in _REMEDIES and not _is_told(error):
        where = error.filename2 or error.filename or "a file (which one, the system does not say)"
        return f"cannot use {where}: {_REMEDIES[error.errno]}"
    return " ".join(str(error.strerror if _is_told(error) else error).split())


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say which path, this one or one below it, may not be read, and what to do about it.

    Raises:
        PermissionError: with path and remedy in its message.
    """
    try:
        yield
    except PermissionError as error:
        place = error.filename or path
        raise PermissionError(error.errno, f"cannot read {place}: no permission; grant it, or read a copy of yours") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to; it takes the place of `path` when the block ends well, and goes otherwise.

    Its permissions are those that the caller's umask gives a new file, whoever writes it: safetensors, for one, would keep
    it from everybody else.
    """
    partial = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")  # machines may share the folder
    with writing(path):
        try:
            partial.touch()
            mode = partial.stat().st_mode
            yield partial
            partial.chmod(mode)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def by_umask(folder: Path) -> None:
    """Give a folder and the files in it the permissions of new ones; `tempfile` keeps both from everybody else."""
    probe = folder / ".new"
    probe.mkdir()
    mode = probe.stat().st_mode & 0o777
    probe.rmdir()
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)
    folder.chmod(mode)


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place when the block ends well, and goes otherwise.

    One process at a time is in such a block for one folder; what a killed one left behind is removed. A folder that is
    there by then stays what it is.

    Raises:
        OSError: it cannot be written; the message says where and what to do.
    """
    from filelock import FileLock

    draft = folder.with_name(f".{folder.name}.building")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            try:
                yield draft
                by_umask(draft)
                if not folder.exists():
                    draft.rename(folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)


def built_once(folder: Path, build: Callable[[Path], object]) -> Path:
    """`folder`, which `build` writes into an empty one first if it is not there; raises as `building`."""
    if not folder.exists():  # before the lock: a cache that may only be read is enough where nothing is to be built
        with building(folder) as draft:
            if not folder.exists():  # by now another process may have built it
                build(draft)
    return folder


def write_text(path: Path, text: str) -> None:
    """Replace `path` by this text, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Replace `path` by this table, whole or not at all."""
    with replacing(path) as partial:
        table.to_parquet(partial, index=False)


def sha256(path: Path) -> str:
    """Hex digest of a file's contents; 1-2 GB/s."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: Path) -> list[int]:
    """What changes when a file does: its size, its times to the nanosecond, and its place on the disk."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


class HashCache:
    """SHA-256 of files, each hashed again only when its `stamp` is another.

    Args:
        path: where the hashes are kept for other processes, by `save`; None: in this object only.

    Attributes:
        is_new: whether a file was read that is not saved yet.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self.is_new = path, False
        self._known: dict[str, tuple[str, list[int]]] = {}
        with suppress(ValueError, LookupError, AttributeError, TypeError):  # damaged: what it said is found out again
            if path is not None:
                self._known = {name: (digest, seen) for name, (digest, seen) in read_checksummed(path, "")["hashes"].items()}

    def sha256(self, path: Path) -> str:
        """As the function of this name."""
        now = stamp(path)  # before it is read: what changes meanwhile is noticed the next time
        digest, before = self._known.get(str(path), ("", []))
        if before != now:
            digest = sha256(path)
            self._known[str(path)] = digest, now
            self.is_new = True
        return digest

    def save(self) -> None:
        """Write what is new to the cache's file; raises OSError where that cannot be written."""
        if self.path is not None and self.is_new:
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, checksummed({"hashes": self._known}))
            self.is_new = False


def checksummed(content: Mapping[str, Any]) -> str:
    """JSON of `content` that carries its own hash, so that `read_checksummed` notices any change."""
    return json.dumps({**content, "seal": _checksum(content)}, ensure_ascii=False, indent=1)


def read_checksummed(path: Path, remedy: str) -> dict[str, Any]:
    """Read what `checksummed` wrote.

    Raises:
        Damaged: the file is missing, no JSON, or changed since; names it and says `remedy`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        checksum = content.pop("seal")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise Damaged(f"{path} is missing; {remedy}") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise Damaged(f"{path} is damaged (expected JSON with a checksum, {type(error).__name__}); {remedy}") from None
    if checksum != _checksum(content):
        raise Damaged(f"{path} was changed after it was written; {remedy}")
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()  # an edited record may hold half characters


def hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Name -> SHA-256 of these files of a folder."""
    return {name: sha256(folder / name) for name in names}


def check(folder: Path, recorded: Mapping[str, str], remedy: str, cache: HashCache | None = None) -> None:
    """Compare a folder's files with their recorded hashes, or with what `cache` knows of files that nobody touched since.

    Raises:
        Damaged: a file is missing or not the recorded one; names the first such file and says `remedy`.
    """
    for name, expected in recorded.items():
        path = folder / name
        try:
            found = cache.sha256(path) if cache else sha256(path)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise Damaged(f"{path} is missing; {remedy}") from None
        if found != expected:
            raise Damaged(f"{path} is not the file that was written (other contents); {remedy}")


def with_text(page: Path, name: str, text: str) -> str:
    """What the file would be with `text` between its marks of this name; raises as `split`."""
    before, after = split(page, name)
    return f"{before}{text}\n{after}"


def split(page: Path, name: str) -> tuple[str, str]:
    """A file up to the mark at which something begins, and from that at which it ends; ValueError unless each is there once."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    try:
        text = page.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{page}: expected UTF-8 ({error.reason} at byte {error.start}); restore the file") from None
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{page}: expected one line {begin.strip()} and after it one line {end}")
    return text.partition(begin)[0] + begin, end + text.partition(end)[2]
