"""A config names a run: equal settings, equal hash; any other setting, another; nothing misspelt is taken."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from cmpta_lib.config import (
    PAPER_SEEDS,
    CmptaConfig,
    DataConfig,
    MethodConfig,
    RunConfig,
    Settings,
    TextOnlyConfig,
    from_json,
    override,
    paths,
    to_json,
)

CONFIG = RunConfig(data=DataConfig(name="embedded-sims", fingerprint="abc"))
TEXT_ONLY = RunConfig(data=CONFIG.data, method=TextOnlyConfig())


def leaves(node: BaseModel = CONFIG, prefix: str = "") -> dict[str, Any]:
    """Dotted path -> type, for every field of the tree."""
    found: dict[str, Any] = {}
    for name, field in type(node).model_fields.items():
        value = getattr(node, name)
        inner = isinstance(value, BaseModel)
        found |= leaves(value, f"{prefix}{name}.") if inner else {prefix + name: field.annotation}
    return found


def settable() -> dict[str, Any]:
    """All but the two fields of which a method's class allows one value alone."""
    return {path: hint for path, hint in leaves().items() if path not in ("method.name", "method.recipe")}


def value_at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def other_value(path: str, hint: Any) -> Any:
    """A legal value that differs from the default."""
    value = value_at(CONFIG, path)
    if get_origin(hint) is Literal:
        return next(option for option in get_args(hint) if option != value)
    if value is None:  # patience: whole numbers are legal too
        return 3
    return {int: lambda: value * 2, float: lambda: value / 2, str: lambda: value + "x"}[type(value)]()


def test_the_defaults_are_table_2_and_their_hash_is_what_it_was():
    """Runs are found by it, so it is the same in every process and version."""
    training = CONFIG.training
    assert (CONFIG.method.dim, CONFIG.method.num_pseudo_tokens) == (1024, 6)
    assert (training.learning_rate, training.epochs, training.batch_size) == (5e-4, 150, 16)
    assert CONFIG.seed == PAPER_SEEDS[0] and PAPER_SEEDS == (1111, 2222, 3333, 4444, 5555)
    assert CONFIG.hash == "8b5e77a3a223" and len(CONFIG.hash) == 12


# --- hash -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "hint"), settable().items(), ids=settable())
def test_every_field_changes_the_hash(path, hint):
    changed = override(CONFIG, {path: other_value(path, hint)})
    assert value_at(changed, path) != value_at(CONFIG, path)
    assert changed.hash != CONFIG.hash
    assert override(changed, {path: value_at(CONFIG, path)}).hash == CONFIG.hash


def test_another_method_has_another_hash_and_other_fields_and_paths_name_those_that_hold_a_value():
    assert list(paths(CONFIG)) == list(leaves()) and set(paths(TEXT_ONLY)) == set(leaves(TEXT_ONLY)) < set(leaves())
    assert TEXT_ONLY.hash != CONFIG.hash and (CONFIG.method.name, TEXT_ONLY.method.name) == ("cmpta", "text_only")
    with pytest.raises(ValueError, match=r"no config field 'method\.dim'"):
        override(TEXT_ONLY, {"method.dim": 8})


def test_equal_configs_have_equal_hashes():
    whole, point, minus = (override(CONFIG, {"method.dropout": value}) for value in (0, 0.0, -0.0))
    assert whole == point == minus and whole.hash == point.hash == minus.hash


@pytest.fixture
def own_method():
    """Settings of a method that this test defines; forgotten afterwards."""

    class OwnConfig(MethodConfig):
        name: Literal["own"] = "own"
        recipe: Literal[3] = 3
        width: int = 4

    yield OwnConfig
    del MethodConfig.known["own"]


def test_a_method_of_ones_own_is_known_once_its_settings_are_defined(own_method):
    config = RunConfig(data=CONFIG.data, method=own_method())
    assert from_json(to_json(config)) == config and type(from_json(to_json(config)).method) is own_method
    assert override(config, {"method.width": 9}).method.width == 9
    del MethodConfig.known["own"]
    with pytest.raises(ValueError, match="no method 'own'; one of your own is known once .*CMPTA_METHODS"):
        from_json(to_json(config))
    MethodConfig.known["own"] = own_method


def test_a_raised_recipe_changes_the_hashes_of_its_own_method_only(own_method):
    class Mended(own_method):
        recipe: Literal[4] = 4

    old, new = (RunConfig(data=CONFIG.data, method=method()) for method in (own_method, Mended))
    assert old.hash != new.hash
    with pytest.raises(ValueError, match=r"method\.recipe=3: Input should be 4"):
        from_json(to_json(old))


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_json_is_readable_and_gives_the_config_back():
    changed = override(CONFIG, {"training.patience": 4, "data.name": "情感", "training.learning_rate": 1e-5})
    for config in (CONFIG, changed):
        again = from_json(to_json(config))
        assert again == config and again.hash == config.hash
    assert "情感" in to_json(changed)


