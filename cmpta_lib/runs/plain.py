"""A finished run's method, plain: one clip at a time, as the paper writes it, with the run's weights."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from cmpta_lib.fast.packing import Stream, Streams
from cmpta_lib.fast.prompted import PromptedLM, TokenMaker
from cmpta_lib.llm.generation import sharing
from cmpta_lib.method.adapter import CMPTAdapter
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.method.prompted import MakeTokens, PlainLM
from cmpta_lib.runs.load import TrainedRun, load


def plain(run: TrainedRun | str | Path, llm: str | Path = "") -> PlainLM:
    """The run as `cmpta_lib/method` writes it: slow, and what the quick one must equal.

    Its weights are the run's own. CMPTA's adapter is plain too; another token maker is given one clip at a time.

    Args:
        run: a loaded run, or its folder or name as `load` takes it, and `llm` likewise.
    Raises:
        ValueError: its method does not answer by prompting a frozen LLM once, so that it has no plain form.
        FileNotFoundError, Damaged: as `load`.
    """
    trained = run if isinstance(run, TrainedRun) else load(run, llm)
    method = trained.method
    if not isinstance(method, PromptedLM) or type(method).predict is not PromptedLM.predict:
        raise ValueError(f"run {trained.run.folder.name}: its method '{trained.run.config.method.name}' has no plain form")
    return PlainLM(_by_transformers(method.llm), method.settings, method.task, _token_maker(method, trained))


def _by_transformers(llm: FrozenLLM) -> FrozenLLM:
    """The same weights, with transformers' own attention whatever the quick one uses."""
    own = copy.copy(llm)
    own.model = sharing(llm.model)
    own.model.set_attn_implementation("sdpa")
    return own


def _token_maker(method: PromptedLM, trained: TrainedRun) -> MakeTokens | None:
    maker, widths = method.maker, trained.inputs.widths
    if maker is None:
        return None
    if not isinstance(maker, CMPTAdapter):
        return _one_at_a_time(maker)
    with torch.device("meta"):  # neither memory nor random numbers: the weights are the run's
        adapter = CMPTAdapter(
            maker.config, widths["audio"], widths["vision"], method.llm.dim, method.llm.embedding_norm
        )
    adapter.load_state_dict(maker.state_dict(), assign=True)
    return adapter.eval()


def _one_at_a_time(maker: TokenMaker) -> MakeTokens:
    def make(*clip: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        text, audio, vision = (Stream(one[None], torch.tensor([len(one)], device=one.device)) for one in clip)
        tokens, maps = maker(Streams(text, audio, vision, wants_maps=True))
        return tokens[0], {name: weights[0] for name, weights in maps.items()}

    return make
