"""Files from the hub and from other addresses: waited for, gone on with and checked; what goes wrong is said in one line."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

from cmpta_lib import files

HUB = "https://huggingface.co"  # the environment variable HF_ENDPOINT names a mirror instead
ANSWERS_S, ENDS_S = 10.0, 60.0  # without an answer: a line says so, and then it is over
ATTEMPTS, PAUSE_S = 5, 1.0  # in a row without a new byte; between two of them
PIECE = 2**16  # bytes, the least that counts as an answer
MOST_LETTERS = 280  # of a message, which a command's name stands before
_MEANINGS = {
    401: "no such name, or only for those who are logged in",
    403: "only for those whom its page has granted access",
    404: "it has nothing of this name",
    429: "too many requests; try again in some minutes",
}
_LOG_IN = "is it a log-in page? then open a browser"
_PASSING = {"TimeoutException", "NetworkError", "RemoteProtocolError"}  # classes of the hub's HTTP library, whichever that is
T = TypeVar("T")


def endpoint() -> str:
    """The hub's address; raises ValueError where HF_ENDPOINT is none."""
    address = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    if not address.startswith(("https://", "http://")):
        raise ValueError(f"HF_ENDPOINT must be an address such as {HUB}, but is {address!r}")
    return address


@contextmanager
def asking(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a network may answer within the block into one line of at most 280 characters.

    Raises:
        OSError: instead of it. What is wrong with files of this machine, a full disk say, stays what it is.
    """
    try:
        yield
    except Exception as error:  # a proxy's package, a listing's types, TLS, text that is no address: anything may come
        if isinstance(error, files.Damaged) or (isinstance(error, OSError) and error.errno):
            raise
        room, reason = max(MOST_LETTERS - len(f"{what} (). {remedy}"), 60), _reason(error)
        raise OSError(f"{what} ({reason if len(reason) <= room else reason[: room - 1] + '…'}). {remedy}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).partition("\n")[0].partition(" (_ssl.c")[0].split()).rstrip(".")
    if (response := getattr(error, "response", None)) is not None:
        status, name = response.status_code, response.url.path.rpartition("/")[2]
        broken = "out of order; try again later" if status >= 500 else "refused"
        return f"it answers {status} for {name[:40]}: {_MEANINGS.get(status, broken)}"
    proxies = " and ".join(name for name in os.environ if name.lower() in ("all_proxy", "https_proxy", "http_proxy"))
    if isinstance(error, ImportError) and "socks" in text.lower():
        return f"for the SOCKS proxy that {proxies} name{'s' * (' ' not in proxies)}, `pip install socksio`, or unset it"
    if "proxy" in text.lower():
        return f"{text}; see {proxies}"
    if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in ("httpx", "httpx2"):
        return f"its answer is no listing ({type(error).__name__}); {_LOG_IN}"
    return text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"


def answer(ask: Callable[[], T], address: str, moved: Callable[[], object] = lambda: None) -> T:
    """What `ask` returns or raises; a line where nothing moves for 10 s, an end after a minute.

    It is asked in a thread of its own: limits for single reads know no whole, and somebody may answer letter by letter.

    Args:
        moved: something that is another thing whenever it has come further.
    Raises:
        TimeoutError: nothing moved for a minute.
    """
    told: Future[T] = Future()

    def work() -> None:
        try:
            told.set_result(ask())
        except BaseException as error:  # for whoever waits
            told.set_exception(error)

    Thread(target=work, daemon=True).start()
    seen, since, is_said = moved(), time.monotonic(), False
    while not wait([told], 0.2).done:
        if (now := moved()) != seen:
            seen, since, is_said = now, time.monotonic(), False
        elif (waited := time.monotonic() - since) >= ENDS_S:
            raise TimeoutError(f"no answer for {ENDS_S:.0f} s")
        elif waited >= ANSWERS_S and not is_said:
            print(f"{address}: no answer for {ANSWERS_S:.0f} s, waiting up to {ENDS_S:.0f} s", file=sys.stderr, flush=True)
            is_said = True
    return told.result()


def bring(url: str, path: Path, partial: Path, size: int | None, digest: str | None, name: str, from_hub: bool = True) -> str:
    """The SHA-256 of a file, downloaded unless it is there, and checked; what `partial` holds is kept, and gone on with.

    Args:
        size, digest: what it must have, as far as that is known: bytes, and hex of its SHA-256 or of git's SHA-1.
        name: what messages call it.
        from_hub: so that a log-in there counts.
    Raises:
        TimeoutError: less than 64 kB came within a minute.
        ConnectionError: something else than the file came.
        Damaged: it is complete and another one; then it is removed.
    """
    if path.exists():
        return check(path, size, digest, f"{path}: {name}", "delete it and fetch again")
    partial.parent.mkdir(parents=True, exist_ok=True)
    stop = Event()
    try:
        answer(lambda: _download(url, partial, size, from_hub, name, stop), url, lambda: _length(partial))
        found = check(partial, size, digest, f"{path}: {name}", "it was removed; fetch again")
    except BaseException as error:
        stop.set()  # a thread that nobody waits for writes no more
        if isinstance(error, files.Damaged) or not _length(partial):  # or else the next call would go on at its end
            partial.unlink(missing_ok=True)
        raise
    partial.replace(path)
    return found


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def check(path: Path, size: int | None, digest: str | None, name: str, remedy: str) -> str:
    """The file's SHA-256; raises Damaged, with this remedy, unless size and hash are those that are known of it."""
    with files.reading(path):
        now, found = path.stat().st_size, files.sha256(path)
        is_git = len(digest or "") == 40  # of what is small
        same = hashlib.sha1(b"blob %d\0" % now + path.read_bytes(), usedforsecurity=False).hexdigest() if is_git else found
    for what, expected, came in (("bytes", size, now), ("SHA-1" if is_git else "SHA-256", digest, same)):
        if expected not in (None, came):
            raise files.Damaged(f"{name} must have {what} {expected}, but has {came}; {remedy}")
    return found


def hash_in(text: object) -> str:
    """A hash that a listing gives; raises ConnectionError where it is none, since files are named by it."""
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", str(text)):
        raise ConnectionError(f"it lists {str(text)[:40]!r} where a hash must stand")
    return str(text)


def _download(url: str, partial: Path, size: int | None, from_hub: bool, name: str, stop: Event) -> None:
    """Bring `partial` to its full length; a connection that breaks is taken up where it broke, as long as that leads on."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, tqdm

    headers = (build_hf_headers() if from_hub else {}) | {"Accept-Encoding": "identity"}  # asks the hub who its agents are
    fruitless = 0
    with partial.open("ab") as out, tqdm(total=size, unit="B", unit_scale=True, desc=name) as bar:
        if _length(partial) > (size or 0):  # or the size is unknown: nothing to go on from
            out.truncate(0)
        while (done := _length(partial)) != size:
            broken: Exception = ConnectionError(f"{name} ends early, again and again")
            asked = headers | ({"Range": f"bytes={done}-"} if done else {})
            try:
                with get_session().stream("GET", url, headers=asked, timeout=ANSWERS_S) as response:
                    hf_raise_for_status(response)
                    size = _offered(response, name, done, size)
                    if response.status_code != 206:
                        out.truncate(0)
                    bar.total, bar.n = size, _length(partial)
                    for piece in response.iter_bytes(PIECE):
                        if stop.is_set() or (size and _length(partial) > size):
                            return
                        out.write(piece)
                        out.flush()
                        bar.update(len(piece))
                if size is None:
                    return
            except HTTPError as error:
                if not _PASSING & {one.__name__ for one in type(error).__mro__}:
                    raise
                broken = error
            fruitless = 0 if _length(partial) > done else fruitless + 1
            if fruitless >= ATTEMPTS or stop.wait(PAUSE_S):
                raise broken


def _offered(response: Any, name: str, done: int, size: int | None) -> int | None:
    """The size of the file that an answer holds a part of; raises ConnectionError where that is another file."""
    headers, whole = response.headers, ""
    if headers.get("content-type", "").startswith("text/html"):
        raise ConnectionError(f"a web page came in place of {name}; {_LOG_IN}")
    if response.status_code == 206:
        part, _, whole = headers.get("content-range", "").rpartition("/")
        if not part.startswith(f"bytes {done}-"):
            raise ConnectionError(f"another part of {name} came than was asked for ({part})")
    elif "content-encoding" not in headers:
        whole = headers.get("content-length", "")
    total = int(whole) if whole.isdigit() else None
    if None not in (size, total) and size != total:
        raise ConnectionError(f"{name} came with {total} bytes in place of {size}")
    return total if size is None else size
