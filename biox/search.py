"""The one search of a learning rate, the same for every trained method.

Each candidate is trained with the first seed; the one that agrees best with the teacher on *val*
(`biox.agreement`; no label is needed) wins, and its run is that seed's result. All other seeds use
the winner. Nothing is looked up on test.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import pandas as pd

from biox.agreement import best
from biox.compute import AS_IT_COMES, Compute
from biox.config import Bridge

Trained = TypeVar("Trained")


class Curved(Protocol):
    """A finished training, as far as the search looks at it: what it reached on val, by epoch."""

    val_loss: Sequence[float]
    val_agreement: Sequence[float]
    best_epoch: int


@dataclass(frozen=True)
class Search:
    """Which learning rate was chosen, and by what.

    Attributes
    ----------
    candidates : tuple of float
    agreements, losses : tuple of float
        On val, of the epoch that each candidate kept; NaN where training failed.
    """

    candidates: tuple[float, ...]
    agreements: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def index(self) -> int | None:
        """Which candidate won, the first of equals; None if all failed."""
        trained = [i for i, loss in enumerate(self.losses) if not math.isnan(loss)]
        if not trained:
            return None
        return trained[best(*([of[i] for i in trained] for of in (self.agreements, self.losses)))]

    @property
    def lr(self) -> float:
        """The winner; NaN if all failed."""
        return math.nan if self.index is None else self.candidates[self.index]


def choose(candidates: Iterable[float], trained: Iterable[Curved | None]) -> Search:
    """Compare finished candidates by the epoch that each kept; None where training failed.

    Raises
    ------
    ValueError
        There are not as many trainings as candidates, or none.
    """
    candidates, trained = tuple(candidates), tuple(trained)
    if len(candidates) != len(trained) or not candidates:
        raise ValueError(
            f"search: expected some candidates and a training for each, "
            f"found {len(candidates)} and {len(trained)}"
        )

    def kept(curve: str) -> tuple[float, ...]:
        return tuple(math.nan if t is None else getattr(t, curve)[t.best_epoch] for t in trained)

    return Search(candidates, kept("val_agreement"), kept("val_loss"))


def train_searched(
    train: Callable[..., Sequence[Trained]],
    settings: Bridge,
    candidates: Sequence[float],
    seeds: Sequence[int],
    compute: Compute = AS_IT_COMES,
    device: str = "cpu",
) -> tuple[Search, list[Trained]]:
    """Train bridges of all seeds with the learning rate that is set, or else found by search.

    Parameters
    ----------
    train : callable
        Settings with a learning rate and seeds, and by keyword `compute` -> a finished training
        for each seed, as `biox.training.train_seeds` returns them. One that raises
        FloatingPointError is lost.
    settings : Bridge
    candidates : sequence of float
        Learning rates to try where the settings leave it open.
    seeds : sequence of int
    compute : Compute
        Says how many trainings run side by side: candidates, then the other seeds.
    device : str

    Returns
    -------
    Search
    list
        One training a seed.

    Raises
    ------
    FloatingPointError
        No candidate trains.
    """
    alone = compute.each()

    def with_seeds(lr: float, part: Sequence[int]) -> list[Trained]:
        return list(train(replace(settings, lr=lr), part, compute=alone))

    def all_of(lr: float, wanted: Sequence[int]) -> list[Trained]:
        n = -(-len(wanted) // compute.at_a_time)  # neighbours train together
        parts = [wanted[i : i + n] for i in range(0, len(wanted), max(n, 1))]
        tasks = [partial(with_seeds, lr, part) for part in parts]
        return [t for part in compute.side_by_side(tasks, device) for t in part]

    def attempt(lr: float) -> Trained | FloatingPointError:
        try:
            return with_seeds(lr, seeds[:1])[0]
        except FloatingPointError as error:
            return error

    if settings.lr is not None:
        trained = all_of(settings.lr, seeds)
        return choose([settings.lr], [trained[0].fit]), trained
    first = compute.side_by_side([partial(attempt, lr) for lr in candidates], device)
    failed = [isinstance(found, FloatingPointError) for found in first]
    if all(failed):
        raise FloatingPointError(
            f"{first[-1]}; nor did it train at any other of {list(candidates)}"
        )
    fits = [None if lost else found.fit for lost, found in zip(failed, first, strict=True)]
    found = choose(candidates, fits)
    return found, [first[found.index], *all_of(found.lr, seeds[1:])]


def search_table(searches: Mapping[str, Search]) -> pd.DataFrame:
    """Agreement and loss on val by method (row) and learning rate; the winner is marked.

    Losses of different methods are different losses: compare them within a row.
    """

    def cell(found: Search, i: int) -> str:
        if math.isnan(found.losses[i]):
            return "failed"
        mark = " *" * (i == found.index)
        return f"{100 * found.agreements[i]:.1f} % ({found.losses[i]:.4f}){mark}"

    rows = {
        method: {f"{lr:g}": cell(found, i) for i, lr in enumerate(found.candidates)}
        for method, found in searches.items()
    }
    return pd.DataFrame(rows).T.rename_axis("agreement (loss) on val")
