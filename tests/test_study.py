"""The study: its seeds, the runs behind each row, tables from finished runs, and what a caller changes of the config."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from finished import clips, finish, finish_tables, record_llms, small_studies

from cmpta_lib import files, metrics, paper
from cmpta_lib.cli.__main__ import main
from cmpta_lib.cli.dry_run import write_qwen_v1
from cmpta_lib.config import PAPER_SEEDS, LLMConfig, RunConfig, paths
from cmpta_lib.data.corpus import Sample
from cmpta_lib.embedded import synthetic
from cmpta_lib.llm import files as llm_files
from cmpta_lib.report import comparison, gather, summaries, tables
from cmpta_lib.report import rows as reports
from cmpta_lib.report.uncertainty import ResultRow
from cmpta_lib.runs import provenance, store
from cmpta_lib.runs.store import Run
from cmpta_lib.study import exports, plan
from cmpta_lib.study import study as experiments
from cmpta_lib.study.exports import short_name
from cmpta_lib.study.parameters import _ELSEWHERE
from cmpta_lib.study.plan import CHOICES, CMPTA, MSE_LLAMA, TEXT_ONLY, Row
from cmpta_lib.study.profiles import DRY_RUN
from cmpta_lib.study.study import WITHOUT, Study
from cmpta_lib.study.trained import load, plain

ROOT = Path(__file__).parents[1]
ABLATIONS = list(plan.ABLATIONS.values())


@pytest.fixture(scope="module")
def voices(tmp_path_factory) -> Path:
    """A user's own clips."""
    return clips(lambda number: ("calm", "happy")[number % 2], (6, 4, 5), tmp_path_factory.mktemp("voices"))


REFERENCES = ["constant", "linear", "BiLSTM", "soft prompt"]
ADDED = ["MSE-Adapter", *REFERENCES]  # rows of a comparison that the paper does not print and its reproduction runs


def row(name: str) -> Row:
    return next(row for row in (CMPTA, TEXT_ONLY, *ABLATIONS) if row.name == name)


def flat(config: RunConfig) -> dict[str, Any]:
    return {path: attrgetter(path)(config) for path in paths(config)}


def difference(config: RunConfig, base: RunConfig) -> dict[str, Any]:
    return {name: value for name, value in flat(config).items() if value != flat(base)[name]}


# --- profiles and seeds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({"seeds": 1}, (1111,)), ({"seeds": 5}, PAPER_SEEDS), ({"seeds": [7, 1111]}, (7, 1111)), ({"seeds": [0]}, (0,)),
        ({}, (1111, 2222)), ({"profile": "paper"}, PAPER_SEEDS), ({"seeds": 5, "smoke": True}, (1111,)),
    ],
)  # fmt: skip
def test_seeds_are_a_number_or_a_list_and_by_default_the_profiles(options, taken):
    assert Study(**options).seeds == taken


# --- which runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [CMPTA, TEXT_ONLY, *ABLATIONS, *CHOICES], ids=lambda row: row.name)
def test_a_row_changes_just_what_it_says(study, wanted):
    """Text only, too, has the full method's LLM, prompt and schedule."""
    plain = study()
    for key in plain.keys:
        base, config = flat(plain.config(key)), flat(plain.config(key, wanted))
        changed = {name: value for name, value in config.items() if value != base[name]}
        assert changed == ({"method.name": "text_only"} if wanted is TEXT_ONLY else wanted.changes)
        assert changed or wanted is CMPTA


def test_a_row_that_there_cannot_be_lists_what_there_is(study):
    with pytest.raises(ValueError, match="no method 'bert'; there are: text_only, .*, lmf, .*, cmpta"):
        study().config("sims", Row("BERT", "bert"))
    with pytest.raises(ValueError, match="no LLM for a row of profile 'demo' 'gpt'; there are: llama2-7b"):
        study().config("sims", Row("a row", "mse_adapter", llm="gpt"))
    with pytest.raises(ValueError, match="no notebook '10_more'; there are: 01_data, 02_model, "):
        study().planned(["10_more"])


def test_a_smoke_run_is_small_and_apart(study, tmp_path, monkeypatch):
    smoke, full = study(smoke=True), study()
    assert {"method.dim": 16, "training.epochs": 1}.items() <= flat(smoke.config("sims")).items()
    assert smoke.root == full.root / "smoke" and not full.figures.is_relative_to(full.root)
    monkeypatch.setenv("CMPTA_FIGURES", str(tmp_path / "elsewhere"))  # of a checkout that cannot be written
    assert study().figures == tmp_path / "elsewhere" / "explored" / "demo" and smoke.figures.is_relative_to(smoke.root)


@pytest.fixture
def published(study, tmp_path, monkeypatch) -> Callable[..., Path]:
    """Puts tiny stand-ins of LLMs of these families where those that are published would lie."""
    monkeypatch.setattr(llm_files, "locate", lambda name: tmp_path / name)

    def make(**families: str) -> Path:
        for name, family in families.items():
            write_qwen_v1(tmp_path / name, ["a word"], width=16, layers=1, vocabulary_size=500, seed=len(name))
            path = tmp_path / name / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": family}))
        return tmp_path

    return make


def of_the_paper(study: Callable[..., Study]) -> Study:
    """Profile `paper` over generated corpora: its own are not here."""
    plain = study("paper")
    for key in ("sims", "meld"):
        plain._corpora[key] = study().corpus(key)
    return plain


