"""From a signal as recorded to the input a backbone was trained on.

The recipe is the one that the backbone's `InputSpec.conditioning` names. Steps and constants are
those of the released BioX-Bridge code (paper, section 4.1 and appendix; `make_WESAD.py`,
`make_ISRUC.py` and `make_FOG.py` in its `dataset_preprocessing`), including its linear resampling
without an anti-alias filter (deviation 15; `resampling` chooses).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import scipy  # scipy.signal is slow to import, and comes when it is first used

if TYPE_CHECKING:
    from biox.backbones.base import InputSpec
    from biox.data.windows import Marked, Signal

Resampler = Callable[[np.ndarray, float, float], np.ndarray]

VOLTS = {"V": 1.0, "mV": 1e-3, "uV/100": 1e-4, "uV": 1e-6, "µV": 1e-6, "nV": 1e-9}
"""Size in volts of the units a signal may come in."""

MIN_SECONDS = 1.0
"""Shortest signal to condition; the filters need a run-up (the ECG's 0.9 s)."""

ECG_FILTER_RATE = 500.0
"""Rate in Hz at which the ECG is filtered."""

MAX_SHIFT = 0.01
"""Seconds by which resampling may move a sample, whatever the rates and the duration."""


def n_resampled(samples: int, rate: float, new_rate: float) -> int:
    """Whole samples that fit the same duration at another rate."""
    return int(np.floor(samples * new_rate / rate + 1e-9))


def linear(x: np.ndarray, rate: float, new_rate: float) -> np.ndarray:
    """Resample [channels, samples] by linear interpolation; first and last samples coincide.

    As published. That moves the last sample by up to two sampling intervals: see `condition`.
    """
    if rate == new_rate:
        return x
    old = np.arange(x.shape[1])
    new = np.linspace(0, x.shape[1] - 1, n_resampled(x.shape[1], rate, new_rate))
    return np.stack([np.interp(new, old, channel) for channel in x])


def interpolated(x: np.ndarray, rate: float, new_rate: float) -> np.ndarray:
    """Resample [channels, samples] by linear interpolation, each sample at its own time."""
    new = np.arange(n_resampled(x.shape[1], rate, new_rate)) * (rate / new_rate)
    return np.stack([np.interp(new, np.arange(x.shape[1]), channel) for channel in x])


def polyphase(x: np.ndarray, rate: float, new_rate: float) -> np.ndarray:
    """Resample [channels, samples] with an anti-alias filter (`scipy.signal.resample_poly`).

    Where the ratio of rates is no fraction of small numbers, such as 499.907 to 200 Hz, the nearest
    one that is, four samples for each, and straight lines between them.
    """
    n = n_resampled(x.shape[1], rate, new_rate)
    ratio = Fraction(new_rate / rate).limit_denominator(1000)
    x = scipy.signal.resample_poly(x, ratio.numerator, ratio.denominator, axis=1, padtype="line")
    if abs(float(ratio) * rate / new_rate - 1) * n / new_rate > 0.1 * MAX_SHIFT:
        x = scipy.signal.resample_poly(x, 4, 1, axis=1, padtype="line")
        x = np.pad(x, ((0, 0), (0, 4)), mode="edge")
        x = interpolated(x, 4 * rate * float(ratio), new_rate)
    return x[:, :n]


def fourier(x: np.ndarray, rate: float, new_rate: float) -> np.ndarray:
    """Resample [channels, samples] in the frequency domain (`scipy.signal.resample`)."""
    return scipy.signal.resample(x, n_resampled(x.shape[1], rate, new_rate), axis=1)


RESAMPLERS: dict[str, Resampler] = {"linear": linear, "polyphase": polyphase, "fourier": fourier}


def standardise(x: np.ndarray, used: np.ndarray | slice = np.s_[:]) -> np.ndarray:
    """Each channel minus its mean, over its standard deviation; a constant becomes exact zeros.

    Both are of the samples `used`, all by default.
    """
    centred = x - x[:, used].mean(axis=1, keepdims=True)
    spread = x[:, used].std(axis=1, keepdims=True)
    constant = spread <= 1e-9 * np.abs(x).max(axis=1, keepdims=True)
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, spread))


def ecg_hubert(signal: Signal, spec: InputSpec, resample: Resampler) -> np.ndarray:
    """500 Hz, zero-phase FIR band-pass 0.05-47 Hz of order 150, to the model's rate."""
    x = resample(signal.values, signal.rate, ECG_FILTER_RATE)
    taps = scipy.signal.firwin(151, [0.05, 47], pass_zero=False, fs=ECG_FILTER_RATE)
    x = scipy.signal.filtfilt(taps, [1.0], x, axis=1)
    return resample(x, ECG_FILTER_RATE, spec.rate)


