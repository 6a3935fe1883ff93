"""Counterexamples are looked for: layouts of any lengths, tries of any answers, configs with any change."""

from __future__ import annotations

import json
import math
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_config import CONFIG, TEXT_ONLY, leaves, settable, value_at
from torch import Tensor

from cmpta_lib.config import from_json, override, to_json
from cmpta_lib.fast.llm import _packed_attention
from cmpta_lib.fast.packing import Ragged, pad
from cmpta_lib.method.answers import AnswerTrie

CPU = torch.device("cpu")
few = settings(derandomize=True, max_examples=40, deadline=None, database=None)  # the same examples every time

# --- packing ----------------------------------------------------------------------------------------------------------

def one_by_one(lengths: list[int], given: list[Tensor], mask: Tensor | None = None) -> Tensor:
    """Causal attention of each clip alone, in plain words."""
    out, start = [], 0
    for clip, n in enumerate(lengths):
        q, k, v = (part[0][:, start : start + n] for part in given)
        k, v = (part.repeat_interleave(q.shape[0] // k.shape[0], 0) for part in (k, v))
        allowed = torch.ones(n, n).tril() if mask is None else mask[clip, 0, :n, :n]
        scores = (q @ k.transpose(1, 2) * 0.5).masked_fill(allowed == 0, -torch.inf)
        out.append((scores.softmax(-1) @ v).transpose(0, 1))
        start += n
    return torch.cat(out)


@few
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.sampled_from([(4, 4), (4, 2), (4, 1), (1, 1)]), st.integers(0, 9))
def test_packed_attention_is_attention_clip_by_clip_under_any_mask(lengths, heads, seed):
    size, generator = max(lengths), torch.Generator().manual_seed(seed)
    given = [torch.randn(1, h, sum(lengths), 4, generator=generator) for h in (heads[0], heads[1], heads[1])]
    draw = torch.rand(len(lengths), 1, size, size, generator=generator) < 0.5
    for mask in (None, draw.tril() | torch.eye(size, dtype=torch.bool)):
        layout = {"layout": Ragged.rows(lengths, CPU), "mask": mask}
        found = _packed_attention(torch.nn.Identity(), *given, None, scaling=0.5, **layout)[0][0]
        torch.testing.assert_close(found, one_by_one(lengths, given, mask), rtol=0, atol=1e-5)


@few
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 4))
def test_padded_clips_keep_their_frames_and_are_zero_beyond(lengths, width):
    clips = [np.full((n, width), i + 1, np.float32) for i, n in enumerate(lengths)]
    padded, found = pad(clips, np.float32)
    assert found.tolist() == lengths and padded.shape == (len(lengths), max(lengths), width)
    for row, clip in zip(padded, clips, strict=True):
        np.testing.assert_array_equal(row, np.pad(clip, ((0, max(lengths) - len(clip)), (0, 0))))


# --- answer tries -----------------------------------------------------------------------------------------------------

spelt = st.lists(st.integers(0, 3), max_size=4)
any_answers = st.lists(spelt, min_size=1, max_size=9).map(lambda ids: {f"answer {i}": row for i, row in enumerate(ids)})


def clashes(answers: dict[str, list[int]]) -> list[str]:
    """Answers whose ids are the beginning of another's, or another's own."""
    rows = list(answers.items())
    return [a for a, ids in rows if any(b != a and other[: len(ids)] == ids for b, other in rows)]


def without_clashes(answers: dict[str, list[int]]) -> dict[str, list[int]]:
    kept: dict[str, list[int]] = {}
    for name, ids in answers.items():
        kept = kept if clashes(kept | {name: ids}) else kept | {name: ids}
    return kept


def test_a_clash_of_answers_is_refused():
    with pytest.raises(ValueError, match=r"\['1'\] are the beginning"):
        AnswerTrie({"10": [5, 6], "1": [5]})
    with pytest.raises(ValueError, match="'a' and 'b' have the same token ids"):
        AnswerTrie({"a": [5], "b": [5]})


@few
@given(any_answers)
def test_answers_that_cannot_be_told_apart_are_refused_and_no_others(answers):
    if clashing := clashes(answers):
        with pytest.raises(ValueError) as caught:
            AnswerTrie(answers)
        assert any(name in str(caught.value) for name in clashing)
    else:
        assert AnswerTrie(answers).leaves == {tuple(ids): answer for answer, ids in answers.items()}


def walked(answers: dict[str, list[int]], trie: AnswerTrie, scores: np.ndarray) -> tuple[str, dict[str, float]]:
    """One clip's greedy answer and every answer's chance: token by token, with nothing of the tree but what is scored."""
    said, chances, best = dict(zip(trie.choices, scores.tolist(), strict=True)), dict.fromkeys(answers, 1.0), list(answers)
    for place in range(max(map(len, answers.values()))):
        for beginning in {tuple(ids[:place]) for ids in answers.values() if len(ids) > place}:
            legal = {tuple(ids[: place + 1]) for ids in answers.values() if tuple(ids[:place]) == beginning}
            assert (len(legal) > 1) == (beginning in trie.asked) == bool(legal & said.keys())
            shares = {node: math.exp(said.get(node, 0.0)) for node in legal}
            for name, ids in answers.items():
                if (node := tuple(ids[: place + 1])) in legal:
                    chances[name] *= shares[node] / sum(shares.values())
                    if name in best and shares[node] < max(shares.values()):
                        best.remove(name)
    return best[0], chances


