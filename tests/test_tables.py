"""Result tables from rows: what is computed, marked and said, and the files they are exported to."""

import html
import io
import os
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from nbconvert.filters import markdown2html_mistune

from cmpta_lib import paper
from cmpta_lib.files import ROOT
from cmpta_lib.report.export import Provenance, export_table
from cmpta_lib.report.tables import Shown, Table, kind_of, result_table, sentence, to_markdown
from cmpta_lib.report.uncertainty import ResultRow, within_noise

TRUTH = np.array([0.0, 0.2, -0.4, 1.0])
PREDICTIONS = np.array([[0.1, 0.2, -0.4, 0.9], [0.1, 0.1, -0.3, 0.9]])  # MAE 0.05 and 0.10
BEST = {"Bayes-optimal": {"mae": 0.04, "f1_weighted": 0.9}, "Bayes-optimal in context": {}}
PROVENANCE = Provenance("SIMS-V2", "tiny", (1111, 2222), ("0a1b2c3+dirty",), "demo", True, ("2 CPU cores",))


def ran(**changes) -> ResultRow:
    row = {"group": "", "method": "CMPTA", "paper": {"mae": 0.308}, "truth": TRUTH, "predictions": PREDICTIONS}
    return ResultRow(**(row | changes))


# --- the complete frame -----------------------------------------------------------------------------------------------


def test_a_row_that_ran():
    full = result_table([ran()], ["mae"], BEST).full
    assert list(full) == ["method", "MAE paper", "MAE this run", "MAE 95 % CI", "MAE gap", "MAE Bayes-optimal", "MAE seeds"]
    line = full.iloc[0].to_dict()
    low, high = map(float, re.fullmatch(r"\[(\S+), (\S+)\]", line.pop("MAE 95 % CI")).groups())
    assert 0.025 <= low < 0.075 < high <= 0.1
    assert list(line.values()) == ["CMPTA", "0.308", "0.075 ± 0.035 (n=2)", "-0.233", "0.040", "0.050, 0.100"]


def test_weighted_f1_is_shown_in_per_cent_and_the_gap_in_points():
    """One seed has no spread to show."""
    truth = np.array([0, 1, 1, 4, 6, 5, 3, 2])
    row = ran(paper={"f1_weighted": 59.49}, truth=truth, predictions=np.array([[0, 0, 1, 4, 6, 0, 3, -1]]))
    line = result_table([row], ["f1_weighted"], BEST).full.iloc[0]
    shown = [line[f"WF1 (%) {what}"] for what in ("paper", "this run", "gap", "Bayes-optimal")]
    assert shown == ["59.49", "60.42 (n=1)", "+0.93", "90.00"]


def test_what_is_not_there_is_a_dash_and_a_row_that_was_not_run_says_how_to_run_it():
    how = "make reproduce PROFILE=paper"
    rows = [ran(group="LSTM type"), ran(paper={}), ResultRow("", "LMF", {"mae": 0.343}, note=how), ran(paper={"mae": 0.0751})]
    full = result_table(rows, ["mae"]).full
    assert list(full) == ["group", "method", "MAE paper", "MAE this run", "MAE 95 % CI", "MAE gap", "MAE seeds", "note"]
    assert list(full.iloc[2]) == ["", "LMF", "0.343", "not run", "—", "—", "—", how]
    assert full["MAE paper"][1] == full["MAE gap"][1] == "—" and full["MAE gap"][3] == "+0.000", "no minus before zero"


def test_bad_rows_are_named():
    with pytest.raises(ValueError, match=r"LSTM type CMPTA.*mae.*is nan"):
        result_table([ran(), ran(group="LSTM type", predictions=PREDICTIONS * np.nan)], ["mae"])
    with pytest.raises(ValueError, match="row 'CMPTA': give both"):
        ran(predictions=None)
    with pytest.raises(ValueError, match="no display rule"):
        result_table([ran()], ["acc7"])


