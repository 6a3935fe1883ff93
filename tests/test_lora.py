"""LoRA beside a frozen LLM, and what an LLM generates: nobody else's weights change, and a slow loop says the same."""

from __future__ import annotations

import copy

import pytest
import torch

from cmpta_lib.fast.llm import packed_logits
from cmpta_lib.fast.packing import Ragged
from cmpta_lib.llm.generation import LoraWeights, adapted, generate, lora_layers, nucleus
from cmpta_lib.llm.loading import weights_fingerprint
from cmpta_lib.method.llm import FrozenLLM

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


def test_a_copy_shares_the_llms_weights_has_lora_in_each_linear_layer_but_the_head_and_leaves_the_llm_alone(llm, tuned):
    plain, before = [logits(llm, text) for text in TEXTS], weights_fingerprint(llm.model)
    assert all(torch.equal(logits(tuned[0], text), found) for text, found in zip(TEXTS, plain, strict=True)), "B is zero"
    own, theirs = ({parameter.data_ptr() for parameter in part.parameters()} for part in (llm.model, tuned[0].model))
    assert own < theirs and theirs - own == {parameter.data_ptr() for parameter in tuned[1].parameters()}
    linear = {name for name, module in llm.model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(lora_layers(tuned[0].model)) == linear - {"lm_head"} and "lm_head" in linear
    moved(tuned[1])
    assert not torch.equal(logits(tuned[0], TEXTS[0]), plain[0])
    assert torch.equal(logits(llm, TEXTS[0]), plain[0]) and weights_fingerprint(llm.model) == before
    assert not lora_layers(llm.model) and not hasattr(llm.model, "peft_config")


def test_what_is_saved_holds_no_weight_of_the_llm(llm, tuned):
    state = tuned[1].state_dict()
    assert {name.rsplit(".", 2)[1] for name in state} == {"A", "B"}
    assert all(4 in weight.shape for weight in state.values())
    torch.manual_seed(1)
    other, weights = adapted(llm, rank=4, alpha=8)
    moved(tuned[1])
    weights.load_state_dict(state)
    assert torch.equal(logits(other, TEXTS[1]), logits(tuned[0], TEXTS[1]))


def slowly(llm: FrozenLLM, text: str, count: int) -> str:
    """Greedy decoding, one whole forward pass per token."""
    ids, said = llm.first_ids + llm.token_ids(text), []
    for _ in range(count):
        whole = llm.embedding(torch.tensor(ids + said))
        best = packed_logits(llm, whole, Ragged.rows([len(whole)], llm.device), torch.tensor([len(whole) - 1]))
        said.append(int(best.argmax()))
        if said[-1] == llm.tokenizer.eos_token_id or "\n" in llm.tokenizer.decode([said[-1]]):
            break
    return llm.tokenizer.decode([t for t in said if t != llm.tokenizer.eos_token_id]).partition("\n")[0].strip()


def read(llm: FrozenLLM, texts=TEXTS) -> list[torch.Tensor]:
    return [llm.embedding(torch.tensor(llm.first_ids + llm.token_ids(text))) for text in texts]


def test_it_generates_what_a_slow_loop_does_up_to_where_the_llm_ends_a_line(llm):
    assert generate(llm, read(llm), 9) == [slowly(llm, text, 9) for text in TEXTS]
    (whole,) = generate(llm, read(llm, TEXTS[:1]), 6)
    third = llm.tokenizer(whole, add_special_tokens=False)["input_ids"][2]
    other = copy.copy(llm)
    other.tokenizer = copy.deepcopy(llm.tokenizer)
    other.tokenizer.eos_token = llm.tokenizer.convert_ids_to_tokens(third)
    assert whole.startswith(ended := generate(other, read(llm, TEXTS[:1]), 6)[0]) and len(ended) < len(whole)
    with pytest.raises(ValueError, match="does not fit the LLM"):
        generate(llm, read(llm), 10**6)


def test_what_is_drawn_hangs_on_a_texts_own_numbers(llm):
    draws = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
    together = generate(llm, read(llm), 8, 0.9, draws)
    assert together == [generate(llm, [text], 8, 0.9, row[None])[0] for text, row in zip(read(llm), draws, strict=True)]
    assert together != generate(llm, read(llm), 8, 0.9, 1 - draws)
    assert generate(llm, read(llm), 8, 1e-9, draws) == generate(llm, read(llm), 8)


def test_the_nucleus_is_the_smallest_set_of_that_chance():
    numbers = torch.tensor([0.0, 0.55, 0.6, 0.999])
    scores = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(4, 4)
    assert nucleus(scores, 0.6, numbers).tolist() == [0, 0, 1, 1]  # 0.4 / 0.7 = 0.571
