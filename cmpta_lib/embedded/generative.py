"""The generative models of the embedded corpora: who says, shows and means what, and how likely.

Each is a joint table P(words, face, voice, label). The words name their class, the face and the voice show theirs as a
short cue. Face and voice cues come in pairs that hold the same frames in opposite order (smile = p then q, frown = q then
p), so a bag of frames cannot tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cmpta_lib import paper
from cmpta_lib.data.corpus import Task

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
class GenerativeModel:
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
def sims_model() -> GenerativeModel:
    """Chinese clips scored in [-1, 1]; praise with a frown and a flat voice is sarcasm and turns the score round."""
    mood_given_words = np.array([[0.60, 0.2, 0.20], [0.50, 0.2, 0.3], [0.35, 0.3, 0.35], [0.40, 0.2, 0.4], [0.40, 0.1, 0.5]])
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
    return GenerativeModel(
        name="embedded-sims", task=Task("regression", "zh"), joint=joint, label_values=grid, openers=_SIMS_OPENERS,
        phrases=_SIMS_PHRASES, topics=_SIMS_TOPICS,
        face=CueSet(("皱眉", "", "微笑"), order, dim=177, frames=(28, 44), half=3, amplitude=12.0),
        voice=CueSet(("冷淡", "", "欢快"), order, dim=25, frames=(28, 44), half=3, amplitude=8.0),
    )  # fmt: skip


@lru_cache
def meld_model() -> GenerativeModel:
    """English dialogues, MELD's seven emotions; kind words with a wrinkled nose and a low voice are disgust."""
    prior = np.array([0.28, 0.14, 0.09, 0.13, 0.16, 0.08, 0.12])  # neutral surprise fear sadness joy disgust anger
    words = np.array([[9, 1, 0, 0], [1, 8, 0, 1], [2, 5, 3, 0], [2, 0, 8, 0], [1, 1, 0, 8], [1, 0, 4, 5], [1, 2, 6, 1]])
    # faces: none, smile, frown, raised brows, wrinkled nose; voices: none, bright, low, trembling, loud
    faces = np.array(
        [[14, 2, 1, 2, 1], [2, 2, 0, 15, 1], [2, 0, 4, 13, 1], [4, 0, 15, 0, 1],
         [3, 16, 0, 1, 0], [2, 1, 1, 0, 16], [2, 0, 13, 0, 5]]
    )
    voices = np.array(
        [[14, 2, 2, 1, 1], [3, 12, 0, 2, 3], [2, 0, 1, 16, 1], [3, 0, 13, 4, 0],
         [3, 14, 0, 0, 3], [3, 0, 14, 1, 2], [2, 0, 1, 0, 17]]
    )
    words, faces, voices = (table / table.sum(1, keepdims=True) for table in (words, faces, voices))
    joint = np.einsum("y,yc,yf,yv->cfvy", prior / prior.sum(), words, faces, voices)
    order = ((), (0, 1), (1, 0), (2, 3), (3, 2))
    return GenerativeModel(
        name="embedded-meld", task=Task("classification", "en", paper.MELD_LABELS), joint=joint, label_values=np.arange(7),
        openers=_MELD_OPENERS, phrases=_MELD_PHRASES, topics=_MELD_TOPICS,
        face=CueSet(("", "smiling", "frowning", "brows up", "nose wrinkled"), order, 64, (24, 36), half=3, amplitude=10.0),
        voice=CueSet(("", "brightly", "in a low voice", "trembling", "loudly"), order, 64, (24, 40), half=3, amplitude=10.0),
    )  # fmt: skip


def _rounded_normal(mean: float, sd: float, grid: np.ndarray) -> np.ndarray:
    """P(label = grid value) when N(mean, sd) is clipped to the grid's range and rounded to its nearest value."""
    from scipy.special import ndtr  # what scipy.stats' norm.cdf is, half a second sooner

    edges = np.concatenate([[-np.inf], (grid[:-1] + grid[1:]) / 2, [np.inf]])
    return np.diff(ndtr((edges - mean) / sd))


def generative_models() -> dict[str, GenerativeModel]:
    return {source.name: source for source in (sims_model(), meld_model())}
