"""Table, picture and verdict of the negative controls, from saved predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from biox.controls import (
    PAIRS_SHUFFLED,
    PERMUTED_POSITION,
    PROBE_PERMUTED,
    RANDOM_POSITION,
    REFERENCE,
    UNTRAINED,
)
from biox.files import read_json, written_whole
from biox.report.calibration import runs_by_method
from biox.report.metrics import collapsed, confusion, scores, scores_from, subject_interval

NOTHING_TO_LEARN = (PAIRS_SHUFFLED, PROBE_PERMUTED)
"""Controls that have no way to know the task: chance is what they should score."""

KNOWN = ("Oracle", "BioX-Bridge")
"""No controls; their intervals are those of Table 1."""

SCORE = "balanced accuracy (%)"


def read_predictions(path: Path | str, direction: str) -> pd.DataFrame:
    """Read saved predictions of one direction.

    Raises
    ------
    FileNotFoundError
        There are none.
    ValueError
        They belong to another direction.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected predictions of {direction}, found no such file")
    frame = pd.read_csv(path, dtype={"subject": str, "recording": str})
    found = sorted(frame["direction"].unique().tolist())
    if found != [direction]:
        raise ValueError(f"{path}: expected predictions of {direction}, found {found}")
    return frame


def collect(data: Path | str, directions: Sequence[str], *folders: str) -> dict[str, pd.DataFrame]:
    """Read the predictions of each direction in ``data/FOLDER/DIRECTION``, put together.

    Raises
    ------
    FileNotFoundError, ValueError
        As in `read_predictions`.
    """
    return {
        name: pd.concat(
            [read_predictions(Path(data) / f / name / "predictions.csv", name) for f in folders],
            ignore_index=True,
        )
        for name in directions
    }


def control_rows(frame: pd.DataFrame, facts: Mapping) -> pd.DataFrame:
    """One row a method of a direction: score, interval over test subjects, and where chance lies.

    Parameters
    ----------
    frame : DataFrame
        Predictions of controls, and of the teacher and the bridge if they are to stand beside them.
    facts : mapping
        ``controls.json`` of the direction.
    """
    n_classes = sum(column.startswith("p ") for column in frame.columns)
    direction, chance, rows = frame["direction"].iloc[0], 100 / n_classes, []
    good = runs_by_method(frame)
    for method, of_method in frame.groupby("method", sort=False):
        runs, place = good.get(method, []), facts["places"].get(method, [np.nan, np.nan])
        row = {"direction": direction, "control": method, "m": place[0], "l": place[1]}
        row |= {"epochs": facts["epochs"].get(method, np.nan), "chance": chance}
        row |= {"runs": of_method["seed"].nunique(), "failed": 0}
        row["failed"] = row["runs"] - len(runs)
        if runs:
            values = 100 * np.array([scores(run)["balanced_accuracy"] for run in runs])
            ends = subject_interval if method in KNOWN else interval
            low, high = (100 * end for end in ends(runs))
            row |= {SCORE: values.mean(), "sd": values.std(ddof=1) if len(values) > 1 else np.nan}
            row |= {"interval low": low, "interval high": high}
            row |= {"collapsed": sum(collapsed(run) for run in runs)}
            row["against chance"] = _place_of(chance, low, high)
        rows.append(row)
    return pd.DataFrame(rows)


