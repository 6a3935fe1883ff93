"""Publishing: what goes under figures/published and into the README, and what does not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from cmpta_lib.cli.__main__ import main
from cmpta_lib.report import gather
from cmpta_lib.report.export import Provenance, export_table, record, record_files
from cmpta_lib.study.plan import NOTEBOOKS

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results: begin -->\n", "<!-- results: end -->"
SCORES = {
    "table3": pd.DataFrame(
        [["printed", "LMF [24]", "0.343", "0.517 ± 0.006 (n=2)", "0.203"], ["own", "BiLSTM", "—", "0.256 ± 0.001 (n=2)", "0.203"],
         ["printed", "CMPTA", "0.308", "0.251 ± 0.001 (n=2)", "0.203"]],
        columns=["group", "method", "MAE paper", "MAE this run", "MAE Bayes-optimal"],
    ),
    "table4": pd.DataFrame(
        [["printed", "TFN [28]", "57.74", "not run"], ["own", "BiLSTM", "—", "81.43 (n=1)"],
         ["printed", "CMPTA", "59.49", "80.36 ± 1.40 (n=2)"]],
        columns=["group", "method", "WF1 (%) paper", "WF1 (%) this run"],
    ),
}  # fmt: skip
DEMO = Provenance("a corpus (0123)", "tiny (4567)", (1, 2), ("c0ffee",), "demo", True, ("a machine",))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole folder of exports, each of its tables saying its own name."""
    folder = tmp_path_factory.mktemp("whole") / "demo"
    for notebook in (one for one in NOTEBOOKS if not one.is_beyond):
        for name in [*(f"{one}.md" for one in notebook.tables), *(f"{one}.png" for one in notebook.figures)]:
            for one in {name.replace("{key}", key) for key in notebook.corpora}:
                write(folder, one.replace("[12]", "1").replace("[34]", "3").replace("*", "x"))
    (folder / "report.md").write_text("# Report\n")
    for name in ("paper/fig3_x.pdf", "paper/fig3_x.txt", "notebooks/01_data.html"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    record_files(folder, folder / "report.md", *folder.glob("paper/*"), *folder.glob("notebooks/*"))
    return folder


@pytest.fixture
def exports(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it where exports lie."""
    monkeypatch.setenv("CMPTA_FIGURES", str(tmp_path / "figures"))
    return shutil.copytree(whole, tmp_path / "figures" / "demo")


@pytest.fixture
def made(exports: Path, tmp_path: Path) -> Path:
    """The same, made anew of the runs: `cmpta publish` executes the notebooks for that."""
    return shutil.copytree(exports, tmp_path / "made")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "README.md").write_text(f"# Title\n\n{BEGIN}old\n{END}\nThe end.\n")
    return tmp_path / "checkout"


def publish(made: Path, checkout: Path) -> str:
    gather.check_exports("demo", checkout)
    return gather.publish("demo", made, checkout)


def write(folder: Path, name: str, provenance: Provenance = DEMO) -> None:
    stem, suffix = name.split(".")
    if suffix == "md":
        frame = SCORES[stem] if stem in SCORES else pd.DataFrame({"a": [stem]})
        export_table(frame, folder, stem, caption=f"All of {stem}.", provenance=provenance)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"drawn")
    record(folder, stem, provenance)


def test_a_whole_folder_is_published_and_shown(exports: Path, made: Path, checkout: Path):
    (exports / ".something.partial").write_text("half")
    said = publish(made, checkout)
    published = checkout / "figures" / "published" / "demo"
    assert "README.md" in said and str(published) in said
    there = {path.relative_to(published): path.read_bytes() for path in published.rglob("*") if path.is_file()}
    wanted = [path for path in exports.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert there == {path.relative_to(exports): path.read_bytes() for path in wanted}
    text = (checkout / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# Title\n") and text.endswith("\nThe end.\n") and "old\n" not in text
    shown = text.partition(BEGIN)[2]
    assert "nothing here speaks for or against the paper" in shown and "seeds 1, 2" in shown and "ARGS=--all" not in shown
    assert [line for line in shown.splitlines() if line.startswith("|")] == [
        "||SIMS-V2 MAE, paper|a corpus MAE, here|MELD WF1 (%), paper|a corpus WF1 (%), here|",
        "|---|---|---|---|---|",
        "|LMF|0.343|0.517 ± 0.006|—|—|",
        "|BiLSTM|—|<ins>0.256 ± 0.001</ins>|—|**81.43**|",
        "|**CMPTA**|0.308|**0.251 ± 0.001**|59.49|<ins>80.36 ± 1.40</ins>|",
        "|*best possible*|—|0.203|—|—|",
    ]
    assert "(figures/published/demo/report.md)" in shown
    (published / "gone.md").write_text("no longer exported")
    (published / "runs" / "sims-1").mkdir(parents=True)
    assert publish(made, checkout) == said and not (published / "gone.md").exists()
    assert (published / "runs" / "sims-1").is_dir(), "a trained run is no export, and stays"
    assert (checkout / "README.md").read_text(encoding="utf-8") == text


def test_the_readme_shows_what_make_reproduce_prints_and_the_best_of_the_papers_rows(exports, checkout, monkeypatch):
    rows = [["own", "MGSI", "—", "0.240 ± 0.004 (n=2)"], ["own", "MLLM-MAC", "—", "not run"],
            ["printed", "Self-MM [25]", "0.335", "0.245 (n=2)"]]  # fmt: skip
    longer = pd.concat([pd.DataFrame(rows, columns=SCORES["table3"].columns[:4]), SCORES["table3"]])
    monkeypatch.setitem(SCORES, "table3", longer.fillna("0.203"))
    write(exports, "table3.md")
    gather.publish("demo", exports, checkout)
    text = (checkout / "README.md").read_text(encoding="utf-8")
    assert "systems beyond the paper (MGSI) by `make reproduce ARGS=--all`" in text
    assert "|MGSI|" not in text and "MLLM" not in text
    assert "|Self-MM|0.335|**0.245**|" in text and "|LMF|" not in text, "the better of the two that the paper compares here alone"


def edit(exports: Path, name: str, before: str, after: str) -> None:
    text = (exports / name).read_text(encoding="utf-8")
    assert before in text
    (exports / name).write_text(text.replace(before, after), encoding="utf-8")


def linked(exports: Path, name: str, target: str) -> None:
    (exports / name).unlink()
    (exports / name).symlink_to(target)


def unrecord(exports: Path, *names: str) -> None:
    path = exports / "provenance.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    for name in names:
        record["sha256"].pop(name)
    path.write_text(json.dumps(record))


def replaced_folder(exports: Path) -> None:
    exports.rename(exports.with_name("elsewhere"))
    exports.symlink_to(exports.with_name("elsewhere"))


# What somebody did to exports -> what is said; below, with hashes that fit.
ALTERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "number": (lambda e: edit(e, "table3.csv", "0.251", "0.001"), "changed: table3.csv"),
    "row": (lambda e: edit(e, "table3.md", "| BiLSTM", "<!-- "), "changed: table3.md"),
    "empty report": (lambda e: (e / "report.md").write_text(""), "changed: report.md"),
    "script for a page": (lambda e: (e / "notebooks/01_data.html").write_text("<script>"), "changed: notebooks/01_data.html"),
    "picture": (lambda e: (e / "fig1_architecture.png").write_bytes(b"other"), "changed: fig1_architecture.png"),
    "swapped": (lambda e: shutil.copy(e / "table4.csv", e / "table3.csv"), "changed: table3.csv"),
    "cut": (lambda e: (e / "table3.csv").write_bytes(b'group,method\n"pri'), "changed: table3.csv"),
    "not UTF-8": (lambda e: (e / "table3.csv").write_bytes(b"group,\xff\n"), "changed: table3.csv"),
    "link": (lambda e: linked(e, "table3.csv", "/etc/hostname"), "a link, or no file: table3.csv"),
    "link to itself": (lambda e: linked(e, "table4.tex", "table4.tex"), "a link, or no file: table4.tex"),
    "link for a folder": (lambda e: (shutil.move(e / "paper", e.parent), (e / "paper").symlink_to(e.parent / "paper")),
                          "a link, or no file: paper"),
    "link for all": (replaced_folder, "a link, or no file: ."),
    "pipe": (lambda e: ((e / "table3.csv").unlink(), os.mkfifo(e / "table3.csv")), "a link, or no file: table3.csv"),
    "folder": (lambda e: ((e / "table3.csv").unlink(), (e / "table3.csv").mkdir()), "not there: table3.csv"),
    "missing": (lambda e: (e / "table4.md").unlink(), "not there: table4.md"),
    "further": (lambda e: (e / "table9.csv").write_text("a\n1\n"), "not among the exports: table9.csv"),
    "program": (lambda e: (e / "paper/x.sh").write_text("rm"), "not among the exports: paper/x.sh"),
    "no record": (lambda e: (e / "provenance.json").unlink(), "no export is there"),
    "older record": (lambda e: unrecord(e, *gather.recorded_hashes(e)), "no export is there"),
    "nothing": (lambda e: shutil.rmtree(e), "no export is there"),
}  # fmt: skip
FORGED: dict[str, tuple[Callable[[Path], object], str]] = {
    **{name: (ALTERED[name][0], f"not what the runs say: {ALTERED[name][1]}")
       for name in ("number", "row", "swapped", "cut", "not UTF-8", "further")},
    "missing": (lambda e: ((e / "table4.md").unlink(), unrecord(e, "table4.md")), "not what the runs say: not there: table4.md"),
    "other seeds": (lambda e: edit(e, "provenance.json", '"seeds": [\n   1,', '"seeds": [\n   7,'), "provenance.json, ablation"),
    "other runs": (lambda e: edit(e, "provenance.json", '"runs": [', '"runs": ["a"'), "provenance.json, ablation"),
}  # fmt: skip


def as_before(checkout: Path, readme: str) -> bool:
    return [path.name for path in checkout.rglob("*")] == ["README.md"] and (checkout / "README.md").read_text() == readme


@pytest.mark.parametrize("alteration", ALTERED)
def test_altered_exports_are_not_published(alteration: str, exports: Path, made: Path, checkout: Path):
    strike, said = ALTERED[alteration]
    strike(exports)
    first = "is not published, run `make reproduce PROFILE=demo` to the end first"
    with pytest.raises(ValueError, match=f"{first}: .*{said}") as told:
        publish(made, checkout)
    assert as_before(checkout, f"# Title\n\n{BEGIN}old\n{END}\nThe end.\n") and len(str(told.value)) <= 300


@pytest.mark.parametrize("forgery", FORGED)
def test_exports_that_their_runs_do_not_bear_out_are_not_published(forgery: str, exports: Path, made: Path, checkout: Path):
    strike, said = FORGED[forgery]
    strike(exports)
    record_files(exports, *(exports / name for name in gather.recorded_hashes(exports)), *exports.glob("table9.csv"))
    gather.check_exports("demo", checkout)
    with pytest.raises(ValueError, match=said):
        publish(made, checkout)
    assert as_before(checkout, f"# Title\n\n{BEGIN}old\n{END}\nThe end.\n")


def test_a_page_picture_or_report_with_a_hash_that_fits_is_not_the_one_that_is_published(exports, made, checkout):
    edit(exports, "provenance.json", '"c0ffee"', '"facade"')  # nor is who made it
    for name in ("notebooks/01_data.html", "fig1_architecture.png", "report.md"):
        (exports / name).write_text("<script>")
        record_files(exports, exports / name)
    publish(made, checkout)
    published = checkout / "figures" / "published" / "demo"
    assert (published / "notebooks/01_data.html").read_text() == "notebooks/01_data.html"
    assert (published / "fig1_architecture.png").read_bytes() == b"drawn"
    assert (published / "report.md").read_text() == "# Report\n" and "facade" not in (published / "provenance.json").read_text()


@pytest.mark.parametrize("fails", ["write_text", "copytree", "rename", "csv"])
def test_readme_and_figures_change_together_or_not_at_all(fails: str, exports: Path, made: Path, checkout: Path, monkeypatch):
    publish(made, checkout)
    before = {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()}
    write(exports, "table5.md", Provenance(**vars(DEMO) | {"profile": "other"}))
    if fails == "csv":
        (exports / "table3.csv").write_bytes(b"group,\xff\n")
        record_files(exports, exports / "table3.csv")
    else:
        place = {"write_text": gather.files, "copytree": gather.shutil, "rename": Path}[fails]
        works, full = getattr(place, fails), OSError(28, os.strerror(28), "README.md")

        def fail(*given: object, **options: object) -> object:
            if fails == "rename" and getattr(given[0], "name", "") != ".demo.partial":  # the old ones make way, and come back
                return works(*given, **options)
            raise full

        monkeypatch.setattr(place, fails, fail)
    with pytest.raises((OSError, ValueError), match="disk is full" if fails != "csv" else "table3.csv is no table of scores"):
        gather.publish("demo", exports, checkout)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()} == before


def test_a_published_table_that_cannot_be_read_is_named(exports: Path, made: Path, checkout: Path):
    publish(made, checkout)
    for content in (b"", b"\xff", b"a,b\n1", b'"'):
        path = checkout / "figures" / "published" / "demo" / "table4.csv"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path} is no table of scores"):
            gather.readme(checkout)
    (checkout / "README.md").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="README.md: expected UTF-8"):
        publish(made, checkout)


def test_the_command_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("CMPTA_FIGURES", str(tmp_path))
    assert main(["publish"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("cmpta publish: ") and "make reproduce" in shown and shown.count("\n") == 1
    with pytest.raises(SystemExit, match="2"):
        main(["publish", "--profile", "papper"])
    assert "no profile 'papper'" in capsys.readouterr().err


def test_a_readme_without_its_marks_is_left_alone(exports: Path, checkout: Path):
    (checkout / "README.md").write_text(f"# Title\n{END}{BEGIN}")
    with pytest.raises(ValueError, match="expected one line <!-- results: begin -->"):
        gather.check_exports("demo", checkout)


# --- this repository --------------------------------------------------------------------------------------------------


def test_the_readme_shows_the_published_results():
    """Written by the command, never by hand."""
    assert gather.readme() == (ROOT / "README.md").read_text(encoding="utf-8")


READMES = ["README.md", *(f"{folder}/README.md" for folder in ("cmpta_lib", "data_prep", "figures", "notebooks"))]


@pytest.mark.parametrize("name", READMES)
def test_a_readmes_links_lead_somewhere(name: str):
    """To files that are there, and to headings that these have."""
    path = ROOT / name
    links = [link for link in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")) if "://" not in link]
    for link in links:
        file, _, heading = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, link


def test_the_readme_is_a_page_that_one_reads():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_only_published_figures_are_in_git():
    """So that `make reproduce` leaves the checkout as it was, and exploring writes over nothing that is published."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")

    def ignored(path: str) -> bool:
        return subprocess.run(["git", "-C", ROOT, "check-ignore", "-q", "--no-index", path]).returncode == 0

    assert ignored("figures/demo/table3.md") and ignored("figures/paper/report.md") and ignored("figures/voices/x.png")
    assert not ignored("figures/published/demo/table3.md") and not ignored("figures/README.md")
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "figures"], capture_output=True, text=True, check=True).stdout
    known = ("figures/published/", "figures/README.md", "figures/references.bib")
    assert all(name.startswith(known) for name in listed.splitlines())
