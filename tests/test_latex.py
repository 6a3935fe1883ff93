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

from cmpta_lib.files import ROOT
from cmpta_lib.report import claims, comparison, summaries, tables
from cmpta_lib.report import rows as reports
from cmpta_lib.report.export import CHINESE, GAP_PT, PAGE_PT, escaped, recorded, sentence, to_latex, width_pt, word_pt
from cmpta_lib.report.tables import Table
from cmpta_lib.report.uncertainty import ResultRow
from cmpta_lib.study import plan
from cmpta_lib.study.study import Study

PACKAGES = "booktabs,array,longtable"


def latex(frame: pd.DataFrame, **changes: str) -> str:
    said = {"name": "table9", "caption": "Table 9. All.", "warning": "", "source": "Data: x."} | changes
    return to_latex(Table.of(frame), **said)


def tabulars(text: str) -> list[list[float]]:
    """The widths of the columns of each."""
    forms = re.findall(r"\\begin\{(?:tabular|longtable)\}\{(.*)\}", text)
    return [[float(width) for width in re.findall(r"p\{([\d.]+)pt\}", form)] for form in forms]


# --- what is written --------------------------------------------------------------------------------------------------


def test_text_is_escaped_and_broken_where_a_reader_would():
    assert escaped("f1 w 95 % & {a} #1 $x$") == r"f1 w 95 \% \& \{a\} \#1 \$x\$"
    assert escaped("a\\b <t>") == r"a\textbackslash{}b \textless{}t\textgreater{}"
    assert escaped("| ~^") == r"\textbar{} \textasciitilde{}\textasciicircum{}"
    assert escaped("-0.095 +1 SIMS-2 [1") == r"$-$0.095 $+$1 SIMS-2 {[}1"
    assert escaped("± × ≈ → − —") == r"$\pm$ $\times$ $\approx$ $\rightarrow$ $-$ ---"
    assert escaped("method.num_heads = 16") == r"method.\allowbreak{}num\_\allowbreak{}heads = 16"
    assert sentence("`cmpta x --set a.b`") == r"\texttt{cmpta x -{}-set a.\allowbreak{}b}"
    assert sentence("`y`") == r"\textasciigrave{}y\textasciigrave{}", "nobody's command"
    assert escaped("a😀--\r\nЖé") == r"a\cmptasign{1F600}-{}-\newline \cmptasign{0416}é"
    assert word_pt(["method.num_heads", "情感 为"]) == word_pt(["method."]) > width_pt("method.")


def test_the_caption_has_no_number_of_its_own_and_the_label_a_prefix():
    text = latex(pd.DataFrame({"a": ["1"]}), caption="Table 2, continued. Parts.", warning="Generated data.")
    assert "\\caption{Parts. Generated data.}\n\\label{cmpta:table9}" in text
    assert text.startswith(f"% Needs \\usepackage{{{PACKAGES}}}\n") and "CJK" not in text and "resizebox" not in text
    assert text.count("\\fontsize{8}{9.6}\\selectfont") == 1 and "Data: x." in text.partition("\\end{tabular}")[2]


def test_chinese_says_which_package_it_needs():
    text = latex(pd.DataFrame({"prompt": ["响应：情感为"]}))
    assert text.startswith(f"% Needs \\usepackage{{{PACKAGES}}} and, for its Chinese, \\usepackage{{CJKutf8}}\n")
    assert text.count("\\begin{CJK}{UTF8}{gbsn}") == text.count("\\end{CJK}") == 1


def test_only_texts_are_broken_and_the_longest_have_most_of_the_page():
    frame = pd.DataFrame(
        {"method": ["MSE-LLaMA2-7B"], "MAE": ["0.251 ± 0.001"], "reads": ["word " * 20], "says": ["word " * 99]}
    )
    ((method, score, short, long),) = tabulars(latex(frame))
    assert short < width_pt("word " * 20) and short < long and score >= width_pt("0.251 ± 0.001") - 0.1
    assert method >= width_pt("LLaMA2-") and method + score + short + long + 3 * GAP_PT <= PAGE_PT


def test_too_many_numbers_are_stacked_in_panels_that_name_their_rows():
    frame = pd.DataFrame({"method": ["a", "b"]} | {f"score {n}": ["0.251 ± 0.001", "0.3 ± 0.1"] for n in range(14)})
    text = latex(frame)
    heads = re.findall(r"^(method & .*) \\\\$", text, re.M)
    assert [head for line in heads for head in line.split(" & ")[1:]] == list(frame.columns[1:])
    lengths = [len(widths) for widths in tabulars(text)]
    assert len(heads) == len(lengths) > 1 and max(lengths) - min(lengths) <= 1, (
        "no panel with a column or two left over"
    )
    assert text.count("\na & ") == len(heads) and text.count("\\caption") == 1


