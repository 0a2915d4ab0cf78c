"""What DVC shows of experiments exists; bridges and activations travel by a remote."""

import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import yaml
from dvc.repo import Repo
from dvc.repo.artifacts import Artifacts

ROOT = Path(__file__).parents[1]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
SHARED = """stages:
  teacher:
    foreach: [one, two]
    do:
      cmd: mkdir -p data/activations && echo layers of ${item} > data/activations/${item}
      outs: ["data/activations/${item}"]
  bridge:
    foreach: [one, two]
    do:
      cmd: mkdir -p data/bridges/${item} && cp data/activations/${item} data/bridges/${item}/weights
      deps: ["data/activations/${item}"]
      outs: ["data/bridges/${item}"]
artifacts:
  one: {path: data/bridges/one, type: model}
"""


def test_what_is_shown_of_experiments_exists():
    with Repo(ROOT) as repo:
        made = {Path(out.fs_path).relative_to(ROOT).as_posix() for out in repo.index.outs}
    files = set(PIPELINE["metrics"])
    for plot in PIPELINE["plots"]:
        if isinstance(plot, str):
            files.add(plot)
            continue
        (shown,) = plot.values()
        for axis in ("x", "y"):
            ((file, column),) = shown[axis].items()
            files.add(file)
            if (ROOT / file).is_file():
                assert column in pd.read_csv(ROOT / file), (file, column)
    artifacts = {entry["path"] for entry in PIPELINE["artifacts"].values()}
    for path in files | artifacts:
        assert any(path == out or path.startswith(f"{out}/") for out in made), path
    assert not [name for name in PIPELINE["artifacts"] if f"data/bridges/{name}" not in artifacts]


def test_metrics_are_the_scores_of_table_1():
    scores = json.loads((ROOT / PIPELINE["metrics"][0]).read_text())
    table = pd.read_csv(ROOT / "figures" / "tables" / "table1.csv")
    for row in table.to_dict("records"):
        assert abs(scores[row["direction"]][row["method"]] - row["balanced_accuracy"]) < 0.006


def test_bridges_and_activations_travel_by_a_remote(tmp_path, monkeypatch):
    """Pushed here, pulled elsewhere: one bridge, then all, without running a stage."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    (here / "dvc.yaml").write_text(SHARED)
    monkeypatch.chdir(here)
    config = "[core]\nno_scm = true\nremote = shared\n['remote \"shared\"']\nurl = ../../store\n"
    for folder in (here, there):
        Repo.init(str(folder), no_scm=True).close()
        (folder / ".dvc" / "config").write_text(config)
    with Repo(here) as repo:
        repo.reproduce()
        assert repo.push() == 4  # two contents, two folders
    for name in ("dvc.yaml", "dvc.lock"):
        shutil.copy(here / name, there)
    monkeypatch.chdir(there)
    with Repo(there) as repo:
        repo.pull(targets=["bridge@one"])
        assert [path.as_posix() for path in sorted(Path("data").rglob("*")) if path.is_file()] == [
            "data/bridges/one/weights"
        ]
        repo.pull()
        assert Path("data/activations/two").read_text() == "layers of two\n"
        assert Path("data/bridges/two/weights").read_text() == "layers of two\n"
        assert not repo.reproduce()


def test_an_artifact_is_fetched_by_its_version(tmp_path, monkeypatch):
    """A bridge pushed to a remote and tagged in git, as CONTRIBUTING says."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "dvc.yaml").write_text(SHARED)
    monkeypatch.chdir(here)
    git = "git -c user.name=a -c user.email=a@b -c core.hooksPath=/dev/null"
    subprocess.run(f"{git} init -q", shell=True, check=True)
    Repo.init(str(here)).close()
    (here / ".dvc" / "config").write_text(
        f"[core]\nremote = shared\n['remote \"shared\"']\nurl = {tmp_path / 'store'}\n"
    )
    with Repo(here) as repo:
        repo.reproduce()
        repo.push(targets=["bridge@one"])
    commands = ("add -A", "commit -q -m bridges", "tag -a one@v1.0.0 -m first")
    for command in commands:
        subprocess.run(f"{git} {command}", shell=True, check=True)
    Artifacts.get(str(here), "one", out=str(tmp_path / "got"))
    assert (tmp_path / "got" / "weights").read_text() == "layers of one\n"
