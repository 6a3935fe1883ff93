"""MLLM-MAC: a multimodal LLM with generated knowledge and supervised fine-tuning, each alone or both (arXiv 2508.02429).

The multimodal LLM is an offline stand-in for published ones: the frozen LLM, and CMPTA's adapter as its eyes and ears.
Those learn first, without labels, to make the LLM say what is seen and heard ("perception"); only then do its zero-shot
answers, and what it says of a clip, mean anything. Knowledge enters as words before the clip's own, so that whoever
answers needs no notion of it. Fine-tuning is LoRA on the answer tokens (eq 9), in a copy that shares the frozen weights.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cmpta_lib.base import Loss, Predictions, Resources
from cmpta_lib.beyond.knowledge import END, Describer, StatementCache, content_digest
from cmpta_lib.beyond.losses import unlabelled_stage
from cmpta_lib.config import AtLeastOne, CmptaConfig, EvenWidth, Few, PromptedLMConfig, Rate, RunConfig, Stage
from cmpta_lib.data.corpus import MODALITIES, Corpus, Inputs, Sample, Split
from cmpta_lib.fast.cmpta import BatchedAdapter
from cmpta_lib.fast.prompted import PromptBatch, PromptedLM
from cmpta_lib.llm.generation import adapted, generate
from cmpta_lib.llm.loading import weights_fingerprint
from cmpta_lib.method.llm import FrozenLLM
from cmpta_lib.method.prompted import MakeTokens, PlainAnswer, PlainLM
from cmpta_lib.paper import HYPERPARAMETERS
from cmpta_lib.registry import register

PERCEPTION = "perception"
Fact = Literal["energy", "movement", "course"]


class MllmMacConfig(PromptedLMConfig):
    """Of that work only the abstract is at hand. Datasets, prompts, ranks and rates are choices of ours, after generated
    knowledge prompting (arXiv 2110.08387) and MMLA's fine-tuning, and the offline multimodal LLM is one of our making."""

    name: Literal["mllm_mac"] = "mllm_mac"
    recipe: Literal[1] = 1
    # Its eyes and ears: CMPTA's adapter, which learns without labels to make the frozen LLM say what is seen and heard.
    dim: EvenWidth = HYPERPARAMETERS.feature_dim
    num_heads: Few = 8
    num_pseudo_tokens: Few = 6
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    # 0: the frozen LLM itself learns to say it, moved by pseudo tokens alone. Else LoRA of this rank learns with them, acts
    # while it describes and never while it answers: the embedded tiny LLM cannot be brought to describe without.
    speech_rank: Annotated[int, Field(ge=0, le=1000)] = 0
    perception_epochs: AtLeastOne = 10
    perception_rate: Rate = HYPERPARAMETERS.learning_rate
    perception_batch_size: AtLeastOne = HYPERPARAMETERS.batch_size
    # What the statements say, and how; see `knowledge.Describer`.
    facts: Annotated[tuple[Fact, ...], Field(min_length=1, strict=False)] = ("energy", "movement", "course")
    courses: Few = 2  # main variations whose course is told
    steady_share: Annotated[float, Field(ge=0, le=1)] = 1 / 3  # of training clips whose course counts as steady
    wording: Literal["words", "signs"] = "words"
    # What it is given when it answers, and when it is fine-tuned; perception always has all.
    modalities: Literal["T", "TA", "TV", "TAV"] = "TAV"
    # The statement before the clip's words: none; by rule from frames; said by the model itself; or what the corpus'
    # generator knows. `shuffled`: another clip's instead, the control that a statement's content matters.
    knowledge: Literal["none", "features", "generated", "cue"] = "generated"
    shuffled: bool = False
    integration: Literal["concat", "max_conf"] = "concat"  # all statements at once; or each alone, and the surest answer
    statements: Few = 5  # M, that the model says: the first greedily, others from its nucleus
    max_new_tokens: AtLeastOne = 64
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.5
    donors: Annotated[int, Field(ge=2, le=10**6)] = 256  # training clips whose statements `shuffled` draws from
    # Supervised fine-tuning by LoRA; without it the model answers zero-shot.
    sft: bool = True
    lora_rank: Few = 16
    lora_alpha: Few = 32

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
        told = {"modalities", "knowledge", "shuffled", "integration", "statements", "max_new_tokens", "top_p", "decoding"}
        of_training = self.perception_epochs, self.perception_rate, self.perception_batch_size
        seeing = unlabelled_stage(PERCEPTION, run, *of_training, told | {"sft", "lora_rank", "lora_alpha"})
        return (*([] if self.modalities == "T" else [seeing]), *([Stage("training", run.training)] if self.sft else []))


