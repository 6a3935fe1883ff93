"""What every figure shares: fonts that hold Chinese, colours, and a page with a title above and a footer below.

Pages are sized for two columns, 3.3 or 6.9 inches wide, with no text below 7 pt, and are the same in a notebook, a file and
a paper. A wide page can be drawn again for one column: rows of panels are stacked there, and what needs more asks `is_column`.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable
from contextlib import ContextDecorator
from contextvars import ContextVar, copy_context
from functools import lru_cache, partial, wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from matplotlib import font_manager, style
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.rcsetup import cycler
from matplotlib.transforms import Bbox

from cmpta_lib import files

log = logging.getLogger(__name__)
Drawing = TypeVar("Drawing", bound=Callable[..., Any])

SINGLE_COLUMN_IN, DOUBLE_COLUMN_IN = 3.3, 6.9
_IS_COLUMN = ContextVar("column", default=False)
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
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), 8),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize", "legend.title_fontsize"), SMALLEST_PT),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    "legend.frameon": False,
    "lines.linewidth": 1.1,
    "hatch.linewidth": 0.4,
    "axes.prop_cycle": cycler(color=[BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, "black"]),
    "text.parse_math": False,  # a dollar sign in data is one; our own formulas ask for it
    "pdf.fonttype": 42,  # text stays text, and some publishers refuse Type 3
}


@lru_cache(maxsize=1)
def _fonts() -> tuple[FT2Font, frozenset[int]]:
    """DejaVu Sans with our Chinese subset, known to matplotlib from now on, behind it; and the characters that they have."""
    font_manager.fontManager.addfont(CJK_FONT)
    paths = [font_manager.findfont(family) for family in FONTS]
    known = frozenset().union(*(font_manager.get_font(path).get_charmap() for path in paths))
    return font_manager.get_font(paths), known


def is_column() -> bool:
    """Whether the page that is being drawn is one column wide, instead of two."""
    return _IS_COLUMN.get()


class figure_style(ContextDecorator):
    """Draw with our fonts and sizes on top of matplotlib's defaults, whatever the caller's settings are.

    A function that draws in it gives pages that can be drawn again, see `as_column`.
    """

    def __enter__(self) -> None:
        _fonts()
        self._context = style.context(["default", STYLE])
        self._context.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def __call__(self, func: Drawing) -> Drawing:
        @wraps(func)
        def styled(*given: Any, **options: Any) -> Any:
            with figure_style():
                figure = func(*given, **options)
            if isinstance(figure, PageFigure):
                figure.again = partial(styled, *given, **options)
            return figure

        return cast(Drawing, styled)


def printable(text: str) -> str:
    """One line of `text` in which every character that our fonts cannot draw is 〓; which ones is logged."""
    text = " ".join(text.splitlines()).replace("\t", " ")
    _, known = _fonts()
    if missing := sorted({c for c in text if ord(c) not in known}):
        log.warning("no glyph for %s: drawn as %s", ", ".join(f"U+{ord(c):04X}" for c in missing), MISSING_GLYPH)
    return "".join(c if ord(c) in known else MISSING_GLYPH for c in text)


def wrap(text: str, width_in: float, size_pt: float) -> str:
    """Break `printable(text)` at spaces, and Chinese anywhere, into lines of at most `width_in` inches at `size_pt`."""
    lines, line = [], ""
    # Words, and single Chinese characters with the marks that close them.
    for piece in re.findall(r"[\u2e80-\uffef][，。！？、；：”’）》]*\s*|[^\s\u2e80-\uffef]+\s*|\s+", printable(text)):
        if line and text_width_in((line + piece).rstrip(), size_pt) > width_in:
            lines.append(line.rstrip())
            line = ""
        line += piece
    return "\n".join([*lines, line.rstrip()])


def text_width_in(text: str, size_pt: float) -> float:
    """Inches that one line of `text` is wide at `size_pt`."""
    font, _ = _fonts()
    font.set_size(size_pt, 72)
    font.set_text(text)
    return font.get_width_height()[0] / 64 / 72  # 26.6 fixed-point numbers


def fit_line(text: str, width_in: float, size_pt: float = 8) -> str:
    """As much of the start of `printable(text)` as is at most `width_in` wide at `size_pt`, an ellipsis for the rest."""
    text = printable(text).strip()
    shorter = (f"{text[:stop].rstrip()}…" for stop in range(len(text) - 1, 0, -1))
    return next((shown for shown in (text, *shorter) if text_width_in(shown, size_pt) <= width_in), "…")


Look = dict[str, Any]  # how a patch is drawn, in matplotlib's words
PRINT_DPI, SCREEN_DPI = 300, 150
NO_METADATA: Look = {"pdf": {"CreationDate": None}, "png": {"Software": None}}  # else no two files have the same bytes
PAPER = "paper"  # the folder, beside the exports, of what an article takes: no title, no footer, the caption as text
COLUMN = "_column"  # ends the name of a drawing that is one column wide, there


class PageFigure(Figure):
    """A figure that pyplot does not know: nothing leaks, and a notebook shows it once, as the last value of a cell.

    Attributes:
        title, footer: as they were given, on one line.
        drawn: what the drawing shows, in a sentence or two, for a caption.
        head_in, foot_in: inches that title and footer take above and below the drawing.
        layout: what is still to lay it out, once; matplotlib itself would do so for every file.
        again: draws the same once more, in a column where `is_column`; None for what no function drew.
        saved: the PNG that `save_figure` wrote, if it did.
    """

    layout: ConstrainedLayoutEngine | None = None
    again: Callable[[], PageFigure] | None = None
    title = footer = drawn = ""
    head_in = foot_in = 0.0
    saved = b""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """The exported PNG itself, and the pixels to show it in."""
        width, height = (round(SCREEN_DPI * inches) for inches in self.get_size_inches())
        png = self.saved if self.saved and not self.stale else rendered(self, "png")
        return png, {"width": width, "height": height}

    def subplots(self, nrows: int = 1, ncols: int = 1, **options: Any) -> Any:
        """As matplotlib's, but a row of panels is stacked in a column, each as high as the row."""
        if is_column() and nrows == 1 < ncols:
            self.set_figheight(ncols * self.get_figheight())
            nrows, ncols = ncols, 1
            options.pop("width_ratios", None)
        return super().subplots(nrows, ncols, **options)

    def colorbar(self, mappable: Any, cax: Any = None, ax: Any = None, use_gridspec: bool = False, **kwargs: Any) -> Any:
        """As matplotlib's, but for what it would lay out itself where a figure has no layout engine of matplotlib's."""
        return super().colorbar(mappable, cax, ax, use_gridspec, **kwargs)

    @property
    def caption(self) -> str:
        """Title, what is drawn, and where it comes from, a paragraph each; an article numbers its figures itself."""
        title = re.sub(r"^Figure \d+\. ", "", self.title)
        return "\n".join(part if part[-1] in ".?!" else f"{part}." for part in (title, self.drawn, self.footer) if part)


