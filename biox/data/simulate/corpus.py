"""Pretraining windows with known targets: every window is another simulated person.

Targets are parameters of the generator or statistics of what it really drew (such as the mean rate
of the true beats), never a task's label. Shapes, noise and artefacts vary far more than in
`biox.data.simulate`, because models pretrained here also meet hospital monitors and other leads.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from joblib import Parallel, delayed
from numpy.random import Generator
from scipy.signal import butter, hilbert, sosfiltfilt

from biox.data.simulate import neurophysiology as neuro
from biox.data.simulate import physiology as phys
from biox.data.simulate.neurophysiology import BANDS
from biox.data.simulate.physiology import CONTROL, at, wander


@dataclass(frozen=True)
class Corpus:
    """Windows as recorded (not conditioned) and what is known about each.

    Attributes
    ----------
    signals : ndarray of float32, [n, channels, samples]
    rate, unit, channels
        Hz, unit and names of the channels.
    targets : ndarray of float32, [n, k]
        Finite; in the units that `names` end in. Scale them before regressing on them.
    names : tuple of str
    """

    signals: np.ndarray
    rate: float
    unit: str
    channels: tuple[str, ...]
    targets: np.ndarray
    names: tuple[str, ...]


# --- heart ----------------------------------------------------------------------------------------


def draw_heart(rng: Generator, seconds: float) -> tuple[np.ndarray, phys.Beats, dict[str, float]]:
    """Respiration, beats, and the true rates and variability of a random person."""
    grid = int(seconds * CONTROL) + 2
    resp = phys.breathing(rng, np.full(grid, rng.uniform(8, 28)), rng.uniform(0.03, 0.25))
    bpm = rng.uniform(40, 150) * (1 + rng.uniform(0, 0.04) * wander(rng, grid, 20))
    fibrillation = rng.random() < 0.07
    variability = rng.lognormal(-0.3, 0.7)
    rsa = 0 if fibrillation else 0.03 * variability
    jitter = rng.uniform(0.06, 0.15) if fibrillation else 0.004 * rng.lognormal(0, 0.5)
    ectopic = rng.uniform(0.01, 0.1) if rng.random() < 0.12 else 0.0
    beats = phys.heartbeats(rng, bpm, resp, rsa, 0.02 * variability, jitter, ectopic)
    rr = 1000 * np.diff(beats.inside(0, seconds))
    cycles = np.unwrap(np.angle(hilbert(resp)))
    known = {
        "heart_rate_bpm": 60000 / rr.mean(),
        "log_sdnn_ms": np.log(rr.std() + 1),
        "log_rmssd_ms": np.log(np.sqrt(np.mean(np.diff(rr) ** 2)) + 1),
        "respiration_per_min": 60 * (cycles[-1] - cycles[0]) / (2 * np.pi * grid / CONTROL),
    }
    return resp, beats, known


def conduction_block(rng: Generator, shape: phys.EcgShape) -> phys.EcgShape:
    """A wide QRS with a second peak, T against it (bundle-branch block)."""
    wide = np.array([1, *4 * [rng.uniform(1.5, 2.3)], 1, 1.2])
    shape = replace(shape, width=shape.width * wide, center=shape.center * wide)
    amplitude = shape.amplitude.copy()
    amplitude[4] = amplitude[2] * rng.uniform(0.3, 1.0)  # R2
    amplitude[6] = -amplitude[2] * rng.uniform(0.15, 0.5)  # T
    return replace(shape, amplitude=amplitude)


def paced(rng: Generator, shape: phys.EcgShape) -> phys.EcgShape:
    """A ventricular paced beat: deep and broad QS, raised ST, tall T."""
    r = shape.amplitude[2]
    amplitude = r * np.array([rng.choice([0, 0.1]), 0, 0.05, -1, 0, 0.5, 1]) * rng.uniform(0.6, 1.2)
    width = shape.width * np.array([1, 1, 1, rng.uniform(1.8, 3.2), 1, 1.5, 1.3])
    return replace(shape, amplitude=amplitude, width=width)


def any_lead(rng: Generator, shape: phys.EcgShape) -> phys.EcgShape:
    """The same heart seen from elsewhere: rS and QS complexes, tall or flat or inverted T."""
    r = shape.amplitude[2]
    if rng.random() < 0.3:
        shape = shape.scaled(R=rng.uniform(0.1, 0.6), S=rng.uniform(1, 5))
    if rng.random() < 0.2:
        shape = shape.scaled(Q=rng.uniform(1, 5))
    amplitude = shape.amplitude.copy()
    amplitude[6] = r * rng.choice([1, 1, 1, -1]) * rng.uniform(0, 0.9)
    amplitude[5] = r * rng.normal(0, 0.06)
    amplitude[0] *= rng.uniform(0, 2)
    return replace(shape, amplitude=amplitude)


ECG_VARIANTS = [*6 * [any_lead], *2 * [lambda rng, shape: shape], conduction_block, paced]
"""Functions of (rng, shape) that make another shape, as often as each is drawn."""


def monitor(rng: Generator, x: np.ndarray, rate: float, low: tuple, high: tuple) -> np.ndarray:
    """What a recorder may do, each sometimes: filter ([low], [high] Hz), quantise, clip."""
    if rng.random() < 0.5:
        x = sosfiltfilt(butter(2, rng.uniform(*high), fs=rate, output="sos"), x)
    if rng.random() < 0.4:
        x = sosfiltfilt(butter(1, rng.uniform(*low), "high", fs=rate, output="sos"), x)
    span = np.ptp(x)
    if rng.random() < 0.3:
        step = span / rng.choice([64, 128, 256, 512])
        x = step * np.round(x / step)
    if rng.random() < 0.08:
        x = np.clip(x, x.min() + rng.uniform(0, 0.1) * span, x.max() - rng.uniform(0, 0.2) * span)
    return x


def ecg_noise(rng: Generator, n: int, rate: float, resp: np.ndarray) -> np.ndarray:
    """Noise and artefacts for an ECG whose QRS has height 1, [n]."""
    grid = len(resp)
    level = np.exp(rng.uniform(np.log(0.004), np.log(0.12)))
    y = level * phys.band_noise(rng, n, rate, rng.uniform(0.5, 20), rng.uniform(40, 100))
    y += at(rng.uniform(0, 0.2) * resp + rng.uniform(0, 0.25) * wander(rng, grid, 2.5), n, rate)
    effort = phys.bumps(rng, grid, rng.choice([0, 0.5, 3]), 2.0)
    y += at(0.15 * effort, n, rate) * phys.band_noise(rng, n, rate, 15, 100)
    y += at(0.4 * effort * wander(rng, grid, 0.4), n, rate)
    y += rng.choice([0, 0, rng.uniform(0, 0.05)]) * phys.mains(rng, n, rate)
    return y + phys.pops(rng, n, rate, rng.choice([0, 0.3]))


def ecg_window(rng: Generator, seconds: float, rate: float, channels: int) -> tuple:
    """One ECG window in mV, [channels, samples], and its targets (of the first channel)."""
    n = round(seconds * rate)
    resp, beats, known = draw_heart(rng, seconds)
    base = phys.EcgShape.draw(rng)
    variant = ECG_VARIANTS[rng.integers(len(ECG_VARIANTS))]
    if known["log_rmssd_ms"] > np.log(80) and rng.random() < 0.5:  # fibrillation has no P
        base = base.scaled(P=0.0)
    y, noise = np.empty((channels, n)), np.empty(n)
    for i in range(channels):
        shape = variant(rng, base)
        gain = rng.choice([-1, 1, 1, 1]) * np.exp(rng.uniform(np.log(0.12), np.log(1.6)))
        height = np.ptp(shape.amplitude[1:5])
        clean = phys.ecg(beats, n, rate, shape, resp)
        noise = ecg_noise(rng, n, rate, resp)
        y[i] = gain * monitor(rng, clean + height * noise, rate, (0.05, 0.6), (22, 60))
        if i == 0:
            tall = np.abs(shape.amplitude[1:5]) > 0.08 * height
            center, width = shape.center[1:5][tall], shape.width[1:5][tall]
            known["qrs_ms"] = 1000 * np.ptp(np.stack((center - 2 * width, center + 2 * width)))
            main = shape.amplitude[1:5][np.argmax(np.abs(shape.amplitude[1:5]))]
            known["t_to_qrs"] = shape.amplitude[6] / main
            known["log_noise"] = np.log(noise.std() + 1e-3)
    return y, known


def ppg_window(rng: Generator, seconds: float, rate: float, channels: int) -> tuple:
    """One PPG window in arbitrary units, [1, samples], and its targets."""
    n = round(seconds * rate)
    resp, beats, known = draw_heart(rng, seconds)
    grid = len(resp)
    shape = phys.PpgShape.draw(rng)
    rise, fall, notch = rng.uniform(0.045, 0.11), rng.uniform(0.08, 0.24), rng.uniform(0, 0.7)
    shape = replace(shape, rise=rise, fall=fall, notch=notch)
    depth = rng.uniform(0, 0.25)
    gain = np.exp(rng.uniform(0, 0.25) * wander(rng, grid, 12)) * (1 + depth * resp)
    y = phys.ppg(beats, n, rate, shape, np.maximum(gain, 0.1))
    level = np.exp(rng.uniform(np.log(0.003), np.log(0.08)))
    noise = level * phys.band_noise(rng, n, rate, 0.5, rng.uniform(8, 30))
    noise += at(rng.uniform(0, 0.3) * resp + rng.uniform(0, 0.3) * wander(rng, grid, 3), n, rate)
    effort = phys.bumps(rng, grid, rng.choice([0, 0.5, 2]), 2.5)
    noise += at(0.7 * effort * wander(rng, grid, 0.4), n, rate)
    lost = phys.bumps(rng, grid, rng.choice([0, 0, 0, 0.7]), 2.0)
    y = (y + noise) * at(np.exp(-3 * lost), n, rate)
    y = monitor(rng, y, rate, (0.03, 0.4), (3.5, 16)) * np.exp(rng.uniform(-2, 4))
    known |= {"notch_height": notch, "rise_ms": 2500 * rise, "respiratory_depth": depth}
    return y[None], known | {"log_noise": np.log(noise.std() + 1e-3)}


# --- brain and muscle -----------------------------------------------------------------------------


def eeg_window(rng: Generator, seconds: float, rate: float, channels: int) -> tuple:
    """One EEG window in uV, [channels, samples], and its targets."""
    n, grid = round(seconds * rate), int(seconds * CONTROL) + 2
    typical = {"delta": 8, "theta": 5, "alpha": 5, "sigma": 2, "beta": 3, "gamma": 1.5}
    size = rng.lognormal(0, 0.3)
    levels = {band: size * uv * np.exp(rng.uniform(-1.1, 1.1)) for band, uv in typical.items()}
    peaks = {band: np.exp(0.3 * rng.standard_normal(channels)) for band in levels}
    known = {
        "slope": rng.uniform(0.6, 2.2),
        "burstiness": rng.uniform(0.1, 0.8),
        "coherence": rng.uniform(0.1, 0.85),
        "alpha_hz": rng.uniform(8.3, 12),
    }
    background = 6 * size * rng.lognormal(0, 0.4)
    y = neuro.eeg(rng, channels, n, rate, levels, background, **known, peaks=peaks)
    known["spindles_per_min"] = rng.choice([0, rng.uniform(1, 10)])
    site = np.exp(0.4 * rng.standard_normal((channels, 1)))
    burst = neuro.spindles(rng, n, rate, known["spindles_per_min"])
    y += rng.uniform(8, 20) * site * burst
    f = np.fft.rfftfreq(n, 1 / rate)
    power = np.mean(np.abs(np.fft.rfft(y)) ** 2, axis=0) * 2 / n**2
    for band, (low, high) in BANDS.items():
        known[f"log_{band}_uv2"] = np.log(power[(f >= low) & (f < high)].sum())
    front = rng.uniform(0, 1, (channels, 1)) ** 2
    y += rng.uniform(30, 90) * front * neuro.blinks(rng, n, rate, rng.choice([0, 3, 15]))
    effort = phys.bumps(rng, grid, rng.choice([0, 0, 2]), 2.0)
    muscle = at(rng.uniform(0.2, 1.5) + 8 * effort, n, rate)
    y += muscle * phys.band_noise(rng, (channels, n), rate, 20, 90)
    y += 30 * front * at(effort * wander(rng, grid, 0.5), n, rate)
    y += rng.choice([0, rng.uniform(0, 3)]) * phys.mains(rng, n, rate)
    if rng.random() < 0.5:  # the usual band of published recordings
        y = sosfiltfilt(butter(2, [0.4, rng.uniform(40, 50)], "band", fs=rate, output="sos"), y)
    return y, known


def emg_window(rng: Generator, seconds: float, rate: float, channels: int) -> tuple:
    """One EMG window in uV, [channels, samples], and its targets."""
    n, grid = round(seconds * rate), int(seconds * CONTROL) + 2
    hz = np.exp(rng.uniform(np.log(0.5), np.log(8)))
    duty, tonic = rng.uniform(0.2, 0.75), rng.uniform(0.03, 0.6)
    low = rng.uniform(15, 60)
    high = low + rng.uniform(50, 130)
    y = np.empty((channels, n))
    for i in range(channels):
        size = rng.lognormal(np.log(40), 0.6)
        drift = np.exp(0.25 * wander(rng, grid, 2))
        share = np.clip(tonic * rng.lognormal(0, 0.15), 0, 0.9)
        envelope = neuro.burst_envelope(rng, n, rate, hz, duty, share * drift, (1 - share) * drift)
        y[i] = size * neuro.emg(rng, envelope, rate, low, high)
        y[i] += rng.uniform(0, 0.1) * size * phys.mains(rng, n, rate)
        y[i] += rng.uniform(0, 0.3) * size * at(wander(rng, grid, 0.4), n, rate)
        y[i] += rng.uniform(0.5, 3) * rng.standard_normal(n)
    known = {"log2_burst_hz": np.log2(hz), "duty": duty, "tonic_share": tonic}
    return y, known | {"band_center_hz": (low + high) / 2, "band_width_hz": high - low}


class Kind(NamedTuple):
    """What ``window(rng, seconds, rate, n_channels)`` simulates; `stream` seeds its draws."""

    window: Callable
    rate: float
    unit: str
    channels: tuple[str, ...]
    stream: int


KINDS = {
    "ecg": Kind(ecg_window, 250.0, "mV", ("ECG",), 0),
    "ppg": Kind(ppg_window, 125.0, "a.u.", ("PPG",), 1),
    "eeg": Kind(eeg_window, 200.0, "uV", ("F3", "C3", "O1", "F4", "C4", "O2"), 2),
    "emg": Kind(emg_window, 500.0, "uV", ("EMG 1", "EMG 2", "EMG 3"), 3),
}


def _simulated(kind: Kind, i: int, seconds: float, seed: int, channels: int) -> tuple:
    """Window i of a corpus, from a random stream of its own, and what is known about it."""
    rng = np.random.default_rng([seed, 100 + kind.stream, i])
    values, known = kind.window(rng, seconds, kind.rate, channels)
    return values.astype(np.float32), known


def corpus(
    modality: str | Kind,
    n: int,
    seconds: float,
    seed: int = 0,
    channels: int | None = None,
    n_jobs: int = 1,
) -> Corpus:
    """Simulate `n` windows, each of another person, with their targets.

    Window i depends on (modality, seed, i) and the window's length and channels only, so a larger
    corpus begins with the smaller one, whatever the number of processes.

    Parameters
    ----------
    modality : {"ecg", "ppg", "eeg", "emg"} or Kind
    n, seed, n_jobs : int
        Windows, seed and processes (-1: one a core).
    seconds : float
        Length of a window; 10 or more where there are heartbeats.
    channels : int, optional
        Number of channels; 1 (ecg, ppg), 6 (eeg) or 3 (emg) by default. ppg has always 1. Several
        ecg leads share their beats.
    """
    kind = KINDS.get(modality, modality)
    names = kind.channels
    if channels not in (None, len(names)):
        names = tuple(f"{modality.upper()} {i + 1}" for i in range(channels))
    assert names and (modality != "ppg" or len(names) == 1)
    assert seconds >= (10 if modality in ("ecg", "ppg") else 1)
    signals = np.empty((n, len(names), round(seconds * kind.rate)), np.float32)
    targets: list[dict[str, float]] = []
    made = Parallel(n_jobs=n_jobs, return_as="generator", batch_size=50)(
        delayed(_simulated)(kind, i, seconds, seed, len(names)) for i in range(n)
    )
    for i, (values, known) in enumerate(made):
        signals[i] = values
        targets.append(known)
    values = np.array([list(known.values()) for known in targets], np.float32)
    return Corpus(signals, kind.rate, kind.unit, names, values, tuple(targets[0]))
