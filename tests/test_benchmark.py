"""The benchmark: its contenders compute what they say, and its tables hold what was measured. No time is tested."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from cmpta_lib.benchmark import contest as contests
from cmpta_lib.benchmark import shapes, table
from cmpta_lib.benchmark.ancestor import IGNORED, NEW_TOKENS
from cmpta_lib.benchmark.contest import CONTENDERS, PARTS, PRODUCT, Contest, Times
from cmpta_lib.benchmark.options import Options
from cmpta_lib.benchmark.shapes import SHAPES, FoldedTokenizer
from cmpta_lib.cli.__main__ import main
from cmpta_lib.data.corpus import Sample
from cmpta_lib.fast.llm import packed_logits
from cmpta_lib.method.prompted import legal_answers
from data_prep import synthetic_files

SMALL = Options("sims", batch_size=3, dim=16, steps=1, answers=1, answered=4)


@pytest.fixture(scope="module", params=["sims", "meld"])
def contest(request: pytest.FixtureRequest) -> Contest:
    return Contest(replace(SMALL, corpus=request.param))


@pytest.fixture(scope="module")
def samples(contest: Contest) -> list[Sample]:
    return contest.samples(contest.batches[0])


# --- the ancestor's way -----------------------------------------------------------------------------------------------


def test_texts_and_frames_are_padded_to_the_corpus_limits(contest: Contest, samples: list[Sample]):
    batch = contest.ancestor.collate(samples)
    text, audio, vision = {"sims": (50, 925, 232), "meld": (65, 157, 32)}[contest.options.corpus]
    assert batch.text.shape[1] == text and batch.frames["audio"].shape[1] == audio and batch.frames["vision"].shape[1] == vision
    ids = contest.llm.token_ids(samples[0].text)[:text]
    assert batch.text[0].tolist() == [contest.llm.tokenizer.pad_token_id] * (text - len(ids)) + ids, "at the start"
    assert batch.lengths["audio"].tolist() == [len(sample.audio) for sample in samples]


def slow_prompt(contest: Contest, sample: Sample) -> torch.Tensor:
    """One clip's input, part by part, the LSTMs over its real frames alone."""
    ancestor, embed = contest.ancestor, contest.llm.embedding
    limit = shapes.TEXT_LIMIT[contest.options.corpus]
    ids = contest.llm.token_ids(sample.text)[:limit]
    text = embed(torch.tensor([contest.llm.tokenizer.pad_token_id] * (limit - len(ids)) + ids))
    maker = ancestor.maker
    read = {m: maker.lstms[m](torch.from_numpy(getattr(sample, m)))[0][-1] for m in ("audio", "vision")}
    mixed = sum(maker.linears[m](state) for m, state in read.items()) * maker.mixer(text.mean(0))
    fused = maker.fusion(mixed[None])[0]
    tokens = maker.spread.weight * fused + maker.spread.bias[:, None]
    return torch.cat([embed(ancestor.before), tokens, text, embed(ancestor.after)])


def test_its_loss_is_the_mean_cross_entropy_of_the_answers_by_hand(contest: Contest, samples: list[Sample]):
    batch, losses = contest.ancestor.collate(samples), []
    model = contest.llm.model
    model.set_attn_implementation("eager")
    for sample, answer in zip(samples, batch.answers, strict=True):
        prompt = slow_prompt(contest, sample)
        logits = model(inputs_embeds=torch.cat([prompt, contest.llm.embedding(answer)])[None], use_cache=False).logits[0]
        for place, token in enumerate(answer):
            losses.append(-logits[len(prompt) - 1 + place].log_softmax(-1)[token])
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(contest.ancestor.loss(batch), torch.stack(losses).mean(), rtol=1e-5, atol=1e-5)


