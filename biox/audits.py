"""Leak audits: how much better a score looks when windows are dealt out with a leak.

One frozen model, one pass over all windows; only who goes into train and who into test changes.
Labels are read here, and nothing that is measured here goes into a bridge.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from biox.config import Settings
from biox.data import READERS
from biox.data.cutting import concatenate
from biox.data.splits import blocked_split, overlap, read_windows, shuffle_split
from biox.data.windows import Windows
from biox.experiment import PATHS, input_spec
from biox.report.metrics import prediction_frame
from biox.teacher import fit_head

PENALTY = 1e-2
"""Inverse strength of all linear heads, so that only the dealing differs."""

SHUFFLED, BLOCKED, BY_SUBJECT = "windows shuffled", "blocked in time", "by subject"

Deal = Callable[[Windows, Mapping[str, float], int], dict[str, Windows]]


def subject_split(
    windows: Windows, fractions: Mapping[str, float], seed: int
) -> dict[str, Windows]:
    """Deal out whole subjects in proportion to `fractions`."""
    _, first = np.unique(windows.subjects, return_index=True)
    people = shuffle_split(windows.select(first), fractions, seed)
    return {
        split: windows.select(np.flatnonzero(np.isin(windows.subjects, part.subjects)))
        for split, part in people.items()
    }


PROTOCOLS: dict[str, Deal] = {
    SHUFFLED: shuffle_split,
    BLOCKED: blocked_split,
    BY_SUBJECT: subject_split,
}
"""By name: windows of a person, even overlapping ones, on both sides; persons on both sides, but no
overlap in time; neither."""


def linear_head(x: Tensor, y: np.ndarray, asked: Tensor, n_classes: int) -> np.ndarray:
    """Answers [n, classes] of the teachers' linear head, fitted to features x [any, d]."""
    with torch.no_grad():
        return fit_head(x, y, n_classes, PENALTY)(asked).softmax(dim=1).numpy()


def nearest_neighbour(x: Tensor, y: np.ndarray, asked: Tensor, n_classes: int) -> np.ndarray:
    """Answers [n, classes] of whoever only remembers: the label of the nearest training window."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), KNeighborsClassifier(n_neighbors=1)).fit(x.numpy(), y)
    return np.eye(n_classes)[model.predict(asked.numpy())]


HEADS = {"linear head": linear_head, "nearest neighbour": nearest_neighbour}
"""A linear head can remember little, a nearest neighbour everything: a fine-tuned model lies
between them."""


def deal_out(
    name: str,
    features: Tensor,
    windows: Windows,
    protocols: Mapping[str, Deal],
    fractions: Mapping[str, float],
    deals: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Deal windows out again and again by each protocol; fit every head on train, ask it on test.

    Parameters
    ----------
    name : str
        Of the audit; becomes ``direction`` in the predictions.
    features : Tensor, [n, d]
        Of a frozen model, row i of window i.
    fractions : mapping
        Sizes of ``train``, ``test`` and any other splits, which are dealt but not used.
    deals : int
        Times, each with its own seed.

    Returns
    -------
    predictions : DataFrame
        One row a test window, as of bridges; ``method`` is head and protocol, ``seed`` the deal.
    dealt : DataFrame
        Columns ``audit protocol deal train test overlap``: numbers of windows, and the share of
        test windows that overlap a train window in time.

    Raises
    ------
    ValueError
        Not as many features as windows, or a train split without some class.
    """
    if len(features) != len(windows):
        raise ValueError(
            f"{name}: expected a row of features for each of {len(windows)} windows, "
            f"found {len(features)}"
        )
    light, frames, rows = _numbered(windows), [], []
    for protocol, deal in protocols.items():
        for seed in range(deals):
            parts = deal(light, fractions, seed)
            train, test = parts["train"], parts["test"]
            x, asked = (features[p.signals["row"][:, 0, 0]] for p in (train, test))
            for head, answer in HEADS.items():
                about: dict[str, Any] = dict(direction=name, seed=seed)
                about["method"] = f"{head}, {protocol}"
                answers = answer(x, train.labels, asked, len(windows.classes))
                frames.append(prediction_frame(test, answers, **about))
            sizes = {"train": len(train), "test": len(test), "overlap": overlap(test, train)}
            rows.append({"audit": name, "protocol": protocol, "deal": seed} | sizes)
    return pd.concat(frames, ignore_index=True), pd.DataFrame(rows)


def _numbered(windows: Windows) -> Windows:
    """The same windows with their row numbers [n, 1, 1] in place of signals: light to deal out."""
    seconds = max(windows.seconds(modality) for modality in windows.signals)
    return Windows(
        signals={"row": np.arange(len(windows)).reshape(-1, 1, 1)},
        rates={"row": 1 / seconds},
        units={"row": "1"},
        channels={"row": ("row",)},
        labels=windows.labels,
        subjects=windows.subjects,
        recordings=windows.recordings,
        starts=windows.starts,
        classes=windows.classes,
        source=windows.source,
    )


def fog_windows(settings: Settings, modality: str = "eeg", step: float = 0.3) -> Windows:
    """All labelled windows of FOG, as close to each other as published (3 s every 0.3 s)."""
    choice = settings.dataset("fog")
    subjects = sorted(name for names in choice.splits.values() for name in names)
    return read_windows(
        READERS["fog"],
        choice.folder,
        subjects,
        {modality: input_spec(settings, "fog", modality)},
        choice.seconds,
        step,
        per_window=choice.condition_per == "window",
        keep_unlabelled=False,
        resampling=choice.resampling,
        source=choice.source,
    )


def labelled_windows(dataset: str, modality: str) -> Windows:
    """All windows of a data set's train, val and test; those of *pair* stay without labels."""
    parts = [Windows.load(PATHS.windows(dataset, s), [modality]) for s in ("train", "val", "test")]
    return concatenate(parts)
