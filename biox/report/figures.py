"""Figures: one theme, colour-blind palette, svg for print and png for the screen."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from biox.files import written_whole

COLOURS = {"ecg": 0, "ppg": 1, "eeg": 2, "emg": 4}


def theme() -> None:
    """Set the one look of all figures."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.8)
    plt.rcParams.update(
        {
            "figure.dpi": 80,
            "savefig.dpi": 110,
            "svg.hashsalt": "biox",
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )


def colour(modality: str) -> tuple[float, float, float]:
    """Return a modality's colour, the same in every figure."""
    return sns.color_palette("colorblind")[COLOURS[modality]]


def save(figure: Figure, name: str, folder: Path | str = "figures") -> None:
    """Write ``figures/<name>.svg`` and ``.png``, the same bytes for the same figure."""
    for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        with written_whole(Path(folder) / f"{name}.{kind}") as part:
            figure.savefig(part, format=kind, metadata=metadata)


def plot_windows(
    signals: dict[str, tuple[np.ndarray, float, str]],
    seconds: float = 10.0,
    title: str = "",
    modality: str | None = None,
) -> Figure:
    """Draw the first seconds of several signals above one another.

    Parameters
    ----------
    signals : dict
        Modality -> (values [channels, samples], rate in Hz, unit); or any name, if all are of one
        `modality`.
    seconds : float
        How much of each.
    """
    figure, axes = plt.subplots(
        len(signals), 1, figsize=(8, 1.6 * len(signals)), sharex=True, squeeze=False
    )
    for axis, (name, (values, rate, unit)) in zip(axes[:, 0], signals.items(), strict=True):
        values = values[:, : int(seconds * rate)]
        spread = 1.2 * np.ptp(values, axis=1).max() * np.arange(len(values))
        time = np.arange(values.shape[1]) / rate
        axis.plot(time, (values - spread[:, None]).T, lw=0.7, color=colour(modality or name))
        axis.set_ylabel(f"{name if modality else name.upper()} ({unit})")
    axes[-1, 0].set_xlabel("time (s)")
    figure.suptitle(title)
    return figure


def plot_positions(selection: dict, new: str, old: str) -> Figure:
    """Draw figure 3's quantities: probe score of new layers, CKA of old layers, choice marked."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8))
    axes[0].plot(selection["probe"], "o-", color=colour(new))
    axes[0].plot(selection["m"], selection["probe"][selection["m"]], "*", ms=14, color="black")
    axes[0].set(
        xlabel=f"new layer m ({new.upper()})",
        ylabel="macro-F1 on pseudo-labels",
        title="input position: linear probe",
    )
    axes[1].plot(selection["cka"], "o-", color=colour(old), label="debiased")
    axes[1].plot(selection["cka_biased"], "o--", color="grey", label="biased, as published")
    axes[1].plot(selection["l"], selection["cka"][selection["l"]], "*", ms=14, color="black")
    axes[1].set(
        xlabel=f"old layer l ({old.upper()})",
        ylabel="linear CKA with new layer m",
        title="output position: CKA",
    )
    axes[1].legend(frameon=False)
    for axis in axes:
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_pretraining(losses: Sequence[tuple[float, float, float]]) -> Figure:
    """Draw the pretext losses by epoch."""
    figure, axis = plt.subplots(figsize=(5, 2.4))
    epochs = np.arange(1, len(losses) + 1)
    for label, values in zip(
        ("simulator's parameters", "hidden tokens", "in common"), np.array(losses).T, strict=True
    ):
        axis.plot(epochs, values, "o-", ms=3, label=label)
    axis.set(xlabel="epoch", ylabel="loss on training windows", ylim=(0, None))
    axis.legend(frameon=False)
    return figure


def plot_training(curves: pd.DataFrame, loss: str = "1 - cosine at layer L") -> Figure:
    """Draw the loss by epoch and seed, the kept epoch marked.

    Parameters
    ----------
    curves : DataFrame
        Columns ``seed epoch train val best``.
    loss : str
        Which loss it is, for the axis.
    """
    figure, axis = plt.subplots(figsize=(5.5, 2.8))
    palette = sns.color_palette("colorblind")
    for i, (seed, part) in enumerate(curves.groupby("seed")):
        shades = dict(color=palette[i % len(palette)])
        axis.plot(part["epoch"], part["train"], lw=1, **shades, label=f"pair, seed {seed}")
        axis.plot(part["epoch"], part["val"], lw=1, ls="--", **shades, label=f"val, seed {seed}")
        kept = part[part["epoch"] == part["best"]]
        axis.plot(kept["epoch"], kept["val"], "*", ms=11, **shades)
    axis.set(xlabel="epoch", ylabel=loss, yscale="log")
    axis.legend(frameon=False, ncols=2, fontsize="x-small")
    return figure


def plot_confusion(confusions: dict[str, np.ndarray], classes: Sequence[str]) -> Figure:
    """Draw confusion matrices as shares of the true class, one panel a method."""
    figure, axes = plt.subplots(
        1, len(confusions), figsize=(3.1 * len(confusions), 2.7), squeeze=False
    )
    for axis, (method, counts) in zip(axes[0], confusions.items(), strict=True):
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        sns.heatmap(
            shares, ax=axis, annot=True, fmt=".2f", vmin=0, vmax=1, cmap="Blues", cbar=False,
            xticklabels=classes, yticklabels=classes,
        )  # fmt: skip
        axis.set(title=method, xlabel="predicted", ylabel="true")
    return figure
