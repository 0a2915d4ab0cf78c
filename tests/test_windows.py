"""Windows: labels, cutting, and bad signals."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_files import ECG, EEG, EMG, PPG, golden, heart, recording, samples, write_fog, write_isruc
from test_conditioning import isruc_ecg, wesad_signals

from biox.data import fog, isruc, labels, wesad
from biox.data.cutting import concatenate, cut
from biox.data.quality import bad_windows
from biox.data.windows import UNLABELLED, Recording, Signal

SPECS = {"ecg": replace(ECG, seconds=20.0), "ppg": replace(PPG, seconds=20.0)}
CLASSES = ("low", "high")


def cut_20(recording, **options):
    return cut(recording, SPECS, 20.0, 5.0, CLASSES, **options)


# Labels


@settings(max_examples=60, deadline=None)
@given(
    codes=st.lists(st.integers(0, 3), min_size=5, max_size=60),
    purity=st.sampled_from([0.6, 0.8, 1.0]),
    where=st.tuples(st.integers(0, 54), st.integers(1, 20)),
)
def test_a_track_is_labelled_as_counting_its_samples_does(codes, purity, where):
    start, stop = where[0], min(where[0] + where[1], len(codes))
    if start >= stop:
        return
    classes = {1: 0, 2: 1}
    inside = codes[start:stop]
    want = [
        kind for code, kind in classes.items() if inside.count(code) >= purity * len(inside) - 1e-6
    ]
    label = labels.sample_track(np.array(codes), 10.0, classes, purity)
    assert label(start / 10, stop / 10) == (want[0] if want else UNLABELLED)


def test_a_window_that_reaches_past_the_labels_counts_only_what_is_covered():
    label = labels.majority([0, 10], [10, 20], [0, 1], 0.8)
    assert [label(a, a + 10) for a in (-1, -3, 1, 5, 9, 12, 13, 40)] == [0, -1, 0, -1, 1, 1, -1, -1]


@pytest.mark.parametrize(("starts", "stops", "purity"), [
    ([0, 4], [5, 9], 0.8), ([3], [1], 0.8), ([0], [1], 0.5), ([0], [1], 1.1),
])  # fmt: skip
def test_impossible_segments_are_refused(starts, stops, purity):
    with pytest.raises(ValueError, match="expected"):
        labels.majority(starts, stops, [0] * len(starts), purity)


def test_mean_above_leaves_the_margin_and_gaps_unlabelled():
    values = np.r_[np.full(10, 80.0), np.full(10, 91.0), np.full(10, 100.0), np.full(10, np.nan)]
    label = labels.mean_above(np.arange(40), values, 90.0, margin=2.0)
    assert [label(a, a + 10) for a in (0, 10, 20, 30, 25)] == [0, UNLABELLED, 1, UNLABELLED, 1]


# The released code's numbers, from signals to windows


def wesad_recording(rate=700.0, carry=lambda track: track):
    ecg, bvp = wesad_signals()
    t = np.arange(len(ecg)) / 700
    track = np.select(
        [(t >= a) & (t < b) for a, b in ((30, 150), (170, 290), (310, 420), (420, 480))],
        [1, 2, 3, 4],
    )
    signals = {
        "ecg": Signal(ecg[None], 700.0, "mV", ("chest",)),
        "ppg": Signal(bvp[None], 64.0, "a.u.", ("wrist",)),
    }
    label = labels.sample_track(carry(track), rate, wesad.CODES, wesad.PURITY)
    return Recording("S2", "S2", signals, label, "WESAD"), track


def cut_wesad(recording):
    specs = {"ecg": ECG, "ppg": PPG}
    return cut(recording, specs, 60.0, 5.0, wesad.CLASSES, keep_unlabelled=False)


def test_wesad_windows_equal_the_released_code_but_for_two_lost_to_label_ringing():
    want = golden("WESAD")
    windows = cut_wesad(wesad_recording()[0])
    assert windows.signals["ecg"].shape == (37, 1, 6000)
    assert np.bincount(windows.labels).tolist() == [13, 13, 11]
    for i, position in ((0, "first"), (-1, "last")):
        for name, short in (("ecg", "ECG"), ("ppg", "PPG")):
            got = samples(windows.signals[name][i])
            np.testing.assert_allclose(got, want[f"{position}_{short}_sample"], atol=1e-5)
    # Carrying the labels to 100 Hz by FFT puts a foreign code at the steps 0 -> 2 and 0 -> 3.
    _, track = wesad_recording()
    carried = labels.published_track(track, 700.0, 100.0)
    changes = np.flatnonzero(np.diff(carried))
    np.testing.assert_array_equal(changes, want["resampled_labels_100Hz_change_idx"])
    published, _ = wesad_recording(100.0, lambda track: carried)
    published = cut_wesad(published)
    np.testing.assert_array_equal(published.labels, want["labels"])
    assert set(windows.starts) - set(published.starts) == {170.0, 310.0}


def test_isruc_windows_equal_the_released_code(tmp_path):
    from raw_files import noise

    want = golden("ISRUC")
    eeg = {name: noise(f"raw:ISRUC:{name}", (12, 6000), 50.0) for name in isruc.EEG_CHANNELS}
    stages = [0, 0, 1, 2, 3, 5, 5, 2, 1, 0, 3, 2]
    write_isruc(tmp_path, "7", n=12, stages=stages, X2=isruc_ecg(), **eeg)
    (night,) = isruc.read(tmp_path, "7")
    specs = {"eeg": replace(EEG, seconds=30.0), "ecg": replace(ECG, seconds=30.0)}
    windows = cut(night, specs, 30.0, 30.0, isruc.CLASSES, per_window=True)
    constant = 5  # the released code keeps this epoch
    np.testing.assert_array_equal(windows.labels, np.delete(want["labels"], constant))
    assert windows.starts.tolist() == [30.0 * i for i in range(12) if i != constant]
    for i, position in ((0, "first"), (-1, "last")):
        for name, short in (("eeg", "EEG"), ("ecg", "ECG")):
            got = samples(windows.signals[name][i])
            np.testing.assert_allclose(got, want[f"{position}_{short}_sample"], atol=1e-4)


def ricker_rows(x, widths):
    """Ricker wavelet transform of x, [samples, widths] (Torrence & Compo 1998)."""
    rows = []
    for a in widths:
        k = np.arange(min(int(10 * a), len(x)))
        t = k - (len(k) - 1) / 2
        wavelet = 2 / (np.sqrt(3 * a) * np.pi**0.25) * (1 - (t / a) ** 2)
        rows.append(np.convolve(x, (wavelet * np.exp(-((t / a) ** 2) / 2))[::-1], mode="same"))
    return np.stack(rows, axis=-1)


def test_fog_windows_equal_the_released_code(tmp_path):
    from raw_files import noise

    want = golden("FOG")
    n = 10000
    scale = np.r_[np.full(25, 20.0), np.full(33, 50.0)]
    raw = np.round(noise("raw:FOG", (n, 58)) * scale, 4)
    row = np.arange(n)
    frozen = (row >= 4000) & (row < 7000)
    write_fog(tmp_path, "001", table=np.c_[row + 1, row / 500, raw, frozen])
    np.testing.assert_allclose(samples(raw), want["raw_sample"])
    (task,) = fog.read(tmp_path, "001")
    specs = {"eeg": EEG, "emg": EMG}
    windows = cut(task, specs, 3.0, 0.3, fog.CLASSES, keep_unlabelled=False)
    np.testing.assert_array_equal(windows.labels, want["labels"])
    assert windows.signals["emg"].shape == (45, 3, 390)
    for i, position in ((0, "first"), (-1, "last")):
        eeg = samples(windows.signals["eeg"][i])
        np.testing.assert_allclose(eeg, want[f"{position}_EEG_sample"], atol=1e-4)
        emg = windows.signals["emg"][i].astype(float)
        kinds = np.stack([emg[:, 2:], np.diff(emg)[:, 1:], np.diff(emg, n=2)], axis=1)
        widths = np.arange(0.1, 65, 1.0)
        image = np.stack([[ricker_rows(x, widths) for x in channel] for channel in kinds])
        np.testing.assert_allclose(samples(image), want[f"{position}_EMG_sample"], atol=1e-4)


# Cutting


def test_windows_lie_where_their_starts_say():
    t = np.arange(120 * 200) / 200
    ramp = Signal(np.tile(t, (6, 1)), 200.0, "uV", tuple("abcdef"))
    fast = Signal(np.tile(np.arange(120 * 512) / 512, (6, 1)), 512.0, "uV", tuple("abcdef"))
    whole = Recording("a", "a", {"eeg": ramp, "eeg2": fast}, lambda a, b: 0, "test")
    windows = cut(whole, {"eeg": EEG, "eeg2": EEG}, 3.0, 0.7, CLASSES)
    assert len(windows) == int((120 - 3) / 0.7) + 1
    np.testing.assert_allclose(windows.signals["eeg"][:, 0, 0], windows.starts, atol=0.0026)
    np.testing.assert_allclose(windows.signals["eeg2"][:, 0, 0], windows.starts, atol=0.008)


def test_conditioning_alone_or_whole_differs_only_where_it_should():
    whole, alone = cut_20(recording()), cut_20(recording(), per_window=True)
    assert whole.signals["ecg"].shape == alone.signals["ecg"].shape == (37, 1, 2000)
    np.testing.assert_allclose(alone.signals["ecg"].std(axis=2), 1, rtol=1e-4)
    for a, b in zip(whole.signals["ppg"], alone.signals["ppg"], strict=True):
        assert np.corrcoef(a[0, 250:-250], b[0, 250:-250])[0, 1] > 0.99


def test_modalities_of_unequal_length_are_cut_or_refused(caplog):
    plain = recording()
    ppg = plain.signals["ppg"]
    shorter = replace(ppg, values=ppg.values[:, : -round(0.6 * 125)])
    with caplog.at_level(logging.WARNING):
        windows = cut_20(recording(ppg=shorter))
    assert len(windows) == 36 and "a1: cut to 199.40 s, the shortest of ecg 200.00 s" in caplog.text
    too_short = replace(ppg, values=ppg.values[:, : -round(1.5 * 125)])
    with pytest.raises(ValueError, match="a1: expected .* found ecg 200.00 s, ppg 198.50 s"):
        cut_20(recording(ppg=too_short))
    with pytest.raises(
        ValueError, match="at least one window of 20 s, found a recording of 19.00 s"
    ):
        cut_20(recording(seconds=19.0))


@pytest.mark.parametrize(("specs", "step", "message"), [
    ({"eeg": EEG}, 5.0, "a1: expected modalities \\['eeg'\\], found \\['ecg', 'ppg'\\]"),
    ({"ecg": ECG}, 5.0, "expected windows of 60 s for its backbone, found 20 s"),
    (SPECS, 0.0, "step: expected a positive"),
])  # fmt: skip
def test_impossible_cuts_are_refused(specs, step, message):
    with pytest.raises(ValueError, match=message):
        cut(recording(), specs, 20.0, step, CLASSES)


def test_labels_outside_the_classes_are_refused():
    with pytest.raises(ValueError, match=r"expected labels of the classes .* found \[7\]"):
        cut_20(recording(label=lambda a, b: 7))


def test_concatenate_joins_and_refuses_mixtures():
    a, b = cut_20(recording()), cut_20(recording(subject="b", name="b1"))
    both = concatenate([a, b])
    assert len(both) == 74 and set(both.subjects) == {"a", "b"}
    np.testing.assert_array_equal(both.signals["ecg"][37:], b.signals["ecg"])
    for change in (
        {"classes": ("x", "y")},
        {"source": "other"},
        {"rates": {"ecg": 1.0, "ppg": 2.0}},
    ):
        with pytest.raises(ValueError, match=f"expected {next(iter(change))}"):
            concatenate([a, replace(b, **change)])
    with pytest.raises(ValueError, match="found none"):
        concatenate([])


# Bad signals


def spoiled(what):
    """Seconds 60 to 100 of the ECG of an otherwise sound recording are spoiled."""
    plain = recording()
    ecg = plain.signals["ecg"].values.copy()
    part = ecg[:, 60 * 250 : 100 * 250]
    changes = {
        "not finite": lambda: np.nan,
        "constant": lambda: 0.7,
        "clipped": lambda: np.clip(part * 40, -0.5, 0.5),
        "too weak": lambda: part * 0.01,
    }
    part[:] = changes[what]()
    return recording(ecg=replace(plain.signals["ecg"], values=ecg))


@pytest.mark.parametrize("what", ["not finite", "constant", "clipped", "too weak"])
def test_bad_windows_are_dropped_and_counted(what, caplog):
    with caplog.at_level(logging.WARNING):
        windows = cut_20(spoiled(what))
    assert f"ecg II {what}" in caplog.text and "a1: dropped" in caplog.text
    inside = (windows.starts >= 60) & (windows.starts + 20 <= 100)
    assert not inside.any()
    clear = cut_20(recording()).starts
    clear = clear[(clear + 20 <= 60) | (clear >= 100)]
    assert set(clear) <= set(windows.starts)
    assert np.isfinite(windows.signals["ecg"]).all()


@pytest.mark.parametrize(("flat_seconds", "want"), [
    ([16.8], "ecg II flat"), ([3.5, 3.5], "ecg II flat"), ([5.5], ""), ([0.9] * 14, ""), ([0], ""),
])  # fmt: skip
def test_long_runs_of_one_value_are_flat(flat_seconds, want):
    ecg = heart(20, 250)[None]
    start = 0
    for seconds in flat_seconds:  # at values inside the signal's range, so that nothing is clipped
        ecg[0, start : start + round(seconds * 250)] = 0.2 + start / 1e5
        start += round(seconds * 250) + 100
    signals = {"ecg": Signal(ecg, 250.0, "mV", ("II",))}
    assert bad_windows(signals, [0.0], 20.0) == [want]


def test_a_flat_channel_among_sound_ones_is_named():
    eeg = np.random.default_rng(0).normal(size=(3, 4000))
    eeg[1, 500:1500] = eeg[1, 500]
    signals = {"eeg": Signal(eeg, 200.0, "uV", ("C3", "C4", "Cz"))}
    assert bad_windows(signals, [0.0, 5.0, 10.0], 5.0) == ["eeg C4 flat"] * 2 + [""]


def test_a_single_gap_costs_only_the_windows_that_hold_it():
    plain = recording()
    ppg = plain.signals["ppg"].values.copy()
    ppg[0, 50 * 125] = np.inf
    windows = cut_20(recording(ppg=replace(plain.signals["ppg"], values=ppg)))
    want = cut_20(plain)
    assert set(want.starts) - set(windows.starts) == {35.0, 40.0, 45.0, 50.0}
    kept = want.select(np.isin(want.starts, windows.starts))
    np.testing.assert_allclose(windows.signals["ppg"], kept.signals["ppg"], atol=0.05)


def test_a_recording_without_a_sound_window_is_refused():
    plain = recording()
    dead = Signal(plain.signals["ecg"].values * 0, 250.0, "mV", ("II",))
    with pytest.raises(
        ValueError, match="a1 of a: .*found all 37 windows bad \\(37 ecg II constant"
    ):
        cut_20(recording(ecg=dead))
    gone = replace(dead, values=dead.values * np.nan)
    with pytest.raises(ValueError, match="ecg II not finite"):
        cut_20(recording(ecg=gone))


def test_sound_signals_are_not_objected_to():
    signals = {"ecg": Signal(heart(60, 250)[None], 250.0, "mV", ("II",))}
    assert bad_windows(signals, np.arange(0, 50, 5.0), 10.0) == [""] * 10
    quantised = replace(signals["ecg"], values=np.round(signals["ecg"].values * 128) / 128)
    assert bad_windows({"ecg": quantised}, [0.0], 60.0) == [""]
