"""The benchmark: its contenders compute what they say, and its tables hold what was measured. No time is tested."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from cmpta_lib.benchmark import clips, floor, page, peak, plots, scaling, shares, table
from cmpta_lib.benchmark.ancestor import IGNORED, NEW_TOKENS
from cmpta_lib.benchmark.command import contest_of
from cmpta_lib.benchmark.contest import Contest
from cmpta_lib.benchmark.options import Options
from cmpta_lib.benchmark.shapes import SHAPES, FoldedTokenizer
from cmpta_lib.benchmark.times import CONTENDERS, PARTS, Times
from cmpta_lib.benchmark.timing import Spread, fit_line
from cmpta_lib.cli.__main__ import main
from cmpta_lib.data.corpus import Sample
from cmpta_lib.fast.llm import PACKED
from data_prep import rehearsal

SMALL = Options("sims", batch_size=3, dim=16, steps=1, answers=1, answered=4)


@pytest.fixture(scope="module", params=["sims", "meld"])
def contest(request: pytest.FixtureRequest) -> Contest:
    return contest_of(replace(SMALL, corpus=request.param))


@pytest.fixture(scope="module")
def samples(contest: Contest) -> list[Sample]:
    return [contest.corpus.splits["train"][clip] for clip in contest.batches[0]]


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
    limit = clips.TEXT_LIMIT[contest.options.corpus]
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
    model.set_attn_implementation(PACKED)
    torch.testing.assert_close(contest.ancestor.loss(batch), torch.stack(losses).mean(), rtol=1e-5, atol=1e-5)
    assert model.config._attn_implementation == PACKED, "ours is back"


def test_its_answers_are_what_greedy_decoding_says(contest: Contest, samples: list[Sample]):
    model, expected = contest.llm.model, []
    model.set_attn_implementation("eager")
    for sample in samples:
        row, said = slow_prompt(contest, sample), []
        for _ in range(NEW_TOKENS[contest.corpus.task.kind]):
            said.append(int(model(inputs_embeds=row[None], use_cache=False).logits[0, -1].argmax()))
            row = torch.cat([row, contest.llm.embedding(torch.tensor(said[-1:]))])
        expected.append(contest.llm.tokenizer.decode(said))
    model.set_attn_implementation(PACKED)
    assert contest.ancestor.answer(samples) == expected


def test_a_step_of_it_moves_its_maker_and_never_the_llm(contest: Contest, samples: list[Sample]):
    before = [weight.clone() for weight in contest.ancestor.maker.parameters()]
    frozen = {name: weight.clone() for name, weight in contest.llm.model.named_parameters()}
    assert math.isfinite(contest.ancestor.step(samples))
    assert all((old != new).any() for old, new in zip(before, contest.ancestor.maker.parameters(), strict=True))
    assert all(torch.equal(weight, frozen[name]) for name, weight in contest.llm.model.named_parameters())
    assert IGNORED == -100, "what torch's cross-entropy leaves out"


# --- the floor --------------------------------------------------------------------------------------------------------


def test_the_floor_is_the_plain_path_on_the_same_tokens(contest: Contest):
    ours, batch = contest.ours, contest.ours.batch(contest.batches[0])
    ours.method.module.eval()
    inputs = floor.given(ours.method, batch)
    embeds, packing, positions, targets = ours.method.training_inputs(batch)
    logits = contest.llm.logits(embeds, packing, positions)
    assert torch.equal(contest.llm.logits(inputs.leaf, inputs.packing, inputs.positions), logits)
    loss = F.cross_entropy(logits, targets)
    assert torch.equal(floor.step(contest.llm, inputs), loss.detach())
    (wanted,) = torch.autograd.grad(loss, embeds)
    assert torch.equal(inputs.leaf.grad, wanted) and inputs.tokens == int(packing.lengths.sum())


def test_operations_count_every_layer_for_all_tokens_and_the_head_for_answers(contest: Contest):
    shape, inputs = SHAPES["tiny"], contest.given(contest.batches[0])
    layer = 4 * shape.hidden**2 + 3 * shape.hidden * shape.mlp
    head = len(inputs.targets) * shape.hidden * shape.vocabulary
    assert floor.operations(contest.llm, inputs) == 4 * (inputs.tokens * shape.layers * layer + head)
    with shares.products(contest.llm.model, shares.Marks(contest.llm.device)) as counted:
        floor.step(contest.llm, inputs)
    assert sum(counted) == floor.operations(contest.llm, inputs), "counted as they come, they are as many"


# --- clips and tokens -------------------------------------------------------------------------------------------------


def test_lengths_are_the_rehearsals():
    drawn = rehearsal.simsv2_split("train", 8)
    train = clips.corpus(SMALL).splits["train"]
    assert train.table["audio_length"].tolist() == drawn["audio_lengths"] and train[2].text == drawn["raw_text"][2]
    assert train[3].vision.shape == (drawn["vision_lengths"][3], 177)
    items = list(rehearsal.meld_items("train", rehearsal.meld_rows("train", 8)))
    meld = clips.corpus(replace(SMALL, corpus="meld")).splits["train"]
    assert meld.table["audio_length"].tolist() == [item["features"]["audio_len"] for item in items]


def test_lengths_can_be_set(contest: Contest):
    fixed = replace(contest.options, text_tokens=7, audio_frames=11, vision_frames=5)
    own = contest_of(fixed, contest.llm)
    batch = own.ours.batch(own.batches[0])
    assert {len(ids) for ids in batch.text_ids} == {7}
    assert own.frames(own.batches[0]) == 3 * (11 + 5)


class _Words:
    bos_token_id, eos_id = 900, 901

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def test_a_smaller_table_keeps_tokens_apart():
    folded = FoldedTokenizer(_Words(), 6)
    ids = folded("abca")["input_ids"]
    assert ids == folded("abca")["input_ids"] and len(set(ids)) == 3 and max(ids) < len(folded) == 6
    assert folded.decode([*ids, 5]) == "abca", "nothing has row 5"
    with pytest.raises(ValueError, match="expected at most 6 different tokens .* fewer clips or a larger backbone"):
        folded("abcdef")


# --- what is made of it -----------------------------------------------------------------------------------------------


def test_every_part_of_a_step_is_seen_and_nothing_stays_behind(contest: Contest):
    ours = contest.ours
    parts, operations = shares.step_parts(ours.method, ours.optimizer, lambda: ours.step(contest.batches[0]))
    assert set(parts) == set(PARTS) and min(parts.values()) > 0
    whole = floor.operations(contest.llm, contest.given(contest.batches[0]))
    assert 0.3 * whole < operations < 0.9 * whole, "what no logit needs is left out"
    assert "collate" not in vars(ours.method) and "loss" not in vars(ours.method)
    assert not ours.method.maker._forward_hooks and not contest.llm.model.get_output_embeddings()._forward_pre_hooks


def test_a_line_is_fitted_with_its_share_of_the_variance():
    line = fit_line([1, 2, 3], [5, 7, 9])
    assert (line.slope, line.intercept, line.r2) == pytest.approx((2, 3, 1))
    x, y = np.arange(6.0), np.array([0.0, 2, 1, 4, 3, 6])
    assert fit_line(x, y).r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    with pytest.raises(ValueError, match="two different x"):
        fit_line([2, 2], [1, 3])
    assert Spread.of([1, 2, 3, 4, 100]) == Spread(3, 2)


def times() -> Times:
    return Times(
        steps={"ours": [20.0, 30, 40], "floor": [10.0, 20, 30], "ancestor": [60.0, 60, 60]},
        answers={"ours": [1.0, 3], "ancestor": [8.0, 8]},
        parts=[dict.fromkeys(PARTS, 1.0)],
        tokens=[100, 200, 300],
        frames=[10, 20, 30],
        products=[3e9],
        operations=[2e9, 4e9, 6e9],
        peak_rate=4e11,
    )


def test_a_row_holds_medians_ratios_and_shares():
    peaks = {name: {"peak": 2.0, "growth": growth} for name, growth in zip(CONTENDERS, (0.5, 0.4, 1.0), strict=True)}
    row = table.row(SMALL, times(), peaks)
    assert (row["step_ms"], row["step_iqr_ms"], row["floor_ms"], row["ancestor_step_ms"]) == (30, 10, 20, 60)
    assert (row["step_over_floor"], row["ancestor_over_step"]) == (1.5, 2)
    assert (row["answer_ms"], row["ancestor_over_answer"]) == (2, 4)
    assert row["tokens_per_second"] == pytest.approx(600 / 0.09)
    assert sum(row[f"share {part}"] for part in PARTS) == pytest.approx(1)
    assert row["floor_of_matmul_peak"] == pytest.approx(12e9 / 0.06 / 4e11)
    assert row["llm_part_of_matmul_peak"] == pytest.approx(3e9 / 0.003 / 4e11)
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
    (tmp_path / "README.md").write_text("# Title\n<!-- speed: begin -->\nold\n<!-- speed: end -->\nThe end.\n")
    assert "1 file" not in (said := table.publish(tmp_path)) and "commit both" in said
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert lines[0] == "# Title" and lines[-1] == "The end." and "old" not in lines
    (shown,) = (line for line in lines if line.startswith(f"|{row['corpus']}|"))
    assert f"{row['step_ms']:,.0f} ms|{row['floor_ms']:,.0f} ms|{row['ancestor_step_ms']:,.0f} ms" in shown
    folder = tmp_path / "figures" / "published" / table.FOLDER
    stored = table.stored(folder)["small"]
    assert stored["rows"] == [row] and {"date", "commit", "hardware", "threads", "packages"} <= stored["about"].keys()
    assert Options(**stored["about"]["options"][0]) == SMALL
    assert pd.read_csv(folder / "small.csv")["step_over_floor"].tolist() == [1.5]


def curve() -> list[dict]:
    rows = [{"what": "samples", "value": n, "ours_ms": 5.0 * n} for n in (16, 32)]
    for what in ("batch size", "text length", "audio frames", "adapter width"):
        common = {"what": what, "floor_ms": 1.0}
        rows += [common | {"value": n, "tokens": 10 * n, "frames": 100 * n, "ours_ms": 3.0 * n + 1} for n in (1, 2, 4)]
    return rows


def test_what_should_be_a_line_gets_one():
    found = {one["what"]: one for one in scaling.fits(curve())}
    assert set(found) == {"batch size", "text length", "audio frames", "samples"}
    assert found["text length"]["slope_ms"] == pytest.approx(0.3) and found["text length"]["at_zero_ms"] == pytest.approx(1)
    assert found["audio frames"]["r2"] == pytest.approx(1) and found["samples"]["slope_ms"] == pytest.approx(5)


def test_one_thing_varies_at_a_time():
    for what, value, options in scaling.variations(SMALL):
        set_by = {"batch size": options.batch_size, "text length": options.text_tokens, "audio frames": options.audio_frames}
        assert value == set_by.get(what, options.dim) and options.dim % 8 == 0
        assert what in ("text length", "audio frames") or options.text_tokens is options.audio_frames is None


def test_figures_are_drawn_with_and_without_workers(tmp_path: Path):
    assert plots.read_workers(tmp_path) is None
    (tmp_path / plots.WORKERS).write_text("engine,workers\nray,2\n")
    with pytest.raises(ValueError, match="missing: speed_up"):
        plots.read_workers(tmp_path)
    (tmp_path / plots.WORKERS).write_text("engine,workers,speed_up\nray,1,1\nray,2,1.8\nsubmitit,1,1\n")
    paths = plots.save(plots.growth(curve(), "title", plots.read_workers(tmp_path)), tmp_path / "growth")
    paths += plots.save(plots.costs([table.row(SMALL, times())], "a title " * 30), tmp_path / "costs")
    assert all(path.stat().st_size > 1000 for path in paths)
    assert "submitit" in paths[1].read_text() and paths[0].read_bytes().startswith(b"\x89PNG")


def test_a_page_shows_what_is_stored_and_how_to_make_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CMPTA_FIGURES", str(tmp_path))
    monkeypatch.setattr(page, "ROOT", tmp_path / "nothing published")
    bare = page.overview(page.measurements())
    assert list(bare["backbone"]) == ["tiny", "slice", "full"] and not list(page.figures(page.measurements()))
    folder, about = tmp_path / table.FOLDER, table.about([SMALL])
    rows = [table.row(replace(SMALL, backbone="full", batch_size=size), times()) for size in (16, 64)]
    table.store(folder, "gpu", rows, about)
    table.store(folder, "scaling-tiny", curve(), about)
    shown = page.overview(page.measurements())
    assert list(shown["backbone"]) == ["full", "full", "tiny", "slice"] and list(shown["batch"][:2]) == [16, 64]
    assert about["date"] in shown["measured"][0] and "cmpta benchmark --backbone slice" in shown["measured"][3]
    footers = [figure.footer for figure in page.figures(page.measurements())]
    assert [("batch 16" in one, "batch 64" in one, "lengths of SIMS-V2" in one) for one in footers] == [
        (True, False, False), (False, True, False), (False, False, True),
    ]  # fmt: skip


# --- from end to end --------------------------------------------------------------------------------------------------


def test_the_command_prints_and_stores_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("CMPTA_FIGURES", str(tmp_path))
    for name in ("BATCH_SIZES", "TEXT_TOKENS", "AUDIO_FRAMES", "WIDTHS", "EPOCHS"):
        monkeypatch.setattr(scaling, name, getattr(scaling, name)[:2])
    small = ["--steps", "1", "--answers", "1", "--answered", "4", "--batch-size", "2", "--dim", "16", "--no-memory"]
    assert main(["benchmark", "--corpora", "meld", "--scaling", *small]) == 0
    said = capsys.readouterr().out
    assert "step/floor" in said and "ancestor/answer" in said and "slope_ms" in said
    name = "tiny-batch2-dim16"
    kinds = {path.name for path in (tmp_path / table.FOLDER).iterdir()}
    assert kinds == {f"{stem}.{kind}" for stem in (name, f"scaling-{name}-meld") for kind in ("json", "csv", "png", "svg")}
    (row,) = json.loads((tmp_path / table.FOLDER / f"{name}.json").read_text())["rows"]
    assert row["corpus"] == "MELD" and all(row[f"{part}_ms"] > 0 for part in ("step", "floor", "ancestor_step", "answer"))


@pytest.mark.slow
def test_the_gpu_script_does_all_of_it_at_a_small_size(tmp_path: Path):
    """In a process of its own, which shows what it imports: a GPU's machine has no Jupyter."""
    code = (
        "import sys; from cmpta_lib.benchmark import gpu; code = gpu.main(sys.argv[1:]);"
        "print(sorted({'IPython', 'jupyterlab', 'papermill', 'nbformat', 'matplotlib', 'seaborn'} & set(sys.modules)), code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "--small"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[] 0"
    stored = table.stored(tmp_path)["gpu"]
    assert [(row["corpus"], row["batch"]) for row in stored["rows"]] == [(c, b) for c in ("SIMS-V2", "MELD") for b in (2, 4)]
    wanted = {"step_ms", "floor_ms", "ancestor_step_ms", "ancestor_over_answer", "ours_peak_gb", "llm_part_of_matmul_peak"}
    assert all(wanted <= row.keys() for row in stored["rows"]) and "10_claims" in stored["about"]["projection"]


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own():
    found = peak.apart(SMALL, "ours")
    assert found["peak"] > 0.1 and 0 <= found["growth"] < found["peak"]


def test_a_measurement_that_fails_says_so(contest: Contest, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="no contender 'nobody'; there are: ours, floor, ancestor"):
        contest.work("nobody", contest.batches[0])
    monkeypatch.setattr(peak.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="measuring the memory of 'ours' failed: "):
        peak.apart(SMALL, "ours")
