"""What a half-done run goes on from: one file, replaced whole after every epoch, and believed only if it is unchanged.

What a stage of training left for other runs: those that agree in everything that decides it make it once.

Label shares and fusions of the multimodal transformer, for example, start from one pre-training per corpus and seed. A run
that finds its stage here ends with the bytes that it would have had, had it made the stage itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cmpta_lib import files
from cmpta_lib.config import Stage

CHECKPOINT = "checkpoint.safetensors"
_log = logging.getLogger(__name__)


@dataclass
class State:
    """What a checkpoint holds beside weights and optimiser."""

    epoch: int = 0  # finished epochs
    best_epoch: int = 0
    best_score: float | None = None
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    stage: int = 0  # that the next epoch belongs to
    stage_start: int = 0  # finished epochs of the stages before it


class Saver:
    """Writes a run's checkpoints, and tells `on_saved` the state of each once it is on the disk.

    Args:
        aside: let a thread hash and write, while the caller goes on: at D = 1024 a checkpoint is 320 MB and takes a second
            or two, an epoch on a GPU ten. What is written is copied before, and until it is on the disk a kill costs that
            epoch, of which nobody has been told. Without a GPU the thread would only take the training's own core.
    """

    def __init__(self, path: Path, run: str, on_saved: Callable[[State], None], aside: bool) -> None:
        self.path, self.run, self.on_saved, self.aside = path, run, on_saved, aside
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[Future[None], State] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._thread:  # what is being written gets its end, whatever happened
            if kind is None:
                self.wait()

    def save(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, state: State, best: Mapping[str, Tensor]
    ) -> None:
        """Write everything that the run goes on from, in one file, whole or not at all, when the one before is written.

        Raises:
            OSError: it or the one before cannot be written; says where and what to do.
        """
        self.wait()
        told = replace(state, history=list(state.history))
        held, text = _on_cpu(_tensors(module, optimizer, best)), json.dumps(vars(told))
        if self.aside:
            self._writing = self._thread.submit(_write_held, self.path, held, self.run, text), told
        else:
            _write_held(self.path, held, self.run, text)
            self.on_saved(told)

    def poll(self) -> None:
        """Tell of a checkpoint that is written by now; raises as `save`."""
        if self._writing and self._writing[0].done():
            self.wait()

    def wait(self) -> None:
        """Until the last checkpoint is written and told of; raises as `save`."""
        if self._writing:
            (written, told), self._writing = self._writing, None
            written.result()
            self.on_saved(told)


def _tensors(module: nn.Module, optimizer: torch.optim.Optimizer, best: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `restore` loads, by kind and name; no copies."""
    tensors = {f"module.{k}": v for k, v in module.state_dict().items()} | {f"best.{k}": v for k, v in best.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
    return tensors


def stage_of(path: Path) -> int:
    """The stage that a checkpoint goes on with; 0 where there is none, or none that can be read."""
    try:
        with safe_open(path, "pt") as file:
            return int(json.loads((file.metadata() or {})["state"])["stage"])
    except (SafetensorError, OSError, ValueError, LookupError, TypeError):
        return 0


def restore(
    path: Path, run: str, module: nn.Module, optimizer: torch.optim.Optimizer, state: State
) -> dict[str, Tensor]:
    """Load a checkpoint into module, optimiser and state where there is one; returns the best weights so far.

    A checkpoint that is cut, changed or another run's is worth less than the epochs it would save: a warning names it
    and the run starts anew. It is read and compared whole before anything is loaded.
    """
    best = {name: weight.detach().clone() for name, weight in module.state_dict().items()}
    if not path.exists():
        return best
    try:
        groups, stored = _read(path, run, module, optimizer)
    except (files.Damaged, SafetensorError, OSError) as error:
        _log.warning("%s cannot be used (%s): starting this run anew", path, str(error).partition("\n")[0])
        return best
    module.load_state_dict(groups["module"])
    moments: dict[int, dict[str, Any]] = {}
    for key, tensor in groups["optimizer"].items():
        index, name = key.split(".")
        moments.setdefault(int(index), {})[name] = tensor  # a step counter stays on the CPU: on a GPU it would sync
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    vars(state).update(vars(stored))
    return groups["best"]


def write_sealed(path: Path, tensors: Mapping[str, Tensor], run: str, state: str) -> None:
    """Write tensors with what they are, so that `read_sealed` notices any change; raises as `save`."""
    _write_held(path, _on_cpu(tensors), run, state)


def _write_held(path: Path, held: dict[str, Tensor], run: str, state: str) -> None:
    _write(path, held, {"run": run, "state": state, "sha256": _digest(run, state, held)})


def read_sealed(path: Path, run: str) -> tuple[dict[str, Tensor], str]:
    """The tensors that `write_sealed` wrote for `run`, and the state beside them.

    Raises:
        Damaged: they were changed, or are another's; says which.
        SafetensorError, OSError: the file cannot be read.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    if metadata.get("sha256") != _digest(metadata.get("run", ""), metadata.get("state", ""), tensors):
        raise files.Damaged("its contents are not those that were written")
    if metadata["run"] != run:
        raise files.Damaged(f"it is of run {metadata['run']}, expected {run}")
    return tensors, metadata["state"]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write safetensors so that a crash leaves the old file or the new one, never half of it.

    Raises:
        OSError: it cannot be written; says where and what to do.
    """
    _write(path, _on_cpu(tensors), metadata)


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> None:
    with files.writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as partial:
        try:
            save_file(tensors, partial, metadata)
        except SafetensorError as error:  # it hides the system's error in its text: "... (os error 28)"
            number = re.search(r"os error (\d+)", str(error))
            raise (OSError(int(number[1]), str(error)) if number else error) from error


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that are nobody else's, each made once."""
    copies = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        copies[name].copy_(tensor.detach())
    return copies


def _digest(run: str, state: str, tensors: Mapping[str, Tensor]) -> str:
    """Hash of everything in a checkpoint: safetensors itself notices a cut file, but no changed number."""
    digest = hashlib.sha256(json.dumps([run, state]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(
    path: Path, run: str, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, dict[str, Tensor]], State]:
    """Everything in a checkpoint of this run, by kind.

    Raises:
        Damaged: it was changed, is another run's, or does not fit the module; says which.
        SafetensorError, OSError: it cannot be read.
    """
    tensors, text = read_sealed(path, run)
    groups: dict[str, dict[str, Tensor]] = {"module": {}, "best": {}, "optimizer": {}}
    for key, tensor in tensors.items():
        kind, name = key.split(".", 1)
        groups[kind][name] = tensor
    expected = {name: weight.shape for name, weight in module.state_dict().items()}
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    fits = all({name: weight.shape for name, weight in groups[kind].items()} == expected for kind in ("module", "best"))
    stored = json.loads(text)
    if not fits or not {key.split(".")[0] for key in groups["optimizer"]} <= {str(index) for index in range(count)}:
        raise files.Damaged("its tensors are not those of this version's model")
    if stored.keys() != vars(State()).keys():
        raise files.Damaged("its state is not that of this version's training")
    return groups, State(**stored)


_log_shared = logging.getLogger(__name__)


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
        _log_shared.warning("%s cannot be used (%s): making this stage anew", path, str(error).partition("\n")[0])
        path.unlink(missing_ok=True)
        return None
    module.load_state_dict(tensors, strict=False)
    found: list[dict[str, Any]] = json.loads(history)
    return found


def _taught(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    others = {name for name, parameter in module.named_parameters() if id(parameter) not in trained}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in others}
