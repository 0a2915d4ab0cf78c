"""Table 1: scores of every direction and method, computed from saved predictions."""

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from biox.files import written_whole
from biox.report.comparison import paired_note, paired_table, readable_paired, score_intervals
from biox.report.metrics import METRICS, collapsed, random_scores, scores
from biox.report.predictions import (
    METHODS,
    Results,
    Runs,
    collect,
    of_bridge,
    probability_columns,
)

NOTE = (
    "Per cent on test windows. Mean ± standard deviation over seeds (Random: over a hundred "
    "draws); interval: 95 %, resampling test subjects. A method that failed to train in every run "
    "shows as failed; one that failed in some is scored by the others. `reported`: the paper's "
    "numbers, on original recordings with published models."
)


def table1(collected: Mapping[str, Results]) -> pd.DataFrame:
    """Table 1, one row a direction and method, with the reported numbers beside ours.

    Scores are in per cent. ``interval low`` and ``interval high`` are of balanced accuracy, those
    of the other scores follow it by name. Random is the closed-form expectation on the same test
    windows and has no interval.
    """
    rows = [
        {"direction": direction, "data": results.source, "models": results.models} | row
        for direction, results in collected.items()
        for row in _method_rows(results)
    ]
    return pd.DataFrame(rows).merge(reported_table1(), how="left", on=["direction", "method"])


def direction_rows(frame: pd.DataFrame, saved: Mapping) -> pd.DataFrame:
    """The same for a single direction, of what the bridge's stage knows."""
    results = of_bridge(frame, saved)
    return table1({results.direction: results})


def _method_rows(results: Results) -> list[dict[str, object]]:
    oracle = results.methods["Oracle"].frames[0]
    expected = random_scores(oracle["label"].to_numpy(), len(probability_columns(oracle)))
    rows = []
    for method in METHODS:
        if method == "Random":
            chance = {metric: 100 * value for metric, value in expected.items()}
            rows.append({"method": method} | chance)
        elif method in results.methods:
            rows.append({"method": method} | _row(results.methods[method]))
    return rows


