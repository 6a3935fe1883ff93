"""What a benchmark is asked for; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Literal, get_args

from cmpta_lib.config import DataConfig, RunConfig, override
from cmpta_lib.paper import HYPERPARAMETERS

Backbone = Literal["tiny", "slice", "full"]
BACKBONES: tuple[Backbone, ...] = get_args(Backbone)
CORPORA = {"sims": "SIMS-V2", "meld": "MELD"}  # key -> whose lengths
ANSWERED = 64  # clips a batch in evaluation, as in every run
_WIDTH = HYPERPARAMETERS.feature_dim
DEFAULT_DIM: Mapping[Backbone, int] = {"tiny": 64, "slice": _WIDTH, "full": _WIDTH}


@dataclass(frozen=True)
class Options:
    """One measurement on one corpus.

    Attributes:
        dim: D, the adapter's width.
        steps, answers: timed batches of training, and of evaluation; `warm_up` comes before both.
        vocabulary: a published `qwen.tiktoken`, for real token lengths; "" = a small one, made from the texts.
        annotations: folder of MELD's official tables, for its real texts; "" = made-up ones.
    """

    corpus: str = "sims"
    backbone: Backbone = "tiny"
    batch_size: int = 16
    dim: int = DEFAULT_DIM["tiny"]
    steps: int = 10
    answers: int = 2
    answered: int = ANSWERED
    warm_up: int = 1
    vocabulary: str = ""
    annotations: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError or OSError where no adapter has this width, or a file is not what it is given for."""
        override(RunConfig(data=DataConfig(name="any", fingerprint="any")), {"method.dim": self.dim})
        for given in filter(None, (self.vocabulary, self.annotations)):
            if not Path(given).exists():  # before imports that take seconds
                raise FileNotFoundError(f"{given}: not found; leave it out for a generated one")
        if self.vocabulary:
            resolve_name("cmpta_lib.llm.qwen_v1:load_tokenizer")(Path(self.vocabulary))
        if self.annotations:
            list(resolve_name("data_prep.synthetic_files:meld_rows")("train", 1, Path(self.annotations)))

    @property
    def batches(self) -> int:
        """Training batches in all."""
        return self.warm_up + self.steps
