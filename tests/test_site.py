"""Executed notebooks become pages that link to each other, and nothing is executed."""

from html.parser import HTMLParser

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from biox.__main__ import main
from biox.report.site import build, read_pages

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Links(HTMLParser):
    """Targets of a page's links and the sources of its images."""

    def __init__(self, path):
        super().__init__()
        self.links, self.images = [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "a" and values.get("href", "").endswith(".html"):
            self.links.append(values["href"])
        if tag == "img":
            self.images.append(values["src"])


def write(folder, stem, heading, outputs=(), source="raise SystemExit('executed')"):
    code = new_code_cell(source, outputs=list(outputs))
    book = new_notebook(cells=[new_markdown_cell(f"# {heading}\n\nSome prose."), code])
    folder.mkdir(exist_ok=True)
    nbformat.write(book, folder / f"{stem}.ipynb")


@pytest.fixture
def executed(tmp_path):
    folder = tmp_path / "executed"
    picture = new_output("display_data", data={"image/png": PIXEL, "text/plain": "<Figure>"})
    write(folder, "bridge-wesad-ppg2ecg", "The bridge", [picture])
    write(folder, "table1", "Table 1: a < b")
    return folder


def test_pages_are_in_reading_order_and_linked(executed, tmp_path):
    paths = build(executed, tmp_path / "site")
    assert [path.name for path in paths] == [
        "index.html",
        "table1.html",
        "bridge-wesad-ppg2ecg.html",
    ]
    index, table, bridge = map(Links, paths)
    assert index.links == ["table1.html", "bridge-wesad-ppg2ecg.html"]
    assert set(table.links) == {"index.html", "bridge-wesad-ppg2ecg.html"}
    assert set(bridge.links) == {"index.html", "table1.html"}
    assert bridge.images == [f"data:image/png;base64,{PIXEL}"]  # nothing beside the page is needed
    text = paths[0].read_text()
    assert "Table 1: a &lt; b" in text and "The bridge: wesad-ppg2ecg" in text
    assert "<h2>Results</h2>" in text and "<h2>Step by step</h2>" in text
    assert "<title>The bridge: wesad-ppg2ecg</title>" in paths[2].read_text()


def test_the_same_notebooks_give_the_same_index(executed, tmp_path):
    first, second = (build(executed, tmp_path / name) for name in ("one", "two"))
    assert first[0].read_bytes() == second[0].read_bytes()


def test_pages_of_notebooks_that_are_gone_are_removed(executed, tmp_path):
    write(executed, "zebra", "Something new")
    assert (tmp_path / "site" / "zebra.html") == build(executed, tmp_path / "site")[-1]
    (executed / "zebra.ipynb").unlink()
    assert len(build(executed, tmp_path / "site")) == 3
    assert not (tmp_path / "site" / "zebra.html").exists()


def test_a_notebook_that_stopped_is_marked(executed, tmp_path):
    error = new_output("error", ename="ValueError", evalue="no", traceback=["no"])
    write(executed, "table1", "Table 1", [error])
    assert not read_pages(executed)[0].finished
    assert "stopped with an error" in build(executed, tmp_path / "site")[0].read_text()


def test_nothing_executed_and_foreign_files_are_errors(executed, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    arguments = ["report", "--executed", str(tmp_path / "empty"), "--out", str(tmp_path / "site")]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "expected executed notebooks, found none: run make repro first" in said
    assert not (tmp_path / "site").exists()
    (executed / "table1.ipynb").write_text('{"cells": [')
    with pytest.raises(ValueError, match=r"table1.ipynb: expected a notebook, found something"):
        build(executed, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_the_command_says_where_to_look(executed, tmp_path, capsys):
    out = tmp_path / "site"
    assert main(["report", "--executed", str(executed), "--out", str(out)]) == 0
    assert f"2 pages; open {out / 'index.html'}" in capsys.readouterr().out
