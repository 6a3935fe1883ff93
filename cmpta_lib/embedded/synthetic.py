"""Generated corpora with a known answer, and the written language that the tiny LLM is pre-trained on.

Each clip is drawn from a small world: a joint table P(words, face, voice, label). The words name their class, the face
and the voice show theirs as a short cue at a random time in unit noise. Face and voice cues come in pairs that hold the
same frames in opposite order (smile = p then q, frown = q then p), so a bag of frames cannot tell them apart. The table
and the noise being known, the posterior over labels is exact, and so is the Bayes-optimal answer for {text only,
face + voice only, all}. A result on these corpora shows that the code works and says nothing about the paper's claims.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock

from cmpta_lib import paper
from cmpta_lib.data.corpus import Corpus, Sample, Task
from cmpta_lib.data.store import load_corpus, write_corpus

RECIPE = 1  # raise when generated data or text change: caches are named by it
SPLIT_SIZES = {"train": 3200, "valid": 320, "test": 640}
ABSENT_SHARE = 0.03  # of clips without vision, and of clips without audio: absence is a real case
SPEAKERS = ("Anna", "Ben", "Clara", "David", "Emma", "Frank")
INERTIA = 0.3  # chance that a speaker keeps the emotion of their previous turn in a dialogue

_SIMS_TOPICS = (
    "这部电影", "今天的天气", "你做的菜", "这个方案", "他的演讲", "这家餐厅", "新来的同事", "昨天的比赛", "这本书",
    "那首歌", "这次旅行", "你的发型", "这份礼物", "老师的课", "孩子的画", "这套房子",
)  # fmt: skip
_SIMS_PHRASES = (
    ("真是太糟糕了", "简直烂透了", "让人受不了", "差得离谱"),
    ("不太好", "有点让人失望", "还差一些", "没什么意思"),
    ("就那么回事", "我已经看过了", "跟以前一样", "大家都知道"),
    ("还不错", "挺好的", "比较让人满意", "有点意思"),
    ("真是太好了", "简直棒极了", "让人特别开心", "完美得很"),
)
_SIMS_OPENERS = ("", "", "我觉得", "说实话，", "你看，", "哎，")
_MELD_TOPICS = (
    "the party", "your new job", "that movie", "the dinner", "my sister", "the apartment", "this letter", "the wedding",
    "our trip", "the coffee here", "his phone call", "the meeting", "that dress", "the game last night",
)  # fmt: skip
_MELD_PHRASES = (
    ("I was talking about {}.", "So we can go over {} later.", "Let me tell you about {}.", "Maybe it is about {}."),
    ("Wait, what happened with {}?", "Oh my God, {}!", "You are kidding, {}?", "I had no idea about {}!"),
    ("I can not take {} anymore.", "Everything went wrong with {}.", "Why did you do that to {}?", "I hate {}."),
    ("I really love {}!", "That is so great about {}!", "I am so happy with {}.", "{} was just wonderful!"),
)
_MELD_OPENERS = ("", "", "Well, ", "Okay, ", "Look, ", "Hey, ")


# Other sets of emotion words that the field asks about, in alphabetical order as the library writes a set that is not
# MELD's; each word stands beside the one of MELD's seven that it is nearest to.
_OTHER_SETS: tuple[dict[str, str], ...] = (
    {"anger": "anger", "disgust": "disgust", "fear": "fear", "happiness": "joy", "sadness": "sadness", "surprise": "surprise"},
    {"angry": "anger", "happy": "joy", "neutral": "neutral", "sad": "sadness"},
    {"angry": "anger", "excited": "surprise", "frustrated": "disgust", "happy": "joy", "neutral": "neutral", "sad": "sadness"},
    {"anger": "anger", "boredom": "neutral", "disgust": "disgust", "fear": "fear", "happiness": "joy", "sadness": "sadness"},
    {"afraid": "fear", "amazed": "surprise", "angry": "anger", "calm": "neutral", "disgusted": "disgust", "happy": "joy",
     "sad": "sadness"},
    {"anger": "anger", "anticipation": "surprise", "disgust": "disgust", "fear": "fear", "joy": "joy", "sadness": "sadness",
     "surprise": "surprise", "trust": "neutral"},
    {"amused": "joy", "angry": "anger", "content": "neutral", "disgusted": "disgust", "excited": "surprise", "sad": "sadness",
     "scared": "fear", "tired": "neutral"},
    {"angry": "anger", "ashamed": "sadness", "bored": "neutral", "calm": "neutral", "disgusted": "disgust", "happy": "joy",
     "hurt": "sadness", "proud": "joy", "startled": "surprise", "terrified": "fear"},
)  # fmt: skip


@dataclass(frozen=True)
class CueSet:
    """The cues of one modality: values in order, each shown as two halves of `half` frames (empty = nothing shown)."""

    values: tuple[str, ...]  # as a script would write them, in the corpus's language
    halves: tuple[tuple[int, ...], ...]  # indices of the two directions, in order of time
    dim: int  # F
    frames: tuple[int, int]  # shortest and longest clip
    half: int  # frames per half
    amplitude: float  # norm of a half's pattern; noise has standard deviation 1 in each feature


@dataclass(frozen=True)
class World:
    """A joint table over words, face, voice and label, and how each of them is shown."""

    name: str
    task: Task
    joint: np.ndarray  # (words, faces, voices, labels), sums to 1
    label_values: np.ndarray  # (labels,) scores in [-1, 1], or class indices
    openers: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]
    topics: tuple[str, ...]
    face: CueSet
    voice: CueSet

    def sentence(self, words: int, rng: np.random.Generator) -> str:
        """One utterance of a class of words; nothing but the phrase depends on the class."""
        topic, phrase = rng.choice(self.topics), rng.choice(self.phrases[words])
        text = phrase.format(topic) if "{}" in phrase else topic + phrase
        return str(rng.choice(self.openers)) + text

    def directions(self, face: int, voice: int) -> str:
        """Face and voice as a script's stage directions write them; what is not shown is not written."""
        brackets = "（{}）" if self.task.language == "zh" else "({}) "
        shown = (self.face.values[face], self.voice.values[voice])
        return "".join(brackets.format(value) for value in shown if value)

    def decide(self, posterior: np.ndarray) -> np.ndarray:
        """(N, labels) posterior -> (N,) answers: its median for a score (least MAE), its mode for a class."""
        if self.task.kind == "classification":
            return self.label_values[posterior.argmax(1)]
        cumulative = posterior.cumsum(1) / posterior.sum(1, keepdims=True)
        return self.label_values[(cumulative < 0.5 - 1e-12).sum(1)]


