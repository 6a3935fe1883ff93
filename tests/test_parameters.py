"""What a caller hands to notebooks and studies: misspelt names and impossible changes end before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from cmpta_lib.study.parameters import changes_suffix, check_parameters, checked_changes
from cmpta_lib.study.study import Study

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
DEFAULTS = 'profile = "demo"  # which\nseeds = None  # how many = many\nsmoke = False  # a few'
LAST = "check_parameters(In)"


def injected(text: str) -> list[str]:
    return ["", DEFAULTS, f"# Parameters\n{text}\n", LAST]


def test_a_misspelt_parameter_names_the_nearest_and_all():
    with pytest.raises(ValueError) as caught:
        check_parameters(injected("sedes = 2\nsmoke = True\nxyz = 1"))
    said = "no parameter 'sedes' (did you mean 'seeds'?), 'xyz'; this notebook has: profile, seeds, smoke"
    assert str(caught.value) == said


@pytest.mark.parametrize(
    "cells",
    [
        ["", DEFAULTS, LAST],  # Jupyter, nothing injected
        injected("seeds = [1, 2]\nsmoke = True"),
        ["", "%matplotlib inline", DEFAULTS, "display(1)", "# Parameters\nseeds = 2", LAST],  # run cell by cell
        [LAST],
    ],
)
def test_known_parameters_pass(cells):
    check_parameters(cells)


def test_papermill_stops_at_a_misspelt_parameter(tmp_path):
    """It would warn and run everything with its defaults: hours, in profile paper."""
    out = tmp_path / "out.ipynb"
    with pytest.raises(PapermillExecutionError, match=r"no parameter 'sedes' \(did you mean 'seeds'\?\); this notebook"):
        papermill.execute_notebook(
            str(NOTEBOOKS / "05_table4_meld.ipynb"), str(out), {"sedes": 2}, progress_bar=False, kernel_name="python3"
        )
    cells = json.loads(out.read_text(encoding="utf-8"))["cells"]
    assert [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"][3:] == [None] * 4, "nothing ran"


@pytest.mark.parametrize("nothing", [None, {}, "", "{}"])
def test_no_changes_change_nothing(nothing):
    assert Study(changes=nothing).changes == {} and Study(changes=nothing).figures.name == "demo"


def test_changes_may_come_as_papermill_hands_them_over():
    wanted = {"training.epochs": 3, "training.patience": None}
    assert checked_changes("{'training.epochs': 3, 'training.patience': None}") == wanted == checked_changes(wanted)
    assert checked_changes('{"training.epochs": 3, "training.patience": null}') == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.epoch": 3}, r"no method has the config field 'training.epoch' \(did you mean 'training.epochs'\?\); known: "),
        ({"training.epochs": "three"}, "training.epochs='three'"),
        ("training.epochs: 3", r'expected fields with values, such as \{"training.epochs": 3\}'),
        ("{'training.epochs'", "expected fields with values"),
        ({3: 4}, "expected fields with values"),
        ({"seed": 3}, "'seed' is set by the argument `seeds`"),
        ({"method.llm.name": "tiny"}, "'method.llm.name' is set by the argument `llm`"),
    ],
)
def test_impossible_changes_are_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        Study(changes=changes)


def test_changed_outputs_have_folders_of_their_own():
    names = [
        Study(changes=changes).figures.name
        for changes in (None, {"training.epochs": 3}, {"training.epochs": 4}, {"method.summary": "max"})
    ]
    assert names == ["demo", "demo-training.epochs=3", "demo-training.epochs=4", "demo-method.summary=max"]


def test_long_or_odd_changes_stay_apart_in_a_short_name():
    many = {f"training.{n}": n for n in ("epochs", "batch_size", "learning_rate", "weight_decay")}
    first, second = changes_suffix(many), changes_suffix(many | {"training.weight_decay": "else"})
    assert first != second and max(map(len, (first, second))) < 60
    assert changes_suffix({"a": "x/y"}) != changes_suffix({"a": "x_y"}) and "/" not in changes_suffix({"a": "x/y"})
