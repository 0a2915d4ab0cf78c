"""Conditioning: against the released code's numbers, and against what filters must do."""

from dataclasses import replace
from pathlib import Path

import neurokit2 as nk
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_files import ECG, EEG, EMG, PPG, golden, heart, isruc_ecg, noise, samples, wesad_signals

from biox.backbones import BACKBONES
from biox.data.conditioning import RECIPES, RESAMPLERS, condition, linear
from biox.data.readers import bidmc
from biox.data.windows import Signal, cut


def one(values, rate, unit="mV"):
    return Signal(np.atleast_2d(values), rate, unit, ("x",))


def test_wesad_ecg_and_ppg_equal_the_released_code():
    want = golden("WESAD")
    ecg, bvp = wesad_signals()
    np.testing.assert_allclose(samples(ecg), want["raw_ecg_sample"], atol=1e-12)
    np.testing.assert_allclose(samples(bvp), want["raw_bvp_sample"], atol=1e-12)
    ecg, ppg = condition(one(ecg, 700.0), ECG), condition(one(bvp, 64.0, "a.u."), PPG)
    assert (ecg.values.shape, ppg.values.shape) == ((1, 48000), (1, 60000))
    for position, start in (("first", 30), ("last", 360)):
        for name, x, rate in (("ECG", ecg, 100), ("PPG", ppg, 125)):
            window = x.values[0, start * rate : (start + 60) * rate]
            got = [window.mean(), window.std()]
            np.testing.assert_allclose(
                samples(window), want[f"{position}_{name}_sample"], atol=1e-6
            )
            np.testing.assert_allclose(got, want[f"{position}_{name}_mean_std"], atol=1e-6)


def test_isruc_epochs_equal_the_released_code_and_a_constant_epoch_gives_zeros():
    want, raw = golden("ISRUC"), isruc_ecg()
    np.testing.assert_allclose(samples(raw), want["raw_X2_sample"], atol=1e-12)
    spec = replace(ECG, seconds=30.0)
    got = [condition(one(epoch, 200.0, "a.u."), spec).values[0] for epoch in raw]
    np.testing.assert_allclose(samples(got[0]), want["first_ECG_sample"], atol=1e-6)
    np.testing.assert_allclose(samples(got[11]), want["last_ECG_sample"], atol=1e-6)
    np.testing.assert_array_equal(got[5], np.zeros(3000))
    np.testing.assert_array_equal(want["constant_epoch5_ECG_sample"], np.zeros(64))


@pytest.mark.parametrize(("recipe", "low", "kept", "high"), [
    ("ecg_hubert", None, 8.0, 49.5), ("ppg_papagei", 0.05, 1.5, 40.0),
])  # fmt: skip
def test_filters_keep_the_band_and_remove_the_rest(recipe, low, kept, high):
    t = np.arange(60 * 500) / 500
    spec = replace(ECG if recipe == "ecg_hubert" else PPG, rate=500.0)

    def power_after(stray):
        x = np.sin(2 * np.pi * kept * t) + np.sin(2 * np.pi * stray * t)
        y = condition(one(x, 500.0), spec).values[0, 5000:-5000]
        tones = [
            np.abs(np.mean(y * np.exp(-2j * np.pi * f * t[5000:-5000]))) for f in (stray, kept)
        ]
        return tones[0] / tones[1]

    assert power_after(high * 1.2) < 0.1
    assert power_after(kept * 1.5) > 0.7
    if low:
        assert power_after(low) < 0.05


def test_filtering_is_zero_phase():
    x = np.zeros(5000)
    x[2500] = 1.0
    y = condition(one(x, 500.0), replace(ECG, rate=500.0)).values[0]
    assert y.argmax() == 2500
    np.testing.assert_allclose(y[2400:2500], y[2501:2601][::-1], atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    slope=st.floats(-5, 5),
    offset=st.floats(-5, 5),
    n=st.integers(50, 400),
    rates=st.tuples(st.sampled_from([64, 125, 200, 500, 700]), st.sampled_from([100, 130, 200])),
)
def test_linear_resampling_keeps_straight_lines_and_end_points(slope, offset, n, rates):
    x = (offset + slope * np.arange(n))[None]
    y = linear(x, *map(float, rates))[0]
    assert abs(len(y) - n * rates[1] / rates[0]) < 1
    np.testing.assert_allclose(y, np.linspace(x[0, 0], x[0, -1], len(y)), atol=1e-9)


