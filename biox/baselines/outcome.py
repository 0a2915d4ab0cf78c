"""What every transfer method leaves behind, so that tables can treat them alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import pandas as pd

from biox.files import write_json, written_whole
from biox.report.metrics import prediction_frame


@dataclass(frozen=True)
class Outcome:
    """One training of one method.

    Attributes
    ----------
    method : str
        As tables name it: ``KD``, ``KD-Contrast``, ``LoRA-KD``, ``Probe transfer``, ``CardioGAN``.
    seed : int
    probabilities : ndarray, [n, classes]
        For the test windows, from the new modality alone.
    n_parameters : int
        Trained ones.
    train_loss, val_loss, val_agreement : tuple of float
        By epoch, as in `biox.training.Fit`; empty for methods without epochs.
    best_epoch : int
        The epoch kept.
    lr : float
        Learning rate; NaN for methods without one.
    seconds : float
        Wall time of the training.
    failed : str
        Why the training failed; empty if it did not. Then `probabilities` are NaN.
    """

    method: str
    seed: int
    probabilities: np.ndarray
    n_parameters: int
    train_loss: tuple[float, ...] = ()
    val_loss: tuple[float, ...] = ()
    val_agreement: tuple[float, ...] = ()
    best_epoch: int = 0
    lr: float = float("nan")
    seconds: float = float("nan")
    failed: str = ""

    @classmethod
    def failure(cls, method: str, seed: int, shape: tuple[int, int], why: str, **about) -> Outcome:
        """Outcome of a training that went wrong: NaN for all [n, classes], and the reason."""
        return cls(method, seed, np.full(shape, np.nan), failed=why, **{"n_parameters": 0} | about)


def predictions_of(outcomes: Sequence[Outcome], test, direction: str) -> pd.DataFrame:
    """Predictions of all outcomes, one row a test window; columns as those of bridges."""
    frames = [
        prediction_frame(
            test, o.probabilities.astype(float), method=o.method, direction=direction, seed=o.seed
        )
        for o in outcomes
    ]
    return pd.concat(frames, ignore_index=True)


def save_outcomes(folder: Path | str, outcomes: Sequence[Outcome], test, direction: str) -> None:
    """Write ``predictions.csv``, ``curves.csv`` and, last, ``methods.json``: then all is there."""
    folder = Path(folder)
    (folder / "methods.json").unlink(missing_ok=True)
    rows = [
        (o.method, o.seed, epoch, *values, o.best_epoch)
        for o in outcomes
        for epoch, values in enumerate(
            zip(o.train_loss, o.val_loss, o.val_agreement or repeat(np.nan), strict=False)
        )
    ]
    columns = ["method", "seed", "epoch", "train", "val", "agreement", "best"]
    curves = pd.DataFrame(rows, columns=columns)
    tables = {"predictions.csv": predictions_of(outcomes, test, direction), "curves.csv": curves}
    for name, table in tables.items():
        with written_whole(folder / name) as part:
            table.to_csv(part, index=False, float_format="%.8g")
    facts: dict[str, list[dict]] = {}
    for o in outcomes:
        facts.setdefault(o.method, []).append(
            {
                "seed": o.seed,
                "n_parameters": o.n_parameters,
                "lr": None if np.isnan(o.lr) else o.lr,
                "seconds": None if np.isnan(o.seconds) else o.seconds,
                "failed": o.failed,
            }
        )
    write_json(folder / "methods.json", {"source": test.source, "methods": facts})