@pytest.mark.parametrize("missing", ["seed", "method.num_heads", "method.llm.dtype"])
def test_json_with_an_unknown_or_missing_field_is_refused(missing):
    *where, name = missing.split(".")
    node = tree = json.loads(to_json(CONFIG))
    for step in where:
        node = node[step]
    with pytest.raises(ValueError, match=r"colour='red': Extra inputs are not permitted"):
        node["colour"] = "red"
        from_json(json.dumps(tree))
    del node["colour"], node[name]
    with pytest.raises(ValueError, match=f"missing fields {missing}$"):
        from_json(json.dumps(tree))


NO_METHODS = [None, 5, "cmpta", [], {}, {"name": None}, {"name": ["cmpta"]}, {"name": "x"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", r"config=\[1, 2\]: Input should be a valid dictionary"),
        ("{", "expected a run's config as JSON"),
        *((json.dumps(json.loads(to_json(CONFIG)) | {"method": method}), "^method") for method in NO_METHODS),
    ],
)
def test_json_of_another_shape_or_with_something_else_for_a_method_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        from_json(text)


# --- override ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["heads", "method", "method.heads", "method.num_heads.x", "colour.num_heads", "", "method."])
def test_override_of_an_unknown_field_says_where_the_known_ones_are(path):
    with pytest.raises(ValueError) as caught:
        override(CONFIG, {path: 4})
    assert f"no config field '{path}'" in str(caught.value)
    assert "; `cmpta fields` lists all" in str(caught.value) and len(str(caught.value)) < 300
    assert ("did you mean 'method.num_heads'" in str(caught.value)) == ("heads" in path)


WRONG = {  # path -> values of the wrong type, and senseless numbers
    "method.num_heads": ("4", 4.0, True, -8), "method.dropout": ("0.1", True, None, 1.0, -0.1),
    "method.alignment": ("gru", ["bilstm"]), "method.dim": (0,), "method.num_pseudo_tokens": (0,),
    "data.name": (3, None), "seed": ([1],), "evaluation.batch_size": (0,), "method.prompt.answer_decimals": (-1,),
    "method.prompt.max_text_tokens": (-1,), "training.patience": (2.5, -1), "training.warmup_fraction": (1.5,),
    "training.gradient_clip": (-1.0,), "training.weight_decay": (-0.1,), "training.learning_rate": (float("nan"), 0.0),
    "training.epochs": (0,), "training.batch_size": (0,), "training.validate_every": (0,), "training.num_threads": (0,),
}  # fmt: skip


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_by_name(path, value):
    with pytest.raises(ValueError) as caught:
        override(CONFIG, {path: value})
    assert f"{path}={value!r}: " in str(caught.value)


def test_override_changes_what_it_says_and_nothing_else_and_takes_whole_and_no_numbers_where_they_fit():
    for changes in ({"method.num_heads": 4, "seed": 2222}, {"training.patience": 5, "training.gradient_clip": 2}):
        changed = override(CONFIG, changes)
        assert {p: value_at(changed, p) for p in leaves() if value_at(changed, p) != value_at(CONFIG, p)} == changes
        assert override(changed, {"training.patience": None, "training.gradient_clip": None}).training.patience is None
    assert CONFIG.seed == 1111


# --- combinations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method.num_heads": 3}, "method: dim=1024 is not a multiple of num_heads=3"),
        ({"method.dim": 9, "method.num_heads": 3}, "method.dim=9: Input should be a multiple of 2"),
        ({"method.fusion": "pooled", "method.num_pseudo_tokens": 5}, "use an even count"),
        ({"data.name": "a\ud800"}, r"data.name='a\ud800': text that cannot be written as UTF-8"),
    ],
)
def test_an_impossible_setting_is_refused_at_birth(changes, message):
    with pytest.raises(ValueError) as caught:
        override(CONFIG, changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("settings", "wrong"), [(CmptaConfig, {"heads": 4}), (RunConfig, {"data": CONFIG.data, "method": 3})])
def test_a_wrong_choice_is_refused_by_the_constructor_too(settings, wrong):
    with pytest.raises(ValueError):
        settings(**wrong)


def subclasses(of: type) -> set[type]:
    return {of}.union(*(subclasses(child) for child in of.__subclasses__()))


def test_configs_cannot_be_edited():
    with pytest.raises(ValidationError, match="frozen"):
        CONFIG.method.dim = 8
    assert all(cls.model_config["frozen"] for cls in subclasses(Settings))


def test_a_refusal_is_one_line_that_names_every_wrong_field():
    with pytest.raises(ValueError) as caught:
        override(CONFIG, {"training.epochs": 0, "method.llm.dtype": "half", "seed": -1})
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in ("training.epochs=0: ", "method.llm.dtype='half': ", "seed=-1: "))
