"""The tables as LaTeX: what is written, and that it compiles in one column and in two, at 8 pt, with nothing overfull."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from finished import finish, finish_tables, record_llms, small_studies

from cmpta_lib.report import comparison, summaries, tables
from cmpta_lib.report import rows as reports
from cmpta_lib.report.export import (
    GAP_PT,
    PAGE_PT,
    arranged,
    columns_of,
    escaped,
    longest_piece,
    measured,
    paragraph,
    recorded,
    to_latex,
    widths_of,
)
from cmpta_lib.report.layout import Table
from cmpta_lib.report.tables import ResultRow
from cmpta_lib.study import plan
from cmpta_lib.study.study import Study

CLASSES = {"one column": "article", "two columns": "[twocolumn]article"}
NEEDED = ("booktabs.sty", "CJKutf8.sty", "c70gbsn.fd")


def latex(frame: pd.DataFrame, **changes: str) -> str:
    said = {"name": "table9", "caption": "Table 9. All.", "warning": "", "source": "Data: x."} | changes
    return to_latex(Table.of(frame), **said)


# --- what is written --------------------------------------------------------------------------------------------------


def test_text_is_escaped():
    assert escaped("f1_w 95 % & {a} #1 $x$") == r"f1\_w 95 \% \& \{a\} \#1 \$x\$"
    assert escaped("a\\b <t>") == r"a\textbackslash{}b \textless{}t\textgreater{}"
    assert escaped("| ~^") == r"\textbar{} \textasciitilde{}\textasciicircum{}"
    assert escaped("-0.095 +1 SIMS-2 [1") == r"$-$0.095 $+$1 SIMS-2 {[}1"
    assert escaped("± × ≈ → − —") == r"$\pm$ $\times$ $\approx$ $\rightarrow$ $-$ ---"


def test_long_names_may_be_broken_where_a_reader_would():
    assert paragraph("method.num_heads = 16") == r"method.\allowbreak{}num\_\allowbreak{}heads = 16"
    assert paragraph("0.251, SIMS-2") == "0.251, SIMS-2"
    assert longest_piece("method.num_heads") == measured("method.") and longest_piece("情感 为") < 9


def test_the_caption_has_no_number_of_its_own_and_the_label_a_prefix():
    text = latex(pd.DataFrame({"a": ["1"]}), caption="Table 2, continued. Parts.", warning="Generated data.")
    assert "\\caption{Parts. Generated data.}\n\\label{cmpta:table9}" in text
    assert text.startswith("% Needs \\usepackage{booktabs,array}\n") and "CJK" not in text and "box}" not in text
    assert text.count("\\fontsize{8}{9.6}\\selectfont") == 1 and "Data: x." in text.partition("\\end{tabular}")[2]


def test_chinese_says_which_package_it_needs():
    text = latex(pd.DataFrame({"prompt": ["响应：情感为"]}))
    assert text.startswith("% Needs \\usepackage{booktabs,array} and, for its Chinese, \\usepackage{CJKutf8}\n")
    assert text.count("\\begin{CJK}{UTF8}{gbsn}") == text.count("\\end{CJK}") == 1


def test_a_wide_table_spans_the_page_and_a_narrow_one_does_not():
    narrow = latex(pd.DataFrame({"method": ["CMPTA"], "MAE": ["0.251 ± 0.001"]}))
    wide = latex(pd.DataFrame({f"score {n}": ["0.251 ± 0.001"] for n in range(5)}))
    assert "\\begin{table}" in narrow and "\\begin{table*}" in wide and wide.count("\\begin{tabular}") == 1


def test_too_many_numbers_are_stacked_in_panels_that_name_their_rows():
    frame = pd.DataFrame({"method": ["a", "b"]} | {f"score {n}": ["0.251 ± 0.001", "0.3 ± 0.1"] for n in range(14)})
    _, columns = columns_of(Table.of(frame))
    panels = arranged(columns)
    assert [panel[0].head for panel in panels] == ["method"] * len(panels) and len(panels) > 1
    assert all(sum(widths_of(panel)) + GAP_PT * (len(panel) - 1) <= PAGE_PT for panel in panels)
    shown = [column.head for panel in panels for column in panel[1:]]
    assert shown == list(frame.columns[1:])
    lengths = [len(panel) for panel in panels]
    assert max(lengths) - min(lengths) <= len(panels), "no panel with a column or two left over"
    assert latex(frame).count("\\begin{tabular}") == len(panels)


def test_what_is_taller_than_a_page_goes_on_under_the_same_number():
    text = latex(pd.DataFrame({"clip": [str(n) for n in range(100)]}))
    wide = latex(pd.DataFrame({"clip": [str(n) for n in range(100)], "score": ["0.1"] * 100}))
    assert wide.count("\\begin{tabular}") == 3 and "0 & 0.1" in wide, "cut by rows, not by columns"
    floats = text.count("\\begin{table}")
    assert floats == 3 == text.count("\\caption") and text.count("\\addtocounter{table}{-1}") == 2
    assert text.count("\\label") == 1 == text.count("Data: x.") and all(f"\n{n} \\\\" in text for n in (0, 45, 99))


# --- that it compiles -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exports of a study, all tables of the paper and those beside them, and one table of five seeds."""
    with pytest.MonkeyPatch.context() as patch:
        study = small_studies(record_llms(tmp_path_factory.mktemp("runs")), patch)(seeds=2)
        patch.setattr(Study, "figures", tmp_path_factory.mktemp("figures"))
        finish_tables(study)
        finish(study, "sims", study.choice_runs()[1:])
        llm = SimpleNamespace(name="tiny", dim=192, num_parameters=1_138_560)
        patch.setattr("cmpta_lib.runs.load.load_llm", lambda *_: llm)
        export(study)
        return study.figures


