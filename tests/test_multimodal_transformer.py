"""The multimodal transformer: its equations by hand, its two stages, and clips that must not disturb each other."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from finished import finish, record_llms, small_studies
from test_model import clips
from torch import Tensor

from cmpta_lib import registry
from cmpta_lib.beyond.multimodal_transformer import (
    STREAMS,
    Embedding,
    MultimodalTransformer,
    MultimodalTransformerConfig,
    SixPairs,
    resampled,
    sinusoids,
)
from cmpta_lib.config import DataConfig, RunConfig, Stage, TrainingConfig, from_json, override, to_json
from cmpta_lib.data.corpus import Inputs, Sample
from cmpta_lib.metrics import METRICS
from cmpta_lib.report import comparison as tables
from cmpta_lib.report.comparison import of_every_corpus
from cmpta_lib.report.rows import result_row
from cmpta_lib.runs import loop
from cmpta_lib.study import plan
from cmpta_lib.study import plan as systems

WORLDS = ("embedded-sims", "embedded-meld")
SMALL = MultimodalTransformerConfig(dim=16, layers=1, heads=2, feedforward=2, dropout=0.0, contrastive_dim=8, max_positions=30)
CONFIG = RunConfig(
    data=DataConfig(name="test", fingerprint=""),
    method=SMALL,
    training=TrainingConfig(batch_size=8, epochs=1, learning_rate=0.01),
)
WINDOWS = {"method.frame_window": 5, "method.frame_stride": 3}
SWITCHES = [
    {},
    {"method.fusion": "concatenation", "method.positions": "learned", **WINDOWS},
    {"method.fusion": "self_attention", "method.text_table": "trained", "method.pretraining": "mlm"},
    {"method.projections": "per_pair", "method.pooling": "first_token", "method.pretraining": "contrastive"},
    {"method.pooling": "resample", "method.contrastive_view": "joint", "method.layers": 2},
    {"method.modalities": "text", **WINDOWS},
    {"method.modalities": "audio_vision", "method.pretraining": "none"},
]


def built(tools, corpus, changes=None) -> MultimodalTransformer:
    torch.manual_seed(0)
    method = registry.build(override(CONFIG, changes or {}), Inputs.of(corpus), tools)
    method.fit(corpus.splits["train"])
    method.module.eval()
    assert isinstance(method, MultimodalTransformer)
    return method


def stages(method: MultimodalTransformer) -> dict[str, Stage]:
    return {stage.name: stage for stage in method.config.stages}


def outputs(method: MultimodalTransformer, samples: list[Sample]) -> Tensor:
    with torch.no_grad():
        return method.forward(method.clips(method.collate(samples)))


def pretraining_loss(method: MultimodalTransformer, samples: list[Sample]) -> dict[str, Tensor]:
    method.enter(stages(method)["pretraining"])
    torch.manual_seed(3)
    with torch.no_grad():
        loss = method.loss(method.collate(samples))
    return {"all": loss.total / loss.count, **{name: part / loss.count for name, part in loss.parts.items()}}


def lacking(sample: Sample, *names: str) -> Sample:
    return replace(sample, **{name: getattr(sample, name)[:0] for name in names})


# --- E_m = W_m X_m + P_m ------------------------------------------------------------------------------------------------


def test_an_embedding_is_a_projection_a_position_and_a_kind():
    torch.manual_seed(0)
    for positions in ("sinusoidal", "learned"):
        embedding = Embedding(3, SMALL.model_copy(update={"positions": positions}))
        features = torch.randn(2, 5, 3)
        tokens, lengths = embedding(features, torch.tensor([5, 2]))
        places = embedding.positions[:5] if positions == "learned" else sinusoids(5, 16, torch.device("cpu"))
        projected = features @ embedding.project.weight.T + embedding.project.bias
        torch.testing.assert_close(tokens, projected + places + embedding.kind)
        assert lengths.tolist() == [5, 2]
    far = embedding(torch.zeros(1, 40, 3), torch.tensor([40]))[0][0]
    torch.testing.assert_close(far[29:], far[29:30].expand(11, -1), msg="positions beyond the table share its last")


def test_positions_are_those_of_attention_is_all_you_need():
    table = sinusoids(50, 16, torch.device("cpu"))
    for place, number in ((0, 0), (7, 3), (49, 7)):
        angle = place / 10000 ** (2 * number / 16)
        assert table[place, 2 * number].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert table[place, 2 * number + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (3, 1), (4, 2), (8, 3), (1, 2), (2, 5)])
def test_windows_are_what_a_slow_loop_cuts(window: int, stride: int):
    torch.manual_seed(0)
    embedding, frames = Embedding(3, SMALL, window, stride), torch.randn(1, 11, 3)
    tokens, lengths = embedding(frames, torch.tensor([11]))
    assert tokens.shape[1] == lengths.item() == math.ceil(11 / stride)
    places = sinusoids(tokens.shape[1], 16, torch.device("cpu")) + embedding.kind
    for number in range(tokens.shape[1]):
        first = number * stride - (window - 1) // 2
        seen = [frames[0, place] if 0 <= place < 11 else torch.zeros(3) for place in range(first, first + window)]
        expected = embedding.project(torch.cat(seen)) + places[number]
        torch.testing.assert_close(tokens[0, number], expected, rtol=1e-5, atol=1e-5)


def test_the_words_are_read_from_the_encoders_table_scaled_by_the_training_splits_words(tools, corpora):
    corpus = corpora["embedded-sims"]
    method = built(tools, corpus)
    found = method.clips(method.collate(list(corpus.splits["train"])))
    words = method.inputs_of(found, found.text_ids)["text"][0]
    real = words[found.text_real]
    torch.testing.assert_close(real.mean(0), torch.zeros(real.shape[1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(real.std(0, unbiased=False), torch.ones(real.shape[1]), atol=1e-4, rtol=0)
    scaling, table = method.scaling["text"], method.encoder.model.get_input_embeddings().weight
    torch.testing.assert_close(words[0, 1], (table[found.text_ids[0, 1]] - scaling.mean) / scaling.std)


@pytest.mark.parametrize("kind", ["frozen", "trained"])
def test_only_a_copy_of_the_table_is_ever_trained(kind: str, tools, corpora):
    method = built(tools, corpora["embedded-sims"], {"method.text_table": kind})
    before = method.frozen_table.clone()
    optimizer = torch.optim.AdamW([p for p in method.module.parameters() if p.requires_grad], lr=0.01)
    loop.step(method, optimizer, clips(corpora["embedded-sims"]), [[0], [1]], CONFIG.training)
    assert torch.equal(method.encoder.model.get_input_embeddings().weight, before)
    assert torch.equal(method._table(), before) == (kind == "frozen")


# --- six-way attention --------------------------------------------------------------------------------------------------


def streams_of(lengths: dict[str, list[int]], dim: int = 16) -> dict[str, tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    found = {}
    for name in STREAMS:
        given = torch.tensor(lengths[name])
        states = torch.randn(len(given), int(given.max()), dim)
        found[name] = (states * (torch.arange(states.shape[1]) < given[:, None])[..., None], given)
    return found


def test_golden_values_of_the_cross_attention():
    """cos(0.3 k + seed), shape (3, 4): queries of seed 1, keys and values of seed 2, no projections; numpy, float64."""
    fusion = SixPairs(SMALL.model_copy(update={"dim": 4}))
    with torch.no_grad():
        for projection in (part for parts in fusion.projections.values() for part in parts.values()):
            projection.weight.copy_(torch.eye(4))
            projection.bias.zero_()
    wave = {seed: torch.cos(0.3 * torch.arange(12, dtype=torch.float64) + seed).float().view(1, 3, 4) for seed in (1, 2)}
    three = torch.tensor([3])
    streams = {"text": (wave[1], three), "audio": (wave[2], three), "vision": (wave[2], three)}
    found = fusion.term(streams, "text", "audio")[0, 0].tolist()
    assert found == pytest.approx([-0.551036, -0.531153, -0.463824, -0.355063], abs=1e-5)
    weights = (wave[1][0] @ wave[2][0].T / 2).softmax(-1)[0].tolist()
    assert weights == pytest.approx([0.379344, 0.292962, 0.327695], abs=1e-5)


@pytest.mark.parametrize("projections", ["per_modality", "per_pair"])
@pytest.mark.parametrize("pooling", ["mean", "first_token", "resample"])
def test_the_fusion_is_what_a_slow_loop_adds_up(pooling: str, projections: str):
    settings = SMALL.model_copy(update={"pooling": pooling, "projections": projections, "resampled_positions": 3})
    torch.manual_seed(0)
    fusion = SixPairs(settings)
    streams = streams_of({"text": [4, 2, 3, 5], "audio": [3, 0, 6, 0], "vision": [2, 5, 0, 0]})
    fused = fusion(streams)
    for clip in range(4):
        real = {name: states[clip, : int(lengths[clip])] for name, (states, lengths) in streams.items() if lengths[clip]}
        expected = torch.zeros(16)
        for x, y in permutations(real, 2) if len(real) > 1 else [(name, name) for name in real]:
            asking, asked = (x, y) if projections == "per_modality" else (f"{x}_{y}", f"{x}_{y}")
            query, key = fusion.projections[asking]["query"](real[x]), fusion.projections[asked]["key"](real[y])
            term = (query @ key.T / math.sqrt(16)).softmax(-1) @ fusion.projections[asked]["value"](real[y])
            if pooling == "resample":
                last = len(term) - 1
                places = [0, last / 2, last]
                term = torch.stack([torch.lerp(term[math.floor(p)], term[math.ceil(p)], p % 1) for p in places])
            expected = expected + (term[0] if pooling == "first_token" else term.mean(0))
        torch.testing.assert_close(fused[clip], expected, rtol=1e-4, atol=1e-5)


def test_resampling_ends_where_the_clip_ends():
    states = torch.arange(5.0)[None, :, None].expand(2, -1, 1)
    found = resampled(states, torch.tensor([5, 2]), 3)[..., 0]
    torch.testing.assert_close(found, torch.tensor([[0.0, 2.0, 4.0], [0.0, 0.5, 1.0]]))
    assert resampled(states, torch.tensor([5, 2]), 1)[..., 0].tolist() == [[2.0], [0.5]]


def test_pairs_have_projections_of_their_own_where_asked():
    counts = {}
    for projections in ("per_modality", "per_pair"):
        fusion = SixPairs(SMALL.model_copy(update={"projections": projections}))
        counts[projections] = sum(p.numel() for p in fusion.parameters()) // (3 * 16 * 17)
    assert counts == {"per_modality": 3, "per_pair": 9}


# --- clips --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(SWITCHES)), ids=lambda number: str(SWITCHES[number]))
def test_a_clip_gives_the_same_alone_and_in_any_batch(number, tools, corpora):
    corpus = corpora[WORLDS[number % 2]]
    method, samples = built(tools, corpus, SWITCHES[number]), clips(corpus)
    together = outputs(method, samples)
    assert len({tuple(row) for row in together.tolist()}) > 1
    torch.testing.assert_close(outputs(method, samples[::-1]).flip(0), together, rtol=0, atol=1e-5)
    alone = torch.cat([outputs(method, [sample]) for sample in samples])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)


def test_padding_is_never_read(tools, corpora):
    corpus = corpora["embedded-sims"]
    for changes in ({}, WINDOWS):
        method = built(tools, corpus, changes)
        batch = method.collate(clips(corpus))
        noisy = {name: frames.copy() for name, frames in batch.frames.items()}
        for name, frames in noisy.items():
            for row, length in zip(frames, batch.lengths[name], strict=True):
                row[length:] = 1e3
        with torch.no_grad():
            clean, other = (method.forward(method.clips(one)) for one in (batch, replace(batch, frames=noisy)))
        torch.testing.assert_close(clean, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("changes", SWITCHES[:3], ids=str)
def test_a_real_frame_of_zeros_is_no_padding(changes, tools, corpora):
    """The public code of MulT takes every frame that begins with an exact zero for padding."""
    corpus = corpora["embedded-sims"]
    method = built(tools, corpus, {**changes, "data.feature_scaling": "none"})
    sample = corpus.splits["train"][0]
    for name in ("audio", "vision"):
        frames = getattr(sample, name)
        longer = replace(sample, **{name: np.concatenate([frames, np.zeros_like(frames[:4])])})
        assert not torch.allclose(outputs(method, [longer]), outputs(method, [sample]), atol=1e-6)
    silent = replace(sample, audio=np.zeros_like(sample.audio))
    assert not torch.allclose(outputs(method, [silent]), outputs(method, [lacking(sample, "audio")]), atol=1e-6)


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_odd_clips_train_without_a_nan(changes, tools, corpora):
    corpus = corpora["embedded-sims"]
    sample = corpus.splits["train"][0]
    nothing = replace(lacking(sample, "audio", "vision"), text="")
    flat = replace(sample, audio=np.zeros_like(sample.audio), vision=np.ones_like(sample.vision))
    method = built(tools, corpus, changes)
    for batch in ([nothing], [nothing, nothing], [sample, nothing, flat, *clips(corpus)]):
        for stage in stages(method).values():
            method.enter(stage)
            optimizer = torch.optim.AdamW([p for p in method.module.parameters() if p.requires_grad], lr=0.01)
            loop.step(method, optimizer, batch, [[place] for place in range(len(batch))], CONFIG.training)
            assert all(torch.isfinite(p).all() for p in method.module.parameters())
        found = method.predict(method.collate(batch))
        assert np.isfinite(found.values).all()


def test_a_clip_without_face_and_voice_is_answered_from_its_words(tools, corpora):
    corpus = corpora["embedded-sims"]
    method = built(tools, corpus)
    bare = [lacking(sample, "audio", "vision") for sample in clips(corpus)]
    assert len({round(value, 6) for value in outputs(method, bare)[:, 0].tolist()}) > 1


@pytest.mark.parametrize("chosen", ["text", "audio_vision"])
def test_only_the_chosen_modalities_are_read(chosen, tools, corpora):
    corpus = corpora["embedded-sims"]
    method, sample = built(tools, corpus, {"method.modalities": chosen}), corpus.splits["train"][0]
    whole, other_text = outputs(method, [sample]), outputs(method, [replace(sample, text="something else")])
    assert torch.equal(whole, other_text) == (chosen != "text")
    for name in ("audio", "vision"):
        other = outputs(method, [replace(sample, **{name: getattr(sample, name) * 2 + 1})])
        assert torch.equal(whole, other) == (chosen == "text")


# --- the two stages -----------------------------------------------------------------------------------------------------


def test_stages_are_pretraining_without_labels_then_fine_tuning_with_a_share_of_them():
    config = override(CONFIG, {"method.label_share": 0.25, "method.pretraining_epochs": 3, "method.pretraining_rate": 0.5})
    first, last = config.stages
    assert (first.name, first.is_labelled, first.share) == ("pretraining", False, 1.0)
    assert (first.training.epochs, first.training.learning_rate, first.training.batch_size) == (3, 0.5, 64)
    assert (last.name, last.is_labelled, last.share, last.training) == ("training", True, 0.25, config.training)
    assert [stage.name for stage in override(CONFIG, {"method.pretraining": "none"}).stages] == ["training"]


def test_the_loss_is_the_sum_of_its_parts_each_its_own_mean(tools, corpora):
    corpus, names = corpora["embedded-meld"], {}
    for pretraining in ("mlm", "contrastive", "both"):
        method = built(tools, corpus, {"method.pretraining": pretraining})
        names[pretraining] = parts = pretraining_loss(method, clips(corpus))
        torch.testing.assert_close(parts["all"], sum(part for name, part in parts.items() if name != "all"))
    assert set(names["both"]) == {"all", "mlm", "contrastive"} and set(names["mlm"]) == {"all", "mlm"}
    torch.testing.assert_close(names["both"]["mlm"], names["mlm"]["mlm"])
    torch.testing.assert_close(names["both"]["contrastive"], names["contrastive"]["contrastive"])
    size = len(method.encoder.tokenizer)
    assert names["mlm"]["mlm"].item() == pytest.approx(math.log(size), rel=0.5), "a guess over the tokenizer's vocabulary"


def test_words_are_predicted_with_face_and_voice_in_view(tools, corpora):
    corpus = corpora["embedded-sims"]
    method, samples = built(tools, corpus, {"method.pretraining": "mlm"}), clips(corpus)
    other = [replace(sample, vision=sample.vision[::-1].copy()) for sample in samples]
    assert pretraining_loss(method, samples)["mlm"] != pretraining_loss(method, other)["mlm"]


def test_a_modality_that_is_matched_alone_has_not_seen_the_others(tools, corpora):
    corpus = corpora["embedded-sims"]
    samples = clips(corpus)
    other = [replace(sample, vision=sample.vision[::-1].copy()) for sample in samples]
    for view, is_same in (("alone", True), ("joint", False)):
        method = built(tools, corpus, {"method.contrastive_view": view})
        given = [method.inputs_of(found, found.text_ids) for found in map(method.clips, map(method.collate, (samples, other)))]
        encode = method.body.alone if view == "alone" else method.body.joint
        with torch.no_grad():
            audio = [encode(one)["audio"][0] for one in given]
        assert torch.equal(*audio) == is_same
        assert pretraining_loss(method, samples)["contrastive"] != pretraining_loss(method, other)["contrastive"]


def test_clips_that_lack_a_modality_are_left_out_of_its_pairs(tools, corpora):
    corpus = corpora["embedded-sims"]
    method, samples = built(tools, corpus, {"method.pretraining": "contrastive"}), list(corpus.splits["train"])[:6]
    full = [sample for sample in samples if len(sample.audio) and len(sample.vision)]
    found = pretraining_loss(method, [*full, lacking(full[0], "audio", "vision")])["contrastive"]
    torch.testing.assert_close(found, pretraining_loss(method, full)["contrastive"])
    words = built(tools, corpus, {"method.modalities": "text"})
    assert pretraining_loss(words, full)["contrastive"] == 0


def test_pretraining_reads_no_label(tools, corpora):
    corpus = corpora["embedded-meld"]
    train = corpus.splits["train"]
    weights = []
    for samples in (list(train), [replace(sample, label=(sample.label + 1) % 7) for sample in train]):
        method = built(tools, corpus)
        stage = stages(method)["pretraining"]
        method.enter(stage)
        optimizer = loop.optimizer_of([group for group in method.groups(stage.training) if group.parameters], stage.training)
        torch.manual_seed(5)
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        for step in range(3):
            loop.step(method, optimizer, samples, [[place] for place in range(step, step + 8)], stage.training)
        weights.append(method.module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    unlabelled = [replace(sample, label=None) for sample in train]
    assert torch.isfinite(pretraining_loss(built(tools, corpus), unlabelled)["all"])


def test_each_stage_trains_its_own_parts_and_leaves_the_others(tools, corpora):
    corpus = corpora["embedded-sims"]
    method, units = built(tools, corpus), [[place] for place in range(8)]
    moved = {}
    for name, stage in stages(method).items():
        method.enter(stage)
        before = {key: weight.clone() for key, weight in method.module.state_dict().items()}
        groups = [group for group in method.groups(stage.training) if group.parameters]
        optimizer = loop.optimizer_of(groups, stage.training)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * group["rate"]
        for _ in range(2):
            loop.step(method, optimizer, corpus.splits["train"], units, stage.training)
        after = method.module.state_dict()
        moved[name] = {key.split(".")[1] for key in after if not torch.equal(after[key], before[key])}
        trained = [p for p in method.module.parameters() if p.requires_grad]
        assert {id(p) for group in groups for p in group.parameters} == {id(p) for p in trained}
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained if p.dim() > 1)
    assert moved == {"pretraining": {"body", "masked_language", "contrastive"}, "training": {"body", "fusion", "classifier"}}
    assert [not parameter.requires_grad for parameter in method.masked_language.parameters()] == [True] * 5


def test_a_pretrained_body_learns_at_its_own_pace_and_a_new_one_like_the_classifier(tools, corpora):
    def rates(changes) -> set[float]:
        method = built(tools, corpora["embedded-sims"], {"method.body_rate": 0.2, **changes})
        body = {id(parameter) for parameter in method.body.parameters()}
        return {group.rate for group in method.groups(CONFIG.training) for p in group.parameters if id(p) in body}

    assert rates({}) == {0.2} and rates({"method.pretraining": "none"}) == {1.0}
    method = built(tools, corpora["embedded-sims"])
    method.enter(stages(method)["pretraining"])
    assert {group.rate for group in method.groups(CONFIG.training)} == {1.0}


FINE_TUNING_ONLY = {
    "fusion": "concatenation", "projections": "per_pair", "pooling": "first_token", "resampled_positions": 2,
    "label_share": 0.5, "body_rate": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("field", FINE_TUNING_ONLY)
def test_runs_that_differ_in_their_fine_tuning_alone_share_the_pretraining(field: str, tools, corpora):
    assert set(FINE_TUNING_ONLY) == MultimodalTransformerConfig.fine_tuning_only
    corpus, results = corpora["embedded-sims"], []
    for changes in ({}, {f"method.{field}": FINE_TUNING_ONLY[field], "training.learning_rate": 0.02}):
        method = built(tools, corpus, changes)
        stage = stages(method)["pretraining"]
        method.enter(stage)
        optimizer = loop.optimizer_of([group for group in method.groups(stage.training) if group.parameters], stage.training)
        torch.manual_seed(5)
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        loop.step(method, optimizer, corpus.splits["train"], [[place] for place in range(8)], stage.training)
        weights = {name: p.clone() for name, p in method.module.named_parameters() if p.requires_grad}
        results.append((stage.outcome, weights))
    assert results[0][0] == results[1][0]
    assert results[0][1].keys() == results[1][1].keys()
    assert all(torch.equal(weight, results[1][1][name]) for name, weight in results[0][1].items())


@pytest.mark.parametrize(
    "changes",
    [
        {"method.pretraining": "mlm"}, {"method.mask_share": 0.3}, {"method.dim": 8}, {"method.modalities": "text"},
        {"method.pretraining_epochs": 4}, {"method.encoder.fingerprint": "other"}, {"seed": 7}, {"data.fingerprint": "other"},
        {"method.temperature": 0.1}, {"training.weight_decay": 0.5}, WINDOWS,
    ],
    ids=str,
)  # fmt: skip
def test_whatever_touches_the_pretraining_makes_it_another(changes):
    assert override(CONFIG, changes).stages[0].outcome != CONFIG.stages[0].outcome


def test_a_run_of_both_stages_trains_answers_and_starts_again_where_it_was(tools, corpora, tmp_path):
    corpus = corpora["embedded-sims"]
    config = override(CONFIG, {"method.pretraining_epochs": 2, "training.epochs": 2, "method.pretraining_batch": 8})
    whole, state = loop.train(config, corpus, tools, tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(state) -> None:
        if state.epoch == 3:
            raise Killed

    with pytest.raises(Killed):
        loop.train(config, corpus, tools, tmp_path / "killed", kill)
    resumed, _ = loop.train(config, corpus, tools, tmp_path / "killed")
    assert state.epoch == 4 and "train_mlm" in state.history[0] and "valid_mae" in state.history[-1]
    other = resumed.module.state_dict()
    assert all(torch.equal(weight, other[name]) for name, weight in whole.module.state_dict().items())


# --- fields, rows, tables -----------------------------------------------------------------------------------------------

OTHER = {
    "method.dim": 8, "method.layers": 2, "method.heads": 1, "method.feedforward": 1, "method.positions": "learned",
    "method.frame_window": 3, "method.frame_stride": 2, "method.fusion": "self_attention", "method.projections": "per_pair",
    "method.pooling": "resample", "method.max_text_tokens": 4, "data.feature_scaling": "none",
}  # fmt: skip


@pytest.mark.parametrize("field", OTHER)
def test_every_field_of_the_network_changes_the_answers(field: str, tools, corpora):
    corpus = corpora["embedded-sims"]
    plain, other = (outputs(built(tools, corpus, changes), clips(corpus)) for changes in ({}, {field: OTHER[field]}))
    assert not torch.allclose(plain, other, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value", "given"),
    [
        ("method.mask_share", 0.6, {}),
        ("method.contrastive_view", "joint", {}),
        ("method.contrastive_dim", 3, {}),
        ("method.temperature", 0.5, {}),
        ("method.max_positions", 4, {"method.positions": "learned"}),
        ("method.resampled_positions", 2, {"method.pooling": "resample"}),
        ("method.dropout", 0.5, {}),
    ],
)
def test_every_field_of_the_training_changes_a_loss(field: str, value: object, given, tools, corpora):
    corpus, found = corpora["embedded-sims"], []
    for changes in (given, {**given, field: value}):
        method = built(tools, corpus, changes)
        method.module.train()
        losses = pretraining_loss(method, clips(corpus))
        method.enter(stages(method)["training"])
        torch.manual_seed(3)
        with torch.no_grad():
            found.append((losses["all"], method.loss(method.collate(clips(corpus))).total))
    assert any(not torch.allclose(one, other) for one, other in zip(*found, strict=True))


def test_its_settings_survive_their_file_and_bad_ones_are_refused():
    assert from_json(to_json(CONFIG)) == CONFIG
    for changes, said in (
        ({"method.heads": 3}, "dim=16 is not a multiple of heads=3"),
        ({"method.label_share": 0.0}, "method.label_share"),
        ({"method.label_share": 1.1}, "method.label_share"),
        ({"method.modalities": "text", "method.pretraining": "contrastive"}, "no pair of modalities"),
    ):
        with pytest.raises(ValueError, match=said):
            override(CONFIG, changes)


def test_its_rows_hold_what_the_tables_compare():
    pretrained = {row.changes.get("method.pretraining", "both") for row in systems.PRETRAINING}
    assert pretrained == {"none", "mlm", "contrastive", "both"}
    assert {row.changes.get("method.fusion", "six_pair") for row in systems.FUSIONS} == {
        "six_pair", "concatenation", "self_attention"
    }  # fmt: skip
    for share, (with_it, without) in systems.LABEL_SHARES.items():
        assert with_it.changes.get("method.label_share", 1.0) == without.changes.get("method.label_share", 1.0) == share
        assert dict(without.changes) == {**with_it.changes, "method.pretraining": "none"}
    assert list(systems.LABEL_SHARES) == [0.1, 0.25, 0.5, 1.0]
    for key in ("sims", "meld"):
        assert systems.MMT in plan.added(key) and systems.MMT not in plan.compared(key)
        assert all(row in plan.every_row(key, systems.MMT.method) for row in systems.MMT_ROWS)
    assert len({row.name for row in systems.MMT_ROWS}) == len(systems.MMT_ROWS) == 13


def test_tables_say_what_differs_by_how_much_and_how_surely(tmp_path, monkeypatch):
    study = small_studies(record_llms(tmp_path), monkeypatch)(seeds=2)
    missing = systems.FUSIONS[1]
    for key in study.keys:
        for row in systems.MMT_ROWS:
            if row != missing:
                finish(study, key, study.runs(key, row))
    losses = of_every_corpus(study, lambda study, key: tables.versions(study, key, systems.PRETRAINING, systems.MMT))
    assert list(losses["metric"][losses["version"] == systems.MMT.name]) == ["MAE", "Corr", METRICS["f1_weighted"].label]
    heading = f"minus {systems.MMT.name}"
    others = losses[losses["version"] != systems.MMT.name]
    assert len(others) == 9 and others[heading].str.fullmatch(r"[+-]\S+ \[[+-]\S+, [+-]\S+\]").all()
    assert others["p"].astype(float).between(0, 1).all() and (losses["score"].str.contains("±")).all()
    truth, first, base = (result_row(study, "sims", row) for row in (systems.MMT, systems.PRETRAINING[0], systems.MMT))
    by_hand = np.abs(first.predictions - first.truth).mean() - np.abs(base.predictions - truth.truth).mean()
    assert float(losses[heading][0].split()[0]) == pytest.approx(by_hand, abs=6e-4)
    fusions = tables.versions(study, "sims", systems.FUSIONS, systems.MMT)
    lost = fusions[fusions["version"] == missing.name]
    assert set(lost["score"]) == {"not run"} and lost["note"].str.contains("not finished").all()
    shares = tables.labels(study, "meld")
    assert list(shares["labels"]) == ["10%", "25%", "50%", "100%"]
    assert {"pre-trained", "not pre-trained", "pre-trained minus not", "p"} <= set(shares.columns)
