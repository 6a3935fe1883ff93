"""How long a training step takes, beside its floor: the bare frozen LLM's forward and backward on the same real tokens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cmpta_lib.runs import memory
from cmpta_lib.runs.trained import tools
from cmpta_lib.study.study import Study

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from cmpta_lib.data.corpus import Split
    from cmpta_lib.methods.prompted_lm import PromptedLM

STEPS = 20
WARM_UP = 3


def step_times(
    study: Study, steps: int = STEPS, batch_size: int | None = None, keys: Sequence[str] | None = None
) -> pd.DataFrame:
    """Median milliseconds of a step's parts on each corpus over `steps` different batches, and its ratio to the floor.

    Peak memory is the GPU's where there is one, else this process's. Nothing is written.
    """
    import pandas as pd
    import torch

    from cmpta_lib.methods.prompted_lm import PromptedLM
    from cmpta_lib.training import loop

    rows = []
    for key in study.keys if keys is None else keys:
        config, corpus = study.config(key), study.corpus(key)
        split, size = corpus.splits["train"], batch_size or config.training.batch_size
        torch.set_num_threads(config.training.num_threads)
        memory.watch()
        method = loop.build(config, corpus, tools(study.root))
        assert isinstance(method, PromptedLM)
        optimizer = torch.optim.AdamW(method.module.parameters(), lr=1e-6)
        generator = torch.Generator().manual_seed(config.seed)
        warm = WARM_UP if steps > WARM_UP else 0
        order = torch.randperm(len(split), generator=generator).repeat(1 + (steps + warm) * size // len(split))
        times: dict[str, list[float]] = {"floor": [], "step": [], "answer": []}
        positions = []
        for batch in order.split(size)[: steps + warm]:
            one, count = _measure(method, optimizer, split, batch.tolist())
            positions.append(count)
            for name, value in one.items():
                times[name].append(value)
        peaks = memory.peaks_gb()
        bare, whole, reply = (statistics.median(times[name][warm:]) for name in ("floor", "step", "answer"))
        rows.append(
            {
                "corpus": corpus.name,
                **{name: len(part) for name, part in corpus.splits.items()},
                "batch": size,
                "LLM positions": round(statistics.median(positions)),
                "bare LLM forward + backward ms": round(bare, 1),
                "training step ms": round(whole, 1),
                "step / floor": round(whole / bare, 2),
                "answer ms": round(reply, 1),
                "peak GB": round(peaks.get(memory.ALLOCATED, peaks[memory.RESIDENT]), 2),
                "threads": config.training.num_threads,
            }
        )
    return pd.DataFrame(rows)


def _measure(
    method: PromptedLM, optimizer: torch.optim.Optimizer, split: Split, indices: list[int]
) -> tuple[dict[str, float], int]:
    """Milliseconds of a whole step, of answering and of the bare LLM on one batch, and its number of LLM positions."""
    import torch

    from cmpta_lib.training import loop

    method.module.train()
    drawn, settings = [[index] for index in indices], method.config.training
    step = _milliseconds(lambda: loop.step(method, optimizer, split, drawn, settings))
    method.module.eval()
    samples = [split[i] for i in indices]
    answer = _milliseconds(lambda: method.predict(method.collate(samples)))
    with torch.no_grad():
        embeds, packing, positions, _ = method.training_inputs(method.collate(samples))
    leaf = embeds.clone().requires_grad_(True)
    floor = _milliseconds(lambda: method.llm.logits(leaf, packing, positions).logsumexp(-1).sum().backward())
    return {"step": step, "answer": answer, "floor": floor}, embeds.shape[0]


def _milliseconds(work: Callable[[], object]) -> float:
    import torch

    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started)