@lru_cache
def sims_world() -> World:
    """Chinese clips scored in [-1, 1]; praise with a frown and a flat voice is sarcasm and turns the score round."""
    mood_given_words = np.array(
        [[0.60, 0.2, 0.20], [0.50, 0.2, 0.3], [0.35, 0.3, 0.35], [0.40, 0.2, 0.4], [0.40, 0.1, 0.5]]
    )
    cue_given_mood = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])  # negative, none, positive
    grid = np.round(np.arange(-1, 1.01, 0.2), 1)
    joint = np.zeros((5, 3, 3, len(grid)))
    for words, face, voice in np.ndindex(5, 3, 3):
        chance = sum(mood_given_words[words, m] * cue_given_mood[m, face] * cue_given_mood[m, voice] for m in range(3))
        polarity, face_sign, voice_sign = (words - 2) / 2, face - 1, voice - 1
        score = 0.3 * polarity + 0.4 * face_sign + 0.3 * voice_sign
        if polarity > 0 and face_sign < 0 and voice_sign < 0:
            score = -0.7 - 0.2 * polarity
        joint[words, face, voice] = 0.2 * chance * _rounded_normal(score, 0.28, grid)
    order = ((0, 1), (), (1, 0))
    return World(
        name="embedded-sims",
        task=Task("regression", "zh"),
        joint=joint,
        label_values=grid,
        openers=_SIMS_OPENERS,
        phrases=_SIMS_PHRASES,
        topics=_SIMS_TOPICS,
        face=CueSet(("皱眉", "", "微笑"), order, dim=177, frames=(28, 44), half=3, amplitude=12.0),
        voice=CueSet(("冷淡", "", "欢快"), order, dim=25, frames=(28, 44), half=3, amplitude=8.0),
    )


