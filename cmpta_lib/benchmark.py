"""How long a training step takes, beside its floor: the bare frozen LLM's forward and backward on the same real tokens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cmpta_lib.experiments import Study
from cmpta_lib.runs import load_llm

if TYPE_CHECKING:
    import pandas as pd

STEPS = 20


def step_times(study: Study) -> pd.DataFrame:
    """Median milliseconds of a step's parts on each corpus, one batch of the run's size, and its ratio to the floor."""
    import pandas as pd
    import torch

    from cmpta_lib import training

    rows = []
    for key in study.keys:
        config, corpus = study.config(key), study.corpus(key)
        torch.set_num_threads(config.training.num_threads)
        llm = load_llm(study.cache / "llm", study.llm)
        model = training.build(config, corpus, llm)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
        indices = list(range(min(config.training.batch_size, len(corpus.splits["train"]))))
        batch = model.collate([corpus.splits["train"][i] for i in indices])
        with torch.no_grad():
            tokens, _ = model.pseudo_tokens(batch)
            embeds, packing, ends = model._pack(batch, tokens, [answer[:-1] for answer in batch.answer_ids])

        def floor(embeds: torch.Tensor = embeds, packing=packing, ends: torch.Tensor = ends, llm=llm) -> None:
            leaf = embeds.clone().requires_grad_(True)
            llm.logits(leaf, packing, ends).logsumexp(-1).sum().backward()

        def step(model=model, optimizer=optimizer, corpus=corpus, indices=indices, config=config) -> None:
            model.train()
            training._step(model, optimizer, corpus.splits["train"], indices, config.training)

        def answer(model=model, batch=batch) -> None:
            model.eval()
            model.answer(batch)

        bare, whole, reply = (_median_ms(work) for work in (floor, step, answer))
        rows.append(
            {
                "corpus": corpus.name,
                "batch": len(indices),
                "LLM positions": int(packing.lengths.sum()),
                "bare LLM forward + backward ms": round(bare, 1),
                "training step ms": round(whole, 1),
                "step / floor": round(whole / bare, 2),
                "answer ms": round(reply, 1),
                "threads": config.training.num_threads,
            }
        )
    return pd.DataFrame(rows)


def _median_ms(work: Callable[[], None]) -> float:
    import torch

    times = []
    for _ in range(STEPS):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[STEPS // 4 :])
