"""One figure of every kind, from made-up numbers, and what was drawn of it."""

from functools import cache
from unittest.mock import patch

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from cmpta_lib.config import CmptaConfig
from cmpta_lib.data.corpus import Task
from cmpta_lib.figures import curves as plots
from cmpta_lib.figures.answers import calibration_figure, confusion_figure
from cmpta_lib.figures.style import figure_style, settle

FOOTER = "Data: embedded SIMS (generated); backbone: tiny; seeds: 1111; profile: demo."
CLASSES = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
SIMS, MELD = Task("regression", "zh"), Task("classification", "en", CLASSES)


def model(task=SIMS, text="说实话，这也太好了吧", label=-0.4, backbone="tiny", llm_dim=192, **settings) -> plots.ShownModel:
    config = CmptaConfig.model_validate({"dim": 64, "num_heads": 4} | settings)
    return plots.ShownModel(config, task, backbone, llm_dim, 25, 177, text, label)


def english(**settings) -> plots.ShownModel:
    given = {"text": "Oh great, it costs $5 and another lovely meeting about nothing", "label": 1, "dim": 1024, "num_heads": 8}
    return model(**{"task": MELD, "backbone": "qwen1.5-1.8b", "llm_dim": 2048} | given | settings)


MODELS = {
    "default": model,
    "linear": lambda: model(alignment="linear"),
    "pooled": lambda: model(fusion="pooled"),
    "maximum of eight": lambda: model(summary="max", num_pseudo_tokens=8),
    "after the text": lambda: english(alignment="lstm", prompt={"pseudo_token_position": "after_text"}),
    "a projection per pair": lambda: english(projections="per_pair", num_pseudo_tokens=4, token_count_rule="repeat"),
    "pooled, English": lambda: english(fusion="pooled", num_pseudo_tokens=24),
    "many": lambda: english(num_pseudo_tokens=30, token_count_rule="repeat"),
    "one, of a long name": lambda: model(num_pseudo_tokens=1, num_heads=1, backbone="some-company/" + "a-long-name-" * 9),
}


def panel(modality="vision", tokens="说实话，$5_也太好了", frames=20, **changes) -> plots.AttentionPanel:
    weights = np.random.default_rng(0).dirichlet(np.ones(frames), len(tokens))
    given = {"weights": weights, "query_labels": list(tokens), "modality": modality, "padded_length": frames}
    return plots.AttentionPanel(**(given | changes))


def attention(**changes):
    pair = [panel("vision", padded_length=30, hop_ms=40, cue_window=(5, 9)), panel("audio", frames=500, hop_ms=10)]
    return plots.attention_figure(pair, title="注意力 attention", footer=FOOTER, **changes)


def case_study(**changes):
    given = {"text": "这也太好了吧", "true_label": "-0.6", "text_only_answer": "+0.8", "cmpta_answer": "-0.6"}
    return plots.case_study_figure([panel(), panel("audio")], footer=FOOTER, **(given | changes))


def history(best_epoch=3):
    epochs = np.arange(1, 7)
    scores = 0.3 + 0.1 * np.abs(epochs - best_epoch)
    return pd.DataFrame(
        {"epoch": epochs, "train_loss": 1 / epochs, "valid_mae": scores, "learning_rate": 5e-4 / epochs}
    )


def clips(labels):
    lengths = {"audio_length": range(len(labels)), "vision_length": range(len(labels))}
    return pd.DataFrame({"text": ["好" * (n % 9 + 1) for n in range(len(labels))], "label": labels, **lengths})


def corpus(kind="classification", labels=(0, 1, 1, 2), **changes):
    splits = {name: clips(list(labels)) for name in ("train", "valid", "test")}
    return plots.corpus_figure(splits, kind, footer=FOOTER, **changes)


def ablation():
    rows = [("LSTM type", "bidirectional", 0.31, 0.3, 0.32, 0.308), ("LSTM type", "text only", 0.4, 0.39, 0.41, np.nan)]
    frame = pd.DataFrame(rows, columns=["study", "variant", "mean", "low", "high", "paper"])
    return plots.ablation_figure(frame, "mae", footer=FOOTER)


def confusion(classes=CLASSES, methods=("CMPTA", "text only", "MSE-Adapter", "a method that has a rather long name")):
    maps = {name: np.random.default_rng(0).dirichlet(np.full(len(classes), 0.3), len(classes)) for name in methods}
    maps[methods[0]] = np.eye(len(classes))  # "100" is the widest number
    return confusion_figure(maps, classes, title="Answers by true class", footer=FOOTER)


def calibration(methods=5):
    random, answers = np.random.default_rng(0), {}
    for k in range(methods):
        sure = random.beta(1 + k, 1, 200)
        answers[f"method {k}"] = (sure, random.random(200) < sure)
    return calibration_figure(answers, title="Calibration", footer=FOOTER)


def training():
    given = {"1111": history(), "2222": history(5)}
    return plots.training_curves(given, "mae", title="Training CMPTA on embedded SIMS", footer=FOOTER)


DOUBLE, SINGLE = 2070, 990  # 6.9 and 3.3 inches at 300 dpi
FIGURES = {
    "architecture": (lambda: plots.architecture_figure(model(), footer=FOOTER), DOUBLE),
    "adapter": (lambda: plots.adapter_figure(model(), footer=FOOTER), DOUBLE),
    "attention": (attention, DOUBLE),
    "attention_single": (lambda: plots.attention_figure([panel()], footer=FOOTER), SINGLE),
    "case_study": (case_study, DOUBLE),
    "training": (training, DOUBLE),
    "classes": (lambda: corpus(label_names=("neutral", "joy", "厌恶")), DOUBLE),
    "scores": (lambda: corpus("regression", (-1.0, -0.2, 0.0, 0.4)), DOUBLE),
    "ablation": (ablation, SINGLE),
    "confusion": (confusion, DOUBLE),
    "calibration": (calibration, SINGLE),
}
DIAGRAMS = {
    f"{kind}: {name}": (lambda draw=draw, make=make: draw(make(), footer=FOOTER))
    for name, make in MODELS.items()
    for kind, draw in (("architecture", plots.architecture_figure), ("adapter", plots.adapter_figure))
}


@cache
def texts_of(name: str) -> tuple[Figure, list[tuple[Text, Bbox]]]:
    """A figure by its name, and every text that is drawn, with the pixels that it takes."""
    figure = (FIGURES[name][0] if name in FIGURES else DIAGRAMS[name])()
    settle(figure)
    found: list[tuple[Text, Bbox]] = []
    draw = Text.draw

    def noted(text, renderer, *more, **options):
        if text.get_visible() and text.get_text().strip():
            found.append((text, text.get_window_extent(renderer)))
        draw(text, renderer, *more, **options)

    with figure_style(), patch.object(Text, "draw", noted):
        figure.draw_without_rendering()
    return figure, found


def words(figure: Figure) -> str:
    return " | ".join(text.get_text().replace("\n", " ") for text in figure.axes[0].texts)
