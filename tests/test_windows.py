"""Labels, cutting, bad signals, and files of windows."""

from dataclasses import replace

import numpy as np
import pytest
import raw_files as raw
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_files import ECG, EEG, EMG, PPG, heart, recording
from safetensors.numpy import save_file
from scipy.signal import resample

from biox.backbones.normwear import RickerScalogram
from biox.data.readers import fog, isruc, labels, wesad
from biox.data.windows import UNLABELLED, Recording, Signal, Windows, bad_windows, cut

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


# From raw files to the released code's windows


def check_samples(windows, want, names):
    """Samples of the first and last window, and their mean and deviation, are the golden ones."""
    for i, position in ((0, "first"), (-1, "last")):
        for key, short in names.items():
            x = windows.signals[key][i]
            np.testing.assert_allclose(
                raw.samples(x), want[f"{position}_{short}_sample"], atol=1e-6
            )
            if f"{position}_{short}_mean_std" in want:
                got = [x.mean(dtype=float), x.std(dtype=float)]
                np.testing.assert_allclose(got, want[f"{position}_{short}_mean_std"], atol=1e-6)


def test_wesad_windows_equal_the_released_code_but_for_two_lost_to_label_ringing(tmp_path):
    want, (ecg, bvp) = raw.golden("WESAD"), raw.wesad_signals()
    t = np.arange(len(ecg)) / 700
    edges = ((30, 150), (170, 290), (310, 420), (420, 480))
    track = np.select([(t >= a) & (t < b) for a, b in edges], [1, 2, 3, 4])
    signal = {"chest": {"ECG": ecg[:, None]}, "wrist": {"BVP": bvp[:, None]}}
    raw.write_wesad(tmp_path / "WESAD", "S5", track=track, signal=signal)
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
    want = raw.golden("ISRUC")
    eeg = {name: raw.noise(f"raw:ISRUC:{name}", (12, 6000), 50.0) for name in isruc.EEG_CHANNELS}
    stages = [0, 0, 1, 2, 3, 5, 5, 2, 1, 0, 3, 2]
    raw.write_isruc(tmp_path, "7", n=12, stages=stages, X2=raw.isruc_ecg(), **eeg)
    (night,) = isruc.read(tmp_path, "7")
    specs = {"eeg": replace(EEG, seconds=30.0), "ecg": replace(ECG, seconds=30.0)}
    windows = cut(night, specs, 30.0, 30.0, isruc.CLASSES, per_window=True)
    constant = 5  # the released code keeps this epoch
    np.testing.assert_array_equal(windows.labels, np.delete(want["labels"], constant))
    assert windows.starts.tolist() == [30.0 * i for i in range(12) if i != constant]
    check_samples(windows, want, {"eeg": "EEG", "ecg": "ECG"})


def test_fog_windows_equal_the_released_code(tmp_path):
    want, row = raw.golden("FOG"), np.arange(10000)
    scale = np.r_[np.full(25, 20.0), np.full(33, 50.0)]
    values = np.round(raw.noise("raw:FOG", (10000, 58)) * scale, 4)
    table = np.c_[row + 1, row / 500, values, (row >= 4000) & (row < 7000)]
    raw.write_fog(tmp_path / "FilteredData", "001", table=table)
    (task,) = fog.read(tmp_path, "001")
    specs = {"eeg": EEG, "emg": EMG}
    windows = cut(task, specs, 3.0, 0.3, fog.CLASSES, keep_unlabelled=False)
    np.testing.assert_array_equal(windows.labels, want["labels"])
    assert windows.signals["emg"].shape == (45, 3, 390)
    check_samples(windows, want, {"eeg": "EEG"})
    images = RickerScalogram(390)(torch.from_numpy(windows.signals["emg"])).numpy()
    for i, position in ((0, "first"), (-1, "last")):  # the released EMG windows are scalograms
        wanted = want[f"{position}_EMG_sample"]
        np.testing.assert_allclose(raw.samples(images[i]), wanted, atol=1e-4)


# Cutting


def test_windows_lie_where_their_starts_say():
    """Two backbones of one modality read the same signal at their own rates."""
    t = np.tile(np.arange(120 * 512) / 512, (6, 1))
    signals = {"eeg": Signal(t, 512.0, "uV", tuple("abcdef"))}
    ramp = Recording("a", "a", signals, lambda start, stop: 0, "test")
    windows = cut(ramp, {"eeg": EEG, "slow": replace(EEG, rate=100.0)}, 3.0, 0.7, CLASSES)
    assert len(windows) == int((120 - 3) / 0.7) + 1
    np.testing.assert_allclose(windows.signals["eeg"][:, 0, 0], windows.starts, atol=0.006)
    np.testing.assert_allclose(windows.signals["slow"][:, 0, 0], windows.starts, atol=0.016)
    assert windows.signals["slow"].shape[1:] == (6, 300) and windows.seconds("slow") == 3.0