def ppg_papagei(signal: Signal, spec: InputSpec, resample: Resampler) -> np.ndarray:
    """FFT resampling, zero-phase Chebyshev-I band-pass 0.5-12 Hz (order 4, 0.5 dB)."""
    x = fourier(signal.values, signal.rate, spec.rate)
    sos = scipy.signal.cheby1(4, 0.5, [0.5, 12], btype="bandpass", fs=spec.rate, output="sos")
    return scipy.signal.sosfiltfilt(sos, x, axis=1)


def eeg_labram(signal: Signal, spec: InputSpec, resample: Resampler) -> np.ndarray:
    """The model's rate and its unit; no filter (the sources are filtered already)."""
    if signal.unit not in VOLTS:
        raise ValueError(f"EEG: expected a unit out of {sorted(VOLTS)}, found {signal.unit!r}")
    factor = VOLTS[signal.unit] / VOLTS[spec.unit]
    return resample(signal.values, signal.rate, spec.rate) * factor


def ecg_cbramod(signal: Signal, spec: InputSpec, resample: Resampler) -> np.ndarray:
    """The model's rate, zero-phase band-pass 0.5-40 Hz, one scale for all leads.

    So their proportions stay, and with them the axis and Einthoven's relations.
    """
    x = resample(signal.values, signal.rate, spec.rate)
    sos = scipy.signal.butter(2, [0.5, 40], "bandpass", fs=spec.rate, output="sos")
    x = scipy.signal.detrend(scipy.signal.sosfiltfilt(sos, x, axis=1), type="constant")
    return standardise(x.reshape(1, -1)).reshape(x.shape)


def emg_normwear(signal: Signal, spec: InputSpec, resample: Resampler) -> np.ndarray:
    """The model's rate; the scalogram is taken in the model's stem."""
    return resample(signal.values, signal.rate, spec.rate)


RECIPES: dict[str, Callable[[Signal, InputSpec, Resampler], np.ndarray]] = {
    "ecg_hubert": ecg_hubert,
    "ppg_papagei": ppg_papagei,
    "eeg_labram": eeg_labram,
    "emg_normwear": emg_normwear,
    "ecg_ecgfm": emg_normwear,  # rate, no filter (fairseq-signals, preprocess/ecg)
    "eeg_cbramod": eeg_labram,  # rate and unit
    "ecg_cbramod": ecg_cbramod,
}
Z_SCORED = {"ecg_hubert", "ppg_papagei", "emg_normwear", "ecg_ecgfm"}
"""Recipes that end with `standardise`."""


def condition(
    signal: Signal,
    spec: InputSpec,
    resampling: str = "linear",
    marked: Sequence[Marked] = (),
    z_scored: bool = True,
) -> Signal:
    """Bring a signal to the rate, unit and filtering that `spec` asks for.

    Parameters
    ----------
    signal : Signal
        A whole recording, or one window where the source is conditioned window by window.
    spec : InputSpec
    resampling : {"linear", "polyphase", "fourier"}
        ``linear`` is the released code's; the others do not alias. PPG is always ``fourier``.
        Samples move by `MAX_SHIFT` at most.
    marked : sequence of Marked
        Stretches that z-scores leave out, where `signal` is a whole recording.
    z_scored : bool
        False leaves z-scores to `biox.data.splits.standardise_stretches`.

    Returns
    -------
    Signal
        [channels, samples at spec.rate], float64, in spec.unit.

    Raises
    ------
    ValueError
        Wrong number of channels, an unknown unit, a signal shorter than `MIN_SECONDS`, or values
        that are not finite.
    """
    if len(signal.channels) != spec.channels:
        raise ValueError(
            f"{spec.modality}: expected {spec.channels} channels for {spec.conditioning}, "
            f"found {len(signal.channels)} ({', '.join(signal.channels)})"
        )
    if signal.seconds < MIN_SECONDS:
        raise ValueError(
            f"{spec.modality}: expected at least {MIN_SECONDS:g} s, found {signal.seconds:.3g} s"
        )
    if broken := int((~np.isfinite(signal.values)).sum()):
        raise ValueError(f"{spec.modality}: expected finite values, found {broken} that are not")
    resample, n = RESAMPLERS[resampling], signal.values.shape[1]
    shift = (n - 1) / signal.rate - (n_resampled(n, signal.rate, spec.rate) - 1) / spec.rate
    if resample is linear and abs(shift) > MAX_SHIFT + 1e-6:
        resample = interpolated
    signal = replace(signal, values=np.asarray(signal.values, dtype=np.float64))
    values = RECIPES[spec.conditioning](signal, spec, resample)
    if spec.conditioning in Z_SCORED and z_scored:
        used = np.ones(values.shape[1], dtype=bool)
        for start, stop, _ in marked:
            used[max(0, round(start * spec.rate)) : max(0, round(stop * spec.rate))] = False
        values = standardise(values, np.s_[:] if used.all() or not used.any() else used)
    return replace(signal, values=values, rate=spec.rate, unit=spec.unit)
