"""Publishing: what goes under figures/published and into the README, and what does not."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from cmpta_lib.cli.__main__ import main
from cmpta_lib.report import gather
from cmpta_lib.report.export import Provenance, export_table, record
from cmpta_lib.study.plan import sections

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results: begin -->\n", "<!-- results: end -->"
SCORES = {
    "table3": pd.DataFrame(
        [["printed", "LMF [24]", "0.343", "0.517 ± 0.006 (n=2)"], ["own", "BiLSTM", "—", "0.256 ± 0.001 (n=2)"],
         ["printed", "CMPTA", "0.308", "0.251 ± 0.001 (n=2)"]],
        columns=["group", "method", "MAE paper", "MAE this run"],
    ),
    "table4": pd.DataFrame(
        [["printed", "TFN [28]", "57.74", "not run"], ["own", "BiLSTM", "—", "81.43 (n=1)"],
         ["printed", "CMPTA", "59.49", "80.36 ± 1.40 (n=2)"]],
        columns=["group", "method", "WF1 (%) paper", "WF1 (%) this run"],
    ),
}  # fmt: skip
DEMO = Provenance("a corpus (0123)", "tiny (4567)", (1, 2), ("c0ffee",), "demo", True, ("a machine",))


@pytest.fixture
def exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole folder of exports, each of its tables saying its own name."""
    monkeypatch.setenv("CMPTA_FIGURES", str(tmp_path / "figures"))
    folder = tmp_path / "figures" / "demo"
    for _, patterns in sections(("sims", "meld"), False):
        for pattern in patterns:
            write(folder, pattern.replace("[12]", "1").replace("[34]", "3").replace("*", "x"))
    (folder / "report.md").write_text("# Report\n")
    for name in ("paper/fig3_x.pdf", "paper/fig3_x.txt", "notebooks/01_data.html"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "README.md").write_text(f"# Title\n\n{BEGIN}old\n{END}\nThe end.\n")
    return tmp_path / "checkout"


def write(folder: Path, name: str, provenance: Provenance = DEMO) -> None:
    stem, suffix = name.split(".")
    if suffix == "md":
        frame = SCORES[stem] if stem in SCORES else pd.DataFrame({"a": [stem]})
        export_table(frame, folder, stem, caption=f"All of {stem}.", provenance=provenance)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"drawn")
    record(folder, stem, provenance)


def test_a_whole_folder_is_published_and_shown(exports: Path, checkout: Path):
    (exports / ".something.partial").write_text("half")
    said = gather.publish("demo", checkout)
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
        "||SIMS-V2 MAE, paper|a corpus, this run|MELD WF1 (%), paper|a corpus, this run|",
        "|-|-|-|-|-|",
        "|LMF|0.343|0.517 ± 0.006|—|—|",
        "|TFN|—|—|57.74|not run|",
        "|BiLSTM|—|0.256 ± 0.001|—|81.43|",
        "|CMPTA|0.308|0.251 ± 0.001|59.49|80.36 ± 1.40|",
    ]
    assert "(figures/published/demo/report.md)" in shown
    (published / "gone.md").write_text("no longer exported")
    assert gather.publish("demo", checkout) == said and not (published / "gone.md").exists()
    assert (checkout / "README.md").read_text(encoding="utf-8") == text


def test_rows_that_make_reproduce_does_not_run_say_what_ran_them(exports: Path, checkout: Path, monkeypatch):
    further = [["own", "MGSI", "—", "0.240 ± 0.004 (n=2)"], ["own", "MLLM-MAC", "—", "not run"]]
    longer = pd.concat([SCORES["table3"], pd.DataFrame(further, columns=SCORES["table3"].columns)])
    monkeypatch.setitem(SCORES, "table3", longer)
    write(exports, "table3.md")
    gather.publish("demo", checkout)
    assert "by `make reproduce` (MGSI: by `make reproduce ARGS=--all`)" in (checkout / "README.md").read_text()


def changed(**fields: object) -> Provenance:
    return Provenance(**vars(DEMO) | fields)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda exports: (exports / "table4.md").unlink(), "not there: table4.md"),
        (lambda exports: (exports / "provenance.json").unlink(), "not there: .*provenance.json"),
        (lambda exports: write(exports, "table4.md", changed(data="a corpus, SMOKE RUN")), "of a smoke run: table4"),
        (lambda exports: write(exports, "table4.md", changed(seeds=(1,))), r"made with different seeds: \[1, 2\] and \[1\]"),
        (lambda exports: write(exports, "table7.md", changed(profile="demo, x=1")), "different profile: demo and demo, x=1"),
        (lambda exports: (exports / "table9.csv").write_text("a\n1\n"), "table9 is not in provenance.json"),
    ],
    ids=["missing", "record", "smoke", "seeds", "profile", "unrecorded"],
)
def test_leftovers_are_not_published(spoil: Callable[[Path], object], said: str, exports: Path, checkout: Path):
    spoil(exports)
    before = (checkout / "README.md").read_bytes()
    with pytest.raises(ValueError, match=f"is not published, run `make reproduce PROFILE=demo` to the end first: .*{said}"):
        gather.publish("demo", checkout)
    assert (checkout / "README.md").read_bytes() == before and not (checkout / "figures").exists()


def test_the_command_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("CMPTA_FIGURES", str(tmp_path))
    assert main(["publish"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("cmpta publish: ") and "table3.md" in shown and shown.count("\n") == 1
    assert main(["publish", "--profile", "papper"]) == 1
    assert "no profile 'papper'" in capsys.readouterr().err


def test_a_readme_without_its_marks_is_left_alone(exports: Path, checkout: Path):
    (checkout / "README.md").write_text(f"# Title\n{END}{BEGIN}")
    with pytest.raises(ValueError, match="expected one line <!-- results: begin -->"):
        gather.publish("demo", checkout)
    assert not (checkout / "figures").exists()


# --- this repository --------------------------------------------------------------------------------------------------


def test_the_readme_shows_the_published_results(tmp_path: Path):
    """Written by the command, never by hand."""
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "published").symlink_to(ROOT / "figures" / "published")
    (tmp_path / "README.md").write_bytes((ROOT / "README.md").read_bytes())
    gather.rewrite_readme(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == (ROOT / "README.md").read_text(encoding="utf-8")


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
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1000


def test_only_published_figures_are_in_git():
    """So that `make reproduce` leaves the checkout as it was, and exploring writes over nothing that is published."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")

    def ignored(path: str) -> bool:
        return subprocess.run(["git", "-C", ROOT, "check-ignore", "-q", "--no-index", path]).returncode == 0

    assert ignored("figures/demo/table3.md") and ignored("figures/paper/report.md") and ignored("figures/voices/x.png")
    assert not ignored("figures/published/demo/table3.md") and not ignored("figures/README.md")
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "figures"], capture_output=True, text=True, check=True).stdout
    assert all(name.startswith(("figures/published/", "figures/README.md")) for name in listed.splitlines())
