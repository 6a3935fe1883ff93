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

from cmpta_lib.embedded.generative import generative_models
from cmpta_lib.method import adapter as method
from cmpta_lib.report import rows as reports
from cmpta_lib.study import plan
from cmpta_lib.study.study import Study

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


EQUATIONS = {"1-2", "3-4", "5", "6", "7", "7, weights", "8", "9, input", "9", "9, quick", "answer"}
CHANGES: dict[str, dict[str, Any]] = {
    "the paper's settings": {},
    "eight tokens, one head": {"method.num_pseudo_tokens": 8, "method.num_heads": 1},
    "four tokens, pairs dropped": {"method.num_pseudo_tokens": 4, "method.token_count_rule": "repeat"},
    "maximum, projections per pair": {"method.summary": "max", "method.projections": "per_pair"},
    "pseudo tokens after the text": {"method.prompt.pseudo_token_position": "after_text"},
    "one direction": {"method.alignment": "lstm"},
    "no LSTM": {"method.alignment": "linear"},
    "no attention": {"method.fusion": "pooled"},
}
WITHOUT_AN_EQUATION = {"method.alignment", "method.fusion"}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=list(CHANGES))
def test_every_equation_is_computed_and_the_library_gives_the_same(changes: dict, teach, capsys):
    """In float32, as a share of the largest number; what takes an equation away is named, and the paper's is followed."""
    left = teach("02_model", "architecture", changes=changes)
    assert set(left["differences"]) == EQUATIONS and max(left["differences"].values()) <= 2e-6
    heads, tokens = changes.get("method.num_heads", 8), changes.get("method.num_pseudo_tokens", 6)
    assert left["pseudo"].shape == (tokens, left["backbone"].dim) and len(left["maps"]) == heads
    said, other = capsys.readouterr().out, [field for field in changes if field in WITHOUT_AN_EQUATION]
    assert said.count("This study has") == len(other)
    assert all(f"{field} = {changes[field]}. The equations follow the paper's" in said for field in other)


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


def test_the_reply_is_chosen_as_the_library_does_and_of_the_clip_that_01_draws(teach):
    left = teach("02_model", "architecture")
    assert left["reply"] == left["library"].reply and sum(left["probabilities"].values()) == pytest.approx(1)
    assert left["clip"].id == left["train"][teach("01_data", "def mark_cue")["places"][left["key"]]].id


def test_the_last_corpus_may_be_followed_as_the_lesson_proposes(teach):
    assert "**Try:** `key = study.keys[-1]`" in text_of("02_model")
    left = teach("02_model", "architecture", {"key = study.keys[0]": "key = study.keys[-1]"})
    assert left["corpus"].task.labels and len(left["answer"]) == 1 and set(left["differences"]) == EQUATIONS


@pytest.mark.parametrize("has_voice", [True, False])
def test_of_ones_own_clips_the_lessons_show_what_there_is(has_voice: bool, teach, tmp_path: Path, capsys):
    """A voice and no face, or words alone, where a generated clip is followed; and no best answer, which nobody knows."""
    folder = str(clips("calm loud".split().__getitem__, (2, 2, 2), tmp_path, has_face=False, has_voice=has_voice))
    left = teach("02_model", "architecture", data=folder)
    assert (left["corpus"].name == "embedded-sims") == (not has_voice) == bool(left["reason"])
    assert (left["modality"], left["pair"]) == (("audio", "t2") if has_voice else ("vision", "t1"))
    assert set(left["differences"]) == EQUATIONS
    left = teach("01_data", "figures = []", data=folder)
    page = left["draw_clip"](left["study"].corpus("data"), left["places"]["data"])
    assert (len(page.axes), [*page.axes[0].texts]) == (2, []) if has_voice else "has a face or a voice" in page
    assert left["generated"] == [] and left["best"] == {} and left["bounds_figure"] is None
    assert "Nobody knows these probabilities" in capsys.readouterr().out


def test_where_cmpta_cannot_run_a_generated_clip_is_followed(teach, monkeypatch, capsys):
    monkeypatch.setattr(Study, "missing", lambda study, row, key="": "no such LLM" if study.own_llm else "")
    left = teach("02_model", "architecture", llm="none")
    assert not left["lesson"].own_llm and set(left["differences"]) == EQUATIONS
    assert "no such LLM" in capsys.readouterr().out and left["not_here"]


def test_six_frames_in_reverse_order_show_something_else_and_have_the_same_mean(teach):
    left = teach("01_data", "figures = []")
    ways = left["ways"]
    assert len(ways) == 4 and ways["mean of the six"].nunique() == 2 and ways["first frame"].nunique() == 4
    for name, (as_they_are, after) in ways.groupby("corpus")["shown"].apply(list).items():
        cues = generative_models()[name].face
        order = dict(zip(cues.values, cues.halves, strict=True))
        assert order[as_they_are] == order[after][::-1] != order[after]


def test_a_drawn_clip_names_its_words_and_its_cues(teach):
    """And the best scores in the picture are those of the tables."""
    left = teach("01_data", "figures = []")
    study = left["study"]
    for key, place in left["places"].items():
        corpus = study.corpus(key)
        sample, page = corpus.splits["train"][place], left["draw_clip"](corpus, place)
        assert sample.text in page.title
        assert corpus.name == "embedded-meld" or "praise" in page.title or "blame" in page.title
        shown = [text.get_text() for axes in page.axes for text in axes.texts]
        assert shown == [f"the {cue} shows: {sample.extra[cue]}" for cue in ("face", "voice")]
        assert abs(sample.extra["bayes_text"] - sample.extra["bayes_all"]) > 0.5, "its cues change the best answer"
    for (key, metric), scores in left["best"].items():
        assert scores == reports.bayes(study, key, metric.name) and {"text", "face_voice", "all"} <= set(scores)
    assert left["generated"] == list(study.keys)
