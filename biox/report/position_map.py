"""Table 2 and the map of all pairs of layers: how good the choice of positions is."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import yaml
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from biox.files import written_whole
from biox.report.ablations import SCORE, Ablation, read
from biox.report.metrics import METRICS, scores


@dataclass(frozen=True)
class PositionMap:
    """What `biox.position_map.save_map` left behind.

    Attributes
    ----------
    trained : Ablation
    places : DataFrame
        One row a pair of layers: ``variant m l probe cka fixed selected``.
    """

    trained: Ablation
    places: pd.DataFrame


def read_map(folder: Path | str, direction: str) -> PositionMap:
    """Read a finished map of a direction.

    Raises
    ------
    FileNotFoundError
        It is not there, or was not finished.
    ValueError
        It is of another direction, or some pair of layers is absent or there twice.
    """
    trained = read(folder, direction)
    path = Path(folder) / "places.csv"
    places = pd.read_csv(path, dtype={"variant": str})
    expected = {(m, l) for m in range(places["m"].max() + 1) for l in range(places["l"].max() + 1)}
    found = list(zip(places["m"], places["l"], strict=True))
    of_runs = set(zip(trained.runs["m"], trained.runs["l"], strict=True))
    if len(found) != len(set(found)) or not set(found) == expected == of_runs:
        raise ValueError(
            f"{path}: expected every pair of layers once, and runs of each, "
            f"found {len(found)} pairs, {len(expected)} possible ones and runs of {len(of_runs)}"
        )
    return PositionMap(trained, places)


def run_scores(trained: Ablation) -> pd.DataFrame:
    """Scores of every run in per cent beside its loss on val: one row a run."""
    grouped = trained.predictions.groupby(["variant", "seed"])
    values = pd.DataFrame({key: scores(part) for key, part in grouped}).T
    values.index.names = ["variant", "seed"]
    return (100 * values).reset_index().merge(trained.runs, on=["variant", "seed"])


def pair_table(found: PositionMap) -> pd.DataFrame:
    """One row a pair of layers: mean over the seeds that all pairs have, so that they compare.

    Adds to `places`: scores, ``val loss``, ``val agreement``, ``seeds``, and ``rank`` by balanced
    accuracy (1: best; equals share the better rank).
    """
    runs = run_scores(found.trained)
    common = set.intersection(*(set(part["seed"]) for _, part in runs.groupby("variant")))
    runs = runs[runs["seed"].isin(common)]
    means = runs.groupby("variant")[[*METRICS, "val loss", "val agreement"]].mean()
    table = found.places.merge(means, left_on="variant", right_index=True, validate="one_to_one")
    ranks = table[SCORE].rank(ascending=False, method="min").astype(int)
    return table.assign(seeds=len(common), rank=ranks)


def table2(found: PositionMap) -> pd.DataFrame:
    """Table 2: the fixed positions, their mean, the selected one; per cent, over all seeds.

    Columns: scores with ``sd`` over seeds of balanced accuracy, and the paper's numbers beside.
    """
    runs = run_scores(found.trained)
    groups = runs.groupby("variant")
    table = groups[list(METRICS)].mean().assign(sd=groups[SCORE].std(ddof=1), seeds=groups.size())
    places = found.places.set_index("variant")
    fixed = table.loc[places.index[places["fixed"]]].copy()
    mean = fixed[list(METRICS)].mean().to_dict() | {"seeds": fixed["seeds"].min()}
    of_all = runs[runs["variant"].isin(fixed.index)].groupby("seed")[SCORE].mean()
    mean["sd"] = of_all.std(ddof=1)
    selected = table.loc[places.index[places["selected"]]].iloc[0].to_dict()
    name = places.index[places["selected"]][0]
    rows = {f"fixed: {variant}": row.to_dict() for variant, row in fixed.iterrows()}
    rows |= {"mean of the fixed": mean, f"selected: {name}": selected}
    shown = pd.DataFrame(rows).T.rename_axis("position").astype({"seeds": int})
    reported = reported_table2()
    for metric in METRICS:
        shown[f"{metric} reported"] = np.nan
        for row, key in (("mean of the fixed", "fixed"), (f"selected: {name}", "selected")):
            shown.loc[row, f"{metric} reported"] = reported.loc[key, metric]
    return shown


def reported_table2() -> pd.DataFrame:
    """What the paper's Table 2 reports: mean of nine fixed positions, and the selected one."""
    text = files("biox.report").joinpath("reported.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)["table2"]
    return pd.DataFrame.from_dict(content, orient="index", columns=list(METRICS))


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Table 2 as a person reads it."""

    def reported(row: pd.Series) -> str:
        values = [row[f"{metric} reported"] for metric in METRICS]
        return "" if np.isnan(values[0]) else " / ".join(f"{v:.2f}" for v in values)

    def score(row: pd.Series) -> str:
        return f"{row[SCORE]:.1f}" + ("" if np.isnan(row["sd"]) else f" ± {row['sd']:.1f}")

    return pd.DataFrame(
        {
            "balanced accuracy": table.apply(score, axis=1),
            "macro-F1": table["macro_f1"].map("{:.1f}".format),
            "weighted F1": table["weighted_f1"].map("{:.1f}".format),
            "seeds": table["seeds"].astype(int),
            "reported: BAcc / macro-F1 / weighted F1": table.apply(reported, axis=1),
        }
    )


def save_table(table: pd.DataFrame, path: Path | str, note: str) -> None:
    """Write Table 2 as csv (all columns) and, readable, as md beside it."""
    path = Path(path)
    with written_whole(path.with_suffix(".csv")) as part:
        table.to_csv(part, float_format="%.6g")
    with written_whole(path.with_suffix(".md")) as part:
        part.write_text(f"{readable(table).to_markdown()}\n\n{note}\n")


def correlations(pairs: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation over all pairs between what needs no label and the score."""
    clues = {
        "probe score of m (eq. 4)": pairs["probe"],
        "CKA of m and l (eq. 5)": pairs["cka"],
        "minus the loss on val, after training": -pairs["val loss"],
        "agreement with the teacher on val, after training": pairs["val agreement"],
    }
    rows = {name: spearmanr(clue, pairs[SCORE]) for name, clue in clues.items()}
    return pd.DataFrame(
        {name: {"rho": found.statistic, "p": found.pvalue} for name, found in rows.items()}
    ).T


def plot_map(pairs: pd.DataFrame) -> Figure:
    """Draw balanced accuracy on test and agreement on val of every pair of layers."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.9 + 0.42 * pairs["m"].nunique()))
    panels = (
        (SCORE, "balanced accuracy on test (%)", "viridis", ".0f"),
        ("val agreement", "agreement with the teacher on val", "viridis", ".2f"),
    )
    chosen, best = pairs[pairs["selected"]].iloc[0], pairs.loc[pairs[SCORE].idxmax()]
    for axis, (column, title, palette, form) in zip(axes, panels, strict=True):
        grid = pairs.pivot(index="m", columns="l", values=column)
        sns.heatmap(
            grid, ax=axis, annot=True, fmt=form, cmap=palette, cbar=False,
            annot_kws={"fontsize": "x-small"},
        )  # fmt: skip
        for place, style in ((chosen, "-"), (best, ":")):
            corner = (place["l"] + 0.04, place["m"] + 0.04)
            axis.add_patch(
                plt.Rectangle(corner, 0.92, 0.92, fill=False, ec="red", lw=2.5, ls=style)
            )
        axis.set(title=title, xlabel="old layer l", ylabel="new layer m")
    return figure


def verdict_table2(table: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Whether the selected place beats the fixed ones, and where it stands among all."""
    chosen, best = pairs[pairs["selected"]].iloc[0], pairs.loc[pairs[SCORE].idxmax()]
    reported = reported_table2()[SCORE]
    selected = table[table.index.str.startswith("selected")].iloc[0]
    fixed = table[table.index.str.startswith("fixed")]
    gain = selected[SCORE] - table.loc["mean of the fixed", SCORE]
    spread = np.fmax(0, np.fmax(selected["sd"], table.loc["mean of the fixed", "sd"]))
    below = int((fixed[SCORE] < selected[SCORE]).sum())
    clues = correlations(pairs)
    told = [f"{clue} {row['rho']:+.2f} (p = {row['p']:.2g})" for clue, row in clues.iterrows()]
    held = "**The claim holds here**" if gain > 2 * spread else "**The claim does not hold here**"
    lines = [
        f"{held}: selected minus the mean of {len(fixed)} fixed places is {gain:+.1f} points "
        f"(paper {reported['selected'] - reported['fixed']:+.1f}), where twice the larger standard "
        f"deviation over seeds is {2 * spread:.1f}. It beats {below} of the {len(fixed)}.",
        f"Among all pairs of layers the selected one, {chosen['variant']}, has rank "
        f"{chosen['rank']} of {len(pairs)} ({chosen[SCORE]:.1f} %); the best is {best['variant']} "
        f"({best[SCORE]:.1f} %), found by looking at test, so that its lead is partly luck.",
        f"Rank correlation with balanced accuracy over all pairs: {'; '.join(told)}.",
    ]
    by_merit = pairs.sort_values(
        ["val agreement", "val loss"], ascending=[False, True], kind="stable"
    )
    first = by_merit.iloc[0]
    lines.append(
        f"The pair that agrees best with the teacher on val, {first['variant']}, has rank "
        f"{first['rank']} of {len(pairs)}: what training every pair would choose without a label."
    )
    return "\n".join(f"- {line}" for line in lines)