def new_figure(width_in: float, height_in: float, *, title: str = "", footer: str = "", drawn: str = "") -> PageFigure:
    """An empty figure with `height_in` inches to draw in, between the title on top and the footer below.

    Args:
        width_in, title, footer: of no account in a column, which only articles have.
        drawn: what will be drawn there, for the caption of an article.
    """
    if is_column():
        width_in, title, footer = SINGLE_COLUMN_IN, "", ""
    head, foot = wrap(title, width_in - 0.1, TITLE_PT), wrap(footer, width_in - 0.1, SMALLEST_PT)
    head_in = (head.count("\n") + 1) * 0.165 + 0.06 if title else 0.0
    foot_in = (foot.count("\n") + 1) * 0.135 + 0.06 if footer else 0.0
    total_in = height_in + head_in + foot_in
    layout = ConstrainedLayoutEngine(rect=(0, foot_in / total_in, 1, height_in / total_in), w_pad=0.03, h_pad=0.03)
    figure = PageFigure(figsize=(width_in, total_in), dpi=SCREEN_DPI)
    figure.layout = layout
    figure.title, figure.footer, figure.drawn = printable(title), printable(footer), printable(drawn)
    figure.head_in, figure.foot_in = head_in, foot_in
    if title:
        figure.text(0.5, 1 - 0.04 / total_in, head, ha="center", va="top", size=TITLE_PT, gid="title")
    if footer:
        look: Look = {"va": "bottom", "size": SMALLEST_PT, "color": "0.25", "gid": "footer"}
        figure.text(0.05 / width_in, 0.04 / total_in, foot, **look)
    return figure