# --- the short form ---------------------------------------------------------------------------------------------------


def test_the_short_form_has_the_paper_first_and_neither_seeds_nor_intervals():
    table = result_table([ran(group="in the paper")], ["mae", "corr"], BEST)
    heads = ["method", *[f"{metric} {what}" for metric in ("MAE", "Corr") for what in ("paper", "this run", "gap")]]
    assert list(table.short.columns) == heads
    assert table.short["MAE this run"][0] == "0.075 ± 0.035", "the number of seeds is for the caption"
    assert list(table.details.full["MAE seeds"]) == ["0.050, 0.100"] and "Corr 95 % CI" in table.details.full
    bound, rule = table.details.notes[-2:]
    assert bound == "Bayes-optimal: MAE 0.040.", "once, and of this table's metrics"
    assert "luck on them can exceed (MAE: the median of " in rule and "Corr: the mean of " in rule and "WF1" not in rule
    assert "luck" not in " ".join(result_table([ran()], ["mae"], {"Bayes-optimal": {}}).details.notes), "of real clips"


def test_a_row_that_was_not_run_says_so_in_one_cell_and_why_below():
    said = "failed; call `cmpta` again"
    rows = [ran(), ResultRow("", "LMF", {"mae": 0.343}, note=said), ResultRow("", "TFN", note=said)]
    table = result_table(rows, ["mae", "corr"])
    assert list(table.short.iloc[1]) == ["LMF", "0.343", "not run", "—", "—", "—", "—"]
    assert f"Not run, LMF, TFN: {said}." in table.notes
    assert list(table.details.full["method"]) == ["CMPTA"]
    nothing = result_table(rows[1:], ["mae"])
    assert nothing.details is None and marks(nothing) == ["", ""] and not nothing.notes[:-1]


def shifted(name: str, by: float, group: str = "", seeds: int = 1, spread: float = 0.0) -> ResultRow:
    """Answers that are wrong by `by` on each of 40 clips, give or take a little that differs by clip."""
    wrong = by + np.linspace(-0.01, 0.01, 40) + spread * np.arange(seeds)[:, None]
    return ResultRow(group, name, truth=np.zeros(40), predictions=np.broadcast_to(wrong, (seeds, 40)))


def marks(table: Table) -> list[str]:
    """What stands before each row's score."""
    return [re.sub(r"\d.*|not run", "", score) for score in table.short["MAE this run"]]


def test_the_best_is_marked_and_what_is_within_noise_of_it():
    rows = [shifted("worse", 0.3), shifted("best", 0.1), shifted("as good", 0.1 + 1e-5), ResultRow("", "absent")]
    table = result_table(rows, ["mae"])
    assert marks(table)[:2] == ["", "**"] and marks(table)[2] != "**", "less error is better; unrounded"
    assert "paired bootstrap" in table.notes[0] and table.short["MAE this run"][1] == "**0.100**"
    noisy = rows[:2] + [ResultRow("", "noisy", truth=np.zeros(40), predictions=np.tile([0.0, 0.21], 20)[None])]
    assert marks(result_table(noisy, ["mae"])) == ["", "**", "__≈ "], "0.105 against 0.100, and clips that differ by 0.2"


def test_the_second_of_three_is_underlined_and_of_two_there_is_none():
    rows = [shifted("worst", 0.5), shifted("second", 0.3), shifted("best", 0.1), shifted("as second", 0.3)]
    table = result_table(rows, ["mae"])
    assert marks(table) == ["", "__", "**", "__"] and "underlined: second" in table.notes[0]
    assert marks(result_table(rows[1:3], ["mae"])) == ["", "**"]
    assert "| <ins>0.300</ins> |" in to_markdown(table, "") and kind_of(table.short["MAE this run"]) == "number"