def test_the_papers_profile_trains_as_table_2_says(study, published):
    published(**{"qwen-1.8b": "qwen"})
    config = flat(of_the_paper(study).config("sims"))
    settings = {"method.dim": 1024, "training.epochs": 150, "training.patience": None, "method.prompt.answer_sign": "always"}
    settings |= {"method.llm.name": "Qwen/Qwen-1_8B", "method.llm.dtype": "bfloat16"}
    settings |= {f"training.{name}": getattr(paper.HYPERPARAMETERS, name) for name in ("learning_rate", "batch_size")}
    assert settings.items() <= config.items()


@pytest.mark.parametrize(("family", "sign"), [("qwen", "always"), ("qwen2", "always"), ("llama", "negative")])
def test_scores_are_written_as_the_backbones_family_writes_them(family, sign, study, published):
    plain = study(llm=str(published(own=family) / "own"))
    assert plain.config("sims").method.prompt.answer_sign == sign
    assert plain.llm.name == "own" and plain.figures.name == f"demo-own-{plain.llm.fingerprint[:6]}"
    assert study().config("sims").method.prompt.answer_sign == "always"


# --- rows with an LLM of their own ------------------------------------------------------------------------------------


def test_table_3_has_a_line_with_an_llm_of_its_own_the_profiles_of_that_role(study):
    plain = study()
    assert MSE_LLAMA in plan.comparison("sims") and MSE_LLAMA not in plan.comparison("meld") + plan.comparison("data")
    lines = [row for row in comparison.comparison_rows(plain, "sims") if row.method.startswith("MSE")]
    assert [row.method for row in lines] == ["MSE-LLaMA2-7B [27]", "MSE-Adapter"] and lines[0].paper["mae"] == 0.382
    base, config = flat(plain.config("sims", Row("MSE-Adapter", "mse_adapter"))), flat(plain.config("sims", MSE_LLAMA))
    assert {name: value for name, value in config.items() if value != base[name]} == {
        "method.llm.name": "tiny-llama",
        "method.llm.fingerprint": "11a3a00000000000",
        "method.prompt.answer_sign": "negative",
    }
    assert plain.llm_names() == ["tiny", "tiny-llama"] and plain.llm_names(["05_table4_meld"]) == ["tiny"]
    stated = reports.provenance(plain, ["sims"], [*plain.runs("sims"), *plain.runs("sims", MSE_LLAMA)])
    assert stated.backbone == "tiny (01234567), tiny-llama (11a3a000)" and stated.fingerprints["tiny-llama"][:5] == "11a3a"


def test_the_callers_own_llm_serves_every_row_and_a_dry_run_has_one_for_each_role(study, published):
    plain = study(llm=str(published(own="qwen") / "own"))
    assert plain.config("sims", MSE_LLAMA) == plain.config("sims", Row("MSE-Adapter", "mse_adapter"))
    assert plain.llm_names() == [plain.own_llm]
    assert study("paper").llm_names() == ["qwen-1.8b", "llama2-7b"]
    record = study(smoke=True).root / DRY_RUN
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"llm": "random-qwen", "llms": {"llama2-7b": "random-llama"}, "changes": {}}))
    assert study("paper", smoke=True).llm_names() == ["random-qwen", "random-llama"]


def test_a_row_whose_own_llm_is_not_here_says_so_and_the_others_stand(study, monkeypatch):
    plain = study()

    def absent(name: str, _: str = "") -> LLMConfig:
        if name == "tiny-llama":
            raise FileNotFoundError("it is not on this machine; fetch it")
        return LLMConfig(name=name, fingerprint="0123456789abcdef")

    monkeypatch.setattr(plain, "_resolved", absent)
    assert plain.missing(MSE_LLAMA) and not plain.missing(CMPTA)
    assert not [name for name, _ in plain.planned_runs(["04_table3_simsv2"]) if name == MSE_LLAMA.name]
    (row,) = (row for row in comparison.comparison_rows(plain, "sims") if row.method.startswith(MSE_LLAMA.name))
    assert row.predictions is None and row.note == "it is not on this machine; fetch it"
    for table in (comparison.methods_table, comparison.field_table):
        assert MSE_LLAMA.name in list(table(plain, "sims")["method"])


@pytest.mark.parametrize(
    ("key", "name", "values"),
    [
        ("sims", "MSE-Adapter", [5e-4, 16, 30, 10, 64, 64, 4, "always"]),
        ("meld", "MSE-Adapter", [5e-4, 16, 50, 8, 32, 16, 2, "always"]),
        ("sims", "MSE-LLaMA2-7B", [5e-5, 8, 40, 10, 64, 64, 4, "negative"]),
    ],
)
def test_mse_adapter_trains_as_its_public_code_says(key, name, values, study, published):
    published(**{"qwen-1.8b": "qwen", "llama2-7b": "llama"})
    names = [f"training.{name}" for name in ("learning_rate", "batch_size", "epochs", "patience")]
    names += [f"method.{name}" for name in ("audio_hidden", "vision_hidden", "num_pseudo_tokens", "prompt.answer_sign")]
    (wanted,) = (row for row in plan.comparison(key) if row.name == name)
    config = flat(of_the_paper(study).config(key, wanted))
    assert [config[name] for name in names] == values
    assert config["training.epsilon"] == 1e-4 and config["training.gradient_clip"] is None


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_runs_folder_is_named_by_its_corpus_and_hash(study, root):
    (run, zero), (smoke,) = study(seeds=[1111, 0]).runs("sims"), study(smoke=True).runs("sims")
    assert run.config.seed == 1111 and difference(zero.config, run.config) == {"seed": 0}
    assert run.folder == root / f"embedded-sims-{run.config.hash}"
    assert smoke.folder.parent == root / "smoke" and smoke.folder.name != run.folder.name


