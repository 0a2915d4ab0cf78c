"""Sweeps: which cells, what a cell leaves, the same table from every engine, also after a kill."""

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from biox import sweep

ROOT = Path(__file__).parents[1]
PAGE = "notebooks/page.ipynb"
PARAMETERS = """direction: str = "bidmc-ppg2ecg"
name: str = None
rank: int = 4
lr: float = None
seconds: float = 0.0
seeds: list = None"""
# What a page does in the eyes of a sweep: it takes a while, says where it ran, and saves results.
CODE = """import os, time
from pathlib import Path
own = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "JUPYTER_RUNTIME_DIR")
print(seeds, *(os.environ.get(key) for key in own))
Path(f"started-{rank}").write_text(f"{os.getppid()} {os.getpid()}")
time.sleep(seconds)
assert rank != 8 or not Path("broken").exists(), "first line\\nrank 8 is broken"
folder, method = Path("data/sweep") / name, "BioX-Bridge"
rows = [f"{method},{seeds[0]},s{i},r,{i},{i % 2},{i / 10},{1 - i / 10}" for i in range(8)]
head = "method,seed,subject,recording,start,label,p a,p b"
(folder / "predictions.csv").write_text("\\n".join([head, *rows]))
(folder / "curves.csv").write_text("method,seed,epoch,train,val,agreement,best\\n")
head = "method,direction,source,seed,n_parameters,lr,best_epoch,failed,rank"
row = f"{method},{direction},simulated,{seeds[0]},{100 * rank},0.001,1,,{rank}"
(folder / "runs.csv").write_text(f"{head}\\n{row}\\n")"""
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
GRID = {"direction": ["bidmc-ppg2ecg"], "rank": [4, 8, 16], "seed": [3]}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one quick page, and files in the place of a direction's inputs."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "notebooks").mkdir()
    parameters = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    page = new_notebook(cells=[parameters, new_code_cell(CODE)], metadata=KERNEL)
    nbformat.write(page, tmp_path / PAGE)
    for direction in ("bidmc-ppg2ecg", "bidmc-ecg2ppg"):
        for path in ("activations/{}/pair.safetensors", "teachers/{}/head", "positions/{}.json"):
            file = tmp_path / "data" / path.format(direction)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(path)
    monkeypatch.chdir(tmp_path)
    sweep._code.cache_clear(), sweep._data.cache_clear()
    return tmp_path


# --- which cells ----------------------------------------------------------------------------------


def test_a_grid_is_read_as_the_notebook_declares_its_parameters(project):
    words = ["direction=bidmc-*", "seed=0..2", "rank=4,8", "lr=1e-3,2.0e-3"]
    grid = sweep.read_grid(words, PAGE)
    assert grid == {
        "direction": ["bidmc-ecg2ppg", "bidmc-ppg2ecg"],
        "seed": [0, 1, 2],
        "rank": [4, 8],
        "lr": [0.001, 0.002],
    }
    assert len(sweep.read_grid(["direction=all"], PAGE)["direction"]) > 10
    Path("grid.yaml").write_text("direction: bidmc-*\nseed: 0..2\nrank: [4, 8]\nlr: [1e-3, 0.002]")
    assert sweep.read_grid(["grid.yaml"], PAGE) == grid
    cells = sweep.plan(PAGE, grid)
    assert len({cell.folder for cell in cells}) == 2 * 3 * 2 * 2
    first = {"direction": "bidmc-ecg2ppg", "rank": 4, "lr": 0.001, "seeds": [0]}
    assert cells[0].parameters == first
    assert cells[0].folder.name.startswith("direction=bidmc-ecg2ppg,seed=0,rank=4,lr=0.001-")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnak=8"], "rnak: expected one of .*'rank'.*, found rnak=8"),
        (["name=x"], "name: expected one of"),
        (["rank=8", "rank=9"], "rank: expected .* once"),
        (["rank=4,4"], "rank: expected values, each once"),
        (["seed=4..0"], "seed: expected values, each once, found"),
        (["rank=x"], "rank: expected int, found 'x'"),
        (["rank=1.5"], "rank: expected int, found '1.5'"),
        (["lr=fast"], "lr: expected float, found 'fast'"),
        (["direction=wesad"], "direction: expected one of .*, found 'wesad'"),
        (["rank=4"], "direction: expected values, such as direction=all, found none"),
        (["nothing.yaml"], "nothing.yaml: expected NAME=VALUES or a YAML file"),
        (["direction=wesad-ppg2ecg"], "data/activations/wesad-ppg2ecg.*dvc repro positions@wesad"),
    ],
)
def test_a_wrong_grid_stops_with_one_sentence(project, words, message):
    with pytest.raises(ValueError, match=message):
        sweep.plan(PAGE, sweep.read_grid(words, PAGE))
    assert not Path("data/sweep").exists()


def test_a_cell_is_named_after_all_that_it_was_made_from(project):
    def after(path, old, new):
        """Folders of two cells after a change of a file."""
        text = Path(path).read_text()
        assert old in text
        Path(path).write_text(text.replace(old, new, 1))
        sweep._code.cache_clear(), sweep._data.cache_clear()
        found = sweep.plan(PAGE, {"direction": ["bidmc-ecg2ppg", "bidmc-ppg2ecg"], "rank": [4]})
        return [cell.folder for cell in found]

    first = after("params.yaml", "", "# a comment\n")
    assert after("params.yaml", "# a comment", "# another") == first
    second = after("data/positions/bidmc-ppg2ecg.json", "positions", "changed")
    assert second[0] == first[0] and second[1] != first[1]
    third = after("params.yaml", "n_prototypes: 10", "n_prototypes: 40")
    fourth = after(PAGE, "first line", "another line")
    assert not {*second} & {*third} and not {*third} & {*fourth}


