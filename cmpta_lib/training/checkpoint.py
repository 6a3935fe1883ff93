"""What a half-done run goes on from: one file, replaced whole after every epoch."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

CHECKPOINT = "checkpoint.safetensors"


@dataclass
class State:
    """What a checkpoint holds beside weights and optimiser."""

    epoch: int = 0  # finished epochs
    best_epoch: int = 0
    best_score: float | None = None
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def save(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, state: State, best: dict[str, Tensor]) -> None:
    """Everything to go on from, in one file, whole or not at all."""
    tensors = {f"module.{k}": v for k, v in module.state_dict().items()} | {
        f"best.{k}": v for k, v in best.items()
    }
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
    write_tensors(path, tensors, {"state": json.dumps(vars(state))})


def restore(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> dict[str, Tensor]:
    """Load a checkpoint into model, optimiser and state where there is one; returns the best weights so far."""
    if not path.exists():
        return {name: weight.detach().clone() for name, weight in module.state_dict().items()}
    groups: dict[str, dict[str, Tensor]] = {"module": {}, "best": {}, "optimizer": {}}
    with safe_open(path, "pt", device=str(next(module.parameters()).device)) as file:
        for key in file.keys():
            kind, name = key.split(".", 1)
            groups[kind][name] = file.get_tensor(key)
        vars(state).update(json.loads(file.metadata()["state"]))
    module.load_state_dict(groups["module"])
    moments: dict[int, dict[str, Any]] = {}
    for key, tensor in groups["optimizer"].items():
        index, name = key.split(".")
        moments.setdefault(int(index), {})[name] = (
            tensor.cpu() if name == "step" else tensor
        )  # a GPU step counter syncs
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    return groups["best"]


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write safetensors so that a crash leaves the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, partial, metadata)
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
