"""`cmpta compare`: which runs a word means, and that the comparison says what the records say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from finished import finish, record_llms, small_studies

from cmpta_lib.cli.__main__ import main
from cmpta_lib.cli.listing import listed
from cmpta_lib.report.comparison import versus
from cmpta_lib.runs import store
from cmpta_lib.study import plan
from cmpta_lib.study.plan import ABLATIONS, CMPTA
from cmpta_lib.study.study import Study

SEVEN = next(row for row in ABLATIONS.values() if row.name == "7 tokens")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Finished runs of three rows on both corpora, two seeds each."""
    with pytest.MonkeyPatch.context() as patch:
        root = record_llms(tmp_path_factory.mktemp("runs"))
        study = small_studies(root, patch)(seeds=2)
        for key in study.keys:
            for row in (CMPTA, SEVEN, plan.method_row(key, "bilstm")):
                finish(study, key, study.runs(key, row))
        return root


@pytest.fixture
def study(whole, tmp_path, monkeypatch) -> Study:
    return small_studies(shutil.copytree(whole, tmp_path / "runs"), monkeypatch)(seeds=2)


def told(capsys, *arguments: str) -> dict:
    assert main(["compare", *arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments: str) -> str:
    assert main(["compare", *arguments]) == 1
    message = capsys.readouterr().err
    assert message.startswith("cmpta compare: ") and message.count("\n") == 1
    return message


def test_rows_are_compared_over_all_their_seeds(study, capsys):
    found = told(capsys, "cmpta", "7 tokens", "--corpus", "embedded-sims")
    assert [[run["seed"] for run in found[side]] for side in "ab"] == [[1111, 2222]] * 2
    assert found["fields"] == {"method.num_pseudo_tokens": {"a": 6, "b": 7}}
    assert [score["metric"] for score in found["scores"]] == ["mae", "corr"]
    for score in found["scores"]:
        assert score["difference"] == pytest.approx(np.mean(score["a"]) - np.mean(score["b"]))
        assert score["low"] <= score["difference"] <= score["high"] and 0 < score["p_value"] <= 1
    changes = [round(abs(clip["a_error"] - clip["b_error"]), 6) for clip in found["clips"]]
    assert changes == sorted(changes, reverse=True) and all(clip["text"] for clip in found["clips"])


def test_a_run_against_itself_does_not_differ_and_another_seed_does(study, capsys):
    (run, other) = study.runs("meld")
    assert told(capsys, run.config.hash, other.config.hash)["fields"] == {"seed": {"a": 1111, "b": 2222}}
    found = told(capsys, run.config.hash[:8], str(run.folder))
    assert found["fields"] == {} and found["scores"][0]["difference"] == 0 and found["scores"][0]["better"] is None
    assert found["only_a_right"] == found["only_b_right"] == 0
    assert main(["compare", run.folder.name, run.config.hash]) == 0
    shown = capsys.readouterr().out
    assert "the settings are the same" in shown and "clips that changed most" not in shown


def test_right_and_wrong_changes_are_counted_clip_by_clip(study):
    (a, _), (b, _) = study.runs("meld"), study.runs("meld", SEVEN)
    right = [(run.predictions()["prediction"] == run.predictions()["label"]).to_numpy() for run in (a, b)]
    found = versus([a], [b])
    assert found.only_right("a") == (right[0] & ~right[1]).sum() and found.only_right("b") == (right[1] & ~right[0]).sum()
    assert found.scores["metric"][0] == "f1_weighted" and len(found.clips) == 9


def test_a_screen_of_two_methods(study, capsys):
    assert main(["compare", "CMPTA", "BiLSTM", "--corpus", "embedded-sims", "--clips", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("A  CMPTA, embedded-sims, seeds 1111, 2222  (runs ") and lines[1].startswith("B  BiLSTM")
    assert any(line.split() == ["method.name", "cmpta", "bilstm"] for line in lines)
    assert any(line.startswith("only A has method.llm.name=tiny, ") for line in lines)
    assert any(line.startswith("MAE ") for line in lines) and any("within 0.2 of the label" in line for line in lines)
    assert len(lines) - next(n for n, line in enumerate(lines) if line.startswith("clips that changed most")) == 3
    assert max(map(len, lines)) <= 130


def test_a_row_beside_a_run_is_looked_for_on_its_corpus(study, capsys):
    (run, _) = study.runs("meld", SEVEN)
    assert {one["corpus"] for one in told(capsys, run.config.hash[:7], "CMPTA")["b"]} == {"embedded-meld"}


def test_what_is_left_unsaid_or_unknown_is_one_line(study, capsys):
    said = "'CMPTA' was run on embedded-meld and embedded-sims: give --corpus, or name one: "
    assert said in refused(capsys, "CMPTA", "7 tokens")
    assert "no run 'CMPTB' on embedded-sims (did you mean 'CMPTA'?)" in refused(
        capsys, "CMPTB", "CMPTA", "--corpus", "embedded-sims"
    )
    assert "no run 'xyz'; `cmpta runs` lists those there are" in refused(capsys, "xyz", "CMPTA")
    message = refused(capsys, study.runs("sims")[0].config.hash, study.runs("meld")[0].config.hash)
    assert "expected runs on one corpus" in message and "'embedded-meld'" in message and "'embedded-sims'" in message


def test_an_unfinished_or_damaged_run_says_what_it_is(study, capsys):
    (a, b), (c, _) = study.runs("sims"), study.runs("sims", SEVEN)
    (b.folder / store.DONE).unlink()
    message = refused(capsys, b.config.hash, c.config.hash)
    assert f"'{b.config.hash}' cannot be asked: {b.folder.name} is unfinished: 1 of 2 epochs" in message
    (c.folder / store.METRICS).write_text("{}")
    message = refused(capsys, a.config.hash, c.config.hash)
    assert f"cannot be asked: {c.folder.name} is damaged: " in message and str(c.folder / store.METRICS) in message
    assert [run["seed"] for run in told(capsys, "CMPTA", "BiLSTM", "--corpus", "embedded-sims")["a"]] == [1111]


def test_what_stands_for_runs_of_different_settings_lists_them(study, capsys, monkeypatch):
    run = study.runs("sims")[0]
    llm = run.config.method.llm.model_copy(update={"name": "other"})
    other = run.config.model_copy(update={"method": run.config.method.model_copy(update={"llm": llm})})
    finish(study, "sims", [store.Run(other, study.root / f"embedded-sims-{other.hash}")])
    message = refused(capsys, "CMPTA", "7 tokens", "--corpus", "embedded-sims")
    assert "stands for runs of different settings; name one: " in message and other.hash in message
    rows = [replace(row, hash=f"abcd{row.seed:08d}") for row in listed(study.root) if row.corpus == "embedded-sims"]
    monkeypatch.setattr("cmpta_lib.cli.finished.listed", lambda root: rows)
    first = "abcd00001111 (BiLSTM, embedded-sims, tiny-bert, seed 1111)"
    assert f"'abcd' is the beginning of several runs; name one: {first}, " in refused(capsys, "abcd", "CMPTA")


def test_a_run_that_was_copied_elsewhere(study, capsys, tmp_path):
    run = study.runs("sims")[0]
    copied = shutil.copytree(run.folder, tmp_path / "elsewhere" / "mine")
    found = told(capsys, str(copied), run.config.hash)
    assert found["scores"][0]["difference"] == 0 and found["clips"][0]["text"] is None
