"""Scores against scikit-learn, the paper's Random row, and intervals against a closed form."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from biox.report.metrics import collapsed, random_scores, scores, subject_interval
from biox.report.tables import reported_table1


def frame(labels, predicted, subjects=None, n_classes=None):
    n_classes = n_classes or int(max(max(labels), max(predicted))) + 1
    onehot = np.eye(n_classes)[np.asarray(predicted)]
    data = {"subject": subjects if subjects is not None else ["a"] * len(labels), "label": labels}
    return pd.DataFrame(data | {f"p {i}": onehot[:, i] for i in range(n_classes)})


@given(st.integers(2, 4), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_scores_are_scikit_learns(n_classes, seed):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, 40)])
    predicted = rng.integers(0, n_classes - rng.integers(0, 2), len(labels))
    found = scores(frame(labels, predicted, n_classes=n_classes))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    for average in ("macro", "weighted"):
        expected = f1_score(
            labels, predicted, average=average, labels=range(n_classes), zero_division=0
        )
        assert found[f"{average}_f1"] == pytest.approx(expected)


def test_random_row_is_the_papers():
    """ISRUC's class shares (1/[4687, 14550] are the released class weights) give 46.48 / 53.52."""
    labels = np.repeat([0, 1], [4687, 14550])
    found = random_scores(labels, 2)
    assert 100 * found["macro_f1"] == pytest.approx(46.48, abs=0.01)
    assert found["balanced_accuracy"] == 0.5


def test_random_row_is_what_random_answers_score():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 2], [1000, 600, 300]))
    expected = random_scores(labels, 3)
    sampled = [scores(frame(labels, rng.integers(0, 3, len(labels)))) for _ in range(60)]
    for metric, value in expected.items():
        assert np.mean([s[metric] for s in sampled]) == pytest.approx(value, abs=0.004)


def test_a_missing_class_is_an_error():
    with pytest.raises(ValueError, match=r"found none of class \[2\]"):
        scores(frame([0, 1, 0], [0, 1, 2]))


def test_constant_answers_are_named_collapsed():
    assert collapsed(frame([0, 1, 0], [1, 1, 1]))
    assert not collapsed(frame([0, 1, 0], [1, 1, 0]))


def test_interval_resamples_subjects_not_windows():
    """Subjects that are all right or all wrong: the number of right ones is binomial."""
    rng = np.random.default_rng(0)
    n_subjects, right = 20, 12
    labels, predicted, subjects = [], [], []
    for i in range(n_subjects):
        mine = rng.permutation(np.repeat([0, 1], 50))
        labels += mine.tolist()
        predicted += (mine if i < right else 1 - mine).tolist()
        subjects += [f"s{i:02d}"] * 100
    low, high = subject_interval([frame(labels, predicted, subjects)], n_resamples=4000)
    sd = np.sqrt(0.6 * 0.4 / n_subjects)
    assert low == pytest.approx(0.6 - 1.96 * sd, abs=0.03)
    assert high == pytest.approx(0.6 + 1.96 * sd, abs=0.03)


def test_interval_is_the_same_every_time_and_around_the_score():
    rng = np.random.default_rng(3)
    labels = np.tile([0, 0, 1], 40)
    predicted = np.where(rng.random(120) < 0.7, labels, 1 - labels)
    data = frame(labels, predicted, np.repeat(list("abcdef"), 20))
    low, high = subject_interval([data])
    assert (low, high) == subject_interval([data])
    assert low <= scores(data)["balanced_accuracy"] <= high


def test_reported_numbers_cover_six_directions():
    table = reported_table1()
    assert table["direction"].nunique() == 6
    bridge = table[table["method"] == "BioX-Bridge"].set_index("direction")
    assert bridge.loc["wesad-ppg2ecg", "balanced_accuracy reported"] == 52.02


def test_one_subject_gives_no_interval():
    assert np.isnan(subject_interval([frame([0, 1, 1], [0, 1, 0])])).all()
