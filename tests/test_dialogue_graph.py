"""MMGCN and GA2MIF as methods: dialogues in a batch do not touch each other, and odd clips break nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, zip_longest
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cmpta_lib import registry
from cmpta_lib.base import Method
from cmpta_lib.baselines.dialogue import Layout
from cmpta_lib.baselines.supervised import reference
from cmpta_lib.config import DataConfig, RunConfig, override
from cmpta_lib.data.corpus import Inputs, Sample
from cmpta_lib.runs.evaluation import evaluate
from cmpta_lib.runs.load import TrainedRun
from cmpta_lib.runs.store import Run

NAMES = ("mmgcn", "ga2mif")
WORLDS = ("embedded-sims", "embedded-meld")
SIZES = (4, 1, 7, 2)


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def build(name, corpora, tools):
    """A small method with random weights, in eval mode; `**changes` of its settings."""

    def made(world: str = "embedded-meld", **changes: Any) -> Method:
        entry = registry.ENTRIES[name]
        config = RunConfig(data=DataConfig(name="test", fingerprint=""), method=entry.config())
        config = override(config, entry.settings["smoke"] | {f"method.{k}": v for k, v in changes.items()})
        torch.manual_seed(0)
        method = registry.build(config, Inputs.of(corpora[world]), tools)
        method.fit(corpora[world].splits["train"])
        method.module.eval()
        return method

    return made


def dialogues(corpus, sizes: Sequence[int] = SIZES) -> list[list[Sample]]:
    """Clips of the corpus as dialogues of these sizes, with three speakers."""
    clips = iter(corpus.splits["train"])
    drawn = [[next(clips) for _ in range(size)] for size in sizes]
    return [
        [replace(clip, dialogue=f"d{number}", speaker="ABC"[turn % 3]) for turn, clip in enumerate(members)]
        for number, members in enumerate(drawn)
    ]


def outputs(method: Method, samples: Sequence[Sample]) -> Tensor:
    with torch.no_grad():
        return method.forward(method.clips(method.collate(samples)))


def flat(lists: Sequence[Sequence[Sample]]) -> list[Sample]:
    return [clip for members in lists for clip in members]


# --- layout -----------------------------------------------------------------------------------------------------------


def test_the_layout_by_hand():
    layout = Layout.of([2, 3, 1], torch.tensor([0, 1, 0, 1, 12, 0]))
    rows = torch.arange(1.0, 7)[:, None]
    padded = layout.pad(rows)
    assert padded[..., 0].tolist() == [[1, 2, 0], [3, 4, 5], [6, 0, 0]]
    assert layout.real.tolist() == (padded[..., 0] > 0).tolist()
    assert torch.equal(layout.flat(padded), rows)
    assert rows[layout.packing, 0].tolist() == [3, 1, 6, 4, 2, 5] and layout.batch_sizes.tolist() == [3, 2, 1]
    assert torch.equal(rows[layout.packing][layout.unpacking], rows)
    assert torch.equal(layout.voices(table := torch.nn.Embedding(3, 2)), table.weight[[0, 1, 0, 1, 2, 0]])


# --- what may and may not depend on what ------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("features", ["lstm", "mean"])
def test_a_batch_of_dialogues_equals_each_alone_in_any_order(build, world, features, corpora):
    method, drawn = build(world, features=features), dialogues(corpora[world])
    together = outputs(method, flat(drawn)).split(SIZES)
    for number, members in enumerate(drawn):
        torch.testing.assert_close(outputs(method, members), together[number], rtol=0, atol=1e-5)
    backwards = outputs(method, flat(drawn[::-1])).split(SIZES[::-1])
    torch.testing.assert_close(torch.cat(backwards[::-1]), torch.cat(together), rtol=0, atol=1e-5)


def test_gradients_of_a_batch_are_the_sum_of_the_dialogues_own(build, corpora):
    method, drawn = build(), dialogues(corpora["embedded-meld"])

    def gradients(samples: Sequence[Sample]) -> list[Tensor]:
        return torch.autograd.grad(method.loss(method.collate(samples)).total, [*method.net.parameters()])

    alone = [torch.stack(parts).sum(0) for parts in zip(*map(gradients, drawn), strict=True)]
    for one, other in zip(gradients(flat(drawn)), alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_other_turns_and_who_speaks_them_matter_only_with_context(build, corpora):
    members = dialogues(corpora["embedded-meld"], [5])[0]
    elsewhere = [*members[:1], *(replace(clip, text="I hate the party.", vision=-clip.vision) for clip in members[1:])]
    renamed = [*members[:4], replace(members[4], speaker="D")]
    for context in (True, False):
        method = build(context=context)
        plain = outputs(method, members)
        assert (outputs(method, elsewhere)[0] - plain[0]).abs().max().item() > 1e-4 if context else (
            torch.allclose(outputs(method, elsewhere)[0], plain[0], atol=1e-5)
        )
        assert torch.allclose(outputs(method, renamed), plain, atol=1e-5) is not context
    alone = torch.cat([outputs(method, [clip]) for clip in members])
    torch.testing.assert_close(alone, plain, rtol=0, atol=1e-5)


def test_speakers_are_numbered_not_named(build, corpora):
    members = dialogues(corpora["embedded-meld"], [5])[0]
    other = [replace(clip, speaker={"A": "Zoe", "B": "Yan", "C": None}[clip.speaker]) for clip in members]
    method = build()
    torch.testing.assert_close(outputs(method, other), outputs(method, members))


def test_padding_is_never_read(build, corpora):
    """Whatever stands beyond a clip's frames and words."""
    method = build()
    batch = method.collate(flat(dialogues(corpora["embedded-meld"])))
    spoilt = replace(batch, text_ids=batch.text_ids.copy(), frames={k: v.copy() for k, v in batch.frames.items()})
    for row in range(len(batch.ids)):
        spoilt.text_ids[row, batch.text_lengths[row] :] = 7
        for modality, frames in spoilt.frames.items():
            frames[row, batch.lengths[modality][row] :] = 1e3
    np.testing.assert_allclose(method.predict(spoilt).probabilities, method.predict(batch).probabilities, atol=1e-6)


