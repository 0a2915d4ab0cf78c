"""Predictions of every method, read from where the stages left them, and checked.

What is read is named by params.yaml and by `METHODS`, never by what happens to lie in a folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from biox.files import read_json
from biox.report.metrics import scores

METHODS = (
    "Random",
    "Random (sampled)",
    "CardioGAN",
    "KD",
    "KD-Contrast",
    "LoRA-KD",
    "Probe transfer",
    "BioX-Bridge",
    "Oracle",
)
"""Of Table 1, in its order. Random alone has no predictions: it is a closed form."""

BASELINES = ("CardioGAN", "KD", "KD-Contrast", "LoRA-KD", "Probe transfer")
ONLY_IN = {"CardioGAN": ("wesad-ecg2ppg",)}
"""Methods that are no transfer between any two modalities, and where they are one."""

DRAWS = 100
"""Times that every test window is answered at random: drawn thrice, chance may look like skill."""

WINDOW = ["subject", "recording", "start", "label"]


@dataclass(frozen=True)
class Runs:
    """One method in one direction.

    Attributes
    ----------
    frames : tuple of DataFrame
        Predictions of the runs that did not fail, by seed.
    n_parameters : float
        Trained ones; NaN where nothing is trained for the transfer.
    failed : dict
        Seed -> why this run failed.
    """

    frames: tuple[pd.DataFrame, ...]
    n_parameters: float = float("nan")
    failed: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """All methods of one direction; `methods` in the order of `METHODS`."""

    direction: str
    source: str
    models: str
    methods: dict[str, Runs]


def expected_baselines(direction: str) -> list[str]:
    """Baselines that a direction must have."""
    return [name for name in BASELINES if direction in ONLY_IN.get(name, (direction,))]


def collect(
    data: Path | str, directions: Sequence[str], seeds: Sequence[int], baselines: bool = True
) -> dict[str, Results]:
    """Read the predictions of the directions asked for, and of no others.

    Parameters
    ----------
    data : path
        With ``bridges/DIRECTION`` and ``baselines/DIRECTION``.
    directions, seeds : sequence
        From params.yaml. Every method needs predictions of each seed and of no other.
    baselines : bool
        Whether a direction without finished baselines is an error; else it has none.

    Raises
    ------
    FileNotFoundError
        Directions without finished results; the message lists all of them.
    ValueError
        Predictions of other directions, methods, seeds or windows than expected, NaN in a run that
        is not marked as failed, or scores that do not follow from the predictions.
    """
    data = Path(data)
    _finished(data / "bridges", "scores.json", directions)
    if baselines:
        _finished(data / "baselines", "methods.json", directions)
    found = {}
    for name in directions:
        path = data / "bridges" / name / "predictions.csv"
        frame, saved = read_predictions(path, name), read_json(path.with_name("scores.json"))
        _check_methods(path, frame, ["BioX-Bridge", "Oracle"])
        bridges = runs_of(path, frame, "BioX-Bridge", seeds)
        again = np.mean([scores(run)["balanced_accuracy"] for run in bridges.frames])
        if abs(saved["BioX-Bridge"]["balanced_accuracy"] - again) > 1e-9:
            raise ValueError(
                f"{path}: expected predictions that give the balanced accuracy in scores.json, "
                f"{saved['BioX-Bridge']['balanced_accuracy']}, found {again}: "
                f"the two are from different runs"
            )
        results = of_bridge(frame, saved)
        folder = data / "baselines" / name
        if (folder / "methods.json").is_file():
            results = with_baselines(results, folder, seeds)
        found[name] = results
    return found


def of_bridge(frame: pd.DataFrame, saved: Mapping) -> Results:
    """Take what the bridge's stage knows: its own predictions, the Oracle's, and Random's."""
    parts = {
        method: tuple(run for _, run in rows.groupby("seed", sort=True))
        for method, rows in frame.groupby("method")
    }
    oracle = parts["Oracle"][0]
    methods = {
        "Random (sampled)": Runs(tuple(random_answers(oracle, seed) for seed in range(DRAWS))),
        "BioX-Bridge": Runs(parts["BioX-Bridge"], saved["n_parameters"]),
        "Oracle": Runs(parts["Oracle"]),
    }
    return Results(frame["direction"].iloc[0], saved["source"], saved["models"], methods)


def with_baselines(results: Results, folder: Path | str, seeds: Sequence[int]) -> Results:
    """Put the baselines of a direction beside its bridge."""
    path, name = Path(folder) / "predictions.csv", results.direction
    told = read_json(Path(folder) / "methods.json")["methods"]
    frame = read_predictions(path, name)
    _check_methods(path, frame, expected_baselines(name))
    _check_methods(path.with_name("methods.json"), told, expected_baselines(name))
    windows = results.methods["Oracle"].frames[0][WINDOW].reset_index(drop=True)
    methods = dict(results.methods)
    for method in expected_baselines(name):
        seeds_told = sorted(fact["seed"] for fact in told[method])
        if seeds_told != sorted(seeds):
            raise ValueError(
                f"{path.with_name('methods.json')}: expected {method} of the seeds "
                f"{sorted(seeds)}, found {seeds_told}"
            )
        failed = {fact["seed"]: fact["failed"] for fact in told[method] if fact["failed"]}
        runs = runs_of(path, frame, method, seeds, failed)
        for run in runs.frames:
            if not run[WINDOW].reset_index(drop=True).equals(windows):
                raise ValueError(
                    f"{path}: expected predictions of {method} for the bridge's {len(windows)} "
                    f"test windows in the same order, found others"
                )
        methods[method] = Runs(runs.frames, told[method][0]["n_parameters"], failed)
    methods = {method: methods[method] for method in METHODS if method in methods}
    return Results(name, results.source, results.models, methods)


