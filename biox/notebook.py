"""The first and the last cell of every notebook: checked parameters, and provenance."""

import datetime
import importlib.metadata
import logging
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
from threadpoolctl import threadpool_limits

from biox.config import Settings, load_settings
from biox.files import digest, project_root, read_json

_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}


@dataclass(frozen=True)
class Run:
    """One execution of a notebook.

    Attributes
    ----------
    notebook : str
        Name of the template, without ``.ipynb``.
    settings : Settings
        params.yaml with the given parameters put in.
    parameters : dict
        All parameters of the notebook with their values.
    overridden : dict
        Those that replace a value of params.yaml.
    started : float
        Seconds, of `time.perf_counter`.
    """

    notebook: str
    settings: Settings
    parameters: dict[str, Any]
    overridden: dict[str, Any]
    started: float

    def name_of(self, item: str) -> str:
        """Name results of `item` so that a run with overridden settings never replaces another's.

        Examples: ``wesad-ppg2ecg``, and with a rank given ``wesad-ppg2ecg-rank8``.
        """
        parts = [f"{name}{value}" for name, value in sorted(self.overridden.items())]
        return "-".join([item, *(re.sub(r"[^\w.]+", "_", part) for part in parts)])


def begin(notebook: str, namespace: Mapping[str, Any], section: str | None = None) -> Run:
    """Check a notebook's parameters, go to the project's root and read the settings.

    papermill only warns about a parameter that the notebook does not have and then runs with the
    defaults; here that is an error.

    Parameters
    ----------
    notebook : str
        Name of the template in ``notebooks/``; its tagged cell says which parameters exist.
    namespace : mapping
        ``globals()`` of the notebook, before it defines anything else.
    section : str, optional
        Section of params.yaml whose fields a parameter of the same name overrides unless it is
        None. ``seeds`` always overrides the top-level list, ``threads`` those of `compute`.

    Raises
    ------
    ValueError
        Unknown parameter, wrong type, or a value that the settings refuse.
    """
    root = project_root()
    os.chdir(root)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    declared = declared_parameters(root / "notebooks" / f"{notebook}.ipynb")
    given = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and isinstance(value, (*_TYPES.values(), type(None)))
    }
    given = {name: given[name] for name in given if name not in ("In", "Out")}
    for name, value in given.items():
        if name not in declared:
            raise ValueError(
                f"{notebook}: expected parameters out of {list(declared)}, "
                f"found an unknown one, {name!r} = {value!r}"
            )
        _check_type(notebook, name, value, declared[name])
    settings = load_settings()
    if "direction" in given:
        settings = settings.for_direction(given["direction"])
    _fix_threads(given.get("threads") or settings.compute.threads)
    overridden = {}
    if section is not None:
        known = {f.name for f in fields(getattr(settings, section))}
        overridden = {k: v for k, v in given.items() if k in known and v is not None}
        settings = settings.override(section, overridden) if overridden else settings
    if given.get("seeds") is not None:
        settings = settings.with_seeds(given["seeds"])
        overridden["seeds"] = given["seeds"]
    return Run(notebook, settings, given, overridden, time.perf_counter())


def _fix_threads(n: int | None) -> None:
    """Have what is loaded already and what will be compute with so many threads of the CPU."""
    if n is None:
        return
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(n)
    threadpool_limits(n)
    if "torch" in sys.modules:  # it keeps a number of its own
        sys.modules["torch"].set_num_threads(n)


def declared_parameters(template: Path) -> dict[str, str]:
    """Names and types (``int``, ``int or None``) in a template's one tagged cell.

    papermill's own listing understands no ``int | None``, so ``rank: int = None`` means that.

    Raises
    ------
    FileNotFoundError
        There is no such template.
    ValueError
        It has no cell tagged ``parameters``, or more than one.
    """
    if not template.is_file():
        raise FileNotFoundError(f"{template}: expected a notebook template, found nothing")
    # As json: nbformat takes a second to load, in every notebook.
    cells = [
        "".join(cell["source"])
        for cell in read_json(template)["cells"]
        if "parameters" in cell["metadata"].get("tags", [])
    ]
    if len(cells) != 1:
        raise ValueError(f"{template}: expected one cell tagged parameters, found {len(cells)}")
    pattern = re.compile(r"^(\w+): (\w+) = (None\b)?", re.MULTILINE)
    return {
        name: f"{kind} or None" if default else kind
        for name, kind, default in pattern.findall(cells[0])
    }


def _check_type(notebook: str, name: str, value: Any, declared: str) -> None:
    kinds = declared.split(" or ")
    if value is None and "None" in kinds:
        return
    allowed = tuple(_TYPES[kind] for kind in kinds if kind != "None")
    if float in allowed:
        allowed = (*allowed, int)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise ValueError(
            f"{notebook}: parameter {name}: expected {declared}, found {value!r} "
            f"({type(value).__name__})"
        )


def say(text: str) -> Any:
    """Show Markdown that the run has computed."""
    from IPython.display import Markdown

    return Markdown(text)


def provenance(run: Run, files: Sequence[Path | str] = ()) -> Any:
    """Tabulate what this page was made from: parameters, data, versions, commit, time, memory.

    Parameters
    ----------
    run : Run
    files : sequence of paths
        Data read; each is listed with the start of its SHA-256.
    """
    packages = ("torch", "numpy", "scipy", "scikit-learn", "transformers", "mne")
    rows = {
        "notebook": run.notebook,
        "parameters": ", ".join(f"{k}={v!r}" for k, v in run.parameters.items() if v is not None),
        "commit": _commit(),
        **{str(path): f"sha256 {digest(path)}" for path in files},
        "versions": ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages),
        "machine": f"Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} cores",
        "finished": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "wall time": f"{time.perf_counter() - run.started:.0f} s",
        "peak memory": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB",
    }
    return pd.DataFrame({"": rows}).style.set_properties(**{"text-align": "left"})


def _commit() -> str:
    """Short commit, and whether code, templates or settings differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    made = ["biox", "params.yaml", "dvc.yaml", "notebooks", ":!notebooks/executed"]
    changed = "+changes" if git("status", "--porcelain", "--", *made) else ""
    return git("rev-parse", "--short", "HEAD") + changed or "not in a git checkout"
