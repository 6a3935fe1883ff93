"""What would make a GPU wait for the host, counted on a CPU: a step sends three blocks and reads one back.

Two modes watch. Below autograd a `TorchDispatchMode` sees every operation, those of the backward pass and of transformers
too; some need a number, or the size of their result, on the host. Above, a `TorchFunctionMode` sees what leaves no trace
below on a CPU, such as `tolist`. Each step is taken twice: with numbers on the CPU, and on torch's `meta` device, which
has no numbers to read and, as a GPU, is not the host, so that every copy to it shows.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import language_model
from test_model import ABLATIONS, AFTER_TEXT, CONFIG, TEXT_ONLY, build, clips
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from cmpta_lib.baselines.mse_adapter import MseAdapterConfig
from cmpta_lib.baselines.reference import SoftPromptConfig
from cmpta_lib.baselines.supervised import reference
from cmpta_lib.config import RunConfig
from cmpta_lib.data.corpus import Sample
from cmpta_lib.fast import packing
from cmpta_lib.fast.cmpta import BatchedAdapter
from cmpta_lib.fast.packing import send
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.runs import loop

READOUT = 1  # the loss, once a step
SENDS = 3  # frames, what the adapter needs of text and lengths, what the LLM needs of the layout

# Operations whose result, or its size, the host must know.
READS = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "argwhere", "masked_select", "masked_scatter"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount", "histc", "_pack_padded_sequence"),
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
FETCHES = {"tolist", "cpu", "numpy", "__array__"}
MAKES = {"tensor"}  # from host values, and on `meta` without a trace below
CPU, META = torch.device("cpu"), torch.device("meta")


class Below(TorchDispatchMode):
    """Counts operations that read from the device or copy to it.

    `on_host` are tensors that lie on the host beside a GPU too; numbers without dimension may lie anywhere.
    """

    def __init__(self, on_host: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.on_host, self.counts = {id(tensor) for tensor in on_host}, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        reads = name in READS
        if name in INDEXING:
            reads = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        elif name == "repeat_interleave":
            reads = kwargs.get("output_size") is None
        out = func(*args, **kwargs)
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        made = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        if reads and not all(id(tensor) in self.on_host for tensor in given):
            self.counts[name] += 1
        elif len({tensor.device for tensor in (*given, *made) if tensor.ndim or name == "_to_copy"}) > 1:
            self.counts[f"{name} between devices"] += 1
        return out


class Above(TorchFunctionMode):
    """Counts calls that fetch numbers or bring them; those of a device without numbers are ones."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in FETCHES | MAKES:
            self.counts[name] += 1
            if name == "tolist" and args[0].device == META:
                return [1.0] * args[0].numel()
        return func(*args, **(kwargs or {}))


class Seen:
    """What was counted: operations and calls by name, and the number of blocks sent on purpose."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.sends = 0


@contextmanager
def watching(monkeypatch: pytest.MonkeyPatch, on_host: Sequence[Tensor] = ()) -> Iterator[Seen]:
    seen, above, below, send = Seen(), Above(), Below(on_host), packing.send

    def counted(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
        seen.sends += 1
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            return send(arrays, device)

    with monkeypatch.context() as patched:
        patched.setattr(packing, "send", counted)
        with above, below:
            yield seen
    seen.counts = dict(above.counts + below.counts)


def send_anywhere(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """`transfer.send` knows CPUs and GPUs; here to the `meta` device too."""
    return [part.to(device) for part in send(arrays, CPU)]


def test_the_counters_know_what_they_count(monkeypatch):
    values, mask, host = torch.arange(6.0), torch.arange(6) > 2, torch.tensor(3.0)
    with watching(monkeypatch, [host]) as seen:
        values[mask]
        values[mask] = 1.0
        mask.nonzero()
        torch.masked_select(values, mask)
        values.sum().item()
        bool(mask.any())
        values.tolist()
        values.cpu()
        values.numpy()
        mask.unique()
        torch.equal(values, values)
        torch.repeat_interleave(values, mask.long())
        packing.send([np.zeros(2), np.zeros(3)], CPU)
        host.item()  # lies on the host anyway
    once = ("index_put_", "nonzero", "masked_select", "tolist", "cpu", "numpy", "_unique2", "equal", "repeat_interleave")
    assert seen.counts == dict.fromkeys(once, 1) | {"index": 1, "_local_scalar_dense": 2}
    assert seen.sends == 1


# --- a whole step -----------------------------------------------------------------------------------------------------

SWITCHES = [{}, *ABLATIONS, AFTER_TEXT]


def on(device: torch.device, llm: FrozenLLM, monkeypatch: pytest.MonkeyPatch) -> FrozenLLM:
    """The LLM, or a copy of it on the device without numbers."""
    if device == CPU:
        return llm
    monkeypatch.setattr(packing, "send", send_anywhere)
    away = copy.copy(llm)
    away.embedding_norm = llm.embedding_norm  # read when a method is built, in no step
    away.model = copy.deepcopy(llm.model).to(device)
    away.embedding = away.model.get_input_embeddings()
    assert away.device == device
    return away


def step_watched(monkeypatch: pytest.MonkeyPatch, config: RunConfig, llm: FrozenLLM, corpus, **changes: Any) -> Seen:
    """The second optimiser step, when AdamW's state is there, on clips of which some lack face, voice or words."""
    method = build(llm, corpus, config, **changes)
    method.module.train()
    # A few frames are enough: without numbers an LSTM is taken apart, frame by frame.
    samples: Sequence[Sample] = [replace(s, audio=s.audio[:9], vision=s.vision[:7]) for s in clips(corpus)]
    optimizer = torch.optim.AdamW(method.module.parameters(), lr=1e-3)
    units = [[clip] for clip in range(len(samples))]
    with watching(monkeypatch):
        loop.step(method, optimizer, samples, units, config.training)
    counters = [state["step"] for state in optimizer.state.values()]  # on the host beside a GPU too
    assert len(counters) == len(list(method.module.parameters())) and {c.device for c in counters} == {CPU}
    with watching(monkeypatch, counters) as seen:
        values = loop.step(method, optimizer, samples, units, config.training)
    assert values["train_loss"] > 0
    return seen


