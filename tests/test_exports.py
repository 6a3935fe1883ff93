"""What a set of exports says of itself: whether it is of one piece, where each item comes from, pages for any browser."""

from __future__ import annotations

import base64
import json
import re
import tempfile
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from finished import finish_tables, record_llms, small_studies

from cmpta_lib import files
from cmpta_lib.figures.style import new_figure, save_figure
from cmpta_lib.report import comparison, gather, pages, tables
from cmpta_lib.report import gather as addresses
from cmpta_lib.report import rows as reports
from cmpta_lib.report.claims import HERE, VERDICT
from cmpta_lib.report.export import recorded_hashes as exported_hashes
from cmpta_lib.report.judge import NOT_TESTABLE
from cmpta_lib.study import check, exports, plan
from cmpta_lib.study.study import WITHOUT, Study


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A smoke study with finished runs and Table 3 exported."""
    made = small_studies(record_llms(tmp_path / "runs"), monkeypatch)(smoke=True)
    finish_tables(made)
    table = tables.result_table(comparison.comparison_rows(made, "sims"), reports.scores_of(made, "sims"))
    reports.save_table(made, table, "table3", "Table 3.", ["sims"], made.needed("04_table3_simsv2"))
    return made


# --- of one piece -----------------------------------------------------------------------------------------------------


def test_a_report_of_other_runs_says_so_on_its_face(study):
    """Tables left by an earlier version of the code, whose runs have other hashes."""
    report = gather.write_report(study, study.keys)
    assert "Not all of one piece" not in report.read_text(encoding="utf-8")
    record = study.figures / "provenance.json"
    items = json.loads(record.read_text(encoding="utf-8"))
    items["table5"] = items["table3"] | {"runs": ["embedded-sims-000000000000"]}
    record.write_text(json.dumps(items))
    said = gather.write_report(study, study.keys).read_text(encoding="utf-8").split("\n\n")
    assert gather.made_otherwise(study, study.figures) == ["table5"]
    assert [part for part in said[:3] if part.startswith("**Not all of one piece:** table5 in this folder were made of other")]


# --- addresses --------------------------------------------------------------------------------------------------------


def test_every_table_and_figure_has_an_address(study):
    found = addresses.addresses(study).set_index("file")
    assert {"table1", "table2", "table3", "table6", "claims", "fig5_case_study", "corpus_sims", "corpus_meld"} <= set(found.index)
    assert "versions" not in found.index and "versions" in set(addresses.addresses(study, beyond=True)["file"])
    line = found.loc["table3"]
    assert line["item"] == "Table 3" and line["command"] == "cmpta reproduce --only 04_table3_simsv2"
    count = len(study.needed("04_table3_simsv2"))
    assert line["runs"] == str(count) and line["minutes"] == f"{count / 60:.1f}"  # each of them took a second
    assert line["status"] == "made" and found.loc["table1", "status"] == "not made" and found.loc["table1", "runs"] == "—"
    (study.needed("04_table3_simsv2")[0].folder / "seal.json").unlink()
    line = addresses.addresses(study).set_index("file").loc["table3"]
    assert line["status"] == "made; unfinished runs of its notebook: 1"
    items = json.loads((record := study.figures / "provenance.json").read_text(encoding="utf-8"))
    items["table3"]["runs"].append(study.run("sims", plan.added("sims")[0], study.seeds[0]).folder.name)
    record.write_text(json.dumps(items))
    line = addresses.addresses(study).set_index("file").loc["table3"]
    assert line["command"] == "cmpta reproduce --all", "the notebook itself makes no row beyond the paper"


def test_the_report_begins_with_what_came_out_and_links_the_executed_notebooks(study):
    pages_folder = study.figures / "notebooks"
    pages_folder.mkdir()
    for name in ("04_table3_simsv2.html", "04_table3_simsv2.ipynb", "10_claims.html"):
        (pages_folder / name).write_text("executed")
    verdicts = pd.DataFrame({VERDICT: [NOT_TESTABLE] * 4, HERE: ["supported", "one seed: not supported", "—", "not run"]})
    reports.save_table(study, verdicts, "claims", "Claims.", study.keys)
    text = gather.write_report(study, study.keys).read_text(encoding="utf-8")
    parts = text.split("\n\n")
    assert parts[2].startswith("[Which of the paper's claims hold here?](#which-of-the-papers-claims-hold-here) · [Comparison")
    assert parts[3] == "## Does the paper hold here?" and "Of 4 claims of the paper, 1 hold in this run, 1 do not" in parts[4]
    assert "cannot be tried here or wait for runs" in parts[4]
    assert "[10_claims](notebooks/10_claims.html)" in parts[4] and "this run's data and LLM can tell of 0" in parts[4]
    assert parts[5].splitlines()[0].startswith("|  | 🟩 supported | 🟥 not supported |")
    assert "[04_table3_simsv2](notebooks/04_table3_simsv2.ipynb)" in parts[6] and "| **CMPTA** |" in parts[7]
    assert not any(row.name in parts[7] for row in plan.added("sims")), "what `make reproduce` does not run"
    assert text.count("Generated data: ") == 1 and text.count("<details>") == text.count("</details>") > 2
    assert "[04_table3_simsv2](notebooks/04_table3_simsv2.ipynb) | `cmpta reproduce --only 04_table3_simsv2` |" in text
    assert "| 01_data | `cmpta reproduce --only 01_data` |" in text
    said = "\n".join(pages.lines(study.figures)).splitlines()
    assert said[1].startswith("CMPTA ") and said[3].startswith("best other ") and max(map(len, said)) <= 80


def test_a_picture_is_as_wide_as_its_letters_ask_and_says_what_it_shows(study):
    reports.save_figure(study, new_figure(3.3, 1, title="How \"sure\"", drawn="Dots.", footer="Data: x."), "reliability_sims")
    text = gather.write_report(study, study.keys).read_text(encoding="utf-8")
    assert '<img src="reliability_sims.png" width="429" alt="How &quot;sure&quot;. Dots.">' in text  # 3.3 inches of 6.9 in 897


def test_an_item_is_called_as_in_the_paper():
    titles = {"table2_parameters": "Table 2, continued", "fig3_attention_sims": "Figure 3", "corpus_meld": "corpus meld"}
    assert {name: pages.title(name) for name in titles} == titles


# --- pages ------------------------------------------------------------------------------------------------------------


def executed(folder: Path, random_id: str) -> Path:
    """An executed notebook as papermill leaves it: drawn ids, times, paths, and a widget that no page can show."""
    v4 = nbformat.v4
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": random_id}, "text/plain": "a bar"}
    kernel = f"{tempfile.gettempdir()}/ipykernel_{len(random_id)}/{len(random_id)}.py"
    printed = ("0.251 <b>", f" in {files.figures_folder()}/demo of {kernel}")
    streams = [v4.new_output("stream", text=one) for one in (printed if random_id == "abc" else ["".join(printed)])]
    words = "# What is <this>?\n\nWords $h_t = \\frac{a}{b}$ or `$x$`, $\\nosuch$.\n\n## Why, then?\n\n"
    words += "[a](02_model.ipynb) [b](x.ipynb)"
    cells = [v4.new_markdown_cell(words, id="a"), v4.new_code_cell("1 + 1", id=random_id)]
    cells += [v4.new_code_cell("p = 1", metadata={"jupyter": {"source_hidden": True}}, execution_count=len(random_id))]
    cells[1].outputs = [v4.new_output("display_data", widget), *streams]
    cells[1].metadata["papermill"] = {"start_time": random_id}
    path = folder / f"{random_id}.ipynb"
    nbformat.write(v4.new_notebook(cells=cells, metadata={"papermill": {"duration": random_id}}), path)
    return path


def test_the_same_outputs_make_the_same_page_and_notebook(tmp_path):
    made = []
    for number, name in enumerate(("abc", "wxyz")):
        page = tmp_path / str(number) / "notebooks" / "01_data.html"
        pages.write_page(executed(tmp_path, name), page, ["01_data", "02_model"])
        made.append((page.read_bytes(), page.with_suffix(".ipynb").read_bytes()))
        assert set(exported_hashes(page.parent.parent)) == {"notebooks/01_data.html", "notebooks/01_data.ipynb"}
    assert made[0] == made[1]
    text, notebook = (one.decode() for one in made[0])
    assert "<title>What is &lt;this&gt;?</title>" in text and "0.251 &lt;b&gt; in figures/demo of cell" in text
    for one in (text, notebook):
        assert not re.search("a bar|widget|abc|papermill|duration|/tmp", one)
    cells = nbformat.reads(notebook, as_version=4).cells
    assert [cell.get("execution_count") for cell in cells] == [None, 1, 2] and "[a](02_model.ipynb) b" in cells[0].source


def test_a_page_has_contents_links_folded_code_and_formulas_that_need_no_script(tmp_path):
    pages.write_page(executed(tmp_path, "abc"), tmp_path / "notebooks" / "01_data.html", ["01_data", "02_model"])
    text = (tmp_path / "notebooks" / "01_data.html").read_text(encoding="utf-8")
    assert '<nav id="contents"><a href="#Why,-then?">Why, then?</a></nav>' in text
    assert '<a href="02_model.html">a</a> b' in text and '<a href="02_model.html">Next: 02_model</a>' in text
    assert '<a href="../report.md">' in text and "<script" not in text and "prefers-color-scheme: dark" in text
    assert re.findall('<details class="code"( open)?', text) == [" open", ""]
    (drawn,) = re.findall(r'<svg aria-label="([^"]*)"', text)
    assert drawn == r"h_t = \frac{a}{b}" and "<code>$x$</code>" in text and r"<code>\nosuch</code>" in text


def test_pictures_are_linked_or_held_in_pixels_of_a_screen_and_say_what_they_show(tmp_path):
    v4, figures = nbformat.v4, [new_figure(3, 1, title=title, footer="Data: x.") for title in ("One.", "Two.")]
    save_figure(figures[0], tmp_path, "fig1")
    outputs = []
    for figure in figures:
        picture, size = figure._repr_png_()
        data = {"image/png": base64.b64encode(picture).decode()}
        outputs.append(v4.new_output("display_data", data, metadata={"image/png": size}))
    cells = [v4.new_markdown_cell("# Q?\n\n## Where?"), v4.new_code_cell("f", outputs=outputs)]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    pages.write_page(tmp_path / "a.ipynb", tmp_path / "notebooks" / "a.html")
    text = (tmp_path / "notebooks" / "a.html").read_text(encoding="utf-8")
    assert re.findall(r'alt="([^"]*)"', text) == ["One.", "Where?"]
    sources = re.findall(r'src="([^"]*)"', text)
    assert sources[0] == "../fig1.png" and sources[1].startswith("data:image/png;base64,") and len(sources) == 2
    (_, cell) = nbformat.read(tmp_path / "notebooks" / "a.ipynb", as_version=4).cells
    for output in cell.outputs:
        picture = base64.b64decode(output.data["image/png"])
        assert int.from_bytes(picture[16:20]) == output.metadata["image/png"]["width"] == 450
        assert len(picture) < (tmp_path / "fig1.png").stat().st_size


# --- one fault stops only what needs it -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoilt", "lost", "kept"),
    [("cache/data/embedded-sims-*/audio.f32", "sims", "meld"), ("cache/llm/tiny-bert-*/cmpta.json", "tiny-bert", "tiny")],
)
def test_what_is_damaged_takes_its_own_rows_and_the_report_says_why(study, spoilt, lost, kept, monkeypatch):
    (path,) = study.root.glob(spoilt)
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    fresh = Study(smoke=True)
    assert list(check.opened(fresh)) == [lost] and kept not in fresh.without
    monkeypatch.setenv(WITHOUT, json.dumps(fresh.without))  # as its notebooks are told
    rows = {key: comparison.comparison_rows(Study(smoke=True), key) for key in fresh.keys}
    missing = {row.method for found in rows.values() for row in found if row.note.startswith("runs/smoke/cache")}
    assert missing == (set() if lost == "sims" else {"Self-MM [25]", "MAG-BERT [26]"} | missing) and rows["meld"][-1].ran
    text = gather.write_report(fresh, fresh.keys, failures={"06_table5_ablation_simsv2": "a cell failed"}).read_text("utf-8")
    place, said = str(path.relative_to(study.root.parent)), text.replace("\\", "").replace("runs/", "")
    assert "**Left out, and all that needs it:** " in said and said.count(place) >= 1 and str(path) not in text
    reason = place if lost == "sims" else "a cell failed"
    assert f"(table5.md, ablation_sims.png: not made: {reason}" in said and "Not all of one piece" not in text


def test_exports_of_a_reproduction_that_does_not_end_well_are_kept_and_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CMPTA_FIGURES", str(tmp_path))
    killed = tmp_path / ".999999999.partial" / "demo"
    killed.mkdir(parents=True)
    (killed / "table3.md").write_text("of the killed one")
    with pytest.raises(RuntimeError, match="the report"), exports.collected("demo") as draft:
        (draft / "table4.md").write_text("of this one")
        raise RuntimeError("the report")
    place = tmp_path / "explored" / "demo"
    assert capsys.readouterr().err.count(f"is kept in {place}\n") == 2
    assert {path.name for path in place.iterdir()} == {"table3.md", "table4.md"} and list(tmp_path.iterdir()) == [place.parent]


def test_every_formula_of_the_notebooks_is_drawn_in_the_pages():
    """None falls back to its LaTeX: a page needs no script and no network."""
    for path in sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            text = re.sub(r"`[^`]*`", "", cell.source) if cell.cell_type == "markdown" else ""
            for shown, inline in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", text, re.DOTALL):
                assert "<svg" in pages._drawn(shown or inline), f"{path.name}: {shown or inline}"
