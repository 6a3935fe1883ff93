"""A run as a folder: what lies in it, whether it can be trusted, and where all of them lie.

A finished run's last file is its checksum manifest: the run's config hash and the SHA-256 of each of its files. Nothing of
a finished run is read before its files are compared with it, so a number that is shown is the number that was measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmpta_lib import files, registry
from cmpta_lib.config import RunConfig

if TYPE_CHECKING:
    import pandas as pd

CONFIG, HISTORY, LOCK, FAILURE = "config.json", "history.csv", "lock", "failure.json"
STEPS = "steps.csv"  # of what is trained by gradient; runs of earlier versions have none
STEP_COLUMNS = ("step", "epoch", "loss", "learning_rate")
WEIGHTS, PREDICTIONS = "weights.safetensors", "predictions.parquet"
ENVIRONMENT, METRICS = "environment.json", "metrics.json"
CLIPS = "clips.json"  # what clips must be like: task and widths
DONE = "seal.json"  # the checksum manifest, written last: the mark of a finished run
RESULTS = (STEPS, PREDICTIONS, WEIGHTS, ENVIRONMENT, METRICS, CLIPS)  # what an unfinished run must not have
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
        try:
            self.check()
        except (files.Damaged, OSError) as error:
            return str(error) if self.done else ""
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
        found: dict[str, str] = manifest.get("files", {})
        if manifest.get("run") != self.config.hash or not set(FILES) <= found.keys():
            raise files.Damaged(f"{self.folder / DONE} is not the checksum manifest of run {self.config.hash}; {remedy}")
        files.check(self.folder, found, remedy, _hashes)
        return found

    def path(self, name: str) -> Path:
        """Where one of its files lies, once all of them are checked; raises as `check`."""
        self.check()
        return self.folder / name

    @cached_property
    def metrics(self) -> dict[str, Any]:
        return json.loads(self.path(METRICS).read_text(encoding="utf-8"))

    @property
    def unit(self) -> float:
        """What a distance of 1 between its labels is in the units of their owner."""
        from cmpta_lib.data.corpus import Inputs  # not above: a worker counts its threads before numpy is there

        return Inputs.from_json(self.path(CLIPS).read_text(encoding="utf-8")).task.unit

    def scores(self, split: str) -> dict[str, float]:
        """Every recorded metric of a split, for a reader: `mae` in the units of the labels' owner."""
        from cmpta_lib.metrics import in_units

        return in_units(self.metrics[split], self.unit)

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

    @property
    def steps(self) -> pd.DataFrame:
        """Columns step, epoch, loss, learning_rate, a line for each optimiser step; no line where none was recorded."""
        import pandas as pd

        is_kept = STEPS in self.check()
        return pd.read_csv(self.folder / STEPS) if is_kept else pd.DataFrame(columns=STEP_COLUMNS)


def or_published(run: Run) -> Run:
    """The published run of the same name in the place of one's own that is not finished, where it is there and sound."""
    published = _published(run)
    return published if published.done and not run.done and not published.problem else run


def tell_published(runs: Sequence[Run]) -> None:
    """Print which of these runs are published ones, in one line, and a line for each that would be and is damaged."""
    if used := [run.row for run in runs if run.folder.parent == files.PUBLISHED_RUNS]:
        rows, home = ", ".join(dict.fromkeys(used)), files.PUBLISHED_RUNS.relative_to(files.ROOT)
        print(f"{rows}: the published runs ({len(used)}), {home}; `make reproduce` trains your own", flush=True)
    for problem in (_published(run).problem for run in runs if not run.done):
        print(f"a published run is damaged and trained anew: {problem}\n" * bool(problem), end="", flush=True)


def _published(run: Run) -> Run:
    return replace(run, folder=files.PUBLISHED_RUNS / run.folder.name)


def open_run(folder: Path) -> Run:
    """The finished run in this folder, whatever the folder is called, all of its files checked.

    Raises:
        FileNotFoundError: the run is not finished.
        Damaged: a file is missing or not the one that was written, or the config is of another version; says which.
    """
    run = _read(folder)
    run.check()
    return run


def _read(folder: Path, named: str = "") -> Run:
    """The run of this folder's config, whose hash must be the one that the folder is named by, if any.

    Raises:
        Damaged: there is no such config; where its manifest vouches for the file, only this version of the code is at fault.
    """
    path = folder / CONFIG
    try:
        run = Run(registry.read_config(path.read_text(encoding="utf-8")), folder)
        if named in ("", run.config.hash):
            return run
        problem = f"its hash is {run.config.hash}, the folder's name says {named}"
    except FileNotFoundError:
        raise files.Damaged(f"{path} is missing; {_remedy(folder)}") from None
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        problem = str(error).partition("\n")[0]
    is_vouched_for = False
    with suppress(ValueError, OSError, LookupError, TypeError):
        manifest = files.read_checksummed(folder / DONE, "")
        is_vouched_for = manifest["files"][CONFIG] == files.sha256(path) and named in ("", manifest["run"])
    if (folder / DONE).exists() and not is_vouched_for:
        raise files.Damaged(f"{path} is not the file that was written ({problem}); {_remedy(folder)}")
    either = OTHER_VERSION if is_vouched_for else f"damaged, or {OTHER_VERSION}"
    raise files.Damaged(f"{path} is {either} of this code ({problem}): kept, and never used")


def finalise(folder: Path) -> None:
    """Mark the run in `folder` as finished, its files being what they are now.

    Raises:
        FileNotFoundError: one of them is not there.
    """
    kept = (*FILES, *([STEPS] if (folder / STEPS).exists() else []))
    hashes = files.hashes(folder, kept)  # a config's hash is the beginning of its file's
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
        named = re.search(r"-([0-9a-f]{12})$", folder.name)
        try:
            if any((folder / name).exists() for name in (CONFIG, HISTORY, DONE, *RESULTS)):
                yield _read(folder, named[1] if named else "")
        except (files.Damaged, OSError) as error:
            yield folder, str(error)


def sound(runs: Sequence[Run]) -> list[Run]:
    """Those that are finished and whose files are what was written."""
    return [run for run in runs if run.done and not run.problem]


def _remedy(folder: Path) -> str:
    return f"remove the folder {folder} and call again; or restore the file"