def test_what_is_taller_than_a_page_goes_on_over_pages_under_one_number():
    for columns in (0, 1, 14):
        scores = {f"score {n}": ["0.251 ± 0.001"] * 100 for n in range(columns)}
        text = latex(pd.DataFrame({"clip": [str(n) for n in range(100)]} | scores))
        count = text.count("\\begin{longtable}")
        assert (
            count == len(tabulars(text)) == text.count("\\addtocounter{table}{-1}") + 1 and "\\begin{table" not in text
        )
        assert text.count("\\label") == 1 == text.count("Data: x.") == text.count("\\caption{All.}")
        assert text.count("\\caption[]{(continued)}") == count and (count > 1) == (columns == 14)
        assert all(len(re.findall(rf"^{n} [&\\]", text, re.M)) == count for n in (0, 45, 99)), (
            "cut by rows, not by columns"
        )


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
        "sentences": pd.DataFrame(
            {"attention": ["text → vision"] * 60, "on the cue (%)": ["64.2"] * 60, "why": ["so it is " * 9] * 60}
        ),
        "wide": pd.DataFrame(
            {"method": ["a_b & c", "<d>"]} | {f"F1 class {n}": ["50.1 ± 10.0", "7.5 ± 1.2"] for n in range(12)}
        ),
    }
    published = pd.read_csv(ROOT / "figures/published/demo/claims.csv", keep_default_na=False)  # as long as they get
    decides = published["figures of this run"].str.partition("; ")[0] + " (one of 7)"
    judged = published.drop(columns=["generated", "provenance"]).assign(**{"what decides": decides})
    frames |= {"claims": claims.as_table(judged), "claims_rules": claims.rules(), "claims_summary": claims.summary(judged)}
    for key, number in (("sims", 3), ("meld", 4)):
        rows, scores = comparison.comparison_rows(study, key), reports.scores_of(study, key)
        best = reports.best_of(study, key, scores)
        caption = reports.scores_caption(study, key, f"Table {number}. Comparison")
        reports.save_table(study, tables.result_table(rows, scores, best), f"table{number}", caption, [key])
        ablation = tables.result_table(reports.ablation_rows(study, key), scores[:1], by_group=True)
        reports.save_table(study, ablation, f"table{number + 2}", f"Table {number + 2}. Ablations.", [key])
        frames[f"paired_{key}"] = comparison.paired_table(study, key, rows)
        frames[f"methods_{key}"] = comparison.methods_table(study, key)
        frames[f"field_{key}"] = comparison.field_table(study, key)
    rng = np.random.default_rng(0)
    truth = rng.uniform(-1, 1, 30)
    answers = {name: truth + rng.uniform(-1, 1, (5, 30)) for name in ("MSE-LLaMA2-7B [27]", "GA2MIF [30]")}
    five = [
        ResultRow("", name, {"mae": 0.3, "corr": 0.6}, truth, np.clip(given, -1, 1)) for name, given in answers.items()
    ]
    five.append(ResultRow("", "LMF [24]", {"mae": 0.3}, note="no run of `cmpta reproduce --profile paper` is here"))
    reports.save_table(study, tables.result_table(five, ["mae", "corr"]), "five_seeds", "Five seeds.", study.keys)
    for name, frame in frames.items():
        reports.save_table(study, frame, name, f"What {name} shows.", study.keys)


def test_every_table_is_there_and_recorded_and_no_wider_than_a_page(folder: Path):
    texts = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.tex")}
    assert set(texts) >= {f"table{n}" for n in range(1, 7)} | {f"table{n}_full" for n in range(3, 7)} | {
        "table2_parameters"
    }
    assert set(texts) == set(recorded(folder)), "what is not is no part of a published result"
    for name, text in texts.items():
        for widths in tabulars(text) or [[]]:
            assert widths and sum(widths) + GAP_PT * (len(widths) - 1) <= PAGE_PT + 0.5, name


def test_the_claims_are_read_on_a_few_pages(folder: Path, tmp_path: Path):
    """Each verdict beside its claim: no panels, and no colours that fonts lack."""
    text = (folder / "claims.tex").read_text(encoding="utf-8")
    assert len(tabulars(text)) == 1 and "cmptasign" not in text and "inside seed noise" in text
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex here: apt-get install texlive-latex-recommended latex-cjk-chinese")
    shown = f"\\documentclass{{article}}\\usepackage{{{PACKAGES}}}\\begin{{document}}\\input{{{folder}/claims}}\\end{{document}}"
    (tmp_path / "a.tex").write_text(shown, encoding="utf-8")
    subprocess.run(["pdflatex", "-interaction=nonstopmode", "a.tex"], cwd=tmp_path, capture_output=True, timeout=100)
    log = (tmp_path / "a.log").read_text(encoding="utf-8", errors="replace")
    assert int(re.search(r"Output written on a.pdf \((\d+) page", log)[1]) <= 6 and "\nOverfull" not in log


@pytest.mark.parametrize("form", ["", "[twocolumn]"], ids=["one column", "two columns"])
def test_it_compiles_at_8_pt_and_nothing_sticks_out(form: str, folder: Path, tmp_path: Path):
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex here: apt-get install texlive-latex-recommended latex-cjk-chinese")
    has_chinese = bool(subprocess.run(["kpsewhich", "gbsnu00.tfm"], capture_output=True).stdout.strip())
    files = [
        path for path in sorted(folder.glob("*.tex")) if has_chinese or not CHINESE.search(path.read_text("utf-8"))
    ]
    packages = PACKAGES + ",CJKutf8" * has_chinese
    head = (
        f"\\documentclass{form}{{article}}\n\\usepackage{{{packages}}}\n\\pdfcompresslevel=0\\pdfobjcompresslevel=0\n"
    )
    shown = "\n".join(f"x\\input{{{path}}}\\clearpage" for path in files)
    (tmp_path / "all.tex").write_text(f"{head}\\begin{{document}}\n{shown}\n\\end{{document}}\n", encoding="utf-8")
    subprocess.run(["pdflatex", "-interaction=nonstopmode", "all.tex"], cwd=tmp_path, capture_output=True, timeout=300)
    log = (tmp_path / "all.log").read_text(encoding="utf-8", errors="replace")
    assert not [
        line for line in log.splitlines() if re.match("!|Overfull|LaTeX Warning: (Float too large|Label `)", line)
    ]
    sizes = {int(size) for size in re.findall(rb"/FontName\s*/\w+\+CM[A-Z]+(\d+)", (tmp_path / "all.pdf").read_bytes())}
    assert min(sizes) == 8, f"sizes of letters in points: {sorted(sizes)}"
