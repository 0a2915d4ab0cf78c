"""Simulated physiology: noise, slow tracks, heartbeats, and the ECG and PPG that share them.

Every generator takes a numpy `Generator` first (where it draws anything) and works on whole arrays.
Slowly varying quantities (heart rate, respiration, gains) are tracks on one grid of `CONTROL` Hz;
`at` interpolates a track to a signal's own rate. Shapes follow textbook physiology: ECG as a sum of
Gaussian waves around each beat (the idea of McSharry et al. 2003), PPG as a systolic and a
diastolic wave (two-component pulse decomposition). Brain and muscle are in `neurophysiology`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.random import Generator
from scipy.fft import irfft, next_fast_len, rfftfreq

CONTROL = 10.0
"""Rate of the control grid, on which slow tracks are sampled, in Hz."""

MAINS_HZ = 50.0

Track = float | np.ndarray
"""A constant, or values on the control grid."""


def shaped_noise(
    rng: Generator,
    shape: int | tuple[int, ...],
    rate: float,
    amplitude: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Gaussian noise [..., time] of expected variance 1 and a given amplitude spectrum.

    That is ``amplitude(f)``, in any unit, at frequencies f in Hz (but 0: there is no offset).
    """
    *lead, n = np.atleast_1d(shape)
    m = next_fast_len(int(n), real=True)
    gain = np.array(amplitude(rfftfreq(m, 1 / rate)[1:]), float)
    used = np.flatnonzero(gain > 1e-3 * gain.max())
    start, stop = used[0], used[-1] + 1
    gain = gain[start:stop] * m / (2 * np.sqrt(np.sum(gain[start:stop] ** 2)))
    spectrum = np.zeros((*lead, m // 2 + 1), np.complex64)
    draws = rng.standard_normal((*lead, stop - start, 2), dtype=np.float32)
    spectrum[..., start + 1 : stop + 1] = draws.view(np.complex64)[..., 0] * gain
    return irfft(spectrum, m, axis=-1, overwrite_x=True)[..., :n]


def band_noise(
    rng: Generator, shape: int | tuple[int, ...], rate: float, low: float, high: float
) -> np.ndarray:
    """Noise of variance 1 between `low` and `high` Hz, with shoulders of a tenth of the width."""

    def amplitude(f: np.ndarray) -> np.ndarray:
        outside = np.maximum(np.maximum(low - f, f - high), 0)
        return np.exp(-0.5 * (outside / (0.1 * (high - low))) ** 2)

    return shaped_noise(rng, shape, rate, amplitude)


def wander(rng: Generator, n: int, seconds: float, dtype: type = np.float32) -> np.ndarray:
    """Smooth random track on the control grid: variance 1, time scale `seconds`.

    Processors differ in the exponential of a float32 by more than a recorder's step: the simulators
    take that of a float64. The corpus keeps float32, which the weights in git were trained on.
    """
    # The extra length keeps the two ends of a track from meeting (the noise is periodic).
    length = n + int(4 * seconds * CONTROL)
    track = shaped_noise(rng, length, CONTROL, lambda f: np.exp(-0.5 * (f * 2 * seconds) ** 2))
    return track[:n].astype(dtype)


def at(track: Track, n: int, rate: float) -> np.ndarray:
    """A track at a signal's `n` samples of `rate` Hz, by linear interpolation."""
    track = np.atleast_1d(np.asarray(track, np.float64))
    return np.interp(np.arange(n) / rate, np.arange(len(track)) / CONTROL, track)


def bumps(rng: Generator, n: int, per_minute: Track, seconds: float) -> np.ndarray:
    """Envelope [n] on the control grid of random events: 0 between them, about 1 to 2 inside.

    They are a Poisson process of rate `per_minute`, and last for some `seconds`.
    """
    starts = np.flatnonzero(rng.random(n) < np.broadcast_to(per_minute, n) / (60 * CONTROL))
    envelope, t = np.zeros(n), np.arange(n) / CONTROL
    for start in starts:
        width = seconds * rng.uniform(0.5, 1.5)
        envelope += rng.uniform(0.5, 2) * np.exp(-(((t - start / CONTROL) / (width / 2)) ** 4))
    return envelope


# --- heart ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Beats:
    """Heartbeats of one person: R-peak times in seconds, and which are premature ventricular beats.

    Three beats before and after the recording are included, so that waves reach into it.
    """

    times: np.ndarray
    ectopic: np.ndarray

    @property
    def rr(self) -> np.ndarray:
        """Interval that follows each beat, in seconds; [beats]."""
        intervals = np.diff(self.times)
        return np.append(intervals, intervals[-1])

    def inside(self, start: float, stop: float) -> np.ndarray:
        """Times of the beats in [start, stop) seconds."""
        return self.times[(self.times >= start) & (self.times < stop)]


def breathing(rng: Generator, per_minute: np.ndarray, irregularity: Track = 0.1) -> np.ndarray:
    """Respiration of amplitude about 1 on the control grid, inhaling upwards.

    `per_minute` is the rate as a track; `irregularity` the relative wander of rate and depth.
    """
    n = len(per_minute)
    rate = per_minute / 60 * np.exp(irregularity * wander(rng, n, 8.0))
    phase = 2 * np.pi * (rng.random() + np.cumsum(rate) / CONTROL)
    depth = np.exp(irregularity * wander(rng, n, 12.0))
    return depth * (np.sin(phase) + 0.2 * np.sin(2 * phase))


def heartbeats(
    rng: Generator,
    bpm: np.ndarray,
    resp: np.ndarray,
    rsa: Track = 0.03,
    mayer: Track = 0.02,
    jitter: Track = 0.005,
    ectopic: float = 0.0,
) -> Beats:
    """Beat times by integrating a heart rate with its variability.

    Parameters
    ----------
    bpm, resp : ndarray
        Tracks of heart rate, in beats per minute, and of respiration, as from `breathing`.
    rsa, mayer, jitter : float or ndarray
        Relative swing of the rate with respiration, with the 0.1 Hz (Mayer) wave, and from beat to
        beat; a `jitter` of about 0.2 looks like atrial fibrillation.
    ectopic : float
        Share of beats that come a third too early (the pause after them follows by itself).
    """
    n = len(bpm)
    mayer_wave = shaped_noise(rng, n, CONTROL, lambda f: np.exp(-0.5 * ((f - 0.1) / 0.015) ** 2))
    fast = band_noise(rng, n, CONTROL, 0.4, 2.0)
    swing = np.clip(rsa * resp + mayer * mayer_wave + 2 * np.asarray(jitter) * fast, -0.5, 0.8)
    rate = np.clip(bpm * (1 + swing), 25, 220) / 60
    count = rng.random() + np.concatenate(([0], np.cumsum((rate[1:] + rate[:-1]) / 2) / CONTROL))
    times = np.interp(np.arange(1, int(count[-1]) + 1), count, np.arange(n) / CONTROL)
    outside = np.arange(1, 4)
    before, after = times[0] - outside[::-1] / rate[0], times[-1] + outside / rate[-1]
    times = np.concatenate((before, times, after))
    early = rng.random(len(times)) < ectopic
    early[1:] &= ~early[:-1]
    early[0] = False
    times[early] -= 0.33 * (times[early] - times[np.flatnonzero(early) - 1])
    return Beats(times, early)


WAVES = ("P", "Q", "R", "S", "R2", "ST", "T")


@dataclass(frozen=True)
class EcgShape:
    """One person's beat in one lead: a Gaussian for each of the 7 `WAVES`.

    Amplitudes are in mV, centers in seconds from the R peak, widths standard deviations in seconds.
    The centre of T holds at an RR interval of 1 s and goes with its square root (Bazett).
    """

    amplitude: np.ndarray
    center: np.ndarray
    width: np.ndarray

    @classmethod
    def draw(cls, rng: Generator) -> "EcgShape":
        """A healthy adult in a chest or limb lead close to II."""
        r = rng.lognormal(np.log(0.9), 0.3)
        t = rng.choice([1, 1, 1, 1, 1, -0.5]) * r * rng.uniform(0.12, 0.45)
        qrs = rng.uniform(0.85, 1.25)
        # fmt: off
        amplitude = [rng.uniform(0.03, 0.16), -r * rng.uniform(0.02, 0.15), r,
                     -r * rng.uniform(0.03, 0.4), 0.0, t * rng.uniform(0, 0.25), t]
        center = [-rng.uniform(0.13, 0.18), -0.028 * qrs, 0.0, 0.028 * qrs, 0.06 * qrs, 0.13,
                  rng.uniform(0.27, 0.33)]
        width = [rng.uniform(0.016, 0.026), 0.009 * qrs, 0.0105 * qrs, 0.010 * qrs, 0.014 * qrs,
                 0.035, rng.uniform(0.035, 0.06)]
        # fmt: on
        return cls(np.array(amplitude), np.array(center), np.array(width))

    def scaled(self, **gains: float) -> "EcgShape":
        """The shape with named waves multiplied, as in ``shape.scaled(T=-1)``."""
        factor = np.array([gains.get(wave, 1.0) for wave in WAVES])
        return replace(self, amplitude=self.amplitude * factor)


def ecg(
    beats: Beats, n: int, rate: float, shape: EcgShape, resp: Track = 0.0, t_gain: Track = 1.0
) -> np.ndarray:
    """Clean ECG in mV, [n]; `t_gain` multiplies the T wave.

    `resp` moves the amplitude by 5 % of its own (electrode against heart).
    """
    t = np.arange(n) / rate
    last = np.searchsorted(beats.times, t, side="right") - 1
    stretch = np.sqrt(np.clip(np.concatenate(([beats.rr[0]], beats.rr[:-1])), 0.3, 1.6))
    gain_t = np.interp(beats.times, np.arange(np.size(t_gain)) / CONTROL, np.atleast_1d(t_gain))
    y = np.zeros(n)
    # Between two beats a sample sees the next P, both QRS, and the T of the last two beats.
    neighbours = {"P": (1,), "T": (0, -1), "ST": (0,), "R2": (0,)}
    for wave, a, c, w in zip(WAVES, shape.amplitude, shape.center, shape.width, strict=True):
        if a == 0:
            continue
        amplitude = np.where(beats.ectopic, {"P": 0.0, "R": 1.3, "T": -1.4}.get(wave, 1.0) * a, a)
        amplitude = amplitude * (gain_t if wave in ("T", "ST") else 1.0)
        center = c * (stretch if wave in ("T", "ST") else 1.0)
        center = center + np.where(beats.ectopic, {"S": 0.03, "T": 0.06}.get(wave, 0.0), 0.0)
        width = np.where(beats.ectopic & (wave != "T"), 2.4 * w, w)
        for step in neighbours.get(wave, (0, 1)):
            k = last + step
            x = (t - (beats.times + center)[k]) / width[k]
            if wave == "T":  # slower up than down
                x = np.where(x < 0, x / 1.35, x / 0.85)
            y += amplitude[k] * np.exp(-0.5 * x * x)
    return y * (1 + 0.05 * at(resp, n, rate))


@dataclass(frozen=True)
class PpgShape:
    """One person's pulse at one site.

    Attributes
    ----------
    delay, rise, fall : float
        Seconds from the R peak to the foot of the pulse, and standard deviations of the two flanks
        of the systolic wave.
    notch, notch_delay, notch_width : float
        Height of the diastolic wave (the systolic one has 1), seconds between the two peaks, and
        its standard deviation.
    """

    delay: float
    rise: float
    fall: float
    notch: float
    notch_delay: float
    notch_width: float

    @classmethod
    def draw(cls, rng: Generator) -> "PpgShape":
        """From a young sharp pulse with a notch to a rounded one without."""
        return cls(
            delay=rng.uniform(0.12, 0.25),
            rise=rng.uniform(0.045, 0.085),
            fall=rng.uniform(0.08, 0.17),
            notch=rng.uniform(0.05, 0.6),
            notch_delay=rng.uniform(0.22, 0.34),
            notch_width=rng.uniform(0.07, 0.13),
        )


def ppg(
    beats: Beats, n: int, rate: float, shape: PpgShape, gain: Track = 1.0, notch_gain: Track = 1.0
) -> np.ndarray:
    """Clean blood-volume pulse, [n]; a systolic wave has height 1 times `gain`."""
    t = np.arange(n) / rate
    foot = beats.times + shape.delay
    last = np.clip(np.searchsorted(foot, t, side="right") - 1, 2, len(foot) - 1)
    stretch = np.sqrt(np.clip(beats.rr, 0.35, 1.3) / 0.85)
    grid = np.arange(max(np.size(gain), np.size(notch_gain))) / CONTROL
    gain, notch_gain = np.broadcast_arrays(gain, notch_gain)
    height = np.interp(foot, grid, np.broadcast_to(gain, grid.shape))
    height = height * np.where(beats.ectopic, 0.55, 1.0)
    diastolic = shape.notch * np.interp(foot, grid, np.broadcast_to(notch_gain, grid.shape))
    y = np.zeros(n)
    for step in (0, -1, -2):
        k = last + step
        x = (t - foot[k]) / stretch[k] - 2.5 * shape.rise
        systolic = np.exp(-0.5 * (x / np.where(x < 0, shape.rise, shape.fall)) ** 2)
        second = np.exp(-0.5 * ((x - shape.notch_delay) / shape.notch_width) ** 2)
        y += height[k] * (systolic + diastolic[k] * second)
    return y


def mains(rng: Generator, n: int, rate: float, dtype: type = np.float32) -> np.ndarray:
    """Hum of amplitude about 1 with a wandering level, [n]; `dtype` as in `wander`."""
    level = at(np.exp(0.4 * wander(rng, int(n / rate * CONTROL) + 2, 5.0, dtype)), n, rate)
    return level * np.sin(2 * np.pi * MAINS_HZ * np.arange(n) / rate + rng.uniform(0, 2 * np.pi))


def recorded(x: np.ndarray, per_unit: float) -> np.ndarray:
    """What a recorder with `per_unit` steps to the unit makes of a signal."""
    return np.rint(x * per_unit) / per_unit


def save_mat(path: Path, content: Mapping[str, object]) -> Path:
    """Write a MATLAB v5 file; equal content gives equal bytes."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, content)
    with open(path, "r+b") as file:  # scipy writes the time into the header, which is free text
        file.write(b"MATLAB 5.0 MAT-file, simulated by biox".ljust(116))
    return path


def pops(rng: Generator, n: int, rate: float, per_minute: float) -> np.ndarray:
    """Electrode pops: steps of random sign and size that decay within seconds, [n]."""
    y, t = np.zeros(n), np.arange(n) / rate
    for start in rng.uniform(0, n / rate, rng.poisson(per_minute * n / rate / 60)):
        decay = np.exp(-np.clip(t - start, 0, None) / rng.uniform(0.2, 1.5))
        y += rng.choice([-1, 1]) * rng.uniform(0.5, 2) * decay * (t >= start)
    return y
