"""What every figure shares: fonts that hold Chinese, sizes and colours.

Figures are sized for a two-column page: 3.3 or 6.9 inches wide, no text below 7 pt at that size.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

from matplotlib import font_manager, style
from matplotlib.ft2font import FT2Font
from matplotlib.rcsetup import cycler

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


def pieces(text: str) -> list[str]:
    """The parts of a text between which a line may end: words, and single Chinese characters, with what closes them."""
    return re.findall(r"[\u2e80-\uffef][，。！？、；：”’）》]*\s*|[^\s\u2e80-\uffef]+\s*|\s+", text)


def wrap(text: str, width_in: float, size_pt: float) -> str:
    """Break `printable(text)` at spaces, and Chinese anywhere, into lines of at most `width_in` inches at `size_pt`."""
    lines, line = [], ""
    for piece in pieces(printable(text)):
        if line and text_width_in((line + piece).rstrip(), size_pt) > width_in:
            lines.append(line.rstrip())
            line = ""
        line += piece
    return "\n".join([*lines, line.rstrip()])


def text_width_in(text: str, size_pt: float) -> float:
    """Inches that one line of `text` is wide at `size_pt`."""
    font = _font()
    font.set_size(size_pt, 72)
    font.set_text(text)
    return font.get_width_height()[0] / 64 / 72  # 26.6 fixed-point numbers


def fit_line(text: str, width_in: float, size_pt: float = 8) -> str:
    """As much of the start of `printable(text)` as is at most `width_in` wide at `size_pt`, an ellipsis for the rest."""
    text = printable(text).strip()
    shorter = (f"{text[:stop].rstrip()}…" for stop in range(len(text) - 1, 0, -1))
    return next((shown for shown in (text, *shorter) if text_width_in(shown, size_pt) <= width_in), "…")


class Look(TypedDict, total=False):
    """How a patch is drawn, in matplotlib's words."""

    facecolor: str
    edgecolor: str
    hatch: str
    linestyle: tuple[float, tuple[float, float]]  # offset, then points on and off
    linewidth: float
