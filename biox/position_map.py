"""A bridge between every new and every old layer: the choice of section 3.3 among all of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from biox.ablations import Trained, Variant, save, select, share_rows, train
from biox.case import Case
from biox.cka import linear_cka
from biox.files import read_json, written_whole

Place = tuple[int, int]
"""m and l."""


def all_places(n_new: int, n_old: int) -> list[Place]:
    """Every pair of layers once; those into early old layers, the slowest to train, come first."""
    return [(m, l) for l in range(n_old) for m in range(n_new)]


def fixed_places(n_new: int, n_old: int) -> list[Place]:
    """First, middle and last layer of both models: the nine of Table 2."""
    new, old = (sorted({0, n // 2, n - 1}) for n in (n_new, n_old))
    return [(m, l) for m in new for l in old]


def thinned(case: Case, share: float, seed: int = 0) -> Case:
    """Keep a share of the paired and of the val windows, the same for every pair of layers.

    Windows of 60 s that start every 5 s hold nearly the same; steps are what costs time.
    """
    parts = {s: case.cached[s] for s in ("pair", "val")}
    kept = {s: select(a, share_rows(a.subjects, share, seed)) for s, a in parts.items()}
    return replace(case, cached=case.cached | kept)


def train_map(case: Case, share: float, seeds: Sequence[int], map_seeds: int) -> list[Trained]:
    """Train a bridge between every pair of layers.

    Parameters
    ----------
    case : Case
    share : float
        Of the paired and val windows (`thinned`).
    seeds : sequence of int
        The fixed and the chosen places get all of them, every other place the first `map_seeds`.
    """
    n_new, n_old = case.new.n_layers, case.old.n_layers
    full = {*fixed_places(n_new, n_old), (case.m, case.l)}
    runs = [
        (Variant(place_name(m, l), place=(m, l)), seed)
        for m, l in all_places(n_new, n_old)
        for seed in (seeds if (m, l) in full else seeds[:map_seeds])
    ]
    return train(thinned(case, share), runs)


def place_name(m: int, l: int) -> str:
    """Name a pair of layers, as ``m1 l7``."""
    return f"m{m} l{l}"


def places_table(case: Case, probe: Sequence[float]) -> pd.DataFrame:
    """What selection knows of every pair of layers: ``variant m l probe cka fixed selected``.

    Parameters
    ----------
    case : Case
    probe : sequence of float
        Score of each new layer's linear probe, from the positions stage.
    """
    pair, n_old = case.cached["pair"], case.old.n_layers
    places = all_places(case.new.n_layers, n_old)
    fixed = fixed_places(case.new.n_layers, n_old)
    return pd.DataFrame(
        {
            "variant": place_name(m, l),
            "m": m,
            "l": l,
            "probe": probe[m],
            "cka": linear_cka(pair.new[m].numpy(), pair.old[l].numpy(), debiased=True),
            "fixed": (m, l) in fixed,
            "selected": (m, l) == (case.m, case.l),
        }
        for m, l in places
    )


def save_map(
    folder: Path | str, case: Case, trained: Sequence[Trained], share: float, positions: Path | str
) -> None:
    """Write ``places.csv`` beside what `biox.ablations.save` writes."""
    folder = Path(folder)
    with written_whole(folder / "places.csv") as part:
        table = places_table(case, read_json(positions)["probe"])
        table.to_csv(part, index=False, float_format="%.8g")
    save(folder, case, trained, share=share)
