"""What a multimodal LLM must be able to do for a benchmark of affective computing: weigh answers, and say something.

Published models that hear and see, and the frozen LLM with pseudo tokens, are asked in the same two ways. Whoever is
asked is given a clip without its label: no knowledge that is drawn from a model can have seen what is to be predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from cmpta_lib.data.corpus import Sample

ClipT = TypeVar("ClipT", contravariant=True)


@runtime_checkable
class MultimodalLLM(Protocol[ClipT]):
    """A model that reads, hears and sees a clip, as frames or as a recording, and is prompted in words."""

    def score(self, clips: Sequence[ClipT], prompt: str, choices: Sequence[str]) -> np.ndarray:
        """(B, C) float64 natural logarithms of the chance of each choice behind the prompt; each row's chances sum to 1.

        Raises:
            ValueError: a clip bears a label, or a choice is the beginning of another.
        """
        ...

    def generate(self, clips: Sequence[ClipT], prompt: str, max_new_tokens: int) -> list[str]:
        """What it says of each clip behind the prompt, greedily, up to its end.

        Raises:
            ValueError: a clip bears a label.
        """
        ...


def bare(sample: Sample) -> Sample:
    """The clip as a model may be asked about it: its words, voice and face, without label and annotations."""
    return replace(sample, label=None, extra={})


def refuse_labels(clips: Sequence[Sample]) -> None:
    """Raises ValueError where a clip bears a label."""
    if labelled := [clip.id for clip in clips if clip.label is not None]:
        raise ValueError(
            f"clips {', '.join(labelled[:3])} bear a label: a model is asked about clips without one; see multimodal_llm.bare"
        )
