"""What the page of a direction's baselines shows: scores, curves, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from biox.activations import Activations
from biox.baselines.outcome import Outcome
from biox.report.metrics import METRICS, prediction_frame, random_scores, scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def by_method(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Group outcomes by method, in the order in which the methods come."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.method, []).append(outcome)
    return groups


def numbers(outcomes: Sequence[Outcome], test: Activations) -> pd.DataFrame:
    """One row a method: scores in per cent, and what they cost.

    Columns: each of `biox.report.metrics.METRICS`, and ``<metric> sd`` over the seeds that trained
    (NaN for one); ``runs, failed, trained parameters, lr, epoch kept, seconds``.
    """
    rows = {}
    for method, runs in by_method(outcomes).items():
        good = [o for o in runs if not o.failed]
        row: dict[str, object] = {"runs": len(runs), "failed": len(runs) - len(good)}
        values = pd.DataFrame([scores(prediction_frame(test, o.probabilities)) for o in good])
        for metric in METRICS:
            found = 100 * values[metric] if good else pd.Series(dtype=float)
            row |= {metric: found.mean(), f"{metric} sd": found.std()}
        row["trained parameters"] = max(o.n_parameters for o in runs)
        row["lr"] = good[0].lr if good else np.nan
        row["epoch kept"] = ", ".join(str(o.best_epoch) for o in good if o.val_loss)
        row["seconds"] = np.mean([o.seconds for o in good]) if good else np.nan
        rows[method] = row
    return pd.DataFrame(rows).T


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`numbers` as a person reads them: ``61.2 ± 1.3``, and ``failed`` where nothing trained."""

    def score(row: pd.Series, metric: str) -> str:
        if row["failed"] == row["runs"]:
            return "failed"
        sd = row[f"{metric} sd"]
        return f"{row[metric]:.1f}" + ("" if np.isnan(sd) else f" ± {sd:.1f}")

    def known(value: float, text: str) -> str:
        return "" if np.isnan(value) else format(value, text)

    rows = {
        method: {
            **{metric.replace("_", " "): score(row, metric) for metric in METRICS},
            "trained parameters": f"{row['trained parameters']:,}",
            "runs": f"{row['runs'] - row['failed']} of {row['runs']}",
            "learning rate": known(row["lr"], "g"),
            "epochs kept": row["epoch kept"],
            "seconds a run": known(row["seconds"], ".1f"),
        }
        for method, row in table.iterrows()
    }
    return pd.DataFrame(rows).T


def plot_losses(outcomes: Sequence[Outcome]) -> Figure:
    """Draw losses by epoch of every method that has epochs, one panel each; stars mark those kept.

    Losses of different methods are different losses, so that each panel has a scale of its own.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    groups = {m: [o for o in runs if o.val_loss] for m, runs in by_method(outcomes).items()}
    groups = {method: runs for method, runs in groups.items() if runs}
    n = max(1, len(groups))
    figure, axes = plt.subplots(1, n, figsize=(2.9 * n, 2.8), squeeze=False)
    palette = sns.color_palette("colorblind")
    for axis, (method, runs) in zip(axes[0], groups.items(), strict=False):
        for i, o in enumerate(runs):
            look = dict(color=palette[i % len(palette)])
            axis.plot(o.train_loss, lw=1, **look, label=f"pair, seed {o.seed}")
            axis.plot(o.val_loss, lw=1, ls="--", **look, label=f"val, seed {o.seed}")
            axis.plot(o.best_epoch, o.val_loss[o.best_epoch], "*", ms=11, **look)
        axis.set(title=f"{method}, lr {runs[0].lr:g}", xlabel="epoch", ylabel="loss")
        axis.xaxis.get_major_locator().set_params(integer=True)
    lines = axes[0, 0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=6, frameon=False, fontsize="x-small")
    return figure


def verdict(table: pd.DataFrame, test: Activations) -> str:
    """State what `numbers` says, whichever way it went: against chance and against the teacher."""
    n_classes = len(test.classes)
    chance = 100 * random_scores(test.labels, n_classes)["balanced_accuracy"]
    answers = prediction_frame(test, test.logits.softmax(dim=1).numpy())
    oracle = 100 * scores(answers)["balanced_accuracy"]
    lines = [
        f"Chance is {chance:.1f} % balanced accuracy; the teacher on its own modality reaches "
        f"{oracle:.1f} %."
    ]
    for method, row in table.iterrows():
        if row["failed"] == row["runs"]:
            lines.append(f"{method} **failed** to train.")
            continue
        found, sd = row["balanced_accuracy"], row["balanced_accuracy sd"]
        line = f"{method} reaches {found:.1f} %"
        if np.isnan(sd):
            line += ", from one run."
        else:
            above = "" if found - chance > 2 * sd else "**not** "
            line += f", {above}above chance by more than two standard deviations over seeds."
        if row["failed"]:
            line += f" {row['failed']} of {row['runs']} runs **failed**."
        lines.append(line)
    return "\n".join(f"- {line}" for line in lines)