def test_the_last_rows_of_the_speaker_table_are_shared_by_late_voices(build, corpora):
    members = dialogues(corpora["embedded-meld"], [12])[0]
    voices = [replace(clip, speaker=f"voice {turn}") for turn, clip in enumerate(members)]
    assert torch.isfinite(outputs(build(), voices)).all()


# --- what must never be NaN -------------------------------------------------------------------------------------------


def oddities(members: Sequence[Sample]) -> dict[str, list[Sample]]:
    gone = {m: getattr(members[0], m)[:0] for m in ("audio", "vision")}
    return {
        "no audio": [replace(clip, audio=gone["audio"]) for clip in members],
        "no vision": [replace(clip, vision=gone["vision"]) for clip in members],
        "words only": [replace(clip, **gone) for clip in members],
        "nothing": [replace(clip, **gone, text="") for clip in members],
        "zeros": [replace(clip, audio=0 * clip.audio, vision=0 * clip.vision) for clip in members],
        "constant": [replace(clip, audio=0 * clip.audio + 5, vision=0 * clip.vision + 5) for clip in members],
        "the same clip": [members[0]] * len(members),
        "one frame": [replace(clip, audio=clip.audio[:1], vision=clip.vision[:1]) for clip in members],
    }


@pytest.mark.parametrize("features", ["lstm", "mean"])
@pytest.mark.parametrize("world", WORLDS)
def test_odd_clips_give_finite_losses_gradients_and_answers(build, world, features, corpora):
    method = build(world, features=features)
    drawn = next(m for m in dialogues(corpora[world], [5]) if any(len(clip.audio) and len(clip.vision) for clip in m))
    for kind, odd in oddities(drawn).items():
        for samples in (odd, odd[:1]):  # a dialogue, and a batch of one clip
            method.module.train()
            loss = method.loss(method.collate(samples))
            gradients = torch.autograd.grad(loss.total, [*method.net.parameters()], allow_unused=True)
            assert torch.isfinite(loss.total), kind
            assert all(torch.isfinite(g).all() for g in gradients if g is not None), kind
            method.module.eval()
            assert np.isfinite(method.predict(method.collate(samples)).values).all(), kind


@pytest.mark.parametrize("world", WORLDS)
def test_every_weight_learns_and_each_switch_runs(build, name, world, corpora):
    samples = flat(dialogues(corpora[world]))
    entry = registry.ENTRIES[name]
    plain = reference(entry.config()).model_dump()
    changes = [{}, {k: v for k, v in plain.items() if k in entry.config.quirks and k != "epsilon"}]
    changes += [{"loss": "focal"}] if name == "mmgcn" else [{"share_graph_layers": False, "past": 1, "future": 0}]
    for change in changes:
        method = build(world, **change)
        method.loss(method.collate(samples)).total.backward()
        for key, weight in method.net.named_parameters():
            assert torch.isfinite(weight.grad).all() and weight.grad.abs().sum() > 0, key


def test_all_weights_are_in_one_group_and_frame_networks_have_their_own_rate(build):
    method = build(frames_rate=7.0)
    groups = method.groups(None)
    assert [group.rate for group in groups] == [1.0, 7.0]
    grouped = [p for group in groups for p in group.parameters]
    assert {id(p) for p in grouped} == {id(p) for p in method.net.parameters()} and len(set(map(id, grouped))) == len(grouped)


# --- evaluation and loaded runs ---------------------------------------------------------------------------------------


def test_a_loaded_run_answers_dialogues_in_any_order_as_it_was_evaluated(build, corpora, tmp_path):
    method, corpus = build(), corpora["embedded-meld"]
    table, _ = evaluate(method, corpus.splits["train"], 2)
    kept = [list(members) for _, members in groupby(corpus.splits["train"], key=lambda clip: clip.dialogue)]
    assert len(kept) > 1
    first, second, *others = kept
    mixed = [clip for pair in zip_longest(second, first) for clip in pair if clip is not None]  # turn by turn
    asked = [replace(clip, label=None) for clip in flat([*others[::-1], mixed])]
    answers = TrainedRun(Run(method.config, tmp_path), Inputs.of(corpus), method).predict(asked)
    assert [answer.id for answer in answers] == [clip.id for clip in asked]
    expected = dict(zip(table["id"], table["prediction"], strict=True))
    assert all(answer.value == expected[answer.id] for answer in answers)
