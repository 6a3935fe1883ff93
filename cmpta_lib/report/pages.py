"""What readers open first: the report's first screen, and executed notebooks, as `.ipynb` for GitHub and as pages.

The first screen has the rows that matter of Tables 3 and 4 and says how many of the paper's claims hold; the README shows it
too, and `cmpta reproduce` ends with it. It is read from exported files. A page needs no scripts and no network. An executed
notebook holds what was shown and nothing of when, where and by which kernel: the same runs, the same bytes.
"""

from __future__ import annotations

import base64
import io
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from cmpta_lib import files
from cmpta_lib.files import ROOT, figures_folder, runs_folder
from cmpta_lib.metrics import METRICS
from cmpta_lib.report import claims, judge
from cmpta_lib.report.export import record_files, recorded
from cmpta_lib.report.rows import PAPER_NAMES
from cmpta_lib.report.tables import NOT_RUN, NOTHING
from cmpta_lib.study.plan import CMPTA, NOTEBOOKS, TEXT_ONLY, added

TABLES = {"table3": "sims", "table4": "meld"}
BEYOND = [row.name for key in (*PAPER_NAMES, "data") for row in added(key)]  # what `make reproduce` does not run
CLAIMS = next(one.section for one in NOTEBOOKS if "claims" in one.tables)
BEST, _HERE = "*best possible*", " this run"
_LOWER = {metric.label: metric.lower_is_better for metric in METRICS.values()}
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
    r"\\[td]frac": r"\\frac", r"\\iff\b": r"\\Leftrightarrow", r"\\tag\{(\w+)\}": r"\\quad (\1)", r"\\coloneqq": ":=",
    r"\\implies\b": r"\\Rightarrow", r"\\ne\b": r"\\neq", r"\\bmod\b": r"\\;\\mathrm{mod}\\;", r"\\([lg])e\b": r"\\\1eq",
    r"\\[lr]vert\b": "|", r"\\(frac|sqrt)\s*([^\s{\\[])": r"\\\1{\2}", r"(\\frac\{[^{}]*\})\s*([^\s{\\])": r"\1{\2}",
}  # fmt: skip


def title(name: str) -> str:
    """What a reader calls an export: "Table 3" for table3, "Figure 5" for fig5_case_study, else its name in words."""
    if found := re.match(r"(table|fig)(\d)(_parameters)?", name):
        return f"{'Table' if found[1] == 'table' else 'Figure'} {found[2]}{', continued' if found[3] else ''}"
    return name.replace("_", " ")


def alt_text(folder: Path, name: str) -> str:
    """What a figure shows, for who cannot see it: the first lines of its caption; its title where it has none."""
    path = folder / "paper" / f"{name}.txt"
    said = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return " ".join(line for line in said[:2] if not line.startswith(("Generated data: ", "Data: "))) or title(name)


def scores(folder: Path, name: str) -> dict[str, pd.DataFrame]:
    """Table 3 or 4 as exported: metric -> by method "paper", "here", "place" (1: the best; NaN: not run), "bound".

    Raises:
        ValueError: the file is no table of scores; names it.
    """
    try:
        table, found = pd.read_csv(folder / f"{name}.csv", dtype=str, keep_default_na=False), dict[str, pd.DataFrame]()
        table = table.set_index(table["method"].str.partition(" [")[0].rename(None))
        for metric in [column.removesuffix(_HERE) for column in table if column.endswith(_HERE)] or table[_HERE]:
            here, bounds = table[metric + _HERE].str.partition(" (n=")[0], table.filter(like=f"{metric} Bayes-optimal")
            means = pd.to_numeric(here.str.partition(" ")[0].str.replace(",", ""), errors="coerce")
            bound = bounds.agg("; in context ".join, axis=1) if bounds.shape[1] else NOTHING
            place = means.rank(ascending=_LOWER[metric], method="first")
            found[metric] = pd.DataFrame({"paper": table[f"{metric} paper"], "here": here, "place": place, "bound": bound})
    except (ValueError, LookupError) as error:
        raise ValueError(f"{folder / name}.csv is no table of scores ({type(error).__name__}); restore it") from error
    return found


def read(folder: Path) -> dict[str, tuple[str, dict[str, pd.DataFrame]]]:
    """Corpus -> name and scores of its table, as far as Tables 3 and 4 are there; of one's own clips both show the same."""
    known = recorded(folder)
    there = [name for name in TABLES if name in known and (folder / f"{name}.csv").exists()]
    return {known[name]["data"].partition(" (")[0]: (name, scores(folder, name)) for name in there}


def best_printed(table: Mapping[str, pd.DataFrame]) -> str:
    """Of the methods that the paper compares in one table, the one that is best here; "" for none."""
    first = next(iter(table.values())).sort_values("place").dropna(subset="place")
    return next((name for name in first.index[first["paper"] != NOTHING] if name != CMPTA.name), "")


