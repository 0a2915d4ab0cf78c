"""Simulated physiology against closed forms and neurokit2; files against plain libraries."""

import os
import pickle
import subprocess
import sys

import neurokit2
import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat
from scipy.signal import welch

from biox.data.readers import dreamer as dreamer_reader
from biox.data.simulate import SIMULATORS, dreamer, fog, isruc, simulate, wesad
from biox.data.simulate import neurophysiology as neuro
from biox.data.simulate import physiology as phys
from biox.data.simulate.corpus import KINDS, corpus


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def rate_by_neurokit(x, rate, modality):
    """Mean rate in bpm, by stock peak detection."""
    if modality == "ecg":
        clean = neurokit2.ecg_clean(x, sampling_rate=rate)
        found = neurokit2.ecg_peaks(clean, sampling_rate=rate)[1]["ECG_R_Peaks"]
    else:
        clean = neurokit2.ppg_clean(x, sampling_rate=rate)
        found = neurokit2.ppg_findpeaks(clean, sampling_rate=rate)["PPG_Peaks"]
    return 60 / np.mean(np.diff(found) / rate)


# Generators


@pytest.mark.parametrize("slope", [0.5, 1.0, 2.0])
def test_background_falls_with_the_slope_asked_for(rng, slope):
    x = neuro.eeg(rng, 4, 60_000, 200, {}, background=8.0, slope=slope)
    f, p = welch(x, 200, nperseg=800)
    fit = (f > 1) & (f < 60)
    measured = np.polyfit(np.log(f[fit]), np.log(p[:, fit].mean(0)), 1)[0]
    assert measured == pytest.approx(-slope, abs=0.08)
    assert x.std() == pytest.approx(8.0, rel=0.15)


@pytest.mark.parametrize(("low", "high"), [(0.5, 4), (20, 150), (8, 13)])
def test_band_noise_has_unit_variance_inside_its_band(rng, low, high):
    x = phys.band_noise(rng, 100_000, 500, low, high)
    f, p = welch(x, 500, nperseg=8192)
    inside = (f > low - 0.2 * (high - low)) & (f < high + 0.2 * (high - low))
    assert x.var() == pytest.approx(1, rel=0.1)
    assert p[inside].sum() / p.sum() > 0.98


@pytest.mark.parametrize("band", ["delta", "theta", "alpha", "beta", "gamma"])
def test_band_level_is_the_standard_deviation(rng, band):
    x = neuro.eeg(rng, 6, 120_000, 200, {band: 7.0}, background=0.0)
    low, high = neuro.BANDS[band]
    f, p = welch(x, 200, nperseg=2000)
    assert x.std() == pytest.approx(7.0, rel=0.1)
    assert p[:, (f > low - 1) & (f < high + 1)].sum() / p.sum() > 0.7


@pytest.mark.parametrize("coherence", [0.2, 0.8])
def test_channels_correlate_as_asked(rng, coherence):
    x = neuro.eeg(rng, 4, 100_000, 200, {"beta": 5.0}, 5.0, coherence=coherence, burstiness=0)
    pairs = np.corrcoef(x)[np.triu_indices(4, 1)]
    assert pairs.mean() == pytest.approx(coherence, abs=0.06)


def test_respiration_swings_the_heart_rate(rng):
    resp = np.sin(2 * np.pi * 0.25 * np.arange(3000) / phys.CONTROL)
    beats = phys.heartbeats(rng, np.full(3000, 60.0), resp, rsa=0.1, mayer=0, jitter=0)
    rr = np.diff(beats.times)
    # Each interval is 1 / rate averaged over itself, a quarter of a breath: sinc(0.25) = 0.900.
    assert rr.std() == pytest.approx(0.1 * 0.900 / np.sqrt(2), rel=0.05)


