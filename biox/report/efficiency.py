"""The efficiency table: what a training step of each method costs, beside the bridge's."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from biox.files import written_whole
from biox.report.overview import PALETTE

QUANTITIES = {
    "n_parameters": "trained parameters",
    "multiply_adds": "multiply-adds of a step",
    "step": "time of a step",
    "memory": "peak memory",
}
OURS, REFERENCE = "BioX-Bridge", "KD"

NOTE = (
    "One run, each method in a fresh process; random weights, windows of noise. Multiply-adds: "
    "half of what torch counts as floating point operations of matrix products, convolutions and "
    "attention, forward and backward. Time: median step, and an epoch of such steps without the "
    "look at val. Memory: models, optimizer and steps at most, beyond Python and its libraries; "
    "the bridge's process holds both models. What is frozen is computed before, for every method "
    "alike. Probe transfer: a step of the same linear layer by Adam. CardioGAN: as many segments "
    "of 4 s in a batch as others have windows, and its own number of segments in an epoch."
)


def readable(costs: pd.DataFrame) -> pd.DataFrame:
    """Costs with units, one row a method; what was not measured says why."""

    def shown(column: str, form: str, scale: float = 1.0) -> pd.Series:
        return costs[column].map(lambda v: "" if pd.isna(v) else form.format(v / scale))

    return pd.DataFrame(
        {
            "method": costs["method"],
            "trained parameters": shown("n_parameters", "{:,.0f}"),
            "multiply-adds of a step (M)": shown("multiply_adds", "{:,.1f}", 1e6),
            "step (ms)": shown("step", "{:,.1f}", 1e-3),
            "epoch (s)": shown("epoch", "{:,.1f}"),
            "peak memory (MB)": shown("memory", "{:,.0f}", 1e6),
            "not measured": costs["not measured"].fillna(""),
        }
    ).set_index("method")


def relative(costs: pd.DataFrame, to: str = REFERENCE) -> pd.DataFrame:
    """Each quantity over that of one method: rows methods, columns quantities."""
    numbers = costs.set_index("method")[list(QUANTITIES)].astype(float)
    if to not in numbers.index:
        raise ValueError(f"efficiency: expected costs of {to}, found {numbers.index.tolist()}")
    return numbers / numbers.loc[to]


def plot(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw each quantity relative to KD, log scale: a panel a quantity, a group a set of models."""
    tables = {name: relative(costs) for name, costs in tables.items() if len(costs)}
    methods = list(dict.fromkeys(m for found in tables.values() for m in found.index))
    methods = [method for method in methods if method != REFERENCE]
    figure, axes = plt.subplots(1, len(QUANTITIES), figsize=(11, 2.9), sharey=True)
    for axis, (column, title) in zip(axes, QUANTITIES.items(), strict=True):
        for i, method in enumerate(methods):
            values = [found[column].get(method, np.nan) for found in tables.values()]
            y = np.arange(len(values)) + 0.8 * ((i + 0.5) / len(methods) - 0.5)
            axis.plot(values, y, "o", color=PALETTE[method], label=method)
            axis.hlines(y, 1, values, color=PALETTE[method], lw=2)
        axis.axvline(1, color="black", lw=1)
        axis.set(xscale="log", title=title, xlabel="relative to KD")
        axis.set_xlim(left=min(axis.get_xlim()[0], 0.07))  # two decades have labels
        axis.minorticks_off()
    axes[0].set_yticks(range(len(tables)), list(tables))
    axes[0].invert_yaxis()
    figure.legend(
        *axes[0].get_legend_handles_labels(), ncols=5, frameon=False, loc="outside lower center"
    )
    return figure


def verdict(tables: Mapping[str, pd.DataFrame]) -> str:
    """State how the bridge's costs compare with each method's, for each set of models."""
    lines = []
    for name, costs in tables.items():
        if not len(costs):
            lines.append(f"- **{name}**: left out of this run.")
            continue
        numbers = costs.set_index("method")[list(QUANTITIES)].astype(float)
        for method in costs["method"]:
            ratio = numbers.loc[OURS] / numbers.loc[method]
            why = costs.set_index("method")["not measured"].fillna("")[method]
            if method == OURS:
                continue
            if why:
                lines.append(f"- **{name}**, {method}: not measured ({why}).")
                continue
            said = ", ".join(f"{times(ratio[key])} {title}" for key, title in QUANTITIES.items())
            lines.append(f"- **{name}**: against {method} the bridge has {said}.")
    return "\n".join(lines)


def times(ratio: float) -> str:
    """``0.031 x the``, with three digits that matter."""
    return f"{ratio:.3g} x the" if ratio < 100 else f"{ratio:,.0f} x the"


def save(tables: Mapping[str, pd.DataFrame], path: Path | str) -> None:
    """Write all costs as csv, and readable ones as md beside it."""
    path = Path(path)
    frames = [costs.assign(models=name) for name, costs in tables.items() if len(costs)]
    with written_whole(path.with_suffix(".csv")) as part:
        pd.concat(frames, ignore_index=True).to_csv(part, index=False, float_format="%.5g")
    parts = [
        f"**{name}**\n\n{readable(costs).to_markdown(disable_numparse=True)}\n"
        for name, costs in tables.items()
        if len(costs)
    ]
    with written_whole(path.with_suffix(".md")) as part:
        part.write_text("\n".join([*parts, f"{NOTE}\n"]))
