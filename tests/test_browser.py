"""The notebooks as a person meets them: in JupyterLab, in a real browser.

`make test-browser` asks for them. Needs Chromium (Debian: apt install chromium); the environment variable CHROMIUM names
another one. The pages are those of a smoke reproduction, made here.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from cmpta_lib.embedded.generative import generative_models
from cmpta_lib.method.prompted import Layout
from cmpta_lib.report.tables import Shown, Table
from cmpta_lib.study.plan import NOTEBOOKS

ROOT = Path(__file__).parents[1]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
NAMES = [notebook.name for notebook in NOTEBOOKS if not notebook.is_beyond]
RUN_AGAIN = ("01_data", "02_model", "03_training", "08_attention_figs3_4")
WIDTHS = (1400, 1000)  # of the window, px
A4 = 688  # px between margins of 14 mm
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine (Debian: apt install chromium)"),
]


@pytest.fixture(scope="module", autouse=True)
def asked_for(request: pytest.FixtureRequest) -> None:
    if "browser" not in request.config.getoption("-m"):
        pytest.skip("takes minutes and shows what a person sees: `make test-browser`")


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory) -> Path:
    """The runs folder of a smoke reproduction."""
    runs = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "cmpta_lib.cli", "reproduce", "--smoke"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"CMPTA_RUNS": str(runs)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs


@pytest.fixture(scope="module")
def pages(reproduced, tmp_path_factory) -> Path:
    """What JupyterLab shows: the executed notebooks, and below `again/` those to run once more."""
    folder = tmp_path_factory.mktemp("lab")
    for name in NAMES:
        shutil.copyfile(reproduced / "smoke" / "notebooks" / "demo" / f"{name}.ipynb", folder / f"{name}.ipynb")
    (folder / "again").mkdir()
    for name in RUN_AGAIN:
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = cell.source.replace("smoke = False", "smoke = True")
        nbformat.write(notebook, folder / "again" / f"{name}.ipynb")
    return folder


@pytest.fixture(scope="module")
def lab(reproduced, pages, tmp_path_factory) -> Iterator[str]:
    """Address of a JupyterLab of its own, which draws every cell, also those outside the window."""
    home = tmp_path_factory.mktemp("home")
    settings = home / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"windowingMode": "none"}))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{kind}_DIR": str(home / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    exports = tmp_path_factory.mktemp("again")
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "CMPTA_RUNS": str(reproduced), "CMPTA_FIGURES": str(exports)}
    own |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = ["--no-browser", f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=", "--allow-root"]
    options += ["--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={pages}"]
    log = (home / "log").open("w")
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=os.environ | own, stderr=log, stdout=log)
    address = f"http://localhost:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api").close()
                break
            except OSError:
                assert server.poll() is None, (home / "log").read_text()
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(30)
        log.close()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield chromium
        chromium.close()


def opened(browser, lab: str, name: str):
    """A page that shows this notebook, with all of its cells drawn."""
    page = browser.new_page(viewport=dict(zip(("width", "height"), WIDTHS, strict=True)))
    page.goto(f"{lab}/lab/tree/{name}.ipynb?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
    cells = len(nbformat.read(Path(ROOT / "notebooks" / f"{Path(name).name}.ipynb"), as_version=4).cells)
    page.wait_for_function(f"document.querySelectorAll('.jp-Notebook .jp-Cell').length >= {cells}", timeout=60_000)
    return page


def complaints(page) -> list[str]:
    """What a reader would take for broken: errors, widgets without a model, red stderr."""
    broken = page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").all_inner_texts()
    broken += page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts()
    text = page.locator(".jp-Notebook").inner_text()
    return broken + [word for word in ("Error displaying widget", "Loading weights", "Traceback") if word in text]


def pictures(page) -> list[bytes]:
    sources = page.eval_on_selector_all(".jp-Notebook .jp-OutputArea img", "images => images.map(image => image.src)")
    return [base64.b64decode(source.partition("base64,")[2]) for source in sources]


def cut(page, places: str = ".jp-Notebook .jp-OutputArea-output, .jp-Notebook .jp-OutputArea-output div") -> list[str]:
    """Outputs wider than their place, which a reader would have to scroll."""
    return page.eval_on_selector_all(
        places,
        "all => all.filter(one => one.scrollWidth > one.clientWidth + 2).map(one => one.innerText.slice(0, 80))",
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_executed_notebook_opens_whole(name: str, browser, lab, reproduced):
    """Nothing broken, nothing cut, and each exported picture is shown as it is exported."""
    page = opened(browser, lab, name)
    assert complaints(page) == [] and cut(page) == []
    exported, shown = [path.read_bytes() for path in (reproduced / "smoke/figures/demo").glob("*.png")], pictures(page)
    promised = [figure for notebook in NOTEBOOKS if notebook.name == name for figure in notebook.figures]
    assert sum(picture in exported for picture in shown) >= len(promised), "a figure is not shown as it is exported"
    page.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_whole_on_a_screen_and_on_paper(name: str, browser, reproduced):
    for media, width in (("screen", 1100), ("print", A4)):
        page = browser.new_page(viewport={"width": width, "height": 1000})
        page.emulate_media(media=media)
        page.goto((reproduced / "smoke/figures/demo/notebooks" / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width and cut(page, "body, body *") == [], media
        page.close()


def run_all(page) -> None:
    """Restart and Run All, until the last cell has run."""
    page.wait_for_function("window.jupyterapp !== undefined")
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=90_000)  # its kernel is there
    prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt:not(.jp-Placeholder-prompt)')]"  # of open cells
    page.wait_for_timeout(5_000)  # of a kernel that is restarted as it starts, the server and the page lose each other
    page.evaluate("void window.jupyterapp.commands.execute('notebook:restart-run-all')")
    page.locator(".jp-Dialog .jp-mod-accept").click(timeout=30_000)
    page.wait_for_function(
        f"{prompts}.every(one => /\\d/.test(one.innerText))",
        timeout=900_000,  # a notebook takes a minute or two alone, and far longer on a machine with other work
    )


@pytest.mark.parametrize("name", RUN_AGAIN)
def test_restart_and_run_all(name: str, browser, lab):
    page = opened(browser, lab, f"again/{name}")
    run_all(page)
    assert "Tables and figures are in" in page.locator(".jp-Notebook .jp-CodeCell >> nth=-1").inner_text()
    assert complaints(page) == [] and cut(page) == []
    page.close()


def test_choosing_another_clip_and_head_changes_the_picture(browser, lab):
    """In the picture's own place, and in no other; in a window of 1100 px nothing is cut."""
    page = opened(browser, lab, "again/08_attention_figs3_4")
    page.set_viewport_size({"width": 1100, "height": 1000})
    run_all(page)
    page.wait_for_selector(".jp-Notebook .widget-dropdown select", timeout=60_000)
    assert complaints(page) == [] and cut(page) == []
    for name, option in (("clip", 2), ("head", 1), ("pair", 1), ("row", 1)):
        before = pictures(page)
        page.locator(".widget-dropdown", has_text=name).first.locator("select").select_option(index=option)
        page.wait_for_function(
            "before => [...document.querySelectorAll('.jp-Notebook .jp-OutputArea img')].some((one, n) => one.src != before[n])",
            arg=[f"data:image/png;base64,{base64.b64encode(picture).decode()}" for picture in before],
            timeout=60_000,
        )
        changed = [number for number, picture in enumerate(pictures(page)) if picture != before[number]]
        assert len(changed) == 1, f"{name}: pictures {changed} changed"
    page.close()