def test_ectopic_beats_come_early_and_are_followed_by_a_pause(rng):
    still = np.zeros(6000)
    beats = phys.heartbeats(rng, np.full(6000, 60.0), still, 0, 0, 0, ectopic=0.1)
    k = np.flatnonzero(beats.ectopic[:-1])
    assert 0.05 < beats.ectopic.mean() < 0.13
    np.testing.assert_allclose(beats.times[k] - beats.times[k - 1], 0.67, atol=1e-6)
    np.testing.assert_allclose(beats.times[k + 1] - beats.times[k], 1.33, atol=1e-6)


def test_ecg_waves_stand_where_the_shape_puts_them(rng):
    beats = phys.heartbeats(rng, np.full(102, 60.0), np.zeros(102), 0, 0, 0)
    shape = phys.EcgShape.draw(rng)
    y = phys.ecg(beats, 10_000, 1000, shape)
    at_r = np.rint(1000 * beats.inside(2, 8)).astype(int)
    at_t = np.rint(1000 * (beats.inside(2, 8) + shape.center[6])).astype(int)
    assert y[at_r] == pytest.approx(shape.amplitude[2], rel=0.1)
    assert y[at_t] == pytest.approx(shape.amplitude[6], rel=0.1)
    halved = phys.ecg(beats, 10_000, 1000, shape, t_gain=0.5)
    assert halved[at_t] == pytest.approx(y[at_t] / 2, rel=0.05)


def test_pulse_follows_the_beat_by_its_delay(rng):
    beats = phys.heartbeats(rng, np.full(302, 70.0), np.zeros(302))
    shape = phys.PpgShape.draw(rng)
    y = phys.ppg(beats, 30_000, 1000, shape)
    for beat in beats.inside(3, 27):
        lag = np.argmax(y[int(1000 * beat) : int(1000 * beat) + 600]) / 1000
        assert shape.delay + shape.rise < lag < shape.delay + 3.5 * shape.rise


# Files


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    simulate("wesad", folder / "wesad", seed=3, subjects=("S2", "S10"), length=0.2)
    simulate("fog", folder / "fog", seed=3, subjects=("008", "009"), length=0.25)
    simulate("isruc", folder / "isruc", seed=3, subjects=("1", "9"), length=0.2)
    return folder


def unpickled(path):
    with open(path, "rb") as file:
        return pickle.load(file, encoding="latin1")  # as users of the original load it


def test_wesad_pickle_has_the_published_form(raw):
    path = raw / "wesad/S10/S10.pkl"
    content = unpickled(path)
    assert content["subject"] == "S10"
    chest, wrist, label = content["signal"]["chest"], content["signal"]["wrist"], content["label"]
    assert label.dtype.kind == "i" and set(np.unique(label)) == {0, 1, 2, 3, 4}
    assert set(chest) == {"ACC", "ECG", "EMG", "EDA", "Temp", "Resp"}
    assert all(x.shape == (len(label), 3 if name == "ACC" else 1) for name, x in chest.items())
    rates = {name: len(x) * 700 / len(label) for name, x in wrist.items()}
    assert rates == pytest.approx({"ACC": 32, "BVP": 64, "EDA": 4, "TEMP": 4}, rel=0.01)
    assert all(np.isfinite(x).all() for x in (*chest.values(), *wrist.values()))
    assert 0.1 < np.ptp(chest["ECG"]) < 20  # mV
    steps = chest["ECG"].astype(float) * 2**16 / 3  # 16 bits over 3 mV
    np.testing.assert_allclose(steps, np.rint(steps), atol=0.01)
    # Byte strings of Python 2. As text of Python 3, half as long again, a call would decode them.
    size = sum(x.nbytes for x in (*chest.values(), *wrist.values(), label))
    assert size < path.stat().st_size < 1.1 * size and b"_codecs" not in path.read_bytes()