def interval(
    runs: Sequence[pd.DataFrame], n_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean balanced accuracy, resampling subjects and runs.

    What a control draws (a permutation, random weights) differs from run to run, and a mean of few
    draws may lie off chance by luck; so runs are resampled too. For one run it is
    `biox.report.metrics.subject_interval`. Resamples in which a class has no window are left out.
    """
    if len(runs) == 1:
        return subject_interval(runs, n_resamples=n_resamples, level=level, seed=seed)
    subjects = sorted(runs[0]["subject"].unique())
    counts = np.array([[confusion(run[run["subject"] == s]) for s in subjects] for run in runs])
    rng, n, values = np.random.default_rng(seed), len(subjects), []
    for _ in range(n_resamples):
        people, drawn = rng.integers(n, size=n), rng.integers(len(runs), size=len(runs))
        if (counts[0, people].sum(axis=(0, 2)) > 0).all():
            resampled = scores_from(counts[drawn][:, people].sum(axis=1))
            values.append(resampled["balanced_accuracy"].mean())
    tail = (1 - level) / 2
    return tuple(float(end) for end in np.quantile(values, [tail, 1 - tail]))


def _place_of(value: float, low: float, high: float) -> str:
    """Where an interval lies."""
    if np.isnan(low):
        return "no interval"
    if low > value + 1e-9:
        return "above"
    return "below" if high < value - 1e-9 else "includes"


def control_table(data: Path | str, directions: Sequence[str]) -> pd.DataFrame:
    """All controls of all directions beside the bridge: `control_rows`, one below the other."""
    frames = collect(data, directions, "bridges", "controls")
    rows = [
        control_rows(frame, read_json(Path(data) / "controls" / name / "controls.json"))
        for name, frame in frames.items()
    ]
    return pd.concat(rows, ignore_index=True)


def readable_controls(table: pd.DataFrame) -> pd.DataFrame:
    """The table as a person reads it: ``52.3 [48.1, 57.0]``."""

    def score(row: pd.Series) -> str:
        if row["failed"] == row["runs"]:
            return "failed"
        sd = "" if np.isnan(row["sd"]) else f" ± {row['sd']:.1f}"
        return f"{row[SCORE]:.1f}{sd} [{row['interval low']:.1f}, {row['interval high']:.1f}]"

    number = {"m": "{:.0f}", "l": "{:.0f}", "epochs": "{:.0f}"}
    shown = table[["direction", "control"]].copy()
    for name, form in number.items():
        shown[name] = [
            "" if np.isnan(value) else form.format(value) for value in table[name].astype(float)
        ]
    shown[f"{SCORE} [95 %]"] = table.apply(score, axis=1)
    shown["chance"] = table["chance"].map("{:.1f}".format)
    shown["interval against chance"] = table["against chance"]
    shown["collapsed"] = [
        f"{c:.0f} of {r}" for c, r in zip(table["collapsed"].fillna(0), table["runs"], strict=True)
    ]
    return shown


def verdict_controls(table: pd.DataFrame) -> str:
    """State in sentences where controls lie, whichever way it went."""
    lines = []
    directions = table["direction"].nunique()
    for control in NOTHING_TO_LEARN:
        rows = table[table["control"] == control]
        at = rows[rows["against chance"] == "includes"]
        line = (
            f"- **{control}**: the interval includes chance in {len(at)} of {directions} "
            f"directions; {int((at['collapsed'] == at['runs']).sum())} of these by giving every "
            "window the same class."
        )
        for where in ("above", "below", "no interval"):
            names = rows.loc[rows["against chance"] == where, "direction"]
            line += f" **{where.capitalize()}**: {', '.join(names)}." if len(names) else ""
        lines.append(line + _failed(rows))
    rows = table[table["control"] == UNTRAINED]
    above = rows.loc[rows["against chance"] == "above", "direction"]
    lines.append(
        f"- **{UNTRAINED}**: above chance in {len(above)} of {directions} directions"
        + (f" ({', '.join(above)})" if len(above) else "")
        + ": random layers keep something of their input, so that this is no matter of course."
        + _failed(rows)
    )
    lines += _against_other_positions(table)
    return "\n".join(lines)


def _against_other_positions(table: pd.DataFrame) -> list[str]:
    lines = []
    for direction, rows in table.groupby("direction", sort=False):
        score = rows.set_index("control")[SCORE]
        drawn = score[score.index.str.startswith(RANDOM_POSITION)]
        if not len(drawn) or not {REFERENCE, "BioX-Bridge"} & set(score.index):
            continue
        name = REFERENCE if REFERENCE in score else "BioX-Bridge"
        spread = f" ± {drawn.std(ddof=1):.1f}" if len(drawn) > 1 else ""
        lines.append(
            f"- **{direction}**, trained equally long: selected position {score[name]:.1f}, "
            f"{len(drawn)} random ones {drawn.mean():.1f}{spread} "
            f"({(drawn > score[name]).sum()} of them better), by permuted pseudo-labels "
            f"{score.get(PERMUTED_POSITION, np.nan):.1f}."
        )
    return lines


def _failed(rows: pd.DataFrame) -> str:
    names = rows.loc[rows["failed"] > 0, "direction"]
    return f" **Failed to train**: {', '.join(names)}." if len(names) else ""


def verdict_probes(probes: pd.DataFrame) -> str:
    """State in a sentence where the probe that selects m knows more than permuted labels would."""
    beaten = probes["macro-F1 of the probe there"] <= probes["best layer, permuted"]
    names = probes.index[beaten]
    return (
        f"- **selection of m**: in {len(names)} of {len(probes)} directions the selected layer's "
        "probe does no better than the best layer does on permuted pseudo-labels"
        + (f" ({', '.join(names)}): there m is chosen by noise." if len(names) else ".")
    )


def plot_controls(table: pd.DataFrame) -> Figure:
    """Draw scores with 95 % intervals, one panel a direction; chance is the grey line."""
    directions = table["direction"].unique()
    figure, axes = plt.subplots(
        2, -(-len(directions) // 2), figsize=(9, 5), squeeze=False, sharey=False
    )
    palette = sns.color_palette("colorblind")
    for axis, direction in zip(axes.flat, directions, strict=False):
        rows = table[table["direction"] == direction][::-1]
        for y, (_, row) in enumerate(rows.iterrows()):
            known = row["control"] in KNOWN
            colour = palette[0] if known else palette[1 + (row["control"] in NOTHING_TO_LEARN)]
            ends = [[row[SCORE] - row["interval low"]], [row["interval high"] - row[SCORE]]]
            bars = np.nan_to_num(np.clip(ends, 0, None))
            axis.errorbar(row[SCORE], y, xerr=bars, fmt="o", ms=4, capsize=2, lw=1, color=colour)
        axis.axvline(rows["chance"].iloc[0], color="grey", lw=1)
        axis.set_yticks(range(len(rows)), rows["control"], fontsize="x-small")
        axis.set(title=direction, xlim=(0, 100))
    for axis in axes.flat[len(directions) :]:
        axis.set_visible(False)
    figure.supxlabel(SCORE, fontsize="small")
    return figure


def permuted_probes(data: Path | str, directions: Sequence[str]) -> pd.DataFrame:
    """Probe scores with pseudo-labels as they are and permuted, and how often which m is chosen."""
    rows = {}
    for name in directions:
        true = read_json(Path(data) / "positions" / f"{name}.json")
        permuted = read_json(Path(data) / "controls" / name / "controls.json")["permuted"]
        best = [max(s["probe"]) for s in permuted]
        rows[name] = {
            "m": true["m"],
            "macro-F1 of the probe there": true["probe"][true["m"]],
            "the same, permuted": np.mean([s["probe"][true["m"]] for s in permuted]),
            "best layer, permuted": np.mean(best),
            "m by permuted": ", ".join(str(s["m"]) for s in permuted),
        }
    return pd.DataFrame(rows).T.rename_axis("direction")


def save_table(table: pd.DataFrame, shown: pd.DataFrame, path: Path | str, note: str) -> None:
    """Write all columns as csv and what a person reads as md beside it, with a note under it."""
    path = Path(path)
    with written_whole(path.with_suffix(".csv")) as part:
        table.to_csv(part, index=False, float_format="%.6g")
    with written_whole(path.with_suffix(".md")) as part:
        part.write_text(f"{shown.to_markdown(index=False)}\n\n{note}\n")
