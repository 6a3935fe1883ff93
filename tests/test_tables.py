import io
import os
import re

import numpy as np
import pandas as pd
import pytest

from cmpta_lib.report.export import Provenance, export_table
from cmpta_lib.report.tables import ResultRow, result_table

TRUTH = np.array([0.0, 0.2, -0.4, 1.0])
PREDICTIONS = np.array([[0.1, 0.2, -0.4, 0.9], [0.1, 0.1, -0.3, 0.9]])  # MAE 0.05 and 0.10
PROVENANCE = Provenance("SIMS-V2", "tiny", (1111, 2222), ("0a1b2c3+dirty",), "demo", True, ("2 CPU cores",))


def ran(**changes) -> ResultRow:
    row = {"group": "", "method": "CMPTA", "paper": {"mae": 0.308}, "truth": TRUTH, "predictions": PREDICTIONS}
    return ResultRow(**(row | changes))


def test_a_row_that_ran():
    line = result_table([ran()], ["mae"], bayes={"mae": 0.04}).iloc[0]
    assert line["method"] == "CMPTA"
    assert line["MAE paper"] == "0.308"
    assert line["MAE this run"] == "0.075 ± 0.035 (n=2)"
    assert line["MAE gap"] == "-0.233"
    assert line["MAE Bayes-optimal"] == "0.040"
    assert line["MAE seeds"] == "0.050, 0.100"
    low, high = map(float, re.fullmatch(r"\[(\S+), (\S+)\]", line["MAE 95 % CI"]).groups())
    assert 0.025 <= low < 0.075 < high <= 0.1


def test_weighted_f1_is_shown_in_per_cent_and_the_gap_in_points():
    truth = np.array([0, 1, 1, 4, 6, 5, 3, 2])
    row = ran(paper={"f1_weighted": 59.49}, truth=truth, predictions=np.array([[0, 0, 1, 4, 6, 0, 3, -1]]))
    line = result_table([row], ["f1_weighted"], bayes={"f1_weighted": 0.9}).iloc[0]
    assert line["WF1 (%) paper"] == "59.49"
    assert line["WF1 (%) this run"] == "60.42 (n=1)"  # one seed: no spread to show
    assert line["WF1 (%) gap"] == "+0.93"
    assert line["WF1 (%) Bayes-optimal"] == "90.00"


def test_a_row_that_was_not_run_says_so_and_how_to_run_it():
    frame = result_table([ran(), ResultRow("", "LMF", {"mae": 0.343}, note="make reproduce PROFILE=paper")], ["mae"])
    line = frame.iloc[1]
    assert line["MAE paper"] == "0.343"
    assert line["MAE this run"] == "not run"
    assert line["MAE gap"] == line["MAE 95 % CI"] == line["MAE seeds"] == "—"
    assert line["note"] == "make reproduce PROFILE=paper"


def test_a_row_the_paper_does_not_have_shows_dashes():
    line = result_table([ran(paper={})], ["mae"]).iloc[0]
    assert line["MAE paper"] == line["MAE gap"] == "—"


def test_columns_nobody_uses_are_left_out_and_the_rest_keep_their_order():
    plain = ["method", "MAE paper", "MAE this run", "MAE 95 % CI", "MAE gap", "MAE seeds"]
    assert list(result_table([ran()], ["mae"]).columns) == plain
    full = result_table([ran(group="LSTM type", note="n")], ["mae"]).columns
    assert list(full) == ["group", *plain, "note"]


def test_a_gap_that_rounds_to_zero_has_no_minus():
    line = result_table([ran(paper={"mae": 0.0751})], ["mae"]).iloc[0]
    assert line["MAE gap"] == "+0.000"


def test_bad_rows_are_named():
    with pytest.raises(ValueError, match=r"LSTM type CMPTA.*mae.*is nan"):
        result_table([ran(group="LSTM type", predictions=PREDICTIONS * np.nan)], ["mae"])
    with pytest.raises(ValueError, match="row 'CMPTA': give both"):
        ran(predictions=None)
    with pytest.raises(ValueError, match="no display rule"):
        result_table([ran()], ["acc7"])


