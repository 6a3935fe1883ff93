"""What a set of exports says of itself: whether it is of one piece, where each item comes from, pages for any browser."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import nbformat
import pytest
from finished import finish_tables, record_llms, small_studies

from cmpta_lib.cli import pages
from cmpta_lib.report import comparison, gather, tables
from cmpta_lib.report import gather as addresses
from cmpta_lib.report import rows as reports
from cmpta_lib.study import check, exports
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


def test_the_report_links_the_executed_notebook(study):
    pages_folder = study.figures / "notebooks"
    pages_folder.mkdir()
    (pages_folder / "04_table3_simsv2.html").write_text("page")
    text = gather.write_report(study, study.keys).read_text(encoding="utf-8")
    assert "| [04_table3_simsv2](notebooks/04_table3_simsv2.html) | `cmpta reproduce --only 04_table3_simsv2` |" in text
    assert "| 01_data | `cmpta reproduce --only 01_data` |" in text


def test_an_item_is_called_as_in_the_paper():
    titles = {"table2_parameters": "Table 2, continued", "fig3_attention_sims": "Figure 3", "corpus_meld": "corpus meld"}
    assert {name: addresses.title(name) for name in titles} == titles


# --- pages ------------------------------------------------------------------------------------------------------------


def executed(folder: Path, random_id: str) -> Path:
    """An executed notebook as papermill leaves it: drawn ids, times, and a widget that no page can show."""
    v4 = nbformat.v4
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": random_id}, "text/plain": "a bar"}
    outputs = [v4.new_output("display_data", widget), v4.new_output("stream", text="0.251 <b>")]
    words = v4.new_markdown_cell("# What is <this>?\n\nWords.", id="a")
    cells = [words, v4.new_code_cell("1 + 1", id=random_id, outputs=outputs)]
    cells[1].metadata["papermill"] = {"start_time": random_id}
    path = folder / f"{random_id}.ipynb"
    nbformat.write(v4.new_notebook(cells=cells), path)
    return path


def test_the_same_outputs_make_the_same_page(tmp_path):
    made = []
    for number, name in enumerate(("abc", "xyz")):
        page = tmp_path / str(number) / "page.html"
        pages.write_page(executed(tmp_path, name), page)
        made.append(page.read_bytes())
    assert made[0] == made[1]
    text = made[0].decode()
    assert "<title>What is &lt;this&gt;?</title>" in text and "0.251 &lt;b&gt;" in text
    assert "a bar" not in text and "widget" not in text and "abc" not in text


def test_a_picture_that_is_exported_is_linked_and_any_other_held(tmp_path):
    v4, pictures = nbformat.v4, [b"\x89PNG exported", b"\x89PNG only shown"]
    (tmp_path / "fig1.png").write_bytes(pictures[0])
    shown = [v4.new_output("display_data", {"image/png": base64.b64encode(one).decode() + "\n"}) for one in pictures]
    cells = [v4.new_markdown_cell("# Q?"), v4.new_code_cell("f", outputs=shown)]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    pages.write_page(tmp_path / "a.ipynb", tmp_path / "notebooks" / "a.html")
    sources = re.findall(r'src="([^"]{,30})', (tmp_path / "notebooks" / "a.html").read_text(encoding="utf-8"))
    assert sources[0] == "../fig1.png" and sources[1].startswith("data:image/png;base64,") and len(sources) == 2


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
