"""Paired differences against brute force and closed forms; verdicts are computed."""

import time
from itertools import product

import numpy as np
import pandas as pd
import pytest
from fake_results import SEEDS, windows, write_baselines, write_bridge
from sklearn.metrics import balanced_accuracy_score

from biox.report.claims import against, verdict
from biox.report.comparison import (
    ahead,
    paired_difference,
    paired_note,
    paired_table,
    readable_paired,
)
from biox.report.predictions import Runs, collect


def runs(right, subjects=None):
    """One run a row of `right` [runs, windows]: whether each window is answered rightly."""
    n = right.shape[1]
    subjects = np.repeat(["a", "b", "c"], n // 3) if subjects is None else subjects
    label = np.tile([0, 1], n // 2)
    frames = []
    for seed, row in enumerate(right):
        answer = np.where(row, label, 1 - label)
        frames.append(
            pd.DataFrame(
                {"subject": subjects, "label": label, "p 0": 1.0 - answer, "p 1": 1.0 * answer}
            ).assign(seed=seed)
        )
    return Runs(tuple(frames))


def score(run, subjects):
    """Balanced accuracy of the windows of some subjects, each as often as it is named."""
    rows = pd.concat([run[run["subject"] == s] for s in subjects])
    return balanced_accuracy_score(rows["label"], rows["p 1"] > 0.5)


def test_difference_and_interval_are_those_of_every_possible_resample():
    """Three subjects can be drawn in 27 ways; quantiles of them all are what resampling nears."""
    rng = np.random.default_rng(0)
    ours, theirs = runs(rng.random((2, 60)) < 0.8), runs(rng.random((2, 60)) < 0.6)
    every = [
        np.mean([score(run, drawn) for run in ours.frames])
        - np.mean([score(run, drawn) for run in theirs.frames])
        for drawn in product("abc", repeat=3)
    ]
    found = paired_difference(ours, theirs, n_resamples=20_000)
    assert found.value == pytest.approx(
        np.mean([score(run, "abc") for run in ours.frames])
        - np.mean([score(run, "abc") for run in theirs.frames])
    )
    assert (found.low, found.high) == pytest.approx((min(every), max(every)))


def test_pairing_takes_out_what_is_hard_for_both():
    """The same answers but for a few windows of each subject: easy and hard subjects cancel."""
    rng = np.random.default_rng(1)
    n, each = 12, 40
    subjects = np.repeat([f"s{i:02d}" for i in range(n)], each)
    easy = np.repeat(rng.random(n), each)
    worse = rng.random((1, n * each)) < easy
    better = worse.copy()
    for i in range(n):
        wrong = i * each + np.flatnonzero(~worse[0, i * each : (i + 1) * each])[:4]
        better[0, wrong] = True
    ours, theirs = runs(better, subjects), runs(worse, subjects)
    paired = paired_difference(ours, theirs)
    alone = paired_difference(ours, None)
    assert paired.verdict == "better" and paired.low > 0
    assert alone.high - alone.low > 4 * (paired.high - paired.low)
    assert paired_difference(theirs, ours).verdict == "worse"
    assert paired_difference(theirs, ours).low == pytest.approx(-paired.high)
    assert ahead(ours, theirs) == sum(~worse[0].reshape(n, each).all(axis=1))


def test_a_method_is_not_told_apart_from_itself():
    ours = runs(np.random.default_rng(2).random((3, 60)) < 0.7)
    found = paired_difference(ours, ours)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert found.verdict == "not told apart" and ahead(ours, ours) == 0


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Subjects drawn anew each time, no true difference: about 5 % of verdicts are wrong."""
    rng, wrong, n = np.random.default_rng(3), 0, 200
    subjects = np.repeat([f"s{i:02d}" for i in range(20)], 20)
    for _ in range(n):
        chance = np.repeat(rng.uniform(0.5, 0.9, 20), 20)
        pair = [runs(rng.random((1, 400)) < chance, subjects) for _ in range(2)]
        wrong += paired_difference(*pair, n_resamples=500).verdict != "not told apart"
    assert 0.01 < wrong / n < 0.13


def test_one_subject_gives_a_difference_without_interval():
    ours, theirs = (
        runs(np.random.default_rng(i).random((1, 20)) < 0.7, ["a"] * 20) for i in (0, 1)
    )
    found = paired_difference(ours, theirs)
    assert np.isnan([found.low, found.high]).all() and found.verdict == "one subject"


def test_other_windows_are_refused():
    ours = runs(np.ones((1, 60), bool))
    with pytest.raises(ValueError, match="same test windows"):
        paired_difference(ours, runs(np.ones((1, 54), bool)))


def test_thousands_of_resamples_take_well_under_a_second():
    rng = np.random.default_rng(4)
    subjects = np.repeat([f"s{i:02d}" for i in range(20)], 250)
    pair = [runs(rng.random((5, 5000)) < 0.7, subjects) for _ in range(2)]
    start = time.process_time()
    paired_difference(*pair, n_resamples=5000)
    assert time.process_time() - start < 1.0


@pytest.fixture
def paired(tmp_path):
    test = windows(subjects=12, each=40)
    for direction in ("fog-eeg2emg", "wesad-ecg2ppg"):
        write_bridge(tmp_path, direction, test)
        write_baselines(tmp_path, direction, test, failed={("LoRA-KD", seed) for seed in SEEDS})
    return paired_table(collect(tmp_path, ["fog-eeg2emg", "wesad-ecg2ppg"], SEEDS))


def test_table_says_better_worse_failed(paired):
    rows = paired.set_index(["direction", "method"])
    kd = rows.loc[("fog-eeg2emg", "KD")]  # right in 60 % where the bridge is in 80 %
    assert kd["the bridge is"] == "better"
    assert kd["difference"] == pytest.approx(kd["bridge"] - kd["other"])
    assert kd["fewer parameters (%)"] == pytest.approx(98)
    assert rows.loc[("fog-eeg2emg", "Oracle"), "the bridge is"] == "worse"
    assert rows.loc[("fog-eeg2emg", "Random"), "other"] == pytest.approx(50)
    lora = rows.loc[("fog-eeg2emg", "LoRA-KD")]
    assert lora["the bridge is"] == "failed" and np.isnan(lora["difference"])
    shown = readable_paired(paired).set_index(["direction", "against"])
    assert shown.loc[("fog-eeg2emg", "LoRA-KD"), "difference"] == ""
    assert shown.loc[("fog-eeg2emg", "KD"), "fewer parameters (%)"] == "98.0"
    many = readable_paired(paired.assign(**{"fewer parameters (%)": -115918.5}))
    assert set(many["fewer parameters (%)"]) == {"1,160 times as many"}
    assert "12" in paired_note(paired) and "agree" not in paired_note(paired)
    assert "in 25 % of cases" in paired_note(paired.assign(**{"test subjects": 3}))


def test_sentences_follow_from_the_table(paired):
    text = verdict(paired)
    assert "- **fog-eeg2emg**" in text and "beats Random" in text and "loses to Oracle" in text
    assert "LoRA-KD failed to train" in text
    assert "- KD: better in 2 of 2 directions" in against(paired)
    flipped = paired.assign(**{"the bridge is": "worse"})
    assert "beats" not in verdict(flipped)
    assert "- KD: better in 0 of 2 directions, worse in 2" in against(flipped)
    assert "- CardioGAN: better in 1 of 1 direction," in against(paired)
