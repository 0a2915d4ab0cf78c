"""The site: formulas without a script, links that lead somewhere, nothing from another host."""

import importlib.util
import posixpath
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

pytest.importorskip("mkdocs", reason="make venv installs what builds the site")

from mkdocs.commands.build import build  # noqa: E402
from mkdocs.config import load_config  # noqa: E402
from mkdocs.exceptions import PluginError  # noqa: E402

ROOT = Path(__file__).parents[1]
TEMPLATES = sorted((ROOT / "notebooks").glob("*.ipynb"))
MML = "{http://www.w3.org/1998/Math/MathML}"


spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)


# --- formulas -------------------------------------------------------------------------------------


def prose(path):
    cells = nbformat.read(path, as_version=4).cells
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_each_formula_of_a_page_becomes_mathml(path):
    html = hooks.with_formulas(prose(path).replace("<", "&lt;"))
    assert "$" not in html
    formulas = re.findall(r"<math.*?</math>", html, re.DOTALL)
    found = html.count('<span class="formula">') + html.count('display="inline"')
    assert found == prose(path).replace("$$", "$").count("$") / 2
    for formula in formulas:
        assert ET.fromstring(formula).tag == f"{MML}math" and "\\" not in formula


def test_parts_of_a_formula_stay_where_they_are():
    fraction = ET.fromstring(hooks.mathml(r"\frac{a_1}{b}", block=True))
    assert fraction.get("display") == "block"
    above, below = fraction.find(f".//{MML}mfrac")
    assert "".join(above.itertext()) == "a1" and "".join(below.itertext()) == "b"
    largest = ET.fromstring(hooks.mathml(r"\arg\max_m \big\lVert x \big\rVert"))
    assert re.sub(r"\s", "", "".join(largest.itertext())) == "argmaxm‖x‖"
    assert hooks.with_formulas(r"$$a,\qquad b$$").count("<math") == 2
    assert hooks.with_formulas(r"$$\frac{a \qquad b}{c}$$").count("<math") == 1


def test_what_is_no_formula_stays():
    for html in ["<pre>a $x$</pre>", "<code>$x$</code>", '<img alt="$x$">', "5 $"]:
        assert hooks.with_formulas(html) == html
    assert "<mo>&#x0003C;</mo>" in hooks.with_formulas("$a &lt; b$")


def test_an_unknown_command_stops_the_build():
    with pytest.raises(PluginError, match="nosuchcommand"):
        hooks.mathml(r"\nosuchcommand x")


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [*TEMPLATES, *(ROOT / name for name in hooks.TEXTS)], ids=lambda path: path.name
)
def test_links_of_pages_name_files(path):
    """Executed pages are there after `make repro` only; a template of that name stands for them."""
    text = prose(path) if path.suffix == ".ipynb" else path.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        parts = urlsplit(link)
        if parts.scheme or not parts.path:
            continue
        target = (path.parent / unquote(parts.path)).resolve()
        template = ROOT / "notebooks" / f"{target.stem.partition('-')[0]}.ipynb"
        assert target.exists() or (target.suffix == ".ipynb" and template.exists()), link


# --- the whole site -------------------------------------------------------------------------------

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAF"
    "AAH/iZk9HQAAAABJRU5ErkJggg=="
)
MADE = """# A page made for this test
With $x_1$ and $$y = \\frac{1}{2} \\lVert x \\rVert.$$
See [the bridge](06_bridge.ipynb), [its code](../../biox/bridge.py),
[a page that nobody ran](03_pretrain.ipynb),
[a section](#A-section), [the settings](../../params.yaml) and [README](../../README.md)."""