def test_its_answers_are_what_greedy_decoding_says(contest: Contest, samples: list[Sample]):
    model, expected = contest.llm.model, []
    model.set_attn_implementation("eager")
    for sample in samples:
        row, said = slow_prompt(contest, sample), []
        for _ in range(NEW_TOKENS[contest.corpus.task.kind]):
            said.append(int(model(inputs_embeds=row[None], use_cache=False).logits[0, -1].argmax()))
            row = torch.cat([row, contest.llm.embedding(torch.tensor(said[-1:]))])
        expected.append(contest.llm.tokenizer.decode(said))
    model.set_attn_implementation("sdpa")
    assert contest.ancestor.answer(samples) == expected


def test_a_step_of_it_moves_its_maker_and_never_the_llm(contest: Contest, samples: list[Sample]):
    before = [weight.clone() for weight in contest.ancestor.maker.parameters()]
    frozen = {name: weight.clone() for name, weight in contest.llm.model.named_parameters()}
    assert math.isfinite(contest.ancestor.step(samples))
    assert all((old != new).any() for old, new in zip(before, contest.ancestor.maker.parameters(), strict=True))
    assert all(torch.equal(weight, frozen[name]) for name, weight in contest.llm.model.named_parameters())
    assert IGNORED == -100, "what torch's cross-entropy leaves out"


# --- the bare LLM -----------------------------------------------------------------------------------------------------


def test_the_reference_is_the_plain_path_on_the_same_tokens(contest: Contest):
    contest.method.module.eval()
    batch = contest.method.collate(contest.samples(contest.batches[0]))
    given = contest.given(contest.batches[0])
    embeds, layout, positions, targets = contest.method.training_inputs(batch)
    logits = packed_logits(contest.llm, embeds, layout, positions)
    assert torch.equal(packed_logits(contest.llm, *given[:3]), logits)
    loss = F.cross_entropy(logits, targets)
    assert torch.equal(contests.reference_step(contest.llm, *given), loss.detach())
    (wanted,) = torch.autograd.grad(loss, embeds)
    assert torch.equal(given[0].grad, wanted) and len(given[0]) == sum(layout.lengths)


def test_operations_count_every_layer_for_all_tokens_and_the_head_for_answers(contest: Contest):
    shape = SHAPES["tiny"]
    layer = 4 * shape["hidden_size"] ** 2 + 3 * shape["hidden_size"] * shape["intermediate_size"]
    head = 5 * shape["hidden_size"] * shape["vocab_size"]
    counted = contests.reference_operations(contest.llm, 100, 5)
    assert counted == 4 * (100 * shape["num_hidden_layers"] * layer + head)


# --- clips and tokens -------------------------------------------------------------------------------------------------


def test_lengths_are_the_dry_runs():
    drawn = synthetic_files.simsv2_split("train", 8)
    train = shapes.corpus(SMALL).splits["train"]
    assert train.table["audio_length"].tolist() == drawn["audio_lengths"] and train[2].text == drawn["raw_text"][2]
    assert train[3].vision.shape == (drawn["vision_lengths"][3], 177)
    items = list(synthetic_files.meld_items("train", synthetic_files.meld_rows("train", 8)))
    meld = shapes.corpus(replace(SMALL, corpus="meld")).splits["train"]
    assert meld.table["audio_length"].tolist() == [item["features"]["audio_len"] for item in items]


def test_a_smaller_table_keeps_lengths_and_answers(contest: Contest):
    tokenizer = contest.llm.tokenizer
    whole = tokenizer.whole("the very same text")["input_ids"]
    folded = FoldedTokenizer(tokenizer.whole, 300, max(whole))
    assert [one % 300 for one in whole] == folded("the very same text")["input_ids"] and len(folded) == 300
    answers = [contest.llm.token_ids(answer) for answer in legal_answers(contest.corpus.task)]
    assert len({tuple(ids) for ids in answers}) == len(answers) and max(map(max, answers)) < 256, "bytes, and so apart"


# --- what is made of it -----------------------------------------------------------------------------------------------


