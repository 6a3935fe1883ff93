"""The notebooks as lessons: formulas and pictures, what to expect and what to try; and 02's equations, computed."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from finished import clips as clips_of_ones_own

from cmpta_lib.data.corpus import Task
from cmpta_lib.figures import clips
from cmpta_lib.method import adapter as method
from cmpta_lib.report import rows as reports
from cmpta_lib.study import plan

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = [notebook.name for notebook in plan.NOTEBOOKS]
DRAWS = re.compile(r"\w+_figure\(|\bnew_figure\(|\bsave_figure\(|\.subplots\(")
SHAPES = re.compile(r"\.shape\b|\bshapes\(")

every_notebook = pytest.mark.parametrize("name", NAMES)


def cells_of(name: str, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells if cell.cell_type == kind]


def text_of(name: str) -> str:
    return "\n\n".join(cell.source for cell in cells_of(name, "markdown"))


@every_notebook
def test_a_lesson_shows_its_subject(name: str):
    """A formula, a shape or a drawing; a number is expected before it is seen; and there is something to try."""
    text, code = text_of(name), "\n".join(cell.source for cell in cells_of(name, "code"))
    assert re.search(r"\$[^$]*[\\=^_][^$]*\$", text) or DRAWS.search(code) or SHAPES.search(code), "only tables"
    assert re.search(r"\bexpect", text, re.IGNORECASE), "nothing is expected before it is seen"
    assert 1 <= text.count("**Try") <= 4, "one or two things to try"


@every_notebook
def test_a_lesson_begins_with_its_parameters_its_imports_and_its_study(name: str):
    parameters, imports, first = cells_of(name, "code")[:3]
    assert parameters.metadata["tags"] == ["parameters"] and parameters.metadata["jupyter"] == {"source_hidden": True}
    assert all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(imports.source).body), (
        "imports alone"
    )
    assert first.source.startswith("check_parameters(In)") and re.search(
        r"^study = Study\(profile, ", first.source, re.MULTILINE
    )


@every_notebook
def test_a_lesson_ends_with_links_to_its_neighbours_and_its_links_lead_somewhere(name: str):
    place, last = NAMES.index(name), text_of(name).strip().splitlines()[-1]
    wanted = {
        "Previous": NAMES[place - 1] if place else None,
        "Next": NAMES[place + 1] if place + 1 < len(NAMES) else None,
    }
    found = dict(re.findall(r"(Previous|Next): \[[^\]]+\]\((\w+)\.ipynb\)", last))
    assert found == {way: neighbour for way, neighbour in wanted.items() if neighbour}, last
    for link in re.findall(r"\]\(([^)#\s]+)", text_of(name)):
        assert re.match(r"https?://", link) or (FOLDER / link).exists(), link


@pytest.fixture(scope="module")
def runs(tmp_path_factory, smoke_models: Path) -> Path:
    """A runs folder with the LLM of smoke runs in its cache, and no run: the lessons need none."""
    folder = tmp_path_factory.mktemp("lessons")
    shutil.copytree(smoke_models, folder / "smoke" / "cache" / "llm", dirs_exist_ok=True)
    return folder


@pytest.fixture
def teach(runs: Path, monkeypatch):
    """Runs a notebook's cells up to the one that begins with `until`, some text replaced; the names that they leave."""
    monkeypatch.setenv("CMPTA_RUNS", str(runs))
    monkeypatch.chdir(FOLDER)

    def taught(name: str, until: str, replaced: Mapping[str, str] | None = None, **given: object) -> dict[str, Any]:
        left: dict[str, Any] = {"In": [], "display": lambda *shown: None}
        for number, cell in enumerate(cells_of(name, "code")):
            if cell.source.startswith(until):
                return left
            source = reduce(lambda text, change: text.replace(*change), (replaced or {}).items(), cell.source)
            exec(compile(source, f"{name}, code cell {number}", "exec"), left)
            left |= {"smoke": True, **given} if number == 0 else {}
        raise AssertionError(f"no cell of {name} begins with {until}")

    return taught


EQUATIONS = {"1-2", "3-4", "5", "6", "7", "7, weights", "8", "input", "9"}
FRAMES = {"1-2", "input", "9"}
ATTENDED = {"6", "7", "7, weights", "8"}
CHANGES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "the paper's settings": ({}, EQUATIONS),
    "eight tokens, one head": ({"method.num_pseudo_tokens": 8, "method.num_heads": 1}, EQUATIONS),
    "four tokens, pairs dropped": ({"method.num_pseudo_tokens": 4, "method.token_count_rule": "repeat"}, EQUATIONS),
    "maximum, projections per pair": ({"method.summary": "max", "method.projections": "per_pair"}, EQUATIONS),
    "pseudo tokens after the text": ({"method.prompt.pseudo_token_position": "after_text"}, EQUATIONS),
    "one direction": ({"method.alignment": "lstm"}, EQUATIONS - {"3-4"}),
    "no LSTM": ({"method.alignment": "linear"}, EQUATIONS - {"3-4"}),
    "no attention": ({"method.fusion": "pooled"}, EQUATIONS - ATTENDED),
}


@pytest.mark.parametrize("changes, computed", CHANGES.values(), ids=list(CHANGES))
def test_every_equation_is_computed_and_the_library_gives_the_same(changes: dict, computed: set[str], teach, capsys):
    """In float32, as a share of the largest number; where a change takes an equation away, the notebook says so."""
    left = teach("02_model", "architecture", changes=changes)
    assert set(left["differences"]) == computed and max(left["differences"].values()) <= 1e-6
    heads, tokens = changes.get("method.num_heads", 8), changes.get("method.num_pseudo_tokens", 6)
    assert left["pseudo"].shape == (tokens, left["backbone"].dim)
    assert len(left["maps"]) == (heads if "7" in computed else 0)
    said = capsys.readouterr().out
    assert ("equation 4 does not apply" in said, "Equations 6 and 7 do not apply" in said) == (
        "3-4" not in computed, "7" not in computed
    )  # fmt: skip


