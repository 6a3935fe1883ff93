"""Methods without an LLM: one layout, one scaling, one loss for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_every_method import built, config_of
from test_gpu_waits import CPU, META, Above, Below, send_anywhere
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from cmpta_lib.base import Resources
from cmpta_lib.baselines import self_mm, supervised
from cmpta_lib.config import override
from cmpta_lib.data.corpus import dialogues_of
from cmpta_lib.runs import loop


def test_frozen_states_are_scaled_by_the_training_splits_words_and_zero_beyond_their_end(corpora, tools, encoder):
    corpus = corpora["embedded-meld"]
    method = built("bilstm", corpus, tools)
    clips = method.clips(method.collate(list(corpus.splits["train"])))
    words = method.frozen_text(clips)
    assert not words[~clips.text_real].any()
    found = words[clips.text_real]
    torch.testing.assert_close(found.mean(0), torch.zeros(found.shape[1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(0, unbiased=False), torch.ones(found.shape[1]), atol=1e-5, rtol=0)
    bare = loop.build(override(config_of("bilstm", {}), {"data.feature_scaling": "none"}), corpus, tools)
    ids = torch.tensor([encoder.token_ids(corpus.splits["train"][0].text)])
    expected = encoder.states(ids, torch.ones_like(ids, dtype=torch.bool))[0]
    torch.testing.assert_close(bare.frozen_text(clips)[0, : ids.shape[1]], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["self_mm", "mag_bert"])
def test_an_encoder_that_is_trained_too_is_not_scaled(name: str, corpora, tools):
    method = built(name, corpora["embedded-sims"], tools)
    assert "text" not in method.scaling and {"audio", "vision"} == set(method.scaling)


def test_a_clip_without_a_label_is_named(corpora, tools):
    corpus = corpora["embedded-sims"]
    method = built("bilstm", corpus, tools)
    bare = replace(corpus.splits["train"][0], label=None)
    with pytest.raises(ValueError, match=f"{bare.id}.*only labelled clips can be trained on"):
        method.loss(method.collate([bare]))
    assert len(method.predict(method.collate([bare])).values) == 1
    with pytest.raises(ValueError, match="an empty batch"):
        method.collate([])


def test_clips_without_a_dialogue_are_dialogues_of_their_own(corpora, tools):
    nan = float("nan")  # as pandas writes an empty cell: one object that several clips may share
    assert dialogues_of([None, nan, nan, "a", "b", "a"]) == [[0], [1], [2], [3, 5], [4]]
    corpus = corpora["embedded-meld"]
    named = zip([None, nan, nan, "a", "a", "b"], "xyxxyz", strict=True)
    clips = [replace(corpus.splits["train"][0], dialogue=dialogue, speaker=speaker) for dialogue, speaker in named]
    method = built("mmgcn", corpus, tools)
    batch = method.collate(clips)
    assert batch.dialogues == [1, 1, 1, 2, 1] and batch.speakers.tolist() == [0, 0, 0, 0, 1, 0]
    with pytest.raises(ValueError, match="clips of each dialogue one after another"):
        method.collate([clips[3], clips[5], clips[4]])


MELD_SIMS_MELD = ("embedded-meld", "embedded-sims", "embedded-meld")
FINE_TUNED = {"self_mm": {}, "mag_bert": {}, "mag_bert, padded": {"alignment": "padded"}}


@pytest.mark.parametrize(("name", "world"), [*zip(FINE_TUNED, MELD_SIMS_MELD, strict=True)])
def test_a_gpu_would_not_wait_for_the_host(name, world, corpora, encoder):
    """A training step reads its loss once, and copies nothing but what it sends on purpose."""
    config, corpus = config_of(name.partition(",")[0], FINE_TUNED[name]), corpora[world]
    plain = supervised.send

    def sent(arrays: Sequence[np.ndarray], where: torch.device) -> list[Tensor]:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            return (send_anywhere if where == META else plain)(arrays, where)

    for device in (CPU, META):
        copied = encoder.copy()
        copied.model.to(device)
        method: Any = loop.build(config, corpus, Resources(device, lambda config: None, lambda config, one=copied: one))  # type: ignore[misc]
        method.module.train()
        samples: Any = [replace(s, audio=s.audio[:5], vision=s.vision[:4]) for s in [*corpus.splits["train"]][:6]]
        given = (method, loop.optimizer_of(method.groups(config.training), config.training), samples)
        units = [[clip] for clip in range(len(samples))]
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(supervised, "send", sent)
            patched.setattr(self_mm, "send", sent)
            with Above():
                loop.step(*given, units, config.training, 1)
            above, below = Above(), Below([state["step"] for state in given[1].state.values()])
            with above, below:
                loop.step(*given, units, config.training, 1)
        assert dict(above.counts + below.counts) == {"tolist": 1}
