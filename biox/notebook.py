"""The first and the last cell of every notebook: checked parameters, and provenance."""

import datetime
import importlib.metadata
import json
import logging
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biox.config import Settings, digest, load_settings


@dataclass(frozen=True)
class Run:
    """One execution of a notebook: its settings, and which parameters replaced some of them."""

    notebook: str
    settings: Settings
    parameters: dict[str, Any]
    overridden: dict[str, Any]
    started: float

    def name_of(self, item: str) -> str:
        """Name results so that other settings never replace them: ``wesad-ppg2ecg-rank8``."""
        parts = [f"{name}{value}" for name, value in sorted(self.overridden.items())]
        return "-".join([item, *(re.sub(r"[^\w.]+", "_", part) for part in parts)])


_OF_IPYTHON = re.compile(r"In|Out|_+|_i{0,3}|_[iod]h|_i?\d+|_exit_code|__\w+__")
"""Names that IPython and Python put into a page."""

_TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": list}


def load_parameters(notebook: str, namespace: Mapping[str, Any], section: str | None = None) -> Run:
    """Check a page's parameters, go to the project's root and read the settings: the first cell.

    papermill only warns of a parameter that the page does not have; here it is an error.

    Parameters
    ----------
    notebook : str
        Name of the template in ``notebooks/``; its tagged cell says which parameters exist.
    namespace : mapping
        ``globals()`` of the page, before it defines anything else.
    section : str, optional
        Section whose fields a parameter of the same name replaces, unless it is None. ``seeds``
        replaces the top-level list; ``direction`` puts in that direction's own values first.
    """
    os.chdir(project_root())
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    declared = declared_parameters(Path("notebooks") / f"{notebook}.ipynb")
    simple = (str, int, float, bool, list, dict, type(None))
    own = {k: v for k, v in namespace.items() if not _OF_IPYTHON.fullmatch(k)}
    given = {k: v for k, v in own.items() if isinstance(v, simple)}
    for name, value in given.items():
        if name not in declared:
            raise ValueError(f"{notebook}: unknown parameter {name!r}, expected {list(declared)}")
        kind, optional = declared[name]
        wrong = not isinstance(value, _TYPES[kind]) or (kind != "bool" and isinstance(value, bool))
        if wrong and not (value is None and optional):
            raise ValueError(f"{notebook}: parameter {name}: expected {kind}, found {value!r}")
    settings, overridden = load_settings(), {}
    if "direction" in given:
        settings = settings.for_direction(given["direction"])
    if section is not None:
        fields = type(getattr(settings, section)).model_fields
        overridden = {k: v for k, v in given.items() if k in fields and v is not None}
        settings = settings.override(section, overridden) if overridden else settings
    if given.get("seeds") is not None:
        settings = settings.with_seeds(given["seeds"])
        overridden = overridden | {"seeds": given["seeds"]}
    limit_threads(settings.threads)
    return Run(notebook, settings, given, overridden, time.perf_counter())


def declared_parameters(template: Path) -> dict[str, tuple[str, bool]]:
    """Parameters of a template's tagged cell: name -> (type, whether None is allowed).

    papermill understands no ``int | None``, so ``rank: int = None`` means that.
    """
    cells = json.loads(template.read_text())["cells"]
    cells = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    assert len(cells) == 1, f"{template}: expected one cell tagged parameters, found {len(cells)}"
    text = "".join(cells[0]["source"])
    found = re.findall(r"^(\w+): (\w+) = (None\b)?", text, re.MULTILINE)
    return {name: (kind, bool(none)) for name, kind, none in found}


def limit_threads(n: int | None) -> None:
    """Compute with n threads of the CPU, in what is loaded already and in what will be."""
    if n is None:
        return
    from threadpoolctl import threadpool_limits

    for name in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{name}_NUM_THREADS"] = str(n)
    threadpool_limits(n)
    if "torch" in sys.modules:  # it keeps a number of its own
        sys.modules["torch"].set_num_threads(n)


def project_root(start: Path | None = None) -> Path:
    """Find the folder that holds params.yaml and dvc.yaml, upwards from `start` or from here."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    raise FileNotFoundError(f"{start}: expected params.yaml and dvc.yaml here or above, found none")


def provenance(run: Run, files: Sequence[Path | str] = ()) -> Any:
    """Tabulate what a page was made from: parameters, files, versions, commit, time, memory."""
    import pandas as pd

    packages = ("torch", "numpy", "scipy", "scikit-learn", "transformers", "mne")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
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
        "peak memory": f"{memory:.1f} GiB",
    }
    return pd.DataFrame({"": rows}).style.set_properties(**{"text-align": "left"})


def source(function: Callable) -> Any:
    """Show a function's lines in a page, without its docstring."""
    import inspect

    from IPython.display import Code

    text = re.sub(r'\n *""".*?"""(?=\n)', "", inspect.getsource(function), count=1, flags=re.S)
    return Code(text, language="python")


def reported(direction: str) -> Any:
    """Tabulate the paper's Table 1 on a transfer (``reported.yaml``), in per cent; else empty."""
    import pandas as pd
    import yaml

    rows = yaml.safe_load(Path("notebooks/reported.yaml").read_text())["table1"].get(direction, {})
    names = ("balanced accuracy", "macro F1", "weighted F1", "trained parameters (M)")
    rows = {method: dict(zip(names, values, strict=False)) for method, values in rows.items()}
    return pd.DataFrame(rows, index=names).T


def _commit() -> str:
    """Short commit, and whether code, templates or settings differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    made = ["biox", "params.yaml", "dvc.yaml", "notebooks", ":!notebooks/executed"]
    changed = "+changes" if git("status", "--porcelain", "--", *made) else ""
    return git("rev-parse", "--short", "HEAD") + changed or "not in a git checkout"
