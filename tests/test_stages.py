"""A training of several stages: what each is given, what goes from one to the next, and a kill in any of them."""

from __future__ import annotations

import pytest
import torch

from cmpta_lib.config import DataConfig, RunConfig, TrainingConfig, override
from cmpta_lib.runs import checkpoint as shared
from cmpta_lib.runs import loop
from cmpta_lib.runs.checkpoint import CHECKPOINT, State


class Killed(Exception):
    pass


@pytest.fixture
def corpus(corpora):
    return corpora["embedded-sims"]


def config_of(**changes: object) -> RunConfig:
    import staged_method

    base = RunConfig(
        data=DataConfig(name="a", fingerprint="b"),
        method=staged_method.StagedConfig(),
        training=TrainingConfig(epochs=3, batch_size=4, learning_rate=0.05),
    )
    return override(base, {name.replace("__", "."): value for name, value in changes.items()})


def contents(module: torch.nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}





def test_epochs_of_all_stages_count(staged, corpus, tools, tmp_path):
    config = config_of()
    assert config.epochs == 5 and [stage.name for stage in config.stages] == ["reading", "training"]
    _, state = loop.train(config, corpus, tools, tmp_path)
    assert [(row["epoch"], row["stage"]) for row in state.history] == [
        (1, "reading"), (2, "reading"), (3, "training"), (4, "training"), (5, "training"),
    ]  # fmt: skip
    assert ["valid_mae" in row for row in state.history] == [False, False, True, True, True]
    assert state.best_epoch >= 3


def test_one_stage_leaves_the_history_as_it_was(small, corpus, tools, tmp_path):
    config = RunConfig(data=DataConfig(name="a", fingerprint="b"), method=small(), training=TrainingConfig(epochs=1))
    _, state = loop.train(config, corpus, tools, tmp_path)
    assert list(state.history[0]) == ["epoch", "learning_rate", "train_loss", "train_error", "train_size", "valid_mae"]


def test_an_unlabelled_stage_is_given_no_label(staged, corpus, tools, tmp_path):
    loop.train(config_of(), corpus, tools, tmp_path)
    labels = {name: [label for stage, label in staged.seen if stage == name] for name in ("reading", "training")}
    assert labels["reading"] and set(labels["reading"]) == {None}
    assert labels["training"] and None not in labels["training"]


def test_each_stage_trains_its_own_weights_on_a_schedule_of_its_own(staged, corpus, tools, tmp_path):
    config = config_of()
    before = contents(loop.build(config, corpus, tools).module)
    rates: list[float] = []
    method, _ = loop.train(config, corpus, tools, tmp_path, lambda state: rates.append(state.history[-1]["learning_rate"]))
    after = contents(method.module)
    changed = {name.split(".")[0] for name in before if before[name] != after[name]}
    assert {"reader", "head"} <= changed and "linear" not in changed
    assert rates[1] < 0.01 * 0.2 and rates[2] > rates[1], "cosine to zero, then a warm-up anew"


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_a_kill_in_any_stage_changes_no_byte(staged, corpus, tools, tmp_path, epochs):
    config = config_of()
    whole, expected = loop.train(config, corpus, tools, tmp_path / "whole")

    def kill(state: State) -> None:
        if state.epoch == epochs:
            raise Killed

    with pytest.raises(Killed):
        loop.train(config, corpus, tools, tmp_path / "killed", kill)
    seen: list[int] = []
    resumed, state = loop.train(config, corpus, tools, tmp_path / "killed", lambda state: seen.append(state.epoch))
    assert seen == list(range(epochs + 1, 6)), "it went on where it was, in its stage"
    assert contents(resumed.module) == contents(whole.module)
    assert state.history == expected.history and state.best_epoch == expected.best_epoch


def test_a_damaged_checkpoint_of_a_later_stage_starts_in_the_first(staged, corpus, tools, tmp_path):
    config = config_of()
    whole, expected = loop.train(config, corpus, tools, tmp_path / "whole")
    path = tmp_path / "whole" / CHECKPOINT
    stored = bytearray(path.read_bytes())
    stored[-1] ^= 1
    path.write_bytes(stored)
    again, state = loop.train(config, corpus, tools, tmp_path / "whole")
    assert contents(again.module) == contents(whole.module) and state.history == expected.history


def test_a_run_of_an_unlabelled_stage_alone_keeps_its_last_weights(staged, corpus, tools, tmp_path):
    config = config_of(method__answers=False)
    two, _ = loop.train(config_of(), corpus, tools, tmp_path / "two")
    one, state = loop.train(config, corpus, tools, tmp_path / "one")
    assert state.best_epoch == 2 and state.best_score is None
    assert contents(one.module)["reader.weight"] == contents(two.module)["reader.weight"]


def test_runs_that_agree_share_a_stage(staged, corpus, tools, tmp_path):
    common = tmp_path / "stages"
    first, _ = loop.train(config_of(), corpus, tools, tmp_path / "first", shared_stages=common)
    assert len(list(common.iterdir())) == 1
    for change in ({"method__width": 5}, {"training__epochs": 2}, {"method__share": 0.5}):
        alone, expected = loop.train(config_of(**change), corpus, tools, tmp_path / f"alone{change}")
        epochs: list[int] = []
        with_it, state = loop.train(
            config_of(**change), corpus, tools, tmp_path / f"with{change}", lambda s, to=epochs: to.append(s.epoch), common
        )
        assert epochs[0] == 2, "both epochs of the first stage at once"
        assert contents(with_it.module) == contents(alone.module) and state.history == expected.history
    assert len(list(common.iterdir())) == 1
    for change in ({"seed": 5}, {"method__first_epochs": 1}, {"data__fingerprint": "c"}):
        loop.train(config_of(**change), corpus, tools, tmp_path / f"other{change}", shared_stages=common)
    assert len(list(common.iterdir())) == 4


def test_a_damaged_shared_stage_is_named_and_made_anew(staged, corpus, tools, tmp_path, caplog):
    common = tmp_path / "stages"
    first, _ = loop.train(config_of(), corpus, tools, tmp_path / "first", shared_stages=common)
    (path,) = common.iterdir()
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    again, _ = loop.train(config_of(), corpus, tools, tmp_path / "again", shared_stages=common)
    assert contents(again.module) == contents(first.module) and len(path.read_bytes()) == len(sound)
    assert path.name in caplog.text and "making this stage anew" in caplog.text
    caplog.clear()
    loop.train(config_of(), corpus, tools, tmp_path / "third", shared_stages=common)
    assert not caplog.text, "what is there now is sound"


def test_what_decides_a_stage_is_in_its_name(staged, tmp_path):
    stage = config_of().stages[0]
    assert shared.path_of(tmp_path, stage) == shared.path_of(tmp_path, config_of(method__width=9).stages[0])
    assert shared.path_of(tmp_path, stage) != shared.path_of(tmp_path, config_of(training__batch_size=5).stages[0])


def test_shares_lie_within_each_other_and_keep_the_number_of_steps():
    units = [[place] for place in range(40)]
    tenth, half, other = (loop.share_of(units, share, seed) for share, seed in ((0.1, 1), (0.5, 1), (0.1, 2)))
    assert len(tenth) == len(half) == 40
    small, large = ({place for (place,) in drawn} for drawn in (tenth, half))
    assert len(small) == 4 and len(large) == 20 and small < large and small != {place for (place,) in other}
    assert loop.share_of(units, 1.0, 1) is units
    assert all(tenth.count([place]) == 10 for place in small)