def test_chest_and_wrist_share_their_beats(raw):
    signal = unpickled(raw / "wesad/S2/S2.pkl")["signal"]
    ecg = signal["chest"]["ECG"][700 * 10 : 700 * 50, 0].astype(float)
    bvp = signal["wrist"]["BVP"][64 * 10 : 64 * 50, 0].astype(float)
    by_pulse = rate_by_neurokit(bvp, 64, "ppg")
    assert rate_by_neurokit(ecg, 700, "ecg") == pytest.approx(by_pulse, abs=3)


def test_fog_text_has_the_published_form(raw):
    paths = sorted(path.relative_to(raw / "fog").as_posix() for path in raw.rglob("task_1.txt"))
    assert paths == ["008/OFF_1/task_1.txt", "008/OFF_2/task_1.txt", "009/task_1.txt"]
    text = (raw / "fog/009/task_1.txt").read_text()
    assert ",-0.0," not in text and " " not in text
    table = pd.read_csv(raw / "fog/009/task_1.txt", header=None).to_numpy(float)
    assert table.shape == (10_000, 61)
    assert set(np.unique(table[:, 60])) == {0, 1}
    spread = table.std(axis=0)
    assert np.all((spread[2:27] > 3) & (spread[2:27] < 80))  # EEG in uV
    assert set(np.argsort(spread[27:32])[-3:] + 27) == {27, 28, 30}  # this patient's EMG
    assert np.all(spread[32:60] == 0)
    np.testing.assert_allclose(np.diff(table[:, 1]), 1 / 500, atol=1e-3)


def test_isruc_files_have_the_published_form(raw):
    content = loadmat(raw / "isruc/ExtractedChannels/subject9.mat")
    signals = {key: x for key, x in content.items() if not key.startswith("__")}
    assert set(signals) == {"F3_A2", "C3_A2", "O1_A2", "F4_A1", "C4_A1", "O2_A1", "X2"}
    assert {x.shape for x in signals.values()} == {(6, 6000)}
    assert b"20" not in content["__header__"]  # no time, so that files are equal
    stages = (raw / "isruc/RawData/9/9_1.txt").read_text().split()
    assert len(stages) == 6 + 30 and set(stages) <= set("01235")


