"""Templates are what they should be, what they call exists, and wrong parameters stop them."""

import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from biox import notebook
from biox.config import Section, load_settings

ROOT = Path(__file__).parents[1]
SETTINGS = load_settings(ROOT / "params.yaml")
TEMPLATES = sorted((ROOT / "notebooks").glob("*.ipynb"))
pages = pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)


@cache
def cells(path):
    return nbformat.read(path, as_version=4).cells


def code(path):
    return [cell for cell in cells(path) if cell.cell_type == "code"]


def prose(path):
    return "\n".join(cell.source for cell in cells(path) if cell.cell_type == "markdown")


def tree(path):
    return ast.parse("\n".join(cell.source for cell in code(path)))


def test_pages_are_numbered_in_reading_order():
    assert len(TEMPLATES) >= 18
    assert [int(path.stem[:2]) for path in TEMPLATES] == list(range(1, len(TEMPLATES) + 1))


def test_templates_on_disk_are_what_git_stores(tmp_path):
    """DVC hashes the file on disk: if git's filter changed it, a fresh clone would be stale."""
    copies = [shutil.copy(path, tmp_path) for path in TEMPLATES]
    subprocess.run([sys.executable, "-m", "nbstripout", "--keep-id", *copies], check=True)
    changed = [p.name for p in TEMPLATES if (tmp_path / p.name).read_bytes() != p.read_bytes()]
    assert not changed, "run: nbstripout --keep-id notebooks/*.ipynb"


@pages
def test_a_page_is_valid_without_outputs_and_has_parameters_settings_and_provenance(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    assert not any(cell.outputs or cell.execution_count for cell in code(path))
    tags = [tag for cell in cells(path) for tag in cell.metadata.get("tags", [])]
    assert [tag for tag in tags if tag != "hide-input"] == ["parameters"]
    assert cells(path)[0].cell_type == "markdown" and cells(path)[0].source.startswith("# ")
    parameters, first, *_, last = code(path)
    assert parameters.metadata.tags == ["parameters"]
    for statement in ast.parse(parameters.source).body:
        assert isinstance(statement, ast.AnnAssign), ast.unparse(statement)
        ast.literal_eval(statement.value)
    assert list(notebook.declared_parameters(path)) == list(papermill.inspect_notebook(str(path)))
    assert f'load_parameters("{path.stem}", globals()' in first.source
    assert "provenance(run" in last.source
    assert re.findall(r"^## (Conclusion|Limits)$", prose(path), re.M) == ["Conclusion", "Limits"]


@pages
def test_a_page_imports_little_and_keeps_its_cells_short(path):
    statements = ast.walk(ast.parse(code(path)[1].source))
    imports = [n for n in statements if isinstance(n, ast.Import | ast.ImportFrom)]
    assert sum(n.end_lineno - n.lineno + 1 for n in imports) <= 5
    lengths = {cell.id: len(cell.source.splitlines()) for cell in code(path)}
    assert max(lengths.values()) <= 40, lengths


EXECUTED = sorted((ROOT / "notebooks" / "executed").glob("0[1-7]_*.ipynb"))


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: path.stem)
def test_pictures_of_method_pages_have_alternative_texts(path):
    """In the metadata of the cell that draws, from where the site takes it (else: the caption)."""
    for cell in code(path):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert len(cell.metadata.get("alt", "")) > 20, cell.source


def imported(path):
    """Name in a page -> what of biox it stands for: imports, and ``run`` with all settings."""
    known = {"run": notebook.Run(path.stem, SETTINGS, {}, {}, 0.0)}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "biox":
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                known[alias.asname or alias.name] = getattr(module, alias.name)
    source = "\n".join(cell.source for cell in code(path))
    if re.search(r"^settings(, \w+)* = run\.settings(,|$|\.for_direction)", source, re.M):
        known["settings"] = SETTINGS
    return known