def test_every_part_of_a_step_is_seen_and_nothing_stays_behind(contest: Contest):
    parts = contest.step_parts(contest.batches[0])
    assert list(parts) == list(PARTS) and min(parts.values()) > 0
    left = [contest.method.maker, *contest.method.maker.modules(), contest.llm.model.get_output_embeddings()]
    for module in left:
        assert not {**module._forward_hooks, **module._forward_pre_hooks, **module._backward_hooks, **module._backward_pre_hooks}


def times() -> Times:
    steps = {"ours": [20.0, 30, 40], "floor": [10.0, 20, 30], "ancestor": [60.0, 60, 60]}
    steps |= {"tokens": [100, 200, 300], "frames": [10, 20, 30], "operations": [2e9, 4e9, 6e9]}
    return Times(pd.DataFrame(steps), {"ours": 2.0, "ancestor": 8.0}, pd.DataFrame([dict.fromkeys(PARTS, 1.0)]), 4e11)


def test_a_row_holds_medians_ratios_and_shares():
    peaks = {name: {"peak": 2.0, "growth": growth} for name, growth in zip(CONTENDERS, (0.5, 0.4, 1.0), strict=True)}
    row = table.row(SMALL, times(), peaks)
    assert (row["step_ms"], row["step_iqr_ms"], row["floor_ms"], row["ancestor_step_ms"]) == (30, 10, 20, 60)
    assert (row["step_over_floor"], row["ancestor_over_step"]) == (1.5, 2)
    assert (row["answer_ms"], row["ancestor_over_answer"]) == (2, 4)
    assert row["tokens_per_second"] == pytest.approx(600 / 0.09)
    assert sum(row[f"share {part}"] for part in PARTS) == pytest.approx(1)
    assert row["floor_of_matmul_peak"] == pytest.approx(12e9 / 0.06 / 4e11)
    assert row["memory_over_ancestor"] == 0.5 and row["peak_over_ancestor"] == 1
    assert "memory_over_ancestor" not in table.row(SMALL, times(), {n: {"peak": 2.0, "growth": 0.0} for n in CONTENDERS})


def test_stored_measurements_come_back_and_are_published_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CMPTA_FIGURES", str(tmp_path / "figures"))
    with pytest.raises(FileNotFoundError, match="call `cmpta benchmark` first"):
        table.publish(tmp_path)
    row = table.row(SMALL, times())
    table.store(tmp_path / "figures" / table.FOLDER, "small", [row], table.about([SMALL]))
    with pytest.raises(FileNotFoundError, match="README.md"):
        table.publish(tmp_path)
    (tmp_path / table.PAGE).parent.mkdir()
    (tmp_path / table.PAGE).write_text("# Title\n<!-- speed: begin -->\nold\n<!-- speed: end -->\nThe end.\n")
    assert "1 file" not in (said := table.publish(tmp_path)) and "commit both" in said
    lines = (tmp_path / table.PAGE).read_text().splitlines()
    assert lines[0] == "# Title" and lines[-1] == "The end." and "old" not in lines
    (shown,) = (line for line in lines if line.startswith(f"|{row['corpus']}|"))
    assert f"{row['step_ms']:,.0f} ms|{row['floor_ms']:,.0f} ms|{row['ancestor_step_ms']:,.0f} ms" in shown
    folder = tmp_path / "figures" / "published" / table.FOLDER
    stored = table.stored(folder)["small"]
    assert stored["rows"] == [row] and {"date", "commit", "hardware", "threads", "packages"} <= stored["about"].keys()
    assert Options(**stored["about"]["options"][0]) == SMALL
    assert pd.read_csv(folder / "small.csv")["step_over_floor"].tolist() == [1.5]