def beside(columns: Mapping[tuple[str, str], pd.DataFrame], methods: Sequence[str]) -> pd.DataFrame:
    """Scores of some methods under heads "paper" and "here": the best in bold, the second underlined, the best possible last."""
    found: dict[str, list[str]] = {}
    for (paper, here), table in columns.items():
        shown = table.reindex(list(methods))
        marks = dict(zip(shown["place"].dropna().sort_values().index, ("**%s**", "<ins>%s</ins>"), strict=False))
        found[paper] = [*shown["paper"].fillna(NOTHING), NOTHING]
        ours = (marks.get(name, "%s") % text for name, text in shown["here"].fillna(NOTHING).items())
        found[here] = [*ours, table["bound"].iloc[0]]
    return pd.DataFrame(found, index=[*(f"**{name}**" if name == CMPTA.name else name for name in methods), BEST])


def headline(folder: Path) -> pd.DataFrame:
    """Tables 3 and 4 side by side, by their first metric: what both have, and of what the paper prints in one the best here.

    Raises:
        ValueError: a file is no table of scores; names it.
    """
    tables = {(name, key): scores(folder, name) for name, key in TABLES.items()}
    one, other = ([*next(iter(table.values())).index] for table in tables.values())
    shared = [name for name in one if name in other and name not in (*BEYOND, CMPTA.name)]
    columns = {}
    for (name, key), table in tables.items():
        corpus, metric = recorded(folder)[name]["data"].partition(" (")[0], next(iter(table))
        columns[f"{PAPER_NAMES[key]} {metric}, paper", f"{corpus} {metric}, here"] = table[metric]
    best = [name for table in tables.values() if (name := best_printed(table))]
    return beside(columns, list(dict.fromkeys([*best, *shared, CMPTA.name])))


def grid(frame: pd.DataFrame, gap: str = " ") -> str:
    """A frame of Markdown as a table, its index the first column."""
    lines = [["", *map(str, frame.columns)], ["---"] * (1 + frame.shape[1]), *frame.reset_index().astype(str).to_numpy().tolist()]
    return "\n".join(f"|{gap}{f'{gap}|{gap}'.join(line)}{gap}|" for line in lines)


def anchor(heading: str) -> str:
    """What GitHub calls the place of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def counts(folder: Path) -> pd.DataFrame:
    """By verdict, how many claims have it on the paper and by the same rule here, of an exported claims table; else empty."""
    path = folder / "claims.csv"
    return claims.counted(pd.read_csv(path, keep_default_na=False)).set_index("claims") if path.exists() else pd.DataFrame()


def front(folder: Path, link: Callable[[str], str]) -> Iterator[str]:
    """The report's first screen, in Markdown: how the claims fare, and Tables 3 and 4 in the rows that `make reproduce` runs.

    Args:
        link: export -> the words that lead to its notebook.
    """
    if len(found := counts(folder)):
        here, theirs = found[claims.HERE], found[claims.VERDICT]
        noise = here.reindex([judge.INSIDE_SEEDS, judge.INSIDE_CLIPS]).sum()
        told = theirs.sum() - theirs.reindex([judge.NOT_TESTABLE, NOT_RUN]).sum()
        waits = " or wait for runs" if here.get(NOT_RUN, 0) else ""
        yield (
            f"Of {theirs.sum()} claims of the paper, {here.get(judge.SUPPORTED, 0)} hold in this run, "
            f"{here.get(judge.NOT_SUPPORTED, 0)} do not, and {noise:.0f} differences are within noise; the others cannot be "
            f"tried here{waits}. The second line is about the paper itself: this run's data and LLM can tell of {told:.0f}. "
            f"({link('claims')}; claim by claim [below](#{anchor(CLAIMS)}).)"
        )
        yield grid(found[[claims.HERE, claims.VERDICT]].T.rename(columns=claims.signed))
    for corpus, (name, table) in read(folder).items():
        heads = {(f"{metric}, paper", f"{metric}, here"): one for metric, one in table.items()}
        shown = beside(heads, [method for method in next(iter(table.values())).index if method not in BEYOND])
        marks = "the best of these rows bold, the second underlined"
        yield f"**Table {name[-1]} in short**, {corpus}, test split; {marks} ({link(name)})."
        yield grid(shown.loc[:, (shown != NOTHING).any()])


def lines(folder: Path) -> Iterator[str]:
    """For a terminal of 80 columns: CMPTA, words alone, the best other method and the best possible, and how claims fare."""
    found = pd.DataFrame(index=[CMPTA.name, TEXT_ONLY.name, "best other", BEST.strip("*")])
    for corpus, (_, table) in read(folder).items():
        metric, first = next(iter(table.items()))
        others = first.drop(index=[CMPTA.name, TEXT_ONLY.name, *BEYOND], errors="ignore").sort_values("place").dropna()
        best = f"{others['here'].iloc[0]} {others.index[0]}" if len(others) else NOTHING
        known = first["here"].reindex([CMPTA.name, TEXT_ONLY.name], fill_value=NOTHING)
        found[f"{corpus} {metric}"] = [*known, best, first["bound"].iloc[0]]
    if found.shape[1]:
        yield from map(str.rstrip, found.to_string(justify="left").splitlines())
    for about, verdicts in counts(folder).items():
        said = ", ".join(f"{count} {name}" for name, count in verdicts.items() if count)
        yield textwrap.fill(f"claims, {about}: {said}", 80, subsequent_indent="  ")


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
    return re.sub(r"\S*/ipykernel_\d+/\d+\.py", "cell", re.sub(r"\b0x[0-9a-f]{8,}\b", "0x", value))


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