@pytest.mark.parametrize("own", [False, True])
def test_planned_runs_are_those_of_tables_and_register_each_once(study, voices, own):
    plain = study(data=str(voices) if own else "", seeds=2)
    runs = [run for _, run in plain.planned_runs()]
    assert len({run.config for run in runs}) == len({run.folder for run in runs}) == len(runs)
    rows = sum(len(plan.compared(key)) + len(ABLATIONS) for key in plain.keys)
    assert len(runs) == rows * 2 + len(CHOICES)
    tried = plain.choice_runs()
    assert [run.config for run in tried[1:]] == [plain.config(plain.keys[0], row) for row in CHOICES]
    assert tried[0].config == plain.config(plain.keys[0]) and {run.folder for run in tried} <= {run.folder for run in runs}


def test_each_notebook_plans_its_own_runs(study):
    plain = study(seeds=2)

    def planned(*notebooks: str) -> list[tuple[str, str, int]]:
        return [(name, run.config.data.name, run.config.seed) for name, run in plain.planned_runs(notebooks)]

    sims, meld = "embedded-sims", "embedded-meld"
    assert planned("01_data", "02_model") == []
    compared = ["LMF", "Self-MM", "MAG-BERT", "MSE-LLaMA2-7B", *ADDED, "text only", "CMPTA"]
    assert sorted(planned("04_table3_simsv2")) == sorted((name, sims, seed) for name in compared for seed in (1111, 2222))
    compared[:4] = ["TFN", "MMGCN", "GA2MIF"]
    assert sorted(planned("05_table4_meld")) == sorted((name, meld, seed) for name in compared for seed in (1111, 2222))
    assert planned("08_attention_figs3_4") == [("CMPTA", sims, 1111), ("CMPTA", meld, 1111)]
    assert planned("09_case_study_fig5") == [("CMPTA", meld, 1111), ("text only", meld, 1111)]
    first, further = ([("CMPTA", corpus, seed) for corpus in (sims, meld)] for seed in (1111, 2222))
    assert planned("03_training") == [*first, *((row.name, sims, 1111) for row in CHOICES), *further]
    ablation = planned("06_table5_ablation_simsv2")
    assert {name for name, _, _ in ablation} == {"CMPTA", "text only", *(row.name for row in ABLATIONS)}


def test_runs_are_made_seed_after_seed_and_headlines_first(study):
    runs = [(one.row.name, one.key, one.seed) for one in study(seeds=2).planned()]
    assert [seed for _, _, seed in runs] == sorted(seed for _, _, seed in runs)
    first = [(name, key) for name, key, seed in runs if seed == 1111]
    assert first[:2] == [("CMPTA", "sims"), ("CMPTA", "meld")]
    headline = {"text only", "soft prompt", "LMF", "Self-MM", "MAG-BERT", "MSE-LLaMA2-7B", "TFN", "MMGCN", "GA2MIF"}
    assert {name for name, _ in first[2:13]} == headline, "then what the paper compares CMPTA with, on both corpora"
    assert {name for name, _ in first[13:25]} == {row.name for row in ABLATIONS}
    assert {name for name, _ in first[25:33]} == {"MSE-Adapter", "constant", "linear", "BiLSTM"}
    assert [name for name, _ in first[33:]] == [row.name for row in CHOICES]


def test_more_seeds_add_to_the_runs_of_one(study):
    """`--seeds 1` first, then five: no run is made twice, and none of the first seed's waits behind a further one's."""
    names = [notebook.name for notebook in plan.NOTEBOOKS]
    one, five = ([run.folder for _, run in study(seeds=seeds).planned_runs(names)] for seeds in (1, 5))
    assert five[: len(one)] == one and len(five) > len(one)
    finish(plain := study(seeds=1), "sims", plain.runs("sims"))
    assert [run.done for run in study(seeds=5).runs("sims")] == [True, False, False, False, False]


def test_a_notebook_makes_no_run_where_only_finished_ones_are_wanted(study, monkeypatch):
    monkeypatch.setenv(experiments.ONLY_FINISHED, "1")
    monkeypatch.setattr(Study, "ensure", lambda *_: pytest.fail("made"))
    plain = study(seeds=1)
    runs = plain.runs("meld")
    assert plain.make(runs) is runs and not plain.failures
    plain.conclude()


@pytest.mark.parametrize("own", [False, True])
def test_what_a_notebook_asks_for_is_what_is_planned_for_it(study, voices, own):
    """Else `cmpta reproduce` would train runs that nothing shows, or leave some to a notebook."""
    plain = study(data=str(voices) if own else "", seeds=2)
    for notebook in plan.NOTEBOOKS:
        asked = {run.folder for run in plain.needed(notebook.name)}
        asked |= {run.folder for run in plain.choice_runs()} if notebook.has_choices else set()
        assert asked == {run.folder for _, run in plain.planned_runs([notebook.name])}