def test_cmptas_row_has_a_bold_name_in_every_markup_but_the_csv(tmp_path):
    """Also under another name, as the first line of an ablation; and in a frame that has a column of methods."""
    rows = [replace(shifted("on", 0.1, "A"), is_ours=True), shifted("off", 0.3, "A")]
    texts = export(tmp_path / "rows", result_table(rows, ["mae"], by_group=True))
    assert "| A | **on** |" in texts[".md"] and r"\textbf{on} &" in texts[".tex"] and ",on," in texts[".csv"]
    assert "A bold name: CMPTA itself." in texts[".md"]
    texts = export(tmp_path / "frame", pd.DataFrame({"method": ["CMPTA", "**x**"], "reads": ["CMPTA", "y"]}))
    assert "| **CMPTA** | CMPTA |" in texts[".md"] and r"| \*\*x\*\* | y |" in texts[".md"]
    assert r"\textbf{CMPTA~\cite{li2026cmpta}} &" in texts[".tex"] and "CMPTA,CMPTA," in texts[".csv"]


def test_an_article_cites_methods_and_says_nothing_of_this_run(tmp_path):
    rows = [ran(method="LMF [24]"), ran(), ResultRow("", "TFN [28]", note="lost")]
    texts = export(tmp_path, result_table(rows, ["mae"]))
    table, _, below = texts[".tex"].partition("\n% Data: ")
    assert below.endswith("profile: demo.\n\\end{table*}\n"), "where it comes from is a comment"
    assert r"LMF~\cite{liu2018lmf} &" in table and r"Not run, TFN~\cite{zadeh2017tfn}: lost." in table
    assert r"MAE paper & MAE measured & MAE $\Delta$" in table and r"$\Delta$: measured minus printed" in table
    assert not re.search(r"this run|\bgap\b|\[2\d", table) and "tiny;" not in table
    assert "| LMF [24] | 0.308 |" in texts[".md"] and "LMF [24]," in texts[".csv"]


def test_what_is_cited_is_in_the_list_of_references():
    known = re.findall(r"^@\w+\{(\w+),", (ROOT / "figures" / "references.bib").read_text(encoding="utf-8"), re.M)
    assert sorted(set(paper.CITED.values())) == sorted(known)
    assert {row.method.removesuffix(" (Ours)") for row in (*paper.TABLE3, *paper.TABLE4)} <= paper.CITED.keys()


def test_a_difference_no_larger_than_the_seeds_make_is_noise():
    still, moving = shifted("still", 0.1, seeds=2), shifted("moving", 0.1, seeds=2, spread=0.02)  # means 0.10 and 0.11
    assert not within_noise("mae", shifted("one", 0.1), shifted("other", 0.11)), "the clips tell them apart"
    assert within_noise("mae", moving, still) and within_noise("mae", still, moving)
    assert "sds over seeds" in result_table([still, moving], ["mae"]).notes[0]
    assert "sds" not in result_table([shifted("a", 0.1), shifted("b", 0.2)], ["mae"]).notes[0]


def test_groups_of_an_ablation_have_a_best_each():
    rows = [shifted("on", 0.1, "A"), shifted("off", 0.3, "A"), shifted("five", 0.4, "B"), shifted("six", 0.5, "B")]
    table = result_table([*rows, shifted("alone", 0.2, "C")], ["mae"], by_group=True)
    assert marks(table) == ["**", "", "**", "", ""], "alone there is nothing to be best of"
    assert list(table.short.columns[:2]) == ["group", "method"] and "in its group" in table.notes[0]
    whole = result_table(rows, ["mae"])
    assert marks(whole) == ["**", "__", "", ""] and "A: on, off." in whole.notes[1]


def test_a_column_of_notes_stands_below():
    table = Table.of(pd.DataFrame({"corpus": ["x", "x"], "seed": [1, 2], "metric": ["MAE", "MAE"], "note": ["—", "lost"]}))
    assert list(table.short.columns) == ["corpus", "seed", "metric"] and table.notes == ("x, MAE: lost.",)