@few
@given(any_answers.map(without_clashes), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 1.0, 30.0]))
def test_the_greedy_walk_takes_the_best_legal_token_and_probabilities_are_products_of_shares(answers, seed, size):
    trie = AnswerTrie(answers)
    scores = (np.random.default_rng(seed).standard_normal((3, len(trie.choices))) * size).astype(np.float32)
    replies, found = trie.greedy(scores), trie.probabilities(scores)
    np.testing.assert_allclose(found.sum(1), 1, rtol=0, atol=1e-9)
    for reply, row, clip in zip(replies, found, scores, strict=True):
        best, chances = walked(answers, trie, clip)
        assert reply == best and dict(zip(answers, row, strict=True)) == pytest.approx(chances, abs=1e-9)
        for node, options in trie.options.items():
            assert trie.choices[options] == [(*node, token) for token in trie.children[node]]


@few
@given(any_answers.map(without_clashes))
def test_the_trees_mask_shows_each_node_its_own_way_only(answers):
    trie = AnswerTrie(answers)
    for node, row in zip(trie.inner, trie.visible(), strict=True):
        assert [trie.inner[i] for i in np.flatnonzero(row)] == [node[:n] for n in range(1, len(node) + 1)]
        assert any(asked[: len(node)] == node for asked in trie.asked)
    assert {*trie.asked} <= {(), *trie.inner}


# --- configs ----------------------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=5), scalars, max_size=3)
names = st.text(max_size=12)
from_zero = st.floats(0, 1, exclude_max=True) | st.sampled_from([0, -0.0])
OWN = {  # what the types alone do not say
    "method.dim": st.integers(1, 500).map(lambda n: 8 * n),
    "method.num_heads": st.sampled_from([1, 2, 4, 8, 16, 32, 1024]),
    "method.prompt.answer_decimals": st.integers(1, 4),
    "method.dropout": from_zero,
    "training.warmup_fraction": from_zero,
    "training.weight_decay": from_zero,
    "training.gradient_clip": st.none() | st.floats(1e-300, 1e9),
    "training.patience": st.none() | st.integers(1, 10**6),
    "training.learning_rate": st.floats(1e-10, 10) | st.integers(1, 9),
    "training.epsilon": st.floats(1e-300, 1),
    "training.num_threads": st.integers(1, 1024),
    "method.num_pseudo_tokens": st.integers(1, 1024),
    "seed": st.integers(0, 2**32 - 1),
}


def legal(path: str, hint: Any) -> st.SearchStrategy:
    """Legal values of a field, while all others keep their defaults."""
    if path in OWN:
        return OWN[path]
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    return {str: st.text(), int: st.integers(1, 10**6)}[hint]


LEGAL = {path: legal(path, hint) for path, hint in settable().items()}
@pytest.mark.parametrize("path", sorted(LEGAL))
@settings(few, max_examples=12)
@given(st.data())
def test_any_legal_change_changes_the_hash_and_survives_json(path, data):
    value = data.draw(LEGAL[path])
    config = override(CONFIG, {path: value})
    assert value_at(config, path) == value
    assert (value == value_at(CONFIG, path)) == (config == CONFIG) == (config.hash == CONFIG.hash)
    assert from_json(to_json(config)) == config and from_json(to_json(config)).hash == config.hash
    assert override(config, {path: value_at(CONFIG, path)}) == CONFIG


@settings(few, max_examples=100)
@given(st.sampled_from([CONFIG, TEXT_ONLY]), st.data(), names, anything)
def test_an_unknown_field_is_refused_in_one_line(config, data, name, value):
    node = tree = json.loads(to_json(config))
    for parent in data.draw(st.sampled_from([(), ("data",), ("method",), ("method", "llm"), ("training",)])):
        node = node[parent]
    assume(name not in node)
    node[name] = value
    with pytest.raises(ValueError) as caught:
        from_json(json.dumps(tree))
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ValueError) as caught:
        override(config, {name: value})
    assert len(str(caught.value).splitlines()) == 1 and "no config field" in str(caught.value)


@settings(few, max_examples=300)
@given(st.sampled_from(sorted(leaves())), anything)
def test_any_value_is_taken_as_it_is_or_refused_in_one_line(path, value):
    tree = json.loads(to_json(CONFIG))
    *parents, last = path.split(".")
    node = tree
    for parent in parents:
        node = node[parent]
    node[last] = value
    try:
        config = from_json(json.dumps(tree))
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
    else:
        taken = value_at(config, path)
        same = type(taken) in (type(value), float) or (path == "method.recipe" and value is True)  # 1, to pydantic
        assert taken == value and same


@few
@given(st.text(max_size=30) | anything.map(json.dumps))
def test_any_other_text_is_no_config(text):
    with pytest.raises(ValueError) as caught:
        from_json(text)
    assert len(str(caught.value).splitlines()) == 1