def test_the_paper_s_equations_stand_beside_their_code():
    """Each of (1) to (9) as a formula, and behind it, before the next text, code that is compared with the library."""
    cells, found = nbformat.read(FOLDER / "02_model.ipynb", as_version=4).cells, list[str]()
    for place, cell in enumerate(cells):
        tags = re.findall(r"\\tag\{(\d)\}", cell.source) if cell.cell_type == "markdown" else []
        code = ""
        for following in cells[place + 1 :]:
            if following.cell_type == "markdown" and re.search(r"^## ", following.source):
                break
            code += following.source if following.cell_type == "code" else ""
        assert not tags or "(T, F)" in code or "compare(" in code, f"equation {tags} is not computed"
        found += tags
    assert found == [*"123456789"]


def test_the_lesson_s_llm_stays_as_it_is_and_its_adapter_moves(teach):
    left = teach("02_model", "architecture")
    assert left["frozen_before"] == left["frozen_after"] != left["adapter_before"] != left["adapter_after"]
    assert not any(weight.grad is not None for weight in left["backbone"].model.parameters())
    assert all(weight.grad is not None for weight in left["adapter"].parameters())
    columns = left["columns"]
    last = len(left["answer"])
    assert [said != "—" for said in columns["asked to say next"]] == [False] * (len(left["rows_read"]) - last) + [
        True
    ] * last
    assert columns["content"][columns["what"].index("pseudo token") :][:6] == [*method.PAIRS]


def test_a_library_that_errs_is_found(teach, monkeypatch):
    """With values of another modality equation 7 no longer holds, and the notebook stops there."""
    right = method.CrossModalAttention.forward
    monkeypatch.setattr(method.CrossModalAttention, "forward", lambda self, pair, y, x: right(self, pair, y, 1.001 * x))
    with pytest.raises(AssertionError):
        teach("02_model", "architecture")


def test_the_last_corpus_may_be_followed_as_the_lesson_proposes(teach):
    assert "**Try:** `key = study.keys[-1]`" in text_of("02_model")
    left = teach("02_model", "architecture", {"key = study.keys[0]": "key = study.keys[-1]"})
    assert left["corpus"].task.labels and len(left["answer"]) == 1 and set(left["differences"]) == EQUATIONS


@pytest.mark.parametrize("has_voice", [True, False])
def test_of_ones_own_clips_the_lessons_show_what_there_is(has_voice: bool, teach, tmp_path: Path, capsys):
    """A voice and no face, or words alone; and no best answer, which nobody knows of them."""
    label = lambda number: ("calm", "loud")[number % 2]  # noqa: E731
    folder = clips_of_ones_own(label, (6, 4, 6), tmp_path, has_face=False, has_voice=has_voice)
    left = teach("02_model", "architecture", data=str(folder))
    assert left["modality"] == ("audio" if has_voice else "") and left["pair"] == ("t2" if has_voice else "")
    assert set(left["differences"]) == (EQUATIONS if has_voice else FRAMES)
    left = teach("01_data", "figures = []", data=str(folder))
    (page,) = (left["draw_clip"](left["study"].corpus("data"), place) for place in left["places"].values())
    assert (
        len(page.axes) == 2
        if has_voice
        else page == "data: no training clip has a face or a voice" or "no training" in page
    )
    assert left["generated"] == [] and left["best"] == {} and left["bounds_figure"] is None
    assert "Nobody knows these probabilities" in capsys.readouterr().out


def test_a_drawn_clip_names_its_words_and_its_cues(teach):
    """And the best scores in the picture are those of the tables."""
    left = teach("01_data", "figures = []")
    study = left["study"]
    for key, place in left["places"].items():
        corpus = study.corpus(key)
        sample, page = corpus.splits["train"][place], left["draw_clip"](corpus, place)
        assert sample.text in page.title
        shown = [text.get_text() for axes in page.axes for text in axes.texts]
        assert shown == [f"the {cue} shows: {sample.extra[cue]}" for cue in ("face", "voice")]
        assert abs(sample.extra["bayes_text"] - sample.extra["bayes_all"]) > 0.5, "its cues change the best answer"
    for (key, metric), scores in left["best"].items():
        assert scores == reports.bayes(study, key, metric.name) and {"text", "face_voice", "all"} <= set(scores)
    assert left["generated"] == list(study.keys)


def test_what_stands_out_is_counted(teach):
    """The label whose share differs most between splits, with what chance alone would do to each share."""
    shares = {"train": [0] * 50 + [1] * 50, "valid": [0, 1], "test": [1] * 9 + [2]}
    splits = {name: SimpleNamespace(table=pd.DataFrame({"label": labels})) for name, labels in shares.items()}
    corpus = SimpleNamespace(name="c", splits=splits, task=Task("classification", "en", ("calm", "loud", "sad")))
    (cell,) = (cell.source for cell in cells_of("01_data", "code") if cell.source.startswith("def stands_out"))
    left = {"pd": pd, "np": np, "clips": clips, "study": SimpleNamespace(keys=[])}
    exec(cell, left)
    assert left["stands_out"](corpus) == (
        "c: the label calm has 50.0 ± 5.0 % of train, 50.0 ± 35.4 % of valid, 0.0 ± 0.0 % of test"
    )
