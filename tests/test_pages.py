"""What all figures share: legible and inside the page, one picture in notebook and file, and a version for an article."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from drawn import DIAGRAMS, FIGURES, FOOTER, attention, confusion, texts_of
from PIL import Image

from cmpta_lib.figures import curves as plots
from cmpta_lib.figures.style import PAPER, SMALLEST_PT, rendered, settle
from cmpta_lib.files import ROOT

EVERY = [*FIGURES, *DIAGRAMS]


@pytest.mark.parametrize("name", EVERY)
def test_text_is_legible_and_has_its_place_to_itself(name):
    """Inside the page, over no other text; and what an article cuts off, title and footer, holds nothing of the drawing."""
    figure, found = texts_of(name)
    page, point = figure.bbox, figure.dpi / 72
    bottom, top = figure.foot_in * figure.dpi, page.y1 - figure.head_in * figure.dpi
    (footer,) = (text for text, _ in found if text.get_gid() == "footer")
    assert footer.get_text().replace("\n", " ") == FOOTER
    # Boxes hold room for tails and accents that the letters do not have.
    boxes = [(text.get_text(), box.padded(-point * 0.8)) for text, box in found]
    for number, (text, box) in enumerate(found):
        said = text.get_text()
        assert text.get_fontsize() >= SMALLEST_PT, said
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, said
        place = {"title": (top, page.y1), "footer": (0, bottom)}.get(text.get_gid(), (bottom - 1, top + 1))
        assert place[0] <= box.y0 and box.y1 <= place[1], said
        assert not [other for other, its in boxes[:number] if boxes[number][1].overlaps(its)], said


@pytest.mark.parametrize("classes", [2, 12, 30])
def test_confusion_maps_stay_legible_with_any_number_of_classes(classes):
    figure = confusion([f"surprise {k}" for k in range(classes)], ("CMPTA", "text only", "a third"))
    settle(figure)
    for axes in figure.axes:
        width = axes.get_window_extent().width / classes
        assert all(text.get_window_extent().width < width for text in axes.texts)


def ink(path) -> np.ndarray:
    """Rows of a picture on which anything is drawn."""
    with Image.open(path) as image:
        return np.flatnonzero((np.asarray(image.convert("L")) < 250).any(1))


@pytest.mark.parametrize("name", FIGURES)
def test_notebook_file_and_article_show_the_same(name, tmp_path):
    draw, width = FIGURES[name]
    figure = draw()
    shown, size = figure._repr_png_()
    paths = plots.save_figure(figure, tmp_path, name)
    places = [f"{name}.pdf", f"{name}.png", f"{PAPER}/{name}.pdf", f"{PAPER}/{name}.txt"]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == places
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(paths)
    _, png, article, caption = paths
    assert png.read_bytes() == shown == figure._repr_png_()[0]
    assert article.read_bytes() == rendered(figure, "pdf", bare=True) != rendered(figure, "pdf")
    bare = io.BytesIO(rendered(figure, "png", bare=True))
    with Image.open(png) as page, Image.open(bare) as part:
        assert page.width == part.width == width and size["width"] * 2 == width
        assert page.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        assert part.height == pytest.approx(page.height - 300 * (figure.head_in + figure.foot_in), abs=1)
        rows = ink(bare)
        assert rows[0] < 50 and part.height - rows[-1] < 80  # no band is left where title and footer were
    said = caption.read_text(encoding="utf-8")
    assert said.endswith(f"{FOOTER}\n") and figure.drawn in said and len(figure.drawn) > 40


@pytest.mark.parametrize("name", ["architecture", "attention"])
def test_the_same_figure_gives_the_same_bytes(name, tmp_path):
    draw, _ = FIGURES[name]
    figure = draw()
    first, second = (plots.save_figure(one, tmp_path / run, name) for run, one in (("first", figure), ("second", draw())))
    before = [path.read_bytes() for path in first]
    assert [path.read_bytes() for path in second] == before
    assert [path.read_bytes() for path in plots.save_figure(figure, tmp_path / "first", name)] == before


def test_a_caption_is_title_then_content_then_source():
    figure = attention()
    title, drawn, footer = figure.caption.split("\n")
    assert (title, footer) == ("注意力 attention.", FOOTER)
    assert "Dashed frame: the true cue." in drawn and "Hatched: padding." in drawn


def test_an_article_numbers_its_figures_itself():
    figure = attention()
    figure.title = "Figure 3. Attention of the text, test clip test_00012"
    assert figure.caption.startswith("Attention of the text, test clip test_00012.\n")


def test_a_notebook_shows_the_figure_at_its_size():
    from IPython.core.formatters import PNGFormatter

    png, size = PNGFormatter()(FIGURES["adapter"][0]())
    assert png.startswith(b"\x89PNG") and size["width"] == 1035


def test_a_figure_that_fails_leaves_nothing_behind(tmp_path):
    figure = attention()
    figure.axes[0].set_title("$\\nonsense$")
    with pytest.raises(ValueError):
        plots.save_figure(figure, tmp_path, "broken")
    assert not list(tmp_path.iterdir())


def test_a_figure_of_pyplot_s_is_written_too(tmp_path):
    from matplotlib import pyplot

    figure = pyplot.figure()
    figure.subplots().plot([1, 2])
    assert rendered(figure, "png").startswith(b"\x89PNG")
    assert all(path.exists() for path in plots.save_figure(figure, tmp_path, "mine"))
    assert not pyplot.fignum_exists(figure.number)


EXPORT = """
import sys
from matplotlib import font_manager
known = font_manager.fontManager
known.ttflist = [font for font in known.ttflist if not font.name.startswith("DejaVu")]
known.addfont(sys.argv[2])
from cmpta_lib.figures import style
with style.figure_style():
    figure = style.new_figure(3.3, 1.0, title="这也太好了吧 attention", footer="数据 data")
    figure.subplots().set(xlabel="情感 frame")
style.save_figure(figure, sys.argv[1], "small")
print(style.CJK_FONT)
"""


@pytest.mark.slow
def test_the_bytes_do_not_tell_where_the_checkout_lies(tmp_path):
    """One font lies in the checkout, the other elsewhere: once the one path sorts first, once the other."""
    elsewhere = tmp_path / "m" / "DejaVuSans.ttf"
    elsewhere.parent.mkdir()
    shutil.copyfile(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / elsewhere.name, elsewhere)
    made = []
    for place in ("a", "z"):
        checkout, out = tmp_path / place, tmp_path / f"out-{place}"
        shutil.copytree(ROOT / "cmpta_lib", checkout / "cmpta_lib", ignore=shutil.ignore_patterns("__pycache__"))
        command = [sys.executable, "-c", EXPORT, str(out), str(elsewhere)]
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(str(checkout))
        made.append({path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()})
    assert len(made[0]) == 4
    assert made[0] == made[1]
