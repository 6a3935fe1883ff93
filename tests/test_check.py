"""What a study needs: found or missing, with the command for each, and nothing started before all of it is there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from finished import finish, record_llms, small_studies

from cmpta_lib import files, paper
from cmpta_lib.cli.__main__ import main
from cmpta_lib.config import to_json
from cmpta_lib.embedded.synthetic import tiny_folder
from cmpta_lib.runs import store
from cmpta_lib.study import check, plan
from cmpta_lib.study.check import COMMAND, Need, needs, screen
from cmpta_lib.study.profiles import PROFILES
from cmpta_lib.study.study import Study

NOTEBOOKS = [notebook.name for notebook in plan.NOTEBOOKS]
GPU = "NVIDIA GeForce RTX 4090, 24564\n"
NO_GPU = (FileNotFoundError("nvidia-smi"), subprocess.TimeoutExpired("nvidia-smi", 5), "No devices were found\n", "")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with a GPU, memory and disk, and nothing else."""
    monkeypatch.setenv("CMPTA_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    set_gpu(monkeypatch, GPU)
    monkeypatch.setattr(check, "version", lambda package: "2.13.0")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**12, 0, 10**12))
    return monkeypatch


def set_gpu(monkeypatch: pytest.MonkeyPatch, answer: str | Exception) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        assert command[0] == "nvidia-smi"
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess(command, 0, stdout=answer)

    monkeypatch.setattr(subprocess, "run", run)


def found(notebooks: Sequence[str] = NOTEBOOKS, **options: object) -> dict[str, Need]:
    return {need.what.split(",")[0]: need for need in needs(Study("paper", **options), notebooks)}


def test_the_embedded_default_needs_nothing():
    assert needs(Study(), NOTEBOOKS) == [] and needs(Study(smoke=True), NOTEBOOKS) == []


def test_a_dry_runs_corpus_is_none_of_the_papers(tmp_path):
    """Somebody may convert generated files into the real cache by hand; no result may come from them."""
    from data_prep import simsv2
    from data_prep.synthetic_files import write_simsv2

    write_simsv2(tmp_path / "raw", 0.001)
    simsv2.prepare(tmp_path / "runs" / "cache", tmp_path / "raw")
    need = found()["corpus simsv2"]
    assert need.missing and "generated" in need.found and need.remedy.startswith("rm -r ")
    assert main(["reproduce", "--profile", "paper"]) == 1


@pytest.mark.parametrize(("llm", "gpu"), [("qwen-1.8b", 12), ("llama2-7b", 20), ("some/other", 12)])
def test_a_larger_llm_needs_a_larger_gpu(llm, gpu):
    assert needs(Study("paper", llm=llm), NOTEBOOKS)[0].what == f"GPU, {gpu} GB"


def test_each_missing_thing_has_its_command():
    missing = {what: need.remedy.split("   ")[0] for what, need in found().items() if need.missing}
    weights = {"LLM": ["qwen-1.8b"], "text encoder": ["bert-base-chinese", "bert-base-uncased"]}
    wanted = {f"corpus {name}": f"{COMMAND} data {name}" for name in ("simsv2", "meld")}
    wanted |= {f"{kind} {name}": f"{COMMAND} weights {name}" for kind, names in weights.items() for name in names}
    assert missing == wanted and list(missing) == list(wanted)


def test_the_second_llm_is_asked_for_where_its_row_is_shown_and_stops_no_other_row():
    shown = {name: found([name]) for name in NOTEBOOKS}
    with_llama = [name for name, needs in shown.items() if "LLM llama2-7b" in needs]
    assert with_llama == ["04_table3_simsv2", "10_claims", "12_baselines"]
    absent = shown["04_table3_simsv2"]["LLM llama2-7b"]
    assert not absent.missing and absent.remedy == f"{COMMAND} weights llama2-7b"
    assert "absent  LLM llama2-7b" in screen(Study("paper"), [absent]) and absent.remedy in screen(Study("paper"), [absent])
    assert "LLM llama2-7b" not in found(llm="qwen1.5-1.8b")


def test_where_no_model_is_fetched_the_machine_is_asked_for_all_the_same():
    asked = needs(Study("paper", llm="tiny"), ["01_data"])
    assert [need.what.split(",")[0] for need in asked] == ["GPU", "memory", "disk", "corpus simsv2", "corpus meld"]


@pytest.mark.parametrize(
    ("answer", "shown", "missing"),
    [
        (GPU, "NVIDIA GeForce RTX 4090, 26 GB", False),
        ("NVIDIA H200, 143771\nNVIDIA A30, 24576\n", "NVIDIA H200, 151 GB", False),
        ("NVIDIA GeForce GTX 1080, 8192\n", "NVIDIA GeForce GTX 1080, 9 GB", True),
        *((none, "no NVIDIA GPU or driver found", True) for none in NO_GPU),
    ],
)
def test_the_gpu(machine, answer, shown, missing):
    set_gpu(machine, answer)
    need = found()["GPU"]
    assert need.found.startswith(shown) and need.missing is missing


