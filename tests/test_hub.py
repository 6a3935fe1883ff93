"""Fetching from a hub that answers as the public one does: resumed, verified, never half-written, helpful without one."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest

from cmpta_lib import files
from cmpta_lib.llm import files as llm_files
from data_prep import catalogue, hub, network, weights
from data_prep.hub import File, Published, fetch, find

REPO, REVISION = "someone/features", "a" * 40
CONTENT = {"one.pkl": bytes(range(256)) * 20_000, "below/two words.pkl": b"two" * 1000}  # 5 MB and 3 KB
SMALL = "README.md"
ATTEMPTS = network.ATTEMPTS + 1


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class FakeHub(ThreadingHTTPServer):
    """The three addresses of the public hub that matter: listing, file (a redirect), and the store behind it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.files = {**CONTENT, SMALL: b"read me"}
        self.listed: dict[str, str] = {}  # path -> a hash to list in place of the true one
        self.cut_after: list[int] = []  # the next answers with a file end after so many bytes
        self.ranges = True
        self.requests: list[tuple[str, str]] = []  # address, Range
        self.sent = 0

    def downloads(self) -> list[str]:
        """The `Range` of each download, "" for none."""
        return [wanted for path, wanted in self.requests if path.startswith("/store/")]


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path, wanted = urlsplit(self.path).path, self.headers.get("Range", "")
        self.server.requests.append((path, wanted))
        if path in (f"/api/datasets/{REPO}", f"/api/models/{REPO}"):
            entries = [*map(self._entry, self.server.files)]
            self._send(200, json.dumps({"id": REPO, "sha": REVISION, "siblings": entries}).encode())
        elif path.removeprefix("/datasets").startswith(start := f"/{REPO}/resolve/{REVISION}/"):
            self._send(302, b"", {"Location": f"/store/{path.partition(start)[2]}"})
        elif (content := self.server.files.get(unquote(path.removeprefix("/store/")))) is None:
            self.send_error(404, "Entry not found")
        elif wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self._send(206, content[start:], {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"})
        else:
            self._send(200, content)

    def _entry(self, name: str) -> dict:
        content = self.server.files[name]
        if "blobs=true" not in self.path:
            return {"rfilename": name}
        known = {"sha256": self.server.listed.get(name, digest(content)), "size": len(content), "pointerSize": 134}
        return {"rfilename": name, "blobId": "b" * 40, "size": len(content)} | ({} if name == SMALL else {"lfs": known})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.path.startswith("/store/") and self.server.cut_after:
            content = content[: self.server.cut_after.pop(0)]
            self.close_connection = True
        self.wfile.write(content)
        self.server.sent += len(content)


@pytest.fixture
def server(monkeypatch) -> Iterator[FakeHub]:
    with FakeHub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(network, "PAUSE_S", 0.0)
        monkeypatch.setattr(network, "PIECE", 10_000)  # what a broken connection may cost
        yield server
        server.shutdown()
        thread.join()


FEATURES = Published("Some features", f"https://example.org/{REPO}", (File("one.pkl"), File("two words.pkl")), REPO)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, whatever downloads and locks may leave aside."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if name != ".fetch.lock"}


# Fetching --------------------------------------------------------------------------------------------------------
def test_files_are_fetched_wherever_they_lie_in_the_repository(server, tmp_path: Path):
    found = fetch(FEATURES, tmp_path / "raw")
    assert {name: path.read_bytes() for name, path in found.paths.items()} == {
        "one.pkl": CONTENT["one.pkl"],
        "two words.pkl": CONTENT["below/two words.pkl"],
    }
    assert found.sources == {name: digest(path.read_bytes()) for name, path in found.paths.items()}
    assert not found.generated and not found.sizes
    listed = {name: {"sha256": found.sources[name], "bytes": path.stat().st_size} for name, path in found.paths.items()}
    manifest = {"source": f"{server.address}/datasets/{REPO}", "revision": REVISION, "generated": False, "files": listed}
    assert json.loads((tmp_path / "raw" / "manifest.json").read_text()) == manifest
    assert set(contents(tmp_path / "raw")) == {*CONTENT, "manifest.json"}


def test_a_broken_connection_is_taken_up_where_it_broke_and_a_second_call_asks_nobody(server, tmp_path: Path):
    server.cut_after = [1_500_000, 10_000]
    found = fetch(FEATURES, tmp_path)
    assert found.paths["one.pkl"].read_bytes() == CONTENT["one.pkl"]
    assert server.downloads()[:3] == ["", "bytes=1500000-", "bytes=1510000-"]
    asked = len(server.requests)
    assert fetch(FEATURES, tmp_path) == found and len(server.requests) == asked


@pytest.mark.parametrize("where", ["on the hub", "at a fixed address"])
def test_a_stopped_download_goes_on_in_the_next_call(server, tmp_path: Path, where: str):
    content = CONTENT["one.pkl"]
    file = File("one.pkl", digest(content), len(content), f"{server.address}/store/one.pkl")
    published = FEATURES if where == "on the hub" else Published("Some tables", "https://example.org", (file,))
    server.cut_after = [3_000_000] + [0] * (ATTEMPTS - 1)
    with pytest.raises(OSError, match="Call again, .*one.pkl|its files.*https://example.org.* by hand"):
        fetch(published, tmp_path)
    assert not (tmp_path / "one.pkl").exists() and not (tmp_path / "manifest.json").exists()
    server.requests, server.sent = [], 0
    assert fetch(published, tmp_path).sources["one.pkl"] == digest(content)
    assert server.downloads()[0] == "bytes=3000000-" and server.sent < 2_200_000
    assert (tmp_path / "one.pkl").read_bytes() == content


def test_the_rest_of_another_version_is_not_appended(server, tmp_path: Path):
    server.cut_after = [3_000_000] + [0] * (ATTEMPTS - 1)
    with pytest.raises(OSError):
        fetch(FEATURES, tmp_path)
    server.files["one.pkl"] = new = bytes(reversed(CONTENT["one.pkl"]))
    server.ranges, server.cut_after = False, [1_000_000]  # without ranges, all is sent again
    assert fetch(FEATURES, tmp_path).paths["one.pkl"].read_bytes() == new


def test_two_at_once_download_once(server, tmp_path: Path):
    threads = [threading.Thread(target=fetch, args=(FEATURES, tmp_path)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.downloads()) == 2  # one for each file
    assert set(contents(tmp_path)) == {*CONTENT, "manifest.json"}


# What can go wrong -----------------------------------------------------------------------------------------------
def known(**changes: object) -> Published:
    one = replace(File("one.pkl", digest(CONTENT["one.pkl"]), len(CONTENT["one.pkl"])), **changes)
    return replace(FEATURES, files=(one, FEATURES.files[1]))


def test_a_file_that_changed_on_the_hub_is_not_even_downloaded(server, tmp_path: Path):
    with pytest.raises(ValueError, match=f"one.pkl has changed: expected SHA-256 {'0' * 64}, the hub now lists .*--from"):
        fetch(known(sha256="0" * 64), tmp_path)
    with pytest.raises(ValueError, match="one.pkl has changed: expected bytes 7, the hub now lists 5120000"):
        fetch(known(size_bytes=7), tmp_path)
    assert server.downloads() == [] and contents(tmp_path) == {}
    fetch(known(), tmp_path)


def test_a_file_damaged_on_its_way_is_named_and_removed(server, tmp_path: Path):
    server.listed["one.pkl"] = wrong = "1" * 64
    with pytest.raises(ValueError) as caught:
        fetch(FEATURES, tmp_path)
    message = str(caught.value)
    assert "one.pkl must have SHA-256 " + wrong in message and digest(CONTENT["one.pkl"]) in message
    assert f"{tmp_path / 'one.pkl'}: " in message and ".partial" not in message
    assert message.endswith("it was removed; fetch again") and len(message) <= 300
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(("more", "asked"), [(b"more", ["", ""]), (b"", [""])], ids=["too long", "complete"])
def test_a_partial_file_that_is_too_long_is_begun_anew_and_a_complete_one_checked(server, tmp_path: Path, more, asked):
    content = CONTENT["one.pkl"]
    (tmp_path / f".one.pkl.{digest(content)[:12]}.partial").write_bytes(content + more)
    assert fetch(FEATURES, tmp_path).paths["one.pkl"].read_bytes() == content
    assert server.downloads() == asked and set(contents(tmp_path)) == {*CONTENT, "manifest.json"}


def test_a_file_changed_after_its_download_is_named(server, tmp_path: Path):
    path = fetch(FEATURES, tmp_path).paths["two words.pkl"]
    path.write_bytes(b"owt" * 1000)
    with pytest.raises(ValueError, match=f"{path}: two words.pkl must have SHA-256 .*delete it and fetch again"):
        fetch(FEATURES, tmp_path)
    path.unlink()
    assert fetch(FEATURES, tmp_path).paths["two words.pkl"].read_bytes() == CONTENT["below/two words.pkl"]


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (["one.pkl", "copy/one.pkl"], "expected one one.pkl, found one.pkl, copy/one.pkl"),
        ([], "found README.md, below/two words.pkl.*by hand"),
        (["../one.pkl"], r"lists '\.\./one.pkl', which would lie outside"),
    ],
)
def test_a_file_that_the_hub_has_not_once_or_outside_is_named(server, tmp_path: Path, listed: list[str], message: str):
    content = server.files.pop("one.pkl")
    server.files = dict.fromkeys(listed, content) | server.files
    with pytest.raises(OSError, match=message):
        fetch(FEATURES, tmp_path / "raw")
    assert not (tmp_path / "one.pkl").exists() and server.downloads() == []


def test_a_repository_that_is_gone_and_an_answer_that_is_no_listing_are_named(server, tmp_path: Path, monkeypatch):
    with pytest.raises(OSError, match=f"{server.address} .*404 for body: .*by hand and pass --from"):
        fetch(replace(FEATURES, repo="no/body"), tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", f"{server.address}/store/README.md?")  # a log-in page answers anything like this
    with pytest.raises(OSError, match="no listing .JSONDecodeError.*log-in.*by hand and pass --from"):
        fetch(FEATURES, tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "mirror.example")
    with pytest.raises(ValueError, match="HF_ENDPOINT must be an address such as https://.*'mirror.example'"):
        fetch(FEATURES, tmp_path)


@pytest.mark.parametrize("published", [catalogue.SIMSV2, catalogue.MELD, catalogue.MELD_ANNOTATIONS], ids=lambda p: p.title)
def test_without_a_network_one_message_says_what_to_do(published: Published, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", nowhere := "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(network, "PAUSE_S", 0.0)
    files = tuple(replace(file, url=nowhere + "/a/b/c") if file.url else file for file in published.files)
    with pytest.raises(OSError) as caught:
        fetch(replace(published, files=files), tmp_path)
    message = str(caught.value)
    assert published.title in message and published.page in message and "Connection refused" in message
    assert ("HF_ENDPOINT to a mirror" in message) == bool(published.repo) and message.endswith("by hand and pass --from")
    assert len(message) <= 280 and (published.repo or all(file.name in message for file in published.files))
    assert contents(tmp_path) == {}


def test_a_full_disk_is_noticed_before_the_download(server, tmp_path: Path, monkeypatch):
    usage = hub.shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match="Some features needs 0.01 GB, and 0.01 GB are free; make room"):
        fetch(FEATURES, tmp_path)
    assert server.downloads() == []


# Own copies ------------------------------------------------------------------------------------------------------
def save(folder: Path, files: dict[str, bytes] = CONTENT) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_own_copies_are_used_where_they_lie_and_another_release_named(tmp_path: Path, capsys):
    folder = save(tmp_path / "mine")
    found = find(known(), folder)
    assert found.paths == {"one.pkl": folder / "one.pkl", "two words.pkl": folder / "below" / "two words.pkl"}
    assert found.sources["one.pkl"] == digest(CONTENT["one.pkl"])
    assert contents(folder) == CONTENT and capsys.readouterr().out == ""
    (folder / "one.pkl").write_bytes(b"another release")
    assert find(known(), folder).sources["one.pkl"] == digest(b"another release")
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1 and f"{folder / 'one.pkl'} is not the published file" in shown
    assert digest(b"another release") in shown and digest(CONTENT["one.pkl"]) in shown


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"other.pkl": b"", "one.pkl": b""}, "expected two words.pkl .*found one.pkl, other.pkl; it is published at"),
        ({}, "mine: expected one.pkl .*found nothing"),
        ({"one.pkl": b"", "below/two words.pkl.gz": b""}, r"two words.pkl .*, unpacked, in it or below it, found below, one.pkl"),
        ({"a/one.pkl": b"1", "b/one.pkl": b"2", "two words.pkl": b""}, "one one.pkl, found .*a/one.pkl, .*b/one.pkl"),
    ],
)
def test_an_own_copy_that_is_missing_packed_or_there_twice_is_named(tmp_path: Path, files: dict, message: str):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        find(FEATURES, save(tmp_path / "mine", files))


