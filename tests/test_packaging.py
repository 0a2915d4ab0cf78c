"""The files around the package agree, and the repository stays small, thin and portable."""

import ast
import configparser
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import biox

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(r) for r in PROJECT["dependencies"] + sum(EXTRAS.values(), [])]
PYTHONS = ("3.11.2", "3.11.7", "3.12.3", "3.13.5")  # of Debian 12, here, Ubuntu 24.04, Debian 13
SOURCES = sorted((ROOT / "biox").rglob("*.py"))
# Absolute paths into somebody's home or scratch folder, on Linux, macOS or Windows.
MACHINE_PATH = re.compile(
    r"(?<![\w./~:<>-])/(?:home|root|Users|work|tmp|scratch|mnt)/\w|\b[A-Z]:\\+Users\\"
)


def lines(paths):
    return sum(len(path.read_text().splitlines()) for path in paths)


def pins(python: str) -> dict[str, Version]:
    """Name to version, of requirements.txt, on one Python."""
    environment = {"python_full_version": python, "python_version": ".".join(python.split(".")[:2])}
    found = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            if requirement.marker is None or requirement.marker.evaluate(environment):
                name = canonicalize_name(requirement.name)
                assert name not in found, f"{name} is pinned twice on Python {python}"
                found[name] = Version(pin.version)
    return found


@cache
def repository_files() -> list[Path]:
    """Files that are in git or would be added by ``git add .``."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: there is no list of tracked files to look at")
    paths = [ROOT / name for name in sorted(set(listed.stdout.split("\0"))) if name]
    return [path for path in paths if path.is_file()]


# --- budgets: for readers, see CONTRIBUTING ------------------------------------------------------


def test_the_package_is_thin():
    assert lines(SOURCES) <= 11500
    assert not {path.name: lines([path]) for path in SOURCES if lines([path]) > 500}
    entries = [path.name for path in (ROOT / "biox").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 18, sorted(entries)


@pytest.mark.parametrize(
    ("pattern", "most"), [("dvc.yaml", 390), ("README.md", 120), ("tests/*.py", 9000)]
)
def test_what_stands_around_it_is_thin(pattern, most):
    assert lines(ROOT.glob(pattern)) <= most


# --- dependencies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("python", PYTHONS)
def test_each_dependency_has_a_lower_bound_and_a_pin_above_it(python):
    for requirement in REQUIREMENTS:
        assert [s.operator for s in requirement.specifier] == [">="], requirement
        pin = pins(python)[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), requirement


def test_pins_leave_the_kind_of_machine_open():
    names = pins(PYTHONS[0])
    assert not [name for name in names if name.startswith(("nvidia", "triton", "biox"))]


def test_installed_packages_are_the_pinned_ones_and_take_every_python():
    """What the tests ran with is what requirements.txt promises."""
    pinned = pins(".".join(map(str, sys.version_info[:3])))
    for package in distributions():
        name = canonicalize_name(package.metadata["Name"])
        if name in pinned:
            installed = Version(package.version).public
            assert str(pinned[name]) == installed, f"{name} {installed}: run `make venv`"
            takes = SpecifierSet(package.metadata.get("Requires-Python") or "")
            assert not [python for python in PYTHONS if python not in takes], name


def imports(text):
    """Top-level packages that a source imports."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


def test_what_is_imported_is_declared():
    """In the package and in the notebooks; the tests may also use what only developers have."""
    texts = [path.read_text() for path in SOURCES]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        texts += [cell.source for cell in cells if cell.cell_type == "code"]
    used = {name for text in texts for name in imports(text)} - sys.stdlib_module_names - {"biox"}
    optional = sum((EXTRAS[extra] for extra in EXTRAS if extra != "dev"), [])
    declared = [Requirement(r).name for r in PROJECT["dependencies"] + optional]
    declared = {canonicalize_name(name) for name in declared}
    packages = packages_distributions()  # an extra may not be installed
    names = [name for module in used for name in packages.get(module, [module.replace("_", "-")])]
    names = set(map(canonicalize_name, names))
    assert names <= declared, names - declared


def test_environment_installs_the_pins_on_the_same_pythons():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"] == "biox"
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-r requirements.txt", "-e ."]}
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]


def test_python_versions_agree():
    accepted = SpecifierSet(PROJECT["requires-python"])
    assert all(python in accepted for python in PYTHONS)
    assert "3.10.13" not in accepted and "3.14.0" not in accepted
    classifiers = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if "Python ::" in c]
    assert classifiers == ["3.11", "3.12", "3.13"]
    assert "(3, 11) <= sys.version_info < (3, 14)" in (ROOT / "Makefile").read_text()


def test_version_and_licence_are_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == biox.__version__
    assert f"\n## {biox.__version__} " in (ROOT / "CHANGELOG.md").read_text()
    assert citation["license"] == PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    assert all((ROOT / name).is_file() for name in PROJECT["license-files"])


# --- files in git ---------------------------------------------------------------------------------


def test_no_large_file_in_git():
    sizes = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in repository_files()}
    weights = [name for name in sizes if name.startswith("data/pretrained/")]
    recordings = [name for name in sizes if name.startswith("data/recordings/")]
    assert sum(sizes[name] for name in weights) < 9e6
    assert sum(sizes[name] for name in recordings) < 12e6
    assert not {name: size for name, size in sizes.items() if size > 1.5e6 and name not in weights}


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
