"""Scores of predictions, with intervals that resample subjects, not windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

if TYPE_CHECKING:
    from biox.activations import Activations
    from biox.data.windows import Windows

METRICS = ("balanced_accuracy", "macro_f1", "weighted_f1")


def prediction_frame(
    windows: Windows | Activations, probabilities: np.ndarray, **columns: object
) -> pd.DataFrame:
    """One row a window: who, when, the label, a probability for every class, further columns.

    Every score shown anywhere is computed from such frames, so it can be computed again.
    """
    frame = pd.DataFrame(
        {
            "subject": windows.subjects,
            "recording": windows.recordings,
            "start": windows.starts,
            "label": windows.labels,
        }
    )
    for i, name in enumerate(windows.classes):
        frame[f"p {name}"] = probabilities[:, i]
    return frame.assign(**columns)


def _answers(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, predicted classes and the classes' indices."""
    probabilities = frame[[c for c in frame.columns if c.startswith("p ")]].to_numpy()
    return (
        frame["label"].to_numpy(),
        probabilities.argmax(axis=1),
        np.arange(probabilities.shape[1]),
    )


def confusion(frame: pd.DataFrame) -> np.ndarray:
    """Count windows by true (row) and predicted (column) class: [classes, classes]."""
    labels, predicted, classes = _answers(frame)
    return confusion_matrix(labels, predicted, labels=classes)


def scores_from(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Scores from confusion matrices [..., classes, classes], for each of them at once.

    A class that is never predicted has precision 0, as in scikit-learn with ``zero_division=0``.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, claimed = confusion.sum(-1), confusion.sum(-2)
    f1 = 2 * hits / np.maximum(support + claimed, 1)
    return {
        "balanced_accuracy": (hits / np.maximum(support, 1)).mean(-1),
        "macro_f1": f1.mean(-1),
        "weighted_f1": (f1 * support).sum(-1) / support.sum(-1),
    }


def scores(frame: pd.DataFrame) -> dict[str, float]:
    """Balanced accuracy, macro-F1 and weighted F1 of the predictions in a frame.

    Raises
    ------
    ValueError
        A class has no window, so that its recall is undefined.
    """
    counts = confusion(frame)
    if (counts.sum(axis=1) == 0).any():
        missing = np.flatnonzero(counts.sum(axis=1) == 0).tolist()
        raise ValueError(f"scores: expected windows of every class, found none of class {missing}")
    return {name: float(value) for name, value in scores_from(counts).items()}


def collapsed(frame: pd.DataFrame) -> bool:
    """Say whether every window gets the same class: not 50 %, but no classifier at all."""
    return len(np.unique(_answers(frame)[1])) == 1


def random_scores(labels: np.ndarray, n_classes: int) -> dict[str, float]:
    """Expected scores of answering uniformly at random (the Random row of Table 1), in closed form.

    With class share s and K classes, precision is s and recall 1/K, so F1 = 2 s / (K s + 1).
    """
    share = np.bincount(labels, minlength=n_classes) / len(labels)
    f1 = 2 * share / (n_classes * share + 1)
    return {
        "balanced_accuracy": 1 / n_classes,
        "macro_f1": float(f1.mean()),
        "weighted_f1": float((share * f1).sum()),
    }


def subject_interval(
    frames: Sequence[pd.DataFrame],
    metric: str = "balanced_accuracy",
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a score's mean over runs, from resampling test subjects.

    Windows of one person are not independent, people are. The same subjects are drawn for every
    run (seed); a resample in which a class has no window is drawn again.

    Parameters
    ----------
    frames : sequence of DataFrame
        Predictions of the same test windows, one frame a seed.
    metric : str
        One of `METRICS`.

    Returns
    -------
    (float, float)
        Lower and upper end. With a handful of subjects the interval is wide, and should be; with
        one there is nothing to resample, and both ends are NaN.
    """
    rng = np.random.default_rng(seed)
    subjects = sorted(frames[0]["subject"].unique())
    by_subject = np.array(
        [[confusion(frame[frame["subject"] == s]) for s in subjects] for frame in frames]
    )  # [runs, subjects, classes, classes]
    if (by_subject[0].sum(axis=(0, 2)) == 0).any():
        raise ValueError("subject_interval: expected subjects that together show every class")
    if len(subjects) == 1:
        return np.nan, np.nan
    kept = np.empty((0, len(subjects)))
    while len(kept) < n_resamples:
        drawn = rng.multinomial(len(subjects), np.full(len(subjects), 1 / len(subjects)), 1000)
        shown = np.einsum("ns,sc->nc", drawn, by_subject[0].sum(axis=2))
        kept = np.concatenate([kept, drawn[(shown > 0).all(axis=1)]])
    counts = np.einsum("ns,rsij->nrij", kept[:n_resamples], by_subject)
    values = scores_from(counts)[metric].mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
