"""What one sees while runs are made: their names, how they ended, how many are left and for how long."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from conftest import finish_by_hand

from cmpta_lib.baselines.reference import ConstantConfig
from cmpta_lib.config import DataConfig, RunConfig, TrainingConfig
from cmpta_lib.runs import progress as console
from cmpta_lib.runs.progress import Progress
from cmpta_lib.runs.store import METRICS, Run


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def runs(folder: Path, *corpora: str, epochs: int = 4, **more) -> list[Run]:
    found = []
    for seed, corpus in enumerate(corpora):
        data, training = DataConfig(name=corpus, fingerprint="f"), TrainingConfig(epochs=epochs)
        config = RunConfig(data=data, seed=seed, training=training, **more)
        found.append(Run(config, folder / f"{corpus}-{config.hash}"))
    return found


def finish(run: Run, mae: float = 0.25) -> None:
    scores = {"mae": mae, "corr": 0.5}
    finish_by_hand(run.folder, run.config, **{METRICS: json.dumps({"valid": scores, "test": scores | {"mae": mae + 0.01}})})


def test_each_run_that_ends_is_one_line(tmp_path, clock, monkeypatch):
    first, second = runs(tmp_path, "sims", "sims")
    with Progress([first, second], lambda run: "7 tokens", stream := io.StringIO(), clock) as report:
        report(first, {"event": "start"})
        clock.now += 54
        finish(first)
        report(first, {"event": "done"})
        report(second, {"event": "start"})
        report(second, {"event": "failed", "kind": "ValueError", "message": "loss is\nnan"})
    assert stream.getvalue().splitlines() == [
        "2 runs to make",
        "7 tokens, sims, seed 0: valid MAE 0.250, test MAE 0.260, 54 s; 1 of 2 left",
        "1 of 2 left",
        "7 tokens, sims, seed 1: failed, ValueError: loss is nan, 0 s; none left",
    ]


def test_a_finished_run_that_cannot_be_read_stops_nothing(tmp_path, clock):
    (run,) = runs(tmp_path, "sims")
    with Progress([run], str, stream := io.StringIO(), clock) as report:
        report(run, {"event": "done"})
    assert "its scores cannot be read (FileNotFoundError)" in stream.getvalue()


def test_in_a_log_it_says_how_far_it_is_every_half_minute_and_no_control_codes(tmp_path, clock):
    (run,) = runs(tmp_path, "sims")
    with Progress([run], lambda run: "CMPTA", stream := io.StringIO(), clock) as report:
        report(run, {"event": "start"})
        for second in range(1, 70):
            clock.now += 1
            report(run, {"event": "epoch", "epoch": second / 30})
    assert stream.getvalue().splitlines() == [
        "1 run to make",
        "1 of 1 left, about 90 s | CMPTA, sims, seed 0, epoch 1.0 of 4",
        "1 of 1 left, about 60 s | CMPTA, sims, seed 0, epoch 2.0 of 4",
    ]


def test_in_a_terminal_it_is_one_line_that_is_written_over_and_goes(tmp_path, clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    (run,) = runs(tmp_path, "声音")
    with Progress([run], lambda run: "CMPTA", stream := Terminal(), clock) as report:
        for second in range(1, 10):
            clock.now += 1
            report(run, {"event": "epoch", "epoch": second / 30})
        report(run, {"event": "note", "text": "starting anew"})
    first, second, rest = stream.getvalue().split("\n")
    assert first.endswith("1 run to make") and second.endswith("\r\x1b[Kstarting anew")
    drawn = second.split("\r\x1b[K")[1:-1]
    assert len(drawn) == 9 and all(console.columns(line) < 40 and line.endswith("…") for line in drawn)
    assert rest.endswith("\r\x1b[K"), "nothing stays"


def test_the_estimate_comes_before_the_first_epoch_ends(tmp_path, clock):
    (run,) = runs(tmp_path, "sims", epochs=10)
    report = Progress([run], str, io.StringIO(), clock)
    report(run, {"event": "start"})
    clock.now += 20  # loading an LLM is no training
    report(run, {"event": "epoch", "epoch": 0.01})
    assert report.estimate.seconds(1) is None
    clock.now += 6
    report(run, {"event": "epoch", "epoch": 0.11})
    assert report.estimate.seconds(1) == pytest.approx(9.89 * 60)


def test_the_estimate_knows_slow_corpora_from_fast_ones_and_counts_jobs(tmp_path, clock):
    slow, fast, next_slow = runs(tmp_path, "slow", "fast", "slow")
    report = Progress([slow, fast, next_slow], str, io.StringIO(), clock)
    for run in (slow, fast):
        report(run, {"event": "start"})
        report(run, {"event": "epoch", "epoch": 0.0})
    clock.now += 10
    report(slow, {"event": "epoch", "epoch": 1})
    report(fast, {"event": "epoch", "epoch": 2})
    left = 3 * 10 + 2 * 5 + 4 * 10
    assert report.estimate.seconds(1) == pytest.approx(left) and report.estimate.seconds(2) == pytest.approx(left / 2)


def test_epochs_that_were_finished_before_are_not_counted_as_fast(tmp_path, clock):
    (run,) = runs(tmp_path, "sims", epochs=10)
    report = Progress([run], str, io.StringIO(), clock)
    report(run, {"event": "start"})
    report(run, {"event": "epoch", "epoch": 8.5})
    clock.now += 5
    report(run, {"event": "epoch", "epoch": 9})
    assert report.estimate.seconds(1) == pytest.approx(10)


def test_a_method_without_training_is_no_150_epochs(tmp_path, clock):
    untrained = runs(tmp_path, "sims", "meld", epochs=150, method=ConstantConfig())
    report = Progress(untrained, str, io.StringIO(), clock)
    report(untrained[0], {"event": "start"})
    clock.now += 7
    report(untrained[0], {"event": "done"})
    assert report.estimate.seconds(1) == pytest.approx(7)


def test_a_run_that_another_process_holds_is_not_named_as_running(tmp_path, clock):
    (run,) = runs(tmp_path, "sims")
    report = Progress([run], lambda run: "CMPTA", io.StringIO(), clock)
    report(run, {"event": "start"})
    assert "CMPTA" in report.status()
    report(run, {"event": "busy"})
    assert report.status() == "1 of 1 left"


def test_a_reader_that_has_gone_ends_no_run(tmp_path, clock):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    (run,) = runs(tmp_path, "sims")
    with Progress([run], str, Gone(), clock) as report:
        report(run, {"event": "note", "text": "x"})


def test_columns_of_wide_text():
    assert console.columns("a声é") == 4 and console.cut("声音声音", 6) == "声音…" and console.cut("abc", 3) == "abc"
    assert console.table(["a", "number"], [["声音", "7"], ["x", "12"]], [1]) == ["a     number", "声音       7", "x         12"]
    assert [console.duration(s) for s in (3.4, 99, 100, 5999, 36000)] == ["3 s", "99 s", "2 min", "100 min", "10.0 h"]
