"""What a multimodal LLM must be able to do for a benchmark of affective computing: weigh answers, and say something.

Published models that hear and see, and the frozen LLM with pseudo tokens, are asked in the same two ways. Whoever is
asked is given a clip without its label: no knowledge that is drawn from a model can have seen what is to be predicted.

MLLM-MAC: a multimodal LLM with generated knowledge and supervised fine-tuning, each alone or both (arXiv 2508.02429).

The multimodal LLM is an offline stand-in for published ones: the frozen LLM, and CMPTA's adapter as its eyes and ears.
Those learn first, without labels, to make the LLM say what is seen and heard ("perception"); only then do its zero-shot
answers, and what it says of a clip, mean anything. Knowledge enters as words before the clip's own, so that whoever
answers needs no notion of it. Fine-tuning is LoRA on the answer tokens (eq 9), in a copy that shares the frozen weights.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cmpta_lib.base import Group, Loss, Predictions, Tools
from cmpta_lib.beyond.knowledge import END, Describer, StatementCache, content_digest
from cmpta_lib.config import AtLeastOne, CmptaConfig, Positive, PromptedLMConfig, RunConfig, Stage, TrainingConfig
from cmpta_lib.data.corpus import MODALITIES, Inputs, Modality, Sample, Split
from cmpta_lib.llm.generation import LoraWeights, Speaker, adapted
from cmpta_lib.method.adapter import CMPTAdapter
from cmpta_lib.method.answers import AnswerTrie
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.method.prompted import PromptBatch, PromptedLM
from cmpta_lib.paper import HYPERPARAMETERS
from cmpta_lib.registry import register


class MllmMacConfig(PromptedLMConfig):
    """MLLM-MAC (arXiv 2508.02429): a multimodal LLM with generated knowledge and supervised fine-tuning.

    Of that work only the abstract is at hand. Datasets, prompts, ranks and rates are choices of ours, after generated
    knowledge prompting (arXiv 2110.08387) and MMLA's fine-tuning, and the offline multimodal LLM is one of our making.
    """

    name: Literal["mllm_mac"] = "mllm_mac"
    recipe: Literal[1] = 1
    # Its eyes and ears: CMPTA's adapter, which learns without labels to make the frozen LLM say what is seen and heard.
    dim: Annotated[int, Field(ge=2, multiple_of=2)] = HYPERPARAMETERS.feature_dim
    num_heads: AtLeastOne = 8
    num_pseudo_tokens: AtLeastOne = 6
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    # 0: the frozen LLM itself learns to say it, moved by pseudo tokens alone. Else LoRA of this rank learns with them, acts
    # while it describes and never while it answers: the embedded tiny LLM cannot be brought to describe without.
    speech_rank: Annotated[int, Field(ge=0)] = 0
    perception_epochs: AtLeastOne = 10
    perception_rate: Positive = HYPERPARAMETERS.learning_rate
    perception_batch_size: AtLeastOne = HYPERPARAMETERS.batch_size
    # What the statements say, and how; see `knowledge.Describer`.
    facts: Annotated[tuple[Literal["energy", "movement", "course"], ...], Field(min_length=1, strict=False)] = (
        "energy", "movement", "course",
    )  # fmt: skip
    courses: AtLeastOne = 2  # main variations whose course is told
    steady_share: Annotated[float, Field(ge=0, le=1)] = 1 / 3  # of training clips whose course counts as steady
    wording: Literal["words", "signs"] = "words"
    # What it is given when it answers, and when it is fine-tuned; perception always has all.
    modalities: Literal["T", "TA", "TV", "TAV"] = "TAV"
    # The statement before the clip's words: none; by rule from frames; said by the model itself; or what the corpus'
    # generator knows. `shuffled`: another clip's instead, the control that a statement's content matters.
    knowledge: Literal["none", "features", "generated", "cue"] = "generated"
    shuffled: bool = False
    integration: Literal["concat", "max_conf"] = "concat"  # all statements at once; or each alone, and the surest answer
    statements: AtLeastOne = 5  # M, that the model says: the first greedily, others from its nucleus
    max_new_tokens: AtLeastOne = 64
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.5
    donors: Annotated[int, Field(ge=2)] = 256  # training clips whose statements `shuffled` draws from
    # Supervised fine-tuning by LoRA; without it the model answers zero-shot.
    sft: bool = True
    lora_rank: AtLeastOne = 16
    lora_alpha: AtLeastOne = 32

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.dim % self.num_heads:
            raise ValueError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}")
        if self.modalities == "T" and self.knowledge != "none":
            raise ValueError("modalities='T' neither sees nor hears: there is nothing to say, use knowledge='none'")
        if self.knowledge == "none" and (self.shuffled or self.integration != "concat"):
            raise ValueError("knowledge='none' leaves nothing to shuffle or to weigh: shuffled=False, integration='concat'")
        return self

    def stages(self, run: RunConfig) -> tuple[Stage, ...]:
        """Perception where there is anything to perceive, then fine-tuning where there is any."""
        own = {"epochs": self.perception_epochs, "batch_size": self.perception_batch_size}
        first = run.training.model_copy(update={**own, "learning_rate": self.perception_rate, "patience": None})
        seeing = Stage("perception", first, is_labelled=False, outcome=self._perception(run, first.model_dump(mode="json")))
        tuning = Stage("training", run.training)
        return (*([] if self.modalities == "T" else [seeing]), *([tuning] if self.sft else []))

    def _perception(self, run: RunConfig, training: dict[str, Any]) -> dict[str, Any]:
        """All that decides what is perceived: runs that differ only in what they are told or taught share it."""
        settings = self.model_dump(mode="json")
        apart = ("modalities", "knowledge", "shuffled", "integration", "statements", "max_new_tokens", "top_p", "decoding")
        for name in (*apart, "sft", "lora_rank", "lora_alpha"):
            del settings[name]
        return {"data": run.data.model_dump(mode="json"), "seed": run.seed, "training": training, "method": settings}


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


PERCEPTION = "perception"


@dataclass(frozen=True)
class MacBatch(PromptBatch):
    """`text_ids` is the first reading: words with what is said of the clip, or without where the surest answer counts."""

    spoken_ids: list[list[int]]  # the clip's own words: all that the adapter reads, whatever the LLM is told
    readings: tuple[list[list[int]], ...]  # text ids of the further readings
    is_described: bool  # the answers are statements about the clips: a batch of perception


class MacModule(nn.Module):
    """What a run keeps: adapter, describer, LoRA of describing and of answering, each where there is one."""

    def __init__(
        self, maker: nn.Module | None, describer: Describer | None, speech: LoraWeights | None, lora: LoraWeights | None
    ) -> None:
        super().__init__()
        self.maker, self.describer, self.speech, self.lora = maker, describer, speech, lora
        self.perceives = False

    def train(self, mode: bool = True) -> MacModule:
        """Dropout acts where the adapter learns, and nowhere else."""
        super().train(mode)
        if self.maker is not None:
            self.maker.train(mode and self.perceives)
        return self


class MllmMac(PromptedLM, MultimodalLLM[Sample]):
    """The offline multimodal LLM, told what is seen and heard, fine-tuned, or both.

    `score` and `generate` ask it without any knowledge but what the caller writes; `predict` is the whole method.
    """

    settings: MllmMacConfig
    module: MacModule

    def __init__(self, config: RunConfig, inputs: Inputs, tools: Tools) -> None:
        super().__init__(config, inputs, tools)  # the adapter first: its weights must not hang on what else there is
        settings, self.frozen, self.speaking = self.settings, self.llm, self.llm
        given = {"T": (), "TA": ("audio",), "TV": ("vision",), "TAV": MODALITIES}[settings.modalities]
        self.given: tuple[Modality, ...] = given  # type: ignore[assignment]
        self.describer = None if self.maker is None else Describer(inputs.widths, self.task.language, settings)
        speech, lora = None, None
        if self.maker and settings.speech_rank:
            self.speaking, speech = adapted(self.frozen, settings.speech_rank, 2 * settings.speech_rank)
        if settings.sft:
            self.llm, lora = adapted(self.frozen, settings.lora_rank, settings.lora_alpha)
        self.module = MacModule(self.maker, self.describer, speech, lora).to(self.frozen.device)
        self._folder = tools.knowledge
        self._train: Split | None = None
        self._speaker: Speaker | None = None
        self._cache: tuple[tuple[int, ...], StatementCache] | None = None
        self._learn(perceives=False)

    def token_maker(self, inputs: Inputs) -> CMPTAdapter | None:
        settings = self.settings
        if settings.modalities == "T":
            return None
        shape = CmptaConfig(
            dim=settings.dim,
            num_heads=settings.num_heads,
            num_pseudo_tokens=settings.num_pseudo_tokens,
            dropout=settings.dropout,
        )
        widths = inputs.widths["audio"], inputs.widths["vision"]
        return CMPTAdapter(shape, *widths, self.llm.dim, self.llm.embedding_norm)

    def fit(self, train: Split) -> None:
        super().fit(train)
        self._train = train
        if self.describer:
            self.describer.fit(train)

    def enter(self, stage: Stage) -> None:
        self._learn(perceives=stage.name == PERCEPTION)

    def _learn(self, perceives: bool) -> None:
        self.module.perceives = perceives
        for part, learns in ((self.maker, perceives), (self.module.speech, perceives), (self.module.lora, not perceives)):
            if part is not None:
                part.requires_grad_(learns)
        self.module.train(self.module.training)

    def groups(self, config: TrainingConfig) -> Sequence[Group]:
        return [Group([p for p in self.module.parameters() if p.requires_grad])]

    # --- what the LLM reads -------------------------------------------------------------------------------------------

    def collate(self, samples: Sequence[Sample]) -> MacBatch:
        """In perception the answer is the statement about a clip; else what is said of it stands before its words."""
        if self.module.perceives and self.module.training:  # what perceived last answers as everything else does
            return self._described(samples)
        plain = super().collate([self._limited(sample) for sample in samples])
        readings = list(map(list, zip(*self._readings(samples, plain), strict=True)))
        return MacBatch(
            **(vars(plain) | {"text_ids": readings[0]}),
            spoken_ids=plain.text_ids,
            readings=tuple(readings[1:]),
            is_described=False,
        )

    def _described(self, samples: Sequence[Sample]) -> MacBatch:
        assert self.describer
        plain = super().collate([bare(sample) for sample in samples])
        said = [self.describer.of_frames(bare(sample), MODALITIES) + END for sample in samples]
        answers = [self.llm.token_ids(statement) for statement in said]
        return MacBatch(
            **(vars(plain) | {"answer_ids": answers}), spoken_ids=plain.text_ids, readings=(), is_described=True
        )

    def _limited(self, sample: Sample) -> Sample:
        """The clip with the modalities that are given; others count as absent."""
        absent = {modality: getattr(sample, modality)[:0] for modality in MODALITIES if modality not in self.given}
        return replace(sample, **absent) if absent and self.maker else sample

    def _readings(self, samples: Sequence[Sample], plain: PromptBatch) -> Iterator[list[list[int]]]:
        """Per clip the text ids of every reading, of one number for all: one that is missing repeats the first.

        A statement has room of its own: it never cuts the clip's words.
        """
        limit = self.settings.prompt.max_text_tokens
        found: list[list[list[int]]] = []
        for sample, alone, said in zip(samples, plain.text_ids, self.knowledge(samples), strict=True):
            if self.settings.integration == "concat":
                said = [self._gap.join(said)] if said else []
            told = [self.llm.token_ids(words + self._gap + sample.text) for words in said]
            told = [ids[: limit + len(self.llm.token_ids(words))] for ids, words in zip(told, said, strict=True)]
            found.append(told or [alone] if self.settings.integration == "concat" else [alone, *told])
        most = max(len(readings) for readings in found)
        for readings in found:
            yield readings + readings[:1] * (most - len(readings))

    @property
    def _gap(self) -> str:
        return self.describer.wording.gap if self.describer else ""

    def pseudo_tokens(self, batch: PromptBatch, return_weights: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """As `PromptedLM.pseudo_tokens`, from the clip's own words: what is perceived hangs on nothing that is told."""
        read = batch.spoken_ids if isinstance(batch, MacBatch) else batch.text_ids
        return super().pseudo_tokens(replace(batch, text_ids=read), return_weights)

    # --- what is learned, and what is answered ------------------------------------------------------------------------

    def loss(self, batch: PromptBatch) -> Loss:  # type: ignore[override]
        """Next-token cross-entropy: in perception on the statement, else on the answer, over all readings."""
        if not isinstance(batch, MacBatch) or not batch.is_described:
            parts = [PromptedLM.loss(self, read) for read in _each(batch)]
            return Loss(torch.stack([part.total for part in parts]).sum(), sum(part.count for part in parts))
        assert self.describer
        return PromptedLM.loss(self._asked(self.describer.wording.prompt, self.speaking), batch)

    @torch.no_grad()
    def predict(self, batch: PromptBatch) -> Predictions:  # type: ignore[override]
        """As `PromptedLM.predict`; of several readings each clip keeps the one whose likeliest answer is the likeliest."""
        readings = _each(batch)
        if len(readings) > 1:
            tokens, _ = self.pseudo_tokens(batch)
            sure = [self.trie.probabilities(self.trie_scores(read, tokens)).max(1) for read in readings]
            surest = np.argmax(sure, axis=0)
            kept = [readings[choice].text_ids[clip] for clip, choice in enumerate(surest)]
            batch = replace(batch, text_ids=kept)
        return super().predict(batch)

    def _asked(self, prompt: str, llm: FrozenLLM, choices: Sequence[str] = ()) -> MllmMac:
        """This method with another question, the same weights and batches."""
        other = copy.copy(self)
        other.llm, other._ids = llm, {**self._ids, "prompt": llm.token_ids(prompt)}
        if choices:
            other.answers = {choice: place for place, choice in enumerate(choices)}
            other.trie = AnswerTrie({choice: llm.token_ids(choice) for choice in choices})
        return other

    @torch.no_grad()
    def score(self, clips: Sequence[Sample], prompt: str, choices: Sequence[str]) -> np.ndarray:
        refuse_labels(clips)
        asked, parts = self._asked(prompt, self.llm, choices), []
        for batch in self._batches(clips):
            tokens, _ = asked.pseudo_tokens(batch)
            parts.append(asked.trie.probabilities(asked.trie_scores(batch, tokens)))
        with np.errstate(divide="ignore"):
            logarithms: np.ndarray = np.log(np.concatenate(parts))
        return logarithms

    def generate(self, clips: Sequence[Sample], prompt: str, max_new_tokens: int) -> list[str]:
        """As the model says it that perceived, before any fine-tuning: that has learned to answer, not to describe."""
        refuse_labels(clips)
        batches = self._batches(clips)
        return [line for batch in batches for line in self._said(batch, prompt, max_new_tokens, None)]

    def _batches(self, clips: Sequence[Sample]) -> Iterator[PromptBatch]:
        size = self.config.evaluation.batch_size
        for start in range(0, len(clips), size):
            yield super().collate([self._limited(clip) for clip in clips[start : start + size]])

    @torch.no_grad()
    def _said(self, batch: PromptBatch, prompt: str, max_new_tokens: int, draws: Tensor | None) -> list[str]:
        asked = self._asked(prompt, self.speaking)
        tokens, _ = asked.pseudo_tokens(batch)
        rows = asked._rows(batch, tokens.shape[1], [[]] * len(batch.ids))
        embeds, _, _ = asked._placed(rows, tokens, [])
        self._speaker = self._speaker or Speaker(self.speaking)
        return self._speaker.go_on(embeds.split(rows.lengths), max_new_tokens, self.settings.top_p, draws)

    # --- knowledge ----------------------------------------------------------------------------------------------------

    def knowledge(self, samples: Sequence[Sample]) -> list[list[str]]:
        """What the method tells the LLM of each clip: statements, none where it has nothing to tell. Labels play no part.

        Raises:
            ValueError: the corpus does not know the cues that `knowledge="cue"` asks for.
        """
        kind, describer = self.settings.knowledge, self.describer
        if kind == "none" or describer is None:
            return [[] for _ in samples]
        if kind == "cue":
            tell = describer.of_another if self.settings.shuffled else None
            found = [tell(s, "cue", self.given) if tell else describer.cue(s, self.given) for s in samples]
        elif self.settings.shuffled:  # of what the model says too: what it was taught to say of that clip
            found = [describer.of_another(bare(sample), "features", self.given) for sample in samples]
        elif kind == "features":
            found = [describer.of_frames(bare(sample), self.given) for sample in samples]
        else:
            return self._generated([bare(self._limited(sample)) for sample in samples])
        return [[words] if words else [] for words in found]

    def _generated(self, samples: Sequence[Sample]) -> list[list[str]]:
        """What the model says of the clips; of each content it says it once."""
        cache, contents = self._statements(), [content_digest(sample) for sample in samples]
        if self._train is not None and self.module.training and any(cache.get(content.hex()) is None for content in contents):
            train, self._train = self._train, None  # all at once: large batches are three times faster
            self._generated([bare(self._limited(sample)) for sample in train])
        clips = dict(zip(contents, samples, strict=True))
        todo = sorted(content for content in clips if cache.get(content.hex()) is None)
        for start in range(0, len(todo), size := self.config.evaluation.batch_size):
            part = todo[start : start + size]
            cache.add({content.hex(): said for content, said in zip(part, self._describe(part, clips), strict=True)})
        return [cache.get(content.hex()) or [] for content in contents]

    def _describe(self, contents: Sequence[bytes], clips: Mapping[bytes, Sample]) -> list[list[str]]:
        """Statements about clips, in the order in which they were said, without the empty and those said before."""
        assert self.describer
        settings, prompt = self.settings, self.describer.wording.prompt
        batch = super().collate([clips[content] for content in contents])
        said: list[dict[str, None]] = [{} for _ in contents]
        for number in range(settings.statements):
            drawn = np.array([_draws(content, number, settings.max_new_tokens) for content in contents])
            lines = self._said(batch, prompt, settings.max_new_tokens, torch.from_numpy(drawn) if number else None)
            for known, line in zip(said, lines, strict=True):
                known |= {line: None} if line else {}
        return [list(known) for known in said]

    def _statements(self) -> StatementCache:
        """The statements of the model as it is now."""
        assert self.maker and self.describer
        state: dict[str, Tensor] = self.maker.state_dict(keep_vars=True)
        if self.module.speech is not None:
            state |= self.module.speech.state_dict(keep_vars=True)
        versions = tuple(tensor._version for tensor in state.values())
        if self._cache is None or self._cache[0] != versions:
            settings = self.settings
            kept: list[Any] = [self.frozen.fingerprint, settings.llm.dtype, self.describer.wording.prompt, self.given]
            kept += [settings.prompt.model_dump(), settings.statements, settings.max_new_tokens, settings.top_p]
            digest = hashlib.sha256(repr(kept).encode())
            for name, tensor in sorted(state.items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
            self._cache = versions, StatementCache(digest.hexdigest()[:32], self._folder)
        return self._cache[1]


def _each(batch: PromptBatch) -> list[PromptBatch]:
    """A batch once per reading, as if it had one."""
    further = batch.readings if isinstance(batch, MacBatch) else ()
    return [batch, *(replace(batch, text_ids=read) for read in further)]


def _draws(content: bytes, number: int, count: int) -> np.ndarray:
    """(count,) numbers in [0, 1) that a clip's content and a statement's number decide."""
    return np.random.default_rng([*content, number]).random(count)


register(
    MllmMacConfig,
    MllmMac,
    row="MLLM-MAC",
    is_beyond=True,
    settings={
        "demo": {
            "method.dim": 64, "method.perception_epochs": 3, "method.perception_rate": 3e-3, "method.speech_rank": 16,
            "method.facts": ("course",), "method.courses": 1, "method.wording": "signs",
            "method.statements": 1, "method.max_new_tokens": 14,
            "training.epochs": 1, "training.learning_rate": 1e-3,
        },
        "demo/meld": {"method.courses": 2, "method.steady_share": 0.5},
        "demo/data": {"method.dim": 128, "method.perception_epochs": 10},
        "smoke": {"method.dim": 16, "method.perception_epochs": 1},
        "paper": {"training.learning_rate": 1.1e-4, "training.epochs": 30},
    },
    reads="one utterance: words by an LLM that is fine-tuned too, all frames of voice and face, and a statement about them",
)
