"""The same numbers on a GPU as on a CPU, one wait a step, and no memory for what is not needed.

Skipped without a CUDA device. `CMPTA_TEST_DEVICE=cpu` runs what does not count memory or waits on the CPU instead.
Tolerances: float32 sums in another order give 1e-5 to 1e-4 of a loss; TF32 is off here, as it gives 1e-3.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_model import ABLATIONS, AFTER_TEXT, CONFIG, TEXT_ONLY, build, clips
from test_training import CONFIG as TRAINING
from test_training import Killed, environment, stored, tools_of  # noqa: F401  `stored` is a fixture
from torch import Tensor

from cmpta_lib.base import Method
from cmpta_lib.config import override
from cmpta_lib.fast.packing import send
from cmpta_lib.fast.prompted import PromptedLM
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.runs import loop
from cmpta_lib.runs.checkpoint import State

pytestmark = pytest.mark.gpu

WORLDS = ("embedded-sims", "embedded-meld")
CPU = torch.device("cpu")
SWITCHES = [{}, *ABLATIONS[:3], AFTER_TEXT]


@pytest.fixture(scope="module")
def device() -> Iterator[torch.device]:
    name = os.environ.get("CMPTA_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def moved(llm: FrozenLLM, device: torch.device, dtype: torch.dtype = torch.float32) -> FrozenLLM:
    """A copy on the device; only weights take another dtype, as when one is loaded."""
    model = copy.deepcopy(llm.model).to(device)
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return FrozenLLM(model, llm.tokenizer, llm.fingerprint, "moved")


@pytest.fixture(scope="module")
def far(llm, device) -> FrozenLLM:
    """The shared LLM on the device."""
    return moved(llm, device)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found.detach().cpu().float(), expected.detach().cpu(), rtol=tolerance, atol=tolerance)


def gradients(method: Method) -> dict[str, Tensor]:
    return {name: p.grad.detach().cpu().clone() for name, p in method.module.named_parameters()}


def relative_gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest distance of a parameter's gradient, in parts of the largest gradient's norm."""
    assert found.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    return max(float((found[name] - expected[name]).norm() / largest) for name in expected)


def backward(method: PromptedLM, samples) -> Tensor:
    """Losses of the answer tokens, with gradients in place."""
    method.module.zero_grad()
    losses, _ = method.answer_losses(method.collate(samples))
    losses.sum().backward()
    return losses


# --- a GPU against the CPU ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
@pytest.mark.parametrize("world", WORLDS)
def test_loss_and_gradients_are_the_cpus(world, changes, llm, far, corpora):
    corpus = corpora[world]
    here, there = (build(where, corpus, **changes) for where in (llm, far))
    assert {p.device for p in there.module.parameters()} == {far.device}
    close(backward(there, clips(corpus)), backward(here, clips(corpus)))
    assert relative_gap(gradients(there), gradients(here)) < 1e-3


@pytest.mark.parametrize("start", [CONFIG, TEXT_ONLY], ids=["cmpta", "text_only"])
@pytest.mark.parametrize("world", WORLDS)
@torch.no_grad()
def test_scores_probabilities_and_answers_are_the_cpus(world, start, llm, far, corpora):
    corpus = corpora[world]
    here, there = (build(where, corpus, start) for where in (llm, far))
    samples = [corpus.splits["train"][i] for i in range(len(corpus.splits["train"]))]
    batches = [method.collate(samples) for method in (here, there)]
    scores = [m.trie_scores(b, m.pseudo_tokens(b)[0]) for m, b in zip((here, there), batches, strict=True)]
    close(torch.from_numpy(scores[1]), torch.from_numpy(scores[0]), 1e-3)
    expected, found = here.predict(batches[0]), there.predict(batches[1])
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=0, atol=1e-3)
    gaps = [np.diff(np.sort(scores[0][:, options], axis=1)[:, -2:]) for options in here.trie.options.values()]
    clear = np.concatenate(gaps, axis=1).min(1) > 2e-3  # a nearer choice may fall either way
    assert clear.mean() > 0.5
    assert [r for r, c in zip(found.replies, clear, strict=True) if c] == [
        r for r, c in zip(expected.replies, clear, strict=True) if c
    ]


