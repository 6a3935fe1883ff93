"""A study's own training steps beside their floor: what `cmpta check` shows before it estimates hours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from cmpta_lib.benchmark import floor
from cmpta_lib.benchmark.timing import Spread, milliseconds
from cmpta_lib.data.corpus import Split
from cmpta_lib.methods.prompted_lm import PromptedLM
from cmpta_lib.runs import memory
from cmpta_lib.runs.trained import tools
from cmpta_lib.study.study import Study
from cmpta_lib.training import loop

if TYPE_CHECKING:
    import pandas as pd

STEPS = 10
WARM_UP = 3


def step_times(study: Study, keys: Sequence[str] | None = None, steps: int = STEPS) -> pd.DataFrame:
    """Median milliseconds of CMPTA's step, of its floor and of an answered batch on each corpus of a study.

    Peak memory is the GPU's where there is one, else this process's. Nothing is written.
    """
    import pandas as pd

    return pd.DataFrame([_row(study, key, steps) for key in (study.keys if keys is None else keys)])


def _row(study: Study, key: str, steps: int) -> dict[str, object]:
    config, corpus = study.config(key), study.corpus(key)
    torch.set_num_threads(config.training.num_threads)
    memory.watch()
    method = loop.build(config, corpus, tools(study.root))
    assert isinstance(method, PromptedLM)
    split, size = corpus.splits["train"], config.training.batch_size
    optimizer = loop.optimizer_of(method.groups(config.training), config.training)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(config.seed))
    batches = order.repeat(1 + (steps + WARM_UP) * size // len(split)).split(size)[: steps + WARM_UP]
    timed = [_one(method, optimizer, split, batch.tolist()) for batch in batches][WARM_UP:]
    peaks = memory.peaks_gb()
    tokens, bare, step, answer = (Spread.of(values).median for values in zip(*timed, strict=True))
    return {
        "corpus": corpus.name,
        "batch": size,
        "LLM positions": round(tokens),
        "floor ms": round(bare, 1),
        "training step ms": round(step, 1),
        "step / floor": round(step / bare, 2),
        "answer ms": round(answer, 1),
        "peak GB": round(peaks.get(memory.ALLOCATED, peaks[memory.RESIDENT]), 2),
        "threads": config.training.num_threads,
    }


def _one(method: PromptedLM, optimizer: torch.optim.Optimizer, split: Split, clips: list[int]) -> tuple[float, ...]:
    """Real positions of a batch, and milliseconds of its floor, of its step and of answering it."""
    device, training = method.llm.device, method.config.training
    method.module.train()
    step = milliseconds(lambda: loop.step(method, optimizer, split, [[clip] for clip in clips], training), device)
    method.module.eval()
    samples = [split[clip] for clip in clips]
    answer = milliseconds(lambda: method.predict(method.collate(samples)), device)
    inputs = floor.given(method, method.collate(samples))
    bare = milliseconds(lambda: floor.step(method.llm, inputs), device)
    return inputs.tokens, bare, step, answer