# --- published runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path, monkeypatch) -> Path:
    """Published runs written by hand; the runs folder has the LLM's record alone, so that all is to be trained there."""
    folder = tmp_path / "figures" / "published" / "demo" / "runs"
    made = small_studies(record_llms(tmp_path / "made"), monkeypatch)()
    for key in made.keys:
        finish(made, key, [run for row in (CMPTA, TEXT_ONLY) for run in made.runs(key, row)])
    exports.copy_runs(made.needed("11_errors"), folder)
    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.setattr(files, "PUBLISHED_RUNS", folder)
    monkeypatch.setenv("CMPTA_RUNS", str(record_llms(tmp_path / "runs")))
    monkeypatch.setattr(Study, "ensure", lambda self, runs: runs)
    return folder


def test_published_runs_are_for_who_asks_and_has_none_and_that_is_said(shipped, monkeypatch, capsys):
    asking, own, where = Study(published=True), Study(), "figures/published/demo/runs; `make reproduce` trains your own\n"
    runs = asking.make(asking.needed("11_errors"))
    assert {run.folder.parent for run in runs} == {shipped} and all(run.done and not run.problem for run in runs)
    assert capsys.readouterr().out == f"CMPTA, text only: the published runs (8), {where}"
    others = [Study(seeds=[3333], published=True), Study(changes={"training.epochs": 1}, published=True), own]
    with monkeypatch.context() as reproduction:
        reproduction.setenv(WITHOUT, "{}")
        others.append(Study(published=True))
    assert not any(run.done for other in others for run in other.make(other.runs("sims"))) and capsys.readouterr().out == ""
    (path := asking.runs("meld")[0].folder / "predictions.parquet").write_bytes(b"")
    runs = asking.make(asking.runs("meld"))
    assert [run.folder.parent for run in runs] == [asking.root, shipped] and not runs[0].done
    used, damaged = capsys.readouterr().out.splitlines(keepends=True)
    assert used == f"CMPTA: the published runs (1), {where}"
    assert damaged.startswith(f"a published run is damaged and trained anew: {path} is not the file that was written")
    finish(own, "sims", own.runs("sims"))
    assert asking.runs("sims") == own.runs("sims"), "one's own come first"


def test_the_published_llm_stays_in_its_place(shipped, capsys):
    folder = Study(published=True).cache / "llm" / "tiny-3.2-16000"
    assert llm_files.or_published(folder) == folder and not capsys.readouterr().out
    shutil.rmtree(folder)
    asking = Study(published=True)
    assert all(run.done for run in asking.runs("sims")) and not folder.exists()
    assert capsys.readouterr().out.startswith("LLM: the published one, figures/published/demo/runs/cache/llm/tiny-3.2-16000; ")
    there = shipped / "cache" / "llm" / folder.name
    assert llm_files.find_tiny(asking.llm.fingerprint, folder.parent) == there
    with pytest.raises(FileNotFoundError, match="build it with"):
        llm_files.find_tiny("", folder.parent)
    (there / "cmpta.json").write_text("{}")
    assert llm_files.or_published(folder) == folder
    assert capsys.readouterr().out.startswith(f"the published LLM is damaged, and one is built: {there / 'cmpta.json'} ")


def test_what_is_published_is_whole_and_answers_from_an_empty_runs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path))
    found = list(store.found(files.PUBLISHED_RUNS))
    assert store.sound([run for run in found if isinstance(run, Run)]) == found and len(found) == 8
    assert sum(path.stat().st_size for path in files.PUBLISHED_RUNS.glob("*-*/*")) < 3e6
    run = load("published:meld")
    assert (run.run.config.data.name, run.run.config.method.name, run.run.config.seed) == ("embedded-meld", "cmpta", 1111)
    widths = run.inputs.widths
    voice, face = (np.linspace(-1, 1, 9 * widths[one], dtype="f4").reshape(9, -1) for one in ("audio", "vision"))
    clip = Sample(id="mine", text="What a day.", audio=voice, vision=face[:7])
    assert run.predict([clip])[0].value == plain(run).answer(clip).value and run.attention(clip)["t1"].shape[2] == 7
    with pytest.raises(FileNotFoundError, match="no published run 'simz' .did you mean 'sims'.*: expected published:meld or "):
        load("published:simz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_published_run_trained_again_has_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path))
    there, here = (one.split(",")[0] for one in (load("published:meld").run.environment["hardware"], provenance.hardware()))
    if there != here:
        pytest.skip(f"bytes repeat on one kind of machine only: made on {there}, and this is {here}")
    published = (study := Study(published=True)).runs("meld")[0]
    assert published.done, "published runs are of other settings: publish anew"
    (again,) = study.ensure([replace(published, folder=tmp_path / published.folder.name)], jobs=1)
    for name in ("weights.safetensors", "predictions.parquet", "history.csv"):
        assert (again.folder / name).read_bytes() == (published.folder / name).read_bytes(), name


# --- corpora ----------------------------------------------------------------------------------------------------------


def test_the_papers_corpora_are_asked_for_by_name(root, tmp_path, monkeypatch):
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path))
    where = str(tmp_path / "cache" / "data" / "simsv2")
    there = f"profile 'paper' needs the corpus 'simsv2' in {where}, and it is not there"
    message = f"{there}. Make it with: cmpta data simsv2; .*data=<folder>.*profile 'demo'"
    with pytest.raises(FileNotFoundError, match=message):
        Study("paper").corpus("sims")
    with pytest.raises(FileNotFoundError, match="'meld'"):
        comparison.comparison_rows(Study("paper"), "meld")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_pickles_takes_the_corpora_place(study, voices):
    own = study(data=str(voices), smoke=True)
    assert own.keys == ("data",) and own.key("sims") == own.key("meld") == "data"
    corpus = own.corpus("data")
    assert corpus is own.corpus("data")
    assert corpus.name == "voices" and corpus.task.labels == ("calm", "happy") and not corpus.generated
    assert not own.is_paper_corpus("data") and reports.bayes(own, "data", "f1_weighted") == {}
    assert study(data=str(voices)).figures == ROOT / "figures" / "explored" / "voices"
    assert own.runs("data")[0].folder.name.startswith("voices-")


