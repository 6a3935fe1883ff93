"""Generated corpora with a known answer, and the written language that the tiny LLM is pre-trained on.

Each clip is drawn from one of `generative_models`: its words, and face and voice cues at random times in unit noise. The table
and the noise being known, the posterior over labels is exact, and so is the Bayes-optimal answer for {text only,
face + voice only, all}. In dialogues, each with a mood of its own, the other turns tell part of the answer too, and the
answers for {text, all} of the whole dialogue are exact as well. A result on these corpora shows that the code works and
says nothing about the paper's claims.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np

from cmpta_lib.config import one_of
from cmpta_lib.data.corpus import MODALITIES, Corpus, Sample, Split, Task
from cmpta_lib.data.store import FORMAT, load_corpus, write_corpus
from cmpta_lib.embedded.generative import CueSet, GenerativeModel, generative_models, meld_model, sims_model
from cmpta_lib.files import Damaged

# What names the embedded default's caches: whoever changes what a number stands for raises it, and they are made anew.
RECIPE, TINY_RECIPE = 3, 2  # generated clips and text; anything else that changes the tiny models' weights
DOCUMENTS = 16_000  # that a tiny model is pre-trained on, each read once: 400 steps of 40
SPLIT_SIZES = {"train": 3200, "valid": 320, "test": 640}
ABSENT_SHARE = 0.03  # of clips without vision, and of clips without audio: absence is a real case
SPEAKERS = ("Anna", "Ben", "Clara", "David", "Emma", "Frank")
INERTIA = 0.6  # chance that a speaker keeps the emotion of their previous turn in a dialogue
FACE, VOICE = 1, 2  # seeds of the two modalities' patterns
OTHER_LABELS = 0.5  # of the English pages of the tiny LLM's reading: they ask about other sets of emotion words
MOOD = 0.5  # chance that an emotion which is not kept is the dialogue's own

# Other sets of emotion words that the field asks about, in alphabetical order as the library writes a set that is not
# MELD's; behind each word the one of MELD's seven that it is nearest to, where that is another.
_OTHER_SETS: tuple[dict[str, str], ...] = tuple(
    {word: near or word for word, _, near in (pair.partition("=") for pair in words.split())}
    for words in (
        "anger disgust fear happiness=joy sadness surprise",
        "angry=anger happy=joy neutral sad=sadness",
        "angry=anger excited=surprise frustrated=disgust happy=joy neutral sad=sadness",
        "anger boredom=neutral disgust fear happiness=joy sadness",
        "afraid=fear amazed=surprise angry=anger calm=neutral disgusted=disgust happy=joy sad=sadness",
        "anger anticipation=surprise disgust fear joy sadness surprise trust=neutral",
        "amused=joy angry=anger content=neutral disgusted=disgust excited=surprise sad=sadness scared=fear tired=neutral",
        "angry=anger ashamed=sadness bored=neutral calm=neutral disgusted=disgust happy=joy hurt=sadness proud=joy "
        "startled=surprise terrified=fear",
    )
)


def samples(source: GenerativeModel, split: str, size: int, seed: int = 0) -> Iterator[Sample]:
    """Draw a split: every clip with its true cue windows (frames, -1 = none) and Bayes-optimal answers in `extra`.

    In dialogues also with the best answers from all of its clips: `bayes_context`, from words `bayes_text_context`.
    """
    rng = np.random.default_rng([seed, list(generative_models()).index(source.name), list(SPLIT_SIZES).index(split)])
    prior = source.joint.sum((0, 1, 2))
    for dialogue, members in groupby(_alone(source, split, size, rng), key=lambda drawn: drawn[0].dialogue):
        if dialogue is None:
            yield from (clip for clip, _, _ in members)
            continue
        clips, *known = zip(*members, strict=True)
        speakers = [clip.speaker for clip in clips]
        answers = [source.decide(in_dialogue(speakers, np.array(joint), prior)).tolist() for joint in known]
        for clip, text, everything in zip(clips, *answers, strict=True):
            best = {"bayes_text_context": float(text), "bayes_context": float(everything)}
            yield replace(clip, extra={**clip.extra, **best})


def _alone(
    source: GenerativeModel, split: str, size: int, rng: np.random.Generator
) -> Iterator[tuple[Sample, np.ndarray, np.ndarray]]:
    """Each clip with two joint probabilities of the label and what is known, (labels,): its words; all of it."""
    for number, (label, speaker, dialogue) in enumerate(_labels(source, split, size, rng)):
        given_label = source.joint[..., label] / source.joint[..., label].sum()
        words, face, voice = np.unravel_index(rng.choice(given_label.size, p=given_label.ravel()), given_label.shape)
        vision, face_window, face_likelihood = _clip(source.face, int(face), rng, FACE)
        audio, voice_window, voice_likelihood = _clip(source.voice, int(voice), rng, VOICE)
        seen = np.einsum("cfvy,f,v->cy", source.joint, face_likelihood, voice_likelihood)
        known = {"text": source.joint[words].sum((0, 1)), "face_voice": seen.sum(0), "all": seen[words]}
        truth: dict[str, float | int | str] = {f"bayes_{key}": float(source.decide(p[None])[0]) for key, p in known.items()}
        truth |= {"face": source.face.values[face], "face_start": face_window[0], "face_stop": face_window[1]}
        truth |= {"voice": source.voice.values[voice], "voice_start": voice_window[0], "voice_stop": voice_window[1]}
        truth |= {"words": int(words)}
        text, value = source.sentence(int(words), rng), source.label_values[label].item()
        yield Sample(f"{split}_{number:05d}", text, audio, vision, value, speaker, dialogue, truth), known["text"], known["all"]


def in_dialogue(speakers: Sequence[str | None], joint: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """(turns, labels) joint probabilities from each turn of a dialogue alone -> posteriors from all of them, rows sum to 1.

    Given the mood, speakers are independent chains; forward-backward for each of the moods, then their weighted mean.
    """
    fresh = MOOD * np.eye(len(prior)) + (1 - MOOD) * prior  # (moods, labels): an emotion that is not kept
    likelihoods, log_weight = joint / prior, np.log(prior)
    ahead, back = np.empty((len(joint), *fresh.shape)), np.ones((len(joint), *fresh.shape))  # (turns, moods, labels)
    for speaker in dict.fromkeys(speakers):
        turns = [turn for turn, name in enumerate(speakers) if name == speaker]
        chance = fresh
        for turn in turns:
            ahead[turn] = chance * likelihoods[turn]
            total = ahead[turn].sum(1, keepdims=True)
            ahead[turn] /= total
            log_weight = log_weight + np.log(total[:, 0])
            chance = INERTIA * ahead[turn] + (1 - INERTIA) * fresh
        for turn, after in reversed(list(pairwise(turns))):
            later = back[after] * likelihoods[after]
            back[turn] = INERTIA * later + (1 - INERTIA) * (fresh * later).sum(1, keepdims=True)
            back[turn] /= back[turn].sum(1, keepdims=True)
    both, weight = ahead * back, np.exp(log_weight - log_weight.max())
    return np.einsum("m,tmy->ty", weight / weight.sum(), both / both.sum(-1, keepdims=True))


def _labels(
    source: GenerativeModel, split: str, size: int, rng: np.random.Generator
) -> Iterator[tuple[int, str | None, str | None]]:
    """Label indices: independent clips, or dialogues that have a mood, in which a speaker tends to stay in an emotion.

    Mood and inertia leave every single utterance's distribution at the table's prior, so that the Bayes-optimal answer
    from one utterance alone is still the table's.
    """
    prior = source.joint.sum((0, 1, 2))
    if source.task.kind == "regression":
        for _ in range(size):
            yield int(rng.choice(len(prior), p=prior)), None, None
        return
    done = dialogue = 0
    while done < size:
        last: dict[str, int] = {}
        mood = int(rng.choice(len(prior), p=prior))
        cast = rng.choice(SPEAKERS, size=rng.integers(2, 5), replace=False)
        for _ in range(min(int(rng.integers(4, 15)), size - done)):
            speaker = str(rng.choice(cast))
            if speaker not in last or rng.random() >= INERTIA:
                last[speaker] = mood if rng.random() < MOOD else int(rng.choice(len(prior), p=prior))
            done += 1
            yield last[speaker], speaker, f"{split}_{dialogue:04d}"
        dialogue += 1


@lru_cache
def _patterns(dim: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Orthonormal cue directions (4, F), and the raw scale and offset (F,) that hide them, as real descriptors differ."""
    rng = np.random.default_rng([seed, dim])
    directions = np.linalg.qr(rng.standard_normal((dim, 4)))[0].T
    return directions, 10.0 ** rng.uniform(-2, 2, dim), rng.uniform(-3, 3, dim)