def resolve(node, known):
    """What `name` or `name.attribute` stands for; None if it is not of biox."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = resolve(node.value, known)
        if isinstance(owner, type | ModuleType | notebook.Run | Section):
            return getattr(owner, node.attr)  # AttributeError: the page is behind the package
    return None


@pages
def test_what_a_page_asks_of_the_package_and_the_settings_exists(path):
    """A page that runs late would fail late."""
    known = imported(path)
    for node in ast.walk(tree(path)):
        resolve(node, known)
        target = resolve(node.func, known) if isinstance(node, ast.Call) else None
        if not callable(target) or any(isinstance(a, ast.Starred) for a in node.args):
            continue
        signature = inspect.signature(target)
        names = {k.arg: None for k in node.keywords if k.arg is not None}
        open_ended = any(k.arg is None for k in node.keywords)
        bind = signature.bind_partial if open_ended else signature.bind
        try:
            bind(*node.args, **names)
        except TypeError as error:
            pytest.fail(f"{ast.unparse(node.func)}: {error}")


# --- parameters -----------------------------------------------------------------------------------

PARAMETERS = """direction: str = "wesad-ppg2ecg"
rank: int = None
lr: float = None  # of Adam
seeds: list = None
share: float = 1.0"""
BEGIN = """from biox.notebook import load_parameters
run = load_parameters("page", globals(), section="bridge")
import pathlib
print(pathlib.Path.cwd(), run.settings.bridge.rank)"""


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A project with one page, from a folder below its root; threads stay as they are."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "notebooks").mkdir()
    first = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = new_notebook(cells=[first, new_code_cell(BEGIN)], metadata={"kernelspec": kernel})
    nbformat.write(book, tmp_path / "notebooks" / "page.ipynb")
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def load(**given):
    defaults = {"direction": "wesad-ppg2ecg", "rank": None, "lr": None, "seeds": None, "share": 1.0}
    return notebook.load_parameters("page", defaults | given, section="bridge")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rnak": 8}, "page: unknown parameter 'rnak'"),
        ({"_rank": 8, "_": 1, "_i3": "x", "_3": 1, "__name__": "x"}, "unknown parameter '_rank'"),
        ({"rank": "8"}, "parameter rank: expected int, found '8'"),
        ({"rank": True}, "parameter rank: expected int, found True"),
        ({"lr": "1e-4"}, "parameter lr: expected float, found '1e-4'"),
        ({"share": None}, "parameter share: expected float, found None"),
        ({"seeds": 3}, "parameter seeds: expected list, found 3"),
        ({"direction": None}, "parameter direction: expected str, found None"),
        ({"rank": 0}, "bridge.rank: .*greater than 0, found 0"),
        ({"seeds": [1, 1]}, r"seeds\W+expected each value once"),
        ({"direction": "wesad"}, "direction: expected one of .*'wesad-ppg2ecg'.*found 'wesad'"),
    ],
)
def test_wrong_parameters_stop(page, given, message):
    with pytest.raises(ValueError, match=message):
        load(**given)


def test_given_parameters_win_and_name_the_results(page):
    run = load(rank=8, lr=1, seeds=[4])
    assert (run.settings.bridge.rank, run.settings.bridge.lr) == (8, 1.0)
    assert run.settings.seeds == [4]
    assert run.name_of("wesad-ppg2ecg") == "wesad-ppg2ecg-lr1-rank8-seeds_4_"
    plain = load()
    assert plain.name_of("wesad-ppg2ecg") == "wesad-ppg2ecg" and plain.overridden == {}
    assert plain.settings == plain.settings.for_direction("wesad-ppg2ecg")
    own = load(direction="wesad-ppg2ecg-hubert_small", lr=0.5).settings
    assert own.bridge.lr == 0.5 and own.baselines.every == 5
    assert Path.cwd() == page


def test_papermill_passes_parameters_and_stops_at_an_unknown_one(page, tmp_path):
    out = tmp_path / "out.ipynb"
    done = papermill.execute_notebook("page.ipynb", out, {"rank": 3}, progress_bar=False)
    printed = "".join(output.text for output in done.cells[-1].outputs)
    assert printed.strip() == f"{page} 3"
    with pytest.raises(papermill.exceptions.PapermillExecutionError, match="parameter 'rnak'"):
        papermill.execute_notebook("page.ipynb", out, {"rnak": 3}, progress_bar=False)


def test_provenance_says_what_a_page_was_made_from(page):
    run, file = load(rank=8), page / "params.yaml"
    html = notebook.provenance(run, [file]).to_html()
    assert "rank=8" in html and "sha256" in html and "not in a git checkout" in html
