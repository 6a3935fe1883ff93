"""What runs are called: the row that asked for them, whatever asked, and what a caller has changed."""

from __future__ import annotations

import pytest
from finished import clips, record_llms, small_studies

from cmpta_lib import registry
from cmpta_lib.config import RunConfig, override
from cmpta_lib.study import plan
from cmpta_lib.study.naming import Name, names
from cmpta_lib.study.plan import NOTEBOOKS
from cmpta_lib.study.study import Study


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Study:
    with pytest.MonkeyPatch.context() as patch:
        root = record_llms(tmp_path_factory.mktemp("runs"))
        study = small_studies(root, patch)(seeds=1)
        for key in study.keys:
            study.corpus(key)
        return study


def expected(one: plan.Planned) -> str:
    """A row's name, which for versions says of which method, and for a search at which rate."""
    entry = registry.ENTRIES[one.row.method]
    is_version = one.row.changes and not one.row.llm and one.row.method != "cmpta"
    name = f"{entry.row}, {one.row.name}" if is_version else one.row.name
    return name if one.row.rate == 1 else f"{name}, learning rate × {one.row.rate:g}"


def test_every_run_of_the_plan_is_called_by_its_row(demo):
    """Also what keeps the settings here and in `Study.config` the same."""
    planned = demo.planned([notebook.name for notebook in NOTEBOOKS])
    called, everything = names(demo.root), [one for one in planned if not demo.missing(one.row, one.key)]
    found = {(one.key, expected(one)): str(called(demo.config(one.key, one.row, one.seed))) for one in everything}
    assert all(name == row for (_, row), name in found.items()), {k: v for k, v in found.items() if k[1] != v}
    assert len(found) == len(everything) > 90, "no two have one name"


def test_smoke_runs_and_runs_on_own_clips_are_called_alike(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("CMPTA_RUNS", str(demo.root))
    (tmp_path / "clips").mkdir()
    data = clips(lambda number: ("angry", "calm")[number % 2], (6, 4, 5), tmp_path / "clips")
    for study in (Study(smoke=True), Study(data=str(data), seeds=1)):
        called = names(study.root)
        for one in study.planned(["04_table3_simsv2", "06_table5_ablation_simsv2"]):
            assert str(called(study.config(one.key, one.row, one.seed))) == expected(one), study.root


def test_what_a_caller_changed_stands_behind_the_nearest_row(demo):
    called, config = names(demo.root), demo.config("sims")
    assert called(override(config, {"training.epochs": 9})) == Name("CMPTA", {"training.epochs": 9})
    seven = override(config, {"training.epochs": 9, "method.num_pseudo_tokens": 7})
    assert str(called(seven)) == "7 tokens, epochs=9"
    many = {"training.epochs": 9, "training.batch_size": 3, "method.dropout": 0.5, "training.patience": 4, "seed": 8}
    assert str(called(override(config, many))) == "CMPTA, dropout=0.5, epochs=9, 2 more fields"
    assert called(override(config, many)).changed == {name: value for name, value in many.items() if name != "seed"}


def test_another_backbone_or_seed_is_no_change(demo):
    other = override(demo.config("meld"), {"method.llm.name": "own", "method.llm.fingerprint": "f", "seed": 5})
    assert str(names(demo.root)(other)) == "CMPTA"


def test_a_method_of_ones_own_is_called_by_its_row(small, demo):
    config = RunConfig(data=demo.config("sims").data, method=small())
    assert names(demo.root)(config).row == "small"
    del registry.ENTRIES["small"]
    try:
        assert str(names(demo.root)(config)) == "small", "a config that is known, of a method that is not"
    finally:
        registry.register(small, "small_method:SmallMethod", row="small")


def test_a_damaged_record_of_a_dry_run_names_runs_as_if_there_were_none(demo, tmp_path):
    (tmp_path / "dry_run.json").write_text("{")
    assert str(names(tmp_path)(demo.config("sims"))) == "CMPTA"


def test_a_recorded_row_goes_before_a_nearer_one(demo):
    config = demo.config("sims")
    assert names(demo.root)(config, "7 tokens") == Name("7 tokens", {"method.num_pseudo_tokens": 6})
    assert str(names(demo.root)(config, "a row of another version")) == "CMPTA"