def test_a_cpu_build_of_torch_and_a_full_disk_are_named_before_anything_starts(machine):
    machine.setattr(check, "version", lambda package: "2.13.0+cpu")
    machine.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**12, 10**12, 3 * 10**9))
    gpu, disk = found()["GPU"], found()["disk"]
    assert "CPU build" in gpu.found and gpu.remedy == "make clean && make setup"
    assert "3 GB free at " in disk.found and "CMPTA_RUNS" in disk.remedy


@pytest.mark.parametrize(
    ("table", "own", "others", "runs"),
    [
        ("table3", ("corpus simsv2", "bert-base-chinese", "llama2-7b"), ("meld", "bert-base-uncased"), 11),
        ("table4", ("corpus meld", "bert-base-uncased"), ("simsv2", "bert-base-chinese", "llama2-7b"), 10),
    ],
)
def test_one_table_needs_its_own_corpus_only(table, own, others, runs, capsys):
    assert main(["check", "--profile", "paper", "--only", table, "--seeds", "1"]) == 1
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*own, f"{runs} runs in all")) and not [name for name in others if name in shown]


def test_what_goes_beyond_the_paper_wants_more_and_stops_nothing(monkeypatch):
    """The rows of omni models alone wait for their weights and recordings, and only where they are asked for."""
    monkeypatch.delenv("CMPTA_MEDIA", raising=False)
    model, media = (found(seeds=1)[what] for what in ("omni model Qwen/Qwen2.5-Omni-3B", "recordings meld"))
    assert "cmpta weights Qwen/Qwen2.5-Omni-3B" in model.remedy and "CMPTA_MEDIA" in media.remedy
    assert not model.missing and not media.missing
    assert not [what for what in found(["04_table3_simsv2"], seeds=1) if "omni" in what]


def test_a_folder_that_is_not_complete_says_what_it_lacks(tmp_path):
    (tmp_path / "own llm").mkdir()
    need = found(llm=str(tmp_path / "own llm"))["LLM own llm"]
    assert "expected config.json" in need.found and "cmpta weights" not in need.remedy


def test_one_screen(tmp_path, capsys):
    assert main(["check", "--profile", "paper", "--seeds", "1"]) == 1
    shown = capsys.readouterr().out.replace(COMMAND, ".venv/bin/cmpta").replace(str(tmp_path), "/somewhere").splitlines()
    assert shown[0] == "5 missing: profile paper, seeds 1111" and shown[1].startswith("  MISSING corpus simsv2"), "at once"
    assert len(shown) <= 40 and not [line for line in shown if len(line) > 100] and shown[-1].startswith("44 runs in all")
    text = screen(Study("paper"), [Need("a thing", "found"), Need("another", "gone", "fetch it", note="for a row")])
    assert text.splitlines()[1:] == [
        "  MISSING another: gone",
        "          -> fetch it",
        "          for a row",
        "  ok      a thing: found",
    ]


def test_what_waits_for_a_second_llm_is_said_beside_it(capsys):
    """And no card is refused for want of what one row alone needs."""
    assert main(["check", "--profile", "paper"]) == 1
    waits = " ".join(capsys.readouterr().out.partition("LLM llama2-7b")[2].split())
    assert "for the row MSE-LLaMA2-7B alone, on a GPU of 20 GB" in waits
    assert all(f'"{claim.says}"' in waits for claim in paper.CLAIMS if claim.id in ("best-of-all", "best-sims"))
    assert "weighted F1" not in waits and found()["GPU"].what == "GPU, 12 GB"


def test_planned_runs_are_listed_before_anything_is_here(capsys):
    asked = ["--only", "03_training", "04_table3", "12_baselines", "--seeds", "2"]
    assert main(["reproduce", "--profile", "paper", "--dry-run", *asked]) == 1
    *lines, count = (line.strip() for line in capsys.readouterr().out.splitlines())
    runs = [line.split("  ") for line in lines if line.startswith(("simsv2  ", "meld  "))]
    planned = Study("paper", seeds=2).planned(["03_training", "04_table3_simsv2", "12_baselines"])
    assert count == f"{len(planned)} runs in all" and len(runs) == len(planned)
    assert runs[0] == ["simsv2", "seed 1111", "CMPTA"] and ["simsv2", "seed 1111", "3: one head"] in runs
    assert {"CMPTA, learning rate × 0.3", "Self-MM, text only"} <= {name for _, _, name in runs}, "versions are told apart"


