"""A config names a run: equal settings, equal hash; any other setting, another; nothing misspelt is taken."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from cmpta_lib.config import (
    PAPER_SEEDS,
    AdapterConfig,
    DataConfig,
    RunConfig,
    TrainingConfig,
    from_json,
    override,
    to_json,
)

ROOT = Path(__file__).parents[1]
CONFIG = RunConfig(data=DataConfig(name="embedded-sims", fingerprint="abc"))


def leaves(cls: type = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Dotted path -> type, for every field of the tree."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        found |= leaves(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else {prefix + name: hint}
    return found


def value_at(config: RunConfig, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def other_value(path: str, hint: Any) -> Any:
    """A legal value that differs from the default."""
    value = value_at(CONFIG, path)
    if get_origin(hint) is Literal:
        return next(option for option in get_args(hint) if option != value)
    if path == "training.patience":
        return 3
    return {int: lambda: value * 2, float: lambda: value / 2, str: lambda: value + "x"}[hint]()


def test_the_defaults_are_table_2():
    assert (CONFIG.adapter.dim, CONFIG.adapter.num_pseudo_tokens) == (1024, 6)
    training = CONFIG.training
    assert (training.learning_rate, training.epochs, training.batch_size) == (5e-4, 150, 16)
    assert CONFIG.seed == PAPER_SEEDS[0] and PAPER_SEEDS == (1111, 2222, 3333, 4444, 5555)


# --- hash -------------------------------------------------------------------------------------------------------------


def test_the_hash_is_stable_over_processes():
    code = (
        "from cmpta_lib.config import *; "
        "print(RunConfig(seed=1111, data=DataConfig(fingerprint='abc', name='embedded-sims')).hash)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == CONFIG.hash
    assert len(CONFIG.hash) == 12 and int(CONFIG.hash, 16) >= 0


@pytest.mark.parametrize(("path", "hint"), leaves().items(), ids=str)
def test_every_field_changes_the_hash(path, hint):
    changed = override(CONFIG, {path: other_value(path, hint)})
    assert value_at(changed, path) != value_at(CONFIG, path)
    assert changed.hash != CONFIG.hash
    assert override(changed, {path: value_at(CONFIG, path)}).hash == CONFIG.hash


def test_equal_configs_have_equal_hashes():
    whole, point = (override(CONFIG, {"adapter.dropout": value}) for value in (0, 0.0))
    assert whole == point
    assert whole.hash == point.hash


# --- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"training.patience": 4, "data.name": "情感", "training.learning_rate": 1e-5}])
def test_json_gives_the_config_back(changes):
    config = override(CONFIG, changes)
    again = from_json(to_json(config))
    assert again == config and again.hash == config.hash


def test_json_is_readable():
    assert "情感" in to_json(override(CONFIG, {"data.name": "情感"}))


@pytest.mark.parametrize("where", [(), ("adapter",)])
def test_json_with_an_unknown_or_missing_field_is_refused(where):
    def changed(change) -> str:
        tree = json.loads(to_json(CONFIG))
        node = tree
        for name in where:
            node = node[name]
        change(node)
        return json.dumps(tree)

    with pytest.raises(ValueError, match="unknown fields.*colour"):
        from_json(changed(lambda node: node.update(colour="red")))
    name = "num_heads" if where else "seed"
    with pytest.raises(ValueError, match=f"missing fields.*{name}"):
        from_json(changed(lambda node: node.pop(name)))


def test_json_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="expected a table of fields"):
        from_json("[1, 2]")


# --- override ---------------------------------------------------------------------------------------------------------


def test_override_changes_what_it_says_and_nothing_else():
    changed = override(CONFIG, {"adapter.num_heads": 4, "seed": 2222})
    before, after = ({p: value_at(c, p) for p in leaves()} for c in (CONFIG, changed))
    assert {p for p in before if before[p] != after[p]} == {"adapter.num_heads", "seed"}
    assert CONFIG.seed == 1111


@pytest.mark.parametrize("path", ["heads", "adapter.heads", "adapter.num_heads.x", "colour.num_heads", "", "adapter."])
def test_override_of_an_unknown_field_lists_the_known_ones(path):
    with pytest.raises(ValueError) as caught:
        override(CONFIG, {path: 4})
    assert f"unknown config field '{path}'" in str(caught.value)
    assert all(known in str(caught.value) for known in leaves())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("adapter.num_heads", "4"),
        ("adapter.num_heads", 4.0),
        ("adapter.num_heads", True),
        ("adapter.dropout", "0.1"),
        ("adapter.dropout", True),
        ("adapter.dropout", None),
        ("adapter.alignment", "gru"),
        ("adapter.alignment", ["bilstm"]),
        ("training.patience", 2.5),
        ("data.name", 3),
        ("data.name", None),
        ("adapter", 5),
        ("seed", [1]),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(path, value):
    with pytest.raises(ValueError, match=path):
        override(CONFIG, {path: value})


def test_optional_and_whole_numbers_are_taken_where_they_fit():
    assert override(CONFIG, {"training.patience": 5}).training.patience == 5
    assert override(CONFIG, {"training.patience": None}).training.patience is None
    assert override(CONFIG, {"training.gradient_clip": 2}).training.gradient_clip == 2


# --- combinations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter.num_heads": 3}, "adapter.dim=1024 is not a multiple of adapter.num_heads=3"),
        ({"adapter.dim": 9, "adapter.num_heads": 3}, "adapter.dim=9 must be even"),
        ({"adapter.dim": 0}, "adapter.dim=0"),
        ({"adapter.num_pseudo_tokens": 0}, "adapter.num_pseudo_tokens=0"),
        ({"adapter.fusion": "pooled", "adapter.num_pseudo_tokens": 5}, "use an even count"),
        ({"adapter.dropout": 1.0}, "adapter.dropout=1.0"),
        ({"adapter.dropout": -0.1}, "adapter.dropout=-0.1"),
        ({"training.epochs": 0}, "training.epochs=0"),
        ({"training.batch_size": 0}, "training.batch_size=0"),
        ({"training.validate_every": 0}, "training.validate_every=0"),
        ({"training.num_threads": 0}, "training.num_threads=0"),
        ({"training.learning_rate": 0.0}, "training.learning_rate=0.0"),
    ],
)
def test_an_impossible_setting_is_refused_at_birth(changes, message):
    with pytest.raises(ValueError) as caught:
        override(CONFIG, changes)
    assert message in str(caught.value)


UNCHECKED = {
    "evaluation.batch_size": 0,
    "prompt.answer_decimals": -1,
    "prompt.max_text_tokens": -1,
    "training.warmup_fraction": 1.5,
    "training.gradient_clip": -1.0,
    "training.weight_decay": -0.1,
    "training.patience": -1,
    "training.learning_rate": float("nan"),
    "adapter.num_heads": -8,
}


@pytest.mark.parametrize(("path", "value"), UNCHECKED.items(), ids=str)
def test_a_senseless_number_is_refused_at_birth(path, value):
    with pytest.raises(ValueError, match=path):
        override(CONFIG, {path: value})


@pytest.mark.parametrize("build", [lambda: AdapterConfig(alignment="gru"), lambda: TrainingConfig(epochs=2.5)])
def test_a_wrong_choice_is_refused_by_the_constructor_too(build):
    with pytest.raises(ValueError):
        build()


def test_zero_heads_are_refused_in_words():
    with pytest.raises(ValueError, match="num_heads"):
        AdapterConfig(num_heads=0)


def test_configs_cannot_be_edited():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.adapter.dim = 8
