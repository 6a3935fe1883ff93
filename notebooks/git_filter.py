"""What git stores of a notebook: text, code and tags; nothing of a run, a kernel or an editor.

.gitattributes and `git config` make it git's filter, `git_filter.py < notebook`; `make lab` also calls `after_saving`. Needs
Python alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from typing import Any

NOTEBOOK = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
FOLDED = {"parameters", "hide-input"}  # tags of cells whose code is folded


def stored(text: str) -> str:
    """A notebook without outputs, counts and traces of who ran it; what is no notebook stays as it is."""
    try:
        notebook = json.loads(text)
        for cell in notebook["cells"]:
            cell["metadata"] = _metadata(cell["metadata"])
            if cell["cell_type"] == "code":
                cell |= {"outputs": [], "execution_count": None}
        notebook["metadata"] = NOTEBOOK
        clean = json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
        clean.encode("utf-8")  # half of a pair of surrogates cannot be
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return text
    return clean


def _metadata(given: dict[str, Any]) -> dict[str, Any]:
    """Tags, and the folds that they ask for: also where a reader has opened or folded a cell."""
    tags = given.get("tags", [])
    return ({"tags": tags} if tags else {}) | ({"jupyter": {"source_hidden": True}} if FOLDED & {*tags} else {})


def after_saving(model: dict[str, Any], os_path: str, contents_manager: object) -> None:
    """Jupyter has saved a file: where git would store of it what it has, tell git so.

    Git calls a file changed as soon as its size is another, whatever a filter makes of it, until it is added again.
    """
    folder, name = os.path.split(os_path)
    git = ["git", "-C", folder]
    with suppress(OSError):  # no git here
        if name.endswith(".ipynb") and not subprocess.run([*git, "diff", "--quiet", "--", name], capture_output=True).returncode:
            subprocess.run([*git, "add", "--update", "--", name], capture_output=True)


if __name__ == "__main__":
    for stream in (sys.stdin, sys.stdout):  # bytes that are no UTF-8 go through as they are, and so do the ends of lines
        stream.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")
    sys.stdout.write(stored(sys.stdin.read()))
