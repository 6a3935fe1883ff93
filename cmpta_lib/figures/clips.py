"""Single clips for Figures 3-5: choosing them by a stated rule, their attention maps, and where the true cues lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cmpta_lib.data.corpus import MODALITIES, Corpus, Modality, Sample, Split, Task
from cmpta_lib.fast.prompted import PromptedLM
from cmpta_lib.figures.attention import AttentionPanel
from cmpta_lib.method.adapter import PAIRS
from cmpta_lib.method.prompted import answer_text

if TYPE_CHECKING:
    from cmpta_lib.study.trained import TrainedRun

# Milliseconds per frame where the public files keep one rate; MELD's are resampled clip by clip.
HOPS_MS: Mapping[str, Mapping[str, float]] = {"simsv2": {"vision": 40.0, "audio": 10.0}}
CUES: Mapping[str, str] = {"vision": "face", "audio": "voice"}  # modality -> what the generator calls its cue
TEXT_PAIRS: Mapping[Modality, str] = {"vision": "t1", "audio": "t2"}  # the pair whose queries are the text's tokens
NEAR = 0.2  # a score counts as right this near to the label: one step of the SIMS scale
ROUNDING = 1e-6
KIND_WORDS = 3  # the joyful class of words of embedded-meld
SARCASTIC = ("disgust", "anger")
BY_HAND = "chosen by hand"


def errors(task: Task, predictions: pd.DataFrame) -> np.ndarray:
    """(N,) how wrong each answer is: the distance for a score, 0 or 1 for a class; unparsable counts as the worst."""
    distance = (predictions["prediction"] - predictions["label"]).abs().to_numpy(float)
    worst = 2.0 if task.kind == "regression" else 1.0
    return np.where(np.isfinite(distance), np.minimum(distance, worst), worst)


def is_right(task: Task, predictions: pd.DataFrame) -> np.ndarray:
    """(N,) bool: the label's class, or within `NEAR` of its score."""
    return errors(task, predictions) <= (NEAR + ROUNDING if task.kind == "regression" else 0)


def nothing_to_draw(corpus: Corpus) -> str:
    """Why no attention can be drawn on this corpus; "" where it can."""
    is_there = any((corpus.splits["test"].table[f"{modality}_length"] > 0).any() for modality in CUES)
    return "" if is_there else f"corpus {corpus.name}: no test clip has vision or audio, so there is no attention to draw"


def _presence(corpus: Corpus) -> tuple[str, np.ndarray, np.ndarray]:
    """Names of the M modalities that any test clip has; (N, M) bool: which clip has their frames, and shows their cue.

    Raises:
        ValueError: none has vision or audio, so there is nothing that the text could attend to.
    """
    if reason := nothing_to_draw(corpus):
        raise ValueError(reason)
    table = corpus.splits["test"].table
    found = [m for m in CUES if (table[f"{m}_length"] > 0).any()]
    frames = np.stack([table[f"{m}_length"] > 0 for m in found], axis=1)
    if not corpus.has_known_truth:
        return " and ".join(found), frames, np.zeros_like(frames)
    return " and ".join(found), frames, np.stack([table[f"{CUES[m]}_start"] >= 0 for m in found], axis=1)


def holding(corpora: Mapping[str, Corpus], clip_id: str) -> list[str]:
    """The keys of the corpora with a test clip of this id, all for ""; raises ValueError, with near ids, where none has it."""
    ids = {key: corpus.splits["test"].table["id"].tolist() for key, corpus in corpora.items()}
    found = [key for key in ids if clip_id in ("", *ids[key])]
    if ids and not found:
        sizes = " or ".join(f"{len(one)} clips" + f" of {key}" * (len(ids) > 1) for key, one in ids.items())
        near = get_close_matches(str(clip_id), every := [*dict.fromkeys(chain(*ids.values()))], 3)
        said = f"did you mean {' or '.join(near)}?" if near else f"its ids: {', '.join(every[:3])}, ..."
        raise ValueError(f"no clip '{clip_id}' in split 'test' of {sizes}; {said}")
    return found


def _first(corpus: Corpus, clip_id: str, choices: Sequence[tuple[Any, str]]) -> tuple[int, str]:
    """Position of the clip with this id; where none is asked for, of the first that fits the first choice that any fits."""
    if clip_id and holding({corpus.name: corpus}, clip_id):
        return corpus.splits["test"].table["id"].tolist().index(clip_id), BY_HAND
    mask, rule = next((mask, rule) for mask, rule in choices if np.any(mask))
    return int(np.argmax(mask)), rule


