"""Scores against scikit-learn and closed forms; intervals over subjects and their invariants."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, roc_auc_score

from biox.metrics import (
    METRICS,
    Interval,
    auroc,
    confusion,
    never_predicted,
    paired_difference,
    random_scores,
    reliability,
    resampled_scores,
    score_row,
    scores,
    subject_interval,
    subject_scores,
)

seeds = st.integers(0, 10**6)


def frame(labels, predicted, subjects=None, n_classes=None):
    """Predictions that leave no doubt."""
    n_classes = n_classes or int(max(max(labels), max(predicted))) + 1
    onehot = np.eye(n_classes)[np.asarray(predicted)]
    data = {"subject": subjects if subjects is not None else ["a"] * len(labels), "label": labels}
    return pd.DataFrame(data | {f"p {i}": onehot[:, i] for i in range(n_classes)})


def drawn(seed, n_classes=3, subjects=5, each=12, skill=1.0):
    """Predicted probabilities of some skill; the labels do not depend on the seed."""
    labels = np.random.default_rng(0).integers(0, n_classes, subjects * each)
    labels[:n_classes] = range(n_classes)
    logits = np.random.default_rng(seed).normal(size=(len(labels), n_classes))
    logits[np.arange(len(labels)), labels] += skill
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    data = {"subject": np.repeat([f"s{i}" for i in range(subjects)], each), "label": labels}
    return pd.DataFrame(data | {f"p {i}": p[:, i] for i in range(n_classes)})


# --- scores ---------------------------------------------------------------------------------------


@given(st.integers(2, 4), seeds)
@settings(max_examples=50, deadline=None)
def test_scores_are_scikit_learns(n_classes, seed):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, 40)])
    predicted = rng.integers(0, n_classes - rng.integers(0, 2), len(labels))
    predictions = frame(labels, predicted, rng.choice(list("abc"), len(labels)), n_classes)
    found = scores(predictions)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    for average in ("macro", "weighted"):
        expected = f1_score(
            labels, predicted, average=average, labels=range(n_classes), zero_division=0
        )
        assert found[f"{average}_f1"] == pytest.approx(expected)
    expected = confusion_matrix(labels, predicted, labels=range(n_classes))
    assert np.array_equal(confusion(predictions), expected)


@given(st.integers(2, 4), seeds)
@settings(max_examples=30, deadline=None)
def test_auroc_is_scikit_learns_and_one_half_for_a_constant(n_classes, seed):
    predictions = drawn(seed, n_classes)
    labels, p = predictions["label"], predictions.filter(regex="^p ").to_numpy()
    binary = n_classes == 2
    expected = roc_auc_score(labels, p[:, 1] if binary else p, multi_class="ovr", average="macro")
    assert auroc(predictions) == pytest.approx(expected)
    assert auroc(predictions.assign(**{f"p {i}": 1 / n_classes for i in range(n_classes)})) == 0.5


def test_random_row_is_the_papers():
    """ISRUC's class shares (1/[4687, 14550] are the released class weights) give 46.48 / 53.52."""
    found = random_scores(np.repeat([0, 1], [4687, 14550]), 2)
    assert 100 * found["macro_f1"] == pytest.approx(46.48, abs=0.01)
    assert found["balanced_accuracy"] == 0.5


def test_random_row_is_what_random_predictions_score():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 2], [1000, 600, 300]))
    sampled = [scores(frame(labels, rng.integers(0, 3, len(labels)))) for _ in range(60)]
    for metric, value in random_scores(labels, 3).items():
        assert np.mean([s[metric] for s in sampled]) == pytest.approx(value, abs=0.004)


@pytest.mark.parametrize("score", [scores, auroc])
def test_a_missing_class_and_nan_are_refused(score):
    with pytest.raises(ValueError, match=r"found none of class \[2\]"):
        score(frame([0, 1, 0], [0, 1, 2]))
    with pytest.raises(ValueError, match="found NaN"):
        score(frame([0, 1, 0], [0, 1, 1]).assign(**{"p 0": [0.1, np.nan, 0.2]}))


def test_classes_never_predicted_are_named():
    run = frame([0, 1, 2, 0], [0, 0, 2, 0])
    assert never_predicted(run.assign(**{"p of other data": np.nan})) == ["1"]
    assert never_predicted(frame([0, 1], [0, 1])) == []


# --- intervals over subjects ----------------------------------------------------------------------


def all_or_nothing(n_subjects, right):
    """Subjects whose windows are all right, or all wrong."""
    rng, parts = np.random.default_rng(0), []
    for i in range(n_subjects):
        labels = rng.permutation(np.repeat([0, 1], 50))
        predicted = labels if i < right else 1 - labels
        parts.append(frame(labels, predicted, [f"s{i:02d}"] * 100))
    return pd.concat(parts, ignore_index=True)


def test_interval_resamples_subjects_not_windows():
    """The number of right subjects in a resample is binomial."""
    low, high = subject_interval([all_or_nothing(20, 12)])
    sd = np.sqrt(0.6 * 0.4 / 20)
    assert low == pytest.approx(0.6 - 1.96 * sd, abs=0.03)
    assert high == pytest.approx(0.6 + 1.96 * sd, abs=0.03)


def test_paired_difference_is_that_of_the_resampled_subjects():
    """Differing subjects are binomial again; what both get wrong does not widen the interval."""
    a, b = all_or_nothing(20, 12), all_or_nothing(20, 8)
    found = paired_difference([a], [b])
    sd = np.sqrt(0.2 * 0.8 / 20)
    assert found.value == pytest.approx(0.2)
    assert found.low == pytest.approx(0.2 - 1.96 * sd, abs=0.04)
    assert found.high == pytest.approx(0.2 + 1.96 * sd, abs=0.04)


