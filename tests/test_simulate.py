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
from scipy.signal import hilbert, welch

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


def test_a_steady_heart_beats_steadily(rng):
    still = np.zeros(600)
    beats = phys.heartbeats(rng, np.full(600, 75.0), still, rsa=0, mayer=0, jitter=0)
    np.testing.assert_allclose(np.diff(beats.times), 0.8, rtol=1e-9)
    assert beats.times[2] < 0.8 and beats.times[-4] < 59.9 < beats.times[-2]


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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bpm", [50, 75, 110])
def test_neurokit_finds_the_rate_of_clean_ecg_and_ppg(bpm, seed):
    rng = np.random.default_rng([bpm, seed])
    resp = phys.breathing(rng, np.full(402, 15.0))
    beats = phys.heartbeats(rng, np.full(402, float(bpm)), resp)
    true = 60 / np.diff(beats.inside(0, 40)).mean()
    ecg = phys.ecg(beats, 10_000, 250, phys.EcgShape.draw(rng), resp)
    ppg = phys.ppg(beats, 5000, 125, phys.PpgShape.draw(rng), 1 + 0.05 * resp)
    assert rate_by_neurokit(ecg, 250, "ecg") == pytest.approx(true, abs=2)
    assert rate_by_neurokit(ppg, 125, "ppg") == pytest.approx(true, abs=2)


def test_ecg_waves_stand_where_the_shape_puts_them(rng):
    beats = phys.heartbeats(rng, np.full(102, 60.0), np.zeros(102), 0, 0, 0)
    shape = phys.EcgShape.draw(rng)
    y = phys.ecg(beats, 10_000, 1000, shape)
    r = beats.inside(2, 8)
    at_r = y[np.rint(1000 * r).astype(int)]
    at_t = y[np.rint(1000 * (r + shape.center[6])).astype(int)]
    assert at_r == pytest.approx(shape.amplitude[2], rel=0.1)
    assert at_t == pytest.approx(shape.amplitude[6], rel=0.1)
    halved = phys.ecg(beats, 10_000, 1000, shape, t_gain=0.5)
    assert halved[np.rint(1000 * (r + shape.center[6])).astype(int)] == pytest.approx(
        at_t / 2, rel=0.05
    )


def test_pulse_follows_the_beat_by_its_delay(rng):
    beats = phys.heartbeats(rng, np.full(302, 70.0), np.zeros(302))
    shape = phys.PpgShape.draw(rng)
    y = phys.ppg(beats, 30_000, 1000, shape)
    for beat in beats.inside(3, 27):
        lag = np.argmax(y[int(1000 * beat) : int(1000 * beat) + 600]) / 1000
        assert shape.delay + shape.rise < lag < shape.delay + 3.5 * shape.rise


@pytest.mark.parametrize("hz", [1.0, 5.0])
def test_bursts_come_at_their_rate(rng, hz):
    envelope = neuro.burst_envelope(rng, 30_000, 500, hz, 0.5, 0.1, 1.0)
    x = neuro.emg(rng, envelope, 500)
    f, p = welch(np.abs(hilbert(x)), 500, nperseg=10_000)
    searched = (f > 0.4) & (f < 12)
    assert f[searched][np.argmax(p[searched])] == pytest.approx(hz, rel=0.15)
    assert envelope.min() == pytest.approx(0.1, abs=1e-6)


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
    content = unpickled(raw / "wesad/S10/S10.pkl")
    assert content["subject"] == "S10"
    chest, wrist, label = content["signal"]["chest"], content["signal"]["wrist"], content["label"]
    seconds = len(label) / 700
    assert label.dtype.kind == "i" and set(np.unique(label)) == {0, 1, 2, 3, 4}
    shapes = {key: x.shape for key, x in chest.items()}
    one = (len(label), 1)
    assert shapes == {
        "ACC": (len(label), 3), "ECG": one, "EMG": one, "EDA": one, "Temp": one, "Resp": one,
    }  # fmt: skip
    assert {key: (len(x) / seconds, x.shape[1]) for key, x in wrist.items()} == {
        "ACC": (pytest.approx(32, rel=1e-3), 3),
        "BVP": (pytest.approx(64, rel=1e-3), 1),
        "EDA": (pytest.approx(4, rel=1e-2), 1),
        "TEMP": (pytest.approx(4, rel=1e-2), 1),
    }
    assert all(np.isfinite(x).all() for x in (*chest.values(), *wrist.values()))
    assert 0.1 < np.ptp(chest["ECG"]) < 20  # mV
    steps = chest["ECG"].astype(float) * 2**16 / 3  # 16 bits over 3 mV
    np.testing.assert_allclose(steps, np.rint(steps), atol=0.01)


def test_wesad_pickle_holds_byte_strings_as_python_2_wrote_them(raw):
    """Python 3 would write them as text, half as long again, and a call that decodes it."""
    path = raw / "wesad/S2/S2.pkl"
    size = sum(x.nbytes for part in unpickled(path)["signal"].values() for x in part.values())
    assert size < path.stat().st_size < 1.2 * size
    assert b"_codecs" not in path.read_bytes()


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


def test_a_subject_depends_on_its_seed_alone(raw, tmp_path):
    simulate("wesad", tmp_path / "wesad", seed=3, subjects=("S10",), length=0.2)
    simulate("fog", tmp_path / "fog", seed=3, subjects=("009", "008"), length=0.25, n_jobs=2)
    simulate("isruc", tmp_path / "isruc", seed=3, subjects=("9",), length=0.2)
    again, before = files(tmp_path), files(raw)
    assert len(again) == 6
    assert [name for name in again if again[name] != before[name]] == []
    simulate("fog", tmp_path / "other", seed=4, subjects=("009",), length=0.25)
    assert files(tmp_path / "other")["009/task_1.txt"] != before["fog/009/task_1.txt"]


