"""What a method's paper says of its optimiser reaches it: groups with rates of their own, decay, schedules, no clipping."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cmpta_lib.base import Group
from cmpta_lib.config import TrainingConfig
from cmpta_lib.runs import loop


def weights(count: int = 2) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(3)) for _ in range(count)]


def test_a_group_has_its_own_rate_and_decay():
    first, second = weights()
    config = TrainingConfig(optimizer="adam", weight_decay=0.5)
    groups = loop.optimizer_of([Group([first], 0.25), Group([second], weight_decay=0.0)], config).param_groups
    assert [group["rate"] for group in groups] == [0.25, 1.0] and [group["weight_decay"] for group in groups] == [0.5, 0.0]


@pytest.mark.parametrize(
    ("name", "kind", "amsgrad"),
    [("adamw", torch.optim.AdamW, False), ("adam", torch.optim.Adam, False), ("adamw_amsgrad", torch.optim.AdamW, True)],
)
def test_the_named_optimiser_is_taken(name, kind, amsgrad):
    made = loop.optimizer_of([Group(weights())], TrainingConfig(optimizer=name, epsilon=1e-4))
    assert type(made) is kind and made.defaults["eps"] == 1e-4 and made.defaults["amsgrad"] is amsgrad


@pytest.mark.parametrize("name", ["adamw", "adam", "adamw_amsgrad"])
def test_the_fused_optimiser_steps_as_the_plain_one(name):
    """Against torch's loop over single tensors, to float32 rounding."""
    config = TrainingConfig(optimizer=name, weight_decay=0.1)
    fused, plain = (loop.optimizer_of([Group(weights())], config) for _ in range(2))
    for group in plain.param_groups:
        group |= {"fused": False, "foreach": False}
    assert all(group["fused"] for group in fused.param_groups)
    for number in range(20):
        for optimizer in (fused, plain):
            generator = torch.Generator().manual_seed(number)
            for group in optimizer.param_groups:
                group["lr"] = 0.01
                for parameter in group["params"]:
                    parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
    for ours, theirs in zip(fused.param_groups[0]["params"], plain.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert not torch.equal(ours, weights()[0])


def test_a_constant_schedule_stays_after_its_warm_up():
    config = TrainingConfig(learning_rate=0.1, schedule="constant", warmup_fraction=0.1)
    assert loop.learning_rate(0, 100, config) == pytest.approx(0.01)
    assert {loop.learning_rate(step, 100, config) for step in (10, 50, 99, 500)} == {0.1}
    no_warm_up = TrainingConfig(learning_rate=0.1, schedule="constant", warmup_fraction=0.0)
    assert loop.learning_rate(0, 100, no_warm_up) == 0.1


def test_every_step_sets_the_rate_of_each_group(small, corpora, tools, monkeypatch, tmp_path):
    """Two groups, one at a tenth: the second's weights move a tenth as far in Adam's first step."""
    from test_held_out import config_of

    config = config_of("bilstm")
    seen: list[list[float]] = []
    step = loop.step

    def watched(method, optimizer, *rest):
        seen.append([group["lr"] for group in optimizer.param_groups])
        return step(method, optimizer, *rest)

    monkeypatch.setattr(loop, "step", watched)
    from cmpta_lib.baselines.reference import BiLSTM

    def in_two_groups(self, training):
        parts = list(self.module.parameters())
        return [Group(parts[:3]), Group(parts[3:], 0.1)]

    monkeypatch.setattr(BiLSTM, "groups", in_two_groups)
    loop.train(config, corpora["embedded-sims"], tools, tmp_path)
    assert seen and all(slow == pytest.approx(0.1 * fast) for fast, slow in seen) and seen[0][0] > 0


def test_gradients_are_clipped_only_where_the_settings_say_so(corpora, tools):
    from test_held_out import config_of

    split = corpora["embedded-sims"].splits["train"]
    norms = {}
    for clip in (1e-3, None):
        config = config_of("bilstm")
        method = loop.build(config, corpora["embedded-sims"], tools)
        optimizer = loop.optimizer_of(method.groups(config.training), config.training)
        settings = config.training.model_copy(update={"gradient_clip": clip})
        loop.step(method, optimizer, split, [[0], [1], [2]], settings)
        norms[clip] = torch.nn.utils.get_total_norm([p.grad for p in method.module.parameters() if p.grad is not None]).item()
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-2) and norms[None] > 1e-2