@pytest.mark.parametrize("world", WORLDS)
def test_a_bfloat16_llm_stays_near_float32(world, llm, device, corpora):
    corpus = corpora[world]
    exact, half = build(llm, corpus), build(moved(llm, device, torch.bfloat16), corpus)
    expected, found = (backward(method, clips(corpus)) for method in (exact, half))
    assert found.dtype == torch.float32 and {p.dtype for p in half.module.parameters()} == {torch.float32}
    # bfloat16 keeps 8 bits: 0.4 % a rounding, some tens of them in a row; these random weights make large logits.
    torch.testing.assert_close(found.detach().cpu(), expected.detach(), rtol=0.1, atol=0.3)
    flat = [torch.cat([g.flatten() for g in gradients(method).values()]) for method in (exact, half)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.95


# --- on the GPU itself ----------------------------------------------------------------------------------------------------


def test_blocks_arrive_as_they_were_sent(device):
    rng = np.random.default_rng(0)
    sent = [[rng.standard_normal((n, 3)), rng.standard_normal(2 * n)] for n in range(1, 200)]
    arrived = [send(arrays, device) for arrays in sent]  # all under way before the first is looked at
    for arrays, tensors in zip(sent, arrived, strict=True):
        for array, tensor in zip(arrays, tensors, strict=True):
            assert tensor.device.type == device.type
            np.testing.assert_array_equal(tensor.cpu().numpy(), array)
    with pytest.raises(ValueError, match=r"expected arrays of one dtype, got \['float64', 'int64'\]"):
        send([np.zeros(2), np.zeros(2, np.int64)], device)


def test_a_run_goes_on_from_its_checkpoint(far, corpora, tmp_path, monkeypatch):
    corpus, step, places = corpora["embedded-sims"], loop.step, set()
    config = override(TRAINING, {"training.learning_rate": 1e-3})

    def watched(method, optimizer, *rest):
        places.update(str(state["step"].device) for state in optimizer.state.values())
        places.update(f"moments {state['exp_avg'].device}" for state in optimizer.state.values())
        return step(method, optimizer, *rest)

    def stop(state: State) -> None:
        if state.epoch == 2:
            raise Killed

    monkeypatch.setattr(loop, "step", watched)
    through, expected = loop.train(config, corpus, tools_of(far), tmp_path / "through")
    with pytest.raises(Killed):
        loop.train(config, corpus, tools_of(far), tmp_path / "stopped", on_epoch=stop)
    resumed, state = loop.train(config, corpus, tools_of(far), tmp_path / "stopped")
    assert [row["epoch"] for row in state.history] == [1, 2, 3, 4]
    assert places == {"cpu", f"moments {far.device}"}  # a step counter on a GPU would be waited for
    for name, weight in through.module.state_dict().items():
        close(resumed.module.state_dict()[name], weight.cpu(), 1e-3)
    losses = [[row["train_loss"] for row in s.history] for s in (state, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    tables = [loop.evaluate(method, corpus.splits["test"], 4)[0] for method in (through, resumed)]
    assert len(tables[0]) == len(tables[1]) == 5


def test_torchrun_trains_as_one_process_does(far, device, corpora, stored, tmp_path):  # noqa: F811
    run, corpus_folder, config = stored(override(TRAINING, {"training.learning_rate": 1e-3}))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1", "--standalone"]
    command = [*launcher, str(run / "script.py"), str(run), str(corpus_folder), "100"]
    given = environment() | {"CMPTA_TEST_DEVICE": device.type}
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    alone, _ = loop.train(config, corpora["embedded-sims"], tools_of(far), tmp_path)
    together = load_file(Path(run) / "weights.safetensors")
    assert together.keys() == alone.module.state_dict().keys()
    for name, weight in alone.module.state_dict().items():
        close(together[name], weight.cpu(), 1e-3)


# --- what a step costs ----------------------------------------------------------------------------------------------------


@contextmanager
def waits_are_errors(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Every wait for the GPU raises but `tolist`, the loss readout; yields the sizes of what that read."""
    plain, read = torch.Tensor.tolist, []

    def mode(name: str) -> None:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode(name)

    def readout(tensor: Tensor) -> list:
        if tensor.device.type != device.type:
            return plain(tensor)
        read.append(tensor.numel())
        mode("default")
        try:
            return plain(tensor)
        finally:
            mode("error")

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "tolist", readout)
        mode("error")
        try:
            yield read
        finally:
            mode("default")


def optimizer_of(method: Method) -> torch.optim.Optimizer:
    return torch.optim.AdamW(method.module.parameters(), lr=1e-3)


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_waits_for_its_loss_alone(changes, dtype, llm, device, corpora, monkeypatch):
    corpus = corpora["embedded-sims"]
    method, samples = build(moved(llm, device, dtype), corpus, **changes), clips(corpus)
    method.module.train()
    optimizer, units = optimizer_of(method), [[i] for i in range(6)]
    loop.step(method, optimizer, samples, units, CONFIG.training)  # libraries start here, and AdamW's state
    with waits_are_errors(device, monkeypatch) as read:
        for _ in range(3):
            loop.step(method, optimizer, samples, units, CONFIG.training)
    assert read == [1, 1, 1]


def test_a_wait_would_be_an_error(device, monkeypatch):
    if device.type != "cuda":
        pytest.skip("a CPU is not waited for")
    values = torch.arange(6.0, device=device)
    with waits_are_errors(device, monkeypatch), pytest.raises(RuntimeError, match="synchroniz"):
        values[values > 2]


def test_a_step_takes_less_memory_than_the_logits_of_its_whole_input(llm, device, corpora):
    from transformers.models.qwen2 import Qwen2Config, Qwen2ForCausalLM

    if device.type != "cuda":
        pytest.skip("memory is counted on a GPU")
    vocabulary, sizes = 64_000, {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, num_attention_heads=4, num_key_value_heads=4, **sizes))
    corpus, large = corpora["embedded-sims"], FrozenLLM(model.to(device), llm.tokenizer, "", "large")
    method = build(large, corpus)
    method.module.train()
    split, units, optimizer = corpus.splits["train"], [[i] for i in range(16)], optimizer_of(method)
    for _ in range(2):
        loop.step(method, optimizer, split, units, CONFIG.training)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    loop.step(method, optimizer, split, units, CONFIG.training)
    taken = torch.cuda.max_memory_allocated(device) - before
    batch = method.collate([split[i] for i in range(16)])
    positions = len(method.training_inputs(batch)[0])
    assert taken < positions * vocabulary * 4  # float32
