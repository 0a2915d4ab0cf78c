"""Is a signal what it says it is, and which of its windows are sound.

Every signal passes `checked` before it is conditioned, whichever reader brought it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy

from biox.data.conditioning import VOLTS

if TYPE_CHECKING:
    from biox.data.windows import Marked, Signal

log = logging.getLogger(__name__)


class Range(NamedTuple):
    """Amplitudes of a modality in volts: the lowest and highest possible, a usual one, and whence.

    Of the standard deviations of pieces of `PIECE` seconds, the largest is compared with `low`, so
    that rare events suffice, and the median with `high`, so that artefacts do not count.
    """

    low: float
    usual: float
    high: float
    source: str


RANGES = {
    "eeg": Range(
        0.5e-6, 20e-6, 700e-6,
        "below 2 uV peak to peak no activity of the brain is assumed (ACNS guideline 3, 2016); "
        "about 100 uV on the scalp, 1-2 mV on the brain itself (Malmivuo and Plonsey, "
        "Bioelectromagnetism, 1995, chapter 13)",
    ),
    "ecg": Range(
        5e-6, 150e-6, 5e-3,
        "electrocardiographs take 10 mV peak to peak (IEC 60601-2-25); 60-170 uV is usual, 15 uV "
        "the weakest in 36 files of EEGMAT",
    ),
    "emg": Range(
        0.2e-6, 50e-6, 5e-3,
        "0-10 mV peak to peak or 0-1.5 mV rms on the skin (De Luca, Surface electromyography: "
        "detection and recording, 2002); amplifiers have some 1 uV of noise",
    ),
}  # fmt: skip
"""By modality. PPG has no unit to be judged by."""

PIECE = 2.0
MAX_WANDER, MAX_LEVEL = 10.0, 100e-6
"""Where a model reads volts: how far a level may wander between pieces, in amplitudes; and a level
in volts below which nothing is done."""

CAUSES = {
    6: "microvolts that are called volts",
    3: "a wrong unit or gain (mV called V, uV called mV)",
    -3: "a wrong unit or gain (V called mV, mV called uV)",
    -6: "volts that are called microvolts",
}
"""Likely reasons, by the power of ten of an amplitude over the usual one."""


def amplitude(signal: Signal) -> np.ndarray:
    """Median and largest standard deviation, level and its wander, [4, channels], in the unit.

    Of finite pieces; the level is the median of their means, its wander the median distance of the
    means from it. NaN if no piece is finite.
    """
    n = max(1, min(signal.values.shape[1], round(PIECE * signal.rate)))
    pieces = signal.values[:, : signal.values.shape[1] // n * n]
    pieces = pieces.reshape(len(pieces), -1, n)
    means, spreads = pieces.mean(axis=2, dtype=np.float64), pieces.std(axis=2, dtype=np.float64)
    known = np.isfinite(spreads).all(axis=0)
    if not known.any():
        return np.full((4, len(pieces)), np.nan)
    level = np.median(means[:, known], axis=1)
    wander = np.median(np.abs(means[:, known] - level[:, None]), axis=1)
    spreads = spreads[:, known]
    return np.stack([np.median(spreads, axis=1), spreads.max(axis=1), level, wander])


def implausible(signal: Signal, modality: str) -> str:
    """Say why an amplitude is none of its modality, and the likely cause; nothing if it is one."""
    if signal.unit not in VOLTS or modality not in RANGES:
        return ""
    low, usual, high, _ = RANGES[modality]
    usually, most, _, _ = amplitude(signal) * VOLTS[signal.unit]
    wrong = (most < low) | (usually > high)
    if not wrong.any():
        return ""
    i = int(np.argmax(wrong))
    volts = max(usually[i] if usually[i] > high else most[i], 1e-30)
    power = np.log10(volts / usual)
    nearest = min(CAUSES, key=lambda known: abs(known - power))
    cause = CAUSES[nearest] if abs(nearest - power) < 1 else "a dead or wrong channel, or a gain"
    return (
        f"{modality} {signal.channels[i]}: expected an amplitude (standard deviation) of "
        f"{low * 1e6:g} to {high * 1e6:g} uV, found {volts * 1e6:.3g} uV; likely {cause}"
    )


def checked(signal: Signal, modality: str, where: str, absolute: bool) -> Signal:
    """Let a plausible signal pass; take off a level that a model of volts must not see.

    Where a model reads volts (`absolute`), a ValueError says that the amplitude is implausible or
    the level wanders; one that reads z-scores gets such a signal, with a warning. `where` is
    recording and subject, for the sentence.
    """
    text = implausible(signal, modality)
    if text and absolute:
        raise ValueError(f"{where}: {text}")
    if text:
        log.warning("%s: %s", where, text)
    if not absolute or signal.unit not in VOLTS:
        return signal
    size, _, level, wander = amplitude(signal)
    least = MAX_LEVEL / VOLTS[signal.unit]
    wild, off = wander > np.maximum(MAX_WANDER * size, least), abs(level) > np.maximum(size, least)
    if wild.any():
        i = int(np.argmax(wild))
        raise ValueError(
            f"{where}: {modality} {signal.channels[i]}: expected a steady level, found one that "
            f"wanders by {wander[i]:.3g} {signal.unit} around a signal of {size[i]:.3g}; likely an "
            "amplifier without high-pass: filter the file first"
        )
    if not off.any():
        return signal
    found = ", ".join(f"{level[i]:.6g} from {signal.channels[i]}" for i in np.flatnonzero(off))
    log.warning("%s: level taken off, in %s: %s", where, signal.unit, found)
    return replace(signal, values=signal.values - np.where(off, level, 0)[:, None])


def beats_per_minute(signal: Signal, modality: str) -> float:
    """Median heart rate of an ECG or PPG, for a person to compare; NaN if there are no beats.

    Peaks of the squared slope of QRS complexes (5-15 Hz, Pan and Tompkins 1985) or pulses.
    """
    x = np.nan_to_num(signal.values[0], nan=np.nanmedian(signal.values[0]))
    band, width = ((5.0, 15.0), 0.12) if modality == "ecg" else ((0.5, 5.0), 0.3)
    band = np.minimum(band, 0.45 * signal.rate)
    sos = scipy.signal.butter(2, band, "band", fs=signal.rate, output="sos")
    slope = np.diff(scipy.signal.sosfiltfilt(sos, x))
    n = max(1, round(width * signal.rate))
    energy = np.convolve(slope.clip(min=0 if modality == "ppg" else None) ** 2, np.ones(n) / n)
    pieces = np.array_split(energy, max(1, round(signal.seconds / 2)))
    height = 0.3 * np.median([piece.max() for piece in pieces])
    peaks, _ = scipy.signal.find_peaks(energy, height, distance=max(1, 0.25 * signal.rate))
    return float(60 * signal.rate / np.median(np.diff(peaks))) if len(peaks) > 2 else np.nan


# --- windows --------------------------------------------------------------------------------------

MAX_CLIPPED = 0.2
"""Largest share of samples at the window's own extreme. Sound recordings stay far below; the most
saturated window among 32 bedside-monitor records (BIDMC 32, ECG) has 0.13."""

MAX_FLAT = 0.3
"""Largest share of samples in runs of equal values that last longer than `FLAT_SECONDS`. The
flattest window among 32 BIDMC and 38 EEGMAT recordings has 0.07."""

FLAT_SECONDS = 1.0

NO_VALUE, ENDS = (0.0, -1.0), (32767.0, -32768.0)
"""What monitors and recorders write where they measure nothing. 0 and -1 make a window bad if they
last for more than `FLAT_SECONDS`, the ends of 16 bits always."""

WEAK_ECG = 30e-6
"""Smallest standard deviation of an ECG in volts. Healthy adults at rest: 60 to 170 uV (36 EEGMAT
files); the one lead known to be dead there: 15 uV."""


def bad_windows(
    signals: Mapping[str, Signal],
    starts: Sequence[float],
    seconds: float,
    marked: Sequence[Marked] = (),
) -> list[str]:
    """A reason per window why no model should see it, empty for a sound one.

    A window is bad if a channel of any modality holds a value that is not finite, is constant, has
    more than `MAX_FLAT` of its samples in long runs of one value or more than `MAX_CLIPPED` at its
    own minimum or maximum, shows a code for 'no value' for long, or is an ECG in volts too weak to
    hold heart beats; or if it touches a marked stretch. Judged on the raw samples, since filters
    spread a gap. `signals` are by modality; `starts` and `seconds` are those of the windows.
    """
    reasons, starts = [""] * len(starts), np.asarray(starts)
    for start, stop, why in marked:
        for i in np.flatnonzero((starts < stop) & (starts + seconds > start)):
            reasons[i] = why
    for modality, signal in signals.items():
        in_runs, no_value = _in_long_runs(signal), np.isin(signal.values, ENDS)
        no_value[in_runs] |= np.isin(signal.values[in_runs], NO_VALUE)
        for i, start in enumerate(starts):
            first = round(start * signal.rate)
            inside = np.s_[:, first : first + round(seconds * signal.rate)]
            window = signal.values[inside], in_runs[inside], no_value[inside]
            reasons[i] = reasons[i] or _reason(*window, modality, signal)
    return reasons


def _in_long_runs(signal: Signal) -> np.ndarray:
    """Which samples, [channels, samples], stand in equal values for more than `FLAT_SECONDS`."""
    found = np.zeros(signal.values.shape, dtype=bool)
    for channel, mask in zip(signal.values, found, strict=True):
        edges = np.flatnonzero(channel[1:] != channel[:-1]) + 1
        edges = np.concatenate([[0], edges, [len(channel)]])
        for i in np.flatnonzero(np.diff(edges) > FLAT_SECONDS * signal.rate):
            mask[edges[i] : edges[i + 1]] = True
    return found


def _reason(
    window: np.ndarray, in_runs: np.ndarray, no_value: np.ndarray, modality: str, signal: Signal
) -> str:
    def first(bad: np.ndarray, what: str) -> str:
        return f"{modality} {signal.channels[int(np.argmax(bad))]} {what}" if bad.any() else ""

    low, high = window.min(axis=1, keepdims=True), window.max(axis=1, keepdims=True)
    broken = ~np.isfinite(window).all(axis=1)
    if broken.any() or (low == high).any():
        return first(broken, "not finite") or first((low == high)[:, 0], "constant")
    share = np.maximum((window == low).mean(axis=1), (window == high).mean(axis=1))
    weak = np.zeros(len(window), dtype=bool)
    if modality == "ecg" and signal.unit in VOLTS:
        weak = window.std(axis=1) * VOLTS[signal.unit] < WEAK_ECG
    return (
        first(in_runs.mean(axis=1) > MAX_FLAT, "flat")
        or first(no_value.any(axis=1), "without a value")
        or first(share > MAX_CLIPPED, "clipped")
        or first(weak, "too weak")
    )
