"""What Figures 1 and 2 say of a run: its settings, its task's words, its sizes, and one clip as an example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cmpta_lib.config import CmptaConfig
from cmpta_lib.data.corpus import Task
from cmpta_lib.method.prompted import Layout, answer_text

if TYPE_CHECKING:
    from cmpta_lib.study.study import Study

GROUPS = ("text", "vision", "audio")
PAIRS = {  # token -> (Y, X) of Y ← X, in the order in which the LLM reads them; as `methods.cmpta`, which needs torch
    f"{y[0]}{number}": (y, x) for y in GROUPS for number, x in enumerate((name for name in GROUPS if name != y), start=1)
}
_SMALL = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


@dataclass(frozen=True)
class ShownModel:
    """One CMPTA model as its drawings name it.

    Attributes:
        backbone: name of the frozen LLM.
        llm_dim: E, its width.
        audio_features, vision_features: F of the corpus.
        clip, text, label: id, words and label of the clip that stands as the example.
    """

    settings: CmptaConfig
    task: Task
    backbone: str
    llm_dim: int
    audio_features: int
    vision_features: int
    clip: str
    text: str
    label: float | int

    @classmethod
    def of(cls, study: Study, key: str) -> ShownModel:
        """CMPTA as a study trains it on one of its corpora; the example is the first clip of the training split."""
        from cmpta_lib.runs.load import load_llm

        settings, corpus = study.config(key).method, study.corpus(key)
        assert isinstance(settings, CmptaConfig)
        train = corpus.splits["train"]
        clip = train[0]
        assert clip.label is not None, "clips of a split have labels"
        width = load_llm([study.cache / "llm"], settings.llm).dim
        return cls(
            settings, corpus.task, settings.llm.name, width, train.audio_dim, train.vision_dim, clip.id, clip.text, clip.label
        )

    @property
    def words(self) -> Layout:
        return Layout.of(self.task)

    @property
    def answer(self) -> str:
        """The example's answer as the LLM writes it."""
        prompt = self.settings.prompt
        return answer_text(self.task, self.label, prompt.answer_decimals, prompt.answer_sign)

    @property
    def class_name(self) -> str:
        """What the answer stands for; empty where it is the score itself."""
        return self.task.labels[int(self.label)] if self.task.labels else ""

    @property
    def is_mixed(self) -> bool:
        """Whether a learned matrix turns the six pairs' tokens into K others."""
        return self._changes_count and self.settings.token_count_rule == "mix"

    @property
    def _changes_count(self) -> bool:
        return self.settings.fusion == "cross_modal" and self.settings.num_pseudo_tokens != len(PAIRS)

    @property
    def count_rule(self) -> str:
        """How six pairs become K tokens; empty where each pair is one token, or there are no pairs."""
        count = self.settings.num_pseudo_tokens
        if not self._changes_count:
            return ""
        if self.is_mixed:
            return f"learned mix {len(PAIRS)} → {count}"
        return f"the first {count} of {len(PAIRS)} pairs" if count < len(PAIRS) else f"pairs repeated {len(PAIRS)} → {count}"

    @property
    def tokens(self) -> list[tuple[str, str]]:
        """(name, modality that it comes from) of the K pseudo tokens, in order; a mixed token has no one modality."""
        count = self.settings.num_pseudo_tokens
        if self.settings.fusion == "pooled":
            half = range(1, count // 2 + 1)
            return [(f"{modality[0]}{n}".translate(_SMALL), modality) for modality in ("vision", "audio") for n in half]
        if self.is_mixed:
            return [(str(n), "") for n in range(1, count + 1)]
        pairs = list(PAIRS.items())
        return [(name.translate(_SMALL), y) for name, (y, _) in (pairs[n % len(pairs)] for n in range(count))]

    def shown_tokens(self, most: int) -> list[tuple[str, str]]:
        """`tokens`, where there are more than `most` with an ellipsis before the last."""
        tokens = self.tokens
        return tokens if len(tokens) <= most else [*tokens[: most - 2], ("…", ""), tokens[-1]]
