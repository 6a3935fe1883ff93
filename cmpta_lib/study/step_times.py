"""How long a training step takes, beside its floor: the bare frozen LLM's forward and backward on the same real tokens.

From the same measurement comes the estimate of how long a study's unfinished runs will take on this machine.
"""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cmpta_lib.data.corpus import SPLITS
from cmpta_lib.runs.store import Run
from cmpta_lib.runs.trained import tools
from cmpta_lib.study.plan import TEXT_ONLY
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
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
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
                "peak GB": round(peak_gb(), 2),
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


def hours(runs: Sequence[Run], measured: pd.DataFrame) -> float:
    """Hours that these runs take at the speed of `step_times`, one after another, unfinished ones only."""
    by_corpus = measured.set_index("corpus")
    total = 0.0
    for run in runs:
        if run.done:
            continue
        config, line = run.config, by_corpus.loc[run.config.data.name]
        clips = {split: int(line[split]) for split in SPLITS}
        answer = float(line["answer ms"]) / float(line["batch"])
        epochs = 0 if config.method.name == TEXT_ONLY.method else config.training.epochs
        steps = math.ceil(clips["train"] / config.training.batch_size)
        total += epochs * (steps * float(line["training step ms"]) + clips["valid"] * answer)
        total += (clips["valid"] + clips["test"]) * answer
    return total / 3.6e6


def peak_gb() -> float:
    """Highest memory use so far in GB (1e9 bytes): allocated on the GPU, or resident of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _milliseconds(work: Callable[[], object]) -> float:
    import torch

    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started)
