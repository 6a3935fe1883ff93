"""What holds for every built-in method: a clip's answer is its own, odd clips break nothing, and only what is trained moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cmpta_lib import registry
from cmpta_lib.base import Resources
from cmpta_lib.baselines.supervised import Supervised
from cmpta_lib.config import (
    DataConfig,
    EvaluationConfig,
    PromptedLMConfig,
    RunConfig,
    TrainingConfig,
    from_json,
    override,
    to_json,
)
from cmpta_lib.data.corpus import Corpus, Inputs, Sample
from cmpta_lib.fast.prompted import PromptedLM
from cmpta_lib.llm.loading import weights_fingerprint
from cmpta_lib.runs import loop

SIZES = (3, 1, 2, 1)  # of the dialogues
METHODS = tuple(name for name in registry.ENTRIES if name != "omni")  # it learns nothing and reads recordings: test_omni
# Settings of a method that take other ways through its code; those of public codes where batch mates stay apart.
SWITCHES: dict[str, list[dict[str, Any]]] = {
    "lmf": [{"time_mean": "padded", "text_end": "padded", "fusion_weights": "frozen"}, {"modalities": "text"}],
    "tfn": [{"time_mean": "padded", "text_end": "padded", "score_range": "six"}, {"modalities": "audio_vision"}],
    "self_mm": [{"label_bound": 3.0}],
    "mag_bert": [{"alignment": "padded"}],
    "mmgcn": [{"features": "mean", "loss": "paper_code"}, {"context": False, "loss": "focal"}],
    "ga2mif": [
        {"features": "mean", "mpcat": "code"},
        {"share_graph_layers": False, "past": 1, "future": 0, "windows": "swapped"},
    ],
    "mse_adapter": [
        {"text_mean": "padded", "token_scale": "embedding_norm"},
        {"mixer": False, "modalities": "audio"},
        {"multi_scale": False, "modalities": "vision", "num_pseudo_tokens": 1},
        {"modalities": "text", "scales": [4, 8]},
    ],
    "prototypes": [
        {"semantics": "mean", "score_levels": 2, "token_scale": "default"},
        {"frames": "bilstm", "diversity_diagonal": "one", "moments": 1},
        {"diversity_weight": 0.0, "prompt.pseudo_token_position": "after_text"},
    ],
    "mgsi": [
        {"branches": "stacked", "kernel": 5, "dilation": 3, "token_scale": "default"},
        {"num_pseudo_tokens": 1, "calibration": 0.0, "prompt.pseudo_token_position": "after_text"},
    ],
    "multimodal_transformer": [
        {"fusion": "concatenation", "positions": "learned", "pooling": "first_token"},
        {"projections": "per_pair", "pooling": "resample", "frame_window": 3, "frame_stride": 2, "text_table": "trained"},
        {"fusion": "self_attention", "pretraining": "none", "modalities": "text"},
    ],
    "cmpta": [{"alignment": "linear", "fusion": "pooled"}, {"alignment": "lstm", "projections": "per_pair", "summary": "max"}],
}  # fmt: skip
CASES = [
    pytest.param(name, changes, world, id=f"{name}-{world.removeprefix('embedded-')}-{number}")
    for name in METHODS
    for number, changes in enumerate([{}, *SWITCHES.get(name, [])])
    for world in ("embedded-sims", "embedded-meld")
    if not changes or world == ("embedded-sims", "embedded-meld")[number % 2]
]
every_method = pytest.mark.parametrize(("name", "changes", "world"), CASES)


QUICK = {"mllm_mac": {"method.statements": 1, "method.max_new_tokens": 4}}


def config_of(name: str, changes: dict[str, Any]) -> RunConfig:
    entry = registry.ENTRIES[name]
    start = RunConfig(
        data=DataConfig(name="test", fingerprint=""),
        method=entry.config(),
        training=TrainingConfig(batch_size=8, learning_rate=1e-3),
        evaluation=EvaluationConfig(batch_size=4),
    )
    named = {f"method.{field}": value for field, value in changes.items()}
    return override(start, {**entry.settings.get("smoke", {}), **QUICK.get(name, {}), **named})


def built(name: str, corpus: Corpus, tools: Resources, **changes: Any) -> Any:
    """Fitted to the training split, in eval mode."""
    torch.manual_seed(0)
    method = loop.build(config_of(name, changes), corpus, tools)
    method.module.eval()
    return method


@pytest.fixture
def build(name, changes, world, corpora, tools):
    """The method, fitted to the training split, in eval mode."""

    def made(seed: int = 0, is_fitted: bool = True) -> Any:
        torch.manual_seed(seed)
        method = registry.build(config_of(name, changes), Inputs.of(corpora[world]), tools)
        if is_fitted:
            method.fit(corpora[world].splits["train"])
        method.module.eval()
        return method

    return made


def dialogues(corpus: Corpus, sizes: Sequence[int] = SIZES) -> list[list[Sample]]:
    """Clips of the training split as dialogues of three speakers; one clip lacks its voice, one its face, one its words."""
    clips = iter(corpus.splits["train"])
    drawn = [[next(clips) for _ in range(size)] for size in sizes]
    made = [
        [replace(clip, dialogue=f"d{number}", speaker="ABC"[turn % 3]) for turn, clip in enumerate(members)]
        for number, members in enumerate(drawn)
    ]
    first = made[0]
    if len(first) > 2:
        first[:3] = [bare(first[0], "vision"), bare(first[1], "audio"), replace(first[2], text="")]
    return made


def bare(clip: Sample, *gone: str) -> Sample:
    return replace(clip, **{name: getattr(clip, name)[:0] for name in gone})


def flat(lists: Sequence[Sequence[Sample]]) -> list[Sample]:
    return [clip for members in lists for clip in members]


@torch.no_grad()
def seen(method: Any, batch: Any) -> Tensor:
    """(B, ...) what it makes of each clip, as finely as it can be had."""
    if isinstance(method, Supervised):
        return method.forward(method.clips(batch))
    found = method.predict(batch)
    numbers = torch.from_numpy(found.values[:, None] if found.probabilities is None else found.probabilities)
    if isinstance(method, PromptedLM):
        return torch.cat([method.pseudo_tokens(batch)[0].flatten(1).double(), numbers], dim=1)
    return numbers


@every_method
def test_a_clips_answer_is_its_own_in_any_batch_and_whatever_padding_holds(build, name, changes, world, corpora):
    method, drawn = build(), dialogues(corpora[world])
    batch = method.collate(flat(drawn))
    together = seen(method, batch)
    assert name == "constant" or together.std(0).max() > 1e-5  # clips can be told apart
    units = drawn if method.unit == "dialogue" else [[clip] for clip in flat(drawn)]
    alone = torch.cat([seen(method, method.collate(unit)) for unit in units])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    backwards = seen(method, method.collate(flat(units[::-1]))).split([len(unit) for unit in units[::-1]])
    torch.testing.assert_close(torch.cat(backwards[::-1]), together, rtol=0, atol=1e-5)
    if not hasattr(batch, "frames"):
        return
    spoilt = {key: np.pad(held, [(0, 0), (0, 3), (0, 0)]) for key, held in batch.frames.items()}
    for key, held in spoilt.items():
        held[np.arange(held.shape[1]) >= batch.lengths[key][:, None]] = 1e3
    changed: dict[str, Any] = {"frames": spoilt}
    if isinstance(batch.text_ids, np.ndarray):
        text = np.pad(batch.text_ids, [(0, 0), (0, 4)])
        text[np.arange(text.shape[1]) >= batch.text_lengths[:, None]] = 7
        changed["text_ids"] = text
    torch.testing.assert_close(seen(method, replace(batch, **changed)), together, rtol=0, atol=1e-5)


def read_by(name: str, changes: dict[str, Any]) -> set[str]:
    if name in ("constant", "text_only", "soft_prompt"):
        return set() if name == "constant" else {"text"}
    chosen = changes.get("modalities", "text_audio_vision")
    return set(chosen.split("_")) | ({"text"} if issubclass(registry.ENTRIES[name].config, PromptedLMConfig) else set())


@every_method
def test_just_the_modalities_that_are_asked_for_are_read(build, name, changes, world, corpora):
    method = build()
    whole = [clip for clip in corpora[world].splits["train"] if len(clip.audio) and len(clip.vision)][:5]
    others = {
        "text": [replace(clip, text="差得离谱 I hate it") for clip in whole],
        "audio": [replace(clip, audio=1 - 2 * clip.audio) for clip in whole],
        "vision": [replace(clip, vision=1 - 2 * clip.vision) for clip in whole],
    }
    usual, *found = (seen(method, method.collate(clips)) for clips in (whole, *others.values()))
    is_read = {modality for modality, other in zip(others, found, strict=True) if not torch.equal(usual, other)}
    assert is_read == read_by(name, changes)


def odd(members: list[Sample]) -> dict[str, list[Sample]]:
    return {
        "no audio": [bare(clip, "audio") for clip in members],
        "no vision": [bare(clip, "vision") for clip in members],
        "words only": [bare(clip, "audio", "vision") for clip in members],
        "nothing": [replace(bare(clip, "audio", "vision"), text="") for clip in members],
        "nothing beside something": [replace(bare(members[0], "audio", "vision"), text=""), *members[1:]],
        "zeros": [replace(clip, audio=0 * clip.audio, vision=0 * clip.vision) for clip in members],
        "constant": [replace(clip, audio=0 * clip.audio + 5, vision=0 * clip.vision - 2) for clip in members],
        "the same clip": [members[0]] * len(members),
        "one class": [replace(clip, label=members[0].label) for clip in members],
        "one frame": [replace(clip, audio=clip.audio[:1], vision=clip.vision[:2]) for clip in members],
        "one clip": members[:1],
        "nothing in one clip": [replace(bare(members[0], "audio", "vision"), text="")],
    }


def trains(method: Any) -> bool:
    return any(weight.requires_grad for weight in method.module.parameters())


@every_method
def test_odd_clips_leave_finite_weights_and_answers(build, world, corpora):
    """Three epochs on nothing but such clips, in each stage of the training."""
    members = dialogues(corpora[world], (1, 5))[1]
    assert any(len(clip.audio) and len(clip.vision) for clip in members)
    method = build()
    start = {name: held.clone() for name, held in method.module.state_dict().items()}
    for kind, samples in odd(members).items():
        method.module.load_state_dict(start)
        for stage in method.config.stages if trains(method) else ():
            method.enter(stage)
            method.module.train()
            optimizer = loop.optimizer_of(method.groups(stage.training), stage.training)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
            for epoch in range(3):
                units = [[place] for place in range(len(samples))]
                loop.step(method, optimizer, samples, units, stage.training, epoch, stage.is_labelled)  # type: ignore[arg-type]
                grads = [p.grad for p in method.module.parameters() if p.grad is not None]
                assert grads and all(grad.isfinite().all() for grad in grads), kind
        method.module.eval()
        assert all(held.isfinite().all() for held in method.module.state_dict().values()), kind
        answers = method.predict(method.collate([replace(clip, label=None) for clip in samples]))
        assert np.isfinite(answers.values).all(), kind
        if answers.probabilities is not None:
            np.testing.assert_allclose(answers.probabilities.sum(1), 1, atol=1e-6)
        if corpora[world].task.kind == "regression":
            assert (np.abs(answers.values) <= 1).all() or getattr(method.settings, "score_range", "") == "six", kind


@every_method
def test_training_moves_every_trained_weight_and_nothing_else(build, name, changes, world, corpora, llm, encoder):
    """Three steps: LoRA's inner matrices move from the second on, Self-MM's heads of one modality in the third epoch."""
    method = build()
    if not trains(method):
        return
    models = (llm.model, encoder.model)
    before = [weights_fingerprint(model) for model in models]
    known = {id(weight) for model in models for weight in model.parameters()}
    for stage in method.config.stages:
        method.enter(stage)
        method.module.train()
        groups = method.groups(stage.training)
        chosen = [weight for group in groups for weight in group.parameters]
        assert len({id(weight) for weight in chosen}) == len(chosen) and not known & {id(weight) for weight in chosen}
        optimizer = loop.optimizer_of(groups, stage.training.model_copy(update={"weight_decay": 0.0}))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        start = {key: weight.detach().clone() for key, weight in method.module.named_parameters()}
        samples = [replace(clip, dialogue=f"d{place // 5}") for place, clip in enumerate(corpora[world].splits["train"])]
        for epoch in range(3):
            units = [[place] for place in range(20)]
            loop.step(method, optimizer, samples, units, stage.training, epoch, stage.is_labelled)  # type: ignore[arg-type]
        still = {key for key, weight in method.module.named_parameters() if torch.equal(weight, start[key])}
        held = {key for key, weight in method.module.named_parameters() if all(weight is not one for one in chosen)}
        unused = {key for key in still if "pooler" in key and name == "self_mm"}  # BERT's, which it does not read
        assert held <= still if changes else held == still - unused
    assert [weights_fingerprint(model) for model in models] == before


@every_method
def test_what_is_saved_answers_alike_in_a_fresh_method_that_never_saw_the_training_split(build, name, changes, world, corpora):
    config, method, other = config_of(name, changes), build(), build(seed=1, is_fitted=False)
    assert from_json(to_json(config)) == config
    saved = {name: held.clone() for name, held in method.module.state_dict().items()}
    other.module.load_state_dict(saved)
    test = [*corpora[world].splits["test"]]
    unlabelled = [replace(clip, label=None) for clip in test]
    assert torch.equal(seen(other, other.collate(unlabelled)), seen(method, method.collate(test)))
    answers = method.predict(method.collate(unlabelled))
    values = answers.values.tolist()
    assert values == other.predict(other.collate(test)).values.tolist()
    if corpora[world].task.kind == "classification":
        assert set(values) <= set(range(len(corpora[world].task.labels)))
