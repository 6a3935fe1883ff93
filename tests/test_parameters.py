"""What a caller hands to a notebook: a misspelt name ends it before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from cmpta_lib.study.parameters import check_parameters

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
    after = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"][3:]
    assert len(after) >= 4 and set(after) == {None}, "nothing ran"
