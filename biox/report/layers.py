"""Figure 3: what the choice of positions rests on, for several directions."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from biox.report import figures


def plot_figure3(selections: Mapping[str, Mapping], modalities: Mapping[str, Sequence]) -> Figure:
    """Draw figure 3 for several directions: one row each, probe left, CKA right, stars: chosen.

    Parameters
    ----------
    selections : mapping
        By direction what `biox.positions.Selection.to_json` gives.
    modalities : mapping
        By direction the new and the old modality.
    """
    n = len(selections)
    figure, axes = plt.subplots(n, 2, figsize=(8, 1.7 * n), squeeze=False)
    for row, (direction, selection) in zip(axes, selections.items(), strict=True):
        quantities = (("probe", "m", "new"), ("cka", "l", "old"))
        for axis, (name, place, side), modality in zip(
            row, quantities, modalities[direction], strict=True
        ):
            values, at = selection[name], selection[place]
            axis.plot(values, "o-", ms=4, color=figures.colour(modality))
            axis.plot(at, values[at], "*", ms=13, color="black")
            axis.set_title(direction, loc="left", fontsize="small")
            axis.set_ylabel("macro-F1" if name == "probe" else f"CKA, m = {selection['m']}")
            axis.set_xlabel(f"{side} layer {place} ({modality.upper()})", fontsize="small")
            axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def margins(selections: Mapping[str, Mapping]) -> pd.DataFrame:
    """By how much the chosen layer beats the next one: one row a direction."""
    rows = {}
    for direction, selection in selections.items():
        row = {}
        for name, place in (("probe", "m"), ("cka", "l")):
            values, at = np.array(selection[name], float), selection[place]
            others = np.delete(values, at)
            second = np.nanmax(others) if np.isfinite(others).any() else np.nan
            row |= {
                place: at, f"layers ({place})": len(values), f"{name}, chosen": values[at],
                f"{name}, next": second,
            }  # fmt: skip
        rows[direction] = row
    return pd.DataFrame(rows).T.astype({"m": int, "l": int, "layers (m)": int, "layers (l)": int})


def verdict_figure3(table: pd.DataFrame) -> str:
    """Say how clear the choices are."""
    probe, cka = (table[f"{name}, chosen"] - table[f"{name}, next"] for name in ("probe", "cka"))
    last = int((table["m"] == table["layers (m)"] - 1).sum())
    lines = [
        f"The probe's choice leads the next layer by {probe.min():.3f} to {probe.max():.3f} "
        f"macro-F1, CKA's by {cka.min():.3f} to {cka.max():.3f}.",
        f"In {int((probe < 0.02).sum())} of {len(table)} directions the probe's lead is below "
        "0.02: there another draw of people could choose another layer.",
        f"The chosen new layer is the last one in {last} of {len(table)} directions: taking the "
        f"last layer blindly would {'not be' if last < len(table) else 'be'} the same.",
    ]
    return "\n".join(f"- {line}" for line in lines)
