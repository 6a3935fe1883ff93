"""Executed notebooks beside the report: as `.ipynb`, which GitHub shows, and as pages that any browser shows offline.

Both hold what was shown and nothing of when, where and by which kernel: the same runs, the same bytes.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from cmpta_lib import files
from cmpta_lib.files import ROOT, figures_folder, runs_folder
from cmpta_lib.report.export import record_files
from cmpta_lib.report.gather import alt_text
from cmpta_lib.study.plan import NOTEBOOKS

_WIDGET = "application/vnd.jupyter.widget-view+json"
_LINK = re.compile(r"\[([^]]+)\]\((?:(\w+)\.ipynb|\.\./[^)]*)\)")  # to another notebook, or to a file of the checkout
_KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}
}  # fmt: skip
_TITLE = re.compile(r"^#+ +(.*)$", re.MULTILINE)
_HEADING = re.compile(r'<h([23]) id="([^"]+)">(.*?)<a class="anchor-link"', re.DOTALL)
# What matplotlib's mathematics calls otherwise, or lays out itself.
_TEX = {
    r"\\begin\{\w+\*?\}|\\end\{\w+\*?\}|\\(?:big|Big|bigg|Bigg)[lrm]?(?![a-z])|&": "", r"\\[lr]Vert\b": r"\\|",
    r"\\[td]frac\b": r"\\frac", r"\\iff\b": r"\\Leftrightarrow", r"\\tag\{(\w+)\}": r"\\quad (\1)", r"\\coloneqq": ":=",
    r"\\implies\b": r"\\Rightarrow", r"\\ne\b": r"\\neq", r"\\bmod\b": r"\\;\\mathrm{mod}\\;", r"\\([lg])e\b": r"\\\1eq",
}  # fmt: skip


def write_page(executed: Path, page: Path, beside: Sequence[str] = ()) -> None:
    """Write an executed notebook below the exports that it shows, as `page` and with outputs as an `.ipynb` beside it.

    The page links a picture that lies among the exports and holds any other, shows formulas without scripts, and folds code.
    What needs a live kernel (widgets) is left out, and so are the ids that Jupyter draws at random.

    Args:
        beside: names of the notebooks whose pages lie in the same folder; links to others become words.
    """
    import nbformat

    plain = _told(json.loads(executed.read_text(encoding="utf-8")))
    folder, notebook = page.parent.parent, nbformat.reads(json.dumps(plain), as_version=4)
    shown = _cleaned(notebook, folder)
    words = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    for cell in words:
        cell.source = _LINK.sub(lambda found: found[0] if found[2] in beside else found[1], cell.source)
    with files.writing(page):
        page.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(page.with_suffix(".ipynb"), nbformat.writes(notebook) + "\n")
    for output, name in shown:
        output.metadata["filenames"] = {"image/png": f"../{name}"}
    for cell in words:
        cell.source = _LINK.sub(r"[\1](\2.html)", cell.source)
    order = [one.name for one in NOTEBOOKS if one.name in (*beside, page.stem)]
    place = order.index(page.stem) if page.stem in order else 0
    files.write_text(page, _as_html(notebook, {"Previous": order[:place][-1:], "Next": order[place + 1 :][:1]}))
    record_files(folder, page, page.with_suffix(".ipynb"))


def _told(value: Any, key: str = "") -> Any:
    """Parts of a notebook without this machine's paths, and without what another process would call otherwise."""
    if isinstance(value, dict):
        return {name: _told(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_told(one, key) for one in value]
    if not isinstance(value, str) or key.startswith("image/"):
        return value
    places = {str(figures_folder()): "figures", str(runs_folder()): "runs", str(ROOT): ".", str(Path.home()): "~"}
    for place in sorted(filter(lambda one: len(one) > 1, places), key=len, reverse=True):
        value = re.sub(rf"{re.escape(place)}(?![\w.-])", places[place], value)
    return re.sub(r"/tmp/ipykernel_\d+/\d+\.py", "cell", re.sub(r"\b0x[0-9a-f]{8,}\b", "0x", value))


def _cleaned(notebook: Any, exports: Path) -> list[tuple[Any, str]]:
    """Leave in a notebook what was shown; returns its pictures that are exports, each with the export's name."""
    known = {base64.b64encode(path.read_bytes()).decode(): path.name for path in sorted(exports.glob("*.png"))}
    notebook.metadata, notebook.nbformat_minor, found, ran, heading = _KERNEL, 5, [], 0, ""
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {name: cell.metadata[name] for name in ("tags", "jupyter") if cell.metadata.get(name)}
        if cell.cell_type != "code":
            cell.pop("outputs", None)
            heading = (_TITLE.findall(cell.source) or [heading])[-1]
            continue
        ran, outputs = ran + 1, list[Any]()
        for output in (one for one in cell.outputs if _WIDGET not in one.get("data", {})):
            if "execution_count" in output:
                output.execution_count = ran
            if picture := output.get("data", {}).get("image/png"):
                name, about = known.get(picture.replace("\n", ""), ""), output.metadata.setdefault("image/png", {})
                about["alt"] = alt_text(exports, Path(name).stem) if name else heading
                output.data["image/png"] = _for_a_screen(picture, about)
                found += [(output, name)] * bool(name)
            if outputs and "name" in output and output.name == outputs[-1].get("name"):
                outputs[-1].text += output.text  # printed in pieces, as they happened to arrive
            else:
                outputs.append(output)
        cell.execution_count, cell.outputs = ran, outputs
    return found


def _for_a_screen(picture: str, about: Any) -> str:
    """A PNG in the pixels in which its notebook shows it, where it has more: an export is printed as well."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(picture))) if about.get("width") else None
    if not image or image.width <= about["width"]:
        return picture
    buffer, small = io.BytesIO(), image.convert("RGB").resize((about["width"], about["height"]), Image.Resampling.LANCZOS)
    small.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _as_html(notebook: Any, links: Mapping[str, Sequence[str]]) -> str:
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return f'<span class="formula">{_drawn(body)}</span>'

        def inline_math(self, body: str) -> str:
            return _drawn(body)

        def latex_environment(self, name: str, body: str) -> str:
            return self.block_math(body)

    exporter = HTMLExporter(template_name="page", extra_template_basedirs=[str(Path(__file__).parent)])
    exporter.register_filter("markdown2html", lambda text: MarkdownWithMath(renderer=Renderer(escape=False)).render(text))
    title = notebook.cells[0].source.partition("\n")[0].lstrip("# ")
    body, _ = exporter.from_notebook_node(notebook, {"title": title, "links": links})
    contents = "\n".join(f'<a href="#{anchor}">{words}</a>' for _, anchor, words in _HEADING.findall(body))
    return body.replace('<nav id="contents">', f'<nav id="contents">{contents}') + "\n"


def _drawn(tex: str) -> str:
    """A formula as outlines in the text's colour, a line each; its LaTeX as code where that cannot be drawn."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path as Outline
    from matplotlib.textpath import text_to_path

    plain, font, drawn = tex, FontProperties(math_fontfamily="stix", size=100), []
    for pattern, said in _TEX.items():
        plain = re.sub(pattern, said, plain)
    try:
        if not tex.isascii():
            raise ValueError("the fonts of formulas have no such character")
        for line in filter(str.strip, plain.split(r"\\")):
            said = f"${' '.join(line.split())}$"
            width, height, depth = (float(one) for one in text_to_path.get_text_width_height_descent(said, font, ismath=True))
            vertices, codes = text_to_path.get_text_path(font, said, ismath=True)
            pieces = Outline(vertices, codes).iter_segments(simplify=False)
            path = "".join(
                "MLQC"[code - 1] + " ".join(f"{(-1) ** n * one:.0f}" for n, one in enumerate(points)) if code < 5 else "Z"
                for points, code in pieces
            )
            sizes = {"width": width, "height": height, "vertical-align": -depth}
            style = ";".join(f"{name}:{size / 100:.2f}em" for name, size in sizes.items())
            drawn.append(
                f'<svg class="math" role="img" aria-label="{escape(tex.strip())}" style="{style}" viewBox="0 '
                f'{depth - height:.0f} {width:.0f} {height:.0f}"><path fill="currentColor" d="{path}"/></svg>'
            )
    except ValueError:
        return f"<code>{escape(tex.strip())}</code>"
    return "".join(drawn)
