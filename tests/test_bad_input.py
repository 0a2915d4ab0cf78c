"""What can be wrong with a recording, whoever read it: a clear error, or a repair that is logged.

Elsewhere: damage and labels of each format (test_readers, test_dreamer, test_recordings), hostile
pickles (test_pickles), flat, clipped and missing samples and unequal lengths (test_windows).
"""

import logging
from dataclasses import replace

import numpy as np
import pytest
from raw_files import ECG, EEG, PPG, heart, recording, write_wesad

from biox.data import wesad
from biox.data.conditioning import condition
from biox.data.cutting import cut
from biox.data.windows import UNLABELLED, Signal

SPEC = {"ecg": replace(ECG, seconds=10.0)}


def ecg(values, rate=250.0, names=("II",)):
    return Signal(np.atleast_2d(values), rate, "mV", names)


@pytest.mark.parametrize("rate", [0.0, -250.0, np.nan, np.inf])
def test_a_signal_has_a_rate(rate):
    with pytest.raises(ValueError, match="needs a rate in Hz above 0, found"):
        ecg(heart(5, 250), rate)


@pytest.mark.parametrize("values", [
    np.array([["a", "b"]]), np.array([[1 + 2j]]), np.array([[None, 1.0]]), np.array([[True]]),
])  # fmt: skip
def test_a_signal_is_made_of_real_numbers(values):
    with pytest.raises(ValueError, match="needs real numbers, found"):
        ecg(values)


@pytest.mark.parametrize(("values", "names"), [
    (np.zeros((2, 9)), ("II",)), (np.zeros((1, 9)), ("II", "V5")), (np.zeros((1, 9, 1)), ("II",)),
])  # fmt: skip
def test_a_signal_has_a_name_for_each_channel(values, names):
    with pytest.raises(ValueError, match="needs .channels, samples. and a name for each channel"):
        Signal(values, 250.0, "mV", names)


def test_the_wrong_number_of_channels_is_named_with_its_recording():
    two = ecg(np.stack([heart(20, 250), heart(20, 250)]), names=("II", "V5"))
    message = r"a1 of a: ecg: expected 1 channels for ecg_hubert, found 2 \(II, V5\)"
    for per_window in (False, True):
        with pytest.raises(ValueError, match=message):
            cut(recording(20.0, ecg=two), SPEC, 10.0, 5.0, ("x", "y"), per_window=per_window)


def test_an_unknown_unit_is_named_with_its_recording():
    x = np.random.default_rng(0).normal(size=(6, 2000))
    eeg = Signal(x, 200.0, "counts", tuple("abcdef"))
    with pytest.raises(ValueError, match="a1 of a: EEG: expected a unit .* found 'counts'"):
        cut(recording(10.0, eeg=eeg), {"eeg": EEG}, 3.0, 3.0, ("x", "y"))


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.4, 0.99])
def test_a_signal_too_short_for_the_filters_is_refused(seconds):
    short = ecg(heart(5, 250)[: int(seconds * 250)])
    with pytest.raises(ValueError, match="ecg: expected at least 1 s, found"):
        condition(short, ECG)
    assert condition(ecg(heart(1, 250)), ECG).values.shape == (1, 100)
    assert condition(replace(ecg(heart(1, 64)), rate=64.0), PPG).values.shape == (1, 125)


def test_a_slow_signal_is_used_and_said(caplog):
    slow = ecg(np.sin(np.arange(20 * 40) / 5) + 0.1 * heart(20, 40), rate=40.0)
    with caplog.at_level(logging.WARNING):
        windows = cut(recording(20.0, ecg=slow), SPEC, 10.0, 5.0, ("x", "y"))
    assert windows.signals["ecg"].shape == (3, 1, 1000)
    said = "a1: ecg is sampled at 40 Hz, less than half the 100 Hz of its backbone"
    assert [r.getMessage() for r in caplog.records] == [said]
    caplog.clear()
    cut(recording(20.0), SPEC, 10.0, 5.0, ("x", "y"))
    assert not caplog.records


@pytest.mark.parametrize("step", [0.0, -1.0, np.nan, np.inf])
def test_a_step_is_a_length_of_time(step):
    with pytest.raises(ValueError, match="step: expected a positive number of seconds"):
        cut(recording(20.0), SPEC, 10.0, step, ("x", "y"))


def test_another_rate_than_the_formats_shows_in_the_lengths(tmp_path):
    """A WESAD pickle states no rate: an ECG at 350 Hz looks half as long as the PPG."""
    signal = {"chest": {"ECG": heart(60, 350)}, "wrist": {"BVP": heart(60, 64)}}
    write_wesad(tmp_path, seconds=60, track=np.ones(60 * 350, int), signal=signal)
    (got,) = wesad.read(tmp_path, "S2")
    specs = {"ecg": SPEC["ecg"], "ppg": replace(PPG, seconds=10.0)}
    with pytest.raises(ValueError, match="S2: .* equal length .* found ecg 30.00 s, ppg 60.00 s"):
        cut(got, specs, 10.0, 5.0, wesad.CLASSES)


def test_clocks_that_drift_apart_are_cut_to_the_shorter(caplog):
    """A wrist clock that is 1 % slow: 0.6 s are missing after 60 s."""
    plain = recording(60.0)
    ppg = plain.signals["ppg"]
    fewer = replace(ppg, values=ppg.values[:, : round(0.99 * 60 * 125)])
    specs = {"ecg": SPEC["ecg"], "ppg": replace(PPG, seconds=10.0)}
    with caplog.at_level(logging.WARNING):
        windows = cut(recording(60.0, ppg=fewer), specs, 10.0, 10.0, ("x", "y"))
    assert len(windows) == 5 and "cut to 59.40 s, the shortest of" in caplog.text


def test_labels_that_are_not_numbers_of_classes_are_refused():
    for wrong in (2, 17, -2):
        with pytest.raises(ValueError, match=rf"expected labels of the classes .* found \[{wrong}"):
            cut(recording(20.0, label=lambda a, b, k=wrong: k), SPEC, 10.0, 5.0, ("x", "y"))
    none = cut(recording(20.0, label=lambda a, b: UNLABELLED), SPEC, 10.0, 5.0, ("x", "y"))
    assert len(none) == 3
    kept = cut(
        recording(20.0, label=lambda a, b: UNLABELLED), SPEC, 10.0, 5.0, ("x", "y"),
        keep_unlabelled=False,
    )  # fmt: skip
    assert len(kept) == 0 and kept.signals["ecg"].shape == (0, 1, 1000)