def test_modalities_of_unequal_length_are_cut_or_refused(caplog):
    plain = recording()
    ppg = plain.signals["ppg"]
    shorter = replace(ppg, values=ppg.values[:, : -round(0.6 * 125)])
    windows = cut_20(recording(ppg=shorter))
    assert len(windows) == 36 and "a1: cut to 199.40 s, the shortest of ecg 200.00 s" in caplog.text
    too_short = replace(ppg, values=ppg.values[:, : -round(1.5 * 125)])
    with pytest.raises(ValueError, match="a1: expected .* found ecg 200.00 s, ppg 198.50 s"):
        cut_20(recording(ppg=too_short))
    with pytest.raises(ValueError, match="one window of 20 s, found a recording of 19.00 s"):
        cut_20(recording(seconds=19.0))


def test_what_does_not_fit_the_backbone_is_named_with_its_recording():
    two = Signal(np.stack([heart(200, 250), heart(200, 250)]), 250.0, "mV", ("II", "V5"))
    message = r"a1 of a: ecg: expected 1 channels for ecg_hubert, found 2 \(II, V5\)"
    with pytest.raises(ValueError, match=message):
        cut_20(recording(ecg=two))
    with pytest.raises(ValueError, match=r"a1: expected modalities \['eeg'\], found \['ecg', 'ppg"):
        cut(recording(), {"eeg": EEG}, 3.0, 5.0, CLASSES)


def test_a_slow_signal_is_used_and_said(caplog):
    x = np.sin(np.arange(200 * 40) / 5) + 0.1 * heart(200, 40)
    windows = cut_20(recording(ecg=Signal(x[None], 40.0, "mV", ("II",))))
    assert windows.signals["ecg"].shape == (37, 1, 2000)
    assert "a1: ecg is sampled at 40 Hz, less than half the 100 Hz of its backbone" in caplog.text


def test_windows_without_a_label_are_kept_or_dropped():
    unlabelled = recording(label=lambda a, b: UNLABELLED)
    assert len(cut_20(unlabelled)) == 37
    assert cut_20(unlabelled, keep_unlabelled=False).signals["ecg"].shape == (0, 1, 2000)


# Bad signals


@pytest.mark.parametrize(("what", "change"), [
    ("not finite", lambda x: x * np.nan), ("constant", lambda x: x * 0 + 0.7),
    ("clipped", lambda x: np.clip(x * 40, -0.5, 0.5)), ("too weak", lambda x: x * 0.01),
])  # fmt: skip
def test_bad_windows_are_dropped_and_counted(what, change, caplog):
    ecg = recording().signals["ecg"]
    values = ecg.values.copy()
    values[:, 60 * 250 : 100 * 250] = change(values[:, 60 * 250 : 100 * 250])
    windows = cut_20(recording(ecg=replace(ecg, values=values)))
    assert f"ecg II {what}" in caplog.text and "a1: dropped" in caplog.text
    clear = np.arange(0, 181, 5.0)
    clear = set(clear[(clear <= 40) | (clear >= 100)])
    assert clear <= set(windows.starts)
    assert not set(windows.starts) & {60, 65, 70, 75, 80}
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


# Files


def test_saved_windows_come_back_and_equal_windows_are_equal_bytes(tmp_path):
    want, paths = cut_20(recording()), [tmp_path / "deep" / "a.safetensors", tmp_path / "b"]
    for path in paths:
        cut_20(recording()).save(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    got = Windows.load(paths[0])
    assert set(got.signals) == {"ecg", "ppg"}
    for name, value in vars(want).items():
        np.testing.assert_equal(getattr(got, name), value)
    assert list(Windows.load(paths[0], ["ppg"]).signals) == ["ppg"]
    with pytest.raises(ValueError, match=r"expected signals \['emg'\], found \['ecg', 'ppg'\]"):
        Windows.load(paths[0], ["emg"])


@pytest.mark.parametrize("damage", [0, 7, 500, -1, "{", "[]", "3", "{}"])
def test_cut_foreign_and_absent_files_of_windows_are_named(damage, tmp_path):
    path = tmp_path / "a.safetensors"
    if isinstance(damage, int):
        cut_20(recording()).save(path)
        path.write_bytes(path.read_bytes()[:damage])
    else:  # the header of other files
        save_file({"labels": np.zeros(1)}, path, metadata={"windows": damage})
    with pytest.raises(ValueError, match="a.safetensors: expected a whole file of windows"):
        Windows.load(path)
    with pytest.raises(FileNotFoundError, match="b.safetensors"):
        Windows.load(tmp_path / "b.safetensors")