def test_what_a_column_holds():
    numbers = ["0.1 — not_run", "**0.1_±_0.2** ≈_0.3", "1,234 12.29_%", "0.1_±_0.2", "[-0.1,_+0.2] +0.1_[-0.1,_+0.2]", "1e-05 —"]
    for kind, columns in {"number": numbers, "list": ["0.1,_0.2 0.3"], "text": ["1_of_2", "3 5_tokens"]}.items():
        for column in columns:
            assert kind_of([cell.replace("_", " ") for cell in column.split()]) == kind, column


# --- exports ----------------------------------------------------------------------------------------------------------


def export(folder, frame, **changes) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    paths = export_table(frame, folder, "table3", **({"caption": "Table 3. Results", "provenance": PROVENANCE} | changes))
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in paths)  # no leftovers
    assert {path.name for path in paths} - {"table3_full.tex"} == {"table3.csv", "table3.md", "table3.tex"}
    return {path.name.removeprefix("table3"): path.read_bytes().decode("utf-8") for path in paths}


def test_every_format_carries_caption_provenance_and_warning_and_is_the_same_bytes_again(tmp_path):
    texts, again = (export(tmp_path / name, result_table([ran()], ["mae"])) for name in ("first", "second"))
    assert texts == again
    csv = pd.read_csv(io.StringIO(texts[".csv"]))
    assert csv["generated"].all() and (csv["provenance"] == PROVENANCE.line()).all()
    assert "Table 3. Results" in texts[".md"] and r"\caption{Results Generated data: " in texts[".tex"]
    assert r"\label{cmpta:table3}" in texts[".tex"] and r"\label{cmpta:table3_full}" in texts["_full.tex"]
    assert all(PROVENANCE.warning() in texts[name] and PROVENANCE.line() in texts[name] for name in (".tex", "_full.tex", ".md"))
    assert "SIMS-V2 (generated)" in PROVENANCE.line() and "seeds: 1111, 2222; profile: demo." in PROVENANCE.line()


def test_real_data_gets_no_warning(tmp_path):
    real = Provenance("SIMS-V2", "Qwen/Qwen-1_8B", (1111,), ("0a1b2c3",), "paper", False, ("RTX 4090",))
    texts = export(tmp_path, result_table([ran()], ["mae"]), provenance=real)
    assert real.warning() == "" and "enerated data" not in "".join(texts.values())
    assert not pd.read_csv(io.StringIO(texts[".csv"]))["generated"].any()


def test_csv_reads_back_as_the_frame(tmp_path):
    frame = result_table([ran(method='a, "quoted" | 中文'), ResultRow("", "LMF", note="later")], ["mae"])
    back = pd.read_csv(io.StringIO(export(tmp_path, frame)[".csv"]), keep_default_na=False, dtype=str)
    assert back.drop(columns=["generated", "provenance"]).values.tolist() == frame.full.values.tolist()


def test_a_cell_shows_what_was_written_and_cannot_break_the_table(tmp_path):
    frame = pd.DataFrame({"a|b": ["<neutral:0>", "x\ny", "</b>. & so"], "n": [1, 2, 3]})
    lines = export(tmp_path, frame, caption="Of <i>x</i>.")[".md"].splitlines()
    assert {r"Of \<i>x\</i>.", r"| a\|b | n |", "| --- | ---: |", r"| \<neutral:0> | 1 |", "| x<br>y | 2 |"} <= set(lines)
    assert r"| \</b>. &amp; so | 3 |" in lines