def _clip(cues: CueSet, value: int, rng: np.random.Generator, seed: int) -> tuple[np.ndarray, tuple[int, int], np.ndarray]:
    """Frames (T, F) float32, the cue's window [start, stop), and the exact likelihood of every cue value (values,).

    An absent clip (T = 0) says nothing: all ones.
    """
    directions, scale, offset = _patterns(cues.dim, seed)
    if rng.random() < ABSENT_SHARE:
        return np.zeros((0, cues.dim), np.float32), (-1, -1), np.ones(len(cues.values))
    length = int(rng.integers(cues.frames[0], cues.frames[1] + 1))
    frames = rng.standard_normal((length, cues.dim))
    onsets, window = length - 2 * cues.half + 1, (-1, -1)
    if cues.halves[value]:
        start = int(rng.integers(onsets))
        window = (start, start + 2 * cues.half)
        frames[start : window[1]] += cues.amplitude * directions[np.repeat(cues.halves[value], cues.half)]
    return (frames * scale + offset).astype(np.float32), window, _likelihoods(frames, cues, directions)


def _likelihoods(frames: np.ndarray, cues: CueSet, directions: np.ndarray) -> np.ndarray:
    """Frames (T, F) before scale and offset -> (values,) likelihood of every cue value, the largest 1.

    A cue adds `amplitude` times a unit direction to each of its frames, so against the clip without a cue the log
    likelihood ratio of a cue at onset o is the sum over its frames of amplitude * <x, u> - amplitude^2 / 2; onsets are
    equally likely. Likelihoods are relative to the clip without a cue.
    """
    onsets = len(frames) - 2 * cues.half + 1
    evidence = cues.amplitude * frames @ directions.T - cues.amplitude**2 / 2  # (T, 4)
    sums = np.concatenate([np.zeros((1, 4)), evidence.cumsum(0)])
    half_sums = sums[cues.half :] - sums[: -cues.half]  # (T - half + 1, 4): each half starting at each frame
    log_likelihood = np.zeros(len(cues.values))
    for k, order in enumerate(cues.halves):
        if order:
            ratios = half_sums[:onsets, order[0]] + half_sums[cues.half : cues.half + onsets, order[1]]
            log_likelihood[k] = np.logaddexp.reduce(ratios) - np.log(onsets)
    return np.exp(log_likelihood - log_likelihood.max())


