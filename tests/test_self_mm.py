"""Self-MM: the published numbers, labels that are made for one modality, and state that survives a kill."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import outputs
from golden import count, fill, given, published_size
from test_every_method import built, config_of
from torch import Tensor, nn

from cmpta_lib.baselines.self_mm import (
    SPACES,
    UNIMODAL,
    LabelTables,
    SelfMMConfig,
    SelfMMNet,
    moved_losses,
    multimodal_targets,
)
from cmpta_lib.baselines.supervised import reference
from cmpta_lib.data.corpus import Task
from cmpta_lib.runs import loop

# --- the public code's numbers: reference modules in eval mode, float32 CPU, torch 2.13 -------------------------------


def test_the_four_heads_give_the_golden_values():
    sizes = {"audio_hidden": 3, "audio_size": 2, "vision_hidden": 4, "vision_size": 3}
    features = {"fusion_features": 5, "text_features": 4, "audio_features": 3, "vision_features": 3}
    bert = nn.Module()
    bert.config = SimpleNamespace(hidden_size=6)  # its vector is given below
    net = SelfMMNet(bert, {"audio": 4, "vision": 5}, reference(SelfMMConfig(**sizes, **features)), 1).eval()
    fill([*net.parameters()], 0.8)
    frames = {"audio": (given(2, 2, 4, 4), torch.tensor([4, 2])), "vision": (given(3, 2, 5, 5), torch.tensor([3, 5]))}
    found = net.of_text(given(1, 2, 3, 6)[:, 0], frames)[1]  # type: ignore[arg-type]  # all that is read of `Clips`
    golden = {
        "fusion": [-0.987348, -0.887293],
        "text": [-0.885604, -1.306938],
        "audio": [-1.408452, -1.443397],
        "vision": [-1.369267, -1.361002],
    }
    for space, expected in golden.items():
        assert found[space][:, 0].tolist() == pytest.approx(expected, abs=1e-5)


Y = torch.tensor([0.8, -0.6, 0.2, -1.0])
SECOND = {
    "text": [0.484705, -0.866667, 0.329098, -0.659635],
    "audio": [0.933333, -0.866667, 0.194667, -0.908117],
    "vision": [0.824120, 0.466667, 0.191255, -0.986101],
}
THIRD = {
    "text": [0.405881, -0.933333, 0.361372, -0.574544],
    "audio": [0.966667, -0.933333, 0.193333, -0.885146],
    "vision": [0.830150, 0.733333, 0.189068, -0.982626],
}


def tables_of(labels: Tensor, features: dict[str, Tensor], bound: float = 1.0) -> LabelTables:
    """Tables of (N, C) labels with these features written and centres found."""
    tables = LabelTables({space: held.shape[1] for space, held in features.items()}, labels.shape[1], bound)
    tables.start(labels)
    tables.write(torch.arange(len(labels)), features)
    return tables


def golden_tables() -> tuple[LabelTables, dict[str, Tensor]]:
    features = {space: given(seed, 4, 2) for seed, space in enumerate(SPACES, 1)}
    return tables_of(Y[:, None], features), features


def assert_labels(tables: LabelTables, golden: dict[str, list[float]]) -> None:
    expected = torch.stack([Y, *(torch.tensor(golden[space]) for space in UNIMODAL)])
    torch.testing.assert_close(tables.targets[..., 0], expected, rtol=0, atol=2e-6)


def test_generated_labels_are_the_golden_ones_in_any_order_of_clips():
    tables, features = golden_tables()
    tables.update(torch.arange(4), features, 2)
    assert_labels(tables, SECOND)
    for rows in (torch.tensor([3, 0]), torch.tensor([2, 1])):
        tables.update(rows, {space: held[rows] for space, held in features.items()}, 3)
    assert_labels(tables, THIRD)


def test_the_weighted_losses_are_the_golden_ones():
    predicted = torch.tensor([0.5, -0.5, 0.1, -0.9])[:, None]
    assert (predicted[:, 0] - Y).abs().mean().item() == pytest.approx(0.15, abs=1e-6)
    for space, expected in {"text": 0.086775, "audio": 0.054677, "vision": 0.271359}.items():
        target = torch.tensor(THIRD[space])[:, None]
        assert moved_losses(predicted, target, Y[:, None]).mean().item() == pytest.approx(expected, abs=2e-6)


def test_it_has_the_published_number_of_parameters():
    net = published_size("self_mm")
    assert count(net.bert) == 102_267_648 and count(net) - count(net.bert) == 245_748


# --- label generation -------------------------------------------------------------------------------------------------


def test_without_clips_above_zero_the_former_centre_stays():
    neutral = {space: torch.tensor([[1.0], [2.0], [100.0]]) for space in SPACES}  # the last one belongs to neither
    assert tables_of(torch.tensor([[0.5], [-0.5], [0.0]]), neutral).centres_fusion.flatten().tolist() == [1.0, 2.0]
    tables, features = golden_tables()
    before = tables.centres_text.clone()
    tables.targets = -tables.targets.abs()
    tables.write(torch.arange(4), features)
    assert torch.equal(tables.centres_text[0], before[0]) and not torch.equal(tables.centres_text[1], before[1])
    tables.update(torch.arange(4), features, 2)
    assert tables.targets.isfinite().all()


@pytest.mark.parametrize("bound", [1.0, 3.0])
def test_fused_features_between_both_centres_lead_to_the_bound_and_no_further(bound):
    features = {space: torch.tensor([[1.0], [-1.0], [0.0], [0.0]]) for space in SPACES}
    tables = tables_of(torch.tensor([[1.0], [-1.0], [0.6], [0.0]]), features, bound)
    for space in UNIMODAL:
        features[space] = torch.tensor([[1.0], [-1.0], [0.5], [-0.5]])
    for epoch in range(2, 60):
        tables.update(torch.arange(4), features, epoch)
        assert tables.targets.isfinite().all() and tables.targets.abs().max() <= bound + 1e-6
    assert tables.targets[1, 2, 0].item() == pytest.approx(bound, rel=1e-2)


def test_a_class_stands_against_the_rest_as_positive_against_negative():
    labels = torch.tensor([2, 0, 1, 0])
    targets = multimodal_targets(labels, Task("classification", "en", ("a", "b", "c")))
    assert targets.tolist() == [[-1, -1, 1], [1, -1, -1], [-1, 1, -1], [1, -1, -1]]
    features = {space: given(seed, 4, 2) for seed, space in enumerate(SPACES, 1)}
    together = tables_of(targets, features)
    alone = [tables_of(targets[:, [column]], features) for column in range(3)]
    for tables in (together, *alone):
        tables.update(torch.arange(4), features, 2)
    torch.testing.assert_close(together.targets, torch.cat([tables.targets for tables in alone], dim=-1))
    assert not torch.equal(together.targets[1], targets)


# --- training ---------------------------------------------------------------------------------------------------------


def heads_gradient(method: Any, corpus, config, epoch: int) -> tuple[float, dict[str, float]]:
    """Largest gradient in the unimodal heads over an epoch's steps of 8 clips, and the last step's losses."""
    optimizer = loop.optimizer_of(method.groups(config.training), config.training)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    largest = 0.0
    for clips in torch.arange(20).split(8):
        losses = loop.step(method, optimizer, corpus.splits["train"], clips[:, None].tolist(), config.training, epoch)
        parts = [weight.grad for name in UNIMODAL for weight in method.net.heads[name].parameters()]
        largest = max(largest, *(float(part.abs().max()) for part in parts))
    return largest, losses


@pytest.mark.parametrize("world", ["embedded-sims", "embedded-meld"])
def test_heads_of_one_modality_learn_once_their_labels_have_moved(world, corpora, tools):
    corpus = corpora[world]
    method = built("self_mm", corpus, tools)
    config, tables = method.config, method.net.tables
    for epoch in (0, 1):  # a clip's label moves after its step, first in the second epoch
        assert all(torch.equal(tables.targets[number], tables.targets[0]) for number in (1, 2, 3))
        largest, losses = heads_gradient(method, corpus, config, epoch)
        assert largest == 0
        assert losses["train_fusion"] == pytest.approx(losses["train_loss"]) and losses["train_text"] == 0
    assert all(((tables.targets[number] - tables.targets[0]).abs() > 1e-3).any() for number in (1, 2, 3))
    largest, losses = heads_gradient(method, corpus, config, 2)
    assert list(losses) == ["train_loss", *(f"train_{name}" for name in SPACES)] and largest > 0 < min(losses.values())
    assert losses["train_loss"] == pytest.approx(sum(losses[f"train_{name}"] for name in SPACES), rel=1e-5)


def test_the_first_loss_is_the_plain_absolute_error(corpora, tools):
    corpus = corpora["embedded-sims"]
    method = built("self_mm", corpus, tools)
    samples = [*corpus.splits["train"]]
    loss = method.loss(method.collate(samples))
    errors = outputs(method, samples)[:, 0] - torch.tensor([sample.label for sample in samples])
    assert loss.total.item() == pytest.approx(errors.abs().sum().item(), rel=1e-5) and loss.count == 20


def test_parts_are_trained_as_the_public_code_groups_them(corpora, tools):
    method = built("self_mm", corpora["embedded-sims"], tools)
    groups = method.groups(method.config.training)
    assert [(group.rate, group.weight_decay) for group in groups] == [(0.05, 0.01), (0.05, 0), (1, 0), (1, 0), (1, None)]
    names = {id(weight): name for name, weight in method.net.named_parameters()}
    listed = [[names[id(weight)] for weight in group.parameters] for group in groups]
    assert sorted(sum(listed, [])) == sorted(names.values())
    assert all(name.endswith("weight") and "LayerNorm" not in name for name in listed[0])
    assert all(name.startswith("bert.") and ("bias" in name or "LayerNorm" in name) for name in listed[1])
    assert [{name.split(".")[1] for name in group} for group in listed[2:]] == [{"audio"}, {"vision"}, set(SPACES)]


def test_several_processes_are_refused(corpora, tools, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(loop.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="'self_mm' keeps .* expected one process, and torchrun started 2; start it"):
        loop.train(config_of("self_mm", {}), corpora["embedded-sims"], tools, tmp_path)


def test_a_clip_that_is_not_in_the_training_split_has_no_labels(corpora, tools):
    corpus = corpora["embedded-sims"]
    method = built("self_mm", corpus, tools)
    with pytest.raises(ValueError, match="clip stranger: Self-MM keeps labels of the 20 training clips"):
        method.loss(method.collate([replace(corpus.splits["train"][0], id="stranger")]))
