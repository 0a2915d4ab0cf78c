"""Ablations as tables and pictures (figure 4 and the appendix), from saved predictions alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from biox.files import read_json, written_whole
from biox.report.metrics import METRICS, collapsed, scores, subject_interval

SCORE = "balanced_accuracy"


@dataclass(frozen=True)
class Ablation:
    """What one ablation left behind (`biox.ablations.save`).

    Attributes
    ----------
    predictions, runs : DataFrame
        One row a test window and run; one row a run.
    about : dict
        Direction, source of the data, m and l.
    """

    predictions: pd.DataFrame
    runs: pd.DataFrame
    about: dict


def read(folder: Path | str, direction: str) -> Ablation:
    """Read a finished ablation of a direction.

    Raises
    ------
    FileNotFoundError
        It is not there, or was not finished.
    ValueError
        It is of another direction, or its predictions and runs do not belong together.
    """
    folder = Path(folder)
    about = read_json(folder / "about.json")
    text = {"variant": str, "subject": str, "recording": str}
    predictions = pd.read_csv(folder / "predictions.csv", dtype=text)
    runs = pd.read_csv(folder / "runs.csv", dtype=text)
    found = {about["direction"], *predictions["direction"]}
    if found != {direction}:
        raise ValueError(f"{folder}: expected predictions of {direction}, found {sorted(found)}")
    keys = ["variant", "seed"]
    if set(predictions[keys].itertuples(index=False)) != set(runs[keys].itertuples(index=False)):
        raise ValueError(
            f"{folder / 'predictions.csv'}: expected predictions of the runs in runs.csv, found "
            "others: the two are from different trainings"
        )
    return Ablation(predictions, runs, about)


def score_table(ablation: Ablation) -> pd.DataFrame:
    """One row a variant, in the order of training.

    Columns: scores in per cent (mean over seeds), ``sd`` over seeds of balanced accuracy, the 95 %
    interval from resampling test subjects (``low``, ``high``), what the runs say of themselves
    (means), ``collapsed`` runs (one class for every window), ``default``.
    """
    rows = {}
    by_variant = dict(iter(ablation.predictions.groupby("variant")))
    for variant, runs in ablation.runs.groupby("variant", sort=False):
        frames = [part for _, part in by_variant[variant].groupby("seed")]
        values = pd.DataFrame([scores(frame) for frame in frames])
        low, high = subject_interval(frames)
        rows[variant] = {name: 100 * values[name].mean() for name in METRICS} | {
            "sd": 100 * values[SCORE].std(ddof=1),
            "low": 100 * low,
            "high": 100 * high,
            "seeds": len(frames),
            "collapsed": sum(collapsed(frame) for frame in frames),
            "parameters": runs["parameters"].iloc[0],
            "windows": round(runs["windows"].mean()),
            "m": runs["m"].iloc[0],
            "l": runs["l"].iloc[0],
            "val loss": runs["val loss"].mean(),
            "cosine on test": runs["cosine on test"].mean(),
            "default": runs["default"].all(),
        }
    return pd.DataFrame(rows).T.infer_objects().rename_axis("variant")


def readable(table: pd.DataFrame, *more: str) -> pd.DataFrame:
    """Show a score table as a person reads it, with some more of its columns."""

    def score(row: pd.Series) -> str:
        if row["collapsed"] == row["seeds"]:
            return "collapsed"
        return f"{row[SCORE]:.1f}" + ("" if np.isnan(row["sd"]) else f" ± {row['sd']:.1f}")

    shown = {
        "balanced accuracy": table.apply(score, axis=1),
        "95 % interval": table.apply(lambda r: f"[{r['low']:.1f}, {r['high']:.1f}]", axis=1),
        "macro-F1": table["macro_f1"].map("{:.1f}".format),
        "weighted F1": table["weighted_f1"].map("{:.1f}".format),
        "parameters": table["parameters"].map("{:,.0f}".format),
        "collapsed runs": table.apply(lambda r: f"{r['collapsed']} of {r['seeds']}", axis=1),
    }
    return pd.DataFrame(shown).join(table[list(more)].astype(float).round(3))


def save_table(table: pd.DataFrame, path: Path | str, note: str) -> None:
    """Write a score table as csv (all columns) and, readable, as md beside it."""
    path = Path(path)
    with written_whole(path.with_suffix(".csv")) as part:
        table.to_csv(part, float_format="%.6g")
    with written_whole(path.with_suffix(".md")) as part:
        part.write_text(f"{readable(table).to_markdown()}\n\n{note}\n")


def plot_figure4(rank: pd.DataFrame, prototypes: pd.DataFrame, share: pd.DataFrame) -> Figure:
    """Draw figure 4 from three score tables: against parameters (a, b), against windows (c)."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.9), sharey=True)
    panels = (
        (rank, "parameters", "a: rank", "trained parameters"),
        (prototypes, "parameters", "b: number of prototypes", "trained parameters"),
        (share, "windows", "c: share of paired data", "paired windows"),
    )
    for axis, (table, x, title, label) in zip(axes, panels, strict=True):
        at = table[x].to_numpy(float)
        _errors(axis, at, table)
        top = np.fmax(table["high"], table[SCORE] + table["sd"].fillna(0))
        for name, place, height in zip(table.index, at, top, strict=True):
            axis.annotate(
                name, (place, height), xytext=(0, 2), textcoords="offset points",
                fontsize="x-small", ha="center",
            )  # fmt: skip
        axis.set(xscale="log", title=title, xlabel=label)
        axis.margins(x=0.1)
    axes[2].set_xticks(share["windows"].to_numpy(float), share["windows"].map("{:.0f}".format))
    axes[2].minorticks_off()
    axes[0].set_ylabel("balanced accuracy (%)")
    return figure


