"""A run as a folder: what lies in it, whether it can be trusted, and where all of them lie.

A finished run's last file is its checksum manifest: the run's config hash and the SHA-256 of each of its files. Nothing of
a finished run is read before its files are compared with it, so a number that is shown is the number that was measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmpta_lib import files, registry
from cmpta_lib.config import RunConfig

if TYPE_CHECKING:
    import pandas as pd

CONFIG, HISTORY, LOCK, FAILURE = "config.json", "history.csv", "lock", "failure.json"
WEIGHTS, PREDICTIONS = "weights.safetensors", "predictions.parquet"
ENVIRONMENT, METRICS = "environment.json", "metrics.json"
CLIPS = "clips.json"  # what clips must be like: task and widths
DONE = "seal.json"  # the checksum manifest, written last: the mark of a finished run
RESULTS = (PREDICTIONS, WEIGHTS, ENVIRONMENT, METRICS, CLIPS)  # what an unfinished run must not have
FILES = (CONFIG, CLIPS, HISTORY, PREDICTIONS, WEIGHTS, ENVIRONMENT, METRICS)  # what every manifest covers
OTHER_VERSION = "of another version"  # stands in why a folder cannot be read, where only this version is at fault
_hashes = files.HashCache()  # what this process has read already


@dataclass(frozen=True)
class Run:
    """One finished or unfinished run: its config, its folder, and the name of the row that it is asked for as, if any."""

    config: RunConfig
    folder: Path
    row: str = field(default="", compare=False)

    @property
    def done(self) -> bool:
        """Whether it is finished; what is read of it is checked first, and may prove damaged."""
        return (self.folder / DONE).exists()

    @property
    def problem(self) -> str:
        """What is wrong with a finished run's files, with the remedy; "" where nothing is, or while it is unfinished."""
        if not self.done:
            return ""
        try:
            self.check()
        except (files.Damaged, OSError) as error:
            return str(error)
        return ""

    def check(self) -> dict[str, str]:
        """Compare every file with the manifest, and that with the config; a file that nobody touched is hashed once a process.

        Returns:
            The manifest: the SHA-256 of each file by its name.
        Raises:
            FileNotFoundError: the run is not finished.
            Damaged: a file is missing or not the one that was written, or the folder holds another run; names it and
                says what to do.
        """
        if not self.done:
            raise FileNotFoundError(f"{self.folder / DONE} is missing: this run is not finished; call Study.ensure for it")
        remedy = _remedy(self.folder)
        manifest = files.read_checksummed(self.folder / DONE, remedy)
        if not {"run", "files"} <= manifest.keys() or not set(FILES) <= manifest["files"].keys():
            raise files.Damaged(f"{self.folder / DONE} is not a run's checksum manifest; {remedy}")
        if manifest["run"] != self.config.hash:
            config = self.folder / CONFIG  # whose hash begins as its file's
            is_ours = config.exists() and files.sha256(config).startswith(self.config.hash)
            what = self.folder / DONE if is_ours else self.folder
            raise files.Damaged(f"{what} is of run {manifest['run']}, expected {self.config.hash}; {remedy}")
        files.check(self.folder, manifest["files"], remedy, _hashes)
        found: dict[str, str] = manifest["files"]
        return found

    def path(self, name: str) -> Path:
        """Where one of its files lies, once all of them are checked.

        Raises:
            FileNotFoundError, Damaged: as `check`; also where this run never had such a file.
        """
        if name not in self.check():
            raise files.Damaged(f"{self.folder / name} is missing: {DONE} does not list it; {_remedy(self.folder)}")
        return self.folder / name

    @cached_property
    def metrics(self) -> dict[str, Any]:
        return json.loads(self.path(METRICS).read_text(encoding="utf-8"))

    @cached_property
    def environment(self) -> dict[str, Any]:
        return json.loads(self.path(ENVIRONMENT).read_text(encoding="utf-8"))

    def predictions(self, split: str = "test") -> pd.DataFrame:
        """Columns id, label, reply, prediction (NaN = unparsable), in the split's order."""
        import pandas as pd

        table = pd.read_parquet(self.path(PREDICTIONS))
        return table[table["split"] == split].drop(columns="split").reset_index(drop=True)

    @property
    def history(self) -> pd.DataFrame:
        import pandas as pd

        return pd.read_csv(self.path(HISTORY))


def open_run(folder: Path) -> Run:
    """The finished run in this folder, whatever the folder is called, all of its files checked.

    Raises:
        FileNotFoundError: the run is not finished.
        Damaged: a file is missing or not the one that was written, or the config is of another version; says which.
    """
    try:
        run = _read(folder)
    except files.Damaged as error:
        raise files.Damaged(f"{folder}: {error}") from error
    run.check()
    return run


