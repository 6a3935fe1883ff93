"""A run as a folder: what lies in it, and where all of them lie."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmpta_lib.config import RunConfig
from cmpta_lib.files import ROOT, runs_folder

if TYPE_CHECKING:
    import pandas as pd


__all__ = ["DONE", "ROOT", "Run", "runs_folder"]
DONE = "metrics.json"


@dataclass(frozen=True)
class Run:
    """One finished or unfinished run: its config and its folder."""

    config: RunConfig
    folder: Path

    @property
    def done(self) -> bool:
        return (self.folder / DONE).exists()

    @cached_property
    def metrics(self) -> dict[str, Any]:
        return json.loads((self.folder / DONE).read_text())

    @cached_property
    def environment(self) -> dict[str, Any]:
        return json.loads((self.folder / "environment.json").read_text())

    def predictions(self, split: str = "test") -> pd.DataFrame:
        """Columns id, label, reply, prediction (NaN = unparsable), in the split's order."""
        import pandas as pd

        table = pd.read_parquet(self.folder / "predictions.parquet")
        return table[table["split"] == split].drop(columns="split").reset_index(drop=True)

    @property
    def history(self) -> pd.DataFrame:
        import pandas as pd

        return pd.read_csv(self.folder / "history.csv")
