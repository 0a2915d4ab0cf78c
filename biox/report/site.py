"""Executed notebooks as linked HTML pages, in reading order; nothing is executed."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from biox.files import written_whole

if TYPE_CHECKING:
    from nbformat import NotebookNode

PARTS = {
    "Results": (
        "table1",
        "table1_real",
        "table2_positions",
        "table3_backbones",
        "figure3",
        "figure4",
        "ablations",
        "controls",
        "efficiency",
        "deviations",
    ),
    "Step by step": (
        "simulate",
        "windows",
        "pretrain",
        "teacher",
        "activations",
        "positions",
        "bridge",
        "baselines",
    ),
    "The models": ("backbones", "benchmark"),
}
"""Templates in reading order. What is in none of the lists comes last, by name."""

REST = "Further pages"

TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{%- block body_header -%}{{ super() }}{{ resources.links }}{%- endblock -%}
{%- block body_footer -%}{{ resources.links }}{{ super() }}{%- endblock -%}
"""

STYLE = "font-family: sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em;"
BAR = "font-family: sans-serif; display: flex; gap: 2em; padding: 0.7em 2em;"


@dataclass(frozen=True)
class Page:
    """One executed notebook.

    Attributes
    ----------
    stem : str
        Of the file: a template, or template and item as in ``bridge-wesad-ppg2ecg``.
    part : str
        Heading it stands under in the index.
    title : str
        First heading, and the item.
    finished : bool
        False if a cell stopped with an error.
    """

    stem: str
    part: str
    title: str
    finished: bool
    content: "NotebookNode"


def build(
    executed: Path | str = "notebooks/executed", out: Path | str = "site", name: str = "biox"
) -> list[Path]:
    """Turn every executed notebook of a folder into a page, and write an index of them.

    Pages contain their pictures and link to the one before and after; only formulas need the web,
    as nbconvert has MathJax draw them. Pages of notebooks that are gone are removed.

    Returns
    -------
    list of Path
        The index, then the pages in reading order.

    Raises
    ------
    FileNotFoundError
        Nothing has been executed yet.
    ValueError
        A file is no notebook.
    """
    pages, out = read_pages(executed), Path(out)
    contents = {"index": _index(pages, name)}
    for i, page in enumerate(pages):
        before = pages[i - 1] if i else None
        after = pages[i + 1] if i + 1 < len(pages) else None
        contents[page.stem] = _html(page, _links(before, after))
    paths = []
    for stem, html in contents.items():
        paths.append(out / f"{stem}.html")
        with written_whole(paths[-1]) as part:
            part.write_text(html, encoding="utf-8")
    for stale in sorted(set(out.glob("*.html")) - set(paths)):
        stale.unlink()
    return paths


def read_pages(executed: Path | str) -> list[Page]:
    """Read executed notebooks in reading order; errors as in `build`."""
    import nbformat

    paths = sorted(Path(executed).glob("*.ipynb"))
    if not paths:
        raise FileNotFoundError(
            f"{executed}: expected executed notebooks, found none: run make repro first"
        )
    pages = []
    for path in paths:
        try:
            content = nbformat.read(path, as_version=4)
            nbformat.validate(content)
        except Exception as error:  # nbformat, jsonschema and json each have errors of their own
            why = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
            raise ValueError(f"{path}: expected a notebook, found something else ({why})") from None
        part, item = _place(path.stem)
        title = _heading(content, path.stem) + (f": {item}" if item else "")
        pages.append(Page(path.stem, part, title, _finished(content), content))
    return sorted(pages, key=lambda page: (*_rank(page.stem), page.stem))


def _place(stem: str) -> tuple[str, str]:
    """Part of the index, and item: ``bridge-wesad-ppg2ecg`` is ``wesad-ppg2ecg`` of `bridge`."""
    template, _, item = stem.partition("-")
    for part, templates in PARTS.items():
        if template in templates:
            return part, item
    return REST, ""


def _rank(stem: str) -> tuple[int, int]:
    template = stem.partition("-")[0]
    for i, templates in enumerate(PARTS.values()):
        if template in templates:
            return i, templates.index(template)
    return len(PARTS), 0


def _heading(content: "NotebookNode", stem: str) -> str:
    """First heading of a notebook's prose; its file's name if it has none."""
    for cell in content.cells:
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                if line.startswith("# "):
                    return line.removeprefix("# ").strip()
    return stem


def _finished(content: "NotebookNode") -> bool:
    outputs = [o for cell in content.cells if cell.cell_type == "code" for o in cell.outputs]
    return not any(output.output_type == "error" for output in outputs)


def _html(page: Page, links: str) -> str:
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        extra_loaders=[DictLoader({"linked.html.j2": TEMPLATE})],
        template_file="linked.html.j2",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    resources = {"links": links, "metadata": {"name": page.title}}
    return exporter.from_notebook_node(page.content, resources=resources)[0]


def _links(before: Page | None, after: Page | None) -> str:
    """Links to the page before, the index, and the page after."""
    shown = [
        (before.stem, f"← {before.title}") if before else None,
        ("index", "all pages"),
        (after.stem, f"{after.title} →") if after else None,
    ]
    inner = "".join(
        f'<a href="{stem}.html">{escape(text)}</a>' for stem, text in filter(None, shown)
    )
    return f'<nav style="{BAR}">{inner}</nav>'


def _index(pages: Sequence[Page], name: str) -> str:
    rows = []
    for part in (*PARTS, REST):
        items = "".join(
            f'<li><a href="{escape(page.stem)}.html">{escape(page.title)}</a>'
            + ("" if page.finished else " (stopped with an error)")
            + "</li>"
            for page in pages
            if page.part == part
        )
        rows.append(f"<h2>{escape(part)}</h2><ul>{items}</ul>" if items else "")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(name)}</title></head>"
        f'<body style="{STYLE}"><h1>{escape(name)}</h1>{"".join(rows)}</body></html>\n'
    )
