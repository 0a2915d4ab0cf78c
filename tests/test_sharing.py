"""What DVC shows of experiments exists, and its scores are those of Table 1."""

import json
from pathlib import Path

import pandas as pd
import yaml
from dvc.repo import Repo

ROOT = Path(__file__).parents[1]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())


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