def test_an_llm_that_cannot_be_built_shows_its_error(tmp_path, monkeypatch):
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path))
    monkeypatch.setattr(experiments.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="building tiny failed, exit code 1:"):
        _ = Study().llm


# --- best possible scores ---------------------------------------------------------------------------------------------


def test_text_alone_is_worse_than_everything(study, monkeypatch):
    monkeypatch.setattr(synthetic, "SPLIT_SIZES", {"train": 1, "valid": 1, "test": 400})
    plain = study()
    mae, f1 = (reports.bayes(plain, *about) for about in (("sims", "mae"), ("meld", "f1_weighted")))
    assert list(mae) == ["text", "face_voice", "all"] and list(f1) == [*mae, "context"]
    assert mae["all"] < mae["face_voice"] < 1 and mae["all"] + 0.05 < mae["text"] < 1
    assert 1 > f1["context"] > f1["all"] > f1["text"] + 0.05 and f1["all"] > f1["face_voice"]


def test_a_bound_says_by_which_rule_it_is_found(study, voices):
    """On the page in words, without internal names; nothing is claimed of real clips."""
    plain = study(smoke=True)
    table = summaries.best_possible(plain, plain.keys)
    assert list(table["metric"]) == ["MAE", "Corr", "WF1 (%)"] and table.columns[-1] == "answered with"
    assert list(table["whole dialogue"][:2]) == ["—", "—"] and table["answered with"].str.len().max() < 50
    own = study(data=str(voices))
    assert not any(reports.best_of(own, "data", ["f1_weighted"]).values()) and summaries.best_possible(own, ["data"]).empty


def test_the_best_score_is_that_of_the_generators_answers(study):
    plain = study(smoke=True)
    table = plain.corpus("sims").splits["test"].table
    assert reports.bayes(plain, "sims", "mae")["text"] == pytest.approx(np.abs(table["label"] - table["bayes_text"]).mean())
    table = plain.corpus("meld").splits["test"].table
    assert reports.bayes(plain, "meld", "accuracy")["all"] == (table["label"] == table["bayes_all"]).mean()


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(study) -> Study:
    plain = study(smoke=True)
    finish_tables(plain)
    return plain


def answers(study: Study, key: str, name: str) -> np.ndarray:
    return np.stack([run.predictions()["prediction"] for run in study.runs(key, row(name))])


@pytest.mark.parametrize(("key", "table"), [("sims", paper.TABLE3), ("meld", paper.TABLE4)])
def test_the_comparison_has_the_papers_rows_in_order_and_text_only(finished, key, table):
    rows = comparison.comparison_rows(finished, key)
    *others, ours = table
    assert [shown.method for shown in rows[: len(others)]] == [f"{line.method} [{line.reference}]" for line in others]
    for shown, line in zip(rows, others, strict=False):
        assert shown.paper == line.scores
    *added, text_only, cmpta = rows[len(others) :]
    methods, beyond = added[: -len(REFERENCES)], [row.name for row in plan.added(key)]
    assert {"prototype prompt", "MGSI"} <= set(beyond)
    assert [shown.method for shown in methods if shown.method not in beyond] + REFERENCES == ADDED
    assert sorted(shown.method for shown in methods) == sorted(["MSE-Adapter", *beyond])
    assert [shown.method for shown in added[-len(REFERENCES) :]] == REFERENCES
    assert [(shown.group, shown.paper) for shown in added] == [
        (comparison.REFERENCE if shown.method in REFERENCES else comparison.ADDED, {}) for shown in added
    ]
    for shown in rows:
        wanted = next(row for row in plan.comparison(key) if row.name == shown.method.partition(" [")[0])
        said = [run.predictions()["prediction"] for run in finished.runs(key, wanted)]
        np.testing.assert_array_equal(shown.predictions, np.stack(said))
    assert text_only.method.startswith("text only") and text_only.paper == {}
    assert cmpta.method == "CMPTA" and cmpta.paper == ours.scores
    np.testing.assert_array_equal(cmpta.truth, finished.corpus(key).splits["test"].labels)


ROWS = ["CMPTA", "alignment off", "CMPTA", "unidirectional", "CMPTA", "adapter off"]
ROWS += ["5 tokens", "CMPTA", "7 tokens", "8 tokens"]


