"""A simulated ISRUC-Sleep subject: the sleep stage drives the EEG and the ECG.

The settings are plausible physiology, not fits to the original recordings.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.random import Generator

from biox.data.readers.isruc import ECG_CHANNEL, EEG_CHANNELS, EPOCH_SECONDS, SURPLUS
from biox.data.simulate import neurophysiology as neuro
from biox.data.simulate import physiology as phys
from biox.data.simulate.neurophysiology import reaction, state_track
from biox.data.simulate.physiology import CONTROL, at, recorded, save_mat, wander

SUBJECTS = tuple(str(number) for number in range(1, 32) if number != 8)
"""8 is left out because the original has gaps, too."""

EPOCHS = 30
RATE = 200

WAKE, N1, N2, N3, REM = 0, 1, 2, 3, 5

NIGHT = ((WAKE, 5), (N1, 2), (N2, 6), (N3, 6), (N2, 3), (REM, 4), (WAKE, 3), (N1, 1), (N2, 6))
"""Stages of a short night and their mean durations in epochs; repeated until it is long enough."""

LEVELS = {"delta": 8.0, "theta": 5.0, "alpha": 5.0, "sigma": 2.0, "beta": 3.5, "gamma": 1.5}
"""Standard deviation of each band in wake with eyes open, in uV."""

STAGE_EEG = {
    "delta": {N1: (0.15, 0.25), N2: (0.55, 0.25), N3: (1.15, 0.25), REM: (0.1, 0.25)},
    "theta": {N1: (0.3, 0.2), N2: (0.35, 0.2), N3: (0.35, 0.25), REM: (0.3, 0.2)},
    "alpha": {WAKE: (0.5, 0.4), N2: (-0.15, 0.25), N3: (-0.2, 0.25), REM: (-0.1, 0.25)},
    "sigma": {N2: (0.2, 0.2)},
    "beta": {N1: (-0.1, 0.2), N2: (-0.25, 0.2), N3: (-0.45, 0.2), REM: (-0.15, 0.2)},
    "gamma": {N1: (-0.1, 0.2), N2: (-0.2, 0.2), N3: (-0.3, 0.2), REM: (-0.2, 0.2)},
}
"""Change of the logarithm of a band's level by stage: mean and sd over subjects."""


def hypnogram(rng: Generator, epochs: int) -> np.ndarray:
    """Sleep stages (0, 1, 2, 3, 5) of consecutive epochs, [epochs]; about a quarter is wake."""
    stages: list[int] = []
    while len(stages) < epochs:
        for stage, mean in NIGHT:
            stages += [stage] * max(1, rng.poisson(mean))
    return np.array(stages[:epochs])


def sleep_eeg(rng: Generator, stages: np.ndarray, n: int, effect: float) -> np.ndarray:
    """EEG in uV, [6, n] at 200 Hz; `stages` on the control grid."""
    grid, rate = len(stages), RATE
    size, drift = rng.normal(0, 0.25), 0.15 * wander(rng, grid, 60)
    levels = {}
    for band, microvolts in LEVELS.items():
        change = reaction(rng, stages, effect, STAGE_EEG[band])
        log = size + rng.normal(0, 0.2) + change + drift + 0.12 * wander(rng, grid, 40)
        levels[band] = microvolts * np.exp(log)
    # Rows: F3 C3 O1 F4 C4 O2. Alpha is strongest at the back, delta and spindles at the front.
    front = np.array([1.0, 0.6, 0.2, 1.0, 0.6, 0.2])[:, None]
    peaks = {"alpha": 1.4 - 0.8 * front[:, 0], "delta": 0.8 + 0.3 * front[:, 0]}
    slope, alpha_hz = rng.uniform(1.2, 1.8), rng.uniform(8.8, 10.8)
    options = {"alpha_hz": alpha_hz, "peaks": peaks, "dtype": np.float64}
    y = neuro.eeg(rng, 6, n, rate, levels, 5 * np.exp(size), slope, 0.6, **options)
    per_minute = state_track(stages, {N2: 5 * effect, N3: 2 * effect})
    y += 15 * (0.4 + 0.6 * front) * neuro.spindles(rng, n, rate, per_minute.clip(0))
    eyes = state_track(stages, {WAKE: 8 * effect, N1: 1 * effect, REM: 5 * effect}, 1.0)
    y += 70 * front**2 * neuro.blinks(rng, n, rate, eyes.clip(0) * rng.uniform(0.2, 1.5))
    moving = state_track(stages, {WAKE: 1.5 * effect, N1: 0.5 * effect}, 1.0)
    effort = phys.bumps(rng, grid, 0.5 + moving.clip(0), 2.0)
    muscle = at(0.8 + 8 * effort, n, rate) * phys.band_noise(rng, (6, n), rate, 20, 80)
    sway = 40 * at(effort * wander(rng, grid, 0.5), n, rate)
    return y + muscle + sway + rng.uniform(0, 1.5) * phys.mains(rng, n, rate, np.float64)