def test_a_page_shows_what_is_stored_and_how_to_make_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CMPTA_FIGURES", str(tmp_path))
    monkeypatch.setattr(table.files, "ROOT", tmp_path / "nothing published")
    bare = table.overview(table.measurements())
    assert bare.full.empty and len(bare.notes) == 3 and not list(table.figures(table.measurements()))
    assert table.beside(table.WORKERS).empty and table.beside(table.SCALING).empty
    folder, about = tmp_path / table.FOLDER, table.about([SMALL])
    rows = [table.row(replace(SMALL, backbone="full", batch_size=size), times()) for size in (16, 64)]
    table.store(folder, "gpu", rows, about)
    table.store(folder, "scaling-tiny", [{"what": "samples", "value": 16, "ours_ms": 5.0}], about)  # as once was measured
    (folder / table.WORKERS).write_text("engine,workers,speed_up\nray,2,1.8\n")
    (folder / "scaling-tiny.csv").write_text("what,value,ours_ms,floor_ms\nbatch size,4,5.0,4.0\n")
    assert table.beside(table.WORKERS)["speed_up"].tolist() == [1.8]
    assert table.beside(table.SCALING)["ours_ms"].tolist() == [5.0]
    shown = table.overview(table.measurements())
    assert list(shown.full["backbone"]) == ["full", "full"] and list(shown.full["batch"]) == [16, 64]
    assert len(shown.short.columns) <= 8 and set(shown.short) | set(shown.details.short) == set(shown.full), "nothing is lost"
    assert about["date"] in shown.full["measured"][0]
    assert [note.partition(":")[0] for note in shown.notes] == ["tiny", "slice"] and "--backbone slice" in shown.notes[1]
    bars = next(table.figures(table.measurements())).axes[0]
    assert [line.get_label() for line in bars.collections if line.get_label() == "bare LLM"], "a line, no bar"
    assert {round(bar.get_height()) for bar in bars.patches} == {30, 60}
    footers = [figure.footer for figure in table.figures(table.measurements())]
    assert [("batch 16" in one, "batch 64" in one) for one in footers] == [(True, False), (False, True)]


# --- from end to end --------------------------------------------------------------------------------------------------


def test_the_command_prints_and_stores_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("CMPTA_FIGURES", str(tmp_path))
    monkeypatch.setitem(PRODUCT, "cpu", (64, 1))  # a small product, measured soon
    small = ["--steps", "1", "--answers", "1", "--answered", "4", "--batch-size", "2", "--dim", "16", "--no-memory"]
    assert main(["benchmark", "--corpora", "meld", *small]) == 0
    said = capsys.readouterr().out
    assert "step / bare LLM" in said and "answer, times faster" in said and "LLM backward" in said
    stem = tmp_path / table.FOLDER / "tiny-batch2-dim16"
    (row,) = json.loads(stem.with_suffix(".json").read_text())["rows"]
    assert row["corpus"] == "MELD" and all(row[f"{part}_ms"] > 0 for part in ("step", "floor", "ancestor_step", "answer"))
    assert len(pd.read_csv(stem.with_suffix(".csv"))) == 1 and stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_gpu_script_does_all_of_it_at_a_small_size(tmp_path: Path):
    """In a process of its own, which shows what it imports: a GPU's machine has no Jupyter."""
    code = (
        "import sys; from cmpta_lib.benchmark import contest, gpu; contest.PRODUCT['cpu'] = (64, 1);"
        "code = gpu.main(sys.argv[1:]);"
        "print(sorted({'IPython', 'jupyterlab', 'papermill', 'nbformat', 'matplotlib', 'seaborn'} & set(sys.modules)), code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "--small"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[] 0"
    stored = table.stored(tmp_path)["gpu"]
    assert [(row["corpus"], row["batch"]) for row in stored["rows"]] == [(c, b) for c in ("SIMS-V2", "MELD") for b in (2, 4)]
    wanted = {"step_ms", "floor_ms", "ancestor_step_ms", "ancestor_over_answer", "ours_peak_gb", "floor_of_matmul_peak"}
    assert all(wanted <= row.keys() for row in stored["rows"]) and "10_claims" in stored["about"]["projection"]
