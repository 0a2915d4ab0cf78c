"""A simulated FOG patient: freezing of gait drives the EEG and the leg EMG.

The settings are plausible physiology, not fits to the original recordings.
"""

from pathlib import Path

import numpy as np
from numpy.random import Generator

from biox.data.readers.fog import EMG_COLUMNS, LABEL_COLUMN, N_COLUMNS
from biox.data.simulate import neurophysiology as neuro
from biox.data.simulate import physiology as phys
from biox.data.simulate.neurophysiology import reaction, state_track
from biox.data.simulate.physiology import CONTROL, at, recorded, wander

SUBJECTS = tuple(f"{number:03d}" for number in range(1, 13))
SECONDS = 80.0
RATE = 500
SESSIONS = {"008": ("OFF_1", "OFF_2")}
"""Sub-folders of a patient who has some."""

FORMAT = ["%d", "%.3f"] + ["%.1f"] * 30 + ["%d"] * 29
"""A counter, seconds, EEG and EMG in steps of 0.1 uV, nothing, the label."""


def freezing(rng: Generator, seconds: float) -> np.ndarray:
    """0 (normal) or 1 (freezing) on the control grid: episodes of 3-15 s, 40-50 % of the time."""
    parts, state = [], rng.integers(2)
    while sum(map(len, parts)) < seconds * CONTROL:
        length = rng.uniform(3, 15) if state else rng.uniform(4, 16)
        parts.append(np.full(int(length * CONTROL), state))
        state = 1 - state
    return np.concatenate(parts)[: round(seconds * CONTROL)]


def walking_eeg(rng: Generator, states: np.ndarray, n: int, effect: float) -> np.ndarray:
    """EEG in uV, [25, n] at 500 Hz: freezing raises theta and beta, lowers alpha."""
    grid = len(states)
    table = {"theta": (0.6, 0.25), "alpha": (-0.25, 0.25), "beta": (0.5, 0.25)}
    table["delta"] = (0.15, 0.2)
    rest = {"delta": 6.0, "theta": 4.0, "alpha": 4.0, "beta": 3.0, "gamma": 1.2}
    level = rng.normal(0, 0.2)
    levels = {}
    for band, microvolts in rest.items():
        change = reaction(rng, states, effect, {1: table.get(band, (0.0, 0.1))}, 0.7)
        log = level + rng.normal(0, 0.2) + change
        levels[band] = microvolts * np.exp(log + 0.2 * wander(rng, grid, 6))
    slope = rng.uniform(0.8, 1.4)
    y = neuro.eeg(rng, 25, n, RATE, levels, 5 * np.exp(level), slope, 0.6, dtype=np.float64)
    step = phys.shaped_noise(rng, n, RATE, lambda f: np.exp(-0.5 * ((f - 1) / 0.3) ** 2))
    front = np.linspace(1, 0.1, 25)[:, None]
    y += 3 * step + 60 * front * neuro.blinks(rng, n, RATE, 12.0)
    jaw = at(phys.bumps(rng, grid, 4.0, 1.0), n, RATE)
    return y + 6 * front * jaw * phys.band_noise(rng, n, RATE, 20, 50)


def leg_emg(rng: Generator, states: np.ndarray, n: int, effect: float) -> np.ndarray:
    """EMG in uV, [3, n] at 500 Hz: gait bursts near 1 Hz, trembling at 4-7 Hz in freezing."""
    grid = len(states)
    mixing = np.clip(state_track(states, {1: effect * rng.uniform(0.4, 0.95)}, 0.4), 0, 1)
    gait = rng.uniform(0.8, 1.2) * np.exp(0.05 * wander(rng, grid, 5, np.float64))
    tremor = rng.uniform(4, 7) * np.exp(0.05 * wander(rng, grid, 3, np.float64))
    # Trembling comes and goes within an episode, and some shows in gait.
    share = np.clip(mixing + 0.3 * wander(rng, grid, 1.5), 0, 1)
    y = np.empty((3, n), np.float32)
    for i in range(3):
        size = rng.lognormal(np.log(40), 0.5)
        # Opposing muscles contract together in freezing, so the tone between bursts rises.
        tonic = size * rng.uniform(0.1, 0.35) * np.exp(0.2 * wander(rng, grid, 4) + 0.8 * share)
        walking = neuro.burst_envelope(
            rng, n, RATE, gait, rng.uniform(0.3, 0.6), tonic, size * (1 - share), np.float64
        )
        duty, depth = rng.uniform(0.4, 0.7), size * rng.uniform(0.4, 1) * share
        trembling = neuro.burst_envelope(rng, n, RATE, tremor, duty, 0.0, depth, np.float64)
        low, high = rng.uniform(20, 45), rng.uniform(100, 180)
        y[i] = neuro.emg(rng, walking + trembling, RATE, low, high)
        y[i] += 2 * phys.mains(rng, n, RATE, np.float64) + 5 * at(wander(rng, grid, 0.5), n, RATE)
    return y


def write(folder: Path, seed: int, subject: str, length: float, effect: float) -> list[Path]:
    """Write ``001/task_1.txt`` and the like; several sessions are stretches of one walk."""
    rng = np.random.default_rng([seed, 2, int(subject)])
    sessions, seconds = SESSIONS.get(subject, ("",)), SECONDS * length
    n = round(seconds * RATE)
    states = freezing(rng, seconds * len(sessions))
    eeg = walking_eeg(rng, states, n * len(sessions), effect)
    emg = leg_emg(rng, states, n * len(sessions), effect)
    labels = np.repeat(states, RATE // int(CONTROL))
    paths = []
    for k, session in enumerate(sessions):
        part, key = slice(k * n, (k + 1) * n), f"{subject}/{session}".rstrip("/")
        table = np.zeros((n, N_COLUMNS))
        table[:, 0] = np.arange(n)
        table[:, 1] = np.arange(n) / RATE
        table[:, 2:27] = eeg[:, part].T
        table[:, 27:32] = 5 * rng.standard_normal((n, 5))
        table[:, EMG_COLUMNS[key]] = emg[:, part].T
        table[:, 2:32] = recorded(table[:, 2:32], 10) + 0.0  # no -0.0
        table[:, LABEL_COLUMN] = labels[part]
        path = folder / subject / session / "task_1.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(path, table, delimiter=",", fmt=FORMAT)
        paths.append(path)
    return paths
