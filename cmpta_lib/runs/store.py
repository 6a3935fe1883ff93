"""A run as a folder: what lies in it, whether it can be trusted, and where all of them lie.

A finished run's last file is its seal: the run's config hash and the SHA-256 of each of its files. Nothing of a finished
run is read before its files are compared with the seal, so a number that is shown is the number that was measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmpta_lib import files, registry
from cmpta_lib.config import RunConfig

if TYPE_CHECKING:
    import pandas as pd


CONFIG, HISTORY, LOCK, FAILURE = "config.json", "history.csv", "lock", "failure.json"
WEIGHTS, PREDICTIONS, ENVIRONMENT, METRICS = (
    "weights.safetensors",
    "predictions.parquet",
    "environment.json",
    "metrics.json",
)
CLIPS = "clips.json"  # what clips must be like: task and widths
DONE = "seal.json"  # written last: the mark of a finished run
RESULTS = (PREDICTIONS, WEIGHTS, ENVIRONMENT, METRICS, CLIPS)  # what a run without its seal must not have
SEALED = (CONFIG, CLIPS, HISTORY, PREDICTIONS, WEIGHTS, ENVIRONMENT, METRICS)  # what every seal covers
OTHER_VERSION = "of another version"  # stands in why a folder cannot be read, where only this version is at fault
_checked: dict[tuple[Path, str], dict[str, tuple[int, ...]]] = {}  # what this process has compared, and its stamps then


@dataclass(frozen=True)
class Run:
    """One finished or unfinished run: its config and its folder."""

    config: RunConfig
    folder: Path

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

    def check(self) -> None:
        """Compare every file with the seal, and the seal with the config: once a process while none is touched.

        Raises:
            FileNotFoundError: the run is not finished.
            Damaged: a file is missing or not the one that was written, or the folder holds another run; names it and
                says what to do.
        """
        if not self.done:
            raise FileNotFoundError(f"{self.folder / DONE} is missing: this run is not finished; call Study.ensure for it")
        key = (self.folder, self.config.hash)
        if key in _checked and _checked[key] == _stamps(self.folder, _checked[key]):
            return
        remedy = _remedy(self.folder)
        seal = files.unsealed(self.folder / DONE, remedy)
        if not {"run", "files"} <= seal.keys() or not set(SEALED) <= seal["files"].keys():
            raise files.Damaged(f"{self.folder / DONE} is not a run's seal; {remedy}")
        before = _stamps(self.folder, (*seal["files"], DONE))
        if seal["run"] != self.config.hash:
            what = self.folder / DONE if _config_hash(self.folder) == self.config.hash else self.folder
            raise files.Damaged(f"{what} is of run {seal['run']}, expected {self.config.hash}; {remedy}")
        files.check(self.folder, seal["files"], remedy)
        _checked[key] = before

    def path(self, name: str) -> Path:
        """Where one of its files lies, once all of them are checked.

        Raises:
            FileNotFoundError, Damaged: as `check`; also where this run never had such a file.
        """
        self.check()
        if name not in _checked[self.folder, self.config.hash]:
            raise files.Damaged(f"{self.folder / name} is missing: the seal does not have it; {_remedy(self.folder)}")
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
        run = Run(registry.read_config((folder / CONFIG).read_text(encoding="utf-8")), folder)
    except FileNotFoundError:
        raise files.Damaged(f"{folder / CONFIG} is missing; {_remedy(folder)}") from None
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise files.Damaged(f"{folder}: {_unreadable(folder, error)}") from error
    run.check()
    return run


def seal(folder: Path) -> None:
    """Mark the run in `folder` as finished, its files being what they are now.

    Raises:
        FileNotFoundError: one of them is not there.
    """
    run = registry.read_config((folder / CONFIG).read_text(encoding="utf-8")).hash
    files.write_text(folder / DONE, files.sealed({"run": run, "files": files.hashes(folder, SEALED)}))


def unsealed_results(folder: Path) -> list[str]:
    """Names of the results that lie in an unfinished run's folder: nobody vouches for them."""
    return [] if (folder / DONE).exists() else [name for name in RESULTS if (folder / name).exists()]


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
            config = registry.read_config((folder / CONFIG).read_text(encoding="utf-8"))
        except FileNotFoundError:
            yield folder, f"{folder / CONFIG} is missing; {_remedy(folder)}"
        except OSError as error:
            yield folder, str(error)
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            yield folder, _unreadable(folder, error)
        else:
            named = re.search(r"-([0-9a-f]{12})$", folder.name)
            if named and named[1] != config.hash:
                yield folder, _stranger(folder, named[1], config.hash)
            else:
                yield Run(config, folder)


def sound(runs: Sequence[Run]) -> list[Run]:
    """Those that are finished and whose files are what was written."""
    return [run for run in runs if run.done and not run.problem]


def _remedy(folder: Path) -> str:
    return f"remove the folder {folder} and call again; or restore the file"


def _stamps(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Size and times of files; a missing one has none."""
    stamps: dict[str, tuple[int, ...]] = {}
    for name in names:
        try:
            stat = (folder / name).stat()
        except OSError:
            stamps[name] = ()
            continue
        stamps[name] = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    return stamps


def _config_hash(folder: Path) -> str:
    try:
        return registry.read_config((folder / CONFIG).read_text(encoding="utf-8")).hash
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return ""


def _sealed_config(folder: Path) -> bool:
    """Whether config.json is the one that the seal covers, so that only this version of the code can be at fault."""
    try:
        recorded = files.unsealed(folder / DONE, "")["files"]
        return files.sha256(folder / CONFIG) == recorded[CONFIG]
    except (ValueError, OSError, LookupError):
        return False


def _unreadable(folder: Path, error: Exception) -> str:
    """Why a config.json that is there does not make a config: it was damaged, or another version wrote it."""
    path, reason = folder / CONFIG, str(error).partition("\n")[0]
    if (folder / DONE).exists() and not _sealed_config(folder):
        return f"{path} is not the file that was written ({reason}); {_remedy(folder)}"
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return f"{path} is damaged ({reason}); {_remedy(folder)}"
    return f"{OTHER_VERSION} of this code ({reason}): kept, and never used"


def _stranger(folder: Path, named: str, today: str) -> str:
    """Why a config has another hash than its folder's name says."""
    if _sealed_config(folder):
        sealed_as = files.unsealed(folder / DONE, "")["run"]
        if sealed_as == named:
            return f"{OTHER_VERSION} of this code (its config has the hash {today} today): kept, and never used"
        return f"{folder} holds run {sealed_as}, expected {named}; {_remedy(folder)}"
    if (folder / DONE).exists():
        return f"{folder / CONFIG} is not the file that was written (other contents); {_remedy(folder)}"
    return f"{folder / CONFIG} has the hash {today}, the folder's name says {named}: {OTHER_VERSION}, or edited"