@pytest.mark.parametrize(
    "text",
    ["for $31 a share, or $135 million", "*a* _b_ ~~c~~ `d` ``e``", r"\[x\] \(y\) \\ \$5", "# h", "1. one", "- l", "> q", "+ p",
     "---", "[a](b) ![c](d) [e]: f", "<b>x</b> &amp; &#36; <!-- -->", "| a |", ":smile: 10:30:15",
     "https://x.y/a_b*c www.x_y.z a@b_c.d", "**w** ***v***", "😀 情感", r"\begin{a}$$z$$\end{a}"],
)  # fmt: skip
def test_every_sign_in_data_is_shown_as_it_is(text: str):
    markdown = Shown(Table.of(pd.DataFrame({text: [text]}), text), text)._repr_markdown_()
    assert not re.search(r"\$|\\\\|://|:smile:", markdown), "JupyterLab looks for these, escaped or not"
    parts = re.findall(r"<(p|th|td)(?: [^>]*)?>(.*?)</\1>", markdown2html_mistune(markdown), re.S)
    assert [html.unescape(re.sub("<[^>]+>", "", part)) for _, part in parts] == [text] * 4
    assert "<br>" in to_markdown(Table.of(pd.DataFrame({"a": ["x\r\ny\rz"]})), "") and "\r" not in sentence("a\rb")


def test_markdown_shows_the_short_form_and_folds_the_details_on_a_page_too(tmp_path):
    rows = [shifted("best", 0.1, seeds=2, spread=0.01), ran(truth=np.zeros(40), predictions=np.full((2, 40), -0.3))]
    table = result_table(rows, ["mae"], BEST)
    for text in (export(tmp_path, table)[".md"], Shown(table, "Table 3. Results")._repr_markdown_()):
        short, _, folded = text.partition("<details>")
        assert "| method | MAE paper | MAE this run | MAE gap |\n" in short and "| best | — | **0.105\N{NO-BREAK SPACE}±" in short
        assert "| \N{MINUS SIGN}0.008 |" in short, "no hyphen, after which a line may break"
        assert "| method | MAE 95 % CI | MAE seeds |\n" in folded and "Bayes-optimal: MAE 0.040." in folded
        assert text.startswith("Table 3. Results\n") and text.endswith("</details>\n") and "n=2" not in text
    noisy = result_table([shifted("a", 0.1, seeds=2, spread=0.02), shifted("b", 0.1, seeds=2)], ["mae"])
    assert "\N{ALMOST EQUAL TO}\N{NO-BREAK SPACE}0.110\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}" in Shown(noisy, "")._repr_markdown_()


def test_an_empty_table_is_named(tmp_path):
    with pytest.raises(ValueError, match="table 'table3' has no columns"):
        export(tmp_path, pd.DataFrame())
    assert list(export(tmp_path, pd.DataFrame({"a": []}))) == [".csv", ".md", ".tex"]


def test_an_export_replaces_the_old_files_and_a_failed_write_leaves_them(tmp_path, monkeypatch):
    export(tmp_path, pd.DataFrame({"a": ["first export"]}))
    old = export(tmp_path, pd.DataFrame({"a": ["second"]}))
    assert "first export" not in "".join(old.values())

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        export_table(pd.DataFrame({"a": ["new"]}), tmp_path, "table3", caption="c", provenance=PROVENANCE)
    assert {path.suffix: path.read_text("utf-8") for path in tmp_path.iterdir()} == old, "and no partial one"


def test_errors_are_in_the_units_of_whose_scores_they_are():
    """Scores from 1 to 5: a distance of 0.1 inside is one of 0.2; a correlation has no unit."""
    truth, said = np.array([-1.0, 0.0, 1.0]), np.array([[-0.9, 0.1, 0.8], [-1.0, 0.2, 0.7]])
    plain, five = (ResultRow("", "x", truth=truth, predictions=said, unit=unit) for unit in (1.0, 2.0))
    assert five.scores("mae") == pytest.approx(2 * plain.scores("mae")) and plain.scores("mae")[0] == pytest.approx(0.4 / 3)
    assert five.interval("mae") == pytest.approx([2 * edge for edge in plain.interval("mae")])
    other = replace(plain, predictions=said[::-1] / 2, unit=2.0)
    assert five.minus(other, "mae").difference == pytest.approx(2 * plain.minus(replace(other, unit=1.0), "mae").difference)
    assert five.scores("corr") == pytest.approx(plain.scores("corr"))