def printed_and_ours(rows: Sequence[ResultRow]) -> tuple[list[ResultRow], list[ResultRow]]:
    """The rows that the paper prints too, and the one that it does not."""
    ours = [row for row in rows if row.method.startswith("text only")]
    return [row for row in rows if row not in ours], ours


@pytest.mark.parametrize(("key", "table"), [("sims", paper.TABLE5), ("meld", paper.TABLE6)])
def test_the_ablation_has_the_papers_rows_in_order_each_from_its_runs(finished, key, table):
    rows, (extra,) = printed_and_ours(reports.ablation_rows(finished, key))
    assert [(row.group, row.method, row.paper) for row in rows] == [(r.group, r.method, r.scores) for r in table]
    for shown, name in zip(rows, ROWS, strict=True):
        np.testing.assert_array_equal(shown.predictions, answers(finished, key, name))
    assert (extra.group, extra.paper) == (paper.ADAPTER, {})
    np.testing.assert_array_equal(extra.predictions, answers(finished, key, "text only"))


def test_a_users_own_clips_stand_beside_no_number_of_the_paper(study, voices):
    own = study(data=str(voices), smoke=True)
    finish_tables(own)
    compared, ablation = comparison.comparison_rows(own, "data"), reports.ablation_rows(own, "data")
    names = [row.method for row in compared]
    assert names[-6:] == [*REFERENCES, "text only", "CMPTA"]
    beyond = [row.name for row in plan.added("data")]
    assert set(names[:-6]) == {"LMF", "Self-MM", "MAG-BERT", "TFN", "MMGCN", "GA2MIF", "MSE-Adapter", *beyond}
    assert [row.method for row in printed_and_ours(ablation)[0]] == [line.method for line in paper.TABLE6]
    for shown in compared + ablation:
        assert shown.paper == {} and shown.predictions.shape == (1, 5)


