"""Every figure from arrays and tables: training curves, the corpora at a glance and the ablations are drawn here.

Figures 1-2 come from `diagrams`, Figures 3-5 from `attention`; this module gathers them under one name. Functions are pure
and return a `Figure`; `save_figure` writes it. `footer` says on the figure's face where its numbers come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from cmpta_lib.figures import style
from cmpta_lib.figures.attention import AttentionPanel, attention_figure, case_study_figure
from cmpta_lib.figures.diagrams import ShownModel, adapter_figure, architecture_figure
from cmpta_lib.figures.style import figure_style, new_figure, printable, save_figure
from cmpta_lib.metrics import METRICS, MetricName
from cmpta_lib.paper import Kind

__all__ = [
    "AttentionPanel", "ShownModel", "ablation_figure", "adapter_figure", "architecture_figure", "attention_figure",
    "after_the_best", "case_study_figure", "corpus_figure", "save_figure", "training_curves",
]  # fmt: skip


@figure_style()
def training_curves(
    histories: Mapping[str, pd.DataFrame], metric: MetricName, *, steps: Mapping[str, pd.DataFrame] | None = None,
    title: str = "", footer: str = "",
) -> Figure:  # fmt: skip
    """Training loss and learning rate by step, validation score by epoch, one line per run; a circle marks its best epoch.

    Args:
        histories: name of the run (its seed) -> columns epoch, train_loss, `valid_<metric>` (NaN where not validated;
            a fraction, shown in per cent for accuracies and F1) and learning_rate.
        metric: e.g. "mae" or "f1_weighted".
        steps: name of the run -> columns step, loss and learning_rate; where one run has none, all are drawn by epoch.
    Raises:
        ValueError: no runs, or a missing column, named with its run.
    """
    if not histories:
        raise ValueError("no training histories to draw")
    for name, history in histories.items():
        _need(history, ("epoch", "train_loss", f"valid_{metric}", "learning_rate"), f"history of '{name}'")
    shown = METRICS[metric]
    by_step = bool(steps) and all(len(steps.get(name, ())) for name in histories)
    x, smoothed = ("step", " (thin), its moving mean") if by_step else ("epoch", "")
    drawn = f"Training loss{smoothed} and learning rate by {x}, validation {shown.axis} by epoch, a line per seed; circles: best."
    drawn = f"{drawn} {after_the_best(histories, metric)}".rstrip()
    figure = new_figure(style.DOUBLE_COLUMN_IN, 2.1, title=title, footer=footer, drawn=drawn)
    loss, score, rate = figure.subplots(1, 3, width_ratios=(1, 1, 0.75))
    for name, history in histories.items():
        fine = steps[name] if steps and by_step else history.rename(columns={"train_loss": "loss"})
        mean = fine["loss"].rolling(max(1, len(fine) // 20) if by_step else 1, min_periods=1).mean()
        (line,) = loss.plot(fine[x], mean, label=printable(name))
        if by_step:
            loss.plot(fine[x], fine["loss"], color=line.get_color(), alpha=0.25, linewidth=0.4, zorder=1, rasterized=True)
        valid = history.dropna(subset=[f"valid_{metric}"])
        epochs, values = valid["epoch"].to_numpy(), valid[f"valid_{metric}"].to_numpy() * shown.scale
        score.plot(epochs, values, color=line.get_color())
        if len(values):
            best = values.argmin() if shown.lower_is_better else values.argmax()
            score.plot(epochs[best], values[best], "o", ms=4, mfc="white", color=line.get_color(), gid="best")
        rate.plot(fine[x], fine["learning_rate"], color=line.get_color())
    loss.set(xlabel=x, ylabel="training loss (nats per token)", ylim=(0, None))
    score.set(xlabel="epoch", ylabel=f"validation {shown.axis}", title="best epoch: ○")
    rate.set(xlabel=x, ylabel="learning rate", ylim=(0, None))
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    for text in (rate.yaxis.get_offset_text(), *(tick.label1 for tick in rate.yaxis.get_major_ticks(20))):
        text.set_parse_math(True)  # powers of ten are formulas, and no data
    loss.legend(title="seed", ncol=2 if len(histories) > 3 else 1, handlelength=1.2, columnspacing=0.8)
    for axes in (loss, score, rate):
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))  # there is no epoch 1.5
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def after_the_best(histories: Mapping[str, pd.DataFrame], metric: MetricName) -> str:
    """Whether the validation score got worse while the training loss fell, in a sentence of these runs' own numbers.

    Arguments as in `training_curves`; "" where no run was validated.
    """
    shown, column, turned, ends, last = METRICS[metric], f"valid_{metric}", [], 0, 0
    for valid in (history.dropna(subset=[column]) for history in histories.values()):
        if len(valid):
            row = valid[column].argmin() if shown.lower_is_better else valid[column].argmax()
            best, end = valid.iloc[row], valid.iloc[-1]
            last, ends = max(last, int(end["epoch"])), ends + bool(end["epoch"] == best["epoch"])
            if shown.is_better(best[column], end[column]) and end["train_loss"] < best["train_loss"]:
                turned.append([best["epoch"], best[column], end[column], best["train_loss"], end["train_loss"]])
    name, of = shown.label.partition(" (")[0], f"of {len(histories)} seed{'s' if len(histories) > 1 else ''}"
    if not turned:
        said = f"No seed's validation {name} got worse while its training loss fell; the last epoch is the best in {ends} {of}."
        return said if last else ""
    _, before, after, high, low = np.mean(turned, axis=0)
    epochs, turn = sorted({int(one[0]) for one in turned}), "rises" if shown.lower_is_better else "falls"
    where = f"epoch{'s' if len(epochs) > 1 else ''} {', '.join(map(str, epochs))} of {last}"
    scores = f"{shown.with_unit(before)} \N{RIGHTWARDS ARROW} {shown.with_unit(after)}"
    losses = f"{high:.3f} \N{RIGHTWARDS ARROW} {low:.3f}"
    said = f"Validation {name} is best at {where} and {turn} after, {scores}, while the training loss falls, {losses}"
    return f"{said}: overfitting, in {len(turned)} {of}."


def _need(frame: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    if missing := [c for c in columns if c not in frame.columns]:
        raise ValueError(f"{what} has no columns {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")


@figure_style()
def corpus_figure(
    tables: Mapping[str, pd.DataFrame], task_kind: Kind, *, label_names: Sequence[str] = (),
    score_range: tuple[float, float] = (-1.0, 1.0), title: str = "", footer: str = "",
) -> Figure:  # fmt: skip
    """How labels and lengths are distributed in each split.

    Args:
        tables: split name -> one row per clip with text, label, audio_length and vision_length (frames, 0 = absent).
        task_kind: decides whether labels are scores in [-1, 1] or class indices.
        label_names: names of the classes by index; without them the indices are shown.
        score_range: what -1 and 1 are in the units of the labels' owner, in which scores are drawn.
    Raises:
        ValueError: no tables, a missing column (named with its split), or a label without a name.
    """
    import seaborn as sns

    if not tables:
        raise ValueError("no tables to draw")
    for name, table in tables.items():
        _need(table, ("text", "label", "audio_length", "vision_length"), f"table of split '{name}'")
    clips = pd.concat([table.assign(split=name) for name, table in tables.items()], ignore_index=True)
    clips["text_length"] = clips["text"].str.len()
    palette = dict(zip(tables, sns.color_palette("colorblind", len(tables)), strict=True))
    drawn = "Share of each label in each split, and the share of its clips that are at most so long in text, vision and audio."
    figure = new_figure(style.DOUBLE_COLUMN_IN, 2.2, title=title, footer=footer, drawn=drawn)
    labels, *lengths = figure.subplots(1, 4, width_ratios=(1.7, 1, 1, 1))
    shared = {"data": clips, "hue": "split", "palette": palette, "legend": False, "ax": labels}
    bars = {"stat": "percent", "common_norm": False, "multiple": "dodge", "shrink": 0.8, "linewidth": 0, "alpha": 1}
    if task_kind == "regression":
        middle, unit = (score_range[0] + score_range[1]) / 2, (score_range[1] - score_range[0]) / 2
        clips["label"] = middle + unit * clips["label"]
        edges = middle + unit * np.linspace(-1.1, 1.1, 12)  # SIMS labels are multiples of 0.2
        sns.histplot(x="label", bins=edges, **shared, **bars)
        labels.set(xlabel="sentiment label", ylabel="share of the split (%)")
    else:
        classes = sorted(clips["label"].unique())
        if label_names and not set(classes) <= set(range(len(label_names))):
            raise ValueError(f"labels {classes} do not all have one of the {len(label_names)} names")
        names = [printable(label_names[c]) if label_names else str(c) for c in classes]
        clips["label"] = pd.Categorical.from_codes(clips["label"].map(classes.index), names)
        sns.histplot(y="label", **shared, **bars)
        labels.set(xlabel="share of the split (%)", ylabel="")
    length_names = {"text": "characters of text", "vision": "vision frames", "audio": "audio frames"}
    for axes, (modality, name) in zip(lengths, length_names.items(), strict=True):
        sns.ecdfplot(x=f"{modality}_length", stat="percent", **shared | {"ax": axes})
        axes.set(xlabel=name, ylabel="clips up to this length (%)" if modality == "text" else "", xlim=(0, None))
    handles = [Patch(color=colour, label=printable(name)) for name, colour in palette.items()]
    lengths[0].legend(handles=handles, loc="best", handlelength=1.2)
    sns.despine(figure)
    return figure


@figure_style()
def ablation_figure(frame: pd.DataFrame, metric: MetricName, *, title: str = "", footer: str = "") -> Figure:
    """Each ablation's score with its interval, grouped by study; hollow diamonds are the paper's numbers.

    Args:
        frame: columns study, variant, mean, low, high (95 % interval), paper, in the order to draw; scores are
            fractions, NaN = none.
        metric: "mae" or "f1_weighted".
    Raises:
        ValueError: no rows, or a missing column.
    """
    _need(frame, ("study", "variant", "mean", "low", "high", "paper"), "ablation table")
    if frame.empty:
        raise ValueError("no ablations to draw")
    shown = METRICS[metric]
    drawn = f"{shown.axis} of each variant: mean over the seeds with its 95 % interval; hollow diamonds: the paper's."
    block, studies = pd.factorize(frame["study"])
    frame, block = frame.iloc[np.argsort(block, kind="stable")], np.sort(block)
    height = 0.17 * (len(frame) + len(studies)) + 0.75
    figure = new_figure(style.SINGLE_COLUMN_IN, height, title=title, footer=footer, drawn=drawn)
    axes = figure.subplots()
    y, heads = np.arange(len(frame)) + block + 1, np.flatnonzero(np.diff(block, prepend=-1))  # a line above each study's rows
    mean, low, high, paper = (shown.scale * frame[column].to_numpy(float) for column in ("mean", "low", "high", "paper"))
    axes.hlines(y, low, high, color=style.BLUE, linewidth=1.1)
    (ours,) = axes.plot(mean, y, "o", color=style.BLUE, ms=4)
    (papers,) = axes.plot(paper, y, "D", mfc="none", color=style.VERMILLION, ms=4.5, mew=1)
    names = [printable(str(name)) for name in (*frame["variant"], *studies)]
    axes.set_yticks([*y, *(y[heads] - 1)], names, parse_math=False)
    for number, tick in enumerate(axes.get_yticklabels()):
        tick.set_color("0.3" if number < len(frame) else "black")
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.4, color="0.85")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel(f"{shown.axis}, {'lower' if shown.lower_is_better else 'higher'} is better", loc="right")
    look = {"loc": "lower right", "bbox_to_anchor": (1, 1.01), "ncol": 2}
    axes.legend([ours, papers], ["this run, 95 % interval", "paper"], **look)
    return figure
