"""Pretraining windows: targets against neurokit2 and Welch spectra, independence of windows."""

import numpy as np
import pytest
from rates import rate_by_neurokit
from scipy.signal import welch

from biox.data.corpus import KINDS, corpus
from biox.data.neurophysiology import BANDS


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
    assert c.channels[:2] == ("Fp1", "Fp2")
    known = dict(zip(c.names, c.targets.T, strict=True))
    for band in ("theta", "alpha"):
        low, high = BANDS[band]
        f, p = welch(c.signals, c.rate, nperseg=800)
        measured = np.log(p[..., (f >= low) & (f < high)].mean(1).sum(-1) * (f[1] - f[0]))
        assert np.corrcoef(measured, known[f"log_{band}_uv2"])[0, 1] > 0.9
        assert np.median(measured - known[f"log_{band}_uv2"]) == pytest.approx(0, abs=0.4)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"modality": "eog", "n": 1, "seconds": 30}, "expected a modality"),
        ({"modality": "ppg", "n": 1, "seconds": 30, "channels": 2}, "expected 1 channel"),
        ({"modality": "ecg", "n": 1, "seconds": 2}, "expected 10 s or more"),
    ],
)
def test_corpus_names_what_is_wrong(settings_, message):
    with pytest.raises(ValueError, match=message):
        corpus(**settings_)
