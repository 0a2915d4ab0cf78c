"""Sweeps: a notebook for every combination of parameters, here, side by side, or on a cluster.

A *cell* is one combination. It runs as plain papermill; its results, the executed notebook and its
scores go to ``data/sweep/cells/NAME/CELL``, a name that ends with a digest of notebook, parameters,
code, settings and data. A cell is written under a temporary name and renamed when it is finished.
"""

import fnmatch
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from biox.config import PATHS, digest, load_settings
from biox.notebook import declared_parameters, project_root

HOME = PATHS.results("sweep", "cells")
ROUNDS = 3  # how often a cell is started whose worker or kernel was killed


@dataclass(frozen=True)
class Cell:
    """One combination, and the folder that holds its results once it is finished."""

    notebook: str
    values: dict[str, Any]  # as the grid names them, such as ``seed: 3``
    parameters: dict[str, Any]  # as the notebook names them, such as ``seeds: [3]``
    code: str  # digest of notebook, code and settings
    folder: Path
    failure: Path  # folder of what a failed cell left, with ``error.txt``

    @property
    def state(self) -> str:
        """``finished``, ``failed`` or ``missing``."""
        failed = "failed" if self.failure.is_dir() else "missing"
        return "finished" if self.folder.is_dir() else failed


def read_grid(words: Sequence[str], notebook: str) -> dict[str, list]:
    """Read a grid: name of a parameter -> its values.

    A word is ``rank=4,8``, ``seed=0..4`` (both ends), ``direction=all``, ``direction=wesad-*``, or
    a YAML file with lines such as ``rank: [4, 8]``. Where the notebook has ``seeds: list`` and no
    ``seed``, every seed becomes a list of one.

    Raises
    ------
    ValueError
        No such parameter, a value of another type, no value, or one given twice.
    """
    given: list[tuple[str, Any]] = []
    for word in words:
        content = dict([word.split("=", 1)]) if "=" in word else None
        if content is None and Path(word).is_file():
            content = yaml.safe_load(Path(word).read_text())
        if not isinstance(content, dict):
            raise ValueError(f"{word}: expected NAME=VALUES or a YAML file of such, found neither")
        given += content.items()
    declared, grid = declared_parameters(Path(notebook)), {}
    known = [name for name in declared if name != "name"]
    for name, values in given:
        listed = name not in declared and declared.get(f"{name}s", [""])[0] == "list"
        if not (name in known or listed) or name in grid:
            raise ValueError(f"{name}: expected one of {known}, once, found {name}={values}")
        kind, optional = ("", False) if listed else declared[name]
        values = values if isinstance(values, list) else str(values).split(",")
        grid[name] = [one for value in values for one in _expand(name, value, kind, optional)]
        if not grid[name] or len(set(map(str, grid[name]))) < len(grid[name]):
            raise ValueError(f"{name}: expected values, each once, found {grid[name]}")
    return grid


def _expand(name: str, value: Any, kind: str, optional: bool) -> list:
    """Values that a word stands for."""
    if ends := re.fullmatch(r"(-?\d+)\.\.(-?\d+)", str(value)):
        return list(range(int(ends[1]), int(ends[2]) + 1))
    if name == "direction":  # one that does not exist is refused by `plan`
        pattern = "*" if value == "all" else str(value)
        return fnmatch.filter(load_settings().directions, pattern) or [value]
    read = yaml.safe_load(value) if isinstance(value, str) and kind != "str" else value
    if kind == "float" and re.fullmatch(r"[-+\d.]+(e[-+]?\d+)?", str(read)):
        read = float(read)  # YAML reads 1e-3 as text
    types = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "": object}
    wrong = not isinstance(read, types[kind]) or (kind == "int" and isinstance(read, bool))
    if wrong and not (read is None and optional):
        raise ValueError(f"{name}: expected {kind}, found {value!r}")
    return [read]


