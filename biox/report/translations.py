"""A picture of signals that a method made from other signals."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from biox.report.figures import colour


def plot_translations(examples: pd.DataFrame) -> Figure:
    """Draw windows side by side: what went in, what came out, what was recorded.

    Parameters
    ----------
    examples : DataFrame
        From `biox.baselines.cardiogan.example_translations`, or read back from csv.
    """
    windows = list(examples.groupby(["subject", "start"], sort=False))
    rows = list(examples[["modality", "translated"]].drop_duplicates().itertuples(index=False))
    source = rows[0][0]
    figure, axes = plt.subplots(
        len(rows), len(windows), figsize=(3.2 * len(windows), 1.3 * len(rows)),
        sharex=True, sharey="row", squeeze=False,
    )  # fmt: skip
    for column, ((subject, start), part) in zip(axes.T, windows, strict=True):
        column[0].set_title(f"{subject}, from {start:.0f} s", fontsize="small")
        for axis, (modality, translated) in zip(column, rows, strict=True):
            one = part[(part["modality"] == modality) & (part["translated"] == translated)]
            axis.plot(one["time"], one["value"], lw=0.8, color=colour(modality))
        column[-1].set_xlabel("time (s)")
    for axis, (modality, translated) in zip(axes[:, 0], rows, strict=True):
        name = modality.upper()
        axis.set_ylabel(f"{name}\nfrom {source.upper()}" if translated else f"{name}\nrecorded")
    return figure
