"""Calibration from saved predictions: what a model is 80 % sure of should be right in 80 %.

Errors are those of the top label (Guo et al. 2017, section 2): confidence is the highest class
probability, accuracy is how often that class is the true one.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

METRICS = ("ECE", "adaptive ECE", "Brier score")


def probabilities_of(frame: pd.DataFrame) -> np.ndarray:
    """Class probabilities [n, classes] of a frame of predictions."""
    return frame[[c for c in frame.columns if c.startswith("p ")]].to_numpy()


def top_label(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Confidence [n] in the predicted class, and whether it is the true one [n]."""
    p = probabilities_of(frame)
    return p.max(axis=1), p.argmax(axis=1) == frame["label"].to_numpy()


def bin_edges(confidence: np.ndarray, n_bins: int = 15, adaptive: bool = False) -> np.ndarray:
    """Edges of the bins: of equal width from 0 to 1, or (adaptive) with equally many windows.

    Of adaptive edges, equal ones are merged, so that there may be fewer bins.
    """
    if n_bins < 1:
        raise ValueError(f"bin_edges: expected at least 1 bin, found {n_bins}")
    shares = np.linspace(0, 1, n_bins + 1)
    return np.unique(np.quantile(confidence, shares)) if adaptive else shares


def _bins(confidence: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bin of each confidence; one that lies on an edge belongs below it, as in scikit-learn."""
    return np.searchsorted(edges[1:-1], confidence)


def reliability(frame: pd.DataFrame, n_bins: int = 15, adaptive: bool = False) -> pd.DataFrame:
    """What a reliability diagram shows: one row a bin, also where it is empty.

    Returns
    -------
    DataFrame
        Columns ``low high`` (its edges), ``windows``, mean ``confidence`` and ``accuracy`` (NaN in
        an empty bin).
    """
    confidence, correct = top_label(frame)
    edges = bin_edges(confidence, n_bins, adaptive)
    n = max(1, len(edges) - 1)
    rows = _bins(confidence, edges)
    counts = np.bincount(rows, minlength=n)
    means = {
        name: np.bincount(rows, values, minlength=n) / np.where(counts, counts, np.nan)
        for name, values in (("confidence", confidence), ("accuracy", correct.astype(float)))
    }
    low, high = (edges[:-1], edges[1:]) if len(edges) > 1 else (edges, edges)
    return pd.DataFrame({"low": low, "high": high, "windows": counts} | means)


def calibration_error(frame: pd.DataFrame, n_bins: int = 15, adaptive: bool = False) -> float:
    """Expected calibration error: mean distance of accuracy to confidence, weighted by windows."""
    bins = reliability(frame, n_bins, adaptive)
    gaps = (bins["accuracy"] - bins["confidence"]).abs().fillna(0)
    return float((gaps * bins["windows"]).sum() / bins["windows"].sum())


def brier_score(frame: pd.DataFrame) -> float:
    """Mean over windows of the squared distance of probabilities to the truth, over all classes.

    From 0 to 2; for two classes twice what scikit-learn's ``brier_score_loss`` gives.
    """
    return float(_squared_distances(frame).mean())


def _squared_distances(frame: pd.DataFrame) -> np.ndarray:
    p = probabilities_of(frame)
    return ((p - np.eye(p.shape[1])[frame["label"].to_numpy()]) ** 2).sum(axis=1)


def calibration(
    runs: Sequence[pd.DataFrame],
    n_bins: int = 15,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float, float]]:
    """Calibration of a method: mean over its runs, and an interval from resampling subjects.

    Parameters
    ----------
    runs : sequence of DataFrame
        Predictions of the same test windows, one frame a seed.

    Returns
    -------
    dict
        By name in `METRICS`: value, lower and upper end. Ends are NaN for a single subject.

    Notes
    -----
    The same subjects are drawn for every run. Adaptive bins keep the edges of all windows. A
    calibration error of few windows is biased upwards, and that of a resample more so.
    """
    subjects = sorted(runs[0]["subject"].unique())
    rng, n = np.random.default_rng(seed), len(subjects)
    drawn = rng.multinomial(n, np.full(n, 1 / n), n_resamples)
    values = {name: [] for name in METRICS}
    for run in runs:
        owner = np.searchsorted(subjects, run["subject"].to_numpy())
        weights = np.vstack([np.ones(n, int), drawn])  # first all subjects once
        confidence, correct = top_label(run)
        for name, adaptive in (("ECE", False), ("adaptive ECE", True)):
            edges = bin_edges(confidence, n_bins, adaptive)
            gaps = np.zeros((n, max(1, len(edges) - 1)))
            np.add.at(gaps, (owner, _bins(confidence, edges)), correct - confidence)
            windows = np.bincount(owner, minlength=n)
            values[name].append(np.abs(weights @ gaps).sum(axis=1) / (weights @ windows))
        distances = np.bincount(owner, _squared_distances(run), minlength=n)
        values["Brier score"].append((weights @ distances) / (weights @ windows))
    tail, found = (1 - level) / 2, {}
    for name, of_runs in values.items():
        whole, *resampled = np.mean(of_runs, axis=0)
        low, high = np.quantile(resampled, [tail, 1 - tail]) if n > 1 else (np.nan, np.nan)
        found[name] = (float(whole), float(low), float(high))
    return found


def runs_by_method(frame: pd.DataFrame) -> dict[str, list[pd.DataFrame]]:
    """Predictions of a direction by method, one frame a seed; failed runs (NaN) are left out."""
    frame = frame[np.isfinite(probabilities_of(frame)).all(axis=1)]
    return {
        method: [run for _, run in rows.groupby("seed", sort=True)]
        for method, rows in frame.groupby("method", sort=False)
    }


def calibration_table(frames: Mapping[str, pd.DataFrame], n_bins: int = 15) -> pd.DataFrame:
    """One row a direction and method: `METRICS` with their intervals, and the mean confidence."""
    rows = []
    for direction, frame in frames.items():
        for method, runs in runs_by_method(frame).items():
            row = {"direction": direction, "method": method, "runs": len(runs)}
            for name, (value, low, high) in calibration(runs, n_bins).items():
                row |= {name: value, f"{name} low": low, f"{name} high": high}
            tops = [top_label(run) for run in runs]
            row["confidence"] = np.mean([confidence.mean() for confidence, _ in tops])
            row["accuracy"] = np.mean([correct.mean() for _, correct in tops])
            rows.append(row)
    return pd.DataFrame(rows)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table as a person reads it: ``0.083 [0.061, 0.142]``."""
    shown = table[["direction", "method"]].copy()
    for name in METRICS:
        ends = zip(table[name], table[f"{name} low"], table[f"{name} high"], strict=True)
        shown[f"{name} [95 %]"] = [f"{v:.3f} [{low:.3f}, {high:.3f}]" for v, low, high in ends]
    for name in ("confidence", "accuracy"):
        shown[f"mean {name}"] = table[name].map("{:.3f}".format)
    return shown


def plot_reliability(frames: Mapping[str, pd.DataFrame], n_bins: int = 15) -> Figure:
    """Draw reliability diagrams, one column a direction, with numbers of windows below.

    Seeds of a method are put together; bins with fewer than 10 windows are drawn hollow.
    """
    figure, axes = plt.subplots(
        2, len(frames), figsize=(2.1 * len(frames), 3.6), squeeze=False, sharex=True, sharey="row",
        height_ratios=(3, 1),
    )  # fmt: skip
    palette = sns.color_palette("colorblind")
    for (upper, lower), (direction, frame) in zip(axes.T, frames.items(), strict=True):
        upper.plot([0, 1], [0, 1], color="grey", lw=1)
        for colour, (method, runs) in zip(palette, runs_by_method(frame).items(), strict=False):
            bins = reliability(pd.concat(runs), n_bins).dropna()
            many = bins["windows"] >= 10 * len(runs)
            upper.plot(bins["confidence"], bins["accuracy"], lw=1, color=colour)
            for part, fill in ((bins[many], colour), (bins[~many], "white")):
                upper.plot(part["confidence"], part["accuracy"], "o", ms=4, mfc=fill, color=colour)
            upper.plot([], [], "o-", ms=4, lw=1, color=colour, label=method)
            heights = bins["windows"] / len(runs)
            lower.step(bins["low"] + 0.5 / n_bins, heights, where="mid", lw=1, color=colour)
        upper.set_title(direction, fontsize="small")
        lower.set(xlabel="confidence", xlim=(0, 1))
        upper.set(ylim=(0, 1))
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("windows")
    axes[0, 0].legend(frameon=False, fontsize="x-small", loc="upper left")
    return figure


def verdict(table: pd.DataFrame) -> str:
    """State in sentences, by method, in how many directions it is too sure, and how wrong."""
    lines = []
    for method, rows in table.groupby("method", sort=False):
        sure = (rows["confidence"] > rows["accuracy"]).sum()
        lines.append(
            f"- **{method}**: ECE from {rows['ECE'].min():.3f} to {rows['ECE'].max():.3f}; on the "
            f"whole too sure of itself in {sure} of {len(rows)} directions, and too unsure in "
            f"{(rows['confidence'] < rows['accuracy']).sum()}."
        )
    methods = table.pivot(index="direction", columns="method", values="ECE")
    if {"Oracle", "BioX-Bridge"} <= set(methods):
        worse = (methods["BioX-Bridge"] > methods["Oracle"]).sum()
        lines.append(
            f"- The bridge is calibrated worse than the teacher on its own modality in {worse} of "
            f"{len(methods)} directions (by ECE; intervals above)."
        )
    return "\n".join(lines)
