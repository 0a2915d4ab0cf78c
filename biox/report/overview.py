"""Pictures of all methods together: scores, scores against parameters, curves, confusions."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from biox.report.metrics import confusion
from biox.report.predictions import METHODS, Results

SCORE = "balanced_accuracy"
LEVELS = {"Random": ":", "Oracle": "--"}  # lines, not marks: they train nothing
MARKS = dict(zip([m for m in METHODS if m not in LEVELS], ".XsDv^o", strict=True))
COLOURS = {
    "BioX-Bridge": 0,
    "KD": 1,
    "KD-Contrast": 2,
    "LoRA-KD": 3,
    "Probe transfer": 4,
    "CardioGAN": 5,
}
PALETTE = {method: sns.color_palette("colorblind")[i] for method, i in COLOURS.items()}
PALETTE |= {"Random": "grey", "Random (sampled)": "grey", "Oracle": "black"}


def plot_scores(table: pd.DataFrame) -> Figure:
    """Draw balanced accuracy by direction and method, with 95 % intervals over test subjects.

    A method that failed in every run is a cross at the bottom.
    """
    directions = table["direction"].unique().tolist()
    methods = [method for method in METHODS if method in set(table["method"])]
    figure, axis = plt.subplots(figsize=(9, 3.6))
    axis.set(ylabel="balanced accuracy (%)", ylim=(0, 102), xlim=(-0.5, len(directions) - 0.5))
    for i, method in enumerate(methods):
        rows = table[table["method"] == method].set_index("direction").reindex(directions)
        x = np.arange(len(directions)) + 0.8 * ((i + 0.5) / len(methods) - 0.5)
        _marks(axis, x, rows, method)
        _failures(axis, x, rows, method)
    for i in range(1, len(directions)):
        axis.axvline(i - 0.5, color="lightgrey", lw=0.7, zorder=0)
    axis.set_xticks(range(len(directions)), directions)
    handles = axis.get_legend_handles_labels()
    figure.legend(*handles, frameon=False, ncols=5, loc="outside lower center")
    return figure


def plot_claim(table: pd.DataFrame) -> Figure:
    """Draw balanced accuracy against trained parameters, a panel a direction.

    Filled marks and thick lines are ours, with 95 % intervals over test subjects; hollow marks are
    what the paper reports on the original data. It states no number of parameters for KD-Contrast,
    which trains the same student as KD: its hollow mark stands above KD's number.
    """
    directions = table["direction"].unique().tolist()
    columns = min(3, len(directions))
    n = -(-len(directions) // columns)
    figure, axes = plt.subplots(
        n, columns, figsize=(3.2 * columns, 2.5 * n + 0.7), sharex=True, sharey=True, squeeze=False
    )
    for axis, direction in zip(axes.flat, directions, strict=False):
        axis.set(xscale="log", title=direction, ylim=(20, 102))
        rows = table[table["direction"] == direction].set_index("method")
        for method in rows.index.intersection(list(MARKS)):
            own = rows.loc[[method]]
            x = own["trainable parameters"].to_numpy()
            if np.isfinite(x).all():
                _marks(axis, x, own, method)
                _failures(axis, x, own, method)
        _reported(axis, rows)
        for method, style in LEVELS.items():
            axis.axhline(rows.loc[method, SCORE], ls=style, lw=1.2, color=PALETTE[method])
    for axis in axes[:, 0]:
        axis.set_ylabel("balanced accuracy (%)")
    for axis in axes[-1]:
        axis.set_xlabel("trained parameters (log scale)")
    for axis in axes.flat[len(directions) :]:
        axis.set_visible(False)
    figure.legend(
        handles=_legend(table), frameon=False, ncols=4, loc="outside lower center", fontsize="small"
    )
    return figure


def plot_curves(curves: pd.DataFrame, directions: list[str]) -> Figure:
    """Draw losses by epoch, a panel a direction (row) and method (column), each on its own scale.

    Thin lines are seeds: solid on the training windows, dashed on val; a star marks the epoch kept.
    """
    methods = [method for method in METHODS if method in set(curves["method"])]
    figure, axes = plt.subplots(
        len(directions),
        len(methods),
        figsize=(1.75 * len(methods) + 0.5, 1.15 * len(directions) + 0.5),
        squeeze=False,
    )
    for axis, (direction, method) in _grid(axes, directions, methods):
        rows = curves[(curves["direction"] == direction) & (curves["method"] == method)]
        if rows.empty:
            _empty(axis, "none")
        for _, run in rows.groupby("seed"):
            kept = run[run["epoch"] == run["best"]]
            axis.plot(run["epoch"], run["train"], lw=0.7, color=PALETTE[method])
            axis.plot(run["epoch"], run["val"], lw=0.7, ls="--", color=PALETTE[method])
            axis.plot(kept["epoch"], kept["val"], "*", ms=5, color=PALETTE[method])
        axis.tick_params(labelsize=6, pad=1)
        axis.locator_params(nbins=3)
    figure.supxlabel("epoch", fontsize="small")
    figure.supylabel("loss", fontsize="small")
    return figure


def plot_confusions(collected: Mapping[str, Results]) -> Figure:
    """Draw confusion matrices in per cent of the true class, all seeds together.

    Rows of a panel are true classes, columns predicted ones; a row of panels is a direction.
    """
    directions = list(collected)
    present = {name for results in collected.values() for name in results.methods}
    methods = [m for m in METHODS if m in present and m != "Random (sampled)"]
    figure, axes = plt.subplots(
        len(directions),
        len(methods),
        figsize=(1.25 * len(methods) + 0.5, 1.3 * len(directions)),
        squeeze=False,
    )
    for axis, (direction, method) in _grid(axes, directions, methods):
        runs = collected[direction].methods.get(method)
        if runs is None or not runs.frames:
            _empty(axis, "none" if runs is None else "failed")
            continue
        counts = sum(confusion(run) for run in runs.frames)
        shares = 100 * counts / counts.sum(axis=1, keepdims=True)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for (i, j), share in np.ndenumerate(shares):
            tint = "white" if share > 60 else "black"
            axis.text(j, i, f"{share:.0f}", ha="center", va="center", fontsize=6, color=tint)
        classes = [c.removeprefix("p ")[:5] for c in runs.frames[0] if c.startswith("p ")]
        axis.set_xticks(range(len(classes)), classes, fontsize=6)
        axis.set_yticks(range(len(classes)), classes, fontsize=6)
        axis.tick_params(length=0, pad=1)
    return figure


def _marks(axis: Axes, x: np.ndarray, rows: pd.DataFrame, method: str) -> None:
    y = rows[SCORE].to_numpy(float)
    ends = [rows.get(f"interval {end}", pd.Series(np.nan, rows.index)) for end in ("low", "high")]
    low, high = (end.to_numpy(float) for end in ends)
    bars = np.nan_to_num(np.array([y - low, high - y])).clip(min=0)
    mark = MARKS.get(method, "_")
    axis.errorbar(x, y, bars, fmt=mark, ms=5, capsize=2, lw=1, color=PALETTE[method], label=method)


def _failures(axis: Axes, x: np.ndarray, rows: pd.DataFrame, method: str) -> None:
    told = rows.get("failed runs", pd.Series("", rows.index)).fillna("").to_numpy()
    whole = [text.split(" of ")[0] == text.split(" of ")[-1] != "" for text in told]
    for place in np.asarray(x)[whole]:
        axis.text(
            place,
            axis.get_ylim()[0] + 1,
            "failed",
            rotation=90,
            fontsize=6,
            ha="center",
            color=PALETTE[method],
        )


def _reported(axis: Axes, rows: pd.DataFrame) -> None:
    parameters = 1e6 * rows["parameters reported (M)"]
    if "KD" in rows.index and "KD-Contrast" in rows.index:
        parameters["KD-Contrast"] = parameters["KD"]
    for method in rows.index.intersection(list(MARKS)):
        axis.plot(
            parameters[method], rows.loc[method, f"{SCORE} reported"], MARKS[method], ms=6,
            mfc="none", mec=PALETTE[method],
        )  # fmt: skip


def _legend(table: pd.DataFrame) -> list[Line2D]:
    shown = table[table["trainable parameters"].notna()]["method"].unique()
    style = dict(ls="", ms=6)
    handles = [
        Line2D([], [], marker=MARKS[m], color=PALETTE[m], label=m, **style)
        for m in METHODS
        if m in shown
    ]
    for method, line in LEVELS.items():
        handles.append(Line2D([], [], ls=line, color=PALETTE[method], label=method))
    if table[f"{SCORE} reported"].notna().any():
        label = "reported, original data"
        handles.append(Line2D([], [], marker="o", color="grey", mfc="none", label=label, **style))
    return handles


def _grid(axes: np.ndarray, directions: list[str], methods: list[str]):
    """Panels with their direction and method; titles at the top and on the left."""
    for i, direction in enumerate(directions):
        for j, method in enumerate(methods):
            axis = axes[i, j]
            if i == 0:
                axis.set_title(method, fontsize="small")
            if j == 0:
                axis.set_ylabel(direction.replace("-", "\n"), fontsize="x-small")
            yield axis, (direction, method)


def _empty(axis: Axes, word: str) -> None:
    axis.text(0.5, 0.5, word, ha="center", va="center", fontsize=7, transform=axis.transAxes)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