# --- running them ---------------------------------------------------------------------------------


def run(*more, background=False):
    """Start the command as a user would."""
    words = ["direction=bidmc-ppg2ecg", "rank=4,8,16", "seed=3"]
    command = [sys.executable, "-m", "biox", "sweep", PAGE, "--grid", *words, *more]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    start = subprocess.Popen if background else subprocess.run
    return start(command, env=environment, stdout=-1, stderr=-1, text=True)


def wait_for(condition, what, seconds=180):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, what
        time.sleep(0.1)


def table():
    return pd.read_parquet("data/sweep/cells/page/table.parquet")


def ends_well(started, **more):
    """Wait for a sweep: it ends with the table that no engine changes."""
    text, errors = started.communicate(timeout=400)
    assert started.returncode == 0, text + errors
    rows, cells = table(), sweep.plan(PAGE, GRID | more)
    assert list(rows["folder"]) == [cell.folder.as_posix() for cell in cells]
    assert list(rows["rank"]) == [4, 8, 16] and set(rows["seed"]) == {3}
    assert list(rows["n_parameters"]) == [400, 800, 1600]
    assert set(rows["state"]) == {"finished"} and set(rows["method"]) == {"BioX-Bridge"}
    assert set(rows["balanced_accuracy"]) == {37.5} and set(rows["runs"]) == {1}
    assert not list(Path("data/sweep/cells/page").glob(".*"))


def test_finished_cells_are_skipped_failed_ones_named_and_retried(project):
    Path("broken").touch()
    done = run()
    assert done.returncode == 1, done.stderr
    assert "rank 8 is broken" in done.stdout and "first line" not in done.stdout
    assert "2 finished, 1 failed" in done.stdout
    assert list(table()["state"]) == ["finished", "failed", "finished"]
    page = next(Path("data/sweep/cells/page").glob("*rank=16*/direction=*.ipynb"))
    assert f"cells/page/{page.parent.name}" in page.read_text() and "[3]" in page.read_text()
    Path("broken").unlink()
    for file in Path().glob("started-*"):
        file.unlink()
    assert run().returncode == 1 and not list(Path().glob("started-*"))
    ends_well(run("--retry", background=True))
    assert list(Path().glob("started-*")) == [Path("started-8")]


def test_code_that_changed_meanwhile_fails_the_cell(project):
    cells = sweep.plan(PAGE, GRID | {"rank": [4]})
    Path(PAGE).write_text(Path(PAGE).read_text().replace("first line", "another line"))
    sweep.run_cells(cells, str(project), threads=1)
    assert "notebook or settings changed" in sweep.collect(cells)["error"][0]


needs_submitit = pytest.mark.skipif(find_spec("submitit") is None, reason="needs biox[cluster]")


@needs_submitit
def test_a_killed_worker_loses_its_cell_only(project, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    options = ("--cluster", "local", "--workers", "2", "--gpus", "1", "--bundle", "2")
    started = run("seconds=2", *options, background=True)
    wait_for(Path("started-4").is_file, "no cell was started")
    time.sleep(0.2)
    worker, kernel = map(int, Path("started-4").read_text().split())
    os.kill(worker, signal.SIGKILL)
    ends_well(started, seconds=[2.0])
    assert Path("started-4").read_text() != f"{worker} {kernel}"
    wait_for(lambda: not Path(f"/proc/{kernel}/status").exists(), "the kernel lives on", 10)
    pages = [page.read_text() for page in Path("data/sweep/cells/page").glob("*/*.ipynb")]
    assert {device for device in "57" for page in pages if f"[3] {device} 1 " in page} == {*"57"}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A cluster of one node, where slurm-wlm and munge are installed."""
    folder = tmp_path / "slurm"
    script = ROOT / "tests" / "slurm" / "cluster.sh"
    started = subprocess.run([script, "start", folder], capture_output=True, text=True)
    if started.returncode == 77:
        pytest.skip("SLURM WAS NOT TESTED: apt-get install slurm-wlm munge")
    assert started.returncode == 0, started.stdout + started.stderr
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    yield
    subprocess.run([script, "stop", folder], check=True)


@needs_submitit
def test_slurm_gives_the_same_table_also_after_scancel(project, slurm):
    options = ("--cluster", "slurm", "--partition", "main", "--timeout-min", "5")
    started = run("seconds=2", *options, "--max-parallel", "2", background=True)
    wait_for(Path("started-4").is_file, "no cell was started")
    queue = subprocess.run(["squeue", "-h", "-t", "R", "-o", "%i"], capture_output=True, text=True)
    subprocess.run(["scancel", queue.stdout.split()[0]], check=True)
    ends_well(started, seconds=[2.0])


def test_a_cluster_that_is_not_there_is_one_sentence(project, monkeypatch):
    monkeypatch.setenv("PATH", "")
    done = run("--cluster", "slurm")
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "srun" in done.stderr or "biox[cluster]" in done.stderr
