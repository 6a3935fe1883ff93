"""How the cost of a step grows with what is in it, one thing at a time, and of an epoch with the number of clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cmpta_lib.benchmark.options import Options
from cmpta_lib.benchmark.times import FLOOR, OURS
from cmpta_lib.benchmark.timing import Spread, fit_line, milliseconds

if TYPE_CHECKING:
    from cmpta_lib.benchmark.contest import Contest

TEXT, AUDIO, VISION = 16, 100, 25  # tokens and frames of every clip while another length varies
BATCH_SIZES = (4, 8, 16, 32, 64)
TEXT_TOKENS = (8, 32, 64, 128, 256)
AUDIO_FRAMES = (50, 100, 200, 400, 800)
WIDTHS = (0.25, 0.5, 1, 2)  # times the adapter's
EPOCHS = (2, 4, 8, 16)  # batches
# What each curve is drawn over, its column in the rows, and whether a line is fitted: widths cost by their square.
AXES: Mapping[str, tuple[str, bool]] = {
    "batch size": ("value", True),
    "text length": ("tokens", True),
    "audio frames": ("frames", True),
    "adapter width": ("value", False),
    "samples": ("value", True),
}


def variations(base: Options) -> Iterator[tuple[str, float, Options]]:
    """What varies, its value, and the measurement."""
    for size in BATCH_SIZES:
        yield "batch size", size, replace(base, batch_size=size)
    for tokens in TEXT_TOKENS:
        yield "text length", tokens, replace(base, text_tokens=tokens, audio_frames=AUDIO, vision_frames=VISION)
    for frames in AUDIO_FRAMES:
        yield "audio frames", frames, replace(base, text_tokens=TEXT, audio_frames=frames, vision_frames=VISION)
    for factor in WIDTHS:
        dim = 8 * max(1, round(factor * base.dim / 8))  # a multiple of the heads
        yield "adapter width", dim, replace(base, dim=dim)


def measure(
    base: Options, make: Callable[[Options], Contest], epoch_seconds: Callable[[Options], float]
) -> list[dict[str, Any]]:
    """Rows of what varied, its value, real tokens and frames of a batch, and medians of milliseconds.

    Args:
        make: builds a contest, of one backbone for all.
        epoch_seconds: of one epoch over `Options.clips` clips.
    """
    rows = []
    for what, value, options in variations(base):
        contest = make(options)
        device = contest.llm.device
        spent: dict[str, list[float]] = {OURS: [], FLOOR: []}
        for number, batch in enumerate(contest.batches):
            for name, times in spent.items():
                taken = milliseconds(contest.work(name, batch), device)
                if number >= options.warm_up:
                    times.append(taken)
        given = [contest.given(batch).tokens for batch in contest.batches[options.warm_up :]]
        frames = [contest.frames(batch) for batch in contest.batches[options.warm_up :]]
        counts = {"tokens": Spread.of(given).median, "frames": Spread.of(frames).median}
        medians = {f"{name}_ms": Spread.of(times).median for name, times in spent.items()}
        rows.append({"what": what, "value": value, **counts, **medians})
    epoch_seconds(replace(base, clips=base.batch_size))  # warms up
    for batches in EPOCHS:
        clips = batches * base.batch_size
        taken = 1000 * epoch_seconds(replace(base, clips=clips))
        rows.append({"what": "samples", "value": clips, f"{OURS}_ms": taken})
    return rows


def fits(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The straight line through each curve that should be one: slope in ms per unit, ms at zero, R²."""
    found = []
    for what, (over, is_line) in AXES.items():
        points = [(row[over], row[f"{OURS}_ms"]) for row in rows if row["what"] == what]
        if is_line and len({x for x, _ in points}) > 1:
            line = fit_line(*zip(*points, strict=True))
            unit = {"tokens": "real token", "frames": "frame"}.get(over, "clip")
            found.append({"what": what, "per": unit, "slope_ms": line.slope, "at_zero_ms": line.intercept, "r2": line.r2})
    return found
