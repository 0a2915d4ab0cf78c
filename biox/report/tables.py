"""Table 1: scores of every direction and method, collected from saved predictions."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from biox.files import read_json, written_whole
from biox.report.metrics import METRICS, collapsed, random_scores, scores, subject_interval

METHODS = ("Random", "Oracle", "BioX-Bridge")


def collect(
    root: Path | str, directions: Sequence[str], seeds: Sequence[int]
) -> dict[str, pd.DataFrame]:
    """Read the predictions of the directions asked for, and of no others.

    Parameters
    ----------
    root : path
        ``data/bridges``: one folder a direction with ``predictions.csv`` and ``scores.json``.
    directions : sequence of str
        From params.yaml, never from what happens to lie in the folder.
    seeds : sequence of int
        From params.yaml; the bridge needs predictions of each of them and of no other.

    Raises
    ------
    FileNotFoundError
        Directions without finished results; the message lists all of them.
    ValueError
        Predictions that belong to another direction, or scores that do not follow from them.
    """
    root = Path(root)
    missing = [name for name in directions if not (root / name / "scores.json").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{root}: expected finished results (scores.json) of {list(directions)}, "
            f"found none of {missing}"
        )
    frames = {}
    for name in directions:
        path = root / name / "predictions.csv"
        frame = pd.read_csv(path, dtype={"subject": str, "recording": str})
        found = frame["direction"].unique().tolist()
        if found != [name]:
            raise ValueError(f"{path}: expected predictions of {name}, found {found}")
        found = sorted(set(frame["method"]))
        if found != ["BioX-Bridge", "Oracle"]:
            raise ValueError(
                f"{path}: expected predictions of BioX-Bridge and Oracle, found {found}"
            )
        found = sorted(frame.loc[frame["method"] == "BioX-Bridge", "seed"].unique().tolist())
        if found != sorted(seeds):
            raise ValueError(
                f"{path}: expected bridges of the seeds {sorted(seeds)}, found {found}"
            )
        saved = read_json(root / name / "scores.json")["BioX-Bridge"]["balanced_accuracy"]
        again = np.mean([s["balanced_accuracy"] for s in _by_seed(frame, "BioX-Bridge")])
        if abs(saved - again) > 1e-9:
            raise ValueError(
                f"{path}: expected predictions that give the balanced accuracy in scores.json, "
                f"{saved}, found {again}: the two are from different runs"
            )
        frames[name] = frame
    return frames


def _by_seed(frame: pd.DataFrame, method: str) -> list[dict[str, float]]:
    rows = frame[frame["method"] == method]
    return [scores(part) for _, part in rows.groupby("seed", sort=True)]


NOTE = (
    "Per cent on test windows. Mean ± standard deviation over seeds; interval: 95 %, resampling "
    "test subjects. `reported`: the paper's numbers, on original recordings with published models."
)


def direction_rows(frame: pd.DataFrame, saved: dict) -> pd.DataFrame:
    """One row a method: mean and standard deviation over seeds, interval over subjects.

    Scores are in per cent. Random is the closed-form expectation on the same test windows; its
    interval is left empty.
    """
    rows = []
    name = frame["direction"].iloc[0]
    n_classes = sum(column.startswith("p ") for column in frame.columns)
    for method in METHODS:
        row = {
            "direction": name,
            "data": saved["source"],
            "models": saved["models"],
            "method": method,
        }
        if method == "Random":
            one_run = frame[frame["method"] == "Oracle"]
            values = [random_scores(one_run["label"].to_numpy(), n_classes)]
            low = high = np.nan
        else:
            of_method = frame[frame["method"] == method]
            runs = [part for _, part in of_method.groupby("seed", sort=True)]
            values = [scores(part) for part in runs]
            low, high = subject_interval(runs)
            row["collapsed runs"] = f"{sum(collapsed(part) for part in runs)} of {len(runs)}"
            row["test subjects"] = runs[0]["subject"].nunique()
            row["test windows"] = len(runs[0])
        for metric in METRICS:
            numbers = 100 * np.array([value[metric] for value in values])
            row[metric] = numbers.mean()
            row[f"{metric} sd"] = numbers.std(ddof=1) if len(numbers) > 1 else np.nan
        row["interval low"], row["interval high"] = 100 * low, 100 * high
        row["trainable parameters"] = saved["n_parameters"] if method == "BioX-Bridge" else np.nan
        rows.append(row)
    return pd.DataFrame(rows).merge(reported_table1(), how="left", on=["direction", "method"])


def reported_table1() -> pd.DataFrame:
    """Read what the paper's Table 1 reports, one row a direction and method."""
    content = yaml.safe_load(files("biox.report").joinpath("reported.yaml").read_text())["table1"]
    names = [f"{metric} reported" for metric in METRICS] + ["parameters reported (M)"]
    rows = [
        {"direction": direction, "method": method} | dict(zip(names, numbers, strict=False))
        for direction, methods in content.items()
        for method, numbers in methods.items()
    ]
    return pd.DataFrame(rows)


def table1(root: Path | str, directions: Sequence[str], seeds: Sequence[int]) -> pd.DataFrame:
    """Table 1, one row a direction and method, with the reported numbers beside ours."""
    rows = [
        direction_rows(frame, read_json(Path(root) / name / "scores.json"))
        for name, frame in collect(root, directions, seeds).items()
    ]
    return pd.concat(rows, ignore_index=True)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Table 1 as a person reads it: ``61.2 ± 1.3``, ``[50.1, 70.4]``, reported numbers apart."""

    def number(row: pd.Series, metric: str) -> str:
        n, _, of = str(row["collapsed runs"]).partition(" of ")
        if of and n == of:
            return "collapsed"
        sd = row[f"{metric} sd"]
        return f"{row[metric]:.1f}" + ("" if np.isnan(sd) else f" ± {sd:.1f}")

    def interval(row: pd.Series) -> str:
        low, high = row["interval low"], row["interval high"]
        return (
            ""
            if np.isnan(low) or number(row, "macro_f1") == "collapsed"
            else f"[{low:.1f}, {high:.1f}]"
        )

    def reported(row: pd.Series) -> str:
        values = [row[f"{metric} reported"] for metric in METRICS]
        return "" if np.isnan(values[0]) else " / ".join(f"{v:.2f}" for v in values)

    shown = {
        "direction": table["direction"],
        "method": table["method"],
        "balanced accuracy": table.apply(number, axis=1, metric="balanced_accuracy"),
        "95 % interval": table.apply(interval, axis=1),
        "macro-F1": table.apply(number, axis=1, metric="macro_f1"),
        "weighted F1": table.apply(number, axis=1, metric="weighted_f1"),
        "trained parameters": table["trainable parameters"].map(
            lambda n: "" if np.isnan(n) else f"{n:,.0f}"
        ),
        "collapsed runs": table["collapsed runs"].fillna(""),
        "data": table["data"],
        "models": table["models"],
        "reported: BAcc / macro-F1 / weighted F1": table.apply(reported, axis=1),
    }
    return pd.DataFrame(shown)


def save_table(table: pd.DataFrame, path: Path | str, note: str) -> None:
    """Write a table as csv (all columns) and, readable, as md beside it, with a note under it."""
    path = Path(path)
    with written_whole(path.with_suffix(".csv")) as part:
        table.to_csv(part, index=False, float_format="%.6g")
    with written_whole(path.with_suffix(".md")) as part:
        part.write_text(readable(table).to_markdown(index=False) + f"\n\n{note}\n")