def test_the_prompts_of_table_2_are_visible_whole(browser, lab):
    page = opened(browser, lab, "02_model")
    text = " ".join(page.locator(".jp-Notebook").inner_text().split())
    for world in generative_models().values():
        layout = Layout.of(world.task)
        for part in (layout.prompt, layout.open, layout.close):
            assert " ".join(part.split()) in text
    page.close()


SIGNS = ["for $31 a share, or $135 million", r"\(x\) \[y\] \$a\$ $$z$$", "*a* _b_ `c` <b>d</b> e|f #g [h](i) &amp; :smile:", "https://x.y/a_b"]


def test_signs_in_data_are_shown_as_they_are(browser, lab, pages):
    shown = Shown(Table.of(pd.DataFrame({"text": SIGNS})), SIGNS[0])._repr_markdown_()
    output = nbformat.v4.new_output("display_data", {"text/markdown": shown})
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=[output])]), pages / "signs.ipynb")
    page = browser.new_page()
    page.goto(f"{lab}/lab/tree/signs.ipynb?reset")
    page.wait_for_selector(".jp-RenderedMarkdown td", timeout=90_000)
    page.wait_for_timeout(3000)  # MathJax comes later
    assert page.locator(".jp-RenderedMarkdown td").all_inner_texts() == SIGNS
    page.close()