def cue_likelihoods(stored: np.ndarray, cues: CueSet, seed: int) -> np.ndarray:
    """Stored frames (T, F) float32 -> (values,) likelihood of every cue value, as `_clip` had it before rounding."""
    if not len(stored):
        return np.ones(len(cues.values))
    directions, scale, offset = _patterns(cues.dim, seed)
    return _likelihoods((stored.astype(np.float64) - offset) / scale, cues, directions)


@dataclass(frozen=True)
class Document:
    """One page of the tiny LLM's reading: an utterance, perhaps with stage directions, the question and its answer."""

    task: Task
    directions: str
    text: str
    label: float | int


def documents(number: int, seed: int = 0, script_share: float = 0.5) -> Iterator[Document]:
    """Written language only: utterances labelled by what their words, and any written stage directions, say.

    The labels are drawn from the source's table given just what is written, so a reader of these pages can answer from
    text as well as text allows, and knows what "(frowning)" means, but has met neither a face nor a voice. Part of the
    English pages ask about other sets of emotion words in other orders, as a reader of the world at large would know them.
    """
    rng = np.random.default_rng([seed, 99])
    choices: Sequence[GenerativeModel] = (sims_model(), meld_model())
    for _ in range(number):
        source = choices[int(rng.integers(len(choices)))]
        flat = rng.choice(source.joint.size, p=source.joint.ravel())
        words, face, voice, label = (int(i) for i in np.unravel_index(flat, source.joint.shape))
        written = source.directions(face, voice) if rng.random() < script_share else ""
        value, task = source.label_values[label].item(), source.task
        if task.kind == "classification" and rng.random() < OTHER_LABELS:
            task, value = _other_labels(task.labels[label], rng) or (task, value)
        yield Document(task, written, source.sentence(words, rng), value)


def _other_labels(emotion: str, rng: np.random.Generator) -> tuple[Task, int] | None:
    """A question about another set of emotion words and the number of the right one; None where the set lacks it."""
    words = _OTHER_SETS[rng.integers(len(_OTHER_SETS))]
    near = [number for number, meaning in enumerate(words.values()) if meaning == emotion]
    return (Task("classification", "en", tuple(words)), int(rng.choice(near))) if near else None


def tiny_folder(cache: Path, documents: int | None = None, name: str = "tiny") -> Path:
    """Where the tiny model of this name lies, or would lie; fewer `documents` than usual make a worse one (smoke runs)."""
    return cache / f"{name}-{RECIPE}.{TINY_RECIPE}-{documents or DOCUMENTS}"


def embedded_corpus(name: str, cache: Path, sizes: Mapping[str, int] = SPLIT_SIZES, seed: int = 0) -> Corpus:
    """The generated corpus `name`, written into `cache` when it is not there yet.

    Raises:
        ValueError: no such corpus; the message lists them.
        Damaged: as `load_corpus`, or the folder of this name holds another corpus.
        OSError: the cache cannot be written; names it and says what to do.
    """
    source = generative_models()[one_of("embedded corpus", name, generative_models())]
    tag = "-".join(str(n) for n in (*sizes.values(), seed, RECIPE, FORMAT))
    folder = cache / f"{name}-{tag}"
    if not folder.exists():
        splits = {split: samples(source, split, size, seed) for split, size in sizes.items()}
        write_corpus(folder, name=name, task=source.task, splits=splits, generated=True)
    corpus = load_corpus(folder, name=name)
    if not corpus.generated or any(_differs(corpus.splits[split], source, size, seed) for split, size in sizes.items()):
        raise Damaged(f"{folder} holds other clips than {name} has; remove the folder {folder} and call again")
    return corpus


def _differs(split: Split, source: GenerativeModel, size: int, seed: int) -> bool:
    """Whether a stored split is not the generator's: by its size, and its first clip made again (10 ms)."""
    made, stored = next(samples(source, split.name, size, seed)), split[0]
    said = [(one.text, one.label, one.speaker, one.audio.shape, one.vision.shape) for one in (made, stored)]
    is_alike = len(split) == size and said[0] == said[1]
    return not (is_alike and all(np.allclose(getattr(made, one), getattr(stored, one), 1e-3, 1e-3) for one in MODALITIES))