def pick_clip(corpus: Corpus, predictions: pd.DataFrame, clip_id: str = "") -> tuple[int, str]:
    """The test clip of Figures 3 and 4, and the rule that chose it; the paper's was drawn at random.

    Raises:
        ValueError: no clip has this id, or none has frames.
    """
    names, frames, cues = _presence(corpus)
    fits, what = frames.all(1), f"the first test clip with {names}"
    shown, right = what, is_right(corpus.task, predictions)
    if corpus.has_known_truth:
        fits, shown = fits & cues.all(1), f"{what} and a cue in each"
    choices = [
        (fits & right, f"{shown} that CMPTA answers rightly"),
        (fits, f"{shown} (CMPTA answers none of them rightly)"),
        (frames.all(1), what),
        (frames.any(1), "the first test clip with frames"),
    ]
    return _first(corpus, clip_id, choices)


def pick_sarcastic(corpus: Corpus, text_only: pd.DataFrame, cmpta: pd.DataFrame, clip_id: str = "") -> tuple[int, str]:
    """The test clip of Figure 5 and the rule that chose it: words that mislead, and CMPTA sets it right.

    Where no clip is like that, the one on which CMPTA improves most on text only.

    Raises:
        ValueError: no clip has this id, or none has frames.
    """
    table, labels = corpus.splits["test"].table, corpus.task.labels
    names, frames, cues = _presence(corpus)
    present = frames.any(1)
    if corpus.has_known_truth and labels:
        joyful, words = table["words"] == KIND_WORDS, "joyful words"
    else:
        joyful, words = text_only["prediction"].isin([labels.index("joy")] if "joy" in labels else []), "text only says joy"
    negative = table["label"].isin([labels.index(name) for name in SARCASTIC if name in labels])
    right, misled = is_right(corpus.task, cmpta), ~is_right(corpus.task, text_only)
    fits = present & negative.to_numpy() & joyful.to_numpy() & right & misled
    gain = np.where(present, errors(corpus.task, text_only) - errors(corpus.task, cmpta), -np.inf)
    rule = f"{words}, label {' or '.join(SARCASTIC)}, CMPTA right, text only wrong"
    choices = [
        (fits & cues.all(1), f"the first test clip with a cue in {names}, {rule}"),
        (fits, f"the first test clip with {rule}"),
        ((gain > 0) & (gain == gain.max()), f"no test clip fits ({rule}), so the one corrected most"),
        (present, f"no test clip fits ({rule}) and CMPTA corrects none, so the first"),
    ]
    return _first(corpus, clip_id, choices)


_BEST: Mapping[str, str] = {  # column of the generator -> what it holds, for a reader
    "bayes_text": "best answer from the words alone",
    "bayes_text_context": "best answer from the words of the whole dialogue",
    "bayes_face_voice": "best answer from face and voice alone",
    "bayes_all": "best answer from words, face and voice",
    "bayes_context": "best answer from the whole dialogue",
}


def one_sample(split: Split, index: int = 0) -> pd.DataFrame:
    """A clip as a table: shapes in place of frames, and all that is known of it; of a generated one in words."""
    sample = split[index]
    fields: dict[str, object] = {"id": sample.id, "text": sample.text, "label": show_answer(split.task, sample.label)}
    fields |= {name: " × ".join(map(str, getattr(sample, name).shape)) + " frames × features" for name in MODALITIES}
    fields |= {name: said for name in ("speaker", "dialogue") if (said := getattr(sample, name))}
    if "bayes_all" not in sample.extra:
        fields |= sample.extra
    else:
        for modality, cue in CUES.items():
            window = _cue_window(sample, modality)
            fields[f"{cue} shows"] = f"{sample.extra[cue]}, frames {window[0]} to {window[1] - 1}" if window else "nothing"
        known = {text: sample.extra[name] for name, text in _BEST.items() if name in sample.extra}
        fields |= {text: show_answer(split.task, float(value)) for text, value in known.items()}
    return pd.DataFrame(fields.items(), columns=["field", "value"])


def _cue_window(sample: Sample, modality: str) -> tuple[int, int] | None:
    """(start, stop) frames of a cue, stop excluded; None where there is none or none is known, as of words."""
    start = int(sample.extra.get(f"{CUES.get(modality)}_start", -1))
    return (start, int(sample.extra[f"{CUES[modality]}_stop"])) if start >= 0 else None


def answers_table(answers: Mapping[str, str]) -> pd.DataFrame:
    """Who says what of a clip: "true_label" -> "true label", one line each."""
    lines = [(name.replace("_", " ").replace("cmpta", "CMPTA"), said) for name, said in answers.items()]
    return pd.DataFrame(lines, columns=["who", "says"])


def show_answer(task: Task, value: float | None) -> str:
    """An answer for a reader: the class's name, or the score as the LLM writes it or in its owner's range."""
    if value is None or not np.isfinite(value):
        return "unparsable"
    if task.is_scaled:
        return f"{task.to_range(value):g}"
    return task.labels[int(value)] if task.labels else answer_text(task, value)