def _errors(axis: Axes, x: np.ndarray, table: pd.DataFrame) -> None:
    """Draw scores with two bars, over people (thin) and seeds (thick); a star on the default."""
    score, colour = table[SCORE].to_numpy(float), sns.color_palette("colorblind")[0]
    low, high = (table[end].to_numpy(float) for end in ("low", "high"))
    over_people = np.maximum(0, [score - low, high - score])
    axis.errorbar(x, score, over_people, fmt="none", ecolor="lightgrey", elinewidth=1, capsize=2)
    sd = table["sd"].fillna(0).to_numpy(float)
    axis.errorbar(x, score, sd, fmt="o-", color=colour, ms=4, lw=1, elinewidth=2.5)
    chosen = table["default"].to_numpy(bool)
    axis.plot(x[chosen], score[chosen], "*", color="black", ms=12, zorder=5)


def plot_variants(tables: Sequence[pd.DataFrame], titles: Sequence[str]) -> Figure:
    """Draw scores of named variants, one panel a table."""
    heights = [len(table) for table in tables]
    figure, axes = plt.subplots(
        len(tables), 1, figsize=(7, 0.9 + 0.33 * sum(heights)), sharex=True, squeeze=False,
        height_ratios=heights,
    )  # fmt: skip
    for axis, table, title in zip(axes[:, 0], tables, titles, strict=True):
        y = np.arange(len(table))[::-1]
        score = table[SCORE].to_numpy(float)
        ends = [score - table["low"], table["high"] - score]
        axis.errorbar(score, y, xerr=np.maximum(0, ends), fmt="none", ecolor="lightgrey", capsize=2)
        sd = table["sd"].fillna(0)
        axis.errorbar(score, y, xerr=sd, fmt="o", ms=4, elinewidth=2.5)
        chosen = table["default"].to_numpy(bool)
        axis.plot(score[chosen], y[chosen], "*", color="black", ms=12, zorder=5)
        axis.set(title=title, ylim=(-0.6, len(table) - 0.4))
        axis.set_yticks(y, table.index)
    axes[-1, 0].set_xlabel("balanced accuracy (%)")
    return figure


