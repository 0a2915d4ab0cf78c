"""The table of deviations: what differs in our words, and what was measured about it."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure

from biox.files import written_whole

SCORE = "balanced accuracy (%)"


def facts() -> pd.DataFrame:
    """Read the deviations: what, paper, code, verdict, what biox does, by which setting."""
    text = files("biox.report").joinpath("deviations.yaml").read_text(encoding="utf-8")
    return pd.DataFrame(yaml.safe_load(text)["deviations"]).set_index("number")


def against_default(scored: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of each variant beside the default's: one row a direction and variant."""
    keys = ["direction", "variant"]
    groups = scored.groupby(keys, sort=False)
    table = groups.agg(
        number=("number", "first"),
        seeds=("seed", "count"),
        score=(SCORE, "mean"),
        sd=(SCORE, lambda x: x.std(ddof=1)),
        collapsed=("collapsed", "sum"),
    )
    for place in ("m", "l"):
        if place in scored:
            table[place] = groups[place].first()
    default = table.xs("default", level="variant")["score"]
    table.insert(2, "default", default.reindex(table.index.get_level_values(0)).to_numpy())
    return table.assign(difference=table["score"] - table["default"])


def plot_variants(table: pd.DataFrame) -> Figure:
    """Draw the difference of each variant to the default, one panel a direction."""
    table = table[table["number"].notna()]
    directions = table.index.get_level_values(0).unique()
    figure, axes = plt.subplots(1, len(directions), figsize=(8, 2.6), squeeze=False, sharex=True)
    for axis, direction in zip(axes[0], directions, strict=True):
        rows = table.loc[direction][::-1]
        axis.errorbar(rows["difference"], rows.index, xerr=rows["sd"].fillna(0), fmt="o", capsize=2)
        axis.axvline(0, color="grey", lw=1)
        axis.set(title=direction, xlabel="difference to the default (points)")
    return figure


def effects(measured: Mapping[str, pd.DataFrame | Mapping]) -> dict[int, str]:
    """State in one line each what was measured.

    Parameters
    ----------
    measured : mapping
        ``bridges`` and ``positions`` (from `against_default`), ``gradients``, ``half``, ``epochs``,
        ``cka``, ``protocols``, ``resampling``, ``resampled``, ``time_rows``, ``parameters``: what
        the functions of `biox.deviations` and `biox.deviations_data` return.
    """
    lines: dict[int, list[str]] = {}
    for table in (measured["bridges"], measured["positions"]):
        for (direction, variant), row in table[table["number"].notna()].iterrows():
            at = f" at m {row['m']:.0f}, l {row['l']:.0f}" if "m" in row else ""
            fallen = f" ({row['collapsed']:.0f} of {row['seeds']:.0f} collapsed)"
            lines.setdefault(int(row["number"]), []).append(
                f"{variant}, {direction}: bridge {row['default']:.1f} to {row['score']:.1f}{at}"
                + fallen * bool(row["collapsed"])
            )
    first = measured["gradients"].query("step == 1")
    zero = [name for name in ("A", "B", "prototypes") if (first[name] == 0).all()]
    lines.setdefault(3, []).append(f"gradient exactly 0 in the first step: {', '.join(zero)}")
    biased = measured["cka"]["biased"]
    lines.setdefault(4, []).append(
        f"biased CKA of independent features at n = {biased.index[0]}: {biased.iloc[0]:.2f}"
    )
    oracle = measured["time_rows"].iloc[:, 0]
    lines[2] = [f"{name}: Oracle {score:.1f}" for name, score in oracle.items()]
    worst = max(measured["half"].values())
    lines[10] = [f"16 bits change the gradient of a bridge by up to {100 * worst:.2g} %"]
    lines[13] = [
        f"{name}: Oracle {row.iloc[2]:.1f} ± {row.iloc[3]:.1f}, overlapping {row.iloc[1]:.1f} %"
        for name, row in measured["protocols"].iterrows()
    ]
    lines[14] = [picked(measured["epochs"])]
    lines[15] = [
        f"{dataset} {modality}: signal differs by {row['difference (% of sd)']:.0f} % of sd"
        for (dataset, modality), row in measured["resampling"].iterrows()
    ]
    lines[15] += [
        f"{name}: Oracle {row['linear']:.1f}, {row['polyphase']:.1f} with an anti-alias filter"
        for name, row in measured["resampled"].iterrows()
    ]
    same = (measured["parameters"]["parameters"] == measured["parameters"]["released code"]).sum()
    lines[16] = [f"biox counts the same for {same} of {len(measured['parameters'])} bridges"]
    return {number: "; ".join(text) for number, text in sorted(lines.items())}


def picked(epochs: pd.DataFrame) -> str:
    """How much better the best of the epochs scored on test looks than the epoch val chose."""
    gains = []
    for _, run in epochs.groupby(["direction", "seed"]):
        gains.append(run["score"].max() - run.loc[run["kept"], "score"].iloc[0])
    return f"the best epoch on test looks {np.mean(gains):.1f} points better than the one val chose"


def table(measured: Mapping[str, pd.DataFrame | Mapping]) -> pd.DataFrame:
    """One row a deviation: facts, setting, and the measured effect or why there is none."""
    rows = facts()
    found = pd.Series(effects(measured))
    why = "not measured: " + rows.pop("not_measured")
    return rows.fillna("").assign(effect=found.reindex(rows.index).fillna(why))


def save(rows: pd.DataFrame, path: Path | str, note: str) -> None:
    """Write the table as csv, and as md beside it with a note under it."""
    path = Path(path)
    with written_whole(path.with_suffix(".csv")) as part:
        rows.to_csv(part)
    with written_whole(path.with_suffix(".md")) as part:
        part.write_text(f"{rows.to_markdown()}\n\n{note}\n")
