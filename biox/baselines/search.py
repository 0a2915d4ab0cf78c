"""The one search of a learning rate, the same for every trained method.

Each candidate is trained with the first seed; the lowest loss on *val*, which needs no label, wins,
and its run is that seed's result. All other seeds use the winner. Nothing is looked up on test.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd

Trained = TypeVar("Trained")


@dataclass(frozen=True)
class Search:
    """Which learning rate was chosen, and by what.

    Attributes
    ----------
    candidates : tuple of float
    losses : tuple of float
        Lowest loss on val of each candidate; NaN where training failed.
    """

    candidates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def index(self) -> int | None:
        """Which candidate won, the first of equals; None if all failed."""
        return None if np.isnan(self.losses).all() else int(np.nanargmin(self.losses))

    @property
    def lr(self) -> float:
        """The winner; NaN if all failed."""
        return math.nan if self.index is None else self.candidates[self.index]


def lowest_loss(val_loss: Sequence[float]) -> float:
    """Lowest loss on val after an epoch of training.

    Parameters
    ----------
    val_loss : sequence of float
        The first entry is before training and does not compete; none: training failed.

    Returns
    -------
    float
        NaN if there is no trained epoch, or if any loss is not finite.
    """
    trained = list(val_loss[1:])
    return min(trained) if trained and np.isfinite(trained).all() else math.nan


def choose(candidates: Iterable[float], val_losses: Iterable[Sequence[float]]) -> Search:
    """Compare finished candidates by their losses on val, one curve each (`lowest_loss`).

    Raises
    ------
    ValueError
        There are not as many curves as candidates, or none.
    """
    candidates = tuple(candidates)
    losses = tuple(lowest_loss(curve) for curve in val_losses)
    if len(candidates) != len(losses) or not candidates:
        raise ValueError(
            f"search: expected some candidates and a curve for each, "
            f"found {len(candidates)} and {len(losses)}"
        )
    return Search(candidates, losses)


def search(
    candidates: Sequence[float], train: Callable[[float], Trained]
) -> tuple[Search, Trained | None]:
    """Train every candidate and keep the one with the lowest loss on val.

    Parameters
    ----------
    candidates : sequence of float
        Learning rates.
    train : callable
        Learning rate -> a finished training with ``val_loss`` (as in `lowest_loss`). One that
        raises FloatingPointError is a lost candidate.

    Returns
    -------
    Search
    object or None
        The winner's training; None if all are lost.
    """
    results: list[Trained | None] = []
    for lr in candidates:
        try:
            results.append(train(lr))
        except FloatingPointError:
            results.append(None)
    found = choose(candidates, [() if r is None else r.val_loss for r in results])
    return found, None if found.index is None else results[found.index]


def search_table(searches: Mapping[str, Search]) -> pd.DataFrame:
    """Lowest loss on val by method (row) and learning rate; the winner is marked.

    Losses of different methods are different losses: compare within a row.
    """

    def cell(found: Search, i: int) -> str:
        loss = found.losses[i]
        return "failed" if math.isnan(loss) else f"{loss:.4f}" + " *" * (i == found.index)

    rows = {
        method: {f"{lr:g}": cell(found, i) for i, lr in enumerate(found.candidates)}
        for method, found in searches.items()
    }
    return pd.DataFrame(rows).T.rename_axis("lowest loss on val, by learning rate")
