"""The multimodal transformer: its equations by hand, its two stages, and clips that must not disturb each other."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import outputs
from test_model import clips
from torch import Tensor

from cmpta_lib import registry
from cmpta_lib.beyond.multimodal_transformer import MultimodalTransformer, MultimodalTransformerConfig
from cmpta_lib.config import DataConfig, RunConfig, Stage, TrainingConfig, override
from cmpta_lib.data.corpus import Inputs, Sample
from cmpta_lib.runs import loop

WORLDS = ("embedded-sims", "embedded-meld")
SMALL = MultimodalTransformerConfig(dim=16, layers=1, heads=2, feedforward=2, dropout=0.0, contrastive_dim=8, max_positions=30)
TRAINING = TrainingConfig(batch_size=8, epochs=1, learning_rate=0.01)
CONFIG = RunConfig(data=DataConfig(name="test", fingerprint=""), method=SMALL, training=TRAINING)
WINDOWS = {"method.frame_window": 5, "method.frame_stride": 3}
SWITCHES = [
    {},
    {"method.fusion": "concatenation", "method.positions": "learned", **WINDOWS},
    {"method.fusion": "self_attention", "method.text_table": "trained", "method.pretraining": "mlm"},
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


def pretraining_loss(method: MultimodalTransformer, samples: list[Sample]) -> dict[str, Tensor]:
    method.enter(stages(method)["pretraining"])
    torch.manual_seed(3)
    with torch.no_grad():
        loss = method.loss(method.collate(samples))
    return {"all": loss.total / loss.count, **{name: part / loss.count for name, part in loss.parts.items()}}


def stepped(method: MultimodalTransformer, name: str, samples, first: int = 0, count: int = 1) -> None:
    """`count` steps of a stage, on eight clips each, at once at its full rate."""
    stage = stages(method)[name]
    method.enter(stage)
    optimizer = loop.optimizer_of([group for group in method.groups(stage.training) if group.parameters], stage.training)
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group["rate"]
    torch.manual_seed(5)
    for step in range(first, first + count):
        loop.step(method, optimizer, samples, [[place] for place in range(step, step + 8)], stage.training)


def lacking(sample: Sample, *names: str) -> Sample:
    return replace(sample, **{name: getattr(sample, name)[:0] for name in names})


# --- clips --------------------------------------------------------------------------------------------------------------


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
    for kind in ("frozen", "trained"):  # which is a copy
        method = built(tools, corpus, {"method.text_table": kind})
        stepped(method, "training", corpus.splits["train"])
        assert torch.equal(method.encoder.model.get_input_embeddings().weight, table)
        assert torch.equal(method.table, table) == (kind == "frozen")


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_a_real_frame_of_zeros_is_no_padding(changes, tools, corpora):
    """The public code of MulT takes every frame that begins with an exact zero for padding."""
    corpus = corpora["embedded-sims"]
    method = built(tools, corpus, {**changes, "data.feature_scaling": "none"})
    sample = corpus.splits["train"][0]
    longer = [
        replace(sample, **{name: np.concatenate([frames, 0 * frames[:4]])})
        for name, frames in (("audio", sample.audio), ("vision", sample.vision))
    ]
    silent, absent = replace(sample, audio=0 * sample.audio), lacking(sample, "audio")
    for one, other in ((longer[0], sample), (longer[1], sample), (silent, absent)):
        assert not torch.allclose(outputs(method, [one]), outputs(method, [other]), atol=1e-6)


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
    for name in ("mlm", "contrastive"):
        torch.testing.assert_close(names["both"][name], names[name][name])
    size = len(method.encoder.tokenizer)
    assert names["mlm"]["mlm"].item() == pytest.approx(math.log(size), rel=0.5), "a guess over the tokenizer's vocabulary"


def test_a_modality_that_is_matched_alone_has_not_seen_the_others_and_words_are_predicted_with_all_in_view(tools, corpora):
    corpus = corpora["embedded-sims"]
    samples = clips(corpus)
    other = [replace(sample, vision=sample.vision[::-1].copy()) for sample in samples]
    for view, is_same in (("alone", True), ("joint", False)):
        method = built(tools, corpus, {"method.contrastive_view": view})
        given = [method.inputs_of(found, found.text_ids) for found in map(method.clips, map(method.collate, (samples, other)))]
        with torch.no_grad():
            audio = [getattr(method.net.body, view)(one)["audio"][0] for one in given]
        assert torch.equal(*audio) == is_same
        first, second = (pretraining_loss(method, some) for some in (samples, other))
        assert first["contrastive"] != second["contrastive"] and first["mlm"] != second["mlm"]


def test_clips_that_lack_a_modality_are_left_out_of_its_pairs(tools, corpora):
    corpus, changes = corpora["embedded-sims"], {"method.pretraining": "contrastive"}
    full = [sample for sample in list(corpus.splits["train"])[:6] if len(sample.audio) and len(sample.vision)]
    method = built(tools, corpus, changes)
    found = pretraining_loss(method, [*full, lacking(full[0], "audio", "vision")])["contrastive"]
    torch.testing.assert_close(found, pretraining_loss(method, full)["contrastive"])
    assert pretraining_loss(built(tools, corpus, {"method.modalities": "text"}), full)["contrastive"] == 0


def test_a_pretrained_body_learns_at_its_own_pace_and_a_new_one_like_the_classifier(tools, corpora):
    def rates(changes) -> set[float]:
        method = built(tools, corpora["embedded-sims"], {"method.body_rate": 0.2, **changes})
        body = {id(parameter) for parameter in method.net.body.parameters()}
        return {group.rate for group in method.groups(CONFIG.training) for p in group.parameters if id(p) in body}

    assert rates({}) == {0.2} and rates({"method.pretraining": "none"}) == {1.0}
    method = built(tools, corpora["embedded-sims"])
    method.enter(stages(method)["pretraining"])
    assert {group.rate for group in method.groups(CONFIG.training)} == {1.0}


def test_a_modality_that_is_not_read_gets_no_gradient_of_zeros_that_would_decay_its_weights(tools, corpora):
    method = built(tools, corpora["embedded-sims"], {"method.modalities": "text", "method.pretraining": "none"})
    method.loss(method.collate(list(corpora["embedded-sims"].splits["train"])[:4])).total.backward()
    found = {name: parameter.grad is not None for name, parameter in method.net.fusion.named_parameters()}
    assert found == {name: name.startswith("projections.text.") for name in found}


FINE_TUNING_ONLY = {
    "fusion": "concatenation", "projections": "per_pair", "pooling": "first_token", "resampled_positions": 2,
    "label_share": 0.5, "body_rate": 0.5,
}  # fmt: skip


def test_runs_that_differ_in_their_fine_tuning_alone_share_the_pretraining(tools, corpora):
    assert set(FINE_TUNING_ONLY) == MultimodalTransformerConfig.fine_tuning_only
    corpus, results = corpora["embedded-sims"], []
    for changes in ({}, *({f"method.{name}": value} for name, value in FINE_TUNING_ONLY.items())):
        method = built(tools, corpus, changes | {"training.learning_rate": 0.02} if changes else changes)
        stepped(method, "pretraining", corpus.splits["train"])
        weights = {name: p.clone() for name, p in method.module.named_parameters() if p.requires_grad}
        results.append((stages(method)["pretraining"].outcome, weights))
    for outcome, weights in results[1:]:
        assert outcome == results[0][0] and weights.keys() == results[0][1].keys()
        assert all(torch.equal(weight, results[0][1][name]) for name, weight in weights.items())
    for other in (
        {"method.pretraining": "mlm"}, {"method.mask_share": 0.3}, {"method.dim": 8}, {"method.modalities": "text"},
        {"method.pretraining_epochs": 4}, {"method.encoder.fingerprint": "other"}, {"seed": 7}, {"data.fingerprint": "other"},
        {"method.temperature": 0.1}, {"training.weight_decay": 0.5}, WINDOWS,
    ):  # fmt: skip
        assert override(CONFIG, other).stages[0].outcome != CONFIG.stages[0].outcome, "another pre-training"


OTHER = {
    "method.dim": 8, "method.layers": 2, "method.heads": 1, "method.feedforward": 1, "method.positions": "learned",
    "method.frame_window": 3, "method.frame_stride": 2, "method.fusion": "self_attention", "method.projections": "per_pair",
    "method.pooling": "resample", "method.max_text_tokens": 4, "data.feature_scaling": "none",
}  # fmt: skip
IN_TRAINING = [
    ("method.mask_share", 0.6, {}),
    ("method.contrastive_view", "joint", {}),
    ("method.contrastive_dim", 3, {}),
    ("method.temperature", 0.5, {}),
    ("method.max_positions", 4, {"method.positions": "learned"}),
    ("method.resampled_positions", 2, {"method.pooling": "resample"}),
    ("method.dropout", 0.5, {}),
]


def test_every_field_changes_an_answer_or_a_loss(tools, corpora):
    corpus = corpora["embedded-sims"]
    plain = outputs(built(tools, corpus), clips(corpus))
    for field, value in OTHER.items():
        assert not torch.allclose(plain, outputs(built(tools, corpus, {field: value}), clips(corpus)), atol=1e-6), field
    for field, value, given in IN_TRAINING:
        found = []
        for changes in (given, {**given, field: value}):
            method = built(tools, corpus, changes)
            method.module.train()
            losses = pretraining_loss(method, clips(corpus))
            method.enter(stages(method)["training"])
            torch.manual_seed(3)
            with torch.no_grad():
                found.append((losses["all"], method.loss(method.collate(clips(corpus))).total))
        assert any(not torch.allclose(one, other) for one, other in zip(*found, strict=True)), field


def test_bad_settings_are_refused():
    for changes, said in (
        ({"method.heads": 3}, "dim=16 is not a multiple of heads=3"),
        ({"method.label_share": 0.0}, "method.label_share"),
        ({"method.label_share": 1.1}, "method.label_share"),
        ({"method.modalities": "text", "method.pretraining": "contrastive"}, "no pair of modalities"),
    ):
        with pytest.raises(ValueError, match=said):
            override(CONFIG, changes)