def only_the_readout(seen: Seen) -> None:
    assert seen.counts == {"tolist": READOUT}
    assert seen.sends <= SENDS


@pytest.mark.parametrize("device", [CPU, META], ids=str)
@pytest.mark.parametrize("changes", SWITCHES, ids=str)
@pytest.mark.parametrize("world", ["embedded-sims", "embedded-meld"])
def test_a_step_reads_the_loss_and_copies_nothing_but_its_blocks(changes, world, device, llm, corpora, monkeypatch):
    corpus, llm = corpora[world], on(device, llm, monkeypatch)
    only_the_readout(step_watched(monkeypatch, CONFIG, llm, corpus, **changes))


@pytest.mark.parametrize("device", [CPU, META], ids=str)
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("family", ["qwen2", "llama", "glm"])
def test_no_family_reads_its_positions_back(family, gradient_checkpointing, device, llm, corpora, monkeypatch):
    loaded = on(device, language_model(family, llm, gradient_checkpointing), monkeypatch)
    only_the_readout(step_watched(monkeypatch, CONFIG, loaded, corpora["embedded-sims"]))


MSE = MseAdapterConfig(audio_hidden=6, vision_hidden=5, dim=16)
OTHERS = {  # token makers beside CMPTA's
    "mse_adapter": MSE,
    "mse_adapter, padded mean": reference(MSE),
    "mse_adapter, one scale": MSE.model_copy(update={"multi_scale": False, "token_scale": "embedding_norm"}),
    "soft_prompt": SoftPromptConfig(),
}


@pytest.mark.parametrize("device", [CPU, META], ids=str)
@pytest.mark.parametrize("settings", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("world", ["embedded-sims", "embedded-meld"])
def test_no_other_token_maker_waits_either(settings, world, device, llm, corpora, monkeypatch):
    corpus, llm = corpora[world], on(device, llm, monkeypatch)
    only_the_readout(step_watched(monkeypatch, CONFIG.model_copy(update={"method": settings}), llm, corpus))


@pytest.mark.parametrize("config", [CONFIG, TEXT_ONLY], ids=["cmpta", "text_only"])
def test_answering_a_batch_reads_its_scores_and_nothing_else(config, llm, corpora, monkeypatch):
    method = build(llm, corpora["embedded-sims"], config)
    batch = method.collate(clips(corpora["embedded-sims"]))
    with watching(monkeypatch) as seen:
        method.predict(batch)
    assert seen.counts == {"cpu": 1, "numpy": 1}
    assert seen.sends <= SENDS + 1  # the trie's mask


FAULTS = {
    "a mask as an index": (CPU, lambda lengths, size: lengths[lengths > 0]),
    "a number on the host": (CPU, lambda lengths, size: lengths.max().item()),
    "a size on the host": (CPU, lambda lengths, size: torch.repeat_interleave(lengths, lengths)),
    "a tensor from the host": (META, lambda lengths, size: torch.tensor([size], device=lengths.device)),
    "an index from the host": (META, lambda lengths, size: lengths[torch.tensor([0])]),
}


@pytest.mark.parametrize(("device", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_wait_inside_the_adapter_would_be_noticed(device, fault, llm, corpora, monkeypatch):
    plain, calls = BatchedAdapter.forward, []

    def faulty(self, streams):
        calls.append(fault(streams.text.lengths, streams.text.values.shape[1]))
        return plain(self, streams)

    monkeypatch.setattr(BatchedAdapter, "forward", faulty)
    seen = step_watched(monkeypatch, CONFIG, on(device, llm, monkeypatch), corpora["embedded-sims"])
    assert calls and len(seen.counts) > 1
