"""Which windows of a raw signal no model should see, and why."""

from collections.abc import Mapping, Sequence

import numpy as np

from biox.data.conditioning import VOLTS
from biox.data.windows import Signal

MAX_CLIPPED = 0.2
"""Largest share of samples at the window's own extreme. Sound recordings stay far below; the most
saturated window among 32 bedside-monitor records (BIDMC 32, ECG) has 0.13."""

MAX_FLAT = 0.3
"""Largest share of samples in runs of equal values that last longer than `FLAT_SECONDS`. The
flattest window among 32 BIDMC and 38 EEGMAT recordings has 0.07."""

FLAT_SECONDS = 1.0

WEAK_ECG = 30e-6
"""Smallest standard deviation of an ECG in volts. Healthy adults at rest: 60 to 170 uV (36 EEGMAT
files); the one lead known to be dead there: 15 uV."""


def bad_windows(
    signals: Mapping[str, Signal], starts: Sequence[float], seconds: float
) -> list[str]:
    """A reason per window, empty for a sound one.

    A window is bad if a channel of any modality holds a value that is not finite, is constant, has
    more than `MAX_FLAT` of its samples in long runs of one value or more than `MAX_CLIPPED` at its
    own minimum or maximum, or is an ECG in volts too weak to hold heart beats. Judged on the raw
    samples, since filters spread a gap.

    Parameters
    ----------
    signals : mapping of str to Signal
        By modality, as recorded.
    starts : sequence of float
        Starts of the windows in seconds.
    seconds : float
        Length of the windows.
    """
    in_runs = {modality: _in_long_runs(signal) for modality, signal in signals.items()}
    reasons = []
    for start in starts:
        found = ""
        for modality, signal in signals.items():
            first = round(start * signal.rate)
            inside = np.s_[:, first : first + round(seconds * signal.rate)]
            found = found or _reason(
                signal.values[inside], in_runs[modality][inside], modality, signal
            )
        reasons.append(found)
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


def _reason(window: np.ndarray, in_runs: np.ndarray, modality: str, signal: Signal) -> str:
    def first(bad: np.ndarray, what: str) -> str:
        return f"{modality} {signal.channels[int(np.argmax(bad))]} {what}" if bad.any() else ""

    finite = np.isfinite(window).all(axis=1)
    if not finite.all():
        return first(~finite, "not finite")
    low, high = window.min(axis=1, keepdims=True), window.max(axis=1, keepdims=True)
    flat = (low == high)[:, 0]
    if flat.any():
        return first(flat, "constant")
    share = np.maximum((window == low).mean(axis=1), (window == high).mean(axis=1))
    weak = np.zeros(len(window), dtype=bool)
    if modality == "ecg" and signal.unit in VOLTS:
        weak = window.std(axis=1) * VOLTS[signal.unit] < WEAK_ECG
    return (
        first(in_runs.mean(axis=1) > MAX_FLAT, "flat")
        or first(share > MAX_CLIPPED, "clipped")
        or first(weak, "too weak")
    )