def test_with_everything_finished_nothing_is_measured(tmp_path, monkeypatch, capsys):
    study = small_studies(record_llms(tmp_path / "runs"), monkeypatch)(seeds=1)
    finish(study, "sims", [run for _, run in study.planned_runs(["06_table5_ablation_simsv2"])])
    monkeypatch.setattr("cmpta_lib.study.estimate.measured", lambda *_, **__: pytest.fail("measured"))
    assert main(["check", "--only", "table5", "--seeds", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "8 runs, 8 of them finished"


def test_a_deep_check_reads_every_model_that_is_needed(tmp_path):
    record_llms(tmp_path / "runs")
    study = Study()
    encoder = tiny_folder(study.cache / "llm", name="tiny-bert")
    models = {"04_table3_simsv2": ["LLM tiny", "LLM tiny-llama", "text encoder tiny-bert"], "03_training": ["LLM tiny"]}
    for notebook, names in models.items():
        stored = check.stored(study, [notebook])
        kept = [f"cache/llm/{tiny_folder(study.cache, name=name).name}" for name in ("tiny", "tiny-bert", "tiny-llama")]
        assert [need.what for need in stored] == [f"contents of {name}" for name in (*kept, *names)]
        assert not any(need.missing for need in stored)
    (encoder / "more.json").write_text("{}")
    for asked in (Study(), study):  # before and after its fingerprint was asked for
        kept, needed = (need for need in check.stored(asked, ["04_table3_simsv2"]) if need.missing)
        assert needed.what == "contents of text encoder tiny-bert" and kept.what.endswith(encoder.name)
        assert str(encoder / "more.json") in needed.found == kept.found


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(next(folder.parent.glob("embedded-meld-*/")), folder)


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    """A runs folder with one of each kind of what is stored."""
    from cmpta_lib.beyond.knowledge import StatementCache
    from cmpta_lib.runs import checkpoint

    root = record_llms(tmp_path_factory.mktemp("everything"))
    with pytest.MonkeyPatch.context() as patch:
        study = small_studies(root, patch)(seeds=1)
        finish(study, "sims", study.runs("sims"))
        (begun,) = study.runs("meld")
        begun.folder.mkdir()
        (begun.folder / store.CONFIG).write_text(to_json(begun.config))
        checkpoint.write(begun.folder / checkpoint.CHECKPOINT, checkpoint.pack(begun.config.hash, {}))
        checkpoint.write(root / "cache" / "stages" / "a-1.pt", checkpoint.pack("a-1", {}))
        StatementCache("f00d", root / "cache" / "knowledge").add({"1": ["said"]})
        files.write_text(root / "cache" / "llm" / "ab.json", files.checksummed({"name": "own"}))
    return root


# Of what is stored: a file, what happens to it, and what is then named.
FATES = {
    "corpus": ("cache/data/embedded-sims-*/audio.f32", flip),
    "corpus without its record": ("cache/data/embedded-sims-*/meta.json", Path.unlink),
    "corpora swapped": ("cache/data/embedded-sims-*", swap),
    "tiny model": ("cache/llm/tiny-3*/cmpta.json", flip),
    "record": ("cache/llm/ab.json", flip),
    "stage": ("cache/stages/a-1.pt", flip),
    "stage renamed": ("cache/stages/a-1.pt", lambda path: path.rename(path.with_stem("a-2"))),
    "statement": ("cache/knowledge/f00d.txt", flip),
    "statements renamed": ("cache/knowledge/f00d.txt", lambda path: path.rename(path.with_stem("beef"))),
    "checkpoint": ("embedded-meld-*/checkpoint.pt", flip),
    "run": ("embedded-sims-*/metrics.json", flip),
    "run without its config": ("embedded-sims-*/config.json", Path.unlink),
}


@pytest.mark.parametrize("fate", FATES)
def test_a_deep_check_knows_every_stored_byte(fate, everything, tmp_path, monkeypatch, capsys):
    root = shutil.copytree(everything, tmp_path / "runs")
    study = small_studies(root, monkeypatch)(seeds=1)
    assert not [need for need in check.stored(study, ["03_training"]) if need.missing]
    pattern, strike = FATES[fate]
    (path,) = (one for one in root.glob(pattern) if one.suffix not in (".lock", ".checked"))
    strike(path)
    damaged = [need for need in check.stored(study, ["03_training"]) if need.missing]
    assert damaged and all(str(root) in need.found for need in damaged)
    if fate == "run without its config":
        assert main(["check", "--deep", "--only", "03"]) == 1 and "config.json is missing" in capsys.readouterr().out


def test_nothing_is_made_by_asking(tmp_path, capsys):
    assert main(["check", "--profile", "paper"]) == main(["reproduce", "--profile", "paper"]) == 1
    assert not list(tmp_path.rglob("*"))
    said = capsys.readouterr().err
    assert said.startswith("cmpta reproduce: nothing was started: ") and said.count("\n") == 1
    assert main(["reproduce", "--llm", "tinny"]) == 1
    said = capsys.readouterr().err
    assert "LLM tinny: not on this machine (did you mean 'tiny'?); " in said and said.count("\n") == 1


def test_every_published_thing_has_its_size():
    """Or the disk check would count it as nothing."""
    from cmpta_lib.llm.files import ENCODERS, OMNI_MODELS, PUBLISHED

    assert set(check.LLM_GB) == {*PUBLISHED, *ENCODERS, *OMNI_MODELS}
    assert set(check.CORPUS_GB) == set(PROFILES["paper"].corpora.values())