def read_predictions(path: Path | str, direction: str) -> pd.DataFrame:
    """Read one direction's predictions, one row a window, method and seed.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such file, or it is of another direction.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: expected predictions of {direction}, found no such file")
    frame = pd.read_csv(path, dtype={"subject": str, "recording": str, "start": float})
    missing = sorted({*WINDOW, "method", "direction", "seed"} - set(frame.columns))
    if missing:
        raise ValueError(f"{path}: expected the columns of predictions, found none of {missing}")
    found = frame["direction"].unique().tolist()
    if found != [direction]:
        raise ValueError(f"{path}: expected predictions of {direction}, found {found}")
    return frame


def runs_of(
    path: Path | str,
    frame: pd.DataFrame,
    method: str,
    seeds: Sequence[int],
    failed: Mapping[int, str] | None = None,
) -> Runs:
    """Take a method's runs, each seed once, those that failed apart.

    Raises
    ------
    ValueError
        Other seeds than expected, or NaN in a run that is not marked as failed.
    """
    rows, failed = frame[frame["method"] == method], dict(failed or {})
    found = sorted(rows["seed"].unique().tolist())
    if found != sorted(seeds):
        raise ValueError(f"{path}: expected {method} of the seeds {sorted(seeds)}, found {found}")
    runs = {int(seed): run for seed, run in rows.groupby("seed", sort=True) if seed not in failed}
    for seed, run in runs.items():
        without = int(run[probability_columns(run)].isna().any(axis=1).sum())
        if without:
            raise ValueError(
                f"{path}: expected probabilities of {method}, seed {seed}, which is not marked as "
                f"failed, found NaN in {without} of {len(run)} windows"
            )
    return Runs(tuple(runs.values()), failed=failed)


def random_answers(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Answer the windows of a frame uniformly at random: the same answers for the same seed."""
    columns = probability_columns(frame)
    drawn = np.random.default_rng(seed).integers(0, len(columns), len(frame))
    answers = pd.DataFrame(np.eye(len(columns))[drawn], columns=columns, index=frame.index)
    return frame.assign(**answers, method="Random (sampled)", seed=seed)


def probability_columns(frame: pd.DataFrame) -> list[str]:
    """Columns with the classes' probabilities, ``p CLASS``, in the classes' order."""
    return [column for column in frame.columns if column.startswith("p ")]


def read_curves(data: Path | str, directions: Sequence[str]) -> pd.DataFrame:
    """Losses by epoch: columns ``direction method seed epoch train val best``.

    Raises
    ------
    FileNotFoundError
        A bridge without curves.
    """
    frames = []
    for name in directions:
        for folder, method in (("bridges", "BioX-Bridge"), ("baselines", None)):
            path = Path(data) / folder / name / "curves.csv"
            if method is None and not path.with_name("methods.json").is_file():
                continue
            if not path.is_file():
                raise FileNotFoundError(f"{path}: expected losses by epoch, found no such file")
            frame = pd.read_csv(path)
            frame = frame.assign(method=method) if method else frame
            frames.append(frame.assign(direction=name))
    frames = [frame for frame in frames if len(frame)]
    columns = ["direction", "method", "seed", "epoch", "train", "val", "best"]
    return pd.concat(frames, ignore_index=True)[columns]


def without_baselines(collected: Mapping[str, Results]) -> str:
    """Say which directions have no baselines to show."""
    bare = [name for name, found in collected.items() if not set(BASELINES) & set(found.methods)]
    return f"no baselines were trained for: {', '.join(bare)}" if bare else "baselines: all trained"


def files_read(data: Path | str, directions: Sequence[str]) -> list[Path]:
    """Files of predictions that `collect` reads."""
    paths = [
        Path(data) / folder / name / "predictions.csv"
        for name in directions
        for folder in ("bridges", "baselines")
    ]
    return [path for path in paths if path.is_file()]


def _finished(root: Path, marker: str, directions: Sequence[str]) -> None:
    missing = [name for name in directions if not (root / name / marker).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{root}: expected finished results ({marker}) of {list(directions)}, "
            f"found none of {missing}"
        )


def _check_methods(path: Path, found: pd.DataFrame | Mapping, expected: Sequence[str]) -> None:
    names = found["method"].unique() if isinstance(found, pd.DataFrame) else found
    if sorted(names) != sorted(expected):
        raise ValueError(f"{path}: expected the methods {sorted(expected)}, found {sorted(names)}")