def test_an_unparsable_class_is_a_wrong_answer_and_not_a_label(study):
    plain = study(smoke=True, seeds=[77])

    def unparsable(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(prediction=table["prediction"].mask(table["id"] == "test_00002"))

    finish(plain, "meld", plain.runs("meld"), unparsable)
    shown = reports.result_row(plain, "meld", CMPTA)
    assert shown.predictions.dtype.kind == "i" and shown.note == "1 unparsable replies"
    assert (shown.predictions == metrics.UNPARSABLE).nonzero()[1].tolist() == [2]


def test_making_runs_asks_for_all_and_a_row_for_none(study, monkeypatch):
    """A table only reads: what trains is the cell before it."""
    plain, asked = study(seeds=[31, 32]), []

    def ensure(runs: Sequence[Run], root: Path, jobs: int | None, **_: object) -> None:
        asked.append([run.folder for run in runs])
        finish(plain, "sims", [run for run in runs if not run.done])

    monkeypatch.setattr(experiments, "ensure", ensure)
    first, second = plain.runs("sims", row("7 tokens"))
    finish(plain, "sims", [first])
    assert reports.result_row(plain, "sims", row("7 tokens")).note == "1 of 2 seeds so far" and asked == []
    plain.make(plain.runs("sims", row("7 tokens")))
    shown = reports.result_row(plain, "sims", row("7 tokens"))
    np.testing.assert_array_equal(shown.predictions, answers(plain, "sims", "7 tokens"))
    assert shown.note == "" and shown.predictions.shape == (2, 9)
    assert asked == [[first.folder, second.folder]]
    plain.conclude()


# --- where it all comes from ------------------------------------------------------------------------------------------


def test_provenance_says_generated_and_names_every_commit_and_machine_of_its_runs(finished, study):
    stated = reports.provenance(finished, ["sims", "meld"], finished.runs("sims") + finished.runs("meld"))
    prints = [finished.corpus(key).fingerprint[:8] for key in ("sims", "meld")]
    assert stated.data == f"embedded-sims ({prints[0]}), embedded-meld ({prints[1]}), SMOKE RUN"
    assert stated.generated and "says nothing about the paper" in stated.warning()
    assert (stated.profile, stated.backbone, stated.seeds) == ("demo", "tiny (01234567)", (1111,))
    plain = study(seeds=2)
    first, second = plain.runs("meld", Row("two heads", changes={"method.num_heads": 2}))
    finish(plain, "meld", [first], commit="b")
    finish(plain, "meld", [second], commit="a+dirty", hardware="another machine")
    stated = reports.provenance(plain, ["meld"], [second, first, first])
    assert (stated.commits, stated.hardware) == (("a+dirty", "b"), ("a machine", "another machine"))
    assert stated.seeds == (1111, 2222) and "SMOKE" not in stated.data


def test_commit_and_machine_stay_out_of_what_is_exported_and_in_its_record(finished, tmp_path, monkeypatch):
    from cmpta_lib.report.export import recorded

    runs, exports = finished.runs("sims"), {}
    for machine, commit in (("a", "c0ffee"), ("b", "facade+dirty")):
        finish(finished, "sims", runs, commit=commit, hardware=machine)
        fresh = Study(smoke=True)
        monkeypatch.setattr(Study, "figures", tmp_path / machine)
        shown = reports.result_row(fresh, "sims", CMPTA)
        frame = pd.DataFrame({"method": [shown.method], "MAE paper": ["—"], "MAE this run": [len(shown.predictions)]})
        reports.save_table(fresh, frame, "table3", "Table 3.", ["sims"], fresh.runs("sims"))
        exports[machine] = {p.name: p.read_bytes() for p in (tmp_path / machine).glob("table3.*")}
        item = recorded(tmp_path / machine)["table3"]
        assert (item["commits"], item["hardware"], item["packages"]) == ([commit], [machine], ["torch 2.13.0"])
        assert item["runs"] == [run.folder.name for run in runs] and item["seeds"] == [1111]
        assert item["fingerprints"]["embedded-sims"] == fresh.corpus("sims").fingerprint
        assert item["fingerprints"]["tiny"] == fresh.llm.fingerprint
        report = gather.write_report(fresh, ["sims"]).read_text(encoding="utf-8")
        assert f"Made at commit {commit} on {machine} with torch 2.13.0" in report
    assert exports["a"] == exports["b"] and len(exports["a"]) == 3


@pytest.mark.parametrize("name", ["published", "explored", "demo"])
def test_no_corpus_can_take_a_folder_that_means_something_else(name, study, voices, tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{name}_{split}.pkl").write_bytes((voices / f"voices_{split}.pkl").read_bytes())
    assert study(data=str(tmp_path)).figures.name == f"{name}-data"


def test_other_seeds_have_a_place_of_their_own(study):
    """Numbers over other seeds must not lie among those of the profile."""
    assert study().name == study(seeds=2).name == study(seeds=[1111, 2222]).name == "demo"
    assert study(seeds=1).name == "demo-seeds=1111" and study(seeds=[1111, 3333]).name == "demo-seeds=1111,3333"
    assert len(study(seeds=list(range(50))).name) < 60
    assert study(smoke=True).name == "demo"  # has one seed whatever is asked for


# --- changes: any field of the config from outside ----------------------------------------------------------------------

ASKED = [*plan.ablation("sims"), *plan.CHOICES]
MAXIMUM = {"method.summary": "max"}


# --- which runs change ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["sims", "meld"])
def test_a_methods_field_changes_the_runs_of_methods_that_have_it(study, key):
    plain, changed = study(seeds=1), study(seeds=1, changes=MAXIMUM)
    hashes = {row.name: (plain.config(key, row).hash, changed.config(key, row).hash) for row in ASKED}
    equal = {name for name, (before, after) in hashes.items() if before == after}
    assert equal == {"text only", "6: maximum instead of mean"}, "the one has no summary, the other is about it"
    assert {changed.config(key, row).method.summary for row in ASKED if row != TEXT_ONLY} == {"max"}


@pytest.mark.parametrize("row", [row for row in ASKED if "method.num_pseudo_tokens" in row.changes], ids=lambda row: row.name)
def test_a_row_keeps_what_it_is_about(study, row):
    plain, changed = study(seeds=1), study(seeds=1, changes={"method.num_pseudo_tokens": 8})
    assert changed.config("sims", row) == plain.config("sims", row)
    assert changed.config("sims", row).method.num_pseudo_tokens == row.changes["method.num_pseudo_tokens"]
    assert changed.config("sims", CMPTA).method.num_pseudo_tokens == 8


def test_changes_come_after_what_profile_corpus_method_and_smoke_say_in_any_order(study):
    changes = {"training.epochs": 7, "training.learning_rate": 0.5, "method.dim": 32}
    for options in ({}, {"smoke": True}):
        changed = study(seeds=1, changes=changes, **options)
        for row in ASKED:
            config = changed.config("sims", row)
            assert (config.training.epochs, config.training.learning_rate) == (7, 0.5) and getattr(config.method, "dim", 32) == 32
        backwards = study(seeds=1, changes=dict(reversed(changes.items())), **options)
        assert changed.config("sims") == backwards.config("sims") and changed.figures == backwards.figures


# --- outputs say so ---------------------------------------------------------------------------------------------------


def test_outputs_say_what_was_changed_and_lie_apart(study):
    plain, changed = study(smoke=True), study(smoke=True, changes=MAXIMUM)
    for one in (plain, changed):
        finish_tables(one)
        table = tables.result_table(comparison.comparison_rows(one, "sims"), reports.scores_of(one, "sims"))
        reports.save_table(one, table, "table3", "Table 3.", ["sims"], one.runs("sims"))
        gather.write_report(one, one.keys)
    said = "profile: demo, method.summary=max."
    assert changed.figures.name == "demo-method.summary=max" and changed.figures.parent == plain.figures.parent
    for name in ("table3.md", "table3.tex", "table3.csv"):
        texts = ((one.figures / name).read_text(encoding="utf-8") for one in (changed, plain))
        text, before = (text.replace("\\allowbreak{}", "").replace("\\", "") for text in texts)
        assert said in text and "method.summary" not in before
    title = (changed.figures / "report.md").read_text(encoding="utf-8").splitlines()[0]
    assert title == "# CMPTA, paper | this run: profile demo, method.summary=max, SMOKE RUN"
    record = json.loads((changed.figures / "provenance.json").read_text(encoding="utf-8"))["table3"]
    assert record["profile"] == "demo, method.summary=max"
    assert record["runs"] == [changed.runs("sims")[0].folder.name] != [plain.runs("sims")[0].folder.name]
    assert "method.summary=max" in reports.drawing_footer(changed)


def test_outputs_from_clips_of_ones_own_say_it_too_and_are_not_called_generated(study, voices):
    own = study(smoke=True, data=str(voices), changes=MAXIMUM)
    assert own.figures.name == "voices-method.summary=max"
    title = gather.write_report(own, own.keys).read_text(encoding="utf-8").splitlines()[0]
    assert title == "# CMPTA, paper | this run: voices, method.summary=max, SMOKE RUN"
    stated = reports.provenance(own, ["data"])
    assert "profile: demo, method.summary=max." in stated.line() and not stated.generated
    assert stated.data.startswith("voices (") and stated.backbone == "none"


def test_long_or_odd_changes_stay_apart_in_a_short_name():
    many = ",".join(f"training.{n}={n}" for n in ("epochs", "batch_size", "learning_rate", "weight_decay"))
    first, second = short_name(many), short_name(many.replace("=weight_decay", "=else"))
    assert first != second and max(map(len, (first, second))) < 60
    assert short_name("a=x/y") != short_name("a=x_y") and "/" not in short_name("a=x/y") and short_name("") == ""


NO_FIELDS = (["training.epochs"], "training.epochs=3", 3, "[3]", "{'training.epochs'", {3: 4})


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method.summery": "max"}, r"no config field 'method.summery'; .* \(did you mean 'method.summary'\?\)"),
        ({"summary": "max"}, "no config field 'summary'"),
        ({"method": {"summary": "max"}}, "no config field 'method'"),
        ({"training.epochs": "three"}, "training.epochs='three': Input should be a valid integer"),
        *(({"training.epochs": value}, f"training.epochs={value}: Input should be") for value in (0, 2.5, True, None)),
        ({"training.learning_rate": float("nan")}, "training.learning_rate=nan"),
        ({"method.summary": "median"}, "method.summary='median': Input should be 'mean' or 'max'"),
        ({"training.epochs": 3, "method.summary": "median"}, "method.summary='median': Input should be 'mean' or 'max'"),
        *(({name: "x"}, f"'{name}' is set by {where}") for name, where in _ELSEWHERE.items()),
        *((one, r"expected fields with values, such as \{\"training.epochs\": 3\}") for one in NO_FIELDS),
    ],
)
def test_an_impossible_change_is_one_line_before_anything_starts(changes: Any, said: str, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path / "runs"))
    with pytest.raises(ValueError, match=said) as caught:
        Study(changes=changes)
    assert "\n" not in str(caught.value) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method.num_pseudo_tokens": 7}, "row 'adapter off' cannot be run as asked: .*an odd num_pseudo_tokens"),
        ({"method.num_heads": 7}, "row 'CMPTA' cannot be run as asked: .*dim=64 is not a multiple of num_heads=7"),
    ],
)
def test_a_change_that_a_row_cannot_have_names_the_row(changes: dict, said: str, study):
    changed = study(seeds=1, changes=changes)
    with pytest.raises(ValueError, match=said) as caught:
        changed.needed("06_table5_ablation_simsv2")
    assert "\n" not in str(caught.value)