SHORT = """
import sys
from biox.data.simulate import simulate
for dataset, subject in (("wesad", "S3"), ("fog", "002"), ("isruc", "5")):
    simulate(dataset, sys.argv[1] + "/" + dataset, seed=1, subjects=[subject], length=0.25)
"""


def test_files_are_equal_on_processors_without_simd(tmp_path):
    """numpy and its BLAS then take other paths, which differ in the last bits of exp, sin and @."""
    simd = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    if not simd:
        pytest.skip("numpy finds no SIMD extensions here")
    plain = {"NPY_DISABLE_CPU_FEATURES": " ".join(simd), "OPENBLAS_CORETYPE": "Prescott"}
    for name, environment in (("here", {}), ("plain", plain)):
        command = [sys.executable, "-c", SHORT, str(tmp_path / name)]
        subprocess.run(command, env=os.environ | environment, check=True)
    here, there = files(tmp_path / "here"), files(tmp_path / "plain")
    assert len(here) == 4 and list(here) == list(there)
    assert [name for name in here if here[name] != there[name]] == []


# States


def test_default_subjects_are_those_of_the_originals():
    names = {name: simulator.SUBJECTS for name, simulator in SIMULATORS.items()}
    assert names["wesad"] == tuple(f"S{k}" for k in (*range(2, 12), *range(13, 18)))
    assert len(names["isruc"]) == 30 and "8" not in names["isruc"]
    assert names["fog"] == tuple(f"{k:03d}" for k in range(1, 13))


def test_wesad_windows_come_in_the_original_proportions():
    counts = {1: 0, 2: 0, 3: 0}
    for seed in range(15):
        labels = wesad.protocol(np.random.default_rng(seed))
        for start in range(0, len(labels) - 600, 50):
            found = np.unique(labels[start : start + 600])
            if len(found) == 1 and found[0] in counts:
                counts[found[0]] += 1
    shares = np.array(list(counts.values())) / sum(counts.values())
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
        track = np.repeat([0, 3], 600)
        eeg = isruc.sleep_eeg(np.random.default_rng(seed), track, 24_000, 1.0)
        wake, deep = band_power(eeg[:, :11_000], 200, 1, 4), band_power(eeg[:, 13_000:], 200, 1, 4)
        ratios.append(np.log(deep / wake).mean())
    assert np.median(ratios) > 0.7


def test_freezing_moves_the_emg_rhythm_from_gait_to_tremor():
    shift = []
    for seed in range(5):
        states = np.repeat([0, 1], 300)
        emg = np.abs(fog.leg_emg(np.random.default_rng(seed), states, 30_000, 1.0))
        fast = [band_power(x, 500, 4, 7).mean() for x in (emg[:, :14_500], emg[:, 15_500:])]
        slow = [band_power(x, 500, 0.5, 1.6).mean() for x in (emg[:, :14_500], emg[:, 15_500:])]
        shift.append(np.log(fast[1] / slow[1]) - np.log(fast[0] / slow[0]))
    assert np.min(shift) > 0.5


# The pretraining corpus


@pytest.mark.parametrize("modality", sorted(KINDS))
def test_corpus_has_finite_windows_and_targets(modality):
    c = corpus(modality, 6, 12, seed=5)
    assert c.signals.shape == (6, len(c.channels), round(12 * c.rate))
    assert c.signals.dtype == c.targets.dtype == np.float32
    assert c.targets.shape == (6, len(c.names))
    assert np.isfinite(c.signals).all() and np.isfinite(c.targets).all()
    assert np.all(c.signals.std(axis=2) > 0)
    longer = corpus(modality, 8, 12, seed=5)
    np.testing.assert_array_equal(longer.signals[:6], c.signals)
    np.testing.assert_array_equal(longer.targets[:6], c.targets)
    assert not np.array_equal(corpus(modality, 6, 12, seed=6).signals, c.signals)


def test_processes_change_nothing():
    one, two = (corpus("emg", 120, 3, seed=5, n_jobs=n) for n in (1, 2))
    np.testing.assert_array_equal(one.signals, two.signals)
    np.testing.assert_array_equal(one.targets, two.targets)


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


def test_moods_of_clips_reach_ratings_and_rates_of_the_heart():
    """Clips move people alike, less than people differ; without an effect they move no signal."""
    moods = dreamer.felt(3)
    assert moods.shape == (18, 3) and abs(moods.mean(0)).max() < 1e-9
    people = [dreamer.person(3, str(s), length=0.4) for s in range(1, 9)]
    scores = np.mean([p["ScoreArousal"][:, 0] for p in people], axis=0)
    assert np.corrcoef(scores, moods[:, 1])[0, 1] > 0.7
    every = np.concatenate([p["ScoreValence"] for p in people])
    assert set(np.unique(every)) == {1, 2, 3, 4, 5} and 0.25 < (every > 3).mean() < 0.6
    quiet = [dreamer.clip_eeg(np.random.default_rng(0), 640, mood, person_traits(), 0.0)
             for mood in (np.ones(3), -np.ones(3))]  # fmt: skip
    np.testing.assert_array_equal(*quiet)


def person_traits():
    traits = dict(reaction=np.ones(3), bands=dict.fromkeys(dreamer.LEVELS, 0.0), alpha=np.ones(14))
    return traits | dict(alpha_hz=10.0, slope=1.2, blinks=5.0, muscle=1.0, level=4200 * np.ones(14))
