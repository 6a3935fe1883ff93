"""What one sees while runs are made: their names, how they ended, how many are left and for how long."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from conftest import finish_by_hand

from cmpta_lib.config import DataConfig, RunConfig, TrainingConfig
from cmpta_lib.runs import progress
from cmpta_lib.runs.progress import Progress
from cmpta_lib.runs.store import METRICS, Run


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time as the tests say, for `Progress` and its bar."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "monotonic", found)
    monkeypatch.setattr("tqdm.std.time", found)
    return found


def runs(folder: Path, *corpora: str) -> list[Run]:
    found = []
    for seed, corpus in enumerate(corpora):
        config = RunConfig(data=DataConfig(name=corpus, fingerprint="f"), seed=seed, training=TrainingConfig(epochs=4))
        found.append(Run(config, folder / f"{corpus}-{config.hash}"))
    return found


def test_each_run_that_ends_is_one_line(tmp_path, clock):
    first, second, third = runs(tmp_path, "sims", "sims", "sims")
    scores = {"mae": 0.25, "corr": 0.5}
    with Progress([first, second, third], lambda run: "7 tokens", stream := io.StringIO()) as report:
        report(first, {"event": "start"})
        clock.now += 54
        finish_by_hand(first.folder, first.config, **{METRICS: json.dumps({"valid": scores, "test": scores | {"mae": 0.26}})})
        report(first, {"event": "done"})
        report(second, {"event": "start"})
        report(second, {"event": "failed", "kind": "ValueError", "message": "loss is\nnan"})
        report(third, {"event": "note", "text": "starting anew"})
        report(third, {"event": "done"})
    assert stream.getvalue().splitlines() == [
        "3 runs to make",
        "7 tokens, sims, seed 0: valid MAE 0.250, test MAE 0.260, 54 s; 2 of 3 left",
        "7 tokens, sims, seed 1: failed, ValueError: loss is nan, 0 s; 1 of 3 left",
        "starting anew",
        "7 tokens, sims, seed 2: ended, its scores cannot be read (FileNotFoundError); none left",
    ]


def test_in_a_log_it_says_how_far_it_is_every_half_minute_and_no_control_codes(tmp_path, clock):
    (run,) = runs(tmp_path, "sims")
    with Progress([run], str, stream := io.StringIO()) as report:
        report(run, {"event": "start"})
        for second in range(1, 70):
            clock.now += 1
            report(run, {"event": "epoch", "epoch": second / 30})
    first, *lines = stream.getvalue().splitlines()
    assert first == "1 run to make" and len(lines) == 2
    assert [line.split("|")[0] for line in lines] == ["1 of 1 left, 1 at work  25% ", "1 of 1 left, 1 at work  50% "]
    assert lines[0].endswith("00:30, 01:30 to go") and not set("\r\x1b") & set(stream.getvalue())


def test_in_a_terminal_it_is_a_bar_that_is_written_over_and_goes(tmp_path, clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    (run,) = runs(tmp_path, "声音")
    with Progress([run], str, stream := Terminal()) as report:
        report(run, {"event": "start"})
        for epoch in (1, 2):
            clock.now += 10
            report(run, {"event": "epoch", "epoch": epoch})
        report(run, {"event": "busy"})  # another process holds it
    assert "1 of 1 left, 1 at work  50% |" in stream.getvalue() and stream.getvalue().count("\n") == 1
    assert not stream.getvalue().split("\r")[-1].strip(), "nothing stays"


def test_a_reader_that_has_gone_ends_no_run(tmp_path):
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    (run,) = runs(tmp_path, "sims")
    with Progress([run], str, Gone()) as report:
        report(run, {"event": "note", "text": "x"})
        report(run, {"event": "epoch", "epoch": 1})


def test_columns_of_wide_text():
    assert progress.columns("a声é") == 4 and progress.cut("声音声音", 6) == "声音…" and progress.cut("abc", 3) == "abc"
    assert progress.table(["a", "number"], [["声音", "7"], ["x", "12"]], [1]) == ["a     number", "声音       7", "x         12"]
    assert [progress.duration(s) for s in (3.4, 99, 100, 5999, 36000)] == ["3 s", "99 s", "2 min", "100 min", "10.0 h"]