def files(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


AGAIN = """
import sys
from biox.data.simulate import simulate
simulate("wesad", sys.argv[1] + "/wesad", seed=3, subjects=["S10"], length=0.2)
simulate("fog", sys.argv[1] + "/fog", seed=3, subjects=["009", "008"], length=0.25)
simulate("isruc", sys.argv[1] + "/isruc", seed=3, subjects=["9"], length=0.2)
"""


def test_a_file_depends_on_its_subject_and_seed_alone(raw, tmp_path):
    """Not on other subjects, nor on the processor.

    Without SIMD, numpy and its BLAS differ in the last bits of exp, sin and @.
    """
    simd = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    plain = {"NPY_DISABLE_CPU_FEATURES": " ".join(simd), "OPENBLAS_CORETYPE": "Prescott"}
    command = [sys.executable, "-c", AGAIN, str(tmp_path)]
    subprocess.run(command, env=os.environ | plain, check=True)
    again, before = files(tmp_path), files(raw)
    assert len(again) == 6
    assert [name for name in again if again[name] != before[name]] == []
    simulate("fog", tmp_path / "other", seed=4, subjects=("009",), length=0.25)
    assert files(tmp_path / "other")["009/task_1.txt"] != before["fog/009/task_1.txt"]


# States


def test_default_subjects_are_those_of_the_originals():
    names = {name: simulator.SUBJECTS for name, simulator in SIMULATORS.items()}
    assert names["wesad"] == tuple(f"S{k}" for k in (*range(2, 12), *range(13, 18)))
    assert len(names["isruc"]) == 30 and "8" not in names["isruc"]
    assert names["fog"] == tuple(f"{k:03d}" for k in range(1, 13))


def test_wesad_windows_come_in_the_original_proportions():
    counts = np.zeros(5)
    for seed in range(15):
        labels = wesad.protocol(np.random.default_rng(seed))
        for start in range(0, len(labels) - 600, 50):
            found = np.unique(labels[start : start + 600])
            counts[found[0]] += len(found) == 1
    shares = counts[1:4] / counts[1:4].sum()
    np.testing.assert_allclose(shares, np.array([1112, 607, 312]) / 2031, atol=0.03)


def test_a_quarter_of_the_night_is_wake_and_freezing_takes_two_fifths_to_half():
    nights = [isruc.hypnogram(np.random.default_rng(s), 40) for s in range(200)]
    assert np.mean(np.array(nights) == 0) == pytest.approx(4687 / (4687 + 14550), abs=0.05)
    walks = [fog.freezing(np.random.default_rng(s), 80.0) for s in range(200)]
    assert 0.4 < np.mean(walks) < 0.5
    edges = np.flatnonzero(np.diff(walks[0]))
    assert np.all(np.diff(edges) >= 30 - 1)  # 3 s or longer


@pytest.mark.parametrize(("effect", "low", "high"), [(1.0, 6, 18), (0.0, -2, 2)])
def test_stress_raises_the_heart_rate_as_far_as_effect_says(effect, low, high):
    change = []
    for seed in range(15):
        rng = np.random.default_rng(seed)
        states = wesad.protocol(rng)
        _, beats = wesad.heart(rng, states, effect)
        inside = np.clip((beats.times * phys.CONTROL).astype(int), 0, len(states) - 1)
        bpm = {s: 60 / beats.rr[states[inside] == s].mean() for s in (1, 2)}
        change.append(bpm[2] - bpm[1])
    assert low < np.mean(change) < high
    if effect:
        assert np.std(change) > 3  # people react unequally


def band_power(x, rate, low, high):
    f, p = welch(x, rate, nperseg=int(2 * rate))
    return p[..., (f >= low) & (f < high)].mean(-1)


def test_deep_sleep_has_more_delta_than_wake():
    ratios = []
    for seed in range(5):
        eeg = isruc.sleep_eeg(np.random.default_rng(seed), np.repeat([0, 3], 600), 24_000, 1.0)
        wake, deep = band_power(eeg[:, :11_000], 200, 1, 4), band_power(eeg[:, 13_000:], 200, 1, 4)
        ratios.append(np.log(deep / wake).mean())
    assert np.median(ratios) > 0.7


def test_freezing_moves_the_emg_rhythm_from_gait_to_tremor():
    for seed in range(5):
        states = np.repeat([0, 1], 300)
        emg = np.abs(fog.leg_emg(np.random.default_rng(seed), states, 30_000, 1.0))
        walking, frozen = (
            band_power(x, 500, 4, 7).mean() / band_power(x, 500, 0.5, 1.6).mean()
            for x in (emg[:, :14_500], emg[:, 15_500:])
        )
        assert np.log(frozen / walking) > 0.5


# The pretraining corpus


@pytest.mark.parametrize("modality", sorted(KINDS))
def test_corpus_has_finite_windows_and_targets(modality):
    c = corpus(modality, 6, 12, seed=5)
    assert c.signals.shape == (6, len(c.channels), round(12 * c.rate))
    assert c.signals.dtype == c.targets.dtype == np.float32
    assert c.targets.shape == (6, len(c.names))
    assert np.isfinite(c.signals).all() and np.isfinite(c.targets).all()
    assert np.all(c.signals.std(axis=2) > 0)
    longer = corpus(modality, 8, 12, seed=5, n_jobs=2)
    np.testing.assert_array_equal(longer.signals[:6], c.signals)
    np.testing.assert_array_equal(longer.targets[:6], c.targets)
    assert not np.array_equal(corpus(modality, 6, 12, seed=6).signals, c.signals)


def test_corpus_heart_rates_are_uniform_and_found_by_neurokit():
    for modality in ("ecg", "ppg"):
        c = corpus(modality, 150, 30, seed=1)
        known = dict(zip(c.names, c.targets.T, strict=True))
        rate = known["heart_rate_bpm"]
        assert 35 < rate.min() < 55 and 135 < rate.max() < 160
        assert rate.mean() == pytest.approx(95, abs=8)
        calm = (known["log_rmssd_ms"] < np.log(40)) & (rate > 50) & (rate < 130)
        quiet = np.flatnonzero(calm & (known["log_noise"] < np.log(0.2)))[:15]
        found = [rate_by_neurokit(c.signals[i, 0].astype(float), int(c.rate), modality)
                 for i in quiet]  # fmt: skip
        assert len(quiet) >= 10
        assert np.median(np.abs(found - rate[quiet])) < 2


def test_corpus_band_powers_are_those_of_the_signal():
    c = corpus("eeg", 30, 20, seed=2, channels=12)
    assert c.channels[:2] == ("EEG 1", "EEG 2")
    known = dict(zip(c.names, c.targets.T, strict=True))
    for band in ("theta", "alpha"):
        low, high = neuro.BANDS[band]
        f, p = welch(c.signals, c.rate, nperseg=800)
        measured = np.log(p[..., (f >= low) & (f < high)].mean(1).sum(-1) * (f[1] - f[0]))
        assert np.corrcoef(measured, known[f"log_{band}_uv2"])[0, 1] > 0.9
        assert np.median(measured - known[f"log_{band}_uv2"]) == pytest.approx(0, abs=0.4)


# DREAMER, one file for all


def test_dreamers_file_reads_like_the_original(tmp_path):
    (path,) = simulate("dreamer", tmp_path, seed=3, subjects=("1", "2"), length=0.2)
    assert path == tmp_path / "DREAMER.mat"
    content = loadmat(path)["DREAMER"][0, 0]
    names = [cell.item() for cell in content["EEG_Electrodes"].ravel()]
    assert tuple(names) == dreamer_reader.EEG_CHANNELS and content["EEG_SamplingRate"].item() == 128
    person = content["Data"][0, 1]  # as torcheeg reads it
    for device, rate, channels in (("EEG", 128, 14), ("ECG", 256, 2)):
        for part, seconds in (("baseline", 2), ("stimuli", 6)):
            clips = person[device][0, 0][part][0, 0]
            assert clips.shape == (18, 1) and clips[17, 0].shape == (seconds * rate, channels)
    assert person["ScoreArousal"][0, 0].shape == (18, 1)
    assert len(dreamer_reader.read(tmp_path, "2")) == 18
    again = simulate("dreamer", tmp_path / "b", seed=3, subjects=("1", "2"), length=0.2, n_jobs=2)
    assert again[0].read_bytes() == path.read_bytes()


def test_moods_of_clips_reach_ratings_and_signals(monkeypatch):
    """Clips move people alike, less than people differ; without an effect they move no signal."""
    moods = dreamer.felt(3)
    assert moods.shape == (18, 3) and abs(moods.mean(0)).max() < 1e-9
    people = [dreamer.person(3, str(s), length=0.2) for s in range(1, 9)]
    scores = np.mean([p["ScoreArousal"][:, 0] for p in people], axis=0)
    assert np.corrcoef(scores, moods[:, 1])[0, 1] > 0.7
    every = np.concatenate([p["ScoreValence"] for p in people])
    assert set(np.unique(every)) == {1, 2, 3, 4, 5} and 0.25 < (every > 3).mean() < 0.6
    one = dreamer.person(3, "1", length=0.2, effect=0.0)
    monkeypatch.setattr(dreamer, "felt", lambda seed: -moods)
    other = dreamer.person(3, "1", length=0.2, effect=0.0)
    assert not np.array_equal(one["ScoreArousal"], other["ScoreArousal"])
    for device in ("EEG", "ECG"):
        clips = zip(one[device]["stimuli"][:, 0], other[device]["stimuli"][:, 0], strict=True)
        assert all(np.array_equal(*pair) for pair in clips)
