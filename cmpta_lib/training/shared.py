"""What a stage of training left for other runs: those that agree in everything that decides it make it once.

Label shares and fusions of the multimodal transformer, for example, start from one pre-training per corpus and seed. A run
that finds its stage here ends with the bytes that it would have had, had it made the stage itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from cmpta_lib import files
from cmpta_lib.config import Stage
from cmpta_lib.training.checkpoint import read_sealed, write_sealed

_log = logging.getLogger(__name__)


def path_of(folder: Path, stage: Stage) -> Path:
    """Where this stage's result lies: its name and the hash of what decides it."""
    told = json.dumps([stage.name, stage.training.model_dump(mode="json"), stage.share, stage.outcome], sort_keys=True)
    return folder / f"{stage.name}-{hashlib.sha256(told.encode()).hexdigest()[:16]}.safetensors"


def leave(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, history: list[dict[str, Any]]) -> None:
    """Write what the stage taught: the parameters that it trained, and all buffers.

    Raises:
        OSError: it cannot be written; says where and what to do.
    """
    if not path.exists():
        write_sealed(path, _taught(module, optimizer), path.stem, json.dumps(history))


def take(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]] | None:
    """Load what `leave` wrote into the module and return the stage's history; None where there is nothing of use."""
    if not path.exists():
        return None
    try:
        tensors, history = read_sealed(path, path.stem)
        wanted = {name: tensor.shape for name, tensor in _taught(module, optimizer).items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != wanted:
            raise files.Damaged("its tensors are not those of this version's model")
    except (files.Damaged, SafetensorError, OSError) as error:
        _log.warning("%s cannot be used (%s): making this stage anew", path, str(error).partition("\n")[0])
        path.unlink(missing_ok=True)
        return None
    module.load_state_dict(tensors, strict=False)
    found: list[dict[str, Any]] = json.loads(history)
    return found


def _taught(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    others = {name for name, parameter in module.named_parameters() if id(parameter) not in trained}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in others}
