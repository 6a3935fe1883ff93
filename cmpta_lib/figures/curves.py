"""Every figure from arrays and tables: training curves, the corpora at a glance and tables' scores are drawn here.

Figures 1-2 come from `diagrams`, Figures 3-5 from `attention`; this module gathers them under one name. Functions are pure
and return a `Figure`; `save_figure` writes it. `footer` says on the figure's face where its numbers come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import AutoMinorLocator, MaxNLocator

from cmpta_lib.figures import style
from cmpta_lib.figures.attention import AttentionPanel, attention_figure, case_study_figure
from cmpta_lib.figures.diagrams import ShownModel, adapter_figure, architecture_figure
from cmpta_lib.figures.style import figure_style, new_figure, printable, save_figure
from cmpta_lib.metrics import METRICS, Metric, MetricName
from cmpta_lib.paper import Kind

__all__ = [
    "AttentionPanel", "ShownModel", "adapter_figure", "after_the_best", "architecture_figure", "attention_figure",
    "case_study_figure", "corpus_figure", "save_figure", "scores_figure", "training_curves",
]  # fmt: skip


@figure_style()
def training_curves(
    histories: Mapping[str, pd.DataFrame], metric: MetricName, *, steps: Mapping[str, pd.DataFrame] | None = None,
    luck: float | None = None, possible: float | None = None, title: str = "", footer: str = "",
) -> Figure:  # fmt: skip
    """Training loss and learning rate by step, validation score by epoch, one line per run; a circle marks its best epoch.

    Args:
        histories: name of the run (its seed) -> columns epoch, train_loss, `valid_<metric>` (NaN where not validated;
            a fraction, shown in per cent for accuracies and F1) and learning_rate.
        metric: e.g. "mae" or "f1_weighted".
        steps: name of the run -> columns step, loss and learning_rate; where one run has none, all are drawn by epoch.
        luck: standard error of a score of so many validation clips, as the histories count; a band of twice it is drawn, and
            the caption says what `after_the_best` says.
        possible: the best possible score on the validation clips, where it is known.
    Raises:
        ValueError: no runs, or a missing column, named with its run.
    """
    if not histories:
        raise ValueError("no training histories to draw")
    for name, history in histories.items():
        _need(history, ("epoch", "train_loss", f"valid_{metric}", "learning_rate"), f"history of '{name}'")
    shown, known = METRICS[metric], steps or {}
    by_step = all(len(known.get(name, ())) for name in histories)
    x, smoothed = ("step", " (thin), its moving mean") if by_step else ("epoch", "")
    drawn = f"Training loss{smoothed} and learning rate by {x}, validation {shown.axis} by epoch, a line per seed."
    drawn += "" if luck is None else f" {after_the_best(histories, metric, luck)}"
    figure = new_figure(style.DOUBLE_COLUMN_IN, 2.4, title=title, footer=footer, drawn=drawn.rstrip())
    loss, score, rate = figure.subplots(1, 3, width_ratios=(1, 1, 0.75))
    bests, key = [], {"best epoch": score.plot([], [], "o", ms=4, mfc="none", color="0.35")[0]}
    for below, (name, history) in zip(range(len(histories))[::-1], histories.items(), strict=True):
        fine = known[name] if by_step else history.rename(columns={"train_loss": "loss"})
        mean = fine["loss"].rolling(max(1, len(fine) // 20) if by_step else 1, min_periods=1).mean()
        (line,) = loss.plot(fine[x], mean, label=printable(name))
        if by_step:
            loss.plot(fine[x], fine["loss"], color=line.get_color(), alpha=0.25, linewidth=0.4, zorder=1, rasterized=True)
        valid = history.dropna(subset=[f"valid_{metric}"])
        epochs, values = valid["epoch"].to_numpy(), valid[f"valid_{metric}"].to_numpy() * shown.scale
        score.plot(epochs, values, color=line.get_color())
        if len(values):
            bests.append(values[best := _best(values, shown)])
            score.plot(epochs[best], values[best], "o", ms=4 + 2 * below, mfc="none", color=line.get_color(), gid="best")
        rate.plot(fine[x], fine["learning_rate"], color=line.get_color(), linewidth=1.2 + below)  # none hides another
    if luck is not None and bests:
        reach = 2 * luck * shown.scale
        key["best ± 2 standard errors"] = score.axhspan(np.mean(bests) - reach, np.mean(bests) + reach, color="0.9", zorder=0)
    if possible is not None:
        key["best possible"] = score.axhline(possible * shown.scale, color="0.35", linestyle="--", linewidth=0.9, zorder=1)
    loss.set(xlabel=x, ylabel="training loss (nats per token)", ylim=(0, None))
    score.set(xlabel="epoch", ylabel=f"validation {shown.axis}")
    rate.set(xlabel=x, ylabel="learning rate", ylim=(0, None))
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    for text in (rate.yaxis.get_offset_text(), *(tick.label1 for tick in rate.yaxis.get_major_ticks(20))):
        text.set_parse_math(True)  # powers of ten are formulas, and no data
    loss.legend(title="seed", ncol=2 if len(histories) > 3 else 1, handlelength=1.2, columnspacing=0.8)
    score.legend(key.values(), key, loc="lower center", bbox_to_anchor=(0.5, 1), handlelength=1.6)
    for axes in (loss, score, rate):
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))  # there is no epoch 1.5
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _best(scores: np.ndarray | pd.Series, shown: Metric) -> int:
    return int(scores.argmin() if shown.lower_is_better else scores.argmax())


def after_the_best(histories: Mapping[str, pd.DataFrame], metric: MetricName, luck: float) -> str:
    """How much worse the last epoch is than the best, beside what luck does, in a sentence; "" where no run was validated.

    Overfitting is said only beyond twice the luck of clips and twice the spread over seeds. Arguments as in `training_curves`.
    """
    shown, columns = METRICS[metric], [f"valid_{metric}", "train_loss"]
    known = [valid for one in histories.values() if len(valid := one.dropna(subset=columns[:1])[columns])]
    if not known:
        return ""
    ends = [valid.to_numpy()[[_best(valid[columns[0]], shown), -1]] for valid in known]
    (before, high), (after, low) = np.mean(ends, axis=0)
    change, name, several = abs(after - before), shown.label.partition(" (")[0], len(ends) > 1
    of = f"{len(ends)} seed{'s' if several else ''}"
    if not change:
        return f"No epoch's validation {name} is better than the last one's ({of}): no overfitting is seen."
    spread = float(np.std([end[0] for _, end in ends], ddof=1)) if several else 0.0
    verdict = "overfitting" if low < high else "no overfitting, as that loss does not fall"
    if not change > 2 * max(luck, spread):
        verdict = "too small to tell from luck"
    seeds = f"the sample sd over seeds is {shown.with_unit(spread)}" if several else "the spread over seeds is unknown"
    worse, first, last, error = map(shown.with_unit, (change, before, after, luck))
    return (
        f"From the best epoch to the last, validation {name} gets worse by {worse} ({first} → {last}, mean over {of}; an "
        f"epoch's mean training loss {high:.3f} → {low:.3f}). A score of so many clips has a standard error of {error}, "
        f"and {seeds}: {verdict}."
    )


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
    shape = (2, 2, 3.8, None) if style.is_column() else (1, 4, 2.2, (1.7, 1, 1, 1))
    figure = new_figure(style.DOUBLE_COLUMN_IN, shape[2], title=title, footer=footer, drawn=drawn)
    labels, *lengths = figure.subplots(*shape[:2], width_ratios=shape[3]).flat
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
def scores_figure(
    frames: Mapping[MetricName, pd.DataFrame], *, best: Mapping[str, Mapping[str, float]] | None = None,
    printed: str = "paper", title: str = "", footer: str = "",
) -> Figure:  # fmt: skip
    """Each method's score with its interval over test clips, by group, a panel per metric; dots: the seeds, diamonds: the paper.

    CMPTA is bold, and a line goes from it through all rows. One metric takes one column of an article.

    Args:
        frames: metric -> `report.rows.scores_frame`: columns group, method, mean, low, high (95 % interval), seeds, paper and
            is_ours, in the order to draw; scores are fractions, NaN = none.
        best: what -> metric -> the best score that is possible, as a fraction; a vertical line each.
        printed: what the diamonds are.
    Raises:
        ValueError: no rows, or a missing column.
    """
    for metric, frame in frames.items():
        _need(frame, ("group", "method", "mean", "low", "high", "seeds", "paper", "is_ours"), f"table of {metric}")
        if frame.empty:
            raise ValueError(f"no scores to draw: no row of the table of {metric} was run")
    width = style.DOUBLE_COLUMN_IN if len(frames) > 1 else style.SINGLE_COLUMN_IN
    columns = 1 if style.is_column() else len(frames)
    panel_in = 0.5 + 0.165 * max(len(frame) + frame["group"].nunique() for frame in frames.values())
    key_in, rows = 0.1 + 0.14 * (3 + len(best or {})) / columns, len(frames) // columns
    drawn = (
        "Mean over the seeds with its 95 % interval over test clips; small dots: single seeds; hollow diamonds: the paper's "
        "numbers; bold, and the thin line through all rows: CMPTA. Broken lines: the best possible scores, where they are known."
    )
    figure = new_figure(width, rows * panel_in + key_in, title=title, footer=footer, drawn=drawn)
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=(key_in, *[panel_in] * rows))
    for place, (metric, frame) in enumerate(frames.items()):
        axes = figure.add_subplot(grid[1 + place // columns, place % columns])
        handles = _draw_scores(axes, METRICS[metric], frame, printed)
        for (what, known), look in zip((best or {}).items(), ("--", ":", "-."), strict=False):
            if metric in known:
                line: style.Look = {"color": "0.35", "linestyle": look, "linewidth": 0.9, "zorder": 1, "label": printable(what)}
                handles.append(axes.axvline(METRICS[metric].scale * known[metric], **line))
        axes.tick_params(axis="y", length=0, labelleft=place % columns == 0)
    key = figure.add_subplot(grid[0, :])
    key.axis("off")
    key.legend(handles=handles, loc="center", ncol=columns, handlelength=1.6, borderaxespad=0, columnspacing=1.2)
    return figure


def _draw_scores(axes: Axes, shown: Metric, frame: pd.DataFrame, printed: str) -> list[Artist]:
    """One panel, with a line above each group's rows for its name; returns what its key explains."""
    block, groups = pd.factorize(frame["group"])
    frame, block = frame.iloc[np.argsort(block, kind="stable")], np.sort(block)
    y = np.arange(len(frame)) + block + 1
    heads = y[np.flatnonzero(np.diff(block, prepend=-1))] - 1
    mean, low, high, paper = (shown.scale * frame[column].to_numpy(float) for column in ("mean", "low", "high", "paper"))
    ours = frame["is_ours"].to_numpy(bool)
    colours = [style.BLUE if one else "0.45" for one in ours]
    for at in mean[ours][:1]:
        axes.axvline(at, color=style.BLUE, linewidth=0.6, zorder=0.5)
    span = axes.hlines(y, low, high, colors=colours, linewidth=1.6, label="mean, 95 % interval over clips")
    for at, seeds in zip(y, frame["seeds"], strict=True):
        dot: style.Look = {"color": "black", "ms": 2, "mew": 0, "zorder": 4, "label": "single seed"}
        (dots,) = axes.plot(shown.scale * np.asarray(seeds), [at + 0.33] * len(seeds), "o", **dot)
    axes.scatter(mean, y, s=16, c=colours, zorder=3)
    (papers,) = axes.plot(paper, y, "D", mfc="none", color=style.VERMILLION, ms=4.5, mew=0.9, label=printable(printed), zorder=2)
    axes.set_yticks(y, [printable(str(name)) for name in frame["method"]], parse_math=False)
    for is_ours, tick in zip(ours, axes.get_yticklabels(), strict=True):
        tick.set_color("black" if is_ours else "0.3")
        if is_ours:
            tick.set(fontweight="bold", fontfamily=style.FONTS[0])  # the only one of ours that has bold letters
    for at, name in zip(heads, groups, strict=True):
        look: style.Look = {"va": "center", "size": style.SMALLEST_PT, "style": "italic", "zorder": 5}
        look["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axes.text(0.005, at, printable(str(name)), transform=axes.get_yaxis_transform(), **look)
    axes.set_ylim(y[-1] + 0.7, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_minor_locator(AutoMinorLocator())
    axes.grid(axis="x", linewidth=0.5, color="0.8")
    axes.grid(axis="x", which="minor", linewidth=0.3, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel(f"{shown.axis}, {'lower' if shown.lower_is_better else 'higher'} is better")
    return [span, dots, *([papers] if np.isfinite(paper).any() else [])]
