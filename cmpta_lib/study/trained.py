"""The trained run that answers clips of one's own, quick or plain, and the shortest way to one."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from cmpta_lib import files, registry
from cmpta_lib.base import Method
from cmpta_lib.config import PAPER_SEEDS, nearest, one_of
from cmpta_lib.data.corpus import MODALITIES, Inputs, Sample, Task, check_sample, dialogues_of, shown
from cmpta_lib.fast.llm import packs
from cmpta_lib.fast.packing import Chained, Stream, Streams
from cmpta_lib.fast.prompted import PromptedLM, TokenMaker
from cmpta_lib.files import Damaged, expanded, runs_folder
from cmpta_lib.llm.generation import sharing
from cmpta_lib.method.adapter import CMPTAdapter
from cmpta_lib.method.prompted import MakeTokens, PlainLM
from cmpta_lib.runs.load import device, resources_in
from cmpta_lib.runs.store import CLIPS, CONFIG, DONE, WEIGHTS, Run, open_run
from data_prep.asked import Answer, clips_in
from data_prep.features import LONGEST_S

PUBLISHED = "published:"  # what the name of a published run begins with
MOST_FRAMES = 1 << 18  # of a batch with its padding: 64 clips of 40 s of sound and face, or seven of five minutes


class TrainedRun:
    """A finished run, ready for clips: `predict` answers them, `attention` shows where one was looked at.

    Attributes:
        run: its config, records and folder.
        inputs: the task, and the widths that clips must have.
        method: the trained method, in eval mode.
    """

    def __init__(self, run: Run, inputs: Inputs, method: Method) -> None:
        self.run, self.inputs, self.method = run, inputs, method

    def __repr__(self) -> str:
        config, widths, task = self.run.config, self.inputs.widths, self.inputs.task
        answers = f"{len(task.labels)} classes" if task.labels else "scores from {:g} to {:g}".format(*task.score_range)
        of = f"sound (T, {widths['audio']}) and face (T, {widths['vision']})"
        return f"<{config.method.name} trained on {config.data.name}, seed {config.seed}: words, {of} -> {answers}>"

    def predict(
        self, what: Sample | Iterable[Sample] | str | Path, *, strict: bool = True, text: str = "",
        transcribe: str | Path = "", longest: float = LONGEST_S, jobs: int = 1,
    ) -> list[Answer]:  # fmt: skip
        """Answer clips, in order; labels are not looked at and may be None, an absent modality is (0, F) or None.

        Of recordings the same features are made as of those that the run was trained on, by the same code. A clip in a file
        that cannot be answered stops no other: its answer's `problem` says why.

        Args:
            what: samples, or one; or where clips lie: a recording, a folder of some (their words in `labels.csv`, if any),
                what `cmpta data clips` made of a folder, or a pickle in MELD's public format.
            strict: False also answers clips of which the method can read nothing, and is silent about texts that are cut.
            text: what is said in the one recording.
            transcribe: Whisper model, by name or folder, that hears recordings without given words; a run that was trained
                on recognised words has its own do so.
            longest, jobs: seconds that a recording may be long; recordings at a time.
        Raises:
            ValueError: the files hold other features than the run reads; or a sample is not as the training corpus' were, or
                the method could only say the same of it whatever it holds; names it, the field, and what was expected.
            OSError, ImportError: nothing is there, or what makes the features is not on this machine; says what to do.
        """
        if isinstance(what, str | Path):
            about = self.inputs, f"run {self.run.folder.name}", text, expanded(transcribe), longest, jobs
            found = list(self._answered(clips_in(Path(expanded(what)), *about), strict))
        elif text or transcribe:
            raise ValueError("text= and transcribe= are about recordings: a Sample holds its words")
        else:
            samples = [what] if isinstance(what, Sample) else what
            if not isinstance(samples, Iterable):
                raise ValueError(f"expected samples or where clips lie, not {shown(samples)}")
            found = self._all([self._checked(sample, f"sample {n}", strict) for n, sample in enumerate(samples)])
        if strict and (cut := [answer.id for answer in found if "texts_cut" in answer.repairs]):
            said = f"{len(cut)} of {len(found)} texts are longer than this run reads, and were cut at the end"
            warnings.warn(f"{said}: clip {shown(cut[0])}{' and others' * (len(cut) > 1)}", stacklevel=2)
        return found

    def _answered(self, clips: Iterator[tuple[Answer, Sample | ValueError]], strict: bool) -> Iterator[Answer]:
        """Answers to clips of files, some at a time, so that no folder must fit into memory."""
        while some := list(islice(clips, self.run.config.evaluation.batch_size if self.method.unit == "clip" else None)):
            good: dict[int, tuple[Sample, Counter[str]]] = {}
            found = [about for about, _ in some]
            for place, (about, clip) in enumerate(some):
                try:
                    if isinstance(clip, ValueError):
                        raise clip
                    if strict and not (len(clip.audio) or len(clip.vision) or clip.text.strip()):
                        raise ValueError(f"{about.file}: {clip.id} has neither words nor sound nor face to answer by")
                    good[place] = self._checked(clip, about.file, strict)
                except ValueError as error:
                    found[place] = replace(about, problem=" ".join(str(error).split()))
            for place, answer in zip(good, self._all([*good.values()]), strict=True):
                about = found[place]
                found[place] = replace(answer, file=about.file, notes=about.notes, recognised=about.recognised)
            yield from found

    def _all(self, clips: Sequence[tuple[Sample, Counter[str]]]) -> list[Answer]:
        """Answers to checked clips, batch by batch."""
        longest = max((len(sample.audio) + len(sample.vision) for sample, _ in clips), default=0)
        size = max(1, min(self.run.config.evaluation.batch_size, MOST_FRAMES // max(1, longest)))
        units = dialogues_of(None if self.method.unit == "clip" else sample.dialogue for sample, _ in clips)
        found: dict[int, Answer] = {}
        for start in range(0, len(units), size):
            places = [place for unit in units[start : start + size] for place in unit]
            found |= zip(places, self._answers([clips[place] for place in places]), strict=True)
        return [found[place] for place in range(len(clips))]

    def _answers(self, clips: Sequence[tuple[Sample, Counter[str]]]) -> list[Answer]:
        """Answers to one batch of checked clips."""
        batch, task, answers = self.method.collate([sample for sample, _ in clips]), self.inputs.task, []
        found = self.method.predict(batch)
        for sample, repairs in clips if batch.issues.get("texts_cut") else ():
            repairs.update(texts_cut=self.method.collate([sample]).issues["texts_cut"])
        for place, (sample, repairs) in enumerate(clips):
            number, reply = float(found.values[place]), found.replies[place]
            value = None if np.isnan(number) else int(number) if task.kind == "classification" else task.to_range(number)
            text = _text(task, reply or "") or ("unparsable" if value is None else f"{value:g}")
            chances = [] if found.probabilities is None else found.probabilities[place].tolist()
            names = [_text(task, name) for name in found.answers] if chances else []
            read, known = self.inputs.features or MODALITIES, {"audio": "sound", "vision": "face"}
            missing = [name for one, name in known.items() if one in read and not len(getattr(sample, one))]
            missing += ["words"] * (not sample.text.strip())
            likely = dict(zip(names, chances, strict=True))
            answers.append(Answer(sample.id, value, text, likely, +repairs, words=sample.text, missing=tuple(missing)))
        return answers

    def attention(self, sample: Sample) -> dict[str, np.ndarray]:
        """Attention maps of one clip by name, (heads, queries, keys); CMPTA's are the pairs of eq 8, such as "t1".

        Raises:
            NotImplementedError: the method has none.
            ValueError: as `predict`.
        """
        checked, _ = self._checked(sample, "sample 0")
        maps = self.method.attention(self.method.collate([checked]))
        return {name: weights[0].float().cpu().numpy() for name, weights in maps.items()}

    def _checked(self, sample: Sample, where: str, strict: bool = True) -> tuple[Sample, Counter[str]]:
        """A sample as a conversion would store it, and what had to be repaired; what label it bears is no matter."""
        task, widths, like = self.inputs.task, self.inputs.widths, "in the clips that this run was trained on"
        repairs: Counter[str] = Counter()
        bare = replace(sample, label=None) if isinstance(sample, Sample) else sample
        good = check_sample(bare, where, task=task, widths=widths, repairs=repairs, labelled=False, like=like)
        if strict:
            self.method.check(good)
        return good, repairs


def load(run: str | Path, llm: str | Path = "") -> TrainedRun:
    """Open a finished run by its folder, wherever it was copied to, by its name in the runs folder, or as "published:sims" or
    "published:meld": CMPTA's runs that come with the repository, LLM included.

    Args:
        llm: folder of the LLM that the run was trained with, or a folder of runs or caches where it lies; "" looks
            beside the run, in this machine's runs folder and, for a published LLM, in the hub's local cache.
    Raises:
        FileNotFoundError: no such run, it is not finished, or its LLM is not on this machine; says what to do.
        Damaged: a file of the run or of its LLM is not what was written, or another version wrote it; names it.
        ValueError: its method is not registered, or `llm` is another LLM.
    """
    registry.load_plugins()
    found = open_run(_folder(run))
    inputs = Inputs.from_json(found.path(CLIPS).read_text(encoding="utf-8"))
    places = [Path(expanded(llm)) / below for below in ("", "llm", "cache/llm")] if str(llm) else []
    roots = (found.folder.resolve().parent, runs_folder(), runs_folder() / "smoke")
    method = registry.build(found.config, inputs, resources_in([*places, *(root / "cache" / "llm" for root in roots)]))
    weights = found.path(WEIGHTS)
    try:
        method.module.load_state_dict(load_file(weights, device=str(device())))
    except RuntimeError as error:  # the config is today's, so only the method's code can have changed
        said = f"does not fit the method '{found.config.method.name}' of this version ({' '.join(str(error).split())[:150]})"
        raise Damaged(f"{weights}: {said}; train it again, or use the version that wrote it") from error
    method.module.eval()
    return TrainedRun(found, inputs, method)


def _folder(run: str | Path) -> Path:
    name, root = expanded(run), runs_folder()
    if name.startswith(PUBLISHED):
        return _published(name.removeprefix(PUBLISHED))
    places = [Path(name), root / name, root / "smoke" / name] if name else []
    for place in places:
        if any((place / name).is_file() for name in (CONFIG, DONE, WEIGHTS)):
            return place
    hint = nearest(name, [path.name for path in root.glob("*-*")])
    raise FileNotFoundError(f"no run '{name}'{hint}: expected a run's folder, or the name of one in {root}; see cmpta runs")


def _published(name: str) -> Path:
    """Where the published run of CMPTA on the corpus of this name lies, that of the smallest seed."""
    folders: dict[str, list[Path]] = {}
    for folder in files.PUBLISHED_RUNS.glob("*-*"):
        folders.setdefault(folder.name.removeprefix("embedded-").rpartition("-")[0], []).append(folder)
    if name not in folders:
        known = " or ".join(PUBLISHED + one for one in sorted(folders)) or f"runs in {files.PUBLISHED_RUNS}"
        raise FileNotFoundError(f"no published run '{name}'{nearest(name, folders)}: expected {known}")
    runs = [found for found in map(open_run, folders[name]) if found.config.method.name == "cmpta"]
    return min(runs, key=lambda found: found.config.seed).folder


def _text(task: Task, reply: str) -> str:
    """A reply as its reader knows it: the class's name, or the score in the owner's range."""
    if task.labels and reply.isdecimal():
        return task.labels[int(reply)]
    return f"{task.to_range(float(reply)):g}" if task.is_scaled and reply else reply


def train(
    data: str | Path,
    *,
    method: str = "cmpta",
    seed: int = PAPER_SEEDS[0],
    changes: Mapping[str, Any] | None = None,
    profile: str = "demo",
    llm: str | Path = "",
) -> TrainedRun:
    """Train one run, or find it trained already, and open it.

    Args:
        data: folder of `<name>_{train,valid,test}.pkl` in MELD's public format, or the key of one of the profile's
            corpora, "sims" or "meld".
        method: a name in `registry.ENTRIES`.
        changes: config fields to set, such as `{"training.epochs": 10, "method.summary": "max"}`.
        profile: whose settings hold where `changes` says nothing.
        llm: another backbone than the profile's.
    Raises:
        ValueError, OSError: as `Study`; the files do not conform, the backbone is not here, or the method is unknown or has
            not the fields that `changes` sets.
        RunsFailed: the run failed; says why.
    """
    from cmpta_lib.study.plan import Row  # what a loaded run answers without
    from cmpta_lib.study.study import Study

    own = str(data) not in ("sims", "meld")
    study = Study(profile, [seed], data if own else "", llm=llm, changes=changes)
    key, row = "data" if own else str(data), Row(method, one_of("method", method, registry.ENTRIES))
    study.check_changes([(key, row)])
    (run,) = study.ensure(study.runs(key, row))
    return load(run.folder)


# --- the same run, plain: one clip at a time, as the paper writes it ---------------------------------------------------


def plain(run: TrainedRun | str | Path, llm: str | Path = "") -> PlainLM:
    """The run as `cmpta_lib/method` writes it: slow, and what the quick one must equal.

    Its weights are the run's own. CMPTA's adapter is plain too; another token maker is given one clip at a time. A method
    that does more than answer one prompt says itself what that is: `method.plain(llm, token maker)`.

    Args:
        run: a loaded run, or its folder or name as `load` takes it, and `llm` likewise.
    Raises:
        ValueError: its method does not answer by prompting an LLM, so that it has no plain form.
        FileNotFoundError, Damaged: as `load`.
    """
    trained = run if isinstance(run, TrainedRun) else load(run, llm)
    method, form = trained.method, getattr(trained.method, "plain", None)
    if not isinstance(method, PromptedLM) or not (form or type(method).predict is PromptedLM.predict):
        raise ValueError(f"run {trained.run.folder.name}: its method '{trained.run.config.method.name}' has no plain form")
    own = copy.copy(method.llm)
    if packs(own.model):  # the same weights, with transformers' own attention whatever the quick one uses
        own.model = sharing(own.model)
        own.model.set_attn_implementation("sdpa")
    tokens = _token_maker(method, trained)
    found: PlainLM = form(own, tokens) if form else PlainLM(own, method.settings, method.task, tokens)
    return found


def _token_maker(method: PromptedLM, trained: TrainedRun) -> MakeTokens | None:
    maker, widths = method.maker, trained.inputs.widths
    if maker is None:
        return None
    if not isinstance(maker, CMPTAdapter):
        return partial(_one_clip, maker)
    with torch.device("meta"):  # neither memory nor random numbers: the weights are the run's
        adapter = CMPTAdapter(maker.config, widths["audio"], widths["vision"], method.llm.dim, method.llm.embedding_norm)
    adapter.load_state_dict(maker.state_dict(), assign=True)
    return adapter.eval()


def _one_clip(maker: TokenMaker, *clip: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    text, audio, vision = (Stream(one[None], Chained.of([len(one)], len(one), one.device)) for one in clip)
    tokens, maps = maker(Streams(text, audio, vision, wants_maps=True))
    return tokens[0], {name: weights[0] for name, weights in maps.items()}