def plan(notebook: str, grid: Mapping[str, Sequence], name: str | None = None) -> list[Cell]:
    """List the cells of a grid; `name` is their folder's, None: the notebook's."""
    declared, cells = declared_parameters(Path(notebook)), []
    if "direction" in declared and "direction" not in grid:
        raise ValueError("direction: expected values, such as direction=all, found none")
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        parameters = {key: value for key, value in values.items() if key in declared}
        parameters |= {f"{key}s": [value] for key, value in values.items() if key not in declared}
        direction, code = values.get("direction"), _code(notebook, values.get("direction"))
        label = ",".join(f"{key}={value}" for key, value in values.items())[:150]
        label += f"-{_sha([code, parameters, _data(direction)])[:10]}"
        path = HOME / (name or Path(notebook).stem) / re.sub(r"[^\w.,=-]+", "_", label)
        paths = path, path.with_name(f"{path.name}.failed")
        cells.append(Cell(notebook, values, parameters, code, *paths))
    return cells


@cache
def _code(notebook: str, direction: str | None) -> str:
    """Digest of the notebook's cells, of biox without its commands, and of the settings."""
    settings, cells = load_settings(), json.loads(Path(notebook).read_text())["cells"]
    values = settings.model_dump()
    if direction:  # a new direction or data set changes nothing for the others
        own = settings.direction(direction)
        values |= {"directions": own.model_dump(), "datasets": values["datasets"][own.dataset]}
    files = sorted(Path(__file__).parent.rglob("*.py"))
    files = [file for file in files if file.name not in ("sweep.py", "__main__.py")]
    return _sha([cells, values, [[file.name, digest(file)] for file in files]])


