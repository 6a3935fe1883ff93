"""LMF and TFN: their equations against golden values, their sizes, and every odd clip that a corpus may hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cmpta_lib import registry
from cmpta_lib.base import mean_over_time
from cmpta_lib.baselines.lmf import LMF, LmfConfig, LowRankFusion
from cmpta_lib.baselines.subnets import BatchNorm, MeanSubnet, Subnets, SubnetsConfig
from cmpta_lib.baselines.supervised import Clips, reference
from cmpta_lib.baselines.tfn import TFN, TensorFusion, TfnConfig
from cmpta_lib.config import DataConfig, EvaluationConfig, RunConfig, TrainingConfig, override
from cmpta_lib.data.corpus import Inputs, Sample, Task
from cmpta_lib.runs import loop
from cmpta_lib.runs.evaluation import evaluate

NAMES = ("lmf", "tfn")
MELD = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
SCORES, CLASSES = Task("regression", "zh"), Task("classification", "en", ("calm", "glad", "sad"))
WIDTHS = {"audio": 4, "vision": 5}
SMALL = {"audio_hidden": 3, "vision_hidden": 5, "text_hidden": 4, "text_out": 2}
# The golden clips have one mean frame and three tokens: no padding, whatever padding would be counted.
GOLDEN = {**SMALL, "max_text_tokens": 3, "padded_audio": 1, "padded_vision": 1}


def filled(tensors: list[Tensor], scale: float, first: int = 1) -> None:
    """Number i of the list, counted from `first`, element k: scale * sin(0.7 k + i)."""
    with torch.no_grad():
        for number, tensor in enumerate(tensors, first):
            values = scale * np.sin(0.7 * np.arange(tensor.numel()) + number)
            tensor.copy_(torch.from_numpy(values.astype(np.float32)).view(tensor.shape))


def given(seed: int, *shape: int) -> Tensor:
    values = np.cos(0.3 * np.arange(int(np.prod(shape))) + seed)
    return torch.from_numpy(values.astype(np.float32)).view(shape)


def golden_clips() -> tuple[Tensor, Clips]:
    """Text states (2, 3, 6), and two clips with one frame of voice and face."""
    one, three = torch.tensor([1, 1]), torch.tensor([3, 3])
    frames = {"audio": given(2, 2, 1, 4), "audio_lengths": one, "vision": given(3, 2, 1, 5), "vision_lengths": one}
    ids = torch.zeros(2, 3, dtype=torch.int64)
    return given(1, 2, 3, 6), Clips(text_ids=ids, text_lengths=three, speakers=one, dialogues=[1, 1], **frames)


def subnet(part: MeanSubnet) -> list[Tensor]:
    return list(part.parameters())  # BatchNorm's two, then three layers'


def text_part(subnets: Subnets) -> list[Tensor]:
    lstm = subnets.text.lstm
    return [lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0, lstm.bias_hh_l0, *subnets.text_out.parameters()]


def golden(settings: SubnetsConfig) -> Subnets:
    return Subnets(settings, text=6, audio=4, vision=5).eval()


def test_lmf_gives_the_golden_values():
    """Reference modules in eval mode, torch 2.13."""
    settings = reference(LmfConfig(rank=2, **GOLDEN))
    subnets, fusion = golden(settings), LowRankFusion(settings, 1)
    weights = [*fusion.factors, fusion.weights, fusion.bias, *subnet(subnets.audio), *subnet(subnets.vision)]
    filled([*weights, *text_part(subnets)], 0.8)
    audio, vision, text = subnets(*golden_clips())
    assert_close(fusion(audio, vision, text)[:, 0], [-0.320307, -0.764634])
    assert_close(text[:, 1:], [[0.085580, 1.112516], [0.307779, 0.745813]])
    assert_close(audio[0], [1, 0.920397, 0.887696, 0.023751])


def golden_tfn(outputs: int) -> tuple[Subnets, TensorFusion]:
    settings = reference(TfnConfig(post_hidden=3, **GOLDEN))
    subnets, fusion = golden(settings), TensorFusion(settings, outputs).eval()
    parts = [*subnet(subnets.audio), *subnet(subnets.vision), *text_part(subnets), *fusion.parameters()]
    filled(parts, 0.5, first=3)
    return subnets, fusion


def test_tfn_gives_the_golden_values():
    """Reference modules in eval mode, torch 2.13."""
    subnets, fusion = golden_tfn(1)
    vectors = subnets(*golden_clips())
    assert_close(6 * fusion(*vectors)[:, 0].sigmoid() - 3, [-0.846845, -0.838659])
    product = fusion.product(*vectors)
    assert_close(product.sum(1), [0.663859, 0.688423])
    assert_close(product[0, :3], [1, -0.549746, -0.153002])
    subnets, fusion = golden_tfn(7)
    first = [-0.580320, -0.368564, 0.119138, 0.228050, 0.452988, 0.562190, 0.085450]
    second = [-0.574394, -0.365789, 0.110411, 0.234087, 0.455619, 0.553496, 0.091597]
    assert_close(fusion(*subnets(*golden_clips())), [first, second])


def assert_close(found: Tensor, expected: list[Any]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=0)


def numel(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)


def test_published_sizes_give_the_published_numbers_of_weights():
    with torch.device("meta"):
        sims, meld = {"text": 768, "audio": 25, "vision": 177}, {"text": 768, "audio": 64, "vision": 64}
        assert numel(Subnets(LmfConfig(), **sims), LowRankFusion(LmfConfig(), 1)) == 239_173
        frozen = reference(LmfConfig())
        assert numel(Subnets(frozen, **sims), LowRankFusion(frozen, 1)) == 239_173 - 5
        assert numel(Subnets(TfnConfig(), **sims), TensorFusion(TfnConfig(), 1)) == 18_109_461
        assert numel(Subnets(TfnConfig(), **meld), TensorFusion(TfnConfig(), 7)) == 18_096_295


# Whole methods -----------------------------------------------------------------------------------------------------
def config_of(name: str, **changes: Any) -> RunConfig:
    start = RunConfig(
        data=DataConfig(name="test", fingerprint=""),
        method=registry.ENTRIES[name].config(),
        training=TrainingConfig(epochs=2, batch_size=4, learning_rate=0.01),
        evaluation=EvaluationConfig(batch_size=4),
    )
    smoke = dict(registry.ENTRIES[name].settings["smoke"])
    return override(start, smoke | {f"method.{field}": value for field, value in changes.items()})


def built(name: str, tools: Any, task: Task = SCORES, **changes: Any) -> Any:
    torch.manual_seed(0)
    method = registry.build(config_of(name, **changes), Inputs(task, WIDTHS), tools)
    method.module.eval()
    return method


def clip(number: int, frames: tuple[int, int] = (6, 7), text: str = "真是太好了", label: Any = 0, scale: float = 1.0) -> Sample:
    rng = np.random.default_rng(number)
    audio, vision = (
        (scale * rng.standard_normal((length, width))).astype(np.float32)
        for length, width in zip(frames, WIDTHS.values(), strict=True)
    )
    return Sample(f"clip {number}", text, audio, vision, label)


def odd_clips() -> dict[str, list[Sample]]:
    usual = clip(9, label=1)
    constant = replace(clip(0), audio=np.full((6, 4), 3.0, np.float32), vision=np.full((7, 5), -2.0, np.float32))
    return {
        "no voice": [clip(0, (0, 7)), usual],
        "no face": [clip(0, (6, 0)), usual],
        "neither": [clip(0, (0, 0)), usual],
        "neither in the whole batch": [clip(0, (0, 0)), clip(1, (0, 0))],
        "all zero": [clip(0, scale=0.0), clip(1, scale=0.0)],
        "constant": [constant, constant],
        "one clip alone": [usual],
        "one clip, nothing in it": [clip(0, (0, 0), "")],
        "no words": [clip(0, text=""), usual],
        "one frame": [clip(0, (1, 1)), usual],
    }


@pytest.mark.parametrize("odd", odd_clips())
@pytest.mark.parametrize("preset", ["fixed", "reference"])
@pytest.mark.parametrize("task", [SCORES, CLASSES], ids=["scores", "classes"])
@pytest.mark.parametrize("name", NAMES)
def test_an_odd_batch_gives_finite_losses_gradients_and_answers(name, task, preset, odd, tools):
    settings = registry.ENTRIES[name].config
    method = built(name, tools, task, **({} if preset == "fixed" else settings.quirks))
    batch = method.collate(odd_clips()[odd])
    method.module.train()
    loss = method.loss(batch)
    loss.total.backward()
    trained = [p for group in method.groups(method.config.training) for p in group.parameters]
    assert loss.total.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    assert {id(p) for p in trained} == {id(p) for p in method.module.parameters() if p.requires_grad}
    assert all(buffer.isfinite().all() for buffer in method.module.buffers())
    method.module.eval()
    answers = method.predict(batch)
    assert np.isfinite(answers.values).all()
    if task is CLASSES:
        np.testing.assert_allclose(answers.probabilities.sum(1), 1)
    else:
        assert (np.abs(answers.values) <= 1).all()


@pytest.mark.parametrize("preset", ["fixed", "reference"])
@pytest.mark.parametrize("task", [SCORES, CLASSES], ids=["scores", "classes"])
@pytest.mark.parametrize("name", NAMES)
def test_no_answer_depends_on_batch_mates_their_order_or_padding(name, task, preset, tools):
    settings = registry.ENTRIES[name].config
    method = built(name, tools, task, **({} if preset == "fixed" else settings.quirks))
    samples = [clip(0, (3, 9)), clip(1, (0, 2), "就那么回事"), clip(2, (12, 0), "说实话，这部电影真是太糟糕了"), clip(3, text="")]
    together = outputs(method, samples)
    for place, sample in enumerate(samples):
        torch.testing.assert_close(outputs(method, [sample])[0], together[place], atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs(method, samples[::-1]).flip(0), together, atol=1e-5, rtol=0)
    batch = method.collate(samples)
    for modality in ("audio", "vision"):
        for row, length in zip(batch.frames[modality], batch.lengths[modality], strict=True):
            row[length:] = 1e3
    batch.text_ids[np.arange(batch.text_ids.shape[1]) >= batch.text_lengths[:, None]] = 5
    torch.testing.assert_close(method.forward(method.clips(batch)).detach(), together, atol=1e-5, rtol=0)


def outputs(method: Any, samples: list[Sample]) -> Tensor:
    with torch.no_grad():
        return method.forward(method.clips(method.collate(samples)))


@pytest.mark.parametrize("name", NAMES)
def test_voice_face_and_words_each_change_the_answer(name, tools):
    method, usual = built(name, tools, audio_hidden=32, vision_hidden=32), clip(0)  # no layer of dead ReLUs
    said = outputs(method, [usual])
    for other in (replace(usual, audio=-usual.audio), replace(usual, vision=-usual.vision), clip(0, text="差得离谱")):
        assert not torch.equal(outputs(method, [other]), said)


@pytest.mark.parametrize("name", NAMES)
def test_words_alone_read_neither_voice_nor_face(name, tools):
    method = built(name, tools, modalities="text")
    assert torch.equal(outputs(method, [clip(0)]), outputs(method, [clip(1)]))
    method = built(name, tools, modalities="audio_vision")
    assert torch.equal(outputs(method, [clip(0)]), outputs(method, [clip(0, text="差得离谱")]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("world", ["embedded-sims", "embedded-meld"])
def test_training_repeats_and_lowers_its_loss(name, world, corpora, tools, tmp_path):
    config = override(config_of(name), {"training.epochs": 12})
    runs = [loop.train(config, corpora[world], tools, tmp_path / str(number)) for number in range(2)]
    (method, state), (_, again) = runs
    assert state.history == again.history and state.history[-1]["train_loss"] < state.history[0]["train_loss"]
    answers, _ = evaluate(method, corpora[world].splits["valid"], 3)
    assert answers["prediction"].notna().all()


# Switches ----------------------------------------------------------------------------------------------------------
def test_a_mean_over_padding_shrinks_short_clips():
    frames = torch.tensor([[[2.0], [4.0]], [[6.0], [0.0]], [[0.0], [0.0]]])
    lengths = torch.tensor([2, 1, 0])
    assert mean_over_time(frames, lengths)[:, 0].tolist() == [3, 6, 0]
    assert mean_over_time(frames, lengths, at_least=4)[:, 0].tolist() == [1.5, 1.5, 0]


@pytest.mark.parametrize("name", NAMES)
def test_each_switch_changes_what_it_says(name, tools):
    samples = [clip(0), clip(1, text="就那么回事")]
    usual = outputs(built(name, tools), samples)
    for switch in ("time_mean", "text_end"):
        assert not torch.allclose(outputs(built(name, tools, **{switch: "padded"}), samples), usual)


def test_lmf_trains_its_fusion_weights_unless_asked_not_to():
    for choice, trained in (("trained", True), ("frozen", False)):
        fusion = LowRankFusion(LmfConfig(fusion_weights=choice), 1)
        assert fusion.weights.requires_grad == fusion.bias.requires_grad == trained
    assert reference(LmfConfig()).fusion_weights == "frozen"


def test_lmfs_factors_learn_at_their_own_rate(tools):
    method = built("lmf", tools)
    assert isinstance(method, LMF)
    factors, others = method.groups(method.config.training)
    names = {id(p): name for name, p in method.module.named_parameters()}
    assert [names[id(p)] for p in factors.parameters] == [f"network.fusion.factors.{place}" for place in range(3)]
    assert factors.rate * 2e-3 == pytest.approx(5e-4) and others.rate == 1
    assert {"network.fusion.weights", "network.fusion.bias"} < {names[id(p)] for p in others.parameters}


@pytest.mark.parametrize(("score_range", "limit"), [("labels", 1.0), ("six", 3.0), ("none", None)])
def test_tfns_score_has_the_range_that_is_asked_for(score_range, limit, tools):
    method = built("tfn", tools, score_range=score_range)
    assert isinstance(method, TFN)
    with torch.no_grad():
        method.net["fusion"].layers[-1].bias.fill_(50.0)
    said = outputs(method, [clip(0)])[0, 0].item()
    assert said == pytest.approx(limit) if limit else said > 40
    assert built("tfn", tools, CLASSES, score_range=score_range).predict(method.collate([clip(0)])).probabilities.shape == (1, 3)


def test_batch_normalisation_of_one_clip_uses_what_it_has_gathered():
    norm = BatchNorm(3)
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    one = torch.tensor([[3.0, 1.0, -1.0]])
    torch.testing.assert_close(norm(one), torch.tensor([[1.0, 0.0, -1.0]]), atol=1e-5, rtol=0)
    assert norm.running_mean.tolist() == [1.0] * 3 and norm.num_batches_tracked == 0
    two = torch.randn(4, 3)
    torch.testing.assert_close(norm(two), nn.BatchNorm1d(3)(two))
