"""A run as a folder: what lies in it, and where all of them lie."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmpta_lib.config import RunConfig

if TYPE_CHECKING:
    import pandas as pd


DONE = METRICS = "metrics.json"
CONFIG, HISTORY, LOCK, FAILURE = "config.json", "history.csv", "lock", "failure.json"
WEIGHTS, PREDICTIONS, ENVIRONMENT, CLIPS = (
    "weights.safetensors",
    "predictions.parquet",
    "environment.json",
    "clips.json",
)


@dataclass(frozen=True)
class Run:
    """One finished or unfinished run: its config and its folder."""

    config: RunConfig
    folder: Path

    @property
    def done(self) -> bool:
        return (self.folder / DONE).exists()

    problem = ""

    def path(self, name: str) -> Path:
        return self.folder / name

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
