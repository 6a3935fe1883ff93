"""LoRA beside a frozen LLM, and letting an LLM speak: nobody else's weights change, and a slow loop says the same."""

from __future__ import annotations

import pytest
import torch

from cmpta_lib.fast.llm import packed_logits
from cmpta_lib.fast.packing import Ragged
from cmpta_lib.llm.generation import LoraWeights, Speaker, _Nucleus, adapted, lora_layers, merged
from cmpta_lib.method.llm import FrozenLLM, weights_fingerprint

TEXTS = ("这部电影真是太好了", "Well, I really love the party!", "差")


def logits(llm: FrozenLLM, text: str) -> torch.Tensor:
    """Next-token logits at every position of a text."""
    ids = torch.tensor(llm.first_ids + llm.token_ids(text))
    return packed_logits(llm, llm.embedding(ids), Ragged.rows([len(ids)], llm.device), torch.arange(len(ids)))


def moved(lora: LoraWeights) -> LoraWeights:
    """As after some training: B is no longer zero."""
    with torch.no_grad():
        for weight in lora.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return lora


@pytest.fixture
def tuned(llm):
    torch.manual_seed(0)
    return adapted(llm, rank=4, alpha=8)


def test_before_training_nothing_changes(llm, tuned):
    for text in TEXTS:
        assert torch.equal(logits(tuned[0], text), logits(llm, text))


def test_the_frozen_llm_never_meets_it(llm, tuned):
    before, plain = weights_fingerprint(llm.model), logits(llm, TEXTS[0])
    moved(tuned[1])
    assert not torch.equal(logits(tuned[0], TEXTS[0]), plain)
    assert torch.equal(logits(llm, TEXTS[0]), plain) and weights_fingerprint(llm.model) == before
    assert not lora_layers(llm.model) and not hasattr(llm.model, "peft_config")


def test_the_copy_shares_the_llms_own_weights(llm, tuned):
    own = {parameter.data_ptr() for parameter in llm.model.parameters()}
    theirs = {parameter.data_ptr() for parameter in tuned[0].model.parameters()}
    assert own < theirs and theirs - own == {parameter.data_ptr() for parameter in tuned[1].parameters()}


def test_every_linear_layer_of_the_decoder_has_it_and_the_head_has_not(llm, tuned):
    linear = {name for name, module in llm.model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(lora_layers(tuned[0].model)) == linear - {"lm_head"} and "lm_head" in linear


def test_what_is_saved_holds_no_weight_of_the_llm(llm, tuned):
    state = tuned[1].state_dict()
    assert {name.rsplit(".", 2)[1] for name in state} == {"A", "B"}
    assert all(4 in weight.shape for weight in state.values())
    torch.manual_seed(1)
    other, weights = adapted(llm, rank=4, alpha=8)
    moved(tuned[1])
    weights.load_state_dict(state)
    assert torch.equal(logits(other, TEXTS[1]), logits(tuned[0], TEXTS[1]))


def test_gradients_reach_it_and_nothing_else(llm, tuned):
    logits(moved(tuned[1]) and tuned[0], TEXTS[0]).square().mean().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in tuned[1].parameters())
    assert all(parameter.grad is None for parameter in llm.model.parameters())


def test_merged_it_says_the_same_alone(llm, tuned):
    moved(tuned[1])
    before = weights_fingerprint(llm.model)
    whole = merged(tuned[0])
    for text in TEXTS:
        ids = torch.tensor([llm.first_ids + llm.token_ids(text)])
        with torch.no_grad():
            torch.testing.assert_close(whole(ids).logits[0], logits(tuned[0], text), rtol=1e-4, atol=1e-4)
    assert {name for name, _ in whole.named_parameters()} == {name for name, _ in llm.model.named_parameters()}
    assert not {p.data_ptr() for p in whole.parameters()} & {p.data_ptr() for p in tuned[0].model.parameters()}
    assert weights_fingerprint(llm.model) == before and lora_layers(tuned[0].model)


def slowly(llm: FrozenLLM, text: str, count: int) -> str:
    """Greedy decoding, one whole forward pass per token."""
    ids, said = llm.first_ids + llm.token_ids(text), []
    for _ in range(count):
        whole = torch.tensor(ids + said)
        best = llm.logits(llm.embedding(whole))[-1]
        said.append(int(best.argmax()))
        if said[-1] == llm.tokenizer.eos_token_id or "\n" in llm.tokenizer.decode([said[-1]]):
            break
    return llm.tokenizer.decode([t for t in said if t != llm.tokenizer.eos_token_id]).partition("\n")[0].strip()


def read(llm: FrozenLLM, texts=TEXTS) -> list[torch.Tensor]:
    return [llm.embedding(torch.tensor(llm.first_ids + llm.token_ids(text))) for text in texts]


def test_it_goes_on_as_a_slow_loop_does(llm):
    assert Speaker(llm).go_on(read(llm), 9) == [slowly(llm, text, 9) for text in TEXTS]


def test_a_line_ends_where_the_llm_ends_it(llm):
    speaker, text = Speaker(llm), read(llm, TEXTS[:1])
    (whole,) = speaker.go_on(text, 6)
    third = llm.tokenizer(whole, add_special_tokens=False)["input_ids"][2]
    speaker._is_end[third] = True  # as if that were a line end
    assert len(speaker.go_on(text, 6)[0]) < len(whole)


def test_what_is_drawn_hangs_on_a_texts_own_numbers(llm):
    speaker, draws = Speaker(llm), torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
    together = speaker.go_on(read(llm), 8, 0.9, draws)
    assert together == [speaker.go_on([text], 8, 0.9, row[None])[0] for text, row in zip(read(llm), draws, strict=True)]
    assert together != speaker.go_on(read(llm), 8, 0.9, 1 - draws)
    assert speaker.go_on(read(llm), 8, 1e-9, draws) == speaker.go_on(read(llm), 8)


def test_the_nucleus_is_the_smallest_set_of_that_chance():
    scores = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    drawn = [int(_Nucleus(0.6, torch.tensor([[u]]))(torch.zeros(1, 1), scores).argmax()) for u in (0.0, 0.55, 0.6, 0.999)]
    assert drawn == [0, 0, 1, 1]  # 0.4 / 0.7 = 0.571


def test_more_than_the_llm_takes_is_refused(llm):
    with pytest.raises(ValueError, match="does not fit the LLM"):
        Speaker(llm).go_on(read(llm), 10**6)