def export(study: Study) -> None:
    frames = {
        "table1": summaries.table1(study),
        "table2": summaries.table2(study),
        "table2_parameters": summaries.table2_parameters(study),
        "training": summaries.training_table(study, study.keys),
        "register": summaries.register_table(study),
        "search": comparison.of_every_corpus(study, comparison.search_table),
        "versions": comparison.of_every_corpus(study, comparison.versions_table, plan.versions),
        "attention_on_cues": pd.DataFrame(
            {"corpus": ["embedded-sims"] * 2, "attention": ["text → vision", "text → audio"], "on the cue (%)": ["64.2", "50.6"]}
        ),
        "wide": pd.DataFrame({"method": ["a_b & c", "<d>"]} | {f"F1 class {n}": ["50.1 ± 10.0", "7.5 ± 1.2"] for n in range(12)}),
    }
    for key, number in (("sims", 3), ("meld", 4)):
        rows, scores = comparison.comparison_rows(study, key), reports.scores_of(study, key)
        bounds = reports.bayes_of(study, key, scores)
        caption = reports.scores_caption(study, key, f"Table {number}. Comparison")
        reports.save_table(study, tables.result_table(rows, scores, bayes=bounds), f"table{number}", caption, [key])
        ablation = tables.result_table(reports.ablation_rows(study, key), scores[:1], by_group=True)
        reports.save_table(study, ablation, f"table{number + 2}", f"Table {number + 2}. Ablations.", [key])
        frames[f"paired_{key}"] = comparison.paired_table(study, key, rows)
        frames[f"methods_{key}"] = comparison.methods_table(study, key)
        frames[f"field_{key}"] = comparison.field_table(study, key)
    rng = np.random.default_rng(0)
    truth = rng.uniform(-1, 1, 30)
    answers = {name: truth + rng.uniform(-1, 1, (5, 30)) for name in ("MSE-LLaMA2-7B [27]", "GA2MIF [30]")}
    five = [ResultRow("", name, {"mae": 0.3, "corr": 0.6}, truth, np.clip(given, -1, 1)) for name, given in answers.items()]
    five.append(ResultRow("", "LMF [24]", {"mae": 0.3}, note="no run of `cmpta reproduce --profile paper` is here"))
    reports.save_table(study, tables.result_table(five, ["mae", "corr"]), "five_seeds", "Five seeds.", study.keys)
    for name, frame in frames.items():
        reports.save_table(study, frame, name, f"What {name} shows.", study.keys)


@pytest.fixture(scope="module", params=CLASSES)
def compiled(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The PDF of all of them, its log beside it."""
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex here: apt-get install texlive-latex-recommended latex-cjk-chinese")
    missing = [name for name in NEEDED if not subprocess.run(["kpsewhich", name], capture_output=True).stdout.strip()]
    if missing:
        pytest.skip(f"pdflatex here has no {', '.join(missing)}")
    place = tmp_path_factory.mktemp("compiled")
    shown = "\n".join(f"x\\input{{{path}}}\\clearpage" for path in sorted(folder.glob("*.tex")))
    option, _, name = CLASSES[request.param].rpartition("]")
    head = f"\\documentclass{option + ']' if option else ''}{{{name}}}\n\\usepackage{{booktabs,array}}\n\\usepackage{{CJKutf8}}\n"
    (place / "all.tex").write_text(f"{head}\\begin{{document}}\n{shown}\n\\end{{document}}\n", encoding="utf-8")
    subprocess.run(["pdflatex", "-interaction=nonstopmode", "all.tex"], cwd=place, capture_output=True, timeout=300)
    return place / "all.pdf"


def test_every_table_of_the_paper_is_there(folder: Path):
    names = {path.stem for path in folder.glob("*.tex")}
    assert names >= {f"table{n}" for n in range(1, 7)} | {f"table{n}_full" for n in range(3, 7)} | {"table2_parameters"}


def test_no_tabular_is_wider_than_a_page(folder: Path):
    for path in folder.glob("*.tex"):
        forms = re.findall(r"\\begin\{tabular\}\{(.*)\}", path.read_text(encoding="utf-8"))
        for widths in ([float(width) for width in re.findall(r"p\{([\d.]+)pt\}", form)] for form in forms):
            assert widths and sum(widths) + GAP_PT * (len(widths) - 1) <= PAGE_PT + 0.5, path.name


def test_everything_written_is_recorded(folder: Path):
    """What is not is no part of a published result."""
    assert {path.stem for path in folder.iterdir() if path.suffix in (".csv", ".md", ".tex")} == set(recorded(folder))


def test_it_compiles_and_nothing_sticks_out(compiled: Path):
    log = compiled.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
    bad = [line for line in log.splitlines() if re.match("!|Overfull|LaTeX Warning: (Float too large|Label `)", line)]
    assert compiled.exists() and not bad, bad


def test_nothing_is_set_smaller_than_8_pt(compiled: Path):
    if not shutil.which("pdftohtml"):
        pytest.skip("no pdftohtml here: apt-get install poppler-utils")
    order = ["pdftohtml", "-xml", "-i", "-stdout", "-zoom", "3", str(compiled)]
    drawn = subprocess.run(order, capture_output=True, encoding="utf-8", errors="replace", timeout=120).stdout
    used = set(re.findall(r'<text [^>]*font="(\d+)"', drawn))
    sizes_pt = {int(size) / 3 for number, size in re.findall(r'<fontspec id="(\d+)" size="(\d+)"', drawn) if number in used}
    assert min(sizes_pt) >= 7.9, f"sizes in points: {sorted(sizes_pt)}"  # TeX's point is 1/72.27 inch, a PDF's 1/72