def sleep_ecg(rng: Generator, stages: np.ndarray, n: int, effect: float) -> np.ndarray:
    """ECG in mV, [n] at 200 Hz: in sleep slower, more respiratory, less 0.1 Hz, fewer movements."""
    grid, rate = len(stages), RATE

    def track(mean: float, table: Mapping[int, tuple[float, float]]) -> np.ndarray:
        return mean + reaction(rng, stages, effect, table)

    speed = track(rng.normal(15, 2), {WAKE: (1.0, 1.0), N3: (0.3, 0.5), REM: (0.8, 1.0)})
    table = {WAKE: (0.6, 0.3), N2: (-0.3, 0.2), N3: (-0.6, 0.2), REM: (0.5, 0.3)}
    irregular = np.exp(track(np.log(0.12), table))
    resp = phys.breathing(rng, np.clip(speed + 0.6 * wander(rng, grid, 40), 8, 28), irregular)
    table = {WAKE: (11.0, 4.0), N2: (-2.0, 1.5), N3: (-2.0, 2.0), REM: (2.0, 2.0)}
    bpm = track(rng.uniform(54, 74), table)
    rsa = np.exp(track(rng.normal(0, 0.3), {WAKE: (-0.5, 0.25), N3: (0.2, 0.25), REM: (-0.3, 0.2)}))
    slow = np.exp(track(rng.normal(0, 0.3), {WAKE: (0.45, 0.25), N3: (-0.5, 0.3), REM: (0.3, 0.2)}))
    # An arousal in wake carries the heart with it.
    moving = state_track(stages, {WAKE: 1.2 * effect, N1: 0.4 * effect}, 1.0)
    effort = phys.bumps(rng, grid, 0.5 + moving.clip(0), 2.0)
    bpm = bpm + 2 * wander(rng, grid, 45) + 3 * effort
    ectopic = rng.choice([0, 0, 0.003, 0.01])
    beats = phys.heartbeats(rng, bpm, resp, 0.03 * rsa, 0.025 * slow, 0.004, ectopic)
    shape = phys.EcgShape.draw(rng)
    tension = np.exp(-track(0, {WAKE: (0.15, 0.12)}) + 0.06 * wander(rng, grid, 30))
    level = shape.amplitude.max()
    y = phys.ecg(beats, n, rate, shape, resp, tension)
    y = y + level * at(rng.uniform(0.02, 0.1) * resp + 0.05 * wander(rng, grid, 3), n, rate)
    muscle = rng.uniform(0.008, 0.025) * np.exp(track(0, {WAKE: (0.35, 0.2)})) + 0.05 * effort
    y = y + level * at(muscle, n, rate) * phys.band_noise(rng, n, rate, 20, 80)
    y = y + 0.3 * level * at(effort * wander(rng, grid, 0.4), n, rate)
    return y + level * (0.008 * phys.mains(rng, n, rate, np.float64) + phys.pops(rng, n, rate, 0.1))


def write(folder: Path, seed: int, subject: str, length: float, effect: float) -> list[Path]:
    """Write ``ExtractedChannels/subjectN.mat`` and ``RawData/N/N_1.txt``."""
    rng = np.random.default_rng([seed, 3, int(subject)])
    epochs = round(EPOCHS * length)
    stages = hypnogram(rng, epochs + SURPLUS)
    track = np.repeat(stages[:epochs], int(EPOCH_SECONDS * CONTROL))
    n = round(epochs * EPOCH_SECONDS * RATE)
    brain, heart = (make(rng, track, n, effect) for make in (sleep_eeg, sleep_ecg))
    # steps of an amplifier: 0.05 uV and 1 uV
    signals = dict(zip(EEG_CHANNELS, recorded(brain, 20), strict=True))
    signals[ECG_CHANNEL] = recorded(heart, 1000)
    mat = folder / "ExtractedChannels" / f"subject{subject}.mat"
    text = folder / "RawData" / subject / f"{subject}_1.txt"
    save_mat(mat, {name: x.reshape(epochs, -1).astype(np.float32) for name, x in signals.items()})
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text("".join(f"{stage}\n" for stage in stages))
    return [mat, text]
