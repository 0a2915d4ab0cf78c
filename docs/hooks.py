"""What the site needs besides MkDocs and its plugins: which files are pages, how a notebook looks.

Pages keep the paths they have in the repository, so a link that works there works in the site.
"""

import json
import os
import posixpath
import re
from collections import Counter
from functools import cache
from html import unescape
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File
from mkdocs.structure.toc import get_toc

ROOT = Path(__file__).parents[1]
EXECUTED = "notebooks/executed"
TEXTS = ["README.md", "CONTRIBUTING.md", "THIRD_PARTY.md", "CHANGELOG.md"]
WORKED = ("wesad", "wesad-ppg2ecg", "ecg")  # whose pages lead through the method
LINES = 30  # of a cell whose code is shown unfolded
SETTINGS = yaml.safe_load((ROOT / "params.yaml").read_text())


# --- formulas -------------------------------------------------------------------------------------


def mathml(latex: str, block: bool = False) -> str:
    """Convert a formula to MathML, which browsers show without a script.

    Raises
    ------
    PluginError
        The converter does not know a command of the formula.
    """
    plain = re.sub(r"\\[bB]igg?[lrm]?(?![A-Za-z])", "", latex)  # sizes of brackets
    plain = re.sub(r"\\[lr]Vert(?![A-Za-z])", r"\\|", plain)  # of one height
    plain = re.sub(r"\\arg\s*\\(max|min)(?![A-Za-z])", r"\\arg\1", plain)
    try:
        found = convert(plain.strip(), display="block" if block else "inline")
    except Exception as error:
        raise PluginError(f"formula {latex!r}: {error!r}") from error
    if "\\" in found:
        raise PluginError(f"formula {latex!r}: it has a command that latex2mathml does not know")
    return found


def with_formulas(html: str) -> str:
    r"""Replace ``$...$`` and ``$$...$$`` outside of tags and code.

    Formulas that stand side by side, with ``\qquad`` between them, stand one below the other where
    a page is narrow.
    """

    def replace(match):
        if match["inline"]:
            return mathml(unescape(match["inline"]))
        if not match["block"]:
            return match[0]
        parts = unescape(match["block"]).split(r"\qquad")
        if any(part.count("{") != part.count("}") for part in parts):
            parts = [r"\qquad".join(parts)]
        return (
            f'<span class="formula">{" ".join(mathml(part, block=True) for part in parts)}</span>'
        )

    skipped = r"<(?P<tag>pre|code)\b.*?</(?P=tag)>|<[^>]*>"
    formula = r"(?<!\\)\$\$(?P<block>.+?)\$\$|(?<![\\$])\$(?P<inline>[^$]+?)(?<!\\)\$"
    return re.sub(f"{skipped}|{formula}", replace, html, flags=re.DOTALL)


# --- which pages there are ------------------------------------------------------------------------


