"""Where the time of a training step goes, by marks that hooks set on the way: an instrumented pass of its own.

The step is the loop's own; nothing in it knows that it is watched. Forward, a part ends where its module returns.
Backward, a part begins when the gradient reaches what the part put out, so each pass through the graph is cut at the same
places. On a GPU marks are events of the device, and nothing waits for them until the step is over. What lies between two
marks that never came, as where a fast path goes around a module, counts with the part around it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from cmpta_lib.base import Loss
from cmpta_lib.benchmark.times import PARTS
from cmpta_lib.fast.prompted import PromptedLM

Mark = tuple[str, Any]  # its name, and a time or an event


class Marks:
    """Times at which something happened, in order."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.set: list[Mark] = []

    def __call__(self, name: str) -> None:
        if not self.on_gpu:
            self.set.append((name, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.set.append((name, event))

    @property
    def is_way_back(self) -> bool:
        """Whether the loss has been found."""
        return any(name == "loss" for name, _ in self.set)

    def milliseconds(self) -> Iterator[tuple[str, str, float]]:
        """Neighbouring marks and what lies between them; forgets them all."""
        if self.on_gpu:
            torch.cuda.synchronize()
        marks, self.set = self.set, []
        for (before, start), (after, end) in zip(marks, marks[1:], strict=False):
            yield before, after, start.elapsed_time(end) if self.on_gpu else 1000 * (end - start)


# What the time after a mark is spent on, until the next mark.
_AFTER = {
    "step": "data",
    "collated": "LLM forward",  # laying out the LLM's inputs; the adapter's own marks follow
    "maker in": "adapter",
    "alignment in": "alignment",
    "alignment out": "adapter",
    "maker out": "LLM forward",
    "head in": "head and loss",
    "loss": "head and loss",  # until the gradient has come back through the head
    "head gradient": "LLM backward",
    "maker gradient": "adapter",
    "alignment gradient": "alignment",
    "backward done": "optimiser",
}


def parts_of(marks: Marks) -> dict[str, float]:
    """Milliseconds of each of `PARTS` in one step."""
    spent = dict.fromkeys(PARTS, 0.0)
    for before, _, elapsed in marks.milliseconds():
        spent[_AFTER[before]] += elapsed
    return spent


def step_parts(
    method: PromptedLM, optimizer: torch.optim.Optimizer, step: Callable[[], object]
) -> tuple[dict[str, float], float]:
    """Of one call of `step`, which trains `method` with `optimizer` once: milliseconds of each of `PARTS`, and the
    floating-point operations that it spent in products with the LLM's weights."""
    marks = Marks(method.llm.device)
    with _watched(method, optimizer, marks), products(method.llm.model, marks) as operations:
        marks("step")
        step()
        marks("end")
    return parts_of(marks), sum(operations)


@contextmanager
def products(model: torch.nn.Module, marks: Marks) -> Iterator[list[float]]:
    """Operations of each product with a frozen weight: forward, and where a gradient is wanted back to the input."""
    done: list[float] = []

    def count(layer: Any, given: tuple[Any, ...], _: Any) -> None:
        (into,) = given
        once = 2.0 * (into.numel() // into.shape[-1]) * layer.weight.numel()
        done.append(once * (2 if into.requires_grad and not marks.is_way_back else 1))

    hooks = [one.register_forward_hook(count) for one in model.modules() if isinstance(one, torch.nn.Linear)]
    try:
        yield done
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _watched(method: PromptedLM, optimizer: torch.optim.Optimizer, marks: Marks) -> Iterator[None]:
    head = method.llm.model.get_output_embeddings()
    trained = [weight for group in optimizer.param_groups for weight in group["params"]]
    collate, loss = method.collate, method.loss

    def collated(*given: Any) -> Any:
        batch = collate(*given)
        marks("collated")
        return batch

    def lost(batch: Any) -> Loss:
        found = loss(batch)
        torch.autograd.graph.register_multi_grad_hook(trained, lambda _: marks("backward done"))
        marks("loss")
        return found

    with ExitStack() as stack:
        for name, instead in (("collate", collated), ("loss", lost)):
            setattr(method, name, instead)  # of this object alone, in front of its class'
            stack.callback(delattr, method, name)
        stack.enter_context(_between(head, "head", marks, of_input=True))
        if method.maker is not None:
            stack.enter_context(_between(method.maker, "maker", marks))
            parts: Mapping[str, torch.nn.Module] = dict(method.maker.named_children())
            if (alignment := parts.get("alignment")) is not None:
                for module in alignment.children() if isinstance(alignment, torch.nn.ModuleDict) else [alignment]:
                    stack.enter_context(_between(module, "alignment", marks))
        yield


@contextmanager
def _between(module: torch.nn.Module, name: str, marks: Marks, of_input: bool = False) -> Iterator[None]:
    """Marks where a module begins and returns, and where the gradient of what it put out, or was given, has come."""

    def before(_: Any, given: tuple[Any, ...]) -> None:
        if marks.is_way_back:  # what is made again there belongs to it
            return
        marks(f"{name} in")
        if of_input:
            _on_gradient(given[0], f"{name} gradient", marks)

    def after(_: Any, __: Any, put_out: Any) -> None:
        if of_input or marks.is_way_back:
            return
        marks(f"{name} out")
        _on_gradient(put_out, f"{name} gradient", marks)

    hooks = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _on_gradient(value: Any, name: str, marks: Marks) -> None:
    tensor = next((one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, Tensor)), None)
    if tensor is not None and tensor.requires_grad:
        tensor.register_hook(lambda _: marks(name))