@figure_style()
def lay_out(figure: Figure) -> None:
    """Lay the figure out once and for all, so that whatever is made of it next agrees; a second call moves nothing."""
    if isinstance(figure, PageFigure) and figure.layout and figure.axes:
        for _ in range(2):  # the first pass moves the labels that the second makes room for
            figure.layout.execute(figure)
        figure.layout = None


@figure_style()
def rendered(figure: Figure, suffix: str, *, bare: bool = False) -> bytes:
    """The bytes of a figure's file, "pdf" or "png" (300 dpi), the same every time.

    Args:
        bare: without title and footer, and without the room that they take.
    """
    lay_out(figure)
    buffer, area, around = io.BytesIO(), None, []
    if bare and isinstance(figure, PageFigure):
        width, height = figure.get_size_inches()
        area = Bbox([[0, figure.foot_in], [width, height - figure.head_in]])
        around = [text for text in figure.texts if text.get_gid() in ("title", "footer")]
    try:
        for text in around:
            text.set_visible(False)
        figure.savefig(buffer, format=suffix, dpi=PRINT_DPI, metadata=NO_METADATA[suffix], bbox_inches=area)
    finally:
        for text in around:
            text.set_visible(True)
    return buffer.getvalue()


def as_column(figure: Figure) -> PageFigure | None:
    """The same drawing one column wide; None where it is no wider already, or what drew it has no such form."""
    again = getattr(figure, "again", None)
    if again is None or figure.get_figwidth() <= SINGLE_COLUMN_IN:
        return None
    context = copy_context()
    context.run(_IS_COLUMN.set, True)
    column = cast(PageFigure, context.run(again))
    return column if column.layout else None  # what is placed by hand has no such form


def save_figure(figure: Figure, folder: Path | str, name: str) -> list[Path]:
    """Write `<name>.pdf` and `<name>.png` (300 dpi) into `folder`, and into `folder`/paper what an article takes.

    That is the PDF once more without title and footer, `<name>.txt`, the caption in their place, and of a wide figure
    `<name>_column.pdf`, the same drawing one column wide. Everything is drawn before the first file is written, and each file
    comes whole or not at all. A figure that pyplot made is closed.

    Returns:
        The paths: PDF and PNG, then the paper's PDF and caption, and its column, if any.
    """
    from matplotlib import pyplot

    folder = Path(folder)
    contents = {folder / f"{name}.{suffix}": rendered(figure, suffix) for suffix in ("pdf", "png")}
    contents[folder / PAPER / f"{name}.pdf"] = rendered(figure, "pdf", bare=True)
    caption = figure.caption if isinstance(figure, PageFigure) else ""
    contents[folder / PAPER / f"{name}.txt"] = f"{caption}\n".encode()
    if column := as_column(figure):
        contents[folder / PAPER / f"{name}{COLUMN}.pdf"] = rendered(column, "pdf")
    with files.writing(folder):
        (folder / PAPER).mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        with files.replacing(path) as partial:
            partial.write_bytes(content)
    pyplot.close(figure)
    if isinstance(figure, PageFigure):  # a notebook shows what it has just saved; `stale` says if it was changed since
        figure.saved, figure.stale = contents[folder / f"{name}.png"], False
    return list(contents)
