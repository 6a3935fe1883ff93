"""What a half-done run goes on from: one file, replaced whole after every epoch, and believed only if it is unchanged.

A stage of training that several runs share leaves its result in a file of the same kind. Label shares and fusions of the
multimodal transformer, for example, start from one pre-training per corpus and seed. A run that finds its stage here
ends with the bytes that it would have had, had it made the stage itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from torch import Tensor, nn

from cmpta_lib import files
from cmpta_lib.config import Stage

CHECKPOINT = "checkpoint.pt"
_DIGEST_BYTES = 32  # SHA-256 of what follows it in a file
_log = logging.getLogger(__name__)


@dataclass
class State:
    """How far a run is: what a checkpoint holds beside weights and optimiser."""

    epoch: int = 0  # finished epochs
    best_epoch: int = 0
    best_score: float | None = None
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    steps: list[list[float]] = field(default_factory=list)  # epoch, loss and learning rate of each: a list, as JSON has it
    stage: int = 0  # that the next epoch belongs to
    stage_start: int = 0  # finished epochs of the stages before it


class Saver:
    """Writes a run's checkpoints in a thread while the training goes on, and tells `on_saved` there once one is on the disk.

    At D = 1024 a checkpoint is 320 MB and takes a second or two, an epoch on a GPU ten. Until it is on the disk a kill costs
    that epoch, of which nobody has been told.
    """

    def __init__(self, path: Path, run: str, on_saved: Callable[[State], None]) -> None:
        self.path, self.run, self.on_saved = path, run, on_saved
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._thread:  # what is being written gets its end, whatever happened
            if kind is None:
                self._wait()

    def save(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: State, best: Mapping[str, Tensor]) -> None:
        """Write everything that the run goes on from, in one file, whole or not at all, when the one before is written.

        Raises:
            OSError: the one before cannot be written; says where and what to do.
        """
        self._wait()
        content = {"state": json.dumps(vars(state)), "module": module.state_dict(), "best": dict(best)}
        packed = pack(self.run, content | {"moments": optimizer.state_dict()["state"]})
        now = replace(state, history=list(state.history), steps=list(state.steps))
        self._writing = self._thread.submit(self._write, packed, now)

    def _write(self, packed: io.BytesIO, state: State) -> None:
        write(self.path, packed)
        self.on_saved(state)

    def _wait(self) -> None:
        if self._writing:
            self._writing.result()


def load_checkpoint(path: Path, run: str, module: nn.Module) -> dict[str, Any]:
    """A checkpoint's "state" (`State`), "module", "best" and "moments"; empty where there is none to go on from.

    A checkpoint that is cut, changed or another run's is worth less than the epochs it would save: a warning names it
    and the run starts anew. It is read and compared whole before anything is loaded.
    """
    with _usable(path, "starting this run anew"):
        content, shapes = read(path, run), _shapes(module.state_dict())
        state = json.loads(content["state"])
        if state.keys() != vars(State()).keys():
            raise files.Damaged("its state is not that of this version's training")
        if _shapes(content["module"]) != shapes or _shapes(content["best"]) != shapes:
            raise files.Damaged("its tensors are not those of this version's model")
        return content | {"state": State(**state)}
    return {}


@contextmanager
def _usable(path: Path, otherwise: str) -> Iterator[None]:
    """Go on after the block where there is no such file, or one that cannot be used; a warning names that one."""
    try:
        yield
    except FileNotFoundError:
        pass
    except (files.Damaged, OSError) as error:
        _log.warning("%s cannot be used (%s): %s", path, str(error).partition("\n")[0], otherwise)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def pack(run: str, content: Mapping[str, Any]) -> io.BytesIO:
    """Tensors and plain values as they are now, with whose they are, for `write`."""
    buffer = io.BytesIO(bytes(_DIGEST_BYTES))
    buffer.seek(_DIGEST_BYTES)
    torch.save({"run": run, **content}, buffer)
    return buffer


def write(path: Path, packed: io.BytesIO) -> None:
    """Write what was packed, whole or not at all, so that `read` notices any change.

    Raises:
        OSError: it cannot be written; says where and what to do.
    """
    content = packed.getbuffer()
    content[:_DIGEST_BYTES] = hashlib.sha256(content[_DIGEST_BYTES:]).digest()
    with files.writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as partial:
        partial.write_bytes(content)


def read(path: Path, run: str) -> dict[str, Any]:
    """What `write` wrote for `run`, its tensors on the CPU.

    Raises:
        Damaged: it was changed, or is another's; says which.
        OSError: the file cannot be read.
    """
    content = memoryview(path.read_bytes())
    if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
        raise files.Damaged("its contents are not those that were written")
    try:
        found: dict[str, Any] = torch.load(io.BytesIO(content[_DIGEST_BYTES:]), map_location="cpu", weights_only=True)
        whose = found["run"]
    except Exception as error:  # torch raises whatever a byte makes it: UnpicklingError, RuntimeError, struct.error, EOFError ...
        raise files.Damaged(f"it holds no state of a run ({type(error).__name__})") from None
    if whose != run:
        raise files.Damaged(f"it is of run {whose}, expected {run}")
    return found


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write safetensors, whole or not at all; raises as `write`."""
    with files.replacing(path) as partial:
        partial.write_bytes(safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))


def path_of(folder: Path, stage: Stage) -> Path:
    """Where this stage's result lies: its name and the hash of what decides it."""
    told = json.dumps([stage.name, stage.training.model_dump(mode="json"), stage.share, stage.outcome], sort_keys=True)
    return folder / f"{stage.name}-{hashlib.sha256(told.encode()).hexdigest()[:16]}.pt"


def leave_stage(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Write what the stage that ends taught, the parameters that it trained and all buffers, with its part of the history.

    Where it lies there already nothing is written. Raises as `write`.
    """
    if not path.is_file():
        steps = [one for one in state.steps if one[0] > state.stage_start]
        told = {"history": json.dumps(state.history[state.stage_start :]), "steps": json.dumps(steps)}
        write(path, pack(path.stem, {"taught": _taught(module, optimizer), **told}))


def take_stage(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> bool:
    """Load what `leave_stage` wrote into the module and move `state` to the stage's end; False where nothing is of use."""
    if not path.exists():  # and is not removed below, should another process write it just now
        return False
    with _usable(path, "making this stage anew"):
        found = read(path, path.stem)
        if "steps" not in found:
            raise files.Damaged("its history is not that of this version's training")
        if _shapes(found["taught"]) != _shapes(_taught(module, optimizer)):
            raise files.Damaged("its tensors are not those of this version's model")
        module.load_state_dict(found["taught"], strict=False)
        state.steps += json.loads(found["steps"])
        state.history += (made := json.loads(found["history"]))
        state.epoch += len(made)
        return True
    path.unlink(missing_ok=True)
    return False


def _taught(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    others = {name for name, parameter in module.named_parameters() if id(parameter) not in trained}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in others}