def export(folder, frame, **changes) -> dict[str, str]:
    arguments = {"caption": "Table 3. Results", "provenance": PROVENANCE} | changes
    paths = export_table(frame, folder, "table3", **arguments)
    assert sorted(path.name for path in folder.iterdir()) == ["table3.csv", "table3.md", "table3.tex"]  # no leftovers
    return {path.suffix: path.read_bytes().decode("utf-8") for path in paths}


def test_every_format_carries_caption_provenance_and_warning(tmp_path):
    texts = export(tmp_path, result_table([ran()], ["mae"]))
    csv = pd.read_csv(io.StringIO(texts[".csv"]))
    assert csv["generated"].all() and (csv["provenance"] == PROVENANCE.line()).all()
    for suffix in (".tex", ".md"):
        assert "Table 3. Results" in texts[suffix]
        assert PROVENANCE.warning() in texts[suffix]
        assert PROVENANCE.line() in texts[suffix]
    assert "SIMS-V2 (generated)" in PROVENANCE.line() and "seeds: 1111, 2222; profile: demo." in PROVENANCE.line()


def test_real_data_gets_no_warning(tmp_path):
    real = Provenance("SIMS-V2", "Qwen/Qwen-1_8B", (1111,), ("0a1b2c3",), "paper", False, ("RTX 4090",))
    texts = export(tmp_path, result_table([ran()], ["mae"]), provenance=real)
    assert real.warning() == ""
    assert "enerated data" not in "".join(texts.values())
    assert not pd.read_csv(io.StringIO(texts[".csv"]))["generated"].any()


def test_csv_reads_back_as_the_frame(tmp_path):
    frame = result_table([ran(method='a, "quoted" | 中文'), ResultRow("", "LMF", note="later")], ["mae"])
    back = pd.read_csv(io.StringIO(export(tmp_path, frame)[".csv"]), keep_default_na=False, dtype=str)
    assert back.drop(columns=["generated", "provenance"]).values.tolist() == frame.values.tolist()


def test_latex_is_escaped(tmp_path):
    awkward = pd.DataFrame({"f1_w 95 %": ["50 % ± 1", "[-0.1, +0.2]"], "情感 & text": ["a_b\\{c} | #1", "MSE-7B <t>"]})
    tex = export(tmp_path, awkward, caption="WF1 in % of_all")[".tex"]
    assert r"f1\_w 95 \% & 情感 \& text \\" in tex
    assert r"50 \% $\pm$ 1 & a\_b\textbackslash{}\{c\} \textbar{} \#1 \\" in tex
    assert r"{[}$-$0.1, $+$0.2] & MSE-7B \textless{}t\textgreater{} \\" in tex
    assert r"\caption{WF1 in \% of\_all " in tex
    for rule in ("toprule", "midrule", "bottomrule"):
        assert tex.count(f"\\{rule}") == 1
    for environment in ("table", "adjustbox", "tabular"):
        assert tex.count(f"\\begin{{{environment}}}") == tex.count(f"\\end{{{environment}}}") == 1


def test_markdown_cells_cannot_break_the_table(tmp_path):
    frame = pd.DataFrame({"a|b": ["<neutral:0>", "x\ny"], "n": [1, 2]})
    lines = export(tmp_path, frame)[".md"].splitlines()
    assert r"| a\|b | n |" in lines
    assert r"| \<neutral:0> | 1 |" in lines
    assert "| x<br>y | 2 |" in lines


def test_exports_are_the_same_bytes_again(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    assert export(first, result_table([ran()], ["mae", "corr"])) == export(
        second, result_table([ran()], ["mae", "corr"])
    )


def test_an_export_replaces_the_old_file(tmp_path):
    export(tmp_path, pd.DataFrame({"a": ["first export"]}))
    assert "first export" not in "".join(export(tmp_path, pd.DataFrame({"a": ["second"]})).values())


def test_a_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path, monkeypatch):
    old = export(tmp_path, pd.DataFrame({"a": ["old"]}))

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        export_table(pd.DataFrame({"a": ["new"]}), tmp_path, "table3", caption="c", provenance=PROVENANCE)
    assert {path.suffix: path.read_text("utf-8") for path in tmp_path.iterdir()} == old