def test_only_the_published_resampling_aliases():
    t = np.arange(20 * 500) / 500
    x = one(np.sin(2 * np.pi * 90 * t), 500.0)  # above the Nyquist rate of the output, 65 Hz
    spec = replace(EMG, channels=1)
    raw = {name: RESAMPLERS[name](x.values, 500.0, 130.0)[0, 200:-200].std() for name in RESAMPLERS}
    assert raw["linear"] > 0.3
    assert raw["polyphase"] < 0.01 and raw["fourier"] < 0.01
    assert condition(x, spec).values.std() == pytest.approx(1.0)


@pytest.mark.parametrize("unit, factor", [("uV", 1.0), ("mV", 1e3), ("V", 1e6)])
def test_eeg_comes_out_in_the_unit_of_the_backbone(unit, factor):
    x = Signal(noise("eeg", (6, 600)), 200.0, unit, tuple("abcdef"))
    np.testing.assert_allclose(condition(x, EEG).values, x.values * factor)
    hundred = condition(x, replace(EEG, unit="uV/100"))
    np.testing.assert_allclose(hundred.values, x.values * factor / 100)
    assert hundred.unit == "uV/100"


def test_wrong_signals_are_named():
    x = Signal(noise("eeg", (6, 600)), 200.0, "furlong", tuple("abcdef"))
    with pytest.raises(ValueError, match="EEG: expected a unit out of .*, found 'furlong'"):
        condition(x, EEG)
    x.values[2, 5] = np.nan
    with pytest.raises(ValueError, match="1 that are not"):
        condition(replace(x, unit="uV"), EEG)
    with pytest.raises(
        ValueError, match=r"ecg: expected 1 channels for ecg_hubert, found 6 \(a, b"
    ):
        condition(x, ECG)


@pytest.mark.parametrize("seconds", [0.0, 0.4, 0.99])
def test_a_signal_too_short_for_the_filters_is_refused(seconds):
    with pytest.raises(ValueError, match="ecg: expected at least 1 s, found"):
        condition(one(heart(5, 250)[: int(seconds * 250)], 250.0), ECG)
    assert condition(one(heart(1, 250), 250.0), ECG).values.shape == (1, 100)
    assert condition(one(heart(1, 64), 64.0), PPG).values.shape == (1, 125)


def test_ecg_fm_gets_twelve_unfiltered_leads_each_of_unit_variance():
    raw = noise("ecg_fm", (12, 5000)) * np.arange(1, 13)[:, None] + 3
    leads = tuple(f"lead {i}" for i in range(12))
    spec = BACKBONES["ecg_fm"].default_spec
    got = condition(Signal(raw, 500.0, "mV", leads), spec).values
    expected = (raw - raw.mean(1, keepdims=True)) / raw.std(1, keepdims=True)
    np.testing.assert_allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_recipe_leaves_its_input_alone(name):
    spec = BACKBONES[name].default_spec
    x = Signal(noise(name, (spec.channels, 6000)), 200.0, "uV", ("x",) * spec.channels)
    before = x.values.copy()
    got = condition(x, spec)
    np.testing.assert_array_equal(x.values, before)
    assert (got.rate, got.unit) == (spec.rate, spec.unit)


def test_every_recipe_belongs_to_a_backbone():
    assert set(RECIPES) == {kind.default_spec.conditioning for kind in BACKBONES.values()}


@pytest.mark.parametrize("patient", ["s01182", "s08915", "s12531"])
def test_real_heart_beats_survive_conditioning(patient):
    """Beats counted in conditioned ECG and PPG agree with the bedside monitor."""
    folder = Path(__file__).parents[1] / "data" / "recordings" / "bidmc"
    (recording,) = bidmc.read(folder, patient)
    specs = {"ecg": replace(ECG, seconds=30.0), "ppg": replace(PPG, seconds=30.0)}
    windows = cut(recording, specs, 30.0, 60.0, bidmc.CLASSES)
    numerics = pd.read_csv(folder / f"{recording.name}_Numerics.csv", skipinitialspace=True)
    errors = {"ecg": [], "ppg": []}
    for i, start in enumerate(windows.starts):
        inside = numerics["Time [s]"].between(start, start + 29.5)
        ecg, ppg = (windows.signals[name][i, 0].astype(float) for name in ("ecg", "ppg"))
        beats = {
            "ecg": nk.ecg_peaks(ecg, sampling_rate=100)[1]["ECG_R_Peaks"] / 100,
            "ppg": nk.ppg_findpeaks(ppg, sampling_rate=125)["PPG_Peaks"] / 125,
        }
        for name, times in beats.items():
            errors[name].append(60 / np.median(np.diff(times)) - numerics["HR"][inside].mean())
    assert np.median(np.abs(errors["ecg"])) < 3
    assert np.median(np.abs(errors["ppg"])) < 3