@given(seeds, st.sampled_from(METRICS))
@settings(max_examples=15, deadline=None)
def test_paired_difference_is_antisymmetric_zero_with_itself_and_blind_to_order(seed, metric):
    a, b = [drawn(seed), drawn(seed + 1)], [drawn(seed + 2)]
    mixed = [run.sample(frac=1, random_state=seed) for run in a]
    there, back = paired_difference(a, b, metric, 300), paired_difference(b, a, metric, 300)
    assert there.value == pytest.approx(-back.value)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert paired_difference(a, a, metric, 300) == (0, 0, 0)
    assert paired_difference(mixed, b, metric, 300) == there
    gaps = resampled_scores(a, metric, 300) - resampled_scores(b, metric, 300)
    assert np.quantile(gaps, [0.025, 0.975]) == pytest.approx(there[1:])
    assert subject_scores(mixed).equals(subject_scores(a))


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_value_is_the_difference_of_the_means_over_runs(seed):
    a, b = [drawn(seed), drawn(seed + 1)], [drawn(seed + 2)]
    means = [np.mean([scores(f)["balanced_accuracy"] for f in frames]) for frames in (a, b)]
    assert paired_difference(a, b).value == pytest.approx(means[0] - means[1])
    chance = paired_difference(a, None)
    low, high = subject_interval(a)
    assert chance == pytest.approx((means[0] - 1 / 3, low - 1 / 3, high - 1 / 3))


def test_alike_subjects_leave_no_doubt_and_one_subject_no_interval():
    one = drawn(0, subjects=1, each=30)
    alike = pd.concat([one.assign(subject=name) for name in "abc"], ignore_index=True)
    value = scores(one)["balanced_accuracy"]
    assert subject_interval([alike]) == pytest.approx((value, value))
    assert np.isnan(subject_interval([one])).all()
    single = paired_difference([one], [drawn(1, subjects=1, each=30)])
    assert np.isnan(single.low) and single.verdict == "one subject"


def test_resamples_without_a_class_are_drawn_again():
    """Only subject a has class 1; the other subjects' share of right windows varies."""
    labels, subjects = [0] * 4 + [1] * 4 + [0] * 8, ["a"] * 8 + ["b"] * 4 + ["c"] * 4
    low, high = subject_interval([frame(labels, [0] * 4 + [1] * 4 + [0] * 6 + [1] * 2, subjects)])
    assert 0.5 < low < high <= 1


def test_methods_on_other_windows_are_not_compared():
    a = drawn(0)
    for b in (a.iloc[:-1], a.assign(subject="x" + a["subject"])):
        with pytest.raises(ValueError, match="the same test windows"):
            paired_difference([a], [b])


def test_verdicts():
    assert Interval(0.15, 0.1, 0.2).verdict == "better"
    assert Interval(-0.15, -0.2, -0.1).verdict == "worse"
    assert Interval(0.05, -0.1, 0.2).verdict == "no significant difference"


def test_subject_scores_average_over_the_classes_a_subject_has():
    labels, subjects = [0, 0, 0, 1, 0, 0], list("aaaabb")
    found = subject_scores([frame(labels, [0, 1, 1, 1, 0, 1], subjects)])
    assert found.to_dict() == pytest.approx({"a": (1 / 3 + 1) / 2, "b": 0.5})


def test_a_row_of_a_table_is_in_per_cent_over_runs():
    frames = [drawn(0), drawn(1)]
    row = score_row(frames)
    for metric in METRICS:
        values = [100 * scores(f)[metric] for f in frames]
        prefix = "interval" if metric == "balanced_accuracy" else f"{metric} interval"
        assert row[metric] == pytest.approx(np.mean(values))
        assert row[f"{metric} sd"] == pytest.approx(np.std(values, ddof=1))
        found = row[f"{prefix} low"] / 100, row[f"{prefix} high"] / 100
        assert found == pytest.approx(subject_interval(frames, metric))
    assert row["test subjects"] == 5 and row["collapsed runs"] == 0
    assert row["auroc"] == pytest.approx(100 * np.mean([auroc(f) for f in frames]))
    assert score_row([]) == {}


# --- calibration ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("strategy", "adaptive"), [("uniform", False), ("quantile", True)])
@given(seed=seeds, n_bins=st.integers(2, 20))
@settings(max_examples=20, deadline=None)
def test_bins_are_scikit_learns(strategy, adaptive, seed, n_bins):
    rng = np.random.default_rng(seed)
    confidence, labels = rng.uniform(0.5, 1, 200), rng.integers(0, 2, 200)
    predictions = pd.DataFrame({"label": labels, "p no": confidence, "p yes": 1 - confidence})
    accuracy, mean = calibration_curve(labels == 0, confidence, n_bins=n_bins, strategy=strategy)
    found = reliability(predictions, n_bins, adaptive)
    assert found["windows"].sum() == 200
    found = found.dropna()
    np.testing.assert_allclose(found["accuracy"], accuracy)
    np.testing.assert_allclose(found["confidence"], mean)


def test_equal_confidences_share_a_bin():
    run = pd.DataFrame({"label": [0] * 7 + [1] * 3, "p no": 0.95, "p yes": 0.05})
    (found,) = reliability(run, adaptive=True).itertuples()
    assert (found.windows, found.confidence, found.accuracy) == pytest.approx((10, 0.95, 0.7))