def _row(runs: Runs) -> dict[str, object]:
    n = len(runs.frames) + len(runs.failed)
    row: dict[str, object] = {
        "trainable parameters": runs.n_parameters,
        "failed runs": f"{len(runs.failed)} of {n}",
        "why failed": "; ".join(f"seed {s}: {why}" for s, why in sorted(runs.failed.items())),
    }
    if not runs.frames:
        return row
    row["collapsed runs"] = f"{sum(collapsed(run) for run in runs.frames)} of {len(runs.frames)}"
    row["test subjects"] = runs.frames[0]["subject"].nunique()
    row["test windows"] = len(runs.frames[0])
    by_run = pd.DataFrame([scores(run) for run in runs.frames])
    for metric, found in score_intervals(runs).items():
        prefix = "" if metric == METRICS[0] else f"{metric} "
        row[metric] = 100 * found.value
        row[f"{metric} sd"] = 100 * by_run[metric].std(ddof=1)
        row[f"{prefix}interval low"] = 100 * found.low
        row[f"{prefix}interval high"] = 100 * found.high
    return row


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


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Table 1 as a person reads it: ``61.2 ± 1.3``, ``[50.1, 70.4]``, reported numbers apart."""

    def all_of(row: pd.Series, what: str) -> bool:
        n, _, of = str(row.get(what)).partition(" of ")
        return bool(of) and n == of

    def number(row: pd.Series, metric: str) -> str:
        if all_of(row, "failed runs"):
            return "failed"
        if all_of(row, "collapsed runs"):
            return "collapsed"
        sd = row[f"{metric} sd"]
        return f"{row[metric]:.1f}" + ("" if np.isnan(sd) else f" ± {sd:.1f}")

    def interval(row: pd.Series) -> str:
        low, high = row["interval low"], row["interval high"]
        hidden = np.isnan(low) or all_of(row, "collapsed runs")
        return "" if hidden else f"[{low:.1f}, {high:.1f}]"

    def reported(row: pd.Series) -> str:
        values = [row[f"{metric} reported"] for metric in METRICS]
        return "" if np.isnan(values[0]) else " / ".join(f"{v:.2f}" for v in values)

    def millions(value: float) -> str:
        return "" if np.isnan(value) else f"{value:g} M"

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
        "failed runs": table["failed runs"].fillna(""),
        "data": table["data"],
        "models": table["models"],
        "reported: BAcc / macro-F1 / weighted F1": table.apply(reported, axis=1),
        "reported: parameters": table["parameters reported (M)"].map(millions),
    }
    return pd.DataFrame(shown)


def save_table(
    table: pd.DataFrame,
    path: Path | str,
    note: str,
    shown: Callable[[pd.DataFrame], pd.DataFrame] = readable,
) -> None:
    """Write a table as csv (all columns) and, as `shown` makes it readable, as md beside it."""
    path = Path(path)
    with written_whole(path.with_suffix(".csv")) as part:
        part.write_text(_csv(table))
    with written_whole(path.with_suffix(".md")) as part:
        text = shown(table).to_markdown(index=False, disable_numparse=True)
        part.write_text(f"{text}\n\n{note}\n")


def save_table1(collected: Mapping[str, Results], folder: Path | str, name: str) -> None:
    """Write ``NAME`` and ``NAME_paired``, each as csv and md."""
    folder, paired = Path(folder), paired_table(collected)
    save_table(table1(collected), folder / f"{name}.csv", NOTE)
    save_table(paired, folder / f"{name}_paired.csv", paired_note(paired), readable_paired)


def recompute(
    folder: Path | str,
    name: str,
    data: Path | str,
    directions: Sequence[str],
    seeds: Sequence[int],
    baselines: bool = True,
) -> int:
    """Compute a saved Table 1 and its comparison again from the predictions alone.

    Parameters
    ----------
    folder, name : path, str
        Where the tables were written: ``FOLDER/NAME.csv`` and ``FOLDER/NAME_paired.csv``.
    data, directions, seeds, baselines
        As for `biox.report.predictions.collect`.

    Returns
    -------
    int
        How many numbers were compared.

    Raises
    ------
    ValueError
        A number does not follow from the predictions; names file, row, column and both numbers.
    """
    collected, compared = collect(data, directions, seeds, baselines), 0
    for file, table in ((name, table1(collected)), (f"{name}_paired", paired_table(collected))):
        path = Path(folder) / f"{file}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected a saved table, found no such file")
        compared += _compare(path, pd.read_csv(path), pd.read_csv(StringIO(_csv(table))))
    return compared


def _compare(path: Path, saved: pd.DataFrame, again: pd.DataFrame) -> int:
    """Count equal numbers; the first cell that differs is an error."""
    keys = ["direction", "method"]
    here, there = ([tuple(row) for row in t[keys].to_numpy()] for t in (saved, again))
    if here != there or list(saved.columns) != list(again.columns):
        raise ValueError(
            f"{path}: expected the rows and columns that follow from the predictions, found others"
        )
    compared = 0
    for column in saved.columns:
        old, new = saved[column], again[column]
        numeric = pd.api.types.is_numeric_dtype(old) and pd.api.types.is_numeric_dtype(new)
        if numeric:
            same = np.isclose(old, new, rtol=2e-5, atol=1e-6, equal_nan=True)
            compared += int(old.notna().sum())
        else:
            same = (old.fillna("").astype(str) == new.fillna("").astype(str)).to_numpy()
        if not same.all():
            i = int(np.flatnonzero(~same)[0])
            raise ValueError(
                f"{path}: expected {column} of {', '.join(here[i])} to follow from the "
                f"predictions, {new[i]}, found {old[i]}"
            )
    return compared


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.6g")
