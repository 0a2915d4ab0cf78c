"""Parameters are checked, the root is found from any folder, templates are what they should be."""

import ast
import importlib
from pathlib import Path

import nbformat
import papermill
import pytest

from biox import notebook

ROOT = Path(__file__).parent.parent
TEMPLATES = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)  # begin() moves to the root; undone after the test


def test_a_misspelt_parameter_is_refused():
    with pytest.raises(ValueError, match=r"found an unknown one, 'rnak' = 8"):
        notebook.begin("bridge", {"direction": "wesad-ppg2ecg", "rnak": 8}, section="bridge")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": "8"}, r"parameter rank: expected int or None, found '8' \(str\)"),
        ({"lr": "1e-4"}, r"parameter lr: expected float or None, found '1e-4' \(str\)"),
        ({"direction": None}, "parameter direction: expected str, found None"),
        ({"rank": True}, "parameter rank: expected int"),
        ({"rank": 0}, "bridge.rank: expected a number above 0, found 0"),
    ],
)
def test_wrong_values_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        notebook.begin("bridge", given, section="bridge")


def test_given_parameters_win_and_name_the_results():
    run = notebook.begin(
        "bridge", {"direction": "wesad-ppg2ecg", "rank": 8, "lr": 1, "seeds": [4]}, "bridge"
    )
    assert (run.settings.bridge.rank, run.settings.bridge.lr) == (8, 1.0)
    assert run.settings.seeds == (4,)
    assert run.name_of("wesad-ppg2ecg") == "wesad-ppg2ecg-lr1-rank8-seeds_4_"
    plain = notebook.begin("bridge", {"direction": "wesad-ppg2ecg", "rank": None}, "bridge")
    assert plain.name_of("wesad-ppg2ecg") == "wesad-ppg2ecg"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_tells_its_parameters_and_ends_with_provenance(path):
    declared = notebook.declared_parameters(path)
    inspected = papermill.inspect_notebook(str(path))
    assert list(declared) == list(inspected)  # papermill --help-notebook lists all of them
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert f'notebook.begin("{path.stem}", globals()' in cells[2].source
    assert "notebook.provenance(" in cells[-1].source
    assert not any("def " in cell.source for cell in cells if cell.cell_type == "code")
    assert max(len(cell.source.splitlines()) for cell in cells) <= 35  # a screen


@pytest.mark.parametrize("cwd", [".", "notebooks", "tests/golden"])
def test_root_is_found_from_any_folder(cwd, tmp_path):
    """The first cell of a template, executed from different working directories."""
    template = nbformat.read(ROOT / "notebooks" / "positions.ipynb", as_version=4)
    code = [cell for cell in template.cells if cell.cell_type == "code"]
    first = 'from biox import notebook\nrun = notebook.begin("positions", globals())\n'
    code[1].source = first + "import pathlib\nprint(pathlib.Path.cwd())"
    template.cells = code[:2]
    nbformat.write(template, tmp_path / "first.ipynb")
    done = papermill.execute_notebook(
        tmp_path / "first.ipynb", tmp_path / "out.ipynb", cwd=ROOT / cwd, progress_bar=False
    )
    text = "".join(o.get("text", "") for o in done.cells[-1].outputs if o.get("name") == "stdout")
    assert text.strip() == str(ROOT)


def test_papermill_stops_at_an_unknown_parameter(tmp_path):
    with pytest.raises(
        papermill.exceptions.PapermillExecutionError, match="unknown one, 'dirction'"
    ):
        papermill.execute_notebook(
            ROOT / "notebooks" / "positions.ipynb",
            tmp_path / "out.ipynb",
            {"dirction": "wesad-ecg2ppg"},
            cwd=ROOT,
            progress_bar=False,
        )


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_what_a_template_asks_of_the_package_exists(path):
    """Every attribute of a name imported from biox: a page that runs late would fail late."""
    cells = nbformat.read(path, as_version=4).cells
    tree = ast.parse("\n".join(cell.source for cell in cells if cell.cell_type == "code"))
    nodes, known = list(ast.walk(tree)), {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "biox":
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                known[alias.asname or alias.name] = getattr(module, alias.name)
    assert "notebook" in known
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = node.value.id
            assert name not in known or hasattr(known[name], node.attr), f"{name}.{node.attr}"
