"""A checkpoint that is not what was written costs its epochs, never the run: it is named and the run starts anew."""

from __future__ import annotations

import errno
import logging
import os
import random
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from cmpta_lib.runs import checkpoint
from cmpta_lib.runs.checkpoint import Saver, State, load_checkpoint

RUN = "0123456789ab"
STATE = {"epoch": 2, "best_epoch": 1, "best_score": float("inf"), "history": [{"epoch": 1}], "steps": [[1, 0.1, 2e-5]]}


def trained(width: int = 4, steps: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A module whose last layer is never used and so has no moments, after a few steps."""
    torch.manual_seed(steps)
    module = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 1), nn.Linear(1, 1))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        module[1](module[0](torch.randn(5, 3))).sum().backward()
        optimizer.step()
    return module, optimizer


def store(path: Path, run: str = RUN, width: int = 4) -> nn.Module:
    module, optimizer = trained(width)
    best = {name: weight + 1 for name, weight in module.state_dict().items()}
    with Saver(path, run, lambda state: None) as saver:
        saver.save(module, optimizer, State(**STATE), best)
    return module


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / checkpoint.CHECKPOINT


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_everything_comes_back(path):
    stored = store(path)
    found = load_checkpoint(path, RUN, trained(steps=1)[0])
    assert found["state"] == State(**STATE)
    assert same(found["module"], stored.state_dict())
    assert same(found["best"], {name: weight + 1 for name, weight in stored.state_dict().items()})
    expected = trained()[1].state_dict()["state"]
    assert found["moments"].keys() == expected.keys()
    assert all(same(found["moments"][index], expected[index]) for index in expected)


def refused(path: Path, caplog: pytest.LogCaptureFixture) -> str:
    """The one line said of a checkpoint of which nothing is used."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "cmpta_lib"):
        assert load_checkpoint(path, RUN, trained(steps=1)[0]) == {}
    (record,) = caplog.records
    line = record.getMessage()
    assert line.startswith(f"{path} cannot be used (") and line.endswith("): starting this run anew") and "\n" not in line
    return line


def test_one_flipped_bit_anywhere_is_noticed(path, caplog):
    assert load_checkpoint(path, RUN, trained()[0]) == {} and not caplog.records, "without a checkpoint nothing is said"
    store(path)
    content, rng = path.read_bytes(), random.Random(0)
    for position in (0, 7, 31, 32, len(content) - 1, *rng.sample(range(len(content)), 60)):
        changed = bytearray(content)
        changed[position] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        refused(path, caplog)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "cut to its head": lambda path: os.truncate(path, 8),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"garbage" * 1000),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "another version's": lambda path: checkpoint.write(path, checkpoint.pack(RUN, {"state": "{}", "module": {}, "best": {}})),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_starts_the_run_anew(path, damage, caplog):
    store(path)
    damage(path)
    refused(path, caplog)


def test_another_runs_or_models_checkpoint_is_refused_before_it_is_loaded(path, caplog):
    store(path, run="ba9876543210")
    assert "it is of run ba9876543210, expected 0123456789ab" in refused(path, caplog)
    store(path, width=5)
    assert "its tensors are not those of this version's model" in refused(path, caplog)


def test_a_full_disk_is_named_with_the_remedy_where_the_training_is(path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store(path)
    before = path.read_bytes()
    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OSError, match=f"cannot write {path}: the disk is full: make room there, or name .* CMPTA_RUNS"):
        store(path)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("fails", [False, True])
def test_a_checkpoint_is_that_of_its_moment_told_of_once_it_lies_there_and_finished_whatever_happens(path, monkeypatch, fails):
    held_up = threading.Event()  # writing waits until this is set
    monkeypatch.setattr(checkpoint, "write", lambda *given, real=checkpoint.write: (held_up.wait(60), real(*given)))
    module, optimizer = trained()
    expected, state, told = {name: weight.clone() for name, weight in module.state_dict().items()}, State(epoch=1), []
    with (
        pytest.raises(ZeroDivisionError) if fails else nullcontext(),
        Saver(path, RUN, lambda saved: told.append((saved.epoch, path.exists()))) as saver,
    ):
        saver.save(module, optimizer, state, module.state_dict())
        with torch.no_grad():
            for weight in module.parameters():
                weight.add_(1)
        state.epoch = 2
        state.history.append({"epoch": 2})
        state.steps.append([2, 0.5, 0.1])
        assert told == [] and not path.exists()
        held_up.set()
        if fails:
            raise ZeroDivisionError
    assert told == [(1, True)]
    found = load_checkpoint(path, RUN, module)
    assert same(found["best"], expected) and same(found["module"], expected) and found["state"] == State(epoch=1)