def bare(sample: Sample) -> Sample:
    """The clip as a model may be asked about it: its words, voice and face, without label and annotations."""
    return replace(sample, label=None, extra={})


@dataclass(frozen=True, kw_only=True)
class MacBatch(PromptBatch):
    """`text_ids` are the clips' own words: all that the adapter reads, whatever the LLM is told."""

    readings: tuple[list[list[int]], ...]  # what the LLM reads of the clips, once or oftener; none: it is to describe them


class MacModule(nn.ModuleDict):
    """What a run keeps: adapter, describer, LoRA of describing ("speech") and of answering, each where there is one."""

    perceives = False
    said: StatementCache | None = None  # by these weights

    def train(self, mode: bool = True) -> MacModule:
        """Dropout acts where the adapter learns, and nowhere else; other weights may come, which say other things."""
        super().train(mode)
        self.said = None
        if "maker" in self:
            self["maker"].train(mode and self.perceives)
        return self


class MllmMac(PromptedLM):
    """The offline multimodal LLM, told what is seen and heard, fine-tuned, or both."""

    settings: MllmMacConfig
    module: MacModule

    def __init__(self, config: RunConfig, inputs: Inputs, resources: Resources) -> None:
        super().__init__(config, inputs, resources)  # the adapter first: its weights must not hang on what else there is
        settings, self.frozen, self.describing_llm = self.settings, self.llm, self.llm
        self.given = tuple(modality for modality in MODALITIES if modality[0].upper() in settings.modalities)
        about = settings.wording, settings.facts, settings.courses, settings.steady_share, settings.donors
        self.describer = Describer(inputs.widths, self.task.language, *about) if self.maker else None
        self.gap = self.describer.wording.gap if self.describer else ""
        parts: dict[str, nn.Module | None] = {"maker": self.maker, "describer": self.describer}
        if self.maker and settings.speech_rank:
            self.describing_llm, parts["speech"] = adapted(self.frozen, settings.speech_rank, 2 * settings.speech_rank)
        if settings.sft:
            self.llm, parts["lora"] = adapted(self.frozen, settings.lora_rank, settings.lora_alpha)
        self.module = MacModule({name: part for name, part in parts.items() if part is not None}).to(self.frozen.device)
        self._folder = resources.knowledge
        self._train: Split | None = None
        self.enter(Stage("training", config.training))

    def token_maker(self, inputs: Inputs) -> BatchedAdapter | None:
        if self.settings.modalities == "T":
            return None
        shared = self.settings.model_dump(include={"dim", "num_heads", "num_pseudo_tokens", "dropout"})
        audio, vision = inputs.widths["audio"], inputs.widths["vision"]
        return BatchedAdapter(CmptaConfig(**shared), audio, vision, self.llm.dim, self.llm.embedding_norm)

    def fit(self, train: Split) -> None:
        super().fit(train)
        self._train = train
        if self.describer:
            self.describer.fit(train)

    def enter(self, stage: Stage) -> None:
        self.module.perceives = stage.name == PERCEPTION
        for name, part in self.module.items():
            part.requires_grad_(self.module.perceives != (name == "lora"))
        self.module.train(self.module.training)

    def collate(self, samples: Sequence[Sample]) -> MacBatch:
        """In perception the answer is the statement about a clip; else what is said of it stands before its words."""
        if self.describer and self.module.perceives and self.module.training:  # what perceived last answers as all else does
            plain = super().collate([bare(sample) for sample in samples])
            said = [self.llm.token_ids(self.describer.of_frames(sample) + END) for sample in samples]
            return MacBatch(**(vars(plain) | {"answer_ids": said}), readings=())
        plain = super().collate([self.limited(sample) for sample in samples])
        told = [self.told(said) for said in self.knowledge(samples)]
        each = zip_longest(*told, fillvalue="")  # a clip of which less is said is read without again
        readings = (list(map(self.told_ids, words, [sample.text for sample in samples])) for words in each)
        return MacBatch(**vars(plain), readings=tuple(readings))

    def limited(self, sample: Sample) -> Sample:
        """The clip with the modalities that are given; others count as absent."""
        absent = {modality: getattr(sample, modality)[:0] for modality in MODALITIES if modality not in self.given}
        return replace(sample, **absent) if absent and self.maker else sample

    def told(self, statements: Sequence[str]) -> list[str]:
        """What stands before a clip's words in each reading: all statements, or nothing and then each alone."""
        return [self.gap.join(statements)] if self.settings.integration == "concat" else ["", *statements]

    def told_ids(self, told: str, text: str) -> list[int]:
        """A reading: what is told has room of its own, it never cuts the clip's words."""
        limit = self.settings.prompt.max_text_tokens + len(self.llm.token_ids(told))
        return self.llm.token_ids(told + (self.gap if told else "") + text)[:limit]

    def loss(self, batch: MacBatch) -> Loss:  # type: ignore[override]  # what our own `collate` made
        """Next-token cross-entropy: in perception on the statement, else on the answer, over all readings."""
        if not batch.readings:
            return PromptedLM.loss(self._as_it_describes(), batch)
        parts = [super(MllmMac, self).loss(read) for read in self._each(batch)]
        return Loss(torch.stack([part.total for part in parts]).sum(), sum(part.count for part in parts))

    @torch.no_grad()
    def predict(self, batch: MacBatch) -> Predictions:  # type: ignore[override]
        """As `PromptedLM.predict`; of several readings each clip keeps the one whose likeliest answer is the likeliest."""
        first, *further = readings = self._each(batch)
        if further:
            sure = [self.trie.probabilities(self.trie_scores(r, self.pseudo_tokens(r)[0])).max(1) for r in readings]
            surest = [readings[choice].text_ids[clip] for clip, choice in enumerate(np.argmax(sure, axis=0))]
            first = replace(first, text_ids=surest)
        return super().predict(first)

    def _each(self, batch: MacBatch) -> list[MacBatch]:
        """A batch once per reading, with the pseudo tokens of the clips' own words."""
        tokens, _ = self.pseudo_tokens(batch)
        return [replace(batch, text_ids=read, tokens=tokens) for read in batch.readings]

    def plain(self, llm: FrozenLLM, make_tokens: MakeTokens | None) -> PlainMac:
        return PlainMac(llm, self, make_tokens)

    def _as_it_describes(self) -> MllmMac:
        """This method with the same weights and batches, as it describes: before fine-tuning, and asked for a statement."""
        assert self.describer
        other, llm = copy.copy(self), self.describing_llm
        other.llm, other.ids = llm, replace(self.ids, prompt=llm.token_ids(self.describer.wording.prompt))
        return other

    def knowledge(self, samples: Sequence[Sample]) -> list[list[str]]:
        """What the method tells the LLM of each clip: statements, none where it has nothing to tell. Labels play no part.

        Raises:
            ValueError: the corpus does not know the cues that `knowledge="cue"` asks for.
        """
        kind, tell = self.settings.knowledge, self.describer
        if kind == "none" or tell is None:
            return [[] for _ in samples]
        if self.settings.shuffled:  # of what the model says too: what it was taught to say of that clip
            found = [tell.of_another(sample, "cue" if kind == "cue" else "features", self.given) for sample in samples]
        elif kind == "generated":
            return self._generated([bare(self.limited(sample)) for sample in samples])
        else:
            found = [(tell.cue if kind == "cue" else tell.of_frames)(sample, self.given) for sample in samples]
        return [[words] if words else [] for words in found]

    def _generated(self, samples: Sequence[Sample]) -> list[list[str]]:
        """What the model says of the clips; of each content it says it once."""
        known, clips = self._statements(), {content_digest(sample): sample for sample in samples}
        if self._train is not None and self.module.training and clips.keys() - known.keys():
            train, self._train = self._train, None  # all at once: large batches are three times faster
            self._generated([bare(self.limited(sample)) for sample in train])
        todo = sorted(clips.keys() - known.keys())
        for start in range(0, len(todo), size := self.config.evaluation.batch_size):
            part = {content: clips[content] for content in todo[start : start + size]}
            known.add(dict(zip(part, self._describe(part), strict=True)))
        return [known[content_digest(sample)] for sample in samples]

    @torch.no_grad()
    def _describe(self, clips: Mapping[str, Sample]) -> list[list[str]]:
        """Statements about clips by their content, in the order in which they were said, none empty or said before."""
        settings, asked = self.settings, self._as_it_describes()
        embeds = asked.prompt_embeddings(super().collate([*clips.values()]))
        said: list[dict[str, None]] = [{} for _ in clips]
        for number in range(settings.statements):
            # What a clip's content and the statement's number decide; the first statement is the greedy one.
            seeds = [[*bytes.fromhex(content), number] for content in clips]
            drawn = np.array([np.random.default_rng(seed).random(settings.max_new_tokens) for seed in seeds])
            draws = torch.from_numpy(drawn) if number else None
            lines = generate(asked.llm, embeds, settings.max_new_tokens, settings.top_p, draws)
            for known, line in zip(said, lines, strict=True):
                known |= {line: None} if line else {}
        return [list(known) for known in said]

    def _statements(self) -> StatementCache:
        """The statements of the model as it is now."""
        if self.module.said is None:
            assert self.describer
            settings = self.settings
            decides: list[Any] = [self.frozen.fingerprint, settings.llm.dtype, self.describer.wording.prompt, self.given]
            decides += [settings.prompt.model_dump(), settings.statements, settings.max_new_tokens, settings.top_p]
            decides += [weights_fingerprint(self.module[name]) for name in ("maker", "speech") if name in self.module]
            self.module.said = StatementCache(hashlib.sha256(repr(decides).encode()).hexdigest()[:32], self._folder)
        return self.module.said


