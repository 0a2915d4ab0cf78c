"""Simulated EEG and EMG, and how a subject's state moves them and the heart.

EEG is a 1/f background plus oscillations in the classical bands, mixed so that neighbouring
channels agree; EMG is band-limited noise whose amplitude follows a rhythm. Tracks and noise come
from `biox.data.simulate.physiology`.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.random import Generator

from biox.data.simulate import physiology as phys
from biox.data.simulate.physiology import CONTROL, Track, at, wander

BANDS = {
    "delta": (0.5, 4.0),
    "theta": (4.0, 8.0),
    "alpha": (8.0, 13.0),
    "sigma": (12.0, 15.0),
    "beta": (15.0, 30.0),
    "gamma": (30.0, 45.0),
}
"""EEG bands in Hz; sigma holds the sleep spindles."""


def eeg(
    rng: Generator,
    channels: int,
    n: int,
    rate: float,
    levels: Mapping[str, Track | np.ndarray],
    background: float = 8.0,
    slope: float = 1.0,
    coherence: float = 0.5,
    burstiness: float = 0.4,
    alpha_hz: float = 10.0,
    peaks: Mapping[str, np.ndarray] | None = None,
    dtype: type = np.float32,
) -> np.ndarray:
    """EEG in uV, [channels, n]: 1/f background plus band oscillations; `dtype` as in `wander`.

    Parameters
    ----------
    levels : mapping of str to float or ndarray
        By band of `BANDS`: standard deviation of the oscillation in uV, as constant or track.
    background, slope : float
        Standard deviation of the background in uV, and its exponent: power goes with f**-slope.
    coherence, burstiness : float
        Share of each component's variance that all channels have in common, 0 to 1; and spread of
        the logarithm of the oscillations' envelopes (0: steady).
    alpha_hz : float
        Peak frequency of alpha, which is narrow (1.2 Hz) where the other bands are filled.
    peaks : mapping of str to ndarray, [channels], optional
        Topography: gain of a band in each channel.
    """
    common, own = np.float32(np.sqrt(coherence)), np.float64(np.float32(np.sqrt(1 - coherence)))

    def mixed(amplitude: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        noise = phys.shaped_noise(rng, (channels + 1, n), rate, amplitude)
        # A product of matrices in float32 would be rounded differently on different processors.
        return (np.float64(common * noise[0]) + own * noise[1:]).astype(np.float32)

    y = background * mixed(lambda f: np.where(f < 70, np.maximum(f, 0.3) ** (-slope / 2), 0))
    grid = int(n / rate * CONTROL) + 2
    for band, level in levels.items():
        low, high = BANDS[band]
        center, spread = (low + high) / 2, (high - low) / 2.7
        if band == "alpha":
            center, spread = alpha_hz, 1.2
        wave = mixed(lambda f, c=center, s=spread: np.exp(-0.5 * ((f - c) / s) ** 2))
        # Variance of a lognormal envelope exp(b x) is exp(2 b^2): divided out, levels stay true.
        burst = np.exp(burstiness * wander(rng, grid, 0.4, dtype) - burstiness**2)
        envelope = at(level, n, rate) * at(burst, n, rate)
        topography = (peaks or {}).get(band, np.ones(channels))
        y += topography[:, None] * envelope * wave
    return y


def spindles(rng: Generator, n: int, rate: float, per_minute: Track) -> np.ndarray:
    """Sleep spindles of amplitude about 1: bursts of 12 to 15 Hz lasting 0.5 to 1.5 s, [n]."""
    grid = int(n / rate * CONTROL) + 2
    envelope = at(phys.bumps(rng, grid, at(per_minute, grid, CONTROL), 0.9), n, rate)
    return envelope * np.sin(2 * np.pi * rng.uniform(12.2, 14.5) * np.arange(n) / rate)


def blinks(rng: Generator, n: int, rate: float, per_minute: Track) -> np.ndarray:
    """Eye blinks of height about 1: smooth bumps of a third of a second, [n]."""
    grid = int(n / rate * CONTROL) + 2
    starts = np.flatnonzero(rng.random(grid) < at(per_minute, grid, CONTROL) / (60 * CONTROL))
    pulses = np.zeros(n)
    keep = np.minimum((starts * rate / CONTROL).astype(int), n - 1)
    pulses[keep] = rng.uniform(0.6, 1.4, len(keep))
    t = np.arange(-0.4, 0.4, 1 / rate)
    return np.convolve(pulses, np.exp(-0.5 * (t / 0.07) ** 2), mode="same")


def burst_envelope(
    rng: Generator,
    n: int,
    rate: float,
    hz: Track,
    duty: Track,
    tonic: Track,
    depth: Track,
    dtype: type = np.float32,
) -> np.ndarray:
    """Envelope of rhythmic muscle activity, [n]: `tonic` between bursts, plus `depth` in them.

    There are `hz` bursts a second (gait about 1, trembling 3 to 8); each fills the share `duty` of
    its cycle. For `dtype` see `biox.data.simulate.physiology.wander`.
    """
    grid = int(n / rate * CONTROL) + 2
    rhythm = at(hz, grid, CONTROL) * np.exp(0.06 * wander(rng, grid, 1.0, dtype))
    cycle = at(rng.random() + np.cumsum(rhythm) / CONTROL, n, rate)
    away = np.abs((cycle % 1) - 0.5) / (at(duty, n, rate) / 2)
    burst = np.cos(np.pi / 2 * np.clip(away, 0, 1)) ** 1.5
    # Bursts differ in height from cycle to cycle.
    heights = np.exp(0.2 * rng.standard_normal(int(cycle[-1]) + 2))
    burst *= heights[cycle.astype(int)]
    return at(tonic, n, rate) + at(depth, n, rate) * burst


def emg(
    rng: Generator, envelope: np.ndarray, rate: float, low: float = 30.0, high: float = 150.0
) -> np.ndarray:
    """EMG in the unit of `envelope`, [n]: noise between `low` and `high` Hz times the envelope."""
    return envelope * phys.band_noise(rng, len(envelope), rate, low, high)


# --- states ---------------------------------------------------------------------------------------


def state_track(states: np.ndarray, effects: Mapping[int, float], lag: float = 4.0) -> np.ndarray:
    """Effect of a state at every instant of the control grid, reached within about `lag` seconds.

    `states` is on the control grid; a state that `effects` does not name has effect 0.
    """
    steps = np.zeros(len(states))
    for state, effect in effects.items():
        steps[states == state] = effect
    kernel = np.exp(-0.5 * (np.arange(-2 * lag, 2 * lag, 1 / CONTROL) / lag) ** 2)
    padded = np.pad(steps, len(kernel), mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), mode="same")[len(kernel) : -len(kernel)]


def reaction(
    rng: Generator,
    states: np.ndarray,
    effect: float,
    table: Mapping[int, tuple[float, float]],
    lag: float = 4.0,
) -> np.ndarray:
    """One subject's `state_track`: a reaction to each state, normal with the (mean, sd) given."""
    drawn = {state: effect * rng.normal(mean, sd) for state, (mean, sd) in table.items()}
    return state_track(states, drawn, lag)
