"""The notebooks as lessons: formulas and pictures, what to expect and what to try; and 02's equations, computed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import nbformat
import pytest
from finished import clips

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
    assert re.search(r"\b[Ee]xpect|\bBefore you run", text), "nothing is expected before it is seen"
    assert 1 <= text.count("**Try") <= 4, "one or two things to try"


@every_notebook
def test_every_link_leads_somewhere(name: str):
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


EQUATIONS = {"1-2", "3-4", "5", "6", "7", "7, weights", "8", "9, input", "9"}
WITHOUT_FRAMES, ATTENDED = {"1-2", "9, input", "9"}, {"6", "7", "7, weights", "8"}
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
    assert ("equation 4 does not apply" in said) == ("3-4" not in computed)
    assert ("Equations 6 and 7 do not apply" in said) == ("7" not in computed)


def test_the_paper_s_equations_stand_beside_their_code():
    """Each of (1) to (9) as a formula, with code in its section that is compared: the frames of (3) with those of (4)."""
    cells, found = nbformat.read(FOLDER / "02_model.ipynb", as_version=4).cells, ""
    for section in "\0".join(cell.cell_type[0] + cell.source for cell in cells).split("\0m## "):
        text, _, code = section.partition("\0c")
        tags = re.findall(r"\\tag\{(\d)\}", text)
        assert not tags or "compare(" in code or tags == ["3"], f"equation {tags} is not computed"
        found += "".join(tags)
    assert found == "123456789"


def test_the_lesson_s_llm_stays_as_it_is_and_its_adapter_moves(teach):
    left = teach("02_model", "architecture")
    assert left["frozen_before"] == left["frozen_after"] != left["adapter_before"] != left["adapter_after"]
    assert not any(weight.grad is not None for weight in left["backbone"].model.parameters())
    assert all(weight.grad is not None for weight in left["adapter"].parameters())
    columns, rows, last = left["columns"], len(left["rows_read"]), len(left["answer"])
    assert [said != "—" for said in columns["asked to say next"]] == [False] * (rows - last) + [True] * last
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
    folder = str(clips("calm loud".split().__getitem__, (2, 2, 2), tmp_path, has_face=False, has_voice=has_voice))
    left = teach("02_model", "architecture", data=folder)
    assert left["modality"] == ("audio" if has_voice else "") and left["pair"] == ("t2" if has_voice else "")
    assert set(left["differences"]) == (EQUATIONS if has_voice else WITHOUT_FRAMES)
    left = teach("01_data", "figures = []", data=folder)
    page = left["draw_clip"](left["study"].corpus("data"), left["places"]["data"])
    assert (len(page.axes), [*page.axes[0].texts]) == (2, []) if has_voice else "has a face or a voice" in page
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