class PlainMac(PlainLM):
    """MLLM-MAC, one clip at a time: what is told of it stands before its words, and of several readings the surest counts."""

    def __init__(self, llm: FrozenLLM, method: MllmMac, make_tokens: MakeTokens | None) -> None:
        super().__init__(llm, method.settings, method.task, make_tokens)
        self.method = method

    def readings(self, sample: Sample) -> list[Sample]:
        """The clip as it is seen, once per reading; `inputs` lays out what each is told."""
        told = self.method.told(self.method.knowledge([sample])[0])
        return [replace(self.method.limited(sample), extra={"told": words}) for words in told]

    def text_ids(self, sample: Sample) -> list[int]:
        """What is told and the clip's words, of which alone too long ones are cut."""
        return self.method.told_ids(str(sample.extra.get("told", "")), sample.text)

    def _made(self, sample: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        """From the clip's own words, whatever is told."""
        return super()._made(bare(self.method.limited(sample)))

    def loss(self, sample: Sample) -> Tensor:
        """Eq 9 over all readings."""
        return torch.stack([super(PlainMac, self).loss(reading) for reading in self.readings(sample)]).sum()

    def answer(self, sample: Sample) -> PlainAnswer:
        found = [super(PlainMac, self).answer(reading) for reading in self.readings(sample)]
        return max(found, key=lambda answer: max(answer.probabilities.values()))


def complete(config: RunConfig, corpus: Corpus, cache: Path, changes: Mapping[str, Any]) -> RunConfig:
    """The config as it is; raises FileNotFoundError where it asks for cues that nobody knows."""
    assert isinstance(config.method, MllmMacConfig)
    if config.method.knowledge == "cue" and not corpus.has_known_truth:
        raise FileNotFoundError(
            f"only the generator of a clip knows its cue, and '{corpus.name}' was not generated; profile 'demo' has such clips"
        )
    return config


register(
    MllmMacConfig, MllmMac, row="MLLM-MAC", is_beyond=True, complete=complete,
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
)  # fmt: skip
