"""Conditioning on signals whose result is known; for the released code's see test_windows."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_files import ECG, EEG, EMG, PPG, heart, noise

from biox.backbones import BACKBONES
from biox.data.conditioning import RESAMPLERS, condition, linear
from biox.data.windows import Signal


def one(values, rate, unit="mV"):
    return Signal(np.atleast_2d(values), rate, unit, ("x",))


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


def test_a_signal_too_short_for_the_filters_is_refused():
    for seconds in (0.0, 0.99):
        with pytest.raises(ValueError, match="ecg: expected at least 1 s, found"):
            condition(one(heart(seconds, 250), 250.0), ECG)
    assert condition(one(heart(1, 250), 250.0), ECG).values.shape == (1, 100)
    assert condition(one(heart(1, 64), 64.0), PPG).values.shape == (1, 125)


def test_ecg_fm_gets_twelve_unfiltered_leads_each_of_unit_variance_or_zeros():
    raw = noise("ecg_fm", (12, 5000)) * np.arange(12)[:, None] + 3  # the first lead is constant
    spec = BACKBONES["ecg_fm"].default_spec
    got = condition(Signal(raw, 500.0, "mV", ("lead",) * 12), spec).values
    expected = (raw - raw.mean(1, keepdims=True)) / raw.std(1, keepdims=True).clip(1e-9)
    np.testing.assert_allclose(got, expected, atol=1e-12)
    assert not got[0].any()


@pytest.mark.parametrize("name", BACKBONES)
def test_every_recipe_leaves_its_input_alone(name):
    spec = BACKBONES[name].default_spec
    x = Signal(noise(name, (spec.channels, 6000)), 200.0, "uV", ("x",) * spec.channels)
    before = x.values.copy()
    got = condition(x, spec)
    np.testing.assert_array_equal(x.values, before)
    assert (got.rate, got.unit) == (spec.rate, spec.unit)