@lru_cache
def meld_world() -> World:
    """English dialogues, MELD's seven emotions; kind words with a wrinkled nose and a low voice are disgust."""
    prior = np.array([0.28, 0.14, 0.09, 0.13, 0.16, 0.08, 0.12])  # neutral surprise fear sadness joy disgust anger
    words = np.array([[9, 1, 0, 0], [1, 8, 0, 1], [2, 5, 3, 0], [2, 0, 8, 0], [1, 1, 0, 8], [1, 0, 4, 5], [1, 2, 6, 1]])
    # faces: none, smile, frown, raised brows, wrinkled nose; voices: none, bright, low, trembling, loud
    faces = np.array(
        [
            [14, 2, 1, 2, 1],
            [2, 2, 0, 15, 1],
            [2, 0, 4, 13, 1],
            [4, 0, 15, 0, 1],
            [3, 16, 0, 1, 0],
            [2, 1, 1, 0, 16],
            [2, 0, 13, 0, 5],
        ]
    )
    voices = np.array(
        [
            [14, 2, 2, 1, 1],
            [3, 12, 0, 2, 3],
            [2, 0, 1, 16, 1],
            [3, 0, 13, 4, 0],
            [3, 14, 0, 0, 3],
            [3, 0, 14, 1, 2],
            [2, 0, 1, 0, 17],
        ]
    )
    words, faces, voices = (table / table.sum(1, keepdims=True) for table in (words, faces, voices))
    joint = np.einsum("y,yc,yf,yv->cfvy", prior / prior.sum(), words, faces, voices)
    order = ((), (0, 1), (1, 0), (2, 3), (3, 2))
    return World(
        name="embedded-meld",
        task=Task("classification", "en", paper.MELD_LABELS),
        joint=joint,
        label_values=np.arange(7),
        openers=_MELD_OPENERS,
        phrases=_MELD_PHRASES,
        topics=_MELD_TOPICS,
        face=CueSet(
            ("", "smiling", "frowning", "brows up", "nose wrinkled"),
            order,
            dim=64,
            frames=(24, 36),
            half=3,
            amplitude=10.0,
        ),
        voice=CueSet(
            ("", "brightly", "in a low voice", "trembling", "loudly"),
            order,
            dim=64,
            frames=(24, 40),
            half=3,
            amplitude=10.0,
        ),
    )


def _rounded_normal(mean: float, sd: float, grid: np.ndarray) -> np.ndarray:
    """P(label = grid value) when N(mean, sd) is clipped to the grid's range and rounded to its nearest value."""
    from scipy.stats import norm

    edges = np.concatenate([[-np.inf], (grid[:-1] + grid[1:]) / 2, [np.inf]])
    return np.diff(norm.cdf(edges, mean, sd))


def worlds() -> dict[str, World]:
    return {world.name: world for world in (sims_world(), meld_world())}


def samples(world: World, split: Literal["train", "valid", "test"], size: int, seed: int = 0) -> Iterator[Sample]:
    """Draw a split: every clip with its true cue windows (frames, -1 = none) and Bayes-optimal answers in `extra`."""
    rng = np.random.default_rng([seed, list(worlds()).index(world.name), list(SPLIT_SIZES).index(split)])
    for number, (label, speaker, dialogue) in enumerate(_labels(world, split, size, rng)):
        given_label = world.joint[..., label] / world.joint[..., label].sum()
        flat = rng.choice(given_label.size, p=given_label.ravel())
        words, face, voice = np.unravel_index(flat, given_label.shape)
        vision, face_window, face_likelihood = _clip(world.face, int(face), rng, seed=1)
        audio, voice_window, voice_likelihood = _clip(world.voice, int(voice), rng, seed=2)
        seen = np.einsum("cfvy,f,v->cy", world.joint, face_likelihood, voice_likelihood)
        posteriors = {"text": world.joint[words].sum((0, 1)), "face_voice": seen.sum(0), "all": seen[words]}
        truth = {f"bayes_{name}": float(world.decide(p[None])[0]) for name, p in posteriors.items()}
        truth |= {"face": world.face.values[face], "face_start": face_window[0], "face_stop": face_window[1]}
        truth |= {"voice": world.voice.values[voice], "voice_start": voice_window[0], "voice_stop": voice_window[1]}
        truth |= {"words": int(words)}
        value = world.label_values[label]
        yield Sample(
            id=f"{split}_{number:05d}",
            text=world.sentence(int(words), rng),
            audio=audio,
            vision=vision,
            label=int(value) if world.task.kind == "classification" else float(value),
            speaker=speaker,
            dialogue=dialogue,
            extra=truth,
        )


def _labels(
    world: World, split: str, size: int, rng: np.random.Generator
) -> Iterator[tuple[int, str | None, str | None]]:
    """Label indices: independent clips, or dialogues in which a speaker tends to stay in an emotion.

    The inertia leaves every single utterance's distribution at the table's prior, so that the Bayes-optimal answer from
    one utterance alone is still the table's.
    """
    prior = world.joint.sum((0, 1, 2))
    if world.task.kind == "regression":
        for _ in range(size):
            yield int(rng.choice(len(prior), p=prior)), None, None
        return
    done = dialogue = 0
    while done < size:
        last: dict[str, int] = {}
        cast = rng.choice(SPEAKERS, size=rng.integers(2, 5), replace=False)
        for _ in range(min(int(rng.integers(4, 15)), size - done)):
            speaker = str(rng.choice(cast))
            keep = speaker in last and rng.random() < INERTIA
            last[speaker] = last[speaker] if keep else int(rng.choice(len(prior), p=prior))
            done += 1
            yield last[speaker], speaker, f"{split}_{dialogue:04d}"
        dialogue += 1


