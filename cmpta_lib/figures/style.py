"""What every figure shares: fonts that hold Chinese, sizes, colours, title and footer, and writing to disk.

Figures are sized for a two-column page: 3.3 or 6.9 inches wide, no text below 7 pt at that size.
"""

from __future__ import annotations

import io
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

from matplotlib import font_manager, style
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.rcsetup import cycler

from cmpta_lib import files

log = logging.getLogger(__name__)

SINGLE_COLUMN_IN, DOUBLE_COLUMN_IN = 3.3, 6.9
SMALLEST_PT, TITLE_PT = 7, 9
# Okabe and Ito's palette: told apart under every common form of colour blindness.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, YELLOW = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442",
)  # fmt: skip
MODALITY_COLOURS = {"text": GREEN, "vision": BLUE, "audio": VERMILLION}
CJK_FONT = Path(__file__).parent / "fonts" / "NotoSansSC-subset.ttf"
FONTS = ["DejaVu Sans", "Noto Sans SC Subset"]
MISSING_GLYPH = "〓"  # the printer's mark for a character that the fonts lack
STYLE = {
    "font.family": FONTS,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": SMALLEST_PT,
    "ytick.labelsize": SMALLEST_PT,
    "legend.fontsize": SMALLEST_PT,
    "legend.title_fontsize": SMALLEST_PT,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.1,
    "hatch.linewidth": 0.4,
    "axes.prop_cycle": cycler(color=[BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, "black"]),
    "pdf.fonttype": 42,  # text stays text, and some publishers refuse Type 3
}


@lru_cache(maxsize=1)
def _font() -> FT2Font:
    """DejaVu Sans with our Chinese subset behind it; registers the subset with matplotlib on first use."""
    font_manager.fontManager.addfont(CJK_FONT)
    return font_manager.get_font([font_manager.findfont(family) for family in FONTS])


@lru_cache(maxsize=1)
def _known_characters() -> frozenset[int]:
    _font()
    paths = [font_manager.findfont(family) for family in FONTS]
    return frozenset().union(*(font_manager.get_font(path).get_charmap() for path in paths))


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw with our fonts and sizes on top of matplotlib's defaults, whatever the caller's settings are."""
    _font()
    with style.context(["default", STYLE]):
        yield


def printable(text: str) -> str:
    """One line of `text` in which every character that our fonts cannot draw is 〓; which ones is logged."""
    text = " ".join(text.splitlines()).replace("\t", " ")
    known = _known_characters()
    if missing := sorted({c for c in text if ord(c) not in known}):
        log.warning("no glyph for %s: drawn as %s", ", ".join(f"U+{ord(c):04X}" for c in missing), MISSING_GLYPH)
    return "".join(c if ord(c) in known else MISSING_GLYPH for c in text)


def wrap(text: str, width_in: float, size_pt: float) -> str:
    """Break `printable(text)` at spaces, and Chinese anywhere, into lines of at most `width_in` inches at `size_pt`."""
    lines, line = [], ""
    for piece in re.findall(r"[\u2e80-\uffef][，。！？、；：”’）》]*\s*|[^\s\u2e80-\uffef]+\s*|\s+", printable(text)):
        if line and _width_in((line + piece).rstrip(), size_pt) > width_in:
            lines.append(line.rstrip())
            line = ""
        line += piece
    return "\n".join([*lines, line.rstrip()])


def _width_in(text: str, size_pt: float) -> float:
    font = _font()
    font.set_size(size_pt, 72)
    font.set_text(text)
    return font.get_width_height()[0] / 64 / 72  # 26.6 fixed-point numbers


class Look(TypedDict, total=False):
    """How a patch is drawn, in matplotlib's words."""

    facecolor: str
    edgecolor: str
    hatch: str
    linestyle: tuple[float, tuple[float, float]]  # offset, then points on and off
    linewidth: float


class PageFigure(Figure):
    """A figure that pyplot does not know: nothing leaks, and a notebook shows it once, as the last value of a cell."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def new_figure(width_in: float, height_in: float, *, title: str = "", footer: str = "") -> Figure:
    """An empty figure with `height_in` inches to draw in, between the title on top and the footer below."""
    head, foot = wrap(title, width_in - 0.1, TITLE_PT), wrap(footer, width_in - 0.1, SMALLEST_PT)
    head_in = (head.count("\n") + 1) * 0.165 + 0.06 if title else 0.0
    foot_in = (foot.count("\n") + 1) * 0.135 + 0.06 if footer else 0.0
    total_in = height_in + head_in + foot_in
    layout = ConstrainedLayoutEngine(rect=(0, foot_in / total_in, 1, height_in / total_in), w_pad=0.03, h_pad=0.03)
    figure = PageFigure(figsize=(width_in, total_in), dpi=150, layout=layout)
    if title:
        top = 1 - 0.04 / total_in
        figure.text(0.5, top, head, ha="center", va="top", size=TITLE_PT, parse_math=False, gid="title")
    if footer:
        left, bottom = 0.05 / width_in, 0.04 / total_in
        figure.text(left, bottom, foot, va="bottom", size=SMALLEST_PT, color="0.25", parse_math=False, gid="footer")
    return figure


@figure_style()
def save_figure(figure: Figure, folder: Path | str, name: str) -> list[Path]:
    """Write `<name>.pdf` and `<name>.png` (300 dpi) into `folder`, each whole or not at all, and return their paths.

    The same figure gives the same bytes every time. Its layout is settled once, here, so that both files agree and a
    second call finds nothing to move. A figure that pyplot made is closed.
    """
    for _ in range(2):  # the first pass moves the labels that the second makes room for
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    folder = Path(folder)
    paths = []
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with files.writing(folder), tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as drafts:
        for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
            path = folder / f"{name}.{suffix}"
            figure.savefig(Path(drafts) / path.name, dpi=300, metadata=metadata)
            os.replace(Path(drafts) / path.name, path)
            paths.append(path)
    from matplotlib import pyplot

    pyplot.close(figure)
    return paths