def _read(folder: Path) -> Run:
    """The run of this folder's config; raises Damaged, which says why it is none."""
    try:
        return Run(registry.read_config((folder / CONFIG).read_text(encoding="utf-8")), folder)
    except FileNotFoundError:
        raise files.Damaged(f"{folder / CONFIG} is missing; {_remedy(folder)}") from None
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise files.Damaged(_unreadable(folder, error)) from error


def finalise(folder: Path) -> None:
    """Mark the run in `folder` as finished, its files being what they are now.

    Raises:
        FileNotFoundError: one of them is not there.
    """
    hashes = files.hashes(folder, FILES)  # a config's hash is the beginning of its file's
    files.write_text(folder / DONE, files.checksummed({"run": hashes[CONFIG][:12], "files": hashes}))


def record_failure(folder: Path, failure: Mapping[str, str]) -> None:
    """Write down in a run's folder why it failed: `kind`, `message`, and whatever helps to find the cause."""
    files.write_text(folder / FAILURE, json.dumps(failure, indent=1, ensure_ascii=False))


def failure(folder: Path) -> str:
    """Why the run in this folder last failed, on one line; "" where it did not."""
    try:
        recorded = json.loads((folder / FAILURE).read_text(encoding="utf-8"))
        return " ".join(f"{recorded['kind']}: {recorded['message']}".split())
    except FileNotFoundError:
        return ""
    except (ValueError, LookupError, TypeError):
        return f"{folder / FAILURE} is damaged"


def finished_epochs(folder: Path) -> int:
    """How many epochs the history of the run in this folder has."""
    history = folder / HISTORY
    return max(0, history.read_bytes().count(b"\n") - 1) if history.exists() else 0


def sweep(folder: Path) -> None:
    """Remove what killed workers and earlier failures left in a finished run's folder, where that is allowed."""
    for leftover in {*folder.glob("*.partial"), *folder.glob("checkpoint.*"), folder / FAILURE}:
        with suppress(OSError):
            leftover.unlink(missing_ok=True)


def found(root: Path) -> Iterator[Run | tuple[Path, str]]:
    """Every run folder under `root` by name, finished or not: a Run, or the folder and why it cannot be read as one.

    Nothing that lies there makes this raise; whether a finished run is damaged says `Run.problem`.
    """
    for folder in sorted(path for path in root.glob("[!.]*") if path.is_dir()):
        with suppress(PermissionError):
            if not any((folder / name).exists() for name in (CONFIG, HISTORY, DONE, *RESULTS)):
                continue
        try:
            run = _read(folder)
        except (files.Damaged, OSError) as error:
            yield folder, str(error)
            continue
        named = re.search(r"-([0-9a-f]{12})$", folder.name)
        if named and named[1] != run.config.hash:
            yield folder, _misnamed(folder, named[1], run.config.hash)
        else:
            yield run


def sound(runs: Sequence[Run]) -> list[Run]:
    """Those that are finished and whose files are what was written."""
    return [run for run in runs if run.done and not run.problem]


def _remedy(folder: Path) -> str:
    return f"remove the folder {folder} and call again; or restore the file"


def _finalised_as(folder: Path) -> str:
    """The run that config.json was finalised as; "" where the manifest does not cover it as it is now.

    Where it does, only this version of the code can be at fault for what is wrong with the config.
    """
    with suppress(ValueError, OSError, LookupError):
        manifest = files.read_checksummed(folder / DONE, "")
        if files.sha256(folder / CONFIG) == manifest["files"][CONFIG]:
            return str(manifest["run"])
    return ""


def _unreadable(folder: Path, error: Exception) -> str:
    """Why a config.json that is there does not make a config: it was damaged, or another version wrote it."""
    path, reason = folder / CONFIG, str(error).partition("\n")[0]
    if (folder / DONE).exists() and not _finalised_as(folder):
        return f"{path} is not the file that was written ({reason}); {_remedy(folder)}"
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return f"{path} is damaged ({reason}); {_remedy(folder)}"
    return f"{OTHER_VERSION} of this code ({reason}): kept, and never used"


def _misnamed(folder: Path, named: str, today: str) -> str:
    """Why a config has another hash than its folder's name says."""
    finalised_as = _finalised_as(folder)
    if finalised_as == named:
        return f"{OTHER_VERSION} of this code (its config has the hash {today} today): kept, and never used"
    if finalised_as:
        return f"{folder} holds run {finalised_as}, expected {named}; {_remedy(folder)}"
    if (folder / DONE).exists():
        return f"{folder / CONFIG} is not the file that was written (other contents); {_remedy(folder)}"
    return f"{folder / CONFIG} has the hash {today}, the folder's name says {named}: {OTHER_VERSION}, or edited"