def test_a_folder_that_cannot_be_made_is_named_with_advice(server, tmp_path: Path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(NotADirectoryError, match=f"{tmp_path}/cache/raw: a file stands where .*name another folder in"):
        fetch(FEATURES, tmp_path / "cache" / "raw")
    assert server.requests == []


def test_generated_files_are_taken_as_they_are(tmp_path: Path, capsys):
    folder = save(tmp_path / "mine", {**CONTENT, "one.pkl": b"drawn"})
    sizes = {"train": 8, "valid": 8, "test": 8}
    paths = {"one.pkl": folder / "one.pkl", "two words.pkl": folder / "below/two words.pkl"}
    sources = {name: hub.sha256(path) for name, path in paths.items()}
    hub.write_manifest(folder, paths, sources, source="here", revision="1", generated=True, sizes=sizes)
    for found in (find(known(), folder), fetch(known(), folder)):  # and no network is asked
        assert found.generated and found.sizes == sizes and found.sources == sources
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", ["", "[]", '{"files": {"one.pkl": {}}}', '{"files": {}, "sizes": {"train": "8"}}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str):
    (save(tmp_path) / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest.json: expected a manifest of this project.*delete it, then fetch"):
        find(FEATURES, tmp_path)


def test_the_real_annotations_are_the_published_ones(shared_folder: Path, capsys):
    folder = shared_folder / "data" / "meld"
    if not folder.is_dir():
        pytest.skip(f"no real annotations: {folder} is absent")
    found = find(catalogue.MELD_ANNOTATIONS, folder)
    assert capsys.readouterr().out == ""
    sizes = {file.name: file.size_bytes for file in catalogue.MELD_ANNOTATIONS.files}
    assert {name: path.stat().st_size for name, path in found.paths.items()} == sizes


# A hub that misbehaves ---------------------------------------------------------------------------------------------
PAGE = b"<html>Log in, please</html>"


@pytest.mark.parametrize(
    ("where", "status", "content", "headers", "said"),
    [
        ("/api", 200, PAGE, {"Content-Type": "text/html"}, "its answer is no listing .JSONDecodeError.; is it a log-in page"),
        ("/api", 200, b'{"sha": 3, "siblings": [null]}', {}, "no listing .KeyError"),
        ("/api", 200, b"[" * 50_000, {}, "no listing .RecursionError"),
        ("/api", 429, b"", {"Retry-After": "3600"}, "it answers 429 for features: too many requests"),
        ("/api", 503, b"", {}, "it answers 503 for features: out of order"),
        ("/api", 302, b"", {"Location": "/api"}, "TooManyRedirects"),
        ("/api", 302, b"", {"Location": "http://127.0.0.1:9/"}, "Connection refused"),
        ("/store", 200, PAGE, {"Content-Type": "text/html"}, "a web page came in place of one.pkl"),
        ("/store", 200, PAGE, {}, "one.pkl came with 27 bytes in place of 5120000"),
        ("/store", 206, PAGE, {"Content-Range": "bytes 5-31/5120000"}, "another part of one.pkl came than was"),
        ("/store", 401, b"", {}, "it answers 401 for one.pkl: no such name, or only for those who are logged in"),
    ],
)
def test_what_is_no_answer_is_named_in_a_line_and_costs_nothing_that_was_there(
    where: str, status: int, content: bytes, headers: dict, said: str, server, tmp_path: Path, monkeypatch
):
    answer = _Handler.do_GET

    def misbehave(handler: _Handler) -> None:
        handler._send(status, content, headers) if handler.path.startswith(where) else answer(handler)

    partial = tmp_path / f".one.pkl.{digest(CONTENT['one.pkl'])[:12]}.partial"
    partial.write_bytes(CONTENT["one.pkl"][:1000])
    with monkeypatch.context() as patch:
        patch.setattr(_Handler, "do_GET", misbehave)
        with pytest.raises(OSError, match=said) as caught:
            fetch(FEATURES, tmp_path)
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)
    assert contents(tmp_path) == {partial.name: CONTENT["one.pkl"][:1000]}
    fetch(FEATURES, tmp_path)
    assert server.downloads()[-2:] == ["bytes=1000-", ""] and (tmp_path / "one.pkl").read_bytes() == CONTENT["one.pkl"]


def test_a_hub_that_never_answers_is_told_and_left(server, tmp_path: Path, monkeypatch, capfd):
    monkeypatch.setattr(network, "ANSWERS_S", 0.2)
    monkeypatch.setattr(network, "ENDS_S", 0.6)
    gone = threading.Event()
    monkeypatch.setattr(_Handler, "do_GET", lambda handler: gone.wait(5))
    with pytest.raises(OSError, match="no answer for 1 s"):
        fetch(FEATURES, tmp_path)
    gone.set()
    assert capfd.readouterr().err.count(f"{server.address}: no answer for 0 s, waiting up to 1 s") == 1


def test_a_socks_proxy_says_what_it_needs(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv(name := "all_proxy", "socks5://127.0.0.1:9")
    huggingface_hub.close_session()
    with pytest.raises(OSError, match=f"for the SOCKS proxy that .*{name}.* names?, `pip install socksio`, or unset it"):
        fetch(FEATURES, tmp_path)


def test_weights_are_gone_on_with_and_compared_with_the_listing(server, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    server.files = {"config.json": b"{}", "tokenizer.json": b"{}", "merges.txt": b"", "model.safetensors": CONTENT["one.pkl"]}
    server.cut_after = [2, 2, 3_000_000] + [0] * (ATTEMPTS - 1)
    with pytest.raises(OSError, match="cannot fetch the LLM 'someone/features' from"):
        weights.fetch(REPO)
    server.requests = []
    folder = weights.fetch(REPO)
    assert server.downloads() == ["bytes=3000000-"] and llm_files.locate(REPO) == folder
    (folder / "model.safetensors").resolve().write_bytes(bytes(len(CONTENT["one.pkl"])))
    with pytest.raises(files.Damaged, match="model.safetensors must have SHA-256 .*; delete it and fetch again"):
        weights.fetch(REPO)
