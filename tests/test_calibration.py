"""Calibration against closed forms and scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from biox.report.calibration import (
    brier_score,
    calibration,
    calibration_error,
    calibration_table,
    plot_reliability,
    readable,
    reliability,
    verdict,
)


def frame(confidence, correct, subjects=None, **columns):
    """Two classes; the first is predicted with the given confidence."""
    confidence = np.asarray(confidence, float)
    content = {"subject": "a" if subjects is None else subjects}
    content |= {"label": np.where(correct, 0, 1), "p no": confidence, "p yes": 1 - confidence}
    return pd.DataFrame(content).assign(**columns)


def drawn(n=500, seed=0, honest=True):
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.5, 1, n)
    correct = rng.uniform(size=n) < (confidence if honest else 0.5)
    return frame(confidence, correct, [f"p{i % 5}" for i in range(n)])


@pytest.mark.parametrize("adaptive", [False, True])
def test_closed_forms(adaptive):
    calibrated = frame(np.repeat([0.6, 0.9], 10), [True] * 6 + [False] * 4 + [True] * 9 + [False])
    assert calibration_error(calibrated, adaptive=adaptive) == pytest.approx(0)
    wrong = frame(np.repeat([0.7, 0.9], 10), np.zeros(20, bool))
    assert calibration_error(wrong, adaptive=adaptive) == pytest.approx(0.8)
    sure = frame(np.ones(8), np.arange(8) < 2)
    assert calibration_error(sure, adaptive=adaptive) == pytest.approx(0.75)
    assert calibration_error(frame(np.ones(8), np.ones(8, bool)), adaptive=adaptive) == 0


def test_a_third_of_three_classes_is_confidence_in_whatever_comes_first():
    even = pd.DataFrame({"subject": "a", "label": [0, 1, 2]} | {f"p {i}": 1 / 3 for i in range(3)})
    assert calibration_error(even) == pytest.approx(0)
    assert brier_score(even) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("adaptive", "strategy"), [(False, "uniform"), (True, "quantile")])
@given(seed=st.integers(0, 10**6), n_bins=st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_bins_are_scikit_learns(adaptive, strategy, seed, n_bins):
    predictions = drawn(200, seed, honest=False)
    confidence, correct = predictions["p no"], predictions["label"] == 0
    accuracy, mean = calibration_curve(correct, confidence, n_bins=n_bins, strategy=strategy)
    found = reliability(predictions, n_bins, adaptive)
    assert found["windows"].sum() == 200
    found = found.dropna()
    np.testing.assert_allclose(found["accuracy"], accuracy)
    np.testing.assert_allclose(found["confidence"], mean)
    if adaptive:
        assert found["windows"].max() - found["windows"].min() <= 2


def test_brier_is_twice_scikit_learns_for_two_classes():
    predictions = drawn()
    expected = brier_score_loss(predictions["label"] == 0, predictions["p no"])
    assert brier_score(predictions) == pytest.approx(2 * expected)


def test_values_are_means_over_runs_and_intervals_hold_them():
    runs = [drawn(seed=seed, honest=False) for seed in range(3)]
    found = calibration(runs)
    by_hand = {
        "ECE": np.mean([calibration_error(run) for run in runs]),
        "adaptive ECE": np.mean([calibration_error(run, adaptive=True) for run in runs]),
        "Brier score": np.mean([brier_score(run) for run in runs]),
    }
    for name, (value, low, high) in found.items():
        assert value == pytest.approx(by_hand[name])
        assert low < value < high
    assert found["ECE"][0] > 3 * calibration([drawn()])["ECE"][0]


def test_people_who_are_alike_leave_no_doubt_and_one_person_no_interval():
    one = drawn(60).assign(subject="a")
    alike = pd.concat([one, one.assign(subject="b"), one.assign(subject="c")])
    for value, low, high in calibration([alike]).values():
        assert low == pytest.approx(value) and high == pytest.approx(value)
    assert all(np.isnan(ends[1:]).all() for ends in calibration([one]).values())


def test_table_and_verdict_say_who_is_too_sure():
    honest, sure = (drawn(honest=h).assign(seed=0, direction="d") for h in (True, False))
    failed = sure.assign(method="KD", **{"p no": np.nan, "p yes": np.nan})
    both = [honest.assign(method="Oracle"), sure.assign(method="BioX-Bridge"), failed]
    frames = {"d": pd.concat(both, ignore_index=True)}
    table = calibration_table(frames)
    assert table["method"].tolist() == ["Oracle", "BioX-Bridge"]
    assert len(readable(table)) == 2
    text = verdict(table)
    assert "worse than the teacher on its own modality in 1 of 1" in text
    assert "**BioX-Bridge**" in text and "too sure of itself in 1 of 1" in text.splitlines()[1]
    counts = plot_reliability(frames).axes
    assert len(counts) == 2
