"""The search of learning rates, on trainings whose courses are known."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from biox.config import load_settings
from biox.search import choose, search_table, train_searched
from biox.training import Fit


def test_search_picks_what_agrees_best_on_val_and_survives_failures():
    fits = {
        1e-4: Fit((9.0,), (0.1, 0.9, 0.3), (0.9, 0.5, 0.6), 2),
        1e-3: Fit((9.0,), (0.1, 0.5, 0.8), (0.9, 0.7, 0.1), 1),
        1e-2: Fit((9.0,), (0.1, 0.8, 0.6), (0.9, 0.7, 0.7), 2),
    }
    asked = []

    def train(settings, seeds, compute):
        asked.append((settings.lr, tuple(seeds)))
        if settings.lr == 1e-1:
            raise FloatingPointError("expected a finite loss, found nan")
        return [SimpleNamespace(fit=fits[settings.lr], seed=seed, lr=settings.lr) for seed in seeds]

    bridge = load_settings(Path(__file__).parents[1] / "params.yaml").bridge
    lrs = [*fits, 1e-1]
    found, runs = train_searched(train, replace(bridge, lr=None), lrs, [5, 6, 7])
    assert (found.lr, found.losses[:3]) == (1e-3, (0.3, 0.5, 0.6))  # of two that agree, by loss
    assert found.agreements[:3] == (0.6, 0.7, 0.7) and math.isnan(found.agreements[3])
    assert [(run.seed, run.lr) for run in runs] == [(5, 1e-3), (6, 1e-3), (7, 1e-3)]
    assert asked == [*((lr, (5,)) for lr in lrs), (1e-3, (6, 7))]  # the first seed's run is kept
    row = search_table({"BioX-Bridge": found}).loc["BioX-Bridge"]
    numbers = ["60.0 % (0.3000)", "70.0 % (0.5000) *", "70.0 % (0.6000)"]
    assert row.tolist() == [*numbers, "failed"]
    with pytest.raises(FloatingPointError, match="nan; nor did it train at any other of"):
        train_searched(train, replace(bridge, lr=None), [1e-1], [5])
    asked.clear()
    found, runs = train_searched(train, replace(bridge, lr=1e-4), lrs, [5, 6])
    assert found.lr == 1e-4 and asked == [(1e-4, (5, 6))]  # a rate that is set is not searched
    assert choose([1.0, 2.0], [fits[1e-3], fits[1e-3]]).lr == 1.0  # of equals the first
    with pytest.raises(ValueError, match="a training for each, found 1 and 2"):
        choose([1.0], [None, None])
