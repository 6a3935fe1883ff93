"""The dry run of profile `paper`: generated files laid out like the published ones, through the real code."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import safe_open

from cmpta_lib import files
from cmpta_lib.cli import dry_run
from cmpta_lib.cli.__main__ import main
from cmpta_lib.llm.files import QWEN_1_8B
from cmpta_lib.report import rows as reports
from cmpta_lib.report.summaries import qwen_parameters
from cmpta_lib.runs.load import load_llm
from cmpta_lib.study import plan
from cmpta_lib.study.study import Study

ROOT = Path(__file__).parents[1]


FILES_ONLY = ["dry-run", "--factor", "0.001", "--files-only"]


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The smallest dry run: files made, converted and recorded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMPTA_RUNS", str(folder := tmp_path_factory.mktemp("runs")))
        assert main(FILES_ONLY) == 0
        yield folder


@pytest.fixture
def study(runs_folder: Path) -> Study:
    return Study("paper", smoke=True)


def test_everything_made_from_it_says_that_it_is_generated_and_the_real_profile_never_takes_it(study: Study):
    stated = reports.provenance(study, study.keys)
    assert stated.generated and "SMOKE RUN" in stated.line() and "says nothing about the paper" in stated.warning()
    assert reports.bayes(study, "sims", "mae") == {}  # nobody knows the best possible score on it
    with pytest.raises(FileNotFoundError, match="cmpta data simsv2"):
        Study("paper").corpus("sims")


def test_a_second_call_makes_a_damaged_record_anew_and_writes_no_file_again(runs_folder: Path):
    before = {path: path.stat().st_mtime_ns for path in runs_folder.rglob("*") if path.suffix in {".pkl", ".safetensors"}}
    record, begun = runs_folder / "smoke" / "dry_run.json", runs_folder / "smoke" / "dry_run.begun"
    sound = record.read_text()
    for text in (sound[:-9], "3", ""):
        record.write_text(text)
        with pytest.raises(ValueError, match=f"{record} is damaged; remove it and call `cmpta dry-run` again"):
            _ = Study("paper", smoke=True).llm_name
    assert main(FILES_ONLY) == 0 and record.read_text() == sound
    assert before == {path: path.stat().st_mtime_ns for path in before} and len(before) >= 6
    begun.write_text(begun.read_text()[:-3])
    assert main(FILES_ONLY) == 0 and record.read_text() == sound


@pytest.mark.parametrize("factor", ["0", "-1", "2", "nan"])
def test_a_wrong_factor_costs_nothing(factor: str, runs_folder: Path, capsys):
    before = sorted(runs_folder.rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        main(["dry-run", f"--factor={factor}", "--files-only"])
    assert "factor=" in (shown := capsys.readouterr().err) and shown.count("\n") == 1
    assert sorted(runs_folder.rglob("*")) == before


def test_a_dry_run_that_died_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed while it wrote MELD and, later, the weights; then another recipe's files are in the way."""
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path))
    assert main(FILES_ONLY) == 0
    root = tmp_path / "smoke"
    (sims,), before = root.glob("raw/simsv2/*.pkl"), (root / "dry_run.json").read_text()
    written = sims.stat().st_mtime_ns
    shutil.rmtree(root / "raw" / "meld")
    (root / "dry_run.json").unlink()
    models = sorted(place for place in root.glob("llm/*") if place.is_dir())
    shutil.rmtree(models[0])
    assert main(FILES_ONLY) == 0
    assert (root / "dry_run.json").read_text() == before and all((model / "config.json").exists() for model in models)
    assert len(models) == 4 and sims.stat().st_mtime_ns == written, "what was complete stays"
    monkeypatch.setattr(dry_run, "RECIPE", dry_run.RECIPE + 1)
    assert main(FILES_ONLY) == 0
    assert sims.stat().st_mtime_ns != written


def test_a_bert_that_is_half_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed between its config and its weights, it would pass for one that is complete."""
    from transformers import BertForPreTraining

    save, write = BertForPreTraining.save_pretrained, partial(dry_run.write_bert, texts=["a word"], sizes=dry_run.BERT_SMALL)

    def killed(self: BertForPreTraining, folder: Path) -> None:
        save(self, folder)
        (folder / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BertForPreTraining, "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            files.built_once(tmp_path / "bert", write)
    assert not (tmp_path / "bert").exists()
    files.built_once(tmp_path / "bert", write)
    assert (tmp_path / "bert" / "model.safetensors").exists()


def test_the_published_vocabulary_fits_the_small_llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    vocabulary = ROOT.parent / "shared" / "qwen" / "qwen.tiktoken"
    if not vocabulary.exists():
        pytest.skip("needs the published vocabulary beside the checkout")
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path))
    assert main([*FILES_ONLY, "--vocabulary", str(vocabulary)]) == 0
    study = Study("paper", smoke=True)
    llm = load_llm([study.cache / "llm"], study.llm)
    assert len(llm.tokenizer) == 151_851 and llm.token_ids("情感为") == llm.tokenizer.encode("情感为")


def test_weights_are_laid_out_as_published(tmp_path: Path):
    dry_run.write_qwen_v1(tmp_path, ["words"], width=32, layers=2, vocabulary_size=400)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["no_bias"], config["seq_length"]) == ("qwen", True, 8192)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    shards = {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    assert set(index.values()) == shards == {path.name for path in tmp_path.glob("*.safetensors")}
    for shard in shards:
        with safe_open(tmp_path / shard, "pt") as file:
            assert set(file.keys()) == {name for name, place in index.items() if place == shard}
            assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}
    layer = {name.split("h.1.", 1)[1] for name in index if "h.1." in name}
    assert layer == {
        *("ln_1.weight", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight"),
        *("ln_2.weight", "mlp.w1.weight", "mlp.w2.weight", "mlp.c_proj.weight"),
    }


def test_full_size_is_qwens():
    shapes = dry_run._shapes(dry_run.FULL_WIDTH, dry_run.FULL_LAYERS, dry_run.VOCABULARY_SIZE)
    assert sum(map(math.prod, shapes.values())) == qwen_parameters()
    assert shapes["transformer.h.0.mlp.w1.weight"] == (QWEN_1_8B["mlp"], 2048)


@pytest.mark.slow
def test_one_table_of_the_paper_profile_from_generated_files(study: Study, runs_folder: Path):
    """Through `cmpta reproduce`, as `cmpta dry-run` goes on: LLM in the v1 layout, runs, notebook, table, report."""
    command = [sys.executable, "-m", "cmpta_lib.cli", "reproduce", "--profile", "paper", "--smoke", "--only", "table4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = runs_folder / "smoke" / "figures" / "paper"
    table = pd.read_csv(folder / "table4.csv")
    assert table["generated"].all() and "qwen-1_8b-random" in table["provenance"][0]
    assert "59.49" in (folder / "table4.md").read_text(encoding="utf-8")
    assert all(run.done for _, run in study.planned_runs(["05_table4_meld"]))
    again = subprocess.run([*command, "--dry-run"], env=environment, cwd=ROOT, capture_output=True, text=True)
    count = len(plan.compared("meld"))
    assert f"runs: {count} of {count} are finished already" in again.stdout and again.stdout.count(" finished  ") == count
    assert str(runs_folder) not in (folder / "report.md").read_text(encoding="utf-8"), "no path of this machine"