@cache
def notebooks() -> dict[str, dict]:
    """Name of each executed notebook, such as ``06_bridge-wesad-ppg2ecg`` -> its content."""
    paths = sorted((ROOT / EXECUTED).glob("*.ipynb"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


def item_of(name: str) -> str:
    """What a notebook ran on: a data set, direction, model or setting; empty: all of them."""
    return name.partition("-")[2]


def data_set(item: str) -> str:
    """Name of the data set that a direction, a setting or a data set is about; else empty."""
    if item in SETTINGS["ablations"]["runs"]:
        item = SETTINGS["ablations"]["direction"]
    if item in SETTINGS["directions"]:
        return SETTINGS["directions"][item]["dataset"]
    return item if item in SETTINGS["datasets"] else ""


def kind(data: str) -> str:
    """Tell whether a data set of the settings is simulated or real."""
    return "simulated" if SETTINGS["datasets"][data]["source"] == "simulated" else "real"


def heading(name: str) -> str:
    """First heading of an executed notebook."""
    text = "".join(notebooks()[name]["cells"][0]["source"])
    return re.search(r"^# (.+)", text, re.MULTILINE)[1]


def title(name: str) -> str:
    """Heading and what it ran on: ``The bridge (WESAD: PPG → ECG)``."""
    data, way = data_set(item_of(name)).upper(), direction(item_of(name))
    item = f"{data}: {way}" if way else data or item_of(name)
    return f"{heading(name)} ({item})" if item else heading(name)


def direction(item: str) -> str:
    """Write out the modalities of a direction, and its new model if it is not the usual one."""
    known = SETTINGS["directions"].get(item)
    if not known:
        return item if item in SETTINGS["ablations"]["runs"] else ""
    model = f", {known['new_model']}" if "new_model" in known else ""
    return f"{known['old'].upper()} → {known['new'].upper()}{model}"


def navigation() -> list:
    """Results, the method on one direction, every other direction, reference."""
    results, method = [], []
    more = {f"{data.upper()} ({kind(data)})": [] for data in SETTINGS["datasets"]}
    more |= {"Pretrained models": [], "Other settings": []}
    for name in sorted(notebooks(), key=lambda name: (item_of(name), name)):
        item, data, page = item_of(name), data_set(item_of(name)), f"{EXECUTED}/{name}.ipynb"
        if not item:
            results.append({heading(name): page})
        elif item in WORKED:
            method.append((page, {heading(name): page}))
        elif item in SETTINGS["ablations"]["runs"]:
            more["Other settings"].append({title(name): page})
        else:
            group = f"{data.upper()} ({kind(data)})" if data else "Pretrained models"
            more[group].append({title(name): page})
    more = [{group: pages} for group, pages in more.items() if pages]
    return [
        {"Overview": TEXTS[0]},
        *([{"Results": results}] if results else []),
        *([{"Method": [entry for _, entry in sorted(method)]}] if method else []),
        *([{"All directions": more}] if more else []),
        {"Reference": [f"reference/{name}.md" for name in ("method", "models", "data", "results")]},
        {"About": [{"Contributing": TEXTS[1]}, {"Licences": TEXTS[2]}, {"Changes": TEXTS[3]}]},
    ]


@event_priority(100)  # before the plugin that turns notebooks into pages
def on_files(files, config):
    """Add what lies outside of docs/: texts, executed notebooks, and the files that they link."""
    notebooks.cache_clear()
    config.nav = navigation()
    pages = [*TEXTS, *(f"{EXECUTED}/{name}.ipynb" for name in notebooks())]
    linked = {page_of(path) for page in pages for path in targets(page)} - {None, *pages}
    for path in [*pages, *sorted(linked)]:
        if (ROOT / path).is_file():
            files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
        elif path.endswith(".md") and "#" not in path:  # a file of text, shown as a page
            source = path.removesuffix(".md")
            language = "yaml" if source.endswith((".yaml", ".cff")) else "text"
            text = f"# {source}\n\n````{language}\n{(ROOT / source).read_text()}\n````\n"
            files.append(File.generated(config, path, content=text))
    font = distribution("ziamath").locate_file("ziamath/fonts/STIXTwoMath-Regular.ttf")
    files.append(File.generated(config, "assets/math.ttf", abs_src_path=str(font)))
    return files


def targets(page: str) -> set[str]:
    """Paths in the repository that a Markdown file or an executed notebook links."""
    if page.endswith(".ipynb"):
        cells = notebooks()[posixpath.basename(page).removesuffix(".ipynb")]["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    else:
        text = (ROOT / page).read_text()
    links = [urlsplit(link) for link in re.findall(r'(?:\]\(|src="|href=")([^)\s"]+)', text)]
    return {in_repository(link.path, page) for link in links if link.path and not link.scheme}


def in_repository(path: str, page: str) -> str:
    """Path of a file that a page links."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(path)))


@cache
def modules() -> dict[str, str]:
    """File of the package -> where the reference describes it."""
    found = {}
    for path in (ROOT / "docs/reference").glob("*.md"):
        for name in re.findall(r"^::: (\S+)", path.read_text(), re.MULTILINE):
            file, where = name.replace(".", "/"), f"reference/{path.name}#{name}"
            found |= dict.fromkeys((file, f"{file}.py", f"{file}/__init__.py"), where)
    return found


def page_of(path: str, item: str = "") -> str | None:
    """Page or file of the site that shows a file of the repository; None: there is none.

    A template (``06_bridge.ipynb``) is shown by its execution, if there is one on the same data as
    the page that links it.
    """
    if path in modules():
        return modules()[path]
    if path.startswith("notebooks/") and path.endswith(".ipynb"):
        name = posixpath.basename(path).removesuffix(".ipynb")
        choices = [name, *(f"{name}-{item}" for item in (item, data_set(item), *WORKED))]
        found = [choice for choice in choices if choice in notebooks()]
        return f"{EXECUTED}/{found[0]}.ipynb" if found else None
    if not (ROOT / path).is_file():
        return None
    return path if path.endswith((".md", ".png", ".svg", ".csv")) else f"{path}.md"


def moved(link: str, page: str) -> str | None:
    """Rewrite a link of a page of the repository; None: nothing in the site is there."""
    parts = urlsplit(link)
    if parts.scheme:
        return link
    if not parts.path:
        return link.lower() if page.endswith(".ipynb") else link
    item = item_of(posixpath.basename(page).removesuffix(".ipynb"))
    target = page_of(in_repository(parts.path, page), item)
    if target is None:
        return None
    anchor = f"#{parts.fragment}" if parts.fragment and "#" not in target else ""
    anchor = anchor.lower() if target.endswith(".ipynb") else anchor  # as nbconvert writes them
    return os.path.relpath(target, posixpath.dirname(page) or ".") + anchor


def on_page_markdown(markdown, page, config, files):
    """Rewrite the links of the repository's Markdown files."""

    def replace(match):
        target = moved(match[2], page.file.src_uri)
        return match[1] if target is None else f"[{match[1]}]({target})"

    if page.file.src_uri not in TEXTS:
        return markdown
    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", replace, markdown)


# --- how a notebook looks -------------------------------------------------------------------------


def on_page_content(html, page, config, files):
    """Make a notebook's page light, readable on a phone, and complete without a network."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    name = posixpath.basename(page.file.src_uri).removesuffix(".ipynb")
    start = html.index('<div class="jupyter-wrapper">')  # before it: 600 kB of styles and scripts
    soup = BeautifulSoup(html[start : html.rindex("<style>")], "html.parser")
    for style in soup.find_all(["style", "script"]):
        if style.name == "script" or "#T_" not in style.get_text():  # of a pandas Styler
            style.decompose()
    for area in soup.find_all(class_="jp-RenderedHTML"):
        for table in area.find_all("table"):
            table["class"], table["data-search-exclude"] = "dataframe", ""
    fold_code(soup)
    describe_pictures(soup, notebooks()[name]["cells"])
    for link in soup.find_all("a", href=True):
        target = moved(link["href"], page.file.src_uri)
        if target is None:
            link.unwrap()
        elif not urlsplit(target).scheme:
            target = re.sub(r"(^|/)README\.md(?=$|#)", r"\1index.md", target)
            link["href"] = re.sub(r"\.(md|ipynb)(?=$|#)", ".html", target)
    soup.find("h1").insert_after(recordings(soup, name))
    page.toc = get_toc(table_of_contents(soup))
    return with_formulas(str(soup))


def fold_code(soup):
    """Put code into the theme's blocks; imports, parameters and long cells are folded."""
    for copy in soup.find_all(class_="clipboard-copy-txt"):
        source = copy.get_text().strip()
        n_lines = len(source.splitlines())
        tags = {c.removeprefix("celltag_") for c in copy.find_parent(class_="jp-Cell")["class"]}
        code = copy.find_previous_sibling(class_="highlight-ipynb")
        code["class"], code["data-search-exclude"] = ["highlight"], ""
        code.pre.wrap(soup.new_tag("pre"))
        code.pre.pre.name = "code"
        copy.find_parent(class_="jp-InputArea-editor").replace_with(code)
        if "injected-parameters" in tags:
            what = "Parameters of this run"
        elif "parameters" in tags:
            what = "Parameters"
        elif re.match(r"(from|import) ", source):
            what = "Imports, settings and data"
        elif "hide-input" in tags or n_lines > LINES:
            what = "Code"
        else:
            continue
        folded = code.wrap(soup.new_tag("details", attrs={"class": "code"}))
        summary = soup.new_tag("summary", attrs={"data-search-exclude": ""})
        summary.string = f"{what} ({n_lines} line{'s' * (n_lines > 1)})"
        folded.insert(0, summary)
    for prompt in soup.find_all(class_=["jp-InputPrompt", "jp-OutputPrompt", "jp-Collapser"]):
        prompt.decompose()


def describe_pictures(soup, cells):
    """Give pictures their alternative text: of output or cell, else the caption below."""
    texts = []
    for cell, below in zip(cells, [*cells[1:], {"source": ""}], strict=True):
        caption = re.match(r"\*(?!\*)(.+?)\*(\n|$)", "".join(below["source"]), re.DOTALL)
        for output in cell.get("outputs", []):
            for mime in ("image/svg+xml", "image/png"):
                if mime in output.get("data", {}):
                    text = output["metadata"].get(mime, {}).get("alt") or cell["metadata"].get(
                        "alt"
                    )
                    texts.append(text or (caption[1] if caption else None))
                    break
    areas = soup.find_all(class_=["jp-RenderedImage", "jp-RenderedSVG"])
    for area, text in zip(areas, texts, strict=True):
        above = area.find_previous(["h1", "h2", "h3"]).get_text(strip=True).rstrip("¶")
        area.img["alt"] = re.sub(r"[*`$\\]", "", " ".join((text or above).split()))


def recordings(soup, name):
    """Say whether recordings are simulated or real: those that it ran on, else those it shows."""
    used = {data_set(item_of(name))} - {""}
    if not item_of(name):
        outputs = soup.find_all(class_="jp-OutputArea-output")
        shown = " ".join(output.get_text(" ") for output in outputs).lower()
        used = {data for data in SETTINGS["datasets"] if re.search(rf"\b{data}\b", shown)}
    line = soup.new_tag("p", attrs={"class": "data"})
    for which in ("simulated", "real"):
        names = sorted(data.upper() for data in used if kind(data) == which)
        if names:
            badge = soup.new_tag("span", attrs={"class": f"badge {which}"})
            badge.string = f"{which} recordings: {', '.join(names)}"
            line.append(badge)
    line.append(direction(item_of(name)))
    if not used:
        badge = soup.new_tag("span", attrs={"class": "badge simulated"})
        badge.string = "simulated signals"
        line.append(badge)
    return line


def table_of_contents(soup):
    """Headings with the anchors that they have in the page."""
    top, ids = [], Counter()
    for found in soup.find_all(["h1", "h2", "h3"]):
        for anchor in found.find_all("a", class_="anchor-link"):
            anchor.decompose()
        text, level = " ".join(found.get_text().split()), int(found.name[1])
        ids[found["id"]] += 1
        if ids[found["id"]] > 1:
            found["id"] += f"-{ids[found['id']]}"
        parent = top
        while parent and parent[-1]["level"] < level:
            parent = parent[-1]["children"]
        known = {"level": level, "id": found["id"], "name": text, "html": text}
        parent.append({**known, "data-toc-label": "", "children": []})
    return top


def on_post_build(config):
    """Drop the page that only a server shows: opened from disk, its paths lead nowhere."""
    Path(config.site_dir, "404.html").unlink()
