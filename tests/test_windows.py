"""Labels, cutting, bad signals, and files of windows."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_files import (
    ECG,
    EEG,
    EMG,
    PPG,
    golden,
    heart,
    isruc_ecg,
    noise,
    recording,
    samples,
    wesad_signals,
    write_fog,
    write_isruc,
    write_wesad,
)  # fmt: skip
from safetensors.numpy import save_file
from scipy.signal import resample

from biox.data.readers import fog, isruc, labels, wesad
from biox.data.windows import UNLABELLED, Recording, Signal, Windows, bad_windows, concatenate, cut

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
    enough = purity * len(inside) - 1e-6
    want = [kind for code, kind in classes.items() if inside.count(code) >= enough]
    label = labels.sample_track(np.array(codes), 10.0, classes, purity)
    assert label(start / 10, stop / 10) == (want[0] if want else UNLABELLED)


def test_a_window_that_reaches_past_the_labels_counts_only_what_is_covered():
    label = labels.majority([0, 10], [10, 20], [0, 1], 0.8)
    assert [label(a, a + 10) for a in (-1, -3, 1, 5, 9, 12, 13, 40)] == [0, -1, 0, -1, 1, 1, -1, -1]


def test_mean_above_leaves_the_margin_and_gaps_unlabelled():
    values = np.r_[np.full(10, 80.0), np.full(10, 91.0), np.full(10, 100.0), np.full(10, np.nan)]
    label = labels.mean_above(np.arange(40), values, 90.0, margin=2.0)
    assert [label(a, a + 10) for a in (0, 10, 20, 30, 25)] == [0, UNLABELLED, 1, UNLABELLED, 1]


# From raw files to the released code's windows


def check_samples(windows, want, names):
    for i, position in ((0, "first"), (-1, "last")):
        for key, short in names.items():
            got = samples(windows.signals[key][i])
            np.testing.assert_allclose(got, want[f"{position}_{short}_sample"], atol=1e-4)


def test_wesad_windows_equal_the_released_code_but_for_two_lost_to_label_ringing(tmp_path):
    want, (ecg, bvp) = golden("WESAD"), wesad_signals()
    t = np.arange(len(ecg)) / 700
    edges = ((30, 150), (170, 290), (310, 420), (420, 480))
    track = np.select([(t >= a) & (t < b) for a, b in edges], [1, 2, 3, 4])
    signal = {"chest": {"ECG": ecg[:, None]}, "wrist": {"BVP": bvp[:, None]}}
    write_wesad(tmp_path / "WESAD", "S5", track=track, signal=signal)
    (read,) = wesad.read(tmp_path, "S5")
    specs = {"ecg": ECG, "ppg": PPG}
    windows = cut(read, specs, 60.0, 5.0, wesad.CLASSES, keep_unlabelled=False)
    check_samples(windows, want, {"ecg": "ECG", "ppg": "PPG"})
    assert windows.signals["ecg"].shape == (37, 1, 6000)
    # The released code resamples the labels by FFT, which rings at the steps 0 -> 2 and 0 -> 3.
    carried = np.round(resample(track.astype(float), len(track) // 7)).astype(int)
    changes = np.flatnonzero(np.diff(carried))
    np.testing.assert_array_equal(changes, want["resampled_labels_100Hz_change_idx"])
    kept = ~np.isin(windows.starts, [170.0, 310.0])
    np.testing.assert_array_equal(windows.labels[kept], want["labels"])
    assert len(cut(read, specs, 60.0, 5.0, wesad.CLASSES)) == 85


def test_isruc_windows_equal_the_released_code(tmp_path):
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
    check_samples(windows, want, {"eeg": "EEG", "ecg": "ECG"})


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
    want, row = golden("FOG"), np.arange(10000)
    raw = np.round(noise("raw:FOG", (10000, 58)) * np.r_[np.full(25, 20.0), np.full(33, 50.0)], 4)
    table = np.c_[row + 1, row / 500, raw, (row >= 4000) & (row < 7000)]
    write_fog(tmp_path / "FilteredData", "001", table=table)
    (task,) = fog.read(tmp_path, "001")
    specs = {"eeg": EEG, "emg": EMG}
    windows = cut(task, specs, 3.0, 0.3, fog.CLASSES, keep_unlabelled=False)
    np.testing.assert_array_equal(windows.labels, want["labels"])
    assert windows.signals["emg"].shape == (45, 3, 390)
    check_samples(windows, want, {"eeg": "EEG"})
    widths = np.arange(0.1, 65, 1.0)
    for i, position in ((0, "first"), (-1, "last")):  # the released EMG windows are scalograms
        emg = windows.signals["emg"][i].astype(float)
        kinds = np.stack([emg[:, 2:], np.diff(emg)[:, 1:], np.diff(emg, n=2)], axis=1)
        image = np.stack([[ricker_rows(x, widths) for x in channel] for channel in kinds])
        np.testing.assert_allclose(samples(image), want[f"{position}_EMG_sample"], atol=1e-4)


# Cutting


def test_windows_lie_where_their_starts_say():
    """Two backbones of one modality read the same signal at their own rates."""
    t = np.tile(np.arange(120 * 512) / 512, (6, 1))
    ramp = Recording(
        "a", "a", {"eeg": Signal(t, 512.0, "uV", tuple("abcdef"))}, lambda a, b: 0, "test"
    )
    windows = cut(ramp, {"eeg": EEG, "slow": replace(EEG, rate=100.0)}, 3.0, 0.7, CLASSES)
    assert len(windows) == int((120 - 3) / 0.7) + 1
    np.testing.assert_allclose(windows.signals["eeg"][:, 0, 0], windows.starts, atol=0.006)
    np.testing.assert_allclose(windows.signals["slow"][:, 0, 0], windows.starts, atol=0.016)
    assert windows.signals["slow"].shape[1:] == (6, 300) and windows.seconds("slow") == 3.0


def test_conditioning_by_window_or_as_a_whole_differs_only_where_it_should():
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
    with pytest.raises(ValueError, match="one window of 20 s, found a recording of 19.00 s"):
        cut_20(recording(seconds=19.0))


@pytest.mark.parametrize("per_window", [False, True])
def test_what_does_not_fit_the_backbone_is_named_with_its_recording(per_window):
    two = Signal(np.stack([heart(200, 250), heart(200, 250)]), 250.0, "mV", ("II", "V5"))
    message = r"a1 of a: ecg: expected 1 channels for ecg_hubert, found 2 \(II, V5\)"
    with pytest.raises(ValueError, match=message):
        cut_20(recording(ecg=two), per_window=per_window)
    with pytest.raises(ValueError, match=r"a1: expected modalities \['eeg'\], found \['ecg', 'ppg"):
        cut(recording(), {"eeg": EEG}, 3.0, 5.0, CLASSES)


def test_a_slow_signal_is_used_and_said(caplog):
    x = np.sin(np.arange(200 * 40) / 5) + 0.1 * heart(200, 40)
    with caplog.at_level(logging.WARNING):
        windows = cut_20(recording(ecg=Signal(x[None], 40.0, "mV", ("II",))))
    assert windows.signals["ecg"].shape == (37, 1, 2000)
    assert "a1: ecg is sampled at 40 Hz, less than half the 100 Hz of its backbone" in caplog.text


def test_windows_without_a_label_are_kept_or_dropped():
    unlabelled = recording(label=lambda a, b: UNLABELLED)
    assert len(cut_20(unlabelled)) == 37
    assert cut_20(unlabelled, keep_unlabelled=False).signals["ecg"].shape == (0, 1, 2000)


def test_concatenate_joins():
    a, b = cut_20(recording()), cut_20(recording(subject="b", name="b1"))
    both = concatenate([a, b])
    assert len(both) == 74 and set(both.subjects) == {"a", "b"}
    np.testing.assert_array_equal(both.signals["ecg"][37:], b.signals["ecg"])


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
    dead = Signal(recording().signals["ecg"].values * 0, 250.0, "mV", ("II",))
    with pytest.raises(ValueError, match="a1 of a: .*found all 37 windows bad .37 ecg II constant"):
        cut_20(recording(ecg=dead))
    with pytest.raises(ValueError, match="ecg II not finite"):
        cut_20(recording(ecg=replace(dead, values=dead.values * np.nan)))


def test_sound_signals_are_not_objected_to():
    signals = {"ecg": Signal(heart(60, 250)[None], 250.0, "mV", ("II",))}
    assert bad_windows(signals, np.arange(0, 50, 5.0), 10.0) == [""] * 10
    quantised = replace(signals["ecg"], values=np.round(signals["ecg"].values * 128) / 128)
    assert bad_windows({"ecg": quantised}, [0.0], 60.0) == [""]


# Files


def test_saved_windows_come_back_and_equal_windows_are_equal_bytes(tmp_path):
    want = cut_20(recording())
    want.save(tmp_path / "deep" / "a.safetensors")
    cut_20(recording()).save(tmp_path / "b.safetensors")
    got = Windows.load(tmp_path / "deep" / "a.safetensors")
    assert set(got.signals) == {"ecg", "ppg"}
    for name, value in vars(want).items():
        np.testing.assert_equal(getattr(got, name), value)
    assert list(Windows.load(tmp_path / "b.safetensors", ["ppg"]).signals) == ["ppg"]
    one, other = tmp_path / "deep" / "a.safetensors", tmp_path / "b.safetensors"
    assert one.read_bytes() == other.read_bytes()
    with pytest.raises(ValueError, match=r"expected signals \['emg'\], found \['ecg', 'ppg'\]"):
        Windows.load(tmp_path / "b.safetensors", ["emg"])


@pytest.mark.parametrize("keep", [0, 7, 500, -1])
def test_cut_and_absent_files_of_windows_are_named(keep, tmp_path):
    path = tmp_path / "a.safetensors"
    cut_20(recording()).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="a.safetensors: expected a whole file of windows"):
        Windows.load(path)
    with pytest.raises(FileNotFoundError, match="b.safetensors"):
        Windows.load(tmp_path / "b.safetensors")


@pytest.mark.parametrize("header", ["{", "[]", "3", "{}"])
def test_windows_with_a_foreign_header_say_so(header, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"labels": np.zeros(1)}, path, metadata={"windows": header})
    with pytest.raises(ValueError, match="a.safetensors: expected a whole file of windows"):
        Windows.load(path)