@lru_cache
def _patterns(dim: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Orthonormal cue directions (4, F), and the raw scale and offset (F,) that hide them, as real descriptors differ."""
    rng = np.random.default_rng([seed, dim])
    directions = np.linalg.qr(rng.standard_normal((dim, 4)))[0].T
    return directions, 10.0 ** rng.uniform(-2, 2, dim), rng.uniform(-3, 3, dim)


def _clip(
    cues: CueSet, value: int, rng: np.random.Generator, seed: int
) -> tuple[np.ndarray, tuple[int, int], np.ndarray]:
    """Frames (T, F) float32, the cue's window [start, stop), and the exact likelihood of every cue value (values,).

    A cue adds `amplitude` times a unit direction to each of its frames, so against the clip without a cue the log
    likelihood ratio of a cue at onset o is the sum over its frames of amplitude * <x, u> - amplitude^2 / 2; onsets are
    equally likely. Likelihoods are relative to the clip without a cue. An absent clip (T = 0) says nothing: all ones.
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
    evidence = cues.amplitude * frames @ directions.T - cues.amplitude**2 / 2  # (T, 4)
    sums = np.concatenate([np.zeros((1, 4)), evidence.cumsum(0)])
    half_sums = sums[cues.half :] - sums[: -cues.half]  # (T - half + 1, 4): each half starting at each frame
    log_likelihood = np.zeros(len(cues.values))
    for k, order in enumerate(cues.halves):
        if order:
            ratios = half_sums[:onsets, order[0]] + half_sums[cues.half : cues.half + onsets, order[1]]
            log_likelihood[k] = np.logaddexp.reduce(ratios) - np.log(onsets)
    likelihood = np.exp(log_likelihood - log_likelihood.max())
    return (frames * scale + offset).astype(np.float32), window, likelihood


@dataclass(frozen=True)
class Document:
    """One page of the tiny LLM's reading: an utterance, perhaps with stage directions, the question and its answer."""

    task: Task
    directions: str
    text: str
    label: float | int


def documents(
    number: int, seed: int = 0, script_share: float = 0.5, other_labels_share: float = 0.5
) -> Iterator[Document]:
    """Written language only: utterances labelled by what their words, and any written stage directions, say.

    The labels are drawn from the world's table given just what is written, so a reader of these pages can answer from
    text as well as text allows, and knows what "(frowning)" means, but has met neither a face nor a voice. Part of the
    English pages ask about other sets of emotion words in other orders, as a reader of the world at large would know them.
    """
    rng = np.random.default_rng([seed, 99])
    choices: Sequence[World] = (sims_world(), meld_world())
    for _ in range(number):
        world = choices[rng.integers(len(choices))]
        flat = rng.choice(world.joint.size, p=world.joint.ravel())
        words, face, voice, label = (int(i) for i in np.unravel_index(flat, world.joint.shape))
        written = world.directions(face, voice) if rng.random() < script_share else ""
        value, task = world.label_values[label], world.task
        if task.kind == "classification" and rng.random() < other_labels_share:
            task, value = _other_labels(task.labels[label], rng) or (task, value)
        yield Document(
            task=task,
            directions=written,
            text=world.sentence(words, rng),
            label=int(value) if task.kind == "classification" else float(value),
        )


def _other_labels(emotion: str, rng: np.random.Generator) -> tuple[Task, int] | None:
    """A question about another set of emotion words and the number of the right one; None where the set lacks it."""
    words = _OTHER_SETS[rng.integers(len(_OTHER_SETS))]
    near = [number for number, meaning in enumerate(words.values()) if meaning == emotion]
    return (Task("classification", "en", tuple(words)), int(rng.choice(near))) if near else None


def embedded_corpus(name: str, cache: Path, sizes: Mapping[str, int] = SPLIT_SIZES, seed: int = 0) -> Corpus:
    """The generated corpus `name`, written into `cache` when it is not there yet.

    Raises:
        ValueError: no such corpus; the message lists them.
    """
    if name not in worlds():
        raise ValueError(f"no embedded corpus '{name}'; there are: {', '.join(worlds())}")
    world, tag = worlds()[name], "-".join(str(n) for n in (*sizes.values(), seed, RECIPE))
    folder = cache / f"{name}-{tag}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "meta.json").exists():
            splits = {split: samples(world, split, size, seed) for split, size in sizes.items()}
            write_corpus(folder, name=name, task=world.task, splits=splits, generated=True)
    return load_corpus(folder)