def best_sentence(table: pd.DataFrame, what: str) -> str:
    """Say which variant is highest, and by how much beside the default."""
    best = table[SCORE].astype(float).idxmax()
    text = f"The highest balanced accuracy has {what} {best} ({table.loc[best, SCORE]:.1f} %"
    chosen = table.index[table["default"].to_numpy(bool)]
    if best in chosen:
        return text + "), the default."
    if len(chosen) == 0:
        return text + "); the default is not among these."
    default = table.loc[chosen[0]]
    gain, sd = table.loc[best, SCORE] - default[SCORE], np.fmax(table.loc[best, "sd"], 0)
    spread = np.fmax(sd, np.fmax(default["sd"], 0))
    size = "more" if gain > 2 * spread else "**not more**"
    return (
        text + f"), {gain:.1f} points above the default {chosen[0]}: {size} than twice the larger "
        f"standard deviation over seeds ({spread:.1f})."
    )


def fallen_sentence(table: pd.DataFrame, what: str) -> str:
    """Name the variants in which some run gives every window one class; empty if there is none."""
    fallen = table[table["collapsed"] > 0]
    parts = [f"{name} ({row['collapsed']} of {row['seeds']})" for name, row in fallen.iterrows()]
    return f"**Collapsed** with {what}: {', '.join(parts)}." if parts else ""


def peak_sentence(table: pd.DataFrame, what: str) -> str:
    """Say whether scores fall again towards the largest size by more than seeds differ."""
    at = int(table[SCORE].astype(float).argmax())
    if at == len(table) - 1:
        return f"Over {what}: **no** peak, the largest is highest."
    best, last = table.iloc[at], table.iloc[-1]
    fall, spread = best[SCORE] - last[SCORE], np.fmax(0, np.fmax(best["sd"], last["sd"]))
    if fall > 2 * spread:
        return (
            f"Over {what}: a peak as in the paper, at {best['parameters']:,.0f} parameters (paper: "
            f"near 0.75 million); the largest is {fall:.1f} points below it."
        )
    return (
        f"Over {what}: **no clear peak**; the largest is only {fall:.1f} points below the highest, "
        f"where twice the standard deviation over seeds is {2 * spread:.1f}."
    )


def verdict_figure4(rank: pd.DataFrame, prototypes: pd.DataFrame, share: pd.DataFrame) -> str:
    """Hold the paper's three statements about figure 4 against these numbers."""
    lines = []
    for table, what in ((rank, "rank"), (prototypes, "number of prototypes")):
        lines += [best_sentence(table, what), peak_sentence(table, what)]
        lines.append(fallen_sentence(table, f"this {what}"))
    shares = share.set_axis(share.index.astype(float))
    if {0.2, 1.0} <= set(shares.index):
        lost = shares.loc[1.0, SCORE] - shares.loc[0.2, SCORE]
        spread = np.fmax(*(np.fmax(shares.loc[s, "sd"], 0) for s in (0.2, 1.0)))
        way = "lost" if lost > 0 else "won"
        lines.append(
            f"At 20 % of the paired windows {abs(lost):.1f} points are {way} (paper: about 2 lost; "
            f"larger standard deviation over seeds here: {spread:.1f})."
        )
    lines.append(fallen_sentence(share, "this share"))
    return "\n".join(f"- {line}" for line in lines if line)


def verdict_variants(tables: Sequence[pd.DataFrame], whats: Sequence[str]) -> str:
    """Say of each table which variant is highest and which collapsed."""
    lines = []
    for table, what in zip(tables, whats, strict=True):
        lines += [best_sentence(table, what), fallen_sentence(table, f"this {what}")]
    return "\n".join(f"- {line}" for line in lines if line)
