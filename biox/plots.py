"""Pictures that several pages share: one theme, one colour a method, svg and png files.

What only one page draws stands in that page.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from biox.metrics import Frames, probabilities_of, scores, subject_interval, subject_scores

_BLIND = sns.color_palette("colorblind")
METHOD_COLOURS = {
    "BioX-Bridge": _BLIND[0],
    "Bridge (ours)": "#332288",
    "Computed bridge": _BLIND[9],
    "KD": _BLIND[1],
    "KD-Contrast": _BLIND[2],
    "LoRA-KD": _BLIND[3],
    "Probe transfer": _BLIND[4],
    "CardioGAN": _BLIND[5],
    "Random": "grey",
    "Random (sampled)": "grey",
    "Oracle": "black",
}
MODALITY_COLOURS = {"ecg": "#8c1c13", "ppg": "#1b6e53", "eeg": "#4b3f8f", "emg": "#8a6d1d"}
WIDTH = 6.5
"""Of a figure with two panels a row, in inches: text of 11 pt prints at that size."""
COLUMN = 5.0
"""Of a figure with one panel a row: shown on a phone, its text is 11 pixels high."""


def theme() -> None:
    """Set the look of all figures."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind")
    names = ("font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize")
    names += ("legend.fontsize", "legend.title_fontsize", "figure.titlesize", "figure.labelsize")
    look = {
        "figure.dpi": 100,
        "savefig.dpi": 150,
        "svg.hashsalt": "biox",
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    plt.rcParams.update(look | dict.fromkeys(names, 11))


def save(figure: Figure, folder: str, name: str, root: Path | str = "figures") -> None:
    """Write ``figures/FOLDER/NAME.svg`` and ``.png``, the same bytes for the same figure."""
    path = Path(root) / folder
    path.mkdir(parents=True, exist_ok=True)
    for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        figure.savefig(path / f"{name}.{kind}", format=kind, metadata=metadata)


def direction_name(direction: str) -> str:
    """Write a direction out: ``isruc-eeg2ecg`` is ``ISRUC: EEG → ECG``."""
    found = re.fullmatch(r"(\w+)-([a-z]+)2([a-z]+)(?:-(.+))?", direction)
    if found is None:
        return direction
    dataset, old, new, model = found.groups()
    name = f"{dataset.upper()}: {old.upper()} → {new.upper()}"
    return f"{name}, {model.replace('_', ' ')}" if model else name


def grid(n: int, height: float, columns: int = 2, **options) -> tuple[Figure, list[Axes]]:
    """Make `n` panels of a height in inches, at most two a row; `options` go to ``subplots``."""
    columns = min(columns, n)
    rows = -(-n // columns)
    size = (COLUMN if columns == 1 else WIDTH, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
    for axis in axes.flat[n:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:n])


def plot_windows(
    signals: Mapping[str, tuple[np.ndarray, float, str]],
    title: str = "",
    modality: str | None = None,
) -> Figure:
    """Draw the first 10 s of several signals above one another.

    Parameters
    ----------
    signals : mapping
        Modality -> (values [channels, samples], rate in Hz, unit); or any name, if all are of one
        `modality`.
    title : str
    modality : str, optional
    """
    n = len(signals)
    figure, axes = plt.subplots(n, 1, figsize=(WIDTH, 1.7 * n), sharex=True, squeeze=False)
    for axis, (name, (values, rate, unit)) in zip(axes[:, 0], signals.items(), strict=True):
        values = values[:, : int(10 * rate)]
        offsets = 1.2 * np.ptp(values, axis=1).max() * np.arange(len(values))
        colour = MODALITY_COLOURS.get(modality or name, "black")
        time = np.arange(values.shape[1]) / rate
        axis.plot(time, (values - offsets[:, None]).T, lw=0.8, color=colour)
        axis.set_ylabel(f"{name if modality else name.upper()}\n({unit})")
    axes[-1, 0].set_xlabel("time (s)")
    figure.suptitle(title)
    return figure


def plot_predictions(frame: pd.DataFrame, signal, title: str = "") -> Figure:
    """Draw a recording, and the probability of each class along it.

    Parameters
    ----------
    frame : DataFrame
        Of `biox.predict.predict`.
    signal : biox.data.windows.Signal
    title : str
    """
    figure, (above, below) = grid(2, 2.2, columns=1, sharex=True)
    n = max(1, signal.values.shape[1] // 2000)  # samples of a stroke from lowest to highest
    pieces = signal.values[:, : signal.values.shape[1] // n * n].reshape(len(signal.values), -1, n)
    low, high = pieces.min(axis=2), pieces.max(axis=2)
    shift = np.arange(len(low))[:, None] * (np.nanmax(high) - np.nanmin(low))
    time = np.arange(low.shape[1]) * n / signal.rate
    for lower, upper in zip(low - shift, high - shift, strict=True):
        above.fill_between(time, lower, upper, lw=0.5, edgecolor="face")
    above.set(ylabel=f"signal ({signal.unit})", title=title)
    names = [name for name in frame if name.startswith("p ")]
    for name in names:
        below.plot((frame["start_s"] + frame["stop_s"]) / 2, frame[name], ".-", label=name[2:])
    below.axhline(1 / len(names), color="grey", ls=":")
    below.set(xlabel="time (s), middle of the window", ylabel="probability", ylim=(0, 1))
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def plot_confusion(
    counts: Mapping[str, np.ndarray], classes: Sequence[str] | Mapping[str, Sequence[str]]
) -> Figure:
    """Draw confusion matrices in per cent of the true class, a panel a name.

    A red frame marks a class that is recognised less often than by guessing.

    Parameters
    ----------
    counts : mapping
        Name -> windows by true (row) and predicted (column) class.
    classes : sequence of str, or such a sequence by name
    """
    largest = max(len(matrix) for matrix in counts.values())
    figure, axes = grid(len(counts), 1.5 + 0.45 * largest)
    for axis, (name, matrix) in zip(axes, counts.items(), strict=True):
        names = classes[name] if isinstance(classes, Mapping) else classes
        k, names = len(matrix), [text.replace(" ", "\n", 1) for text in names]
        shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        sns.heatmap(
            shares, ax=axis, annot=True, fmt=".0f", vmin=0, vmax=100, cmap="Blues", cbar=False,
            xticklabels=names, yticklabels=names,
        )  # fmt: skip
        for row in np.flatnonzero(np.diagonal(shares) < 100 / k):
            frame = {"fill": False, "ec": "red", "lw": 3, "clip_on": False, "zorder": 3}
            axis.add_patch(plt.Rectangle((0, row), k, 1, **frame))
        axis.tick_params(axis="y", rotation=0)
        if sum(map(len, names)) > 20:  # side by side, they would touch
            axis.tick_params(axis="x", rotation=25)
        axis.set(title=name, xlabel="predicted (%)", ylabel="true")
    return figure


def plot_interval(
    axis: Axes,
    y: float,
    value: float,
    ends: tuple[float, float],
    dots: Sequence[float] = (),
    limit: float = np.inf,
    **style,
) -> None:
    """Draw one row of a forest plot: a mean (diamond), its interval (line), subjects (dots).

    Parameters
    ----------
    axis : Axes
    y : float
    value : float
    ends : (float, float)
        NaN: no line.
    dots : sequence of float
        One a subject.
    limit : float
        A dot further than this from zero becomes a triangle at the edge.
    **style
        ``color``, and ``label`` for the legend.
    """
    dots, color = np.asarray(dots, float), style.get("color")
    axis.plot(ends, [y, y], "-", lw=2, color=color)
    for marker, part in (("o", np.abs(dots) <= limit), ("<", dots < -limit), (">", dots > limit)):
        x = dots[part].clip(-limit, limit)
        axis.plot(x, np.full(len(x), y), marker, ms=4.5, color=color, mfc="white", mew=0.8)
    axis.plot(value, y, "D", ms=6, **style)


def plot_scores(frames: Mapping[str, Frames], axis: Axes | None = None, title: str = "") -> Axes:
    """Draw balanced accuracy by name: mean over runs, 95 % interval, a dot a subject, chance.

    Parameters
    ----------
    frames : mapping
        Name (of a method, a setting) -> predictions of its runs; empty: all failed; None: no runs.
    axis : Axes, optional
    title : str

    Notes
    -----
    A subject's dot is the recall, mean over the classes that the subject has.
    """
    if axis is None:
        axis = plt.subplots(figsize=(COLUMN, 0.9 + 0.36 * len(frames)))[1]
    chance = None
    for y, (name, runs) in enumerate(frames.items()):
        if runs is None:
            continue
        if not runs:
            axis.text(0.01, y, "failed", transform=axis.get_yaxis_transform(), va="center")
            continue
        chance = 100 / probabilities_of(runs[0]).shape[1]
        value = 100 * np.mean([scores(run)["balanced_accuracy"] for run in runs])
        low, high = 100 * np.array(subject_interval(runs))
        colour = METHOD_COLOURS.get(name, _BLIND[0])
        plot_interval(axis, y, value, (low, high), 100 * subject_scores(runs), color=colour)
    if chance is not None:
        axis.axvline(chance, color="grey", ls=":", zorder=0)
        axis.text(chance, -0.75, "chance", color="grey", ha="center", va="center")
    axis.set_yticks(range(len(frames)), list(frames))
    axis.set(xlabel="balanced accuracy (%)", title=title, ylim=(len(frames) - 0.5, -1.1))
    return axis