# --- clips of one's own -----------------------------------------------------------------------------------------------


def test_sound_alone_is_refused_where_every_answer_would_be_the_same(tmp_path, monkeypatch):
    """CMPTA's pairs join two modalities; other rows, and the adapter switched off, read it."""
    small_studies(record_llms(tmp_path / "runs"), monkeypatch)
    folder = clips(lambda number: ("calm", "angry")[number % 2], (6, 4, 4), tmp_path, has_face=False)
    for path in folder.glob("*.pkl"):
        items = pickle.loads(path.read_bytes())
        path.write_bytes(pickle.dumps([item | {"features": item["features"] | {"text": ""}} for item in items]))
    study = Study(data=folder, seeds=1)
    said = study.missing(CMPTA, "data")
    assert "no clip of 'voices' has words" in said and "add transcripts" in said and "bilstm" in said and len(said) < 300
    with pytest.raises(ValueError, match="sound or face alone would give every clip one answer"):
        study.runs("data")
    assert not any(study.missing(row, "data") for row in (TEXT_ONLY, plan.ABLATIONS[paper.ADAPTER, "off"], Row("x", "bilstm")))


def test_on_clips_of_ones_own_the_first_rows_are_planned_and_the_rest_where_it_is_asked_for(tmp_path, capsys):
    folder = clips(lambda number: ("calm", "angry")[number % 2], (6, 4, 4), tmp_path)
    first = ["CMPTA", "soft prompt", "text only", "constant", "linear", "BiLSTM"]
    for more, expected in (((), first), (("--only", "08"), ["CMPTA"]), (("--all",), None)):
        assert main(["reproduce", "--dry-run", "--data", f"classes:{folder}", "--seeds", "1", *more]) == 0
        *lines, said = capsys.readouterr().out.splitlines()
        names = [line.split("  ")[-1] for line in lines]
        assert said.startswith(f"{len(names)} runs in all, to be named once")
        assert all("voices  seed 1111" in line for line in lines)
        assert sorted(names) == sorted(expected) if expected else len(names) > 50
    assert not (tmp_path / "runs").exists(), "nothing was converted or made"
    assert main(["reproduce", "--dry-run", "--data", str(tmp_path / "none")]) == 1
    assert "there is no such folder: correct its name" in capsys.readouterr().err
