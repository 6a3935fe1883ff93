"""MSE-Adapter: the public code's numbers, its parameter counts, and clips that must not disturb each other."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from golden import fill, given
from test_every_method import built, config_of
from test_model import clips
from torch import Tensor

from cmpta_lib.baselines import mse_adapter
from cmpta_lib.baselines.mse_adapter import MseAdapter, MseAdapterConfig, MseTokens
from cmpta_lib.baselines.supervised import reference
from cmpta_lib.data.corpus import MODALITIES, Inputs, Sample, Task
from cmpta_lib.fast.packing import Chained, Stream, Streams

SMALL = MseAdapterConfig(audio_hidden=6, vision_hidden=5, dim=16)


def tokens_of(method: MseAdapter, samples: list[Sample]) -> Tensor:
    with torch.no_grad():
        return method.pseudo_tokens(method.collate(samples))[0]


# --- the public code's numbers ------------------------------------------------------------------------------------------


def made(config: MseAdapterConfig, features: tuple[int, int], pad: Tensor, text_limit: int) -> MseTokens:
    """The adapter for texts of at most so many tokens and an LLM that has nothing but a padding token."""
    config = config.model_copy(update={"prompt": config.prompt.model_copy(update={"max_text_tokens": text_limit})})
    llm = SimpleNamespace(dim=len(pad), embedding_norm=1.0, tokenizer=SimpleNamespace(pad_token_id=0))
    llm.embedding = SimpleNamespace(weight=pad[None])
    return MseTokens(config, Inputs(Task("regression", "zh"), dict(zip(MODALITIES, features, strict=True))), llm)


def by_rule(config: MseAdapterConfig) -> MseTokens:
    """The adapter for an LLM of width 64, parameter i filled with 0.3 sin(0.7 k + i), in the order of the public code."""
    adapter = made(config, (4, 5), torch.zeros(64), text_limit=7)
    parts = (adapter.audio, adapter.vision, adapter.mixer, adapter.fusion.mlps, adapter.fusion.weigh)
    ordered = [p for part in (*parts, adapter.fusion.to_llm, adapter.spread) for p in part.parameters()]
    assert len(ordered) == len(list(adapter.parameters())) == 32
    fill(ordered, 0.3)
    return adapter.eval()


def inputs() -> tuple[Tensor, ...]:
    audio, vision, text = given(1, 2, 6, 4), given(2, 2, 5, 5), given(3, 2, 7, 64)
    return text, torch.tensor([7, 7]), audio, torch.tensor([6, 3]), vision, torch.tensor([2, 5])


def test_the_public_codes_outputs():
    """Golden values: reference modules in eval mode, torch 2.13."""
    adapter, put = by_rule(reference(MseAdapterConfig(audio_hidden=3, vision_hidden=2))), inputs()
    voice, face = adapter.audio(*put[2:4]), adapter.vision(*put[4:6])
    golden = [[-0.158807, 0.175571, 0.289955], [-0.133647, 0.193361, 0.246832]]
    torch.testing.assert_close(voice[:, :3], torch.tensor(golden), rtol=0, atol=1e-5)
    mixed = (voice + face) * adapter.mixer(put[0].mean(1))
    golden = [[-0.068604, 0.021892, -0.022454], [-0.119943, 0.113308, 0.142492]]
    torch.testing.assert_close(mixed[:, :3], torch.tensor(golden), rtol=0, atol=1e-5)
    pairs = ((put[place], put[place + 1].tolist()) for place in (0, 2, 4))
    layouts = ((values, Chained.of(lengths, values.shape[1], values.device)) for values, lengths in pairs)
    streams = Streams(*(Stream(*pair) for pair in layouts))
    sums = adapter(streams)[0].sum(-1)
    golden = [[10.610914, 18.399860, 17.535061, 8.423251], [10.611769, 18.399265, 17.533300, 8.421150]]
    torch.testing.assert_close(sums, torch.tensor(golden), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("hidden", "features", "llm_dim", "tokens", "logged"),
    [
        ((64, 64), (25, 177), 2048, 4, 1_400_268),  # Qwen-1.8B, SIMS-V2
        ((32, 16), (64, 64), 2048, 2, 1_312_072),  # Qwen-1.8B, MELD, as released
        ((64, 32), (64, 64), 2048, 2, 1_352_392),  # Qwen-1.8B, MELD, an earlier setting
        ((64, 64), (25, 177), 4096, 4, 2_680_716),  # 4096 wide LLMs, SIMS-V2
        ((64, 32), (64, 64), 4096, 4, 2_632_844),  # 4096 wide LLMs, MELD
    ],
)
def test_the_trainable_parameters_that_the_public_code_logs(hidden, features, llm_dim, tokens, logged):
    config = MseAdapterConfig(audio_hidden=hidden[0], vision_hidden=hidden[1], num_pseudo_tokens=tokens)
    with torch.device("meta"):
        adapter = made(config, features, torch.zeros(llm_dim), text_limit=65)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == logged


# --- switches -----------------------------------------------------------------------------------------------------------


def test_the_padded_mean_counts_padding_and_the_real_one_does_not(llm):
    pad = torch.full((64,), 2.0)
    text, lengths = given(1, 1, 3, 64), torch.tensor([3])
    padded = made(reference(SMALL), (4, 5), pad, text_limit=5)._text_mean(text, lengths)
    torch.testing.assert_close(padded, torch.cat([text, pad.expand(1, 2, -1)], dim=1).mean(1))
    real = made(SMALL, (4, 5), pad, text_limit=5)._text_mean(text, lengths)
    torch.testing.assert_close(real, text.mean(1))
    assert mse_adapter._padding_id(llm) == llm.tokenizer.eos_token_id  # as Qwen's


def test_all_tokens_lie_in_a_plane_whatever_the_text_without_the_mixer(tools, corpora):
    method = built("mse_adapter", corpora["embedded-sims"], tools, num_pseudo_tokens=6, mixer=False)
    samples = clips(corpora["embedded-sims"])
    tokens = tokens_of(method, samples)
    assert (torch.linalg.svdvals(tokens.double())[:, 2:] < 1e-5).all()
    torch.testing.assert_close(tokens_of(method, [replace(sample, text="something else") for sample in samples]), tokens)
    assert not [name for name in method.module.state_dict() if "pad" in name], "the LLM's, which is not ours to save"


def test_tokens_start_as_large_as_embeddings_where_asked(tools, corpora, llm):
    corpus, sizes = corpora["embedded-sims"], {}
    for scale in ("default", "embedding_norm"):
        method = built("mse_adapter", corpus, tools, token_scale=scale, num_pseudo_tokens=200)
        sizes[scale] = float(tokens_of(method, clips(corpus)).norm(dim=-1).mean())
    assert 0.5 < sizes["embedding_norm"] / llm.embedding_norm < 2 < sizes["default"] / llm.embedding_norm


def test_one_scale_is_the_first_and_scales_that_are_none_are_refused(tools, corpora):
    method = built("mse_adapter", corpora["embedded-sims"], tools, multi_scale=False)
    (mlp,) = method.module.fusion.mlps
    assert mlp[0].out_features == method.llm.dim // 8
    for scales in ([], [0], [8.5]):
        with pytest.raises(ValueError, match="method.scales"):
            config_of("mse_adapter", {"scales": scales})
