"""The files around the package agree, and the repository stays small and portable."""

import configparser
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import biox

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(r) for r in PROJECT["dependencies"] + sum(EXTRAS.values(), [])]
TEMPLATES = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 1_000_000  # bytes of a file in git
# Absolute paths into somebody's home or scratch folder, on Linux, macOS or Windows.
MACHINE_PATH = re.compile(
    r"(?<![\w./~:<>-])/(?:home|root|Users|work|tmp|scratch|mnt)/\w|\b[A-Z]:\\+Users\\"
)


def pins() -> dict[str, Version]:
    """Name to version, of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    pairs = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    assert all(pairs), [line for line, pair in zip(lines, pairs, strict=True) if not pair]
    return {canonicalize_name(pair[1]): Version(pair[2]) for pair in pairs}


@cache
def repository_files() -> list[Path]:
    """Files that are in git or would be added by ``git add .``."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: there is no list of tracked files to look at")
    paths = [ROOT / name for name in sorted(set(listed.stdout.split("\0"))) if name]
    return [path for path in paths if path.is_file()]


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda r: r.name)
def test_each_dependency_has_a_lower_bound_and_a_pin_above_it(requirement):
    assert [s.operator for s in requirement.specifier] == [">="]
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_pins_leave_the_kind_of_machine_open():
    assert not [name for name in pins() if name.startswith(("nvidia", "triton", "biox"))]


def test_pins_are_the_installed_versions():
    """What the tests ran with is what requirements.txt promises."""
    from importlib.metadata import distributions

    installed = {
        canonicalize_name(d.metadata["Name"]): Version(d.version).public for d in distributions()
    }
    differ = {
        name: (str(pin), installed[name])
        for name, pin in pins().items()
        if name in installed and str(pin) != installed[name]
    }
    assert not differ, f"(requirements.txt, installed): {differ}; run `make venv`"


def test_environment_installs_the_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"] == "biox"
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pip == ["-r requirements.txt", "-e ."]


def test_python_versions_agree():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert "python=3.11" in environment["dependencies"]
    assert PROJECT["requires-python"] == ">=3.11.5,<3.12"
    assert sys.version_info[:2] == (3, 11)


def test_version_is_the_same_everywhere():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == biox.__version__
    assert f"\n## {biox.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_there_are_notebooks():
    assert TEMPLATES, "expected notebook templates in notebooks/, found none"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_template_has_one_parameters_cell_and_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    assert sum("parameters" in t for t in tags) == 1
    assert not any("injected-parameters" in t for t in tags)
    assert not any(cell.outputs for cell in code)
    assert all(cell.execution_count is None for cell in code)


def test_templates_on_disk_are_what_git_stores(tmp_path):
    """DVC hashes the file on disk: if git's filter changed it, a fresh clone would be stale."""
    copies = [shutil.copy(path, tmp_path) for path in TEMPLATES]
    subprocess.run([sys.executable, "-m", "nbstripout", "--keep-id", *copies], check=True)
    changed = [p.name for p in TEMPLATES if (tmp_path / p.name).read_bytes() != p.read_bytes()]
    assert not changed, "run: nbstripout --keep-id notebooks/*.ipynb"


def test_no_large_file_in_git():
    large = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in repository_files()}
    assert not {name: size for name, size in large.items() if size > LARGEST}


def test_no_machine_paths_in_git():
    found = []
    for path in repository_files():
        content = path.read_bytes()
        if b"\0" not in content:
            text = content.decode("utf-8", errors="replace")
            name = path.relative_to(ROOT).as_posix()
            found += [f"{name}: {match[0]}..." for match in MACHINE_PATH.finditer(text)]
    assert not found


def test_dvc_asks_and_reports_nothing():
    config = configparser.ConfigParser()
    config.read_string("\n".join(map(str.strip, (ROOT / ".dvc/config").read_text().splitlines())))
    assert not config.getboolean("core", "analytics")
    assert not config.getboolean("core", "check_update")
    assert not config.getboolean("core", "autostage")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see /ho" + "me/ann/biox", True),
        ("'/tm" + "p/x'", True),
        ("C:\\Use" + "rs\\ann", True),
        ("https://host/home/page", False),
        ("data/raw/work/x", False),
        ("~/data/x", False),
    ],
)
def test_machine_paths_are_told_from_others(text, found):
    assert bool(MACHINE_PATH.search(text)) == found