def _sha(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@cache
def _data(direction: str | None) -> list[list[str]]:
    """Digests of the files that a bridge of the direction is trained from."""
    if direction is None:
        return []
    kinds = PATHS.activations(direction, "pair").parent, PATHS.teacher(direction)
    roots = [*kinds, PATHS.positions(direction)]
    if missing := [str(path) for path in roots if not path.exists()]:
        raise ValueError(f"{missing}: expected, found none; run: dvc repro positions@{direction}")
    files = [file for root in roots for file in (root, *sorted(root.rglob("*"))) if file.is_file()]
    return [[file.as_posix(), digest(file)] for file in files]


def run_cells(cells: Sequence[Cell], root: str, threads: int) -> None:
    """Run cells one after another, each in a kernel of its own with at most so many threads.

    Connection files and sockets of the kernels lie on the worker's own disk. Its environment, such
    as ``CUDA_VISIBLE_DEVICES``, reaches the kernels.
    """
    os.chdir(root)
    before, limits = dict(os.environ), ["LOKY_MAX_CPU_COUNT"]
    limits += [f"{library}_NUM_THREADS" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")]
    own = tempfile.mkdtemp(prefix="biox-", dir=os.environ.get("SLURM_TMPDIR"))
    os.environ |= dict.fromkeys(limits, str(threads)) | {"JUPYTER_RUNTIME_DIR": own}
    try:
        for cell in _missing(cells):
            _run_cell(cell, own)
    finally:
        os.environ.clear()
        os.environ |= before
        shutil.rmtree(own, ignore_errors=True)


def _run_cell(cell: Cell, sockets: str) -> None:
    """Run a cell under a temporary name, then rename; what failed is kept, with ``error.txt``.

    A cell whose kernel was killed is neither: it will be started again.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    from biox import metrics

    label, key = cell.folder.name.rsplit("-", 1)
    part = cell.folder.with_name(f".{key}-{os.uname().nodename}-{os.getpid()}")
    part.mkdir(parents=True, exist_ok=True)
    page, parameters, error = part / f"{label}.ipynb", dict(cell.parameters), ""
    if "name" in declared_parameters(Path(cell.notebook)):
        parameters["name"] = part.relative_to(HOME.parent).as_posix()
    transport = "ipc" if len(sockets) < 80 else "tcp"  # the path of a socket has 107 bytes at most
    kernel = {"transport": transport, "connection_file": f"{sockets}/{key}.json"}
    try:
        _code.cache_clear()
        if _code(cell.notebook, cell.values.get("direction")) != cell.code:
            raise ValueError("code, notebook or settings changed since the sweep was started")
        options = {"config": Config({"KernelManager": kernel}), "progress_bar": False}
        papermill.execute_notebook(cell.notebook, page, parameters, **options)
        if (part / "runs.csv").is_file():
            predictions, _, runs = metrics.read_results(part)
            table = metrics.score_table(predictions, runs, by=["method", "lr"])
            table.to_csv(part / "scores.csv", index=False)
    except DeadKernelError:
        return shutil.rmtree(part, ignore_errors=True)
    except papermill.PapermillExecutionError as failed:
        error = f"{failed.ename}: {failed.evalue}"
    except Exception as failed:  # one cell must not take the others with it
        error = f"{type(failed).__name__}: {failed}"
    if cell.state != "missing":  # a second worker was faster
        return shutil.rmtree(part, ignore_errors=True)
    target = cell.failure if error else cell.folder
    if error:
        (part / "error.txt").write_text(error.strip().splitlines()[-1])
    if page.is_file():  # let it name the folder where its results will be
        page.write_text(page.read_text().replace(part.name, target.name))
    part.replace(target)


def collect(cells: Sequence[Cell]) -> Any:
    """Tabulate cells in a DataFrame, a row a cell and method: values, ``state``, scores.

    ``error`` is the last line of a failed cell's traceback, ``folder`` where a cell's results are;
    scores are those of `metrics.score_row`, in per cent. Cells that did not run are there, too.
    """
    import pandas as pd

    rows = []
    for cell in cells:
        about = {k: str(v) if isinstance(v, list | None) else v for k, v in cell.values.items()}
        error = (cell.failure / "error.txt").read_text() if cell.state == "failed" else ""
        about |= {"state": cell.state, "error": error, "folder": cell.folder.as_posix()}
        scores = cell.folder / "scores.csv"
        found = pd.read_csv(scores).to_dict("records") if scores.is_file() else [{}]
        rows += [about | row for row in found]
    return pd.DataFrame(rows)


def sweep(
    notebook: str, grid: Mapping, name: str | None = None, retry: bool = False, **options: Any
) -> Any:
    """Run the cells of a grid that are not finished; tabulate all of them, as `collect` does.

    Failed cells run again if `retry`; `options` go to `start`. ``table.csv`` and ``table.parquet``
    are written into the folder of the cells, ``data/sweep/cells/NAME``.
    """
    from tqdm import tqdm

    cells = plan(notebook, grid, name)
    folder = cells[0].folder.parent
    for cell in cells if retry else []:
        shutil.rmtree(cell.failure, ignore_errors=True)
    with tqdm(total=len(cells), unit="cell", disable=None) as bar:
        bar.update(len(cells) - len(_missing(cells)))
        for _ in range(ROUNDS):
            for _ in start(_missing(cells), **options):
                bar.update(len(cells) - len(_missing(cells)) - bar.n)
    for cell in cells:  # what killed workers left
        for part in folder.glob(f".{cell.folder.name.rsplit('-', 1)[1]}-*"):
            shutil.rmtree(part, ignore_errors=True)
    rows = collect(cells)
    rows.to_csv(folder / "table.csv", index=False)
    rows.to_parquet(folder / "table.parquet", index=False)
    return rows


def _missing(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.state == "missing"]


def start(
    cells: Sequence[Cell], cluster: str | None = None, workers: int = 1, bundle: int | None = None,
    threads: int = 1, gpus: int = 0, timeout_min: int = 1440, **slurm: Any,
) -> Iterator[None]:  # fmt: skip
    """Run cells, here or in jobs of submitit; yield now and then, until none is left."""
    root, logs = str(Path.cwd()), HOME.absolute() / "jobs" / f"{time.time():.0f}-{os.getpid()}"
    for cell in cells if cluster is None else []:
        run_cells([cell], root, threads)
        yield
    if not cells or cluster is None:
        return
    if find_spec("submitit") is None:
        raise ValueError("expected submitit, found none: pip install 'biox[cluster]'")
    import submitit

    most = 4 * workers if cluster == "local" else 1000  # SLURM's MaxArraySize is often 1001
    size = bundle or -(-len(cells) // most)
    bundles = [cells[i : i + size] for i in range(0, len(cells), size)]
    if cluster == "local":
        executor = submitit.LocalExecutor(logs)
        executor.update_parameters(timeout_min=timeout_min, gpus_per_node=gpus)
        yield from _local(executor, bundles, (root, threads), workers, gpus)
    else:
        executor = submitit.SlurmExecutor(logs)
        slurm |= {"additional_parameters": dict(one.split("=") for one in slurm.pop("options", []))}
        slurm |= {"time": timeout_min, "cpus_per_task": threads, "gpus_per_node": gpus or None}
        executor.update_parameters(job_name="biox-sweep", use_srun=False, **slurm)
        yield from _slurm(executor, bundles, (root, threads))
    if all(cell.state == "finished" for cell in cells):
        shutil.rmtree(logs)


def _local(executor, bundles: list, rest: tuple, workers: int, gpus: int) -> Iterator[None]:
    """Keep so many jobs running on this machine, each with GPUs of its own."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(workers * gpus)))
    devices = [int(number) for number in given.split(",")] if gpus else []
    if len(devices) < workers * gpus:
        raise ValueError(f"CUDA_VISIBLE_DEVICES: expected {workers * gpus} GPUs, found {given}")
    running: dict = {}
    while bundles or running:
        running = {slot: job for slot, job in running.items() if not job.done()}
        for slot in {*range(workers)} - {*running}:
            if bundles:
                executor.update_parameters(visible_gpus=devices[slot * gpus : (slot + 1) * gpus])
                running[slot] = executor.submit(run_cells, bundles.pop(0), *rest)
        time.sleep(0.3)
        yield


def _slurm(executor, bundles: list, rest: tuple) -> Iterator[None]:
    """Submit a job array, and wait until none of its jobs is queued or running.

    ``squeue`` is asked, since ``sacct`` needs a data base that not every cluster has.
    """
    jobs = executor.map_array(run_cells, bundles, *([one] * len(bundles) for one in rest))
    query = ["squeue", "--noheader", "--format=%i", "--jobs", jobs[0].job_id.split("_")[0]]
    left = True
    while left:
        time.sleep(3)
        yield
        answer = subprocess.run(query, capture_output=True, text=True)
        left = answer.stdout.strip() or answer.returncode and "Invalid job id" not in answer.stderr


def command(given: Namespace) -> int:
    """Run a sweep; name cells without results; return 0 if every cell is finished."""
    options = {k: v for k, v in vars(given).items() if k not in ("command", "notebook", "grid")}
    try:
        words = [str(Path(word).resolve()) if Path(word).is_file() else word for word in given.grid]
        notebook = Path(given.notebook).resolve()
        os.chdir(project_root(notebook.parent))
        notebook = notebook.relative_to(Path.cwd()).as_posix()
        rows = sweep(notebook, read_grid(words, notebook), **options)
    except (ValueError, OSError, RuntimeError) as error:  # of the user, of sbatch
        print(error, file=sys.stderr)
        return 1
    cells = rows.drop_duplicates("folder")
    for row in cells[cells["state"] != "finished"].itertuples():
        reason = row.error or f"killed {ROUNDS} times, see {HOME}/jobs"
        print(f"{row.state}: {Path(row.folder).name}: {reason}")
    counts = ", ".join(f"{n} {state}" for state, n in cells["state"].value_counts().items())
    print(f"{counts}; table: {Path(cells['folder'].iloc[0]).parent / 'table.csv'}")
    return int(any(cells["state"] != "finished"))