@dataclass(frozen=True, eq=False)
class ClipMaps:
    """Where a clip's words, face and voice look: `weights`, pair of eq 8 -> (H, queries, keys), of the real positions."""

    corpus: Corpus
    sample: Sample
    tokens: Sequence[str]
    weights: Mapping[str, np.ndarray]

    def panel(self, pair: str, head: int = 0, chosen: int | None = None) -> AttentionPanel:
        """The map of a head, counted from 1, or the mean over all; `chosen`: a row to draw beside the mean of the rows."""
        (source, keys), every = PAIRS[pair], self.weights[pair]
        names = [*map(str, range(every.shape[1]))] if source in CUES else self.tokens
        longest = int(self.corpus.splits["test"].table[f"{keys}_length"].max()) if keys in CUES else every.shape[2]
        hop_ms, window = HOPS_MS.get(self.corpus.name, {}).get(keys), _cue_window(self.sample, keys)
        return AttentionPanel(
            every[head - 1] if head else every.mean(0), names, keys, longest, hop_ms, window,
            str(self.sample.extra[CUES[keys]]) if window else "", source,
            f"{source} {'frame' if source in CUES else 'token'} (query)", () if keys in CUES else self.tokens, chosen,
        )  # fmt: skip

    def on_cue(self, pair: str) -> np.ndarray:
        """(H + 1,) share of each head's attention on the keys' true cue, last uniform attention's; (0,) without maps or cue."""
        if pair not in self.weights or not (window := _cue_window(self.sample, PAIRS[pair][1])):
            return np.zeros(0)
        weights, (start, stop) = self.weights[pair], window
        return np.append(weights[:, :, start:stop].sum(2).mean(1), (stop - start) / weights.shape[2])


def attention_panels(trained: TrainedRun, corpus: Corpus, index: int) -> list[AttentionPanel]:
    """One panel per modality that the test clip has: text attending to it, averaged over the heads; raises as `maps_of`."""
    (maps,) = maps_of(trained, corpus, (index,))
    return [maps.panel(pair) for pair in TEXT_PAIRS.values() if pair in maps.weights]


@lru_cache(maxsize=4)  # of both corpora a split, of which two tables are made, and a clip
def maps_of(trained: TrainedRun, corpus: Corpus, indices: tuple[int, ...]) -> list[ClipMaps]:
    """The maps of each of these test clips.

    Raises:
        ValueError: the run's method reads no tokens.
    """
    method, clips = trained.method, list[ClipMaps]()
    if not isinstance(method, PromptedLM):
        raise ValueError(f"run {trained.run.folder.name}: its method reads no tokens, so no text attends to anything")
    size = method.config.evaluation.batch_size
    for start in range(0, len(indices), size):
        samples = [corpus.splits["test"][index] for index in indices[start : start + size]]
        batch = method.collate(samples)
        found = {pair: weights.float().cpu().numpy() for pair, weights in method.attention(batch).items() if pair in PAIRS}
        for row, (sample, ids) in enumerate(zip(samples, batch.text_ids, strict=True)):
            sizes = {"text": len(ids)} | {m: int(lengths[row]) for m, lengths in batch.lengths.items()}
            real = {pair: maps[row, :, : sizes[PAIRS[pair][0]], : sizes[PAIRS[pair][1]]] for pair, maps in found.items()}
            tokens = [method.llm.tokenizer.decode([token]) for token in ids]
            clips.append(ClipMaps(corpus, sample, tokens, {pair: maps for pair, maps in real.items() if maps.size}))
    return clips


def attention_on_cues(trained: TrainedRun, corpus: Corpus, predictions: pd.DataFrame) -> pd.DataFrame:
    """Share of the text's attention inside the true cue windows, per cent; empty where the cues are not known.

    Means over the test clips that are answered rightly and show a cue in the modality; "uniform" is what attention that
    knows nothing would put there, the window's share of the clip's frames.
    """
    rows = []
    for modality, pairs in shares_on_cues(trained, corpus, predictions).items():
        row: dict[str, object] = {"corpus": corpus.name, "attention": f"text → {modality}", "clips": len(pairs)}
        shares = ["—"] * 3
        if len(pairs):
            inside, uniform = pairs.mean(0)
            shares = [f"{100 * inside:.1f}", f"{100 * uniform:.1f}", f"{inside / uniform:.2f}"]
        rows.append(row | dict(zip(("on the cue (%)", "uniform (%)", "ratio"), shares, strict=True)))
    return pd.DataFrame(rows)


def shares_on_cues(trained: TrainedRun, corpus: Corpus, predictions: pd.DataFrame) -> dict[Modality, np.ndarray]:
    """Modality -> (clips, 2): each clip's share of attention on its cue, and the share of uniform attention; or {}."""
    if not corpus.has_known_truth:
        return {}
    shares: dict[Modality, list[tuple[float, float]]] = {modality: [] for modality in TEXT_PAIRS}
    for maps in maps_of(trained, corpus, tuple(np.flatnonzero(is_right(corpus.task, predictions)).tolist())):
        for modality, pair in TEXT_PAIRS.items():
            if len(share := maps.on_cue(pair)):
                shares[modality].append((share[:-1].mean(), share[-1]))
    return {modality: np.array(pairs).reshape(-1, 2) for modality, pairs in shares.items()}
