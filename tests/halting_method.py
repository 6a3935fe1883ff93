"""A small method whose runs do, within their second epoch, what files say: wait, die, or raise.

It registers itself when it is imported, as somebody's own method does: `CMPTA_METHODS` names this file to workers.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal

import small_method

from cmpta_lib.base import Batch, Resources
from cmpta_lib.config import RunConfig
from cmpta_lib.data.corpus import Inputs, Split
from cmpta_lib.registry import register

PATIENCE_S = 300.0


class HaltingConfig(small_method.SmallConfig):
    name: Literal["halting"] = "halting"
    gates: str  # folder of these files, each named by what to do and the run's seed


class HaltingMethod(small_method.SmallMethod):
    def __init__(self, config: RunConfig, inputs: Inputs, tools: Resources) -> None:
        super().__init__(config, inputs, tools)
        self.gates, self.seed = Path(config.method.model_dump()["gates"]), config.seed

    def fit(self, train: Split) -> None:
        super().fit(train)
        with open(self.gates / f"begun-{self.seed}", "a") as file:
            print("begun", file=file)

    def after_step(self, batch: Batch, epoch: int) -> None:
        super().after_step(batch, epoch)
        if epoch != 2:
            return
        if (self.gates / f"die-{self.seed}").exists():
            os.kill(os.getpid(), 9)
        if (self.gates / f"raise-{self.seed}").exists():
            raise ValueError("as it was told")
        if (self.gates / f"wait-{self.seed}").exists():
            written = self.gates / f"at-{self.seed}.new"
            written.write_text(str(os.getpid()))
            written.replace(self.gates / f"at-{self.seed}")  # whoever reads it reads a whole number
            began = time.monotonic()
            while (self.gates / f"wait-{self.seed}").exists():  # a test that has failed meanwhile makes no next move
                if time.monotonic() - began > PATIENCE_S:
                    raise TimeoutError(f"no test moved this run on within {PATIENCE_S:g} s")
                time.sleep(0.02)


register(HaltingConfig, HaltingMethod, row="halting")
