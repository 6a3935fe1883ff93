"""Executed notebooks as pages that any browser shows, so that a reader needs neither Jupyter nor the runs."""

from __future__ import annotations

import base64
import re
from html import escape
from pathlib import Path

from cmpta_lib import files

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ max-width: 62rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 sans-serif; color: #222; }}
pre {{ font-size: 13px; line-height: 1.4; margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }}
.prompt, .anchor-link {{ display: none; }}
.input_area {{ background: #f6f8fa; border: 1px solid #ddd; border-radius: 4px; padding: .5rem .7rem; margin: .6rem 0; }}
.output_subarea {{ overflow-x: auto; margin: .6rem 0; }}
.output_png img {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; font-size: 13px; }}
caption {{ text-align: left; padding: .3rem 0; color: #444; }}
th, td {{ padding: .2rem .6rem; text-align: left; border-bottom: 1px solid #e4e4e4; }}
{colours}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_page(executed: Path, page: Path) -> None:
    """Write an executed notebook as an HTML file below the exports that it shows: the same outputs, the same bytes.

    A picture that lies among these is linked, any other is held in the page. What needs a live kernel (widgets) is left
    out, and so are the ids that Jupyter draws at random.
    """
    import nbformat
    from nbconvert import HTMLExporter

    from cmpta_lib.report.export import record_files

    notebook = nbformat.read(executed, as_version=4)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        outputs = cell.get("outputs", [])
        cell.outputs = [one for one in outputs if "application/vnd.jupyter.widget-view+json" not in one.get("data", {})]
        if cell.cell_type != "code":
            del cell["outputs"]
    body, resources = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    title = notebook.cells[0].source.partition("\n")[0].lstrip("# ")
    body = _linked(body, page.parent.parent)
    colours = "\n".join(resources["inlining"]["css"])  # of the highlighted code
    with files.writing(page):
        page.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(page, _PAGE.format(title=escape(title), colours=colours, body=body))
    record_files(page.parent.parent, page)


def _linked(body: str, exports: Path) -> str:
    """The page's text, with each picture that is one of the exports as a link to it: a third of a page's bytes, once in git."""
    known = {base64.b64encode(path.read_bytes()).decode(): f"../{path.name}" for path in sorted(exports.glob("*.png"))}

    def link(found: re.Match[str]) -> str:
        return f'src="{known.get(found[1].replace(chr(10), ""), found[0][5:-1])}"'

    return re.sub(r'src="data:image/png;base64,([^"]*)"', link, body)