def made_notebook():
    """One cell of each kind that the site treats in its own way."""

    def picture(alt=None):
        metadata = {"image/png": {"alt": alt}} if alt else {}
        return new_output("display_data", data={"image/png": PIXEL}, metadata=metadata)

    printed = new_output("stream", name="stdout", text="bidmc-ppg2ecg: real, $5 <b>\n")
    cells = [
        new_markdown_cell(MADE),
        new_code_cell("n: int = 1", metadata={"tags": ["parameters"]}),
        new_code_cell("import this\nimport that", outputs=[printed]),
        new_markdown_cell("## A section"),
        new_code_cell("draw()", outputs=[picture("A *red* dot")]),
        new_code_cell("draw_again()", outputs=[picture()]),
        new_markdown_cell("*A blue dot, of size $r$.*\n\nMore."),
        new_code_cell("draw_last()", outputs=[picture()]),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site of a copy of the repository that has only two executed pages and a made one."""
    root = tmp_path_factory.mktemp("repository")
    for name in [*hooks.TEXTS, "mkdocs.yml", "params.yaml", "CITATION.cff"]:
        shutil.copy(ROOT / name, root / name)
    for name in ["docs", "figures", "biox"]:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "data/recordings").mkdir(parents=True)
    shutil.copy(ROOT / "data/recordings/README.md", root / "data/recordings")
    for name in ["models", "data", "results"]:  # the whole reference takes longer
        (root / f"docs/reference/{name}.md").write_text(f"# {name}\n")
    executed = root / hooks.EXECUTED
    executed.mkdir(parents=True)
    for name in ["06_bridge-wesad-ppg2ecg", "08_table1"]:
        shutil.copy(ROOT / hooks.EXECUTED / f"{name}.ipynb", executed)
    nbformat.write(made_notebook(), executed / "99_made.ipynb")
    config = load_config(str(root / "mkdocs.yml"), site_dir=str(root / "site"))
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return root / "site"


@pytest.fixture(scope="module")
def pages(site):
    paths = {path.relative_to(site).as_posix(): path for path in site.rglob("*.html")}
    return {name: BeautifulSoup(path.read_text(), "html.parser") for name, path in paths.items()}


def values(page, attribute, tag=True):
    return [found[attribute] for found in page.find_all(tag, {attribute: True})]


def loads(page):
    """What a browser fetches for a page."""
    fetched = [values(page, name) for name in ("src", "srcset", "poster")]
    return sum(fetched, values(page, "href", "link"))


def test_every_link_and_picture_of_the_site_is_on_disk(site, pages):
    missing, anchors = [], {n: values(p, "id") + values(p, "name") for n, p in pages.items()}
    for name, page in pages.items():
        for link in loads(page) + values(page, "href", "a"):
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto", "data"):
                continue
            path = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path)))
            path = path if parts.path else name
            known = path in pages and parts.fragment and parts.fragment != "__skip"
            if not (site / path).is_file() or (known and parts.fragment not in anchors[path]):
                missing.append(f"{name}: {link}")
    assert not missing


def test_nothing_is_asked_of_another_host(site, pages):
    links = [urlsplit(link) for page in pages.values() for link in loads(page)]
    assert not [link for link in links if link.scheme not in ("", "data") or link.netloc]
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.findall(r"url\([\"']?(?:https?:)?//|@import", styles)


def test_every_picture_has_an_alternative_text(pages):
    alts = {name: [img.get("alt") for img in page("img")] for name, page in pages.items()}
    assert all(alt and "No description" not in alt for found in alts.values() for alt in found)
    expected = ["A red dot", "A blue dot, of size r.", "A section"]
    assert alts[f"{hooks.EXECUTED}/99_made.html"] == expected


def test_a_notebook_page_is_complete_and_light(site):
    html = (site / hooks.EXECUTED / "99_made.html").read_text()
    main = html[html.index("<article") : html.index("</article>")]
    assert main.count("<math") == 3 and "$5 &lt;b&gt;" in main
    assert "<script" not in main and "<style" not in main and len(main) < 20_000
    assert re.findall(r"<summary[^>]*>(.*?)</summary>", main) == [
        "Parameters (1 line)",
        "Imports, settings and data (2 lines)",
    ]
    links = dict(re.findall(r'<a href="([^"]*)"[^>]*>([^<]*)</a>', main))
    assert links["06_bridge-wesad-ppg2ecg.html"] == "the bridge"
    assert links["../../reference/method.html#biox.bridge"] == "its code"
    assert links["../../index.html"] == "README"
    assert links["../../params.yaml.html"] == "the settings"
    assert "a page that nobody ran" in main and "03_pretrain" not in main


def test_simulated_and_real_are_marked(site):
    def badges(name):
        html = (site / hooks.EXECUTED / f"{name}.html").read_text()
        return re.findall(r'<span class="badge \w+">(.*?)</span>', html)

    assert badges("99_made") == ["real recordings: BIDMC"]
    assert badges("06_bridge-wesad-ppg2ecg") == ["simulated recordings: WESAD"]
    assert badges("08_table1") == [
        "simulated recordings: DREAMER, FOG, ISRUC, WESAD",
        "real recordings: BIDMC, EEGMAT",
    ]


def test_the_search_finds_pages_and_reference(site):
    index = (site / "search" / "search_index.js").read_text()
    places = set(re.findall(r'"location": ?"([^"]*)"', index))
    assert {f"{hooks.EXECUTED}/99_made.html#a-section", "index.html"} <= places
    assert "reference/method.html#biox.bridge.PrototypeBridge" in places
