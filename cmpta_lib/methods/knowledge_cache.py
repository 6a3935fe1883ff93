"""What a model said of clips, kept by their content, so that each clip is described once by each model.

A line of text per clip, with a checksum: processes append without waiting for each other, and a line that was cut by a
kill, or changed, is not believed; its clip is described anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from cmpta_lib import files


class StatementCache:
    """Statements by the hex digest of a clip's content, on disk where a folder is given.

    Args:
        identity: hex digest of all that decides what is said: the models, the prompt, how answers are drawn.
        folder: where the file named by it lies, or None: kept in memory only.
    """

    def __init__(self, identity: str, folder: Path | None) -> None:
        self.path = None if folder is None else folder / f"{identity}.jsonl"
        self._known: dict[str, list[str]] = {}
        if self.path is not None and self.path.is_file():
            with files.reading(self.path.parent):
                lines = self.path.read_bytes().decode(errors="replace").splitlines()
            for line in lines:
                digest, _, text = line.partition(" ")
                if digest == _digest(text):
                    content, statements = json.loads(text)
                    self._known.setdefault(content, statements)  # the first to be written stays

    def get(self, content: str) -> list[str] | None:
        return self._known.get(content)

    def add(self, found: Mapping[str, list[str]]) -> None:
        """Raises OSError where the folder cannot be written; the message says what to do."""
        new = {content: statements for content, statements in found.items() if content not in self._known}
        self._known |= new
        if self.path is None or not new:
            return
        texts = [json.dumps(item, ensure_ascii=True) for item in new.items()]
        with files.writing(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:  # a line end first: the last line may have been cut
                file.write("".join(f"\n{_digest(text)} {text}" for text in texts).encode() + b"\n")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
